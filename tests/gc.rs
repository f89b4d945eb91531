//! Tests that `mlx gc` frees unneeded objects and nothing else, also while other commands run, after a crash
//! and in a cache shared by several clones.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::{
    crash_safety::command,
    gc_roots::forget_bases,
    sandbox::{Sandbox, command_result, snapshot},
};

const GC_NOW: &str = "gc --grace 0s --yes";

/// Frees everything that is unneeded, and returns the number of objects and files freed.
fn run_gc(sandbox: &Sandbox) -> u64 {
    sandbox.json(GC_NOW)["freed"]["total"]["count"].as_u64().unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Asserts that the content that `path` had in the revision `rev` can still be checked out.
fn assert_restores(sandbox: &Sandbox, rev: &str, path: &str, text: &str) {
    sandbox.git(&format!("checkout -q {rev} -- {path}.mlx"));
    sandbox.ok(&format!("checkout --force {path}"));
    assert_eq!(sandbox.read(path), text, "{rev}");
}

fn add(sandbox: &Sandbox, path: &str, text: &str) {
    forget_bases(sandbox);
    sandbox.write(path, text);
    sandbox.ok(&format!("add {path}"));
    forget_bases(sandbox);
}

#[test]
fn gc_without_yes_only_reports() {
    let sandbox = Sandbox::new();
    add(&sandbox, "a", "first");
    add(&sandbox, "a", "second");
    let output = sandbox.ok("gc --grace 0s");
    let words = output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let lines: Vec<_> = words.map(|words| words.join(" ")).collect();
    assert_eq!(lines, ["would free count size", "small files 1 5 bytes", "next: mlx gc --grace 0s --yes"]);
    assert_eq!(sandbox.json("gc --grace 0s")["freed"]["contents"]["count"], 1);
    assert_eq!(run_gc(&sandbox), 1);
    assert_eq!(run_gc(&sandbox), 0);
    assert_eq!(sandbox.read("a"), "second");
}

#[test]
fn objects_younger_than_the_grace_period_are_kept() {
    let sandbox = Sandbox::new();
    add(&sandbox, "a", "first");
    add(&sandbox, "a", "second");
    assert_eq!(sandbox.json("gc --yes")["freed"]["total"]["count"], 0);
    sandbox.fails("gc --grace soon", 2);
    assert_eq!(run_gc(&sandbox), 1);
}

#[test]
fn branches_tags_stashes_the_index_and_other_worktrees_are_kept() {
    let sandbox = Sandbox::new();
    add(&sandbox, "a", "on a branch");
    sandbox.commit("one");
    sandbox.git("branch side");
    add(&sandbox, "a", "under a tag");
    sandbox.commit("two");
    sandbox.git("tag kept");
    sandbox.git("reset -q --hard side");
    for text in ["stashed first", "stashed second"] {
        add(&sandbox, "a", text);
        sandbox.git("stash -q");
    }
    add(&sandbox, "a", "staged");
    sandbox.git("add a.mlx");
    add(&sandbox, "a", "in the workspace");
    let other = sandbox.root().join("other");
    sandbox.git(&format!("worktree add -q --detach {} side", other.display()));
    fs::write(other.join("b"), "in another worktree").unwrap();
    sandbox.at(&other).ok("add b");
    add(&sandbox, "c", "unneeded");
    fs::remove_file(sandbox.repo.join("c.mlx")).unwrap();
    assert_eq!(run_gc(&sandbox), 1);
    assert_eq!(sandbox.json("fsck")["damaged"], serde_json::json!([]));
    let staged = sandbox.git("show :a.mlx");
    for (rev, text) in [("side", "on a branch"), ("kept", "under a tag")] {
        assert_restores(&sandbox, rev, "a", text);
    }
    assert_restores(&sandbox, "stash@{1}", "a", "stashed first");
    assert_restores(&sandbox, "stash@{0}", "a", "stashed second");
    sandbox.write("a.mlx", staged);
    sandbox.ok("checkout --force a");
    assert_eq!(sandbox.read("a"), "staged");
    fs::remove_file(other.join("b")).unwrap();
    sandbox.at(&other).ok("checkout b");
}

#[test]
fn a_locked_worktree_that_is_missing_stops_gc() {
    let sandbox = Sandbox::new();
    add(&sandbox, "a", "one");
    sandbox.commit("one");
    let other = sandbox.root().join("other");
    sandbox.git(&format!("worktree add -q --detach {}", other.display()));
    sandbox.git(&format!("worktree lock {}", other.display()));
    fs::remove_dir_all(&other).unwrap();
    let error = sandbox.fails(GC_NOW, 7);
    assert!(error.contains("is missing") && error.contains("git worktree unlock"), "{error}");
}

#[test]
fn objects_named_by_a_tag_message_are_kept() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "x");
    sandbox.commit("one");
    sandbox.write("a/x", "a package");
    let digest = sandbox.json("add a")["added"][0]["digest"].as_str().unwrap().to_owned();
    sandbox.git(&format!("tag -a v1 -m '{digest}'"));
    fs::remove_file(sandbox.repo.join("a.mlx")).unwrap();
    run_gc(&sandbox);
    let pointer = format!("digest = \"{digest}\"\nfiles = 1\nformat = 1\nkind = \"tree\"\nsize = 9\n");
    fs::remove_dir_all(sandbox.repo.join("a")).unwrap();
    sandbox.write("a.mlx", pointer);
    sandbox.ok("checkout a");
    assert_eq!(sandbox.read("a/x"), "a package");
}

