//! What a walk leaves out, and what becomes of what it cannot read.

use crate::{
    error::{Error, Result},
    fs::{Dir, FileType},
    path::RepoPath,
};

/// Asked by a walk, folder by folder.
pub trait Sieve: Sync {
    /// Takes out of the names in a folder those that the walk is to pass over.
    fn sift(&self, _dir: &Dir, _names: &mut Vec<(Vec<u8>, FileType)>) -> Result<()> {
        Ok(())
    }

    /// Whether a folder is shown of which nothing was let through.
    fn shows_emptied(&self, _folder: &RepoPath) -> Result<bool> {
        Ok(true)
    }

    /// Something cannot be read: an error ends the walk, `Ok` leaves it out.
    fn trouble(&self, _path: &RepoPath, error: Error) -> Result<()> {
        Err(error)
    }
}

/// Leaves out nothing.
pub struct Everything;

impl Sieve for Everything {}
