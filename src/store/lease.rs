//! What running commands rely on, so that a gc beside them leaves it.
//!
//! An `add` that finds an object stored does not store it again; a gc that read the pointers a moment before sees
//! nobody who needs it. Ages do not settle this: a pack that is relied on every day would never be cleared up, and
//! with a grace period of nothing they say nothing. Nor does a lock: an `add` may take an hour. So a command that is
//! about to rely on a pack or a whole file, or to publish one, first writes its name into a file of its own:
//!
//! ```text
//! gate               locked by many while they write a name, by one gc while it removes
//! leases/PID-N-TICK  locked as long as its process lives: `clone ID`, then names, a line each
//! ```
//!
//! The name is written under the gate, and only if the thing is still there; a gc holds the gate alone while it
//! reads these files, looks whether any pointer changed since it decided, and removes. A command is thus seen
//! either by its lease or, when it has ended, by the pointer it wrote. Where clones share the store, a lease that is
//! left behind by a killed command counts until its clone has told anew what it needs.

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
    error::{Doing, Result},
    fs::{self, Dir, File, Lock},
    path::RepoPath,
    store::{Kind, Store, place},
};

const GATE: &str = "gate";
const FOLDER: &str = "leases";

/// The names that this process has written down.
pub(super) struct Lease {
    dir: Dir,
    name: Vec<u8>,
    file: File,
    named: HashSet<Digest>,
    shared: bool,
    /// Whether its clone has told the others all that it needs since the last name was added.
    told: bool,
}

/// A lease of some process, as a gc reads it.
#[derive(Clone, Debug, Default)]
pub struct Leased {
    /// The file it stands in.
    pub file: RepoPath,
    /// The clone that the process works in, where clones share the store.
    pub clone: Option<String>,
    pub alive: bool,
    /// Packs and whole files.
    pub names: Vec<Digest>,
}

impl Lease {
    fn begin(store: &Store) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{count}-{:x}", std::process::id(), fs::tick());
        let dir = store.dir(FOLDER)?;
        let mut file = fs::hold(&store.root, &place(FOLDER, &name, "")?)?;
        let clone = store.clone.as_ref().map_or("-", |it| &it.id);
        file.write_all(format!("clone {clone}\n").as_bytes()).doing(|| "cannot write a lease".into())?;
        let shared = store.clone.is_some();
        Ok(Self { dir, name: name.into_bytes(), file, named: HashSet::new(), shared, told: false })
    }

    fn add(&mut self, name: Digest) -> Result<()> {
        // One write, so that a line is whole or is none.
        let line = format!("{}\n", name.hex());
        self.file.write_all(line.as_bytes()).doing(|| "cannot write a lease".into())?;
        self.named.insert(name);
        self.told = false;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A command that did not tell others what it needs leaves its lease, as a killed one does.
        if !self.shared || self.told {
            // One that stays behind is seen to belong to nobody.
            let _stays = self.dir.remove(&self.name);
        }
    }
}

impl Store {
    /// Whether the object is here to be relied on: if so, no gc takes it while this process lives.
    pub fn lean_on(&self, digest: &Digest) -> bool {
        // What cannot be vouched for is stored again.
        self.try_lean(digest).unwrap_or(false)
    }

    /// As [`Store::lean_on`], of what is small enough for a pack and can be nowhere else.
    pub fn lean_on_packed(&self, digest: &Digest) -> bool {
        self.try_lean_packed(digest).unwrap_or(false)
    }

    fn try_lean(&self, digest: &Digest) -> Result<bool> {
        if self.try_lean_packed(digest)? {
            return Ok(true);
        }
        if self.damaged().contains(digest) || self.large(digest).is_none() {
            return Ok(false);
        }
        Ok(self.note(*digest, &|| Ok(self.large(digest).is_some()))? && self.trusts_large(digest)?)
    }

    fn try_lean_packed(&self, digest: &Digest) -> Result<bool> {
        loop {
            if self.damaged().contains(digest) {
                return Ok(false);
            }
            let Some(pack) = self.pack_of(digest) else { return Ok(false) };
            if self.has_noted(&pack) {
                return Ok(true);
            }
            let there = || Ok(self.root.stamp(&place("packs", &pack.hex(), ".pack")?)?.is_some());
            if self.note(pack, &there)? && self.trusts_pack(&pack)? {
                return Ok(true);
            }
            // A gc took it, or it is not what its name says.
            self.forget(&pack);
            self.refresh()?;
        }
    }

