//! Stat cache: each file's digest with the size, times and inode it had when it was hashed.
//!
//! A scan takes the digest of an unchanged file from here instead of reading the file. A missing or damaged
//! cache is built again.
//!
//! ```text
//! "mlxlook" 2 │ number of folders │ folders │ number of pointers │ paths │ BLAKE3
//! folder      path │ rows (see `rows`)
//! ```
//!
//! Rows are grouped by folder, in the order of a scan: a hundred thousand files cost one lookup per folder,
//! and no path of a file is built. A folder is parsed from the bytes of the file once, when it is needed, and
//! written back unparsed if nothing in it changed. New rows are kept beside the others and merged in bulk.

use std::{
    cell::OnceCell,
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
    workspace::rows::{
        CachedStat, FolderStats, NewRows, Row, merge_rows, parse_names, print_rows, skip_rows,
    },
};

const MAGIC: &[u8; 8] = b"mlxlook\x02";

/// The encoded rows of a folder.
struct Slot {
    rows: Rows,
    /// The places of the names in the rows, once these are parsed.
    names: OnceCell<Vec<Range<usize>>>,
}

/// Rows preceded by their number: a range of the loaded file, or bytes built since.
enum Rows {
    Loaded(Range<usize>),
    Built(Vec<u8>),
}

/// Number of new rows that are collected before they are merged: each merge copies the rows of a folder.
const MAX_NEW_ROWS: usize = 1 << 15;

#[derive(Default)]
pub struct Index {
    folders: BTreeMap<RepoPath, Slot>,
    /// Contents of the loaded file.
    bytes: Vec<u8>,
    /// New rows by folder, and their number.
    new: BTreeMap<RepoPath, NewRows>,
    new_rows: usize,
    /// Pointers written here, whether or not Git tracks them yet.
    pub pointers: BTreeSet<RepoPath>,
    /// Paths scanned by this process, whose rows override those on disk.
    scanned: BTreeSet<RepoPath>,
    changed: bool,
    /// True if the file existed and was valid; otherwise the index is built anew.
    pub loaded: bool,
}

