//! Many at once in one repository, friends and an enemy: nothing is lost, nobody waits for ever, nobody cries damage that
//! is none, and nobody is led out.

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
    malicious_repo::{outside, victim},
    sandbox::{Ran, Sandbox, ended, snapshot},
};

const SWEEP: &str = "gc --grace 0s --yes";

fn spawn(sandbox: &Sandbox, folder: &Path, args: &str) -> Child {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), folder);
    command.args(args.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Starts all of them, and waits for all.
fn at_once(sandbox: &Sandbox, folder: &Path, commands: &[&str]) -> Vec<(String, Ran)> {
    let start = Instant::now();
    let children: Vec<_> = commands.iter().map(|it| ((*it).to_owned(), spawn(sandbox, folder, it))).collect();
    let ran = children.into_iter().map(|(args, it)| (args, ended(it.wait_with_output().unwrap()))).collect();
    assert!(start.elapsed() < Duration::from_mins(1), "somebody waited for ever");
    ran
}

fn is_whole(sandbox: &Sandbox, what: &str) {
    let checked = sandbox.json("fsck");
    for key in ["damaged", "faults", "unreadable"] {
        assert_eq!(checked[key], json!([]), "{what}: {checked}");
    }
}

#[test]
fn sixteen_processes_at_once_lose_nothing() {
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
            SWEEP,
            SWEEP,
            "log data",
        ];
        for (args, ran) in at_once(&sandbox, &sandbox.repo, &commands) {
            // Whoever cannot go on says that another is at work.
            assert!(ran.code == 0 || ran.code == 4, "round {round}: {args}: {ran:?}");
        }
        // Everything was the same when they started, so all of them say the same.
        assert_eq!(sandbox.json("status")["clean"], true, "round {round}");
        is_whole(&sandbox, &format!("round {round}"));
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
fn adds_of_the_same_path_while_it_changes_leave_a_pointer_that_was_true_once() {
    let sandbox = Sandbox::new();
    sandbox.write("data/x", "0");
    sandbox.ok("add data");
    for round in 0..5 {
        let first = spawn(&sandbox, &sandbox.repo, "add data");
        sandbox.write("data/x", format!("{round}"));
        let second = spawn(&sandbox, &sandbox.repo, "add data");
        for child in [first, second] {
            let ran = ended(child.wait_with_output().unwrap());
            let torn = ran.code == 4 && ran.err.contains("`data/x` changed while it was read");
            assert!(ran.code == 0 || torn, "round {round}: {}", ran.err);
        }
        is_whole(&sandbox, &format!("round {round}"));
        fs::remove_dir_all(sandbox.repo.join("data")).unwrap();
        sandbox.ok("checkout");
        let text = sandbox.read("data/x");
        assert!([round, (round - 1).max(0)].map(|it: i32| it.to_string()).contains(&text), "{round}: {text}");
        sandbox.write("data/x", format!("{round}"));
        sandbox.ok("add data");
    }
}

#[test]
fn pulls_and_checkouts_at_once_bring_everything() {
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
        for (args, ran) in at_once(&sandbox, &clone, &commands) {
            // A checkout before the content is here says so, and one beside another may be in its way.
            let may = if args == "checkout" { &[0, 3, 4][..] } else { &[0, 4] };
            assert!(may.contains(&ran.code), "round {round}: {args}: {} {}", ran.code, ran.err);
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
fn runs_of_one_stage_at_once_are_one_run() {
    let sandbox = Sandbox::new();
    sandbox.write("in", "x");
    let runs = sandbox.root().join("runs");
    let command = format!("echo run >> {}; sleep 0.2; cat in > out", runs.display());
    sandbox.write("mlx.toml", format!("[stage.a]\ncmd = '{command}'\ndeps = ['in']\nouts = ['out']\n"));
    for (args, ran) in at_once(&sandbox, &sandbox.repo, &["repro"; 6]) {
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    }
    assert_eq!(fs::read_to_string(runs).unwrap(), "run\n");
    assert_eq!(sandbox.json("status")["clean"], true);
    is_whole(&sandbox, "after six runs");
}

/// Most of each pack is needed no more, so each gc rewrites and removes packs under the eyes of whoever checks.
#[test]
fn a_check_beside_adds_and_a_gc_that_rewrites_packs_finds_nothing_wrong() {
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
        // What the last pointer named is given up, and freed at once, while it is checked.
        fs::remove_file(sandbox.repo.join("data/f0")).unwrap();
        let commands = ["fsck", "fsck", "add data", SWEEP, "fsck", "fsck", SWEEP, "fsck", "du", "status"];
        for (args, ran) in at_once(&sandbox, &sandbox.repo, &commands) {
            assert_eq!(ran.code, 0, "round {round}: {args}: {}{}", ran.out, ran.err);
        }
    }
    is_whole(&sandbox, "at the end");
}

fn packs(sandbox: &Sandbox) -> Vec<PathBuf> {
    fs::read_dir(sandbox.repo.join(".git/mlx/packs")).unwrap().map(|it| it.unwrap().path()).collect()
}

/// Waits until it is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A gc that has decided what goes waits for its gate; meanwhile somebody names what it was about to take.
#[test]
fn what_is_named_after_a_gc_has_decided_stays() {
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
        let gc = spawn(&sandbox, &sandbox.repo, SWEEP);
        until("it moved nothing out", || {
            packs(&sandbox).iter().filter(|it| is_index(it)).count() * 2 > before
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
        let ran = ended(gc.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.err);
        sandbox.ok("checkout");
        assert_eq!(sandbox.read("old/f19"), "19 ".repeat(20));
        is_whole(&sandbox, "after the gc");
    }
}

fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "idx")
}

/// Makes everything in the store as old as a month.
fn age(folder: &Path) {
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
fn what_a_log_of_git_alone_names_stays_for_the_grace_period() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "first");
    sandbox.ok("add a");
    sandbox.commit("one");
    sandbox.write("a", "second");
    sandbox.ok("add a");
    // Git's own log goes by the clock that it is given.
    let mut commit = sandbox.command("git", &sandbox.repo);
    commit.env_remove("GIT_COMMITTER_DATE").env_remove("GIT_AUTHOR_DATE");
    assert!(commit.args(["commit", "-q", "-a", "-m", "two"]).status().unwrap().success());
    let mut reset = sandbox.command("git", &sandbox.repo);
    reset.env_remove("GIT_COMMITTER_DATE");
    assert!(reset.args(["reset", "-q", "--hard", "HEAD~1"]).status().unwrap().success());
    sandbox.ok("checkout --force");
    sandbox.git("update-ref -d ORIG_HEAD");
    age(&sandbox.repo.join(".git/mlx"));
    assert_eq!(sandbox.json("gc --yes")["freed"]["contents"]["count"], 0);
    sandbox.git("reset -q --hard HEAD@{1}");
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("a"), "second");
    sandbox.git("reset -q --hard HEAD~1");
    sandbox.ok("checkout");
    sandbox.git("update-ref -d ORIG_HEAD");
    age(&sandbox.repo.join(".git/mlx"));
    assert_eq!(sandbox.json(SWEEP)["freed"]["contents"]["count"], 1, "with no grace the log counts no more");
}

