//! Parts of what is tracked, as users name them.

use crate::{
    error::{Error, Result},
    path::RepoPath,
    pointer::Pointer,
    workspace::{Tracked, Workspace, checkout::recorded_entry},
};

impl Workspace<'_> {
    /// What is tracked at or around these paths, all when none are named; a part that is nowhere is an error.
    pub fn select(&self, tracked: Tracked, paths: &[RepoPath]) -> Result<Tracked> {
        let chosen = tracked.select(paths)?;
        for pointer in &chosen.pointers {
            paths.iter().try_for_each(|it| self.check_part(pointer, it))?;
        }
        Ok(chosen)
    }

    /// Refuses a part of a tracked path that is neither on record nor here: it was misspelt, and there would be
    /// nothing to do.
    pub fn check_part(&self, pointer: &Pointer, part: &RepoPath) -> Result<()> {
        let is_part = part != &pointer.path && part.is_within(&pointer.path);
        // What cannot be looked at, on record or here, is told by whoever needs it.
        if !is_part || !matches!(self.repo.files.stamp(part), Ok(None)) {
            return Ok(());
        }
        match recorded_entry(&self.repo.store, pointer, part) {
            Ok(None) => Err(unrecorded(part, pointer)),
            _ => Ok(()),
        }
    }
}

/// The folder is ours, and does not know the path.
pub(super) fn unrecorded(path: &RepoPath, parent: &Pointer) -> Error {
    let error = Error::not_found(format!("`{path}` is not on record in `{}`", parent.path));
    error.hint(format!("`mlx status {}` shows what differs from it", parent.path))
}
