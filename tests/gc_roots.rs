//! Tests that `mlx gc` keeps everything that Git refers to, in each state a repository can be in.

use std::{fs, path::Path};

use crate::sandbox::{Sandbox, command_result};

pub const GC_NOW: &str = "gc --grace 0s --yes";

/// Stores a text as `a`. Returns the text of its pointer.
fn add(sandbox: &Sandbox, text: &str) -> String {
    forget_bases(sandbox);
    sandbox.write("a", text);
    sandbox.ok("add a");
    forget_bases(sandbox);
    sandbox.read("a.mlx")
}

/// Removes the worktree's bases: what it last had counts as needed, and a pointer that Git moved as changed
/// by others.
pub fn forget_bases(sandbox: &Sandbox) {
    remove_any(&sandbox.repo.join(".git/mlx/base"));
}

/// Runs Git with any exit code: a conflict is not a failure here.
fn try_git(sandbox: &Sandbox, args: &str) {
    drop(sandbox.command("git", &sandbox.repo).args(args.split_whitespace()).output().unwrap());
}

pub fn remove_any(path: &Path) {
    let _none = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Returns true if the content of a pointer is stored. The check itself does not keep the content alive.
fn is_stored(sandbox: &Sandbox, pointer: &str, text: &str) -> bool {
    let before = sandbox.read("a.mlx");
    sandbox.write("a.mlx", pointer);
    remove_any(&sandbox.repo.join("a"));
    let ran = sandbox.mlx("checkout --force a");
    let stored = ran.code == 0 && sandbox.read("a") == text;
    sandbox.write("a.mlx", before);
    forget_bases(sandbox);
    stored
}

/// Creates three commits, with the contents `0`, `1` and `2`; the last is checked out.
fn three_commits(sandbox: &Sandbox) {
    for text in ["0", "1", "2"] {
        add(sandbox, text);
        sandbox.commit(text);
    }
}

/// Brings a sandbox into a state in which only that state refers to the content `needed`, and returns its
/// pointer.
type State = fn(&Sandbox) -> String;

const STATES: [(&str, State); 17] = [
    ("a commit on a detached HEAD", |sandbox| {
        sandbox.git("checkout -q --detach");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        pointer
    }),
    ("a staged pointer, on a branch without a commit", |sandbox| {
        sandbox.git("checkout -q --orphan fresh");
        let pointer = add(sandbox, "needed");
        sandbox.git("add a.mlx");
        add(sandbox, "2");
        pointer
    }),
    ("packed refs", |sandbox| {
        sandbox.git("checkout -q -b side");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("checkout -q main");
        sandbox.git("pack-refs --all");
        pointer
    }),
    ("a tag of a tag", |sandbox| {
        sandbox.git("checkout -q --detach");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("tag -a -m inner inner");
        sandbox.git("tag -a -m outer outer inner");
        sandbox.git("tag -d inner");
        sandbox.git("checkout -q main");
        pointer
    }),
    ("a remote-tracking branch", |sandbox| {
        sandbox.git("checkout -q --detach");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("update-ref refs/remotes/origin/x HEAD");
        sandbox.git("checkout -q main");
        pointer
    }),
    ("a conflict between two branches", |sandbox| {
        sandbox.git("checkout -q -b side HEAD~1");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("checkout -q main");
        try_git(sandbox, "merge side");
        sandbox.git("branch -q -D side");
        sandbox.git("checkout -q --ours a.mlx");
        pointer
    }),
    ("the other branch of a merge in progress", |sandbox| {
        sandbox.git("checkout -q -b side");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("checkout -q main");
        sandbox.git("merge -q --no-commit --no-ff side");
        sandbox.git("branch -q -D side");
        sandbox.git("checkout -q HEAD -- a.mlx");
        pointer
    }),
    ("the autostash of a rebase in progress", |sandbox| {
        sandbox.git("checkout -q -b side HEAD~1");
        sandbox.write("f", "side");
        sandbox.commit("side");
        let pointer = add(sandbox, "needed");
        try_git(sandbox, "-c rebase.autoStash=true -c sequence.editor=false rebase --exec false main");
        assert!(sandbox.has(".git/rebase-merge/autostash"));
        pointer
    }),
    ("the commits that a rebase has not picked yet", |sandbox| {
        sandbox.git("checkout -q -b side HEAD~1");
        add(sandbox, "side");
        sandbox.commit("side");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        try_git(sandbox, "rebase main");
        sandbox.git("checkout -q --ours a.mlx");
        // Git refuses to delete this branch, but users can delete its file.
        fs::remove_file(sandbox.repo.join(".git/refs/heads/side")).unwrap();
        fs::remove_file(sandbox.repo.join(".git/rebase-merge/orig-head")).unwrap();
        fs::remove_file(sandbox.repo.join(".git/ORIG_HEAD")).unwrap();
        pointer
    }),
    ("the commits that a cherry-pick has not picked yet", |sandbox| {
        sandbox.git("checkout -q -b side HEAD~1");
        add(sandbox, "side");
        sandbox.commit("side");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("checkout -q main");
        try_git(sandbox, "cherry-pick side~1 side");
        sandbox.git("branch -q -D side");
        sandbox.git("checkout -q --ours a.mlx");
        pointer
    }),
    ("a commit that is being reverted", |sandbox| {
        sandbox.git("checkout -q --detach");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("checkout -q main");
        sandbox.git("update-ref REVERT_HEAD HEAD@{1}");
        pointer
    }),
    ("a bisection", |sandbox| {
        sandbox.git("checkout -q -b side");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("bisect start side HEAD~3");
        sandbox.git("update-ref -d refs/heads/side");
        pointer
    }),
    ("the history of a notes ref", |sandbox| {
        sandbox.git("checkout -q --detach");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("update-ref refs/notes/x HEAD");
        sandbox.git("checkout -q main");
        pointer
    }),
    ("a replacement for a commit", |sandbox| {
        sandbox.git("checkout -q --detach");
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        sandbox.git("replace main~1 HEAD");
        sandbox.git("checkout -q main");
        pointer
    }),
    ("a commit that is replaced", |sandbox| {
        let pointer = add(sandbox, "needed");
        sandbox.commit("needed");
        add(sandbox, "3");
        sandbox.commit("three");
        sandbox.git("replace main~1 main");
        pointer
    }),
    ("a replacement for a pointer", |sandbox| {
        let pointer = add(sandbox, "needed");
        sandbox.git("add a.mlx");
        sandbox.git("replace main~1:a.mlx :a.mlx");
        add(sandbox, "3");
        sandbox.git("add a.mlx");
        pointer
    }),
    ("a tree that a ref names", |sandbox| {
        let pointer = add(sandbox, "needed");
        sandbox.git("add a.mlx");
        let tree = sandbox.git("write-tree");
        sandbox.git(&format!("update-ref refs/trees/x {}", tree.trim()));
        sandbox.git("checkout -q HEAD -- a.mlx");
        pointer
    }),
];

/// A namespace hides the other refs from those who are served, and a hook of Git has an index of its own: gc
/// reads what Git's own gc reads.
#[test]
fn environment_variables_of_git_hide_nothing_from_gc() {
    for variable in [("GIT_NAMESPACE", "x"), ("GIT_INDEX_FILE", ".git/other")] {
        let sandbox = Sandbox::new();
        three_commits(&sandbox);
        let committed = add(&sandbox, "committed");
        sandbox.commit("committed");
        let staged = add(&sandbox, "staged");
        sandbox.git("add a.mlx");
        let garbage = add(&sandbox, "unneeded");
        add(&sandbox, "2");
        let mut gc = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        let swept = command_result(gc.args(GC_NOW.split(' ')).env(variable.0, variable.1).output().unwrap());
        assert_eq!(swept.code, 0, "{variable:?}: {}", swept.err);
        assert!(is_stored(&sandbox, &committed, "committed"), "{variable:?}");
        assert!(is_stored(&sandbox, &staged, "staged"), "{variable:?}");
        assert!(!is_stored(&sandbox, &garbage, "unneeded"), "{variable:?}");
    }
}

#[test]
fn gc_keeps_objects_reachable_in_every_state_of_git() {
    for (name, state) in STATES {
        let sandbox = Sandbox::new();
        three_commits(&sandbox);
        let garbage = add(&sandbox, "unneeded");
        add(&sandbox, "2");
        let pointer = state(&sandbox);
        let swept = sandbox.mlx(GC_NOW);
        assert_eq!(swept.code, 0, "{name}: {}", swept.err);
        // Nothing is checked out while the pointer is in conflict.
        try_git(&sandbox, "reset -q -- a.mlx");
        assert!(is_stored(&sandbox, &pointer, "needed"), "{name}");
        assert!(!is_stored(&sandbox, &garbage, "unneeded"), "{name}");
    }
}

/// Users may want to restore a version that was checked out within the grace period.
#[test]
fn objects_in_the_reflog_are_kept_for_the_grace_period() {
    let sandbox = Sandbox::new();
    three_commits(&sandbox);
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
    sandbox.ok(GC_NOW);
    assert!(!is_stored(&sandbox, &pointer, "needed"));
}

#[test]
fn a_moved_worktree_stops_gc_until_git_repairs_it() {
    let sandbox = Sandbox::new();
    three_commits(&sandbox);
    let (old, new) = (sandbox.root().join("old"), sandbox.root().join("new"));
    sandbox.git(&format!("worktree add -q --detach {}", old.display()));
    fs::write(old.join("b"), "needed").unwrap();
    sandbox.at(&old).ok("add b");
    fs::rename(&old, &new).unwrap();
    let error = sandbox.fails(GC_NOW, 7);
    assert!(error.contains("is missing") && error.contains("git worktree repair"), "{error}");
    sandbox.ok("fsck");
    sandbox.ok("du");
    sandbox.git(&format!("worktree repair {}", new.display()));
    sandbox.ok(GC_NOW);
    fs::remove_file(new.join("b")).unwrap();
    sandbox.at(&new).ok("checkout b");
    fs::remove_dir_all(&new).unwrap();
    sandbox.git("worktree prune");
    assert_eq!(sandbox.json(GC_NOW)["freed"]["contents"]["count"], 1);
}

#[test]
fn gc_in_a_shallow_clone_keeps_its_objects() {
    let sandbox = Sandbox::new();
    three_commits(&sandbox);
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q --depth 1 file://{} {}", sandbox.repo.display(), clone.display()));
    let shallow = sandbox.at(&clone);
    fs::write(clone.join("b"), "b").unwrap();
    shallow.ok("add b");
    assert_eq!(shallow.json(GC_NOW)["freed"]["total"]["count"], 0);
    fs::remove_file(clone.join("b")).unwrap();
    shallow.ok("checkout b");
}

#[test]
fn an_mlx_file_that_is_not_a_pointer_neither_stops_gc_nor_keeps_objects() {
    let sandbox = Sandbox::new();
    sandbox.write("view.mlx", "let view = <div class=\"x\" />\n");
    sandbox.write("filter.mlx", "<!DOCTYPE FilterScript>\n<FilterScript/>\n");
    sandbox.write("live.mlx", b"PK\x03\x04\x00\x00");
    three_commits(&sandbox);
    fs::remove_file(sandbox.repo.join("filter.mlx")).unwrap();
    sandbox.commit("gone");
    add(&sandbox, "unneeded");
    sandbox.git("checkout -q a.mlx");
    let swept = sandbox.mlx(GC_NOW);
    assert_eq!(swept.code, 0, "{}", swept.err);
    let lines: Vec<_> = swept.err.lines().filter(|it| it.contains("is not a pointer")).collect();
    assert_eq!(lines.len(), 3, "{}", swept.err);
    assert!(lines[0].contains("`filter.mlx` ends in .mlx but is not a pointer; it keeps nothing alive"));
    assert_eq!(sandbox.json(GC_NOW)["freed"]["total"]["count"], 0);
    assert_eq!(sandbox.json("fsck")["unreadable"], serde_json::json!([]));
    sandbox.ok("status");
}

/// A commit cannot be repaired, so both sides of a pointer with conflict markers are kept.
#[test]
fn a_pointer_with_conflict_markers_in_a_commit_keeps_both_sides() {
    let sandbox = Sandbox::new();
    three_commits(&sandbox);
    let (ours, theirs) = (add(&sandbox, "ours"), add(&sandbox, "theirs"));
    sandbox.write("a.mlx", format!("<<<<<<< HEAD\n{ours}=======\n{theirs}>>>>>>> x\n"));
    sandbox.commit("broken");
    let error = sandbox.fails(GC_NOW, 4);
    assert!(error.contains("nothing was freed") && error.contains("a.mlx`"), "{error}");
    sandbox.git("checkout -q HEAD~1 -- a.mlx");
    let garbage = add(&sandbox, "unneeded");
    add(&sandbox, "2");
    sandbox.commit("repaired");
    let swept = sandbox.mlx(GC_NOW);
    assert_eq!(swept.code, 0, "{}", swept.err);
    assert!(swept.err.contains("`a.mlx` at ") && swept.err.contains("are kept"), "{}", swept.err);
    assert!(is_stored(&sandbox, &ours, "ours") && is_stored(&sandbox, &theirs, "theirs"));
    assert!(!is_stored(&sandbox, &garbage, "unneeded"));
    assert!(sandbox.json("fsck")["unreadable"][0]["why"].as_str().unwrap().contains("is in conflict"));
}

#[test]
fn a_truncated_pointer_or_one_of_a_newer_mlx_stops_gc() {
    let sandbox = Sandbox::new();
    three_commits(&sandbox);
    for truncated in ["", "digest = \"b3:12", "\0\0\0\0\0"] {
        sandbox.write("a.mlx", truncated);
        assert!(sandbox.fails(GC_NOW, 5).contains("nothing was freed"), "{truncated:?}");
    }
    let pointer = add(&sandbox, "2");
    sandbox.write("a.mlx", pointer.replace("format = 1", "format = 2"));
    sandbox.commit("newer");
    sandbox.git("checkout -q HEAD~1 -- a.mlx");
    let error = sandbox.fails(GC_NOW, 5);
    assert!(error.contains("newer mlx") && error.contains("upgrade mlx"), "{error}");
}

/// Read as loose or packed refs, a reftable would seem to hold none, and all objects would seem unneeded.
#[test]
fn a_repository_with_a_reftable_is_refused() {
    let sandbox = Sandbox::empty();
    let mut init = sandbox.command("git", &sandbox.repo);
    if !init.args(["init", "-q", "--ref-format=reftable"]).output().unwrap().status.success() {
        return crate::sandbox::skip("a_repository_with_a_reftable_is_refused", "this Git cannot create one");
    }
    for args in ["init", GC_NOW] {
        let error = sandbox.fails(args, 2);
        assert!(error.contains("in a table") && error.contains("git refs migrate"), "{error}");
    }
}
