//! Clears what killed pushes left at a remote: packs without an index and unfinished temporary files.
//!
//! Ages are measured by the remote's own clock, as the clocks of clones may be wrong. An age is read right
//! before a file goes: a push that sends an old pack again makes it young.

use std::time::Duration;

use opendal::ErrorKind;

use crate::{
    error::Result,
    remote::{
        Remote,
        catalog::{Catalog, pack_path},
    },
};

/// Age beyond which no push can still be at work on a file.
const MAX_AGE: Duration = Duration::from_hours(14 * 24);
/// File that is written to learn the remote's time.
const CLOCK: &str = "v1/tmp/clock";

/// Deletes leftovers older than two weeks. Returns their number.
pub fn clear(remote: &Remote, catalog: &Catalog) -> Result<u64> {
    let packs = catalog.packs_without_index.iter().filter(|pack| catalog.index(pack).is_none());
    let paths: Vec<_> = packs.map(pack_path).chain(catalog.temporary_files.iter().cloned()).collect();
    if paths.is_empty() {
        return Ok(0);
    }
    remote.write(CLOCK, Vec::new())?;
    let Some(now) = modified(remote, CLOCK)? else { return Ok(0) };
    let mut cleared = 0;
    for path in paths {
        if modified(remote, &path)?.is_some_and(|then| now - then > MAX_AGE.as_secs().cast_signed()) {
            remote.delete(&path)?;
            cleared += 1;
        }
    }
    remote.delete(CLOCK)?;
    Ok(cleared)
}

/// Returns when a file was last written, in seconds since 1970 by the remote's clock; `None` if it is gone.
fn modified(remote: &Remote, path: &str) -> Result<Option<i64>> {
    let stat = async {
        match remote.operator.stat(path).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            stat => Ok(stat?.last_modified().map(|time| time.into_inner().as_second())),
        }
    };
    remote.wait("read", stat)
}
