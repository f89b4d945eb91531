//! The one door to the disk.
//!
//! Paths are *walked*, never just checked: a [`Root`] holds an open folder, and everything below it is
//! reached name by name from that handle without following links. What is written is new under a
//! temporary name in the same folder, synced where it must last, and renamed: readers see the old
//! bytes or the new. In debug builds every operation passes [`fault`], so that tests can make the
//! n-th one fail, or end the process there.

mod dir;
mod entry;
mod fault;
mod holes;
mod letters;
mod lock;
mod place;
mod private;
mod refused;
mod root;
mod sieve;

pub use self::{
    dir::{Dir, Sync, Temp},
    entry::{Entry, Form, Listing, Stamp, TICK},
    holes::Sparse,
    lock::{Lock, hold, is_held, lock, lock_shared, lock_telling, try_lock},
    place::{Link, Mode, place},
    root::{DOCUMENT, Root},
    sieve::{Everything, Sieve},
};

#[cfg(test)]
pub use self::fault::Crash;

pub use rustix::fs::FileType;

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::error::{Doing, Result};

/// An open file; other modules read from it and know no more of the disk.
pub type File = std::fs::File;

/// Names that start so are our unfinished files: no walk shows them, and [`Dir::sweep`] removes those
/// of dead processes.
pub const TEMPORARY: &[u8] = b".mlx-tmp-";

/// Threads that wait for the disk.
const THREADS: usize = 8;
/// Bytes of stack for each: a thousand folders deep is walked by recursion.
const STACK: usize = 64 << 20;

/// The kernel's coarse clock, in nanoseconds: what it stamps on a file that changes now.
pub fn tick() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Does `work` on threads that wait for the disk more than they think: more of them than there are cores, so that
/// a cold disk has enough to do at once.
pub fn busy<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let make = || rayon::ThreadPoolBuilder::new().num_threads(THREADS).stack_size(STACK).build().ok();
    match POOL.get_or_init(make) {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

#[expect(clippy::disallowed_methods, reason = "`cli` asks here, once")]
pub fn current_dir() -> Result<PathBuf> {
    std::env::current_dir().doing(|| "cannot tell the current folder".into())
}

/// Lets this process open as many files as it may at most: deep folders are walked by open handles.
pub fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _unchanged = setrlimit(Resource::Nofile, limit);
}

/// How many files may stay open for later; as many again, and more, are left for what is at work.
pub fn spare_files() -> usize {
    use rustix::process::{Resource, getrlimit};

    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 4).unwrap_or(usize::MAX)
}

/// How many bytes a file of this process may have.
fn largest_file() -> u64 {
    use rustix::process::{Resource, getrlimit};

    static LIMIT: OnceLock<u64> = OnceLock::new();
    *LIMIT.get_or_init(|| getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX))
}

/// Fills `bytes` from a place in a file.
pub fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;

    fault::point("read").and_then(|()| file.read_exact_at(bytes, offset))
}

/// Reads a file that the user named, wherever it is.
pub fn read_outside(path: &Path) -> Result<Vec<u8>> {
    fault::point("read")
        .and_then(|()| std::fs::read(path))
        .doing(|| format!("cannot read `{}`", path.display()))
}

/// Adds bytes to the end of a file that the user named.
pub fn append_outside(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let open = || std::fs::OpenOptions::new().create(true).append(true).open(path);
    fault::point("write")
        .and_then(|()| open()?.write_all(bytes))
        .doing(|| format!("cannot write to `{}`", path.display()))
}

/// The path without links and dots, if there is such a file or folder.
pub fn canonical(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

pub fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|it| it.is_file())
}

pub fn is_dir(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|it| it.is_dir())
}

/// The names in a folder of the machine, sorted; none when it cannot be read.
pub fn names(path: &Path) -> Vec<std::ffi::OsString> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<_> = entries.filter_map(|it| Some(it.ok()?.file_name())).collect();
    names.sort();
    names
}

/// Makes a folder that the user named, with those above it; their names survive a power cut.
pub fn create_dir_all(path: &Path) -> Result<()> {
    let doing = || format!("cannot make the folder `{}`", path.display());
    let new: Vec<&Path> = path.ancestors().take_while(|it| !it.exists()).collect();
    if new.is_empty() {
        return Ok(());
    }
    fault::point("mkdir").and_then(|()| std::fs::create_dir_all(path)).doing(doing)?;
    // One that may not be opened cannot be synced either.
    let mut above = new.iter().filter_map(|it| std::fs::File::open(it.parent()?).ok());
    above.try_for_each(|it| it.sync_all()).doing(doing)
}

/// Makes one folder in a folder that is there.
pub fn create_dir(path: &Path) -> Result<()> {
    fault::point("mkdir")
        .and_then(|()| std::fs::create_dir(path))
        .doing(|| format!("cannot make the folder `{}`", path.display()))
}

/// Free bytes where `path` lies.
pub fn free_space(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// What this machine calls itself.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The number of the user that this process runs as.
pub fn user_id() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What the machine calls that user; the number where it has no name.
pub fn user_name() -> String {
    let id = user_id().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().map(|it| it.split(':').collect::<Vec<_>>());
    let found =
        named.filter(|it| it.get(2) == Some(&id.as_str())).find_map(|it| Some((*it.first()?).to_owned()));
    found.unwrap_or(id)
}

/// Share of the disk that is in use where `path` lies.
pub fn used_space(path: &Path) -> Option<f64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    (stat.f_blocks > 0).then(|| 1.0 - stat.f_bfree as f64 / stat.f_blocks as f64)
}

/// Whether a process of this machine runs.
pub fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|it| !matches!(rustix::process::test_kill_process(it), Err(rustix::io::Errno::SRCH)))
}
