//! Remembers which kinds of links two mounts do not support, so that they are not tried for every file.
//!
//! Nothing is inferred from the names of file systems. The memory lasts as long as the process. If a mount
//! gains support meanwhile, that kind is not used and the next one of `cache.link` is taken, which always
//! works.

use std::{
    io,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use rustix::{
    fs::{self, AtFlags, StatxFlags},
    io::Errno,
};

use crate::fs::LinkKind;

static UNSUPPORTED: Mutex<Vec<LinkRoute>> = Mutex::new(Vec::new());

/// One kind of link from one mount to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkRoute {
    link: LinkKind,
    from: Mount,
    to: Mount,
}

/// Identity of a mount. The device alone is not enough, since links between two mounts of one file system
/// fail. The mount id alone is not either, since one mount can have subvolumes or layers with their own
/// devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mount {
    device: (u32, u32),
    mount: u64,
}

impl LinkRoute {
    /// Returns `None` if the kernel does not report mount ids; then links are tried for every file.
    pub fn new(link: LinkKind, from: impl AsFd, to: impl AsFd) -> Option<Self> {
        Some(Self { link, from: mount(from)?, to: mount(to)? })
    }

    pub fn is_unsupported(&self) -> bool {
        UNSUPPORTED.lock().unwrap_or_else(PoisonError::into_inner).contains(self)
    }

    /// Remembers a refusal if it applies to every file. `open_worktree` is true if the file belongs to this
    /// user: links to files of other users may be forbidden where links to the user's own are not.
    pub fn mark_unsupported(&self, error: &io::Error, own: bool) {
        if applies_to_all_files(error, own) && !self.is_unsupported() {
            UNSUPPORTED.lock().unwrap_or_else(PoisonError::into_inner).push(*self);
        }
    }
}

fn applies_to_all_files(error: &io::Error, own: bool) -> bool {
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
    fn a_refusal_of_one_file_does_not_apply_to_all() {
        // No such mount exists, so the shared memory of it does not affect other tests.
        let nowhere = Mount { device: (u32::MAX, 7), mount: u64::MAX };
        let route = |link| LinkRoute { link, from: nowhere, to: nowhere };
        for (errno, own) in
            [(Errno::MLINK, true), (Errno::PERM, false), (Errno::INVAL, true), (Errno::NOSPC, true)]
        {
            route(LinkKind::Hardlink).mark_unsupported(&errno.into(), own);
            assert!(!route(LinkKind::Hardlink).is_unsupported(), "{errno}");
        }
        route(LinkKind::Hardlink).mark_unsupported(&Errno::PERM.into(), true);
        assert!(route(LinkKind::Hardlink).is_unsupported() && !route(LinkKind::Reflink).is_unsupported());
    }
}
