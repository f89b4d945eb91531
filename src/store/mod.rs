//! Content by digest: objects are written once, never changed, and read only through their digest.
//!
//! Small objects and trees lie in packs (`packs/`), files over 1 MiB whole (`objects/`), so that they can
//! be linked into the workspace. What was made by which run lies in `runs/`. Order of a write: bytes,
//! synced; then the index that names them. A crash leaves garbage, never a hole.

mod folder;
mod large;
mod lease;
mod merge;
mod pack;
mod read;
mod runs;
mod stock;
mod sweep;
mod tree;
mod trust;
mod verify;
mod writer;

pub use self::{
    folder::{Difference, Side, diff, entries, file_at, put_folder, reachable, replace},
    large::{Large, digest_file},
    lease::Leased,
    merge::merge,
    pack::{Index, Kind, LARGEST, PackWriter, Ready, Row, pack},
    runs::Run,
    stock::{PackFile, Stock, WholeFile},
    sweep::{Amount, Freed, Kept, Plan, plan},
    tree::{EntryKind, Page, TreeEntry, decode as decode_page, is_newer_page},
    trust::Sharer,
    verify::{Fault, Verified, What},
    writer::Writer,
};

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::{
    digest::Digest,
    error::{Error, Result},
    fs::{self, Root, Sync},
    path::RepoPath,
};

/// Files up to this size go into packs; larger ones are stored whole.
pub const WHOLE: u64 = 1 << 20;

/// The objects of one machine.
pub struct Store {
    root: Root,
    packs: RwLock<BTreeMap<Digest, Arc<Packed>>>,
    /// Objects whose bytes were found wrong: they count as absent until they are stored anew.
    damaged: Mutex<HashSet<Digest>>,
    /// Packs of others that are not what they say; they are not looked into again.
    distrusted: Mutex<HashSet<Digest>>,
    /// What this process relies on, once it relies on anything.
    lease: Mutex<Option<lease::Lease>>,
    /// Which clone this is, where several share the store.
    clone: Option<Sharer>,
}

/// A local pack: its index in memory, its bytes on disk.
struct Packed {
    index: Index,
    file: fs::File,
}

impl Store {
    /// Opens the store in a folder, which is made if needed.
    pub fn open(root: Root) -> Result<Self> {
        let store = Self {
            root,
            packs: RwLock::default(),
            damaged: Mutex::default(),
            distrusted: Mutex::default(),
            lease: Mutex::default(),
            clone: None,
        };
        store.refresh()?;
        for (name, _) in store.dir("damaged")?.names()? {
            if let Ok(digest) =
                std::str::from_utf8(&name).map_or_else(|_| Digest::from_hex(""), Digest::from_hex)
            {
                store.damaged().insert(digest);
            }
        }
        Ok(store)
    }

    fn dir(&self, name: &str) -> Result<fs::Dir> {
        self.root.make_dir(&RepoPath::from_text(name)?)
    }

    fn damaged(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens packs that came since the last look; true if there were any.
    pub fn refresh(&self) -> Result<bool> {
        let dir = self.dir("packs")?;
        let mut found = false;
        for (name, _) in dir.names()? {
            let Some(hex) = name.strip_suffix(b".idx").and_then(|it| std::str::from_utf8(it).ok()) else {
                continue;
            };
            let Ok(digest) = Digest::from_hex(hex) else { continue };
            if !self.packs().contains_key(&digest) && !self.distrusts(&digest) {
                let Ok(bytes) = self.root.read(&place("packs", hex, ".idx")?) else { continue };
                if Index::is_newer(&bytes) {
                    // To go on without its objects would be to take them for lost.
                    let message = format!("the pack {} was written by a newer mlx", digest.short());
                    return Err(Error::corrupt(message).hint("upgrade mlx"));
                }
                // A damaged index hides its pack; the pack carries a copy of it.
                let Ok(index) = Index::parse(bytes).or_else(|_| self.index_from_pack(hex)) else { continue };
                // Without its pack an index names nothing: its objects count as absent.
                let Ok(file) = dir.open(format!("{hex}.pack").as_bytes()) else { continue };
                self.packs
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(digest, Arc::new(Packed { index, file }));
                found = true;
            }
        }
        Ok(found)
    }

    /// A pack that is gone, or is not what it says, is looked into no more.
    fn forget(&self, pack: &Digest) {
        self.packs.write().unwrap_or_else(PoisonError::into_inner).remove(pack);
    }

    fn distrust(&self, pack: &Digest) {
        self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).insert(*pack);
    }

    fn trust_again(&self, pack: &Digest) {
        self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).remove(pack);
    }

    fn distrusts(&self, pack: &Digest) -> bool {
        self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).contains(pack)
    }

    fn index_from_pack(&self, hex: &str) -> Result<Index> {
        Index::of_pack(&self.root.read(&place("packs", hex, ".pack")?)?)
    }

    fn packs(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Digest, Arc<Packed>>> {
        self.packs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the object is here: the bytes of a file, or a page of a folder.
    pub fn contains(&self, digest: &Digest) -> bool {
        !self.damaged().contains(digest)
            && (self.packs().values().any(|it| it.index.find(digest, &[Kind::Content, Kind::Tree]).is_some())
                || self.large(digest).is_some())
    }

    /// Remembers that an object's bytes are wrong, so that it is fetched or stored anew.
    fn mark_damaged(&self, digest: &Digest) {
        if self.damaged().insert(*digest)
            && let Ok(path) = place("damaged", &digest.hex(), "")
        {
            // What cannot be remembered is found again.
            drop(self.root.write(&path, b"", Sync::Later));
        }
        // A whole file would stand in the way of a sound copy.
        if let (Some(_), Ok(file)) = (self.large(digest), place("objects", &digest.hex(), "")) {
            drop(self.to_quarantine(&file));
        }
    }

    fn mark_sound(&self, digest: &Digest) -> Result<()> {
        if self.damaged().remove(digest) {
            self.root.remove(&place("damaged", &digest.hex(), "")?)?;
        }
        Ok(())
    }

    /// Where packs and their like come about, for whoever writes beside the store.
    pub fn root(&self) -> &Root {
        &self.root
    }
}

/// `FOLDER/HEX` with an ending.
fn place(folder: &str, hex: &str, ending: &str) -> Result<RepoPath> {
    RepoPath::from_text(&format!("{folder}/{hex}{ending}"))
}
