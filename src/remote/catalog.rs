//! Catalog of a remote: its objects, according to its pack indexes.
//!
//! Indexes never change, so that each is read once and cached.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    fs::{Root, Sync},
    path::RepoPath,
    remote::{Access, PACKS, PARALLEL, Remote, cache_folder, clock::is_kept},
    repo::Repo,
    store::{Index, Kind, Lookup, Row},
};

/// Place of an object at a remote. Places sort as the objects lie in the packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of the pack.
    pub pack: u32,
    /// Offset in the pack, in bytes.
    pub offset: u64,
    /// Number of the row in the pack's index.
    pub row: u32,
}

/// The pack indexes of a remote, except those whose pack is missing.
pub struct Catalog {
    indexes: BTreeMap<Digest, Index>,
    /// Over the packs that were there when the catalog was loaded.
    lookup: OnceCell<Lookup>,
    /// Packs that were added since.
    added: Vec<Digest>,
    /// Packs that have or had an index but no longer exist, or whose index and end are damaged.
    pub lost_packs: Vec<Digest>,
    /// Those of them that exist, but of which neither the index nor the end can be read.
    pub unreadable_packs: BTreeSet<Digest>,
    /// Packs whose indexes were missing or damaged when the catalog was loaded.
    pub repaired_indexes: BTreeSet<Digest>,
    /// Packs in which a reader found damage.
    pub damaged_packs: BTreeSet<Digest>,
    /// Lists of the digests that pushes asked to keep, each with the time at which it was written, in seconds
    /// since 1970 by the remote's clock.
    pub root_lists: BTreeMap<Digest, i64>,
    /// Packs whose push has not written the index, or never will.
    pub packs_without_index: BTreeSet<Digest>,
    /// Paths of files that were being written.
    pub temporary_files: Vec<String>,
    /// Lists of packs that others replaced, by the digest of the list, if these others are there.
    pub replaced_lists: BTreeMap<Digest, ReplacedPacks>,
}

/// Packs that a merge replaced, and those that have their objects now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReplacedPacks {
    pub packs: BTreeSet<Digest>,
    pub by: BTreeSet<Digest>,
}

impl ReplacedPacks {
    /// Formats the list as it is stored at the remote.
    pub fn to_text(&self) -> String {
        let by = self.by.iter().map(|name| format!("by {name}\n"));
        by.chain(self.packs.iter().map(|name| format!("{name}\n"))).collect()
    }

    fn parse(text: &str) -> Self {
        let digests = |lines: Vec<&str>| lines.into_iter().filter_map(|line| line.parse().ok()).collect();
        let by = text.lines().filter_map(|line| line.strip_prefix("by ")).collect();
        Self { packs: digests(text.lines().collect()), by: digests(by) }
    }
}

/// Names of the files at a remote.
#[derive(Default)]
struct Listing {
    indexes: BTreeSet<Digest>,
    packs: BTreeSet<Digest>,
    damaged: BTreeSet<Digest>,
    roots: BTreeMap<Digest, i64>,
    replaced: BTreeSet<Digest>,
    temporary: Vec<String>,
}

