//! Lists of the chunks of large files at a remote, as far as this clone knows them.
//!
//! A list does not prove that its chunks are there: the pack that had them may have been lost since. Lists
//! that a push or a fetch has handled are kept in the cache of the remote, so that they are compared with its
//! indexes without a request.

use std::collections::{BTreeMap, HashSet};

use crate::{
    digest::Digest,
    error::Result,
    fs::Sync,
    path::RepoPath,
    progress::Progress,
    remote::{Remote, cache_folder, catalog::Catalog, read::ObjectReader},
    repo::Repo,
    store::{
        Kind,
        chunks::{self, Chunk},
    },
};

/// Keeps the encoded list of the chunks of a file.
pub fn remember(repo: &Repo, remote: &Remote, file: &Digest, list: &[u8]) -> Result<()> {
    cache_folder(repo, remote).0.write(&path(repo, remote, file)?, list, Sync::Later)
}

/// Returns those of these files, given with their sizes, of which the remote has lists, but by none of them
/// all chunks. Lists that this clone does not know are read.
pub fn incomplete(
    repo: &Repo,
    remote: &Remote,
    catalog: Catalog,
    files: &BTreeMap<Digest, u64>,
    progress: &dyn Progress,
) -> Result<(Catalog, HashSet<Digest>)> {
    let (mut found, mut unread) = (HashSet::new(), Vec::new());
    for (file, size) in files {
        let places = || catalog.places(file, &[Kind::Chunks]);
        let known = cache_folder(repo, remote).0.read_if_exists(&path(repo, remote, file)?)?;
        // The pack that had a list may be lost, too.
        let is_there = |list: &[u8]| places().any(|place| catalog.at(place).1.size == list.len() as u64);
        if known.is_none_or(|list| !is_there(&list) || !is_complete(&catalog, &list, *size)) {
            unread.extend(places());
            found.insert(*file);
        }
    }
    if unread.is_empty() {
        return Ok((catalog, found));
    }
    let mut lists = Vec::new();
    let mut reader = ObjectReader::new(remote, catalog, progress);
    reader.read(unread, &mut |row, object| {
        lists.push((row.digest, object.bytes.to_vec()));
        Ok(())
    })?;
    let catalog = reader.catalog;
    for (file, list) in lists {
        if is_complete(&catalog, &list, files[&file]) && found.remove(&file) {
            remember(repo, remote, &file, &list)?;
        }
    }
    Ok((catalog, found))
}

fn path(repo: &Repo, remote: &Remote, file: &Digest) -> Result<RepoPath> {
    cache_folder(repo, remote).1.join(b"chunks")?.join(file.hex().as_bytes())
}

/// Returns true if a list gives a file of this size, and all of its chunks are there; also for one of a newer
/// mlx.
fn is_complete(catalog: &Catalog, list: &[u8], size: u64) -> bool {
    let has = |chunk: &Chunk| {
        let row = catalog.find(&chunk.digest, &[Kind::Content]);
        row.is_some_and(|(_, row)| row.size == chunk.length)
    };
    let gives_file = |list: Vec<Chunk>| {
        list.iter().map(|chunk| u128::from(chunk.length)).sum::<u128>() == u128::from(size)
            && list.iter().all(has)
    };
    chunks::decode(list).map_or_else(|_| chunks::is_newer(list), gives_file)
}
