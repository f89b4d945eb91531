//! Objects into the store: small ones are gathered into packs, each seen only when it is whole.

use std::{
    collections::HashSet,
    io::{self, BufWriter, Write as _},
};

use crate::{
    digest::Digest,
    error::{Doing, Result},
    fs::{Sync, Temp},
    store::{Kind, PackWriter, Ready, Store},
};

/// A pack is ended at this size, or with this many objects: until then they are held in memory twice, for the index
/// and to know them again.
const FULL: u64 = 64 << 20;
const MANY: usize = 1 << 17;
const BUFFER: usize = 1 << 20;

/// Gathers objects; nothing of it is seen before [`Writer::finish`] or a full pack. Trees come after the
/// contents they name and in packs of their own.
pub struct Writer<'s> {
    store: &'s Store,
    contents: Option<PackWriter<BufWriter<Temp>>>,
    trees: Option<PackWriter<BufWriter<Temp>>>,
    /// Contents that this writer has taken and the store does not show yet.
    taken: HashSet<Digest>,
    taken_trees: HashSet<Digest>,
}

impl<'s> Writer<'s> {
    pub fn new(store: &'s Store) -> Self {
        Self { store, contents: None, trees: None, taken: HashSet::new(), taken_trees: HashSet::new() }
    }

    fn has_taken(&self, digest: &Digest) -> bool {
        self.taken.contains(digest) || self.taken_trees.contains(digest)
    }

    /// Whether the object is stored, and stays so while this process lives, or is about to be.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.has_taken(digest) || self.store.lean_on(digest)
    }

    /// As [`Writer::contains`], of what is small enough for a pack.
    pub fn contains_packed(&self, digest: &Digest) -> bool {
        self.has_taken(digest) || self.store.lean_on_packed(digest)
    }

    /// Takes a small object, unless it is there already.
    pub fn put(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> Result<()> {
        if self.contains_packed(&digest) {
            return Ok(());
        }
        let ready = Ready::of(bytes.into()).doing(|| "cannot compress".into())?;
        self.put_ready(kind, digest, &ready)
    }

    /// As [`Writer::put`], of what was compressed elsewhere since the store was asked for it.
    pub fn put_ready(&mut self, kind: Kind, digest: Digest, ready: &Ready<'_>) -> Result<()> {
        if self.has_taken(&digest) {
            return Ok(());
        }
        let doing = || "cannot write a pack".to_owned();
        let slot = if kind == Kind::Tree { &mut self.trees } else { &mut self.contents };
        let pack = match slot {
            Some(pack) => pack,
            None => slot.insert(open(self.store)?),
        };
        pack.put_ready(kind, digest, ready).doing(doing)?;
        let taken = if kind == Kind::Tree { &mut self.taken_trees } else { &mut self.taken };
        taken.insert(digest);
        // Trees wait for the contents they name.
        let many = self.taken.len() >= MANY;
        if (pack.len() >= FULL || many) && kind == Kind::Content {
            let full = self.contents.take();
            self.publish(Kind::Content, full)?;
        }
        Ok(())
    }

    /// Takes the text of a link or another few bytes, and names them.
    pub fn put_bytes(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        self.put(Kind::Content, digest, bytes)?;
        Ok(digest)
    }

    /// Publishes what was taken: contents, then trees.
    pub fn finish(mut self) -> Result<()> {
        let contents = self.contents.take();
        self.publish(Kind::Content, contents)?;
        let trees = self.trees.take();
        self.publish(Kind::Tree, trees)?;
        self.store.vouch_for_stored()
    }

    fn publish(&mut self, kind: Kind, pack: Option<PackWriter<BufWriter<Temp>>>) -> Result<()> {
        let Some(pack) = pack else { return Ok(()) };
        let end = || -> io::Result<_> {
            let (out, name, index) = pack.finish()?;
            Ok((out.into_inner().map_err(io::IntoInnerError::into_error)?, name, index))
        };
        let (temp, name, index) = end().doing(|| "cannot write a pack".into())?;
        self.store.announce(name)?;
        temp.publish(format!("{}.pack", name.hex()).as_bytes(), Sync::Yes)?;
        let mut temp = self.store.create("packs", 0o666)?;
        temp.write_all(&index).doing(|| "cannot write a pack index".into())?;
        temp.publish(format!("{}.idx", name.hex()).as_bytes(), Sync::Yes)?;
        self.store.refresh()?;
        // The store shows them from now on.
        let taken = std::mem::take(if kind == Kind::Tree { &mut self.taken_trees } else { &mut self.taken });
        let mended: Vec<Digest> = self.store.damaged().intersection(&taken).copied().collect();
        mended.iter().try_for_each(|it| self.store.mark_sound(it))
    }
}

fn open(store: &Store) -> Result<PackWriter<BufWriter<Temp>>> {
    let dir = store.dir("packs")?;
    dir.sweep()?;
    let temp = dir.create(0o666)?.held();
    PackWriter::new(BufWriter::with_capacity(BUFFER, temp)).doing(|| "cannot write a pack".into())
}
