//! A repository: a Git work tree that `mlx init` has set up, and mlx's files beside Git's own data.
//!
//! `.mlx/config.toml` is committed, `.mlx/local.toml` is not. The store, the run cache and locks are in
//! `mlx/` inside Git's common folder, so that linked worktrees share them; the index, logs and markers of
//! running stages are in `mlx/` inside the worktree's own Git folder.

mod change;
mod config;
mod files;
mod keys;
mod settings_text;
mod trust;

pub use self::{
    change::Change,
    config::{Config, RemoteConfig},
    files::Layer,
    keys::{KEYS, OPTIONS, check_value, default_value, is_secret},
};

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{
    digest::Digest,
    error::{Error, Result, WithContext},
    fs::{self, Lock, Root, Sync},
    git::Git,
    path::RepoPath,
    pointer::{Pointer, READ_LIMIT, SUFFIX, Sides},
    progress::Progress,
    store::{self, Store},
};

const FOLDER: &str = ".mlx";
const CONFIG: &str =
    "# Settings of mlx for everyone who clones this repository; `mlx config --help` lists them.\n";
const IGNORE: &str = "/local.toml\n";

/// An open repository: Git, the store, the settings and the folders that commands work on.
pub struct Repo {
    pub git: Git,
    pub store: Store,
    pub config: Config,
    /// The work tree.
    pub files: Root,
    /// Files of this worktree that are never committed: index, logs, markers of running stages.
    pub private: Root,
    /// Files that all worktrees share: locks, caches.
    pub shared: Root,
}

/// Opens the folder of a cache that several clones share; it is created if it does not exist.
pub fn open_cache(dir: &Path) -> Result<Root> {
    let opened = Root::create(dir).and_then(Root::with_group_access);
    opened.context(|| format!("cannot open the shared cache `{}`", dir.display())).map_err(|error| {
        error.hint("create it, or name another folder with `mlx config set --local cache.dir DIR`")
    })
}

impl Repo {
    /// Opens the repository that contains the folder `start`, usually the current one.
    pub fn discover(start: &Path) -> Result<Self> {
        Self::open(Git::discover_checked(start)?)
    }

    /// Opens the repository to change its settings: also if the folder of a shared cache cannot be opened.
    pub fn discover_for_settings(start: &Path) -> Result<Self> {
        Self::discover(start).or_else(|error| {
            let git = Git::discover_checked(start)?;
            let files = Root::open(git.root())?;
            let config = load_config(&git, files.open_own_folder(FOLDER, false)?.as_ref())?;
            match config.cache_dir() {
                Ok(None) => Err(error),
                _ => Self::open_with(git, files, config, None),
            }
        })
    }

    /// Opens a worktree that mlx made, ignoring environment variables that name the user's repository.
    pub fn open_worktree(folder: &Path) -> Result<Self> {
        Self::open(Git::discover(folder)?)
    }

    /// Opens another clone, perhaps of another user, to read what it refers to. Nothing is created, and its
    /// settings are not followed.
    pub fn open_other(folder: &Path) -> Result<Self> {
        let git = Git::discover(folder)?;
        let own = || Root::open(&git.common_dir().join("mlx"));
        let (store, private, shared) = (Store::open(own()?)?, own()?, own()?);
        Ok(Self { store, config: Config::default(), files: Root::open(git.root())?, private, shared, git })
    }

    fn open(git: Git) -> Result<Self> {
        let files = Root::open(git.root())?;
        let config = load_config(&git, files.open_own_folder(FOLDER, false)?.as_ref())?;
        let cache = config.cache_dir()?.map(|dir| open_cache(&dir)).transpose()?;
        Self::open_with(git, files, config, cache)
    }

    fn open_with(git: Git, files: Root, config: Config, cache: Option<Root>) -> Result<Self> {
        let shared = Root::create(&git.common_dir().join("mlx"))?;
        let private = Root::create(&git.worktree_dir().join("mlx"))?;
        let store = match cache {
            Some(cache) => {
                let clone =
                    store::SharingClone { id: clone_id(&git), state_root: Root::open(shared.path())? };
                Store::open(cache)?.shared_by(clone)
            }
            None => Store::open(Root::open(shared.path())?)?,
        };
        Ok(Self { git, store, config, files, private, shared })
    }

