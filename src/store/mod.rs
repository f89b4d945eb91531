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
    /// Packs that are there and cannot be read, and why: what they hold is not known.
    hidden: Mutex<BTreeMap<Digest, Error>>,
    /// Whether the indexes were compared with the copies in their packs, and one differed.
    compared: Mutex<Option<bool>>,
    /// Whole files that this process has stored.
    fresh: Mutex<HashSet<Digest>>,
    /// The pack in which the last object that was asked for lies.
    latest: Mutex<Option<Digest>>,
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
    name: Digest,
    folder: Arc<fs::Dir>,
    /// Of many packs only some stay open; the others are opened when something is read.
    file: Option<fs::File>,
}

impl Store {
    /// Opens the store in a folder, which is made if needed.
    pub fn open(root: Root) -> Result<Self> {
        let store = Self {
            root,
            packs: RwLock::default(),
            damaged: Mutex::default(),
            distrusted: Mutex::default(),
            hidden: Mutex::default(),
            compared: Mutex::default(),
            fresh: Mutex::default(),
            latest: Mutex::default(),
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

    /// One of the store's folders; a new one is there for good before anything in it counts.
    fn dir(&self, name: &str) -> Result<fs::Dir> {
        if let Some(dir) = self.dir_if_there(name)? {
            return Ok(dir);
        }
        let dir = self.root.make_dir(&RepoPath::from_text(name)?)?;
        self.root.dir(&RepoPath::root())?.sync()?;
        Ok(dir)
    }

    /// As [`Store::dir`], for those who only look: the disk may be one that nobody can write to.
    fn dir_if_there(&self, name: &str) -> Result<Option<fs::Dir>> {
        let path = RepoPath::from_text(name)?;
        if self.root.stamp(&path)?.is_none() {
            return Ok(None);
        }
        self.root.dir(&path).map(Some)
    }

    /// A new file in one of the store's folders, held until it has its name.
    fn create(&self, folder: &str, mode: u32) -> Result<fs::Temp> {
        Ok(self.dir(folder)?.create(mode)?.held())
    }

    /// The names in one of the store's folders; none where it is not there yet.
    fn names(&self, folder: &str) -> Result<Vec<Vec<u8>>> {
        let names = self.dir_if_there(folder)?.map_or_else(|| Ok(Vec::new()), |it| it.names())?;
        Ok(names.into_iter().map(|it| it.0).collect())
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
        let Some(dir) = self.dir_if_there("packs")?.map(Arc::new) else { return Ok((false, false)) };
        let (mut found, mut gone, mut hidden) = (false, false, BTreeMap::new());
        for (name, _) in dir.names()? {
            let Some(hex) = name.strip_suffix(b".idx").and_then(|it| std::str::from_utf8(it).ok()) else {
                continue;
            };
            let Ok(digest) = Digest::from_hex(hex) else { continue };
            if !self.packs().contains_key(&digest) && !self.distrusts(&digest) {
                match self.open_pack(&dir, digest)? {
                    Ok(packed) => {
                        let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
                        packs.insert(digest, Arc::new(packed));
                        found = true;
                    }
                    // A gc elsewhere takes an index before its pack.
                    Err(_) if dir.stamp(&name)?.is_none() => gone = true,
                    Err(error) => {
                        gone |= error.kind() == crate::error::Kind::NotFound;
                        hidden.insert(digest, error);
                    }
                }
            }
        }
        *self.hidden() = hidden;
        Ok((found, gone))
    }

    /// The outer error ends the work: to go on without the objects of a newer pack would be to take them for lost.
    fn open_pack(&self, folder: &Arc<fs::Dir>, name: Digest) -> Result<Result<Packed>> {
        let hex = name.hex();
        let bytes = match self.root.read(&place("packs", &hex, ".idx")?) {
            Ok(bytes) if Index::is_newer(&bytes) => {
                let message = format!("the pack {} was written by a newer mlx", name.short());
                return Err(Error::corrupt(message).hint("upgrade mlx"));
            }
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error)),
        };
        let open = || {
            // A damaged index hides its pack; the pack carries a copy of it.
            let index = Index::parse(bytes).or_else(|_| self.index_from_pack(&hex))?;
            let file = folder.open(format!("{hex}.pack").as_bytes())?;
            let few = self.packs().len() < fs::spare_files();
            Ok(Packed { index, name, folder: Arc::clone(folder), file: few.then_some(file) })
        };
        Ok(open())
    }

    fn hidden(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Error>> {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to go on while there is a pack that cannot be read: what it holds would count as absent.
    pub fn check_readable(&self) -> Result<()> {
        let hidden = self.hidden();
        let Some((pack, error)) = hidden.first_key_value() else { return Ok(()) };
        let message = format!("the pack {} cannot be read: {}", pack.short(), error.full_text());
        let hint = error.hint_text().unwrap_or("`mlx fsck --repair` mends what is damaged");
        Err(Error::new(error.kind(), message).hint(hint))
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
