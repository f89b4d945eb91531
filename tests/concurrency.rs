//! Tests that commands which run at the same time in one repository lose nothing, do not hang and do not
//! report false damage, and that a process which swaps folders for links cannot lead them out of the
//! repository.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use mlx::{digest::Digest, fs::Root, store::Store};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use serde_json::json;

use crate::{
    malicious_repo::{outside_files, setup},
    sandbox::{CommandResult, Sandbox, command_result, snapshot},
};

const GC_NOW: &str = "gc --grace 0s --yes";

fn spawn(sandbox: &Sandbox, folder: &Path, args: &str) -> Child {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), folder);
    command.args(args.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Starts all commands at once and waits for all of them. Returns their arguments and results.
fn run_at_once(sandbox: &Sandbox, folder: &Path, commands: &[&str]) -> Vec<(String, CommandResult)> {
    let start = Instant::now();
    let children: Vec<_> =
        commands.iter().map(|args| ((*args).to_owned(), spawn(sandbox, folder, args))).collect();
    let ran = children
        .into_iter()
        .map(|(args, child)| (args, command_result(child.wait_with_output().unwrap())))
        .collect();
    assert!(start.elapsed() < Duration::from_mins(1), "a command hangs");
    ran
}

/// Asserts that `fsck` finds nothing damaged, lost or unreadable.
fn assert_intact(sandbox: &Sandbox, case: &str) {
    let checked = sandbox.json("fsck");
    for key in ["damaged", "faults", "unreadable"] {
        assert_eq!(checked[key], json!([]), "{case}: {checked}");
    }
}

#[test]
fn sixteen_commands_at_once_lose_nothing() {
    let sandbox = Sandbox::new();
    for at in 0..20 {
        sandbox.write(&format!("data/d{}/f{at}", at % 3), format!("content {at}"));
    }
    sandbox.ok("add data");
    sandbox.commit("one");
    for round in 0..3 {
        for name in ["data/d0/f0", "data/new", "one/x", "two/y"] {
            sandbox.write(name, format!("{name} {round}"));
        }
        sandbox.write("data/large", vec![round; 1_100_000]);
        let commands = [
            "add data",
            "add data",
            "add data/new",
            "add data/d0",
            "add data/large",
            "add one",
            "add two",
            "add one",
            "commit data",
            "status",
            "diff",
            "fsck",
            "du",
            GC_NOW,
            GC_NOW,
            "log data",
        ];
        for (args, ran) in run_at_once(&sandbox, &sandbox.repo, &commands) {
            // A command that cannot continue reports a conflict with another one.
            assert!(ran.code == 0 || ran.code == 4, "round {round}: {args}: {ran:?}");
        }
        // All commands started with the same files, so their results agree.
        assert_eq!(sandbox.json("status")["clean"], true, "round {round}");
        assert_intact(&sandbox, &format!("round {round}"));
        let ignored = sandbox.read(".gitignore");
        let mut lines: Vec<_> = ignored.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["/data", "/one", "/two"], "round {round}");
        let before = snapshot(&sandbox.repo);
        for name in ["data", "one", "two"] {
            fs::remove_dir_all(sandbox.repo.join(name)).unwrap();
        }
        sandbox.ok("checkout");
        assert_eq!(snapshot(&sandbox.repo), before, "round {round}");
    }
}

#[test]
fn concurrent_adds_of_a_changing_file_store_a_version_it_had() {
    let sandbox = Sandbox::new();
    sandbox.write("data/x", "0");
    sandbox.ok("add data");
    for round in 0..5 {
        let first = spawn(&sandbox, &sandbox.repo, "add data");
        sandbox.write("data/x", format!("{round}"));
        let second = spawn(&sandbox, &sandbox.repo, "add data");
        for child in [first, second] {
            let ran = command_result(child.wait_with_output().unwrap());
            let refused = ran.code == 4 && ran.err.contains("`data/x` changed while it was read");
            assert!(ran.code == 0 || refused, "round {round}: {}", ran.err);
        }
        assert_intact(&sandbox, &format!("round {round}"));
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        sandbox.ok("checkout");
        let text = sandbox.read("data/x");
        assert!(
            [round, (round - 1).max(0)].map(|number: i32| number.to_string()).contains(&text),
            "{round}: {text}"
        );
        sandbox.write("data/x", format!("{round}"));
        sandbox.ok("add data");
    }
}

