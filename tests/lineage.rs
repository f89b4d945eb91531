//! Tests of `mlx lineage` in clones that lack trees of earlier commits, and where history cannot be read.

use std::{fs, path::PathBuf};

use serde_json::json;

use crate::sandbox::Sandbox;

/// Creates a repository of three commits, of which the last two change `d/x`, with a remote that has what
/// `pushes` says of each, and a clone of it.
fn clone_of_history(pushes: [bool; 3]) -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("remote add r file://{} --default", sandbox.root().join("r").display()));
    sandbox.write("d/y", "1");
    for (at, pushed) in pushes.into_iter().enumerate() {
        sandbox.write("d/x", at.to_string());
        sandbox.ok("add d");
        sandbox.commit(&format!("commit-{at}"));
        if pushed {
            sandbox.ok("push");
        }
    }
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q . {}", clone.display()));
    (sandbox, clone)
}

#[test]
fn trees_of_earlier_commits_are_fetched() {
    let (sandbox, clone) = clone_of_history([true; 3]);
    for (file, commit) in [("d/x", "commit-2"), ("d/y", "commit-0")] {
        let lineage = sandbox.at(&clone).json(&format!("lineage {file}"));
        assert_eq!(lineage["commit"]["summary"], commit, "{lineage}");
    }
}

#[test]
fn a_commit_that_no_tree_tells_is_unknown() {
    let (sandbox, clone) = clone_of_history([false, true, true]);
    let clone = sandbox.at(&clone);
    assert_eq!(clone.json("lineage d/x")["commit"]["summary"], "commit-2");
    let lineage = clone.json("lineage d/y");
    assert_eq!((&lineage["commit"], &lineage["commit_unknown"]), (&json!(null), &json!(true)), "{lineage}");
    assert_eq!(lineage["size"], 1);
    let shown = clone.mlx("lineage d/y");
    assert!(shown.code == 0 && shown.out.contains("commit unknown"), "{shown:?}");
    assert!(shown.err.contains("the commit of `d/y` is unknown: trees of earlier commits"), "{shown:?}");
    sandbox.ok("push --all-commits");
    assert_eq!(clone.json("lineage d/y")["commit"]["summary"], "commit-0");
    fs::write(clone.folder.join("z"), "").unwrap();
    assert!(clone.fails("lineage z", 3).contains("`z` is not tracked by mlx"));
}

/// Returns the file of a commit's object.
fn object_file(sandbox: &Sandbox, rev: &str) -> PathBuf {
    let id = sandbox.git(&format!("rev-parse {rev}"));
    let id = id.trim();
    sandbox.repo.join(".git/objects").join(&id[..2]).join(&id[2..])
}

/// Runs `mlx lineage` of a path; returns its exit code, the message of the commit, whether that is unknown,
/// and the error with its hint.
fn traced(sandbox: &Sandbox, path: &str) -> (i32, serde_json::Value, bool, String) {
    let ran = sandbox.mlx(&format!("lineage --json {path}"));
    let lineage: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let error = if lineage["error"].is_null() { ran.err } else { lineage["error"].to_string() };
    (ran.code, lineage["commit"]["summary"].clone(), lineage["commit_unknown"] == true, error)
}

#[test]
fn a_commit_that_cannot_be_read_is_named_and_hides_only_what_is_older() {
    let sandbox = Sandbox::new();
    sandbox.write("old", "1");
    sandbox.ok("add old");
    sandbox.commit("first");
    for number in 2..5 {
        sandbox.write("new", number.to_string());
        sandbox.ok("add new");
        sandbox.commit(&format!("commit-{number}"));
    }
    assert_eq!(traced(&sandbox, "old"), (0, json!("first"), false, String::new()));
    let object = object_file(&sandbox, "HEAD~2");
    let (id, saved) = (sandbox.git("rev-parse HEAD~2"), sandbox.root().join("saved"));
    fs::rename(&object, &saved).unwrap();
    for damage in ["missing", "damaged"] {
        if damage == "damaged" {
            fs::write(&object, "damaged").unwrap();
        }
        let (code, commit, unknown, error) = traced(&sandbox, "new");
        assert_eq!((code, commit, unknown), (5, json!("commit-4"), false), "{damage}: {error}");
        // Where the object is damaged, Git names its file.
        let named = [id.trim(), &id.trim()[2..]].iter().any(|name| error.contains(name));
        assert!(named && error.contains("check the repository with `git fsck`"), "{error}");
        let (code, commit, unknown, error) = traced(&sandbox, "old");
        assert_eq!((code, commit, unknown), (5, json!(null), true), "{damage}: {error}");
        assert!(sandbox.mlx("lineage old").out.contains("commit unknown"));
        for args in ["log old", "fsck", "gc", "push --all-commits"] {
            sandbox.fails(args, if args.starts_with("push") { 3 } else { 5 });
        }
    }
    fs::remove_file(&object).unwrap();
    fs::rename(&saved, &object).unwrap();
    assert_eq!(traced(&sandbox, "old"), (0, json!("first"), false, String::new()));
}

#[test]
fn a_commit_with_a_pointer_that_cannot_be_read_is_named() {
    let sandbox = Sandbox::new();
    let add = |text: &str, message: &str| {
        sandbox.write("d", text);
        sandbox.ok("add d");
        sandbox.commit(message);
    };
    add("1", "one");
    let pointer = sandbox.read("d.mlx");
    sandbox.write("d.mlx", format!("<<<<<<< ours\n{pointer}=======\n{pointer}>>>>>>> theirs\n"));
    sandbox.commit("marks");
    sandbox.write("d.mlx", &pointer);
    sandbox.commit("resolved");
    let id = sandbox.git("rev-parse --short=10 HEAD~1");
    let (code, commit, unknown, error) = traced(&sandbox, "d");
    assert_eq!((code, commit, unknown), (5, json!("resolved"), false), "{error}");
    assert!(error.contains(id.trim()) && error.contains("is in conflict"), "{error}");
    // What came later is not in doubt.
    add("2", "two");
    assert_eq!(traced(&sandbox, "d"), (0, json!("two"), false, String::new()));
    // Looking for an earlier version, it is passed over.
    sandbox.git("checkout -q HEAD~3 -- d.mlx");
    let (code, commit, _, error) = traced(&sandbox, "d");
    assert_eq!((code, commit), (5, json!("resolved")), "{error}");
    assert!(error.contains(id.trim()), "{error}");
}
