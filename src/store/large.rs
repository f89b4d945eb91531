//! Files over 1 MiB: each is stored as a file of its own, read-only, so that it can be linked into the
//! workspace.

use std::io::{self, Read as _};

use crate::{
    digest::{Digest, Hasher},
    error::{Error, Kind, Result, WithContext},
    fs::{self, Dir, File, FileStat, LinkKind, Mode, SparseReader, Sync, link_into as place_link},
    path::RepoPath,
    store::{
        Store,
        chunked::ListState,
        chunks::{self, Chunk},
        file_path,
    },
};

const BUFFER_SIZE: usize = 4 << 20;
const READ_ONLY: u32 = 0o444;

/// A large file in the store.
pub struct LargeFile<'s> {
    store: &'s Store,
    digest: Digest,
    path: RepoPath,
    stat: FileStat,
}

impl Store {
    /// Returns the large file of this digest, if it is stored.
    pub fn large(&self, digest: &Digest) -> Option<LargeFile<'_>> {
        let path = file_path("objects", &digest.hex(), "").ok()?;
        let stat = self.root.stat(&path).ok()??;
        Some(LargeFile { store: self, digest: *digest, path, stat })
    }

    /// Calls `with` with the large file of this digest; `None` if it is not stored whole, or a concurrent gc
    /// removed it or keeps it as chunks from now on.
    pub fn with_large<'s, T>(
        &'s self,
        digest: &Digest,
        with: impl FnOnce(&LargeFile<'s>) -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(large) = self.large(digest) else { return Ok(None) };
        match with(&large) {
            Err(error) if error.kind() == Kind::NotFound && self.large(digest).is_none() => Ok(None),
            done => done.map(Some),
        }
    }

    /// Returns the large file that a workspace's symbolic link points to, if the link points into this store.
    pub fn large_from_link(&self, target: &[u8]) -> Option<LargeFile<'_>> {
        let folder = self.root.path().join("objects");
        let hex = target.strip_prefix(folder.as_os_str().as_encoded_bytes())?.strip_prefix(b"/")?;
        self.large(&Digest::from_hex(std::str::from_utf8(hex).ok()?).ok()?)
    }

    /// Returns true if the object is stored and matches its digest; a large file that is known to be verified
    /// is not read.
    pub fn is_intact(&self, digest: &Digest) -> bool {
        match self.with_large(digest, LargeFile::ensure_verified) {
            Ok(Some(())) => true,
            Err(_) => false,
            Ok(None) => match self.chunked(digest) {
                Some(chunked) => chunked.state() == ListState::Right,
                None => self.read(digest).is_ok(),
            },
        }
    }

    /// Stores a large file, reading it once; it shares blocks with `file` if the file system supports that.
    /// If `accept` rejects the file after it was read, nothing is stored.
    pub fn put_large(&self, file: &File, accept: &dyn Fn(&File, u64) -> Result<()>) -> Result<(Digest, u64)> {
        let dir = self.dir("objects")?;
        dir.clean_own()?;
        let mut temp = dir.create(READ_ONLY)?.locked();
        let copied = if temp.reflink_from(file) {
            copy_file(&temp.reopen()?, &mut io::sink())
        } else {
            copy_file(file, &mut temp)
        };
        let (digest, size) = copied.context(|| "cannot store a large file".into())?;
        accept(file, size)?;
        // Not as chunks alone: a workspace has this version.
        let is_whole = self.contains_packed(&digest) || self.large(&digest).is_some();
        if !is_whole || !self.pin(&digest) {
            self.pin_new(digest)?;
            temp.publish(digest.hex().as_bytes(), Sync::Now)?;
            self.clear_damaged(&digest)?;
            self.mark_just_stored(&digest);
        }
        Ok((digest, size))
    }

    /// Adopts a file of the store that was assembled from chunks, if it matches its digest; otherwise removes
    /// it.
    pub fn adopt_large(&self, digest: &Digest, part: &RepoPath) -> Result<()> {
        let file = self.root.open_file(part)?;
        let (found, _) = copy_file(&file, &mut io::sink()).context(|| format!("cannot read `{part}`"))?;
        if found != *digest {
            self.root.remove(part)?;
            let message = format!("the downloaded file for {} does not match its digest", digest.short());
            return Err(Error::corrupt(message));
        }
        if let Err(error) = file.sync_all() {
            // A later sync may succeed although these bytes were lost.
            self.root.remove(part)?;
            return Err(error).context(|| format!("cannot sync `{part}`"));
        }
        self.root.set_read_only(part)?;
        self.pin_new(*digest)?;
        self.dir("objects")?;
        self.root.rename(part, &file_path("objects", &digest.hex(), "")?)?;
        self.dir("objects")?.sync()?;
        self.mark_just_stored(digest);
        self.clear_damaged(digest)
    }
}