#[test]
fn concurrent_pulls_and_checkouts_restore_everything() {
    let sandbox = Sandbox::new();
    for at in 0..60 {
        sandbox.write(&format!("data/d{}/f{at}", at % 4), format!("content {at} ").repeat(50));
    }
    sandbox.write("data/large", vec![5_u8; 1_500_000]);
    sandbox.ok("add data");
    sandbox.ok(&format!("remote add origin file://{} --default", sandbox.root().join("remote").display()));
    sandbox.ok("push");
    sandbox.commit("all");
    let expected = snapshot(&sandbox.repo.join("data"));
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    for round in 0..3 {
        let commands = ["pull", "checkout", "pull", "status", "checkout", "fetch", "fsck", "gc"];
        for (args, ran) in run_at_once(&sandbox, &clone, &commands) {
            // A checkout may run before the content is fetched (3) or conflict with another one (4).
            let allowed = if args == "checkout" { &[0, 3, 4][..] } else { &[0, 4] };
            assert!(allowed.contains(&ran.code), "round {round}: {args}: {} {}", ran.code, ran.err);
        }
        sandbox.at(&clone).ok("pull");
        assert_eq!(snapshot(&clone.join("data")), expected, "round {round}");
        assert_eq!(sandbox.at(&clone).json("status")["clean"], true, "round {round}");
        fs::remove_dir_all(clone.join("data")).unwrap();
        if round % 2 == 0 {
            fs::remove_dir_all(clone.join(".git/mlx")).unwrap();
        }
    }
}

#[test]
fn concurrent_repros_run_a_stage_once() {
    let sandbox = Sandbox::new();
    sandbox.write("in", "x");
    let runs = sandbox.root().join("runs");
    let command = format!("echo run >> {}; sleep 0.2; cat in > out", runs.display());
    sandbox.write("mlx.toml", format!("[stage.a]\ncmd = '{command}'\ndeps = ['in']\nouts = ['out']\n"));
    for (args, ran) in run_at_once(&sandbox, &sandbox.repo, &["repro"; 6]) {
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    }
    assert_eq!(fs::read_to_string(runs).unwrap(), "run\n");
    assert_eq!(sandbox.json("status")["clean"], true);
    assert_intact(&sandbox, "after six runs");
}

/// A `commit` between the inputs and the outputs of a run would record a mixture of two runs.
#[test]
fn a_commit_waits_for_a_running_stage() {
    let sandbox = Sandbox::new();
    let text = "[stage.a]\ncmd = 'cp in out; until [ -e ../go ]; do sleep 0.01; done'\ndeps = ['in']\n\
        outs = ['out']\n";
    sandbox.write("mlx.toml", text);
    sandbox.write("in", "one");
    fs::write(sandbox.root().join("go"), "").unwrap();
    sandbox.ok("repro");
    fs::remove_file(sandbox.root().join("go")).unwrap();
    sandbox.write("in", "two");
    let run = spawn(&sandbox, &sandbox.repo, "repro");
    wait_until("the stage does not start", || sandbox.has("out") && sandbox.read("out") == "two");
    // Paths that no stage makes do not wait.
    sandbox.write("other", "text");
    sandbox.ok("add other");
    sandbox.write("other", "changed");
    sandbox.ok("commit other");
    let commits = ["commit out", "commit"].map(|args| spawn(&sandbox, &sandbox.repo, args));
    fs::write(sandbox.root().join("go"), "").unwrap();
    for child in std::iter::once(run).chain(commits) {
        let ran = command_result(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.err);
    }
    assert!(!sandbox.read("mlx.lock").contains("edited"));
    assert_eq!(sandbox.json("status")["clean"], true);
}

/// Most objects of each pack are unneeded, so each `gc` rewrites and removes packs while `fsck` checks them.
#[test]
fn fsck_during_adds_and_repacking_gcs_finds_nothing_wrong() {
    let sandbox = Sandbox::new();
    for round in 0..4 {
        for at in 0..30 {
            sandbox.write(&format!("data/f{at}"), format!("{round} {at} ").repeat(20));
        }
        sandbox.write("data/large", vec![round; 1_100_000]);
        sandbox.ok("add data");
        (2..30).for_each(|at| fs::remove_file(sandbox.repo.join(format!("data/f{at}"))).unwrap());
        sandbox.write("data/large", vec![100 + round; 1_100_000]);
        sandbox.ok("add data");
        // An object that the last pointer named is freed while it is checked.
        fs::remove_file(sandbox.repo.join("data/f0")).unwrap();
        let commands = ["fsck", "fsck", "add data", GC_NOW, "fsck", "fsck", GC_NOW, "fsck", "du", "status"];
        for (args, ran) in run_at_once(&sandbox, &sandbox.repo, &commands) {
            assert_eq!(ran.code, 0, "round {round}: {args}: {}{}", ran.out, ran.err);
        }
    }
    assert_intact(&sandbox, "at the end");
}

