//! Pack format: many objects in one file, which never changes once it has its name.
//!
//! ```text
//! pack     "mlxpack" 1 │ objects in sequence, raw or zstd │ index │ length of index, u64 LE │ "mlxtail" 1
//! index    "mlxindx" 1 │ number of rows, u64 LE │ rows, sorted │ BLAKE3 of all before
//! row      digest, 32 │ kind, 1 │ codec, 1 │ offset, u64 LE │ stored bytes, u64 LE │ bytes, u64 LE
//! ```
//!
//! A pack is named by the digest of its bytes. A copy of its index is stored next to it as a file of its own,
//! so that the index can be read alone. The format is the same in the local store and on remotes.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use bytes::Bytes;

use crate::{
    digest::{Digest, Hasher},
    error::{Error, Result, WithContext},
    wire::Reader,
};

const MAGIC: &[u8; 8] = b"mlxpack\x01";
const END_MAGIC: &[u8; 8] = b"mlxtail\x01";
const INDEX_MAGIC: &[u8; 8] = b"mlxindx\x01";
const HEAD_SIZE: usize = 8 + 8;
const TAIL_SIZE: usize = 8 + 8;
const ROW_SIZE: usize = 32 + 1 + 1 + 8 + 8 + 8;
/// Largest object in a pack, in bytes; an index that claims a larger one is rejected.
pub const MAX_OBJECT_SIZE: u64 = 64 << 20;
/// Smallest object that is worth compressing, in bytes.
const MIN_COMPRESS_SIZE: usize = 64;

/// Kind of object that a row of an index describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Bytes of a file, or a chunk of them.
    Content = 0,
    /// A page of a folder.
    Tree = 1,
    /// The chunks of a large file, under the digest of the whole.
    Chunks = 2,
    /// The outputs of a run, under the digest of its inputs.
    Run = 3,
}

/// Entry of a pack index: one object and its position in the pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub digest: Digest,
    pub kind: Kind,
    compressed: bool,
    pub offset: u64,
    /// Size in the pack, in bytes.
    pub stored: u64,
    /// Size of the object, in bytes.
    pub size: u64,
}

/// A pack index, kept in its serialized form and searched in place.
pub struct Index {
    bytes: Bytes,
    /// Row at which the digests with each first byte start; the last entry is the number of rows.
    starts: Box<[u32; 257]>,
}

/// An object as it is written into a pack: compressed if that saves space.
pub struct EncodedObject<'b> {
    size: u64,
    compressed: bool,
    stored: Cow<'b, [u8]>,
}

impl<'b> EncodedObject<'b> {
    /// Returns the size of the object, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn encode(bytes: Cow<'b, [u8]>) -> io::Result<Self> {
        let size = bytes.len() as u64;
        Ok(match compress(&bytes)? {
            Some(packed) => Self { size, compressed: true, stored: packed.into() },
            None => Self { size, compressed: false, stored: bytes },
        })
    }
}

/// Writes a pack into `W`, object by object.
pub struct PackWriter<W> {
    out: W,
    hasher: Hasher,
    offset: u64,
    index: IndexBuilder,
}

/// The rows of an index, as they are written but not sorted yet, after space for its head.
struct IndexBuilder(Vec<u8>);

