//! Results of a walk over a folder: names with the kind, size, times and inode of each file.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rustix::fs::{FileType, Stat};

use crate::{
    error::Result,
    fs::coarse_now,
    wire::{Reader, put_bytes, put_varint},
};

/// Kind of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    Folder,
    Symlink,
    /// FIFO, socket or device: has no content and is never opened.
    Other,
}

/// Metadata of a file, as returned by `stat`. If it is unchanged, the content is unchanged, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    pub kind: FileKind,
    pub executable: bool,
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
    /// Nanoseconds since 1970.
    pub ctime: i64,
    pub inode: u64,
    /// Number of names that the file has.
    pub links: u64,
}

/// One name in a folder, with all entries below it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'l> {
    pub name: &'l [u8],
    pub stat: FileStat,
    pub children: &'l Listing,
}

/// Entries of a folder, sorted by the bytes of their names. They are encoded compactly in memory, since a
/// million may be kept at once:
///
/// ```text
/// row  kind, with a bit for executable files, 1 │ name │ size │ inode │ links │ mtime, ctime: 8 each
/// ```
#[derive(Clone, Debug, Default)]
pub struct Listing {
    rows: Vec<u8>,
    /// Listings of the folders among the entries, in order.
    children: Vec<Listing>,
    omitted: u64,
}

static EMPTY: Listing = Listing { rows: Vec::new(), children: Vec::new(), omitted: 0 };

const FORMS: [FileKind; 4] = [FileKind::File, FileKind::Folder, FileKind::Symlink, FileKind::Other];
const EXECUTABLE: u8 = 4;

impl Listing {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Appends an entry; `children` is kept if it is a folder.
    pub(crate) fn push(&mut self, name: &[u8], stat: &FileStat, children: Self) {
        let form = FORMS.iter().position(|form| *form == stat.kind).expect("all kinds are listed");
        self.rows.push(form as u8 | if stat.executable { EXECUTABLE } else { 0 });
        put_bytes(&mut self.rows, name);
        put_varint(&mut self.rows, stat.size);
        put_varint(&mut self.rows, stat.inode);
        put_varint(&mut self.rows, stat.links);
        self.rows.extend_from_slice(&stat.mtime.to_le_bytes());
        self.rows.extend_from_slice(&stat.ctime.to_le_bytes());
        if stat.kind == FileKind::Folder {
            self.children.push(children);
        }
    }

    /// Notes an entry that the walk left out, by the checksum of its name. The order does not matter.
    pub(super) fn omit(&mut self, name: u64, inode: u64) {
        let mut hasher = DefaultHasher::new();
        (name, inode).hash(&mut hasher);
        self.omitted = self.omitted.wrapping_add(hasher.finish());
    }

    /// Returns a checksum of the names that the walk left out, with their inodes; 0 without any. It is
    /// comparable within one process only.
    pub fn omitted(&self) -> u64 {
        self.omitted
    }

    /// Frees the memory that was reserved for more entries.
    pub(super) fn shrink(mut self) -> Self {
        self.rows.shrink_to_fit();
        self.children.shrink_to_fit();
        self
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut reader = Reader::new(&self.rows, "a listing");
        let mut listings = self.children.iter();
        let mut row = move || -> Result<Entry<'_>> {
            let (first, name) = (reader.byte()?, reader.bytes()?);
            let (size, inode, links) = (reader.varint()?, reader.varint()?, reader.varint()?);
            let mut time =
                || reader.take(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")));
            let (mtime, ctime) = (time()?, time()?);
            let (form, executable) = (FORMS[usize::from(first & 3)], first & EXECUTABLE != 0);
            let children = if form == FileKind::Folder { listings.next() } else { None };
            let stat = FileStat { kind: form, executable, size, mtime, ctime, inode, links };
            Ok(Entry { name, stat, children: children.unwrap_or(&EMPTY) })
        };
        std::iter::from_fn(move || row().ok())
    }
}