fn packs(sandbox: &Sandbox) -> Vec<PathBuf> {
    fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Waits until a condition is true; panics with the message after 20 seconds.
fn wait_until(message: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{message}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A `gc` that has made its plan waits for the gate lock; meanwhile a pointer appears to objects it was about
/// to remove.
#[test]
fn objects_named_after_a_gc_made_its_plan_are_kept() {
    for committed in [false, true] {
        let sandbox = Sandbox::new();
        for at in 0..20 {
            sandbox.write(&format!("old/f{at}"), format!("{at} ").repeat(20));
        }
        sandbox.ok("add old");
        let pointer = sandbox.read("old.mlx");
        (1..20).for_each(|at| fs::remove_file(sandbox.repo.join(format!("old/f{at}"))).unwrap());
        sandbox.ok("add old");
        sandbox.commit("one");
        let gate = fs::File::open(sandbox.repo.join(".git/mlx/gate")).unwrap();
        flock(&gate, FlockOperation::LockShared).unwrap();
        let before = packs(&sandbox).len();
        let gc = spawn(&sandbox, &sandbox.repo, GC_NOW);
        wait_until("the gc rewrote no pack", || {
            packs(&sandbox).iter().filter(|path| is_index(path)).count() * 2 > before
        });
        if committed {
            let blob = sandbox.root().join("blob");
            fs::write(&blob, &pointer).unwrap();
            let id = sandbox.git(&format!("hash-object -w {}", blob.display()));
            sandbox.git(&format!("update-index --add --cacheinfo 100644,{},old.mlx", id.trim()));
            sandbox.git("commit -q -m back");
            sandbox.git("checkout -q HEAD -- old.mlx");
        } else {
            sandbox.write("old.mlx", &pointer);
        }
        drop(gate);
        let ran = command_result(gc.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.err);
        sandbox.ok("checkout");
        assert_eq!(sandbox.read("old/f19"), "19 ".repeat(20));
        assert_intact(&sandbox, "after the gc");
    }
}

fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "idx")
}

/// Sets the modification time of all files of the store to a month ago.
fn set_times_to_last_month(folder: &Path) {
    let then = SystemTime::now() - Duration::from_hours(720);
    for entry in walkdir::WalkDir::new(folder) {
        let path = entry.unwrap().into_path();
        if path.is_file() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_modified(then).unwrap();
        }
    }
}

#[test]
fn objects_only_in_the_reflog_are_kept_for_the_grace_period() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "first");
    sandbox.ok("add a");
    sandbox.commit("one");
    sandbox.write("a", "second");
    sandbox.ok("add a");
    // The reflog uses the real clock, not the sandbox's.
    let mut commit = sandbox.command("git", &sandbox.repo);
    commit.env_remove("GIT_COMMITTER_DATE").env_remove("GIT_AUTHOR_DATE");
    assert!(commit.args(["commit", "-q", "-a", "-m", "two"]).status().unwrap().success());
    let mut reset = sandbox.command("git", &sandbox.repo);
    reset.env_remove("GIT_COMMITTER_DATE");
    assert!(reset.args(["reset", "-q", "--hard", "HEAD~1"]).status().unwrap().success());
    sandbox.ok("checkout --force");
    sandbox.git("update-ref -d ORIG_HEAD");
    set_times_to_last_month(&sandbox.repo.join(".git/mlx"));
    assert_eq!(sandbox.json("gc --yes")["freed"]["contents"]["count"], 0);
    sandbox.git("reset -q --hard HEAD@{1}");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("a"), "second");
    sandbox.git("reset -q --hard HEAD~1");
    sandbox.ok("checkout");
    sandbox.git("update-ref -d ORIG_HEAD");
    set_times_to_last_month(&sandbox.repo.join(".git/mlx"));
    assert_eq!(
        sandbox.json(GC_NOW)["freed"]["contents"]["count"],
        1,
        "without a grace period the reflog keeps nothing"
    );
}

