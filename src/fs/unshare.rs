//! Unsharing: replaces a file that is linked to stored bytes with a writable copy of its own.

use std::io::{self, BufReader, Seek as _};

use rustix::fs::{self, AtFlags};

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::{Dir, File, FileStat, Mode, Sync},
    path::escape_bytes,
};

const BUFFER_SIZE: usize = 1 << 20;

impl Dir {
    /// Returns true if a file has no other hard link and its owner may write to it.
    pub fn is_private(&self, name: &[u8]) -> Result<bool> {
        let stat = fs::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from);
        let stat = stat.context(|| format!("cannot stat `{}`", escape_bytes(name)))?;
        Ok(stat.st_nlink == 1 && stat.st_mode & 0o200 != 0)
    }

    /// Replaces the file `name` with a copy of `from`, sharing blocks where the file system can. If the file
    /// is no longer as in `before`, it is kept and the result is a conflict.
    pub fn unshare(&self, name: &[u8], before: &FileStat, mut from: File, mode: Mode) -> Result<()> {
        let context = || format!("cannot copy `{}`", escape_bytes(name));
        let mut temp = self.create(mode.bits())?;
        if !temp.reflink_from(&from) {
            from.rewind()
                .and_then(|()| io::copy(&mut BufReader::with_capacity(BUFFER_SIZE, from), &mut temp))
                .context(context)?;
        }
        if self.stat(name)?.as_ref() != Some(before) {
            let error = Error::new(
                Kind::Conflict,
                format!("`{}` changed while it was being copied", escape_bytes(name)),
            );
            return Err(error.hint("wait until nothing writes to it, then try again"));
        }
        temp.publish(name, Sync::Later)
    }
}
