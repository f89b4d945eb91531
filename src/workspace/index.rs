//! What each file's digest was when the file system last said what it says now, so that nothing is
//! hashed twice. A cache: lost or damaged, it is made anew.
//!
//! ```text
//! "mlxlook" 2 │ number of folders │ folders │ number of pointers │ paths │ BLAKE3
//! folder      path │ number of rows │ rows, sorted by name
//! row         name │ size, mtime, ctime, inode: 8 bytes each, little end first │ digest, 32
//! ```
//!
//! Rows stand by folder, as a walk meets them: a hundred thousand files cost one search for each folder, and no
//! path of a file is put together. A folder is read from the bytes of the file when somebody asks for it, and put back
//! as it was when nothing was learnt of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    ops::Range,
};

use crate::{
    digest::{Digest, Hasher},
    error::Result,
    fs::{File, Lock, Stamp, Sync},
    path::RepoPath,
    progress::Progress,
    repo::Repo,
    wire::{Reader, put_bytes, put_number},
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

/// A file of a folder: its name, and what was seen of it.
type Row<'i> = (&'i [u8], &'i [u8; STAT_SIZE]);

/// Rows of a folder with their number before them: in the file that was read, or put together since.
enum Slot {
    Loaded(Range<usize>),
    Built(Vec<u8>),
}

/// What is remembered of the files of a folder, sorted by name.
pub struct FolderStats<'i>(Vec<Row<'i>>);

/// So much is learnt before it is put into its place: it lies twice in memory then.
const MAX_PENDING: usize = 4 << 20;
/// Bytes of a row behind its name.
const STAT_SIZE: usize = 64;

#[derive(Default)]
pub struct Index {
    folders: BTreeMap<RepoPath, Slot>,
    /// The file that was read.
    bytes: Vec<u8>,
    /// What was learnt and is put into its place by [`Index::merge_pending`]: names, each with a row or without.
    pending: Vec<u8>,
    /// Folders, each with where its names begin, in the order in which they were learnt.
    pending_folders: Vec<(RepoPath, usize)>,
    /// Pointers written here, whether or not Git knows them yet.
    pub pointers: BTreeSet<RepoPath>,
    /// Where this process scanned, and knows best.
    scanned: BTreeSet<RepoPath>,
    changed: bool,
    /// Whether it was there; a lost one is made anew.
    pub loaded: bool,
}

impl FolderStats<'_> {
    /// The digest of a file that is as it was.
    pub fn digest_if_unchanged(&self, name: &[u8], stamp: &Stamp) -> Option<Digest> {
        let at = self.0.binary_search_by(|it| it.0.cmp(name)).ok()?;
        let seen = CachedStat::read(self.0[at].1);
        let same = (seen.size, seen.mtime, seen.ctime, seen.inode)
            == (stamp.size, stamp.mtime, stamp.ctime, stamp.inode);
        same.then_some(seen.digest)
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

/// Rows as a folder holds them.
fn print_rows(rows: &[Row<'_>]) -> Vec<u8> {
    let room = rows.iter().map(|it| it.0.len() + 3 + STAT_SIZE).sum::<usize>();
    let mut out = Vec::with_capacity(room + 9);
    put_number(&mut out, rows.len() as u64);
    for &(name, seen) in rows {
        put_bytes(&mut out, name);
        out.extend_from_slice(seen);
    }
    out
}

/// Rows with others put in their place; of one that is none the old one goes, and of two the later counts.
fn merge_rows<'i>(old: &[Row<'i>], mut fresh: Vec<(&'i [u8], Option<&'i [u8; STAT_SIZE]>)>) -> Vec<u8> {
    fresh.reverse();
    fresh.sort_by_key(|it| it.0);
    fresh.dedup_by_key(|it| it.0);
    let stays = |it: &&Row<'i>| fresh.binary_search_by_key(&it.0, |new| new.0).is_err();
    let mut rows: Vec<Row<'i>> = old.iter().filter(stays).copied().collect();
    rows.extend(fresh.iter().filter_map(|it| Some((it.0, it.1?))));
    // Two sorted runs: this takes one pass.
    rows.sort_by_key(|it| it.0);
    print_rows(&rows)
}

impl Index {
    pub fn load(repo: &Repo) -> Result<Self> {
        // What the disk does not give back is lost, too.
        let bytes = repo.private.read_if_there(&index_path()?).unwrap_or_default();
        let index = bytes.and_then(|it| parse(it).ok());
        Ok(index.map_or_else(|| Self { changed: true, ..Self::default() }, |it| Self { loaded: true, ..it }))
    }

    /// What is remembered of a folder.
    pub fn folder(&self, folder: &RepoPath) -> Option<FolderStats<'_>> {
        self.folders.get(folder).map(|it| FolderStats(parse_rows(self.slot_bytes(it))))
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

