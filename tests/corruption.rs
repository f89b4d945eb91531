//! Tests that corrupt packs, indexes, pointers and lockfiles are detected and repaired, and that files which
//! change while `add` reads them are stored whole or refused.

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
    failing_disk::assert_checkout_restores,
    sandbox::{Sandbox, snapshot},
};

/// Creates a repository with two packs of contents, two large files, one run and a remote with all of it.
fn setup() -> Sandbox {
    let sandbox = Sandbox::new();
    for (name, byte) in [("one", 1_u8), ("two", 2)] {
        for at in 0..40 {
            sandbox.write(&format!("data/{name}/{at}"), format!("{name} {at} ").repeat(60));
        }
        sandbox.write(
            &format!("data/{name}/large"),
            (0..1_200_000_u32).map(|index| index as u8 ^ byte ^ (index >> 12) as u8).collect::<Vec<_>>(),
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
    let entries = fs::read_dir(sandbox.repo.join(".git/mlx").join(folder)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn pack_files(sandbox: &Sandbox, extension: &str) -> Vec<PathBuf> {
    let mut paths = files(sandbox, "packs");
    paths.retain(|path| path.extension() == Some(extension.as_ref()));
    paths
}

fn edit_file(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

type Corruption = (&'static str, fn(&mut Vec<u8>));

const CORRUPTIONS: [Corruption; 5] = [
    ("zeros in the first page", |bytes| {
        let end = bytes.len().min(4096);
        bytes[..end].fill(0);
    }),
    ("zeros in the last page", |bytes| {
        let start = bytes.len().saturating_sub(4096);
        bytes[start..].fill(0);
    }),
    ("cut after 8 bytes", |bytes| bytes.truncate(8)),
    ("a page of junk appended", |bytes| bytes.extend([0xa5; 4096])),
    ("the first half twice", |bytes| {
        let half = bytes.len() / 2;
        bytes.copy_within(..half, half);
    }),
];

/// Corrupts all store files of one kind at once, in each way: `fsck` reports them and repairs them from the
/// remote.
#[test]
fn fsck_repairs_a_lost_page_in_any_store_file() {
    let sandbox = setup();
    let expected = snapshot(&sandbox.repo);
    let runs: Vec<_> =
        files(&sandbox, "runs").into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    for (corruption, edit) in CORRUPTIONS {
        // A corrupt run record is removed without a replacement, so each round writes them again.
        runs.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
        for ending in ["pack", "idx", "large", "run"] {
            let name = format!("{corruption}: {ending}");
            let damaged = match ending {
                "large" => files(&sandbox, "objects"),
                "run" => files(&sandbox, "runs"),
                extension => pack_files(&sandbox, extension),
            };
            assert!(!damaged.is_empty());
            damaged.iter().for_each(|path| edit_file(path, edit));
            let found = sandbox.mlx("fsck --json");
            assert_eq!(found.code, 10, "{name}: {}{}", found.out, found.err);
            let found: Value = serde_json::from_str(&found.out).unwrap();
            assert!(found["faults"].as_array().unwrap().len() >= damaged.len(), "{name}: {found}");
            if ending == "large" {
                let hits = found["damaged"][0]["hits"].as_array().unwrap();
                assert!(
                    hits.iter().any(|hit| hit["path"] == "data/one/large" || hit["path"] == "data/two/large")
                );
            }
            sandbox.ok("fsck --repair");
            sandbox.ok("fsck");
            assert_checkout_restores(&sandbox, &expected, &name);
        }
    }
}

#[test]
fn fsck_repairs_two_store_files_with_swapped_names() {
    let sandbox = setup();
    let expected = snapshot(&sandbox.repo);
    for ending in ["pack", "idx", "large"] {
        let paths = if ending == "large" { files(&sandbox, "objects") } else { pack_files(&sandbox, ending) };
        let aside = sandbox.root().join("aside");
        fs::rename(&paths[0], &aside).unwrap();
        fs::rename(&paths[1], &paths[0]).unwrap();
        fs::rename(&aside, &paths[1]).unwrap();
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        let ran = sandbox.mlx("checkout");
        // An index with another pack's name is not trusted, nor is a pack with another index's name.
        assert!([0, 3, 5].contains(&ran.code), "{ending}: {}", ran.err);
        assert_eq!(sandbox.mlx("fsck").code, 10, "{ending}");
        sandbox.ok("fsck --repair");
        sandbox.ok("pull --force");
        sandbox.ok("fsck");
        assert_checkout_restores(&sandbox, &expected, ending);
    }
}

#[test]
fn a_flipped_bit_in_lockfile_or_pointer_never_changes_data() {
    let sandbox = setup();
    let before = snapshot(&sandbox.repo.join("data"));
    for file in ["data.mlx", "mlx.lock"] {
        let text = fs::read(sandbox.repo.join(file)).unwrap();
        for at in (0..text.len()).step_by(17) {
            let mut bad = text.clone();
            bad[at] ^= 1 << (at % 7);
            if text[..at].iter().all(|byte| *byte != b'\n') && text[0] == b'#' {
                continue;
            }
            fs::write(sandbox.repo.join(file), &bad).unwrap();
            let ran = sandbox.mlx("status --json");
            let clean = ran.code == 0 && serde_json::from_str::<Value>(&ran.out).unwrap()["clean"] == true;
            // Edits without a meaning (a comment, a space) change nothing.
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

/// The index is a cache: without it, results are the same.
#[test]
fn status_is_right_with_a_missing_corrupt_or_other_version_index() {
    let sandbox = setup();
    let index = sandbox.repo.join(".git/mlx/index");
    let intact = fs::read(&index).unwrap();
    let with_byte = |at: usize, byte: u8| {
        let mut bytes = intact.clone();
        bytes[at] = byte;
        bytes
    };
    let cut = |length: usize| intact[..length].to_vec();
    let mut zeroed = intact.clone();
    zeroed[64..2048].fill(0);
    // Indexes of an older and a newer mlx, with a valid checksum.
    let versions = [1, 3].map(|version| {
        let mut bytes = with_byte(7, version);
        let body = bytes.len() - 32;
        let checksum = *blake3::hash(&bytes[..body]).as_bytes();
        bytes[body..].copy_from_slice(&checksum);
        bytes
    });
    let mut cases: Vec<(&str, Option<Vec<u8>>)> = vec![("missing", None)];
    cases.extend(versions.into_iter().map(|bytes| ("of another version", Some(bytes))));
    cases.extend([0, 1, 8, intact.len() - 1].map(|length| ("cut", Some(cut(length)))));
    let flipped = [9, intact.len() / 2, intact.len() - 1];
    cases.extend(flipped.map(|at| ("flipped", Some(with_byte(at, !intact[at])))));
    cases.push(("zeroed", Some(zeroed)));
    // A digest that is another than that of the file.
    let digest = *blake3::hash(&fs::read(sandbox.repo.join("data/one/1")).unwrap()).as_bytes();
    let at = intact.windows(32).position(|bytes| bytes == digest).unwrap();
    cases.push(("with another digest", Some(with_byte(at, !intact[at]))));
    cases.push(("longer", Some([&intact[..], b"junk"].concat())));
    let path = sandbox.repo.join("data/one/0");
    let text = fs::read_to_string(&path).unwrap();
    for (case, bytes) in cases {
        match &bytes {
            Some(bytes) => fs::write(&index, bytes).unwrap(),
            None => fs::remove_file(&index).unwrap(),
        }
        assert_eq!(sandbox.json("status")["clean"], true, "{case}");
        let rebuilt = fs::read(&index).unwrap();
        assert!(bytes.is_none_or(|old| old != rebuilt) && rebuilt.starts_with(b"mlxlook\x02"), "{case}");
        fs::write(&path, text.replace("one", "eno")).unwrap();
        let change = json!([{"path": "data/one/0", "change": "modified"}]);
        assert_eq!(sandbox.json("status")["data"][0]["changes"], change, "{case}");
        fs::write(&path, &text).unwrap();
    }
    // An index that cannot be read at all does not prevent a result.
    fs::remove_file(&index).unwrap();
    fs::create_dir(&index).unwrap();
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn an_index_copied_from_another_machine_is_not_trusted() {
    let sandbox = setup();
    let other = sandbox.root().join("other");
    let copied = sandbox.command("cp", &sandbox.repo).args(["-a", "."]).arg(&other).status().unwrap();
    assert!(copied.success());
    // Same size and mtime, other bytes: only inode and ctime differ.
    let path = other.join("data/one/0");
    let time = path.metadata().unwrap().modified().unwrap();
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("one", "eno")).unwrap();
    fs::File::open(&path).unwrap().set_modified(time).unwrap();
    let status = sandbox.at(&other).json("status");
    assert_eq!(status["data"][0]["changes"], json!([{"path": "data/one/0", "change": "modified"}]));
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn status_detects_an_edit_that_keeps_size_inode_and_mtime() {
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
        // Same size, inode and mtime.
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_at(b"x", 0).unwrap();
        fs::File::open(&path).unwrap().set_modified(time).unwrap();
        assert_eq!(sandbox.json("status")["clean"], false, "round {round}");
        sandbox.ok("commit");
        let mut other_zone = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let status = other_zone.env("TZ", "Pacific/Kiritimati").args(["status", "--check"]).status().unwrap();
        assert!(status.success(), "round {round}");
    }
}

/// Runs `add` on a file while another thread keeps replacing it. Checks that the old or the new bytes are
/// stored, whole, or that `add` names the file in its error.
fn add_while_replaced(replace: impl Fn(&Path) + Sync) {
    let sandbox = Sandbox::new();
    let (one, two) = (vec![1_u8; 4 << 20], vec![2_u8; 4 << 20]);
    let digest = |bytes: &[u8]| format!("b3:{}", blake3::hash(bytes).to_hex());
    let path = sandbox.repo.join("file");
    let done = AtomicBool::new(false);
    for _ in 0..12 {
        fs::write(&path, &one).unwrap();
        done.store(false, Ordering::SeqCst);
        let ran = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    replace(&path);
                }
            });
            let ran = sandbox.mlx("add file --json");
            done.store(true, Ordering::SeqCst);
            ran
        });
        if ran.code == 0 {
            let output: Value = serde_json::from_str(&ran.out).unwrap();
            let found = output["added"][0]["digest"].as_str().unwrap().to_owned();
            // Old or new bytes, whole; or an empty folder.
            let folder = sandbox.read("file.mlx").contains("\"tree\"");
            assert!(folder || found == digest(&one) || found == digest(&two), "{found}");
        } else {
            let output = format!("{}{}", ran.out, ran.err);
            assert!([1, 3, 4, 6].contains(&ran.code) && output.contains("`file`"), "{} {output}", ran.code);
            assert!(!sandbox.has("file.mlx"), "a refusal leaves no pointer");
        }
        if path.is_dir() {
            fs::remove_dir(&path).unwrap();
        }
        let _none = fs::remove_file(sandbox.repo.join("file.mlx"));
        let _none = fs::remove_dir_all(sandbox.repo.join(".git/mlx/base"));
        // What was stored or refused while it changed does not stand in for what is there now.
        fs::write(&path, &two).unwrap();
        assert_eq!(sandbox.json("add file")["added"][0]["digest"], digest(&two));
        let _none = fs::remove_file(sandbox.repo.join("file.mlx"));
        let _none = fs::remove_dir_all(sandbox.repo.join(".git/mlx/base"));
    }
    assert_eq!(sandbox.json("fsck")["faults"], json!([]));
}

#[test]
fn a_file_replaced_during_add_is_stored_as_old_or_new_content() {
    add_while_replaced(|path| {
        for byte in [2_u8, 1] {
            let new = path.with_extension("new");
            fs::write(&new, vec![byte; 4 << 20]).unwrap();
            fs::rename(&new, path).unwrap();
        }
    });
}

#[test]
fn a_file_that_becomes_a_folder_during_add_is_stored_as_either() {
    add_while_replaced(|path| {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).unwrap();
        fs::create_dir(path).unwrap();
        fs::remove_dir(path).unwrap();
        fs::rename(&aside, path).unwrap();
    });
}

#[test]
fn equal_files_keep_their_modes_and_hard_links_share_edits() {
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
        let plain = sandbox.repo.join(format!("data/plain-{size}"));
        fs::hard_link(&plain, sandbox.repo.join(format!("data/second-{size}"))).unwrap();
    }
    sandbox.ok("add data");
    let before = snapshot(&sandbox.repo.join("data"));
    // Two distinct contents and one tree.
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
    // An edit through one hard link changes both.
    sandbox.ok("config set --local cache.link copy");
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    let (one, two) = (sandbox.repo.join("data/plain-small"), sandbox.repo.join("data/second-small"));
    fs::remove_file(&two).unwrap();
    fs::hard_link(&one, &two).unwrap();
    assert_eq!(sandbox.json("status")["clean"], true);
    fs::OpenOptions::new().write(true).open(&one).unwrap().write_at(b"x", 3).unwrap();
    let changed = ["data/plain-small", "data/second-small"];
    let changed = changed.map(|path| json!({"path": path, "change": "modified"}));
    assert_eq!(sandbox.json("status")["data"][0]["changes"], json!(changed));
}
