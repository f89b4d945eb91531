//! Stat cache: each file's digest with the size, times and inode it had when it was hashed.
//!
//! A scan takes the digest of an unchanged file from here instead of reading the file. A missing or damaged
//! cache is built again.
//!
//! ```text
//! "mlxlook" 2 │ number of folders │ folders │ number of pointers │ paths │ BLAKE3
//! folder      path │ number of rows │ rows, sorted by name
//! row         name │ size, mtime, ctime, inode: 8 bytes each, little-endian │ digest, 32
//! ```
//!
//! Rows are grouped by folder, in the order of a scan: a hundred thousand files cost one lookup per folder,
//! and no path of a file is built. A folder is parsed from the bytes of the file when it is needed, and
//! written back unparsed if nothing in it changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    ops::Range,
};

use crate::{
    digest::{Digest, Hasher},
    error::Result,
    fs::{File, FileStat, Lock, Sync},
    path::RepoPath,
    progress::Progress,
    repo::Repo,
    wire::{Reader, put_bytes, put_varint},
};

const MAGIC: &[u8; 8] = b"mlxlook\x02";

#[derive(Clone, Copy, PartialEq, Eq)]
struct CachedStat {
    size: u64,
    mtime: i64,
    ctime: i64,
    inode: u64,
    digest: Digest,
}

/// A file of a folder: its name and its encoded [`CachedStat`].
type Row<'i> = (&'i [u8], &'i [u8; STAT_SIZE]);

/// The encoded rows of a folder, preceded by their number: a range of the loaded file, or bytes built since.
enum Slot {
    Loaded(Range<usize>),
    Built(Vec<u8>),
}

/// The cached stats of a folder's files, sorted by name.
pub struct FolderStats<'i>(Vec<Row<'i>>);

/// Bytes of new rows that are collected before they are merged: during the merge they are in memory twice.
const MAX_PENDING: usize = 4 << 20;
/// Bytes of a row after its name.
const STAT_SIZE: usize = 64;

#[derive(Default)]
pub struct Index {
    folders: BTreeMap<RepoPath, Slot>,
    /// Contents of the loaded file.
    bytes: Vec<u8>,
    /// Names with new rows for [`Index::merge_pending`]; a name without a row removes the old one.
    pending: Vec<u8>,
    /// Folders, each with the offset of its first name in `pending`, in order of insertion.
    pending_folders: Vec<(RepoPath, usize)>,
    /// Pointers written here, whether or not Git tracks them yet.
    pub pointers: BTreeSet<RepoPath>,
    /// Paths scanned by this process, whose rows override those on disk.
    scanned: BTreeSet<RepoPath>,
    changed: bool,
    /// True if the file existed and was valid; otherwise the index is built anew.
    pub loaded: bool,
}

impl FolderStats<'_> {
    /// Returns the cached digest of a file if its stat is unchanged.
    pub fn digest_if_unchanged(&self, name: &[u8], stat: &FileStat) -> Option<Digest> {
        let at = self.0.binary_search_by(|row| row.0.cmp(name)).ok()?;
        let cached = CachedStat::read(self.0[at].1);
        let same = (cached.size, cached.mtime, cached.ctime, cached.inode)
            == (stat.size, stat.mtime, stat.ctime, stat.inode);
        same.then_some(cached.digest)
    }
}

impl CachedStat {
    fn read(bytes: &[u8; STAT_SIZE]) -> Self {
        let (numbers, digest) = bytes.split_at(STAT_SIZE / 2);
        let numbers = numbers.as_chunks::<8>().0;
        let digest = Digest::from_bytes(digest.try_into().expect("half of a row is a digest"));
        let number = |at: usize| i64::from_le_bytes(numbers[at]);
        let (size, inode) = (number(0).cast_unsigned(), number(3).cast_unsigned());
        Self { size, mtime: number(1), ctime: number(2), inode, digest }
    }

    fn print(&self, out: &mut Vec<u8>) {
        let numbers = [self.size.cast_signed(), self.mtime, self.ctime, self.inode.cast_signed()];
        numbers.iter().for_each(|it| out.extend_from_slice(&it.to_le_bytes()));
        out.extend_from_slice(self.digest.bytes());
    }
}

