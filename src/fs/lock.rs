//! Short exclusive locks that say who holds them and go when their holder dies.

use std::{io::Write as _, thread, time::Duration};

use rustix::fs::{FlockOperation, flock, ftruncate};

use crate::{
    error::{Doing, Error, Kind, Result},
    fs::{File, Root},
    path::RepoPath,
    time::Timestamp,
};

const STEP: Duration = Duration::from_millis(20);
/// Thirty seconds of patience: locks are held for milliseconds.
const STEPS: u32 = 1500;

/// Held until dropped.
pub struct Lock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

/// Waits for the lock at `path`; gives up after half a minute and names the holder.
pub fn lock(root: &Root, path: &RepoPath) -> Result<Lock> {
    let file = root.append(path)?;
    for _ in 0..STEPS {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return sign(file, path);
        }
        thread::sleep(STEP);
    }
    let holder = root.read(path).ok().and_then(|it| String::from_utf8(it).ok()).unwrap_or_default();
    let message = format!("another mlx is at work here: {}", holder.trim());
    Err(Error::new(Kind::Conflict, message).hint("wait for it to end, then try again"))
}

fn sign(mut file: File, path: &RepoPath) -> Result<Lock> {
    let host = crate::fs::host_name();
    let command: Vec<_> = std::env::args().skip(1).take(1).collect();
    let since = Timestamp::now().to_text();
    let text =
        format!("process {} on {host}, `mlx {}`, since {since}\n", std::process::id(), command.join(" "));
    let written =
        ftruncate(&file, 0).map_err(std::io::Error::from).and_then(|()| file.write_all(text.as_bytes()));
    written.doing(|| format!("cannot sign the lock `{path}`"))?;
    Ok(Lock(file))
}