    /// Remembers a digest that was read at `tick`, if the file is old enough to be told apart.
    pub fn insert(&mut self, path: &RepoPath, stamp: &Stamp, digest: Digest, tick: i64) {
        let Stamp { size, mtime, ctime, inode, .. } = *stamp;
        let folder = path.parent().unwrap_or_default();
        if self.pending_folders.last().is_none_or(|it| it.0 != folder) {
            self.pending_folders.push((folder, self.pending.len()));
        }
        put_bytes(&mut self.pending, path.name());
        let settled = stamp.is_settled(tick);
        self.pending.push(settled.into());
        if settled {
            CachedStat { size, mtime, ctime, inode, digest }.print(&mut self.pending);
        }
        self.changed = true;
        if self.pending.len() > MAX_PENDING {
            self.merge_pending();
        }
    }

    /// What was learnt counts from now on.
    pub fn merge_pending(&mut self) {
        let (fresh, runs) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.pending_folders));
        let ends = runs.iter().skip(1).map(|it| it.1).chain([fresh.len()]).collect::<Vec<_>>();
        for ((folder, start), end) in runs.into_iter().zip(ends) {
            let rows = merge_rows(&self.rows(&folder), parse_pending(&fresh[start..end]));
            self.folders.insert(folder, Slot::Built(rows));
        }
    }

    /// Forgets the files of a folder that are gone; `names` are those that are there, sorted.
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

    /// Forgets what lies at or below `path` but for these folders.
    pub fn retain_folders(&mut self, path: &RepoPath, walked: &BTreeSet<RepoPath>) {
        self.scanned.insert(path.clone());
        let gone: Vec<RepoPath> = self.folders_within(path).filter(|it| !walked.contains(it)).collect();
        self.changed |= !gone.is_empty();
        gone.iter().for_each(|it| drop(self.folders.remove(it)));
    }

    /// Folders at or below a path.
    fn folders_within(&self, path: &RepoPath) -> impl Iterator<Item = RepoPath> {
        let from = self.folders.range(path.clone()..);
        let near = from.map(|it| it.0).take_while(|it| it.bytes().starts_with(path.bytes()));
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

    pub fn add_pointer(&mut self, path: RepoPath) {
        self.changed |= self.pointers.insert(path);
    }

    /// Writes it under a short lock.
    pub fn save(&mut self, repo: &Repo, progress: &dyn Progress) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let lock = repo.lock_telling(progress)?;
        self.save_locked(repo, &lock)
    }

    /// Writes it if nobody has the lock.
    pub fn save_if_free(&mut self, repo: &Repo) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        match repo.try_lock()? {
            Some(lock) => self.save_locked(repo, &lock),
            None => Ok(()),
        }
    }

    /// What is remembered of the files in a folder that was renamed stays true.
    pub fn rename(&mut self, from: &RepoPath, to: &RepoPath) {
        self.merge_pending();
        for old in self.folders_within(from).collect::<Vec<_>>() {
            let new = old.below(from).and_then(|it| to.join_path(&it).ok());
            if let (Some(rows), Some(new)) = (self.folders.remove(&old), new) {
                self.folders.insert(new, rows);
                self.changed = true;
            }
        }
        self.scanned.extend([from.clone(), to.clone()]);
    }

    /// Takes over what others learnt meanwhile of files that were not scanned at here.
    fn merge_from_disk(&mut self, other: &Self) {
        for folder in other.folders.keys().filter(|it| !self.was_scanned(it)).cloned().collect::<Vec<_>>() {
            let same = |it: &Slot| self.slot_bytes(it) == other.slot_bytes(&other.folders[&folder]);
            if self.folders.get(&folder).is_some_and(same) {
                continue;
            }
            // Single files that were scanned at stand in a folder that was not.
            let single = |it: &Row<'_>| folder.join(it.0).is_ok_and(|it| self.scanned.contains(&it));
            let others = other.rows(&folder).into_iter().filter(|it| !single(it));
            let rows = merge_rows(&self.rows(&folder), others.map(|it| (it.0, Some(it.1))).collect());
            self.folders.insert(folder, Slot::Built(rows));
        }
    }

    /// Replaces what is on disk, but for what others learnt meanwhile of files that were not scanned at here.
    pub fn save_locked(&mut self, repo: &Repo, _lock: &Lock) -> Result<()> {
        self.merge_pending();
        let mut there = self.pointers.clone();
        if !self.is_latest_on_disk(repo)? {
            let other = Self::load(repo)?;
            self.merge_from_disk(&other);
            there.extend(other.pointers);
        }
        self.folders.retain(|_, it| !matches!(it, Slot::Built(bytes) if bytes[..] == [0]));
        let mut kept = BTreeSet::new();
        for path in there {
            // What cannot be scanned at now may be there all the same.
            if !matches!(repo.files.stamp(&path.with_suffix(crate::pointer::SUFFIX)), Ok(None)) {
                kept.insert(path);
            }
        }
        self.pointers = kept;
        // The files it vouches for come to rest before it does.
        repo.files.sync_all()?;
        repo.private.write_by(&index_path()?, Sync::Later, &|out| self.print(out))?;
        self.changed = false;
        Ok(())
    }

    /// Whether the file on disk is the one that was read: it ends with its digest.
    fn is_latest_on_disk(&self, repo: &Repo) -> Result<bool> {
        use std::os::unix::fs::FileExt as _;

        let Some(size) = repo.private.stamp(&index_path()?)?.map(|it| it.size) else {
            return Ok(self.bytes.is_empty());
        };
        let mut end = [0; 32];
        let read = |file: File| file.read_exact_at(&mut end, size.saturating_sub(32)).is_ok();
        Ok(repo.private.open_file(&index_path()?).is_ok_and(read) && self.bytes.ends_with(&end))
    }

    /// Writes folder by folder: all of it at once would take its room in memory twice.
    fn print(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut check = Hasher::default();
        let mut put = |bytes: &[u8]| {
            check.write_all(bytes)?;
            out.write_all(bytes)
        };
        let mut head = MAGIC.to_vec();
        put_number(&mut head, self.folders.len() as u64);
        put(&head)?;
        for (folder, slot) in &self.folders {
            let mut name = Vec::new();
            put_bytes(&mut name, folder.bytes());
            put(&name)?;
            put(self.slot_bytes(slot))?;
        }
        let mut tail = Vec::new();
        put_number(&mut tail, self.pointers.len() as u64);
        self.pointers.iter().for_each(|it| put_bytes(&mut tail, it.bytes()));
        put(&tail)?;
        out.write_all(check.finish().bytes())
    }
}

