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
    ops::Range,
};

use crate::{
    digest::Digest,
    error::Result,
    fs::{Lock, Stamp, Sync},
    path::RepoPath,
    repo::Repo,
    wire::{Reader, put_bytes, put_number},
};

const HEAD: &[u8; 8] = b"mlxlook\x02";
/// A file touched less than this before it was read may change again within the same tick of the file
/// system's clock, without a trace: it is not vouched for.
const TICK: i64 = 12_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    size: u64,
    mtime: i64,
    ctime: i64,
    inode: u64,
    digest: Digest,
}

/// One file of a folder.
#[derive(Clone, PartialEq, Eq)]
struct Row {
    name: Box<[u8]>,
    seen: Seen,
}

/// Files of one folder, sorted by name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Rows(Vec<Row>);

/// A folder: where its rows lie in the file that was read, or the rows themselves.
enum Slot {
    Raw(Range<usize>),
    Read(Rows),
}

/// What is remembered of the files of a folder.
pub enum Known<'i> {
    Raw(Vec<(&'i [u8], &'i [u8; FIXED])>),
    Read(&'i Rows),
}

/// Bytes of a row behind its name.
const FIXED: usize = 64;

#[derive(Default)]
pub struct Index {
    folders: BTreeMap<RepoPath, Slot>,
    /// The file that was read.
    bytes: Vec<u8>,
    /// What was learnt and does not vouch for anything before [`Index::settle`].
    fresh: BTreeMap<RepoPath, Vec<(Box<[u8]>, Option<Seen>)>>,
    /// Pointers written here, whether or not Git knows them yet.
    pub pointers: BTreeSet<RepoPath>,
    /// Where this process looked, and knows best.
    looked: BTreeSet<RepoPath>,
    changed: bool,
    /// Whether it was there; a lost one is made anew.
    pub loaded: bool,
}

impl Known<'_> {
    /// The digest of a file that is as it was.
    pub fn vouch(&self, name: &[u8], stamp: &Stamp) -> Option<Digest> {
        let seen = match self {
            Self::Raw(rows) => {
                let at = rows.binary_search_by(|it| it.0.cmp(name)).ok()?;
                Seen::read(rows[at].1)
            }
            Self::Read(Rows(rows)) => rows[rows.binary_search_by(|it| it.name[..].cmp(name)).ok()?].seen,
        };
        let same = (seen.size, seen.mtime, seen.ctime, seen.inode)
            == (stamp.size, stamp.mtime, stamp.ctime, stamp.inode);
        same.then_some(seen.digest)
    }
}

