//! Applies many changes to a stored folder at once: each folder on the way is read and written once.

use std::collections::BTreeMap;

use crate::{
    digest::Digest,
    error::{Error, Result},
    path::RepoPath,
    pointer::Content,
    store::{EntryKind, Store, TreeEntry, Writer, entries, put_folder},
};

/// Replaces the entries at some paths of a tree, or removes those with no new entry; returns the new tree.
/// Without a `writer`, its pages are not stored.
pub fn update_folder(
    mut writer: Option<&mut Writer<'_>>,
    store: &Store,
    tree: Option<&Digest>,
    changes: &BTreeMap<RepoPath, Option<TreeEntry>>,
) -> Result<Content> {
    let old = tree.map_or_else(|| Ok(Vec::new()), |it| entries(store, it))?;
    let mut folder: BTreeMap<Box<[u8]>, TreeEntry> =
        old.into_iter().map(|it| (it.name.clone(), it)).collect();
    let mut inner: BTreeMap<&[u8], BTreeMap<RepoPath, Option<TreeEntry>>> = BTreeMap::new();
    for (path, entry) in changes {
        let mut names = path.components();
        let name = names.next().ok_or_else(|| Error::usage("a folder cannot be put into itself"))?;
        let rest = names.try_fold(RepoPath::root(), |below, name| below.join(name))?;
        if !rest.is_root() {
            inner.entry(name).or_default().insert(rest, entry.clone());
        } else if let Some(entry) = entry {
            folder.insert(name.into(), TreeEntry { name: name.into(), ..entry.clone() });
        } else {
            folder.remove(name);
        }
    }
    for (name, changes) in inner {
        let below = folder.get(name).filter(|it| it.kind == EntryKind::Folder).map(|it| it.digest);
        if below.is_none() && changes.values().all(Option::is_none) {
            continue;
        }
        let Content { digest, files, size, .. } =
            update_folder(writer.as_deref_mut(), store, below.as_ref(), &changes)?;
        let entry = TreeEntry { name: name.into(), kind: EntryKind::Folder, size, files, digest };
        folder.insert(name.into(), entry);
    }
    put_folder(&folder.into_values().collect::<Vec<_>>(), writer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fs::Root,
        store::{entry_at, replace},
    };

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    fn file(text: &str) -> TreeEntry {
        let digest = Digest::of(text.as_bytes());
        TreeEntry { name: Box::default(), kind: EntryKind::File, size: 1, files: 1, digest }
    }

    #[test]
    fn all_changes_at_once_give_the_same_tree_as_one_by_one() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        let mut writer = Writer::new(&store);
        let mut tree = put_folder(&[], Some(&mut writer)).unwrap().digest;
        writer.finish().unwrap();
        for name in ["a/x", "a/y", "b", "c/d/e"] {
            let mut writer = Writer::new(&store);
            tree = replace(&mut writer, &store, Some(&tree), &path(name), Some(file(name))).unwrap().digest;
            writer.finish().unwrap();
        }
        let steps =
            [("a/x", None), ("a/z", Some(file("z"))), ("c/d/e", Some(file("new"))), ("f/g", Some(file("g")))];
        let mut one_by_one = tree;
        for (name, entry) in &steps {
            let mut writer = Writer::new(&store);
            one_by_one =
                replace(&mut writer, &store, Some(&one_by_one), &path(name), entry.clone()).unwrap().digest;
            writer.finish().unwrap();
        }
        let mut writer = Writer::new(&store);
        let mut changes: BTreeMap<_, _> = steps.into_iter().map(|it| (path(it.0), it.1)).collect();
        changes.insert(path("not/there"), None);
        let updated = update_folder(Some(&mut writer), &store, Some(&tree), &changes).unwrap();
        writer.finish().unwrap();
        assert_eq!(updated.digest, one_by_one);
        assert_eq!(update_folder(None, &store, Some(&tree), &changes).unwrap(), updated);
        assert_eq!(entry_at(&store, &updated.digest, &path("a/x")).unwrap(), None);
    }
}
