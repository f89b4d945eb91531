//! Leases: the packs and large files that running commands have pinned, so that a concurrent gc keeps them.
//!
//! An `add` that finds an object stored does not store it again, while a gc that read the pointers a moment
//! before finds no reference to it. The age of a file does not settle this: a pack that is used every day
//! would never be pruned, and with a grace period of zero, age says nothing. Nor does a lock: an `add` may
//! take an hour. So before a command uses a stored pack or large file, or publishes a new one, it writes its
//! name into its lease:
//!
//! ```text
//! gate               locked by many while they write a pin, by one gc while it removes
//! leases/PID-N-TICK  locked while its process lives: `clone ID`, then pinned names, one per line
//! ```
//!
//! A pin is written while the gate is locked, and only if the file still exists; a gc locks the gate
//! exclusively while it reads the leases, checks whether any pointer changed since it planned, and removes.
//! It thus finds a command either by its lease or, once the command has ended, by the pointer it wrote. Where
//! clones share the store, the lease of a killed command counts until its clone has published its needs
//! again.

use std::{
    collections::HashSet,
    io::Write as _,
    sync::{
        PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    fs::{self, Dir, File, Lock},
    path::RepoPath,
    store::{
        Kind, Store,
        chunked::{self, ListState},
        file_path,
    },
};

const GATE: &str = "gate";
const FOLDER: &str = "leases";

/// The lease of this process.
pub(super) struct Lease {
    dir: Dir,
    name: Vec<u8>,
    file: File,
    pinned: HashSet<Digest>,
    shared: bool,
    /// True if the clone's needs have been published to other clones since the last pin was added.
    published: bool,
}

/// A lease of any process, as a gc reads it.
#[derive(Clone, Debug, Default)]
pub struct LeaseRecord {
    /// File of the lease, in the store.
    pub file: RepoPath,
    /// Clone that the process works in, where clones share the store.
    pub clone: Option<String>,
    pub alive: bool,
    /// Packs and large files.
    pub pinned: Vec<Digest>,
}

impl Lease {
    fn create(store: &Store) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{count}-{:x}", std::process::id(), fs::coarse_now());
        let dir = store.dir(FOLDER)?;
        let mut file = fs::create_locked(&store.root, &file_path(FOLDER, &name, "")?)?;
        let clone = store.sharing_clone.as_ref().map_or("-", |it| &it.id);
        file.write_all(format!("clone {clone}\n").as_bytes()).context(|| "cannot write a lease".into())?;
        let shared = store.sharing_clone.is_some();
        Ok(Self { dir, name: name.into_bytes(), file, pinned: HashSet::new(), shared, published: false })
    }

    fn add(&mut self, name: Digest) -> Result<()> {
        // A single write, so that a reader never sees part of a line as a whole one.
        let line = format!("{}\n", name.hex());
        self.file.write_all(line.as_bytes()).context(|| "cannot write a lease".into())?;
        self.pinned.insert(name);
        self.published = false;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // If the clone's needs were not published, the lease stays, as that of a killed command does.
        if !self.shared || self.published {
            // A lease that cannot be removed is not locked any more, which shows that its process has ended.
            let _ignored = self.dir.remove(&self.name);
        }
    }
}

impl Store {
    /// Returns true if the object is stored here; then it is pinned, and no gc removes it while this process
    /// lives.
    pub fn pin(&self, digest: &Digest) -> bool {
        // An object that cannot be verified is stored again.
        self.try_pin(digest).unwrap_or(false)
    }

    /// Does the same as [`Store::pin`], but for an object small enough to be in packs only.
    pub fn pin_packed(&self, digest: &Digest) -> bool {
        self.try_pin_packed(digest).unwrap_or(false)
    }

    pub(super) fn try_pin(&self, digest: &Digest) -> Result<bool> {
        if self.try_pin_packed(digest)? {
            return Ok(true);
        }
        if self.damaged().contains(digest) {
            return Ok(false);
        }
        let is_whole = || self.large(digest).is_some();
        if is_whole() && self.write_pin(*digest, &|| Ok(is_whole()))? {
            return self.is_trusted_large(digest);
        }
        self.try_pin_chunked(digest)
    }