impl<W: Write> PackWriter<W> {
    pub fn new(out: W) -> io::Result<Self> {
        let mut writer = Self { out, hasher: Hasher::default(), offset: 0, index: IndexBuilder::new() };
        writer.write(MAGIC)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.hasher.write_all(bytes)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    pub fn put(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        self.put_encoded(kind, digest, &EncodedObject::encode(bytes.into())?)
    }

    /// Writes an object as [`PackWriter::put`] does, but one that is encoded already.
    pub fn put_encoded(&mut self, kind: Kind, digest: Digest, ready: &EncodedObject<'_>) -> io::Result<()> {
        let EncodedObject { size, compressed, stored } = ready;
        let (offset, length) = (self.offset, stored.len() as u64);
        self.index.push(&Row { digest, kind, compressed: *compressed, offset, stored: length, size: *size });
        self.write(stored)
    }

    /// Returns the number of bytes that the pack has so far, with its index.
    pub fn len(&self) -> u64 {
        self.offset + self.index.0.len() as u64
    }

    /// Returns the number of objects written so far.
    pub fn objects(&self) -> usize {
        (self.index.0.len() - HEAD_SIZE) / ROW_SIZE
    }

    pub fn is_empty(&self) -> bool {
        self.objects() == 0
    }

    /// Ends the pack; returns its writer, its name and its index.
    pub fn finish(self) -> io::Result<(W, Digest, Vec<u8>)> {
        let (mut out, name, index, tail) = self.finish_apart()?;
        out.write_all(&index)?;
        out.write_all(&tail)?;
        out.flush()?;
        Ok((out, name, index))
    }

    /// Ends the pack, whose bytes are what was written, the returned index and the returned tail; also
    /// returns its name.
    pub fn finish_apart(mut self) -> io::Result<(W, Digest, Vec<u8>, [u8; TAIL_SIZE])> {
        let index = self.index.finish();
        let mut tail = [0; TAIL_SIZE];
        tail[..8].copy_from_slice(&(index.len() as u64).to_le_bytes());
        tail[8..].copy_from_slice(END_MAGIC);
        self.hasher.write_all(&index)?;
        self.hasher.write_all(&tail)?;
        Ok((self.out, self.hasher.finish(), index, tail))
    }
}

/// Compresses bytes if that saves at least a tenth. A sample of the first bytes is tried first, which spares
/// the effort for images.
fn compress(bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    const SAMPLE: usize = 4096;
    let saves_a_tenth = |packed: &[u8], raw: usize| packed.len() < raw - raw / 10;
    if bytes.len() < MIN_COMPRESS_SIZE {
        return Ok(None);
    }
    if bytes.len() > 2 * SAMPLE && !saves_a_tenth(&zstd::bulk::compress(&bytes[..SAMPLE], 1)?, SAMPLE) {
        return Ok(None);
    }
    let packed = zstd::bulk::compress(bytes, 3)?;
    Ok(saves_a_tenth(&packed, bytes.len()).then_some(packed))
}

impl IndexBuilder {
    fn new() -> Self {
        Self(vec![0; HEAD_SIZE])
    }

    fn push(&mut self, row: &Row) {
        self.0.extend_from_slice(row.digest.bytes());
        self.0.extend_from_slice(&[row.kind as u8, u8::from(row.compressed)]);
        [row.offset, row.stored, row.size].iter().for_each(|it| self.0.extend_from_slice(&it.to_le_bytes()));
    }

    /// Sorts the rows by digest, kind and offset; returns the bytes of the index.
    fn finish(self) -> Vec<u8> {
        let mut bytes = self.0;
        let (head, rows) = bytes.split_at_mut(HEAD_SIZE);
        let (rows, _) = rows.as_chunks_mut::<ROW_SIZE>();
        let offset = |row: &[u8; ROW_SIZE]| row[34..42].first_chunk().copied().map(u64::from_le_bytes);
        rows.sort_unstable_by(|one, other| {
            one[..33].cmp(&other[..33]).then_with(|| offset(one).cmp(&offset(other)))
        });
        head[..8].copy_from_slice(INDEX_MAGIC);
        head[8..].copy_from_slice(&(rows.len() as u64).to_le_bytes());
        let check = Digest::of(&bytes);
        bytes.extend_from_slice(check.bytes());
        bytes
    }
}

fn newer_error() -> Error {
    Error::corrupt("a pack index was written by a newer mlx").hint("upgrade mlx")
}

/// Returns true if bytes that are known to be intact start with `head`, but with a higher version.
pub(super) fn is_newer(bytes: &[u8], head: [u8; 8]) -> bool {
    bytes.starts_with(&head[..7]) && bytes.get(7).is_some_and(|it| *it > head[7])
}

impl Index {
    /// Returns true if a newer mlx wrote the index: it has a higher version, or an object of a kind or
    /// codec that is not known here. Every version ends in the digest of all bytes before it, so that a
    /// newer index is not mistaken for a damaged one.
    pub fn is_newer(bytes: &[u8]) -> bool {
        let Some((body, check)) = bytes.split_last_chunk::<32>() else { return false };
        let is_unknown = |row: &[u8]| row[32] > Kind::Run as u8 || row[33] > 1;
        let has_unknown = || {
            let rows = body.strip_prefix(INDEX_MAGIC).and_then(|rest| rest.get(8..)).unwrap_or_default();
            rows.chunks_exact(ROW_SIZE).any(is_unknown)
        };
        (is_newer(bytes, *INDEX_MAGIC) || has_unknown()) && Digest::of(body).bytes() == check
    }

