//! Bytes that are not what they were: in the store, in the index, in the workspace while it is read.

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::{
    failing_disk::comes_back,
    sandbox::{Sandbox, snapshot},
};

/// Two packs of contents, two large files, a run and a remote that has it all.
fn world() -> Sandbox {
    let sandbox = Sandbox::new();
    for (name, byte) in [("one", 1_u8), ("two", 2)] {
        for at in 0..40 {
            sandbox.write(&format!("data/{name}/{at}"), format!("{name} {at} ").repeat(60));
        }
        sandbox.write(
            &format!("data/{name}/large"),
            (0..1_200_000_u32).map(|it| it as u8 ^ byte ^ (it >> 12) as u8).collect::<Vec<_>>(),
        );
        sandbox.ok("add data");
    }
    sandbox.write("mlx.toml", "[stage.c]\ncmd = 'cat data/one/0 > o'\ndeps = ['data']\nouts = ['o']\n");
    sandbox.ok("repro");
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.ok("push");
    sandbox
}

fn files(sandbox: &Sandbox, folder: &str) -> Vec<PathBuf> {
    let found = fs::read_dir(sandbox.repo.join(".git/mlx").join(folder)).unwrap();
    let mut found: Vec<_> = found.map(|it| it.unwrap().path()).collect();
    found.sort();
    found
}

fn with_ending(sandbox: &Sandbox, ending: &str) -> Vec<PathBuf> {
    files(sandbox, "packs").into_iter().filter(|it| it.extension().is_some_and(|it| it == ending)).collect()
}

fn change(path: &Path, with: impl FnOnce(&mut Vec<u8>)) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    with(&mut bytes);
    fs::write(path, bytes).unwrap();
}

