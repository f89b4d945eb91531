//! Marks every object that the roots lead to: pages of folders are read, file contents are not.

use std::collections::{BTreeSet, HashSet};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Kind, Result},
    maintenance::roots::Roots,
    store::{EntryKind, LiveSet, Page, Store, decode_page, is_newer_page},
};

/// Number of pages in memory at once.
const READ_BATCH: usize = 256;

/// Everything that is referenced.
#[derive(Debug, Default)]
pub struct Marked {
    pub live: LiveSet,
    /// Pages that are not stored here: their entries are unknown.
    pub absent: BTreeSet<Digest>,
    /// Pages whose bytes are wrong: their entries may be stored here, but are unknown.
    pub damaged: BTreeSet<Digest>,
}

/// A page, or the reason why it cannot be read.
enum PageRead {
    Page(Page),
    Absent,
    Damaged,
    /// The bytes of a file, which need nothing else.
    File,
}

/// Marks everything below the roots.
pub fn mark(store: &Store, roots: &Roots) -> Result<Marked> {
    let mut marked = Marked::default();
    marked.live.runs.extend(&roots.runs);
    marked.live.objects.extend(roots.contents.keys());
    // A record may name the wrong kind.
    let is_tree = |it: &&Digest| roots.contents[it].is_tree() || store.is_tree_page(it);
    let mut seen: HashSet<Digest> = roots.contents.keys().filter(is_tree).copied().collect();
    let mut level: Vec<Digest> = seen.iter().copied().collect();
    while !level.is_empty() {
        let mut below = Vec::new();
        for batch in level.chunks(READ_BATCH) {
            let pages = batch.par_iter().map(|it| read_page(store, it)).collect::<Result<Vec<_>>>()?;
            for (digest, page) in batch.iter().zip(pages) {
                match page {
                    PageRead::Absent => drop(marked.absent.insert(*digest)),
                    PageRead::Damaged => drop(marked.damaged.insert(*digest)),
                    PageRead::File => {}
                    PageRead::Page(page) => add_rows(page, &mut marked.live, &mut seen, &mut below),
                }
            }
        }
        level = below;
    }
    Ok(marked)
}

fn add_rows(page: Page, live: &mut LiveSet, seen: &mut HashSet<Digest>, below: &mut Vec<Digest>) {
    let rows: Vec<(Digest, bool)> = match page {
        Page::Branch(_, rows) => rows.iter().map(|it| (it.digest, true)).collect(),
        Page::Leaf(rows) => rows.iter().map(|it| (it.digest, it.kind == EntryKind::Folder)).collect(),
    };
    for (digest, is_folder) in rows {
        live.objects.insert(digest);
        if is_folder && seen.insert(digest) {
            below.push(digest);
        }
    }
}

fn read_page(store: &Store, digest: &Digest) -> Result<PageRead> {
    if !store.contains(digest) {
        return Ok(if store.is_damaged(digest) { PageRead::Damaged } else { PageRead::Absent });
    }
    let bytes = match store.read(digest) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == Kind::Corrupt => return Ok(PageRead::Damaged),
        Err(error) if error.kind() == Kind::NotFound => return Ok(PageRead::Absent),
        Err(error) => return Err(error),
    };
    match decode_page(&bytes) {
        Ok(page) => Ok(PageRead::Page(page)),
        // A page of a newer mlx is not damaged, and no copy of it could be read.
        Err(error) if is_newer_page(&bytes) => Err(error),
        Err(_) if store.is_file(digest) => Ok(PageRead::File),
        Err(error) if error.kind() == Kind::Corrupt => Ok(PageRead::Damaged),
        Err(error) => Err(error),
    }
}
