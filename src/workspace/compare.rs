//! What differs between a record and the workspace: cost follows the difference, since folders of the same digest are
//! neither read from the store nor looked into.

use std::cmp::Ordering;

use crate::{
    error::Result,
    path::RepoPath,
    pointer::{Content, Shape},
    store::{Difference, EntryKind, Side, Store, TreeEntry, entries},
    workspace::Node,
};

/// All that differs at or below `path`, by path: `old` is on record, `new` is here. Empty folders count as paths; on
/// both sides a folder that has files stands for none itself.
pub(super) fn differences(
    store: &Store,
    path: &RepoPath,
    old: Option<&TreeEntry>,
    new: Option<&Node>,
) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    compare(store, path, old, new, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// What a pointer records, as a row of a tree.
pub(super) fn recorded(content: &Content) -> TreeEntry {
    let kind = match content.kind {
        Shape::File => EntryKind::File,
        Shape::Executable => EntryKind::Executable,
        Shape::Tree => EntryKind::Folder,
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
    let nodes = new.map_or(&[][..], |it| &it.children);
    let old = old.filter(|_| rows.is_empty()).map(Side::from);
    let new = new.filter(|it| it.is_leaf()).map(side);
    if old.is_some() || new.is_some() {
        found.push(Difference { path: path.clone(), old, new });
    }
    merge(store, path, &rows, nodes, found)
}

fn side(node: &Node) -> Side {
    Side { kind: node.kind, digest: node.digest, size: node.size }
}

/// Walks two sorted lists of names side by side.
fn merge(
    store: &Store,
    path: &RepoPath,
    mut rows: &[TreeEntry],
    mut nodes: &[Node],
    found: &mut Vec<Difference>,
) -> Result<()> {
    while !rows.is_empty() || !nodes.is_empty() {
        let order = match (rows.first(), nodes.first()) {
            (Some(row), Some(node)) => row.name.cmp(&node.name),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        let (old, new) = (rows.first().filter(|_| order.is_le()), nodes.first().filter(|_| order.is_ge()));
        let same =
            old.is_some_and(|old| new.is_some_and(|it| (old.kind, old.digest) == (it.kind, it.digest)));
        if !same {
            let name = old.map_or_else(|| new.map_or(&[][..], |it| &it.name), |it| &it.name);
            compare(store, &path.join(name)?, old, new, found)?;
        }
        rows = &rows[usize::from(order.is_le())..];
        nodes = &nodes[usize::from(order.is_ge())..];
    }
    Ok(())
}
