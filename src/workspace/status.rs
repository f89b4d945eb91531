//! `mlx status` and `mlx diff`: compares recorded content with the workspace, file by file.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    error::{Kind, Result},
    path::RepoPath,
    pointer::{Content, ContentKind, Pointer},
    progress::Progress,
    store::{DiffSide, Difference, EntryKind, Store, diff},
    workspace::{
        Node, Workspace,
        compare::{as_entry, differences},
        filter::ScanFilter,
        merge::{Base, Mine},
        scan::scan_filtered,
    },
};

/// Kind of change of a file since it was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Modified,
    Deleted,
    /// Changed here since the last checkout, and in the record, too.
    Conflict,
}

/// A difference between a file here and its record that is not an edit: the file is as this worktree last had
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Behind {
    /// Recorded, and not here.
    Absent,
    /// Recorded in another version.
    Older,
    /// Not recorded anymore.
    Removed,
}

/// Relation of a tracked path to its record. A missing path is not a change, since there is nothing to
/// compare: it is fetched, never recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Same,
    /// Edited here; maybe behind, too.
    Changed,
    /// Not edited, but not checked out as it is recorded now.
    Behind,
    /// Recorded, but missing in the workspace: it can be pulled.
    Absent,
    /// Unreadable, or its recorded tree is not in the local store to compare with.
    Unknown,
}

/// Status of one tracked path.
#[derive(Debug)]
pub struct PathStatus {
    pub path: RepoPath,
    pub state: State,
    /// Edits since the last checkout.
    pub changes: Vec<(RepoPath, Change)>,
    /// Files that are as last checked out, and recorded otherwise.
    pub behind: Vec<(RepoPath, Behind)>,
    /// The reason for the state, such as an unknown one, if there is more to say than the changes.
    pub reason: Option<String>,
    /// Unreadable paths in it, with the reasons; all others were compared.
    pub unknown: Vec<(RepoPath, String)>,
}

impl PathStatus {
    /// Creates the status of a path that could not be compared.
    pub fn unknown(path: RepoPath, why: String) -> Self {
        let (changes, behind, unknown) = Default::default();
        Self { path, state: State::Unknown, changes, behind, reason: Some(why), unknown }
    }
}

impl PathStatus {
    /// Keeps only the changes that overlap one of `paths`; all if `paths` is empty.
    pub fn restrict_to(mut self, paths: &[RepoPath]) -> Self {
        if paths.is_empty() || paths.iter().any(|it| self.path.is_within(it)) {
            return self;
        }
        let overlaps = |path: &RepoPath| paths.iter().any(|other| path.overlaps(other));
        self.changes.retain(|it| overlaps(&it.0));
        self.behind.retain(|it| overlaps(&it.0));
        let partly = !self.unknown.is_empty();
        self.unknown.retain(|it| overlaps(&it.0));
        if matches!(self.state, State::Changed | State::Behind) || partly {
            (self.state, self.reason) = match self.unknown.len() {
                0 => (self.compared_state(), None),
                hidden => (State::Unknown, Some(unreadable_summary(hidden))),
            };
        }
        self
    }

    /// Returns the state of a path that was compared whole.
    fn compared_state(&self) -> State {
        match (self.changes.is_empty(), self.behind.is_empty()) {
            (true, true) => State::Same,
            (true, false) => State::Behind,
            (false, _) => State::Changed,
        }
    }
}

fn unreadable_summary(count: usize) -> String {
    format!("{count} of its entries cannot be read")
}