/// Encodes the rows of a folder with their number.
fn print_rows(rows: &[Row<'_>]) -> Vec<u8> {
    let capacity = rows.iter().map(|row| row.0.len() + 3 + STAT_SIZE).sum::<usize>();
    let mut out = Vec::with_capacity(capacity + 9);
    put_varint(&mut out, rows.len() as u64);
    for &(name, stat) in rows {
        put_bytes(&mut out, name);
        out.extend_from_slice(stat);
    }
    out
}

/// Merges new rows into old ones: a name without a row removes the old one, and of two the later counts.
fn merge_rows<'i>(old: &[Row<'i>], mut new: Vec<(&'i [u8], Option<&'i [u8; STAT_SIZE]>)>) -> Vec<u8> {
    new.reverse();
    new.sort_by_key(|row| row.0);
    new.dedup_by_key(|row| row.0);
    let retained = |row: &&Row<'i>| new.binary_search_by_key(&row.0, |new| new.0).is_err();
    let mut rows: Vec<Row<'i>> = old.iter().filter(retained).copied().collect();
    rows.extend(new.iter().filter_map(|row| Some((row.0, row.1?))));
    // Two sorted runs: this takes one pass.
    rows.sort_by_key(|it| it.0);
    print_rows(&rows)
}

impl Index {
    /// Loads the index; a missing or damaged one counts as empty.
    pub fn load(repo: &Repo) -> Result<Self> {
        // An unreadable file counts as missing.
        let bytes = repo.private.read_if_exists(&index_path()?).unwrap_or_default();
        let index = bytes.and_then(|it| parse(it).ok());
        Ok(index.map_or_else(
            || Self { changed: true, ..Self::default() },
            |index| Self { loaded: true, ..index },
        ))
    }

