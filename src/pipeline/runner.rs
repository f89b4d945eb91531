//! Runs a stage's command such that it ends when the mlx that started it ends, even if that is killed.
//!
//! mlx starts a second mlx, the guard, as leader of its own process group; the guard starts the stage's
//! shell. It holds the stage's lock and reads a pipe from the first mlx. When the pipe closes, for whatever
//! reason, it kills the whole group. So the partial outputs of a killed run no longer change once the next
//! run holds the lock.

use std::{
    io::{Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use crate::{
    error::{Result, WithContext},
    fs::{Root, lock},
    path::RepoPath,
    pipeline::run_cache::SHELL,
    progress::{Event, Progress},
};

/// Hidden subcommand of `cli` that calls [`guard`].
pub const SUBCOMMAND: &str = "guard-stage";

/// A command to run, with its folder, lock and log.
pub struct Job<'j> {
    pub private: &'j Root,
    pub lock: &'j RepoPath,
    pub command: &'j str,
    pub folder: &'j Path,
    pub environment: &'j std::collections::BTreeMap<String, String>,
    pub log: &'j RepoPath,
}

/// Runs a command to its end and returns its exit status. Output is copied to the log and to `progress`.
pub fn run(job: &Job<'_>, progress: &dyn Progress) -> Result<ExitStatus> {
    let exe = std::env::current_exe().context(|| "cannot find the mlx executable".into())?;
    let mut child = Command::new(&exe)
        .arg(SUBCOMMAND)
        .arg(job.private.path())
        .arg(job.lock.to_text())
        .arg(job.command)
        .current_dir(job.folder)
        .envs(job.environment)
        .env("PATH", path_with(&exe, job.environment))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context(|| "cannot start the stage".into())?;
    copy_output(&mut child, job, progress)
}

/// Returns the `PATH` for a stage. The folder of the running mlx comes first, so that stages use the same
/// one.
fn path_with(exe: &Path, declared: &std::collections::BTreeMap<String, String>) -> std::ffi::OsString {
    let folders = exe.parent().map(Path::to_owned).into_iter();
    let own = declared.get("PATH").map(std::ffi::OsString::from);
    let rest = own.or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    let all: Vec<_> = folders.chain(std::env::split_paths(&rest)).collect();
    std::env::join_paths(all).unwrap_or(rest)
}

/// Copies the stage's output until it ends, then kills what it left running in the background.
fn copy_output(child: &mut Child, job: &Job<'_>, progress: &dyn Progress) -> Result<ExitStatus> {
    let mut streams: Vec<Box<dyn std::io::Read + Send>> = Vec::new();
    streams.extend(child.stdout.take().map(|it| Box::new(it) as _));
    streams.extend(child.stderr.take().map(|it| Box::new(it) as _));
    let logs = streams.iter().map(|_| job.private.open_append(job.log)).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        for (mut stream, mut log) in streams.into_iter().zip(logs) {
            scope.spawn(move || {
                let mut buffer = [0; 8192];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    // A log that cannot be written does not fail the run.
                    let _logged = log.write_all(&buffer[..read]);
                    progress.event(Event::Output { bytes: &buffer[..read] });
                }
            });
        }
        // `wait` would close the pipe that the guard watches, so it is taken out first.
        let guard_pipe = child.stdin.take();
        let status = child.wait().context(|| "cannot wait for the stage".into());
        let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let _killed = group.map(|id| rustix::process::kill_process_group(id, rustix::process::Signal::KILL));
        drop(guard_pipe);
        status
    })
}

/// Runs a command as the guard and returns its exit code: holds the lock, and kills its own process group
/// when standard input closes.
pub fn guard(private: &Path, lock_path: &str, command: &str) -> Result<i32> {
    let root = Root::open(private)?;
    let _lock = lock(&root, &RepoPath::from_text(lock_path)?)?;
    let group = rustix::process::getpgrp();
    thread::spawn(move || {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        let _killed = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    });
    let status = Command::new(SHELL[0]).args(&SHELL[1..]).arg(command).stdin(Stdio::null()).status();
    let status = status.context(|| "cannot start `sh`".into())?;
    Ok(status.code().unwrap_or(128))
}
