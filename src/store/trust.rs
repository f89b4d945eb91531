//! What was looked at whole is not looked at again, as long as the file system says of it what it said then.
//!
//! A whole file is read before it is linked into the workspace, and what another user of this machine wrote into a
//! shared store before it is relied on: an index may promise what its pack does not hold. What was found is remembered
//! in the clone, where nobody else writes: `verified/DIGEST`, a line for each file with its size, times and inode.

use std::{collections::HashSet, sync::PoisonError};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::Result,
    fs::{self, Root, Stamp, Sync},
    path::RepoPath,
    store::{Index, Store, place},
};

const FOLDER: &str = "verified";

/// Whole files that were vouched for, and what the file system said of them.
pub struct Vouched(Vec<(Digest, Stamp)>);

/// The clone that works with a shared store.
pub struct Sharer {
    pub id: String,
    /// Where what was verified is remembered.
    pub memory: Root,
}

impl Store {
    /// As this one, shared by several clones and users; this is which.
    pub fn shared_by(mut self, clone: Sharer) -> Self {
        self.clone = Some(clone);
        self
    }

    /// Whether a pack is ours, or is what its name says, with everything in it.
    pub(super) fn trusts_pack(&self, name: &Digest) -> Result<bool> {
        let files = [place("packs", &name.hex(), ".pack")?, place("packs", &name.hex(), ".idx")?];
        self.trusts(name, &files, &|| {
            let Some(packed) = self.packs().get(name).cloned() else { return Ok(false) };
            let bytes = self.root.read(&files[0])?;
            let whole = Digest::of(&bytes) == *name
                && Index::of_pack(&bytes).is_ok_and(|it| it.bytes() == packed.index.bytes());
            let rows: Vec<_> = packed.index.rows().collect();
            Ok(whole && rows.par_iter().all(|it| packed.read(it).is_ok()))
        })
    }

    /// As [`Store::trusts_pack`], of a whole file.
    pub(super) fn trusts_large(&self, digest: &Digest) -> Result<bool> {
        let file = place("objects", &digest.hex(), "")?;
        self.trusts(digest, std::slice::from_ref(&file), &|| Ok(self.is_sound(digest)))
    }

    fn trusts(&self, name: &Digest, files: &[RepoPath], verify: &dyn Fn() -> Result<bool>) -> Result<bool> {
        let mut foreign = false;
        for file in files.iter().filter(|_| self.clone.is_some()) {
            foreign |= self.root.is_foreign(file)?;
        }
        if !foreign || self.remembers(name, files)? {
            return Ok(true);
        }
        let tick = fs::tick();
        let sound = verify()?;
        if sound {
            self.remember(name, files, tick)?;
        } else {
            self.distrust(name);
        }
        Ok(sound)
    }

    /// Whether a whole file was read in full since anybody could write to it.
    pub(super) fn vouches(&self, digest: &Digest) -> Result<bool> {
        Ok(self.fresh().contains(digest)
            || self.remembers(digest, &[place("objects", &digest.hex(), "")?])?)
    }

    /// The bytes of a whole file were read at `tick`, and are what its name says.
    pub(super) fn vouch(&self, digest: &Digest, tick: i64) -> Result<()> {
        self.remember(digest, &[place("objects", &digest.hex(), "")?], tick)
    }

    /// As [`Store::vouch`], of a whole file that this process has just stored.
    pub(super) fn vouch_later(&self, digest: &Digest) {
        self.fresh().insert(*digest);
    }

    /// Remembers what this process stored, once the clock of the file system has left the tick of its writing.
    pub fn vouch_for_stored(&self) -> Result<()> {
        let stored = std::mem::take(&mut *self.fresh());
        for digest in stored {
            let Some(stamp) = self.root.stamp(&place("objects", &digest.hex(), "")?)? else { continue };
            self.vouch(&digest, stamp.wait_until_settled())?;
        }
        Ok(())
    }

    /// Of these objects, the whole files that are vouched for.
    pub fn vouched(&self, digests: &[Digest]) -> Result<Vouched> {
        let mut found = Vec::new();
        for digest in digests {
            if let Some(large) = self.large(digest)
                && self.vouches(digest)?
            {
                found.push((*digest, large.stamp()?));
            }
        }
        Ok(Vouched(found))
    }

    /// They got or lost names in the workspace since, which is a change to the file system; a write would show in
    /// the time of the last one.
    pub fn vouch_again(&self, before: &Vouched) -> Result<()> {
        for (digest, old) in &before.0 {
            let file = place("objects", &digest.hex(), "")?;
            let Some(new) = self.root.stamp(&file)? else { continue };
            if (old.size, old.mtime, old.inode) == (new.size, new.mtime, new.inode) && old.ctime != new.ctime
            {
                self.write_down(digest, &[file])?;
            }
        }
        Ok(())
    }

    /// Forgets what is stored no more.
    pub fn forget_gone(&self) -> Result<()> {
        let memory = self.memory().make_dir(&RepoPath::from_text(FOLDER)?)?;
        for (name, _) in memory.names()? {
            let digest = std::str::from_utf8(&name).ok().and_then(|it| Digest::from_hex(it).ok());
            if digest.is_some_and(|it| self.large(&it).is_none() && !self.packs().contains_key(&it)) {
                memory.remove(&name)?;
            }
        }
        Ok(())
    }