    /// Returns the cached stats of a folder.
    pub fn folder(&self, folder: &RepoPath) -> Option<FolderStats<'_>> {
        self.folders.get(folder).map(|slot| FolderStats(parse_rows(self.slot_bytes(slot))))
    }

    fn slot_bytes<'i>(&'i self, slot: &'i Slot) -> &'i [u8] {
        match slot {
            Slot::Loaded(range) => &self.bytes[range.clone()],
            Slot::Built(bytes) => bytes,
        }
    }

    fn rows(&self, folder: &RepoPath) -> Vec<Row<'_>> {
        self.folder(folder).map_or_else(Vec::new, |it| it.0)
    }

    /// Caches a digest computed at `tick` if the file is old enough: a later write must change its
    /// times.
    pub fn insert(&mut self, path: &RepoPath, stat: &FileStat, digest: Digest, tick: i64) {
        let FileStat { size, mtime, ctime, inode, .. } = *stat;
        let folder = path.parent().unwrap_or_default();
        if self.pending_folders.last().is_none_or(|run| run.0 != folder) {
            self.pending_folders.push((folder, self.pending.len()));
        }
        put_bytes(&mut self.pending, path.name());
        let is_old_enough = stat.is_older_than_clock_tick(tick);
        self.pending.push(is_old_enough.into());
        if is_old_enough {
            CachedStat { size, mtime, ctime, inode, digest }.print(&mut self.pending);
        }
        self.changed = true;
        if self.pending.len() > MAX_PENDING {
            self.merge_pending();
        }
    }

    /// Merges the pending rows, so that lookups find them.
    pub fn merge_pending(&mut self) {
        let (pending, runs) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.pending_folders));
        let ends = runs.iter().skip(1).map(|run| run.1).chain([pending.len()]).collect::<Vec<_>>();
        for ((folder, start), end) in runs.into_iter().zip(ends) {
            let rows = merge_rows(&self.rows(&folder), parse_pending(&pending[start..end]));
            self.folders.insert(folder, Slot::Built(rows));
        }
    }

    /// Removes the rows of deleted files; `names` are the existing ones, sorted.
    pub fn retain_files(&mut self, folder: &RepoPath, names: &[&[u8]]) {
        let mut rows = self.rows(folder);
        let all = rows.len();
        rows.retain(|it| names.binary_search(&it.0).is_ok());
        if rows.len() < all {
            let rows = print_rows(&rows);
            self.folders.insert(folder.clone(), Slot::Built(rows));
            self.changed = true;
        }
    }

    /// Removes all folders at or below `path` except those in `walked`.
    pub fn retain_folders(&mut self, path: &RepoPath, walked: &BTreeSet<RepoPath>) {
        self.scanned.insert(path.clone());
        let gone: Vec<RepoPath> = self.folders_within(path).filter(|it| !walked.contains(it)).collect();
        self.changed |= !gone.is_empty();
        gone.iter().for_each(|folder| drop(self.folders.remove(folder)));
    }

    /// Returns the cached folders at or below a path.
    fn folders_within(&self, path: &RepoPath) -> impl Iterator<Item = RepoPath> {
        let from = self.folders.range(path.clone()..);
        let near = from.map(|entry| entry.0).take_while(|folder| folder.bytes().starts_with(path.bytes()));
        near.filter(|it| it.is_within(path)).cloned()
    }

    fn was_scanned(&self, path: &RepoPath) -> bool {
        let mut here = Some(path.clone());
        while let Some(path) = here {
            if self.scanned.contains(&path) {
                return true;
            }
            here = path.parent();
        }
        false
    }

    /// Adds a path that has a pointer.
    pub fn add_pointer(&mut self, path: RepoPath) {
        self.changed |= self.pointers.insert(path);
    }

    /// Returns true if [`Index::save`] has something to write.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Saves the index under a short lock.
    pub fn save(&mut self, repo: &Repo, progress: &dyn Progress) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let lock = repo.lock_with_progress(progress)?;
        self.save_locked(repo, &lock)
    }

    /// Saves the index unless another process holds the lock.
    pub fn save_if_free(&mut self, repo: &Repo) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        match repo.try_lock()? {
            Some(lock) => self.save_locked(repo, &lock),
            None => Ok(()),
        }
    }

    /// Moves the rows of a renamed folder to its new path; they stay valid.
    pub fn rename(&mut self, from: &RepoPath, to: &RepoPath) {
        self.merge_pending();
        for old in self.folders_within(from).collect::<Vec<_>>() {
            let new = old.strip_prefix(from).and_then(|below| to.join_path(&below).ok());
            if let (Some(rows), Some(new)) = (self.folders.remove(&old), new) {
                self.folders.insert(new, rows);
                self.changed = true;
            }
        }
        self.scanned.extend([from.clone(), to.clone()]);
    }

    /// Takes over rows that other processes saved meanwhile, of files that this process did not scan.
    fn merge_from_disk(&mut self, other: &Self) {
        for folder in
            other.folders.keys().filter(|folder| !self.was_scanned(folder)).cloned().collect::<Vec<_>>()
        {
            let same = |slot: &Slot| self.slot_bytes(slot) == other.slot_bytes(&other.folders[&folder]);
            if self.folders.get(&folder).is_some_and(same) {
                continue;
            }
            // Files that were scanned one by one are in a folder that was not.
            let single = |row: &Row<'_>| folder.join(row.0).is_ok_and(|path| self.scanned.contains(&path));
            let others = other.rows(&folder).into_iter().filter(|row| !single(row));
            let rows = merge_rows(&self.rows(&folder), others.map(|row| (row.0, Some(row.1))).collect());
            self.folders.insert(folder, Slot::Built(rows));
        }
    }

    /// Replaces the file on disk, keeping its rows of files that this process did not scan.
    pub fn save_locked(&mut self, repo: &Repo, _lock: &Lock) -> Result<()> {
        self.merge_pending();
        let mut pointers = self.pointers.clone();
        if !self.is_latest_on_disk(repo)? {
            let other = Self::load(repo)?;
            self.merge_from_disk(&other);
            pointers.extend(other.pointers);
        }
        self.folders.retain(|_, slot| !matches!(slot, Slot::Built(bytes) if bytes[..] == [0]));
        let mut kept = BTreeSet::new();
        for path in pointers {
            // A pointer that cannot be inspected now may exist all the same.
            if !matches!(repo.files.stat(&path.with_suffix(crate::pointer::SUFFIX)), Ok(None)) {
                kept.insert(path);
            }
        }
        self.pointers = kept;
        // The cached files must be durable before the index that refers to them.
        repo.files.sync_all()?;
        repo.private.write_with(&index_path()?, Sync::Later, &|out| self.print(out))?;
        self.changed = false;
        Ok(())
    }

    /// Returns true if the file on disk is the loaded one, judged by the digest at its end.
    fn is_latest_on_disk(&self, repo: &Repo) -> Result<bool> {
        use std::os::unix::fs::FileExt as _;

        let Some(size) = repo.private.stat(&index_path()?)?.map(|stat| stat.size) else {
            return Ok(self.bytes.is_empty());
        };
        let mut end = [0; 32];
        let read = |file: File| file.read_exact_at(&mut end, size.saturating_sub(32)).is_ok();
        Ok(repo.private.open_file(&index_path()?).is_ok_and(read) && self.bytes.ends_with(&end))
    }

    /// Writes folder by folder: encoding everything at once would take twice the memory.
    fn print(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut check = Hasher::default();
        let mut put = |bytes: &[u8]| {
            check.write_all(bytes)?;
            out.write_all(bytes)
        };
        let mut head = MAGIC.to_vec();
        put_varint(&mut head, self.folders.len() as u64);
        put(&head)?;
        for (folder, slot) in &self.folders {
            let mut name = Vec::new();
            put_bytes(&mut name, folder.bytes());
            put(&name)?;
            put(self.slot_bytes(slot))?;
        }
        let mut tail = Vec::new();
        put_varint(&mut tail, self.pointers.len() as u64);
        self.pointers.iter().for_each(|path| put_bytes(&mut tail, path.bytes()));
        put(&tail)?;
        out.write_all(check.finish().bytes())
    }
}