impl Slot {
    fn new(rows: Rows) -> Self {
        Self { rows, names: OnceCell::new() }
    }
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
        let (slot, new) = (self.folders.get(folder), self.new.get(folder));
        let Some(slot) = slot else {
            return new.map(|new| FolderStats { rows: &[], names: &[], new: Some(new) });
        };
        let rows = self.slot_bytes(slot);
        Some(FolderStats { rows, names: slot.names.get_or_init(|| parse_names(rows)), new })
    }

    fn slot_bytes<'i>(&'i self, slot: &'i Slot) -> &'i [u8] {
        match &slot.rows {
            Rows::Loaded(range) => &self.bytes[range.clone()],
            Rows::Built(bytes) => bytes,
        }
    }

    /// Returns the rows of a folder without the new ones.
    fn old_rows(&self, folder: &RepoPath) -> Vec<Row<'_>> {
        self.folder(folder).map_or_else(Vec::new, |stats| stats.old_rows())
    }

    fn put_rows(&mut self, folder: RepoPath, rows: Vec<u8>) {
        self.folders.insert(folder, Slot::new(Rows::Built(rows)));
    }

    /// Caches a digest computed at `tick` if the file is old enough: a later write must change its
    /// times.
    pub fn insert(&mut self, path: &RepoPath, stat: &FileStat, digest: Digest, tick: i64) {
        let row = stat.is_older_than_clock_tick(tick).then(|| CachedStat::new(stat, &digest));
        let new = self.new.entry(path.parent().unwrap_or_default()).or_default();
        new.insert(path.name().into(), row);
        (self.changed, self.new_rows) = (true, self.new_rows + 1);
        if self.new_rows > MAX_NEW_ROWS {
            self.merge_all();
        }
    }

    /// Merges the new rows into the others.
    fn merge_all(&mut self) {
        self.new_rows = 0;
        for (folder, new) in std::mem::take(&mut self.new) {
            let rows = merge_rows(self.old_rows(&folder), &new);
            self.put_rows(folder, rows);
        }
    }

    /// Removes the rows of deleted files; `names` are the existing ones, sorted.
    pub fn retain_files(&mut self, folder: &RepoPath, names: &[&[u8]]) {
        let exists = |name: &[u8]| names.binary_search(&name).is_ok();
        let mut rows = self.old_rows(folder);
        let all = rows.len();
        rows.retain(|row| exists(row.0));
        if rows.len() < all {
            let rows = print_rows(&rows);
            self.put_rows(folder.clone(), rows);
            self.changed = true;
        }
        if let Some(new) = self.new.get_mut(folder) {
            new.retain(|name, _| exists(name));
        }
    }

    /// Removes all folders at or below `path` except those in `walked`.
    pub fn retain_folders(&mut self, path: &RepoPath, walked: &BTreeSet<RepoPath>) {
        self.scanned.insert(path.clone());
        let gone = folders_within(&self.folders, path).chain(folders_within(&self.new, path));
        let gone: Vec<RepoPath> = gone.filter(|it| !walked.contains(it)).collect();
        self.changed |= !gone.is_empty();
        for folder in gone {
            self.folders.remove(&folder);
            self.new.remove(&folder);
        }
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

    /// Removes a path whose pointer was removed.
    pub fn remove_pointer(&mut self, path: &RepoPath) {
        self.changed |= self.pointers.remove(path);
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
        self.merge_all();
        for old in folders_within(&self.folders, from).collect::<Vec<_>>() {
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
            let others = other.old_rows(&folder).into_iter().filter(|row| !single(row));
            let others = others.map(|row| (row.0.into(), CachedStat::of_row(&row))).collect();
            let rows = merge_rows(self.old_rows(&folder), &others);
            self.put_rows(folder, rows);
        }
    }

    /// Replaces the file on disk, keeping its rows of files that this process did not scan.
    pub fn save_locked(&mut self, repo: &Repo, _lock: &Lock) -> Result<()> {
        self.merge_all();
        let mut pointers = self.pointers.clone();
        if !self.is_latest_on_disk(repo)? {
            let other = Self::load(repo)?;
            self.merge_from_disk(&other);
            pointers.extend(other.pointers);
        }
        self.folders.retain(|_, slot| !matches!(&slot.rows, Rows::Built(bytes) if bytes[..] == [0]));
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

/// Returns the cached folders at or below a path.
fn folders_within<T>(folders: &BTreeMap<RepoPath, T>, path: &RepoPath) -> impl Iterator<Item = RepoPath> {
    let from = folders.range(path.clone()..);
    let near = from.map(|entry| entry.0).take_while(|folder| folder.bytes().starts_with(path.bytes()));
    near.filter(|it| it.is_within(path)).cloned()
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
        skip_rows(&mut reader)?;
        index.folders.insert(folder, Slot::new(Rows::Loaded(start..body - reader.remaining())));
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
        index.merge_all();
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
        assert_eq!(digest_if_unchanged(&index, "a", &FileStat { mtime: now + CLOCK_TICK, ..stat(5) }), None);
        assert_eq!(digest_if_unchanged(&index, "b", &stat(now + CLOCK_TICK)), None);
    }

    #[test]
    fn files_changed_within_a_clock_tick_are_not_cached() {
        let mut index = Index::default();
        index.insert(&path("a"), &stat(1000), Digest::of(b"x"), 1000 + CLOCK_TICK);
        assert_eq!(digest_if_unchanged(&index, "a", &stat(1000)), None);
        index.insert(&path("a"), &stat(1000), Digest::of(b"x"), 1001 + CLOCK_TICK);
        assert!(digest_if_unchanged(&index, "a", &stat(1000)).is_some());
        assert_eq!(digest_if_unchanged(&index, "a", &stat(1001)), None);
        // The latest row counts, even if it is empty.
        index.insert(&path("a"), &stat(1000), Digest::of(b"y"), 1001 + CLOCK_TICK);
        index.insert(&path("a"), &stat(1000), Digest::of(b"y"), 1000);
        assert_eq!(digest_if_unchanged(&index, "a", &stat(1000)), None);
    }

    #[test]
    fn whole_second_times_count_as_a_coarse_clock() {
        const SECOND: i64 = 1_000_000_000;
        const COARSE_TICK: i64 = 2_100_000_000;

        let mut index = Index::default();
        for (tick, cached) in [(SECOND + COARSE_TICK, false), (SECOND + COARSE_TICK + 1, true)] {
            index.insert(&path("a"), &stat(SECOND), Digest::of(b"x"), tick);
            assert_eq!(digest_if_unchanged(&index, "a", &stat(SECOND)).is_some(), cached, "{tick}");
        }
    }

    fn index(paths: &[&str]) -> Index {
        let mut index = Index::default();
        paths.iter().for_each(|text| {
            index.insert(&path(text), &stat(1), Digest::of(text.as_bytes()), CLOCK_TICK * 2);
        });
        index.merge_all();
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
            read.old_rows(folder).iter().map(|row| folder.join(row.0).unwrap().to_text()).collect::<Vec<_>>()
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
    fn new_rows_are_found_and_removed_like_others() {
        let mut index = index(&["d/a", "d/b", "d/e/c"]);
        index.insert(&path("d/a"), &stat(1), Digest::of(b"new"), CLOCK_TICK * 2);
        index.insert(&path("d/b"), &stat(1), Digest::of(b"new"), 0);
        index.insert(&path("d/e/x"), &stat(1), Digest::of(b"new"), CLOCK_TICK * 2);
        index.insert(&path("d/n/x"), &stat(1), Digest::of(b"new"), CLOCK_TICK * 2);
        let found = |index: &Index| {
            ["d/a", "d/b", "d/e/c", "d/e/x", "d/n/x"].map(|text| digest_if_unchanged(index, text, &stat(1)))
        };
        let new = Some(Digest::of(b"new"));
        assert_eq!(found(&index), [new, None, Some(Digest::of(b"d/e/c")), new, new]);
        index.retain_files(&path("d/e"), &[b"c"]);
        index.retain_folders(&path("d"), &BTreeSet::from([path("d"), path("d/e")]));
        let kept = [new, None, Some(Digest::of(b"d/e/c")), None, None];
        assert_eq!(found(&index), kept);
        index.merge_all();
        assert_eq!(found(&index), kept);
    }

    #[test]
    fn many_single_files_of_one_folder_are_parsed_and_merged_once() {
        let mut index = parse(printed(&index(&["d/a", "d/b"]))).unwrap();
        let place = |index: &Index| index.folder(&path("d")).unwrap().names.as_ptr();
        let first = place(&index);
        for number in 0..100 {
            index.insert(&path(&format!("d/{number}")), &stat(1), Digest::of(b"x"), CLOCK_TICK * 2);
            index.retain_folders(&path(&format!("d/{number}")), &BTreeSet::new());
            assert_eq!(place(&index), first, "parsed or merged again for file {number}");
        }
        for number in 0..MAX_NEW_ROWS {
            index.insert(&path(&format!("e/{number}")), &stat(1), Digest::of(b"x"), CLOCK_TICK * 2);
        }
        assert!(index.new_rows < MAX_NEW_ROWS && place(&index) != first, "of many, few are kept beside");
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
