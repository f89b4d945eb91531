//! What differs between the record and the working tree, file by file.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    error::{Kind, Result},
    path::RepoPath,
    pointer::{Content, Pointer, Shape},
    progress::Progress,
    store::{Difference, EntryKind, Side, Store, diff},
    workspace::{
        Node, Workspace,
        compare::{as_entry, differences},
        filter::ScanFilter,
        scan::scan_filtered,
    },
};

/// What became of a file since it was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// How a tracked path stands against its record. What is here is the same, changed or unknown; where nothing is
/// here there is nothing to compare, and that is no change: it is brought, never recorded.
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
    /// What in it cannot be read, and why; the rest was compared.
    pub unknown: Vec<(RepoPath, String)>,
}

impl Item {
    pub fn unknown(path: RepoPath, why: String) -> Self {
        Self { path, state: State::Unknown, changes: Vec::new(), why: Some(why), unknown: Vec::new() }
    }
}

impl Item {
    /// What of it lies at or around these paths; all without any.
    pub fn near(mut self, paths: &[RepoPath]) -> Self {
        if paths.is_empty() || paths.iter().any(|it| self.path.is_within(it)) {
            return self;
        }
        let near = |it: &RepoPath| paths.iter().any(|path| it.overlaps(path));
        self.changes.retain(|it| near(&it.0));
        let partly = !self.unknown.is_empty();
        self.unknown.retain(|it| near(&it.0));
        if self.state == State::Changed || partly {
            (self.state, self.why) = match (self.unknown.len(), self.changes.len()) {
                (0, 0) => (State::Same, None),
                (0, _) => (State::Changed, None),
                (hidden, _) => (State::Unknown, Some(unreadable_summary(hidden))),
            };
        }
        self
    }
}

fn unreadable_summary(count: usize) -> String {
    format!("{count} of it cannot be read")
}

