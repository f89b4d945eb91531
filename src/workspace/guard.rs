//! Replaces and removes files of the workspace, but not those that changed since they were scanned: a user
//! may save a file while a checkout works.
//!
//! The new file and the present one change places in one step, or the present one is set aside. Then the file
//! that came out is compared with the scanned one, and goes back if it is another. Where the file system
//! cannot exchange two files, the present one is compared right before it is replaced.

use std::collections::BTreeMap;

use crate::{
    digest::Digest,
    error::Result,
    fs::{Dir, Exchange, FileKind, FileStat, TempName},
    path::RepoPath,
    store::{DiffSide, Store, digest_file},
    workspace::{index::Index, rows::FolderStats},
};

/// The files as they were scanned.
pub struct Guard<'g> {
    store: &'g Store,
    folders: BTreeMap<RepoPath, FolderStats<'g>>,
}

/// Outcome of a guarded change of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    Done,
    /// Another file is there than the scan saw; it stays.
    Kept,
}

impl<'g> Guard<'g> {
    /// Reads the cached stats of the folders of `paths`.
    pub fn new<'p>(index: &'g Index, store: &'g Store, paths: impl Iterator<Item = &'p RepoPath>) -> Self {
        let mut folders = BTreeMap::new();
        let mut last = None;
        for folder in paths.map(|path| path.parent().unwrap_or_default()) {
            if last.as_ref() != Some(&folder) {
                folders.extend(index.folder(&folder).map(|stats| (folder.clone(), stats)));
                last = Some(folder);
            }
        }
        Self { store, folders }
    }

    /// Gives the temporary file `temp` the name of `path`, where the scan saw `scanned`, or nothing. If that
    /// has changed, or on an error, the temporary file is removed.
    pub fn put(&self, mut temp: TempName<'_>, path: &RepoPath, scanned: Option<DiffSide>) -> Result<Guarded> {
        let placed = match scanned {
            Some(scanned) => self.replace(&mut temp, path, scanned)?,
            None => rename_new(&mut temp, path)?,
        };
        Ok(if placed { Guarded::Done } else { Guarded::Kept })
    }

    /// Returns false, with the new file still at `temp`, if another file than the scanned one is there.
    fn replace(&self, temp: &mut TempName<'_>, path: &RepoPath, scanned: DiffSide) -> Result<bool> {
        let (dir, name, new) = (temp.dir(), path.name(), temp.dir().stat(temp.name())?);
        let known = self.known_stat(dir, path, scanned)?;
        temp.begin_exchange(name)?;
        match dir.exchange(temp.name(), name)? {
            Exchange::Done => temp.ours = false,
            Exchange::Missing => return rename_new(temp, path),
            Exchange::Unsupported if dir.stat(name)?.is_none() => return rename_new(temp, path),
            Exchange::Unsupported => {
                let same = self.is_scanned(dir, name, scanned, known)?;
                return if same { dir.rename(temp.name(), dir, name).map(|()| true) } else { Ok(false) };
            }
        }
        let same = self.is_scanned(dir, temp.name(), scanned, known);
        if let Ok(true) = same {
            temp.ours = true;
            return dir.remove(temp.name()).map(|()| true);
        }
        let is_back = temp.put_back(name, new)?;
        same.map(|_| !is_back)
    }

    /// Removes the file at `path` if it is the scanned one; a missing one is fine.
    pub fn remove(&self, dir: &Dir, path: &RepoPath, scanned: DiffSide) -> Result<Guarded> {
        let known = self.known_stat(dir, path, scanned)?;
        let Some(aside) = dir.set_aside(path.name())? else { return Ok(Guarded::Done) };
        let same = self.is_scanned(dir, &aside, scanned, known);
        if let Ok(true) = same {
            return dir.remove(&aside).map(|()| Guarded::Done);
        }
        // If the name is taken, a file that was saved meanwhile replaces the one that was set aside.
        if !dir.rename_new(&aside, path.name())? {
            dir.remove(&aside)?;
        }
        same.map(|_| Guarded::Kept)
    }

    /// Returns the file's metadata if they prove that it is the scanned one.
    fn known_stat(&self, dir: &Dir, path: &RepoPath, scanned: DiffSide) -> Result<Option<FileStat>> {
        let Some(stats) = self.folders.get(&path.parent().unwrap_or_default()) else { return Ok(None) };
        let stat = dir.stat(path.name())?;
        Ok(stat.filter(|stat| stats.digest_if_unchanged(path.name(), stat) == Some(scanned.digest)))
    }

    /// Returns true if the entry `name` is the scanned one. Renaming changes its ctime, so that `known`, its
    /// metadata from right before, is compared without; other files are read.
    fn is_scanned(&self, dir: &Dir, name: &[u8], scanned: DiffSide, known: Option<FileStat>) -> Result<bool> {
        let Some(stat) = dir.stat(name)? else { return Ok(false) };
        let key = |stat: &FileStat| (stat.inode, stat.size, stat.mtime, stat.kind);
        if known.is_some_and(|known| key(&known) == key(&stat)) {
            return Ok(true);
        }
        match stat.kind {
            FileKind::Symlink => {
                let target = dir.read_link(name)?;
                // A link into the store has no bytes of its own.
                Ok(self.store.large_from_link(&target).is_some() || Digest::of(&target) == scanned.digest)
            }
            FileKind::File if scanned.kind.is_regular() => {
                Ok(stat.size == scanned.size && digest_file(&dir.open(name)?)?.0 == scanned.digest)
            }
            _ => Ok(false),
        }
    }
}

