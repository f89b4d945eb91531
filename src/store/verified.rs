//! Remembers which files were verified in full, by size, times and inode, so that unchanged ones are not
//! hashed again.
//!
//! A large file is verified before it is linked into the workspace. In a shared store, files of other users
//! are verified before anything relies on them: an index may list objects that its pack does not hold. The
//! results are kept in the clone, where no other user writes: `verified/DIGEST`, one line per file with its
//! size, times and inode.

use std::{collections::HashSet, sync::PoisonError};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::Result,
    fs::{self, FileStat, Root, Sync},
    path::RepoPath,
    store::{Index, Store, file_path},
};

const FOLDER: &str = "verified";

/// Verified large files, with their stat data at that time.
pub struct VerifiedFiles(Vec<(Digest, FileStat)>);

/// A clone that works with a shared store.
pub struct SharingClone {
    pub id: String,
    /// Folder of the clone in which verified files are recorded.
    pub state_root: Root,
}

impl Store {
    /// Returns this store as one that several clones and users share, used by `clone`.
    pub fn shared_by(mut self, clone: SharingClone) -> Self {
        self.sharing_clone = Some(clone);
        self
    }

    /// Returns true if a pack was written by this user, or if its bytes, its index and all its objects match
    /// their digests.
    pub(super) fn is_trusted_pack(&self, name: &Digest) -> Result<bool> {
        let files = [file_path("packs", &name.hex(), ".pack")?, file_path("packs", &name.hex(), ".idx")?];
        self.is_trusted(name, &files, &|| {
            let Some(packed) = self.packs().get(name).cloned() else { return Ok(false) };
            let bytes = self.root.read(&files[0])?;
            let matches = Digest::of(&bytes) == *name
                && Index::from_pack(&bytes).is_ok_and(|it| it.bytes() == packed.index.bytes());
            let rows: Vec<_> = packed.index.rows().collect();
            Ok(matches && rows.par_iter().all(|it| packed.read(it).is_ok()))
        })
    }

    /// Does the same as [`Store::is_trusted_pack`], but for a large file.
    pub(super) fn is_trusted_large(&self, digest: &Digest) -> Result<bool> {
        let file = file_path("objects", &digest.hex(), "")?;
        self.is_trusted(digest, std::slice::from_ref(&file), &|| Ok(self.is_intact(digest)))
    }

    fn is_trusted(
        &self,
        name: &Digest,
        files: &[RepoPath],
        verify: &dyn Fn() -> Result<bool>,
    ) -> Result<bool> {
        let mut foreign = false;
        for file in files.iter().filter(|_| self.sharing_clone.is_some()) {
            foreign |= self.root.is_owned_by_other(file)?;
        }
        if !foreign || self.has_record(name, files)? {
            return Ok(true);
        }
        let tick = fs::coarse_now();
        let valid = verify()?;
        if valid {
            self.record_if_settled(name, files, tick)?;
        } else {
            self.mark_invalid(name);
        }
        Ok(valid)
    }

    /// Returns true if a large file was read in full since any user could last write to it.
    pub(super) fn is_verified(&self, digest: &Digest) -> Result<bool> {
        Ok(self.just_stored().contains(digest)
            || self.has_record(digest, &[file_path("objects", &digest.hex(), "")?])?)
    }

    /// Records that a large file was read in full at `tick` and matches its digest.
    pub(super) fn mark_verified(&self, digest: &Digest, tick: i64) -> Result<()> {
        self.record_if_settled(digest, &[file_path("objects", &digest.hex(), "")?], tick)
    }

    /// Remembers, in this process only, a large file that it has just stored; [`Store::record_just_stored`]
    /// writes the record.
    pub(super) fn mark_just_stored(&self, digest: &Digest) {
        self.just_stored().insert(*digest);
    }

    /// Records the files that this process stored, once the file system's clock has left the tick of the last
    /// write.
    pub fn record_just_stored(&self) -> Result<()> {
        let stored = std::mem::take(&mut *self.just_stored());
        for digest in stored {
            let Some(stat) = self.root.stat(&file_path("objects", &digest.hex(), "")?)? else { continue };
            self.mark_verified(&digest, stat.wait_for_clock_tick())?;
        }
        Ok(())
    }

    /// Returns those of the objects that are verified large files.
    pub fn verified_files(&self, digests: &[Digest]) -> Result<VerifiedFiles> {
        let mut found = Vec::new();
        for digest in digests {
            if let Some(large) = self.large(digest)
                && self.is_verified(digest)?
            {
                found.push((*digest, *large.stat()));
            }
        }
        Ok(VerifiedFiles(found))
    }

    /// Renews the records of files that were linked or unlinked in the workspace since `before`: that changes
    /// their change time only, whereas a write would change their modification time as well.
    pub fn refresh_verified(&self, before: &VerifiedFiles) -> Result<()> {
        for (digest, old) in &before.0 {
            let file = file_path("objects", &digest.hex(), "")?;
            let Some(new) = self.root.stat(&file)? else { continue };
            if (old.size, old.mtime, old.inode) == (new.size, new.mtime, new.inode) && old.ctime != new.ctime
            {
                self.write_record(digest, &[file])?;
            }
        }
        Ok(())
    }

