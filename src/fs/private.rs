//! Files that share their bytes with others, and how they come to have their own.

use std::io::{self, BufReader, Seek as _};

use rustix::fs::{self, AtFlags};

use crate::{
    error::{Doing, Error, Kind, Result},
    fs::{Dir, File, Mode, Stamp, Sync},
    path::show,
};

const PIECE: usize = 1 << 20;

impl Dir {
    /// Whether a file has no other name and its owner may write to it.
    pub fn is_private(&self, name: &[u8]) -> Result<bool> {
        let stat = fs::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from);
        let stat = stat.doing(|| format!("cannot look at `{}`", show(name)))?;
        Ok(stat.st_nlink == 1 && stat.st_mode & 0o200 != 0)
    }

    /// Puts a copy of `from` in the place of `name`, which is as `before` or stays as it is.
    pub fn make_private(&self, name: &[u8], before: &Stamp, mut from: File, mode: Mode) -> Result<()> {
        let doing = || format!("cannot copy `{}`", show(name));
        let mut temp = self.create(mode.bits())?;
        if !temp.share(&from) {
            from.rewind()
                .and_then(|()| io::copy(&mut BufReader::with_capacity(PIECE, from), &mut temp))
                .doing(doing)?;
        }
        if self.stamp(name)?.as_ref() != Some(before) {
            let error = Error::new(Kind::Conflict, format!("`{}` changed while it was copied", show(name)));
            return Err(error.hint("wait until nothing writes to it, then try again"));
        }
        temp.publish(name, Sync::Later)
    }
}
