//! Everything that lies in the store, with its size and age, without reading any content.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::Result,
    fs::{FileType, Stamp},
    path::RepoPath,
    store::{Kind, Packed, Store, place},
};

/// Where commands that were killed may have left something.
const FOLDERS: [&str; 9] =
    ["", "packs", "objects", "runs", "damaged", "verified", "incoming", "clones", "leases"];

/// A pack with its index.
pub struct PackFile {
    pub name: Digest,
    /// Bytes of both files.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
    pub(super) packed: Arc<Packed>,
}

/// A large file, or the record of a run.
#[derive(Clone, Copy, Debug)]
pub struct WholeFile {
    pub digest: Digest,
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
}

/// A file that belongs to nothing.
#[derive(Clone, Debug)]
pub struct Stray {
    pub path: RepoPath,
    /// The pack that it would be part of.
    pub pack: Option<Digest>,
    pub size: u64,
    pub mtime: i64,
    /// An unfinished file of a process that is no more goes whatever its age.
    pub dead: bool,
}

/// What there is.
#[derive(Default)]
pub struct Stock {
    pub packs: Vec<PackFile>,
    pub whole: Vec<WholeFile>,
    pub runs: Vec<WholeFile>,
    pub strays: Vec<Stray>,
    /// Those of the strays that are whole packs and only lost their index, as far as they were adopted.
    pub(super) adopted: BTreeMap<Digest, Arc<Packed>>,
}

impl Stock {
    /// Objects in packs: whether it is a page of a folder, its bytes, its bytes in the pack.
    pub fn packed(&self) -> impl Iterator<Item = (Digest, bool, u64, u64)> + '_ {
        let rows = self.packs.iter().flat_map(|it| it.packed.index.rows());
        rows.map(|it| (it.digest, it.kind == Kind::Tree, it.size, it.stored))
    }
}

impl Store {
    /// Sizes of what was put aside.
    pub fn quarantined(&self) -> Result<Vec<u64>> {
        let Some(dir) = self.dir_if_there("quarantine")? else { return Ok(Vec::new()) };
        let sizes = dir.names()?.into_iter().map(|it| Ok(dir.stamp(&it.0)?.map_or(0, |it| it.size)));
        sizes.collect()
    }

    /// Lists everything there is, as it is now.
    pub fn stock(&self) -> Result<Stock> {
        self.refresh()?;
        let mut stock = Stock {
            whole: self.whole_files("objects")?,
            runs: self.whole_files("runs")?,
            ..Stock::default()
        };
        let (indexes, packs) = self.pack_names()?;
        for (name, index) in &indexes {
            // A gc elsewhere may have taken it since we looked.
            let (Some(pack), Some(packed)) = (packs.get(name), self.packs().get(name).cloned()) else {
                continue;
            };
            let size = index.size + pack.size;
            stock.packs.push(PackFile { name: *name, size, mtime: pack.mtime, packed });
        }
        for (name, stamp) in packs.iter().filter(|it| !indexes.contains_key(it.0)) {
            let path = place("packs", &name.hex(), ".pack")?;
            let Stamp { size, mtime, .. } = *stamp;
            stock.strays.push(Stray { path, pack: Some(*name), size, mtime, dead: false });
            stock.adopted.extend(self.packs().get(name).map(|it| (*name, Arc::clone(it))));
        }
        for folder in FOLDERS {
            self.leavings(folder, &mut stock.strays)?;
        }
        self.half_fetched(&mut stock.strays)?;
        Ok(stock)
    }

    /// Whether nothing has come since, but for what this process wrote itself.
    pub fn has_all_of(&self, stock: &Stock) -> Result<bool> {
        let known: BTreeSet<Digest> = stock.packs.iter().map(|it| it.name).collect();
        let (indexes, _) = self.pack_names()?;
        Ok(indexes.keys().all(|it| known.contains(it) || self.has_noted(it)))
    }

    /// Whether the object is known to be a page of a folder.
    pub fn is_page(&self, digest: &Digest) -> bool {
        self.packs().values().any(|it| it.index.find(digest, &[Kind::Tree]).is_some())
    }

    /// Whether the object's bytes were found wrong and are not mended yet.
    pub fn is_damaged(&self, digest: &Digest) -> bool {
        self.damaged().contains(digest)
    }

    /// Files of indexes and of packs, by name.
    pub(super) fn pack_names(&self) -> Result<(BTreeMap<Digest, Stamp>, BTreeMap<Digest, Stamp>)> {
        let (mut indexes, mut packs) = (BTreeMap::new(), BTreeMap::new());
        let Some(dir) = self.dir_if_there("packs")? else { return Ok((indexes, packs)) };
        for (file, _) in dir.names()? {
            let Some((hex, ending)) = std::str::from_utf8(&file).ok().and_then(|it| it.split_once('.'))
            else {
                continue;
            };
            let (Ok(name), Some(stamp)) = (Digest::from_hex(hex), dir.stamp(&file)?) else { continue };
            match ending {
                "idx" => drop(indexes.insert(name, stamp)),
                "pack" => drop(packs.insert(name, stamp)),
                _ => {}
            }
        }
        Ok((indexes, packs))
    }

    pub(super) fn whole_files(&self, folder: &str) -> Result<Vec<WholeFile>> {
        let Some(dir) = self.dir_if_there(folder)? else { return Ok(Vec::new()) };
        let names = dir.names()?;
        let look = |(name, _): &(Vec<u8>, FileType)| -> Result<Option<WholeFile>> {
            let digest = std::str::from_utf8(name).ok().and_then(|it| Digest::from_hex(it).ok());
            let (Some(digest), Some(stamp)) = (digest, dir.stamp(name)?) else { return Ok(None) };
            Ok(Some(WholeFile { digest, size: stamp.size, mtime: stamp.mtime }))
        };
        names.par_iter().filter_map(|it| look(it).transpose()).collect()
    }

    fn leavings(&self, folder: &str, found: &mut Vec<Stray>) -> Result<()> {
        let top = RepoPath::from_text(folder)?;
        let Some(dir) = self.dir_if_there(folder)? else { return Ok(()) };
        for name in dir.leavings()? {
            let Some(stamp) = dir.stamp(&name)? else { continue };
            let path = top.join(&name)?;
            found.push(Stray { path, pack: None, size: stamp.size, mtime: stamp.mtime, dead: true });
        }
        Ok(())
    }

    /// Large files that a fetch brought in part, if nobody is at it.
    fn half_fetched(&self, found: &mut Vec<Stray>) -> Result<()> {
        let top = RepoPath::from_text("incoming")?;
        if self.root.stamp(&top)?.is_none() {
            return Ok(());
        }
        let dir = self.root.dir(&top)?;
        let names: BTreeSet<Vec<u8>> = dir.names()?.into_iter().map(|it| it.0).collect();
        for name in &names {
            let of = name.strip_suffix(b".lock").unwrap_or(name);
            if std::str::from_utf8(of).ok().and_then(|it| Digest::from_hex(it).ok()).is_none() {
                continue;
            }
            let guard = top.join(of)?.with_suffix(".lock");
            if names.contains(guard.name()) && crate::fs::is_held(&self.root, &guard).unwrap_or(true) {
                continue;
            }
            let Some(stamp) = dir.stamp(name)? else { continue };
            let path = top.join(name)?;
            found.push(Stray { path, pack: None, size: stamp.size, mtime: stamp.mtime, dead: false });
        }
        Ok(())
    }
}
