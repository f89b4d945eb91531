//! Tests of the record of a run: inputs that change or vanish while the stage runs, the parts of the run
//! cache's key that no file shows (environment and folder), and which blocks of the lockfile a run keeps.

use serde_json::Value;

use crate::sandbox::Sandbox;

/// Creates a repository with one stage `s`, which makes `o`, and with the file `in.txt`.
fn stage(command: &str, lines: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    write_stage(&sandbox, command, lines);
    sandbox.write("in.txt", "one");
    sandbox.write("p.toml", "x = 1\n");
    sandbox
}

fn write_stage(sandbox: &Sandbox, command: &str, lines: &str) {
    sandbox.write("mlx.toml", format!("[stage.s]\ncmd = '''{command}'''\nouts = ['o']\n{lines}\n"));
}

/// Returns the outcome of the only stage and the reasons, joined.
fn outcome(report: &Value) -> (String, String) {
    let stage = &report["stages"][0];
    let why = stage["why"].as_array().unwrap_or_else(|| panic!("{report}"));
    let why: Vec<&str> = why.iter().filter_map(Value::as_str).collect();
    (stage["outcome"].as_str().unwrap().to_owned(), why.join("; "))
}

/// Returns a block of the lockfile, from its heading to the next one.
fn block(lock: &str, stage: &str) -> Option<String> {
    let start = lock.find(&format!("[stage.{stage}]"))?;
    let rest = &lock[start..];
    let end = rest[1..].find("\n[").map_or(rest.len(), |end| end + 1);
    Some(rest[..end].trim_end().to_owned())
}

/// Runs a stage whose command changes an input in this way. The run must not be recorded anywhere: the
/// lockfile keeps its bytes, and neither this state of the inputs nor the one before has a cached run.
fn is_not_recorded(change: &str, lines: &str, input: &str) {
    let sandbox = stage("cat in.txt p.toml > o", lines);
    sandbox.ok("repro");
    sandbox.commit("first");
    let lock = sandbox.read("mlx.lock");
    write_stage(&sandbox, &format!("cat in.txt p.toml > o; echo ran >> ../runs; {change}"), lines);
    let failed = sandbox.mlx("repro");
    assert_eq!(failed.code, 4, "{change}: {failed:?}");
    assert!(failed.err.contains(&format!("`{input}")), "{change}: {}", failed.err);
    assert!(failed.err.contains("not recorded"), "{change}: {}", failed.err);
    assert_eq!(sandbox.read("mlx.lock"), lock, "{change}");
    // The same state as before the run is run again, not restored.
    sandbox.git("checkout -q in.txt p.toml");
    assert_eq!(outcome(&sandbox.json("repro --dry-run")).0, "would run", "{change}");
    assert_eq!(std::fs::read_to_string(sandbox.root().join("runs")).unwrap().lines().count(), 1);
}

#[test]
fn a_parameter_that_changes_while_the_stage_runs_is_not_recorded() {
    is_not_recorded("echo 'x = 2' > p.toml", "deps = ['in.txt']\nparams = ['p.toml:x']", "p.toml");
    is_not_recorded("echo 'x = 1.0' > p.toml", "params = ['p.toml']", "p.toml");
}

#[test]
fn a_dependency_that_changes_or_vanishes_while_the_stage_runs_is_not_recorded() {
    is_not_recorded("echo two > in.txt", "deps = ['in.txt']", "in.txt");
    let vanishes = |lines: &str| {
        let sandbox = stage("cat in.txt > o", lines);
        sandbox.ok("repro");
        let lock = sandbox.read("mlx.lock");
        write_stage(&sandbox, "cat in.txt > o; rm in.txt", lines);
        let failed = sandbox.mlx("repro");
        assert!(failed.code != 0 && failed.err.contains("`in.txt`"), "{failed:?}");
        assert_eq!(sandbox.read("mlx.lock"), lock);
        sandbox.write("in.txt", "one");
        assert_eq!(outcome(&sandbox.json("repro --dry-run")).0, "would run");
    };
    vanishes("deps = ['in.txt']");
}

#[test]
fn a_tracked_dependency_that_vanishes_while_the_stage_runs_is_not_recorded() {
    // Its pointer still says what it was: only a look at the workspace tells that it is gone.
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    sandbox.ok("add data");
    sandbox
        .write("mlx.toml", "[stage.s]\ncmd = 'cat data/a > o; rm -r data'\ndeps = ['data']\nouts = ['o']\n");
    sandbox.commit("first");
    let failed = sandbox.mlx("repro");
    assert!(failed.code != 0 && failed.err.contains("`data`"), "{failed:?}");
    assert!(!sandbox.has("mlx.lock"));
    sandbox.ok("checkout data");
    assert_eq!(outcome(&sandbox.json("repro --dry-run")).0, "would run");
}

#[test]
fn another_environment_is_a_reason_to_run_and_another_key() {
    let sandbox = stage("echo $A$B > o; echo ran >> ../runs", "env = { A = '1' }");
    let run = || outcome(&sandbox.json("repro"));
    assert_eq!(run().0, "ran");
    for lines in ["env = { A = '2' }", "env = { B = '1' }", "env = { A = '1', B = '' }", ""] {
        write_stage(&sandbox, "echo $A$B > o; echo ran >> ../runs", lines);
        let (done, why) = run();
        assert_eq!(done, "ran", "{lines}");
        assert!(why.contains("environment"), "{lines}: {why}");
        assert_eq!(run().0, "unchanged", "{lines}");
    }
    // Without a record only the key tells the runs apart.
    std::fs::remove_file(sandbox.repo.join("mlx.lock")).unwrap();
    write_stage(&sandbox, "echo $A$B > o; echo ran >> ../runs", "env = { A = '3' }");
    assert_eq!(run().0, "ran");
    assert_eq!(sandbox.read("o"), "3\n");
    write_stage(&sandbox, "echo $A$B > o; echo ran >> ../runs", "env = { A = '2' }");
    assert_eq!(run().0, "restored");
    assert_eq!(sandbox.read("o"), "2\n");
}

