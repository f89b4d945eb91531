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
const HIGHEST: u8 = 7;

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
    gather(store, tree, None, &mut found)?;
    if found.windows(2).any(|it| it[0].name >= it[1].name) {
        return Err(Error::corrupt(format!("the tree {} is not sorted", tree.short())));
    }
    Ok(found)
}

pub(super) fn page(store: &Store, digest: &Digest) -> Result<Page> {
    decode(&store.read(digest)?).doing(|| format!("cannot read the tree {}", digest.short()))
}

/// Rows of the leaves of a folder in order; each page lies below the level of the one `above`.
fn gather(store: &Store, tree: &Digest, above: Option<u8>, found: &mut Vec<TreeEntry>) -> Result<()> {
    match page(store, tree)? {
        Page::Leaf(rows) => found.extend(rows),
        Page::Branch(level, rows) if level < above.unwrap_or(HIGHEST + 1) => {
            rows.iter().try_for_each(|it| gather(store, &it.digest, Some(level), found))?;
        }
        Page::Branch(..) => return Err(out_of_place(tree)),
    }
    Ok(())
}

pub(super) fn out_of_place(tree: &Digest) -> Error {
    Error::corrupt(format!("the tree {} has pages out of place", tree.short()))
}

pub(super) fn leaf(store: &Store, digest: &Digest) -> Result<Vec<TreeEntry>> {
    match page(store, digest)? {
        Page::Leaf(entries) => Ok(entries),
        Page::Branch(..) => Err(out_of_place(digest)),
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
            Page::Branch(_, rows) => waiting.extend(rows.iter().map(|it| it.digest)),
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

/// What lies at `path` below a tree; of a folder that is large, one page a level is read.
pub fn file_at(store: &Store, tree: &Digest, path: &RepoPath) -> Result<Option<TreeEntry>> {
    let mut here = *tree;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let Some(entry) = entry(store, &here, name)? else { return Ok(None) };
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

/// What has this name in a stored folder.
fn entry(store: &Store, tree: &Digest, name: &[u8]) -> Result<Option<TreeEntry>> {
    let (mut here, mut above) = (*tree, None);
    loop {
        match page(store, &here)? {
            Page::Leaf(rows) => return Ok(rows.into_iter().find(|it| &it.name[..] == name)),
            Page::Branch(level, _) if above.is_some_and(|it| level >= it) => return Err(out_of_place(&here)),
            Page::Branch(level, rows) => {
                let Some(row) = rows.iter().find(|it| name <= &it.last[..]) else { return Ok(None) };
                (here, above) = (row.digest, Some(level));
            }
        }
    }
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
        // Nothing can be taken out of what is not there.
        if below.is_none() && new.is_none() {
            return put_folder(&here, Some(writer));
        }
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
    use crate::{error::Kind as ErrorKind, fs::Root, store::diff, wire};

    /// A page above another; whoever writes to a remote may put any number of them there.
    fn above(writer: &mut Writer<'_>, level: u8, below: &Digest) -> Digest {
        let mut bytes = b"mlxtree\x01".to_vec();
        bytes.push(level);
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
        for at in 0..20_000 {
            top = above(&mut writer, u8::try_from(at + 1).unwrap_or(7), &top);
            towers.push(top);
        }
        writer.finish().unwrap();
        assert!(
            entries(&store, &towers[6]).unwrap().is_empty(),
            "seven pages above each other are none too many"
        );
        let error = entries(&store, &top).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("out of place")), (ErrorKind::Corrupt, true));
        let (mut pages, mut contents) = (BTreeSet::new(), BTreeMap::new());
        reachable(&store, &top, &mut pages, &mut contents).unwrap();
        assert_eq!((pages.len(), contents.len()), (20_001, 0));
        let mut here = Digest::of(b"nothing");
        assert!(diff(&store, &RepoPath::root(), Some(&here), Some(&top)).is_err());
        std::mem::swap(&mut here, &mut top);
        assert!(diff(&store, &RepoPath::root(), Some(&here), Some(&top)).is_err());
    }
}
