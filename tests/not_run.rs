//! Tests of results that were recorded without a run: `mlx commit STAGE` and `mlx repro --no-run`.

use std::fs;

use serde_json::json;

use crate::sandbox::{Sandbox, outcomes};

/// Creates a stage `s` that counts its runs, with an input in Git and an output.
fn stage() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("i", "1\n");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'echo ran >>runs.log; cp i o'\ndeps = ['i']\nouts = ['o']\n");
    sandbox.write(".gitignore", "/runs.log\n");
    sandbox.commit("pipeline");
    sandbox
}

#[test]
fn a_result_made_elsewhere_is_recorded_and_says_so() {
    let sandbox = stage();
    sandbox.write("o", "made elsewhere");
    let said = "stage s: recorded, not run\nnext: git add .gitignore mlx.lock\n";
    assert_eq!(sandbox.ok("commit s"), said);
    assert!(
        sandbox.read("mlx.lock").contains("\nformat = 2\n") && sandbox.read(".gitignore").contains("/o\n")
    );
    assert_eq!(outcomes(&sandbox.json("repro --dry-run --check")), "s unchanged");
    sandbox.commit("result");
    let status = sandbox.json("status");
    assert_eq!((&status["clean"], &status["stages"][0]["not_run"]), (&json!(true), &json!(true)));
    assert!(sandbox.ok("status").contains("stage s: recorded, not run"));
    assert!(sandbox.ok("lineage o").contains("recorded, not run"));
    assert_eq!(sandbox.json("log o")["versions"][0]["not_run"], true);
    fs::remove_file(sandbox.repo.join("o")).unwrap();
    assert_eq!(outcomes(&sandbox.json("repro")), "s restored", "the lockfile names it");
    assert_eq!(sandbox.read("o"), "made elsewhere");
    assert!(!sandbox.has("runs.log"));
}

#[test]
fn an_accepted_result_never_enters_the_run_cache() {
    let sandbox = stage();
    sandbox.write("o", "made elsewhere");
    sandbox.ok("commit s");
    fs::remove_file(sandbox.repo.join("mlx.lock")).unwrap();
    assert_eq!(outcomes(&sandbox.json("repro --dry-run")), "s would run");
    assert_eq!(outcomes(&sandbox.json("repro")), "s ran");
    assert_eq!(sandbox.read("o"), "1\n");
}

#[test]
fn a_later_run_removes_the_mark() {
    let sandbox = stage();
    sandbox.write("o", "made elsewhere");
    sandbox.ok("commit s");
    assert_eq!(outcomes(&sandbox.json("repro --force")), "s ran");
    let lock = sandbox.read("mlx.lock");
    assert!(lock.contains("\nformat = 1\n") && !lock.contains("not_run"), "{lock}");
    assert_eq!(sandbox.json("status")["stages"][0]["not_run"], false);
}

#[test]
fn a_changed_dependency_is_accepted_without_a_run() {
    let sandbox = stage();
    sandbox.ok("repro");
    assert_eq!(outcomes(&sandbox.json("commit s")), "s unchanged", "a run is not taken for less");
    assert!(!sandbox.read("mlx.lock").contains("not_run"));
    sandbox.write("i", "2\n");
    assert_eq!(outcomes(&sandbox.json("commit s")), "s recorded");
    assert_eq!(outcomes(&sandbox.json("repro")), "s unchanged");
    assert_eq!((sandbox.read("runs.log"), sandbox.read("o")), ("ran\n".into(), "1\n".into()));
    sandbox.write("i", "1\n");
    assert_eq!(outcomes(&sandbox.json("commit s")), "s restored", "a run with this input made the same");
    assert!(!sandbox.read("mlx.lock").contains("not_run"));
}

#[test]
fn no_run_records_all_that_is_stale() {
    let sandbox = stage();
    let two = "[stage.t]\ncmd = 'echo ran >>runs.log; cp o p'\ndeps = ['o']\nouts = ['p']\n";
    sandbox.write("mlx.toml", format!("{}{two}", sandbox.read("mlx.toml")));
    sandbox.write("o", "5");
    sandbox.write("p", "6");
    assert_eq!(outcomes(&sandbox.json("repro --no-run")), "s recorded, t recorded");
    assert_eq!(outcomes(&sandbox.json("repro --dry-run --check")), "s unchanged, t unchanged");
    sandbox.write("p", "7");
    assert_eq!(outcomes(&sandbox.json("repro --no-run")), "s unchanged, t recorded");
    assert!(!sandbox.has("runs.log"));
    sandbox.fails("repro --no-run --force", 2);
}