impl Workspace<'_> {
    /// Compares the files at the pointer's path with their record, without storing anything.
    pub fn compare(&self, pointer: &Pointer, progress: &dyn Progress) -> Result<PathStatus> {
        let path = &pointer.path;
        let item = |state, changes, why| PathStatus {
            path: path.clone(),
            state,
            changes,
            behind: Vec::new(),
            reason: why,
            unknown: Vec::new(),
        };
        let scanned =
            ScanFilter::new(self, path, Some(pointer)).map(ScanFilter::collect_errors).and_then(|filter| {
                let node = scan_filtered(self, path, &filter, None, progress)?;
                Ok((node, filter.into_errors()))
            });
        let (node, errors) = match scanned {
            Ok((Some(node), errors)) => (node, errors),
            Ok((None, errors)) => {
                let why = errors.into_iter().next().map(|(_, error)| error.chain_text());
                let state = if why.is_some() { State::Unknown } else { State::Absent };
                return Ok(item(state, Vec::new(), why));
            }
            Err(error) => return Ok(item(State::Unknown, Vec::new(), Some(error.chain_text()))),
        };
        let (content, recorded) = (node.content(), pointer.content);
        if errors.is_empty() && (content.kind, content.digest) == (recorded.kind, recorded.digest) {
            let why = self.false_summary(pointer, &content);
            let state = if why.is_some() { State::Changed } else { State::Same };
            return Ok(item(state, Vec::new(), why));
        }
        // An error at a folder that was walked hides nothing: its files were compared.
        let hidden: Vec<_> = errors
            .iter()
            .map(|(path, _)| path.clone())
            .filter(|hidden| !contains_folder(&node, path, hidden))
            .collect();
        let recorded = Version::Recorded(pointer.content);
        let edits = self.edits(pointer, &node)?;
        match diff_versions(&self.repo.store, &pointer.path, Some(&recorded), Some(&Version::Workspace(node)))
        {
            Ok(changes) if errors.is_empty() => {
                let (changes, behind) = edits.split(changes);
                let status = PathStatus { behind, ..item(State::Changed, changes, None) };
                // Without a difference, the recorded tree says something false, such as the size of a file.
                let state = match status.compared_state() {
                    State::Same => State::Changed,
                    state => state,
                };
                Ok(PathStatus { state, ..status })
            }
            Ok(mut changes) => {
                changes.retain(|change| !hidden.iter().any(|hidden| hidden.overlaps(&change.0)));
                let why = Some(unreadable_summary(errors.len()));
                let unknown = errors.into_iter().map(|(path, error)| (path, error.chain_text())).collect();
                let (changes, behind) = edits.split(changes);
                Ok(PathStatus { behind, unknown, ..item(State::Unknown, changes, why) })
            }
            Err(error) if error.kind() == Kind::NotFound => {
                let why = "it changed, but its recorded tree is not here: run `mlx fetch --trees` to see how"
                    .to_owned();
                Ok(item(State::Unknown, Vec::new(), Some(why)))
            }
            Err(error) => Err(error),
        }
    }
}

/// Paths that were edited here since the last checkout.
struct Edits {
    /// For each content that the workspace may have had: the paths that differ from it.
    since: Vec<BTreeSet<RepoPath>>,
    /// Those that the record changed, too.
    conflicts: BTreeSet<RepoPath>,
}

impl Edits {
    /// Tells the edits among the differences of the record and the workspace from what is behind.
    fn split(&self, changes: Vec<(RepoPath, Change)>) -> (Vec<(RepoPath, Change)>, Vec<(RepoPath, Behind)>) {
        let (mut edits, mut behind) = (Vec::new(), Vec::new());
        for (path, change) in changes {
            if !self.since.iter().all(|since| since.contains(&path)) {
                let change = match change {
                    Change::Deleted => Behind::Absent,
                    Change::Added => Behind::Removed,
                    Change::Modified | Change::Conflict => Behind::Older,
                };
                behind.push((path, change));
            } else if path.ancestors().any(|above| self.conflicts.contains(&above)) {
                edits.push((path, Change::Conflict));
            } else {
                edits.push((path, change));
            }
        }
        (edits, behind)
    }
}

impl Workspace<'_> {
    /// Compares the scanned workspace with what it last had.
    fn edits(&self, pointer: &Pointer, node: &Node) -> Result<Edits> {
        let (path, store) = (&pointer.path, &self.repo.store);
        let since = |base: Base| -> Result<Vec<BTreeSet<RepoPath>>> {
            let since = base.contents.iter().map(|content| {
                let found = differences(store, path, content.as_ref(), Some(node))?;
                Ok(found.into_iter().map(|found| found.path).collect())
            });
            since.collect()
        };
        // A base that the store lost counts as unknown.
        let since = since(self.base(path)?).or_else(|_| since(Base::unknown()))?;
        // Without the recorded tree, there is nothing to be in conflict with.
        let conflicts = self.merge_part(pointer, path, &Mine::Scanned(node)).map(|done| done.conflicts);
        let conflicts = conflicts.unwrap_or_default().into_iter().map(|below| path.join_path(&below));
        Ok(Edits { since, conflicts: conflicts.collect::<Result<_>>()? })
    }
}

