//! Clears what killed pushes left at a remote: packs without an index and unfinished temporary files.
//!
//! Ages are measured by the remote's own clock, as the clocks of clones may be wrong. An age is read right
//! before a file goes: a push that sends an old pack again makes it young.

use std::time::Duration;

use opendal::ErrorKind;

use crate::{
    error::{Error, Result},
    fs::Sync,
    remote::{
        Remote, cache_folder,
        catalog::{Catalog, pack_path, replaced_path},
        merge::remove_replaced,
    },
    repo::Repo,
    time::Timestamp,
};

/// Age beyond which no push can still be at work on a file.
const MAX_AGE: Duration = Duration::from_hours(14 * 24);
/// File that is written to learn the remote's time.
const CLOCK: &str = "v1/tmp/clock";

/// Deletes leftovers older than two weeks, and packs that others replaced as long ago.
pub fn clear(repo: &Repo, remote: &Remote, catalog: &Catalog) -> Result<()> {
    let packs = catalog.packs_without_index.iter().filter(|pack| catalog.index(pack).is_none());
    let paths: Vec<_> = packs.map(pack_path).chain(catalog.temporary_files.iter().cloned()).collect();
    if paths.is_empty() && catalog.replaced_lists.is_empty() {
        return Ok(());
    }
    // Once a day is enough for a clone.
    let (root, folder) = cache_folder(repo, remote);
    let (checked, today) = (folder.join(b"leftovers-checked")?, Timestamp::now().day());
    if root.read_if_exists(&checked)?.as_deref() == Some(today.as_bytes()) {
        return Ok(());
    }
    root.write(&checked, today.as_bytes(), Sync::Later)?;
    remote.write(CLOCK, opendal::Buffer::new())?;
    let Some(now) = modified(remote, CLOCK)? else { return Ok(()) };
    let is_old = |path: &str| {
        let then = modified(remote, path)?;
        Ok::<_, Error>(then.is_some_and(|then| now - then > MAX_AGE.as_secs().cast_signed()))
    };
    for path in paths {
        if is_old(&path)? {
            remote.delete(&path)?;
        }
    }
    for list in catalog.replaced_lists.keys() {
        if is_old(&replaced_path(list))? {
            remove_replaced(repo, remote, catalog, list)?;
        }
    }
    remote.delete(CLOCK)
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
