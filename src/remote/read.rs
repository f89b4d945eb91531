//! Reads objects from the packs of a remote, each from another pack if one copy is damaged.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use opendal::ErrorKind;

use crate::{
    digest::Digest,
    error::Result,
    progress::{Event, Progress},
    remote::{
        Fetched, PARALLEL, Remote,
        catalog::{Catalog, Place, damage_path, pack_path},
    },
    store::{Kind, Row},
};

/// Largest gap between two objects of a pack that are read in one request, in bytes.
const MAX_GAP: u64 = 64 << 10;
/// Largest request, in bytes.
const MAX_REQUEST: u64 = 8 << 20;

/// Largest number of objects that are read in one request.
const MAX_OBJECTS: usize = 4096;

/// An object that was read and checked against its digest.
pub struct ReadObject<'o> {
    pub bytes: &'o [u8],
    /// As the pack holds it, perhaps compressed.
    pub stored: &'o [u8],
}

/// Takes an object that was read.
type Take<'t> = &'t mut dyn FnMut(&Row, &ReadObject<'_>) -> Result<()>;

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
        // A clone that knows the index of a pack may repair what this one cannot read.
        let damaged = catalog.unreadable_packs.iter().map(|pack| (*pack, BTreeSet::new())).collect();
        Self { remote, catalog, stats: Fetched::default(), progress, damaged }
    }

    /// Reads and checks the objects at these places. Returns the digests of those of which no copy is intact.
    pub fn read(&mut self, mut places: Vec<Place>, take: Take<'_>) -> Result<BTreeSet<Digest>> {
        let mut lost = BTreeSet::new();
        while !places.is_empty() {
            for (pack, row) in self.read_once(std::mem::take(&mut places), take)? {
                self.note_damage(pack, row.digest);
                match self.untried_copy(&row) {
                    Some(other) => places.push(other),
                    None => drop(lost.insert(row.digest)),
                }
            }
        }
        Ok(lost)
    }

    /// Reads one copy of an object; `None` if it is not intact.
    pub fn read_copy(&mut self, place: Place) -> Result<Option<Vec<u8>>> {
        let mut bytes = None;
        let damaged = self.read_once(vec![place], &mut |_, object| {
            bytes = Some(object.bytes.to_vec());
            Ok(())
        })?;
        damaged.into_iter().for_each(|(pack, row)| self.note_damage(pack, row.digest));
        Ok(bytes)
    }

    /// Remembers that an object of a pack is not right.
    pub fn note_damage(&mut self, pack: Digest, object: Digest) {
        self.damaged.entry(pack).or_default().insert(object);
    }

    /// Returns another copy of an object, in a pack in which it was not found damaged.
    fn untried_copy(&self, row: &Row) -> Option<Place> {
        let (file, own) = ([Kind::Content, Kind::Tree], [row.kind]);
        let kinds = if file.contains(&row.kind) { &file[..] } else { &own[..] };
        let was_tried =
            |pack: &Digest| self.damaged.get(pack).is_some_and(|objects| objects.contains(&row.digest));
        self.catalog.places(&row.digest, kinds).find(|place| !was_tried(&self.catalog.at(*place).0))
    }

    /// Reads objects: adjacent ones in one request, several requests at a time. Returns those that are not
    /// intact.
    fn read_once(&mut self, mut places: Vec<Place>, take: Take<'_>) -> Result<Vec<(Digest, Row)>> {
        let remote = self.remote;
        places.sort_unstable();
        places.dedup();
        let spans = Spans { catalog: &self.catalog, places: places.into_iter().peekable() };
        let reads = spans.map(|span| async move {
            let bytes = read_span(remote, &span).await;
            (span, bytes)
        });
        let mut reads = stream::iter(reads).buffer_unordered(PARALLEL);
        let mut damaged = Vec::new();
        while let Some((span, bytes)) = remote.runtime.block_on(reads.next()) {
            let bytes = bytes.map_err(|error| remote.to_error("read", &error))?;
            self.stats.requests += 1;
            self.stats.bytes += bytes.len() as u64;
            for row in &span.rows {
                let stored = span.slice(&bytes, row);
                let Some((stored, object)) =
                    stored.and_then(|stored| Some((stored, row.decode(stored).ok()?)))
                else {
                    damaged.push((span.pack, *row));
                    continue;
                };
                take(row, &ReadObject { bytes: &object, stored })?;
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
            if !self.catalog.damaged_packs.contains(pack) {
                leave_note(self.remote, pack, objects);
            }
        }
    }
}

/// Leaves a note at the remote that a pack is damaged, where this user may write.
pub fn leave_note(remote: &Remote, pack: &Digest, objects: &BTreeSet<Digest>) {
    let text: String = objects.iter().map(|digest| format!("{digest}\n")).collect();
    let _not_allowed = remote.write(&damage_path(pack), text.into_bytes());
}

impl Span {
    /// Returns true if an object at `next`, which comes behind, is read in the same request.
    fn takes(&self, next: &Place) -> bool {
        let is_small = self.end - self.start < MAX_REQUEST && self.rows.len() < MAX_OBJECTS;
        is_small && next.offset <= self.end + MAX_GAP
    }

    /// Returns the part of the range's bytes that holds an object.
    fn slice<'b>(&self, bytes: &'b [u8], row: &Row) -> Option<&'b [u8]> {
        let start = usize::try_from(row.offset - self.start).ok()?;
        bytes.get(start..start.checked_add(usize::try_from(row.stored).ok()?)?)
    }
}

/// Reads a range of a pack; nothing if the pack is gone, or shorter than its index says.
async fn read_span(remote: &Remote, span: &Span) -> opendal::Result<Bytes> {
    let path = pack_path(&span.pack);
    let error = match remote.operator.read_with(&path).range(span.start..span.end).await {
        Ok(bytes) => return Ok(bytes.to_bytes()),
        Err(error) => error,
    };
    let is_cut = match error.kind() {
        ErrorKind::NotFound | ErrorKind::RangeNotSatisfied => true,
        // A bucket answers with as many bytes as there are.
        _ => remote.operator.stat(&path).await.is_ok_and(|stat| stat.content_length() < span.end),
    };
    if is_cut { Ok(Bytes::new()) } else { Err(error) }
}

/// Groups objects that lie near each other into ranges, as they are asked for.
struct Spans<'s> {
    catalog: &'s Catalog,
    places: Peekable<std::vec::IntoIter<Place>>,
}

impl Iterator for Spans<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        let first = self.places.next()?;
        let (pack, row) = self.catalog.at(first);
        let mut span = Span { pack, start: row.offset, end: row.offset + row.stored, rows: vec![row] };
        while let Some(next) = self.places.next_if(|next| next.pack == first.pack && span.takes(next)) {
            let (_, row) = self.catalog.at(next);
            span.end = span.end.max(row.offset + row.stored);
            span.rows.push(row);
        }
        Some(span)
    }
}
