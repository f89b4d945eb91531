//! What every command is given.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::{
    error::Result,
    path::RepoPath,
    pipeline::{self, Builtin, Pipeline},
    progress::Progress,
    remote::Wants,
    repo::Repo,
    workspace::{Tracked, Workspace},
};

/// mlx's own commands that stages start, with the numbers of their results.
pub const BUILTINS: [Builtin; 5] = [
    ("mlx data split", 1),
    ("mlx data features", 1),
    ("mlx model train", 1),
    ("mlx model evaluate", 1),
    ("mlx model package", 2),
];

pub struct Context<'a> {
    pub cwd: PathBuf,
    pub progress: &'a dyn Progress,
}

impl<'a> Context<'a> {
    pub fn new(cwd: PathBuf, progress: &'a dyn Progress) -> Self {
        Self { cwd, progress }
    }

    /// Found when first asked for, so that `mlx init` and `mlx --help` work anywhere.
    pub fn repo(&self) -> Result<Repo> {
        Repo::discover(&self.cwd)
    }

    /// What the user typed, as paths of the repository, each once: `data*` names `data` and `data.mlx`.
    pub fn paths(&self, repo: &Repo, typed: &[PathBuf]) -> Result<Vec<RepoPath>> {
        let mut paths = Vec::with_capacity(typed.len());
        let mut seen = BTreeSet::new();
        for it in typed {
            let path = self.path(repo, it)?;
            if seen.insert(path.clone()) {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    pub fn path(&self, repo: &Repo, typed: &Path) -> Result<RepoPath> {
        let path = repo.path(OsStr::new(typed), &self.cwd)?;
        // `data.mlx` stands for `data`.
        match path.without_suffix(crate::pointer::SUFFIX) {
            Some(of)
                if repo.files.stamp(&path)?.is_some() && repo.pointer(&of).is_ok_and(|it| it.is_some()) =>
            {
                Ok(of)
            }
            _ => Ok(path),
        }
    }

    /// All pipelines that have a say here.
    pub fn pipelines<'w, 'r>(&self, workspace: &'w Workspace<'r>) -> Result<Vec<Pipeline<'w, 'r>>> {
        pipeline::all(workspace, &self.cwd, &BUILTINS)
    }

    /// Everything tracked here that only the store has: pointers, then outputs of stages.
    pub fn tracked(&self, workspace: &Workspace<'_>) -> Result<Tracked> {
        let mut found = workspace.pointers()?;
        for pipeline in self.pipelines(workspace)? {
            found.pointers.extend(pipeline.recorded_outputs()?.into_iter().map(|it| it.0));
        }
        Ok(found)
    }

    /// What the workspace's pointers and lockfiles name.
    pub fn wants(&self, workspace: &Workspace<'_>, paths: &[RepoPath]) -> Result<Wants> {
        let mut wants = Wants::default();
        if !paths.is_empty() {
            let chosen = self.tracked(workspace)?.select(paths)?.whole()?;
            wants.contents = chosen.into_iter().map(|it| (it.path, it.content)).collect();
            return Ok(wants);
        }
        wants.contents = workspace.pointers()?.whole()?.into_iter().map(|it| (it.path, it.content)).collect();
        for pipeline in self.pipelines(workspace)? {
            let (pointers, keys) = pipeline.recorded_runs()?;
            wants.contents.extend(pointers.into_iter().map(|it| (it.path, it.content)));
            wants.runs.extend(keys);
        }
        Ok(wants)
    }
}