    /// Reads an index and checks it against its own digest.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self> {
        let bytes = bytes.into();
        let damaged = || Error::corrupt("a pack index is damaged");
        let body = bytes.len().checked_sub(32).ok_or_else(damaged)?;
        if Digest::of(&bytes[..body]).bytes()[..] != bytes[body..] {
            return Err(damaged());
        }
        if is_newer(&bytes, *INDEX_MAGIC) {
            return Err(newer_error());
        }
        let mut reader = Reader::new(&bytes[..body], "a pack index");
        reader.expect_magic(INDEX_MAGIC)?;
        let count = u64::from_le_bytes(reader.take(8)?.try_into().expect("we took 8 bytes"));
        if count.checked_mul(ROW_SIZE as u64) != Some((body - HEAD_SIZE) as u64) {
            return Err(damaged());
        }
        let mut index = Self { bytes, starts: Box::new([0; 257]) };
        let mut last = [0_u8; 32];
        for at in 0..count as usize {
            let row = index.row(at)?;
            if *row.digest.bytes() < last {
                return Err(damaged());
            }
            last = *row.digest.bytes();
            index.starts[usize::from(last[0]) + 1] = u32::try_from(at + 1).map_err(|_| damaged())?;
        }
        for at in 1..257 {
            index.starts[at] = index.starts[at].max(index.starts[at - 1]);
        }
        Ok(index)
    }

    /// Reads the index at the end of a whole pack.
    pub fn from_pack(pack: &[u8]) -> Result<Self> {
        let damaged = || Error::corrupt("the end of a pack is damaged");
        let rest = pack.strip_suffix(END_MAGIC).ok_or_else(damaged)?;
        let (rest, length) = rest.split_last_chunk::<8>().ok_or_else(damaged)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| damaged())?;
        let start = rest.len().checked_sub(length).ok_or_else(damaged)?;
        Self::parse(rest[start..].to_vec())
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn len(&self) -> usize {
        self.starts[256] as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn digest_at(&self, at: usize) -> &[u8] {
        &self.bytes[HEAD_SIZE + at * ROW_SIZE..][..32]
    }

    /// Returns a row by its number.
    pub fn row(&self, at: usize) -> Result<Row> {
        let mut reader =
            Reader::new(&self.bytes[HEAD_SIZE + at * ROW_SIZE..][..ROW_SIZE], "a row of a pack index");
        let digest = reader.digest()?;
        let kind = match reader.byte()? {
            0 => Kind::Content,
            1 => Kind::Tree,
            2 => Kind::Chunks,
            3 => Kind::Run,
            _ => return Err(newer_error()),
        };
        let compressed = match reader.byte()? {
            0 => false,
            1 => true,
            _ => return Err(newer_error()),
        };
        let mut number =
            || Ok::<_, Error>(u64::from_le_bytes(reader.take(8)?.try_into().expect("we took 8 bytes")));
        let (offset, stored, size) = (number()?, number()?, number()?);
        if size > MAX_OBJECT_SIZE || stored > size.max(16) || offset.checked_add(stored).is_none() {
            return Err(Error::corrupt("a pack index entry is out of range"));
        }
        Ok(Row { digest, kind, compressed, offset, stored, size })
    }

    /// Iterates over the rows, sorted by digest.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        (0..self.len()).map(|at| self.row(at).expect("all rows were read when the index was"))
    }

    /// Finds the first row of a digest with one of these kinds.
    pub fn find(&self, digest: &Digest, kinds: &[Kind]) -> Option<Row> {
        self.find_all(digest, kinds).next().map(|found| found.1)
    }

    /// Finds all rows of a digest with one of these kinds, and their numbers: of a run there may be several
    /// records, and of a large file several lists of chunks.
    pub fn find_all(&self, digest: &Digest, kinds: &[Kind]) -> impl Iterator<Item = (usize, Row)> {
        let first = usize::from(digest.bytes()[0]);
        let (mut low, mut high) = (self.starts[first] as usize, self.starts[first + 1] as usize);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.digest_at(middle) < &digest.bytes()[..] { low = middle + 1 } else { high = middle }
        }
        let same = (low..self.len()).take_while(move |&at| self.digest_at(at) == digest.bytes());
        same.filter_map(|at| Some((at, self.row(at).ok()?))).filter(move |(_, row)| kinds.contains(&row.kind))
    }
}

