//! Rows of the stat cache: the files of one folder.
//!
//! ```text
//! rows  number of rows │ rows, sorted by name
//! row   name │ size, mtime, ctime, inode: 8 bytes each, little-endian │ digest, 32
//! ```

use std::{collections::BTreeMap, ops::Range};

use crate::{
    digest::Digest,
    error::Result,
    fs::FileStat,
    wire::{Reader, put_bytes, put_varint},
};

/// Bytes of a row after its name.
const STAT_SIZE: usize = 64;

/// The encoded stat and digest of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedStat([u8; STAT_SIZE]);

/// A file of a folder: its name and its encoded [`CachedStat`].
pub type Row<'i> = (&'i [u8], &'i [u8]);

/// New rows of a folder by name; a name without a row removes the old one.
pub type NewRows = BTreeMap<Box<[u8]>, Option<CachedStat>>;

/// The cached stats of a folder's files.
pub struct FolderStats<'i> {
    /// The encoded rows, and the places of the names in them.
    pub rows: &'i [u8],
    pub names: &'i [Range<usize>],
    /// Rows that override these.
    pub new: Option<&'i NewRows>,
}

impl FolderStats<'_> {
    /// Returns the cached digest of a file if its stat is unchanged.
    pub fn digest_if_unchanged(&self, name: &[u8], stat: &FileStat) -> Option<Digest> {
        let cached = match self.new.and_then(|new| new.get(name)) {
            Some(row) => &row.as_ref()?.0,
            None => self.old_stat(name)?,
        };
        let (found, digest) = cached.split_at(STAT_SIZE / 2);
        let same = *found == numbers(stat);
        same.then(|| Digest::from_bytes(digest.try_into().expect("half of a row is a digest")))
    }

    fn old_stat(&self, name: &[u8]) -> Option<&[u8; STAT_SIZE]> {
        let at = self.names.binary_search_by(|place| self.rows[place.clone()].cmp(name)).ok()?;
        self.rows[self.names[at].end..].first_chunk()
    }
}

impl<'i> FolderStats<'i> {
    /// Returns the rows without the new ones.
    pub fn old_rows(&self) -> Vec<Row<'i>> {
        let rows = self.rows;
        let row = |name: &Range<usize>| (&rows[name.clone()], &rows[name.end..name.end + STAT_SIZE]);
        self.names.iter().map(row).collect()
    }
}

impl CachedStat {
    pub fn new(stat: &FileStat, digest: &Digest) -> Self {
        let mut bytes = [0; STAT_SIZE];
        bytes[..STAT_SIZE / 2].copy_from_slice(&numbers(stat));
        bytes[STAT_SIZE / 2..].copy_from_slice(digest.bytes());
        Self(bytes)
    }

    /// Reads the stat of a row.
    pub fn of_row(row: &Row<'_>) -> Option<Self> {
        row.1.try_into().ok().map(Self)
    }
}

/// Encodes what tells of a file that it changed.
fn numbers(stat: &FileStat) -> [u8; STAT_SIZE / 2] {
    let mut bytes = [0; STAT_SIZE / 2];
    let values = [stat.size.cast_signed(), stat.mtime, stat.ctime, stat.inode.cast_signed()];
    for (place, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *place = value.to_le_bytes();
    }
    bytes
}

/// Encodes the rows of a folder with their number.
pub fn print_rows(rows: &[Row<'_>]) -> Vec<u8> {
    let capacity = rows.iter().map(|row| row.0.len() + 3 + STAT_SIZE).sum::<usize>();
    let mut out = Vec::with_capacity(capacity + 9);
    put_varint(&mut out, rows.len() as u64);
    for &(name, stat) in rows {
        put_bytes(&mut out, name);
        out.extend_from_slice(stat);
    }
    out
}

/// Merges new rows into old ones.
pub fn merge_rows<'i>(mut rows: Vec<Row<'i>>, new: &'i NewRows) -> Vec<u8> {
    rows.retain(|row| !new.contains_key(row.0));
    rows.extend(new.iter().filter_map(|(name, row)| Some((&name[..], &row.as_ref()?.0[..]))));
    // Two sorted runs: this takes one pass.
    rows.sort_by_key(|it| it.0);
    print_rows(&rows)
}

/// Reads over the rows of a folder.
pub fn skip_rows(reader: &mut Reader<'_>) -> Result<()> {
    for _ in 0..reader.varint()? {
        reader.bytes()?;
        reader.take(STAT_SIZE)?;
    }
    Ok(())
}

/// Finds the names in rows, which were validated when the file was loaded.
pub fn parse_names(rows: &[u8]) -> Vec<Range<usize>> {
    let mut reader = Reader::new(rows, "the index");
    let count = reader.varint().unwrap_or(0);
    let mut name = || {
        let name = reader.bytes().ok()?;
        let end = rows.len() - reader.remaining();
        reader.take(STAT_SIZE).ok()?;
        Some(end - name.len()..end)
    };
    (0..count).map_while(|_| name()).collect()
}
