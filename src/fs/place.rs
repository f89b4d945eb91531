//! Ways of giving a stored file a place in the workspace without copying it.

use std::{io, os::unix::ffi::OsStrExt as _, str::FromStr};

use rustix::fs::{self, AtFlags};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Doing, Error, Result},
    fs::{Dir, Root, Sync, refused::Way},
    path::{RepoPath, show},
};

/// Ways of giving bytes a second place, as `cache.link` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Shares the blocks until one side changes.
    Reflink,
    /// One file with two names, read-only.
    Hardlink,
    /// Points into the store, read-only.
    Symlink,
    Copy,
}

/// Whether a file may be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Plain,
    Executable,
}

impl Mode {
    /// Permissions before umask.
    pub fn bits(self) -> u32 {
        match self {
            Self::Plain => 0o666,
            Self::Executable => 0o777,
        }
    }
}

impl FromStr for Link {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "reflink" => Self::Reflink,
            "hardlink" => Self::Hardlink,
            "symlink" => Self::Symlink,
            "copy" => Self::Copy,
            other => {
                let error = Error::usage(format!("there is no link type `{other}`"));
                return Err(error.hint("use reflink, hardlink, symlink or copy, with commas between them"));
            }
        })
    }
}

/// Puts the file `stored` of `store` at `name` in `dir` by the first of `kinds` that the file system can;
/// nothing when a copy is due.
pub fn place(
    store: &Root,
    stored: &RepoPath,
    dir: &Dir,
    name: &[u8],
    mode: Mode,
    kinds: &[Link],
) -> Result<Option<Link>> {
    for &kind in kinds {
        let shared = matches!(kind, Link::Hardlink | Link::Symlink);
        if kind == Link::Copy {
            return Ok(None);
        }
        if shared && mode == Mode::Executable {
            continue; // the bit would be set for everyone who shares the file
        }
        if try_place(store, stored, dir, name, mode, kind)
            .doing(|| format!("cannot place `{}`", show(name)))?
        {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// False when the file system cannot do it this way: tried once, and remembered.
fn try_place(
    store: &Root,
    stored: &RepoPath,
    dir: &Dir,
    name: &[u8],
    mode: Mode,
    kind: Link,
) -> Result<bool> {
    if matches!(kind, Link::Reflink | Link::Copy) {
        return share(store, stored, dir, name, mode);
    }
    let folder = store.dir(&stored.parent().unwrap_or_default())?;
    let way = Way::new(kind, folder.fd(), dir.fd());
    if way.is_some_and(|it| it.is_refused()) {
        return Ok(false);
    }
    let target = stored.on_disk(store.path());
    let made = dir.put(name, |new| match kind {
        Link::Symlink => Ok(fs::symlinkat(target.as_os_str().as_bytes(), dir.fd(), new)?),
        _ => Ok(fs::linkat(folder.fd(), stored.name(), dir.fd(), new, AtFlags::empty())?),
    });
    match made {
        Ok(()) => Ok(true),
        Err(error) if cannot_here(&error) => {
            let own = !folder.is_foreign(stored.name()).unwrap_or(true);
            way.inspect(|it| it.note(&error, own));
            Ok(false)
        }
        Err(error) => Err(error).doing(|| format!("cannot link to `{stored}` in the store")),
    }
}

fn share(store: &Root, stored: &RepoPath, dir: &Dir, name: &[u8], mode: Mode) -> Result<bool> {
    let file = store.open_file(stored)?;
    // No file is made where its blocks could not be shared.
    if Way::new(Link::Reflink, &file, dir.fd()).is_some_and(|it| it.is_refused()) {
        return Ok(false);
    }
    let temp = dir.create(mode.bits())?;
    if !temp.share(&file) {
        return Ok(false);
    }
    temp.publish(name, Sync::Later).map(|()| true)
}

/// The file system, not the disk, says no: another way may do.
fn cannot_here(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let no =
        [Errno::XDEV, Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL, Errno::PERM, Errno::MLINK, Errno::NOSYS];
    error.raw_os_error().is_some_and(|code| no.iter().any(|it| it.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn what_a_file_system_cannot_is_told_from_what_the_disk_refuses() {
        for no in [Errno::XDEV, Errno::MLINK, Errno::OPNOTSUPP, Errno::PERM, Errno::NOSYS] {
            assert!(cannot_here(&no.into()), "{no}");
        }
        for trouble in [Errno::NOSPC, Errno::IO, Errno::DQUOT, Errno::ROFS, Errno::ACCESS] {
            assert!(!cannot_here(&trouble.into()), "{trouble}");
        }
    }
}