    /// Returns this clone's name in a cache that several clones share; `None` without a shared cache.
    pub fn clone_id(&self) -> Result<Option<String>> {
        Ok(self.config.cache_dir()?.map(|_| clone_id(&self.git)))
    }

    /// Sets up the Git repository that contains `start`; existing files stay.
    pub fn init(start: &Path) -> Result<Self> {
        let git = Git::discover_checked(start)?;
        let files = Root::open(git.root())?;
        let folder = files.open_own_folder(FOLDER, true)?.expect("the folder was just created");
        for (name, text) in [("config.toml", CONFIG), (".gitignore", IGNORE)] {
            let path = RepoPath::from_text(name)?;
            // A committed file is never replaced: one that was deleted here is restored, and one that a
            // sparse checkout leaves out stays in Git's index.
            let staged = git.staged_own(FOLDER, name)?;
            if folder.stat(&path)?.is_some() || staged.as_ref().is_some_and(|it| it.is_skipped) {
                continue;
            }
            folder.write(
                &path,
                &staged.map_or_else(|| text.as_bytes().to_vec(), |it| it.bytes),
                Sync::Now,
            )?;
        }
        Self::open(Git::discover_checked(start)?)
    }

    /// Returns the top folder of the work tree.
    pub fn root(&self) -> &Path {
        self.git.root()
    }

    /// Opens the folder `.mlx/`. The committed settings are in it, also where a sparse checkout leaves them
    /// out, so that a change of them is made on what they say.
    pub fn folder(&self) -> Result<Root> {
        let skipped = |name: &str| Ok(self.git.staged_own(FOLDER, name)?.filter(|file| file.is_skipped));
        let is_sparse = skipped("config.toml")?.is_some();
        let folder = self
            .files
            .open_own_folder(FOLDER, is_sparse)?
            .ok_or_else(|| Error::not_found("`.mlx` does not exist").hint("run `mlx init`"))?;
        for name in ["config.toml", ".gitignore"].into_iter().filter(|_| is_sparse) {
            let path = RepoPath::from_text(name)?;
            if folder.stat(&path)?.is_none()
                && let Some(file) = skipped(name)?
            {
                folder.write(&path, &file.bytes, Sync::Now)?;
            }
        }
        Ok(folder)
    }

    /// Reads a document of the work tree; one that a sparse checkout leaves out is read from Git's index.
    pub fn read_document(&self, file: &RepoPath) -> Result<Option<Vec<u8>>> {
        self.files.read_document(file)?.map_or_else(|| self.git.read_skipped(file), |bytes| Ok(Some(bytes)))
    }

    /// Reads the pointer of a path that a sparse checkout leaves out of the work tree.
    pub fn skipped_pointer(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        let bytes = self.git.read_skipped(&path.with_suffix(SUFFIX))?;
        let bytes = bytes.filter(|bytes| Pointer::looks_like_pointer(bytes));
        bytes.map(|bytes| Pointer::parse_here(path.clone(), &bytes)).transpose()
    }

    /// Changes the settings of one layer under the lock. Its file stays as it was if `change` fails.
    pub fn change_settings<T>(
        &self,
        layer: Layer,
        change: impl FnOnce(&mut Change<'_>) -> Result<T>,
    ) -> Result<T> {
        change::change(&self.folder()?, layer, || self.lock(), change)
    }

    /// Takes the lock, which is held for the milliseconds in which an index, pointer or lockfile is replaced.
    pub fn lock(&self) -> Result<Lock> {
        fs::lock(&self.shared, &RepoPath::from_text("lock")?)
    }

    /// As [`Repo::lock`], and reports the process it waits for.
    pub fn lock_with_progress(&self, progress: &dyn Progress) -> Result<Lock> {
        fs::lock_with_progress(&self.shared, &RepoPath::from_text("lock")?, progress)
    }

    /// Takes the lock unless another process holds it: for work that may be skipped.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        fs::try_lock(&self.shared, &RepoPath::from_text("lock")?)
    }

