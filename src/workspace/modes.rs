//! Executable bits on file systems without them: the recorded ones count, as in Git.

use std::collections::BTreeSet;

use crate::{
    path::RepoPath,
    store::EntryKind,
    workspace::{
        Workspace,
        compare::{as_entry, differences},
    },
};

/// Returns the files recorded as executable at or around `path` if `core.fileMode` says that the file
/// system's bits mean nothing; `None` if they count.
pub(super) fn executables(workspace: &Workspace<'_>, path: &RepoPath) -> Option<BTreeSet<RepoPath>> {
    if workspace.repo.git.tracks_exec_bits() {
        return None;
    }
    // Untracked files, and those whose tree is not in the local store, count as not executable, as most are.
    let Some(pointer) = workspace.record_of(path) else { return Some(BTreeSet::new()) };
    let record = as_entry(&pointer.content);
    let files = differences(&workspace.repo.store, &pointer.path, Some(&record), None).unwrap_or_default();
    let files =
        files.into_iter().filter(|file| file.old.is_some_and(|old| old.kind == EntryKind::Executable));
    Some(files.map(|it| it.path).collect())
}
