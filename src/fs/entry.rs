//! What a walk finds: names with what the file system says of them.

use rustix::fs::{FileType, Stat};

use crate::fs::tick;

/// What kind of thing lies under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    File,
    Folder,
    Link,
    /// A fifo, socket or device: no content, never opened.
    Other,
}

/// What the file system says of a file, cheap to compare: if none of it changed, the bytes did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub form: Form,
    pub executable: bool,
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
    /// Nanoseconds since 1970.
    pub ctime: i64,
    pub inode: u64,
}

/// One name in a folder, with everything below it, sorted by the bytes of the names.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: Box<[u8]>,
    pub stamp: Stamp,
    pub children: Vec<Entry>,
}

/// A file touched less than this before it was read may change again within the same tick of the file system's
/// clock, without a trace: it is not vouched for.
pub const TICK: i64 = 12_000_000;

impl Stamp {
    /// Whether a file read at `tick` would show if it had been touched since.
    pub fn is_settled(&self, tick: i64) -> bool {
        self.ctime.max(self.mtime).saturating_add(TICK) < tick
    }

    /// Waits until what is read now is settled, but not for long; the time after that.
    pub fn wait_until_settled(&self) -> i64 {
        let end = tick().saturating_add(2 * TICK);
        loop {
            let now = tick();
            if self.is_settled(now) || now > end {
                return now;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    pub(super) fn of(stat: &Stat) -> Self {
        let form = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Form::File,
            FileType::Directory => Form::Folder,
            FileType::Symlink => Form::Link,
            _ => Form::Other,
        };
        #[expect(clippy::cast_possible_wrap, reason = "nanoseconds are below a thousand million")]
        let nanoseconds =
            |seconds: i64, rest: u64| seconds.saturating_mul(1_000_000_000).saturating_add(rest as i64);
        Self {
            form,
            executable: form == Form::File && stat.st_mode & 0o100 != 0,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            ctime: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
            inode: stat.st_ino,
        }
    }
}
