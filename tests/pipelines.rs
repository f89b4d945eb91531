//! Tests of several pipelines in one repository: one graph over all of them, names of stages, and pipelines
//! that cannot be read or whose stages need each other.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, outcomes};

/// Creates a repository in which the stage `d` at the top needs the output of the stage `u` in `up`.
fn two_folders() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("up/i", "1\n");
    sandbox.write("up/mlx.toml", "[stage.u]\ncmd = 'cp i o'\ndeps = ['i']\nouts = ['o']\n");
    let top = "[stage.d]\ncmd = 'cp up/o final'\ndeps = ['up/o']\nouts = ['final']\n";
    sandbox.write("mlx.toml", top);
    sandbox.commit("pipelines");
    sandbox
}

#[test]
fn a_stage_brings_what_it_needs_from_another_folder_up_to_date() {
    let sandbox = two_folders();
    assert_eq!(outcomes(&sandbox.json("repro")), "up:u ran, d ran");
    sandbox.write("up/i", "2\n");
    assert_eq!(outcomes(&sandbox.json("repro --dry-run")), "up:u would run, d would run");
    assert_eq!(outcomes(&sandbox.json("status")), "up:u would run, d would run");
    assert_eq!(outcomes(&sandbox.json("repro")), "up:u ran, d ran");
    assert_eq!(sandbox.read("final"), "2\n");
    assert!(
        sandbox.read("up/mlx.lock").contains("[stage.u]") && !sandbox.read("mlx.lock").contains("stage.u")
    );
    assert_eq!(outcomes(&sandbox.json("-C up repro")), "up:u unchanged", "nothing there needs the top");
    assert_eq!(sandbox.json("lineage final")["inputs"][0]["stage"]["name"], "up:u");
}

#[test]
fn an_absent_output_of_another_folder_counts_by_its_record() {
    let sandbox = two_folders();
    sandbox.git("rm -q --cached up/i");
    sandbox.ok("add up/i");
    sandbox.ok("repro");
    sandbox.commit("results");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    let other = sandbox.at(&clone);
    assert_eq!(outcomes(&other.json("repro --dry-run")), "up:u unchanged, d unchanged");
}

#[test]
fn all_runs_the_pipelines_of_every_folder() {
    let sandbox = two_folders();
    sandbox.write("b/mlx.toml", "[stage.u]\ncmd = 'echo b >o'\nouts = ['o']\n");
    sandbox.write("b/c/x", "");
    sandbox.commit("more");
    assert_eq!(outcomes(&sandbox.json("-C b/c repro --all")), "up:u ran, d ran, b:u ran");
    assert!(sandbox.has("b/mlx.lock"));
}

#[test]
fn a_stage_is_named_by_its_folder_or_by_its_name_where_that_is_unique() {
    let sandbox = two_folders();
    sandbox.write("b/mlx.toml", "[stage.u]\ncmd = 'echo b >o'\nouts = ['o']\n");
    sandbox.write("c/x", "");
    sandbox.commit("more");
    assert_eq!(outcomes(&sandbox.json("-C b repro u")), "b:u ran", "the nearest pipeline comes first");
    assert_eq!(outcomes(&sandbox.json("-C b repro d")), "up:u ran, d ran", "the only one of that name");
    let error = sandbox.fails("-C c repro u", 2);
    assert!(error.contains("several pipelines have a stage `u`: `b:u`, `up:u`"), "{error}");
    assert_eq!(
        outcomes(&sandbox.json("-C c repro up:u b:u :d")),
        "up:u unchanged, d unchanged, b:u unchanged"
    );
    for unknown in ["x", "b:x", "c:u", ":u"] {
        let error = sandbox.fails(&format!("repro {unknown}"), 3);
        assert!(error.contains("not found") && error.contains("known stages: d, b:u, up:u"), "{error}");
    }
    let text = sandbox.ok("repro --all");
    assert!(text.contains("\nd     unchanged\n") && text.contains("up:u  unchanged\n"), "{text}");
}

#[test]
fn a_folder_without_a_pipeline_says_how_to_run_the_others() {
    let sandbox = Sandbox::new();
    sandbox.write("a/mlx.toml", "[stage.s]\ncmd = 'echo 1 >o'\nouts = ['o']\n");
    sandbox.commit("pipeline");
    let error = sandbox.fails("repro", 3);
    assert!(error.contains("`mlx.toml` not found") && error.contains("`mlx repro --all`"), "{error}");
}

