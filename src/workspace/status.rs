//! What differs between the record and the working tree, file by file.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    error::{Kind, Result},
    path::RepoPath,
    pointer::{Content, Pointer, Shape},
    progress::Progress,
    store::{EntryKind, Side, Store, diff, entries},
    workspace::{Node, Workspace},
};

/// What became of a file since it was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// How a tracked path stands against its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Same,
    Changed,
    /// Recorded, and not here: to be pulled.
    Absent,
    /// It cannot be read, or its tree is not here to compare with.
    Unknown,
}

/// One tracked path.
#[derive(Debug)]
pub struct Item {
    pub path: RepoPath,
    pub state: State,
    pub changes: Vec<(RepoPath, Change)>,
    /// Why it is unknown.
    pub why: Option<String>,
}

impl Workspace<'_> {
    /// Compares what lies at the pointer's path with what it records; nothing is written.
    pub fn compare(&self, pointer: &Pointer, progress: &dyn Progress) -> Result<Item> {
        let item = |state, changes, why| Item { path: pointer.path.clone(), state, changes, why };
        let node = match self.look(&pointer.path, progress) {
            Ok(Some(node)) => node,
            Ok(None) => return Ok(item(State::Absent, Vec::new(), None)),
            Err(error) => return Ok(item(State::Unknown, Vec::new(), Some(error.full_text()))),
        };
        if node.content(&mut None)? == pointer.content {
            return Ok(item(State::Same, Vec::new(), None));
        }
        match changes(&self.repo.store, &node, &pointer.content) {
            Ok(changes) => Ok(item(State::Changed, changes, None)),
            Err(error) if error.kind() == Kind::NotFound => {
                let why =
                    "it changed, but its tree is not here: run `mlx fetch --trees` to see how".to_owned();
                Ok(item(State::Unknown, Vec::new(), Some(why)))
            }
            Err(error) => Err(error),
        }
    }
}

/// What differs between two recorded contents of a path, with sizes before and after.
pub fn between(
    store: &Store,
    path: &RepoPath,
    old: Option<&Content>,
    new: Option<&Content>,
) -> Result<Vec<(RepoPath, Change)>> {
    let tree = |it: Option<&Content>| it.filter(|it| it.kind == Shape::Tree).map(|it| it.digest);
    let mut found = Vec::new();
    let (old_file, new_file) =
        (old.filter(|it| it.kind != Shape::Tree), new.filter(|it| it.kind != Shape::Tree));
    match (old_file, new_file) {
        (None, Some(_)) => found.push((path.clone(), Change::Added)),
        (Some(_), None) => found.push((path.clone(), Change::Deleted)),
        (Some(old), Some(new)) if old != new => found.push((path.clone(), Change::Modified)),
        _ => {}
    }
    for it in diff(store, path, tree(old).as_ref(), tree(new).as_ref())? {
        let change = match (it.old, it.new) {
            (None, _) => Change::Added,
            (_, None) => Change::Deleted,
            _ => Change::Modified,
        };
        found.push((it.path, change));
    }
    Ok(found)
}

fn changes(store: &Store, node: &Node, recorded: &Content) -> Result<Vec<(RepoPath, Change)>> {
    let mut old = BTreeMap::new();
    recorded_leaves(store, &node.path, recorded, &mut old)?;
    let mut found = Vec::new();
    for (path, side) in workspace_leaves(node) {
        match old.remove(&path) {
            None => found.push((path, Change::Added)),
            Some(was)
                if was.kind != side.kind || was.digest != side.digest && side.kind != EntryKind::Folder =>
            {
                found.push((path, Change::Modified));
            }
            Some(_) => {}
        }
    }
    found.extend(old.into_keys().map(|path| (path, Change::Deleted)));
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Files, links and empty folders of the workspace.
pub(super) fn workspace_leaves(node: &Node) -> BTreeMap<RepoPath, Side> {
    let mut leaves = Vec::new();
    node.leaves(&mut leaves);
    let side = |it: &Node| Side { kind: it.kind, digest: it.digest, size: it.stamp.size };
    leaves.iter().map(|it| (it.path.clone(), side(it))).collect()
}

/// Files, links and empty folders of a record.
pub(super) fn recorded_leaves(
    store: &Store,
    path: &RepoPath,
    content: &Content,
    found: &mut BTreeMap<RepoPath, Side>,
) -> Result<()> {
    let kind = match content.kind {
        Shape::File => EntryKind::File,
        Shape::Executable => EntryKind::Executable,
        Shape::Tree if entries(store, &content.digest)?.is_empty() => EntryKind::Folder,
        Shape::Tree => {
            for difference in diff(store, path, None, Some(&content.digest))? {
                found.extend(difference.new.map(|it| (difference.path, it)));
            }
            return Ok(());
        }
    };
    found.insert(path.clone(), Side { kind, digest: content.digest, size: content.size });
    Ok(())
}
