//! The lockfiles of all pipelines of the repository, each read when it is first needed.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::{
    error::Result,
    fs::{FileStat, Sync, coarse_now},
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

/// A lockfile as it was last read or written.
struct Known {
    /// The stat of its file, if a later change of the file must change it.
    stat: Option<FileStat>,
    bytes: Vec<u8>,
    lock: Rc<Lockfile>,
}

thread_local! {
    /// Lockfiles by path: each stage of a pipeline reads the file again, as other commands may have changed
    /// it, and most find the same one.
    static KNOWN: RefCell<HashMap<PathBuf, Known>> = RefCell::default();
}

/// Reads the lockfile in `folder`, also one that a sparse checkout leaves out; a missing one is read as
/// empty.
pub fn read_lockfile(repo: &Repo, folder: &RepoPath) -> Result<Rc<Lockfile>> {
    let path = folder.join(LOCKFILE.as_bytes())?;
    if repo.git.is_unmerged(&path)? {
        return Err(Lockfile::conflict_error(&path));
    }
    let (place, tick) = (path.on_disk(repo.root()), coarse_now());
    let stat = repo.files.stat(&path)?;
    let same_stat = |known: &Known| stat.is_some() && known.stat == stat;
    if let Some(lock) = known(&place, &same_stat) {
        return Ok(lock);
    }
    let bytes = read_record(repo, &path)?.unwrap_or_default();
    let lock = match known(&place, &|known| known.bytes == bytes) {
        Some(lock) => lock,
        None => {
            let before = known(&place, &|_| true).unwrap_or_default();
            Rc::new(Lockfile::parse_after(&path, &bytes, &before)?)
        }
    };
    // Without a change since before it was read, it has the stat's bytes.
    let stat = stat.filter(|stat| stat.is_older_than_clock_tick(tick));
    remember(place, Known { stat, bytes, lock: Rc::clone(&lock) });
    Ok(lock)
}

fn known(place: &Path, is_same: &dyn Fn(&Known) -> bool) -> Option<Rc<Lockfile>> {
    KNOWN.with_borrow(|all| all.get(place).filter(|known| is_same(known)).map(|known| known.lock.clone()))
}

fn remember(place: PathBuf, known: Known) {
    KNOWN.with_borrow_mut(|all| drop(all.insert(place, known)));
}

/// Changes the lockfile in `folder`. The caller holds the repository's lock, so that no other command writes
/// it meanwhile.
pub fn update_lockfile(repo: &Repo, folder: &RepoPath, change: impl FnOnce(&mut Lockfile)) -> Result<()> {
    let (path, lock) = (folder.join(LOCKFILE.as_bytes())?, read_lockfile(repo, folder)?);
    let place = path.on_disk(repo.root());
    // The only other owner, in most cases: it is changed in place then.
    KNOWN.with_borrow_mut(|all| drop(all.remove(&place)));
    let mut lock = Rc::unwrap_or_clone(lock);
    change(&mut lock);
    let bytes = lock.to_toml().into_bytes();
    repo.files.write(&path, &bytes, Sync::Now)?;
    remember(place, Known { stat: None, bytes, lock: Rc::new(lock) });
    Ok(())
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
        let inside = locks.flat_map(move |lock| lock.stored_below(path));
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

    fn repo() -> (tempfile::TempDir, Repo) {
        let temp = tempfile::tempdir().unwrap();
        let mut init = std::process::Command::new("git");
        assert!(init.args(["init", "-q"]).arg(temp.path()).status().unwrap().success());
        let repo = Repo::init(temp.path()).unwrap();
        (temp, repo)
    }

    #[test]
    fn the_same_bytes_are_parsed_once() {
        let (_temp, repo) = repo();
        let write = |text: &str| {
            repo.files.write(&RepoPath::from_text(LOCKFILE).unwrap(), text.as_bytes(), Sync::Later).unwrap();
        };
        let read = || read_lockfile(&repo, &RepoPath::root()).unwrap();
        write("format = 1\n");
        let first = read();
        assert!(Rc::ptr_eq(&first, &read()));
        // Of the same size, within a tick of the clock.
        write("format = 2\n");
        let second = read();
        assert!(!Rc::ptr_eq(&first, &second));
        write("format = 2\n");
        assert!(Rc::ptr_eq(&second, &read()));
    }

    #[test]
    fn a_written_lockfile_is_not_parsed_again() {
        let (_temp, repo) = repo();
        let root = RepoPath::root();
        update_lockfile(&repo, &root, |_| {}).unwrap();
        let known = read_lockfile(&repo, &root).unwrap();
        assert!(Rc::ptr_eq(&known, &read_lockfile(&repo, &root).unwrap()));
        let file = RepoPath::from_text(LOCKFILE).unwrap();
        assert_eq!(repo.files.read(&file).unwrap(), known.to_toml().into_bytes());
    }
}
