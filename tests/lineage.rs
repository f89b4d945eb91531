//! Tests of `mlx lineage` in clones that lack trees of earlier commits.

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
