//! Copies objects out of old packs into new ones, for a prune and for the repair of damaged packs.

use std::io::{BufWriter, Write as _};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Error, Result, WithContext},
    fs::{Sync, TempFile},
    store::{Kind, PackWriter, Row, Store},
};

/// Size at which a pack is ended, in bytes.
pub(super) const MAX_PACK_SIZE: u64 = 64 << 20;
/// Number of objects read at once.
const READ_BATCH: usize = 512;

/// Copies objects out of old packs into new ones.
pub(super) struct Repacker<'s> {
    store: &'s Store,
    contents: Option<PackWriter<BufWriter<TempFile>>>,
    trees: Option<PackWriter<BufWriter<TempFile>>>,
    published: Vec<Digest>,
}

impl<'s> Repacker<'s> {
    pub fn new(store: &'s Store) -> Self {
        Self { store, contents: None, trees: None, published: Vec::new() }
    }

    /// Copies rows of a pack, verifying each; fails if an object is damaged here and in all other packs.
    pub fn copy_rows(&mut self, pack: &Digest, rows: &[Row]) -> Result<()> {
        let unreadable = || Error::corrupt(format!("the pack {} cannot be read", pack.short()));
        let packed = self.store.packs().get(pack).cloned().ok_or_else(unreadable)?;
        for batch in rows.chunks(READ_BATCH) {
            let read = batch.par_iter().map(|row| {
                packed
                    .read(row)
                    .or_else(|error| self.store.intact_copy(&row.digest, &|name| name != pack).ok_or(error))
            });
            let read: Vec<Vec<u8>> = read.collect::<Result<_>>()?;
            for (row, bytes) in batch.iter().zip(read) {
                self.put(row.kind, row.digest, &bytes)?;
            }
        }
        Ok(())
    }

    /// Adds an object to the pack of its kind.
    pub fn put(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> Result<()> {
        let slot = if kind == Kind::Tree { &mut self.trees } else { &mut self.contents };
        let pack = match slot {
            Some(pack) => pack,
            None => {
                let temp = self.store.create_temp("packs", 0o666)?;
                slot.insert(PackWriter::new(BufWriter::new(temp)).context(|| "cannot write a pack".into())?)
            }
        };
        pack.put(kind, digest, bytes).context(|| "cannot write a pack".into())?;
        if pack.len() >= MAX_PACK_SIZE {
            let full = slot.take();
            self.publish(full)?;
        }
        Ok(())
    }

    /// Publishes the remaining packs, contents before the trees that name them; returns the names of all new
    /// packs.
    pub fn finish(mut self) -> Result<Vec<Digest>> {
        let contents = self.contents.take();
        self.publish(contents)?;
        let trees = self.trees.take();
        self.publish(trees)?;
        Ok(self.published)
    }

    fn publish(&mut self, pack: Option<PackWriter<BufWriter<TempFile>>>) -> Result<()> {
        let Some(pack) = pack else { return Ok(()) };
        let context = || "cannot write a pack".to_owned();
        let (out, name, index) = pack.finish().context(context)?;
        let temp = out.into_inner().map_err(std::io::IntoInnerError::into_error).context(context)?;
        self.store.pin_new(name)?;
        self.published.push(name);
        temp.publish(format!("{}.pack", name.hex()).as_bytes(), Sync::Now)?;
        let mut temp = self.store.create_temp("packs", 0o666)?;
        temp.write_all(&index).context(context)?;
        temp.publish(format!("{}.idx", name.hex()).as_bytes(), Sync::Now)?;
        self.store.refresh()?;
        self.store.clear_damaged_in(&name)
    }
}