impl LargeFile<'_> {
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns its stat data at its look-up: if they change, the content may no longer match its digest.
    pub fn stat(&self) -> &FileStat {
        &self.stat
    }

    pub fn open(&self) -> Result<File> {
        self.store.root.open_file(&self.path)
    }

    /// Reads the whole content and checks it against its digest.
    pub(super) fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open()?.read_to_end(&mut bytes).context(|| format!("cannot read `{}`", self.path))?;
        if Digest::of(&bytes) == self.digest {
            Ok(bytes)
        } else {
            Err(self.store.report_damage(&self.digest))
        }
    }

    /// Cuts the file into chunks; `None` if it does not match its digest.
    pub(super) fn cut(&self) -> Result<Option<Vec<Chunk>>> {
        let (found, list) = chunks::cut(self.open()?, |_, _| Ok(()))?;
        Ok((found == self.digest).then_some(list))
    }

    fn verify(&self) -> Result<()> {
        let (found, _) =
            copy_file(&self.open()?, &mut io::sink()).context(|| format!("cannot read `{}`", self.path))?;
        if found == self.digest { Ok(()) } else { Err(self.store.report_damage(&self.digest)) }
    }

    /// Verifies the file as [`LargeFile::verify`] does, unless that was done since any user could last write
    /// to it.
    pub(super) fn ensure_verified(&self) -> Result<()> {
        if self.store.is_verified(&self.digest)? {
            return Ok(());
        }
        let tick = fs::coarse_now();
        self.verify()?;
        self.store.mark_verified(&self.digest, tick)
    }

    /// Links the file to `name` in `dir`, after checking its digest, by the first of `links` that works;
    /// `None` if that is a copy.
    pub fn link(&self, dir: &Dir, name: &[u8], mode: Mode, links: &[LinkKind]) -> Result<Option<LinkKind>> {
        if links.iter().all(|&it| it == LinkKind::Copy) {
            return Ok(None);
        }
        self.ensure_verified()?;
        place_link(&self.store.root, &self.path, dir, name, mode, links)
    }

    /// Links or copies the file to `name` in `dir`, after checking its digest; uses the first of `links` that
    /// works, or a copy.
    pub fn link_or_copy(&self, dir: &Dir, name: &[u8], mode: Mode, links: &[LinkKind]) -> Result<LinkKind> {
        if let Some(link) = self.link(dir, name, mode, links)? {
            return Ok(link);
        }
        let mut temp = dir.create(mode.bits())?;
        let (found, _) = copy_file(&self.open()?, &mut temp)
            .context(|| format!("cannot write `{}`", crate::path::escape_bytes(name)))?;
        if found != self.digest {
            return Err(self.store.report_damage(&self.digest));
        }
        temp.publish(name, Sync::Later)?;
        Ok(LinkKind::Copy)
    }
}

/// Copies and hashes a file in one pass, in constant memory.
fn copy_file(from: &File, to: &mut dyn io::Write) -> io::Result<(Digest, u64)> {
    copy(&mut SparseReader::new(from), to)
}

/// Copies and hashes what `from` gives, in constant memory; returns its digest and size in bytes.
pub(super) fn copy(from: &mut dyn io::Read, to: &mut dyn io::Write) -> io::Result<(Digest, u64)> {
    let mut buffer = vec![0; BUFFER_SIZE];
    let (mut hasher, mut size) = (Hasher::default(), 0);
    loop {
        let mut filled = 0;
        while filled < BUFFER_SIZE {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.write_parallel(&buffer[..filled]);
        to.write_all(&buffer[..filled])?;
        size += filled as u64;
    }
}

/// Returns the digest and size of an open file, read from its start in constant memory.
pub fn digest_file(file: &File) -> Result<(Digest, u64)> {
    copy_file(file, &mut io::sink())
        .map_err(|it| Error::new(Kind::Internal, "cannot read a file to its end").with_source(it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Root;

    #[test]
    fn a_file_from_chunks_is_adopted_only_if_it_matches_its_digest() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        let part = RepoPath::from_text("incoming/part").unwrap();
        let digest = Digest::of(b"the right bytes");
        store.root.write(&part, b"the wrong bytes", Sync::Later).unwrap();
        assert_eq!(store.adopt_large(&digest, &part).unwrap_err().kind(), Kind::Corrupt);
        assert!(store.large(&digest).is_none() && store.root.stat(&part).unwrap().is_none());
        store.root.write(&part, b"the right bytes", Sync::Later).unwrap();
        store.adopt_large(&digest, &part).unwrap();
        assert_eq!(store.read(&digest).unwrap(), b"the right bytes");
    }

    #[test]
    fn a_file_that_vanishes_while_it_is_used_counts_as_not_stored() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        let path = RepoPath::from_text("incoming/part").unwrap();
        let digest = Digest::of(b"bytes");
        store.root.write(&path, b"bytes", Sync::Later).unwrap();
        store.adopt_large(&digest, &path).unwrap();
        let read_after_removal = |large: &LargeFile<'_>| {
            store.root.remove(&large.path)?;
            large.open()
        };
        let missing = |_: &LargeFile<'_>| Err::<(), _>(Error::not_found("another file"));
        assert_eq!(store.with_large(&digest, missing).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(store.with_large(&digest, |large| Ok(large.stat().size)).unwrap(), Some(5));
        assert!(store.with_large(&digest, read_after_removal).unwrap().is_none());
    }
}
