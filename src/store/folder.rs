//! Folders in the store: built from entries, read page by page, compared without reading what is equal.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    error::{Doing, Error, Result},
    path::RepoPath,
    pointer::{Content, Shape},
    store::{
        EntryKind, Kind, Page, Store, TreeEntry, Writer,
        tree::{decode, encode},
    },
};

/// Pages stand on pages no higher: the seventh level takes in all that are left.
const HIGHEST: u32 = 7;

/// One side of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    pub kind: EntryKind,
    pub digest: Digest,
    pub size: u64,
}

/// A path whose content differs between two trees; empty folders count as paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub path: RepoPath,
    pub old: Option<Side>,
    pub new: Option<Side>,
}

impl From<&TreeEntry> for Side {
    fn from(entry: &TreeEntry) -> Self {
        Self { kind: entry.kind, digest: entry.digest, size: entry.size }
    }
}

/// Cuts a sorted folder into pages and stores them when there is a `writer`; its digest and sums.
pub fn put_folder(entries: &[TreeEntry], writer: Option<&mut Writer<'_>>) -> Result<Content> {
    let (root, pages) = encode(entries);
    if let Some(writer) = writer {
        pages.iter().try_for_each(|(digest, bytes)| writer.put(Kind::Tree, *digest, bytes))?;
    }
    Ok(Content { digest: root.digest, files: root.files, kind: Shape::Tree, size: root.size })
}

/// The names in a stored folder, sorted.
pub fn entries(store: &Store, tree: &Digest) -> Result<Vec<TreeEntry>> {
    let mut found = Vec::new();
    for page in leaves(store, tree, 0)? {
        found.extend(leaf(store, &page)?);
    }
    if found.windows(2).any(|it| it[0].name >= it[1].name) {
        return Err(Error::corrupt(format!("the tree {} is not sorted", tree.short())));
    }
    Ok(found)
}

fn page(store: &Store, digest: &Digest) -> Result<Page> {
    decode(&store.read(digest)?).doing(|| format!("cannot read the tree {}", digest.short()))
}

/// Leaf pages of a folder in order; a page above holds nothing but their names.
fn leaves(store: &Store, tree: &Digest, above: u32) -> Result<Vec<Digest>> {
    match page(store, tree)? {
        Page::Leaf(_) => Ok(vec![*tree]),
        Page::Branch(_) if above > HIGHEST => {
            Err(Error::corrupt(format!("the tree {} has pages without end", tree.short())))
        }
        Page::Branch(rows) => {
            let mut found = Vec::with_capacity(rows.len());
            for row in rows {
                found.extend(leaves(store, &row.digest, above + 1)?);
            }
            Ok(found)
        }
    }
}

fn leaf(store: &Store, digest: &Digest) -> Result<Vec<TreeEntry>> {
    match page(store, digest)? {
        Page::Leaf(entries) => Ok(entries),
        Page::Branch(_) => Err(Error::corrupt(format!("the tree {} has pages out of place", digest.short()))),
    }
}

/// Every object below and including a tree: pages of folders, and contents with their sizes.
pub fn reachable(
    store: &Store,
    tree: &Digest,
    pages: &mut BTreeSet<Digest>,
    contents: &mut BTreeMap<Digest, u64>,
) -> Result<()> {
    // Not by recursion: how deep it goes is for whoever wrote the tree to say.
    let mut waiting = vec![*tree];
    while let Some(next) = waiting.pop() {
        if !pages.insert(next) {
            continue;
        }
        match page(store, &next)? {
            Page::Branch(rows) => waiting.extend(rows.iter().map(|it| it.digest)),
            Page::Leaf(rows) => {
                for row in rows {
                    if row.kind == EntryKind::Folder {
                        waiting.push(row.digest);
                    } else {
                        contents.insert(row.digest, row.size);
                    }
                }
            }
        }
    }
    Ok(())
}

/// What differs between two folders, by path below `at`; equal subtrees and pages are not read.
pub fn diff(
    store: &Store,
    at: &RepoPath,
    old: Option<&Digest>,
    new: Option<&Digest>,
) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    compare(store, at, old, new, &mut found)?;
    Ok(found)
}

fn compare(
    store: &Store,
    at: &RepoPath,
    old: Option<&Digest>,
    new: Option<&Digest>,
    found: &mut Vec<Difference>,
) -> Result<()> {
    if old == new {
        return Ok(());
    }
    let pages = |tree: Option<&Digest>| tree.map_or_else(|| Ok(Vec::new()), |it| leaves(store, it, 0));
    let (before, after) = (pages(old)?, pages(new)?);
    let shared: BTreeSet<_> = before.iter().filter(|it| after.contains(it)).collect();
    let mut names: BTreeMap<Box<[u8]>, (Option<TreeEntry>, Option<TreeEntry>)> = BTreeMap::new();
    for page in before.iter().filter(|it| !shared.contains(it)) {
        for entry in leaf(store, page)? {
            let slot = names.entry(entry.name.clone()).or_default();
            slot.0 = Some(entry);
        }
    }
    for page in after.iter().filter(|it| !shared.contains(it)) {
        for entry in leaf(store, page)? {
            let slot = names.entry(entry.name.clone()).or_default();
            slot.1 = Some(entry);
        }
    }
    for (name, (old, new)) in names {
        if old != new {
            compare_entry(store, &at.join(&name)?, old.as_ref(), new.as_ref(), found)?;
        }
    }
    Ok(())
}

