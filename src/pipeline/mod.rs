//! Pipelines: the stages of an `mlx.toml`, the order they run in, and reproducible runs of them.
//!
//! A run passes through these types and functions, one file each: [`Manifest`] → [`Pipelines`] with their
//! [`Graph`] → [`plan`] → [`repro`] → [`Lockfile`]. Only `repro` changes anything. All pipelines of the
//! repository form one graph; each records its runs in its own lockfile. A stage is a shell command. The
//! caller passes the list of commands that are built into mlx, each with the version number of its results.

mod accept;
mod aside;
mod check;
mod commit;
mod commit_records;
mod ended;
mod extension;
#[cfg(test)]
mod extension_samples;
mod failures;
mod git_copy;
mod glance;
mod gone;
mod graph;
mod in_git;
mod inputs;
mod leftovers;
mod lock_tables;
mod lockfile;
mod manifest;
mod outputs;
mod pipelines;
mod plan;
mod reads;
mod records;
mod recovery;
mod run;
mod run_cache;
pub mod runner;
mod script;
mod stage_record;
mod tracked_inputs;
mod unchanged;

pub use self::{
    commit_records::CommitRecords,
    graph::{Fault, Graph, StageId},
    leftovers::{Extent, Leftover, LeftoverKind, expired, extent, leftovers},
    lockfile::{FILE as LOCKFILE, Lockfile},
    manifest::{FILE as MANIFEST, Manifest, Output, Role, Stage},
    outputs::{add_contents, contents_at, manifest_folders, outputs_at, skipped_contents},
    pipelines::{BrokenPipeline, Pipelines, Selection},
    plan::{NOT_RUN, Plan, PlannedAction, Step, plan},
    records::read_record,
    recovery::Unfinished,
    run::{Mode, Options, Outcome, StageRun, accept, repro},
    stage_record::StageRecord,
};

use std::{collections::BTreeSet, rc::Rc};

use crate::{error::Result, path::RepoPath, repo::Repo, workspace::Workspace};

use self::{
    plan::Examination,
    reads::Reads,
    records::{Records, read_lockfile},
};

/// A command built into mlx: its first words, and the version number of its results. The number is raised
/// whenever the same input would give another output.
pub type Builtin = (&'static str, u64);

/// One `mlx.toml` with its lockfile.
pub struct Pipeline<'w, 'r> {
    pub workspace: &'w Workspace<'r>,
    /// The folder that holds its `mlx.toml`; commands run there.
    pub folder: RepoPath,
    pub manifest: Manifest,
    pub builtins: &'w [Builtin],
    /// The folders of all pipelines of the repository.
    folders: Rc<BTreeSet<RepoPath>>,
    /// Finds what the stages of all pipelines read.
    reads: Rc<Reads<'w, 'r>>,
}

impl<'r> Pipeline<'_, 'r> {
    fn repo(&self) -> &'r Repo {
        self.workspace.repo
    }

    /// Returns the id of one of its stages.
    fn id(&self, name: &str) -> StageId {
        StageId::new(&self.folder, name)
    }

    /// Returns the path of the lockfile.
    pub fn lockfile_path(&self) -> Result<RepoPath> {
        self.folder.join(LOCKFILE.as_bytes())
    }

    /// Reads the lockfile; a missing one is read as empty.
    pub fn read_lockfile(&self) -> Result<Rc<Lockfile>> {
        read_lockfile(self.repo(), &self.folder)
    }

    /// Returns the records of all pipelines of the repository, to be read from now on.
    fn records(&self) -> Records<'r> {
        Records::new(self.repo(), &*self.folders)
    }

    /// Returns the version number of a stage's command if it is built into mlx.
    fn builtin(&self, stage: &Stage) -> Option<u64> {
        self.builtins.iter().find(|(words, _)| stage.command.starts_with(words)).map(|(_, version)| *version)
    }
}
