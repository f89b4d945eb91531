//! Tests that a failing, full or read-only disk, short reads and writes, resource limits and power cuts lose
//! no data and leave nothing incomplete.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _};

use serde_json::{Value, json};

use crate::{
    crash_safety::{command, restore_state, save_state},
    repair_halted::damage_object,
    sandbox::{CommandResult, Sandbox, command_result, skip, snapshot},
};

/// Creates a repository with two small files, a large one and a remote.
fn setup() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("data/a/x", "one ".repeat(100));
    sandbox.write("data/y", "two");
    let large: Vec<u8> = (0..1_200_000_u32).map(|index| (index % 251) as u8).collect();
    sandbox.write("data/large", large);
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox
}

fn run_with_fault(sandbox: &Sandbox, args: &str, fault: &str) -> CommandResult {
    command_result(command(sandbox, args).env("MLX_FAULT", fault).output().unwrap())
}

/// Runs mlx from a shell, after a shell command such as `ulimit`.
fn run_after(sandbox: &Sandbox, first: &str, args: &str) -> CommandResult {
    let script = format!("{first}; exec \"$@\"");
    let mut shell = sandbox.command("sh", &sandbox.repo);
    shell.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_mlx")]).args(args.split_whitespace());
    command_result(shell.output().unwrap())
}

/// Runs mlx in its own mount namespace, after a mount command. Returns none if the user cannot mount.
fn run_with_mount(sandbox: &Sandbox, mount: &str, args: &str) -> Option<CommandResult> {
    let script = format!("{mount} || exit 99; exec \"$@\"");
    let mut shell = sandbox.command("unshare", &sandbox.repo);
    shell.args(["-rm", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_mlx")]).args(args.split_whitespace());
    let ran = command_result(shell.output().ok()?);
    (ran.code != 99 && !ran.err.contains("unshare")).then_some(ran)
}

/// Asserts that `fsck` finds nothing damaged, lost or unreadable.
fn assert_intact(sandbox: &Sandbox, case: &str) {
    let checked = sandbox.json("fsck");
    for key in ["damaged", "faults", "unreadable"] {
        assert_eq!(checked[key], json!([]), "{case}: {key}");
    }
}

/// Returns temporary files and quarantined objects.
fn temp_and_quarantined_files(sandbox: &Sandbox) -> Vec<String> {
    let entries = walkdir::WalkDir::new(&sandbox.repo).into_iter();
    let paths = entries.map(|entry| entry.unwrap().path().display().to_string());
    let marks = [".mlx-tmp-", "/damaged/", "/quarantine/"];
    paths.filter(|path| marks.iter().any(|mark| path.contains(mark))).collect()
}

/// Makes the disk fail (`stuck`) or run full (`full`) from the n-th operation on, for each n: the command
/// succeeds or ends with an error, nothing is lost or quarantined, and on a working disk the same command
/// succeeds.
fn assert_survives(prepare: &dyn Fn(&Sandbox), args: &str, faults: &[&str]) {
    let sandbox = setup();
    prepare(&sandbox);
    save_state(&sandbox);
    let ran = sandbox.mlx(args);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let expected = snapshot(&sandbox.repo);
    for fault in faults {
        let mut full_errors = 0;
        // Each of the first operations, then every third: it finds as much in a third of the time.
        for at in (1..).filter(|at| *at < 8 || at % 3 == 0) {
            restore_state(&sandbox);
            let ran = run_with_fault(&sandbox, args, &format!("{fault}:{at}"));
            let name = format!("{args}, {fault} {at}: {}", ran.err);
            let codes: &[i32] = if *fault == "full" { &[0, 7] } else { &[0, 1, 3] };
            assert!(codes.contains(&ran.code), "{name} {}", ran.code);
            // A large file whose status cannot be read counts as absent and is named.
            assert!(ran.code != 3 || ran.err.contains("is not in the local store"), "{name}");
            if ran.code == 7 {
                assert!(ran.err.contains("hint: the disk is full"), "{name}");
                full_errors += 1;
            }
            assert_eq!(temp_and_quarantined_files(&sandbox), Vec::<String>::new(), "{name}");
            if at % 2 == 1 {
                assert_intact(&sandbox, &name);
            }
            sandbox.ok(args);
            assert_eq!(snapshot(&sandbox.repo), expected, "{name}");
            if ran.code == 0 {
                assert!(at > 5, "{args} passes too few fault points");
                break;
            }
        }
        assert!(*fault != "full" || full_errors > 3, "{args}: {full_errors}");
    }
}

fn add_data(sandbox: &Sandbox) {
    sandbox.ok("add data");
}

#[test]
fn add_on_a_failing_or_full_disk_publishes_nothing_incomplete() {
    assert_survives(&|_| (), "add data", &["stuck", "full"]);
}

#[test]
fn commit_on_a_failing_or_full_disk_publishes_nothing_incomplete() {
    let edit = |sandbox: &Sandbox| {
        add_data(sandbox);
        sandbox.write("data/y", "three");
    };
    assert_survives(&edit, "commit", &["stuck", "full"]);
}

#[test]
fn checkout_on_a_failing_or_full_disk_quarantines_nothing() {
    let remove_data = |sandbox: &Sandbox| {
        add_data(sandbox);
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    };
    assert_survives(&remove_data, "checkout", &["stuck", "full"]);
}

const GC_NOW: &str = "gc --grace 0s --yes";

/// Stores packs of which all, some and no objects are needed, and a large file that is unneeded.
fn with_garbage(sandbox: &Sandbox) {
    add_data(sandbox);
    for at in 0..8 {
        sandbox.write(&format!("data/f{at}"), format!("{at} ").repeat(40));
    }
    add_data(sandbox);
    (1..8).for_each(|at| fs::remove_file(sandbox.repo.join(format!("data/f{at}"))).unwrap());
    fs::remove_file(sandbox.repo.join("data/large")).unwrap();
    add_data(sandbox);
}

#[test]
fn gc_on_a_failing_disk_loses_nothing() {
    assert_survives(&with_garbage, GC_NOW, &["stuck"]);
}

#[test]
fn gc_on_a_full_disk_frees_space() {
    let sandbox = setup();
    with_garbage(&sandbox);
    let ran = run_with_fault(&sandbox, &format!("{GC_NOW} --json"), "full:1");
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("the disk is full") && ran.err.contains("stay as they are"), "{}", ran.err);
    let swept: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&swept["freed"]["whole"]["count"], &swept["rewritten"]["count"]),
        (&json!(1), &json!(0)),
        "{swept}"
    );
    assert!(swept["freed"]["total"]["bytes"].as_u64().unwrap() > 1_200_000, "{swept}");
    assert_intact(&sandbox, "full");
    let swept = sandbox.json(GC_NOW);
    assert_eq!(swept["freed"]["whole"]["count"], 0, "{swept}");
    assert!(swept["rewritten"]["count"].as_u64().unwrap() > 0, "{swept}");
    assert_intact(&sandbox, "with room again");
}

