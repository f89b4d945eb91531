//! Tests of sparse checkouts: Git's index has files that are not in the worktree, with an index entry for
//! each, or one for a whole folder.

use std::fs;

use serde_json::json;

use crate::sandbox::{Sandbox, SandboxFolder, outcomes};

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

/// Creates a repository whose stage `d` at the top reads the output of `b:s`. Both ran.
fn two_pipelines() -> Sandbox {
    let sandbox = Sandbox::new();
    let remote = sandbox.root().join("remote");
    sandbox.ok(&format!("remote add origin file://{} --default", remote.display()));
    sandbox.write("b/i", "1");
    sandbox.write("b/mlx.toml", "[stage.s]\ncmd = 'cp i o'\ndeps = ['i']\nouts = ['o']\n");
    let d = "[stage.d]\ncmd = 'cp b/o a/p'\ndeps = ['b/o']\nouts = ['a/p']\n";
    sandbox.write("mlx.toml", format!("{d}[stage.e]\ncmd = 'cp a/x a/q'\ndeps = ['a/x']\nouts = ['a/q']\n"));
    sandbox.write("a/x", "1");
    sandbox.write(".mlxignore", "*.tmp\n");
    sandbox.write("b/.mlxignore", "*.bak\n");
    sandbox.write("b/k/.mlxignore", "*.bak\n");
    sandbox.write("b/k/f", "1");
    sandbox.commit("pipelines");
    sandbox.ok("repro --all");
    sandbox.commit("results");
    sandbox.ok("push");
    sandbox
}

/// Clones the repository with a sparse checkout.
fn sparse_clone<'s>(sandbox: &'s Sandbox, name: &str, sparse_index: bool, set: &str) -> SandboxFolder<'s> {
    let folder = sandbox.root().join(name);
    sandbox.git(&format!("-c index.sparse={sparse_index} clone -q --sparse . {}", folder.display()));
    let clone = sandbox.at(&folder);
    clone.git(&format!("config index.sparse {sparse_index}"));
    clone.git(&format!("sparse-checkout set {set}"));
    clone
}

#[test]
fn a_pipeline_outside_the_checkout_keeps_its_claims_and_records() {
    let sandbox = two_pipelines();
    for sparse_index in [false, true] {
        let clone = sparse_clone(&sandbox, &format!("clone-{sparse_index}"), sparse_index, "a");
        assert!(!clone.folder.join("b").exists());
        clone.ok("pull");
        assert!(!clone.folder.join("b").exists(), "nothing of it is brought");
        assert_eq!(clone.json("status")["clean"], true);
        let planned = clone.json("repro --all --dry-run");
        assert_eq!(outcomes(&planned), "d unchanged, e unchanged", "its input counts by its record");
        for args in ["repro b:s", "pull b/o", "checkout b/o", "status b/o"] {
            let error = clone.fails(args, 3);
            assert!(error.contains("leaves out `b/mlx.toml`"), "{args}: {error}");
            assert!(error.contains("git sparse-checkout add b"), "{args}: {error}");
        }
        fs::create_dir(clone.folder.join("b")).unwrap();
        fs::write(clone.folder.join("b/o"), "2").unwrap();
        assert!(clone.fails("add b/o", 4).contains("belongs to the stage `b:s`"));
        assert!(clone.fails("-C b repro", 3).contains("leaves out `b/mlx.toml`"));
        assert_eq!(clone.git("status --porcelain"), "");
    }
}

#[test]
fn a_lockfile_outside_the_checkout_is_read_and_its_records_are_kept() {
    let sandbox = two_pipelines();
    let clone = sparse_clone(&sandbox, "clone", false, "--no-cone '/*' '!/mlx.lock'");
    assert!(!clone.folder.join("mlx.lock").exists() && clone.folder.join("mlx.toml").exists());
    clone.ok("pull");
    assert_eq!(outcomes(&clone.json("repro --all --dry-run")), "b:s unchanged, d unchanged, e unchanged");
    fs::write(clone.folder.join("a/x"), "2").unwrap();
    assert_eq!(outcomes(&clone.json("repro e")), "e ran");
    let lock = fs::read_to_string(clone.folder.join("mlx.lock")).unwrap();
    assert!(lock.contains("[stage.d]") && lock.contains("[stage.e]"), "{lock}");
}

#[test]
fn nothing_is_removed_beside_an_unreadable_lockfile_outside_the_checkout() {
    let sandbox = two_pipelines();
    sandbox.write("b/mlx.lock", "x [");
    sandbox.git("commit -q -a -m broken");
    let clone = sparse_clone(&sandbox, "clone", false, "a");
    fs::write(clone.folder.join("a/new"), "[]").unwrap();
    let toml = fs::read_to_string(clone.folder.join("mlx.toml")).unwrap();
    fs::write(clone.folder.join("mlx.toml"), &toml[toml.find("[stage.e]").unwrap()..]).unwrap();
    let ran = clone.mlx("repro --json");
    assert!(!ran.out.contains("removed"), "{} {}", ran.out, ran.err);
    let lock = fs::read_to_string(clone.folder.join("mlx.lock")).unwrap();
    assert!(lock.contains("[stage.d]"), "{lock}");
}

#[test]
fn ignore_rules_outside_the_checkout_apply() {
    let sandbox = two_pipelines();
    for sparse_index in [false, true] {
        let clone = sparse_clone(&sandbox, &format!("cone-{sparse_index}"), sparse_index, "a");
        fs::create_dir_all(clone.folder.join("b/new")).unwrap();
        for name in ["b/new/x", "b/new/x.bak", "b/new/x.tmp"] {
            fs::write(clone.folder.join(name), name).unwrap();
        }
        assert_eq!(clone.json("add b/new")["added"][0]["files"], 1, "{sparse_index}");
    }
    let clone = sparse_clone(&sandbox, "clone", false, "--no-cone '/*' '!.mlxignore'");
    assert!(!clone.folder.join(".mlxignore").exists() && clone.folder.join("b/k/f").exists());
    let stage = "[stage.l]\ncmd = 'ls b/k >l'\ndeps = ['b/k']\nouts = ['l']\n";
    fs::write(clone.folder.join("mlx.toml"), stage).unwrap();
    assert_eq!(outcomes(&clone.json("repro l")), "l ran");
    for name in ["b/k/x.bak", "b/k/x.tmp"] {
        fs::write(clone.folder.join(name), name).unwrap();
        assert_eq!(outcomes(&clone.json("repro l --dry-run")), "l unchanged", "{name}");
    }
    // Rules that are here count instead.
    fs::write(clone.folder.join("b/k/.mlxignore"), "").unwrap();
    assert_eq!(outcomes(&clone.json("repro l --dry-run")), "l would run");
}
