//! Exec bits where the file system has none of its own: those on record count, as in Git.

use std::collections::BTreeSet;

use crate::{
    path::RepoPath,
    store::EntryKind,
    workspace::{
        Workspace,
        compare::{as_entry, differences},
    },
};

/// The files that are on record as executable at or around `path`, where `core.fileMode` says that the bits of the
/// file system mean nothing; nothing where they do.
pub(super) fn executables(workspace: &Workspace<'_>, path: &RepoPath) -> Option<BTreeSet<RepoPath>> {
    if workspace.repo.git.keeps_modes() {
        return None;
    }
    // What is not on record, or whose record is not here, is as plain as most files are.
    let Ok(Some(pointer)) = workspace.pointer_of(path) else { return Some(BTreeSet::new()) };
    let record = as_entry(&pointer.content);
    let files = differences(&workspace.repo.store, &pointer.path, Some(&record), None).unwrap_or_default();
    let files = files.into_iter().filter(|it| it.old.is_some_and(|it| it.kind == EntryKind::Executable));
    Some(files.map(|it| it.path).collect())
}
