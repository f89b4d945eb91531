//! From what is named to every object below it: pages of folders are read, contents are not.

use std::collections::{BTreeSet, HashSet};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Kind, Result},
    pointer::Shape,
    store::{EntryKind, LiveSet, Page, Store, decode_page, is_newer_page},
    upkeep::roots::Roots,
};

/// Pages in memory at once.
const LOT: usize = 256;

/// Everything that is needed.
#[derive(Debug, Default)]
pub struct Marked {
    pub kept: LiveSet,
    /// Pages that are not here: what they name is not known.
    pub absent: BTreeSet<Digest>,
    /// Pages whose bytes are wrong: what they name may be here, and is not known either.
    pub damaged: BTreeSet<Digest>,
}

/// A page, or why there is none.
enum Read {
    Page(Page),
    Absent,
    Damaged,
}

/// Marks everything below the roots.
pub fn mark(store: &Store, roots: &Roots) -> Result<Marked> {
    let mut marked = Marked::default();
    marked.kept.runs.extend(&roots.runs);
    marked.kept.objects.extend(roots.contents.keys());
    let is_tree = |it: &&Digest| match roots.contents[it].content {
        Some(content) => content.kind == Shape::Tree,
        None => store.is_tree_page(it),
    };
    let mut seen: HashSet<Digest> = roots.contents.keys().filter(is_tree).copied().collect();
    let mut level: Vec<Digest> = seen.iter().copied().collect();
    while !level.is_empty() {
        let mut below = Vec::new();
        for lot in level.chunks(LOT) {
            let pages = lot.par_iter().map(|it| read(store, it)).collect::<Result<Vec<_>>>()?;
            for (digest, page) in lot.iter().zip(pages) {
                match page {
                    Read::Absent => drop(marked.absent.insert(*digest)),
                    Read::Damaged => drop(marked.damaged.insert(*digest)),
                    Read::Page(page) => take(page, &mut marked.kept, &mut seen, &mut below),
                }
            }
        }
        level = below;
    }
    Ok(marked)
}

fn take(page: Page, kept: &mut LiveSet, seen: &mut HashSet<Digest>, below: &mut Vec<Digest>) {
    let rows: Vec<(Digest, bool)> = match page {
        Page::Branch(_, rows) => rows.iter().map(|it| (it.digest, true)).collect(),
        Page::Leaf(rows) => rows.iter().map(|it| (it.digest, it.kind == EntryKind::Folder)).collect(),
    };
    for (digest, folder) in rows {
        kept.objects.insert(digest);
        if folder && seen.insert(digest) {
            below.push(digest);
        }
    }
}

fn read(store: &Store, digest: &Digest) -> Result<Read> {
    if !store.contains(digest) {
        return Ok(if store.is_damaged(digest) { Read::Damaged } else { Read::Absent });
    }
    let bytes = match store.read(digest) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == Kind::Corrupt => return Ok(Read::Damaged),
        Err(error) if error.kind() == Kind::NotFound => return Ok(Read::Absent),
        Err(error) => return Err(error),
    };
    match decode_page(&bytes) {
        Ok(page) => Ok(Read::Page(page)),
        // It is not damaged, and nothing brings one that we can read.
        Err(error) if is_newer_page(&bytes) => Err(error),
        Err(error) if error.kind() == Kind::Corrupt => Ok(Read::Damaged),
        Err(error) => Err(error),
    }
}
