//! Tree format: a folder is stored as pages of sorted names with the digests of their contents.
//!
//! ```text
//! page     "mlxtree" 1 │ level, 1 │ rows
//! level 0  kind, 1 │ name │ size │ files (folders only) │ digest, 32
//! above    last name of the page below │ size │ files │ digest of the page below, 32
//! ```
//!
//! Names are preceded by their length; numbers are varints. A page ends after a name whose BLAKE3 says so
//! (ten bits of it are zero, so after about a thousand names), never by count: the same folder always has the
//! same pages, however it was built, and a change writes one page per level. Pages are listed in the same way
//! by pages above them, using the next ten bits, until one page is left: the tree.

use crate::{
    digest::Digest,
    error::{Error, Result},
    path::check_name,
    pointer::{Content, ContentKind},
    store::pack::is_newer,
    wire::{Reader, put_bytes, put_varint},
};

const MAGIC: &[u8; 8] = b"mlxtree\x01";
const SPLIT_BITS: u32 = 10;

/// Kind of entry in a stored folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKind {
    File = 0,
    Executable = 1,
    /// A symbolic link; its digest is that of the text it points to.
    Link = 2,
    Folder = 3,
}

/// One name in a stored folder, with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    pub name: Box<[u8]>,
    pub kind: EntryKind,
    /// Size in bytes; for a folder, that of all files in it.
    pub size: u64,
    /// Number of files and links; 1 for a file.
    pub files: u64,
    pub digest: Digest,
}

/// Row of a page above the leaves: the page below that holds the names up to `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageEntry {
    pub last: Box<[u8]>,
    pub size: u64,
    pub files: u64,
    pub digest: Digest,
}

/// A decoded page.
pub enum Page {
    Leaf(Vec<TreeEntry>),
    /// The page's level (1 if the pages below are leaves) and its rows.
    Branch(u8, Vec<PageEntry>),
}

impl Page {
    /// Returns the digests that the page names.
    pub fn named(&self) -> Vec<Digest> {
        match self {
            Self::Leaf(rows) => rows.iter().map(|row| row.digest).collect(),
            Self::Branch(_, rows) => rows.iter().map(|row| row.digest).collect(),
        }
    }
}

impl TreeEntry {
    /// Returns the content that a pointer to this entry would record.
    pub fn content(&self) -> Content {
        Content { digest: self.digest, files: self.files, kind: self.kind.content_kind(), size: self.size }
    }
}

impl EntryKind {
    /// Returns true for files, with or without the executable bit.
    pub fn is_regular(self) -> bool {
        matches!(self, Self::File | Self::Executable)
    }

    /// Returns the kind of content that a pointer would record for it; a pointer knows no links.
    pub fn content_kind(self) -> ContentKind {
        match self {
            Self::File | Self::Link => ContentKind::File,
            Self::Executable => ContentKind::Executable,
            Self::Folder => ContentKind::Tree,
        }
    }
}

/// Cuts a sorted folder into pages; returns the row of the top page, and all pages with their digests.
pub fn encode(entries: &[TreeEntry]) -> (PageEntry, Vec<(Digest, Vec<u8>)>) {
    let mut pages = Vec::new();
    let mut rows = Vec::new();
    for part in split_pages(entries, 0, |it| &it.name) {
        let mut out = page_header(0);
        for entry in part {
            out.push(entry.kind as u8);
            put_bytes(&mut out, &entry.name);
            put_varint(&mut out, entry.size);
            if entry.kind == EntryKind::Folder {
                put_varint(&mut out, entry.files);
            }
            out.extend_from_slice(entry.digest.bytes());
        }
        let last = part.last().map(|it| it.name.clone()).unwrap_or_default();
        let sums = part.iter().map(|it| (it.size, it.files));
        rows.push(finish_page(out, last, sums, &mut pages));
    }
    let mut level = 1;
    while rows.len() > 1 {
        let mut above = Vec::new();
        for part in split_pages(&rows, level, |it| &it.last) {
            let mut out = page_header(level as u8);
            for row in part {
                put_bytes(&mut out, &row.last);
                put_varint(&mut out, row.size);
                put_varint(&mut out, row.files);
                out.extend_from_slice(row.digest.bytes());
            }
            let last = part.last().map(|it| it.last.clone()).unwrap_or_default();
            above.push(finish_page(out, last, part.iter().map(|it| (it.size, it.files)), &mut pages));
        }
        // If chance were to cut after every row of every level, the last level would take them all in one
        // page.
        rows = above;
        level += 1;
    }
    (rows.pop().expect("even an empty folder has a page"), pages)
}