impl Catalog {
    /// Lists the files of a remote and reads the indexes that are not cached. A damaged index is read from
    /// the end of its pack and, for writing, written again.
    pub fn load(repo: &Repo, remote: &Remote, access: Access) -> Result<Self> {
        let (root, folder) = cache_folder(repo, remote);
        // Before the listing: another process of this clone may push meanwhile.
        let known = cached_indexes(root, &folder)?;
        let listing = remote.wait("list", list(&remote.operator))?;
        let replaced = cached_texts(repo, remote, "replaced", listing.replaced.into_iter())?;
        let mut catalog = Self {
            indexes: BTreeMap::new(),
            lookup: OnceCell::new(),
            added: Vec::new(),
            lost_packs: Vec::new(),
            unreadable_packs: BTreeSet::new(),
            repaired_indexes: BTreeSet::new(),
            damaged_packs: listing.damaged,
            root_lists: listing.roots,
            packs_without_index: listing.packs.difference(&listing.indexes).copied().collect(),
            temporary_files: listing.temporary,
            replaced_lists: replaced
                .into_iter()
                .map(|(name, text)| (name, ReplacedPacks::parse(&text)))
                .collect(),
        };
        let complete = &listing.indexes & &listing.packs;
        catalog.replaced_lists.retain(|_, list| list.by.is_subset(&complete));
        let replaced: BTreeSet<Digest> =
            catalog.replaced_lists.values().flat_map(|list| &list.packs).copied().collect();
        let mut unread = Vec::new();
        for name in listing.indexes.difference(&replaced).copied() {
            let known = root.read_if_exists(&folder.join(name.hex().as_bytes())?)?;
            // It may have arrived while the listing was under way.
            if !listing.packs.contains(&name) && !remote.exists(&pack_path(&name))? {
                catalog.lost_packs.push(name);
            } else if let Some(index) = known.and_then(|bytes| Index::parse(bytes).ok()) {
                catalog.indexes.insert(name, index);
            } else {
                unread.push(name);
            }
        }
        let read = stream::iter(unread).map(|name| async move {
            let bytes = remote.operator.read(&index_path(&name)).await?;
            Ok::<_, opendal::Error>((name, bytes.to_vec()))
        });
        let read: Vec<_> = remote.wait("read", read.buffer_unordered(PARALLEL).try_collect())?;
        for (name, bytes) in read {
            let Some(index) = intact_index(remote, &name, bytes.clone(), access)? else {
                catalog.lost_packs.push(name);
                catalog.unreadable_packs.insert(name);
                continue;
            };
            if bytes != index.bytes()[..] {
                catalog.repaired_indexes.insert(name);
            }
            root.write(&folder.join(name.hex().as_bytes())?, index.bytes(), Sync::Later)?;
            catalog.indexes.insert(name, index);
        }
        let is_expected = |name: &Digest| listing.indexes.contains(name) || replaced.contains(name);
        let vanished = known.into_iter().filter(|name| !is_expected(name)).collect();
        catalog.add_vanished(repo, remote, access, vanished)?;
        Ok(catalog)
    }

    /// Finds indexes that the remote had when this clone last saw it, and that are gone. If the pack is still
    /// there, its index serves and, for writing, is written again. If all objects are elsewhere, it was
    /// replaced. Otherwise it is lost.
    fn add_vanished(
        &mut self,
        repo: &Repo,
        remote: &Remote,
        access: Access,
        names: Vec<Digest>,
    ) -> Result<()> {
        let (root, folder) = cache_folder(repo, remote);
        let mut vanished = Vec::new();
        for name in names {
            let cached = root.read_if_exists(&folder.join(name.hex().as_bytes())?)?;
            let Some(Ok(index)) = cached.map(Index::parse) else { continue };
            let is_there = self.packs_without_index.contains(&name);
            if is_there && (access == Access::Read || may_be_indexed(remote, &name)?) {
                if access == Access::Write {
                    remote.write(&index_path(&name), index.bytes().clone())?;
                }
                self.packs_without_index.remove(&name);
                self.repaired_indexes.insert(name);
                self.indexes.insert(name, index);
            } else {
                vanished.push((name, index));
            }
        }
        for (name, index) in vanished {
            if index.rows().all(|row| self.find(&row.digest, &[row.kind]).is_some()) {
                forget_index(repo, remote, &name)?;
            } else {
                self.lost_packs.push(name);
            }
        }
        Ok(())
    }

    /// Reads the index of a pack that the catalog leaves out; `None` if it is gone.
    pub fn read_index(repo: &Repo, remote: &Remote, pack: &Digest) -> Result<Option<Index>> {
        let (root, folder) = cache_folder(repo, remote);
        let known = root.read_if_exists(&folder.join(pack.hex().as_bytes())?)?;
        if let Some(index) = known.and_then(|bytes| Index::parse(bytes).ok()) {
            return Ok(Some(index));
        }
        remote.read_if_there(&index_path(pack))?.map(Index::parse).transpose()
    }

    /// Forgets a pack that is being replaced.
    pub fn remove(&mut self, pack: &Digest) {
        self.indexes.remove(pack);
    }

    /// Returns the digests of all files of which the remote has a list of chunks.
    pub fn large_files(&self) -> BTreeSet<Digest> {
        let rows = self.indexes.values().flat_map(Index::rows);
        rows.filter(|row| row.kind == Kind::Chunks).map(|row| row.digest).collect()
    }

    /// Returns the names of all packs that have an index.
    pub fn packs(&self) -> impl Iterator<Item = &Digest> {
        self.indexes.keys()
    }

    /// Returns the index of a pack.
    pub fn index(&self, pack: &Digest) -> Option<&Index> {
        self.indexes.get(pack)
    }

