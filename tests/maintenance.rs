//! A store that is looked after: room counted twice over, locks that name their holders, caches full of what others
//! left, clocks that were wrong.

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
    sandbox::{Sandbox, ended},
};

const NOW: &str = "gc --grace 0s --yes";

fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn size_of(folder: &Path, ending: &str) -> u64 {
    let files = fs::read_dir(folder).map_or_else(|_| Vec::new(), |it| it.map(|it| it.unwrap()).collect());
    let named = files.iter().filter(|it| it.file_name().to_str().unwrap().ends_with(ending));
    named.map(|it| it.metadata().unwrap().len()).sum()
}

/// Head, end, and in between 58 bytes a row.
fn rows_of(folder: &Path) -> (u64, u64) {
    let indexes = fs::read_dir(folder).unwrap().map(|it| it.unwrap());
    let sizes = indexes.filter(|it| it.path().extension().is_some_and(|it| it == "idx"));
    sizes
        .map(|it| (it.metadata().unwrap().len() - 16 - 32) / 58)
        .fold((0, 0), |(all, packs), it| (all + it, packs + 1))
}

/// What `du` says against what lies on the disk, and against sums of the files' own sizes.
#[test]
fn du_agrees_with_the_disk_and_with_what_was_added() {
    let sandbox = Sandbox::new();
    let mut versions: Vec<BTreeMap<PathBuf, Vec<u8>>> = Vec::new();
    let mut now = BTreeMap::new();
    for version in 0..3_u64 {
        for at in 0..20_u64 {
            let path = PathBuf::from(format!("data/d{}/f{at}", at % 3));
            let fresh = version == 0 || at % (version + 2) == 0;
            if fresh {
                // Some are equal to others, some compress.
                let bytes = match at % 5 {
                    0 => noise(7, 3000),
                    1 => "text ".repeat(100 + version as usize).into_bytes(),
                    _ => noise(100 * version + at, 2000 + at as usize),
                };
                sandbox.write(path.to_str().unwrap(), &bytes);
                now.insert(path, bytes);
            }
        }
        let large = noise(1000 + version / 2, 1_300_000);
        sandbox.write("data/large", &large);
        now.insert("data/large".into(), large);
        sandbox.ok("add data");
        sandbox.commit(&format!("v{version}"));
        versions.push(now.clone());
    }
    let du = sandbox.json("du");
    let store = sandbox.repo.join(".git/mlx");
    let number = |path: &str| du.pointer(path).and_then(Value::as_u64).unwrap();

    let all: u64 = versions.iter().flat_map(BTreeMap::values).map(|it| it.len() as u64).sum();
    let distinct: BTreeSet<&Vec<u8>> = versions.iter().flat_map(BTreeMap::values).collect();
    let sum: u64 = distinct.iter().map(|it| it.len() as u64).sum();
    assert_eq!((number("/versions"), number("/distinct")), (all, sum));
    assert_eq!(number("/saved/deduplication"), all - sum);
    let large: u64 = distinct.iter().filter(|it| it.len() > 1 << 20).map(|it| it.len() as u64).sum();
    assert_eq!(number("/classes/contents/bytes"), sum - large);
    assert_eq!((number("/classes/whole/stored"), large), (size_of(&store.join("objects"), ""), large));

    let (rows, packs) = rows_of(&store.join("packs"));
    assert_eq!(number("/classes/contents/objects") + number("/classes/trees/objects"), rows);
    // Each pack has a head of 8 bytes, a copy of its index and 16 bytes at its end.
    let packed = size_of(&store.join("packs"), ".pack") - size_of(&store.join("packs"), ".idx") - 24 * packs;
    assert_eq!(number("/classes/contents/stored") + number("/classes/trees/stored"), packed);
    assert_eq!(number("/stored"), number("/classes/contents/stored") + large);

    // What only the first revision needs, with the lists of its folders, is what a gc frees without it.
    let revisions = du["revisions"].as_array().unwrap();
    let first = revisions.iter().find(|it| it["summary"] == "v0").unwrap();
    let later: BTreeSet<&Vec<u8>> = versions[1..].iter().flat_map(BTreeMap::values).collect();
    let own = versions[0].values().filter(|it| !later.contains(it)).collect::<BTreeSet<_>>().len() as u64;
    assert!(first["only"]["count"].as_u64().unwrap() > own, "files and lists of folders: {first}");
    sandbox.git("checkout -q --orphan fresh");
    sandbox.git("commit -q -m fresh");
    sandbox.git("branch -q -D main");
    let freed = sandbox.json("gc --grace 0s")["freed"].clone();
    let sums: (u64, u64) = ["contents", "trees", "whole"].iter().fold((0, 0), |sum, it| {
        (sum.0 + freed[it]["count"].as_u64().unwrap(), sum.1 + freed[it]["bytes"].as_u64().unwrap())
    });
    let unneeded = sandbox.json("du")["unneeded"].clone();
    let retained = sandbox.json("gc --grace 0s")["retained"].clone();
    let retained = (retained["count"].as_u64().unwrap(), retained["bytes"].as_u64().unwrap());
    assert_eq!(unneeded, json!({"count": sums.0 + retained.0, "bytes": sums.1 + retained.1}));
}

