//! Selects tracked paths, or parts of tracked folders, by the paths that a user names.

use crate::{
    error::{Error, Result},
    path::RepoPath,
    pointer::{Content, Pointer},
    store::{DiffSide, EntryKind, TreeEntry, entries},
    workspace::{
        Tracked, Workspace,
        compare::{as_entry, differences},
        siblings::recorded_entry,
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
        for siblings in parts.chunk_by(are_siblings) {
            // A folder whose record cannot be read is reported by the step that needs it.
            let Ok(rows) = self.recorded_siblings(siblings) else { continue };
            let unknown = siblings.iter().filter(|(_, part)| find(&rows, part).is_none());
            unknown.copied().try_for_each(|(pointer, part)| self.check_part(pointer, part))?;
        }
        Ok(())
    }

    /// Returns the recorded contents of many parts, without those that are not recorded; each recorded folder
    /// is read once.
    pub fn part_contents(&self, parts: &[(&Pointer, &RepoPath)]) -> Result<Vec<(RepoPath, Content)>> {
        let mut contents = Vec::new();
        for siblings in parts.chunk_by(are_siblings) {
            let rows = self.recorded_siblings(siblings)?;
            for (pointer, part) in siblings {
                let content = match (siblings.len(), find(&rows, part)) {
                    (1, _) => self.part_content(pointer, part)?,
                    (_, row) => row.map(TreeEntry::content),
                };
                contents.extend(content.map(|content| ((*part).clone(), content)));
            }
        }
        Ok(contents)
    }

    /// Returns the recorded entries of the folder that several parts are in; none for a single part.
    fn recorded_siblings(&self, siblings: &[(&Pointer, &RepoPath)]) -> Result<Vec<TreeEntry>> {
        let [(pointer, first), _, ..] = siblings else { return Ok(Vec::new()) };
        let store = &self.repo.store;
        let folder = recorded_entry(store, pointer, &first.parent().unwrap_or_default())?;
        let tree = folder.filter(|entry| entry.kind == EntryKind::Folder);
        tree.map_or_else(|| Ok(Vec::new()), |tree| entries(store, &tree.digest))
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

/// Returns true for parts of one pointer in one folder. The path of a pointer has no sibling.
fn are_siblings(a: &(&Pointer, &RepoPath), b: &(&Pointer, &RepoPath)) -> bool {
    let is_inside = |(pointer, part): &(&Pointer, &RepoPath)| *part != &pointer.path;
    std::ptr::eq(a.0, b.0) && is_inside(a) && is_inside(b) && a.1.parent() == b.1.parent()
}

/// Finds the entry of a part among those of its folder.
fn find<'r>(rows: &'r [TreeEntry], part: &RepoPath) -> Option<&'r TreeEntry> {
    rows.binary_search_by(|row| row.name[..].cmp(part.name())).ok().map(|at| &rows[at])
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
