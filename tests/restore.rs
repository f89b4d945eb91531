//! Tests that content which no run recorded is kept when `repro` replaces it, that `mlx restore` brings it
//! back, and that nothing is called changed which no user changed.

use std::fs;

use crate::sandbox::{CommandResult, Sandbox, command_result};

/// One stage with a file and a folder as outputs.
const PIPELINE: &str = "[stage.make]\ncmd = 'cat i > model; mkdir parts; cp i parts/a'\ndeps = ['i']\n\
    outs = ['model', 'parts']\n";

fn pipeline() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("i", "one");
    sandbox.write("mlx.toml", PIPELINE);
    sandbox.ok("repro");
    sandbox.commit("one");
    sandbox
}

/// Returns the commands that a message names, without `mlx`.
fn printed_commands(text: &str) -> Vec<String> {
    text.split('`')
        .filter_map(|part| part.strip_prefix("mlx restore "))
        .map(|it| format!("restore {it}"))
        .collect()
}

/// Runs mlx a number of days after the sandbox's day.
fn later(sandbox: &Sandbox, days: u64, args: &str) -> CommandResult {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    command.env("MLX_TIMESTAMP", (1_700_000_000 + days * 86_400).to_string()).args(args.split(' '));
    command_result(command.output().unwrap())
}

#[test]
fn the_printed_command_brings_back_a_file_and_a_folder() {
    let sandbox = pipeline();
    sandbox.write("model", "precious");
    sandbox.write("parts/a", "precious part");
    sandbox.write("parts/new", "another");
    let commands = printed_commands(&sandbox.mlx("repro").err);
    assert_eq!(commands.len(), 2, "{commands:?}");
    assert_eq!((sandbox.read("model"), sandbox.read("parts/a")), ("one".to_owned(), "one".to_owned()));
    assert!(!sandbox.has("parts/new"));
    sandbox.ok(&format!("{} --to elsewhere/old", commands[0]));
    assert_eq!((sandbox.read("elsewhere/old"), sandbox.read("model")), ("precious".into(), "one".into()));
    let said: Vec<_> = commands.iter().map(|command| sandbox.ok(command)).collect();
    assert_eq!(sandbox.read("model"), "precious");
    assert_eq!(
        (sandbox.read("parts/a"), sandbox.read("parts/new")),
        ("precious part".into(), "another".into())
    );
    assert!(said[0].ends_with("next: mlx commit model\n"), "{}", said[0]);
    sandbox.ok("commit");
    assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged");
}

#[test]
fn restore_never_overwrites_what_is_not_stored() {
    let sandbox = pipeline();
    sandbox.write("model", "precious");
    let command = printed_commands(&sandbox.mlx("repro").err).remove(0);
    sandbox.write("model", "newer");
    let error = sandbox.fails(&command, 4);
    assert!(error.contains("not stored anywhere: `model`") && error.contains("--to PATH"), "{error}");
    assert!(sandbox.fails(&format!("{command} --to mlx.toml"), 4).contains("`mlx.toml`"));
    assert_eq!((sandbox.read("model"), sandbox.read("mlx.toml")), ("newer".into(), PIPELINE.into()));
    assert!(sandbox.fails(&format!("{command} --to ."), 2).contains("the whole repository"));
    assert!(sandbox.fails("restore b3:0000", 3).contains("`mlx du` lists the versions"));
    assert!(sandbox.fails("restore model", 2).contains("is not a version"));
}

#[test]
fn any_stored_content_is_restored_by_its_full_digest() {
    let sandbox = pipeline();
    let digest = blake3::hash(b"one");
    assert!(sandbox.fails(&format!("restore b3:{digest}"), 2).contains("say where to write it"));
    let said = sandbox.ok(&format!("restore b3:{digest} --to copy"));
    assert!(said.ends_with("next: mlx add copy\n"), "{said}");
    assert_eq!(sandbox.read("copy"), "one");
}