impl Row {
    /// Returns this object as it is to be written into another pack, from the bytes stored in this one.
    pub fn encoded<'b>(&self, stored: impl Into<Cow<'b, [u8]>>) -> EncodedObject<'b> {
        EncodedObject { size: self.size, compressed: self.compressed, stored: stored.into() }
    }

    /// Decodes an object from its stored bytes. Contents and pages of folders are checked against their
    /// digest.
    pub fn decode(&self, stored: &[u8]) -> Result<Vec<u8>> {
        let damaged = || Error::corrupt(format!("the object {} is damaged", self.digest.short()));
        let bytes = if self.compressed {
            let size = usize::try_from(self.size).map_err(|_| damaged())?;
            zstd::bulk::decompress(stored, size).map_err(|_| damaged())?
        } else {
            stored.to_vec()
        };
        let is_content_addressed = matches!(self.kind, Kind::Content | Kind::Tree);
        if bytes.len() as u64 != self.size || is_content_addressed && Digest::of(&bytes) != self.digest {
            return Err(damaged());
        }
        Ok(bytes)
    }
}

/// Returns a pack of the same objects under another name, with its bytes and its index: the bytes of `mark`
/// come before the objects.
pub fn renamed(pack: &[u8], index: &Index, mark: &[u8]) -> Result<(Digest, Vec<u8>, Vec<u8>)> {
    let mut rows: Vec<_> = index.rows().collect();
    rows.sort_by_key(|row| row.offset);
    let fill = || -> io::Result<_> {
        let mut writer = PackWriter::new(Vec::with_capacity(pack.len() + mark.len()))?;
        writer.write(mark)?;
        for row in &rows {
            let stored = &pack[row.offset as usize..][..row.stored as usize];
            writer.put_encoded(row.kind, row.digest, &row.encoded(stored))?;
        }
        writer.finish()
    };
    let (bytes, name, index) = fill().context(|| "cannot write a pack".into())?;
    Ok((name, bytes, index))
}

/// Returns the index of these rows.
#[cfg(test)]
pub(super) fn encode(rows: &[Row]) -> Vec<u8> {
    let mut index = IndexBuilder::new();
    rows.iter().for_each(|row| index.push(row));
    index.finish()
}

