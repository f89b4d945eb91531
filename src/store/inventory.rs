//! Inventory of the store: lists all packs, large files and run records with size and age, without reading
//! content.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::Result,
    fs::{FileStat, FileType},
    path::RepoPath,
    store::{Kind, Packed, Store, chunked, file_path},
};

/// Folders in which a killed command may have left temporary files; the first is the store itself.
const TEMP_FILE_FOLDERS: [&str; 10] =
    ["", "packs", "objects", "chunks", "runs", "damaged", "verified", "incoming", "clones", "leases"];

/// A pack with its index.
pub struct PackFile {
    pub name: Digest,
    /// Size of both files, in bytes.
    pub size: u64,
    /// Modification time, in nanoseconds since 1970.
    pub mtime: i64,
    pub(super) packed: Arc<Packed>,
}

/// A large file, a list of chunks or a run record, which are stored as one file each.
#[derive(Clone, Copy, Debug)]
pub struct StoredFile {
    pub digest: Digest,
    pub size: u64,
    /// Modification time, in nanoseconds since 1970.
    pub mtime: i64,
    /// Number of names that the file has.
    pub links: u64,
}

/// A file that nothing refers to: a temporary file, a partial download, or a pack without its index.
#[derive(Clone, Debug)]
pub struct OrphanFile {
    pub path: RepoPath,
    /// Pack that the file belongs to, for a pack without its index.
    pub pack: Option<Digest>,
    pub size: u64,
    pub mtime: i64,
    /// True if the process that was writing the file has ended: then it is removed whatever its age.
    pub owner_ended: bool,
}

/// All files of the store.
#[derive(Default)]
pub struct Inventory {
    pub packs: Vec<PackFile>,
    pub large_files: Vec<StoredFile>,
    /// Lists of the chunks of large files, which may be stored whole as well.
    pub chunk_lists: Vec<StoredFile>,
    pub runs: Vec<StoredFile>,
    pub orphans: Vec<OrphanFile>,
    /// Orphaned packs that are intact and only lost their index, as far as they were loaded.
    pub(super) recovered: BTreeMap<Digest, Arc<Packed>>,
}

impl Inventory {
    /// Iterates over objects in packs: digest, true for a page of a folder, size, and size in the pack.
    pub fn packed_objects(&self) -> impl Iterator<Item = (Digest, bool, u64, u64)> + '_ {
        let rows = self.packs.iter().flat_map(|it| it.packed.index.rows());
        rows.map(|it| (it.digest, it.kind == Kind::Tree, it.size, it.stored))
    }
}

impl Store {
    /// Returns the sizes of the files in quarantine, in bytes.
    pub fn quarantined_sizes(&self) -> Result<Vec<u64>> {
        let Some(dir) = self.dir_if_exists("quarantine")? else { return Ok(Vec::new()) };
        let size = |name: &[u8]| Ok(dir.stat(name)?.map_or(0, |it| it.size));
        let sizes = dir.names()?.into_iter().map(|(name, _)| size(&name));
        sizes.collect()
    }

    /// Lists all files of the store as they are now.
    pub fn inventory(&self) -> Result<Inventory> {
        self.refresh()?;
        let mut inventory = Inventory {
            large_files: self.list_files("objects")?,
            chunk_lists: self.list_files(chunked::FOLDER)?,
            runs: self.list_files("runs")?,
            ..Inventory::default()
        };
        let (indexes, packs) = self.pack_files()?;
        for (name, index) in &indexes {
            // A concurrent gc may have removed it since it was listed.
            let (Some(pack), Some(packed)) = (packs.get(name), self.packs().get(name).cloned()) else {
                continue;
            };
            let size = index.size + pack.size;
            inventory.packs.push(PackFile { name: *name, size, mtime: pack.mtime, packed });
        }
        for (name, stat) in packs.iter().filter(|it| !indexes.contains_key(it.0)) {
            let path = file_path("packs", &name.hex(), ".pack")?;
            let FileStat { size, mtime, .. } = *stat;
            inventory.orphans.push(OrphanFile { path, pack: Some(*name), size, mtime, owner_ended: false });
            inventory.recovered.extend(self.packs().get(name).map(|it| (*name, Arc::clone(it))));
        }
        for folder in TEMP_FILE_FOLDERS {
            self.find_temp_files(folder, &mut inventory.orphans)?;
        }
        self.find_partial_downloads(&mut inventory.orphans)?;
        Ok(inventory)
    }

    /// Returns true if no pack was added since `inventory` was taken, except by this process.
    pub fn has_no_new_packs(&self, inventory: &Inventory) -> Result<bool> {
        let known: BTreeSet<Digest> = inventory.packs.iter().map(|it| it.name).collect();
        let (indexes, _) = self.pack_files()?;
        Ok(indexes.keys().all(|name| known.contains(name) || self.is_pinned(name)))
    }

    /// Returns true if the object is known to be a page of a folder.
    pub fn is_tree_page(&self, digest: &Digest) -> bool {
        self.packs().candidates(digest).any(|pack| pack.index.find(digest, &[Kind::Tree]).is_some())
    }

