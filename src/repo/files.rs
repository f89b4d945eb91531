//! Files of settings: where each layer is stored, and the one way to change such a file.
//!
//! A change reads the file, edits its text and replaces it under one lock, so that commands at the same time
//! keep each other's writes.

use crate::{
    error::{Error, Result},
    fs::{self, Lock, Root, Sync},
    path::RepoPath,
    repo::user_dir,
};

/// The file that a setting is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// `~/.config/mlx/config.toml`
    User,
    /// `.mlx/config.toml`, committed.
    Repo,
    /// `.mlx/local.toml`, never committed.
    Local,
}

impl Layer {
    pub const ALL: [Self; 3] = [Self::User, Self::Repo, Self::Local];

    /// Returns the name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Repo => "repository",
            Self::Local => "local",
        }
    }

    /// Returns the file as users see it.
    pub fn file(self) -> String {
        match self {
            Self::User => {
                user_dir().map_or_else(String::new, |dir| dir.join("config.toml").display().to_string())
            }
            Self::Repo => ".mlx/config.toml".to_owned(),
            Self::Local => ".mlx/local.toml".to_owned(),
        }
    }

    pub fn path(self) -> Result<RepoPath> {
        RepoPath::from_text(if self == Self::Local { "local.toml" } else { "config.toml" })
    }

    /// Reads the text of this layer; `folder` is `.mlx`, if it exists. `None` if the file does not exist.
    pub fn read(self, folder: Option<&Root>) -> Result<Option<String>> {
        let user = user_dir().filter(|dir| fs::is_dir(dir)).map(|dir| Root::open(&dir)).transpose()?;
        let Some(root) = (if self == Self::User { user.as_ref() } else { folder }) else {
            return Ok(None);
        };
        root.read_document(&self.path()?)?.map(|bytes| to_text(bytes, &self.file())).transpose()
    }

    /// Replaces the text of this layer by what `change` makes of it. `lock` is held by every writer of the
    /// files in `folder`; the user's own file has a lock of its own.
    pub fn change<T>(
        self,
        folder: &Root,
        lock: impl FnOnce() -> Result<Lock>,
        change: impl FnOnce(&mut String) -> Result<T>,
    ) -> Result<T> {
        if self == Self::User {
            return change_user_file(&self.path()?, change);
        }
        let mode = if self == Self::Repo { 0o666 } else { 0o600 };
        change_file(&lock()?, folder, &self.path()?, mode, change)
    }
}

/// Replaces the text of a file in the user's own settings folder, which is created if missing.
pub fn change_user_file<T>(path: &RepoPath, change: impl FnOnce(&mut String) -> Result<T>) -> Result<T> {
    let dir = user_dir().ok_or_else(|| Error::not_found("your home folder is unknown").hint("set HOME"))?;
    let root = Root::create(&dir)?;
    let lock = fs::lock(&root, &RepoPath::from_text("lock")?)?;
    change_file(&lock, &root, path, 0o600, change)
}

fn change_file<T>(
    _lock: &Lock,
    root: &Root,
    path: &RepoPath,
    mode: u32,
    change: impl FnOnce(&mut String) -> Result<T>,
) -> Result<T> {
    root.dir(&RepoPath::root())?.clean_own()?;
    let old = root.read_document(path)?.unwrap_or_default();
    let mut text = to_text(old.clone(), &path.to_text())?;
    let changed = change(&mut text)?;
    if text.as_bytes() != old {
        root.write_mode(path, text.as_bytes(), Sync::Now, mode)?;
    }
    Ok(changed)
}

fn to_text(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::corrupt(format!("cannot read `{name}`: it is not UTF-8")))
}
