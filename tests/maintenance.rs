//! Tests store maintenance: `du` matches the real sizes, `gc` copes with foreign files, wrong clocks, small
//! packs and full disks, and a command that waits for a lock names its holder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    crash_safety::command,
    sandbox::{Sandbox, command_result},
};

const GC_NOW: &str = "gc --grace 0s --yes";

fn random_bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn total_size(folder: &Path, ending: &str) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap());
    let named = entries.filter(|entry| entry.file_name().to_str().unwrap().ends_with(ending));
    named.map(|entry| entry.metadata().unwrap().len()).sum()
}

/// Returns the number of rows in all pack indexes, and the number of indexes. An index has a head of 16
/// bytes, 58 bytes a row and 32 bytes at its end.
fn count_index_rows(folder: &Path) -> (u64, u64) {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let indexes = paths.filter(|path| path.extension().is_some_and(|extension| extension == "idx"));
    indexes
        .map(|path| (path.metadata().unwrap().len() - 16 - 32) / 58)
        .fold((0, 0), |(rows, packs), added| (rows + added, packs + 1))
}

/// Compares the numbers of `du` with the files of the store and with the sizes of the added files.
#[test]
fn du_matches_the_store_on_disk_and_the_added_files() {
    let sandbox = Sandbox::new();
    let mut versions: Vec<BTreeMap<PathBuf, Vec<u8>>> = Vec::new();
    let mut current = BTreeMap::new();
    for version in 0..3_u64 {
        for at in 0..20_u64 {
            let path = PathBuf::from(format!("data/d{}/f{at}", at % 3));
            let changed = version == 0 || at % (version + 2) == 0;
            if changed {
                // Some are equal, some are compressible.
                let bytes = match at % 5 {
                    0 => random_bytes(7, 3000),
                    1 => "text ".repeat(100 + version as usize).into_bytes(),
                    _ => random_bytes(100 * version + at, 2000 + at as usize),
                };
                sandbox.write(path.to_str().unwrap(), &bytes);
                current.insert(path, bytes);
            }
        }
        let large = random_bytes(1000 + version / 2, 1_300_000);
        sandbox.write("data/large", &large);
        current.insert("data/large".into(), large);
        sandbox.ok("add data");
        sandbox.commit(&format!("v{version}"));
        versions.push(current.clone());
    }
    let du = sandbox.json("du");
    let store = sandbox.repo.join(".git/mlx");
    let number = |path: &str| du.pointer(path).and_then(Value::as_u64).unwrap();

    let all: u64 = versions.iter().flat_map(BTreeMap::values).map(|bytes| bytes.len() as u64).sum();
    let distinct: BTreeSet<&Vec<u8>> = versions.iter().flat_map(BTreeMap::values).collect();
    let sum: u64 = distinct.iter().map(|bytes| bytes.len() as u64).sum();
    assert_eq!((number("/versions"), number("/distinct")), (all, sum));
    assert_eq!(number("/saved/deduplication"), all - sum);
    let lengths = distinct.iter().map(|bytes| bytes.len() as u64);
    let large: u64 = lengths.filter(|length| *length > 1 << 20).sum();
    assert_eq!(number("/classes/contents/bytes"), sum - large);
    assert_eq!((number("/classes/whole/stored"), large), (total_size(&store.join("objects"), ""), large));

    let (rows, packs) = count_index_rows(&store.join("packs"));
    assert_eq!(number("/classes/contents/objects") + number("/classes/trees/objects"), rows);
    // Each pack has a head of 8 bytes, a copy of its index and 16 bytes at its end.
    let packed =
        total_size(&store.join("packs"), ".pack") - total_size(&store.join("packs"), ".idx") - 24 * packs;
    assert_eq!(number("/classes/contents/stored") + number("/classes/trees/stored"), packed);
    assert_eq!(number("/stored"), number("/classes/contents/stored") + large);

    // Files and trees that only the first revision needs are those that a gc frees without it.
    let revisions = du["revisions"].as_array().unwrap();
    let first = revisions.iter().find(|revision| revision["summary"] == "v0").unwrap();
    let later: BTreeSet<&Vec<u8>> = versions[1..].iter().flat_map(BTreeMap::values).collect();
    let own =
        versions[0].values().filter(|bytes| !later.contains(bytes)).collect::<BTreeSet<_>>().len() as u64;
    assert!(first["only"]["count"].as_u64().unwrap() > own, "files and trees: {first}");
    sandbox.git("checkout -q --orphan fresh");
    sandbox.git("commit -q -m fresh");
    sandbox.git("branch -q -D main");
    let freed = sandbox.json("gc --grace 0s")["freed"].clone();
    let sums: (u64, u64) = ["contents", "trees", "whole"].iter().fold((0, 0), |sum, class| {
        (sum.0 + freed[class]["count"].as_u64().unwrap(), sum.1 + freed[class]["bytes"].as_u64().unwrap())
    });
    let unneeded = sandbox.json("du")["unneeded"].clone();
    let retained = sandbox.json("gc --grace 0s")["retained"].clone();
    let retained = (retained["count"].as_u64().unwrap(), retained["bytes"].as_u64().unwrap());
    assert_eq!(unneeded, json!({"count": sums.0 + retained.0, "bytes": sums.1 + retained.1}));
}

