//! Content by digest: objects are written once, never changed, and read only through their digest.
//!
//! Small objects and trees lie in packs (`packs/`), files over 1 MiB whole (`objects/`), so that they can
//! be linked into the workspace. What was made by which run lies in `runs/`. Order of a write: bytes,
//! synced; then the index that names them. A crash leaves garbage, never a hole.

mod diff;
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
    diff::{Difference, Side, diff},
    folder::{entries, file_at, put_folder, reachable, replace},
    large::{Large, digest_file},
    lease::Leased,
    merge::merge,
    pack::{Index, Kind, LARGEST, PackWriter, Ready, Row, pack},
    runs::Run,
    stock::{PackFile, Stock, WholeFile},
    sweep::{Amount, Freed, Kept, Plan, plan},
    tree::{EntryKind, Page, TreeEntry, decode as decode_page, is_newer_page},
    trust::{Sharer, Vouched},
    verify::{Fault, Verified, What},
    writer::Writer,
};

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    digest::Digest,
    error::{Error, Result},
    fs::{self, Root, Sync},
    path::RepoPath,
};

/// Files up to this size go into packs; larger ones are stored whole.
pub const WHOLE: u64 = 1 << 20;
/// How often the packs are listed while some go.
const LOOKS: u32 = 3;

/// The objects of one machine.
pub struct Store {
    root: Root,
    packs: RwLock<BTreeMap<Digest, Arc<Packed>>>,
    /// Objects whose bytes were found wrong: they count as absent until they are stored anew.
    damaged: Mutex<HashSet<Digest>>,
    /// Packs of others that are not what they say; they are not looked into again.
    distrusted: Mutex<HashSet<Digest>>,
    /// Whole files that this process has stored.
    fresh: Mutex<HashSet<Digest>>,
    /// Objects that were read.
    reads: AtomicU64,
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
            fresh: Mutex::default(),
            reads: AtomicU64::new(0),
            lease: Mutex::default(),
            clone: None,
        };
        store.refresh()?;
        for name in store.names("damaged")? {
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

    /// The names in one of the store's folders; none where it is not there yet: a store that may only be read is not
    /// asked to make it.
    fn names(&self, folder: &str) -> Result<Vec<Vec<u8>>> {
        let path = RepoPath::from_text(folder)?;
        if self.root.stamp(&path)?.is_none() {
            return Ok(Vec::new());
        }
        Ok(self.root.dir(&path)?.names()?.into_iter().map(|it| it.0).collect())
    }

    fn damaged(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens packs that came since the last look; true if there were any.
    pub fn refresh(&self) -> Result<bool> {
        let mut found = false;
        // What went since its name was read went into another pack, which a second look shows.
        for _ in 0..LOOKS {
            let (more, gone) = self.look()?;
            found |= more;
            if !gone {
                break;
            }
        }
        Ok(found)
    }

    /// Whether packs came, and whether an index or a pack was gone when it was to be opened.
    fn look(&self) -> Result<(bool, bool)> {
        let (mut found, mut gone) = (false, false);
        for name in self.names("packs")? {
            let Some(hex) = name.strip_suffix(b".idx").and_then(|it| std::str::from_utf8(it).ok()) else {
                continue;
            };
            let Ok(digest) = Digest::from_hex(hex) else { continue };
            if !self.packs().contains_key(&digest) && !self.distrusts(&digest) {
                let opened = self.open_pack(hex)?;
                gone |= opened.as_ref().is_err_and(|it| it.kind() == crate::error::Kind::NotFound);
                let Ok(packed) = opened else { continue };
                self.packs.write().unwrap_or_else(PoisonError::into_inner).insert(digest, Arc::new(packed));
                found = true;
            }
        }
        Ok((found, gone))
    }

    /// The outer error ends the work: to go on without the objects of a newer pack would be to take them for lost.
    fn open_pack(&self, hex: &str) -> Result<Result<Packed>> {
        let bytes = match self.root.read(&place("packs", hex, ".idx")?) {
            Ok(bytes) if Index::is_newer(&bytes) => {
                let message = format!("the pack {} was written by a newer mlx", &hex[..10]);
                return Err(Error::corrupt(message).hint("upgrade mlx"));
            }
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error)),
        };
        let open = || {
            // A damaged index hides its pack; the pack carries a copy of it.
            let index = Index::parse(bytes).or_else(|_| self.index_from_pack(hex))?;
            // Without its pack an index names nothing: its objects count as absent.
            let file = self.root.open_file(&place("packs", hex, ".pack")?)?;
            Ok(Packed { index, file })
        };
        Ok(open())
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
        self.fresh().remove(digest);
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

    /// Objects that were read so far: pages of folders, small files, and large ones as a whole.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
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
