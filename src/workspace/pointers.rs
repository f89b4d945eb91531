//! The pointers of the work tree: those that Git tracks, and those that commands or users made since.

use std::collections::BTreeSet;

use crate::{
    error::Result,
    path::RepoPath,
    pointer::{Pointer, SUFFIX},
    workspace::{Tracked, Unreadable, Workspace},
};

impl Workspace<'_> {
    /// Returns the paths that have a pointer: those that Git tracks and those added here since.
    pub fn pointer_paths(&self) -> Result<BTreeSet<RepoPath>> {
        let tracked = self.repo.git.tracked(&|name| name.ends_with(SUFFIX.as_bytes()))?;
        let mut found: BTreeSet<_> = tracked.iter().filter_map(|it| it.without_suffix(SUFFIX)).collect();
        found.extend(self.index.borrow().pointers.iter().cloned());
        let lost: BTreeSet<_> = found.iter().filter(|path| !self.has_pointer(path)).cloned().collect();
        if !self.index.borrow().loaded || self.is_any_moved(&lost)? {
            self.find_pointers(&RepoPath::root(), &mut found)?;
            // Another program's file with this suffix is not a pointer that could be lost.
            let ours = found.iter().filter(|path| !matches!(self.repo.pointer(path), Ok(None)));
            ours.for_each(|path| self.index.borrow_mut().add_pointer(path.clone()));
            found.retain(|path| self.has_pointer(path));
            Ok(found)
        } else {
            Ok(&found - &lost)
        }
    }

    /// Returns true if a pointer may have been moved by hand: its file does not exist, and no sparse checkout
    /// leaves it out.
    fn is_any_moved(&self, lost: &BTreeSet<RepoPath>) -> Result<bool> {
        if lost.is_empty() {
            return Ok(false);
        }
        let skipped = self.repo.git.skipped(&|name| name.ends_with(SUFFIX.as_bytes()))?;
        let skipped: BTreeSet<_> = skipped.into_iter().map(|file| file.0).collect();
        let is_missing = |file: &RepoPath| matches!(self.repo.files.stat(file), Ok(None));
        // The work tree is searched once for each missing file: what was found then is in the index.
        let mut searched = self.searched.borrow_mut();
        let new: Vec<_> = lost.iter().filter(|path| searched.insert((*path).clone())).collect();
        let mut files = new.iter().map(|path| path.with_suffix(SUFFIX));
        Ok(files.any(|file| !skipped.contains(&file) && is_missing(&file)))
    }

    /// Returns true if the pointer file of a path exists. One that cannot be inspected counts: reading it
    /// reports the error. A path that is new here must have a pointer, since other programs use that suffix.
    fn has_pointer(&self, path: &RepoPath) -> bool {
        if self.index.borrow().pointers.contains(path) {
            return !matches!(self.repo.files.stat(&path.with_suffix(SUFFIX)), Ok(None));
        }
        !matches!(self.repo.pointer(path), Ok(None))
    }

    /// Searches the folder `top` for pointers that Git does not track yet, but not in tracked folders.
    pub(super) fn find_pointers(&self, top: &RepoPath, found: &mut BTreeSet<RepoPath>) -> Result<()> {
        self.walk(top, &mut |entries| {
            let files = entries.iter().filter(|(_, kind)| kind.is_file());
            found.extend(files.filter_map(|(path, _)| path.without_suffix(SUFFIX)));
            let folders = entries.into_iter().filter(|(path, kind)| kind.is_dir() && !found.contains(path));
            folders.map(|(path, _)| path).collect()
        })
    }

    /// Reads all pointers of the work tree, sorted by path.
    pub fn pointers(&self) -> Result<Tracked> {
        let mut found = Tracked::default();
        for path in self.pointer_paths()? {
            match self.pointer(&path) {
                Ok(pointer) => found.pointers.extend(pointer),
                Err(error) => {
                    let file = path.with_suffix(SUFFIX);
                    found.unreadable.push(Unreadable { file, paths: vec![path], error });
                }
            }
        }
        // One that was deleted is in conflict until Git is told so.
        for file in self.repo.git.unmerged(&|name| name.ends_with(SUFFIX.as_bytes()))? {
            if let Some(path) = file.without_suffix(SUFFIX)
                && self.may_have_base(&path)
                && self.repo.files.stat(&file)?.is_none()
                && let Err(error) = self.repo.check_merged(&path)
            {
                found.unreadable.push(Unreadable { file, paths: vec![path], error });
            }
        }
        Ok(found)
    }

    /// Reads the pointer of `path`, with the kind of content that the store has under its digest; `None` if
    /// there is none. At a path that is known to have one, any other file is an error.
    pub fn pointer(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        let known = self.index.borrow().pointers.contains(path);
        let read = if known { self.repo.strict_pointer(path)? } else { self.repo.pointer(path)? };
        Ok(read.map(|pointer| self.with_stored_kind(pointer)))
    }

    /// Returns the pointer of `path` or of the nearest tracked folder that contains it, also where a sparse
    /// checkout leaves it out.
    pub fn pointer_of(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        nearest(path, |path| match self.pointer(path)? {
            None => self.repo.skipped_pointer(path),
            pointer => Ok(pointer),
        })
    }

    /// Returns what tracks `path`, for a scan of it: as [`Workspace::pointer_of`], but the version that Git
    /// has of a pointer that is in conflict or cannot be read.
    pub(super) fn record_of(&self, path: &RepoPath) -> Option<Pointer> {
        let read = |path: &RepoPath| match self.pointer(path) {
            Ok(None) => self.repo.skipped_pointer(path),
            Err(_) => self.repo.pointer_in_git(path),
            pointer => pointer,
        };
        nearest(path, read).ok().flatten()
    }
}

/// Returns the first pointer that `read` finds from `path` up to the top.
pub(super) fn nearest(
    path: &RepoPath,
    read: impl Fn(&RepoPath) -> Result<Option<Pointer>>,
) -> Result<Option<Pointer>> {
    for path in path.ancestors().filter(|path| !path.is_root()) {
        if let Some(pointer) = read(&path)? {
            return Ok(Some(pointer));
        }
    }
    Ok(None)
}
