//! Records stage outputs that were edited by hand.

use crate::{
    error::{Error, Kind, Result},
    path::RepoPath,
    pipeline::Pipeline,
    pointer::{Content, Pointer},
    progress::{Progress, Silent},
    workspace::State,
};

impl Pipeline<'_, '_> {
    /// Stores the current content of outputs that overlap `path` (of all outputs without one) and records it.
    /// The stage's record is marked as edited. Outputs missing from the workspace keep their recorded
    /// content.
    pub fn commit(&self, path: Option<&RepoPath>, progress: &dyn Progress) -> Result<Vec<Pointer>> {
        let mut committed = Vec::new();
        let lock = self.read_lockfile()?;
        for (name, stage) in &self.manifest.stages {
            let Some(old) = lock.get(name) else { continue };
            if self.has_running_marker(name)? {
                let error =
                    Error::new(Kind::Conflict, format!("the last run of the stage `{name}` was interrupted"));
                return Err(error.hint("its outputs may be half written; run `mlx repro` first"));
            }
            let mut record = old.clone();
            for out in stage.outputs.iter().filter(|out| path.is_none_or(|path| path.overlaps(&out.path))) {
                let recorded = record.outputs.get_mut(&out.path).or_else(|| record.in_git.get_mut(&out.path));
                let Some(recorded) = recorded else { continue };
                if let Some(content) = self.store_if_changed(&out.path, *recorded, progress)? {
                    *recorded = content;
                    committed.push(Pointer { path: out.path.clone(), content });
                }
            }
            if record != *old {
                record.edited = true;
                self.write_record(name, record)?;
            }
        }
        Ok(committed)
    }

    /// Stores the content at `path` if it differs from what is recorded, and returns it.
    fn store_if_changed(
        &self,
        path: &RepoPath,
        recorded: Content,
        progress: &dyn Progress,
    ) -> Result<Option<Content>> {
        let pointer = Pointer { path: path.clone(), content: recorded };
        match self.workspace.compare(&pointer, &Silent)?.state {
            State::Same | State::Absent => Ok(None),
            State::Changed | State::Unknown => self.workspace.store_output(path, progress),
        }
    }
}
