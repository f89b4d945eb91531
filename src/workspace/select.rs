//! Selects tracked paths, or parts of tracked folders, by the paths that a user names.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Result},
    fs::FileKind,
    path::RepoPath,
    pointer::{Content, Pointer, SUFFIX},
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
        self.with_checked_parts(self.select_whole(tracked, paths)?, paths)
    }

    /// Keeps the tracked paths that contain one of `paths` or lie in one, without a check of the parts.
    pub fn select_whole(&self, mut tracked: Tracked, paths: &[RepoPath]) -> Result<Tracked> {
        self.add_new_pointers(&mut tracked, paths)?;
        tracked.select(paths).map_err(|error| self.missing(paths).unwrap_or(error))
    }

    /// Selects as [`Workspace::select`] does from what a commit records.
    pub fn select_recorded(&self, recorded: Tracked, paths: &[RepoPath]) -> Result<Tracked> {
        self.with_checked_parts(recorded.select(paths)?, paths)
    }

    fn with_checked_parts(&self, chosen: Tracked, paths: &[RepoPath]) -> Result<Tracked> {
        for pointer in &chosen.pointers {
            paths.iter().try_for_each(|path| self.check_part(pointer, path))?;
        }
        Ok(chosen)
    }

    /// Adds pointers at and around the named paths that Git does not track and no command has seen yet, such
    /// as a copy that was made by hand.
    fn add_new_pointers(&self, tracked: &mut Tracked, paths: &[RepoPath]) -> Result<()> {
        for path in paths {
            if tracked.covers(path) {
                continue;
            }
            let mut found = BTreeSet::new();
            match self.pointer_of(path)? {
                Some(pointer) => drop(found.insert(pointer.path)),
                None if self.is_folder(path) => self.find_pointers(path, &mut found)?,
                None => {}
            }
            for path in found {
                let Some(pointer) = self.pointer(&path)? else { continue };
                self.index_pointer(&path);
                tracked.pointers.push(pointer);
            }
        }
        Ok(())
    }

    fn is_folder(&self, path: &RepoPath) -> bool {
        matches!(self.repo.files.stat(path), Ok(Some(stat)) if stat.kind == FileKind::Folder)
    }

    /// Returns the error for paths of which the pointer is not here, though Git has it.
    fn missing(&self, paths: &[RepoPath]) -> Option<Error> {
        let is_here = |path: &RepoPath| !matches!(self.repo.files.stat(&path.with_suffix(SUFFIX)), Ok(None));
        let pointer = |path: &RepoPath| self.pointer_of(path).ok().flatten();
        let mut pointers = paths.iter().filter_map(pointer);
        if let Some(pointer) = pointers.find(|pointer| !is_here(&pointer.path)) {
            return Some(skipped_error(&pointer.file()));
        }
        let above = paths.iter().flat_map(RepoPath::ancestors).filter(|path| !path.is_root());
        let mut deleted = above.filter(|path| !is_here(path));
        deleted.find(|path| self.repo.pointer_in_git(path).is_ok_and(|pointer| pointer.is_some())).map(
            |path| {
                Error::not_found(format!("`{}` is missing, though Git tracks it", path.with_suffix(SUFFIX)))
                    .hint(deleted_hint(&path))
            },
        )
    }

    /// Returns the paths whose data is here and whose pointer, which Git tracks, was deleted by hand, each
    /// with the reason. `claimed` are the paths that are recorded.
    pub fn deleted_pointers(&self, claimed: &BTreeSet<RepoPath>) -> Result<Vec<(RepoPath, String)>> {
        let git = &self.repo.git;
        let mut found = Vec::new();
        for file in git.tracked(&|name| name.ends_with(SUFFIX.as_bytes()))? {
            let Some(path) = file.without_suffix(SUFFIX) else { continue };
            let is_claimed = || path.overlaps_any(claimed);
            let exists = |path: &RepoPath| !matches!(self.repo.files.stat(path), Ok(None));
            if exists(&file) || !exists(&path) || is_claimed() || git.read_skipped(&file)?.is_some() {
                continue;
            }
            let Some(pointer) = self.repo.pointer_in_git(&path)? else { continue };
            if !self.is_moved(&pointer, claimed)? {
                let why = format!("`{file}` is missing, though Git tracks it: {}", deleted_hint(&path));
                found.push((path, why));
            }
        }
        Ok(found)
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

/// Tells what to do about a pointer that was deleted by hand.
fn deleted_hint(path: &RepoPath) -> String {
    let file = path.with_suffix(SUFFIX);
    format!("bring it back with `git checkout -- {file}`, or stop tracking `{path}` with `git rm {file}`")
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