/// Packs a few objects in memory; returns the pack's name, its bytes and its index.
pub fn pack(objects: &[(Kind, Digest, &[u8])]) -> Result<(Digest, Vec<u8>, Vec<u8>)> {
    let fill = || -> io::Result<_> {
        let mut writer = PackWriter::new(Vec::new())?;
        objects.iter().try_for_each(|(kind, digest, bytes)| writer.put(*kind, *digest, bytes))?;
        writer.finish()
    };
    let (bytes, name, index) = fill().context(|| "cannot compress".into())?;
    Ok((name, bytes, index))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_packed_object_is_read_back(objects: Vec<Vec<u8>>, repeats in 1..2000_usize) {
            let objects: Vec<Vec<u8>> = objects.into_iter().map(|it| it.repeat(repeats)).collect();
            let named: Vec<_> = objects.iter().map(|it| (Kind::Content, Digest::of(it), &it[..])).collect();
            let (name, bytes, index) = pack(&named).unwrap();
            prop_assert_eq!(Digest::of(&bytes), name);
            let index = Index::parse(index).unwrap();
            let inside = Index::from_pack(&bytes).unwrap();
            prop_assert_eq!(inside.bytes(), index.bytes());
            for object in &objects {
                let row = index.find(&Digest::of(object), &[Kind::Content]).unwrap();
                let stored = &bytes[row.offset as usize..][..row.stored as usize];
                prop_assert_eq!(&row.decode(stored).unwrap(), object);
            }
            prop_assert!(index.find(&Digest::of(b"not there"), &[Kind::Content]).is_none());
        }

        #[test]
        fn a_renamed_pack_has_the_same_objects(objects: Vec<Vec<u8>>) {
            let named: Vec<_> = objects.iter().map(|it| (Kind::Content, Digest::of(it), &it[..])).collect();
            let (old, bytes, index) = pack(&named).unwrap();
            let (name, bytes, index) = renamed(&bytes, &Index::parse(index).unwrap(), b"mark").unwrap();
            prop_assert!(name != old && Digest::of(&bytes) == name);
            let index = Index::parse(index).unwrap();
            prop_assert_eq!(index.len(), objects.len());
            for row in index.rows() {
                let stored = &bytes[row.offset as usize..][..row.stored as usize];
                prop_assert!(objects.contains(&row.decode(stored).unwrap()));
            }
        }

        #[test]
        fn no_input_makes_parsing_panic(bytes: Vec<u8>) {
            drop(Index::parse(bytes.clone()));
            drop(Index::from_pack(&bytes));
        }
    }

    #[test]
    fn any_flipped_bit_is_detected() {
        let object =
            b"some text that is long enough to be worth compressing, again and again and again and again";
        let (_, bytes, index) = pack(&[(Kind::Content, Digest::of(object), object)]).unwrap();
        for bit in 0..index.len() * 8 {
            let mut bad = index.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Index::parse(bad).is_err(), "bit {bit}");
        }
        let row = Index::parse(index).unwrap().rows().next().unwrap();
        let stored = &bytes[row.offset as usize..][..row.stored as usize];
        for bit in 0..stored.len() * 8 {
            let mut bad = stored.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(row.decode(&bad).map_or(true, |it| it == object), "bit {bit}");
        }
    }

    #[test]
    fn an_index_with_impossible_sizes_is_rejected() {
        let row = Row {
            digest: Digest::of(b"x"),
            kind: Kind::Content,
            compressed: false,
            offset: 8,
            stored: 1,
            size: 1,
        };
        assert!(Index::parse(encode(&[row])).is_ok());
        for bad in [
            Row { size: 1 << 63, ..row },
            Row { size: MAX_OBJECT_SIZE + 1, ..row },
            Row { stored: 1 << 63, ..row },
            Row { stored: 1 << 63, size: 1 << 63, ..row },
            Row { offset: u64::MAX, ..row },
        ] {
            assert!(Index::parse(encode(&[bad])).is_err(), "{bad:?}");
        }
        // More rows than bytes.
        let mut many = encode(&[row]);
        many[8..16].copy_from_slice(&(1_u64 << 60).to_le_bytes());
        let body = many.len() - 32;
        let check = Digest::of(&many[..body]);
        many[body..].copy_from_slice(check.bytes());
        assert!(Index::parse(many).is_err());
    }

    #[test]
    fn an_unknown_kind_or_codec_is_of_a_newer_mlx() {
        let object = b"an object";
        let (_, _, index) = pack(&[(Kind::Content, Digest::of(object), object)]).unwrap();
        for (at, value, is_newer) in
            [(16 + 32, 4, true), (16 + 33, 2, true), (16 + 33, 1, false), (7, 2, true)]
        {
            let mut other = index.clone();
            other[at] = value;
            assert!(!Index::is_newer(&other), "its bytes do not match their digest");
            let body = other.len() - 32;
            let check = Digest::of(&other[..body]);
            other[body..].copy_from_slice(check.bytes());
            assert_eq!(Index::is_newer(&other), is_newer, "{at} {value}");
            assert_eq!(Index::parse(other).is_err_and(|it| it.hint_text() == Some("upgrade mlx")), is_newer);
        }
    }

    #[test]
    fn all_rows_of_a_digest_are_found() {
        let digest = Digest::of(b"a large file");
        let lists =
            [(Kind::Chunks, digest, &b"one"[..]), (Kind::Chunks, digest, b"other"), (Kind::Run, digest, b"")];
        let index = Index::parse(pack(&lists).unwrap().2).unwrap();
        let sizes: Vec<_> = index.find_all(&digest, &[Kind::Chunks]).map(|(_, row)| row.size).collect();
        assert_eq!(sizes, [3, 5]);
        assert_eq!(index.find_all(&digest, &[Kind::Chunks, Kind::Run]).count(), 3);
        assert_eq!(index.find_all(&digest, &[Kind::Content]).count(), 0);
    }

    #[test]
    fn the_first_format_version_is_still_read() {
        let golden = include_bytes!("../../fixtures/formats/pack-1.pack");
        let index = Index::from_pack(golden).unwrap();
        let row = index.find(&Digest::of(b"an object"), &[Kind::Content]).unwrap();
        assert_eq!(row.decode(&golden[row.offset as usize..][..row.stored as usize]).unwrap(), b"an object");
        assert_eq!(Digest::of(golden).short(), "49f3f7774d");
    }
}