    /// Removes the records of objects that are no longer stored.
    pub fn prune_verified(&self) -> Result<()> {
        let records = self.state_root().create_dir(&RepoPath::from_text(FOLDER)?)?;
        for (name, _) in records.names()? {
            let digest = std::str::from_utf8(&name).ok().and_then(|it| Digest::from_hex(it).ok());
            if digest.is_some_and(|it| self.large(&it).is_none() && !self.packs().contains_key(&it)) {
                records.remove(&name)?;
            }
        }
        Ok(())
    }

    pub(super) fn just_stored(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.just_stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_root(&self) -> &Root {
        self.sharing_clone.as_ref().map_or(&self.root, |it| &it.state_root)
    }

    fn has_record(&self, name: &Digest, files: &[RepoPath]) -> Result<bool> {
        let known = self.state_root().read_if_exists(&file_path(FOLDER, &name.hex(), "")?)?;
        Ok(known.is_some_and(|text| self.stat_text(files).is_ok_and(|now| text == now.as_bytes())))
    }

    /// Records a verification, unless a file was changed within the tick in which it was read: then it may
    /// change again without a trace.
    fn record_if_settled(&self, name: &Digest, files: &[RepoPath], tick: i64) -> Result<()> {
        for file in files {
            if self.root.stat(file)?.is_none_or(|it| !it.is_older_than_clock_tick(tick)) {
                return Ok(());
            }
        }
        self.write_record(name, files)
    }

    fn write_record(&self, name: &Digest, files: &[RepoPath]) -> Result<()> {
        self.state_root().write(
            &file_path(FOLDER, &name.hex(), "")?,
            self.stat_text(files)?.as_bytes(),
            Sync::Later,
        )
    }

    /// Formats the stat data of files; as long as it is the same, no file was written to.
    fn stat_text(&self, files: &[RepoPath]) -> Result<String> {
        let mut text = String::new();
        for file in files {
            if let Some(stat) = self.root.stat(file)? {
                text.push_str(&format!("{} {} {} {}\n", stat.size, stat.mtime, stat.ctime, stat.inode));
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::LinkKind;

    /// Creates a store with one large file that was just stored, and a folder next to it.
    fn store_with_large_file(temp: &std::path::Path) -> (Store, Digest, Root) {
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
    fn a_stored_file_is_verified_until_it_may_have_been_written_to() {
        let temp = tempfile::tempdir().unwrap();
        let (store, digest, _) = store_with_large_file(temp.path());
        assert!(store.is_verified(&digest).unwrap(), "this process stored it");
        store.record_just_stored().unwrap();
        let reopened = Store::open(Root::open(store.root.path()).unwrap()).unwrap();
        assert!(reopened.is_verified(&digest).unwrap(), "another process finds its record");
        let file = fs::File::open(object(&store, &digest)).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.set_modified(time).unwrap();
        assert!(!reopened.is_verified(&digest).unwrap(), "its change time is newer");
        assert!(reopened.is_intact(&digest), "it is read again and is unchanged");
        file.set_modified(time - std::time::Duration::from_secs(1)).unwrap();
        assert!(!reopened.is_verified(&digest).unwrap());
    }

    #[test]
    fn a_file_changed_within_the_tick_is_not_recorded() {
        let temp = tempfile::tempdir().unwrap();
        let (store, digest, _) = store_with_large_file(temp.path());
        store.just_stored().clear();
        let stat = *store.large(&digest).unwrap().stat();
        store.mark_verified(&digest, stat.ctime).unwrap();
        assert!(!store.is_verified(&digest).unwrap());
        store.mark_verified(&digest, stat.wait_for_clock_tick()).unwrap();
        assert!(store.is_verified(&digest).unwrap());
    }

    #[test]
    fn links_from_the_workspace_are_not_writes() {
        let temp = tempfile::tempdir().unwrap();
        let (store, digest, files) = store_with_large_file(temp.path());
        store.record_just_stored().unwrap();
        let before = store.verified_files(&[digest]).unwrap();
        let dir = files.dir(&RepoPath::root()).unwrap();
        let large = store.large(&digest).unwrap();
        let link = large.link_or_copy(&dir, b"linked", fs::Mode::Plain, &[LinkKind::Hardlink]).unwrap();
        assert_eq!(link, LinkKind::Hardlink);
        assert!(!store.is_verified(&digest).unwrap(), "a second name changes the change time");
        store.refresh_verified(&before).unwrap();
        assert!(store.is_verified(&digest).unwrap());
        // A write is detected all the same.
        let before = store.verified_files(&[digest]).unwrap();
        let file = fs::File::open(object(&store, &digest)).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.set_modified(time + std::time::Duration::from_secs(1)).unwrap();
        store.refresh_verified(&before).unwrap();
        assert!(!store.is_verified(&digest).unwrap());
    }

    #[test]
    fn records_of_removed_objects_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let (store, digest, _) = store_with_large_file(temp.path());
        store.record_just_stored().unwrap();
        let record = file_path(FOLDER, &digest.hex(), "").unwrap();
        store.prune_verified().unwrap();
        assert!(store.root.stat(&record).unwrap().is_some());
        store.root.remove(&file_path("objects", &digest.hex(), "").unwrap()).unwrap();
        store.prune_verified().unwrap();
        assert!(store.root.stat(&record).unwrap().is_none());
    }
}
