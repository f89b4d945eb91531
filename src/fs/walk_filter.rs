//! Filters for walks over a folder: entries to leave out, and the handling of unreadable ones.

use crate::{
    error::{Error, Result},
    fs::{Dir, FileType},
    path::RepoPath,
};

/// Filter that a walk calls for every folder.
pub trait WalkFilter: Sync {
    /// Removes the names in a folder that the walk is to leave out.
    fn filter(&self, _dir: &Dir, _names: &mut Vec<(Vec<u8>, FileType)>) -> Result<()> {
        Ok(())
    }

    /// Called for a folder that holds files that mlx itself named, which no walk lists.
    fn on_own_files(&self, _dir: &Dir) {}

    /// Returns true if a folder is listed although the filter left out everything in it.
    fn lists_emptied(&self, _folder: &RepoPath) -> Result<bool> {
        Ok(true)
    }

    /// Returns true if a folder is listed although nothing is in it.
    fn lists_empty(&self, _folder: &RepoPath) -> bool {
        true
    }

    /// Handles an entry that cannot be read: `Ok` leaves it out, an error ends the walk.
    fn on_error(&self, _path: &RepoPath, error: Error) -> Result<()> {
        Err(error)
    }
}

/// Filter that leaves out nothing.
pub struct NoFilter;

impl WalkFilter for NoFilter {}
