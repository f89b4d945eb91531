//! Retires data that nothing records here any more: the branch has no pointer for it, or no stage makes it.
//! Removes the files that the store holds, and the line in `.gitignore`; other files stay, and are named.

use std::collections::BTreeSet;

use crate::{
    error::Result,
    path::{RepoPath, quoted_list},
    pointer::{Pointer, SUFFIX},
    progress::Progress,
    workspace::{
        CheckoutStats, Workspace,
        checkout::{plan_removal, remove_empty},
        execute::execute,
        steering::is_of_pipeline,
    },
};

impl Workspace<'_> {
    /// Returns the data that this worktree last had at paths that nothing records now, as far as it is here.
    /// `claimed` are the paths that pointers and stages record or declare.
    pub fn unrecorded_data(&self, claimed: &BTreeSet<RepoPath>) -> Result<Vec<Pointer>> {
        if self.lacks_tracked_pipeline()? {
            return Ok(Vec::new());
        }
        let mut found = self.last_contents();
        found.retain(|data| !data.path.overlaps_any(claimed));
        let mut here = Vec::new();
        for data in found {
            // A pointer that Git tracks and that is not here was not checked out, or deleted by hand.
            let is_recorded = self.repo.git.tracked_within(&data.file())?.is_some();
            if (!is_recorded || self.is_moved(&data, claimed)?)
                && matches!(self.repo.files.stat(&data.path), Ok(Some(_)))
            {
                here.push(data);
            }
        }
        Ok(here)
    }

    /// Returns true if the pointer that Git tracks of this data was moved by hand: the same one is at another
    /// path, where Git does not track it yet.
    pub(super) fn is_moved(&self, data: &Pointer, claimed: &BTreeSet<RepoPath>) -> Result<bool> {
        let git = &self.repo.git;
        if git.read_skipped(&data.file())?.is_some() {
            return Ok(false);
        }
        let Some(old) = self.repo.pointer_in_git(&data.path)? else { return Ok(false) };
        for path in claimed {
            if git.tracked_within(&path.with_suffix(SUFFIX))?.is_none()
                && matches!(self.pointer(path), Ok(Some(new)) if new.content == old.content)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the pointers and lockfiles, in the last version, of commits at which HEAD was before, if this
    /// worktree does not know what it last had: in a copied clone, or if that file is lost.
    pub fn former_records(&self) -> Result<Vec<(RepoPath, Vec<u8>)>> {
        if !self.are_bases_lost() {
            return Ok(Vec::new());
        }
        let Some(lines) = self.head_lines() else { return Ok(Vec::new()) };
        let read = |(file, blob): (&RepoPath, _)| Ok((file.clone(), self.repo.git.read_blob(blob)?));
        lines.former().map(read).collect()
    }

    /// Returns true if Git tracks a pipeline or its lockfile and it is not here, or a sparse checkout leaves
    /// it out: data that it records is not known then.
    fn lacks_tracked_pipeline(&self) -> Result<bool> {
        if !self.repo.git.skipped(&is_of_pipeline)?.is_empty() {
            return Ok(true);
        }
        for file in self.repo.git.tracked(&is_of_pipeline)? {
            if self.repo.files.stat(&file)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Retires the path that `pointer` recorded once; with `force`, removes files that are stored nowhere,
    /// too. Files that Git tracks by now are left alone.
    pub fn retire(&self, pointer: &Pointer, force: bool, progress: &dyn Progress) -> Result<CheckoutStats> {
        let path = &pointer.path;
        let mut plan = plan_removal(self, pointer, path, progress)?;
        let mut left: BTreeSet<RepoPath> = plan.unsaved.drain(..).filter(|_| !force).collect();
        plan.remove.retain(|(path, _)| !left.contains(path));
        let executed = execute(self, pointer, &plan, progress)?;
        remove_empty(self, path);
        left.extend(executed.kept);
        // Data that only Git tracks now may yet leave it.
        if left.is_empty() && self.data_in_git(pointer)?.is_empty() {
            let _lock = self.repo.lock_with_progress(progress)?;
            self.repo.git.unignore(&self.repo.files, path)?;
            self.forget_base(path)?;
        }
        if !left.is_empty() {
            let files = quoted_list(&left.into_iter().collect::<Vec<_>>());
            progress.warn(&format!(
                "`{path}` is not tracked here any more, but these files in it are stored nowhere and stay: \
                 {files} (`mlx checkout --force` removes them)"
            ));
        }
        Ok(executed.stats)
    }
}