fn page_header(level: u8) -> Vec<u8> {
    [&MAGIC[..], &[level]].concat()
}

fn finish_page(
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

/// Splits rows after each name whose hash says so; returns at least one piece.
fn split_pages<T>(rows: &[T], level: u32, name: impl Fn(&T) -> &[u8]) -> Vec<&[T]> {
    if rows.is_empty() || level * SPLIT_BITS >= 60 {
        return vec![rows];
    }
    rows.split_inclusive(|row| {
        let hash = Digest::of(name(row));
        let bits = u64::from_le_bytes(hash.bytes()[..8].try_into().expect("a digest has 8 bytes"));
        (bits >> (level * SPLIT_BITS)).trailing_zeros() >= SPLIT_BITS
    })
    .collect()
}

/// Returns true if a newer mlx wrote the page, whose digest must have been checked.
pub fn is_newer_page(bytes: &[u8]) -> bool {
    is_newer(bytes, *MAGIC)
}

/// Decodes a page, rejecting invalid names and wrong order.
pub fn decode(bytes: &[u8]) -> Result<Page> {
    if is_newer_page(bytes) {
        return Err(Error::corrupt("a tree was written by a newer mlx").hint("upgrade mlx"));
    }
    let mut reader = Reader::new(bytes, "a tree");
    reader.expect_magic(MAGIC)?;
    match reader.byte()? {
        0 => decode_leaf(reader).map(Page::Leaf),
        level => decode_branch(reader).map(|it| Page::Branch(level, it)),
    }
}

fn decode_leaf(mut reader: Reader<'_>) -> Result<Vec<TreeEntry>> {
    let mut entries: Vec<TreeEntry> = Vec::new();
    while !reader.is_empty() {
        let kind = match reader.byte()? {
            0 => EntryKind::File,
            1 => EntryKind::Executable,
            2 => EntryKind::Link,
            3 => EntryKind::Folder,
            _ => return Err(reader.corrupt("has an unknown kind of entry: upgrade mlx")),
        };
        let name: Box<[u8]> = reader.bytes()?.into();
        check_name(&name)?;
        if entries.last().is_some_and(|it| it.name >= name) {
            return Err(reader.corrupt("is not sorted"));
        }
        let size = reader.varint()?;
        let files = if kind == EntryKind::Folder { reader.varint()? } else { 1 };
        entries.push(TreeEntry { name, kind, size, files, digest: reader.digest()? });
    }
    Ok(entries)
}

fn decode_branch(mut reader: Reader<'_>) -> Result<Vec<PageEntry>> {
    let mut rows: Vec<PageEntry> = Vec::new();
    while !reader.is_empty() {
        let last: Box<[u8]> = reader.bytes()?.into();
        if rows.last().is_some_and(|it| it.last >= last) {
            return Err(reader.corrupt("is not sorted"));
        }
        let (size, files) = (reader.varint()?, reader.varint()?);
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
        fn a_decoded_folder_equals_the_encoded_one(names: BTreeMap<String, u64>) {
            let entries: Vec<_> = names.iter().filter(|it| check_name(it.0.as_bytes()).is_ok())
                .map(|(name, &seed)| entry(name, seed)).collect();
            let (root, pages) = encode(&entries);
            prop_assert_eq!(root.files, entries.len() as u64);
            prop_assert_eq!(read(root.digest, &pages.into_iter().collect()), entries);
        }

        #[test]
        fn no_input_makes_decoding_panic(mut bytes: Vec<u8>, flips: Vec<(usize, u8)>) {
            drop(decode(&bytes));
            let (_, pages) = encode(&[entry("a", 1), entry("b", 2)]);
            bytes.clone_from(&pages[0].1);
            flips.iter().for_each(|&(at, with)| { let at = at % bytes.len(); bytes[at] ^= with; });
            drop(decode(&bytes));
        }
    }

    #[test]
    fn one_changed_name_among_many_writes_one_page_per_level() {
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
    fn the_digest_of_the_first_format_version_is_stable() {
        let (root, pages) = encode(&[entry("a", 1), entry("b", 2)]);
        assert_eq!(root.digest.short(), "4708ef575f");
        assert_eq!(pages.len(), 1);
    }
}