    /// Pins a file that is kept as chunks by its own digest: a gc keeps what it needs. In a shared store it
    /// is read first, since other users wrote some of it.
    fn try_pin_chunked(&self, digest: &Digest) -> Result<bool> {
        let Some(chunked) = self.chunked(digest) else { return Ok(false) };
        let list = file_path(chunked::FOLDER, &digest.hex(), "")?;
        let exists = || Ok(self.root.stat(&list)?.is_some());
        Ok((self.sharing_clone.is_none() || chunked.state() == ListState::Right)
            && self.write_pin(*digest, &exists)?)
    }

    fn try_pin_packed(&self, digest: &Digest) -> Result<bool> {
        loop {
            if self.damaged().contains(digest) {
                return Ok(false);
            }
            let Some(pack) = self.pack_of(digest) else { return Ok(false) };
            if self.is_pinned(&pack) {
                return Ok(true);
            }
            let exists = || Ok(self.root.stat(&file_path("packs", &pack.hex(), ".pack")?)?.is_some());
            if self.write_pin(pack, &exists)? && self.is_trusted_pack(&pack)? {
                return Ok(true);
            }
            // A gc removed the pack, or it does not match its name.
            self.forget_pack(&pack);
            self.refresh()?;
        }
    }

    pub(super) fn pack_of(&self, digest: &Digest) -> Option<Digest> {
        let packs = self.packs();
        let holds =
            |pack: &crate::store::Packed| pack.index.find(digest, &[Kind::Content, Kind::Tree]).is_some();
        let latest = || self.last_pack.lock().unwrap_or_else(PoisonError::into_inner);
        // Objects that were stored together are usually requested together.
        let last = *latest();
        if let Some(name) = last.filter(|name| packs.get(name).is_some_and(|pack| holds(pack))) {
            return Some(name);
        }
        let found = packs.candidates(digest).find(|pack| holds(pack))?.name;
        *latest() = Some(found);
        Some(found)
    }

    /// Pins a pack or large file that is about to be published.
    pub(super) fn pin_new(&self, name: Digest) -> Result<()> {
        // It replaces a pack of the same name that was invalid.
        self.clear_invalid(&name);
        self.write_pin(name, &|| Ok(true)).map(drop)
    }

    pub(super) fn is_pinned(&self, name: &Digest) -> bool {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        lease.as_ref().is_some_and(|it| it.pinned.contains(name))
    }

    fn write_pin(&self, name: Digest, exists: &dyn Fn() -> Result<bool>) -> Result<bool> {
        let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        if lease.as_ref().is_some_and(|it| it.pinned.contains(&name)) {
            return Ok(true);
        }
        let _gate = self.enter_gate()?;
        if !exists()? {
            return Ok(false);
        }
        let lease = match &mut *lease {
            Some(lease) => lease,
            slot => slot.insert(Lease::create(self)?),
        };
        lease.add(name)?;
        Ok(true)
    }

    /// Prevents a gc from removing anything until the lock is dropped.
    pub fn enter_gate(&self) -> Result<Lock> {
        fs::lock_shared(&self.root, &RepoPath::from_text(GATE)?)
    }

    /// Prevents all processes from adding pins until the lock is dropped.
    pub fn lock_gate(&self) -> Result<Lock> {
        fs::lock(&self.root, &RepoPath::from_text(GATE)?)
    }

    /// Returns the leases of running and killed commands.
    pub fn leases(&self) -> Result<Vec<LeaseRecord>> {
        let folder = RepoPath::from_text(FOLDER)?;
        let mut found = Vec::new();
        for name in self.file_names(FOLDER)? {
            let file = folder.join(&name)?;
            // A command removes its lease when it ends.
            let Some(bytes) = self.root.read_if_exists(&file)? else { continue };
            let Ok(alive) = fs::is_locked(&self.root, &file) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            let clone = text.lines().next().and_then(|it| it.strip_prefix("clone "));
            let clone = clone.filter(|it| *it != "-").map(str::to_owned);
            let pinned = text.lines().skip(1).filter_map(|it| Digest::from_hex(it).ok()).collect();
            found.push(LeaseRecord { file, clone, alive, pinned });
        }
        Ok(found)
    }