/// Puts files that mlx did not write into every folder of the store: they are kept, and all commands succeed.
#[test]
fn foreign_files_in_the_store_are_left_alone() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "one");
    sandbox.write("data/large", random_bytes(1, 1_100_000));
    sandbox.ok("add data");
    let store = sandbox.repo.join(".git/mlx");
    let foreign = [
        "README",
        "packs/notes.txt",
        "packs/zz.pack",
        "packs/zz.idx",
        "objects/photo.jpg",
        "runs/x",
        "leases/not-ours",
        "damaged/x",
        "incoming/x.part",
        "quarantine/x",
        "clones/x.toml",
        "packs/sub/deep",
        "objects/.hidden",
    ];
    for name in foreign {
        fs::create_dir_all(store.join(name).parent().unwrap()).unwrap();
        fs::write(store.join(name), "foreign").unwrap();
    }
    std::os::unix::fs::symlink("/nowhere", store.join("objects/link")).unwrap();
    std::os::unix::fs::symlink("/etc", store.join("packs/etc")).unwrap();
    // A folder under the name of an object.
    fs::create_dir(store.join("objects").join("00".repeat(32))).unwrap();
    for args in [GC_NOW, "fsck", "du", "status", "add data"] {
        let ran = sandbox.mlx(args);
        assert_eq!(ran.code, 0, "{args}: {}{}", ran.out, ran.err);
    }
    for name in foreign {
        assert!(name == "leases/not-ours" || store.join(name).exists(), "{name}");
    }
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/a"), "one");
}

/// A clock that was ahead makes a file look young for ever: it is kept by any grace period, and freed without
/// one.
#[test]
fn files_with_future_times_are_kept_until_grace_is_zero() {
    let sandbox = Sandbox::new();
    for text in ["first", "second"] {
        sandbox.write("a", text);
        sandbox.ok("add a");
    }
    let packs = sandbox.repo.join(".git/mlx/packs");
    let mut touch = sandbox.command("sh", &packs);
    assert!(touch.args(["-c", "touch -d '2100-01-01' *"]).status().unwrap().success());
    assert_eq!(sandbox.json("gc --grace 1s --yes")["freed"]["total"]["count"], 0);
    assert_eq!(sandbox.json(GC_NOW)["freed"]["total"]["count"], 1);
    assert_eq!(sandbox.json("fsck")["damaged"], json!([]));
}

/// Ten adds create twenty packs; `gc` merges them, whatever their age, and nothing is lost.
#[test]
fn gc_merges_the_small_packs_of_many_adds() {
    let sandbox = Sandbox::new();
    for at in 0..10 {
        sandbox.write(&format!("d{at}/f"), format!("content {at}"));
        sandbox.ok(&format!("add d{at}"));
    }
    let packs = || fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap().count();
    assert_eq!(packs(), 40);
    assert!(sandbox.ok("gc").contains("would merge 20 small packs"));
    assert_eq!(packs(), 40);
    let swept = sandbox.json("gc --yes");
    assert_eq!((&swept["merged"]["count"], &swept["freed"]["total"]["count"]), (&json!(20), &json!(0)));
    assert_eq!(packs(), 4, "one pack of contents, one of trees, and their indexes");
    assert_eq!(sandbox.json("gc --yes")["merged"]["count"], 0);
    for at in 0..10 {
        fs::remove_dir_all(sandbox.repo.join(format!("d{at}"))).unwrap();
    }
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("d7/f"), "content 7");
    assert_eq!(sandbox.json("fsck")["objects"], 20);
}

