//! File system access: the only module that touches the disk.
//!
//! A [`Root`] holds an open folder. Everything below it is opened name by name from that handle without
//! following symlinks, so that a path that was checked cannot be swapped for another before it is used.
//! Writes are atomic: a file is written under a temporary name in the same folder, synced where it must
//! survive a power cut, and renamed; readers see the old bytes or the new ones. In debug builds every
//! operation passes [`fault`], so that tests can make the n-th one fail, or end the process there.

mod case;
mod dir;
mod entry;
mod fault;
mod link;
mod link_support;
mod lock;
mod name;
mod process;
mod rename;
mod root;
mod shared_blocks;
mod sparse;
mod stale;
mod unshare;
mod walk_filter;
mod writable;
mod write_all;

pub use self::{
    dir::{Dir, Sync, TempFile},
    entry::{CLOCK_TICK, Entry, FileKind, FileStat, Listing},
    link::{LinkKind, Mode, link_into},
    lock::{Lock, create_locked, is_locked, lock, lock_patiently, lock_shared, lock_with_progress, try_lock},
    process::is_alive,
    rename::{Exchange, TempName},
    root::{MAX_DOCUMENT_SIZE, Root},
    shared_blocks::shares_blocks,
    sparse::SparseReader,
    stale::StaleNames,
    walk_filter::{NoFilter, WalkFilter},
};

#[cfg(test)]
pub use self::fault::Crash;
pub use self::fault::point as fault_point;

pub use rustix::fs::FileType;

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::error::{Error, Kind, Result, WithContext};

/// Open file, through which other modules read without using `std::fs`.
pub type File = std::fs::File;

/// Prefix of the names of mlx's temporary files. Walks leave them out, and [`Dir::clean`] removes those of
/// dead processes.
pub const TEMP_PREFIX: &[u8] = b".mlx-tmp-";

/// Number of I/O threads.
const IO_THREADS: usize = 8;
/// Stack size of each I/O thread, in bytes: folders nested a thousand deep are walked by recursion.
const IO_STACK_SIZE: usize = 64 << 20;

/// Returns the time of the kernel's coarse clock, in nanoseconds: the time that a file gets if it changes
/// now.
pub fn coarse_now() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Runs `work` on a thread pool for I/O. It can have more threads than there are cores, so that a disk with a
/// cold cache gets enough requests at once.
pub fn on_io_threads<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let build =
        || rayon::ThreadPoolBuilder::new().num_threads(IO_THREADS).stack_size(IO_STACK_SIZE).build().ok();
    match POOL.get_or_init(build) {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

#[expect(clippy::disallowed_methods, reason = "`cli` asks here, once")]
pub fn current_dir() -> Result<PathBuf> {
    std::env::current_dir().context(|| "cannot determine the current folder".into())
}

/// Raises this process's limit on open files to the maximum: walks of deep folders keep a handle open per
/// level.
pub fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _unchanged = setrlimit(Resource::Nofile, limit);
}

/// Returns the number of files that may be kept open in caches: a quarter of the limit, so that the rest is
/// left for running operations.
pub fn cached_file_limit() -> usize {
    use rustix::process::{Resource, getrlimit};

    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 4).unwrap_or(usize::MAX)
}

/// Returns the largest size of a file that this process may write, in bytes.
fn max_file_size() -> u64 {
    use rustix::process::{Resource, getrlimit};

    static LIMIT: OnceLock<u64> = OnceLock::new();
    *LIMIT.get_or_init(|| getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX))
}

/// Fills `bytes` from an offset in a file.
pub fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;

    fault::point("read").and_then(|()| file.read_exact_at(bytes, offset))
}

/// Reads a file that the user named, which may be outside every [`Root`].
pub fn read_user_file(path: &Path) -> Result<Vec<u8>> {
    fault::point("read")
        .and_then(|()| std::fs::read(path))
        .context(|| format!("cannot read `{}`", path.display()))
}

/// Appends bytes to a file that the user named, which may be outside every [`Root`].
pub fn append_user_file(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let open = || std::fs::OpenOptions::new().create(true).append(true).open(path);
    fault::point("write")
        .and_then(|()| open()?.write_all(bytes))
        .context(|| format!("cannot write to `{}`", path.display()))
}

/// Resolves symlinks and dots in a path; `None` if it does not exist.
pub fn canonicalize(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

pub fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|it| it.is_file())
}

/// Returns true for a FIFO, a socket or a device, or a link to one: reading it could block. The null device,
/// which stands for an empty file, does not.
pub fn may_block(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let is_null = |found: &std::fs::Metadata| {
        found.file_type().is_char_device() && found.rdev() == rustix::fs::makedev(1, 3)
    };
    std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir() && !is_null(&found))
}

pub fn is_dir(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|it| it.is_dir())
}

/// Returns true if there is a folder, and false if there is nothing. It is an error if something else is
/// there, or that cannot be known.
pub fn is_folder(path: &Path) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(stat) if stat.is_dir() => Ok(true),
        Ok(_) => Err(Error::new(Kind::Conflict, format!("`{}` is not a folder", path.display()))
            .hint("move it away, or name another folder")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context(|| format!("cannot look for the folder `{}`", path.display())),
    }
}

/// Lists the names in a folder, sorted; empty if it cannot be read.
pub fn names(path: &Path) -> Vec<std::ffi::OsString> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<_> = entries.filter_map(|it| Some(it.ok()?.file_name())).collect();
    names.sort();
    names
}

/// Creates a folder that the user named and its missing parents. All of them survive a power cut.
pub fn create_dir_all(path: &Path) -> Result<()> {
    let context = || format!("cannot create the folder `{}`", path.display());
    let missing: Vec<&Path> = path.ancestors().take_while(|it| !it.exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    fault::point("mkdir").and_then(|()| std::fs::create_dir_all(path)).context(context)?;
    // A parent that may not be opened cannot be synced either.
    let mut parents = missing.iter().filter_map(|folder| std::fs::File::open(folder.parent()?).ok());
    parents.try_for_each(|parent| parent.sync_all()).context(context)
}

/// Creates one folder in an existing folder.
pub fn create_dir(path: &Path) -> Result<()> {
    fault::point("mkdir")
        .and_then(|()| std::fs::create_dir(path))
        .context(|| format!("cannot create the folder `{}`", path.display()))
}

/// Returns the free space of the file system that contains `path`, in bytes.
pub fn free_space(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Returns the host name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Returns the effective user id of this process.
pub fn user_id() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Returns the name of that user in `/etc/passwd`, or the user id if it is not listed.
pub fn user_name() -> String {
    let id = user_id().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut rows = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let row = rows.find(|row| row.get(2) == Some(&id.as_str()));
    row.and_then(|row| Some((*row.first()?).to_owned())).unwrap_or(id)
}

/// Returns the used share, 0 to 1, of the file system that contains `path`.
pub fn used_share(path: &Path) -> Option<f64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    (stat.f_blocks > 0).then(|| 1.0 - stat.f_bfree as f64 / stat.f_blocks as f64)
}

/// Returns true if this process was started with the signal ignored, as `nohup` and shells in the background
/// do.
pub fn is_signal_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