/// Files that are none of ours lie everywhere in the store: none is touched, none is in the way.
#[test]
fn what_others_put_into_the_store_is_left_alone() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "one");
    sandbox.write("data/large", noise(1, 1_100_000));
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
    for args in [NOW, "fsck", "du", "status", "add data"] {
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

/// A clock that was ahead makes a file that looks young for ever: it stays for a grace period, and goes with none.
#[test]
fn what_comes_from_the_future_stays_until_there_is_no_grace_period() {
    let sandbox = Sandbox::new();
    for text in ["first", "second"] {
        sandbox.write("a", text);
        sandbox.ok("add a");
    }
    let packs = sandbox.repo.join(".git/mlx/packs");
    let mut touch = sandbox.command("sh", &packs);
    assert!(touch.args(["-c", "touch -d '2100-01-01' *"]).status().unwrap().success());
    assert_eq!(sandbox.json("gc --grace 1s --yes")["freed"]["total"]["count"], 0);
    assert_eq!(sandbox.json(NOW)["freed"]["total"]["count"], 1);
    assert_eq!(sandbox.json("fsck")["damaged"], json!([]));
}

/// Ten adds make twenty packs; a gc makes few of them, whatever their age, and nothing is lost.
#[test]
fn small_packs_of_many_adds_become_few() {
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
    assert_eq!(packs(), 4, "one of contents, one of lists, and their indexes");
    assert_eq!(sandbox.json("gc --yes")["merged"]["count"], 0);
    for at in 0..10 {
        fs::remove_dir_all(sandbox.repo.join(format!("d{at}"))).unwrap();
    }
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("d7/f"), "content 7");
    assert_eq!(sandbox.json("fsck")["objects"], 20);
}

/// Whoever waits says for whom, and goes on as soon as the other is done; who only looks does not wait.
#[test]
fn whoever_waits_for_a_lock_says_who_holds_it() {
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
            return crate::sandbox::skip("whoever_waits_for_a_lock", "there is no `flock`");
        };
        let mut ready = [0; 6];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut ready).unwrap();
        for looks in ["status", "diff", "log data"] {
            sandbox.ok(looks);
        }
        let child = command(&sandbox, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(Duration::from_millis(1600));
        drop(holder.stdin.take());
        holder.wait().unwrap();
        let ran = ended(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
        assert!(ran.err.contains("waiting for another mlx: held by Ada"), "{args}: {}", ran.err);
    }
}

/// A cache that cannot be written to: gc says so and frees nothing; everything that is there is still read.
#[test]
fn a_cache_that_cannot_be_written_to_is_read_all_the_same() {
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
        return crate::sandbox::skip("a_cache_that_cannot_be_written_to", "this user is not root");
    }
    let ran = ended(run.args(["gc", "--grace", "0s", "--yes"]).output().unwrap());
    assert_eq!(ran.code, 6, "{}{}", ran.out, ran.err);
    fs::set_permissions(&packs, fs::Permissions::from_mode(0o700)).unwrap();
    let mut chown = sandbox.command("chown", &sandbox.repo);
    assert!(chown.args(["-R", "root:root"]).arg(sandbox.root()).status().unwrap().success());
    assert_eq!(sandbox.json("gc --grace 0s")["freed"]["total"]["count"], 1);
    assert_eq!(sandbox.json("fsck")["damaged"], json!([]));
}

/// Who frees room does so because there is none.
#[test]
fn a_gc_on_a_full_disk_frees_what_nobody_needs() {
    struct Mounted<'s>(&'s Sandbox, PathBuf);

    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            drop(self.0.command("umount", Path::new("/")).arg("-l").arg(&self.1).status());
        }
    }

    let sandbox = Sandbox::bare();
    let disk = sandbox.root().join("disk");
    fs::create_dir(&disk).unwrap();
    let mut mount = sandbox.command("mount", &sandbox.root());
    let made = mount.args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(&disk).output();
    if !made.is_ok_and(|it| it.status.success()) {
        return crate::sandbox::skip("a_gc_on_a_full_disk", "nothing can be mounted");
    }
    let _mounted = Mounted(&sandbox, disk.clone());
    let here = sandbox.at(&disk);
    here.git("init -q -b main");
    here.ok("init");
    for at in 0..18 {
        fs::write(disk.join("f"), noise(at, 20_000)).unwrap();
        here.ok("add f");
        fs::rename(disk.join("f.mlx"), disk.join(format!("f{at}.mlx"))).unwrap();
    }
    fs::write(disk.join("g"), noise(100, 500_000)).unwrap();
    here.ok("add g");
    fs::remove_file(disk.join("g.mlx")).unwrap();
    // Until nothing more goes in.
    let mut full = fs::File::create(disk.join("full")).unwrap();
    while std::io::Write::write(&mut full, &[0; 4096]).is_ok_and(|it| it > 0) {}
    let ran = here.mlx(&format!("{NOW} --json"));
    assert_eq!(ran.code, 0, "{}", ran.err);
    let swept: Value = serde_json::from_str(&ran.out).unwrap();
    // What goes makes the room that small packs need to be gathered.
    let counts = (&swept["freed"]["contents"]["count"], &swept["merged"]["count"]);
    assert_eq!(counts, (&json!(1), &json!(18)), "{swept}{}", ran.err);
    assert_eq!(here.json(NOW)["merged"]["count"], 0);
    assert_eq!(here.json("fsck")["damaged"], json!([]));
}
