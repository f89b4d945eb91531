//! Content-addressed object store: every object is stored once, never changed, and read by its digest.
//!
//! Files up to 1 MiB and pages of folders are stored in packs (`packs/`), larger files each as a file of its
//! own (`objects/`), so that they can be linked into the workspace, or as chunks (`chunks/`). `runs/` caches
//! the outputs of pipeline runs. Order of a write: the bytes are synced first, then the index that names them
//! is published. A crash therefore leaves garbage at worst, never an entry whose bytes are missing.

mod chunk_copy;
mod chunk_plan;
mod chunked;
pub mod chunks;
mod complete;
mod diff;
mod folder;
mod inventory;
mod large;
mod lease;
mod lookup;
mod pack;
mod packs;
mod prune;
mod read;
mod repack;
mod runs;
mod tree;
mod update;
mod verified;
mod verify;
mod verify_chunks;
mod writer;

pub use self::{
    chunk_copy::HeldFiles,
    chunk_plan::{ChunkPlan, FilesInUse},
    chunked::ChunkedFile,
    complete::{content_of, described, has_other_kind},
    diff::{ChangedEntries, DiffSide, Difference, changed_entries, diff},
    folder::{entries, entry_at, put_folder, read_page, replace},
    inventory::{Inventory, PackFile, StoredFile},
    large::{LargeFile, digest_file},
    lease::LeaseRecord,
    lookup::Lookup,
    pack::{EncodedObject, Index, Kind, MAX_OBJECT_SIZE, PackWriter, Row, pack, renamed},
    prune::{Amount, Freed, LiveSet, PrunePlan, plan_prune},
    runs::CachedRun,
    tree::{EntryKind, Page, TreeEntry, decode as decode_page, is_newer_page},
    update::update_folder,
    verified::{SharingClone, VerifiedFiles},
    verify::{Fault, FaultKind, VerifyReport},
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

/// Largest file that goes into a pack, in bytes; larger files are stored whole.
pub const MAX_PACKED_SIZE: u64 = 1 << 20;
/// Number of times the packs are listed while another process removes some.
const MAX_RESCANS: u32 = 3;

/// Object store of one machine, possibly shared by several clones.
pub struct Store {
    root: Root,
    packs: RwLock<packs::Packs>,
    /// Objects whose bytes were found to be wrong: they count as absent until they are stored again.
    damaged: Mutex<HashSet<Digest>>,
    /// Packs of other users whose contents do not match their names; they are not opened again.
    invalid: Mutex<HashSet<Digest>>,
    /// Packs that exist but cannot be read, with the error: their objects are unknown.
    unreadable: Mutex<BTreeMap<Digest, Error>>,
    /// Outcome of comparing the indexes with the copies in their packs, once done: true if any differed.
    indexes_differed: Mutex<Option<bool>>,
    /// Large files that this process has stored.
    just_stored: Mutex<HashSet<Digest>>,
    /// Files that are kept as chunks.
    chunked: Mutex<chunked::KnownLists>,
    /// Pack in which the last requested object was found.
    last_pack: Mutex<Option<Digest>>,
    /// Number of objects read.
    reads: AtomicU64,
    /// Number of reads that failed because the object is not here.
    absent_reads: AtomicU64,
    /// Lease with the pins of this process, once it has pinned anything.
    lease: Mutex<Option<lease::Lease>>,
    /// Clone that uses this store, where several clones share it.
    sharing_clone: Option<SharingClone>,
}

/// A local pack: its index in memory, its bytes on disk.
struct Packed {
    index: Index,
    name: Digest,
    folder: Arc<fs::Dir>,
    /// Open only for the first packs; the others are opened for each read.
    file: Option<fs::File>,
}

impl Store {
    /// Opens the store in `root`; its subfolders are created when they are first written to.
    pub fn open(root: Root) -> Result<Self> {
        let store = Self {
            root,
            packs: RwLock::default(),
            damaged: Mutex::default(),
            invalid: Mutex::default(),
            unreadable: Mutex::default(),
            indexes_differed: Mutex::default(),
            just_stored: Mutex::default(),
            chunked: Mutex::default(),
            last_pack: Mutex::default(),
            reads: AtomicU64::new(0),
            absent_reads: AtomicU64::new(0),
            lease: Mutex::default(),
            sharing_clone: None,
        };
        store.refresh()?;
        for name in store.file_names("damaged")? {
            if let Ok(digest) =
                std::str::from_utf8(&name).map_or_else(|_| Digest::from_hex(""), Digest::from_hex)
            {
                store.damaged().insert(digest);
            }
        }
        Ok(store)
    }

    /// Opens one of the store's folders, creating it if needed; a new folder is synced to disk before it is
    /// used.
    fn dir(&self, name: &str) -> Result<fs::Dir> {
        if let Some(dir) = self.dir_if_exists(name)? {
            return Ok(dir);
        }
        let dir = self.root.create_dir(&RepoPath::from_text(name)?)?;
        self.root.dir(&RepoPath::root())?.sync()?;
        Ok(dir)
    }

    /// Opens a folder as [`Store::dir`] does, but never creates it: for readers, which may be on a read-only
    /// disk.
    fn dir_if_exists(&self, name: &str) -> Result<Option<fs::Dir>> {
        let path = RepoPath::from_text(name)?;
        if self.root.stat(&path)?.is_none() {
            return Ok(None);
        }
        self.root.dir(&path).map(Some)
    }

    /// Creates a temporary file in one of the store's folders, locked until it is published under its name.
    fn create_temp(&self, folder: &str, mode: u32) -> Result<fs::TempFile> {
        Ok(self.dir(folder)?.create(mode)?.locked())
    }

    /// Returns the file names in one of the store's folders; none if the folder does not exist.
    fn file_names(&self, folder: &str) -> Result<Vec<Vec<u8>>> {
        let names = self.dir_if_exists(folder)?.map_or_else(|| Ok(Vec::new()), |it| it.names())?;
        Ok(names.into_iter().map(|it| it.0).collect())
    }

    fn damaged(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens packs that were added since the last scan; returns true if there were any.
    pub fn refresh(&self) -> Result<bool> {
        let mut found = false;
        self.list_chunked()?;
        // The objects of a pack that vanished after it was listed are in another pack, which the next scan
        // finds.
        for _ in 0..MAX_RESCANS {
            let (added, vanished) = self.scan_packs()?;
            found |= added;
            if !vanished {
                break;
            }
        }
        Ok(found)
    }

    /// Returns whether packs were added, and whether an index or pack vanished before it could be opened.
    fn scan_packs(&self) -> Result<(bool, bool)> {
        let Some(dir) = self.dir_if_exists("packs")?.map(Arc::new) else { return Ok((false, false)) };
        let (mut added, mut vanished, mut unreadable) = (false, false, BTreeMap::new());
        for (name, _) in dir.names()? {
            let Some(hex) = name.strip_suffix(b".idx").and_then(|it| std::str::from_utf8(it).ok()) else {
                continue;
            };
            let Ok(digest) = Digest::from_hex(hex) else { continue };
            if !self.packs().contains_key(&digest) && !self.is_invalid(&digest) {
                match self.open_pack(&dir, digest)? {
                    Ok(packed) => {
                        let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
                        packs.insert(packed);
                        added = true;
                    }
                    // A concurrent gc removes an index before its pack.
                    Err(_) if dir.stat(&name)?.is_none() => vanished = true,
                    Err(error) => {
                        vanished |= error.kind() == crate::error::Kind::NotFound;
                        unreadable.insert(digest, error);
                    }
                }
            }
        }
        self.packs.write().unwrap_or_else(PoisonError::into_inner).prepare();
        *self.unreadable() = unreadable;
        Ok((added, vanished))
    }

    /// Opens one pack. The outer error aborts: continuing would treat a newer pack's objects as missing.
    fn open_pack(&self, folder: &Arc<fs::Dir>, name: Digest) -> Result<Result<Packed>> {
        let hex = name.hex();
        let bytes = match self.root.read(&file_path("packs", &hex, ".idx")?) {
            Ok(bytes) if Index::is_newer(&bytes) => {
                let message = format!("the pack {} was written by a newer mlx", name.short());
                return Err(Error::corrupt(message).hint("upgrade mlx"));
            }
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error)),
        };
        let open = || {
            // If the index file is damaged, the copy inside the pack is used.
            let index = Index::parse(bytes).or_else(|_| self.read_embedded_index(&hex))?;
            let file = folder.open(format!("{hex}.pack").as_bytes())?;
            let keep_open = self.packs().len() < fs::cached_file_limit();
            Ok(Packed { index, name, folder: Arc::clone(folder), file: keep_open.then_some(file) })
        };
        Ok(open())
    }

    fn unreadable(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Error>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if any pack cannot be read: its objects would count as absent.
    pub fn check_readable(&self) -> Result<()> {
        let unreadable = self.unreadable();
        let Some((pack, error)) = unreadable.first_key_value() else { return Ok(()) };
        let message = format!("the pack {} cannot be read: {}", pack.short(), error.chain_text());
        let hint = error.hint_text().unwrap_or("`mlx fsck --repair` repairs damaged packs");
        Err(Error::new(error.kind(), message).hint(hint))
    }

    /// Stops using a pack that was removed or does not match its name.
    fn forget_pack(&self, pack: &Digest) {
        self.packs.write().unwrap_or_else(PoisonError::into_inner).remove(pack);
    }

    fn mark_invalid(&self, pack: &Digest) {
        self.invalid.lock().unwrap_or_else(PoisonError::into_inner).insert(*pack);
    }

    fn clear_invalid(&self, pack: &Digest) {
        self.invalid.lock().unwrap_or_else(PoisonError::into_inner).remove(pack);
    }

    fn is_invalid(&self, pack: &Digest) -> bool {
        self.invalid.lock().unwrap_or_else(PoisonError::into_inner).contains(pack)
    }

    fn read_embedded_index(&self, hex: &str) -> Result<Index> {
        Index::from_pack(&self.root.read(&file_path("packs", hex, ".pack")?)?)
    }

    fn packs(&self) -> std::sync::RwLockReadGuard<'_, packs::Packs> {
        self.packs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if the object is stored and not known to be damaged: the bytes of a file, or a page of a
    /// folder.
    pub fn contains(&self, digest: &Digest) -> bool {
        let is_large = || self.large(digest).is_some() || self.is_chunked(digest);
        self.contains_packed(digest) || !self.damaged().contains(digest) && is_large()
    }

    /// Returns true if the object is stored in a pack and not known to be damaged.
    pub fn contains_packed(&self, digest: &Digest) -> bool {
        !self.damaged().contains(digest) && self.pack_of(digest).is_some()
    }

    /// Records that an object's bytes are wrong, so that it is fetched or stored again.
    fn mark_damaged(&self, digest: &Digest) {
        self.just_stored().remove(digest);
        if self.damaged().insert(*digest)
            && let Ok(path) = file_path("damaged", &digest.hex(), "")
        {
            // If the record cannot be written, the damage is found again on the next read.
            drop(self.root.write(&path, b"", Sync::Later));
        }
        // A damaged large file would block its name for an intact copy.
        if let (Some(_), Ok(file)) = (self.large(digest), file_path("objects", &digest.hex(), "")) {
            drop(self.move_to_quarantine(&file));
            self.forget_sources();
        }
    }

    fn clear_damaged(&self, digest: &Digest) -> Result<()> {
        if self.damaged().remove(digest) {
            self.root.remove(&file_path("damaged", &digest.hex(), "")?)?;
        }
        Ok(())
    }

    /// Forgets the damage of objects of which a new pack has intact copies.
    fn clear_damaged_in(&self, pack: &Digest) -> Result<()> {
        let kinds = [Kind::Content, Kind::Tree];
        let Some(pack) = self.packs().get(pack).cloned() else { return Ok(()) };
        let is_restored = |digest: &&Digest| pack.index.find(digest, &kinds).is_some();
        let restored: Vec<Digest> = self.damaged().iter().filter(is_restored).copied().collect();
        restored.iter().try_for_each(|digest| self.clear_damaged(digest))
    }

    /// Returns the number of objects read so far: pages of folders, small files, and large files read whole.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Returns the number of reads so far that failed because the object is not here: after some, fetching
    /// may help.
    pub fn absent_reads(&self) -> u64 {
        self.absent_reads.load(Ordering::Relaxed)
    }

    /// Returns the store's folder, for callers that keep their own files next to the objects.
    pub fn root(&self) -> &Root {
        &self.root
    }
}

/// Returns the path `FOLDER/HEX` followed by an ending such as `.pack`.
fn file_path(folder: &str, hex: &str, ending: &str) -> Result<RepoPath> {
    RepoPath::from_text(&format!("{folder}/{hex}{ending}"))
}
