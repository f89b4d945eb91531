//! Completeness of stored content: a tree is complete when every page and every file below it is stored.

use std::{collections::HashSet, sync::Arc};

use crate::{
    digest::Digest,
    error::Result,
    pointer::{Content, ContentKind},
    store::{EntryKind, Kind, Packed, Page, Store, folder::read_page},
};

/// Describes the content of this digest, as a pointer to it would; `None` if it is not stored here.
pub fn content_of(store: &Store, digest: &Digest) -> Result<Option<Content>> {
    described(store, &Content { digest: *digest, files: 0, kind: ContentKind::Tree, size: 0 })
}

/// Returns this content with the kind, size and number of files that the object of its digest has; `None` if
/// it is not stored here. A file may have the bytes of a folder's page: then the given kind counts.
pub fn described(store: &Store, content: &Content) -> Result<Option<Content>> {
    let digest = content.digest;
    let is_executable = content.kind == ContentKind::Executable;
    let kind = if is_executable { ContentKind::Executable } else { ContentKind::File };
    if !store.contains(&digest) {
        return Ok(None);
    }
    if !store.is_tree_page(&digest) || content.kind != ContentKind::Tree && store.is_file(&digest) {
        let size = store.file_size(&digest)?;
        return Ok(size.map(|size| Content { digest, files: 1, kind, size }));
    }
    let sums: Vec<(u64, u64)> = match read_page(store, &digest)? {
        Page::Branch(_, rows) => rows.iter().map(|row| (row.size, row.files)).collect(),
        Page::Leaf(rows) => rows.iter().map(|row| (row.size, row.files)).collect(),
    };
    let (size, files) = sums
        .iter()
        .fold((0_u64, 0_u64), |(size, files), row| (size.saturating_add(row.0), files.saturating_add(row.1)));
    Ok(Some(Content { digest, files, kind: ContentKind::Tree, size }))
}

impl Store {
    /// Returns true if the bytes of a file are stored under this digest.
    pub fn is_file(&self, digest: &Digest) -> bool {
        self.large(digest).is_some() || self.packed_size(digest).is_some()
    }

    /// Returns the size of a stored file.
    fn file_size(&self, digest: &Digest) -> Result<Option<u64>> {
        match self.large(digest) {
            Some(large) => Ok(Some(large.stat()?.size)),
            None => Ok(self.packed_size(digest)),
        }
    }

    fn packed_size(&self, digest: &Digest) -> Option<u64> {
        let row = |packed: &Arc<Packed>| packed.index.find(digest, &[Kind::Content]);
        self.packs().values().find_map(row).map(|row| row.size)
    }

    /// Returns true if all of this content is stored here. A gc may remove it at any moment, unless a
    /// pointer, a lockfile or a commit names it.
    pub fn is_complete(&self, content: &Content) -> bool {
        self.has_all(content, &|digest| Ok(self.contains(digest))).unwrap_or(false)
    }

    /// Returns true if all of this content is stored here; then all of it is pinned, and no gc removes it
    /// while this process lives. Commands call this before they publish the name of content that they did
    /// not store themselves. In a store that this user may only read, nothing can be pinned.
    pub fn pin_complete(&self, content: &Content) -> Result<bool> {
        let writable = self.root.is_writable();
        self.has_all(content, &|digest| {
            if writable { self.try_pin(digest) } else { Ok(self.contains(digest)) }
        })
    }

    /// Checks an object and all objects below it. A page is checked before it is read, so that it stays
    /// readable once it is pinned.
    fn has_all(&self, content: &Content, has: &dyn Fn(&Digest) -> Result<bool>) -> Result<bool> {
        // Not recursive: the tree may be untrusted and arbitrarily deep.
        let mut waiting = vec![(content.digest, content.kind == ContentKind::Tree)];
        let mut seen = HashSet::new();
        while let Some((digest, is_page)) = waiting.pop() {
            if !seen.insert((digest, is_page)) {
                continue;
            }
            if !has(&digest)? {
                return Ok(false);
            }
            if is_page {
                let Ok(page) = read_page(self, &digest) else { return Ok(false) };
                match page {
                    Page::Branch(_, rows) => waiting.extend(rows.iter().map(|row| (row.digest, true))),
                    Page::Leaf(rows) => {
                        waiting.extend(rows.iter().map(|row| (row.digest, row.kind == EntryKind::Folder)));
                    }
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fs::Root,
        path::RepoPath,
        store::{Kind, LiveSet, TreeEntry, Writer, plan_prune, replace},
    };

    fn open(temp: &tempfile::TempDir) -> Store {
        Store::open(Root::open(temp.path()).unwrap()).unwrap()
    }

    /// Stores a tree with one file in a folder of its own.
    fn put_tree(store: &Store, text: &[u8]) -> Content {
        let mut writer = Writer::new(store);
        let digest = writer.put_bytes(text).unwrap();
        let file = TreeEntry { name: Box::default(), kind: EntryKind::File, size: 1, files: 1, digest };
        let path = RepoPath::from_text("inner/file").unwrap();
        let tree = replace(&mut writer, store, None, &path, Some(file)).unwrap();
        writer.finish().unwrap();
        tree
    }

    /// Removes everything that no lease pins, as a gc without a grace period does.
    fn prune(temp: &tempfile::TempDir) {
        let store = open(temp);
        let plan = plan_prune(&store.inventory().unwrap(), &LiveSet::default(), &|_| true);
        let repacked = store.repack(&plan).unwrap();
        let leased = store.leases().unwrap().into_iter().flat_map(|lease| lease.pinned).collect();
        store.prune(&plan, &repacked, &leased).unwrap();
    }

    #[test]
    fn a_pinned_tree_outlives_a_gc_with_everything_below_it() {
        let temp = tempfile::tempdir().unwrap();
        let tree = put_tree(&open(&temp), b"pinned");
        let other = put_tree(&open(&temp), b"not pinned");
        let reader = open(&temp);
        assert!(reader.pin_complete(&tree).unwrap() && reader.is_complete(&other));
        prune(&temp);
        assert!(open(&temp).is_complete(&tree));
        assert!(!open(&temp).is_complete(&other));
        assert!(!reader.pin_complete(&other).unwrap(), "the gc was faster");
    }

    #[test]
    fn a_tree_without_one_of_its_files_or_pages_is_not_complete() {
        let temp = tempfile::tempdir().unwrap();
        let store = open(&temp);
        let tree = put_tree(&store, b"text");
        assert_eq!(content_of(&store, &tree.digest).unwrap(), Some(tree));
        assert_eq!(content_of(&store, &Digest::of(b"text")).unwrap().unwrap().size, 4);
        assert_eq!(content_of(&store, &Digest::of(b"other")).unwrap(), None);
        assert!(store.is_complete(&tree) && store.pin_complete(&tree).unwrap());
        for kind in [Kind::Content, Kind::Tree] {
            let temp = tempfile::tempdir().unwrap();
            let part = open(&temp);
            let mut writer = Writer::new(&part);
            for packed in store.packs().values() {
                for row in packed.index.rows().filter(|row| row.kind != kind || row.digest == tree.digest) {
                    writer.put(row.kind, row.digest, &store.read(&row.digest).unwrap()).unwrap();
                }
            }
            writer.finish().unwrap();
            assert!(!part.is_complete(&tree) && !part.pin_complete(&tree).unwrap(), "{kind:?}");
        }
    }
}
