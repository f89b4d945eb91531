//! A disk that is full, slow of speech, read-only or gone, limits of the machine, and what the power cut leaves.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _};

use serde_json::{Value, json};

use crate::{
    crash_safety::{command, keep, start_again},
    sandbox::{Ran, Sandbox, ended, skip, snapshot},
};

/// Two small files, a large one and a remote.
fn world() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("data/a/x", "one ".repeat(100));
    sandbox.write("data/y", "two");
    let large: Vec<u8> = (0..1_200_000_u32).map(|it| (it % 251) as u8).collect();
    sandbox.write("data/large", large);
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox
}

fn with_fault(sandbox: &Sandbox, args: &str, fault: &str) -> Ran {
    ended(command(sandbox, args).env("MLX_FAULT", fault).output().unwrap())
}

/// Runs mlx from a shell that does something first.
fn after(sandbox: &Sandbox, first: &str, args: &str) -> Ran {
    let script = format!("{first}; exec \"$@\"");
    let mut shell = sandbox.command("sh", &sandbox.repo);
    shell.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_mlx")]).args(args.split_whitespace());
    ended(shell.output().unwrap())
}

/// Runs mlx in mounts of its own, which end with it; nothing where the user may not mount.
fn mounted(sandbox: &Sandbox, mount: &str, args: &str) -> Option<Ran> {
    let script = format!("{mount} || exit 99; exec \"$@\"");
    let mut shell = sandbox.command("unshare", &sandbox.repo);
    shell.args(["-rm", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_mlx")]).args(args.split_whitespace());
    let ran = ended(shell.output().ok()?);
    (ran.code != 99 && !ran.err.contains("unshare")).then_some(ran)
}

fn whole(sandbox: &Sandbox, what: &str) {
    let checked = sandbox.json("fsck");
    for key in ["damaged", "faults", "unreadable"] {
        assert_eq!(checked[key], json!([]), "{what}: {key}");
    }
}

/// Unfinished files, and objects that were taken for damaged.
fn leavings(sandbox: &Sandbox) -> Vec<String> {
    let found = walkdir::WalkDir::new(&sandbox.repo).into_iter().map(|it| it.unwrap().path().to_owned());
    let text = found.map(|it| it.display().to_string());
    text.filter(|it| it.contains(".mlx-tmp-") || it.contains("/damaged/") || it.contains("/quarantine/"))
        .collect()
}

/// From the n-th operation on the disk gives nothing any more, or has no room: for each n the command ends with an
/// error or does its work, nothing is lost or taken for damaged, and on a sound disk the same command ends it.
fn survives(prepare: &dyn Fn(&Sandbox), args: &str, faults: &[&str]) {
    let sandbox = world();
    prepare(&sandbox);
    keep(&sandbox);
    let ran = sandbox.mlx(args);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let expected = snapshot(&sandbox.repo);
    for fault in faults {
        let mut told = 0;
        // The first ones one by one; of the rest a third shows as much in a third of the time.
        for at in (1..).filter(|it| *it < 8 || it % 3 == 0) {
            start_again(&sandbox);
            let ran = with_fault(&sandbox, args, &format!("{fault}:{at}"));
            let name = format!("{args}, {fault} {at}: {}", ran.err);
            let codes: &[i32] = if *fault == "full" { &[0, 7] } else { &[0, 1, 3] };
            assert!(codes.contains(&ran.code), "{name} {}", ran.code);
            // A large file that cannot be looked at counts as absent, by name.
            assert!(ran.code != 3 || ran.err.contains("is not here"), "{name}");
            if ran.code == 7 {
                assert!(ran.err.contains("hint: the disk is full"), "{name}");
                told += 1;
            }
            assert_eq!(leavings(&sandbox), Vec::<String>::new(), "{name}");
            if at % 2 == 1 {
                whole(&sandbox, &name);
            }
            sandbox.ok(args);
            assert_eq!(snapshot(&sandbox.repo), expected, "{name}");
            if ran.code == 0 {
                assert!(at > 5, "{args} passes too few fault points");
                break;
            }
        }
        assert!(*fault != "full" || told > 3, "{args}: {told}");
    }
}

fn added(sandbox: &Sandbox) {
    sandbox.ok("add data");
}

#[test]
fn an_add_on_a_disk_that_fails_or_is_full_publishes_nothing_half() {
    survives(&|_| (), "add data", &["stuck", "full"]);
}

#[test]
fn a_commit_on_a_disk_that_fails_or_is_full_publishes_nothing_half() {
    let edit = |it: &Sandbox| {
        added(it);
        it.write("data/y", "three");
    };
    survives(&edit, "commit", &["stuck", "full"]);
}

#[test]
fn a_checkout_on_a_disk_that_fails_or_is_full_takes_nothing_for_damaged() {
    let gone = |it: &Sandbox| {
        added(it);
        fs::remove_dir_all(it.repo.join("data")).unwrap();
    };
    survives(&gone, "checkout", &["stuck", "full"]);
}

const SWEEP: &str = "gc --grace 0s --yes";

/// Packs of which all, some and nothing is needed, and a large file that is not.
fn with_garbage(sandbox: &Sandbox) {
    added(sandbox);
    for at in 0..8 {
        sandbox.write(&format!("data/f{at}"), format!("{at} ").repeat(40));
    }
    added(sandbox);
    (1..8).for_each(|at| fs::remove_file(sandbox.repo.join(format!("data/f{at}"))).unwrap());
    fs::remove_file(sandbox.repo.join("data/large")).unwrap();
    added(sandbox);
}

#[test]
fn a_gc_on_a_disk_that_fails_loses_nothing() {
    survives(&with_garbage, SWEEP, &["stuck"]);
}

#[test]
fn a_gc_on_a_full_disk_makes_room() {
    let sandbox = world();
    with_garbage(&sandbox);
    let ran = with_fault(&sandbox, &format!("{SWEEP} --json"), "full:1");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("the disk is full") && ran.err.contains("stay as they are"), "{}", ran.err);
    let swept: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&swept["freed"]["whole"]["count"], &swept["rewritten"]["count"]),
        (&json!(1), &json!(0)),
        "{swept}"
    );
    assert!(swept["freed"]["total"]["bytes"].as_u64().unwrap() > 1_200_000, "{swept}");
    whole(&sandbox, "full");
    let swept = sandbox.json(SWEEP);
    assert_eq!(swept["freed"]["whole"]["count"], 0, "{swept}");
    assert!(swept["rewritten"]["count"].as_u64().unwrap() > 0, "{swept}");
    whole(&sandbox, "with room again");
}