/// Longest tick of the clock of a file system with fine-grained times, in nanoseconds. A file that changed
/// less than this before it was read may change again within the same tick and keep its times, so its
/// metadata does not prove that it is unchanged.
pub const CLOCK_TICK: i64 = 12_000_000;
/// Longest tick of file systems that store times in steps of one or two seconds, in nanoseconds.
const COARSE_TICK: i64 = 2_100_000_000;
const SECOND: i64 = 1_000_000_000;

impl FileStat {
    /// Returns true if the file last changed more than a clock tick before `tick`, the time at which it was
    /// read (from [`crate::fs::coarse_now`]). Any later change then shows in its times.
    pub fn is_older_than_clock_tick(&self, tick: i64) -> bool {
        let clock = if self.ctime % SECOND == 0 { COARSE_TICK } else { CLOCK_TICK };
        self.ctime.max(self.mtime).saturating_add(clock) < tick
    }

    /// Waits, for two ticks at most, until the last change is more than a clock tick ago, and returns the
    /// time then.
    pub fn wait_for_clock_tick(&self) -> i64 {
        let end = coarse_now().saturating_add(2 * CLOCK_TICK);
        loop {
            let now = coarse_now();
            if self.is_older_than_clock_tick(now) || now > end {
                return now;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    pub(super) fn of(stat: &Stat) -> Self {
        let form = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Folder,
            FileType::Symlink => FileKind::Symlink,
            _ => FileKind::Other,
        };
        #[expect(clippy::cast_possible_wrap, reason = "nanoseconds are below 1,000,000,000")]
        let nanoseconds =
            |seconds: i64, rest: u64| seconds.saturating_mul(1_000_000_000).saturating_add(rest as i64);
        Self {
            kind: form,
            executable: form == FileKind::File && stat.st_mode & 0o100 != 0,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            ctime: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
            inode: stat.st_ino,
            links: stat.st_nlink,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file system that stores whole seconds keeps the times of a file that changes twice in one of them.
    #[test]
    fn a_file_is_old_once_any_later_change_shows_in_its_times() {
        let stat = |mtime, ctime| FileStat {
            kind: FileKind::File,
            executable: false,
            size: 1,
            mtime,
            ctime,
            inode: 1,
            links: 1,
        };
        let now = 1_700_000_000 * SECOND;
        for (ctime, tick) in [(now + 1, CLOCK_TICK), (now, COARSE_TICK)] {
            assert!(!stat(0, ctime).is_older_than_clock_tick(ctime + tick));
            assert!(stat(0, ctime).is_older_than_clock_tick(ctime + tick + 1));
            assert!(!stat(ctime + 1, ctime).is_older_than_clock_tick(ctime + tick + 1), "changed later");
        }
    }

    proptest! {
        #[test]
        fn a_listing_returns_the_pushed_entries(
            rows: Vec<(Vec<u8>, u8, u64, i64, i64, u64)>, links: u64, inner: Vec<Vec<u8>>
        ) {
            let stat = |form: u8, size, mtime, ctime, inode| FileStat {
                kind: FORMS[usize::from(form % 4)], executable: form % 8 == 4, size, mtime, ctime, inode,
                links
            };
            let mut listing = Listing::default();
            for (name, form, size, mtime, ctime, inode) in &rows {
                let mut children = Listing::default();
                for name in &inner {
                    children.push(name, &stat(0, 1, 2, 3, 4), Listing::default());
                }
                listing.push(name, &stat(*form, *size, *mtime, *ctime, *inode), children.shrink());
            }
            let listing = listing.shrink();
            let found: Vec<_> = listing.iter().collect();
            prop_assert_eq!(found.len(), rows.len());
            for (entry, (name, form, size, mtime, ctime, inode)) in found.iter().zip(&rows) {
                prop_assert_eq!(entry.name, &name[..]);
                prop_assert_eq!(entry.stat, stat(*form, *size, *mtime, *ctime, *inode));
                let names: Vec<_> = entry.children.iter().map(|it| it.name.to_vec()).collect();
                prop_assert_eq!(names, if form % 4 == 1 { inner.clone() } else { Vec::new() });
            }
        }
    }
}
