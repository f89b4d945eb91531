//! What a remote has: its pack indexes, read once each, since their names never change.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    digest::Digest,
    error::{Doing, Result},
    fs::Sync,
    path::RepoPath,
    remote::{PARALLEL, Remote, cache_folder},
    repo::Repo,
    store::{Index, Kind, Row},
};

/// The indexes of a remote, but for those whose pack is gone.
pub struct Catalog {
    indexes: BTreeMap<Digest, Index>,
    /// Packs that an index speaks of and that are no longer there.
    pub lost_packs: Vec<Digest>,
}

impl Catalog {
    /// Lists the names of indexes and reads those that are new here.
    pub fn load(repo: &Repo, remote: &Remote) -> Result<Self> {
        let (root, folder) = cache_folder(repo, remote);
        let names = remote.wait("list", list(&remote.operator, "v1/indexes/"))?;
        // Listed after the indexes, since a pack comes before its index.
        let packs = remote.wait("list", list(&remote.operator, "v1/packs/"))?;
        let (names, lost_packs): (Vec<_>, Vec<_>) = names.into_iter().partition(|it| packs.contains(it));
        let mut indexes = BTreeMap::new();
        let mut missing = Vec::new();
        for name in names {
            let known = root.read_if_there(&folder.join(name.hex().as_bytes())?)?;
            match known.and_then(|it| Index::parse(it).ok()) {
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
            let index =
                Index::parse(bytes).doing(|| format!("the index {} at {}", name.short(), remote.location))?;
            root.write(&folder.join(name.hex().as_bytes())?, index.bytes(), Sync::Later)?;
            indexes.insert(name, index);
        }
        Ok(Self { indexes, lost_packs })
    }

    /// Where the remote has an object of one of these kinds.
    pub fn find(&self, digest: &Digest, kinds: &[Kind]) -> Option<(Digest, Row)> {
        self.indexes.iter().find_map(|(pack, index)| Some((*pack, index.find(digest, kinds)?)))
    }

    /// All places that the remote has a record at: the same run may have been made more than once.
    pub fn find_all(&self, digest: &Digest, kind: Kind) -> Vec<(Digest, Row)> {
        self.indexes.iter().filter_map(|(pack, index)| Some((*pack, index.find(digest, &[kind])?))).collect()
    }

    /// Whether the remote has a file's bytes, whole or in chunks.
    pub fn has_content(&self, digest: &Digest) -> bool {
        self.find(digest, &[Kind::Content, Kind::Tree, Kind::Chunks]).is_some()
    }

    /// Takes in a pack that was just written there.
    pub fn insert(&mut self, name: Digest, index: Vec<u8>) -> Result<()> {
        self.indexes.insert(name, Index::parse(index)?);
        Ok(())
    }
}

async fn list(operator: &opendal::Operator, folder: &str) -> opendal::Result<BTreeSet<Digest>> {
    match operator.list(folder).await {
        Ok(found) => Ok(found.iter().filter_map(|it| Digest::from_hex(it.name()).ok()).collect()),
        Err(error) if error.kind() == opendal::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// The file of a pack there.
pub fn pack_path(name: &Digest) -> String {
    format!("v1/packs/{}", name.hex())
}

/// The file of an index there.
pub fn index_path(name: &Digest) -> String {
    format!("v1/indexes/{}", name.hex())
}

/// The file of a list of roots there.
pub fn roots_path(name: &Digest) -> String {
    format!("v1/roots/{}", name.hex())
}

/// Part of a file of a large object that has arrived so far.
pub fn partial_path(digest: &Digest) -> Result<RepoPath> {
    RepoPath::from_text(&format!("incoming/{}", digest.hex()))
}