fn rename_new(temp: &mut TempName<'_>, path: &RepoPath) -> Result<bool> {
    let placed = temp.dir().rename_new(temp.name(), path.name())?;
    temp.ours = !placed;
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, iter};

    use super::*;
    use crate::{
        fs::{Root, Sync, names},
        store::EntryKind,
    };

    /// Edits that a user may make between scan and change.
    const EDITS: [fn(&Root); 3] = [
        // As some editors save: in place.
        |root| root.open_append(&path("d/a")).unwrap().write_all(b"more").unwrap(),
        // As other editors save: a new file takes the place of the old one.
        |root| root.write(&path("d/a"), b"mine", Sync::Later).unwrap(),
        |root| {
            root.remove(&path("d/a")).unwrap();
            root.write(&path("d/a/inner"), b"mine", Sync::Later).unwrap();
        },
    ];

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    /// Creates a file that the index does not know, and returns what a scan saw of it.
    fn file(root: &Root) -> DiffSide {
        root.write(&path("d/a"), b"old", Sync::Later).unwrap();
        DiffSide { kind: EntryKind::File, digest: Digest::of(b"old"), size: 3 }
    }

    fn new_file(dir: &Dir) -> TempName<'_> {
        let mut temp = dir.create(0o666).unwrap();
        temp.write_all(b"new").unwrap();
        TempName::new(dir, temp.leave().unwrap().0)
    }

    #[test]
    fn a_file_that_changed_since_the_scan_is_neither_replaced_nor_removed() {
        for edit in EDITS {
            let temp = tempfile::tempdir().unwrap();
            let root = Root::open(temp.path()).unwrap();
            let store = Store::open(Root::create(&temp.path().join("store")).unwrap()).unwrap();
            let index = Index::default();
            let guard = Guard::new(&index, &store, [path("d/a")].iter());
            let scanned = file(&root);
            let dir = root.dir(&path("d")).unwrap();
            assert_eq!(guard.put(new_file(&dir), &path("d/a"), Some(scanned)).unwrap(), Guarded::Done);
            assert_eq!(root.read(&path("d/a")).unwrap(), b"new");
            let scanned = file(&root);
            edit(&root);
            let before = dir.stat(b"a").unwrap().unwrap();
            let kept = [
                guard.put(new_file(&dir), &path("d/a"), Some(scanned)).unwrap(),
                guard.put(new_file(&dir), &path("d/a"), None).unwrap(),
                guard.remove(&dir, &path("d/a"), scanned).unwrap(),
            ];
            assert_eq!(kept, [Guarded::Kept; 3]);
            let after = dir.stat(b"a").unwrap().unwrap();
            assert_eq!((after.inode, after.mtime), (before.inode, before.mtime));
            assert_eq!(names(&temp.path().join("d")), ["a"], "no temporary file is left");
        }
    }

    #[test]
    fn a_file_as_scanned_is_removed_and_one_that_vanished_is_written_anew() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let store = Store::open(Root::create(&temp.path().join("store")).unwrap()).unwrap();
        let index = Index::default();
        let guard = Guard::new(&index, &store, iter::empty());
        let scanned = file(&root);
        let dir = root.dir(&path("d")).unwrap();
        assert_eq!(guard.remove(&dir, &path("d/a"), scanned).unwrap(), Guarded::Done);
        assert_eq!(guard.remove(&dir, &path("d/a"), scanned).unwrap(), Guarded::Done);
        assert!(names(&temp.path().join("d")).is_empty());
        assert_eq!(guard.put(new_file(&dir), &path("d/a"), Some(scanned)).unwrap(), Guarded::Done);
        assert_eq!(names(&temp.path().join("d")), ["a"]);
    }
}