#[test]
fn experiments_and_every_other_name_of_git_keep_what_they_lead_to() {
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
    }
    sandbox.git("update-ref -d ORIG_HEAD");
    sandbox.ok("checkout");
    assert_eq!(sandbox.json(SWEEP)["freed"]["contents"]["count"], 0);
    for name in names {
        sandbox.ok(&format!("checkout --rev {name}"));
        assert_eq!(sandbox.read("a"), name);
        sandbox.ok("checkout");
    }
}

/// Changes the places of a folder and of a link out of the repository, as fast as it can, while `act` runs.
fn while_flipping(sandbox: &Sandbox, act: impl Fn(&Sandbox)) -> u64 {
    let (one, two) = (sandbox.repo.join("data/d"), sandbox.repo.join("spare"));
    let (over, flips) = (AtomicBool::new(false), AtomicU64::new(0));
    for _ in 0..3 {
        for path in [&one, &two] {
            let _none = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
        }
        fs::create_dir_all(&one).unwrap();
        for name in (0..150).map(|at| format!("f{at}")).chain(["precious".to_owned()]) {
            fs::write(one.join(&name), format!("edited {name}")).unwrap();
        }
        symlink(sandbox.root().join("outside"), &two).unwrap();
        over.store(false, Ordering::SeqCst);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let flip = renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE);
                    flips.fetch_add(u64::from(flip.is_ok()), Ordering::SeqCst);
                }
            });
            act(sandbox);
            over.store(true, Ordering::SeqCst);
        });
    }
    flips.into_inner()
}

fn flipped() -> (Sandbox, Vec<String>) {
    let sandbox = victim();
    for at in 0..150 {
        sandbox.write(&format!("data/d/f{at}"), format!("content {at}"));
    }
    // These stand outside, too.
    sandbox.write("data/d/precious", "ours");
    sandbox.ok("add data");
    let before = outside(&sandbox);
    (sandbox, before)
}

/// Whatever a command makes of it, it does not end in a panic.
fn ends(sandbox: &Sandbox, args: &str) {
    let ran = sandbox.mlx(args);
    assert!((0..8).contains(&ran.code) && !ran.err.contains("panicked"), "{args}: {}", ran.err);
}

#[test]
fn a_link_swapped_in_while_checkout_writes_leads_nowhere() {
    let (sandbox, before) = flipped();
    let flips = while_flipping(&sandbox, |it| ends(it, "checkout --force"));
    assert!(flips > 1000, "only {flips} flips");
    assert_eq!(outside(&sandbox), before);
}

#[test]
fn a_link_swapped_in_while_files_are_removed_leads_nowhere() {
    let (sandbox, before) = flipped();
    let pointer = sandbox.read("data.mlx");
    let flips = while_flipping(&sandbox, |it| {
        it.write("data.mlx", &pointer);
        ends(it, "remove --data --force data");
    });
    assert!(flips > 1000, "only {flips} flips");
    assert_eq!(outside(&sandbox), before);
}

#[test]
fn a_link_swapped_in_while_add_reads_gives_nothing_away() {
    let (sandbox, _) = flipped();
    let secrets = (0..40).map(|at| format!("secret {at}")).collect::<Vec<_>>();
    for (at, secret) in secrets.iter().enumerate() {
        fs::write(sandbox.root().join(format!("outside/f{at}")), secret).unwrap();
    }
    let flips = while_flipping(&sandbox, |it| {
        ends(it, "add data");
        ends(it, "status");
    });
    assert!(flips > 1000, "only {flips} flips");
    let store = Store::open(Root::open(&sandbox.repo.join(".git/mlx")).unwrap()).unwrap();
    assert!(secrets.iter().all(|it| !store.contains(&Digest::of(it.as_bytes()))));
}