/// Parses the rows of a folder; their bytes were validated when the file was loaded.
fn parse_rows(bytes: &[u8]) -> Vec<Row<'_>> {
    let mut reader = Reader::new(bytes, "the index");
    let count = reader.varint().unwrap_or(0);
    let mut row = || Some((reader.bytes().ok()?, reader.take(STAT_SIZE).ok()?.try_into().ok()?));
    (0..count).map_while(|_| row()).collect()
}

/// Parses the rows that [`Index::insert`] appended, in their order.
fn parse_pending(bytes: &[u8]) -> Vec<(&[u8], Option<&[u8; STAT_SIZE]>)> {
    let mut reader = Reader::new(bytes, "the index");
    let row = || {
        let (name, has_row) = (reader.bytes().ok()?, reader.byte().ok()? == 1);
        Some((name, if has_row { reader.take(STAT_SIZE).ok()?.try_into().ok() } else { None }))
    };
    std::iter::from_fn(row).collect()
}

fn parse(bytes: Vec<u8>) -> Result<Index> {
    let body = bytes.len().saturating_sub(32);
    let mut reader = Reader::new(&bytes[..body], "the index");
    reader.expect_magic(MAGIC)?;
    if Digest::of(&bytes[..body]).bytes()[..] != bytes[body..] {
        return Err(reader.corrupt("is damaged"));
    }
    let mut index = Index::default();
    for _ in 0..reader.varint()? {
        let folder = RepoPath::from_bytes(reader.bytes()?)?;
        let start = body - reader.remaining();
        for _ in 0..reader.varint()? {
            reader.bytes()?;
            reader.take(STAT_SIZE)?;
        }
        index.folders.insert(folder, Slot::Loaded(start..body - reader.remaining()));
    }
    for _ in 0..reader.varint()? {
        index.pointers.insert(RepoPath::from_bytes(reader.bytes()?)?);
    }
    reader.expect_end()?;
    index.bytes = bytes;
    Ok(index)
}

