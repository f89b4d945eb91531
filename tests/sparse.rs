//! Tests of sparse checkouts: Git's index has files that are not in the worktree, with an index entry for
//! each, or one for a whole folder.

use std::fs;

use serde_json::json;

use crate::sandbox::{Sandbox, SandboxFolder};

/// Runs a test in clones whose worktree has the folder `a` and what is at the top, but not `b` and `.mlx`.
fn in_sparse_clones(test: &dyn Fn(&Sandbox, &SandboxFolder<'_>)) {
    for sparse_index in ["false", "true"] {
        let sandbox = Sandbox::new();
        let remote = sandbox.root().join("remote");
        sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
        for (path, text) in [("a/d", "1"), ("b/e", "2"), ("b/f/x", "3"), ("b/f/y", "4")] {
            sandbox.write(path, text);
        }
        sandbox.ok("add a/d b/e b/f");
        sandbox.write(
            "b/mlx.toml",
            "[stage.s]\ncmd = 'echo {} > m.json; echo 1 > o'\nouts = ['o']\nmetrics = ['m.json']\n",
        );
        sandbox.at(&sandbox.repo.join("b")).ok("repro");
        sandbox.commit("data");
        sandbox.ok("push");
        let folder = sandbox.root().join("clone");
        sandbox.git(&format!("-c index.sparse={sparse_index} clone -q --sparse . {}", folder.display()));
        let clone = sandbox.at(&folder);
        clone.git(&format!("config index.sparse {sparse_index}"));
        clone.git("sparse-checkout set a");
        assert!(!folder.join(".mlx").exists() && !folder.join("b").exists());
        test(&sandbox, &clone);
    }
}

#[test]
fn settings_and_records_outside_the_checkout_are_read_from_the_index() {
    in_sparse_clones(&|_, clone| {
        clone.ok("pull a/d");
        assert_eq!(fs::read_to_string(clone.folder.join("a/d")).unwrap(), "1");
        assert_eq!(clone.json("status")["clean"], true);
        assert_eq!(clone.json("diff data"), json!([]));
        assert_eq!(clone.json("diff metrics"), json!([]));
        assert_eq!(clone.json("log b/e")["versions"].as_array().unwrap().len(), 1);
        assert_eq!(clone.git("status --porcelain"), "");
        fs::write(clone.folder.join("a/d"), "new").unwrap();
        assert_eq!(clone.json("diff data"), json!([{"path": "a/d", "change": "modified"}]));
    });
}

#[test]
fn committed_settings_are_never_replaced() {
    in_sparse_clones(&|_, clone| {
        clone.ok("init");
        assert_eq!(clone.git("status --porcelain"), "");
        clone.ok("remote add other file:///tmp/other");
        clone.git("add --sparse -A");
        let text = clone.git("show :.mlx/config.toml");
        assert!(text.contains("[remote.origin]") && text.contains("[remote.other]"), "{text}");
        assert_eq!(clone.git("diff --cached --name-only"), ".mlx/config.toml\n");
    });
    let sandbox = Sandbox::new();
    sandbox.ok("remote add origin file:///tmp/origin");
    sandbox.commit("start");
    fs::remove_dir_all(sandbox.repo.join(".mlx")).unwrap();
    sandbox.ok("init");
    assert_eq!(sandbox.git("status --porcelain"), "", "a committed file that was deleted is restored");
}

#[test]
fn ignore_lines_and_pointers_outside_the_checkout_are_kept() {
    in_sparse_clones(&|_, clone| {
        let error = clone.fails("fetch b/f", 3);
        assert!(
            error.contains("leaves out `b/f.mlx`") && error.contains("git sparse-checkout add b"),
            "{error}"
        );
        clone.ok("fetch --all-commits");
        fs::create_dir_all(clone.folder.join("b/f")).unwrap();
        fs::write(clone.folder.join("b/new"), "5").unwrap();
        fs::write(clone.folder.join("b/f/z"), "6").unwrap();
        clone.ok("add b/new b/f/z");
        clone.git("add --sparse -A");
        let lines = clone.git("show :b/.gitignore");
        assert!(["/e", "/f", "/o", "/new"].iter().all(|line| lines.lines().any(|it| it == *line)), "{lines}");
        let pointer = clone.git("show :b/f.mlx");
        assert!(pointer.contains("files = 3"), "the others stay: {pointer}");
        for args in ["remove b/e", "move b/e b/g"] {
            let error = clone.fails(args, 3);
            assert!(error.contains("`b/e`"), "{error}");
        }
    });
}
