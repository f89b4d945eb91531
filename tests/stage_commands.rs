//! Tests of how `repro` runs a stage's command: lists of commands, the programs it finds, processes that it
//! leaves running, and runs that wait for each other.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    process::{Child, Stdio},
};

use crate::sandbox::{Sandbox, command_result};

/// Waits until `text` is on the standard error of a process, and returns all that came until then.
fn wait_for_text(child: &mut Child, text: &str) -> String {
    let stream = child.stderr.as_mut().unwrap();
    let (mut read, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&read).contains(text) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&read));
        read.push(byte[0]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

#[test]
fn each_command_of_a_list_must_succeed() {
    let sandbox = Sandbox::new();
    for (command, code) in [
        ("['false && echo x', 'echo done > o']", 1),
        ("['! true', 'echo done > o']", 1),
        ("['set +e', '(exit 7)', 'echo done > o']", 7),
        ("['if true; then false && x; fi', 'echo done > o']", 1),
        ("[\"test 'a b' = a && true\", 'echo done > o']", 1),
    ] {
        sandbox.write("mlx.toml", format!("[stage.s]\ncmd = {command}\nouts = ['o']\n"));
        let error = sandbox.fails("repro", 8);
        assert!(error.contains(&format!("the stage `s` failed (exit code {code})")), "{command}\n{error}");
        assert!(!sandbox.has("mlx.lock") && !sandbox.has("o"), "{command}");
    }
    // The commands share a shell, and what fails before `||` or in a condition does not count as failed.
    sandbox.write("sub/x", "");
    let command =
        "['cd sub && test -e x', 'false || V=1', \"if false && true; then x; fi; echo $V '$V' > ../o\"]";
    sandbox.write("mlx.toml", format!("[stage.s]\ncmd = {command}\nouts = ['o']\n"));
    sandbox.ok("repro");
    assert_eq!(sandbox.read("o"), "1 $V\n");
    assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged");
}

#[test]
fn no_command_of_a_list_hides_the_next_ones() {
    let sandbox = Sandbox::new();
    sandbox.write("leave", "exit 0\n");
    let hiding = ["exit 0", "exec true", "return 0", ". ./leave", "set -n", "trap 'exit 0' EXIT; false"];
    for command in hiding {
        let text = format!("[stage.s]\ncmd = ['touch o', \"{command}\", 'echo done > o']\nouts = ['o']\n");
        sandbox.write("mlx.toml", text);
        let error = sandbox.fails("repro", 8);
        let end = format!("`{command}` ended its shell before `echo done > o` could run");
        // With bash as `sh`, `return 0` is an error.
        assert!(error.contains(&end) || error.contains("failed (exit code"), "{command}\n{error}");
        assert!(!sandbox.has("mlx.lock") && !sandbox.has("o"), "{command}");
    }
    for (commands, text) in [
        ("'''cat > o <<E\nx''', 'cat o > p'", "x\n"),
        ("'(exit 0)', 'echo x > o; cp o p; exit 0'", "x\n"),
        ("'set -C; cd sub', 'echo x > ../o; cp ../o ../p', 'exec true'", "x\n"),
    ] {
        fs::create_dir_all(sandbox.repo.join("sub")).unwrap();
        sandbox.write("mlx.toml", format!("[stage.s]\ncmd = [{commands}]\nouts = ['o', 'p']\n"));
        sandbox.ok("repro");
        assert_eq!(sandbox.read("p"), text, "{commands}");
    }
}

#[test]
fn the_error_of_a_list_names_the_command_that_failed() {
    let sandbox = Sandbox::new();
    for (commands, failed) in [
        ("'true', 'echo x; false', 'echo y'", "echo x; false"),
        ("'false', 'echo y'", "false"),
        ("'true', \"\"\"\ntrue\nexit 1\n\"\"\"", "true; exit 1"),
    ] {
        sandbox.write("mlx.toml", format!("[stage.s]\ncmd = [{commands}]\n"));
        let error = sandbox.fails("repro", 8);
        let said = format!("error: the stage `s` failed (exit code 1): `{failed}`\nhint: its output is in ");
        assert!(error.contains(&said), "{error}");
    }
}

#[test]
fn a_compound_command_that_a_list_splits_is_explained() {
    let sandbox = Sandbox::new();
    let hint = "hint: each item of the list `cmd` is a command of its own: write one that spans several";
    for commands in ["'if true; then', 'touch o', 'fi'", "'touch o', 'echo \"a', 'b\"'"] {
        sandbox.write("mlx.toml", format!("[stage.s]\ncmd = [{commands}]\nouts = ['o']\n"));
        let error = sandbox.fails("repro", 8);
        assert!(error.contains(hint), "{commands}: {error}");
        assert!(!sandbox.has("o"), "{commands}");
    }
    for commands in ["'fi', 'touch o'", "'touch o', 'false'", "'sh -c \"if true; then\"', 'fi'"] {
        sandbox.write("mlx.toml", format!("[stage.s]\ncmd = [{commands}]\nouts = ['o']\n"));
        assert!(!sandbox.fails("repro", 8).contains(hint), "{commands}: nothing is split");
    }
    sandbox
        .write("mlx.toml", "[stage.s]\ncmd = ['true', '''\nif true; then\n  touch o\nfi''']\nouts = ['o']\n");
    sandbox.ok("repro");
}
#[test]
fn a_list_that_runs_command_by_command_takes_no_run_of_the_plain_script() {
    let sandbox = Sandbox::new();
    let lines = "false && echo x\necho done > o";
    sandbox.write("mlx.toml", format!("[stage.s]\ncmd = \"\"\"{lines}\"\"\"\nouts = ['o']\n"));
    sandbox.ok("repro");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = ['false && echo x', 'echo done > o']\nouts = ['o']\n");
    let plan = sandbox.json("repro --dry-run");
    assert_eq!(plan["stages"][0]["outcome"], "would run");
    assert_eq!(plan["stages"][0]["why"][0], "the folder it runs in changed, or how its commands are run");
    // Lists whose commands cannot fail unnoticed have the key that they always had.
    sandbox.write("mlx.toml", "[stage.s]\ncmd = \"\"\"true\necho done > o\"\"\"\nouts = ['o']\n");
    sandbox.ok("repro");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = ['true', 'echo done > o']\nouts = ['o']\n");
    assert_eq!(sandbox.json("repro")["stages"][0]["outcome"], "unchanged");
}

#[test]
fn a_stage_finds_the_running_mlx_and_every_other_program_by_the_users_path() {
    let sandbox = Sandbox::new();
    let usr = sandbox.root().join("usr");
    let venv = sandbox.root().join("venv");
    fs::create_dir_all(&usr).unwrap();
    fs::create_dir_all(&venv).unwrap();
    // By another process: a file that a child of a test beside this one still has open cannot be executed.
    let mut copy = std::process::Command::new("cp");
    assert!(copy.arg(env!("CARGO_BIN_EXE_mlx")).arg(usr.join("mlx")).status().unwrap().success());
    let program = |path: std::path::PathBuf, text: &str| {
        fs::write(&path, format!("#!/bin/sh\necho {text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program(usr.join("python"), "usr");
    program(venv.join("python"), "venv");
    program(venv.join("mlx"), "another mlx");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'python > o; mlx --version > v'\nouts = ['o', 'v']\n");
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{}:{path}", venv.display(), usr.display());
    for _ in 0..2 {
        let mut command = sandbox.command(usr.join("mlx").to_str().unwrap(), &sandbox.repo);
        let ran = command_result(command.env("PATH", &path).args(["repro", "--force"]).output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert_eq!(sandbox.read("o"), "venv\n");
        assert!(sandbox.read("v").starts_with("mlx "), "{}", sandbox.read("v"));
    }
    let folders: Vec<_> = fs::read_dir(sandbox.repo.join(".git/mlx/bin")).unwrap().collect();
    assert_eq!(folders.len(), 1);
    let folder = folders.into_iter().next().unwrap().unwrap().path();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    assert_eq!(fs::read_link(folder.join("mlx")).unwrap(), usr.join("mlx"));
}

#[test]
fn a_run_ends_without_a_process_that_left_its_group_and_holds_its_output() {
    let sandbox = Sandbox::new();
    let (fifo, started) = (sandbox.root().join("fifo"), sandbox.root().join("started"));
    let text = format!(
        "[stage.s]\ncmd = \"mkfifo {0}; setsid sh -c 'echo here > {1}; cat {0}' & echo before; \
         until [ -s {1} ]; do :; done; echo hi > o\"\nouts = ['o']\n",
        fifo.display(),
        started.display()
    );
    sandbox.write("mlx.toml", text);
    let ran = sandbox.mlx("repro");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("a process that the stage started lives on"), "{}", ran.err);
    assert!(format!("{}{}", ran.out, ran.err).contains("before\n"), "{}", ran.err);
    assert_eq!(sandbox.read("o"), "hi\n");
    // Ends that process.
    drop(fs::OpenOptions::new().write(true).open(&fifo).unwrap());
}

#[test]
fn a_second_run_of_a_stage_names_the_first_and_waits_for_it() {
    let sandbox = Sandbox::new();
    let fifo = sandbox.root().join("fifo");
    let fifo = fifo.display();
    let text = format!("[stage.s]\ncmd = 'mkfifo {fifo}; cat {fifo} > o; rm {fifo}'\nouts = ['o']\n");
    sandbox.write("mlx.toml", text);
    let start = || {
        let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
        command.arg("repro").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut first = start();
    wait_for_text(&mut first, "running stage `s`");
    let mut second = start();
    let waiting = wait_for_text(&mut second, "since");
    assert!(waiting.contains(&format!("waiting for another mlx: process {} on", first.id())), "{waiting}");
    while !sandbox.root().join("fifo").exists() {
        std::thread::yield_now();
    }
    fs::write(sandbox.root().join("fifo"), "made\n").unwrap();
    let [first, second] = [first, second].map(|child| command_result(child.wait_with_output().unwrap()));
    assert_eq!((first.code, second.code), (0, 0), "{}\n{}", first.err, second.err);
    assert!(second.out.contains("unchanged"), "{}", second.out);
    assert_eq!(sandbox.read("o"), "made\n");
}
