//! Reads objects from the packs of a remote, each from another pack if one copy is damaged.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, stream};
use opendal::ErrorKind;

use crate::{
    digest::Digest,
    error::Result,
    progress::{Event, Progress},
    remote::{
        Fetched, PARALLEL, Remote,
        catalog::{Catalog, damage_path, pack_path},
    },
    store::{Kind, Row},
};

/// Largest gap between two objects of a pack that are read in one request, in bytes.
const MAX_GAP: u64 = 64 << 10;
/// Largest request, in bytes.
const MAX_REQUEST: u64 = 8 << 20;

/// Takes an object that was read and checked against its digest.
type Take<'t> = &'t mut dyn FnMut(&Row, &[u8]) -> Result<()>;

/// Reads objects of a remote, and remembers which packs are damaged.
pub struct ObjectReader<'r> {
    pub remote: &'r Remote,
    pub catalog: Catalog,
    pub stats: Fetched,
    progress: &'r dyn Progress,
    /// Packs with the objects in them that are not intact.
    damaged: BTreeMap<Digest, BTreeSet<Digest>>,
}

/// A range of a pack that is read in one request.
struct Span {
    pack: Digest,
    start: u64,
    end: u64,
    rows: Vec<Row>,
}

impl<'r> ObjectReader<'r> {
    /// Creates a reader that has read nothing yet.
    pub fn new(remote: &'r Remote, catalog: Catalog, progress: &'r dyn Progress) -> Self {
        Self { remote, catalog, stats: Fetched::default(), progress, damaged: BTreeMap::new() }
    }

    /// Reads and checks objects, given with the packs to read them from. Returns the digests of those of
    /// which no copy is intact.
    pub fn read(&mut self, found: Vec<(Digest, Row)>, take: Take<'_>) -> Result<BTreeSet<Digest>> {
        let mut lost = BTreeSet::new();
        let mut waiting = found;
        while !waiting.is_empty() {
            for (pack, row) in self.read_once(std::mem::take(&mut waiting), take)? {
                self.damaged.entry(pack).or_default().insert(row.digest);
                match self.untried_copy(&row) {
                    Some(other) => waiting.push(other),
                    None => drop(lost.insert(row.digest)),
                }
            }
        }
        Ok(lost)
    }

    /// Returns another copy of an object, in a pack in which it was not found damaged.
    fn untried_copy(&self, row: &Row) -> Option<(Digest, Row)> {
        let (file, own) = ([Kind::Content, Kind::Tree], [row.kind]);
        let kinds = if file.contains(&row.kind) { &file[..] } else { &own[..] };
        let was_tried =
            |pack: &Digest| self.damaged.get(pack).is_some_and(|objects| objects.contains(&row.digest));
        self.catalog.find_all(&row.digest, kinds).into_iter().find(|(pack, _)| !was_tried(pack))
    }

    /// Reads objects: adjacent ones in one request, several requests at a time. Returns those that are not
    /// intact.
    fn read_once(&mut self, found: Vec<(Digest, Row)>, take: Take<'_>) -> Result<Vec<(Digest, Row)>> {
        let remote = self.remote;
        let reads = spans(found).into_iter().map(|span| async move {
            let path = pack_path(&span.pack);
            let bytes = remote.operator.read_with(&path).range(span.start..span.end).await;
            (span, bytes)
        });
        let mut reads = stream::iter(reads).buffer_unordered(PARALLEL);
        let mut damaged = Vec::new();
        while let Some((span, bytes)) = remote.runtime.block_on(reads.next()) {
            let bytes = match bytes {
                Ok(bytes) => bytes.to_vec(),
                // The pack is gone, or shorter than its index says.
                Err(error) if is_cut(&error) => Vec::new(),
                Err(error) => return Err(remote.to_error("read", &error)),
            };
            self.stats.requests += 1;
            self.stats.bytes += bytes.len() as u64;
            for row in &span.rows {
                let Some(object) = span.slice(&bytes, row).and_then(|stored| row.decode(stored).ok()) else {
                    damaged.push((span.pack, *row));
                    continue;
                };
                take(row, &object)?;
                self.stats.objects += 1;
                self.progress.event(Event::Advanced { by: row.size });
            }
        }
        Ok(damaged)
    }

    /// Leaves a note at the remote for each damaged pack, where this user may write; the next push from a
    /// clone that has its objects repairs it.
    pub fn leave_notes(&self) {
        for (pack, objects) in &self.damaged {
            if self.catalog.damaged_packs.contains(pack) {
                continue;
            }
            let text: String = objects.iter().map(|digest| format!("{digest}\n")).collect();
            let _not_allowed = self.remote.write(&damage_path(pack), text.into_bytes());
        }
    }
}

impl Span {
    /// Returns the part of the range's bytes that holds an object.
    fn slice<'b>(&self, bytes: &'b [u8], row: &Row) -> Option<&'b [u8]> {
        let start = usize::try_from(row.offset - self.start).ok()?;
        bytes.get(start..start.checked_add(usize::try_from(row.stored).ok()?)?)
    }
}

fn is_cut(error: &opendal::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::RangeNotSatisfied)
}

/// Groups objects into ranges of packs, sorted by pack and offset.
fn spans(mut found: Vec<(Digest, Row)>) -> Vec<Span> {
    found.sort_by_key(|(pack, row)| (*pack, row.offset));
    found.dedup();
    let mut spans: Vec<Span> = Vec::new();
    for (pack, row) in found {
        let end = row.offset + row.stored;
        match spans.last_mut() {
            Some(span)
                if span.pack == pack
                    && row.offset <= span.end + MAX_GAP
                    && end - span.start <= MAX_REQUEST =>
            {
                span.end = span.end.max(end);
                span.rows.push(row);
            }
            _ => spans.push(Span { pack, start: row.offset, end, rows: vec![row] }),
        }
    }
    spans
}