fn index_path() -> Result<RepoPath> {
    RepoPath::from_text("index")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{CLOCK_TICK, FileKind};

    fn stat(ctime: i64) -> FileStat {
        FileStat { kind: FileKind::File, executable: false, size: 3, mtime: 5, ctime, inode: 7, links: 1 }
    }

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    fn digest_if_unchanged(index: &Index, text: &str, stat: &FileStat) -> Option<Digest> {
        index
            .folder(&path(text).parent().unwrap())
            .and_then(|stats| stats.digest_if_unchanged(path(text).name(), stat))
    }

    #[test]
    fn a_printed_index_is_parsed_back() {
        let mut index = Index::default();
        index.insert(&path("a/b"), &stat(6), Digest::of(b"x"), CLOCK_TICK + 100);
        index.add_pointer(path("a"));
        index.merge_pending();
        let bytes = printed(&index);
        let read = parse(bytes.clone()).unwrap();
        assert_eq!(digest_if_unchanged(&read, "a/b", &stat(6)), Some(Digest::of(b"x")));
        assert_eq!(read.pointers, index.pointers);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(parse(bad).is_err(), "byte {at}");
            assert!(parse(bytes[..at].to_vec()).is_err(), "first {at} bytes");
        }
    }

    #[test]
    fn files_with_future_times_are_not_cached() {
        let mut index = Index::default();
        let now = 1_700_000_000_000_000_000;
        // The owner set a future time, or the clock was set back by a year since.
        index.insert(&path("a"), &FileStat { mtime: now + CLOCK_TICK, ..stat(5) }, Digest::of(b"x"), now);
        index.insert(&path("b"), &stat(now + CLOCK_TICK), Digest::of(b"x"), now);
        index.merge_pending();
        assert_eq!(digest_if_unchanged(&index, "a", &FileStat { mtime: now + CLOCK_TICK, ..stat(5) }), None);
        assert_eq!(digest_if_unchanged(&index, "b", &stat(now + CLOCK_TICK)), None);
    }

    #[test]
    fn files_changed_within_a_clock_tick_are_not_cached() {
        let mut index = Index::default();
        index.insert(&path("a"), &stat(1000), Digest::of(b"x"), 1000 + CLOCK_TICK);
        index.merge_pending();
        assert_eq!(digest_if_unchanged(&index, "a", &stat(1000)), None);
        index.insert(&path("a"), &stat(1000), Digest::of(b"x"), 1001 + CLOCK_TICK);
        index.merge_pending();
        assert!(digest_if_unchanged(&index, "a", &stat(1000)).is_some());
        assert_eq!(digest_if_unchanged(&index, "a", &stat(1001)), None);
        // The latest row counts, even if it is empty.
        index.insert(&path("a"), &stat(1000), Digest::of(b"y"), 1001 + CLOCK_TICK);
        index.insert(&path("a"), &stat(1000), Digest::of(b"y"), 1000);
        index.merge_pending();
        assert_eq!(digest_if_unchanged(&index, "a", &stat(1000)), None);
    }

    #[test]
    fn whole_second_times_count_as_a_coarse_clock() {
        const SECOND: i64 = 1_000_000_000;
        const COARSE_TICK: i64 = 2_100_000_000;

        let mut index = Index::default();
        for (tick, cached) in [(SECOND + COARSE_TICK, false), (SECOND + COARSE_TICK + 1, true)] {
            index.insert(&path("a"), &stat(SECOND), Digest::of(b"x"), tick);
            index.merge_pending();
            assert_eq!(digest_if_unchanged(&index, "a", &stat(SECOND)).is_some(), cached, "{tick}");
        }
    }

    fn index(paths: &[&str]) -> Index {
        let mut index = Index::default();
        paths.iter().for_each(|text| {
            index.insert(&path(text), &stat(1), Digest::of(text.as_bytes()), CLOCK_TICK * 2);
        });
        index.merge_pending();
        index
    }

    fn printed(index: &Index) -> Vec<u8> {
        let mut out = Vec::new();
        index.print(&mut out).unwrap();
        out
    }

    fn names(index: &Index) -> Vec<String> {
        // Printed and read back, so that both kinds of slots are covered.
        let read = parse(printed(index)).unwrap();
        let rows = |folder: &RepoPath| {
            read.rows(folder).iter().map(|row| folder.join(row.0).unwrap().to_text()).collect::<Vec<_>>()
        };
        read.folders.keys().flat_map(rows).collect()
    }

    #[test]
    fn rows_of_deleted_files_are_removed() {
        let mut index = index(&["d/a", "d/b", "d/e/c", "d2", "d/f/g", "d.x/y"]);
        index.retain_files(&path("d"), &[b"b", b"e"]);
        index.retain_folders(&path("d"), &BTreeSet::from([path("d"), path("d/f")]));
        assert_eq!(names(&index), ["d2", "d/b", "d.x/y", "d/f/g"]);
    }

    #[test]
    fn rows_on_disk_are_merged_except_for_scanned_paths() {
        let mut own = index(&["d/a", "e/one", "e/two"]);
        own.scanned.extend([path("d"), path("e/one")]);
        own.retain_files(&path("e"), &[b"two"]);
        own.merge_from_disk(&parse(printed(&index(&["d/a", "d/gone", "e/one", "e/three", "f/g"]))).unwrap());
        assert_eq!(names(&own), ["d/a", "e/three", "e/two", "f/g"]);
    }

    #[test]
    fn a_renamed_folder_keeps_its_rows() {
        let mut index = index(&["d/a", "d/e/c", "x"]);
        index.rename(&path("d"), &path("n/m"));
        assert_eq!(names(&index), ["x", "n/m/a", "n/m/e/c"]);
    }
}
