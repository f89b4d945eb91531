//! Uploads packs: fills one while earlier ones are on their way.
//!
//! The index of a pack is written after the pack is complete, and after the indexes of all earlier packs.
//! Thus readers see no part of a pack, and an object only after all that was queued before it.
//!
//! A pack that a killed push left without an index is used again if it is young and intact. An old one may be
//! about to be cleared, so that its objects are sent in a pack of another name.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use opendal::Buffer;
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    fs,
    progress::{Event, Progress},
    remote::{
        Remote,
        catalog::{Catalog, index_path, pack_path},
        clock::is_kept,
        limit,
    },
    repo::Repo,
    store::{EncodedObject, Index, Kind, PackWriter, Row, renamed},
};

/// Size at which a pack is sent, in bytes; an interrupted push loses no more than the packs under way.
const MAX_PACK_SIZE: u64 = 16 << 20;
/// Size of the first packs to a bucket, in bytes, before the rate of the line is known.
const FIRST_PACK_SIZE: u64 = 1 << 20;
/// Smallest size of a pack that is not the last one, in bytes.
const MIN_PACK_SIZE: u64 = 128 << 10;
/// Seconds that the upload of a pack should take at most.
const PACK_SECONDS: f64 = 4.0;
/// Largest number of packs on their way.
const MAX_UPLOADS: usize = 3;

/// Counts of a push.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pushed {
    pub objects: u64,
    pub packs: u64,
    /// Bytes sent, including indexes.
    pub bytes: u64,
}

/// Pack on its way to the remote.
struct Upload {
    name: Digest,
    index: Bytes,
    length: u64,
    /// Gives the duration of the upload; `None` for a pack that an earlier push left complete.
    task: Option<JoinHandle<opendal::Result<Duration>>>,
}

/// Collects objects into packs and sends them to a remote.
pub struct PackUploader<'u> {
    repo: &'u Repo,
    remote: &'u Remote,
    catalog: &'u mut Catalog,
    current: Option<PackWriter<Vec<u8>>>,
    max_size: u64,
    pack_size: u64,
    /// True if the last upload showed that the line is slow.
    is_slow: bool,
    /// Objects that [`PackUploader::put_once`] has queued.
    queued: HashSet<(Digest, Kind)>,
    /// Packs whose indexes are not written yet, in order.
    uploads: VecDeque<Upload>,
    pub sent: Pushed,
    /// Names of the packs that were queued.
    pub names: BTreeSet<Digest>,
    progress: &'u dyn Progress,
}

impl<'u> PackUploader<'u> {
    /// Creates an uploader without any queued objects.
    pub fn new(
        repo: &'u Repo,
        remote: &'u Remote,
        catalog: &'u mut Catalog,
        progress: &'u dyn Progress,
    ) -> Self {
        let max_size = limit(MAX_PACK_SIZE, "MLX_PACK_SIZE");
        Self {
            repo,
            remote,
            catalog,
            current: None,
            max_size,
            pack_size: first_size(remote, max_size),
            is_slow: false,
            queued: HashSet::new(),
            uploads: VecDeque::new(),
            sent: Pushed::default(),
            names: BTreeSet::new(),
            progress,
        }
    }

    /// Lets packs grow to their full size, also where tests lower that of a push.
    pub fn with_full_packs(mut self) -> Self {
        self.max_size = MAX_PACK_SIZE;
        self.pack_size = first_size(self.remote, MAX_PACK_SIZE);
        self
    }

    /// Returns true if the remote has the bytes of a file, in any form, or [`PackUploader::put_once`] has
    /// queued them.
    pub fn has_content(&self, digest: &Digest) -> bool {
        let is_queued = |kind| self.queued.contains(&(*digest, kind));
        is_queued(Kind::Content) || is_queued(Kind::Chunks) || self.catalog.has_content(digest)
    }

    /// Returns true if the remote has the object.
    pub fn has(&self, digest: &Digest, kind: Kind) -> bool {
        self.catalog.find(digest, &[kind]).is_some()
    }