#[test]
fn pipelines_of_nested_repositories_are_not_part_of_the_graph() {
    let sandbox = two_folders();
    sandbox.git("init -q nested");
    sandbox.write("nested/mlx.toml", "[stage.n]\ncmd = 'touch ran'\nouts = ['ran']\n");
    assert_eq!(outcomes(&sandbox.json("repro --all")), "up:u ran, d ran");
}

#[test]
fn a_cycle_stops_only_the_stages_that_need_it() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "mlx.toml",
        "[stage.a]\ncmd = 'cp y x'\ndeps = ['y']\nouts = ['x']\n\
        [stage.b]\ncmd = 'cp x y'\ndeps = ['x']\nouts = ['y']\n\
        [stage.c]\ncmd = 'cp x z'\ndeps = ['x']\nouts = ['z']\n\
        [stage.free]\ncmd = 'echo 1 >w'\nouts = ['w']\n",
    );
    assert_eq!(outcomes(&sandbox.json("repro free")), "free ran");
    let plan = sandbox.mlx("repro --dry-run --json");
    let value: Value = serde_json::from_str(&plan.out).unwrap();
    assert_eq!((plan.code, &outcomes(&value)[..]), (2, "b blocked, a blocked, c blocked, free unchanged"));
    std::fs::remove_file(sandbox.repo.join("w")).unwrap();
    let run = sandbox.mlx("repro --json");
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, &outcomes(&value)[..]), (2, "b failed, a failed, c skipped, free restored"));
    assert!(
        value["error"]["message"].as_str().unwrap().contains("these stages form a cycle: `a` → `b` → `a`")
    );
    assert_eq!(sandbox.json("status")["stages"][0]["outcome"], "blocked");
}

#[test]
fn outputs_of_two_stages_at_one_path_stop_only_these() {
    for second in ["o", "o/p"] {
        let sandbox = Sandbox::new();
        sandbox.write("up/mlx.toml", format!("[stage.b]\ncmd = 'x'\nouts = ['../{second}']\n"));
        let top = "[stage.a]\ncmd = 'x'\nouts = ['o']\n[stage.free]\ncmd = 'echo 1 >w'\nouts = ['w']\n";
        sandbox.write("mlx.toml", top);
        sandbox.commit("pipelines");
        let error = sandbox.fails("repro --all", 2);
        assert!(error.contains("`o` of `a`") || error.contains("both `a` and `up:b`"), "{error}");
        assert!(sandbox.has("w") && !sandbox.has("o"));
    }
}

#[test]
fn a_broken_pipeline_elsewhere_stops_only_what_needs_it() {
    let sandbox = two_folders();
    sandbox.ok("repro");
    sandbox.commit("results");
    sandbox.write("up/mlx.toml", "[stage.u\n");
    sandbox.write("free/mlx.toml", "[stage.free]\ncmd = 'echo 1 >w'\nouts = ['w']\n");
    sandbox.write("data", "1\n");
    sandbox.git("add free");
    let added = sandbox.mlx("add data");
    assert_eq!((added.code, added.err.matches("cannot read `up/mlx.toml`").count()), (0, 1), "{added:?}");
    assert!(sandbox.fails("add up/o", 4).contains("belongs to the stage `up:u`"));
    std::fs::remove_file(sandbox.repo.join("up/o")).unwrap();
    assert_eq!(sandbox.mlx("checkout").code, 0);
    assert_eq!(sandbox.read("up/o"), "1\n", "what the lockfile records is checked out");
    let free = sandbox.mlx("-C free repro --json");
    assert_eq!((free.code, outcomes(&serde_json::from_str(&free.out).unwrap())), (0, "free:free ran".into()));
    let run = sandbox.mlx("repro --json");
    assert_eq!((run.code, outcomes(&serde_json::from_str(&run.out).unwrap())), (2, "d failed".into()));
    let all = sandbox.mlx("repro --all --json");
    let value: Value = serde_json::from_str(&all.out).unwrap();
    assert_eq!((all.code, &outcomes(&value)[..]), (2, "d failed, free:free unchanged"));
    let status = sandbox.mlx("status --json");
    let value: Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!((status.code, &value["clean"]), (2, &json!(false)));
    assert_eq!(value["problems"].as_array().unwrap().len(), 1);
    assert!(sandbox.fails("-C up repro", 2).contains("cannot read `up/mlx.toml`"));
}