    /// Returns true if the object's bytes were found to be wrong and have not been restored yet.
    pub fn is_damaged(&self, digest: &Digest) -> bool {
        self.damaged().contains(digest)
    }

    /// Returns the digests of the stored files and pages whose hex digits begin with `prefix`, at most 64.
    pub fn starting_with(&self, prefix: &str) -> Result<BTreeSet<Digest>> {
        let padded = |digit: &str| Digest::from_hex(&(prefix.to_owned() + &digit.repeat(64 - prefix.len())));
        let (first, last) = (padded("0")?, padded("f")?);
        let large = [self.list_files("objects")?, self.list_files(chunked::FOLDER)?].concat();
        let mut found: BTreeSet<_> = large.iter().map(|file| file.digest).collect();
        for packed in self.packs().values() {
            let rows = packed.index.rows().filter(|row| matches!(row.kind, Kind::Content | Kind::Tree));
            found.extend(rows.map(|row| row.digest).filter(|digest| (first..=last).contains(digest)));
        }
        found.retain(|digest| (first..=last).contains(digest) && self.contains(digest));
        Ok(found)
    }

    /// Returns the index files and the pack files, by pack name.
    pub(super) fn pack_files(&self) -> Result<(BTreeMap<Digest, FileStat>, BTreeMap<Digest, FileStat>)> {
        let (mut indexes, mut packs) = (BTreeMap::new(), BTreeMap::new());
        let Some(dir) = self.dir_if_exists("packs")? else { return Ok((indexes, packs)) };
        for (file, _) in dir.names()? {
            let Some((hex, ending)) = std::str::from_utf8(&file).ok().and_then(|it| it.split_once('.'))
            else {
                continue;
            };
            let (Ok(name), Some(stat)) = (Digest::from_hex(hex), dir.stat(&file)?) else { continue };
            match ending {
                "idx" => drop(indexes.insert(name, stat)),
                "pack" => drop(packs.insert(name, stat)),
                _ => {}
            }
        }
        Ok((indexes, packs))
    }

    /// Lists the files of one folder that are named by a digest.
    pub(super) fn list_files(&self, folder: &str) -> Result<Vec<StoredFile>> {
        let Some(dir) = self.dir_if_exists(folder)? else { return Ok(Vec::new()) };
        let names = dir.names()?;
        let file = |(name, _): &(Vec<u8>, FileType)| -> Result<Option<StoredFile>> {
            let digest = std::str::from_utf8(name).ok().and_then(|it| Digest::from_hex(it).ok());
            let (Some(digest), Some(stat)) = (digest, dir.stat(name)?) else { return Ok(None) };
            Ok(Some(StoredFile { digest, size: stat.size, mtime: stat.mtime, links: stat.links }))
        };
        names.par_iter().filter_map(|entry| file(entry).transpose()).collect()
    }

    /// Finds the temporary files of ended processes in one folder.
    fn find_temp_files(&self, folder: &str, found: &mut Vec<OrphanFile>) -> Result<()> {
        let top = RepoPath::from_text(folder)?;
        let Some(dir) = self.dir_if_exists(folder)? else { return Ok(()) };
        for name in dir.stale_names()?.temp {
            let Some(stat) = dir.stat(&name)? else { continue };
            let path = top.join(&name)?;
            found.push(OrphanFile {
                path,
                pack: None,
                size: stat.size,
                mtime: stat.mtime,
                owner_ended: true,
            });
        }
        Ok(())
    }

    /// Finds large files that were fetched in part, and their locks, unless a process is fetching them now.
    fn find_partial_downloads(&self, found: &mut Vec<OrphanFile>) -> Result<()> {
        let top = RepoPath::from_text("incoming")?;
        if self.root.stat(&top)?.is_none() {
            return Ok(());
        }
        let dir = self.root.dir(&top)?;
        let names: BTreeSet<Vec<u8>> = dir.names()?.into_iter().map(|it| it.0).collect();
        for name in &names {
            let hex = name.strip_suffix(b".lock").unwrap_or(name);
            if std::str::from_utf8(hex).ok().and_then(|it| Digest::from_hex(it).ok()).is_none() {
                continue;
            }
            let guard = top.join(hex)?.with_suffix(".lock");
            if names.contains(guard.name()) && crate::fs::is_locked(&self.root, &guard).unwrap_or(true) {
                continue;
            }
            let Some(stat) = dir.stat(name)? else { continue };
            let path = top.join(name)?;
            found.push(OrphanFile {
                path,
                pack: None,
                size: stat.size,
                mtime: stat.mtime,
                owner_ended: false,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fs::Root, store::Writer};

    #[test]
    fn packs_of_others_are_new_and_those_of_this_process_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let open = || Store::open(Root::open(temp.path()).unwrap()).unwrap();
        let put = |store: &Store, bytes: &[u8]| {
            let mut writer = Writer::new(store);
            writer.put_bytes(bytes).unwrap();
            writer.finish().unwrap();
        };
        let store = open();
        put(&store, b"before");
        let inventory = store.inventory().unwrap();
        put(&store, b"own");
        assert!(store.has_no_new_packs(&inventory).unwrap());
        put(&open(), b"of another process");
        assert!(!store.has_no_new_packs(&inventory).unwrap());
    }
}