type Damage = (&'static str, fn(&mut Vec<u8>));

const DAMAGES: [Damage; 5] = [
    ("a page of zeros", |it| {
        let end = it.len().min(4096);
        it[..end].fill(0);
    }),
    ("zeros at its end", |it| {
        let start = it.len().saturating_sub(4096);
        it[start..].fill(0);
    }),
    ("its head alone", |it| it.truncate(8)),
    ("a page of junk behind it", |it| it.extend([0xa5; 4096])),
    ("its first half twice", |it| {
        let half = it.len() / 2;
        it.copy_within(..half, half);
    }),
];

/// All files of the store are damaged at once, each kind in each way: reading finds it, fsck names it and the remote
/// has it.
#[test]
fn pages_that_are_lost_in_any_file_of_the_store_are_found_and_come_back() {
    let sandbox = world();
    let expected = snapshot(&sandbox.repo);
    let runs: Vec<_> = files(&sandbox, "runs").into_iter().map(|it| (fs::read(&it).unwrap(), it)).collect();
    for (what, with) in DAMAGES {
        // A record that is damaged goes, and nobody misses it.
        runs.iter().for_each(|it| fs::write(&it.1, &it.0).unwrap());
        for ending in ["pack", "idx", "large", "run"] {
            let name = format!("{what}: {ending}");
            let damaged = match ending {
                "large" => files(&sandbox, "objects"),
                "run" => files(&sandbox, "runs"),
                ending => with_ending(&sandbox, ending),
            };
            assert!(!damaged.is_empty());
            damaged.iter().for_each(|it| change(it, with));
            let found = sandbox.mlx("fsck --json");
            assert_eq!(found.code, 10, "{name}: {}{}", found.out, found.err);
            let found: Value = serde_json::from_str(&found.out).unwrap();
            assert!(found["faults"].as_array().unwrap().len() >= damaged.len(), "{name}: {found}");
            if ending == "large" {
                let hits = found["damaged"][0]["hits"].as_array().unwrap();
                assert!(
                    hits.iter().any(|it| it["path"] == "data/one/large" || it["path"] == "data/two/large")
                );
            }
            sandbox.ok("fsck --repair");
            sandbox.ok("fsck");
            comes_back(&sandbox, &expected, &name);
        }
    }
}

#[test]
fn two_files_of_the_store_under_each_others_names_are_found_and_come_back() {
    let sandbox = world();
    let expected = snapshot(&sandbox.repo);
    for ending in ["pack", "idx", "large"] {
        let of = if ending == "large" { files(&sandbox, "objects") } else { with_ending(&sandbox, ending) };
        let aside = sandbox.root().join("aside");
        fs::rename(&of[0], &aside).unwrap();
        fs::rename(&of[1], &of[0]).unwrap();
        fs::rename(&aside, &of[1]).unwrap();
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        let ran = sandbox.mlx("checkout");
        // An index beside the wrong pack is not believed, nor is a pack beside the wrong index.
        assert!([0, 3, 5].contains(&ran.code), "{ending}: {}", ran.err);
        assert_eq!(sandbox.mlx("fsck").code, 10, "{ending}");
        sandbox.ok("fsck --repair");
        sandbox.ok("pull --force");
        sandbox.ok("fsck");
        comes_back(&sandbox, &expected, ending);
    }
}

#[test]
fn a_flipped_bit_in_lockfile_or_pointer_is_a_change_or_an_error_and_never_other_bytes() {
    let sandbox = world();
    let before = snapshot(&sandbox.repo.join("data"));
    for file in ["data.mlx", "mlx.lock"] {
        let text = fs::read(sandbox.repo.join(file)).unwrap();
        for at in (0..text.len()).step_by(17) {
            let mut bad = text.clone();
            bad[at] ^= 1 << (at % 7);
            if text[..at].iter().all(|it| *it != b'\n') && text[0] == b'#' {
                continue;
            }
            fs::write(sandbox.repo.join(file), &bad).unwrap();
            let ran = sandbox.mlx("status --json");
            let clean = ran.code == 0 && serde_json::from_str::<Value>(&ran.out).unwrap()["clean"] == true;
            // What a person may write otherwise (a comment, a space) changes nothing.
            assert!(
                !clean || bad[at] == b'\t' || text[at].is_ascii_whitespace(),
                "{file}, byte {at}: {}",
                ran.out
            );
            assert!([0, 5].contains(&ran.code), "{file}, byte {at}: {}", ran.err);
        }
        fs::write(sandbox.repo.join(file), text).unwrap();
    }
    assert_eq!(snapshot(&sandbox.repo.join("data")), before);
    assert_eq!(sandbox.json("status")["clean"], true);
}

/// The index is a cache: whatever becomes of it, the answers are the same.
#[test]
fn an_index_that_is_gone_damaged_old_or_new_changes_no_answer() {
    let sandbox = world();
    let index = sandbox.repo.join(".git/mlx/index");
    let whole = fs::read(&index).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    let cut = |length: usize| whole[..length].to_vec();
    let mut zeroed = whole.clone();
    zeroed[64..2048].fill(0);
    // Of an older and a newer mlx, with a check that fits.
    let versions = [1, 3].map(|version| {
        let mut bytes = with(7, version);
        let body = bytes.len() - 32;
        let check = *blake3::hash(&bytes[..body]).as_bytes();
        bytes[body..].copy_from_slice(&check);
        bytes
    });
    let mut cases: Vec<(&str, Option<Vec<u8>>)> = vec![("gone", None)];
    cases.extend(versions.into_iter().map(|it| ("of another version", Some(it))));
    cases.extend([0, 1, 8, whole.len() - 1].map(|it| ("cut", Some(cut(it)))));
    cases.extend([9, whole.len() / 2, whole.len() - 1].map(|it| ("flipped", Some(with(it, !whole[it])))));
    cases.push(("zeroed", Some(zeroed)));
    cases.push(("longer", Some([&whole[..], b"junk"].concat())));
    let path = sandbox.repo.join("data/one/0");
    let text = fs::read_to_string(&path).unwrap();
    for (what, bytes) in cases {
        match &bytes {
            Some(bytes) => fs::write(&index, bytes).unwrap(),
            None => fs::remove_file(&index).unwrap(),
        }
        assert_eq!(sandbox.json("status")["clean"], true, "{what}");
        let anew = fs::read(&index).unwrap();
        assert!(bytes.is_none_or(|it| it != anew) && anew.starts_with(b"mlxlook\x02"), "{what}");
        fs::write(&path, text.replace("one", "eno")).unwrap();
        let change = json!([{"path": "data/one/0", "change": "modified"}]);
        assert_eq!(sandbox.json("status")["data"][0]["changes"], change, "{what}");
        fs::write(&path, &text).unwrap();
    }
    // One that cannot be read at all is no reason to be silent.
    fs::remove_file(&index).unwrap();
    fs::create_dir(&index).unwrap();
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn an_index_from_another_machine_vouches_for_nothing() {
    let sandbox = world();
    let other = sandbox.root().join("other");
    let copied = sandbox.command("cp", &sandbox.repo).args(["-a", "."]).arg(&other).status().unwrap();
    assert!(copied.success());
    // Same size, same time of change, other bytes: only inode and change time tell.
    let path = other.join("data/one/0");
    let time = path.metadata().unwrap().modified().unwrap();
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("one", "eno")).unwrap();
    fs::File::open(&path).unwrap().set_modified(time).unwrap();
    let status = sandbox.at(&other).json("status");
    assert_eq!(status["data"][0]["changes"], json!([{"path": "data/one/0", "change": "modified"}]));
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn status_tells_the_truth_whatever_the_time_of_a_file_says() {
    let sandbox = Sandbox::new();
    let path = sandbox.repo.join("data/a");
    let now = SystemTime::now();
    let year = Duration::from_hours(24 * 365);
    for (round, time) in
        [now - 50 * year, now - year, now, now + year, now + 50 * year].into_iter().enumerate()
    {
        sandbox.write("data/a", format!("{round} before"));
        fs::File::open(&path).unwrap().set_modified(time).unwrap();
        sandbox.ok("add data");
        thread::sleep(Duration::from_millis(30));
        sandbox.ok("status");
        assert_eq!(sandbox.json("status")["clean"], true, "round {round}");
        // Same size, same inode, same time.
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_at(b"x", 0).unwrap();
        fs::File::open(&path).unwrap().set_modified(time).unwrap();
        assert_eq!(sandbox.json("status")["clean"], false, "round {round}");
        sandbox.ok("commit");
        let mut elsewhere = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let zone = elsewhere.env("TZ", "Pacific/Kiritimati").args(["status", "--check"]).status().unwrap();
        assert!(zone.success(), "round {round}");
    }
}

/// Something else comes to stand under the name of a file while it is read.
fn while_it_is_read(bother: impl Fn(&Path) + Sync) {
    let sandbox = Sandbox::new();
    let (one, two) = (vec![1_u8; 4 << 20], vec![2_u8; 4 << 20]);
    let digest = |bytes: &[u8]| format!("b3:{}", blake3::hash(bytes).to_hex());
    let path = sandbox.repo.join("file");
    let over = AtomicBool::new(false);
    let (mut stored, mut refused) = (0, 0);
    for _ in 0..12 {
        fs::write(&path, &one).unwrap();
        over.store(false, Ordering::SeqCst);
        let ran = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    bother(&path);
                }
            });
            let ran = sandbox.mlx("add file --json");
            over.store(true, Ordering::SeqCst);
            ran
        });
        if ran.code == 0 {
            let told: Value = serde_json::from_str(&ran.out).unwrap();
            let found = told["added"][0]["digest"].as_str().unwrap().to_owned();
            // One or the other, whole; or a folder, which is empty.
            let folder = sandbox.read("file.mlx").contains("\"tree\"");
            assert!(folder || found == digest(&one) || found == digest(&two), "{found}");
            stored += 1;
        } else {
            let told = format!("{}{}", ran.out, ran.err);
            assert!([1, 3, 4, 6].contains(&ran.code) && told.contains("`file`"), "{} {told}", ran.code);
            refused += 1;
        }
        if path.is_dir() {
            fs::remove_dir(&path).unwrap();
        }
        let _none = fs::remove_file(sandbox.repo.join("file.mlx"));
    }
    assert_eq!(stored + refused, 12);
    assert_eq!(sandbox.json("fsck")["faults"], json!([]));
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_one_or_the_other() {
    while_it_is_read(|path| {
        for byte in [2_u8, 1] {
            let new = path.with_extension("new");
            fs::write(&new, vec![byte; 4 << 20]).unwrap();
            fs::rename(&new, path).unwrap();
        }
    });
}

