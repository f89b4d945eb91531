//! Uploads packs: fills one after another and sends several at a time.
//!
//! The index of a pack is written after the pack is complete, so that no reader sees a part of it.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    progress::{Event, Progress},
    remote::{
        Remote,
        catalog::{Catalog, index_path, pack_path},
        write_one,
    },
    store::{Kind, PackWriter},
};

/// Size at which a pack is sent, in bytes; an interrupted push loses no more than the packs under way.
const PACK_SIZE: u64 = 16 << 20;
/// Packs in memory at once.
const MAX_WAITING_PACKS: usize = 3;

/// Counts of a push.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pushed {
    pub objects: u64,
    pub packs: u64,
    /// Bytes sent, including indexes.
    pub bytes: u64,
}

struct FinishedPack {
    name: Digest,
    bytes: Vec<u8>,
    index: Vec<u8>,
}

/// Collects objects into packs and sends them to a remote.
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
    /// Creates an uploader without any queued objects.
    pub fn new(remote: &'u Remote, catalog: &'u mut Catalog, progress: &'u dyn Progress) -> Self {
        let (current, queued, finished, sent) =
            (None, std::collections::HashSet::new(), Vec::new(), Pushed::default());
        Self { remote, catalog, current, queued, finished, sent, progress }
    }

    /// Returns true if the remote has the object or it is queued.
    pub fn has(&self, digest: &Digest, kind: Kind) -> bool {
        self.queued.contains(&(*digest, kind)) || self.catalog.find(digest, &[kind]).is_some()
    }

    /// Returns true if the remote has the bytes of a file, in any form, or they are queued.
    pub fn has_content(&self, digest: &Digest) -> bool {
        self.queued.contains(&(*digest, Kind::Content)) || self.catalog.has_content(digest)
    }

    /// Queues an object that the remote lacks; sends packs as they fill.
    pub fn put(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> Result<()> {
        let context = || "cannot write a pack".to_owned();
        let pack = match &mut self.current {
            Some(pack) => pack,
            None => self.current.insert(PackWriter::new(Vec::new()).context(context)?),
        };
        pack.put(kind, digest, bytes).context(context)?;
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
        let (bytes, name, index) = pack.finish().context(|| "cannot write a pack".into())?;
        self.finished.push(FinishedPack { name, bytes, index });
        Ok(())
    }

    /// Sends everything queued so far; on return, all of it is complete and durable at the remote.
    pub fn flush(&mut self) -> Result<()> {
        self.close()?;
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        let finished = std::mem::take(&mut self.finished);
        let (remote, operator) = (self.remote, &self.remote.operator);
        self.sent.packs += finished.len() as u64;
        self.sent.bytes +=
            finished.iter().map(|pack| (pack.bytes.len() + pack.index.len()) as u64).sum::<u64>();
        let mut indexes = Vec::new();
        let packs = finished.into_iter().map(|pack| {
            indexes.push((pack.name, pack.index));
            write_one(operator, pack_path(&pack.name), pack.bytes)
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
