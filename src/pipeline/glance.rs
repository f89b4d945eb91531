//! A first look at a stage, without a lock: most runs find that nothing changed.
//!
//! A stage whose inputs and outputs are as the lockfile records them is unchanged, whatever other commands do
//! at this moment: what they change comes after it. One whose run was started and has not finished never is,
//! since its command may write to its outputs. All else is decided by a second look, with the stage's turn.

use crate::{
    error::Result,
    fs::Dir,
    path::RepoPath,
    pipeline::{Pipeline, Pipelines, PlannedAction, Records, Stage, recovery::RUNNING},
    progress::Progress,
};

/// Records of all stages, as of the last time that one of them was changed.
pub struct Glance<'p> {
    records: Records<'p>,
    /// The folder with the markers of unfinished runs, if it exists.
    running: Option<Dir>,
}

/// Finding of a first look.
pub enum Glanced {
    /// Nothing changed, or what did cannot be told yet; with the reasons.
    Unchanged(Vec<String>),
    /// Its inputs were scanned for it; the scans can be used for its run.
    Stale,
    Unknown,
}

impl<'p> Glance<'p> {
    pub fn new(pipelines: &Pipelines<'_, 'p>) -> Result<Self> {
        let repo = pipelines.workspace.repo;
        let running = RepoPath::from_text(RUNNING)?;
        let running = repo.private.stat(&running)?.map(|_| repo.private.dir(&running)).transpose()?;
        Ok(Self { records: Records::new(repo, pipelines.folders()), running })
    }

    fn is_unfinished(&self, marker: &RepoPath) -> Result<bool> {
        let stat = self.running.as_ref().map(|folder| folder.stat(marker.name())).transpose()?;
        Ok(stat.flatten().is_some())
    }
}

impl Pipeline<'_, '_> {
    /// Looks at a stage that has a record, and records edits of its inputs.
    pub(super) fn glance(
        &self,
        name: &str,
        stage: &Stage,
        glance: &Glance<'_>,
        progress: &dyn Progress,
    ) -> Result<Glanced> {
        if glance.records.of(&self.folder)?.get(name).is_none() {
            return Ok(Glanced::Unknown);
        }
        if glance.is_unfinished(&self.running_marker(name)?)? {
            return Ok(Glanced::Unknown);
        }
        self.reads.start();
        self.record_inputs(name, stage, progress)?;
        let examination = self.examine(name, stage, &glance.records, &Default::default(), false)?;
        Ok(match examination.action {
            PlannedAction::Unchanged => Glanced::Unchanged(examination.reasons),
            _ if self.reads.was_shared() => Glanced::Unknown,
            _ => Glanced::Stale,
        })
    }
}