#[test]
fn outputs_of_a_run_are_kept_as_long_as_its_record() {
    let sandbox = Sandbox::new();
    sandbox.write("params.toml", "x = 1\n");
    sandbox.write(
        "mlx.toml",
        "[stage.s]\ncmd = 'cat params.toml > o'\nparams = ['params.toml:x']\nouts = ['o']\n",
    );
    sandbox.ok("repro");
    sandbox.write("params.toml", "x = 2\n");
    sandbox.ok("repro");
    assert_eq!(sandbox.json("gc --yes")["freed"]["total"]["count"], 0);
    sandbox.write("params.toml", "x = 1\n");
    assert!(sandbox.ok("repro").contains("restored"));
    // No lockfile names the other run: its record and its output are freed.
    let freed = sandbox.json(GC_NOW)["freed"].clone();
    assert_eq!((&freed["runs"]["count"], &freed["contents"]["count"]), (&1.into(), &1.into()), "{freed}");
    fs::remove_file(sandbox.repo.join("o")).unwrap();
    assert!(sandbox.ok("repro").contains("restored"));
}

#[test]
fn a_pack_that_is_mostly_unneeded_is_rewritten() {
    let sandbox = Sandbox::new();
    for at in 0..40 {
        sandbox.write(&format!("data/f{at}"), format!("{at} ").repeat(50));
    }
    sandbox.ok("add data");
    for at in 1..40 {
        fs::remove_file(sandbox.repo.join(format!("data/f{at}"))).unwrap();
    }
    sandbox.ok("add data");
    let swept = sandbox.json(GC_NOW);
    assert_eq!(swept["rewritten"]["count"], 1, "{swept}");
    assert_eq!(swept["freed"]["contents"]["count"], 39);
    fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/f0"), "0 ".repeat(50));
    assert_eq!(sandbox.json("fsck")["objects"], 2);
}

#[test]
fn only_temp_files_of_dead_processes_are_removed() {
    let sandbox = Sandbox::new();
    add(&sandbox, "a", "one");
    let packs = sandbox.repo.join(".git/mlx/packs");
    let (dead, alive) = (packs.join(".mlx-tmp-4194999-0-0"), packs.join(".mlx-tmp-4194999-1-0"));
    fs::write(&dead, "half").unwrap();
    fs::write(&alive, "half").unwrap();
    let writing = fs::File::open(&alive).unwrap();
    writing.lock().unwrap();
    assert_eq!(sandbox.json("gc --yes")["freed"]["orphans"]["count"], 1);
    assert!(!dead.exists() && alive.exists());
}

