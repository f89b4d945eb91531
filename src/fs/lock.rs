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

/// Waits for a lock that many hold at once; [`lock`] on the same path waits for all of them, and they for it.
pub fn lock_shared(root: &Root, path: &RepoPath) -> Result<Lock> {
    let file = root.append(path)?;
    for _ in 0..STEPS {
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(Lock(file));
        }
        thread::sleep(STEP);
    }
    let message = format!("`{path}` has been locked for half a minute");
    Err(Error::new(Kind::Conflict, message).hint("wait for the other mlx to end, then try again"))
}

/// A new file that is locked for as long as it is open: who finds it unlocked knows that its writer is dead.
pub fn hold(root: &Root, path: &RepoPath) -> Result<File> {
    let file = root.append(path)?;
    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(std::io::Error::from);
    locked.doing(|| format!("cannot lock `{path}`"))?;
    Ok(file)
}

/// Whether somebody [`hold`]s the file.
pub fn is_held(root: &Root, path: &RepoPath) -> Result<bool> {
    let file = root.open_file(path)?;
    Ok(flock(&file, FlockOperation::NonBlockingLockShared).is_err())
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
