//! Tests what holds for every command: help, `--json`, `--quiet`, error output, settings, secrets and
//! progress.

use std::{fs, path::Path};

use serde_json::Value;

use crate::sandbox::{Sandbox, skip};

/// Lists every command that has no subcommands, as `mlx help --all` shows them.
fn commands(sandbox: &Sandbox) -> Vec<String> {
    let all = sandbox.ok("help --all");
    let typed = all.lines().filter_map(|line| line.strip_prefix("$ mlx ")?.strip_suffix(" --help"));
    let mut commands: Vec<String> = typed.map(str::to_owned).collect();
    let groups = commands.clone();
    commands.retain(|command| !groups.iter().any(|other| other.starts_with(&format!("{command} "))));
    commands
}

#[test]
fn the_help_of_every_command_has_an_example_and_describes_its_json() {
    let sandbox = Sandbox::empty();
    let all = commands(&sandbox);
    assert!(all.len() > 25, "{all:?}");
    for command in all {
        let help = sandbox.ok(&format!("{command} --help"));
        assert!(help.contains("Examples:\n  ") && help.contains("JSON: "), "{command}\n{help}");
    }
}

#[test]
fn an_error_in_json_is_an_object_with_kind_message_and_hint() {
    let sandbox = Sandbox::empty();
    for (args, code, kind) in
        [("status --json", 3, "not-found"), ("stauts --json", 2, "usage"), ("add --json", 2, "usage")]
    {
        let ran = sandbox.mlx(args);
        let value: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((ran.code, value["error"]["kind"].as_str()), (code, Some(kind)), "{args}");
        assert!(value["error"]["message"].is_string() && value["error"]["hint"].is_string(), "{value}");
    }
}

#[test]
fn quiet_prints_errors_only() {
    let sandbox = Sandbox::new();
    sandbox.write("data/x", "x");
    let ran = sandbox.mlx("-q add data");
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    let ran = sandbox.mlx("-q add nothing");
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (3, "", "error: `nothing` not found\n"));
    let ran = sandbox.mlx("-C nowhere status");
    assert_eq!((ran.code, ran.err.as_str()), (3, "error: the folder `nowhere` does not exist\n"));
}

#[test]
fn completions_and_doctor_print_a_report() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(sandbox.ok(&format!("completions {shell}")).contains("mlx"), "{shell}");
    }
    let found = sandbox.json("doctor");
    assert_eq!(found["engine"], "rten (built in)");
    assert!(
        found["links"].as_array().unwrap().contains(&Value::from("copy"))
            && found["free"].as_u64().unwrap() > 0
    );
}

#[test]
fn settings_are_layered_and_unsafe_ones_cannot_be_committed() {
    let sandbox = Sandbox::new();
    sandbox.ok("config set cache.link copy");
    sandbox.ok("config set --local cache.link hardlink");
    assert_eq!(sandbox.json("config get cache.link")["cache.link"]["value"], "hardlink");
    assert!(sandbox.read(".mlx/config.toml").contains("link = \"copy\""));
    assert!(sandbox.fails("config set cache.dir /tmp/x", 6).contains("must not be committed"));
    assert!(sandbox.fails("config set no.such thing", 2).contains("setting `no.such` not found"));
    assert!(sandbox.fails("config get core.remote", 3).contains("`core.remote` is not set"));
    let cache = sandbox.root().join("cache");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    sandbox.write("data/x", "x");
    sandbox.ok("add data");
    assert!(cache.join("packs").is_dir() && fs::read_dir(cache.join("packs")).unwrap().count() == 4);
}

#[test]
fn no_secret_is_printed_or_committed() {
    let sandbox = Sandbox::new();
    sandbox.ok("remote add s3 s3://bucket/x --default --set region=r");
    assert!(
        sandbox.fails("config set remote.s3.secret_access_key CANARY", 6).contains("must not be committed")
    );
    assert!(
        sandbox
            .fails("remote add two s3://b --set secret_access_key=CANARY", 6)
            .contains("must not be committed")
    );
    assert!(sandbox.fails("remote add three s3://user:CANARY@b/x", 6).contains("must not contain"));
    sandbox.ok("config set --local remote.s3.secret_access_key CANARY");
    for args in ["config list", "config list --json", "remote list --json"] {
        let ran = sandbox.mlx(args);
        assert!(!ran.out.contains("CANARY") && !ran.err.contains("CANARY"), "{args}");
    }
    assert!(!sandbox.git("status --porcelain -uall").contains("local.toml"));
}

#[test]
fn the_readme_names_every_command() {
    let sandbox = Sandbox::empty();
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for command in commands(&sandbox) {
        let name = format!("mlx {command}");
        assert!(readme.contains(&format!("`{name}")), "README lacks `{name}`");
    }
}

/// Runs each command of the README in an empty folder, where only a command that does not exist or a wrong
/// flag is a usage error.
#[test]
fn the_commands_of_the_readme_exist_as_they_are_written() {
    let sandbox = Sandbox::empty();
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let typed = readme.lines().filter_map(|line| line.strip_prefix("$ "));
    let parts = typed.flat_map(|line| line.split("  #").next().unwrap().split("&&"));
    let commands: Vec<_> = parts.filter_map(|part| part.trim().strip_prefix("mlx ")).collect();
    assert!(commands.len() > 20, "{commands:?}");
    for command in commands {
        let ran = sandbox.mlx(command.trim_end_matches('&'));
        assert!(ran.code != 2 && ran.code != 101, "mlx {command}\n{}", ran.err);
    }
    assert_eq!(sandbox.mlx("add --globb x").code, 2, "a wrong flag is found");
}

/// `script` runs the command in a pseudoterminal.
#[test]
fn progress_is_shown_on_a_terminal_only() {
    let sandbox = Sandbox::new();
    for number in 0..40 {
        sandbox.write(&format!("data/{number}"), vec![number; 2_000_000]);
    }
    let mlx = env!("CARGO_BIN_EXE_mlx");
    let mut script = sandbox.command("script", &sandbox.repo);
    script.env("TERM", "xterm");
    let Ok(output) = script.args(["-qec", &format!("{mlx} add data"), "/dev/null"]).output() else {
        return skip("progress_is_shown_on_a_terminal_only", "`script` is not installed");
    };
    let terminal = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{terminal}");
    assert!(terminal.contains("reading") && terminal.contains("/76.29 MiB"), "{terminal:?}");
    fs::remove_file(sandbox.repo.join(".git/mlx/index")).unwrap();
    let plain = sandbox.mlx("add data");
    assert!(plain.err.is_empty(), "{}", plain.err);
}
