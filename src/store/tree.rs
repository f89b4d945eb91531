//! A folder as objects: sorted names with the digests of what is under them.
//!
//! ```text
//! page     "mlxtree" 1 │ level, 1 │ rows
//! level 0  kind, 1 │ name │ size │ files (folders only) │ digest, 32
//! above    last name of the page below │ size │ files │ digest of the page below, 32
//! ```
//!
//! Names are preceded by their length; numbers are varints. A page ends after a name whose BLAKE3 says
//! so (ten bits of it are zero, so after about a thousand names), never by count: the same folder has
//! the same pages however it came about, and a change writes one page a level. Pages are listed by
//! pages above them in the same way, with the next ten bits, until one is left: the tree.

use crate::{
    digest::Digest,
    error::{Error, Result},
    path::check_name,
    pointer::Shape,
    store::pack::is_newer,
    wire::{Reader, put_bytes, put_number},
};

const HEAD: &[u8; 8] = b"mlxtree\x01";
const BITS: u32 = 10;

/// What lies under a name in a stored folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKind {
    File = 0,
    Executable = 1,
    /// Its digest is that of the text it points to.
    Link = 2,
    Folder = 3,
}

/// One name in a stored folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    pub name: Box<[u8]>,
    pub kind: EntryKind,
    /// Bytes; of a folder, those of all files in it.
    pub size: u64,
    /// Files and links; 1 for a file.
    pub files: u64,
    pub digest: Digest,
}

/// A page above: where the names up to `last` are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageEntry {
    pub last: Box<[u8]>,
    pub size: u64,
    pub files: u64,
    pub digest: Digest,
}

/// A page, read.
pub enum Page {
    Leaf(Vec<TreeEntry>),
    /// Its level, 1 where the pages below are leaves.
    Branch(u8, Vec<PageEntry>),
}

impl EntryKind {
    /// The pointer's word for it; links and folders are trees' business.
    pub fn shape(self) -> Shape {
        match self {
            Self::File | Self::Link => Shape::File,
            Self::Executable => Shape::Executable,
            Self::Folder => Shape::Tree,
        }
    }
}

/// Cuts a sorted folder into pages: the page that stands for all, and all pages with their bytes.
pub fn encode(entries: &[TreeEntry]) -> (PageEntry, Vec<(Digest, Vec<u8>)>) {
    let mut pages = Vec::new();
    let mut rows = Vec::new();
    for part in cut(entries, 0, |it| &it.name) {
        let mut out = start(0);
        for entry in part {
            out.push(entry.kind as u8);
            put_bytes(&mut out, &entry.name);
            put_number(&mut out, entry.size);
            if entry.kind == EntryKind::Folder {
                put_number(&mut out, entry.files);
            }
            out.extend_from_slice(entry.digest.bytes());
        }
        let last = part.last().map(|it| it.name.clone()).unwrap_or_default();
        let sums = part.iter().map(|it| (it.size, it.files));
        rows.push(finish(out, last, sums, &mut pages));
    }
    let mut level = 1;
    while rows.len() > 1 {
        let mut above = Vec::new();
        for part in cut(&rows, level, |it| &it.last) {
            let mut out = start(level as u8);
            for row in part {
                put_bytes(&mut out, &row.last);
                put_number(&mut out, row.size);
                put_number(&mut out, row.files);
                out.extend_from_slice(row.digest.bytes());
            }
            let last = part.last().map(|it| it.last.clone()).unwrap_or_default();
            above.push(finish(out, last, part.iter().map(|it| (it.size, it.files)), &mut pages));
        }
        // Where chance cuts after every single row, one page takes them all.
        rows = above;
        level += 1;
    }
    (rows.pop().expect("even an empty folder has a page"), pages)
}

fn start(level: u8) -> Vec<u8> {
    [&HEAD[..], &[level]].concat()
}

fn finish(
    out: Vec<u8>,
    last: Box<[u8]>,
    sums: impl Iterator<Item = (u64, u64)>,
    pages: &mut Vec<(Digest, Vec<u8>)>,
) -> PageEntry {
    let (size, files) =
        sums.fold((0, 0), |sum, it| (u64::saturating_add(sum.0, it.0), u64::saturating_add(sum.1, it.1)));
    let digest = Digest::of(&out);
    pages.push((digest, out));
    PageEntry { last, size, files, digest }
}

/// Pieces that end where the hash of a name says so; at least one.
fn cut<T>(rows: &[T], level: u32, name: impl Fn(&T) -> &[u8]) -> Vec<&[T]> {
    if rows.is_empty() || level * BITS >= 60 {
        return vec![rows];
    }
    rows.split_inclusive(|it| {
        let hash = Digest::of(name(it));
        let bits = u64::from_le_bytes(hash.bytes()[..8].try_into().expect("a digest has 8 bytes"));
        (bits >> (level * BITS)).trailing_zeros() >= BITS
    })
    .collect()
}

