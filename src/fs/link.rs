//! Links a stored file into the workspace by reflink, hard link or symlink, instead of copying it.

use std::{fmt, io, os::unix::ffi::OsStrExt as _, str::FromStr};

use rustix::fs::{self, AtFlags};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result, WithContext},
    fs::{Dir, Root, Sync, link_support::LinkRoute},
    path::{RepoPath, escape_bytes},
};

/// Kind of link from the workspace to the store, as in the setting `cache.link`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// A file that shares the blocks of the stored one until one of the two changes.
    Reflink,
    /// A second name of the stored file, read-only.
    Hardlink,
    /// A symlink to the stored file, read-only.
    Symlink,
    /// A copy of its own, without any link.
    Copy,
}

impl LinkKind {
    /// Returns true if the workspace and the store have one file under two names.
    pub fn is_same_file(self) -> bool {
        matches!(self, Self::Hardlink | Self::Symlink)
    }
}

/// Mode of a file: plain or executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Plain,
    Executable,
}

impl Mode {
    /// Returns the permission bits before umask.
    pub fn bits(self) -> u32 {
        match self {
            Self::Plain => 0o666,
            Self::Executable => 0o777,
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reflink => "reflink",
            Self::Hardlink => "hardlink",
            Self::Symlink => "symlink",
            Self::Copy => "copy",
        })
    }
}

impl FromStr for LinkKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let kinds = [Self::Reflink, Self::Hardlink, Self::Symlink, Self::Copy];
        kinds.into_iter().find(|kind| kind.to_string() == text).ok_or_else(|| {
            let error = Error::usage(format!("`{text}` is not a link type"));
            error.hint("use reflink, hardlink, symlink or copy, separated by commas")
        })
    }
}

/// Links the file `stored` of `store` to `name` in `dir` by the first of `kinds` that the file system
/// supports, and returns that kind. `None` means that the caller has to copy.
pub fn link_into(
    store: &Root,
    stored: &RepoPath,
    dir: &Dir,
    name: &[u8],
    mode: Mode,
    kinds: &[LinkKind],
) -> Result<Option<LinkKind>> {
    for &kind in kinds {
        let shared = kind.is_same_file();
        if kind == LinkKind::Copy {
            return Ok(None);
        }
        if shared && mode == Mode::Executable {
            continue; // the executable bit would apply to every link to the file
        }
        if try_place(store, stored, dir, name, mode, kind)
            .context(|| format!("cannot link `{}`", escape_bytes(name)))?
        {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// Returns false if the file system does not support this kind of link, which is remembered.
fn try_place(
    store: &Root,
    stored: &RepoPath,
    dir: &Dir,
    name: &[u8],
    mode: Mode,
    kind: LinkKind,
) -> Result<bool> {
    if matches!(kind, LinkKind::Reflink | LinkKind::Copy) {
        return reflink(store, stored, dir, name, mode);
    }
    let folder = store.dir(&stored.parent().unwrap_or_default())?;
    let route = LinkRoute::new(kind, folder.fd(), dir.fd());
    if route.is_some_and(|it| it.is_unsupported()) {
        return Ok(false);
    }
    let target = stored.on_disk(store.path());
    let made = dir.publish_link(name, |new| match kind {
        LinkKind::Symlink => Ok(fs::symlinkat(target.as_os_str().as_bytes(), dir.fd(), new)?),
        _ => Ok(fs::linkat(folder.fd(), stored.name(), dir.fd(), new, AtFlags::empty())?),
    });
    match made {
        Ok(()) => Ok(true),
        Err(error) if is_unsupported_link(&error) => {
            let own = !folder.is_owned_by_other(stored.name()).unwrap_or(true);
            route.inspect(|route| route.mark_unsupported(&error, own));
            Ok(false)
        }
        Err(error) => Err(error).context(|| format!("cannot link to `{stored}` in the store")),
    }
}

fn reflink(store: &Root, stored: &RepoPath, dir: &Dir, name: &[u8], mode: Mode) -> Result<bool> {
    let file = store.open_file(stored)?;
    // Checked first, so that no temporary file is created in vain.
    if LinkRoute::new(LinkKind::Reflink, &file, dir.fd()).is_some_and(|it| it.is_unsupported()) {
        return Ok(false);
    }
    let temp = dir.create(mode.bits())?;
    if !temp.reflink_from(&file) {
        return Ok(false);
    }
    temp.publish(name, Sync::Later).map(|()| true)
}

/// Returns true if the file system refused this kind of link, so that another kind may work; false for errors
/// of the disk.
fn is_unsupported_link(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let unsupported =
        [Errno::XDEV, Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL, Errno::PERM, Errno::MLINK, Errno::NOSYS];
    error.raw_os_error().is_some_and(|code| unsupported.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn unsupported_links_are_distinguished_from_disk_errors() {
        for unsupported in [Errno::XDEV, Errno::MLINK, Errno::OPNOTSUPP, Errno::PERM, Errno::NOSYS] {
            assert!(is_unsupported_link(&unsupported.into()), "{unsupported}");
        }
        for failure in [Errno::NOSPC, Errno::IO, Errno::DQUOT, Errno::ROFS, Errno::ACCESS] {
            assert!(!is_unsupported_link(&failure.into()), "{failure}");
        }
    }
}
