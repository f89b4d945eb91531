//! Catalog of a remote: its objects, according to its pack indexes.
//!
//! Indexes never change, so that each is read once and cached.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    fs::Sync,
    path::RepoPath,
    remote::{PARALLEL, Remote, cache_folder},
    repo::Repo,
    store::{Index, Kind, Row},
};

/// The pack indexes of a remote, except those whose pack is missing.
pub struct Catalog {
    indexes: BTreeMap<Digest, Index>,
    /// Packs that have an index but no longer exist.
    pub lost_packs: Vec<Digest>,
}

impl Catalog {
    /// Lists the indexes of a remote and reads those that are not cached.
    pub fn load(repo: &Repo, remote: &Remote) -> Result<Self> {
        let (root, folder) = cache_folder(repo, remote);
        let names = remote.wait("list", list(&remote.operator, "v1/indexes/"))?;
        // Listed after the indexes: a pack is written before its index.
        let packs = remote.wait("list", list(&remote.operator, "v1/packs/"))?;
        let (names, lost_packs): (Vec<_>, Vec<_>) = names.into_iter().partition(|it| packs.contains(it));
        let mut indexes = BTreeMap::new();
        let mut missing = Vec::new();
        for name in names {
            let known = root.read_if_exists(&folder.join(name.hex().as_bytes())?)?;
            match known.and_then(|bytes| Index::parse(bytes).ok()) {
                Some(index) => drop(indexes.insert(name, index)),
                None => missing.push(name),
            }
        }
        let read = stream::iter(missing).map(|name| async move {
            let bytes = remote.operator.read(&format!("v1/indexes/{}", name.hex())).await?;
            Ok::<_, opendal::Error>((name, bytes.to_vec()))
        });
        let read: Vec<_> = remote.wait("read", read.buffer_unordered(PARALLEL).try_collect())?;
        for (name, bytes) in read {
            let index = Index::parse(bytes)
                .context(|| format!("the index {} at {}", name.short(), remote.location))?;
            root.write(&folder.join(name.hex().as_bytes())?, index.bytes(), Sync::Later)?;
            indexes.insert(name, index);
        }
        Ok(Self { indexes, lost_packs })
    }

    /// Returns the pack and the row of an object of one of these kinds.
    pub fn find(&self, digest: &Digest, kinds: &[Kind]) -> Option<(Digest, Row)> {
        self.indexes.iter().find_map(|(pack, index)| Some((*pack, index.find(digest, kinds)?)))
    }

    /// Returns all copies of an object: the same run may have been recorded more than once.
    pub fn find_all(&self, digest: &Digest, kind: Kind) -> Vec<(Digest, Row)> {
        self.indexes.iter().filter_map(|(pack, index)| Some((*pack, index.find(digest, &[kind])?))).collect()
    }

    /// Returns true if the remote has the bytes of a file, whole or in chunks.
    pub fn has_content(&self, digest: &Digest) -> bool {
        self.find(digest, &[Kind::Content, Kind::Tree, Kind::Chunks]).is_some()
    }

    /// Adds the index of a pack that was just written to the remote.
    pub fn insert(&mut self, name: Digest, index: Vec<u8>) -> Result<()> {
        self.indexes.insert(name, Index::parse(index)?);
        Ok(())
    }
}

async fn list(operator: &opendal::Operator, folder: &str) -> opendal::Result<BTreeSet<Digest>> {
    match operator.list(folder).await {
        Ok(found) => Ok(found.iter().filter_map(|entry| Digest::from_hex(entry.name()).ok()).collect()),
        Err(error) if error.kind() == opendal::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Returns the path of a pack at the remote.
pub fn pack_path(name: &Digest) -> String {
    format!("v1/packs/{}", name.hex())
}

/// Returns the path of a pack index at the remote.
pub fn index_path(name: &Digest) -> String {
    format!("v1/indexes/{}", name.hex())
}

/// Returns the path of a list of roots at the remote.
pub fn roots_path(name: &Digest) -> String {
    format!("v1/roots/{}", name.hex())
}

/// Returns the local path of a large file that is only partly fetched.
pub fn partial_path(digest: &Digest) -> Result<RepoPath> {
    RepoPath::from_text(&format!("incoming/{}", digest.hex()))
}
