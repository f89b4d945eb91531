//! File locks between mlx processes, released when their holder dies. Most are held for milliseconds.
//!
//! They are `flock` locks of the kernel, so that a lock never outlives its process. The text in the lock file
//! only tells users which process holds it.

use std::{io::Write as _, thread, time::Duration};

use rustix::{
    fs::{FlockOperation, flock, ftruncate},
    io::Errno,
};

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::{File, Root},
    path::{RepoPath, escape_bytes},
    progress::{Progress, Silent},
    time::Timestamp,
};

/// Shorter in unit tests, which wait for locks that are never released.
const POLL_INTERVAL: Duration = Duration::from_micros(if cfg!(test) { 100 } else { 20_000 });
/// Number of polls before giving up, after 30 seconds. Locks are usually held for milliseconds.
const MAX_POLLS: u32 = 1500;
/// Number of polls, for one second, before a note names the holder.
const QUIET_POLLS: u32 = 50;
/// Largest number of words after `mlx` of a command in a lock file.
const MAX_COMMAND_WORDS: usize = 2;

/// Lock that is held until dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file releases the lock")] File);

/// Waits for the exclusive lock at `path`. Gives up after 30 seconds with an error that names the holder.
pub fn lock(root: &Root, path: &RepoPath) -> Result<Lock> {
    lock_with_progress(root, path, &Silent)
}

/// Like [`lock`], and reports the holder to `progress` when it takes more than a second.
pub fn lock_with_progress(root: &Root, path: &RepoPath, progress: &dyn Progress) -> Result<Lock> {
    wait(root, path, MAX_POLLS, progress)
}

/// Waits for the exclusive lock at `path` for as long as another process holds it, and names that process to
/// `progress`. For a lock that is held during work of any length: the kernel releases
/// it when its holder ends.
pub fn lock_patiently(root: &Root, path: &RepoPath, progress: &dyn Progress) -> Result<Lock> {
    wait(root, path, u32::MAX, progress)
}

/// Returns the lock, or `None` if another process holds it; never waits.
pub fn try_lock(root: &Root, path: &RepoPath) -> Result<Option<Lock>> {
    acquire(root.open_append(path)?, path)?.map_or_else(|_| Ok(None), |lock| Ok(Some(lock)))
}

fn wait(root: &Root, path: &RepoPath, max_polls: u32, progress: &dyn Progress) -> Result<Lock> {
    let mut file = root.open_append(path)?;
    for poll in 0..max_polls {
        match acquire(file, path)? {
            Ok(lock) => return Ok(lock),
            Err(unlocked) => file = unlocked,
        }
        if poll == QUIET_POLLS {
            progress.note(&format!("waiting for another mlx: {}", holder(root, path)));
        }
        thread::sleep(POLL_INTERVAL);
    }
    let message = format!("another mlx is running here: {}", holder(root, path));
    Err(Error::new(Kind::Conflict, message).hint("wait for it to finish, then try again"))
}

/// Tries to lock the file; returns it if another process holds the lock.
fn acquire(file: File, path: &RepoPath) -> Result<Result<Lock, File>> {
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // The lock is the kernel's; a full disk that has no space for the text must not stop a gc.
            let _unwritten = write_holder(&file);
            Ok(Ok(Lock(file)))
        }
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(Err(file)),
        // Waiting would not help if the file system does not support locks.
        Err(error) => Err(std::io::Error::from(error)).context(|| format!("cannot lock `{path}`")),
    }
}

/// Returns the text of the process that locked last. It may be missing for a moment after locking, which is
/// shorter than any wait.
fn holder(root: &Root, path: &RepoPath) -> String {
    let text = root.read(path).map(|it| escape_bytes(it.trim_ascii())).unwrap_or_default();
    if text.is_empty() { "holder unknown".to_owned() } else { text }
}

