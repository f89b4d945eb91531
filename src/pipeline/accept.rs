//! Accepts the present outputs of a stage as its result, without a run.
//!
//! The record says `not_run`. It is restored where a lockfile names it and nowhere else: the run cache holds
//! runs only, so that no other branch or clone takes it for one.

use crate::{
    error::{Error, Kind, Result, WithContext},
    path::RepoPath,
    pipeline::{Examination, Mode, Outcome, Pipeline, PlannedAction, Stage, run_cache},
    pointer::Pointer,
    progress::Progress,
};

impl Pipeline<'_, '_> {
    /// Records the outputs of a stage as its result, unless they are recorded already. The caller holds the
    /// stage's turn.
    pub(super) fn accept(
        &self,
        name: &str,
        stage: &Stage,
        progress: &dyn Progress,
    ) -> Result<(Outcome, Vec<String>)> {
        let id = self.id(name);
        if self.has_running_marker(name)? {
            let error =
                Error::new(Kind::Conflict, format!("the last run of the stage `{id}` was interrupted"));
            return Err(error.hint("its outputs may be half written; run `mlx repro` first"));
        }
        // The result is recorded with what its inputs are now.
        self.reads.forget_scans();
        self.record_inputs(name, stage, progress)?;
        let examination = self.examine(name, stage, &self.records(), &Default::default(), false)?;
        if let Some(path) = examination.inputs.absent.first() {
            return Err(self.absent_input(path, examination.inputs.dependencies.get(path)))
                .context(|| format!("cannot record a result of the stage `{id}`"));
        }
        if examination.matches_record && examination.action == PlannedAction::Unchanged {
            return Ok((Outcome::Unchanged, examination.reasons));
        }
        self.record_outputs(name, stage, examination, progress)
    }

    fn record_outputs(
        &self,
        name: &str,
        stage: &Stage,
        examination: Examination,
        progress: &dyn Progress,
    ) -> Result<(Outcome, Vec<String>)> {
        let mut outputs = run_cache::Outputs::new();
        for out in &stage.outputs {
            self.check_whole(name, &out.path)?;
            let content = self.workspace.store_output(&out.path, progress)?.ok_or_else(|| {
                let message =
                    format!("the output `{}` of the stage `{}` is not here", out.path, self.id(name));
                Error::not_found(message).hint("make it, or run the stage with `mlx repro`")
            })?;
            outputs.insert(out.path.clone(), content);
        }
        let reasons = examination.reasons.clone();
        if examination.outputs == outputs && !examination.matches_record {
            // A run with these inputs made the same: nothing needs to be accepted.
            self.record_run(name, stage, Mode::Run, examination, &outputs, progress)?;
            return Ok((Outcome::Restored, reasons));
        }
        self.record_run(name, stage, Mode::Accept, examination, &outputs, progress)?;
        Ok((Outcome::Recorded, reasons))
    }

    /// Refuses an output of which recorded parts were never here: a part is not the result, and what is
    /// absent was not deleted.
    fn check_whole(&self, name: &str, path: &RepoPath) -> Result<()> {
        let lock = self.read_lockfile()?;
        let Some(content) = lock.get(name).and_then(|record| record.outputs.get(path)) else { return Ok(()) };
        let recorded = Pointer { path: path.clone(), content: *content };
        let Some(first) = self.workspace.first_absent(&recorded)? else { return Ok(()) };
        let message = format!("the output `{path}` of the stage `{}` is only in part here", self.id(name));
        let message = format!("{message}: `{first}` was never pulled");
        Err(Error::not_found(message)
            .hint(format!("get it with `mlx pull {path}`; delete after that what the result does not have")))
    }
}
