//! Tests of links inside a dependency: their targets count as dependencies in the graph, for edits that are
//! recorded, and in a clone without its data.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::json;

use crate::sandbox::Sandbox;

/// Creates a repository with a stage `b` that reads the link `in/l` to `target`.
fn linked(target: &str, more: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let own = "[stage.b]\ncmd = 'cat in/l > o'\ndeps = ['in']\nouts = ['o']\n";
    sandbox.write("mlx.toml", format!("{own}{more}"));
    fs::create_dir(sandbox.repo.join("in")).unwrap();
    symlink(target, sandbox.repo.join("in/l")).unwrap();
    sandbox
}

/// Adds a remote, pushes everything there and returns a clone without data.
fn dataless_clone(sandbox: &Sandbox) -> std::path::PathBuf {
    sandbox.ok(&format!("remote add r file://{} --default", sandbox.root().join("r").display()));
    sandbox.commit("all");
    sandbox.ok("push");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q . {}", clone.display()));
    clone
}

#[test]
fn a_link_to_the_output_of_another_stage_is_an_edge_of_the_graph() {
    for (target, made) in
        [("../out/x", "out"), ("../out", "out/x"), ("../hop/x", "out"), ("../out/x", "out/x")]
    {
        let read = if target == "../out" { "in/l/x" } else { "in/l" };
        let make = format!("[stage.z]\ncmd = 'mkdir -p out; cp i out/x'\ndeps = ['i']\nouts = ['{made}']\n");
        let sandbox = linked(target, &make);
        let text = sandbox.read("mlx.toml").replace("cat in/l", &format!("cat {read}"));
        sandbox.write("mlx.toml", text);
        symlink("out", sandbox.repo.join("hop")).unwrap();
        for (text, outcome) in [("1\n", "ran"), ("2\n", "ran"), ("2\n", "unchanged")] {
            sandbox.write("i", text);
            let done = sandbox.json("repro b");
            let names = [&done["stages"][0], &done["stages"][1]].map(|stage| stage["name"].clone());
            assert_eq!(names, ["z", "b"], "{target}: {done}");
            assert_eq!(done["stages"][1]["outcome"], outcome, "{target}: {done}");
            assert_eq!(sandbox.read("o"), text, "{target}");
        }
        sandbox.write("i", "3\n");
        let plan = sandbox.json("repro b --dry-run");
        assert_eq!(plan["stages"][1]["why"], json!(["it needs the stage `z`, which would run"]), "{plan}");
    }
}

#[test]
fn an_edit_behind_a_link_is_recorded_before_the_run() {
    let sandbox = linked("../d/x", "");
    sandbox.write("d/x", "1\n");
    sandbox.write("d/y", "1\n");
    sandbox.ok("add d");
    sandbox.ok("repro");
    sandbox.write("d/x", "2\n");
    sandbox.write("d/y", "2\n");
    let ran = sandbox.mlx("repro");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let note = "`d/x`, an input of the stage `b`, was edited: `d.mlx` now records it";
    assert!(ran.err.contains(note) && ran.out.contains("next: git add .gitignore d.mlx"), "{ran:?}");
    let clone = dataless_clone(&sandbox);
    sandbox.at(&clone).ok("pull d");
    assert_eq!(fs::read_to_string(clone.join("d/x")).unwrap(), "2\n");
    assert_eq!(fs::read_to_string(clone.join("d/y")).unwrap(), "1\n", "the stage does not read it");
}

#[test]
fn a_link_to_data_that_is_absent_stops_the_stage_by_name() {
    for (target, absent) in [("../d/x", "d/x"), ("../d", "d")] {
        let sandbox = linked(target, "");
        sandbox.write("d/x", "1\n");
        let text = sandbox.read("mlx.toml").replace("cat in/l", "cat in/l/x in/l 2>/dev/null | head -1");
        sandbox.write("mlx.toml", text.replace("'cat", "'''cat").replace("> o'", "> o'''"));
        sandbox.ok("add d");
        sandbox.ok("repro");
        let folder = dataless_clone(&sandbox);
        let clone = sandbox.at(&folder);
        assert_eq!(clone.json("repro --dry-run")["stages"][0]["outcome"], "unchanged");
        let text = fs::read_to_string(folder.join("mlx.toml")).unwrap();
        fs::write(folder.join("mlx.toml"), text.replace("head -1", "head -n 1")).unwrap();
        let error = clone.fails("repro", 3);
        assert!(error.contains(&format!("get it with `mlx pull {absent}`")), "{error}");
        assert!(!folder.join("o").exists());
        clone.ok("pull d");
        clone.ok("repro");
        assert_eq!(fs::read_to_string(folder.join("o")).unwrap(), "1\n");
    }
}

#[test]
fn a_link_to_nothing_leads_nowhere() {
    let make = "[stage.z]\ncmd = 'mkdir out; touch out/x'\nouts = ['out']\n";
    let sandbox = linked("../gone", make);
    sandbox.write("mlx.toml", sandbox.read("mlx.toml").replace("cat in/l", "ls in"));
    sandbox.ok("repro");
    assert_eq!(sandbox.read("o"), "l\n");
    assert!(!sandbox.read("mlx.lock").contains("gone"));
    for target in ["../out/y", "l", "../out/x/y"] {
        fs::remove_file(sandbox.repo.join("in/l")).unwrap();
        symlink(Path::new(target), sandbox.repo.join("in/l")).unwrap();
        sandbox.ok("repro");
        assert_eq!(sandbox.json("repro")["stages"][1]["outcome"], "unchanged", "{target}");
    }
}