/// A command continues as soon as the holder is done, and read-only commands do not wait.
#[test]
fn a_command_that_waits_for_a_lock_names_its_holder() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "one");
    sandbox.ok("add data");
    sandbox.commit("one");
    for (lock, args) in [("lock", "checkout"), ("gc.lock", "gc --yes")] {
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        let path = sandbox.repo.join(".git/mlx").join(lock);
        let mut holder = sandbox.command("flock", &sandbox.repo);
        let script = format!("echo held by Ada > {}; echo ready; read -r _", path.display());
        holder.arg(&path).args(["sh", "-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut holder) = holder.spawn() else {
            return crate::sandbox::skip(
                "a_command_that_waits_for_a_lock_names_its_holder",
                "`flock` is not installed",
            );
        };
        let mut ready = [0; 6];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut ready).unwrap();
        for reading in ["status", "diff", "log data"] {
            sandbox.ok(reading);
        }
        let child = command(&sandbox, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(Duration::from_millis(1600));
        drop(holder.stdin.take());
        holder.wait().unwrap();
        let ran = command_result(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
        assert!(ran.err.contains("waiting for another mlx: held by Ada"), "{args}: {}", ran.err);
    }
}

/// In a cache without write permission, `gc` fails and frees nothing; reading still works.
#[test]
fn a_cache_without_write_permission_is_still_read() {
    let sandbox = Sandbox::new();
    for text in ["first", "second"] {
        sandbox.write("a", text);
        sandbox.ok("add a");
    }
    let store = sandbox.repo.join(".git/mlx");
    let packs = store.join("packs");
    fs::set_permissions(&packs, fs::Permissions::from_mode(0o500)).unwrap();
    let mut run = sandbox.command("setpriv", &sandbox.repo);
    run.args(["--reuid", "12345", "--regid", "12345", "--clear-groups", "--", env!("CARGO_BIN_EXE_mlx")]);
    let mut chown = sandbox.command("chown", &sandbox.repo);
    let owned = chown.args(["-R", "12345:12345"]).arg(sandbox.root()).output().unwrap();
    if !owned.status.success() {
        fs::set_permissions(&packs, fs::Permissions::from_mode(0o700)).unwrap();
        return crate::sandbox::skip(
            "a_cache_without_write_permission_is_still_read",
            "this user is not root",
        );
    }
    let ran = command_result(run.args(["gc", "--grace", "0s", "--yes"]).output().unwrap());
    assert_eq!(ran.code, 6, "{}{}", ran.out, ran.err);
    fs::set_permissions(&packs, fs::Permissions::from_mode(0o700)).unwrap();
    let mut chown = sandbox.command("chown", &sandbox.repo);
    assert!(chown.args(["-R", "root:root"]).arg(sandbox.root()).status().unwrap().success());
    assert_eq!(sandbox.json("gc --grace 0s")["freed"]["total"]["count"], 1);
    assert_eq!(sandbox.json("fsck")["damaged"], json!([]));
}

/// A full disk is the usual reason to run `gc`.
#[test]
fn gc_on_a_full_tmpfs_frees_objects_and_merges_packs() {
    struct MountGuard<'s>(&'s Sandbox, PathBuf);

    impl Drop for MountGuard<'_> {
        fn drop(&mut self) {
            drop(self.0.command("umount", Path::new("/")).arg("-l").arg(&self.1).status());
        }
    }

    let sandbox = Sandbox::empty();
    let disk = sandbox.root().join("disk");
    fs::create_dir(&disk).unwrap();
    let mut mount = sandbox.command("mount", &sandbox.root());
    let mounted = mount.args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return crate::sandbox::skip(
            "gc_on_a_full_tmpfs_frees_objects_and_merges_packs",
            "this user cannot mount",
        );
    }
    let _mounted = MountGuard(&sandbox, disk.clone());
    let repo = sandbox.at(&disk);
    repo.git("init -q -b main");
    repo.ok("init");
    for at in 0..18 {
        fs::write(disk.join("f"), random_bytes(at, 20_000)).unwrap();
        repo.ok("add f");
        fs::rename(disk.join("f.mlx"), disk.join(format!("f{at}.mlx"))).unwrap();
    }
    fs::write(disk.join("g"), random_bytes(100, 500_000)).unwrap();
    repo.ok("add g");
    fs::remove_file(disk.join("g.mlx")).unwrap();
    // What the worktree last had counts as needed.
    fs::remove_file(disk.join(".git/mlx/base")).unwrap();
    // Writes until the disk is full.
    let mut full = fs::File::create(disk.join("full")).unwrap();
    while std::io::Write::write(&mut full, &[0; 4096]).is_ok_and(|count| count > 0) {}
    let ran = repo.mlx(&format!("{GC_NOW} --json"));
    assert_eq!(ran.code, 0, "{}", ran.err);
    let swept: Value = serde_json::from_str(&ran.out).unwrap();
    // The freed object makes room for merging the small packs.
    let counts = (&swept["freed"]["contents"]["count"], &swept["merged"]["count"]);
    assert_eq!(counts, (&json!(1), &json!(18)), "{swept}{}", ran.err);
    assert_eq!(repo.json(GC_NOW)["merged"]["count"], 0);
    assert_eq!(repo.json("fsck")["damaged"], json!([]));
}
