//! Writes objects into the store: small ones are collected into packs, which become visible only when
//! complete.

use std::{
    collections::HashSet,
    io::{self, BufWriter, Write as _},
};

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    fs::{Sync, TempFile},
    store::{EncodedObject, Kind, PackWriter, Store},
};

/// Size at which a pack is ended, in bytes.
const MAX_PACK_SIZE: u64 = 64 << 20;
/// Number of objects at which a pack is ended: until then their digests are in memory twice, for the index
/// and to recognize duplicates.
const MAX_OBJECTS: usize = 1 << 17;
const BUFFER_SIZE: usize = 1 << 20;

/// Collects objects into packs, which become visible at [`Writer::finish`] or when one is full. Trees go into
/// packs of their own, which are published after the contents they name.
pub struct Writer<'s> {
    store: &'s Store,
    contents: Option<PackWriter<BufWriter<TempFile>>>,
    trees: Option<PackWriter<BufWriter<TempFile>>>,
    /// Contents that this writer has collected and not yet published.
    pending: HashSet<Digest>,
    pending_trees: HashSet<Digest>,
}

impl<'s> Writer<'s> {
    pub fn new(store: &'s Store) -> Self {
        Self { store, contents: None, trees: None, pending: HashSet::new(), pending_trees: HashSet::new() }
    }

    fn is_pending(&self, digest: &Digest) -> bool {
        self.pending.contains(digest) || self.pending_trees.contains(digest)
    }

    /// Returns true if an object too large to be collected is stored, in which case it is pinned.
    pub fn contains_large(&self, digest: &Digest) -> bool {
        self.store.pin(digest)
    }

    /// Returns true if an object small enough to be in packs is stored, in which case it is pinned, or is
    /// collected already.
    pub fn contains_packed(&self, digest: &Digest) -> bool {
        self.is_pending(digest) || self.store.pin_packed(digest)
    }

    /// Collects a small object, unless it is stored or collected already.
    pub fn put(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> Result<()> {
        if self.contains_packed(&digest) {
            return Ok(());
        }
        let ready = EncodedObject::encode(bytes.into()).context(|| "cannot compress".into())?;
        self.put_encoded(kind, digest, &ready)
    }

    /// Collects an object as [`Writer::put`] does, but one that is encoded already and was checked not to be
    /// stored.
    pub fn put_encoded(&mut self, kind: Kind, digest: Digest, ready: &EncodedObject<'_>) -> Result<()> {
        if self.is_pending(&digest) {
            return Ok(());
        }
        let pending = if kind == Kind::Tree { &mut self.pending_trees } else { &mut self.pending };
        pending.insert(digest);
        self.put_new(kind, digest, ready)
    }

    /// Collects an object as [`Writer::put_encoded`] does, but one that no other call collects: its digest is
    /// in memory once only.
    pub fn put_new(&mut self, kind: Kind, digest: Digest, ready: &EncodedObject<'_>) -> Result<()> {
        let context = || "cannot write a pack".to_owned();
        let slot = if kind == Kind::Tree { &mut self.trees } else { &mut self.contents };
        let pack = match slot {
            Some(pack) => pack,
            None => slot.insert(open_pack(self.store)?),
        };
        pack.put_encoded(kind, digest, ready).context(context)?;
        // Trees wait until the contents they name are published.
        let is_full = pack.len() >= MAX_PACK_SIZE || pack.objects() >= MAX_OBJECTS;
        if is_full && kind == Kind::Content {
            let full = self.contents.take();
            self.publish(Kind::Content, full)?;
        }
        Ok(())
    }

    /// Collects the target of a link or other short content, and returns its digest.
    pub fn put_bytes(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        self.put(Kind::Content, digest, bytes)?;
        Ok(digest)
    }

    /// Publishes everything that was collected: contents, then trees.
    pub fn finish(mut self) -> Result<()> {
        let contents = self.contents.take();
        self.publish(Kind::Content, contents)?;
        let trees = self.trees.take();
        self.publish(Kind::Tree, trees)?;
        self.store.record_just_stored()
    }

    fn publish(&mut self, kind: Kind, pack: Option<PackWriter<BufWriter<TempFile>>>) -> Result<()> {
        let Some(pack) = pack else { return Ok(()) };
        let end = || -> io::Result<_> {
            let (out, name, index) = pack.finish()?;
            Ok((out.into_inner().map_err(io::IntoInnerError::into_error)?, name, index))
        };
        let (temp, name, index) = end().context(|| "cannot write a pack".into())?;
        self.store.pin_new(name)?;
        temp.publish(format!("{}.pack", name.hex()).as_bytes(), Sync::Now)?;
        let mut temp = self.store.create_temp("packs", 0o666)?;
        temp.write_all(&index).context(|| "cannot write a pack index".into())?;
        drop(index);
        temp.publish(format!("{}.idx", name.hex()).as_bytes(), Sync::Now)?;
        self.store.refresh()?;
        // From now on the store itself contains them.
        *(if kind == Kind::Tree { &mut self.pending_trees } else { &mut self.pending }) = HashSet::new();
        self.store.clear_damaged_in(&name)
    }
}

fn open_pack(store: &Store) -> Result<PackWriter<BufWriter<TempFile>>> {
    let dir = store.dir("packs")?;
    dir.clean_own()?;
    let temp = dir.create(0o666)?.locked();
    PackWriter::new(BufWriter::with_capacity(BUFFER_SIZE, temp)).context(|| "cannot write a pack".into())
}