#[test]
fn experiments_and_all_other_refs_keep_their_objects() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "now");
    sandbox.ok("add a");
    sandbox.commit("base");
    let names =
        ["refs/mlx/exp/one", "refs/remotes/origin/side", "refs/notes/x", "refs/bisect/bad", "refs/odd"];
    for name in names {
        sandbox.write("a", name);
        sandbox.ok("add a");
        sandbox.git("commit -q -a -m try");
        sandbox.git(&format!("update-ref {name} HEAD"));
        sandbox.git("reset -q --hard HEAD~1");
        sandbox.ok("checkout");
    }
    sandbox.git("update-ref -d ORIG_HEAD");
    sandbox.ok("checkout");
    assert_eq!(sandbox.json(GC_NOW)["freed"]["contents"]["count"], 0);
    for name in names {
        sandbox.ok(&format!("checkout --rev {name}"));
        assert_eq!(sandbox.read("a"), name);
        sandbox.ok("checkout");
    }
}

/// Swaps a folder and a link out of the repository, as fast as possible, while `act` runs. Returns the number
/// of swaps.
fn while_swapping(sandbox: &Sandbox, act: impl Fn(&Sandbox)) -> u64 {
    let (folder, link) = (sandbox.repo.join("data/d"), sandbox.repo.join("spare"));
    let (done, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    for _ in 0..3 {
        for path in [&folder, &link] {
            let _none = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
        }
        fs::create_dir_all(&folder).unwrap();
        for name in (0..150).map(|at| format!("f{at}")).chain(["precious".to_owned()]) {
            fs::write(folder.join(&name), format!("edited {name}")).unwrap();
        }
        symlink(sandbox.root().join("outside"), &link).unwrap();
        done.store(false, Ordering::SeqCst);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let swap = renameat_with(CWD, &folder, CWD, &link, RenameFlags::EXCHANGE);
                    swaps.fetch_add(u64::from(swap.is_ok()), Ordering::SeqCst);
                }
            });
            act(sandbox);
            done.store(true, Ordering::SeqCst);
        });
    }
    swaps.into_inner()
}

/// Creates a repository for `while_swapping`. Returns it and the state of the files outside.
fn setup_swapping() -> (Sandbox, Vec<String>) {
    let sandbox = setup();
    for at in 0..150 {
        sandbox.write(&format!("data/d/f{at}"), format!("content {at}"));
    }
    // The folder outside has a file of this name, too.
    sandbox.write("data/d/precious", "ours");
    sandbox.ok("add data");
    let before = outside_files(&sandbox);
    (sandbox, before)
}

/// Runs mlx, with any documented exit code, and asserts that it does not panic.
fn assert_no_panic(sandbox: &Sandbox, args: &str) {
    let ran = sandbox.mlx(args);
    assert!((0..8).contains(&ran.code) && !ran.err.contains("panicked"), "{args}: {}", ran.err);
}

#[test]
fn checkout_does_not_write_through_a_link_swapped_in() {
    let (sandbox, before) = setup_swapping();
    let swaps = while_swapping(&sandbox, |sandbox| assert_no_panic(sandbox, "checkout --force"));
    assert!(swaps > 1000, "only {swaps} swaps");
    assert_eq!(outside_files(&sandbox), before);
}

#[test]
fn remove_does_not_delete_through_a_link_swapped_in() {
    let (sandbox, before) = setup_swapping();
    let pointer = sandbox.read("data.mlx");
    let swaps = while_swapping(&sandbox, |sandbox| {
        sandbox.write("data.mlx", &pointer);
        assert_no_panic(sandbox, "remove --data --force data");
    });
    assert!(swaps > 1000, "only {swaps} swaps");
    assert_eq!(outside_files(&sandbox), before);
}

#[test]
fn add_does_not_store_files_through_a_link_swapped_in() {
    let (sandbox, _) = setup_swapping();
    let secrets = (0..40).map(|at| format!("secret {at}")).collect::<Vec<_>>();
    for (at, secret) in secrets.iter().enumerate() {
        fs::write(sandbox.root().join(format!("outside/f{at}")), secret).unwrap();
    }
    let swaps = while_swapping(&sandbox, |sandbox| {
        assert_no_panic(sandbox, "add data");
        assert_no_panic(sandbox, "status");
    });
    assert!(swaps > 1000, "only {swaps} swaps");
    let store = Store::open(Root::open(&sandbox.repo.join(".git/mlx")).unwrap()).unwrap();
    assert!(secrets.iter().all(|secret| !store.contains(&Digest::of(secret.as_bytes()))));
}