/// The same with a disk that is really full: its repository, with locks, index and store, has not a page left.
#[test]
fn on_a_disk_that_is_really_full_looking_and_making_room_work() {
    let sandbox = world();
    with_garbage(&sandbox);
    // All in one mount, which ends with the shell.
    let script = "mount -t tmpfs -o size=4m none ../small || exit 99; cp -a . ../small; cd ../small; \
        cat /dev/zero > fill 2>/dev/null; for it in status fsck 'gc --grace 0s' 'gc --grace 0s --yes'; do \
        \"$1\" $it > \"$2\" 2>&1 || { echo \"$it: $?\"; cat \"$2\"; }; cat /dev/zero >> fill 2>/dev/null; done; \
        ln -s x data/z; \"$1\" add data; echo $?; rm fill; \
        \"$1\" add data && \"$1\" fsck";
    fs::create_dir(sandbox.root().join("small")).unwrap();
    let mut shell = sandbox.command("unshare", &sandbox.repo);
    shell.args(["-rm", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_mlx")]);
    let ran = ended(shell.arg(sandbox.root().join("told")).output().unwrap());
    if ran.code == 99 || ran.err.contains("unshare") {
        return skip("on_a_disk_that_is_really_full…", "this user cannot mount a small disk");
    }
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    assert!(ran.out.starts_with("7\ndata: "), "{}\n{}", ran.out, ran.err);
    assert!(
        ran.err.contains("hint: the disk is full") && ran.out.ends_with("no problems found\n"),
        "{}",
        ran.err
    );
}

/// What is synced and what gets its name, in order: the same content, were the power cut after any line.
struct Cut {
    /// Unfinished files whose bytes are at rest.
    synced: BTreeSet<String>,
    /// Folders in which a name may be lost.
    open: BTreeSet<String>,
    packs: BTreeSet<String>,
    pointers: usize,
}

fn unquoted(text: &str) -> &str {
    text.trim_matches('`')
}

fn ending(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |it| it.1)
}

fn folder(path: &str) -> String {
    path.rsplit_once('/').map_or("", |it| it.0).to_owned()
}

impl Cut {
    fn line(&mut self, line: &str) {
        let (operation, rest) = line.split_once(' ').unwrap();
        let mut paths = rest.split(' ').map(unquoted);
        let path = paths.next().unwrap();
        match operation {
            "sync" => drop(self.synced.insert(path.to_owned())),
            "sync-folder" => drop(self.open.remove(path.trim_end_matches('.'))),
            "folder" if ["packs", "objects"].contains(&path) => drop(self.open.insert(folder(path))),
            "folder" | "sync-all" => {}
            "rename" => self.rename(path, paths.next().unwrap(), line),
            "remove" => self.remove(path, line),
            other => panic!("{other}"),
        }
    }

    fn rename(&mut self, from: &str, to: &str, line: &str) {
        let stored = ["packs/", "objects/", "runs/"].iter().any(|it| to.starts_with(it));
        let pointer = ending(to) == "mlx" || to.ends_with("mlx.lock");
        if stored || pointer {
            assert!(self.synced.remove(from), "its bytes are not at rest: {line}");
        }
        if ending(to) == "idx" {
            assert!(!self.open.contains("packs"), "the name of its pack may be lost: {line}");
            assert!(self.packs.contains(&to.replace(".idx", ".pack")), "{line}");
        }
        if ending(to) == "pack" {
            self.packs.insert(to.to_owned());
        }
        if pointer {
            self.pointers += 1;
            let lost: Vec<_> =
                ["", "packs", "objects", "runs"].iter().filter(|it| self.open.contains(**it)).collect();
            assert!(lost.is_empty(), "names in {lost:?} may be lost: {line}");
        }
        if stored {
            self.open.insert(folder(to));
        }
    }

    fn remove(&mut self, path: &str, line: &str) {
        if ending(path) == "idx" {
            assert!(
                !self.open.contains("packs") || self.packs.is_empty(),
                "what it names may be nowhere else: {line}"
            );
            self.open.insert("packs".to_owned());
            self.packs.clear();
        }
        if ending(path) == "pack" {
            assert!(!self.open.contains("packs"), "its index may come back: {line}");
        }
    }
}

#[test]
fn whenever_the_power_goes_no_name_points_to_what_was_not_at_rest() {
    let sandbox = world();
    let edit = || sandbox.write("data/y", "three");
    let lines = |args: &str| {
        let record = sandbox.root().join("record");
        let ran = with_fault(&sandbox, args, &format!("record:{}", record.display()));
        assert_eq!(ran.code, 0, "{}", ran.err);
        let text = fs::read_to_string(&record).unwrap();
        fs::remove_file(record).unwrap();
        text
    };
    sandbox.write("mlx.toml", "[stage.c]\ncmd = 'cp data/y o'\ndeps = ['data']\nouts = ['o']\n");
    for (args, prepare, pointers) in [
        ("add data", &(|| ()) as &dyn Fn(), 1),
        ("commit", &edit, 1),
        ("repro", &|| (), 1),
        (SWEEP, &|| drop(sandbox.ok("add data")), 0),
        (SWEEP, &|| with_garbage(&sandbox), 0),
    ] {
        prepare();
        let text = lines(args);
        let mut cut =
            Cut { synced: BTreeSet::new(), open: BTreeSet::new(), packs: BTreeSet::new(), pointers: 0 };
        text.lines().for_each(|it| cut.line(it));
        assert_eq!(cut.pointers, pointers, "{args}:\n{text}");
    }
    assert!(!lines("status").contains("rename `data"), "it only looks");
}

#[test]
fn bytes_that_come_one_by_one_between_interruptions_are_the_same_bytes() {
    let (plain, slow) = (world(), world());
    for sandbox in [&plain, &slow] {
        fs::remove_file(sandbox.repo.join("data/large")).unwrap();
        sandbox.write("data/b", (0..9000_u32).map(|it| (it % 253) as u8).collect::<Vec<_>>());
    }
    plain.ok("add data");
    for args in ["add data", "checkout", "commit", SWEEP, "fsck"] {
        if args == "checkout" {
            fs::remove_dir_all(slow.repo.join("data")).unwrap();
        }
        let ran = with_fault(&slow, args, "short");
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    }
    assert_eq!(slow.read("data.mlx"), plain.read("data.mlx"));
    assert_eq!(snapshot(&slow.repo.join("data")), snapshot(&plain.repo.join("data")));
    whole(&slow, "short");
}

#[test]
fn many_packs_and_many_files_need_few_open_files() {
    let sandbox = Sandbox::new();
    for at in 0..24 {
        sandbox.write(&format!("data/d{at}/f"), format!("{at}"));
        sandbox.ok("add data");
    }
    for at in 0..300 {
        sandbox.write(&format!("many/d{}/f{at}", at % 30), format!("{at}"));
    }
    let few = |args: &str| {
        let ran = after(&sandbox, "ulimit -n 32", args);
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
        ran.out
    };
    few("add many");
    assert!(few("status").contains("clean"));
    let before = snapshot(&sandbox.repo);
    for name in ["data", "many"] {
        fs::remove_dir_all(sandbox.repo.join(name)).unwrap();
    }
    few("checkout");
    assert_eq!(snapshot(&sandbox.repo), before);
    assert!(few("fsck").contains("no problems found"));
    few(SWEEP);
    whole(&sandbox, "after a gc with few open files");
    let ran = after(&sandbox, "ulimit -n 9", "status");
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(ran.err.contains("hint: raise the number of files"), "{}", ran.err);
}

#[test]
fn a_file_that_may_not_grow_further_is_an_error_and_no_signal() {
    let sandbox = world();
    let before = snapshot(&sandbox.repo);
    // Blocks of 512 bytes.
    let ran = after(&sandbox, "ulimit -f 1000", "add data");
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(ran.err.contains("File too large") && ran.err.contains("`ulimit -f`"), "{}", ran.err);
    assert_eq!(snapshot(&sandbox.repo), before);
    added(&sandbox);
    let before = snapshot(&sandbox.repo);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    let ran = after(&sandbox, "ulimit -f 1000", "checkout");
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(!sandbox.has("data/large") && leavings(&sandbox).is_empty());
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo), before);
}

