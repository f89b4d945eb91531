//! The lockfiles of all pipelines of the repository, each read when it is first needed.

use std::{cell::OnceCell, collections::BTreeMap};

use crate::{
    error::Result,
    path::RepoPath,
    pipeline::{LOCKFILE, Lockfile},
    pointer::{Content, Pointer},
    repo::Repo,
};

/// Stage records of all pipelines, as of the time each lockfile is first asked for.
pub struct Records<'f> {
    repo: &'f Repo,
    folders: BTreeMap<RepoPath, OnceCell<Lockfile>>,
}

/// Reads the lockfile in `folder`, also one that a sparse checkout leaves out; a missing one is read as
/// empty.
pub fn read_lockfile(repo: &Repo, folder: &RepoPath) -> Result<Lockfile> {
    let path = folder.join(LOCKFILE.as_bytes())?;
    if repo.git.is_unmerged(&path)? {
        return Err(Lockfile::unmerged_error(&path));
    }
    Lockfile::parse(&path, &repo.read_document(&path)?.unwrap_or_default())
}

impl<'f> Records<'f> {
    /// Creates the records of the pipelines in these folders, without reading any.
    pub fn new<'p>(repo: &'f Repo, folders: impl IntoIterator<Item = &'p RepoPath>) -> Self {
        let folders = folders.into_iter().map(|folder| (folder.clone(), OnceCell::new())).collect();
        Self { repo, folders }
    }

    /// Returns the lockfile of the pipeline in `folder`.
    pub fn of(&self, folder: &RepoPath) -> Result<&Lockfile> {
        let cell = &self.folders[folder];
        if let Some(known) = cell.get() {
            return Ok(known);
        }
        let read = read_lockfile(self.repo, folder)?;
        Ok(cell.get_or_init(|| read))
    }

    /// Reads all lockfiles; one that cannot be read is an error.
    pub fn all(&self) -> Result<()> {
        self.folders.keys().try_for_each(|folder| self.of(folder).map(drop))
    }

    /// Returns the recorded outputs outside Git in the folder `path`, as far as the lockfiles can be read.
    pub fn outputs_in(&self, path: &RepoPath) -> impl Iterator<Item = Pointer> {
        let locks = self.folders.keys().filter_map(|folder| self.of(folder).ok());
        let outputs = locks.flat_map(Lockfile::records).flat_map(|(_, record)| &record.outputs);
        let inside = outputs.filter(move |(output, _)| *output != path && output.is_within(path));
        inside.map(|(path, content)| Pointer { path: path.clone(), content: *content })
    }

    /// Returns the recorded output that is or contains `path`, of any pipeline. A lockfile that cannot be
    /// read is an error only if no other one records the path.
    pub fn output(&self, path: &RepoPath) -> Result<Option<(RepoPath, Content)>> {
        let mut unreadable = None;
        for folder in self.folders.keys() {
            match self.of(folder) {
                Ok(lock) => {
                    if let Some((top, content)) = lock.output(path) {
                        return Ok(Some((top.clone(), *content)));
                    }
                }
                Err(error) => unreadable = unreadable.or(Some(error)),
            }
        }
        unreadable.map_or(Ok(None), Err)
    }
}