    /// Queues an object unless the remote has it or an earlier call has queued it.
    pub fn put_once(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> Result<()> {
        if self.has(&digest, kind) || !self.queued.insert((digest, kind)) {
            return Ok(());
        }
        self.put(kind, digest, bytes)
    }

    /// Queues the list of the chunks of a file; if `again`, even if the remote has one.
    pub fn put_list(&mut self, file: &Digest, list: &[u8], again: bool) -> Result<()> {
        if self.queued.insert((*file, Kind::Chunks)) && (again || !self.has(file, Kind::Chunks)) {
            self.put(Kind::Chunks, *file, list)?;
        }
        Ok(())
    }

    /// Queues an object that the remote lacks; sends packs as they fill.
    pub fn put(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> Result<()> {
        let encoded = EncodedObject::encode(bytes.into()).context(|| "cannot write a pack".into())?;
        self.put_encoded(kind, digest, &encoded)
    }

    /// Queues an object with the bytes that are stored for it in another pack.
    pub fn put_stored(&mut self, row: &Row, stored: &[u8]) -> Result<()> {
        self.put_encoded(row.kind, row.digest, &row.encoded(stored))
    }

    /// Queues an object as [`PackUploader::put`] does, but one that is encoded already.
    pub fn put_encoded(&mut self, kind: Kind, digest: Digest, encoded: &EncodedObject<'_>) -> Result<()> {
        let context = || "cannot write a pack".to_owned();
        let pack = match &mut self.current {
            Some(pack) => pack,
            None => self.current.insert(PackWriter::new(Vec::new()).context(context)?),
        };
        pack.put_encoded(kind, digest, encoded).context(context)?;
        let full = pack.len() >= self.pack_size;
        self.sent.objects += 1;
        self.progress.event(Event::Advanced { by: encoded.size() });
        if full { self.send() } else { Ok(()) }
    }

    /// Sends everything queued so far; on return, all of it is complete and durable at the remote.
    pub fn flush(&mut self) -> Result<()> {
        self.send()?;
        while !self.uploads.is_empty() {
            self.complete_first()?;
        }
        Ok(())
    }

    /// Starts to upload the current pack, once few enough others are on their way.
    fn send(&mut self) -> Result<()> {
        let Some(pack) = self.current.take() else { return Ok(()) };
        let (objects, mut name, index, tail) =
            pack.finish_apart().context(|| "cannot write a pack".into())?;
        let mut index = Bytes::from(index);
        // Without a copy: an index may be as large as its objects.
        let parts = vec![Bytes::from(objects), index.clone(), Bytes::copy_from_slice(&tail)];
        let mut bytes = Buffer::from(parts);
        // On a slow line several at once would only take longer, each.
        let most = if self.is_slow { 1 } else { MAX_UPLOADS };
        while self.uploads.len() >= most {
            self.complete_first()?;
        }
        let mut is_there = false;
        if self.catalog.packs_without_index.contains(&name) {
            let pack = bytes.to_vec();
            if is_kept(self.remote, &name)? {
                is_there = self.remote.read_if_there(&pack_path(&name))?.as_ref() == Some(&pack);
            } else {
                let mark = fs::coarse_now().to_le_bytes();
                let other = renamed(&pack, &Index::parse(index.clone())?, &mark)?;
                (name, bytes, index) = (other.0, other.1.into(), other.2.into());
            }
        }
        self.sent.packs += 1;
        self.sent.bytes += index.len() as u64;
        self.names.insert(name);
        let (length, start) = (bytes.len() as u64, Instant::now());
        let task = (!is_there).then(|| {
            self.sent.bytes += length;
            let upload = self.remote.upload(pack_path(&name), bytes);
            self.remote.runtime.spawn(async move { upload.await.map(|()| start.elapsed()) })
        });
        self.uploads.push_back(Upload { name, index, length, task });
        Ok(())
    }

    /// Waits for the first pack and writes its index.
    fn complete_first(&mut self) -> Result<()> {
        let Some(Upload { name, index, length, task }) = self.uploads.pop_front() else { return Ok(()) };
        if let Some(task) = task {
            let duration = self.remote.wait("write to", async { task.await.map_err(to_opendal)? })?;
            if self.remote.folder.is_none() {
                let size = size_for_rate(length, duration);
                (self.pack_size, self.is_slow) = (size.min(self.max_size), size < FIRST_PACK_SIZE);
            }
        }
        self.remote.sync(&pack_path(&name))?;
        self.remote.write(&index_path(&name), index.clone())?;
        self.catalog.insert(self.repo, self.remote, name, index)
    }
}

/// Returns the size of the first pack: the rate of a line is not known yet.
fn first_size(remote: &Remote, max_size: u64) -> u64 {
    if remote.folder.is_some() { max_size } else { FIRST_PACK_SIZE.min(max_size) }
}

/// Returns the size of a pack that takes a few seconds at the rate at which one of `length` bytes was
/// uploaded: on a slow line an interrupted push loses little, and the next one goes on from there.
fn size_for_rate(length: u64, duration: Duration) -> u64 {
    let rate = length as f64 / duration.as_secs_f64().max(0.001);
    ((rate * PACK_SECONDS) as u64).clamp(MIN_PACK_SIZE, MAX_PACK_SIZE)
}

fn to_opendal(error: tokio::task::JoinError) -> opendal::Error {
    opendal::Error::new(opendal::ErrorKind::Unexpected, "an upload stopped").set_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_take_a_few_seconds_on_every_line() {
        let second = Duration::from_secs(1);
        assert_eq!(size_for_rate(1 << 20, second), 4 << 20);
        assert_eq!(size_for_rate(1 << 20, Duration::from_millis(10)), MAX_PACK_SIZE);
        assert_eq!(size_for_rate(1 << 20, Duration::ZERO), MAX_PACK_SIZE);
        assert_eq!(size_for_rate(1 << 20, 100 * second), MIN_PACK_SIZE);
    }
}
