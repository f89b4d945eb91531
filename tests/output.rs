//! Tests output that cannot be written, readers that close their pipe, and Ctrl-C.

use std::{fs, path::Path, process::Stdio};

use crate::sandbox::Sandbox;

/// Starts mlx with its standard output at a file or pipe; returns how it ended and its standard error.
fn run_onto(sandbox: &Sandbox, args: &str, stdout: Stdio) -> (std::process::ExitStatus, String) {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_mlx"), &sandbox.repo);
    let output = command.args(args.split(' ')).stdout(stdout).output().unwrap();
    (output.status, String::from_utf8(output.stderr).unwrap())
}

const PRINTING: [&str; 12] = [
    "status",
    "status --json",
    "show metrics --json",
    "log data",
    "diff HEAD",
    "config list",
    "remote list",
    "lineage data --dot",
    "completions bash",
    "--version",
    "--help",
    "help add",
];

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let sandbox = with_history();
    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    for args in PRINTING {
        assert_ne!(sandbox.ok(args), "", "mlx {args} prints");
        let (status, error) = run_onto(&sandbox, args, full());
        assert_eq!(status.code(), Some(7), "mlx {args}: {error}");
        assert!(
            error.starts_with("error: cannot write to standard output: No space left on device"),
            "{args}: {error}"
        );
    }
    // An error keeps its own code, and is told on standard error where its document is lost.
    let (status, error) = run_onto(&sandbox, "log nothing-here --json", full());
    assert_eq!(status.code(), Some(sandbox.mlx("log nothing-here --json").code));
    assert!(error.contains("nothing-here") && error.contains("cannot write to standard output"), "{error}");
    // Nothing is lost of a command that prints nothing.
    assert_eq!(run_onto(&sandbox, "status --quiet", full()).0.code(), Some(0));
}

#[test]
fn a_reader_that_has_seen_enough_ends_mlx_as_it_ends_other_tools() {
    use std::os::unix::process::ExitStatusExt as _;

    let sandbox = with_history();
    for args in PRINTING {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (status, error) = run_onto(&sandbox, args, Stdio::from(writer));
        assert_eq!((status.signal(), error.as_str()), (Some(13), ""), "mlx {args}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (status, _) = run_onto(&sandbox, "log nothing-here --json", Stdio::from(writer));
    assert_eq!(status.code(), Some(sandbox.mlx("log nothing-here --json").code), "a failure stays one");
}

/// Creates a repository with a commit of tracked data and metrics.
fn with_history() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("data", "1");
    sandbox.ok("add data");
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'echo \"{\\\"a\\\": 1}\" >m.json'\nmetrics = ['m.json']\n");
    sandbox.ok("repro");
    sandbox.ok("remote add o file:///srv/o");
    sandbox.commit("all");
    sandbox.write("data", "2");
    sandbox.ok("add data");
    sandbox
}

#[test]
fn ctrl_c_says_that_the_command_was_interrupted_and_ends_by_the_signal() {
    use std::os::unix::process::ExitStatusExt as _;

    let sandbox = Sandbox::new();
    sandbox.write("mlx.toml", "[stage.s]\ncmd = 'touch started; sleep 60; echo 1 >o'\nouts = ['o']\n");
    for option in ["", "--json", "--quiet"] {
        drop(fs::remove_file(sandbox.repo.join("started")));
        let mut command = sandbox.command("env", &sandbox.repo);
        command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_mlx"), "repro"]);
        command.args((!option.is_empty()).then_some(option));
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(&sandbox.repo.join("started"));
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.signal(), Some(2), "{option}: {text}");
        assert_eq!(text.lines().last(), Some("interrupted"), "{option}: {text}");
        assert!(!sandbox.has("mlx.lock") && !sandbox.has("o"), "nothing is recorded");
    }
}

fn wait_for(path: &Path) {
    let start = std::time::Instant::now();
    while !path.exists() {
        assert!(start.elapsed().as_secs() < 30, "`{}` did not come", path.display());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