#[test]
fn another_folder_is_a_reason_to_run_and_another_key() {
    let command = "pwd > \"$(git rev-parse --show-toplevel)/o\"";
    let sandbox = stage(command, "");
    sandbox.ok("repro");
    let top = sandbox.read("o");
    let moved = |folder: &str, with_lock: bool| {
        std::fs::create_dir_all(sandbox.repo.join(folder)).unwrap();
        std::fs::rename(sandbox.repo.join("mlx.toml"), sandbox.repo.join(folder).join("mlx.toml")).unwrap();
        let text = sandbox.read(&format!("{folder}/mlx.toml"));
        sandbox.write(&format!("{folder}/mlx.toml"), text.replace("'o'", "'../o'"));
        let lock = sandbox.repo.join("mlx.lock");
        if with_lock {
            std::fs::rename(&lock, sandbox.repo.join(folder).join("mlx.lock")).unwrap();
        } else {
            std::fs::remove_file(&lock).unwrap();
        }
        let report = sandbox.at(&sandbox.repo.join(folder)).json("repro");
        std::fs::rename(sandbox.repo.join(folder).join("mlx.toml"), sandbox.repo.join("mlx.toml")).unwrap();
        std::fs::rename(sandbox.repo.join(folder).join("mlx.lock"), &lock).unwrap();
        write_stage(&sandbox, command, "");
        outcome(&report)
    };
    // The record is the same but for its key.
    let (done, why) = moved("one", true);
    assert_eq!(done, "ran");
    assert!(why.contains("folder"), "{why}");
    assert_eq!(sandbox.read("o"), top.replace("repo\n", "repo/one\n"));
    // Without a record only the key tells the folders apart.
    assert_eq!(moved("two", false).0, "ran");
    assert_eq!(sandbox.read("o"), top.replace("repo\n", "repo/two\n"));
}

#[test]
fn a_run_keeps_the_blocks_of_declared_stages_to_the_byte_and_of_no_others() {
    let sandbox = Sandbox::new();
    let declare = |names: &[&str]| {
        let stages = names.iter().map(|name| {
            let files = format!("deps = ['in-{name}']\nouts = ['out-{name}']");
            format!("[stage.{name}]\ncmd = 'cp in-{name} out-{name}'\n{files}\n")
        });
        sandbox.write("mlx.toml", stages.collect::<Vec<_>>().join("\n"));
    };
    for name in ["a", "b", "c"] {
        sandbox.write(&format!("in-{name}"), name);
    }
    declare(&["a", "b", "c"]);
    sandbox.ok("repro");
    // A comment shows that a block is not printed anew.
    let lock = sandbox.read("mlx.lock").replace("cmd = \"cp in-b out-b\"", "cmd = \"cp in-b out-b\" # kept");
    sandbox.write("mlx.lock", &lock);
    declare(&["a", "b"]);
    sandbox.write("in-a", "changed");
    sandbox.ok("repro a");
    let after = sandbox.read("mlx.lock");
    assert!(block(&lock, "b").unwrap().contains("# kept"));
    assert_eq!(block(&after, "b"), block(&lock, "b"), "a declared stage that did not run");
    assert_ne!(block(&after, "a"), block(&lock, "a"), "the stage that ran");
    assert_eq!(block(&after, "c"), block(&lock, "c"), "only a run of the whole pipeline removes blocks");
    sandbox.ok("repro");
    let after = sandbox.read("mlx.lock");
    assert_eq!(block(&after, "b"), block(&lock, "b"), "a stage that is unchanged");
    assert_eq!(block(&after, "c"), None, "a stage that is no longer declared");
}

#[test]
fn each_change_of_what_a_stage_declares_is_a_reason() {
    let sandbox = Sandbox::new();
    sandbox.write("in.txt", "one");
    sandbox.write("p.toml", "x = 1\n");
    let declare = |lines: &str| {
        let command = "echo 1 > o; echo 2 > m.json; echo 3 > n.json";
        sandbox.write("mlx.toml", format!("[stage.s]\ncmd = '{command}'\n{lines}\n"));
    };
    declare("deps = ['in.txt']\nouts = ['o']\nmetrics = ['m.json']");
    sandbox.ok("repro");
    for (lines, reason) in [
        ("deps = ['in.txt', 'p.toml']\nouts = ['o']\nmetrics = ['m.json']", "`p.toml` is a new dependency"),
        ("outs = ['o']\nmetrics = ['m.json']", "`in.txt` is no longer a dependency"),
        ("deps = ['in.txt']\nouts = ['o']\nmetrics = ['m.json', 'n.json']", "`n.json` is a new output"),
        ("deps = ['in.txt']\nouts = ['o']", "`m.json` is no longer an output"),
        ("deps = ['in.txt']\nouts = ['o', 'm.json']", "`m.json` moved into or out of Git"),
    ] {
        declare(lines);
        let expected = ("would run".to_owned(), reason.to_owned());
        assert_eq!(outcome(&sandbox.json("repro --dry-run")), expected, "{lines}");
    }
}