/// Returns true if the scan of `top` contains a folder at `path`.
fn contains_folder(node: &Node, top: &RepoPath, path: &RepoPath) -> bool {
    let below = path.strip_prefix(top);
    let found = below.as_ref().and_then(|below| {
        below
            .components()
            .try_fold(node, |folder, name| folder.children().iter().find(|child| &child.name[..] == name))
    });
    found.is_some_and(|it| it.kind == EntryKind::Folder)
}

/// A version of a path, to be compared with another.
pub enum Version {
    Recorded(Content),
    /// The scanned workspace, which differs from the record.
    Workspace(Node),
}

impl Version {
    fn recorded(&self) -> Option<&Content> {
        match self {
            Self::Recorded(content) => Some(content),
            Self::Workspace(_) => None,
        }
    }

    fn leaves(&self, store: &Store, path: &RepoPath) -> Result<BTreeMap<RepoPath, DiffSide>> {
        let found = match self {
            Self::Workspace(node) => differences(store, path, None, Some(node))?,
            Self::Recorded(content) => differences(store, path, Some(&as_entry(content)), None)?,
        };
        Ok(found.into_iter().filter_map(|found| Some((found.path, found.old.or(found.new)?))).collect())
    }
}

impl Workspace<'_> {
    /// Returns the workspace's version of a path: the recorded one if the files match it or are missing.
    pub fn version(
        &self,
        path: &RepoPath,
        recorded: Option<Content>,
        progress: &dyn Progress,
    ) -> Result<Option<Version>> {
        let Some(content) = recorded else { return Ok(None) };
        match self.scan(path, progress)? {
            Some(node) if node.content() != content => Ok(Some(Version::Workspace(node))),
            _ => Ok(Some(Version::Recorded(content))),
        }
    }
}

/// Returns the differences between two versions of a path; equal subtrees are not read.
pub fn diff_versions(
    store: &Store,
    path: &RepoPath,
    old: Option<&Version>,
    new: Option<&Version>,
) -> Result<Vec<(RepoPath, Change)>> {
    let tree = |version: &Version| {
        version.recorded().filter(|content| content.kind == ContentKind::Tree).map(|content| content.digest)
    };
    if let (Some(before), Some(after)) = (old, new)
        && let (Some(before), Some(after)) = (tree(before), tree(after))
    {
        return Ok(file_changes(diff(store, path, Some(&before), Some(&after))?));
    }
    if let (Some(Version::Recorded(content)), Some(Version::Workspace(node))) = (old, new) {
        return Ok(file_changes(differences(store, path, Some(&as_entry(content)), Some(node))?));
    }
    let leaves = |version: Option<&Version>| {
        version.map_or_else(|| Ok(BTreeMap::new()), |version| version.leaves(store, path))
    };
    Ok(changes(leaves(old)?, leaves(new)?))
}

fn file_changes(found: Vec<Difference>) -> Vec<(RepoPath, Change)> {
    // A folder that gained or lost all its files is represented by them.
    let is_folder =
        |found: &Difference| found.old.or(found.new).is_some_and(|side| side.kind == EntryKind::Folder);
    let filled = |folder: &RepoPath| {
        let after = &found[found.partition_point(|difference| difference.path <= *folder)..];
        let mut near =
            after.iter().take_while(|difference| difference.path.bytes().starts_with(folder.bytes()));
        near.any(|difference| difference.path.is_within(folder))
    };
    let reported: Vec<_> =
        found.iter().filter(|difference| !(is_folder(difference) && filled(&difference.path))).collect();
    reported
        .into_iter()
        .map(|found| (found.path.clone(), change(found.old.is_some(), found.new.is_some())))
        .collect()
}

fn change(before: bool, after: bool) -> Change {
    match (before, after) {
        (false, _) => Change::Added,
        (_, false) => Change::Deleted,
        _ => Change::Modified,
    }
}

fn changes(
    mut old: BTreeMap<RepoPath, DiffSide>,
    new: BTreeMap<RepoPath, DiffSide>,
) -> Vec<(RepoPath, Change)> {
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