impl Workspace<'_> {
    /// Compares what lies at the pointer's path with what it records; nothing is written.
    pub fn compare(&self, pointer: &Pointer, progress: &dyn Progress) -> Result<Item> {
        let path = &pointer.path;
        let item =
            |state, changes, why| Item { path: path.clone(), state, changes, why, unknown: Vec::new() };
        let scanned =
            ScanFilter::new(self, path, Some(pointer)).map(ScanFilter::collect_errors).and_then(|filter| {
                let node = scan_filtered(self, path, &filter, None, progress)?;
                Ok((node, filter.into_errors()))
            });
        let (node, errors) = match scanned {
            Ok((Some(node), errors)) => (node, errors),
            Ok((None, errors)) => {
                let why = errors.into_iter().next().map(|it| it.1.full_text());
                let state = if why.is_some() { State::Unknown } else { State::Absent };
                return Ok(item(state, Vec::new(), why));
            }
            Err(error) => return Ok(item(State::Unknown, Vec::new(), Some(error.full_text()))),
        };
        if errors.is_empty() && node.content() == pointer.content {
            return Ok(item(State::Same, Vec::new(), None));
        }
        // What lies in a folder that was walked was compared, whatever else is wrong with the folder.
        let hidden: Vec<_> =
            errors.iter().map(|it| it.0.clone()).filter(|it| !contains_folder(&node, path, it)).collect();
        let recorded = Version::Recorded(pointer.content);
        match between(&self.repo.store, &pointer.path, Some(&recorded), Some(&Version::Workspace(node))) {
            Ok(changes) if errors.is_empty() => Ok(item(State::Changed, changes, None)),
            Ok(mut changes) => {
                changes.retain(|it| !hidden.iter().any(|hidden| hidden.overlaps(&it.0)));
                let why = Some(unreadable_summary(errors.len()));
                let unknown = errors.into_iter().map(|(path, error)| (path, error.full_text())).collect();
                Ok(Item { unknown, ..item(State::Unknown, changes, why) })
            }
            Err(error) if error.kind() == Kind::NotFound => {
                let why =
                    "it changed, but its tree is not here: run `mlx fetch --trees` to see how".to_owned();
                Ok(item(State::Unknown, Vec::new(), Some(why)))
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether the folder at `path` is in what was found at `top`.
fn contains_folder(node: &Node, top: &RepoPath, path: &RepoPath) -> bool {
    let below = path.below(top);
    let found = below.as_ref().and_then(|it| {
        it.components().try_fold(node, |here, name| here.children().iter().find(|it| &it.name[..] == name))
    });
    found.is_some_and(|it| it.kind == EntryKind::Folder)
}

/// A version of a path to compare with another.
pub enum Version {
    Recorded(Content),
    /// As the workspace has it, unlike any record.
    Workspace(Node),
}

impl Version {
    fn recorded(&self) -> Option<&Content> {
        match self {
            Self::Recorded(content) => Some(content),
            Self::Workspace(_) => None,
        }
    }

    fn leaves(&self, store: &Store, path: &RepoPath) -> Result<BTreeMap<RepoPath, Side>> {
        let found = match self {
            Self::Workspace(node) => differences(store, path, None, Some(node))?,
            Self::Recorded(content) => differences(store, path, Some(&as_entry(content)), None)?,
        };
        Ok(found.into_iter().filter_map(|it| Some((it.path, it.old.or(it.new)?))).collect())
    }
}

impl Workspace<'_> {
    /// What the workspace has at a path: the record where that still holds or nothing is here.
    pub fn version(
        &self,
        path: &RepoPath,
        recorded: Option<Content>,
        progress: &dyn Progress,
    ) -> Result<Option<Version>> {
        let Some(content) = recorded else { return Ok(None) };
        match self.look(path, progress)? {
            Some(node) if node.content() != content => Ok(Some(Version::Workspace(node))),
            _ => Ok(Some(Version::Recorded(content))),
        }
    }
}

/// What differs between two versions of a path; equal subtrees are not read.
pub fn between(
    store: &Store,
    path: &RepoPath,
    old: Option<&Version>,
    new: Option<&Version>,
) -> Result<Vec<(RepoPath, Change)>> {
    let tree = |it: &Version| it.recorded().filter(|it| it.kind == Shape::Tree).map(|it| it.digest);
    if let (Some(before), Some(after)) = (old, new)
        && let (Some(before), Some(after)) = (tree(before), tree(after))
    {
        return Ok(file_changes(diff(store, path, Some(&before), Some(&after))?));
    }
    if let (Some(Version::Recorded(content)), Some(Version::Workspace(node))) = (old, new) {
        return Ok(file_changes(differences(store, path, Some(&as_entry(content)), Some(node))?));
    }
    let leaves = |it: Option<&Version>| it.map_or_else(|| Ok(BTreeMap::new()), |it| it.leaves(store, path));
    Ok(changes(leaves(old)?, leaves(new)?))
}

fn file_changes(found: Vec<Difference>) -> Vec<(RepoPath, Change)> {
    // A folder that gained or lost its files is file_changes by its files.
    let is_folder = |it: &Difference| it.old.or(it.new).is_some_and(|it| it.kind == EntryKind::Folder);
    let filled = |folder: &RepoPath| {
        let after = &found[found.partition_point(|it| it.path <= *folder)..];
        let mut near = after.iter().take_while(|it| it.path.bytes().starts_with(folder.bytes()));
        near.any(|it| it.path.is_within(folder))
    };
    let file_changes: Vec<_> = found.iter().filter(|it| !(is_folder(it) && filled(&it.path))).collect();
    file_changes.into_iter().map(|it| (it.path.clone(), change(it.old.is_some(), it.new.is_some()))).collect()
}

fn change(before: bool, after: bool) -> Change {
    match (before, after) {
        (false, _) => Change::Added,
        (_, false) => Change::Deleted,
        _ => Change::Modified,
    }
}

fn changes(mut old: BTreeMap<RepoPath, Side>, new: BTreeMap<RepoPath, Side>) -> Vec<(RepoPath, Change)> {
    let mut found = Vec::new();
    for (path, side) in new {
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
    found
}