    /// Reads the pointer of a path that had one: a file that is not a pointer is an error.
    pub fn strict_pointer(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        let bytes = self.files.read_prefix(&path.with_suffix(SUFFIX), READ_LIMIT)?;
        bytes.map(|bytes| self.parse_pointer(path, &bytes)).transpose()
    }

    /// Reads the pointer of `path` in the work tree; `None` if the file does not exist or is another
    /// program's.
    pub fn pointer(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        // The root has no pointer file: `.mlx` is mlx's own folder.
        if path.is_root() {
            return Ok(None);
        }
        match self.files.read_prefix(&path.with_suffix(SUFFIX), READ_LIMIT)? {
            Some(bytes) if self.is_ours(path, &bytes)? => self.parse_pointer(path, &bytes).map(Some),
            _ => Ok(None),
        }
    }

    fn parse_pointer(&self, path: &RepoPath, bytes: &[u8]) -> Result<Pointer> {
        self.check_merged(path)?;
        // An attribute that makes it unreadable is the one to name.
        let unconverted = || self.git.check_unfiltered(&[path.with_suffix(SUFFIX)]);
        Pointer::parse_here(path.clone(), bytes).or_else(|error| unconverted().and(Err(error)))
    }

    /// Returns the versions of the pointer of `path` that Git could not merge, if there are several.
    pub fn sides(&self, path: &RepoPath) -> Result<Option<Sides>> {
        if path.is_root() {
            return Ok(None);
        }
        let read = |bytes: Vec<u8>| Pointer::parse(path.clone(), &bytes).ok().map(|pointer| pointer.content);
        let versions = self.git.unmerged_versions(&path.with_suffix(SUFFIX))?;
        Ok(versions.map(|versions| {
            let [base, ours, theirs] = versions.map(|version| version.and_then(read));
            Sides { base, ours, theirs }
        }))
    }

    /// Refuses the pointer of `path` if Git's index has several versions of it, whatever its file holds.
    pub fn check_merged(&self, path: &RepoPath) -> Result<()> {
        self.sides(path)?.map_or(Ok(()), |sides| Err(Pointer::conflict_error(path, &sides)))
    }

    /// Returns true if a file in the place of a pointer is one, even a damaged one. Bytes that are only cut
    /// off, or that no pointer has, count if Git has a pointer there.
    fn is_ours(&self, path: &RepoPath, bytes: &[u8]) -> Result<bool> {
        if !Pointer::looks_like_pointer(bytes) {
            return Ok(self.staged_pointer(path)?.is_some());
        }
        Ok(!Pointer::lacks_digest(bytes) || self.pointer_in_git(path)?.is_some())
    }

    /// Reads the pointer of `path` as Git has it: in its index, or else in the commit that is checked out.
    pub fn pointer_in_git(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        let file = path.with_suffix(SUFFIX);
        let bytes = match (self.git.staged_small(&file, READ_LIMIT)?, self.git.head()) {
            (None, Some(head)) => self.git.read(&head, &file)?,
            (staged, _) => staged,
        };
        Ok(bytes.and_then(|bytes| Pointer::parse(path.clone(), &bytes).ok()))
    }

    /// Reads the pointer of `path` in Git's index.
    fn staged_pointer(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        let bytes = self.git.staged_small(&path.with_suffix(SUFFIX), READ_LIMIT)?;
        Ok(bytes.and_then(|bytes| Pointer::parse(path.clone(), &bytes).ok()))
    }

