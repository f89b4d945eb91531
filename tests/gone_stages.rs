//! Tests of stages that are gone from `mlx.toml`, and of those that come while another one runs.

use std::fs;

use serde_json::Value;

use crate::sandbox::{Sandbox, outcomes};

const KEEP: &str = "[stage.keep]\ncmd = 'cp i o'\ndeps = ['i']\nouts = ['o']\n";

/// Creates a repository in which the stage `gone` ran and was taken out of `mlx.toml`.
fn gone() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("i", "1\n");
    let gone = "[stage.gone]\ncmd = 'cp i left; echo 2 >m.json'\ndeps = ['i']\nouts = ['left']\n\
        metrics = ['m.json']\n";
    sandbox.write("mlx.toml", format!("{KEEP}{gone}"));
    sandbox.ok("repro");
    sandbox.commit("all");
    sandbox.write("mlx.toml", KEEP);
    sandbox
}

#[test]
fn a_stage_that_is_gone_is_named_and_removed() {
    let sandbox = gone();
    let plan = sandbox.mlx("repro --dry-run --check --json");
    let value: Value = serde_json::from_str(&plan.out).unwrap();
    assert_eq!((plan.code, &outcomes(&value)[..]), (10, "keep unchanged, gone would remove"));
    assert!(sandbox.ok("status").contains("stage gone: would remove\n  it is not in `mlx.toml` any more\n"));
    assert_eq!(outcomes(&sandbox.json("repro keep")), "keep unchanged", "only a whole pipeline is tidied");
    assert!(sandbox.has("left"));
    assert_eq!(outcomes(&sandbox.json("repro")), "keep unchanged, gone removed");
    assert_eq!((sandbox.has("left"), sandbox.read(".gitignore")), (false, "/o\n".into()));
    assert!(sandbox.has("m.json"), "files in Git are for Git to remove");
    let lock = sandbox.read("mlx.lock");
    assert!(lock.contains("[stage.keep]") && !lock.contains("gone"), "{lock}");
    assert_eq!(outcomes(&sandbox.json("repro --check --dry-run")), "keep unchanged");
}

#[test]
fn an_output_that_another_stage_reads_stays() {
    let sandbox = gone();
    let reader = "[stage.reader]\ncmd = 'cp left copy'\ndeps = ['left']\nouts = ['copy']\n";
    sandbox.write("mlx.toml", format!("{KEEP}{reader}"));
    let plan = sandbox.ok("repro --dry-run");
    assert!(plan.contains("its output `left` would stay: another stage reads it"), "{plan}");
    let ran = sandbox.mlx("repro");
    assert!(ran.code == 0 && ran.err.contains("`left` stays"), "{}", ran.err);
    assert!(sandbox.has("left") && sandbox.has("copy"));
    assert_eq!(outcomes(&sandbox.json("repro --check --dry-run")), "keep unchanged, reader unchanged");
}

#[test]
fn an_output_that_the_store_does_not_hold_stays_and_is_named() {
    let sandbox = gone();
    sandbox.write("left", "edited");
    let ran = sandbox.mlx("repro");
    assert!(ran.err.contains("these files in it are stored nowhere and stay: `left`"), "{}", ran.err);
    assert_eq!((sandbox.read("left"), sandbox.read("mlx.lock").contains("gone")), ("edited".into(), false));
    assert!(sandbox.read(".gitignore").contains("/left\n"), "Git does not take it");
}

#[test]
fn the_output_of_a_renamed_stage_stays() {
    let sandbox = gone();
    let renamed = "[stage.new]\ncmd = 'cp i left'\ndeps = ['i']\nouts = ['left']\n";
    sandbox.write("mlx.toml", format!("{KEEP}{renamed}"));
    assert_eq!(outcomes(&sandbox.json("repro")), "keep unchanged, new ran, gone removed");
    assert!(sandbox.has("left") && sandbox.read(".gitignore").contains("/left\n"));
}

#[test]
fn a_stage_that_came_while_another_one_ran_keeps_its_record() {
    let sandbox = Sandbox::new();
    sandbox.write("b.toml", "[stage.b]\ncmd = 'echo b >b'\nouts = ['b']\n");
    sandbox.write(
        "mlx.toml",
        "[stage.a]\ncmd = 'cat b.toml >>mlx.toml; mlx repro -q b; echo a >a'\nouts = ['a']\n",
    );
    assert_eq!(outcomes(&sandbox.json("repro")), "a ran");
    assert_eq!(outcomes(&sandbox.json("repro --dry-run")), "a unchanged, b unchanged");
    assert_eq!(sandbox.read("b"), "b\n");
}

/// Creates a repository in which the stages of `sub` ran, and its `mlx.toml` was deleted.
fn deleted() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("i", "1\n");
    sandbox.write("mlx.toml", KEEP);
    let gone = "[stage.gone]\ncmd = 'echo 1 >left; echo 2 >m.json'\nouts = ['left']\nmetrics = ['m.json']\n";
    sandbox.write("sub/mlx.toml", gone);
    sandbox.commit("pipelines");
    sandbox.ok("repro --all");
    sandbox.commit("all");
    fs::remove_file(sandbox.repo.join("sub/mlx.toml")).unwrap();
    sandbox
}

