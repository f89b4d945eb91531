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
const PACK_SIZE: u64 = 16 << 20;
/// Packs in memory at once.
const MAX_WAITING_PACKS: usize = 3;

/// What a push sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pushed {
    pub objects: u64,
    pub packs: u64,
    /// Bytes on the wire, indexes included.
    pub bytes: u64,
}

struct FinishedPack {
    name: Digest,
    bytes: Vec<u8>,
    index: Vec<u8>,
}

pub struct PackUploader<'u> {
    remote: &'u Remote,
    catalog: &'u mut Catalog,
    current: Option<PackWriter<Vec<u8>>>,
    queued: std::collections::HashSet<(Digest, Kind)>,
    finished: Vec<FinishedPack>,
    pub sent: Pushed,
    progress: &'u dyn Progress,
}

impl<'u> PackUploader<'u> {
    pub fn new(remote: &'u Remote, catalog: &'u mut Catalog, progress: &'u dyn Progress) -> Self {
        let (current, queued, finished, sent) =
            (None, std::collections::HashSet::new(), Vec::new(), Pushed::default());
        Self { remote, catalog, current, queued, finished, sent, progress }
    }

    /// Whether the object is there or about to be.
    pub fn has(&self, digest: &Digest, kind: Kind) -> bool {
        self.queued.contains(&(*digest, kind)) || self.catalog.find(digest, &[kind]).is_some()
    }

    pub fn has_content(&self, digest: &Digest) -> bool {
        self.queued.contains(&(*digest, Kind::Content)) || self.catalog.has_content(digest)
    }

    /// Takes an object that the remote lacks.
    pub fn put(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> Result<()> {
        let doing = || "cannot write a pack".to_owned();
        let pack = match &mut self.current {
            Some(pack) => pack,
            None => self.current.insert(PackWriter::new(Vec::new()).doing(doing)?),
        };
        pack.put(kind, digest, bytes).doing(doing)?;
        let full = pack.len() >= PACK_SIZE;
        self.queued.insert((digest, kind));
        self.sent.objects += 1;
        self.progress.event(Event::Advanced { by: bytes.len() as u64 });
        if full {
            self.close()?;
            if self.finished.len() >= MAX_WAITING_PACKS {
                self.send()?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(pack) = self.current.take() else { return Ok(()) };
        let (bytes, name, index) = pack.finish().doing(|| "cannot write a pack".into())?;
        self.finished.push(FinishedPack { name, bytes, index });
        Ok(())
    }

    /// Sends everything queued so far; when it returns, all of it is there and at rest.
    pub fn flush(&mut self) -> Result<()> {
        self.close()?;
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        let finished = std::mem::take(&mut self.finished);
        let (remote, operator) = (self.remote, &self.remote.operator);
        self.sent.packs += finished.len() as u64;
        self.sent.bytes += finished.iter().map(|it| (it.bytes.len() + it.index.len()) as u64).sum::<u64>();
        let mut indexes = Vec::new();
        let packs = finished.into_iter().map(|it| {
            indexes.push((it.name, it.index));
            write_one(operator, pack_path(&it.name), it.bytes)
        });
        let packs = stream::iter(packs.collect::<Vec<_>>());
        remote.wait("write to", packs.buffer_unordered(MAX_WAITING_PACKS).try_collect::<Vec<()>>())?;
        for (name, index) in indexes {
            remote.sync(&pack_path(&name))?;
            remote.write(&index_path(&name), index.clone())?;
            self.catalog.insert(name, index)?;
        }
        Ok(())
    }
}