fn compare_entry(
    store: &Store,
    path: &RepoPath,
    old: Option<&TreeEntry>,
    new: Option<&TreeEntry>,
    found: &mut Vec<Difference>,
) -> Result<()> {
    let folder = |it: Option<&TreeEntry>| it.filter(|it| it.kind == EntryKind::Folder).map(|it| it.digest);
    let leaf = |it: Option<&TreeEntry>| {
        it.filter(|it| it.kind != EntryKind::Folder || it.files == 0).map(Side::from)
    };
    let (old_folder, new_folder) = (folder(old), folder(new));
    if leaf(old).is_some() || leaf(new).is_some() {
        let one = Difference { path: path.clone(), old: leaf(old), new: leaf(new) };
        let emptied = |it: Option<Side>| it.is_some_and(|it| it.kind == EntryKind::Folder);
        // A folder that gained or lost its files is told by its files.
        if !(emptied(one.old) && new_folder.is_some() || emptied(one.new) && old_folder.is_some()) {
            found.push(one);
        }
    }
    if old_folder.is_some() || new_folder.is_some() {
        compare(store, path, old_folder.as_ref(), new_folder.as_ref(), found)?;
    }
    Ok(())
}

/// What lies at `path` below a tree.
pub fn file_at(store: &Store, tree: &Digest, path: &RepoPath) -> Result<Option<TreeEntry>> {
    let mut here = *tree;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let Some(entry) = entries(store, &here)?.into_iter().find(|it| &it.name[..] == name) else {
            return Ok(None);
        };
        if names.peek().is_none() {
            return Ok(Some(entry));
        }
        if entry.kind != EntryKind::Folder {
            return Ok(None);
        }
        here = entry.digest;
    }
    Ok(None)
}

/// The tree with what lies at `path` replaced (or removed); only pages on the way are written.
pub fn replace(
    writer: &mut Writer<'_>,
    store: &Store,
    tree: Option<&Digest>,
    path: &RepoPath,
    new: Option<TreeEntry>,
) -> Result<Content> {
    let mut names = path.components();
    let name = names.next().ok_or_else(|| Error::usage("a folder cannot be put into itself"))?;
    let rest = names.try_fold(RepoPath::root(), |below, name| below.join(name))?;
    let mut here = tree.map_or_else(|| Ok(Vec::new()), |it| entries(store, it))?;
    let at = here.binary_search_by(|it| it.name[..].cmp(name));
    let entry = if rest.is_root() {
        new.map(|it| TreeEntry { name: name.into(), ..it })
    } else {
        let below = at.ok().map(|at| &here[at]).filter(|it| it.kind == EntryKind::Folder).map(|it| it.digest);
        let content = replace(writer, store, below.as_ref(), &rest, new)?;
        let Content { digest, files, size, .. } = content;
        Some(TreeEntry { name: name.into(), kind: EntryKind::Folder, size, files, digest })
    };
    match (at, entry) {
        (Ok(at), Some(entry)) => here[at] = entry,
        (Ok(at), None) => drop(here.remove(at)),
        (Err(at), Some(entry)) => here.insert(at, entry),
        (Err(_), None) => {}
    }
    put_folder(&here, Some(writer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Kind as ErrorKind, fs::Root, wire};

    /// A page above another; whoever writes to a remote may put any number of them there.
    fn above(writer: &mut Writer<'_>, below: &Digest) -> Digest {
        let mut bytes = b"mlxtree\x01\x01".to_vec();
        wire::put_bytes(&mut bytes, b"last");
        wire::put_number(&mut bytes, 1);
        wire::put_number(&mut bytes, 1);
        bytes.extend_from_slice(below.bytes());
        let digest = Digest::of(&bytes);
        writer.put(Kind::Tree, digest, &bytes).unwrap();
        digest
    }

    #[test]
    fn pages_without_end_end_in_an_error_and_overflow_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        let mut writer = Writer::new(&store);
        let first = put_folder(&[], Some(&mut writer)).unwrap().digest;
        let mut top = first;
        let mut towers = Vec::new();
        for _ in 0..20_000 {
            top = above(&mut writer, &top);
            towers.push(top);
        }
        writer.finish().unwrap();
        assert!(
            entries(&store, &towers[6]).unwrap().is_empty(),
            "seven pages above each other are none too many"
        );
        let error = entries(&store, &top).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("without end")), (ErrorKind::Corrupt, true));
        let (mut pages, mut contents) = (BTreeSet::new(), BTreeMap::new());
        reachable(&store, &top, &mut pages, &mut contents).unwrap();
        assert_eq!((pages.len(), contents.len()), (20_001, 0));
        let mut here = Digest::of(b"nothing");
        assert!(diff(&store, &RepoPath::root(), Some(&here), Some(&top)).is_err());
        std::mem::swap(&mut here, &mut top);
        assert!(diff(&store, &RepoPath::root(), Some(&here), Some(&top)).is_err());
    }
}
