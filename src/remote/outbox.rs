//! Packs on their way: filled one after another, sent a few at a time, each seen there only when it is
//! whole.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use crate::{
    digest::Digest,
    error::{Doing, Result},
    progress::{Event, Progress},
    remote::{
        Remote,
        catalog::{Catalog, index_path, pack_path},
        write_one,
    },
    store::{Kind, PackWriter},
};

/// A pack is sent at this size: what an interrupted push may have to send again.
const FULL: u64 = 16 << 20;
/// Packs in memory at once.
const WAITING: usize = 3;

/// What a push sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pushed {
    pub objects: u64,
    pub packs: u64,
    /// Bytes on the wire, indexes included.
    pub bytes: u64,
}

struct Ready {
    name: Digest,
    bytes: Vec<u8>,
    index: Vec<u8>,
}

pub struct Outbox<'o> {
    remote: &'o Remote,
    catalog: &'o mut Catalog,
    open: Option<PackWriter<Vec<u8>>>,
    taken: std::collections::HashSet<(Digest, Kind)>,
    ready: Vec<Ready>,
    pub sent: Pushed,
    progress: &'o dyn Progress,
}

impl<'o> Outbox<'o> {
    pub fn new(remote: &'o Remote, catalog: &'o mut Catalog, progress: &'o dyn Progress) -> Self {
        let (open, taken, ready, sent) =
            (None, std::collections::HashSet::new(), Vec::new(), Pushed::default());
        Self { remote, catalog, open, taken, ready, sent, progress }
    }

    /// Whether the object is there or about to be.
    pub fn has(&self, digest: &Digest, kind: Kind) -> bool {
        self.taken.contains(&(*digest, kind)) || self.catalog.find(digest, &[kind]).is_some()
    }

    pub fn has_content(&self, digest: &Digest) -> bool {
        self.taken.contains(&(*digest, Kind::Content)) || self.catalog.has_content(digest)
    }

    /// Takes an object that the remote lacks.
    pub fn put(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> Result<()> {
        let doing = || "cannot write a pack".to_owned();
        let pack = match &mut self.open {
            Some(pack) => pack,
            None => self.open.insert(PackWriter::new(Vec::new()).doing(doing)?),
        };
        pack.put(kind, digest, bytes).doing(doing)?;
        let full = pack.len() >= FULL;
        self.taken.insert((digest, kind));
        self.sent.objects += 1;
        self.progress.event(Event::Advanced { by: bytes.len() as u64 });
        if full {
            self.close()?;
            if self.ready.len() >= WAITING {
                self.send()?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(pack) = self.open.take() else { return Ok(()) };
        let (bytes, name, index) = pack.finish().doing(|| "cannot write a pack".into())?;
        self.ready.push(Ready { name, bytes, index });
        Ok(())
    }

    /// Sends everything taken so far; when it returns, all of it is there and at rest.
    pub fn flush(&mut self) -> Result<()> {
        self.close()?;
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        let ready = std::mem::take(&mut self.ready);
        let (remote, operator) = (self.remote, &self.remote.operator);
        self.sent.packs += ready.len() as u64;
        self.sent.bytes += ready.iter().map(|it| (it.bytes.len() + it.index.len()) as u64).sum::<u64>();
        let mut indexes = Vec::new();
        let packs = ready.into_iter().map(|it| {
            indexes.push((it.name, it.index));
            write_one(operator, pack_path(&it.name), it.bytes)
        });
        let packs = stream::iter(packs.collect::<Vec<_>>());
        remote.wait("write to", packs.buffer_unordered(WAITING).try_collect::<Vec<()>>())?;
        for (name, index) in indexes {
            remote.settle(&pack_path(&name))?;
            remote.write(&index_path(&name), index.clone())?;
            self.catalog.insert(name, index)?;
        }
        Ok(())
    }
}
