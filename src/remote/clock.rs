//! Ages of the files at a remote, by its own clock: the clocks of clones may be wrong.

use std::time::Duration;

use opendal::ErrorKind;

use crate::{
    digest::Digest,
    error::{Error, Result},
    fs,
    remote::{Remote, catalog::pack_path},
};

/// Age up to which a pack without an index is used.
const MAX_USED_AGE: Duration = Duration::from_hours(7 * 24);

/// A file at a remote: when it was last written, in seconds since 1970 by the remote's clock, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileTime {
    pub modified: i64,
    pub bytes: u64,
}

/// Returns the remote's time, in seconds since 1970: that of a file which is written for this.
pub fn now(remote: &Remote) -> Result<i64> {
    let path = format!("v1/tmp/clock-{}-{:x}", std::process::id(), fs::coarse_now());
    remote.write(&path, opendal::Buffer::new())?;
    let time = stat(remote, &path)?;
    remote.delete(&path)?;
    let unknown = || Error::not_found(format!("{} tells no times of its files", remote.location));
    time.map(|time| time.modified).ok_or_else(unknown)
}

/// Returns when a file was last written; `None` if it is gone.
pub fn stat(remote: &Remote, path: &str) -> Result<Option<FileTime>> {
    let stat = async {
        match remote.operator.stat(path).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            stat => stat.map(|stat| Some((stat.last_modified(), stat.content_length()))),
        }
    };
    let stat = remote.wait("read", stat)?;
    Ok(stat.and_then(|(time, bytes)| Some(FileTime { modified: time?.into_inner().as_second(), bytes })))
}

/// Returns true if a pack without an index may get one: it is younger than a week by the remote's clock. An
/// older one, and one that has just gone, may be in the hands of a command that clears leftovers, and so may
/// be whatever has its name.
pub fn is_kept(remote: &Remote, pack: &Digest) -> Result<bool> {
    let Some(file) = stat(remote, &pack_path(pack))? else { return Ok(false) };
    Ok(now(remote)? - file.modified < MAX_USED_AGE.as_secs().cast_signed())
}
