//! Compares a recorded tree with the workspace.
//!
//! The cost follows the difference: folders of the same digest are neither read nor descended into.

use std::cmp::Ordering;

use crate::{
    error::Result,
    path::RepoPath,
    pointer::{Content, ContentKind},
    store::{DiffSide, Difference, EntryKind, Store, TreeEntry, entries},
    workspace::Node,
};

/// Returns all differences at or below `path`, sorted by path: `old` is recorded, `new` is in the workspace.
/// Empty folders count as paths; a folder with files, on either side, is represented by its files only.
pub(super) fn differences(
    store: &Store,
    path: &RepoPath,
    old: Option<&TreeEntry>,
    new: Option<&Node>,
) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    compare(store, path, old, new, &mut found)?;
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Converts the content of a pointer to a tree entry without a name.
pub(super) fn as_entry(content: &Content) -> TreeEntry {
    let kind = match content.kind {
        ContentKind::File => EntryKind::File,
        ContentKind::Executable => EntryKind::Executable,
        ContentKind::Tree => EntryKind::Folder,
    };
    TreeEntry { name: Box::default(), kind, size: content.size, files: content.files, digest: content.digest }
}

fn compare(
    store: &Store,
    path: &RepoPath,
    old: Option<&TreeEntry>,
    new: Option<&Node>,
    found: &mut Vec<Difference>,
) -> Result<()> {
    if let (Some(old), Some(new)) = (old, new)
        && (old.kind, old.digest) == (new.kind, new.digest)
    {
        return Ok(());
    }
    let rows = match old {
        Some(it) if it.kind == EntryKind::Folder => entries(store, &it.digest)?,
        _ => Vec::new(),
    };
    let nodes = new.map_or(&[][..], Node::children);
    let old = old.filter(|_| rows.is_empty()).map(DiffSide::from);
    let new = new.filter(|it| it.is_leaf()).map(side);
    if old.is_some() || new.is_some() {
        found.push(Difference { path: path.clone(), old, new });
    }
    compare_children(store, path, &rows, nodes, found)
}

fn side(node: &Node) -> DiffSide {
    DiffSide { kind: node.kind, digest: node.digest, size: node.size }
}

/// Merges two sorted lists of names and compares entry by entry.
fn compare_children(
    store: &Store,
    path: &RepoPath,
    mut rows: &[TreeEntry],
    mut nodes: &[Node],
    found: &mut Vec<Difference>,
) -> Result<()> {
    while !rows.is_empty() || !nodes.is_empty() {
        let order = match (rows.first(), nodes.first()) {
            (Some(row), Some(node)) => row.name[..].cmp(&node.name[..]),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        let (old, new) = (rows.first().filter(|_| order.is_le()), nodes.first().filter(|_| order.is_ge()));
        let same =
            old.is_some_and(|old| new.is_some_and(|new| (old.kind, old.digest) == (new.kind, new.digest)));
        if !same {
            let name = old.map_or_else(|| new.map_or(&[][..], |node| &node.name), |entry| &entry.name);
            compare(store, &path.join(name)?, old, new, found)?;
        }
        rows = &rows[usize::from(order.is_le())..];
        nodes = &nodes[usize::from(order.is_ge())..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{digest::Digest, fs::Root, store::Writer};

    type Files = BTreeMap<Vec<u8>, u8>;

    /// Generates files of a few names, up to three folders deep; a folder wins over a file of the same name.
    fn files() -> impl Strategy<Value = Files> {
        let name = prop::sample::select(vec!["a", "b", "b.c", "d"]);
        let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/").into_bytes());
        prop::collection::btree_map(path, 0..3_u8, 0..12).prop_map(|files| {
            let within = |folder: &[u8], path: &[u8]| {
                path.len() > folder.len() && path.starts_with(folder) && path[folder.len()] == b'/'
            };
            let names: Vec<_> = files.keys().cloned().collect();
            files.into_iter().filter(|(path, _)| !names.iter().any(|name| within(path, name))).collect()
        })
    }

    fn node(name: &[u8], files: &Files) -> Node {
        let mut children: BTreeMap<&[u8], Files> = BTreeMap::new();
        let mut found = Vec::new();
        for (path, content) in files {
            match path.iter().position(|it| *it == b'/') {
                Some(at) => {
                    children.entry(&path[..at]).or_default().insert(path[at + 1..].to_vec(), *content);
                }
                None => {
                    let digest = Digest::of(&[*content]);
                    let kind = if *content == 0 { EntryKind::Executable } else { EntryKind::File };
                    found.push(Node::file(path, kind, 1, digest));
                }
            }
        }
        found.extend(children.iter().map(|(name, files)| node(name, files)));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Node::folder(name, Digest::of(b""), found)
    }

    proptest! {
        #[test]
        fn it_matches_a_comparison_of_all_paths(old in files(), new in files()) {
            let temp = tempfile::tempdir().unwrap();
            let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
            let mut writer = Writer::new(&store);
            let (mut before, mut after) = (node(b"data", &old), node(b"data", &new));
            before.compute_digests(&mut Some(&mut writer)).unwrap();
            after.compute_digests(&mut None).unwrap();
            writer.finish().unwrap();
            let path = RepoPath::from_text("data").unwrap();
            let found = differences(&store, &path, Some(&before.entry()), Some(&after)).unwrap();
            let reported: Vec<_> =
                found.into_iter().map(|found| (found.path, found.old, found.new)).collect();
            let all = |node: &Node| -> BTreeMap<RepoPath, DiffSide> {
                node.leaves(&path).unwrap().into_iter().map(|(path, node)| (path, side(node))).collect()
            };
            let (before, after) = (all(&before), all(&after));
            let paths: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
            let expected: Vec<_> = paths
                .into_iter()
                .map(|path| (path.clone(), before.get(path).copied(), after.get(path).copied()))
                .filter(|(_, old, new)| old != new)
                .collect();
            prop_assert_eq!(reported, expected);
        }
    }
}