/// Fills a tmpfs with the whole repository: not a page is left for locks, index and store.
#[test]
fn status_fsck_and_gc_work_on_a_full_tmpfs() {
    let sandbox = setup();
    with_garbage(&sandbox);
    // One mount namespace, which ends with the shell.
    let script = "mount -t tmpfs -o size=4m none ../small || exit 99; cp -a . ../small; cd ../small; \
        cat /dev/zero > fill 2>/dev/null; \
        for args in status fsck 'gc --grace 0s' 'gc --grace 0s --yes'; do \
        \"$1\" $args > \"$2\" 2>&1 || { echo \"$args: $?\"; cat \"$2\"; }; \
        cat /dev/zero >> fill 2>/dev/null; done; \
        ln -s x data/z; \"$1\" add data; echo $?; rm fill; \
        \"$1\" add data && \"$1\" fsck";
    fs::create_dir(sandbox.root().join("small")).unwrap();
    let mut shell = sandbox.command("unshare", &sandbox.repo);
    shell.args(["-rm", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_mlx")]);
    let ran = command_result(shell.arg(sandbox.root().join("output")).output().unwrap());
    if ran.code == 99 || ran.err.contains("unshare") {
        return skip("status_fsck_and_gc_work_on_a_full_tmpfs", "this user cannot mount a small disk");
    }
    assert_eq!(ran.code, 0, "{}\n{}", ran.out, ran.err);
    assert!(ran.out.starts_with("7\ndata: "), "{}\n{}", ran.out, ran.err);
    assert!(
        ran.err.contains("hint: the disk is full") && ran.out.ends_with("no problems found\n"),
        "{}",
        ran.err
    );
}

/// Checks a record of syncs, renames and removals, line by line: a power cut after any line loses nothing
/// that a pointer or a pack index names.
struct PowerCutCheck {
    /// Temporary files whose bytes are synced.
    synced: BTreeSet<String>,
    /// Folders that are not synced, so that a name in them may be lost.
    unsynced: BTreeSet<String>,
    /// Packs renamed into place since the last index was removed.
    packs: BTreeSet<String>,
    /// Number of pointers and lockfiles that were written.
    pointers: usize,
}

fn unquoted(text: &str) -> &str {
    text.trim_matches('`')
}

fn extension(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(_, extension)| extension)
}

fn parent(path: &str) -> String {
    path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned()
}

impl PowerCutCheck {
    fn check_line(&mut self, line: &str) {
        let (operation, rest) = line.split_once(' ').unwrap();
        let mut paths = rest.split(' ').map(unquoted);
        let path = paths.next().unwrap();
        match operation {
            "sync" => drop(self.synced.insert(path.to_owned())),
            "sync-folder" => drop(self.unsynced.remove(path.trim_end_matches('.'))),
            "folder" if ["packs", "objects"].contains(&path) => drop(self.unsynced.insert(parent(path))),
            "folder" | "sync-all" => {}
            "rename" => self.check_rename(path, paths.next().unwrap(), line),
            "remove" => self.check_remove(path, line),
            other => panic!("{other}"),
        }
    }

    fn check_rename(&mut self, from: &str, to: &str, line: &str) {
        let stored = ["packs/", "objects/", "runs/"].iter().any(|folder| to.starts_with(folder));
        let pointer = extension(to) == "mlx" || to.ends_with("mlx.lock");
        if stored || pointer {
            assert!(self.synced.remove(from), "its bytes are not synced: {line}");
        }
        if extension(to) == "idx" {
            assert!(!self.unsynced.contains("packs"), "the name of its pack may be lost: {line}");
            assert!(self.packs.contains(&to.replace(".idx", ".pack")), "{line}");
        }
        if extension(to) == "pack" {
            self.packs.insert(to.to_owned());
        }
        if pointer {
            self.pointers += 1;
            let folders = ["", "packs", "objects", "runs"];
            let unsynced: Vec<_> =
                folders.into_iter().filter(|folder| self.unsynced.contains(*folder)).collect();
            assert!(unsynced.is_empty(), "names in {unsynced:?} may be lost: {line}");
        }
        if stored {
            self.unsynced.insert(parent(to));
        }
    }

    fn check_remove(&mut self, path: &str, line: &str) {
        if extension(path) == "idx" {
            assert!(
                !self.unsynced.contains("packs") || self.packs.is_empty(),
                "objects it names may have no other copy: {line}"
            );
            self.unsynced.insert("packs".to_owned());
            self.packs.clear();
        }
        if extension(path) == "pack" {
            assert!(!self.unsynced.contains("packs"), "its index may come back: {line}");
        }
    }
}

#[test]
fn a_power_cut_never_leaves_a_name_for_unsynced_content() {
    let sandbox = setup();
    let edit = || sandbox.write("data/y", "three");
    let recorded = |args: &str| {
        let record = sandbox.root().join("record");
        let ran = run_with_fault(&sandbox, args, &format!("record:{}", record.display()));
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
        (GC_NOW, &|| drop(sandbox.ok("add data")), 0),
        (GC_NOW, &|| with_garbage(&sandbox), 0),
        ("fsck --repair", &|| damage_object(&sandbox, b"three"), 0),
    ] {
        prepare();
        let text = recorded(args);
        let mut check = PowerCutCheck {
            synced: BTreeSet::new(),
            unsynced: BTreeSet::new(),
            packs: BTreeSet::new(),
            pointers: 0,
        };
        text.lines().for_each(|line| check.check_line(line));
        assert_eq!(check.pointers, pointers, "{args}:\n{text}");
    }
    assert!(!recorded("status").contains("rename `data"), "status must not write pointers");
}

#[test]
fn short_and_interrupted_reads_and_writes_give_the_same_bytes() {
    let (plain, short) = (setup(), setup());
    for sandbox in [&plain, &short] {
        fs::remove_file(sandbox.repo.join("data/large")).unwrap();
        sandbox.write("data/b", (0..9000_u32).map(|index| (index % 253) as u8).collect::<Vec<_>>());
    }
    plain.ok("add data");
    for args in ["add data", "checkout", "commit", GC_NOW, "fsck"] {
        if args == "checkout" {
            fs::remove_dir_all(short.repo.join("data")).unwrap();
        }
        let ran = run_with_fault(&short, args, "short");
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    }
    assert_eq!(short.read("data.mlx"), plain.read("data.mlx"));
    assert_eq!(snapshot(&short.repo.join("data")), snapshot(&plain.repo.join("data")));
    assert_intact(&short, "short");
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
    let with_few_open_files = |args: &str| {
        let ran = run_after(&sandbox, "ulimit -n 32", args);
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
        ran.out
    };
    with_few_open_files("add many");
    assert!(with_few_open_files("status").contains("clean"));
    let before = snapshot(&sandbox.repo);
    for name in ["data", "many"] {
        fs::remove_dir_all(sandbox.repo.join(name)).unwrap();
    }
    with_few_open_files("checkout");
    assert_eq!(snapshot(&sandbox.repo), before);
    assert!(with_few_open_files("fsck").contains("no problems found"));
    with_few_open_files(GC_NOW);
    assert_intact(&sandbox, "after a gc with few open files");
    let ran = run_after(&sandbox, "ulimit -n 9", "status");
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(ran.err.contains("hint: raise the limit on open files"), "{}", ran.err);
}

#[test]
fn exceeding_the_file_size_limit_is_an_error_and_not_a_signal() {
    let sandbox = setup();
    let before = snapshot(&sandbox.repo);
    // Blocks of 512 bytes.
    let ran = run_after(&sandbox, "ulimit -f 1000", "add data");
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(ran.err.contains("File too large") && ran.err.contains("`ulimit -f`"), "{}", ran.err);
    assert_eq!(snapshot(&sandbox.repo), before);
    add_data(&sandbox);
    let before = snapshot(&sandbox.repo);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    let ran = run_after(&sandbox, "ulimit -f 1000", "checkout");
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(!sandbox.has("data/large") && temp_and_quarantined_files(&sandbox).is_empty());
    sandbox.ok("checkout");
    assert_eq!(snapshot(&sandbox.repo), before);
}

/// The allocator may abort the process; nothing incomplete is stored then.
#[test]
fn running_out_of_memory_publishes_nothing_incomplete() {
    let sandbox = setup();
    let mut failed = 0;
    for megabytes in [30, 50, 60, 70] {
        let before = snapshot(&sandbox.repo);
        let ran = run_after(&sandbox, &format!("ulimit -v {}", megabytes * 1000), "add data");
        assert_intact(&sandbox, "without memory");
        if ran.code != 0 {
            failed += 1;
            assert_eq!(snapshot(&sandbox.repo), before, "{}", ran.err);
        }
    }
    assert!(failed > 0);
    add_data(&sandbox);
    assert_intact(&sandbox, "with memory again");
}

const READ_ONLY: &str = "mount --bind CACHE CACHE && mount -o remount,bind,ro CACHE";

#[test]
fn a_read_only_cache_is_read_and_writing_commands_change_nothing() {
    let sandbox = setup();
    let cache = sandbox.root().join("cache");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    add_data(&sandbox);
    sandbox.commit("one");
    let before = snapshot(&sandbox.repo);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    let mount = READ_ONLY.replace("CACHE", "../cache");
    for args in ["checkout", "status --check", "diff", "fsck", "du", "gc", "unprotect data", "log data"] {
        let Some(ran) = run_with_mount(&sandbox, &mount, args) else {
            return skip(
                "a_read_only_cache_is_read_and_writing_commands_change_nothing",
                "this user cannot mount",
            );
        };
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    }
    assert_eq!(snapshot(&sandbox.repo), before);
    sandbox.write("data/y", "edited");
    let (edited, stored) = (snapshot(&sandbox.repo), snapshot(&cache));
    for args in ["add data", "commit", GC_NOW, "fsck --repair"] {
        let ran = run_with_mount(&sandbox, &mount, args).unwrap();
        assert_eq!(ran.code, 6, "{args}: {}", ran.err);
        assert!(ran.err.contains("Read-only file system"), "{args}: {}", ran.err);
    }
    assert_eq!((snapshot(&sandbox.repo), snapshot(&cache)), (edited, stored));
}

#[test]
fn on_a_read_only_disk_reads_work_and_writes_change_nothing() {
    let sandbox = setup();
    add_data(&sandbox);
    sandbox.commit("one");
    sandbox.write("data/y", "edited");
    let mount = READ_ONLY.replace("CACHE", ".git");
    for args in ["status", "diff", "fsck", "du", "gc", "log data"] {
        let Some(ran) = run_with_mount(&sandbox, &mount, args) else {
            return skip(
                "on_a_read_only_disk_reads_work_and_writes_change_nothing",
                "this user cannot mount",
            );
        };
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    }
    let before = snapshot(&sandbox.repo);
    for args in ["add data", "commit", "checkout --force", "remove data", "move data other", GC_NOW] {
        let ran = run_with_mount(&sandbox, &mount, args).unwrap();
        assert_eq!(ran.code, 6, "{args}: {}", ran.err);
        assert_eq!(snapshot(&sandbox.repo), before, "{args}");
    }
}

#[test]
fn checkout_copies_from_a_cache_on_another_mount() {
    let sandbox = setup();
    let cache = sandbox.root().join("cache");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    sandbox.ok("config set --local cache.link hardlink");
    add_data(&sandbox);
    let before = snapshot(&sandbox.repo);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    let Some(ran) = run_with_mount(&sandbox, "mount --bind ../cache ../cache", "checkout") else {
        return skip("checkout_copies_from_a_cache_on_another_mount", "this user cannot mount");
    };
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(sandbox.repo.join("data/large").metadata().unwrap().nlink(), 1);
    assert_eq!(snapshot(&sandbox.repo), before);
    // Without the other mount, checkout makes a hard link.
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.repo.join("data/large").metadata().unwrap().nlink(), 2);
}

