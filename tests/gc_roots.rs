//! What a gc must see: every state that Git can be in, and every moment of a command beside it.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crate::{
    crash_safety::command,
    sandbox::{Ran, Sandbox, ended},
};

const NOW: &str = "gc --grace 0s --yes";

/// Stores a text as `a`; its pointer's text.
fn add(sandbox: &Sandbox, text: &str) -> String {
    sandbox.write("a", text);
    sandbox.ok("add a");
    sandbox.read("a.mlx")
}

/// Runs Git, whatever comes of it: a conflict is no failure here.
fn git(sandbox: &Sandbox, args: &str) {
    let words = args.split_whitespace().map(str::to_owned);
    drop(sandbox.command("git", &sandbox.repo).args(words).output().unwrap());
}

/// Whether the content of a pointer is in the store, seen by nothing that decides what is kept.
fn is_stored(sandbox: &Sandbox, pointer: &str, text: &str) -> bool {
    let before = sandbox.read("a.mlx");
    sandbox.write("a.mlx", pointer);
    remove(&sandbox.repo.join("a"));
    let ran = sandbox.mlx("checkout --force a");
    let there = ran.code == 0 && sandbox.read("a") == text;
    sandbox.write("a.mlx", before);
    there
}

/// Three commits, with the contents `0`, `1` and `2`; the last is checked out.
fn three(sandbox: &Sandbox) {
    for text in ["0", "1", "2"] {
        add(sandbox, text);
        sandbox.commit(text);
    }
}

/// Brings a sandbox into a state in which nothing but that state needs the content `needed`; its pointer.
type State = fn(&Sandbox) -> String;

const STATES: [(&str, State); 14] = [
    ("a commit on a detached HEAD", |it| {
        it.git("checkout -q --detach");
        let pointer = add(it, "needed");
        it.commit("needed");
        pointer
    }),
    ("staged alone, on a branch without a commit", |it| {
        it.git("checkout -q --orphan fresh");
        let pointer = add(it, "needed");
        it.git("add a.mlx");
        add(it, "2");
        pointer
    }),
    ("packed names", |it| {
        it.git("checkout -q -b side");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("checkout -q main");
        it.git("pack-refs --all");
        pointer
    }),
    ("a tag of a tag", |it| {
        it.git("checkout -q --detach");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("tag -a -m inner inner");
        it.git("tag -a -m outer outer inner");
        it.git("tag -d inner");
        it.git("checkout -q main");
        pointer
    }),
    ("a remote's branch, as it was fetched", |it| {
        it.git("checkout -q --detach");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("update-ref refs/remotes/origin/x HEAD");
        it.git("checkout -q main");
        pointer
    }),
    ("a conflict between two branches", |it| {
        it.git("checkout -q -b side HEAD~1");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("checkout -q main");
        git(it, "merge side");
        it.git("branch -q -D side");
        it.git("checkout -q --ours a.mlx");
        pointer
    }),
    ("a branch that a merge in progress brings", |it| {
        it.git("checkout -q -b side");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("checkout -q main");
        it.git("merge -q --no-commit --no-ff side");
        it.git("branch -q -D side");
        it.git("checkout -q HEAD -- a.mlx");
        pointer
    }),
    ("what a rebase in progress has set aside", |it| {
        it.git("checkout -q -b side HEAD~1");
        it.write("f", "side");
        it.commit("side");
        let pointer = add(it, "needed");
        git(it, "-c rebase.autoStash=true -c sequence.editor=false rebase --exec false main");
        assert!(it.has(".git/rebase-merge/autostash"));
        pointer
    }),
    ("the commits that a rebase has still to pick", |it| {
        it.git("checkout -q -b side HEAD~1");
        add(it, "side");
        it.commit("side");
        let pointer = add(it, "needed");
        it.commit("needed");
        git(it, "rebase main");
        it.git("checkout -q --ours a.mlx");
        // Git refuses to; users have their ways.
        fs::remove_file(it.repo.join(".git/refs/heads/side")).unwrap();
        fs::remove_file(it.repo.join(".git/rebase-merge/orig-head")).unwrap();
        fs::remove_file(it.repo.join(".git/ORIG_HEAD")).unwrap();
        pointer
    }),
    ("the commits that are still to be picked", |it| {
        it.git("checkout -q -b side HEAD~1");
        add(it, "side");
        it.commit("side");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("checkout -q main");
        git(it, "cherry-pick side~1 side");
        it.git("branch -q -D side");
        it.git("checkout -q --ours a.mlx");
        pointer
    }),
    ("a commit that is reverted", |it| {
        it.git("checkout -q --detach");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("checkout -q main");
        it.git("update-ref REVERT_HEAD HEAD@{1}");
        pointer
    }),
    ("a search for the bad commit", |it| {
        it.git("checkout -q -b side");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("bisect start side HEAD~3");
        it.git("update-ref -d refs/heads/side");
        pointer
    }),
    ("what a note's history holds", |it| {
        it.git("checkout -q --detach");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("update-ref refs/notes/x HEAD");
        it.git("checkout -q main");
        pointer
    }),
    ("a commit that another stands in for", |it| {
        it.git("checkout -q --detach");
        let pointer = add(it, "needed");
        it.commit("needed");
        it.git("replace main~1 HEAD");
        it.git("checkout -q main");
        pointer
    }),
];

