//! Shared by tests that halt a command between two of its disk operations.

use std::{
    fs,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crate::{
    crash_safety::command,
    sandbox::{CommandResult, Sandbox, command_result},
};

/// Starts a command that halts at its n-th disk operation. Returns false if it ended before.
pub fn start_halting(sandbox: &Sandbox, args: &str, at: u64) -> (Child, bool) {
    start(sandbox, args, &format!("stop:{at}"))
}

/// As [`start_halting`], for a command that is killed at the operation after that, once it is continued.
pub fn start_dying(sandbox: &Sandbox, args: &str, at: u64) -> (Child, bool) {
    start(sandbox, args, &format!("die:{at}"))
}

fn start(sandbox: &Sandbox, args: &str, fault: &str) -> (Child, bool) {
    let mut command = command(sandbox, args);
    command.env("MLX_FAULT", fault).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        assert!(Instant::now() < deadline, "{args} hangs");
        let text = fs::read_to_string(&stat).unwrap_or_default();
        let halted = text.rsplit(") ").next().unwrap().starts_with('T');
        if halted || child.try_wait().unwrap().is_some() {
            return (child, halted);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Continues a halted command, and the guards of its stages, which inherit the order to halt.
pub fn resume(sandbox: &Sandbox, mut child: Child) -> CommandResult {
    let id = child.id();
    let proceed = |id: &str| sandbox.command("kill", &sandbox.repo).args(["-CONT", id]).output().unwrap();
    assert!(proceed(&id.to_string()).status.success());
    while child.try_wait().unwrap().is_none() {
        let guards = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        guards.split_whitespace().for_each(|guard| drop(proceed(guard)));
        std::thread::sleep(Duration::from_millis(5));
    }
    command_result(child.wait_with_output().unwrap())
}

/// Returns the numbers of the disk operations to halt at: every `step`-th. The first follows from the commit
/// that is checked out, so that each commit samples others. Both are printed: they repeat a failure as
/// `MLX_EVERY` and `MLX_FIRST`. `MLX_EVERY=1` takes all.
///
/// # Panics
/// Panics if the command still halts at operation 3,000: each halt must start from the same state, or the
/// command has more to do each time and the test never ends.
#[expect(clippy::print_stdout, reason = "a failure can be repeated with it")]
pub fn operations(what: &str, step: u64) -> impl Iterator<Item = u64> + use<> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let every = number("MLX_EVERY").unwrap_or(step);
    let first = number("MLX_FIRST").unwrap_or_else(|| 1 + commit_number() % every);
    println!(
        "{what}: halts at operation {first} and every {every}th after it: MLX_EVERY={every} MLX_FIRST={first}"
    );
    let what = what.to_owned();
    (0..).map(move |index| first + index * every).inspect(move |at| {
        assert!(*at < 3000, "{what} does more disk operations each time");
    })
}

/// Returns a number that follows from the id of the commit that is checked out; 0 outside of a repository.
fn commit_number() -> u64 {
    let mut git = std::process::Command::new("git");
    let output = git.args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.get(..12).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}
