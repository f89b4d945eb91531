//! `mlx remove`: what `add` did, undone.

use crate::{
    error::{Error, Kind, Result},
    path::RepoPath,
    pointer::{Pointer, Shape},
    progress::Progress,
    store::file_at,
    workspace::{CheckedOut, Workspace, clear, select::unrecorded},
};

/// What is no longer tracked.
#[derive(Debug)]
pub struct Removed {
    pub path: RepoPath,
    /// The folder it was a part of, as recorded now.
    pub parent: Option<Pointer>,
    /// Files that went from the workspace.
    pub files: u64,
}

/// What becomes of the files in the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    Keep,
    /// Those that the store has go.
    Delete,
    /// All go.
    Force,
}

impl Workspace<'_> {
    /// Stops tracking `path`: its pointer and its line in `.gitignore` go; a part of a folder goes from the
    /// folder's record. Killed on the way, the same again finishes.
    pub fn remove(
        &self,
        path: &RepoPath,
        data: Data,
        claimed: &[(RepoPath, String)],
        progress: &dyn Progress,
    ) -> Result<Removed> {
        if let Some(pointer) = self.repo.pointer(path)? {
            let files = self.delete(&pointer, path, data, progress)?;
            let _lock = self.repo.lock_telling(progress)?;
            self.repo.git.unignore(&self.repo.files, path)?;
            self.repo.files.remove(&pointer.file())?;
            return Ok(Removed { path: path.clone(), parent: None, files });
        }
        check_output(path, claimed)?;
        let parent = self.pointer_of(path)?.filter(|it| it.content.kind == Shape::Tree);
        let parent = parent.ok_or_else(|| untracked(path))?;
        let below = path.below(&parent.path).expect("the path lies in the folder of its pointer");
        if file_at(&self.repo.store, &parent.content.digest, &below)?.is_none() {
            return Err(unrecorded(path, &parent));
        }
        let files = self.delete(&parent, path, data, progress)?;
        let parent = self.record_deletion(&parent, path, progress)?;
        Ok(Removed { path: path.clone(), parent: Some(parent), files })
    }

    fn delete(&self, pointer: &Pointer, part: &RepoPath, data: Data, progress: &dyn Progress) -> Result<u64> {
        if data == Data::Keep {
            return Ok(0);
        }
        let done = clear(self, pointer, part, data == Data::Force, progress)?;
        // The folder that a part was in stays on record, be it empty.
        if part != &pointer.path
            && done != CheckedOut::default()
            && let Some(folder) = part.parent()
        {
            self.repo.files.make_dir(&folder)?;
        }
        Ok(done.removed)
    }
}

/// Refuses outputs of stages by the name of their stage.
pub(super) fn check_output(path: &RepoPath, claimed: &[(RepoPath, String)]) -> Result<()> {
    let Some((output, stage)) = claimed.iter().find(|it| it.0.overlaps(path)) else { return Ok(()) };
    let error = Error::new(Kind::Conflict, format!("`{output}` is an output of the stage `{stage}`"));
    Err(error.hint(format!("change the outputs of `{stage}` in its `mlx.toml`")))
}

/// Nothing here is ours.
pub(super) fn untracked(path: &RepoPath) -> Error {
    Error::not_found(format!("mlx does not track `{path}`"))
        .hint("`mlx status` lists what it tracks; `mlx add` tracks more")
}