#[test]
fn whatever_state_git_is_in_what_it_leads_to_is_kept() {
    for (name, state) in STATES {
        let sandbox = Sandbox::new();
        three(&sandbox);
        let pointer = state(&sandbox);
        let before = sandbox.read("a.mlx");
        let garbage = add(&sandbox, "nobody needs this");
        sandbox.write("a.mlx", before);
        let swept = sandbox.mlx(NOW);
        assert_eq!(swept.code, 0, "{name}: {}", swept.err);
        assert!(is_stored(&sandbox, &pointer, "needed"), "{name}");
        assert!(!is_stored(&sandbox, &garbage, "nobody needs this"), "{name}");
    }
}

/// What was checked out for the last time within the grace period may be wanted back.
#[test]
fn what_a_log_of_git_names_is_kept_for_the_grace_period() {
    let sandbox = Sandbox::new();
    three(&sandbox);
    let pointer = add(&sandbox, "needed");
    sandbox.git("add -A");
    let mut commit = sandbox.command("git", &sandbox.repo);
    commit.env_remove("GIT_COMMITTER_DATE").args(["commit", "-q", "-m", "needed"]);
    assert!(commit.status().unwrap().success());
    sandbox.git("reset -q --hard HEAD~1");
    let packs = sandbox.repo.join(".git/mlx/packs");
    let mut touch = sandbox.command("sh", &packs);
    assert!(touch.args(["-c", "touch -d '40 days ago' *"]).status().unwrap().success());
    sandbox.ok("gc --yes");
    assert!(is_stored(&sandbox, &pointer, "needed"));
    fs::remove_file(sandbox.repo.join(".git/ORIG_HEAD")).unwrap();
    sandbox.ok(NOW);
    assert!(!is_stored(&sandbox, &pointer, "needed"));
}

#[test]
fn a_worktree_that_was_moved_stops_it_until_git_knows_where_it_is() {
    let sandbox = Sandbox::new();
    three(&sandbox);
    let (old, new) = (sandbox.root().join("old"), sandbox.root().join("new"));
    sandbox.git(&format!("worktree add -q --detach {}", old.display()));
    fs::write(old.join("b"), "needed").unwrap();
    sandbox.at(&old).ok("add b");
    fs::rename(&old, &new).unwrap();
    let error = sandbox.fails(NOW, 7);
    assert!(error.contains("is missing") && error.contains("git worktree repair"), "{error}");
    sandbox.ok("fsck");
    sandbox.ok("du");
    sandbox.git(&format!("worktree repair {}", new.display()));
    sandbox.ok(NOW);
    fs::remove_file(new.join("b")).unwrap();
    sandbox.at(&new).ok("checkout b");
    fs::remove_dir_all(&new).unwrap();
    sandbox.git("worktree prune");
    assert_eq!(sandbox.json(NOW)["freed"]["contents"]["count"], 1);
}

#[test]
fn a_clone_whose_history_is_cut_off_keeps_what_it_has() {
    let sandbox = Sandbox::new();
    three(&sandbox);
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q --depth 1 file://{} {}", sandbox.repo.display(), clone.display()));
    let elsewhere = sandbox.at(&clone);
    fs::write(clone.join("b"), "b").unwrap();
    elsewhere.ok("add b");
    assert_eq!(elsewhere.json(NOW)["freed"]["total"]["count"], 0);
    fs::remove_file(clone.join("b")).unwrap();
    elsewhere.ok("checkout b");
}

