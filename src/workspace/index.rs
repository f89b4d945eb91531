//! What each file's digest was when the file system last said what it says now, so that nothing is
//! hashed twice. A cache: lost or damaged, it is made anew.
//!
//! ```text
//! "mlxlook" 1 │ number of rows │ rows: path, size, mtime, ctime, inode, digest │ number of pointers │ paths │ BLAKE3
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    error::Result,
    fs::{Lock, Stamp, Sync},
    path::RepoPath,
    repo::Repo,
    wire::{Reader, put_bytes, put_number},
};

const HEAD: &[u8; 8] = b"mlxlook\x01";
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

#[derive(Default)]
pub struct Index {
    rows: BTreeMap<RepoPath, Seen>,
    /// Pointers written here, whether or not Git knows them yet.
    pub pointers: BTreeSet<RepoPath>,
    /// Where this process looked, and knows best.
    looked: BTreeSet<RepoPath>,
    changed: bool,
    /// Whether it was there; a lost one is made anew.
    pub loaded: bool,
}

impl Index {
    pub fn load(repo: &Repo) -> Result<Self> {
        let bytes = repo.private.read_if_there(&file()?)?;
        let index = bytes.and_then(|it| parse(&it).ok());
        Ok(index.map_or_else(|| Self { changed: true, ..Self::default() }, |it| Self { loaded: true, ..it }))
    }

    /// The digest of a file that is as it was.
    pub fn vouch(&self, path: &RepoPath, stamp: &Stamp) -> Option<Digest> {
        let seen = self.rows.get(path)?;
        let same = (seen.size, seen.mtime, seen.ctime, seen.inode)
            == (stamp.size, stamp.mtime, stamp.ctime, stamp.inode);
        same.then_some(seen.digest)
    }

    /// Remembers a digest that was read at `tick`, if the file is old enough to be told apart.
    pub fn learn(&mut self, path: RepoPath, stamp: &Stamp, digest: Digest, tick: i64) {
        let Stamp { size, mtime, ctime, inode, .. } = *stamp;
        self.changed = true;
        if ctime.max(mtime) + TICK < tick {
            self.rows.insert(path, Seen { size, mtime, ctime, inode, digest });
        } else {
            self.rows.remove(&path);
        }
    }

    /// Forgets what is no longer at or below `path`, all but `present`.
    pub fn forget(&mut self, path: &RepoPath, present: &BTreeSet<RepoPath>) {
        self.looked.insert(path.clone());
        let gone: Vec<_> = self.within(path).filter(|it| !present.contains(*it)).cloned().collect();
        self.changed |= !gone.is_empty();
        for path in &gone {
            self.rows.remove(path);
        }
    }

    fn within<'a>(&'a self, path: &'a RepoPath) -> impl Iterator<Item = &'a RepoPath> {
        self.rows
            .range(path.clone()..)
            .map(|it| it.0)
            .take_while(|it| it.bytes().starts_with(path.bytes()))
            .filter(|it| it.is_within(path))
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
        let rows: Vec<RepoPath> = self.within(from).cloned().collect();
        for old in rows {
            let new = old.below(from).and_then(|it| to.join_path(&it).ok());
            if let (Some(row), Some(new)) = (self.rows.remove(&old), new) {
                self.rows.insert(new, row);
                self.changed = true;
            }
        }
        self.looked.extend([from.clone(), to.clone()]);
    }

    /// Replaces what is on disk, but for what others learnt meanwhile of files that were not looked at here.
    pub fn save_held(&mut self, repo: &Repo, _lock: &Lock) -> Result<()> {
        let Self { rows, pointers, .. } = Self::load(repo)?;
        for (path, row) in rows {
            if !self.has_looked(&path) {
                self.rows.insert(path, row);
            }
        }
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
        let mut out = HEAD.to_vec();
        put_number(&mut out, self.rows.len() as u64);
        for (path, seen) in &self.rows {
            put_bytes(&mut out, path.bytes());
            put_number(&mut out, seen.size);
            out.extend_from_slice(&seen.mtime.to_le_bytes());
            out.extend_from_slice(&seen.ctime.to_le_bytes());
            put_number(&mut out, seen.inode);
            out.extend_from_slice(seen.digest.bytes());
        }
        put_number(&mut out, self.pointers.len() as u64);
        self.pointers.iter().for_each(|it| put_bytes(&mut out, it.bytes()));
        let check = Digest::of(&out);
        out.extend_from_slice(check.bytes());
        out
    }
}

fn parse(bytes: &[u8]) -> Result<Index> {
    let body = bytes.len().saturating_sub(32);
    let mut reader = Reader::new(&bytes[..body], "the index");
    reader.expect(HEAD)?;
    if Digest::of(&bytes[..body]).bytes()[..] != bytes[body..] {
        return Err(reader.broken("is damaged"));
    }
    let mut index = Index::default();
    for _ in 0..reader.number()? {
        let path = RepoPath::from_bytes(reader.bytes()?)?;
        let size = reader.number()?;
        let mut time = || {
            Ok::<_, crate::error::Error>(i64::from_le_bytes(
                reader.take(8)?.try_into().expect("we took 8 bytes"),
            ))
        };
        let (mtime, ctime) = (time()?, time()?);
        let inode = reader.number()?;
        index.rows.insert(path, Seen { size, mtime, ctime, inode, digest: reader.digest()? });
    }
    for _ in 0..reader.number()? {
        index.pointers.insert(RepoPath::from_bytes(reader.bytes()?)?);
    }
    reader.end()?;
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

    #[test]
    fn it_reads_what_it_prints() {
        let mut index = Index::default();
        index.learn(path("a/b"), &stamp(6), Digest::of(b"x"), TICK + 100);
        index.add_pointer(path("a"));
        let bytes = index.print();
        let read = parse(&bytes).unwrap();
        assert_eq!(read.vouch(&path("a/b"), &stamp(6)), Some(Digest::of(b"x")));
        assert_eq!(read.pointers, index.pointers);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(parse(&bad).is_err(), "byte {at}");
            assert!(parse(&bytes[..at]).is_err(), "first {at} bytes");
        }
    }

    #[test]
    fn what_was_touched_within_a_tick_is_not_vouched_for() {
        let mut index = Index::default();
        index.learn(path("a"), &stamp(1000), Digest::of(b"x"), 1000 + TICK);
        assert_eq!(index.vouch(&path("a"), &stamp(1000)), None);
        index.learn(path("a"), &stamp(1000), Digest::of(b"x"), 1001 + TICK);
        assert!(index.vouch(&path("a"), &stamp(1000)).is_some());
        assert_eq!(index.vouch(&path("a"), &stamp(1001)), None);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut index = Index::default();
        ["d/a", "d/b", "d2", "d"]
            .iter()
            .for_each(|it| index.learn(path(it), &stamp(0), Digest::of(b"x"), TICK * 2));
        index.forget(&path("d"), &BTreeSet::from([path("d/b")]));
        let left: Vec<_> = index.rows.keys().map(RepoPath::to_text).collect();
        assert_eq!(left, ["d/b", "d2"]);
    }
}
