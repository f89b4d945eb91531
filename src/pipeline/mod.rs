//! Pipelines: the stages of an `mlx.toml`, the order they run in, and reproducible runs of them.
//!
//! A run passes through five types and functions, one file each: [`Manifest`] → [`Graph`] → [`plan`] →
//! [`repro`] → [`Lockfile`]. Only `repro` changes anything. A stage is a shell command. The caller passes the
//! list of commands that are built into mlx, each with the version number of its results.

mod aside;
mod check;
mod commit;
mod ended;
mod git_copy;
mod graph;
mod inputs;
mod leftovers;
mod lockfile;
mod manifest;
mod outputs;
mod plan;
mod recovery;
mod run;
mod run_cache;
pub mod runner;

pub use self::{
    graph::Graph,
    leftovers::{Extent, Leftover, LeftoverKind, expired, extent, leftovers},
    lockfile::{FILE as LOCKFILE, Lockfile, StageRecord},
    manifest::{FILE as MANIFEST, Manifest, Output, Role, Stage},
    outputs::{contents_at, manifest_folders, open_all, run_keys_at},
    plan::{PlannedAction, Step, plan},
    run::{Options, Outcome, StageRun, repro},
};

use std::path::Path;

use crate::{
    error::{Error, Result},
    path::RepoPath,
    repo::Repo,
    workspace::Workspace,
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
    pub graph: Graph,
    pub builtins: &'w [Builtin],
}

impl<'w, 'r> Pipeline<'w, 'r> {
    /// Opens the pipeline of the nearest `mlx.toml`, from `cwd` up to the top of the repository.
    pub fn find(workspace: &'w Workspace<'r>, cwd: &Path, builtins: &'w [Builtin]) -> Result<Option<Self>> {
        let mut here = Some(RepoPath::parse(".".as_ref(), cwd, workspace.repo.root())?);
        while let Some(folder) = here {
            if let Some(found) = Self::open(workspace, &folder, builtins)? {
                return Ok(Some(found));
            }
            here = folder.parent();
        }
        Ok(None)
    }

    /// Opens the pipeline as [`Pipeline::find`] does; a missing one is an error.
    pub fn require(workspace: &'w Workspace<'r>, cwd: &Path, builtins: &'w [Builtin]) -> Result<Self> {
        Self::find(workspace, cwd, builtins)?.ok_or_else(|| {
            Error::not_found(format!("`{MANIFEST}` not found"))
                .hint("write one, or start from a template with `mlx init --template pets`")
        })
    }

    /// Opens the pipeline whose `mlx.toml` is in `folder`; none without such a file.
    pub fn open(
        workspace: &'w Workspace<'r>,
        folder: &RepoPath,
        builtins: &'w [Builtin],
    ) -> Result<Option<Self>> {
        let file = folder.join(MANIFEST.as_bytes())?;
        let Some(bytes) = workspace.repo.files.read_document(&file)? else { return Ok(None) };
        let manifest = Manifest::parse(&file, &bytes, workspace.repo.root())?;
        let graph = Graph::new(&manifest)?;
        Ok(Some(Self { workspace, folder: folder.clone(), manifest, graph, builtins }))
    }

    fn repo(&self) -> &'r Repo {
        self.workspace.repo
    }

    /// Returns the path of the lockfile.
    pub fn lockfile_path(&self) -> Result<RepoPath> {
        self.folder.join(LOCKFILE.as_bytes())
    }

    /// Reads the lockfile; a missing one is read as empty.
    pub fn read_lockfile(&self) -> Result<Lockfile> {
        let path = self.lockfile_path()?;
        Lockfile::parse(&path, &self.repo().files.read_document(&path)?.unwrap_or_default())
    }

    /// Returns the version number of a stage's command if it is built into mlx.
    fn builtin(&self, stage: &Stage) -> Option<u64> {
        self.builtins.iter().find(|(words, _)| stage.command.starts_with(words)).map(|(_, version)| *version)
    }
}