#[test]
fn a_file_that_becomes_a_folder_while_it_is_read_is_one_or_the_other() {
    while_it_is_read(|path| {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).unwrap();
        fs::create_dir(path).unwrap();
        fs::remove_dir(path).unwrap();
        fs::rename(&aside, path).unwrap();
    });
}

#[test]
fn files_of_one_digest_keep_their_modes_and_names_of_one_file_their_bytes() {
    let sandbox = Sandbox::new();
    for (name, mode) in [("plain", 0o644), ("run", 0o755)] {
        for (size, bytes) in [("small", vec![7_u8; 10]), ("large", vec![7; 1_200_000])] {
            let path = sandbox.repo.join(format!("data/{name}-{size}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    for size in ["small", "large"] {
        let of = sandbox.repo.join(format!("data/plain-{size}"));
        fs::hard_link(&of, sandbox.repo.join(format!("data/second-{size}"))).unwrap();
    }
    sandbox.ok("add data");
    let before = snapshot(&sandbox.repo.join("data"));
    // Two digests and the folder.
    assert_eq!(sandbox.json("fsck")["objects"], 3);
    for link in ["reflink,copy", "hardlink,copy", "symlink"] {
        sandbox.ok(&format!("config set --local cache.link {link}"));
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        sandbox.ok("checkout");
        assert_eq!(sandbox.json("status")["clean"], true, "{link}");
        if link != "symlink" {
            assert_eq!(snapshot(&sandbox.repo.join("data")), before, "{link}");
        }
        let run = sandbox.repo.join("data/run-large").symlink_metadata().unwrap();
        assert!(run.is_file() && run.nlink() == 1 && run.permissions().mode() & 0o100 != 0, "{link}");
    }
    // An edit through one name is an edit of both.
    sandbox.ok("config set --local cache.link copy");
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    let (one, two) = (sandbox.repo.join("data/plain-small"), sandbox.repo.join("data/second-small"));
    fs::remove_file(&two).unwrap();
    fs::hard_link(&one, &two).unwrap();
    assert_eq!(sandbox.json("status")["clean"], true);
    fs::OpenOptions::new().write(true).open(&one).unwrap().write_at(b"x", 3).unwrap();
    let changed: Vec<_> =
        ["data/plain-small", "data/second-small"].map(|it| json!({"path": it, "change": "modified"})).into();
    assert_eq!(sandbox.json("status")["data"][0]["changes"], json!(changed));
}
