//! Objects out of the store; everything read is checked against its digest.

use std::{io, os::unix::fs::FileExt as _, sync::Arc};

use crate::{
    digest::Digest,
    error::{Doing, Error, Kind as ErrorKind, Result},
    store::{Kind, Packed, Row, Store},
};

impl Store {
    /// The bytes of an object that is a page or a small file; a large one is read whole.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        if let Some(bytes) = self.try_read(digest)? {
            return Ok(bytes);
        }
        // Another process may have stored it since we looked.
        if self.refresh()?
            && let Some(bytes) = self.try_read(digest)?
        {
            return Ok(bytes);
        }
        let known = self.damaged().contains(digest);
        Err(if known { self.damage(digest) } else { absent(digest) })
    }

    /// The error for an object whose bytes are not what its name says; it counts as absent from now on.
    pub fn damage(&self, digest: &Digest) -> Error {
        self.mark_damaged(digest);
        Error::corrupt(format!("the object {digest} in the cache is damaged")).hint(
            "`mlx fetch` brings a sound copy from a remote; `mlx add` stores it anew from the workspace",
        )
    }

    fn try_read(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let (mut wrong, mut failed) = (false, None);
        for (packed, row) in self.rows(digest, &[Kind::Content, Kind::Tree]) {
            match packed.read(&row) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::Corrupt => wrong = true,
                // A gc elsewhere took it and has put what is needed into another.
                Err(error) if error.kind() == ErrorKind::NotFound => self.forget(&packed.name),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(large) = self.large(digest) {
            match large.read() {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::Corrupt => wrong = true,
                Err(error) => return Err(error),
            }
        }
        // What the disk did not give now, it may give the next time: that is no damage.
        match failed {
            Some(error) => Err(error).doing(|| format!("cannot read the object {digest} in the cache")),
            None if wrong => Err(self.damage(digest)),
            None => Ok(None),
        }
    }

    /// Where the object lies in packs.
    fn rows(&self, digest: &Digest, kinds: &[Kind]) -> Vec<(Arc<Packed>, Row)> {
        let packs = self.packs();
        packs.values().filter_map(|it| Some((Arc::clone(it), it.index.find(digest, kinds)?))).collect()
    }
}

impl Packed {
    pub(super) fn read(&self, row: &Row) -> Result<Vec<u8>> {
        let damaged = || Error::corrupt("a pack ends too early");
        let mut stored = vec![0; usize::try_from(row.stored).map_err(|_| damaged())?];
        let opened = match &self.file {
            Some(_) => None,
            None => Some(self.folder.open(format!("{}.pack", self.name.hex()).as_bytes())?),
        };
        let file = self.file.as_ref().or(opened.as_ref()).expect("it is open, or was opened just now");
        match file.read_exact_at(&mut stored, row.offset) {
            Ok(()) => row.decode(&stored),
            // An offset may be larger than any file.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput) =>
            {
                Err(damaged())
            }
            Err(error) => Err(error).doing(|| format!("cannot read the pack {}", self.name.short())),
        }
    }
}

fn absent(digest: &Digest) -> Error {
    Error::not_found(format!("the object {digest} is not in the cache"))
        .hint("bring it with `mlx pull` or `mlx fetch`")
}
