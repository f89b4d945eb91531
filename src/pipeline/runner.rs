//! Runs a stage's command such that it ends when the mlx that started it ends, even if that is killed.
//!
//! mlx starts a second mlx, the guard, as leader of its own process group; the guard starts the stage's
//! shell. It holds the stage's lock and reads a pipe from the first mlx. When the pipe closes, for whatever
//! reason, it kills the whole group. So the partial outputs of a killed run no longer change once the next
//! run holds the lock. A process that left the group lives on: the run ends without it, even if it holds the
//! stage's output open.

use std::{
    ffi::{OsStr, OsString},
    io::{PipeReader, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, getpgrp, kill_process_group},
};

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    fs::{File, Root, lock},
    path::RepoPath,
    pipeline::{
        ended::{Ended, exit_code},
        script::SHELL,
    },
    progress::{Event, Progress},
};

/// Hidden subcommand of `cli` that calls [`guard`].
pub const SUBCOMMAND: &str = "guard-stage";

/// A script to run, with its folder, lock and log.
pub struct Job<'j> {
    pub private: &'j Root,
    pub lock: &'j RepoPath,
    pub script: &'j OsStr,
    pub folder: &'j Path,
    pub environment: &'j std::collections::BTreeMap<String, String>,
    pub log: &'j RepoPath,
}

/// Time that killed processes get to close the stage's output.
const GRACE: Duration = Duration::from_secs(1);

/// Runs a command to its end and returns how it ended. Output is copied to the log and to `progress`.
pub fn run(job: &Job<'_>, progress: &dyn Progress) -> Result<Ended> {
    let exe = std::env::current_exe().context(|| "cannot find the mlx executable".into())?;
    let mut child = Command::new(&exe)
        .arg(SUBCOMMAND)
        .arg(job.private.path())
        .arg(job.lock.to_text())
        .arg(job.script)
        .current_dir(job.folder)
        .envs(job.environment)
        .env("PATH", search_path(job, &own_folder(job.private, &exe)?, progress))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context(|| "cannot start the stage".into())?;
    copy_output(&mut child, job, progress).map(Ended::of)
}

/// Returns a private folder that holds nothing but `mlx`, a link to the running executable. It is named
/// after its target, since two versions of mlx may run stages here at the same time.
fn own_folder(private: &Root, exe: &Path) -> Result<RepoPath> {
    let target = exe.as_os_str().as_bytes();
    let folder = RepoPath::from_text(&format!("bin/{}", Digest::of(target).short()))?;
    let dir = private.create_dir(&folder)?;
    if dir.stat(b"mlx")?.is_none() || dir.read_link(b"mlx")? != target {
        dir.symlink(target, b"mlx")?;
    }
    Ok(folder)
}

/// Returns the `PATH` for a stage: the folder `own` first, so that stages use the running mlx, then the
/// user's. The folder of the executable would bring other programs with it, such as another Python than the
/// one of the active environment.
fn search_path(job: &Job<'_>, own: &RepoPath, progress: &dyn Progress) -> OsString {
    let declared = job.environment.get("PATH").map(OsString::from);
    let rest = declared.or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    let folders = std::iter::once(own.on_disk(job.private.path())).chain(std::env::split_paths(&rest));
    std::env::join_paths(folders).unwrap_or_else(|_| {
        let folder = job.private.path().display();
        progress.warn(&format!("`PATH` cannot name `{folder}`, so the stage may find another mlx"));
        rest
    })
}

/// Copies the stage's output until it ends, then kills what it left running in its process group.
fn copy_output(child: &mut Child, job: &Job<'_>, progress: &dyn Progress) -> Result<ExitStatus> {
    let streams: Vec<OwnedFd> = child
        .stdout
        .take()
        .map(OwnedFd::from)
        .into_iter()
        .chain(child.stderr.take().map(Into::into))
        .collect();
    let logs = streams.iter().map(|_| job.private.open_append(job.log)).collect::<Result<Vec<_>>>()?;
    let (ended, end) = std::io::pipe().context(|| "cannot create a pipe".into())?;
    thread::scope(|scope| {
        let copies = streams.into_iter().zip(logs).map(|(stream, log)| {
            let ended = &ended;
            scope.spawn(move || copy(stream, log, ended, progress))
        });
        let copies: Vec<_> = copies.collect();
        // `wait` would close the pipe that the guard watches, so it is taken out first.
        let guard_pipe = child.stdin.take();
        let status = child.wait().context(|| "cannot wait for the stage".into());
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let _killed = group.map(|id| kill_process_group(id, Signal::KILL));
        drop((guard_pipe, end));
        let held: Vec<bool> = copies.into_iter().map(|copy| copy.join().unwrap_or(false)).collect();
        if held.contains(&true) {
            progress.warn("a process that the stage started lives on: its further output is not logged");
        }
        status
    })
}

/// Copies a stream to the log and to `progress` until it ends, or for [`GRACE`] after `ended` was closed.
/// Returns true if a process still holds the stream open then.
fn copy(stream: OwnedFd, mut log: File, ended: &PipeReader, progress: &dyn Progress) -> bool {
    let mut stream = File::from(stream);
    let mut buffer = [0; 8192];
    let mut deadline: Option<Instant> = None;
    loop {
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return true;
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(&stream, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        // After its end, the other pipe would wake up every call.
        let watched = if deadline.is_some() { 1 } else { 2 };
        match poll(&mut fds[..watched], timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return false,
        }
        let (readable, is_over) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if readable {
            let Ok(read @ 1..) = stream.read(&mut buffer) else { return false };
            // A log that cannot be written does not fail the run.
            let _logged = log.write_all(&buffer[..read]);
            progress.event(Event::Output { bytes: &buffer[..read] });
        }
        if is_over && deadline.is_none() {
            deadline = Some(Instant::now() + GRACE);
        }
    }
}

/// Runs a command as the guard and returns its exit code: holds the lock, and kills its own process group
/// when standard input closes.
pub fn guard(private: &Path, lock_path: &str, script: &OsStr) -> Result<i32> {
    let root = Root::open(private)?;
    let _lock = lock(&root, &RepoPath::from_text(lock_path)?)?;
    let group = getpgrp();
    thread::spawn(move || {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        let _killed = kill_process_group(group, Signal::KILL);
    });
    let status = Command::new(SHELL[0]).args(&SHELL[1..]).arg(script).stdin(Stdio::null()).status();
    let status = status.context(|| "cannot start `sh`".into())?;
    Ok(exit_code(status))
}