#[test]
fn a_file_that_is_no_pointer_stops_nothing_and_keeps_nothing() {
    let sandbox = Sandbox::new();
    sandbox.write("view.mlx", "let view = <div class=\"x\" />\n");
    sandbox.write("filter.mlx", "<!DOCTYPE FilterScript>\n<FilterScript/>\n");
    sandbox.write("live.mlx", b"PK\x03\x04\x00\x00");
    three(&sandbox);
    fs::remove_file(sandbox.repo.join("filter.mlx")).unwrap();
    sandbox.commit("gone");
    add(&sandbox, "nobody needs this");
    sandbox.git("checkout -q a.mlx");
    let swept = sandbox.mlx(NOW);
    assert_eq!(swept.code, 0, "{}", swept.err);
    let lines: Vec<_> = swept.err.lines().filter(|it| it.contains("is none")).collect();
    assert_eq!(lines.len(), 3, "{}", swept.err);
    assert!(lines[0].contains("`filter.mlx` ends in .mlx but is not a pointer; it keeps nothing alive"));
    assert_eq!(sandbox.json(NOW)["freed"]["total"]["count"], 0);
    assert_eq!(sandbox.json("fsck")["unreadable"], serde_json::json!([]));
    sandbox.ok("status");
}

/// Nobody can mend a commit: what is written in a pointer that has the marks of a conflict is kept, on both sides.
#[test]
fn a_broken_pointer_in_a_commit_keeps_what_is_written_in_it() {
    let sandbox = Sandbox::new();
    three(&sandbox);
    let (ours, theirs) = (add(&sandbox, "ours"), add(&sandbox, "theirs"));
    sandbox.write("a.mlx", format!("<<<<<<< HEAD\n{ours}=======\n{theirs}>>>>>>> x\n"));
    sandbox.commit("broken");
    let error = sandbox.fails(NOW, 5);
    assert!(error.contains("nothing was freed") && error.contains("a.mlx`"), "{error}");
    let garbage = add(&sandbox, "nobody needs this");
    add(&sandbox, "2");
    sandbox.commit("mended");
    let swept = sandbox.mlx(NOW);
    assert_eq!(swept.code, 0, "{}", swept.err);
    assert!(swept.err.contains("`a.mlx` at ") && swept.err.contains("are kept"), "{}", swept.err);
    assert!(is_stored(&sandbox, &ours, "ours") && is_stored(&sandbox, &theirs, "theirs"));
    assert!(!is_stored(&sandbox, &garbage, "nobody needs this"));
    assert!(sandbox.json("fsck")["unreadable"][0]["why"].as_str().unwrap().contains("merge-conflict"));
}

#[test]
fn a_pointer_of_a_newer_mlx_or_one_that_was_cut_off_stops_it() {
    let sandbox = Sandbox::new();
    three(&sandbox);
    for torn in ["", "digest = \"b3:12", "\0\0\0\0\0"] {
        sandbox.write("a.mlx", torn);
        assert!(sandbox.fails(NOW, 5).contains("nothing was freed"), "{torn:?}");
    }
    let pointer = add(&sandbox, "2");
    sandbox.write("a.mlx", pointer.replace("format = 1", "format = 2"));
    sandbox.commit("newer");
    sandbox.git("checkout -q HEAD~1 -- a.mlx");
    let error = sandbox.fails(NOW, 5);
    assert!(error.contains("newer mlx") && error.contains("upgrade mlx"), "{error}");
}

/// Read as files they would seem to be none, and all that they lead to would seem to be garbage.
#[test]
fn references_in_a_table_are_refused() {
    let sandbox = Sandbox::bare();
    let mut init = sandbox.command("git", &sandbox.repo);
    if !init.args(["init", "-q", "--ref-format=reftable"]).output().unwrap().status.success() {
        return crate::sandbox::skip("references_in_a_table", "this Git makes none");
    }
    for args in ["init", NOW] {
        let error = sandbox.fails(args, 2);
        assert!(error.contains("in a table") && error.contains("git refs migrate"), "{error}");
    }
}

