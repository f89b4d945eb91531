//! Tests settings and remotes: several writers at once, files that hold secrets, misspelled keys, defaults.

use std::fs;

use serde_json::json;

use crate::sandbox::{CommandResult, Sandbox, command_result};

/// Starts all commands before it waits for the first.
fn run_at_once(sandbox: &Sandbox, commands: impl Iterator<Item = String>) -> Vec<CommandResult> {
    let children: Vec<_> = commands
        .map(|args| {
            let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
            command.args(args.split_whitespace());
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    children.into_iter().map(|child| command_result(child.wait_with_output().unwrap())).collect()
}

/// Returns the files in the home folder and the repository that contain a text.
fn files_with(sandbox: &Sandbox, text: &str) -> Vec<String> {
    let files = walkdir::WalkDir::new(sandbox.root()).sort_by_file_name().into_iter();
    let files = files.map(|entry| entry.unwrap()).filter(|entry| entry.file_type().is_file());
    let holds = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(text);
    let found = files.filter(|entry| holds(fs::read(entry.path()).unwrap()));
    found.map(|entry| entry.path().strip_prefix(sandbox.root()).unwrap().display().to_string()).collect()
}

#[test]
fn settings_that_are_written_at_once_are_all_kept() {
    let sandbox = Sandbox::new();
    let commands = (0..24).map(|at| match at % 4 {
        0 => format!("config set --local remote.l{at}.url file:///l{at}"),
        1 => format!("config set --user remote.u{at}.url file:///u{at}"),
        2 => format!("remote add a{at} file:///a{at}"),
        _ => format!("remote add s{at} s3://b{at}/x --set endpoint=http://127.0.0.1:9 --set region=r"),
    });
    for ran in run_at_once(&sandbox, commands) {
        assert_eq!(ran.code, 0, "{}", ran.err);
    }
    let listed = sandbox.json("remote list");
    let remotes = listed["remotes"].as_array().unwrap();
    assert_eq!(remotes.len(), 24, "{listed}");
    assert!(remotes.iter().all(|remote| remote["trusted"] == true), "{listed}");
    // The same name at once: one command adds it, the others say that it is there.
    let codes: Vec<i32> = run_at_once(&sandbox, (0..6).map(|at| format!("remote add same file:///{at}")))
        .iter()
        .map(|it| it.code)
        .collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 4).count(), 5, "{codes:?}");
    run_at_once(&sandbox, (0..24).filter(|at| at % 4 == 2).map(|at| format!("remote remove a{at}")));
    assert_eq!(sandbox.json("remote list")["remotes"].as_array().unwrap().len(), 19);
}

#[test]
fn a_secret_is_in_one_file_and_in_none_after_its_remote_is_removed() {
    let sandbox = Sandbox::new();
    let set = "--set endpoint=http://127.0.0.1:9 --set region=r --set secret_access_key=CANARY";
    sandbox.ok(&format!("remote add s3 s3://bucket/x --local --default {set}"));
    assert_eq!(files_with(&sandbox, "CANARY"), ["repo/.mlx/local.toml"]);
    sandbox.ok("remote remove s3");
    assert_eq!(files_with(&sandbox, "CANARY"), Vec::<String>::new());
    // A committed address needs an entry of trust, which does not name the local secret.
    sandbox.ok("remote add s3 s3://bucket/y --set endpoint=http://127.0.0.1:9 --set region=r");
    sandbox.ok("config set --local remote.s3.secret_access_key CANARY");
    let trusted = sandbox.root().join("home/.config/mlx/trusted.txt");
    let kept = "s3://bucket/y endpoint=http://127.0.0.1:9 region=r\n";
    for _ in 0..2 {
        assert_eq!(sandbox.json("remote list")["remotes"][0]["trusted"], true);
        assert_eq!(files_with(&sandbox, "CANARY"), ["repo/.mlx/local.toml"]);
        assert_eq!(fs::read_to_string(&trusted).unwrap(), kept);
        sandbox.ok("remote trust s3");
    }
    // Earlier versions wrote all options into this file.
    let old = "s3://bucket/y endpoint=http://127.0.0.1:9 region=r secret_access_key=CANARY\n";
    fs::write(&trusted, format!("{kept}{old}s3://other endpoint=http://127.0.0.1:9\n")).unwrap();
    sandbox.ok("remote remove s3");
    assert_eq!(files_with(&sandbox, "CANARY"), Vec::<String>::new());
    assert_eq!(
        fs::read_to_string(&trusted).unwrap(),
        format!("{kept}s3://other endpoint=http://127.0.0.1:9\n")
    );
    assert_eq!(sandbox.read(".mlx/local.toml"), "");
}

#[test]
fn removing_a_remote_removes_its_settings_from_every_file() {
    let sandbox = Sandbox::new();
    sandbox.ok("remote add o file:///one --default");
    sandbox.ok("config set --local remote.o.url file:///two");
    sandbox.ok("config set --local core.remote o");
    sandbox.ok("config set --user remote.o.region r");
    sandbox.ok("config set --local cache.link copy");
    sandbox.ok("remote remove o");
    assert_eq!(sandbox.json("remote list"), json!({"remotes": []}));
    assert_eq!(sandbox.json("config list"), json!({"cache.link": {"value": "copy", "from": "local"}}));
    // What is left of a remote, without an address, is removed, too.
    sandbox.ok("config set remote.o.region r");
    assert!(sandbox.fails("remote add o file:///one", 4).contains("`mlx remote remove o`"));
    sandbox.ok("remote remove o");
    assert!(sandbox.fails("remote remove o", 3).contains("remote `o` not found"));
    sandbox.ok("remote add o file:///one");
}