/// Asserts that a checkout restores the workspace as `expected` after `data` is deleted.
pub fn assert_checkout_restores(
    sandbox: &Sandbox,
    expected: &std::collections::BTreeMap<Vec<u8>, String>,
    case: &str,
) {
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(&snapshot(&sandbox.repo), expected, "{case}");
}

fn packs(sandbox: &Sandbox) -> Vec<std::path::PathBuf> {
    let packs = fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap();
    let mut packs: Vec<_> = packs.map(|entry| entry.unwrap().path()).collect();
    packs.sort();
    packs
}

/// A gc that treated the tree pages in an unreadable pack as absent would free the objects they name.
#[test]
fn gc_frees_nothing_while_a_pack_cannot_be_read() {
    let sandbox = setup();
    add_data(&sandbox);
    fs::rename(sandbox.repo.join("data/large"), sandbox.root().join("large")).unwrap();
    add_data(&sandbox);
    fs::rename(sandbox.root().join("large"), sandbox.repo.join("data/large")).unwrap();
    add_data(&sandbox);
    let expected = snapshot(&sandbox.repo);
    let aside = sandbox.root().join("aside");
    for file in packs(&sandbox) {
        // No user, not even root, can read a folder as a file.
        fs::rename(&file, &aside).unwrap();
        fs::create_dir(&file).unwrap();
        let before = packs(&sandbox);
        let error = sandbox.fails(GC_NOW, 6);
        assert!(error.contains("nothing was freed") && error.contains("cannot be read"), "{error}");
        assert_eq!(packs(&sandbox), before);
        fs::remove_dir(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
        assert_checkout_restores(&sandbox, &expected, &file.display().to_string());
    }
}

#[test]
fn a_pack_that_lost_its_index_loses_no_needed_object() {
    let sandbox = setup();
    add_data(&sandbox);
    sandbox.commit("one");
    let expected = snapshot(&sandbox.repo);
    let is_index = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "idx");
    for args in [GC_NOW, "fsck --repair"] {
        for index in packs(&sandbox).into_iter().filter(is_index) {
            let bytes = fs::read(&index).unwrap();
            fs::remove_file(&index).unwrap();
            sandbox.ok(args);
            // A pack that nothing needs may be removed instead, but only if no tree page was missing.
            if index.exists() {
                assert_eq!(fs::read(&index).unwrap(), bytes);
            }
            assert_checkout_restores(&sandbox, &expected, args);
        }
    }
}
