//! Tests of links inside a dependency: their targets count as dependencies in the graph, for edits that are
//! recorded, for inputs that nothing tracks, and in a clone without its data. A command walks each dependency
//! for links once.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::json;

use crate::sandbox::{Sandbox, command_result};

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
fn a_link_that_an_earlier_stage_made_counts() {
    let make = "[stage.a]\ncmd = 'ln -s ../d/x in/l; echo 1 > first'\nouts = ['first']\n";
    let sandbox = linked("../d/x", make);
    sandbox.write("mlx.toml", sandbox.read("mlx.toml").replace("['in']", "['first', 'in']"));
    fs::remove_file(sandbox.repo.join("in/l")).unwrap();
    sandbox.write("in/f", "");
    sandbox.write("d/x", "1\n");
    sandbox.ok("add d");
    sandbox.write("d/x", "2\n");
    let ran = sandbox.mlx("repro");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("`d/x`, an input of the stage `b`, was edited"), "{}", ran.err);
    assert!(sandbox.read("mlx.lock").contains("\"d/x\""), "{}", sandbox.read("mlx.lock"));
    assert_eq!(sandbox.json("repro")["stages"][1]["outcome"], "unchanged");
}

#[test]
fn a_link_to_what_nothing_tracks_is_named() {
    for (target, named) in [("../d/x", "`d/x`"), ("../d", "`d`"), ("../hop/x", "`d/x`"), ("../e/f", "")] {
        let sandbox = linked(target, "");
        let text = sandbox.read("mlx.toml");
        sandbox.write("mlx.toml", text.replace("cat in/l", "ls in/l"));
        sandbox.ok(&format!("remote add r file://{} --default", sandbox.root().join("r").display()));
        sandbox.write("d/x", "");
        sandbox.write("e/f", "");
        symlink("d", sandbox.repo.join("hop")).unwrap();
        sandbox.git("add in mlx.toml hop e");
        let warning = format!("stages read what neither Git nor mlx tracks: {named};");
        for command in ["repro", "push"] {
            let ran = sandbox.mlx(command);
            let is_named = ran.err.contains("neither Git nor mlx tracks");
            assert_eq!((ran.code, is_named), (0, !named.is_empty()), "{target}, {command}: {}", ran.err);
            assert!(!is_named || ran.err.contains(&warning), "{target}, {command}: {}", ran.err);
        }
        sandbox.git("add d");
        assert!(!sandbox.mlx("push").err.contains("neither Git nor mlx tracks"), "{target}");
    }
}

#[test]
fn a_dependency_is_walked_for_links_once() {
    const FOLDERS: usize = 50;
    let sandbox = Sandbox::new();
    let stages = ["a", "b"]
        .map(|name| format!("[stage.{name}]\ncmd = 'touch {name}'\ndeps = ['in']\nouts = ['{name}']\n"));
    sandbox.write("mlx.toml", stages.concat());
    for folder in 0..FOLDERS {
        sandbox.write(&format!("in/{folder}/f"), "");
    }
    sandbox.write("other/f", "");
    sandbox.git("add in mlx.toml");
    // The first command looks for pointers everywhere.
    sandbox.ok("status");
    let log = sandbox.root().join("log");
    let walks = |args: &str| {
        let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        command.env("MLX_FAULT", format!("tell:{}", log.display())).args(args.split(' '));
        let ran = command_result(command.output().unwrap());
        assert_eq!(ran.code, 0, "{args}: {}", ran.err);
        let told = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        told.lines().filter(|line| *line == "readdir").count() / FOLDERS
    };
    // A scan digests the dependency: once for all stages in a plan, and before a run; at the start and at the
    // end of each stage that runs; and once for all to find what nothing tracks.
    assert_eq!(walks("add other"), 0);
    assert_eq!(walks("checkout"), 0);
    assert_eq!(walks("status"), 1 + 1);
    assert_eq!(walks("repro --dry-run"), 1 + 1);
    assert_eq!(walks("repro"), 1 + 1 + 2 * 2 + 1);
    assert_eq!(walks("repro"), 1 + 1);
    assert_eq!(walks("status"), 1 + 1);
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
fn a_link_into_the_store_is_a_file_in_a_part_of_the_data_too() {
    let sandbox = linked("../d/sub/x", "");
    sandbox.ok("config set --local cache.link symlink");
    sandbox.write("d/sub/x", vec![b'x'; 2 << 20]);
    sandbox.ok("add d");
    fs::remove_dir_all(sandbox.repo.join("d")).unwrap();
    sandbox.ok("checkout");
    assert!(sandbox.repo.join("d/sub/x").symlink_metadata().unwrap().is_symlink());
    sandbox.write("mlx.toml", "[stage.b]\ncmd = 'wc -c < d/sub/x > o'\ndeps = ['d/sub']\nouts = ['o']\n");
    sandbox.ok("repro");
    assert_eq!(sandbox.read("o"), "2097152\n");
    assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged");
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