/// Whether a newer mlx wrote this page; its digest says that it is not damaged.
pub fn is_newer_page(bytes: &[u8]) -> bool {
    is_newer(bytes, *HEAD)
}

/// Reads a page, refusing names that are no names and orders that are none.
pub fn decode(bytes: &[u8]) -> Result<Page> {
    if is_newer_page(bytes) {
        return Err(Error::corrupt("a tree was written by a newer mlx").hint("upgrade mlx"));
    }
    let mut reader = Reader::new(bytes, "a tree");
    reader.expect(HEAD)?;
    match reader.byte()? {
        0 => leaf(reader).map(Page::Leaf),
        level => branch(reader).map(|it| Page::Branch(level, it)),
    }
}

fn leaf(mut reader: Reader<'_>) -> Result<Vec<TreeEntry>> {
    let mut entries: Vec<TreeEntry> = Vec::new();
    while !reader.is_empty() {
        let kind = match reader.byte()? {
            0 => EntryKind::File,
            1 => EntryKind::Executable,
            2 => EntryKind::Link,
            3 => EntryKind::Folder,
            _ => return Err(reader.broken("holds an unknown kind of entry: upgrade mlx")),
        };
        let name: Box<[u8]> = reader.bytes()?.into();
        check_name(&name)?;
        if entries.last().is_some_and(|it| it.name >= name) {
            return Err(reader.broken("is not sorted"));
        }
        let size = reader.number()?;
        let files = if kind == EntryKind::Folder { reader.number()? } else { 1 };
        entries.push(TreeEntry { name, kind, size, files, digest: reader.digest()? });
    }
    Ok(entries)
}

fn branch(mut reader: Reader<'_>) -> Result<Vec<PageEntry>> {
    let mut rows: Vec<PageEntry> = Vec::new();
    while !reader.is_empty() {
        let last: Box<[u8]> = reader.bytes()?.into();
        if rows.last().is_some_and(|it| it.last >= last) {
            return Err(reader.broken("is not sorted"));
        }
        let (size, files) = (reader.number()?, reader.number()?);
        rows.push(PageEntry { last, size, files, digest: reader.digest()? });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, seed: u64) -> TreeEntry {
        let digest = Digest::of(&seed.to_le_bytes());
        TreeEntry { name: name.as_bytes().into(), kind: EntryKind::File, size: seed % 1000, files: 1, digest }
    }

    fn read(root: Digest, pages: &HashMap<Digest, Vec<u8>>) -> Vec<TreeEntry> {
        match decode(&pages[&root]).unwrap() {
            Page::Leaf(entries) => entries,
            Page::Branch(_, rows) => rows.iter().flat_map(|it| read(it.digest, pages)).collect(),
        }
    }

    proptest! {
        #[test]
        fn it_reads_what_it_wrote(names: BTreeMap<String, u64>) {
            let entries: Vec<_> = names.iter().filter(|it| check_name(it.0.as_bytes()).is_ok())
                .map(|(name, &seed)| entry(name, seed)).collect();
            let (root, pages) = encode(&entries);
            prop_assert_eq!(root.files, entries.len() as u64);
            prop_assert_eq!(read(root.digest, &pages.into_iter().collect()), entries);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes: Vec<u8>, flips: Vec<(usize, u8)>) {
            drop(decode(&bytes));
            let (_, pages) = encode(&[entry("a", 1), entry("b", 2)]);
            bytes.clone_from(&pages[0].1);
            flips.iter().for_each(|&(at, with)| { let at = at % bytes.len(); bytes[at] ^= with; });
            drop(decode(&bytes));
        }
    }

    #[test]
    fn one_changed_name_among_many_writes_one_page_a_level() {
        let mut entries: Vec<_> = (0..20_000).map(|it| entry(&format!("f{it:06}"), it)).collect();
        let (before, old) = encode(&entries);
        entries[7777].size += 1;
        let (after, new) = encode(&entries);
        let old: HashMap<_, _> = old.into_iter().collect();
        let written = new.iter().filter(|it| !old.contains_key(&it.0)).count();
        assert_ne!(before.digest, after.digest);
        assert_eq!(written, 2);
        assert!(old.len() > 10, "twenty thousand names make about twenty pages, not {}", old.len());
        assert_eq!(read(after.digest, &new.into_iter().collect()), entries);
    }

    #[test]
    fn the_first_format_has_this_digest_for_ever() {
        let (root, pages) = encode(&[entry("a", 1), entry("b", 2)]);
        assert_eq!(root.digest.short(), "4708ef575f");
        assert_eq!(pages.len(), 1);
    }
}