    fn pack_of(&self, digest: &Digest) -> Option<Digest> {
        let packs = self.packs();
        let holds = |it: &crate::store::Packed| it.index.find(digest, &[Kind::Content, Kind::Tree]).is_some();
        let latest = || self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        // What was stored together is asked for together.
        let last = *latest();
        if let Some(name) = last.filter(|it| packs.get(it).is_some_and(|it| holds(it))) {
            return Some(name);
        }
        let found = packs.iter().find(|it| holds(it.1)).map(|it| *it.0)?;
        *latest() = Some(found);
        Some(found)
    }

    /// Writes down a pack or whole file that is about to be published.
    pub(super) fn announce(&self, name: Digest) -> Result<()> {
        // Ours takes the place of one that was not what it said.
        self.trust_again(&name);
        self.note(name, &|| Ok(true)).map(drop)
    }

    pub(super) fn has_noted(&self, name: &Digest) -> bool {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        lease.as_ref().is_some_and(|it| it.named.contains(name))
    }

    fn note(&self, name: Digest, there: &dyn Fn() -> Result<bool>) -> Result<bool> {
        let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        if lease.as_ref().is_some_and(|it| it.named.contains(&name)) {
            return Ok(true);
        }
        let _gate = fs::lock_shared(&self.root, &RepoPath::from_text(GATE)?)?;
        if !there()? {
            return Ok(false);
        }
        let lease = match &mut *lease {
            Some(lease) => lease,
            slot => slot.insert(Lease::begin(self)?),
        };
        lease.add(name)?;
        Ok(true)
    }

    /// Nobody begins to rely on anything until this is dropped.
    pub fn close_gate(&self) -> Result<Lock> {
        fs::lock(&self.root, &RepoPath::from_text(GATE)?)
    }

    /// What running and killed commands wrote down.
    pub fn leases(&self) -> Result<Vec<Leased>> {
        let folder = RepoPath::from_text(FOLDER)?;
        let mut found = Vec::new();
        for name in self.names(FOLDER)? {
            let file = folder.join(&name)?;
            // A command that ends takes its lease away.
            let Some(bytes) = self.root.read_if_there(&file)? else { continue };
            let Ok(alive) = fs::is_held(&self.root, &file) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            let clone = text.lines().next().and_then(|it| it.strip_prefix("clone "));
            let clone = clone.filter(|it| *it != "-").map(str::to_owned);
            let names = text.lines().skip(1).filter_map(|it| Digest::from_hex(it).ok()).collect();
            found.push(Leased { file, clone, alive, names });
        }
        Ok(found)
    }

    /// What this process relies on is named elsewhere by now: its lease goes when it ends.
    pub fn settle(&self) {
        if let Some(lease) = &mut *self.lease.lock().unwrap_or_else(PoisonError::into_inner) {
            lease.told = true;
        }
    }

    /// Removes what a killed command left; its clone has told anew what it needs.
    pub fn drop_lease(&self, leased: &Leased) -> Result<()> {
        self.root.remove(&leased.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fs::Root, store::Writer};

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
    fn what_is_relied_on_is_written_down_until_the_end() {
        let temp = tempfile::tempdir().unwrap();
        let digest = put(&store(&temp), b"an object");
        assert!(store(&temp).leases().unwrap().is_empty(), "its writer has ended");
        let reader = store(&temp);
        assert!(reader.lean_on(&digest) && reader.lean_on(&digest));
        let leases = store(&temp).leases().unwrap();
        let packs: Vec<_> = reader.packs().keys().copied().collect();
        assert_eq!(leases.len(), 1);
        assert_eq!((leases[0].alive, &leases[0].names), (true, &packs));
        drop(reader);
        assert!(store(&temp).leases().unwrap().is_empty());
    }

    #[test]
    fn what_a_gc_took_is_no_longer_relied_on() {
        let temp = tempfile::tempdir().unwrap();
        let digest = put(&store(&temp), b"an object");
        let reader = store(&temp);
        assert!(reader.contains(&digest));
        for name in fs::names(&temp.path().join("packs")) {
            reader.root.remove(&RepoPath::from_text(&format!("packs/{}", name.display())).unwrap()).unwrap();
        }
        assert!(!reader.lean_on(&digest));
        assert!(!reader.contains(&digest), "it has forgotten the pack");
    }

    #[test]
    fn a_lease_of_the_dead_is_told_from_one_of_the_living() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(&temp);
        let name = Digest::of(b"a pack");
        let text = format!("clone abc\n{}\ntorn", name.hex());
        store.root.write(&place(FOLDER, "1-0-0", "").unwrap(), text.as_bytes(), fs::Sync::Later).unwrap();
        let leases = store.leases().unwrap();
        assert_eq!((leases[0].alive, leases[0].clone.as_deref()), (false, Some("abc")));
        assert_eq!(leases[0].names, [name]);
        store.drop_lease(&leases[0]).unwrap();
        assert!(store.leases().unwrap().is_empty());
    }
}