/// Where memory ends the library may end the process; what it was about to store is not there.
#[test]
fn want_of_memory_publishes_nothing_half() {
    let sandbox = world();
    let mut failed = 0;
    for megabytes in [30, 50, 60, 70] {
        let before = snapshot(&sandbox.repo);
        let ran = after(&sandbox, &format!("ulimit -v {}", megabytes * 1000), "add data");
        whole(&sandbox, "without memory");
        if ran.code != 0 {
            failed += 1;
            assert_eq!(snapshot(&sandbox.repo), before, "{}", ran.err);
        }
    }
    assert!(failed > 0);
    added(&sandbox);
    whole(&sandbox, "with memory again");
}

const READ_ONLY: &str = "mount --bind CACHE CACHE && mount -o remount,bind,ro CACHE";

#[test]
fn a_cache_that_nobody_may_write_to_is_read_and_writers_change_nothing() {
    let sandbox = world();
    let cache = sandbox.root().join("cache");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    added(&sandbox);
    sandbox.commit("one");
    let before = snapshot(&sandbox.repo);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    let mount = READ_ONLY.replace("CACHE", "../cache");
    for args in ["checkout", "status --check", "diff", "fsck", "du", "gc", "unprotect data", "log data"] {
        let Some(ran) = mounted(&sandbox, &mount, args) else {
            return skip("a_cache_that_nobody_may_write_to…", "this user cannot mount");
        };
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    }
    assert_eq!(snapshot(&sandbox.repo), before);
    sandbox.write("data/y", "edited");
    let (edited, stored) = (snapshot(&sandbox.repo), snapshot(&cache));
    for args in ["add data", "commit", SWEEP, "fsck --repair"] {
        let ran = mounted(&sandbox, &mount, args).unwrap();
        assert_eq!(ran.code, 6, "{args}: {}", ran.err);
        assert!(ran.err.contains("Read-only file system"), "{args}: {}", ran.err);
    }
    assert_eq!((snapshot(&sandbox.repo), snapshot(&cache)), (edited, stored));
}

