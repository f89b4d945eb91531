//! Stages, and the order they run in.
//!
//! A run is five steps, each a file here: [`Manifest`] → [`Graph`] → [`plan`] → [`repro`] → [`Lockfile`].
//! Only `repro` changes anything. Stages are commands; which of them are mlx's own, and what number
//! their results carry, the caller says.

mod check;
mod commit;
mod graph;
mod inputs;
mod leavings;
mod lockfile;
mod manifest;
mod outputs;
mod plan;
mod run;
mod run_cache;
pub mod runner;

pub use self::{
    graph::Graph,
    lockfile::{FILE as LOCKFILE, Lockfile, Record},
    manifest::{FILE as MANIFEST, Manifest, Output, Role, Stage},
    outputs::{all, contents_at, folders, runs_at},
    plan::{Forecast, Step, plan},
    run::{Options, Outcome, Ran, repro},
};

use std::path::Path;

use crate::{
    error::{Error, Result},
    path::RepoPath,
    repo::Repo,
    workspace::Workspace,
};

/// A command of mlx's own by its first words, and the number of its result: raised whenever the same
/// input would give another output.
pub type Builtin = (&'static str, u64);

/// One `mlx.toml` with its lockfile.
pub struct Pipeline<'w, 'r> {
    pub workspace: &'w Workspace<'r>,
    /// Where its `mlx.toml` lies; commands run there.
    pub folder: RepoPath,
    pub manifest: Manifest,
    pub graph: Graph,
    pub builtins: &'w [Builtin],
}

impl<'w, 'r> Pipeline<'w, 'r> {
    /// The pipeline of the nearest `mlx.toml`, from `cwd` up to the top of the repository.
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

    /// As [`Pipeline::find`], where there has to be one.
    pub fn require(workspace: &'w Workspace<'r>, cwd: &Path, builtins: &'w [Builtin]) -> Result<Self> {
        Self::find(workspace, cwd, builtins)?.ok_or_else(|| {
            Error::not_found(format!("there is no `{MANIFEST}`"))
                .hint("write one, or take a working one with `mlx init --template pets`")
        })
    }

    /// The pipeline whose `mlx.toml` lies in `folder`.
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

    /// Where the lockfile lies.
    pub fn lockfile(&self) -> Result<RepoPath> {
        self.folder.join(LOCKFILE.as_bytes())
    }

    /// What the lockfile says now.
    pub fn lock(&self) -> Result<Lockfile> {
        let path = self.lockfile()?;
        Lockfile::parse(&path, &self.repo().files.read_document(&path)?.unwrap_or_default())
    }

    /// The number of a stage's command, if it is mlx's own.
    fn builtin(&self, stage: &Stage) -> Option<u64> {
        self.builtins.iter().find(|it| stage.command.starts_with(it.0)).map(|it| it.1)
    }
}