#[test]
fn any_stored_content_is_restored_by_the_digits_that_commands_print() {
    let sandbox = Sandbox::new();
    sandbox.write("d/1", "one");
    sandbox.write("large", vec![7; 2_000_000]);
    let printed = |said: &str, path: &str| {
        let line = said.lines().find(|line| line.starts_with(&format!("{path}: "))).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    let said = sandbox.ok("add d large");
    let (folder, large) = (printed(&said, "d"), printed(&said, "large"));
    sandbox.write("d/1", "two");
    sandbox.ok("add d");
    sandbox.ok(&format!("restore b3:{folder} --to old"));
    sandbox.ok(&format!("restore {large} --to copy"));
    let file = &blake3::hash(b"one").to_hex()[..10];
    sandbox.ok(&format!("restore b3:{file} --to file"));
    assert_eq!((sandbox.read("old/1"), sandbox.read("file")), ("one".into(), "one".into()));
    assert_eq!(sandbox.read("copy"), sandbox.read("large"));
    let error = sandbox.fails(&format!("restore b3:{} --to x", &folder[..9]), 3);
    assert!(error.contains("10 digits of its digest or more"), "{error}");
}

#[test]
fn a_kept_version_is_listed_and_outlives_every_gc_for_thirty_days() {
    let sandbox = pipeline();
    sandbox.write("model", "precious");
    sandbox.ok("repro");
    let kept = &sandbox.json("du")["kept"][0];
    let command = kept["command"].as_str().unwrap().strip_prefix("mlx ").unwrap();
    assert_eq!(kept["path"], "model");
    assert_eq!(kept["when"], "2023-11-14T22:13:20Z");
    assert_eq!(kept["until"], "2023-12-14T22:13:20Z");
    assert!(sandbox.ok("du").contains(&format!("mlx {command}")));
    assert_eq!(sandbox.json("status")["kept"], 1);
    assert_eq!(later(&sandbox, 29, "gc --grace 0s --yes").code, 0);
    sandbox.ok(&format!("{command} --to old"));
    fs::remove_file(sandbox.repo.join("old")).unwrap();
    assert!(later(&sandbox, 30, "gc --grace 0s").out.contains("would free"));
    assert_eq!(sandbox.json("du")["kept"].as_array().unwrap().len(), 1, "nothing was deleted yet");
    assert_eq!(later(&sandbox, 30, "gc --grace 0s --yes").code, 0);
    assert_eq!(sandbox.json("du")["kept"].as_array().unwrap().len(), 0);
    sandbox.fails(&format!("{command} --to old"), 3);
}

/// Runs `repro` and asserts that it calls nothing changed and keeps nothing.
fn assert_nothing_kept(sandbox: &Sandbox, folder: &std::path::Path, case: &str) {
    let ran = sandbox.at(folder).mlx("repro");
    assert_eq!((ran.code, ran.err.contains("no run recorded")), (0, false), "{case}: {}", ran.err);
    assert_eq!(sandbox.at(folder).json("du")["kept"], serde_json::json!([]), "{case}");
}

#[test]
fn what_a_run_recorded_is_replaced_without_a_word() {
    let replace = |sandbox: &Sandbox, old: &str, new: &str| {
        let text = sandbox.read("mlx.toml");
        sandbox.write("mlx.toml", text.replace(old, new));
    };
    let rename = |sandbox: &Sandbox| replace(sandbox, "make", "renamed");
    let edit = |sandbox: &Sandbox| replace(sandbox, "cat i", "cat i i");
    let lose = |sandbox: &Sandbox| fs::remove_file(sandbox.repo.join("mlx.lock")).unwrap();
    let forget = |sandbox: &Sandbox| fs::remove_dir_all(sandbox.repo.join(".git/mlx/runs")).unwrap();
    let cases: [(&str, &[&dyn Fn(&Sandbox)]); 6] = [
        ("renamed", &[&rename]),
        ("renamed and edited", &[&edit, &rename]),
        ("lost lockfile", &[&lose]),
        ("lost lockfile, edited", &[&lose, &edit]),
        ("lost lockfile and runs", &[&lose, &forget]),
        ("lost lockfile and runs, edited", &[&lose, &forget, &edit]),
    ];
    for (case, changes) in cases {
        let sandbox = pipeline();
        changes.iter().for_each(|change| change(&sandbox));
        assert_nothing_kept(&sandbox, &sandbox.repo, case);
    }
}

#[test]
fn a_merge_or_a_switched_branch_replaces_outputs_without_a_word() {
    let sandbox = pipeline();
    sandbox.git("checkout -q -b side");
    sandbox.write("i", "two");
    sandbox.ok("repro");
    sandbox.commit("two");
    sandbox.git("checkout -q main");
    assert_nothing_kept(&sandbox, &sandbox.repo, "switched");
    let clone = sandbox.root().join("clone");
    sandbox.ok(&format!("remote add origin file://{} --default", sandbox.root().join("remote").display()));
    sandbox.commit("remote");
    sandbox.ok("push");
    sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), clone.display()));
    sandbox.at(&clone).ok("pull");
    fs::remove_dir_all(clone.join(".git/mlx/runs")).unwrap();
    sandbox.at(&clone).git("merge -q --no-edit origin/side");
    assert_nothing_kept(&sandbox, &clone, "merged");
    assert_eq!(fs::read_to_string(clone.join("model")).unwrap(), "two");
    // A run that is recorded in older commits only.
    for input in ["three", "four", "five"] {
        fs::write(clone.join("i"), input).unwrap();
        sandbox.at(&clone).ok("repro");
        sandbox.at(&clone).git("commit -q -a -m next");
    }
    sandbox.at(&clone).ok("checkout --rev HEAD~2 model parts");
    assert_eq!(fs::read_to_string(clone.join("model")).unwrap(), "three");
    fs::remove_dir_all(clone.join(".git/mlx/runs")).unwrap();
    assert_nothing_kept(&sandbox, &clone, "checked out");
}

