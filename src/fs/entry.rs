//! Results of a walk over a folder: names with the kind, size, times and inode of each file.

use rustix::fs::{FileType, Stat};

use crate::{
    error::Result,
    fs::tick,
    wire::{Reader, put_bytes, put_varint},
};

/// Kind of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    File,
    Folder,
    Link,
    /// FIFO, socket or device: has no content and is never opened.
    Other,
}

/// Metadata of a file, as returned by `stat`. If it is unchanged, the content is unchanged, too.
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

/// One name in a folder, with all entries below it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'l> {
    pub name: &'l [u8],
    pub stamp: Stamp,
    pub children: &'l Listing,
}

/// Entries of a folder, sorted by the bytes of their names. They are encoded compactly in memory, since a
/// million may be kept at once:
///
/// ```text
/// row  kind, with a bit for executable files, 1 │ name │ size │ inode │ mtime and ctime, 8 each
/// ```
#[derive(Clone, Debug, Default)]
pub struct Listing {
    rows: Vec<u8>,
    /// Listings of the folders among the entries, in order.
    children: Vec<Listing>,
}

static EMPTY: Listing = Listing { rows: Vec::new(), children: Vec::new() };

const FORMS: [Form; 4] = [Form::File, Form::Folder, Form::Link, Form::Other];
const EXECUTABLE: u8 = 4;

impl Listing {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Appends an entry; `children` is kept if it is a folder.
    pub(super) fn push(&mut self, name: &[u8], stamp: &Stamp, children: Self) {
        let form = FORMS.iter().position(|form| *form == stamp.form).expect("all kinds are listed");
        self.rows.push(form as u8 | if stamp.executable { EXECUTABLE } else { 0 });
        put_bytes(&mut self.rows, name);
        put_varint(&mut self.rows, stamp.size);
        put_varint(&mut self.rows, stamp.inode);
        self.rows.extend_from_slice(&stamp.mtime.to_le_bytes());
        self.rows.extend_from_slice(&stamp.ctime.to_le_bytes());
        if stamp.form == Form::Folder {
            self.children.push(children);
        }
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
            let (size, inode) = (reader.varint()?, reader.varint()?);
            let mut time =
                || reader.take(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")));
            let (mtime, ctime) = (time()?, time()?);
            let (form, executable) = (FORMS[usize::from(first & 3)], first & EXECUTABLE != 0);
            let children = if form == Form::Folder { listings.next() } else { None };
            let stamp = Stamp { form, executable, size, mtime, ctime, inode };
            Ok(Entry { name, stamp, children: children.unwrap_or(&EMPTY) })
        };
        std::iter::from_fn(move || row().ok())
    }
}

/// Longest tick of a file system's clock, in nanoseconds. A file that changed less than this before it was
/// read may change again within the same tick and keep its times, so its metadata does not prove that it is
/// unchanged.
pub const TICK: i64 = 12_000_000;
/// Longest tick of file systems that store times in steps of one or two seconds, in nanoseconds.
const COARSE_TICK: i64 = 2_100_000_000;
const SECOND: i64 = 1_000_000_000;

impl Stamp {
    /// Returns true if the file last changed more than a clock tick before `tick`, the time at which it was
    /// read (from [`crate::fs::tick`]). Any later change then shows in its times.
    pub fn is_settled(&self, tick: i64) -> bool {
        let clock = if self.ctime % SECOND == 0 { COARSE_TICK } else { TICK };
        self.ctime.max(self.mtime).saturating_add(clock) < tick
    }

    /// Waits, for two ticks at most, until the last change is more than a clock tick ago, and returns the
    /// time then.
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
        #[expect(clippy::cast_possible_wrap, reason = "nanoseconds are below 1,000,000,000")]
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_listing_returns_the_pushed_entries(
            rows: Vec<(Vec<u8>, u8, u64, i64, i64, u64)>, inner: Vec<Vec<u8>>
        ) {
            let stamp = |form: u8, size, mtime, ctime, inode| Stamp {
                form: FORMS[usize::from(form % 4)], executable: form % 8 == 4, size, mtime, ctime, inode
            };
            let mut listing = Listing::default();
            for (name, form, size, mtime, ctime, inode) in &rows {
                let mut children = Listing::default();
                for name in &inner {
                    children.push(name, &stamp(0, 1, 2, 3, 4), Listing::default());
                }
                listing.push(name, &stamp(*form, *size, *mtime, *ctime, *inode), children.shrink());
            }
            let listing = listing.shrink();
            let found: Vec<_> = listing.iter().collect();
            prop_assert_eq!(found.len(), rows.len());
            for (entry, (name, form, size, mtime, ctime, inode)) in found.iter().zip(&rows) {
                prop_assert_eq!(entry.name, &name[..]);
                prop_assert_eq!(entry.stamp, stamp(*form, *size, *mtime, *ctime, *inode));
                let names: Vec<_> = entry.children.iter().map(|it| it.name.to_vec()).collect();
                prop_assert_eq!(names, if form % 4 == 1 { inner.clone() } else { Vec::new() });
            }
        }
    }
}