/// Rows where they lie; their bytes were scanned at when the file was read.
fn parse_rows(bytes: &[u8]) -> Vec<Row<'_>> {
    let mut reader = Reader::new(bytes, "the index");
    let count = reader.number().unwrap_or(0);
    let mut row = || Some((reader.bytes().ok()?, reader.take(STAT_SIZE).ok()?.try_into().ok()?));
    (0..count).map_while(|_| row()).collect()
}

/// What [`Index::insert`] put down, in its order.
fn parse_pending(bytes: &[u8]) -> Vec<(&[u8], Option<&[u8; STAT_SIZE]>)> {
    let mut reader = Reader::new(bytes, "the index");
    let row = || {
        let (name, settled) = (reader.bytes().ok()?, reader.byte().ok()? == 1);
        Some((name, if settled { reader.take(STAT_SIZE).ok()?.try_into().ok() } else { None }))
    };
    std::iter::from_fn(row).collect()
}

fn parse(bytes: Vec<u8>) -> Result<Index> {
    let body = bytes.len().saturating_sub(32);
    let mut reader = Reader::new(&bytes[..body], "the index");
    reader.expect(MAGIC)?;
    if Digest::of(&bytes[..body]).bytes()[..] != bytes[body..] {
        return Err(reader.broken("is damaged"));
    }
    let mut index = Index::default();
    for _ in 0..reader.number()? {
        let folder = RepoPath::from_bytes(reader.bytes()?)?;
        let start = body - reader.left();
        for _ in 0..reader.number()? {
            reader.bytes()?;
            reader.take(STAT_SIZE)?;
        }
        index.folders.insert(folder, Slot::Loaded(start..body - reader.left()));
    }
    for _ in 0..reader.number()? {
        index.pointers.insert(RepoPath::from_bytes(reader.bytes()?)?);
    }
    reader.end()?;
    index.bytes = bytes;
    Ok(index)
}