    /// Returns the pack and the row of an object of one of these kinds.
    pub fn find(&self, digest: &Digest, kinds: &[Kind]) -> Option<(Digest, Row)> {
        self.copies(digest, kinds).next()
    }

    fn copies(&self, digest: &Digest, kinds: &[Kind]) -> impl Iterator<Item = (Digest, Row)> {
        let lookup = self.lookup();
        let packs = lookup.find(digest).map(|number| lookup.pack(number)).chain(&self.added);
        packs.filter_map(|pack| Some((*pack, self.indexes.get(pack)?.find(digest, kinds)?)))
    }

    fn lookup(&self) -> &Lookup {
        self.lookup.get_or_init(|| Lookup::new(self.indexes.iter()))
    }

    /// Returns the places of all copies of an object in the packs that were there when the catalog was
    /// loaded: the same run may have been recorded more than once, and a list of chunks may be wrong.
    pub fn places(&self, digest: &Digest, kinds: &[Kind]) -> impl Iterator<Item = Place> {
        let lookup = self.lookup();
        let packs = lookup.find(digest);
        let indexes = packs.filter_map(move |pack| Some((pack, self.indexes.get(lookup.pack(pack))?)));
        indexes.flat_map(move |(pack, index)| {
            let found = index.find_all(digest, kinds);
            found.map(move |(row, found)| Place { pack, offset: found.offset, row: row as u32 })
        })
    }

    /// Returns the pack and the row of the object at a place.
    pub fn at(&self, place: Place) -> (Digest, Row) {
        let pack = *self.lookup().pack(place.pack);
        let row = self.indexes[&pack].row(place.row as usize);
        (pack, row.expect("all rows were read when the index was"))
    }

    /// Returns true if the remote has the bytes of a file, whole or in chunks. If packs were lost, a list of
    /// chunks does not prove that the chunks exist.
    pub fn has_content(&self, digest: &Digest) -> bool {
        let proofs = [Kind::Content, Kind::Tree, Kind::Chunks];
        let proofs = if self.lost_packs.is_empty() { &proofs[..] } else { &proofs[..2] };
        self.find(digest, proofs).is_some()
    }

    /// Returns true if the remote has an object that a page may name: its bytes, or a list of its chunks.
    pub fn has_object(&self, digest: &Digest) -> bool {
        self.find(digest, &[Kind::Content, Kind::Tree, Kind::Chunks]).is_some()
    }

    /// Adds the index of a pack that was just written to the remote, here and to the cache.
    pub fn insert(&mut self, repo: &Repo, remote: &Remote, name: Digest, index: Bytes) -> Result<()> {
        let (root, folder) = cache_folder(repo, remote);
        root.write(&folder.join(name.hex().as_bytes())?, &index, Sync::Later)?;
        // The lookup may not be there yet, and is of the packs before.
        self.lookup();
        self.indexes.insert(name, Index::parse(index)?);
        self.added.push(name);
        Ok(())
    }
}

/// Returns true if a pack without an index may get one: it is kept, and intact.
fn may_be_indexed(remote: &Remote, pack: &Digest) -> Result<bool> {
    let is_intact = |bytes: Vec<u8>| Digest::of(&bytes) == *pack;
    Ok(is_kept(remote, pack)? && remote.read_if_there(&pack_path(pack))?.is_some_and(is_intact))
}

/// Returns the names of the packs whose indexes are cached.
fn cached_indexes(root: &Root, folder: &RepoPath) -> Result<Vec<Digest>> {
    if root.stat(folder)?.is_none() {
        return Ok(Vec::new());
    }
    let digest = |name: &[u8]| Digest::from_hex(std::str::from_utf8(name).ok()?).ok();
    Ok(root.dir(folder)?.names()?.iter().filter_map(|(name, _)| digest(name)).collect())
}

/// Removes an index from the cache.
pub fn forget_index(repo: &Repo, remote: &Remote, pack: &Digest) -> Result<()> {
    let (root, folder) = cache_folder(repo, remote);
    root.remove(&folder.join(pack.hex().as_bytes())?)
}

