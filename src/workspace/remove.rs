//! `mlx remove`: stops tracking a path, and optionally deletes its files.

use crate::{
    error::{Error, Kind, Result},
    path::RepoPath,
    pointer::{ContentKind, Pointer},
    progress::Progress,
    store::entry_at,
    workspace::{CheckoutStats, Workspace, remove_files, select::unrecorded},
};

/// Result of a removal.
#[derive(Debug)]
pub struct RemoveResult {
    pub path: RepoPath,
    /// The pointer of the tracked folder that contained it, as updated.
    pub parent: Option<Pointer>,
    /// Files deleted from the workspace.
    pub files: u64,
}

/// Treatment of the files in the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilePolicy {
    Keep,
    /// Delete files that are stored; refuse if any is not.
    Delete,
    /// Delete all files.
    Force,
}

impl Workspace<'_> {
    /// Stops tracking `path`: removes its pointer and its line in `.gitignore`, or its entry in the tree of
    /// the tracked folder. After a kill, running it again completes the removal.
    pub fn remove(
        &self,
        path: &RepoPath,
        data: FilePolicy,
        claimed: &[(RepoPath, String)],
        progress: &dyn Progress,
    ) -> Result<RemoveResult> {
        let can_ignore = |path: &RepoPath| self.repo.git.check_ignorable(&self.repo.files, path);
        if let Some(pointer) = self.pointer(path)? {
            can_ignore(path)?;
            let files = self.delete(&pointer, path, data, progress)?;
            let _lock = self.repo.lock_with_progress(progress)?;
            self.repo.git.unignore(&self.repo.files, path)?;
            self.repo.files.remove(&pointer.file())?;
            self.index.borrow_mut().remove_pointer(path);
            self.forget_base(path)?;
            return Ok(RemoveResult { path: path.clone(), parent: None, files });
        }
        check_output(path, claimed)?;
        let is_parent = |it: &Pointer| it.content.kind == ContentKind::Tree && it.path != *path;
        let parent = self.pointer_of(path)?.filter(is_parent);
        let parent = parent.ok_or_else(|| untracked(path))?;
        let below = path.strip_prefix(&parent.path).expect("the path is inside the tracked folder");
        if entry_at(&self.repo.store, &parent.content.digest, &below)?.is_none() {
            return Err(unrecorded(path, &parent));
        }
        can_ignore(&parent.path)?;
        let files = self.delete(&parent, path, data, progress)?;
        let parent = self.record_removal(&parent, path, progress)?;
        Ok(RemoveResult { path: path.clone(), parent: Some(parent), files })
    }

    fn delete(
        &self,
        pointer: &Pointer,
        part: &RepoPath,
        data: FilePolicy,
        progress: &dyn Progress,
    ) -> Result<u64> {
        if data == FilePolicy::Keep {
            return Ok(0);
        }
        let done = remove_files(self, pointer, part, data == FilePolicy::Force, progress)?;
        // The folder that contained the part stays tracked, even if it is empty now.
        if part != &pointer.path
            && done != CheckoutStats::default()
            && let Some(folder) = part.parent()
        {
            self.repo.files.create_dir(&folder)?;
        }
        Ok(done.removed)
    }
}

/// Refuses a path that overlaps an output of a stage, naming the stage.
pub(super) fn check_output(path: &RepoPath, claimed: &[(RepoPath, String)]) -> Result<()> {
    let Some((output, stage)) = claimed.iter().find(|it| it.0.overlaps(path)) else { return Ok(()) };
    let error = Error::new(Kind::Conflict, format!("`{output}` is an output of the stage `{stage}`"));
    Err(error.hint(format!("change the outputs of `{stage}` in its `mlx.toml`")))
}

/// The error for a path that is not tracked.
pub(super) fn untracked(path: &RepoPath) -> Error {
    Error::not_found(format!("mlx does not track `{path}`"))
        .hint("`mlx status` lists what it tracks; `mlx add` tracks more")
}