    /// Marks everything that this process pinned as published; the lease is removed when the process ends.
    pub fn mark_published(&self) {
        if let Some(lease) = &mut *self.lease.lock().unwrap_or_else(PoisonError::into_inner) {
            lease.published = true;
        }
    }

    /// Removes the lease of a killed command, whose clone has published its needs again.
    pub fn remove_lease(&self, lease: &LeaseRecord) -> Result<()> {
        self.root.remove(&lease.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fs::Root,
        store::{SharingClone, Writer},
    };

    fn store(temp: &tempfile::TempDir) -> Store {
        Store::open(Root::open(temp.path()).unwrap()).unwrap()
    }

    fn put(store: &Store, bytes: &[u8]) -> Digest {
        let mut writer = Writer::new(store);
        let digest = writer.put_bytes(bytes).unwrap();
        writer.finish().unwrap();
        digest
    }

    #[test]
    fn pins_are_written_down_until_the_process_ends() {
        let temp = tempfile::tempdir().unwrap();
        let digest = put(&store(&temp), b"an object");
        assert!(store(&temp).leases().unwrap().is_empty(), "its writer has ended");
        let reader = store(&temp);
        assert!(reader.pin(&digest) && reader.pin(&digest));
        let leases = store(&temp).leases().unwrap();
        let packs: Vec<_> = reader.packs().keys().copied().collect();
        assert_eq!(leases.len(), 1);
        assert_eq!((leases[0].alive, &leases[0].pinned), (true, &packs));
        drop(reader);
        assert!(store(&temp).leases().unwrap().is_empty());
    }

    #[test]
    fn a_lease_in_a_shared_store_stays_until_its_clone_has_published_its_needs() {
        let temp = tempfile::tempdir().unwrap();
        let (first, second) = (put(&store(&temp), b"an object"), put(&store(&temp), b"another"));
        let left = |act: &dyn Fn(&Store)| {
            let clone = SharingClone { id: "abc".into(), state_root: Root::open(temp.path()).unwrap() };
            let user = store(&temp).shared_by(clone);
            assert!(user.pin(&first));
            act(&user);
            drop(user);
            let leases = store(&temp).leases().unwrap();
            leases.iter().for_each(|lease| store(&temp).remove_lease(lease).unwrap());
            leases.into_iter().map(|lease| (lease.clone, lease.alive, lease.pinned.len())).collect::<Vec<_>>()
        };
        let clone = Some("abc".to_owned());
        assert_eq!(left(&|_| ()), [(clone.clone(), false, 1)]);
        assert_eq!(left(&Store::mark_published), []);
        // A pin that was added later is not among the published needs.
        let pin_more = |user: &Store| {
            user.mark_published();
            assert!(user.pin(&second));
        };
        assert_eq!(left(&pin_more), [(clone, false, 2)]);
    }

    #[test]
    fn an_object_removed_by_a_gc_is_not_pinned() {
        let temp = tempfile::tempdir().unwrap();
        let digest = put(&store(&temp), b"an object");
        let reader = store(&temp);
        assert!(reader.contains(&digest));
        for name in fs::names(&temp.path().join("packs")) {
            reader.root.remove(&RepoPath::from_text(&format!("packs/{}", name.display())).unwrap()).unwrap();
        }
        assert!(!reader.pin(&digest));
        assert!(!reader.contains(&digest), "the pack is no longer used");
    }

    #[test]
    fn a_lease_of_an_ended_process_is_not_alive() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(&temp);
        let name = Digest::of(b"a pack");
        let text = format!("clone abc\n{}\ntorn", name.hex());
        store.root.write(&file_path(FOLDER, "1-0-0", "").unwrap(), text.as_bytes(), fs::Sync::Later).unwrap();
        let leases = store.leases().unwrap();
        assert_eq!((leases[0].alive, leases[0].clone.as_deref()), (false, Some("abc")));
        assert_eq!(leases[0].pinned, [name]);
        store.remove_lease(&leases[0]).unwrap();
        assert!(store.leases().unwrap().is_empty());
    }
}