#[test]
fn where_the_whole_disk_is_read_only_looking_works_and_nothing_else_begins() {
    let sandbox = world();
    added(&sandbox);
    sandbox.commit("one");
    sandbox.write("data/y", "edited");
    let mount = READ_ONLY.replace("CACHE", ".git");
    for args in ["status", "diff", "fsck", "du", "gc", "log data"] {
        let Some(ran) = mounted(&sandbox, &mount, args) else {
            return skip("where_the_whole_disk_is_read_only…", "this user cannot mount");
        };
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    }
    let before = snapshot(&sandbox.repo);
    for args in ["add data", "commit", "checkout --force", "remove data", "move data other", SWEEP] {
        let ran = mounted(&sandbox, &mount, args).unwrap();
        assert_eq!(ran.code, 6, "{args}: {}", ran.err);
        assert_eq!(snapshot(&sandbox.repo), before, "{args}");
    }
}

#[test]
fn a_cache_on_another_mount_cannot_be_linked_to_and_is_copied_from() {
    let sandbox = world();
    let cache = sandbox.root().join("cache");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    sandbox.ok("config set --local cache.link hardlink");
    added(&sandbox);
    let before = snapshot(&sandbox.repo);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    let Some(ran) = mounted(&sandbox, "mount --bind ../cache ../cache", "checkout") else {
        return skip("a_cache_on_another_mount…", "this user cannot mount");
    };
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(sandbox.repo.join("data/large").metadata().unwrap().nlink(), 1);
    assert_eq!(snapshot(&sandbox.repo), before);
    // Without the other mount it is a link.
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.repo.join("data/large").metadata().unwrap().nlink(), 2);
}

