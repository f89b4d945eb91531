//! Data and Git: tracked data is ignored by Git, and the files that record it are not.

use std::collections::BTreeSet;

use crate::{
    error::{Kind, Result},
    fs::Lock,
    git::IgnoreTarget,
    path::{RepoPath, quoted_list},
    pointer::{ContentKind, Pointer},
    progress::Progress,
    store::Difference,
    workspace::Workspace,
};

impl Workspace<'_> {
    /// Adds these paths to the `.gitignore` in their folders, as lines that work.
    pub(super) fn ignore_data(&self, data: &[&Pointer], _lock: &Lock, progress: &dyn Progress) -> Result<()> {
        let targets: Vec<_> = data.iter().map(|pointer| target(pointer)).collect();
        warn_exposed(&self.repo.git.ignore(&self.repo.files, &targets)?, progress);
        Ok(())
    }

    /// Adds those of these paths to `.gitignore` that Git would add otherwise: their line was lost, or never
    /// written, or a later one includes them again.
    pub fn repair_ignore_lines(&self, data: &[&Pointer], progress: &dyn Progress) -> Result<()> {
        if self.exposed_targets(data)?.is_empty() {
            return Ok(());
        }
        let lock = self.repo.lock_with_progress(progress)?;
        self.repair_locked(data, &lock, progress)
    }

    /// As [`Workspace::repair_ignore_lines`], for a caller that holds the lock.
    pub(super) fn repair_locked(
        &self,
        data: &[&Pointer],
        _lock: &Lock,
        progress: &dyn Progress,
    ) -> Result<()> {
        let exposed = self.exposed_targets(data)?;
        let left = self.repo.git.repair_ignore_lines(&self.repo.files, &exposed)?;
        let is_repaired = |path: &&RepoPath| !left.contains(path);
        let repaired: Vec<_> = exposed.iter().map(IgnoreTarget::path).filter(is_repaired).cloned().collect();
        if !repaired.is_empty() {
            progress.note(&format!("`.gitignore` now keeps out of Git: {}", quoted_list(&repaired)));
        }
        warn_exposed(&left, progress);
        Ok(())
    }

    fn exposed_targets<'d>(&self, data: &[&'d Pointer]) -> Result<Vec<IgnoreTarget<'d>>> {
        self.repo.git.exposed(&data.iter().map(|pointer| target(pointer)).collect::<Vec<_>>())
    }

    /// Returns the paths whose data is here and which `git add` would take.
    pub fn exposed_data(&self, data: &[&Pointer]) -> Result<Vec<RepoPath>> {
        let mut here = Vec::new();
        for pointer in data {
            if matches!(self.repo.files.stat(&pointer.path), Ok(Some(_))) {
                here.push(target(pointer));
            }
        }
        Ok(self.repo.git.exposed(&here)?.iter().map(|target| target.path().clone()).collect())
    }

    /// Returns the files of this data that Git tracks as well.
    pub fn data_in_git(&self, data: &Pointer) -> Result<Vec<RepoPath>> {
        let mut found = Vec::new();
        for file in self.git_files_within(&data.path)? {
            match self.part_content(data, &file) {
                Ok(None) => {}
                Err(error) if error.kind() != Kind::NotFound => return Err(error),
                // Without the tree it is not known.
                _ => found.push(file),
            }
        }
        Ok(found)
    }

    /// Leaves out the files below `part` that only Git tracks: they are not data, and no checkout removes
    /// them.
    pub(super) fn without_git_files(
        &self,
        part: &RepoPath,
        mut found: Vec<Difference>,
    ) -> Result<Vec<Difference>> {
        if found.iter().any(|it| it.old.is_none()) {
            let files: BTreeSet<_> = self.git_files_within(part)?.into_iter().collect();
            found.retain(|it| it.old.is_some() || !files.contains(&it.path));
        }
        Ok(found)
    }

    /// Lists the files at and below a path that Git tracks.
    fn git_files_within(&self, path: &RepoPath) -> Result<Vec<RepoPath>> {
        let git = &self.repo.git;
        if git.tracked_within(path)?.is_none() {
            return Ok(Vec::new());
        }
        let is_within = |file: &[u8]| RepoPath::from_bytes(file).is_ok_and(|file| file.is_within(path));
        git.tracked(&is_within)
    }
}

fn target(pointer: &Pointer) -> IgnoreTarget<'_> {
    match pointer.content.kind {
        ContentKind::Tree => IgnoreTarget::Folder(&pointer.path),
        ContentKind::File | ContentKind::Executable => IgnoreTarget::File(&pointer.path),
    }
}

fn warn_exposed(paths: &[&RepoPath], progress: &dyn Progress) {
    for path in paths {
        progress.warn(&format!("Git does not ignore `{path}`: check the `.gitignore` in its folder"));
    }
}