    pub(super) fn fresh(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> &Root {
        self.clone.as_ref().map_or(&self.root, |it| &it.memory)
    }

    fn remembers(&self, name: &Digest, files: &[RepoPath]) -> Result<bool> {
        let known = self.memory().read_if_there(&place(FOLDER, &name.hex(), "")?)?;
        Ok(known.is_some_and(|it| self.looks(files).is_ok_and(|now| it == now.as_bytes())))
    }

    /// What was touched within the tick in which it was read may change again without a trace.
    fn remember(&self, name: &Digest, files: &[RepoPath], tick: i64) -> Result<()> {
        for file in files {
            if self.root.stamp(file)?.is_none_or(|it| !it.is_settled(tick)) {
                return Ok(());
            }
        }
        self.write_down(name, files)
    }

    fn write_down(&self, name: &Digest, files: &[RepoPath]) -> Result<()> {
        self.memory().write(&place(FOLDER, &name.hex(), "")?, self.looks(files)?.as_bytes(), Sync::Later)
    }

    /// What the file system says of files: if it says the same again, nobody wrote to them.
    fn looks(&self, files: &[RepoPath]) -> Result<String> {
        let mut text = String::new();
        for file in files {
            if let Some(it) = self.root.stamp(file)? {
                text.push_str(&format!("{} {} {} {}\n", it.size, it.mtime, it.ctime, it.inode));
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Link;

    /// A store with one whole file that was just stored, and a folder beside it.
    fn world(temp: &std::path::Path) -> (Store, Digest, Root) {
        let files = Root::create(&temp.join("files")).unwrap();
        let path = RepoPath::from_text("large").unwrap();
        files.write(&path, &vec![7; 2_000_000], Sync::Later).unwrap();
        let store = Store::open(Root::create(&temp.join("store")).unwrap()).unwrap();
        let digest = store.put_large(&files.open_file(&path).unwrap(), &|_, _| Ok(())).unwrap().0;
        (store, digest, files)
    }

    fn object(store: &Store, digest: &Digest) -> std::path::PathBuf {
        store.root.path().join("objects").join(digest.hex())
    }

    #[test]
    fn a_stored_file_is_read_no_more_until_somebody_may_have_written_to_it() {
        let temp = tempfile::tempdir().unwrap();
        let (store, digest, _) = world(temp.path());
        assert!(store.vouches(&digest).unwrap(), "this process stored it");
        store.vouch_for_stored().unwrap();
        let again = Store::open(Root::open(store.root.path()).unwrap()).unwrap();
        assert!(again.vouches(&digest).unwrap(), "another process finds it on record");
        let file = fs::File::open(object(&store, &digest)).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.set_modified(time).unwrap();
        assert!(!again.vouches(&digest).unwrap(), "something was done to it, if only to its time");
        assert!(again.is_sound(&digest), "it is read, and is what it was");
        file.set_modified(time - std::time::Duration::from_secs(1)).unwrap();
        assert!(!again.vouches(&digest).unwrap());
    }

    #[test]
    fn what_was_touched_within_the_tick_is_not_remembered() {
        let temp = tempfile::tempdir().unwrap();
        let (store, digest, _) = world(temp.path());
        store.fresh().clear();
        let stamp = store.large(&digest).unwrap().stamp().unwrap();
        store.vouch(&digest, stamp.ctime).unwrap();
        assert!(!store.vouches(&digest).unwrap());
        store.vouch(&digest, stamp.wait_until_settled()).unwrap();
        assert!(store.vouches(&digest).unwrap());
    }

    #[test]
    fn names_that_come_and_go_in_the_workspace_are_no_writes() {
        let temp = tempfile::tempdir().unwrap();
        let (store, digest, files) = world(temp.path());
        store.vouch_for_stored().unwrap();
        let before = store.vouched(&[digest]).unwrap();
        let dir = files.dir(&RepoPath::root()).unwrap();
        let large = store.large(&digest).unwrap();
        let way = large.place(&dir, b"linked", fs::Mode::Plain, &[Link::Hardlink]).unwrap();
        assert_eq!(way, Link::Hardlink);
        assert!(!store.vouches(&digest).unwrap(), "a second name changes what the file system says");
        store.vouch_again(&before).unwrap();
        assert!(store.vouches(&digest).unwrap());
        // But a write is one, whatever else happened.
        let before = store.vouched(&[digest]).unwrap();
        let file = fs::File::open(object(&store, &digest)).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.set_modified(time + std::time::Duration::from_secs(1)).unwrap();
        store.vouch_again(&before).unwrap();
        assert!(!store.vouches(&digest).unwrap());
    }

    #[test]
    fn what_is_stored_no_more_is_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let (store, digest, _) = world(temp.path());
        store.vouch_for_stored().unwrap();
        let known = place(FOLDER, &digest.hex(), "").unwrap();
        store.forget_gone().unwrap();
        assert!(store.root.stamp(&known).unwrap().is_some());
        store.root.remove(&place("objects", &digest.hex(), "").unwrap()).unwrap();
        store.forget_gone().unwrap();
        assert!(store.root.stamp(&known).unwrap().is_none());
    }
}