/// Reads texts `v1/KIND/HEX`, which never change, and caches them. A damaged one is left out.
pub fn cached_texts(
    repo: &Repo,
    remote: &Remote,
    kind: &str,
    names: impl Iterator<Item = Digest>,
) -> Result<BTreeMap<Digest, String>> {
    let (root, folder) = cache_folder(repo, remote);
    let (mut texts, mut unread) = (Vec::new(), Vec::new());
    let is_intact = |name: &Digest, bytes: &Vec<u8>| Digest::of(bytes) == *name;
    let cached = |name: &Digest| folder.join(format!("{kind}-{}", name.hex()).as_bytes());
    for name in names {
        match root.read_if_exists(&cached(&name)?)?.filter(|bytes| is_intact(&name, bytes)) {
            Some(bytes) => texts.push((name, bytes)),
            None => unread.push(name),
        }
    }
    let reads = stream::iter(unread).map(|name| async move {
        match remote.operator.read(&format!("v1/{kind}/{}", name.hex())).await {
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => Ok((name, Vec::new())),
            read => read.map(|bytes| (name, bytes.to_vec())),
        }
    });
    let read: Vec<_> = remote.wait("read", reads.buffer_unordered(PARALLEL).try_collect())?;
    for (name, bytes) in read.into_iter().filter(|(name, bytes)| is_intact(name, bytes)) {
        root.write(&cached(&name)?, &bytes, Sync::Later)?;
        texts.push((name, bytes));
    }
    Ok(texts.into_iter().map(|(name, bytes)| (name, String::from_utf8_lossy(&bytes).into_owned())).collect())
}

/// Returns the index of a pack from its file or, if that is damaged, from the end of the pack; `None` if
/// neither is intact.
fn intact_index(remote: &Remote, name: &Digest, bytes: Vec<u8>, access: Access) -> Result<Option<Index>> {
    let is_newer = Index::is_newer(&bytes);
    let parsed = Index::parse(bytes);
    if parsed.is_ok() || is_newer {
        return parsed.map(Some).context(|| format!("the index {} at {}", name.short(), remote.location));
    }
    let pack = remote.read_if_there(&pack_path(name))?.unwrap_or_default();
    let Some(index) =
        Some(&pack).filter(|pack| Digest::of(pack) == *name).and_then(|pack| Index::from_pack(pack).ok())
    else {
        return Ok(None);
    };
    if access == Access::Write {
        remote.write(&index_path(name), index.bytes().clone())?;
    }
    Ok(Some(index))
}

async fn list(operator: &opendal::Operator) -> opendal::Result<Listing> {
    let mut listing = Listing::default();
    let entries = match operator.list_with("v1/").recursive(true).await {
        Err(error) if error.kind() == opendal::ErrorKind::NotFound => return Ok(listing),
        entries => entries?,
    };
    for entry in entries {
        let Some((folder, name)) = entry.path().strip_prefix("v1/").and_then(|path| path.split_once('/'))
        else {
            continue;
        };
        if folder == "tmp" && !name.is_empty() {
            listing.temporary.push(entry.path().to_owned());
        }
        let Ok(name) = Digest::from_hex(name) else { continue };
        match folder {
            "indexes" => drop(listing.indexes.insert(name)),
            "packs" => drop(listing.packs.insert(name)),
            "replaced" => drop(listing.replaced.insert(name)),
            "roots" => {
                let modified = entry.metadata().last_modified().map(|time| time.into_inner().as_second());
                // An unknown time is that of a list which is being written.
                listing.roots.insert(name, modified.unwrap_or(i64::MAX));
            }
            "damaged" => drop(listing.damaged.insert(name)),
            _ => {}
        }
    }
    Ok(listing)
}

/// Returns the path of a pack at the remote.
pub fn pack_path(name: &Digest) -> String {
    format!("{PACKS}{}", name.hex())
}

/// Returns the path of a pack index at the remote.
pub fn index_path(name: &Digest) -> String {
    format!("v1/indexes/{}", name.hex())
}

/// Returns the path of the note that a reader found damage in a pack.
pub fn damage_path(name: &Digest) -> String {
    format!("v1/damaged/{}", name.hex())
}

/// Returns the path of a list of packs that others replaced.
pub fn replaced_path(name: &Digest) -> String {
    format!("v1/replaced/{}", name.hex())
}

/// Returns the path of a list of roots at the remote.
pub fn roots_path(name: &Digest) -> String {
    format!("v1/roots/{}", name.hex())
}

/// Returns the local path of a large file that is only partly fetched.
pub fn partial_path(digest: &Digest) -> Result<RepoPath> {
    RepoPath::from_text(&format!("incoming/{}", digest.hex()))
}