/// Runs `add` and `gc` at the same time, repeatedly: every object that a pointer names is stored.
#[test]
fn add_during_gc_loses_nothing() {
    let sandbox = Sandbox::new();
    for at in 0..30 {
        sandbox.write(&format!("data/f{at}"), format!("{at} ").repeat(20));
    }
    sandbox.write("data/large", vec![7_u8; 1_200_000]);
    sandbox.ok("add data");
    let pointer = sandbox.read("data.mlx");
    for round in 0..25 {
        // The objects are stored, and nothing needs them.
        fs::remove_file(sandbox.repo.join("data.mlx")).unwrap();
        sandbox.write("other", format!("{round}"));
        let spawn = |args: &str| {
            let mut child = command(&sandbox, args);
            child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children = [spawn("add data"), spawn(GC_NOW), spawn("add other"), spawn(GC_NOW)];
        for child in children {
            let ran = command_result(child.wait_with_output().unwrap());
            assert_eq!(ran.code, 0, "round {round}: {}", ran.err);
        }
        assert_eq!(sandbox.read("data.mlx"), pointer);
        let checked = sandbox.json("fsck");
        assert_eq!(
            (&checked["damaged"], &checked["faults"]),
            (&serde_json::json!([]), &serde_json::json!([])),
            "round {round}"
        );
    }
}

#[test]
fn gc_survives_every_fault() {
    let sandbox = Sandbox::new();
    for at in 0..6 {
        sandbox.write(&format!("data/f{at}"), format!("{at} ").repeat(30));
    }
    sandbox.write("data/large", vec![7_u8; 1_100_000]);
    sandbox.ok("add data");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'date +%N > o'\ndeps = ['data']\nouts = ['o']\n");
    sandbox.ok("repro");
    for name in ["f1", "f2", "f3", "f4", "large"] {
        fs::remove_file(sandbox.repo.join("data").join(name)).unwrap();
    }
    sandbox.ok("add data");
    sandbox.ok("repro --force");
    let before = sandbox.root().join("before");
    let repo = &sandbox.repo;
    let copy = |from: &Path, to: &Path| {
        let copied = sandbox.command("cp", &sandbox.root()).arg("-a").arg(from).arg(to).status().unwrap();
        assert!(copied.success());
    };
    copy(repo, &before);
    let expected = snapshot(repo);
    for fault in ["kill", "fail"] {
        for at in 1.. {
            fs::remove_dir_all(repo).unwrap();
            copy(&before, repo);
            let ran = command_result(
                command(&sandbox, GC_NOW).env("MLX_FAULT", format!("{fault}:{at}")).output().unwrap(),
            );
            assert!(ran.code != 101 && !ran.err.contains("panicked"), "{fault} {at}: {}", ran.err);
            let checked = sandbox.json("fsck");
            for key in ["damaged", "faults", "unreadable"] {
                assert_eq!(checked[key], serde_json::json!([]), "{fault} {at}");
            }
            sandbox.ok(GC_NOW);
            assert_eq!(run_gc(&sandbox), 0, "{fault} {at}");
            for name in ["data", "o"] {
                let path = repo.join(name);
                if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
            }
            sandbox.ok("checkout");
            assert_eq!(snapshot(repo), expected, "{fault} {at}");
            assert_eq!(files(&repo.join(".git/mlx/leases")), Vec::<PathBuf>::new());
            if ran.code == 0 && (fault == "kill" || at > 60) {
                assert!(at > 20, "gc passes too few fault points");
                break;
            }
        }
    }
}

/// Creates two clones that share a cache.
fn two_clones() -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new();
    sandbox.commit("one");
    let cache = sandbox.root().join("cache");
    let other = sandbox.root().join("other");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), other.display()));
    for folder in [&sandbox.repo, &other] {
        sandbox.at(folder).ok(&format!("config set --local cache.dir {}", cache.display()));
    }
    (sandbox, other)
}

