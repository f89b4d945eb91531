//! Records stage outputs that were edited by hand.

use crate::{
    error::{Error, Kind, Result},
    path::RepoPath,
    pipeline::{Output, Pipeline},
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
        for (name, stage) in &self.manifest.stages {
            let chosen = |out: &&Output| path.is_none_or(|path| path.overlaps(&out.path));
            let outputs: Vec<&Output> = stage.outputs.iter().filter(chosen).collect();
            if outputs.is_empty() {
                continue;
            }
            // A run that ended meanwhile would have its inputs recorded with these outputs, or the other way
            // round.
            let _turn = self.take_turn(name, progress)?;
            let lock = self.read_lockfile()?;
            let Some(old) = lock.get(name) else { continue };
            if self.has_running_marker(name)? {
                let error =
                    Error::new(Kind::Conflict, format!("the last run of the stage `{name}` was interrupted"));
                return Err(error.hint("its outputs may be half written; run `mlx repro` first"));
            }
            let mut record = old.clone();
            let is_same = |content: &Content, recorded: &Content| {
                (content.kind, content.digest) == (recorded.kind, recorded.digest)
            };
            for out in outputs {
                let recorded = record.outputs.get_mut(&out.path).or_else(|| record.in_git.get_mut(&out.path));
                let Some(recorded) = recorded else { continue };
                if let Some(content) = self.store_if_changed(out, *recorded, progress)? {
                    // A wrong summary that is corrected is not an edit.
                    record.edited |= !is_same(&content, recorded);
                    *recorded = content;
                    committed.push(Pointer { path: out.path.clone(), content });
                }
            }
            if record != *old {
                self.write_record(name, record, progress)?;
            }
        }
        Ok(committed)
    }

    /// Stores an output if it differs from what is recorded; returns the content to record. An output that
    /// Git does not bring here is merged into its record like any tracked path.
    fn store_if_changed(
        &self,
        out: &Output,
        recorded: Content,
        progress: &dyn Progress,
    ) -> Result<Option<Content>> {
        let pointer = Pointer { path: out.path.clone(), content: recorded };
        if matches!(self.workspace.compare(&pointer, &Silent)?.state, State::Same | State::Absent) {
            return Ok(None);
        }
        if !out.role.in_git() {
            self.workspace.check_mergeable(&pointer, &out.path, progress)?;
        }
        let Some(stored) = self.workspace.store_output(&out.path, progress)? else { return Ok(None) };
        if out.role.in_git() {
            return Ok(Some(stored));
        }
        let merged = self.workspace.merge_stored(&pointer, stored, progress)?;
        Ok(Some(merged).filter(|content| *content != recorded))
    }
}
