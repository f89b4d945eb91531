//! Makes read-only folders writable: of outputs that stages left so, which are about to be replaced.

use rustix::fs::{self, Mode};

use crate::{
    error::Result,
    fs::{Dir, FileKind, Root},
    path::RepoPath,
};

impl Dir {
    /// Makes this folder writable for its owner. A failure shows when something in it is to be changed.
    pub(super) fn make_writable(&self) {
        let mode = fs::fstat(self.fd()).map_or(0o700, |stat| stat.st_mode & 0o7777);
        if mode & 0o300 != 0o300 {
            let _shows_later = fs::fchmod(self.fd(), Mode::from_raw_mode(mode | 0o700));
        }
    }

    fn make_all_writable(&self) -> Result<()> {
        self.make_writable();
        for (name, kind) in self.names()? {
            if kind.is_dir() {
                self.open_dir(&name)?.make_all_writable()?;
            }
        }
        Ok(())
    }
}

impl Root {
    /// Makes a folder and all folders in it writable for their owner; does nothing for a file.
    pub fn make_folders_writable(&self, path: &RepoPath) -> Result<()> {
        match self.stat(path)? {
            Some(stat) if stat.kind == FileKind::Folder => self.dir(path)?.make_all_writable(),
            _ => Ok(()),
        }
    }
}
