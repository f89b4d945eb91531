//! Reads objects from the store; every object that is read is checked against its digest.

use std::{
    io,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use crate::{
    digest::Digest,
    error::{Error, Kind as ErrorKind, Result, WithContext},
    fs,
    store::{EncodedObject, Index, Kind, LargeFile, Packed, Row, Store},
};

impl Store {
    /// Reads an object into memory: a page of a folder, a small file, or the whole of a large file.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if let Some(bytes) = self.try_read(digest)? {
            return Ok(bytes);
        }
        // Another process may have stored it since the last scan, or an index may belong to another pack.
        let (added, reloaded) = (self.refresh()?, self.reload_differing_indexes()?);
        if (added || reloaded)
            && let Some(bytes) = self.try_read(digest)?
        {
            return Ok(bytes);
        }
        let is_damaged = self.damaged().contains(digest);
        if is_damaged {
            return Err(self.report_damage(digest));
        }
        self.absent_reads.fetch_add(1, Ordering::Relaxed);
        let error = Error::not_found(format!("the object {digest} is not in the local store"));
        Err(error.hint("run `mlx pull` or `mlx fetch`"))
    }

    /// Reads an object as it is written into another pack: without compressing it again if it is in one.
    pub fn read_encoded(&self, digest: &Digest) -> Result<EncodedObject<'static>> {
        for (packed, row) in self.rows(digest, &[Kind::Content, Kind::Tree]) {
            if let Ok(stored) = packed.read_stored(&row)
                && row.decode(&stored).is_ok()
            {
                self.reads.fetch_add(1, Ordering::Relaxed);
                return Ok(row.encoded(stored));
            }
        }
        // It is elsewhere, or damaged, which this finds out.
        EncodedObject::encode(self.read(digest)?.into()).context(|| "cannot compress".into())
    }

    /// Returns the error for an object that does not match its digest, and marks it as damaged: it counts as
    /// absent from now on.
    pub fn report_damage(&self, digest: &Digest) -> Error {
        self.mark_damaged(digest);
        Error::corrupt(format!("the object {digest} in the cache is damaged")).hint(
            "`mlx fetch` brings an intact copy from a remote (old versions: `mlx fetch --all-commits`); \
             `mlx add` stores it again from the workspace",
        )
    }

    fn try_read(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        self.try_once(digest, true)
    }

    fn try_once(&self, digest: &Digest, retry: bool) -> Result<Option<Vec<u8>>> {
        let (mut wrong, mut failed) = (false, None);
        for (packed, row) in self.rows(digest, &[Kind::Content, Kind::Tree]) {
            match packed.read(&row) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::Corrupt => wrong = true,
                // A concurrent gc removed the pack after it copied the referenced objects into another.
                Err(error) if error.kind() == ErrorKind::NotFound => self.forget_pack(&packed.name),
                Err(error) => failed = Some(error),
            }
        }
        match self.with_large(digest, LargeFile::read) {
            Ok(Some(bytes)) => return Ok(Some(bytes)),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Corrupt => wrong = true,
            Err(error) => return Err(error),
        }
        if let Some(chunked) = self.chunked(digest) {
            return chunked.read().map(Some);
        }
        // A read error may be temporary: it is not damage.
        match failed {
            Some(error) => Err(error).context(|| format!("cannot read the object {digest} in the cache")),
            None if wrong && retry && self.reload_differing_indexes()? => self.try_once(digest, false),
            None if wrong => Err(self.report_damage(digest)),
            None => Ok(None),
        }
    }

    /// Compares each index with the copy inside its pack, once. If they differ, the pack's own copy is used
    /// from now on; returns true if any differed.
    pub fn reload_differing_indexes(&self) -> Result<bool> {
        // Held throughout, so that other threads wait for the outcome.
        let mut compared = self.indexes_differed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = *compared {
            return Ok(found);
        }
        let packs: Vec<_> = self.packs().values().cloned().collect();
        let mut found = false;
        for packed in packs {
            // If the end of a pack is damaged, the index file is used.
            let Some(index) = packed.embedded_index().filter(|it| it.bytes() != packed.index.bytes()) else {
                continue;
            };
            let (name, folder) = (packed.name, Arc::clone(&packed.folder));
            let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
            packs.insert(Packed { index, name, folder, file: None });
            found = true;
        }
        *compared = Some(found);
        Ok(found)
    }

    /// Returns the packs that hold the object, with its row in each.
    pub(super) fn rows(&self, digest: &Digest, kinds: &[Kind]) -> Vec<(Arc<Packed>, Row)> {
        let packs = self.packs();
        let found = packs.candidates(digest);
        found.filter_map(|pack| Some((Arc::clone(pack), pack.index.find(digest, kinds)?))).collect()
    }
}

