//! Tests of pipelines: which stages `repro` runs, restores or skips, that `mlx.lock` never records a run
//! that did not happen, and the commands that compare and trace results (`diff`, `show`, `log`, `lineage`).

use std::{fs, thread, time::Duration};

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, outcomes, snapshot};

/// Two stages, the second of which needs the output of the first, with a parameter and metrics.
const PIPELINE: &str = "
[stage.upper]
cmd = \"echo ran >> runs.log; tr a-z A-Z < in.txt > upper.txt; \
    echo $(grep -o 'x = .*' params.toml) >> upper.txt\"
deps = [\"in.txt\"]
params = [\"params.toml:upper.x\"]
outs = [\"upper.txt\"]

[stage.count]
cmd = \"mkdir -p out && wc -c < upper.txt > out/count.txt \
    && printf '{\\\"size\\\": %d}' $(cat out/count.txt) > size.json\"
deps = [\"upper.txt\"]
outs = [\"out\"]
metrics = [\"size.json\"]
";

/// Creates a repository with [`PIPELINE`] and its input and parameters.
fn pipeline() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("in.txt", "hello\n");
    sandbox.write("params.toml", "[upper]\nx = 1\n[other]\ny = 1\n");
    sandbox.write("mlx.toml", PIPELINE);
    sandbox.write(".gitignore", "/runs.log\n");
    sandbox
}

/// Returns how often the stage `upper` has run.
fn run_count(sandbox: &Sandbox) -> usize {
    sandbox.read("runs.log").lines().count()
}

#[test]
fn a_second_run_runs_nothing() {
    let sandbox = pipeline();
    assert_eq!(outcomes(&sandbox.json("repro")), "upper ran, count ran");
    let lock = sandbox.read("mlx.lock");
    assert_eq!(outcomes(&sandbox.json("repro")), "upper unchanged, count unchanged");
    assert_eq!(sandbox.read("mlx.lock"), lock);
    assert_eq!(run_count(&sandbox), 1);
    assert_eq!(sandbox.read(".gitignore"), "/runs.log\n/out\n/upper.txt\n");
    assert_eq!(sandbox.json("status")["clean"], true);
}

#[test]
fn a_changed_param_reruns_the_stages_that_depend_on_it() {
    let sandbox = pipeline();
    sandbox.ok("repro");
    sandbox.write("params.toml", "[upper]\nx = 1\n[other]\ny = 2\n");
    assert_eq!(outcomes(&sandbox.json("repro")), "upper unchanged, count unchanged");
    sandbox.write("params.toml", "[upper]\nx = 2\n[other]\ny = 2\n");
    let plan = sandbox.json("repro --dry-run");
    assert_eq!(outcomes(&plan), "upper would run, count would run");
    assert_eq!(plan["stages"][0]["why"], json!(["params.toml: upper.x 1 → 2"]));
    assert_eq!(plan["stages"][1]["why"], json!(["it needs the stage `upper`, which would run"]));
    assert_eq!(sandbox.mlx("repro --dry-run --check").code, 10);
    assert_eq!(run_count(&sandbox), 1);
    assert_eq!(outcomes(&sandbox.json("repro")), "upper ran, count ran");
}

#[test]
fn param_values_of_different_types_are_different() {
    let sandbox = pipeline();
    for (at, value) in ["1", "1.0", "true", "\"1\"", "[1]"].iter().enumerate() {
        sandbox.write("params.toml", format!("[upper]\nx = {value}\n"));
        assert!(outcomes(&sandbox.json("repro")).starts_with("upper ran"), "{value}");
        assert_eq!(run_count(&sandbox), at + 1);
        assert!(outcomes(&sandbox.json("repro")).starts_with("upper unchanged"), "{value}");
    }
}

#[test]
fn an_earlier_run_is_restored_from_the_cache() {
    let sandbox = pipeline();
    sandbox.ok("repro");
    let (lock, files) = (sandbox.read("mlx.lock"), snapshot(&sandbox.repo));
    sandbox.write("in.txt", "other\n");
    sandbox.ok("repro");
    sandbox.write("in.txt", "hello\n");
    assert_eq!(outcomes(&sandbox.json("repro --dry-run")), "upper would restore, count would restore");
    assert_eq!(outcomes(&sandbox.json("repro")), "upper restored, count restored");
    assert_eq!((run_count(&sandbox), sandbox.read("mlx.lock")), (2, lock.clone()));
    fs::remove_file(sandbox.repo.join("mlx.lock")).unwrap();
    assert_eq!(outcomes(&sandbox.json("repro")), "upper restored, count restored");
    assert_eq!(sandbox.read("mlx.lock"), lock);
    fs::remove_dir_all(sandbox.repo.join("out")).unwrap();
    fs::remove_file(sandbox.repo.join("size.json")).unwrap();
    assert_eq!(outcomes(&sandbox.json("repro")), "upper unchanged, count restored");
    sandbox.write("runs.log", "ran\n");
    assert_eq!(snapshot(&sandbox.repo), files);
}

#[test]
fn an_input_that_changes_during_the_run_is_never_recorded() {
    let sandbox = Sandbox::new();
    sandbox.write("in.txt", "before\n");
    sandbox.write(
        "mlx.toml",
        "[stage.slow]\ncmd = 'cat in.txt > out.txt; echo after > in.txt'\n\
        deps = ['in.txt']\nouts = ['out.txt']\n",
    );
    let ran = sandbox.mlx("repro --json");
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(ran.code, 4, "{}", ran.out);
    assert_eq!(outcomes(&value), "slow failed");
    assert!(
        value["error"]["message"].as_str().unwrap().contains("`in.txt` changed while the stage `slow` ran")
    );
    assert!(!sandbox.has("mlx.lock") && !sandbox.has("out.txt"));
}

#[test]
fn a_failing_command_leaves_everything_as_it_was() {
    let sandbox = pipeline();
    sandbox.ok("repro");
    let (lock, files) = (sandbox.read("mlx.lock"), snapshot(&sandbox.repo));
    let broken = PIPELINE.replace("tr a-z", "echo half > upper.txt; exit 3; tr a-z");
    sandbox.write("mlx.toml", &broken);
    let error = sandbox.fails("repro", 8);
    assert!(
        error.contains("the stage `upper` failed (exit code 3)") && error.contains("its output is in "),
        "{error}"
    );
    assert_eq!(sandbox.read("mlx.lock"), lock);
    sandbox.write("mlx.toml", PIPELINE);
    sandbox.write("runs.log", "ran\n");
    assert_eq!(snapshot(&sandbox.repo), files, "the former output is back");
    assert_eq!(outcomes(&sandbox.json("repro")), "upper unchanged, count unchanged");
}

#[test]
fn a_stage_killed_by_a_signal_is_reported_with_its_name() {
    let sandbox = Sandbox::new();
    for (command, said) in [
        ("kill -9 $$", "(killed by SIGKILL)"),
        ("sh -c \"kill -TERM \\$\\$\"", "(killed by SIGTERM)"),
        ("exit 130", "(killed by SIGINT)"),
        ("exit 7", "(exit code 7)"),
    ] {
        sandbox.write("mlx.toml", format!("[stage.s]\ncmd = '{command}'\nouts = ['o']\n"));
        let error = sandbox.fails("repro", 8);
        assert!(error.contains(&format!("the stage `s` failed {said}")), "{command}: {error}");
        assert_eq!(error.contains("memory runs out"), said.contains("SIGKILL"), "{error}");
    }
}

#[test]
fn a_command_that_does_not_create_its_output_fails() {
    let sandbox = Sandbox::new();
    sandbox.write("mlx.toml", "[stage.lazy]\ncmd = 'true'\nouts = ['out.txt']\n");
    let error = sandbox.fails("repro", 8);
    assert!(error.contains("succeeded, but did not create its output `out.txt`"), "{error}");
    assert!(!sandbox.has("mlx.lock"));
}

#[test]
fn after_a_failure_other_stages_run_only_with_keep_going() {
    let sandbox = Sandbox::new();
    let text = "[stage.a]\ncmd = 'false'\nouts = ['1']\n\
        [stage.b]\ncmd = 'touch 2'\ndeps = ['1']\nouts = ['2']\n\
        [stage.c]\ncmd = 'touch 3'\nouts = ['3']\n";
    sandbox.write("mlx.toml", text);
    assert_eq!(outcomes(&sandbox.json("repro")), "a failed, b skipped, c skipped");
    assert_eq!(outcomes(&sandbox.json("repro --keep-going")), "a failed, b skipped, c ran");
}

#[test]
fn an_output_changed_by_hand_is_kept_before_it_is_restored() {
    let sandbox = pipeline();
    sandbox.ok("repro");
    sandbox.write("upper.txt", "by hand");
    let ran = sandbox.mlx("repro");
    let said = "`upper.txt` held content that no run recorded; it is kept for 30 days: `mlx restore b3:";
    assert!(ran.err.contains(said), "{}", ran.err);
    assert!(sandbox.read("upper.txt").starts_with("HELLO"));
    assert_eq!(run_count(&sandbox), 1);
}

#[test]
fn an_edited_output_can_be_committed_and_says_so() {
    let sandbox = pipeline();
    sandbox.ok("repro");
    sandbox.write("upper.txt", "by hand");
    sandbox.ok("commit upper.txt");
    assert!(sandbox.read("mlx.lock").contains("edited = true"));
    assert_eq!(outcomes(&sandbox.json("repro")), "upper unchanged, count ran");
    assert_eq!(sandbox.read("upper.txt"), "by hand");
}

#[test]
fn a_partial_output_of_a_killed_stage_is_moved_away() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "mlx.toml",
        "[stage.slow]\ncmd = 'echo half > out.txt; sleep 30; echo whole > out.txt'\nouts = ['out.txt']\n",
    );
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    let mut child = command.arg("repro").spawn().unwrap();
    while !sandbox.has("out.txt") {
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    sandbox.write("mlx.toml", "[stage.slow]\ncmd = 'echo whole > out.txt'\nouts = ['out.txt']\n");
    let ran = sandbox.mlx("repro");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("partial outputs of the stage `slow` were moved to "), "{}", ran.err);
    assert!(ran.err.contains(": `out.txt`"), "{}", ran.err);
    assert_eq!(sandbox.read("out.txt"), "whole\n");
}

#[test]
fn an_invalid_pipeline_is_refused_before_any_stage_runs() {
    let sandbox = Sandbox::new();
    sandbox.write("params.toml", "a = 1\n");
    sandbox.write("tracked.txt", "x");
    sandbox.git("add tracked.txt");
    sandbox.write("data/x", "x");
    sandbox.ok("add data");
    let first = "[stage.a0]\ncmd = 'touch ran'\nouts = ['ran']\n";
    for (text, code, part) in [
        ("[stage.a]\ncmd='x'\ndeps=['none']\n", 3, "the stage `a` needs `none`, which was not found"),
        ("[stage.a]\ncmd='x'\nparams=['params.toml:b.c']\n", 3, "`params.toml` has no parameter `b.c`"),
        ("[stage.a]\ncmd='x'\nparams=['gone.toml:b']\n", 3, "the parameter file `gone.toml` was not found"),
        ("[stage.a]\ncmd='x'\nouts=['../x']\n", 2, "is outside the repository"),
        ("[stage.a]\ncmd='x'\nouts=['tracked.txt']\n", 4, "Git tracks `tracked.txt`"),
        ("[stage.a]\ncmd='x'\nouts=['tracked.txt/o']\n", 4, "`tracked.txt` is a file"),
        (
            "[stage.a]\ncmd='x'\nouts=['data/y']\n",
            4,
            "the output `data/y` of the stage `a` is in `data`, which has a pointer",
        ),
        ("[stage.a]\ncmd='x'\nout=['y']\n", 2, "unknown field `out`"),
    ] {
        sandbox.write("mlx.toml", format!("{first}{text}"));
        let error = sandbox.fails("repro", code);
        assert!(error.contains(part), "{text}\n{error}");
        assert!(!sandbox.has("ran") && !sandbox.has("mlx.lock"), "{text}");
        // The plan says the same: neither promises a run that would be refused.
        let planned = sandbox.mlx("repro --dry-run");
        assert!(planned.code == code && planned.err.contains(part), "{text}\n{planned:?}");
    }
}

#[test]
fn adding_over_an_output_is_refused() {
    let sandbox = pipeline();
    sandbox.ok("repro");
    for args in ["add upper.txt", "add out/count.txt", "add out"] {
        assert!(sandbox.fails(args, 4).contains("belongs to the stage"), "{args}");
    }
}

#[test]
fn a_dry_run_needs_no_data() {
    let sandbox = pipeline();
    sandbox.write("data/a.txt", "a");
    sandbox.ok("add data");
    let text = format!(
        "{PIPELINE}\n[stage.list]\ncmd = 'ls data > list.txt'\ndeps = ['data']\nouts = ['list.txt']\n"
    );
    sandbox.write("mlx.toml", text);
    sandbox.ok("repro");
    sandbox.commit("all");
    let clone = sandbox.root().join("clone");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    let other = sandbox.at(&clone);
    let plan = other.json("repro --dry-run");
    assert_eq!(
        plan["stages"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|stage| stage["name"] == "list" && stage["outcome"] == "unchanged")
            .count(),
        1,
        "{plan}"
    );
    let status = other.json("status");
    assert_eq!(status["data"][0]["state"], "absent", "{status}");
    assert_eq!(other.json("diff data"), json!([]));
    fs::write(clone.join("params.toml"), "[upper]\nx = 9\n").unwrap();
    let plan = other.json("repro --dry-run");
    assert_eq!(plan["stages"][1]["outcome"], "would run", "{plan}");
}

#[test]
fn a_pipeline_in_a_folder_runs_in_that_folder() {
    let sandbox = Sandbox::new();
    sandbox.write("sub/in.txt", "x");
    sandbox.write(
        "sub/mlx.toml",
        "[stage.copy]\ncmd = 'cp in.txt out.txt'\ndeps = ['in.txt']\nouts = ['out.txt']\n",
    );
    assert_eq!(outcomes(&sandbox.at(&sandbox.repo.join("sub")).json("repro")), "sub:copy ran");
    assert!(
        sandbox.has("sub/mlx.lock")
            && sandbox.has("sub/out.txt")
            && sandbox.read("sub/.gitignore") == "/out.txt\n"
    );
    assert_eq!(outcomes(&sandbox.json("-C sub repro")), "sub:copy unchanged");
    sandbox.git("add -A");
    let status = sandbox.json("status");
    assert_eq!(
        (&status["clean"], &status["stages"][0]["name"]),
        (&json!(true), &json!("sub:copy")),
        "pipelines in other folders are found with Git"
    );
}

#[test]
fn metrics_and_params_are_compared_between_versions() {
    let sandbox = pipeline();
    sandbox.ok("repro");
    sandbox.commit("one");
    sandbox.write("params.toml", "[upper]\nx = 25\n[other]\ny = nan\n");
    sandbox.ok("repro");
    let expected = json!([{"file": "size.json", "metric": "size", "old": 12, "new": 13, "change": 1,
        "kind": "changed"}]);
    assert_eq!(sandbox.json("diff metrics"), expected);
    sandbox.commit("two");
    assert_eq!(sandbox.json("diff metrics HEAD~1 HEAD"), expected);
    assert_eq!(sandbox.json("diff metrics"), json!([]));
    let params = sandbox.json("diff params HEAD~1");
    assert_eq!(
        params[0],
        json!({"file": "params.toml", "metric": "other.y", "old": 1, "new": "nan", "change": null,
            "kind": "retyped"})
    );
    assert_eq!(sandbox.json("show metrics"), json!({"size.json": {"size": 13}}));
    let shown = sandbox.json("show metrics HEAD~1 workspace");
    assert_eq!(
        shown,
        json!({"HEAD~1": {"size.json": {"size": 12}}, "workspace": {"size.json": {"size": 13}}})
    );
    assert_eq!(sandbox.json("show metrics --all-commits").as_object().unwrap().len(), 3);
    let table = sandbox.ok("diff metrics HEAD~1 HEAD");
    assert!(table.contains("size.json  size    12   13   +1"), "{table}");
    assert!(sandbox.fails("diff metrics nope", 3).contains("revision `nope` not found"));
}

#[test]
fn metrics_of_pipelines_in_folders_are_found_in_every_commit() {
    let sandbox = Sandbox::new();
    sandbox.write("first", "x");
    sandbox.commit("none");
    sandbox.write("part/sub/m.json", "{\"n\": 1}");
    sandbox.write("part/sub/mlx.toml", "[stage.s]\ncmd = 'true'\nmetrics = ['m.json']\n");
    let folder = sandbox.repo.join("part/sub");
    assert_eq!(sandbox.at(&folder).json("show metrics"), json!({"part/sub/m.json": {"n": 1}}), "untracked");
    sandbox.commit("one");
    sandbox.git("rm -r -q part");
    sandbox.commit("gone");
    assert_eq!(sandbox.json("show metrics"), json!({}));
    assert_eq!(sandbox.json("show metrics HEAD~1"), json!({"HEAD~1": {"part/sub/m.json": {"n": 1}}}));
    let all = sandbox.json("show metrics --all-commits");
    assert_eq!(
        all.as_object().unwrap().values().filter(|files| files["part/sub/m.json"]["n"] == 1).count(),
        1
    );
}

#[test]
fn diff_data_lists_each_changed_file() {
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "1");
    sandbox.write("data/b", "2");
    sandbox.ok("add data");
    sandbox.commit("one");
    sandbox.write("data/a", "changed");
    sandbox.write("data/c", "3");
    fs::remove_file(sandbox.repo.join("data/b")).unwrap();
    let expected = json!([
        {"path": "data/a", "change": "modified"},
        {"path": "data/b", "change": "deleted"},
        {"path": "data/c", "change": "added"},
    ]);
    assert_eq!(sandbox.json("diff data"), expected);
    sandbox.ok("add data");
    sandbox.commit("two");
    assert_eq!(sandbox.json("diff data HEAD~1 HEAD"), expected);
    // The workspace may be the older side, with its edits.
    sandbox.write("data/a", "1");
    assert_eq!(
        sandbox.json("diff data workspace HEAD~1"),
        json!([{"path": "data/b", "change": "added"}, {"path": "data/c", "change": "deleted"}])
    );
    // Files that are edited back to a recorded version do not differ from it.
    fs::remove_file(sandbox.repo.join("data/c")).unwrap();
    sandbox.write("data/b", "2");
    assert_eq!(sandbox.json("diff data HEAD~1"), json!([]));
    let log = sandbox.json("log data");
    let rows: Vec<_> =
        log["versions"].as_array().unwrap().iter().map(|row| (&row["summary"], &row["files"])).collect();
    assert_eq!(rows, [(&json!("two"), &json!(2)), (&json!("one"), &json!(2))]);
}

#[test]
fn lineage_traces_an_output_through_stages_to_commits() {
    let sandbox = pipeline();
    sandbox.ok("repro");
    sandbox.commit("first");
    let chain = sandbox.json("lineage out/count.txt");
    assert_eq!(chain["stage"]["name"], "count");
    assert_eq!(chain["commit"]["summary"], "first");
    let upper = &chain["inputs"][0];
    assert_eq!(
        (&upper["path"], &upper["stage"]["params"]["params.toml:upper.x"]),
        (&json!("upper.txt"), &json!(1))
    );
    assert_eq!(
        (&upper["inputs"][0]["path"], &upper["inputs"][0]["commit"]["summary"]),
        (&json!("in.txt"), &json!("first"))
    );
    assert!(sandbox.ok("lineage out --dot").starts_with("digraph lineage {"));
    assert!(sandbox.fails("lineage nothing", 3).contains("`nothing` is not tracked by mlx"));
}

#[test]
fn keep_going_reports_each_failure_as_it_happens_and_their_names_at_the_end() {
    let sandbox = Sandbox::new();
    let text = "[stage.a]\ncmd = 'false'\nouts = ['1']\n\
        [stage.b]\ncmd = 'touch 2'\ndeps = ['1']\nouts = ['2']\n\
        [stage.c]\ncmd = 'exit 3'\nouts = ['3']\n\
        [stage.d]\ncmd = 'touch 4'\nouts = ['4']\n\
        [stage.e]\ncmd = 'touch 5'\ndeps = ['none']\nouts = ['5']\n";
    sandbox.write("mlx.toml", text);
    sandbox.write("elsewhere/mlx.toml", "[stage\n");
    sandbox.git("add elsewhere");
    let ran = sandbox.mlx("repro --all -k");
    assert_eq!(ran.code, 8, "that of the first");
    let said: Vec<_> = ran.err.lines().filter(|line| !line.starts_with("hint:")).collect();
    let expected = [
        "running stage `a`: false",
        "error: the stage `a` failed (exit code 1): `false`",
        "running stage `c`: exit 3",
        "error: the stage `c` failed (exit code 3): `exit 3`",
        "running stage `d`: touch 4",
        "error: the stage `e` needs `none`, which was not found",
        "error: cannot read `elsewhere/mlx.toml`: TOML parse error at line 1, column 7",
    ];
    assert_eq!(said[..7], expected, "{}", ran.err);
    assert_eq!(said.last(), Some(&"error: 3 stages failed: `a`, `c`, `e`"), "{}", ran.err);
    let value = sandbox.json("repro -k");
    assert_eq!(value["error"]["message"], "3 stages failed: `a`, `c`, `e`");
    assert_eq!(value["stages"][2]["why"][0], "the stage `c` failed (exit code 3): `exit 3`");
    assert!(value["stages"][2]["why"][1].as_str().unwrap().starts_with("its output is in "));
    // Without it the run ends with the error itself.
    let ran = sandbox.mlx("repro a c");
    assert_eq!((ran.code, ran.err.matches("error: ").count()), (8, 1), "{}", ran.err);
    assert!(ran.err.contains("error: the stage `a` failed"), "{}", ran.err);
}

#[test]
fn status_tells_of_a_run_that_goes_on_and_of_one_that_was_interrupted() {
    let sandbox = Sandbox::new();
    let (fifo, stage) =
        (sandbox.root().join("fifo"), "[stage.s]\ncmd = 'cat i > o'\ndeps = ['i']\nouts = ['o']\n");
    sandbox.write("i", "1\n");
    sandbox.write("mlx.toml", stage);
    sandbox.ok("repro");
    let slow = stage.replace("'cat i > o'", &format!("'echo half > o; mkfifo {0}; cat {0}'", fifo.display()));
    sandbox.write("mlx.toml", slow);
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    let mut child = command.arg("repro").spawn().unwrap();
    while !fifo.exists() {
        thread::sleep(Duration::from_millis(10));
    }
    let said = sandbox.ok("status");
    assert!(said.contains("o: 1 change (its stage `s` is running now)\n  modified  o\n"), "{said}");
    assert!(said.contains("stage s: would run\n  it is running now\n"), "{said}");
    child.kill().unwrap();
    child.wait().unwrap();
    let said = sandbox.ok("status");
    let left = "left by an interrupted run of its stage `s`: `mlx repro` sets it aside";
    assert!(said.contains(&format!("o: 1 change ({left})\n")), "{said}");
    assert!(said.contains("stage s: would run\n  its last run was interrupted"), "{said}");
    assert_eq!(sandbox.json("status")["data"][0]["why"], left);
    // Nothing but the interrupted run differs from the record.
    sandbox.write("mlx.toml", stage);
    let why = &sandbox.json("status")["stages"][0]["why"];
    assert_eq!(why[1], "its output `o` may be half written");
    fs::remove_file(sandbox.repo.join("o")).unwrap();
    let said = sandbox.ok("status");
    assert!(said.contains(&format!("o: absent ({left})\n")), "{said}");
    sandbox.ok("repro");
    assert_eq!(
        (sandbox.ok("status").lines().next(), &sandbox.read("o")[..]),
        (Some("clean: everything is as recorded"), "1\n")
    );
}