fn index_path() -> Result<RepoPath> {
    RepoPath::from_text("index")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Form, TICK};

    fn stamp(ctime: i64) -> Stamp {
        Stamp { form: Form::File, executable: false, size: 3, mtime: 5, ctime, inode: 7 }
    }

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    fn digest_if_unchanged(index: &Index, text: &str, stamp: &Stamp) -> Option<Digest> {
        index
            .folder(&path(text).parent().unwrap())
            .and_then(|it| it.digest_if_unchanged(path(text).name(), stamp))
    }

    #[test]
    fn it_reads_what_it_prints() {
        let mut index = Index::default();
        index.insert(&path("a/b"), &stamp(6), Digest::of(b"x"), TICK + 100);
        index.add_pointer(path("a"));
        index.merge_pending();
        let bytes = printed(&index);
        let read = parse(bytes.clone()).unwrap();
        assert_eq!(digest_if_unchanged(&read, "a/b", &stamp(6)), Some(Digest::of(b"x")));
        assert_eq!(read.pointers, index.pointers);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(parse(bad).is_err(), "byte {at}");
            assert!(parse(bytes[..at].to_vec()).is_err(), "first {at} bytes");
        }
    }

    #[test]
    fn what_the_clock_has_not_reached_is_not_vouched_for() {
        let mut index = Index::default();
        let now = 1_700_000_000_000_000_000;
        // Its owner gave it a time in the future, or the clock was set back a year since.
        index.insert(&path("a"), &Stamp { mtime: now + TICK, ..stamp(5) }, Digest::of(b"x"), now);
        index.insert(&path("b"), &stamp(now + TICK), Digest::of(b"x"), now);
        index.merge_pending();
        assert_eq!(digest_if_unchanged(&index, "a", &Stamp { mtime: now + TICK, ..stamp(5) }), None);
        assert_eq!(digest_if_unchanged(&index, "b", &stamp(now + TICK)), None);
    }

    #[test]
    fn what_was_touched_within_a_tick_is_not_vouched_for() {
        let mut index = Index::default();
        index.insert(&path("a"), &stamp(1000), Digest::of(b"x"), 1000 + TICK);
        index.merge_pending();
        assert_eq!(digest_if_unchanged(&index, "a", &stamp(1000)), None);
        index.insert(&path("a"), &stamp(1000), Digest::of(b"x"), 1001 + TICK);
        index.merge_pending();
        assert!(digest_if_unchanged(&index, "a", &stamp(1000)).is_some());
        assert_eq!(digest_if_unchanged(&index, "a", &stamp(1001)), None);
        // What it is now counts, even if that is nothing.
        index.insert(&path("a"), &stamp(1000), Digest::of(b"y"), 1001 + TICK);
        index.insert(&path("a"), &stamp(1000), Digest::of(b"y"), 1000);
        index.merge_pending();
        assert_eq!(digest_if_unchanged(&index, "a", &stamp(1000)), None);
    }

    #[test]
    fn whole_seconds_are_taken_for_a_clock_that_knows_no_less() {
        const SECOND: i64 = 1_000_000_000;
        const COARSE_TICK: i64 = 2_100_000_000;

        let mut index = Index::default();
        for (tick, vouched) in [(SECOND + COARSE_TICK, false), (SECOND + COARSE_TICK + 1, true)] {
            index.insert(&path("a"), &stamp(SECOND), Digest::of(b"x"), tick);
            index.merge_pending();
            assert_eq!(digest_if_unchanged(&index, "a", &stamp(SECOND)).is_some(), vouched, "{tick}");
        }
    }

    fn index(paths: &[&str]) -> Index {
        let mut index = Index::default();
        paths.iter().for_each(|it| index.insert(&path(it), &stamp(1), Digest::of(it.as_bytes()), TICK * 2));
        index.merge_pending();
        index
    }

    fn printed(index: &Index) -> Vec<u8> {
        let mut out = Vec::new();
        index.print(&mut out).unwrap();
        out
    }

    fn names(index: &Index) -> Vec<String> {
        // Printed and read back, so that rows are seen in both of their places.
        let read = parse(printed(index)).unwrap();
        let rows = |folder: &RepoPath| {
            read.rows(folder).iter().map(|it| folder.join(it.0).unwrap().to_text()).collect::<Vec<_>>()
        };
        read.folders.keys().flat_map(rows).collect()
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut index = index(&["d/a", "d/b", "d/e/c", "d2", "d/f/g", "d.x/y"]);
        index.retain_files(&path("d"), &[b"b", b"e"]);
        index.retain_folders(&path("d"), &BTreeSet::from([path("d"), path("d/f")]));
        assert_eq!(names(&index), ["d2", "d/b", "d.x/y", "d/f/g"]);
    }

    #[test]
    fn what_others_learnt_is_taken_over_where_we_did_not_look() {
        let mut own = index(&["d/a", "e/one", "e/two"]);
        own.scanned.extend([path("d"), path("e/one")]);
        own.retain_files(&path("e"), &[b"two"]);
        own.merge_from_disk(&parse(printed(&index(&["d/a", "d/gone", "e/one", "e/three", "f/g"]))).unwrap());
        assert_eq!(names(&own), ["d/a", "e/three", "e/two", "f/g"]);
    }

    #[test]
    fn a_renamed_folder_keeps_what_is_known() {
        let mut index = index(&["d/a", "d/e/c", "x"]);
        index.rename(&path("d"), &path("n/m"));
        assert_eq!(names(&index), ["x", "n/m/a", "n/m/e/c"]);
    }
}