/// Starts a command that halts at its n-th disk operation; whether it got there.
fn halted(sandbox: &Sandbox, args: &str, at: u64) -> (Child, bool) {
    let mut command = command(sandbox, args);
    command.env("MLX_FAULT", format!("stop:{at}")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        assert!(Instant::now() < deadline, "{args} hangs");
        let halts =
            fs::read_to_string(&stat).is_ok_and(|it| it.rsplit(") ").next().unwrap().starts_with('T'));
        if halts || child.try_wait().unwrap().is_some() {
            return (child, halts);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn go_on(sandbox: &Sandbox, child: Child) -> Ran {
    let mut kill = sandbox.command("kill", &sandbox.repo);
    assert!(kill.args(["-CONT", &child.id().to_string()]).status().unwrap().success());
    ended(child.wait_with_output().unwrap())
}

/// A signal of a user, a terminal or a machine that goes down ends a command where it is, told by its status, and loses
/// nothing; the same again finishes the work.
#[test]
fn signals_end_a_command_anywhere_and_lose_nothing() {
    let sandbox = Sandbox::new();
    for (turn, (name, number)) in [("INT", 2), ("TERM", 15), ("HUP", 1)].into_iter().enumerate() {
        for at in [5, 25, 45] {
            sandbox.write("data/a", format!("{name} {at} {turn}"));
            let (mut child, halts) = halted(&sandbox, "add data", at);
            assert!(halts, "{name} {at}");
            for signal in [name, name, "CONT"] {
                let mut kill = sandbox.command("kill", &sandbox.repo);
                // The second may find it gone.
                drop(kill.args([&format!("-{signal}"), &child.id().to_string()]).output().unwrap());
            }
            let status = child.wait().unwrap();
            let told = status.signal().or(status.code().map(|it| it - 128));
            assert_eq!(told, Some(number), "{name} {at}: {status}");
            let checked = sandbox.json("fsck");
            assert_eq!(
                (&checked["damaged"], &checked["faults"]),
                (&serde_json::json!([]), &serde_json::json!([])),
                "{name} {at}"
            );
            sandbox.ok("add data");
            assert_eq!(sandbox.json("status")["clean"], true, "{name} {at}");
        }
    }
}

/// Runs a gc while another command stands still between two disk operations, at every `step`-th of them: the command
/// must end as if it had been alone.
fn a_gc_may_come_at_any_moment(
    args: &str,
    step: u64,
    prepare: &dyn Fn(&Sandbox),
    check: &dyn Fn(&Sandbox, &str),
) {
    let sandbox = Sandbox::new();
    let remote = sandbox.root().join("remote");
    fs::create_dir(&remote).unwrap();
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    let mut at = 1;
    loop {
        prepare(&sandbox);
        let (child, halts) = halted(&sandbox, args, at);
        if !halts {
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0), "{args}");
            break;
        }
        let mut gc = command(&sandbox, NOW).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Where the command stands in the store's gate, the gc waits for it.
        let deadline = Instant::now() + Duration::from_millis(1500);
        while gc.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let ran = go_on(&sandbox, child);
        let swept = ended(gc.wait_with_output().unwrap());
        assert_eq!((ran.code, swept.code), (0, 0), "{args} at {at}: {}{}", ran.err, swept.err);
        check(&sandbox, &format!("{args} at {at}"));
        at += step;
    }
    assert!(at > 10, "{args} passes too few fault points");
}

/// Every how many operations: all of them when told so (`MLX_EVERY=1`), a sample of them otherwise.
fn step(default: u64) -> u64 {
    std::env::var("MLX_EVERY").map_or(default, |it| it.parse().unwrap())
}

fn remove(path: &Path) {
    let _none = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

fn fill(sandbox: &Sandbox) {
    for at in 0..4 {
        sandbox.write(&format!("data/f{at}"), format!("{at} ").repeat(20));
    }
    sandbox.write("data/large", vec![7_u8; 1_100_000]);
}

/// Everything is stored, and nothing needs it.
fn forgotten(sandbox: &Sandbox) {
    fill(sandbox);
    sandbox.ok("add data");
    remove(&sandbox.repo.join("data.mlx"));
}

fn is_whole(sandbox: &Sandbox, what: &str) {
    for (key, value) in sandbox.json("fsck").as_object().unwrap() {
        let empty =
            !matches!(key.as_str(), "damaged" | "faults" | "unreadable") || value == &serde_json::json!([]);
        assert!(empty, "{what}: {key} {value}");
    }
    remove(&sandbox.repo.join("data"));
    sandbox.ok("checkout");
    assert_eq!(sandbox.read("data/f3"), "3 ".repeat(20), "{what}");
    assert_eq!(fs::read(sandbox.repo.join("data/large")).unwrap().len(), 1_100_000, "{what}");
}

#[test]
fn a_gc_at_any_moment_of_an_add_takes_nothing_from_it() {
    a_gc_may_come_at_any_moment("add data", step(17), &forgotten, &is_whole);
}

#[test]
fn a_gc_at_any_moment_of_a_commit_takes_nothing_from_it() {
    let prepare = |sandbox: &Sandbox| {
        sandbox.write(
            "mlx.toml",
            "[stage.s]\ncmd = 'cp params.toml o'\nparams = ['params.toml:x']\nouts = ['o']\n",
        );
        sandbox.write("params.toml", "x = 1\n");
        sandbox.ok("repro");
        fill(sandbox);
        sandbox.ok("add data");
        sandbox.write("data/f0", "new");
        sandbox.write("o", "by hand");
    };
    a_gc_may_come_at_any_moment("commit", step(17), &prepare, &is_whole);
}

#[test]
fn a_gc_at_any_moment_of_a_checkout_takes_nothing_from_it() {
    let prepare = |sandbox: &Sandbox| {
        fill(sandbox);
        sandbox.ok("add data");
        remove(&sandbox.repo.join("data"));
    };
    a_gc_may_come_at_any_moment("checkout", step(17), &prepare, &is_whole);
}

#[test]
fn a_gc_at_any_moment_of_a_pull_takes_nothing_from_it() {
    let prepare = |sandbox: &Sandbox| {
        fill(sandbox);
        sandbox.ok("add data");
        sandbox.ok("push");
        for folder in ["data", ".git/mlx/packs", ".git/mlx/objects"] {
            remove(&sandbox.repo.join(folder));
        }
    };
    a_gc_may_come_at_any_moment("pull", step(23), &prepare, &is_whole);
}

/// A stage's command runs under a guard of its own, which would stand still for ever: here chance decides.
#[test]
fn a_gc_beside_a_repro_takes_nothing_from_it() {
    let sandbox = Sandbox::new();
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'cp -r data o'\ndeps = ['data']\nouts = ['o']\n");
    for round in 0..6 {
        forgotten(&sandbox);
        sandbox.ok("add data");
        for name in ["o", "mlx.lock"] {
            remove(&sandbox.repo.join(name));
        }
        let spawn = |args: &str| {
            command(&sandbox, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        for child in [spawn("repro"), spawn(NOW), spawn("fsck --json"), spawn(NOW)] {
            let ran = ended(child.wait_with_output().unwrap());
            assert_eq!(ran.code, 0, "{round}: {}{}", ran.out, ran.err);
        }
        is_whole(&sandbox, "repro");
        remove(&sandbox.repo.join("o"));
        sandbox.ok("checkout o");
        assert_eq!(sandbox.read("o/f3"), "3 ".repeat(20));
    }
}

/// The other way round: a gc stands still, and what is added meanwhile stays.
#[test]
fn an_add_at_any_moment_of_a_gc_loses_nothing() {
    let sandbox = Sandbox::new();
    let mut at = 1;
    loop {
        forgotten(&sandbox);
        let (child, halts) = halted(&sandbox, NOW, at);
        if !halts {
            assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
            break;
        }
        let add = command(&sandbox, "add data").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut add = add.unwrap();
        // Where the gc stands in the store's gate, the add waits for it.
        let deadline = Instant::now() + Duration::from_millis(1500);
        while add.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let swept = go_on(&sandbox, child);
        let ran = ended(add.wait_with_output().unwrap());
        assert_eq!((ran.code, swept.code), (0, 0), "{at}: {}{}", ran.err, swept.err);
        is_whole(&sandbox, &format!("gc at {at}"));
        at += step(17);
    }
    assert!(at > 10, "gc passes too few fault points");
}