#[test]
fn a_pipeline_that_was_deleted_is_named_and_removed() {
    for (args, rows) in
        [("repro --all", "keep unchanged, sub:gone removed"), ("-C sub repro", "sub:gone removed")]
    {
        let sandbox = deleted();
        let plan = sandbox.mlx("repro --all --dry-run --check --json");
        let value: Value = serde_json::from_str(&plan.out).unwrap();
        assert_eq!((plan.code, &outcomes(&value)[..]), (10, "keep unchanged, sub:gone would remove"));
        let status = sandbox.ok("status");
        assert!(
            status.contains(
                "stage gone: would remove\n  its `mlx.toml` was deleted\n  its output `sub/left` would be"
            ),
            "{status}"
        );
        assert_eq!(outcomes(&sandbox.json("repro")), "keep unchanged", "another pipeline was asked for");
        assert!(sandbox.has("sub/left"));
        let ran = sandbox.mlx(&format!("{args} --json"));
        assert_eq!(outcomes(&serde_json::from_str(&ran.out).unwrap()), rows, "{}", ran.err);
        assert!(["sub/left", "sub/mlx.lock", "sub/.gitignore"].iter().all(|file| !sandbox.has(file)));
        assert!(sandbox.has("sub/m.json"), "files in Git are for Git to remove");
        assert_eq!(sandbox.json("status")["clean"], true);
        sandbox.commit("deleted");
        assert_eq!(outcomes(&sandbox.json("repro --all")), "keep unchanged");
    }
    let sandbox = deleted();
    let text = sandbox.ok("repro --all");
    assert!(text.ends_with("next: git add sub/.gitignore sub/mlx.lock sub/mlx.toml\n"), "{text}");
}

#[test]
fn a_pipeline_that_is_only_left_out_or_unreadable_is_not_deleted() {
    type Change = fn(&Sandbox);
    let changes: [Change; 3] = [
        |sandbox| drop(sandbox.git("update-index --skip-worktree sub/mlx.toml")),
        |sandbox| fs::create_dir(sandbox.repo.join("sub/mlx.toml")).unwrap(),
        |sandbox| std::os::unix::fs::symlink("none", sandbox.repo.join("sub/mlx.toml")).unwrap(),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let sandbox = deleted();
        change(&sandbox);
        for args in ["status --json", "repro --all --json", "-C sub repro --json"] {
            let ran = sandbox.mlx(args);
            assert!(!ran.out.contains("remove"), "{at}: {args}: {}", ran.out);
        }
        assert!(sandbox.has("sub/left") && sandbox.read("sub/mlx.lock").contains("stage.gone"), "{at}");
    }
}

#[test]
fn a_checkout_keeps_the_outputs_of_pipelines_that_git_does_not_have_here() {
    let stage = "[stage.s]\ncmd = 'echo 1 >o'\nouts = ['o', '../beside']\n";
    let repository = || {
        let sandbox = Sandbox::new();
        sandbox.write("p/mlx.toml", stage.replace("'echo 1 >o'", "'echo 1 >o; echo 1 >../beside'"));
        sandbox.ok("-C p repro");
        sandbox
    };
    let check = |sandbox: &Sandbox| {
        sandbox.ok("checkout");
        assert!(sandbox.has("p/o") && sandbox.has("beside"));
        assert!(sandbox.read(".gitignore").contains("/beside\n"));
    };
    // Not added yet.
    check(&repository());
    // A stage that is gone while a sparse checkout leaves out the lockfile that records it.
    let sandbox = repository();
    sandbox.commit("one");
    sandbox.write("p/mlx.toml", "");
    sandbox.commit("gone");
    sandbox.git("update-index --skip-worktree p/mlx.lock");
    check(&sandbox);
    fs::remove_file(sandbox.repo.join("p/mlx.lock")).unwrap();
    check(&sandbox);
}

#[test]
fn a_deleted_pipeline_whose_lockfile_cannot_be_read_is_an_error() {
    let sandbox = gone();
    sandbox.write("mlx.lock", "<<<<<<< HEAD\n");
    for delete in [false, true] {
        if delete {
            fs::remove_file(sandbox.repo.join("mlx.toml")).unwrap();
        } else {
            sandbox.write("mlx.toml", "");
        }
        for command in ["repro", "repro --all", "repro --dry-run"] {
            let ran = sandbox.mlx(command);
            assert_eq!((ran.code, &ran.out[..]), (5, ""), "{command}: {ran:?}");
            assert!(ran.err.matches("`mlx.lock`").count() == 1, "{command}: {ran:?}");
        }
        assert!(sandbox.has("left") && sandbox.has("o"));
    }
}
