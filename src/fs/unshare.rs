//! Unsharing: replaces a file that is linked to stored bytes with a writable copy of its own.

use std::io::{self, BufReader, Seek as _};

use rustix::fs::{self, AtFlags};

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::{Dir, Exchange, File, FileStat, Mode, TempName},
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
        let (copy, placed) = temp.leave()?;
        let mut copy = TempName::new(self, copy);
        copy.begin_exchange(name)?;
        // The time of the last change of the metadata is that of the exchange.
        let key = |stat: &FileStat| (stat.kind, stat.inode, stat.size, stat.mtime);
        let same = |stat: Option<FileStat>| stat.as_ref().map(key) == Some(key(before));
        let done = match self.exchange(copy.name(), name)? {
            Exchange::Done => {
                // What came out may be a file that the user saved since.
                copy.ours = same(self.stat(copy.name())?);
                copy.ours || !copy.put_back(name, Some(placed))?
            }
            Exchange::Unsupported if same(self.stat(name)?) => {
                self.rename(copy.name(), self, name)?;
                copy.ours = false;
                true
            }
            Exchange::Unsupported | Exchange::Missing => false,
        };
        if done {
            return Ok(());
        }
        let message = format!("`{}` changed while it was being copied", escape_bytes(name));
        Err(Error::new(Kind::Conflict, message).hint("wait until nothing writes to it, then try again"))
    }
}
