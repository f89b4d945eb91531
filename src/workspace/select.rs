//! Selects tracked paths, or parts of tracked folders, by the paths that a user names.

use std::collections::HashSet;

use crate::{
    error::{Error, Result},
    path::RepoPath,
    pointer::{Content, Pointer},
    store::{DiffSide, EntryKind, entries},
    workspace::{
        Tracked, Workspace,
        checkout::recorded_entry,
        compare::{as_entry, differences},
    },
};

impl Workspace<'_> {
    /// Selects the tracked paths that contain one of `paths` or lie in one, all if none are named. A named
    /// part that is neither recorded nor in the workspace is an error.
    pub fn select(&self, tracked: Tracked, paths: &[RepoPath]) -> Result<Tracked> {
        let chosen = self.select_whole(tracked, paths)?;
        for pointer in &chosen.pointers {
            paths.iter().try_for_each(|path| self.check_part(pointer, path))?;
        }
        Ok(chosen)
    }

    /// Keeps the tracked paths that contain one of `paths` or lie in one, without a check of the parts.
    pub fn select_whole(&self, tracked: Tracked, paths: &[RepoPath]) -> Result<Tracked> {
        tracked.select(paths).map_err(|error| self.left_out(paths).unwrap_or(error))
    }

    /// Returns the error for paths of which a sparse checkout leaves out the pointer.
    fn left_out(&self, paths: &[RepoPath]) -> Option<Error> {
        let pointer = |path: &RepoPath| self.pointer_of(path).ok().flatten();
        let mut pointers = paths.iter().filter_map(pointer);
        let file =
            pointers.find_map(|it| self.repo.files.stat(&it.file()).ok()?.is_none().then(|| it.file()))?;
        Some(skipped_error(&file))
    }

    /// Returns the recorded content of a part of a tracked path; `None` if it has no such part.
    pub fn part_content(&self, pointer: &Pointer, part: &RepoPath) -> Result<Option<Content>> {
        Ok(recorded_entry(&self.repo.store, pointer, part)?.map(|entry| entry.content()))
    }

    /// Returns the recorded files of a tracked path that `wanted` accepts.
    pub fn recorded_files(
        &self,
        pointer: &Pointer,
        wanted: &dyn Fn(&RepoPath) -> bool,
    ) -> Result<Vec<(RepoPath, Content)>> {
        let found = differences(&self.repo.store, &pointer.path, Some(&as_entry(&pointer.content)), None)?;
        let files = found.into_iter().filter(|found| wanted(&found.path)).filter_map(|found| {
            let DiffSide { kind, digest, size } = found.old.filter(|side| side.kind != EntryKind::Folder)?;
            Some((found.path, Content { digest, files: 1, kind: kind.content_kind(), size }))
        });
        Ok(files.collect())
    }

    /// Checks many parts as [`Workspace::check_part`] does; each recorded folder is read once.
    pub fn check_parts(&self, parts: &[(&Pointer, &RepoPath)]) -> Result<()> {
        let is_sibling = |a: &(&Pointer, &RepoPath), b: &(&Pointer, &RepoPath)| {
            std::ptr::eq(a.0, b.0) && a.1.parent() == b.1.parent()
        };
        for siblings in parts.chunk_by(is_sibling) {
            let (pointer, first) = siblings[0];
            let folder =
                first.parent().filter(|folder| siblings.len() > 1 && folder.is_within(&pointer.path));
            let names = match folder.map(|folder| self.recorded_names(pointer, &folder)).transpose() {
                Ok(names) => names.unwrap_or_default(),
                // Reported by the step that needs it.
                Err(_) => continue,
            };
            let unknown = siblings.iter().filter(|(_, part)| !names.contains(part.name()));
            unknown.copied().try_for_each(|(pointer, part)| self.check_part(pointer, part))?;
        }
        Ok(())
    }

    /// Returns the recorded names in a folder of a tracked path.
    fn recorded_names(&self, pointer: &Pointer, folder: &RepoPath) -> Result<HashSet<Vec<u8>>> {
        let store = &self.repo.store;
        let tree = recorded_entry(store, pointer, folder)?.filter(|entry| entry.kind == EntryKind::Folder);
        let rows = tree.map_or_else(|| Ok(Vec::new()), |tree| entries(store, &tree.digest))?;
        Ok(rows.into_iter().map(|row| row.name.into_vec()).collect())
    }

    /// Refuses a part of a tracked path that is neither recorded nor in the workspace: it was misspelled, and
    /// there would be nothing to do.
    pub fn check_part(&self, pointer: &Pointer, part: &RepoPath) -> Result<()> {
        let is_part = part != &pointer.path && part.is_within(&pointer.path);
        // A part that cannot be inspected is reported by the step that needs it.
        if !is_part || !matches!(self.repo.files.stat(part), Ok(None)) {
            return Ok(());
        }
        match recorded_entry(&self.repo.store, pointer, part) {
            Ok(None) => Err(unrecorded(part, pointer)),
            _ => Ok(()),
        }
    }
}

/// Returns the error for a file that a sparse checkout leaves out.
pub fn skipped_error(file: &RepoPath) -> Error {
    let folder = file.parent().unwrap_or_default();
    let error = Error::not_found(format!("the sparse checkout leaves out `{file}`"));
    error.hint(format!("bring it here with `git sparse-checkout add {folder}`"))
}

/// The error for a path that its tracked folder does not record.
pub(super) fn unrecorded(path: &RepoPath, parent: &Pointer) -> Error {
    let error = Error::not_found(format!("`{path}` is not tracked in `{}`", parent.path));
    error.hint(format!("`mlx status {}` shows how the folder differs from its record", parent.path))
}