#[test]
fn comments_of_the_settings_stay_when_remotes_come_and_go() {
    let sandbox = Sandbox::new();
    let text = "# Ask the data team before you change this.\n";
    sandbox.write(".mlx/config.toml", text);
    sandbox.ok("remote add a file:///a --default");
    sandbox.ok("remote add b file:///b");
    let remotes = "[remote.a]\nurl = \"file:///a\"\n\n[remote.b]\nurl = \"file:///b\"\n";
    let all = format!("{text}\n{remotes}\n[core]\nremote = \"a\"\n");
    assert_eq!(sandbox.read(".mlx/config.toml"), all);
    sandbox.ok("remote remove a");
    sandbox.ok("remote remove b");
    assert_eq!(sandbox.read(".mlx/config.toml").trim_end(), text.trim_end());
}

#[test]
fn settings_without_effect_are_named_by_every_command() {
    let sandbox = Sandbox::new();
    sandbox.write(
        ".mlx/config.toml",
        "[cache]\nlnk = \"copy\"\ndir = \"/x\"\n[remote.o]\nurl = \"file:///o\"\nregoin = \"r\"\n\
         secret_access_key = \"CANARY\"\n",
    );
    sandbox.write(".mlx/local.toml", "cache = \"copy\"\n");
    let error = sandbox.mlx("status");
    assert_eq!(error.code, 0, "{}", error.err);
    for part in [
        "in `.mlx/config.toml`: setting `cache.lnk` not found; did you mean `cache.link`?",
        "in `.mlx/config.toml`: `cache.dir` is specific to one machine and must not be committed",
        "in `.mlx/config.toml`: setting `remote.o.regoin` not found; did you mean `remote.o.region`?",
        "in `.mlx/config.toml`: `remote.o.secret_access_key` is a secret and must not be committed",
        "in `.mlx/local.toml`: setting `cache` not found; did you mean `cache.dir`?",
    ] {
        assert!(error.err.contains(&format!("warning: {part}")), "{part}\n{}", error.err);
    }
    assert!(!error.err.contains("CANARY"), "{}", error.err);
    sandbox.write(".mlx/config.toml", "[core]\nremote = \"o\nx = 1\n");
    let error = sandbox.fails("status", 5);
    assert!(error.starts_with("error: cannot read `.mlx/config.toml`: line 2: "), "{error}");
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn a_setting_is_removed_and_its_default_is_shown() {
    let sandbox = Sandbox::new();
    let default = json!({"cache.link": {"value": "reflink,copy", "from": "default"}});
    assert_eq!(sandbox.json("config list"), default);
    assert_eq!(sandbox.ok("config get cache.link"), "cache.link = reflink,copy  (default)\n");
    sandbox.ok("config set cache.link copy");
    sandbox.ok("config set --local cache.link hardlink");
    assert_eq!(
        sandbox.ok("config unset --local cache.link"),
        "removed `cache.link` from `.mlx/local.toml`\ncache.link = copy  (repository)\n"
    );
    let error = sandbox.fails("config unset --user cache.link", 3);
    assert!(error.contains("`mlx config unset cache.link` without"), "{error}");
    assert_eq!(sandbox.json("config unset cache.link"), default);
    assert!(
        sandbox.fails("config unset cache.link", 3).contains("`cache.link` is not set in `.mlx/config.toml`")
    );
    // A misspelled key can be removed with the same command.
    sandbox.write(".mlx/config.toml", "[cache]\nlnk = \"copy\"\n");
    sandbox.ok("config unset cache.lnk");
    assert_eq!(sandbox.read(".mlx/config.toml"), "");
}

/// A folder of the shared cache that is gone keeps no one from naming another.
#[test]
fn a_cache_folder_that_cannot_be_opened_is_named_and_can_be_changed() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "not a folder");
    let wrong = sandbox.repo.join("file/cache");
    let error = sandbox.mlx(&format!("config set --local cache.dir {}", wrong.display()));
    assert!(error.code != 0 && error.err.contains("cannot open the shared cache"), "{error:?}");
    sandbox.ok("status");
    let cache = sandbox.root().join("cache");
    sandbox.ok(&format!("config set --local cache.dir {}", cache.display()));
    fs::remove_dir_all(&cache).unwrap();
    fs::write(&cache, "a file").unwrap();
    let error = sandbox.mlx("status");
    assert!(error.code != 0 && error.err.contains("cache.dir") && error.err.contains("hint"), "{error:?}");
    let other = sandbox.root().join("other");
    sandbox.ok(&format!("config set --local cache.dir {}", other.display()));
    sandbox.ok("status");
    fs::remove_dir_all(&other).unwrap();
    fs::write(&other, "a file").unwrap();
    sandbox.ok("config unset --local cache.dir");
    sandbox.ok("status");
}