    /// Refuses to write the pointer of `path` if its file is another program's, or a pointer that a newer mlx
    /// wrote, that has the marks of a conflict, or that something overwrote. A damaged pointer may be
    /// replaced, and so may one of which Git's index has both sides of a conflict. `known` are paths that
    /// have pointers, whatever their files hold.
    pub fn check_replaceable(&self, path: &RepoPath, known: &BTreeSet<RepoPath>) -> Result<()> {
        let file = path.with_suffix(SUFFIX);
        let Some(bytes) = self.files.read_prefix(&file, READ_LIMIT)? else { return Ok(()) };
        if self.git.is_unmerged(&file)? {
            return Ok(());
        }
        let had_pointer = known.contains(path) || self.staged_pointer(path)?.is_some();
        match Pointer::check_replaceable(path, &bytes) {
            Err(_) if had_pointer && !Pointer::is_own(&bytes) => self.parse_pointer(path, &bytes).map(drop),
            Ok(()) if !known.contains(path) && !self.is_ours(path, &bytes)? => {
                Err(Pointer::foreign_error(path))
            }
            checked => checked,
        }
    }

    /// Writes a pointer file and returns true, unless the bytes on disk are the same. A file of that name
    /// that is not a pointer is an error.
    pub fn write_pointer(&self, pointer: &Pointer) -> Result<bool> {
        let changed = self.changed_pointer(pointer)?;
        let Some(bytes) = changed else { return Ok(false) };
        self.files.write(&pointer.file(), &bytes, Sync::Now).map(|()| true)
    }

    /// Writes pointers as [`Repo::write_pointer`] does, after all of them were checked.
    pub fn write_pointers<'p>(&self, pointers: impl IntoIterator<Item = &'p Pointer>) -> Result<()> {
        let mut files = Vec::new();
        for pointer in pointers {
            files.extend(self.changed_pointer(pointer)?.map(|bytes| (pointer.file(), bytes)));
        }
        self.files.write_all(&files)
    }

    /// Returns the bytes of a pointer file unless it has them; refuses to replace one that is not a pointer.
    fn changed_pointer(&self, pointer: &Pointer) -> Result<Option<Vec<u8>>> {
        let text = pointer.to_toml().into_bytes();
        match self.files.read_prefix(&pointer.file(), READ_LIMIT)? {
            Some(bytes) if bytes == text => return Ok(None),
            // The sides of a conflict are in Git's index.
            Some(bytes) if !self.git.is_unmerged(&pointer.file())? => {
                Pointer::check_replaceable(&pointer.path, &bytes)?;
            }
            _ => {}
        }
        Ok(Some(text))
    }

    /// Converts a path that the user typed in `cwd`.
    pub fn path(&self, typed: &std::ffi::OsStr, cwd: &Path) -> Result<RepoPath> {
        let parsed = RepoPath::parse(typed, cwd, self.root());
        if parsed.is_ok() {
            return parsed;
        }
        // The path may lead into the repository through a link.
        let real = || {
            let typed = cwd.join(typed);
            Some(fs::canonicalize(typed.parent()?)?.join(typed.file_name()?))
        };
        real().map_or(parsed, |path| RepoPath::parse(path.as_os_str(), cwd, self.root()))
    }
}

/// Reads the settings; those that a sparse checkout leaves out are read from Git's index.
fn load_config(git: &Git, folder: Option<&Root>) -> Result<Config> {
    let path = RepoPath::from_text("config.toml")?;
    let is_here = folder.map_or(Ok(None), |folder| folder.stat(&path))?.is_some();
    let skipped = if is_here { None } else { git.staged_own(FOLDER, "config.toml")? };
    let skipped = skipped.filter(|file| file.is_skipped).map(|file| file.bytes);
    if folder.is_none() && skipped.is_none() {
        let error = Error::not_found(format!("`{}` is not set up for mlx", git.root().display()));
        return Err(error.hint("run `mlx init` there"));
    }
    let text = skipped.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Config::load_sparse(folder, text)
}

/// Derives the name of a clone from host and location: a copy has a new name, and so has a moved clone, whose
/// old name counts as gone.
pub fn clone_id(git: &Git) -> String {
    let folder = git.common_dir();
    let text = [fs::host_name().as_bytes(), b":", folder.as_os_str().as_encoded_bytes()].concat();
    Digest::of(&text).hex()[..16].to_owned()
}

/// Returns the folder of the user's own settings.
pub fn user_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    Some(set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?.join("mlx"))
}