impl Seen {
    fn read(bytes: &[u8; FIXED]) -> Self {
        let (numbers, digest) = bytes.split_at(FIXED / 2);
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

impl Rows {
    fn read(bytes: &[u8]) -> Self {
        let row = |(name, seen): (&[u8], &[u8; FIXED])| Row { name: name.into(), seen: Seen::read(seen) };
        Self(raw_rows(bytes).into_iter().map(row).collect())
    }

    fn print(&self, out: &mut Vec<u8>) {
        put_number(out, self.0.len() as u64);
        for Row { name, seen } in &self.0 {
            put_bytes(out, name);
            seen.print(out);
        }
    }

    /// Takes over rows; of one that is none the old one goes, and of two the later counts.
    fn merge(&mut self, mut fresh: Vec<(Box<[u8]>, Option<Seen>)>) {
        fresh.reverse();
        fresh.sort_by(|a, b| a.0.cmp(&b.0));
        fresh.dedup_by(|later, first| later.0 == first.0);
        self.0.retain(|it| fresh.binary_search_by(|new| new.0.cmp(&it.name)).is_err());
        self.0.extend(fresh.into_iter().filter_map(|(name, seen)| Some(Row { name, seen: seen? })));
        // Two sorted runs: this takes one pass.
        self.0.sort_by(|a, b| a.name.cmp(&b.name));
    }
}

impl Index {
    pub fn load(repo: &Repo) -> Result<Self> {
        // What the disk does not give back is lost, too.
        let bytes = repo.private.read_if_there(&file()?).unwrap_or_default();
        let index = bytes.and_then(|it| parse(it).ok());
        Ok(index.map_or_else(|| Self { changed: true, ..Self::default() }, |it| Self { loaded: true, ..it }))
    }

    /// What is remembered of a folder.
    pub fn known(&self, folder: &RepoPath) -> Option<Known<'_>> {
        Some(match self.folders.get(folder)? {
            Slot::Raw(range) => Known::Raw(raw_rows(&self.bytes[range.clone()])),
            Slot::Read(rows) => Known::Read(rows),
        })
    }

    /// The rows of a folder, to be changed.
    fn rows(&mut self, folder: RepoPath) -> &mut Rows {
        let slot = self.folders.entry(folder).or_insert_with(|| Slot::Read(Rows::default()));
        if let Slot::Raw(range) = slot {
            *slot = Slot::Read(Rows::read(&self.bytes[range.clone()]));
        }
        match slot {
            Slot::Read(rows) => rows,
            Slot::Raw(_) => unreachable!("it was read just now"),
        }
    }

    /// Remembers a digest that was read at `tick`, if the file is old enough to be told apart.
    pub fn learn(&mut self, path: &RepoPath, stamp: &Stamp, digest: Digest, tick: i64) {
        let Stamp { size, mtime, ctime, inode, .. } = *stamp;
        let seen = (ctime.max(mtime) + TICK < tick).then_some(Seen { size, mtime, ctime, inode, digest });
        let folder = path.parent().unwrap_or_default();
        self.fresh.entry(folder).or_default().push((path.name().into(), seen));
        self.changed = true;
    }

    /// What was learnt counts from now on.
    pub fn settle(&mut self) {
        for (folder, fresh) in std::mem::take(&mut self.fresh) {
            self.rows(folder).merge(fresh);
        }
    }

    /// Forgets the files of a folder that are gone; `names` are those that are there, sorted.
    pub fn keep(&mut self, folder: &RepoPath, names: &[&[u8]]) {
        let is_there = |it: &[u8]| names.binary_search(&it).is_ok();
        let gone = match self.known(folder) {
            None => false,
            Some(Known::Raw(rows)) => rows.iter().any(|it| !is_there(it.0)),
            Some(Known::Read(rows)) => rows.0.iter().any(|it| !is_there(&it.name)),
        };
        if gone {
            self.rows(folder.clone()).0.retain(|it| is_there(&it.name));
            self.changed = true;
        }
    }

    /// Forgets what lies at or below `path` but for these folders.
    pub fn keep_folders(&mut self, path: &RepoPath, walked: &BTreeSet<RepoPath>) {
        self.looked.insert(path.clone());
        let gone: Vec<RepoPath> = self.within(path).filter(|it| !walked.contains(it)).collect();
        self.changed |= !gone.is_empty();
        gone.iter().for_each(|it| drop(self.folders.remove(it)));
    }

    /// Folders at or below a path.
    fn within(&self, path: &RepoPath) -> impl Iterator<Item = RepoPath> {
        let from = self.folders.range(path.clone()..);
        let near = from.map(|it| it.0).take_while(|it| it.bytes().starts_with(path.bytes()));
        near.filter(|it| it.is_within(path)).cloned()
    }

    fn has_looked(&self, path: &RepoPath) -> bool {
        let mut here = Some(path.clone());
        while let Some(path) = here {
            if self.looked.contains(&path) {
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
    pub fn save(&mut self, repo: &Repo) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let lock = repo.lock()?;
        self.save_held(repo, &lock)
    }

    /// Writes it if nobody has the lock.
    pub fn save_if_free(&mut self, repo: &Repo) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        match repo.try_lock()? {
            Some(lock) => self.save_held(repo, &lock),
            None => Ok(()),
        }
    }

    /// What is remembered of the files in a folder that was renamed stays true.
    pub fn rename(&mut self, from: &RepoPath, to: &RepoPath) {
        self.settle();
        for old in self.within(from).collect::<Vec<_>>() {
            let new = old.below(from).and_then(|it| to.join_path(&it).ok());
            if let (Some(rows), Some(new)) = (self.folders.remove(&old), new) {
                self.folders.insert(new, rows);
                self.changed = true;
            }
        }
        self.looked.extend([from.clone(), to.clone()]);
    }

    /// Takes over what others learnt meanwhile of files that were not looked at here.
    fn take_over(&mut self, mut other: Self) {
        for folder in other.folders.keys().cloned().collect::<Vec<_>>() {
            if self.has_looked(&folder) {
                continue;
            }
            let rows = std::mem::take(other.rows(folder.clone()));
            // Single files that were looked at stand in a folder that was not.
            let single = |it: &Row| folder.join(&it.name).is_ok_and(|it| self.looked.contains(&it));
            let others = rows.0.into_iter().filter(|it| !single(it)).collect::<Vec<_>>();
            let others = others.into_iter().map(|it| (it.name, Some(it.seen))).collect();
            self.rows(folder).merge(others);
        }
    }

    /// Replaces what is on disk, but for what others learnt meanwhile of files that were not looked at here.
    pub fn save_held(&mut self, repo: &Repo, _lock: &Lock) -> Result<()> {
        let mut other = Self::load(repo)?;
        let pointers = std::mem::take(&mut other.pointers);
        self.settle();
        self.take_over(other);
        self.folders.retain(|_, it| !matches!(it, Slot::Read(rows) if rows.0.is_empty()));
        let mut there = self.pointers.clone();
        there.extend(pointers);
        let mut kept = BTreeSet::new();
        for path in there {
            // What cannot be looked at now may be there all the same.
            if !matches!(repo.files.stamp(&path.with_suffix(crate::pointer::SUFFIX)), Ok(None)) {
                kept.insert(path);
            }
        }
        self.pointers = kept;
        // The files it vouches for come to rest before it does.
        repo.files.sync_all()?;
        repo.private.write(&file()?, &self.print(), Sync::Later)?;
        self.changed = false;
        Ok(())
    }

    fn print(&self) -> Vec<u8> {
        // Set aside at once: to let it grow would take twice the room.
        let room = |it: &Slot| match it {
            Slot::Raw(range) => range.len(),
            Slot::Read(Rows(rows)) => rows.iter().map(|it| it.name.len() + 2 + FIXED).sum(),
        };
        let rows: usize = self.folders.values().map(room).sum();
        let mut out = Vec::with_capacity(rows + (1 << 16));
        out.extend_from_slice(HEAD);
        put_number(&mut out, self.folders.len() as u64);
        for (folder, slot) in &self.folders {
            put_bytes(&mut out, folder.bytes());
            match slot {
                Slot::Raw(range) => out.extend_from_slice(&self.bytes[range.clone()]),
                Slot::Read(rows) => rows.print(&mut out),
            }
        }
        put_number(&mut out, self.pointers.len() as u64);
        self.pointers.iter().for_each(|it| put_bytes(&mut out, it.bytes()));
        let check = Digest::of(&out);
        out.extend_from_slice(check.bytes());
        out
    }
}

/// Rows where they lie; their bytes were looked at when the file was read.
fn raw_rows(bytes: &[u8]) -> Vec<(&[u8], &[u8; FIXED])> {
    let mut reader = Reader::new(bytes, "the index");
    let count = reader.number().unwrap_or(0);
    let mut row = || Some((reader.bytes().ok()?, reader.take(FIXED).ok()?.try_into().ok()?));
    (0..count).map_while(|_| row()).collect()
}

fn parse(bytes: Vec<u8>) -> Result<Index> {
    let body = bytes.len().saturating_sub(32);
    let mut reader = Reader::new(&bytes[..body], "the index");
    reader.expect(HEAD)?;
    if Digest::of(&bytes[..body]).bytes()[..] != bytes[body..] {
        return Err(reader.broken("is damaged"));
    }
    let mut index = Index::default();
    for _ in 0..reader.number()? {
        let folder = RepoPath::from_bytes(reader.bytes()?)?;
        let start = body - reader.left();
        for _ in 0..reader.number()? {
            reader.bytes()?;
            reader.take(FIXED)?;
        }
        index.folders.insert(folder, Slot::Raw(start..body - reader.left()));
    }
    for _ in 0..reader.number()? {
        index.pointers.insert(RepoPath::from_bytes(reader.bytes()?)?);
    }
    reader.end()?;
    index.bytes = bytes;
    Ok(index)
}

fn file() -> Result<RepoPath> {
    RepoPath::from_text("index")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Form;

    fn stamp(ctime: i64) -> Stamp {
        Stamp { form: Form::File, executable: false, size: 3, mtime: 5, ctime, inode: 7 }
    }

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    fn vouch(index: &Index, text: &str, stamp: &Stamp) -> Option<Digest> {
        index.known(&path(text).parent().unwrap()).and_then(|it| it.vouch(path(text).name(), stamp))
    }

    #[test]
    fn it_reads_what_it_prints() {
        let mut index = Index::default();
        index.learn(&path("a/b"), &stamp(6), Digest::of(b"x"), TICK + 100);
        index.add_pointer(path("a"));
        index.settle();
        let bytes = index.print();
        let read = parse(bytes.clone()).unwrap();
        assert_eq!(vouch(&read, "a/b", &stamp(6)), Some(Digest::of(b"x")));
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
        index.learn(&path("a"), &Stamp { mtime: now + TICK, ..stamp(5) }, Digest::of(b"x"), now);
        index.learn(&path("b"), &stamp(now + TICK), Digest::of(b"x"), now);
        index.settle();
        assert_eq!(vouch(&index, "a", &Stamp { mtime: now + TICK, ..stamp(5) }), None);
        assert_eq!(vouch(&index, "b", &stamp(now + TICK)), None);
    }

    #[test]
    fn what_was_touched_within_a_tick_is_not_vouched_for() {
        let mut index = Index::default();
        index.learn(&path("a"), &stamp(1000), Digest::of(b"x"), 1000 + TICK);
        index.settle();
        assert_eq!(vouch(&index, "a", &stamp(1000)), None);
        index.learn(&path("a"), &stamp(1000), Digest::of(b"x"), 1001 + TICK);
        index.settle();
        assert!(vouch(&index, "a", &stamp(1000)).is_some());
        assert_eq!(vouch(&index, "a", &stamp(1001)), None);
        // What it is now counts, even if that is nothing.
        index.learn(&path("a"), &stamp(1000), Digest::of(b"y"), 1001 + TICK);
        index.learn(&path("a"), &stamp(1000), Digest::of(b"y"), 1000);
        index.settle();
        assert_eq!(vouch(&index, "a", &stamp(1000)), None);
    }

    fn index(paths: &[&str]) -> Index {
        let mut index = Index::default();
        paths.iter().for_each(|it| index.learn(&path(it), &stamp(0), Digest::of(it.as_bytes()), TICK * 2));
        index.settle();
        index
    }

    fn names(index: &Index) -> Vec<String> {
        // Printed and read back, so that rows are seen in both of their forms.
        let read = parse(index.print()).unwrap();
        let rows = |folder: &RepoPath| match read.known(folder).unwrap() {
            Known::Raw(rows) => {
                rows.iter().map(|it| folder.join(it.0).unwrap().to_text()).collect::<Vec<_>>()
            }
            Known::Read(_) => panic!("nothing of it was changed"),
        };
        read.folders.keys().flat_map(rows).collect()
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut index = index(&["d/a", "d/b", "d/e/c", "d2", "d/f/g", "d.x/y"]);
        index.keep(&path("d"), &[b"b", b"e"]);
        index.keep_folders(&path("d"), &BTreeSet::from([path("d"), path("d/f")]));
        assert_eq!(names(&index), ["d2", "d/b", "d.x/y", "d/f/g"]);
    }

    #[test]
    fn what_others_learnt_is_taken_over_where_we_did_not_look() {
        let mut own = index(&["d/a", "e/one", "e/two"]);
        own.looked.extend([path("d"), path("e/one")]);
        own.rows(path("e")).0.remove(0);
        own.take_over(parse(index(&["d/a", "d/gone", "e/one", "e/three", "f/g"]).print()).unwrap());
        assert_eq!(names(&own), ["d/a", "e/three", "e/two", "f/g"]);
    }

    #[test]
    fn a_renamed_folder_keeps_what_is_known() {
        let mut index = index(&["d/a", "d/e/c", "x"]);
        index.rename(&path("d"), &path("n/m"));
        assert_eq!(names(&index), ["x", "n/m/a", "n/m/e/c"]);
    }
}
