//! Completeness of stored content: a tree is complete when every page and every file below it is stored.

use std::{collections::HashSet, sync::Arc};

use crate::{
    digest::Digest,
    error::Result,
    pointer::{Content, ContentKind},
    store::{EntryKind, Kind, Packed, Page, Store, folder::read_page, tree::decode},
};

/// Describes the content of this digest, as a pointer to it would; `None` if it is not stored here.
pub fn content_of(store: &Store, digest: &Digest) -> Result<Option<Content>> {
    described(store, &Content { digest: *digest, files: 0, kind: ContentKind::Tree, size: 0 })
}

/// Returns this content with the kind, size and number of files that the object of its digest has; `None` if
/// it is not stored here.
pub fn described(store: &Store, content: &Content) -> Result<Option<Content>> {
    let (digest, kind) = (content.digest, content.kind);
    if !store.contains(&digest) {
        return Ok(None);
    }
    if !is_stored_as_tree(store, content)? {
        let size = store.file_size(&digest);
        let kind = if kind == ContentKind::Executable { kind } else { ContentKind::File };
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

/// Returns true if the object is stored, but as a folder instead of a file or the other way round.
pub fn has_other_kind(store: &Store, content: &Content) -> bool {
    let is_tree = content.kind == ContentKind::Tree;
    store.contains(&content.digest) && is_stored_as_tree(store, content).is_ok_and(|stored| stored != is_tree)
}

/// Returns true if the stored object of this content is a folder. A file with the bytes of a folder's page is
/// stored once, as either: then the content counts, unless it cannot be right.
fn is_stored_as_tree(store: &Store, content: &Content) -> Result<bool> {
    let digest = &content.digest;
    let (is_page, is_file) = (store.is_tree_page(digest), store.is_file(digest));
    if is_page == is_file {
        return Ok(content.kind == ContentKind::Tree);
    }
    if content.kind == ContentKind::Tree {
        let is_small = store.packed_size(digest, &[Kind::Content]).is_some();
        return Ok(is_page || is_small && decode(&store.read(digest)?).is_ok());
    }
    let size = store.packed_size(digest, &[Kind::Tree]);
    Ok(is_page && (content.files, Some(content.size)) != (1, size))
}

impl Store {
    /// Returns true if the bytes of a file are stored under this digest.
    pub fn is_file(&self, digest: &Digest) -> bool {
        self.packed_size(digest, &[Kind::Content]).is_some() || self.large_size(digest).is_some()
    }

    /// Returns the size of a stored file.
    fn file_size(&self, digest: &Digest) -> Option<u64> {
        self.large_size(digest).or_else(|| self.packed_size(digest, &[Kind::Content, Kind::Tree]))
    }

    /// Returns the size of a large file in bytes, however it is stored.
    pub fn large_size(&self, digest: &Digest) -> Option<u64> {
        self.large(digest).map_or_else(
            || self.chunked(digest).map(|chunked| chunked.size()),
            |large| Some(large.stat().size),
        )
    }

    fn packed_size(&self, digest: &Digest, kinds: &[Kind]) -> Option<u64> {
        let row = |packed: &Arc<Packed>| packed.index.find(digest, kinds);
        self.packs().candidates(digest).find_map(row).map(|row| row.size)
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
    fn a_summary_is_corrected_from_the_object_of_its_digest() {
        let temp = tempfile::tempdir().unwrap();
        let store = open(&temp);
        let tree = put_tree(&store, b"text");
        let file = Content { digest: Digest::of(b"text"), files: 1, kind: ContentKind::File, size: 4 };
        for right in [tree, file] {
            let other = if right.kind == ContentKind::Tree { ContentKind::File } else { ContentKind::Tree };
            for wrong in [
                Content { files: 7, ..right },
                Content { size: 7, ..right },
                Content { kind: other, ..right },
                Content { kind: other, files: 1, size: 7, ..right },
            ] {
                assert_eq!(described(&store, &wrong).unwrap(), Some(right), "{wrong:?}");
                assert_eq!(has_other_kind(&store, &wrong), wrong.kind != right.kind, "{wrong:?}");
            }
            assert_eq!(described(&store, &right).unwrap(), Some(right));
            assert!(!has_other_kind(&store, &right));
        }
        let executable = Content { kind: ContentKind::Executable, ..file };
        assert_eq!(described(&store, &executable).unwrap(), Some(executable));
        let absent = Content { digest: Digest::of(b"absent"), ..tree };
        assert!(described(&store, &absent).unwrap().is_none() && !has_other_kind(&store, &absent));
    }

    #[test]
    fn a_file_with_the_bytes_of_a_page_is_a_file_whichever_was_stored_first() {
        for tree_first in [true, false] {
            let temp = tempfile::tempdir().unwrap();
            let other = tempfile::tempdir().unwrap();
            let page = open(&other).read(&put_tree(&open(&other), b"text").digest).unwrap();
            let store = open(&temp);
            let put = || {
                let mut writer = Writer::new(&store);
                writer.put_bytes(&page).unwrap();
                writer.finish().unwrap();
            };
            if !tree_first {
                put();
            }
            let tree = put_tree(&store, b"text");
            put();
            let size = page.len() as u64;
            let file = Content { digest: tree.digest, files: 1, kind: ContentKind::File, size };
            for content in [tree, file] {
                assert_eq!(described(&store, &content).unwrap(), Some(content), "{tree_first}");
                assert!(!has_other_kind(&store, &content), "{tree_first}");
            }
        }
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