#[test]
fn a_result_that_is_not_whole_is_refused() {
    let sandbox = stage();
    let error = sandbox.fails("commit s", 3);
    assert!(error.contains("the output `o` of the stage `s` is not here"), "{error}");
    sandbox.write("o", "made elsewhere");
    sandbox.git("rm -q --cached i");
    sandbox.ok("add i");
    fs::remove_file(sandbox.repo.join("i")).unwrap();
    let error = sandbox.fails("commit s", 3);
    assert!(
        error.contains("cannot record a result of the stage `s`: `i` is not here")
            && error.contains("mlx checkout i"),
        "{error}"
    );
    assert!(!sandbox.has("mlx.lock"));
}

#[test]
fn a_half_written_output_is_refused() {
    let sandbox = stage();
    // The stage ends its own mlx, as a power cut does.
    sandbox.write(
        "mlx.toml",
        "[stage.s]\ncmd = 'echo half >o; kill -9 $(ps -o ppid= -p $PPID)'\nouts = ['o']\n",
    );
    sandbox.mlx("repro");
    assert_eq!(sandbox.read("o"), "half\n");
    let error = sandbox.fails("commit s", 4);
    assert!(error.contains("the last run of the stage `s` was interrupted"), "{error}");
    assert!(!sandbox.has("mlx.lock"));
}

#[test]
fn a_path_named_like_a_stage_is_written_with_a_dot() {
    let sandbox = stage();
    sandbox.write("data/x", "1");
    sandbox.ok("add data");
    let text = "[stage.data]\ncmd = 'cp i o'\ndeps = ['i']\nouts = ['o']\n";
    sandbox.write("mlx.toml", text);
    sandbox.write("o", "made elsewhere");
    sandbox.write("data/x", "2");
    let committed = sandbox.json("commit data");
    assert_eq!(
        (committed["committed"].as_array().unwrap().len(), &outcomes(&committed)[..]),
        (0, "data recorded")
    );
    let committed = sandbox.json("commit ./data");
    assert_eq!((&committed["committed"][0]["path"], &committed["stages"]), (&json!("data"), &json!([])));
}

#[test]
fn a_part_of_an_output_is_not_recorded_as_the_result() {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("remote add r file://{} --default", sandbox.root().join("r").display()));
    sandbox.write("i", "1\n");
    let stage = "[stage.s]\ncmd = 'mkdir out; cp i out/x; echo y > out/y'\ndeps = ['i']\nouts = ['out']\n";
    sandbox.write("mlx.toml", stage);
    sandbox.ok("repro");
    sandbox.commit("all");
    sandbox.ok("push");
    let folder = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q . {}", folder.display()));
    let clone = sandbox.at(&folder);
    clone.ok("pull out/x");
    fs::write(folder.join("mlx.toml"), stage.replace("mkdir out", "mkdir  out")).unwrap();
    let lock = fs::read(folder.join("mlx.lock")).unwrap();
    for edit in ["1\n", "2\n"] {
        fs::write(folder.join("out/x"), edit).unwrap();
        for command in ["commit s", "repro --no-run"] {
            let error = clone.fails(command, 3);
            let part = "the output `out` of the stage `s` is only in part here: `out/y` was never pulled";
            assert!(error.contains(part) && error.contains("get it with `mlx pull out`"), "{error}");
            assert_eq!(fs::read(folder.join("mlx.lock")).unwrap(), lock);
        }
    }
    // A file that was here was deleted.
    clone.ok("pull out/y");
    fs::remove_file(folder.join("out/y")).unwrap();
    assert_eq!(outcomes(&clone.json("repro --no-run")), "s recorded");
    assert!(!fs::read_to_string(folder.join("mlx.lock")).unwrap().contains("files = 2"));
}