#[test]
fn objects_that_another_clone_needs_are_kept() {
    let (sandbox, other) = two_clones();
    fs::write(other.join("b"), "of the other").unwrap();
    sandbox.at(&other).ok("add b");
    add(&sandbox, "a", "first");
    add(&sandbox, "a", "second");
    assert_eq!(run_gc(&sandbox), 1);
    fs::remove_file(other.join("b")).unwrap();
    sandbox.at(&other).ok("checkout");
    assert_eq!(fs::read_to_string(other.join("b")).unwrap(), "of the other");
    assert_eq!(sandbox.json("gc")["clones"], 1);
}

#[test]
fn a_clone_that_is_gone_is_forgotten_by_its_path() {
    let (sandbox, other) = two_clones();
    fs::write(other.join("b"), "of the other").unwrap();
    sandbox.at(&other).ok("add b");
    add(&sandbox, "a", "first");
    add(&sandbox, "a", "second");
    sandbox.at(&other).git("add -A");
    sandbox.at(&other).git("commit -q -m two");
    assert_eq!(run_gc(&sandbox), 1, "its list is renewed");
    add(&sandbox, "a", "third");
    fs::remove_dir_all(&other).unwrap();
    assert_eq!(run_gc(&sandbox), 0, "it may need what any list named");
    sandbox.fails("gc --forget /nowhere", 3);
    let swept = sandbox.json(&format!("{GC_NOW} --forget {}", other.display()));
    assert_eq!((&swept["freed"]["contents"]["count"], &swept["clones"]), (&2.into(), &0.into()), "{swept}");
}

#[test]
fn files_in_a_group_cache_get_the_groups_permissions() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    let (sandbox, _) = two_clones();
    let cache = sandbox.root().join("cache");
    fs::create_dir_all(&cache).unwrap();
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o2775)).unwrap();
    for file in files(&cache) {
        fs::remove_dir_all(&file).or_else(|_| fs::remove_file(&file)).unwrap();
    }
    let mut shell = sandbox.command("sh", &sandbox.repo);
    sandbox.write("data/a", "one");
    sandbox.write("data/large", vec![1_u8; 1_100_000]);
    let add = format!("umask 077; {} add data", env!("CARGO_BIN_EXE_mlx"));
    assert!(shell.args(["-c", &add]).status().unwrap().success());
    let mut checked = 0;
    for entry in walkdir::WalkDir::new(&cache).min_depth(1) {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().mode();
        let wanted = if entry.file_type().is_dir() { 0o2070 } else { 0o040 };
        assert_eq!(mode & wanted, wanted, "{} {mode:o}", entry.path().display());
        let is_object = entry.path().parent().unwrap().ends_with("objects");
        assert_eq!(mode & 0o020 == 0, is_object, "{} {mode:o}", entry.path().display());
        checked += 1;
    }
    assert!(checked > 8, "{checked}");
}

