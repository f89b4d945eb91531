//! Short exclusive locks that say who holds them and go when their holder dies.
//!
//! The kernel keeps them (`flock`), so that a lock never outlives its process; the text in the file only
//! tells people whom they wait for.

use std::{io::Write as _, thread, time::Duration};

use rustix::{
    fs::{FlockOperation, flock, ftruncate},
    io::Errno,
};

use crate::{
    error::{Doing, Error, Kind, Result},
    fs::{File, Root},
    path::{RepoPath, show},
    progress::{Progress, Silent},
    time::Timestamp,
};

const STEP: Duration = Duration::from_millis(20);
/// Thirty seconds of patience: locks are held for milliseconds.
const STEPS: u32 = 1500;
/// After a second, whoever waits says for whom.
const QUIET_STEPS: u32 = 50;
/// Bytes of a command line that are told.
const TOLD: usize = 120;

/// Held until dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

/// Waits for the lock at `path`; gives up after half a minute and names the holder.
pub fn lock(root: &Root, path: &RepoPath) -> Result<Lock> {
    lock_telling(root, path, &Silent)
}

/// As [`lock`], and says so when it takes long.
pub fn lock_telling(root: &Root, path: &RepoPath, progress: &dyn Progress) -> Result<Lock> {
    wait(root, path, STEPS, progress)
}

/// The lock if nobody has it; never waits.
pub fn try_lock(root: &Root, path: &RepoPath) -> Result<Option<Lock>> {
    take(root.append(path)?, path)?.map_or_else(|_| Ok(None), |lock| Ok(Some(lock)))
}

fn wait(root: &Root, path: &RepoPath, steps: u32, progress: &dyn Progress) -> Result<Lock> {
    let mut file = root.append(path)?;
    for step in 0..steps {
        match take(file, path)? {
            Ok(lock) => return Ok(lock),
            Err(again) => file = again,
        }
        if step == QUIET_STEPS {
            progress.note(&format!("waiting for another mlx: {}", holder(root, path)));
        }
        thread::sleep(STEP);
    }
    let message = format!("another mlx is at work here: {}", holder(root, path));
    Err(Error::new(Kind::Conflict, message).hint("wait for it to end, then try again"))
}

/// The file comes back when somebody else has the lock.
fn take(file: File, path: &RepoPath) -> Result<Result<Lock, File>> {
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Ok(sign(file))),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(Err(file)),
        // Waiting would not help where the file system knows no locks.
        Err(error) => Err(std::io::Error::from(error)).doing(|| format!("cannot lock `{path}`")),
    }
}

/// Who signed last; the moment between taking and signing is shorter than any wait.
fn holder(root: &Root, path: &RepoPath) -> String {
    let text = root.read(path).map(|it| show(it.trim_ascii())).unwrap_or_default();
    if text.is_empty() { "it has not said who it is".to_owned() } else { text }
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

fn sign(mut file: File) -> Lock {
    let host = crate::fs::host_name();
    let since = Timestamp::now().to_text();
    let text = format!("process {} on {host}, `{}`, since {since}\n", std::process::id(), command());
    // A lock without a name on it is a lock: on a full disk `gc` must be able to make room.
    let _unsigned =
        ftruncate(&file, 0).map_err(std::io::Error::from).and_then(|()| file.write_all(text.as_bytes()));
    Lock(file)
}

/// How this process was called, as far as it fits a line.
fn command() -> String {
    let words = std::env::args_os().skip(1).map(|it| show(it.as_encoded_bytes()));
    let text = ["mlx".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(TOLD) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::progress::Event;

    struct Heard(Mutex<Vec<String>>);

    impl Progress for Heard {
        fn event(&self, event: Event<'_>) {
            if let Event::Note { message } = event {
                self.0.lock().unwrap().push(message.to_owned());
            }
        }
    }

    #[test]
    fn whoever_waits_or_gives_up_names_the_holder() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = RepoPath::from_text("lock").unwrap();
        let held = lock(&root, &path).unwrap();
        let heard = Heard(Mutex::default());
        let error = wait(&root, &path, QUIET_STEPS + 1, &heard).unwrap_err();
        let mine = format!("process {} on {}", std::process::id(), crate::fs::host_name());
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains(&mine) && error.to_string().contains(", since 2"), "{error}");
        assert!(heard.0.into_inner().unwrap()[0].contains(&mine));
        assert!(try_lock(&root, &path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&root, &path).unwrap().is_some());
    }

    #[test]
    fn what_a_dead_process_signed_holds_nobody_up() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = RepoPath::from_text("lock").unwrap();
        root.append(&path).unwrap().write_all(b"process 4194999 on here, `mlx add`, since ever\n").unwrap();
        let _held = wait(&root, &path, 1, &Silent).unwrap();
        assert!(holder(&root, &path).starts_with(&format!("process {} ", std::process::id())));
    }
}
