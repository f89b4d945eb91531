//! The lockfiles of all pipelines of the repository, each read when it is first needed.

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use crate::{
    error::Result,
    path::RepoPath,
    pipeline::{LOCKFILE, Lockfile},
    pointer::{Content, Pointer, SUFFIX},
    repo::Repo,
};

/// Stage records of all pipelines, as of the time each lockfile is first asked for.
pub struct Records<'f> {
    repo: &'f Repo,
    folders: BTreeMap<RepoPath, OnceCell<Rc<Lockfile>>>,
}

thread_local! {
    /// The last lockfile that was parsed, with its path and its bytes: each stage of a pipeline reads the
    /// file again, as other commands may have changed it, and most find the same bytes.
    static LAST_PARSED: RefCell<Option<(RepoPath, Vec<u8>, Rc<Lockfile>)>> = const { RefCell::new(None) };
}

/// Reads the lockfile in `folder`, also one that a sparse checkout leaves out; a missing one is read as
/// empty.
pub fn read_lockfile(repo: &Repo, folder: &RepoPath) -> Result<Rc<Lockfile>> {
    let path = folder.join(LOCKFILE.as_bytes())?;
    let bytes = read_record(repo, &path)?.unwrap_or_default();
    parse(path, bytes)
}

fn parse(path: RepoPath, bytes: Vec<u8>) -> Result<Rc<Lockfile>> {
    let is_same = |(last, old, _): &&(RepoPath, Vec<u8>, _)| *last == path && *old == bytes;
    if let Some(known) = LAST_PARSED.with_borrow(|last| last.as_ref().filter(is_same).map(|it| it.2.clone()))
    {
        return Ok(known);
    }
    let parsed = Rc::new(Lockfile::parse(&path, &bytes)?);
    LAST_PARSED.set(Some((path, bytes, Rc::clone(&parsed))));
    Ok(parsed)
}

/// Reads a pointer or a lockfile, also one that a sparse checkout leaves out; `None` for another program's
/// file. One in conflict is an error, and so is a pointer that cannot be read.
pub fn read_record(repo: &Repo, file: &RepoPath) -> Result<Option<Vec<u8>>> {
    if let Some(path) = file.without_suffix(SUFFIX) {
        let pointer = repo.pointer(&path)?;
        let pointer = pointer.map_or_else(|| repo.skipped_pointer(&path), |pointer| Ok(Some(pointer)))?;
        return Ok(pointer.map(|pointer| pointer.to_toml().into_bytes()));
    }
    if repo.git.is_unmerged(file)? {
        return Err(Lockfile::conflict_error(file));
    }
    repo.read_document(file)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_are_parsed_once() {
        let path = |text| RepoPath::from_text(text).unwrap();
        let first = parse(path("mlx.lock"), Vec::new()).unwrap();
        assert!(Rc::ptr_eq(&first, &parse(path("mlx.lock"), Vec::new()).unwrap()));
        assert!(!Rc::ptr_eq(&first, &parse(path("sub/mlx.lock"), Vec::new()).unwrap()));
        let other = parse(path("sub/mlx.lock"), b"format = 2\n".to_vec()).unwrap();
        assert!(!Rc::ptr_eq(&other, &parse(path("sub/mlx.lock"), Vec::new()).unwrap()));
    }
}
