//! Stored folders (trees): builds them from entries, reads them page by page, and looks up paths in them.

use crate::{
    digest::Digest,
    error::{Error, Result, WithContext},
    path::RepoPath,
    pointer::{Content, ContentKind},
    store::{
        EntryKind, Kind, Page, Store, TreeEntry, Writer,
        tree::{decode, encode},
    },
};

/// Highest level of a page: a page of the seventh level takes all remaining rows.
const MAX_LEVEL: u8 = 7;

/// Cuts a sorted folder into pages, stores them if there is a `writer`, and returns its digest and totals.
pub fn put_folder(entries: &[TreeEntry], writer: Option<&mut Writer<'_>>) -> Result<Content> {
    let (root, pages) = encode(entries);
    if let Some(writer) = writer {
        pages.iter().try_for_each(|(digest, bytes)| writer.put(Kind::Tree, *digest, bytes))?;
    }
    Ok(Content { digest: root.digest, files: root.files, kind: ContentKind::Tree, size: root.size })
}

/// Returns the entries of a stored folder, sorted by name.
pub fn entries(store: &Store, tree: &Digest) -> Result<Vec<TreeEntry>> {
    let mut found = Vec::new();
    collect_rows(store, tree, None, &mut found)?;
    if found.windows(2).any(|it| it[0].name >= it[1].name) {
        return Err(Error::corrupt(format!("the tree {} is not sorted", tree.short())));
    }
    Ok(found)
}

/// Reads and decodes a page of a tree.
pub fn read_page(store: &Store, digest: &Digest) -> Result<Page> {
    decode(&store.read(digest)?).context(|| format!("cannot read the tree {}", digest.short()))
}

/// Collects the rows of a folder's leaves in order; every page must be of a lower level than the one `above`
/// it.
fn collect_rows(store: &Store, tree: &Digest, above: Option<u8>, found: &mut Vec<TreeEntry>) -> Result<()> {
    match read_page(store, tree)? {
        Page::Leaf(rows) => found.extend(rows),
        Page::Branch(level, rows) if level < above.unwrap_or(MAX_LEVEL + 1) => {
            rows.iter().try_for_each(|it| collect_rows(store, &it.digest, Some(level), found))?;
        }
        Page::Branch(..) => return Err(misplaced_page(tree)),
    }
    Ok(())
}

pub(super) fn misplaced_page(tree: &Digest) -> Error {
    Error::corrupt(format!("the tree {} has pages out of place", tree.short()))
}

pub(super) fn read_leaf(store: &Store, digest: &Digest) -> Result<Vec<TreeEntry>> {
    match read_page(store, digest)? {
        Page::Leaf(entries) => Ok(entries),
        Page::Branch(..) => Err(misplaced_page(digest)),
    }
}

/// Returns the entry at `path` below a tree; one page per level is read.
pub fn entry_at(store: &Store, tree: &Digest, path: &RepoPath) -> Result<Option<TreeEntry>> {
    let mut page = *tree;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let Some(entry) = entry(store, &page, name)? else { return Ok(None) };
        if names.peek().is_none() {
            return Ok(Some(entry));
        }
        if entry.kind != EntryKind::Folder {
            return Ok(None);
        }
        page = entry.digest;
    }
    Ok(None)
}

/// Returns the entry of this name in a stored folder.
fn entry(store: &Store, tree: &Digest, name: &[u8]) -> Result<Option<TreeEntry>> {
    let (mut page, mut above) = (*tree, None);
    loop {
        match read_page(store, &page)? {
            Page::Leaf(rows) => return Ok(rows.into_iter().find(|it| &it.name[..] == name)),
            Page::Branch(level, _) if above.is_some_and(|it| level >= it) => {
                return Err(misplaced_page(&page));
            }
            Page::Branch(level, rows) => {
                let Some(row) = rows.iter().find(|it| name <= &it.last[..]) else { return Ok(None) };
                (page, above) = (row.digest, Some(level));
            }
        }
    }
}

/// Replaces or removes the entry at `path` of a tree and returns the new tree; only pages on the path are
/// written.
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
    let mut rows = tree.map_or_else(|| Ok(Vec::new()), |it| entries(store, it))?;
    let at = rows.binary_search_by(|it| it.name[..].cmp(name));
    let entry = if rest.is_root() {
        new.map(|it| TreeEntry { name: name.into(), ..it })
    } else {
        let below = at.ok().map(|at| &rows[at]).filter(|it| it.kind == EntryKind::Folder).map(|it| it.digest);
        // There is nothing to remove below a folder that does not exist.
        if below.is_none() && new.is_none() {
            return put_folder(&rows, Some(writer));
        }
        let content = replace(writer, store, below.as_ref(), &rest, new)?;
        let Content { digest, files, size, .. } = content;
        Some(TreeEntry { name: name.into(), kind: EntryKind::Folder, size, files, digest })
    };
    match (at, entry) {
        (Ok(at), Some(entry)) => rows[at] = entry,
        (Ok(at), None) => drop(rows.remove(at)),
        (Err(at), Some(entry)) => rows.insert(at, entry),
        (Err(_), None) => {}
    }
    put_folder(&rows, Some(writer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Kind as ErrorKind, fs::Root, store::diff, wire};

    /// Stores a page above another one; an untrusted remote may hold any number of them.
    fn above(writer: &mut Writer<'_>, level: u8, below: &Digest) -> Digest {
        let mut bytes = b"mlxtree\x01".to_vec();
        bytes.push(level);
        wire::put_bytes(&mut bytes, b"last");
        wire::put_varint(&mut bytes, 1);
        wire::put_varint(&mut bytes, 1);
        bytes.extend_from_slice(below.bytes());
        let digest = Digest::of(&bytes);
        writer.put(Kind::Tree, digest, &bytes).unwrap();
        digest
    }

    #[test]
    fn very_deep_pages_cause_an_error_and_no_stack_overflow() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        let mut writer = Writer::new(&store);
        let first = put_folder(&[], Some(&mut writer)).unwrap().digest;
        let mut top = first;
        let mut tops = Vec::new();
        for at in 0..20_000 {
            top = above(&mut writer, u8::try_from(at + 1).unwrap_or(7), &top);
            tops.push(top);
        }
        writer.finish().unwrap();
        assert!(entries(&store, &tops[6]).unwrap().is_empty(), "seven levels of pages are allowed");
        let error = entries(&store, &top).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("out of place")), (ErrorKind::Corrupt, true));
        let mut here = Digest::of(b"nothing");
        assert!(diff(&store, &RepoPath::root(), Some(&here), Some(&top)).is_err());
        std::mem::swap(&mut here, &mut top);
        assert!(diff(&store, &RepoPath::root(), Some(&here), Some(&top)).is_err());
    }
}