impl Packed {
    /// Reads bytes of the pack, which is opened first unless it was kept open.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<io::Result<()>> {
        let opened = match &self.file {
            Some(_) => None,
            None => Some(self.folder.open(format!("{}.pack", self.name.hex()).as_bytes())?),
        };
        let file = self.file.as_ref().or(opened.as_ref()).expect("it is open, or was opened just now");
        Ok(fs::read_at(file, bytes, offset))
    }

    /// Reads the index at the end of the pack, if it is intact.
    fn embedded_index(&self) -> Option<Index> {
        let end = self.folder.stat(format!("{}.pack", self.name.hex()).as_bytes()).ok()??.size;
        let mut tail = [0; 16];
        self.read_at(&mut tail, end.checked_sub(16)?).ok()?.ok()?;
        let length = u64::from_le_bytes(*tail.first_chunk()?);
        let start = end.checked_sub(16)?.checked_sub(length)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.read_at(&mut bytes, start).ok()?.ok()?;
        Index::parse(bytes).ok()
    }

    pub(super) fn read(&self, row: &Row) -> Result<Vec<u8>> {
        row.decode(&self.read_stored(row)?)
    }

    /// Reads the bytes that the pack holds for an object, which may not match its digest.
    fn read_stored(&self, row: &Row) -> Result<Vec<u8>> {
        let truncated = || Error::corrupt("a pack is truncated");
        let mut stored = vec![0; usize::try_from(row.stored).map_err(|_| truncated())?];
        match self.read_at(&mut stored, row.offset)? {
            Ok(()) => Ok(stored),
            // An offset may be larger than any file.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput) =>
            {
                Err(truncated())
            }
            Err(error) => Err(error).context(|| format!("cannot read the pack {}", self.name.short())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fs::{Crash, Root, Sync},
        path::RepoPath,
        store::{Writer, file_path, pack::encode},
    };

    fn store(temp: &tempfile::TempDir) -> Store {
        Store::open(Root::open(temp.path()).unwrap()).unwrap()
    }

    fn put(temp: &tempfile::TempDir, objects: &[&[u8]]) -> Vec<Digest> {
        let store = store(temp);
        let mut writer = Writer::new(&store);
        let digests = objects.iter().map(|it| writer.put_bytes(it).unwrap()).collect();
        writer.finish().unwrap();
        digests
    }

    #[test]
    fn a_wrong_index_row_causes_an_error_and_its_neighbors_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let digests = put(&temp, &[b"one", b"two"]);
        let (one, two) = (digests[0], digests[1]);
        let name = *store(&temp).packs().keys().next().unwrap();
        let path = file_path("packs", &name.hex(), ".idx").unwrap();
        let index = Index::parse(store(&temp).root().read(&path).unwrap()).unwrap();
        let rows: Vec<Row> = index.rows().collect();
        let at = |digest: Digest| *rows.iter().find(|it| it.digest == digest).unwrap();
        let elsewhere = at(two).offset;
        let edits: [fn(&mut Row, u64); 6] = [
            |row, _| row.offset = 1 << 20,
            |row, _| row.offset = 1 << 62,
            |row, _| row.offset = u64::MAX - 8,
            |row, elsewhere| row.offset = elsewhere,
            |row, _| (row.stored, row.size) = (1 << 25, 1 << 25),
            // Claims to be a page of a folder.
            |row, elsewhere| (row.kind, row.offset) = (Kind::Tree, elsewhere),
        ];
        for edit in edits {
            let mut bad = at(one);
            edit(&mut bad, elsewhere);
            let mut crafted = vec![bad, at(two)];
            crafted.sort_by_key(|it| it.digest);
            store(&temp).root().write(&path, &encode(&crafted), Sync::Later).unwrap();
            assert_eq!(store(&temp).read(&one).unwrap(), b"one", "the pack's own index is right: {bad:?}");
            let pack = file_path("packs", &name.hex(), ".pack").unwrap();
            let mut bytes = store(&temp).root().read(&pack).unwrap();
            bytes.pop();
            store(&temp).root().write(&pack, &bytes, Sync::Later).unwrap();
            let store = store(&temp);
            assert_eq!(store.read(&one).unwrap_err().kind(), ErrorKind::Corrupt, "{bad:?}");
            assert_eq!(store.read(&two).unwrap(), b"two", "{bad:?}");
            store.root().remove(&RepoPath::from_text("damaged").unwrap()).unwrap();
            bytes.push(1);
            store.root().write(&pack, &bytes, Sync::Later).unwrap();
        }
    }

    #[test]
    fn swapped_indexes_are_detected() {
        let temp = tempfile::tempdir().unwrap();
        let objects: [&[u8]; 2] = [b"one", b"another one"];
        let digests = objects.map(|it| put(&temp, &[it])[0]);
        let names: Vec<Digest> = store(&temp).packs().keys().copied().collect();
        let paths = [0, 1].map(|at| file_path("packs", &names[at].hex(), ".idx").unwrap());
        let indexes = [0, 1].map(|at| store(&temp).root().read(&paths[at]).unwrap());
        for at in [0, 1] {
            store(&temp).root().write(&paths[at], &indexes[1 - at], Sync::Later).unwrap();
        }
        let store = store(&temp);
        for (digest, bytes) in digests.iter().zip(objects) {
            assert_eq!(store.read(digest).unwrap(), bytes);
            assert!(!store.is_damaged(digest));
        }
        let report = store.verify(&crate::progress::Silent).unwrap();
        assert_eq!((report.faults.len(), report.lost.len()), (2, 0));
        store.quarantine(&report).unwrap();
        assert!(self::store(&temp).verify(&crate::progress::Silent).unwrap().faults.is_empty());
    }

    #[test]
    fn a_read_error_is_not_damage_and_the_next_read_succeeds() {
        Crash::alone("store::read::tests::a_read_error_is_not_damage_and_the_next_read_succeeds", || {
            let temp = tempfile::tempdir().unwrap();
            let one = put(&temp, &[b"one"])[0];
            let store = store(&temp);
            let error = {
                let _crash = Crash::at(1);
                store.read(&one).unwrap_err()
            };
            assert_eq!(error.kind(), ErrorKind::Internal);
            assert!(error.chain_text().contains(&one.to_string()), "{}", error.chain_text());
            assert!(store.contains(&one) && !store.is_damaged(&one));
            assert_eq!(store.read(&one).unwrap(), b"one");
        });
    }

    #[test]
    fn an_object_that_another_process_stored_meanwhile_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(&temp);
        let one = put(&temp, &[b"one"])[0];
        assert_eq!(store.read(&one).unwrap(), b"one");
    }

    #[test]
    fn packs_that_are_not_kept_open_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let digests = put(&temp, &[b"one", b"two"]);
        let store = store(&temp);
        let packs: Vec<_> = store.packs().values().cloned().collect();
        for packed in packs {
            let Packed { index, name, folder, .. } = &*packed;
            let index = Index::parse(index.bytes().clone()).unwrap();
            let folder = Arc::clone(folder);
            store.packs.write().unwrap().insert(Packed { index, name: *name, folder, file: None });
        }
        assert_eq!(store.read(&digests[1]).unwrap(), b"two");
        // A concurrent gc removes the pack: the objects are absent, not damaged.
        store.root().remove(&RepoPath::from_text("packs").unwrap()).unwrap();
        assert_eq!(store.read(&digests[0]).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!store.is_damaged(&digests[0]));
    }
}