#[test]
fn line_ends_that_git_converted_are_not_a_change() {
    let sandbox = Sandbox::new();
    sandbox.write("i", "one\n");
    let text = "[stage.m]\ncmd = 'cp i o; printf \"{\\n\\\"a\\\": 1\\n}\\n\" > m.json'\n\
        deps = ['i']\nouts = ['o']\nmetrics = ['m.json']\n";
    sandbox.write("mlx.toml", text);
    sandbox.ok("repro");
    sandbox.write(".gitattributes", "m.json text eol=crlf\n");
    sandbox.commit("one");
    let checkout_again = || {
        fs::remove_file(sandbox.repo.join("m.json")).unwrap();
        sandbox.git("checkout -q -- m.json");
        assert!(sandbox.read("m.json").contains("\r\n"));
    };
    checkout_again();
    assert_eq!(sandbox.json("repro --dry-run")["stages"][0]["outcome"], "unchanged");
    assert_nothing_kept(&sandbox, &sandbox.repo, "converted");
    sandbox.write("i", "two\n");
    assert_nothing_kept(&sandbox, &sandbox.repo, "converted, then another input");
    assert_eq!(sandbox.read("o"), "two\n");
    checkout_again();
    sandbox.write("i", "one\n");
    assert_nothing_kept(&sandbox, &sandbox.repo, "converted, then restored");
    assert_eq!((sandbox.read("o"), sandbox.read("m.json")), ("one\n".into(), "{\n\"a\": 1\n}\n".into()));
    checkout_again();
    sandbox.write("m.json", "{\r\n\"a\": 2\r\n}\r\n");
    let ran = sandbox.mlx("repro");
    assert!(ran.err.contains("`m.json` held content that no run recorded"), "{}", ran.err);
}

#[test]
fn leftovers_of_failed_runs_are_counted_and_removed_after_thirty_days() {
    let sandbox = Sandbox::new();
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'mkdir o; echo partial > o/file; exit 1'\nouts = ['o']\n");
    sandbox.fails("repro", 8);
    later(&sandbox, 2, "repro");
    let classes = sandbox.json("du")["classes"].clone();
    assert_eq!((&classes["failed"]["objects"], &classes["failed"]["bytes"]), (&2.into(), &16.into()));
    assert_eq!(classes["logs"]["objects"], 2);
    assert_eq!(sandbox.json("status")["failed"], 2);
    assert!(sandbox.mlx("status").out.contains("outputs of 2 failed runs"));
    assert_eq!(later(&sandbox, 29, "gc --grace 0s --yes").code, 0);
    assert_eq!(sandbox.json("status")["failed"], 2);
    let dry = later(&sandbox, 31, "gc --grace 0s --json").out;
    let freed = serde_json::from_str::<serde_json::Value>(&dry).unwrap()["freed"].clone();
    assert_eq!((&freed["failed"]["count"], &freed["logs"]["count"]), (&1.into(), &1.into()), "{freed}");
    assert_eq!(sandbox.json("status")["failed"], 2);
    later(&sandbox, 400, "gc --yes");
    let classes = sandbox.json("du")["classes"].clone();
    assert_eq!((&classes["failed"]["objects"], &classes["logs"]["objects"]), (&0.into(), &1.into()));
}