/// Whether everything that is on record can be put back.
pub fn comes_back(sandbox: &Sandbox, expected: &std::collections::BTreeMap<Vec<u8>, String>, what: &str) {
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(&snapshot(&sandbox.repo), expected, "{what}");
}

fn packs(sandbox: &Sandbox) -> Vec<std::path::PathBuf> {
    let packs = fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap();
    let mut packs: Vec<_> = packs.map(|it| it.unwrap().path()).collect();
    packs.sort();
    packs
}

/// A pack or an index cannot be read: a gc that took the pages in it for absent would free what they name.
#[test]
fn gc_frees_nothing_while_a_pack_cannot_be_read() {
    let sandbox = world();
    added(&sandbox);
    fs::rename(sandbox.repo.join("data/large"), sandbox.root().join("large")).unwrap();
    added(&sandbox);
    fs::rename(sandbox.root().join("large"), sandbox.repo.join("data/large")).unwrap();
    added(&sandbox);
    let expected = snapshot(&sandbox.repo);
    let aside = sandbox.root().join("aside");
    for file in packs(&sandbox) {
        // Neither root nor anybody else can read a folder as a file.
        fs::rename(&file, &aside).unwrap();
        fs::create_dir(&file).unwrap();
        let before = packs(&sandbox);
        let error = sandbox.fails(SWEEP, 6);
        assert!(error.contains("nothing was freed") && error.contains("cannot be read"), "{error}");
        assert_eq!(packs(&sandbox), before);
        fs::remove_dir(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
        comes_back(&sandbox, &expected, &file.display().to_string());
    }
}

#[test]
fn a_pack_that_lost_its_index_is_no_garbage_and_gets_it_back() {
    let sandbox = world();
    added(&sandbox);
    sandbox.commit("one");
    let expected = snapshot(&sandbox.repo);
    let indexes = || packs(&sandbox).into_iter().filter(|it| it.extension().is_some_and(|it| it == "idx"));
    for how in [SWEEP, "fsck --repair"] {
        for index in indexes().collect::<Vec<_>>() {
            let bytes = fs::read(&index).unwrap();
            fs::remove_file(&index).unwrap();
            sandbox.ok(how);
            // Contents that nothing is known to need went as leavings only if no page of them was missed.
            if index.exists() {
                assert_eq!(fs::read(&index).unwrap(), bytes);
            }
            comes_back(&sandbox, &expected, how);
        }
    }
}