/// Waits for a shared lock, which many processes can hold at once. It excludes the exclusive [`lock`] on the
/// same path.
pub fn lock_shared(root: &Root, path: &RepoPath) -> Result<Lock> {
    let file = root.open_append(path)?;
    for _ in 0..MAX_POLLS {
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(Lock(file));
        }
        thread::sleep(POLL_INTERVAL);
    }
    let message = format!("`{path}` has been locked for 30 seconds: {}", holder(root, path));
    Err(Error::new(Kind::Conflict, message).hint("wait for the other mlx to finish, then try again"))
}

/// Creates a file that is locked as long as it is open. If a process finds it unlocked, its writer is dead.
pub fn create_locked(root: &Root, path: &RepoPath) -> Result<File> {
    let file = root.open_append(path)?;
    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(std::io::Error::from);
    locked.context(|| format!("cannot lock `{path}`"))?;
    Ok(file)
}

/// Returns true if a process has the file locked, as [`create_locked`] does.
pub fn is_locked(root: &Root, path: &RepoPath) -> Result<bool> {
    let file = root.open_file(path)?;
    Ok(flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// Writes process id, host, command and time into the lock file, for display.
fn write_holder(mut file: &File) -> std::io::Result<()> {
    let host = crate::fs::host_name();
    let since = Timestamp::now().to_text();
    let text = format!("process {} on {host}, `{}`, since {since}\n", std::process::id(), command());
    ftruncate(file, 0)?;
    file.write_all(text.as_bytes())
}

/// Returns the command that this process runs, without most arguments: they may hold secrets.
fn command() -> String {
    let words: Vec<_> = std::env::args_os().skip(1).map(|it| escape_bytes(it.as_encoded_bytes())).collect();
    command_of(&words)
}

fn command_of(args: &[String]) -> String {
    let is_plain = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let words = args.iter().map(String::as_str).filter(is_plain).take(MAX_COMMAND_WORDS);
    ["mlx"].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::progress::Event;

    struct RecordedNotes(Mutex<Vec<String>>);

    impl Progress for RecordedNotes {
        fn event(&self, event: Event<'_>) {
            if let Event::Note { message } = event {
                self.0.lock().unwrap().push(message.to_owned());
            }
        }
    }

    #[test]
    fn waiting_and_giving_up_name_the_holder() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = RepoPath::from_text("lock").unwrap();
        let held = lock(&root, &path).unwrap();
        let notes = RecordedNotes(Mutex::default());
        let error = wait(&root, &path, QUIET_POLLS + 1, &notes).unwrap_err();
        let mine = format!("process {} on {}", std::process::id(), crate::fs::host_name());
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains(&mine) && error.to_string().contains(", since 2"), "{error}");
        assert!(notes.0.into_inner().unwrap()[0].contains(&mine));
        assert!(try_lock(&root, &path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&root, &path).unwrap().is_some());
    }

    #[test]
    fn a_patient_wait_lasts_as_long_as_the_holder() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = RepoPath::from_text("lock").unwrap();
        let held = lock(&root, &path).unwrap();
        let notes = RecordedNotes(Mutex::default());
        thread::scope(|scope| {
            let patient = scope.spawn(|| lock_patiently(&root, &path, &notes));
            while notes.0.lock().unwrap().is_empty() {
                thread::yield_now();
            }
            // A wait that gives up at all has given up after twice as many polls.
            assert!(lock(&root, &path).is_err() && lock(&root, &path).is_err());
            drop(held);
            assert!(patient.join().unwrap().is_ok());
        });
    }

    #[test]
    fn a_lock_names_the_command_without_secrets() {
        let shown = |line: &str| command_of(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(shown("remote add s3 s3://b --set secret_access_key=K"), "mlx remote add");
        assert_eq!(shown("config set remote.s3.session_token tokenvalue"), "mlx config set");
        assert_eq!(shown("-C ../side fetch --all-commits"), "mlx fetch");
    }

    #[test]
    fn the_text_of_a_dead_process_does_not_block() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = RepoPath::from_text("lock").unwrap();
        root.open_append(&path)
            .unwrap()
            .write_all(b"process 4194999 on here, `mlx add`, since ever\n")
            .unwrap();
        let _held = wait(&root, &path, 1, &Silent).unwrap();
        assert!(holder(&root, &path).starts_with(&format!("process {} ", std::process::id())));
    }
}
