//! Ways of sharing bytes that were tried between two mounts and refused: not tried again for every file.
//!
//! Nothing is guessed from the names of file systems. What a mount can do stays as it is while a process lives;
//! where it does not, a way is missed and the next one of `cache.link` taken, which is never wrong.

use std::{
    io,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use rustix::{
    fs::{self, AtFlags, StatxFlags},
    io::Errno,
};

use crate::fs::Link;

static REFUSED: Mutex<Vec<Way>> = Mutex::new(Vec::new());

/// From one mount to another, by one kind of link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    link: Link,
    from: Mount,
    to: Mount,
}

/// One file system may be mounted at two places, and links between those fail; what is mounted at one place may
/// have parts (subvolumes, layers) with devices of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mount {
    device: (u32, u32),
    mount: u64,
}

impl Way {
    /// Nothing when the kernel does not say what is mounted where: then every file is tried.
    pub fn new(link: Link, from: impl AsFd, to: impl AsFd) -> Option<Self> {
        Some(Self { link, from: mount(from)?, to: mount(to)? })
    }

    pub fn is_refused(&self) -> bool {
        REFUSED.lock().unwrap_or_else(PoisonError::into_inner).contains(self)
    }

    /// Remembers a refusal, if it holds for every file. `own` says whether the file is this user's: links to those of
    /// others may be forbidden where links to one's own are not.
    pub fn note(&self, error: &io::Error, own: bool) {
        if holds_for_all(error, own) && !self.is_refused() {
            REFUSED.lock().unwrap_or_else(PoisonError::into_inner).push(*self);
        }
    }
}

fn holds_for_all(error: &io::Error, own: bool) -> bool {
    match Errno::from_io_error(error) {
        Some(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => true,
        Some(Errno::PERM) => own,
        // Too many links to one file, or blocks of one file that cannot be shared.
        _ => false,
    }
}

fn mount(fd: impl AsFd) -> Option<Mount> {
    let stat = fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    Some(Mount { device: (stat.stx_dev_major, stat.stx_dev_minor), mount: stat.stx_mnt_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_one_file_is_not_one_of_all() {
        // A mount that is nowhere: what is remembered of it means nothing to tests beside this one.
        let nowhere = Mount { device: (u32::MAX, 7), mount: u64::MAX };
        let way = |link| Way { link, from: nowhere, to: nowhere };
        for (errno, own) in
            [(Errno::MLINK, true), (Errno::PERM, false), (Errno::INVAL, true), (Errno::NOSPC, true)]
        {
            way(Link::Hardlink).note(&errno.into(), own);
            assert!(!way(Link::Hardlink).is_refused(), "{errno}");
        }
        way(Link::Hardlink).note(&Errno::PERM.into(), true);
        assert!(way(Link::Hardlink).is_refused() && !way(Link::Reflink).is_refused());
    }
}