/// Corrupts store files and gives them to another user, which needs root.
#[test]
fn files_of_another_user_are_verified_before_use() {
    let (sandbox, other) = two_clones();
    sandbox.write("data/a", "one");
    sandbox.write("data/large", vec![1_u8; 1_100_000]);
    sandbox.ok("add data");
    let cache = sandbox.root().join("cache");
    for folder in ["packs", "objects"] {
        for file in files(&cache.join(folder)) {
            let chown = sandbox.command("chown", &cache).arg("12345").arg(&file).output().unwrap();
            if !chown.status.success() {
                return crate::sandbox::skip(
                    "files_of_another_user_are_verified_before_use",
                    "this user is not root",
                );
            }
            if file.extension().is_none_or(|extension| extension == "pack") {
                let mut bytes = fs::read(&file).unwrap();
                bytes[9] ^= 1;
                fs::write(&file, bytes).unwrap();
            }
        }
    }
    fs::create_dir(other.join("data")).unwrap();
    fs::write(other.join("data/a"), "one").unwrap();
    fs::write(other.join("data/large"), vec![1_u8; 1_100_000]).unwrap();
    sandbox.at(&other).ok("add data");
    fs::remove_dir_all(other.join("data")).unwrap();
    sandbox.at(&other).ok("checkout");
    assert_eq!(fs::read(other.join("data/a")).unwrap(), b"one");
    assert_eq!(fs::read(other.join("data/large")).unwrap(), vec![1_u8; 1_100_000]);
}

/// Kills an `add` in one clone at each of its disk operations, then runs `gc` in another.
#[test]
fn objects_that_a_killed_add_of_another_clone_relies_on_are_kept() {
    let (sandbox, other) = two_clones();
    let write_data = || {
        fs::create_dir_all(other.join("data")).unwrap();
        fs::write(other.join("data/a"), "of the other").unwrap();
        fs::write(other.join("data/large"), vec![3_u8; 1_100_000]).unwrap();
    };
    let other_clone = sandbox.at(&other);
    let mut written = 0;
    for at in 1.. {
        write_data();
        other_clone.ok("add data");
        // All objects are stored, and nothing needs them.
        fs::remove_file(other.join("data.mlx")).unwrap();
        other_clone.ok("gc");
        let mut add = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &other);
        let ran = command_result(
            add.args(["add", "data"]).env("MLX_FAULT", format!("kill:{at}")).output().unwrap(),
        );
        sandbox.ok(GC_NOW);
        if other.join("data.mlx").exists() {
            written += 1;
            fs::remove_dir_all(other.join("data")).unwrap();
            other_clone.ok("checkout");
            assert_eq!(fs::read_to_string(other.join("data/a")).unwrap(), "of the other", "{at}");
        }
        if ran.code == 0 {
            break;
        }
    }
    assert!(written > 2, "{written}");
}

/// A filter replaces the pointer by something that names no object.
#[test]
fn a_pointer_that_passes_a_filter_is_refused_and_stops_gc() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "a");
    sandbox.ok("add a");
    sandbox.commit("a");
    for end in ["clean", "smudge"] {
        sandbox.git(&format!("config filter.f.{end} 'tr a-z n-za-m'"));
    }
    sandbox.write(".gitattributes", "*.mlx filter=f\n*.lock filter=f\n");
    sandbox.write("b", "b");
    sandbox.write("d/c", "c");
    for args in ["add a", "add b", "add --glob 'd/*'", "move a e"] {
        let error = sandbox.fails(args, 4);
        assert!(error.contains("passes the Git filter `f`") && error.contains(" -filter` to"), "{error}");
    }
    assert!(!sandbox.has("b.mlx") && !sandbox.has("d/c.mlx") && sandbox.has("a"));
    sandbox.write("mlx.toml", "[stage.s]\ncmd = \"cp b o\"\ndeps = [\"b\"]\nouts = [\"o\"]\n");
    assert!(sandbox.fails("repro", 4).contains("`mlx.lock` passes the Git filter `f`"));
    assert!(!sandbox.has("o"));
    fs::remove_file(sandbox.repo.join("mlx.toml")).unwrap();
    // The filter came after the pointer.
    sandbox.git("add --renormalize .");
    let error = sandbox.fails(GC_NOW, 5);
    assert!(
        error.contains("`a.mlx` in Git's index needs") && error.contains("--renormalize a.mlx"),
        "{error}"
    );
    sandbox.write(".gitattributes", "*.mlx -filter\n");
    sandbox.git("add --renormalize .");
    sandbox.ok(GC_NOW);
    sandbox.ok("add b");
}
