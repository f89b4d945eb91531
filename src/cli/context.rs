//! The context passed to every command: the working directory, progress reporting, and lookups that many
//! commands share (the repository, typed paths, pipelines, tracked paths, objects to transfer).

use std::{
    cell::RefCell,
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    path::RepoPath,
    pipeline::{Builtin, Pipelines},
    pointer::Pointer,
    progress::Progress,
    remote::Wants,
    repo::Repo,
    workspace::{Tracked, Unreadable, Workspace},
};

/// mlx's own commands that stages start, each with its result version.
pub const BUILTINS: [Builtin; 5] = [
    ("mlx data split", 1),
    ("mlx data features", 1),
    ("mlx model train", 1),
    ("mlx model evaluate", 1),
    ("mlx model package", 2),
];

/// Working directory and progress listener of a command.
pub struct Context<'a> {
    pub cwd: PathBuf,
    pub progress: &'a dyn Progress,
    /// Warnings that were given already.
    warned: RefCell<BTreeSet<String>>,
}

impl<'a> Context<'a> {
    pub fn new(cwd: PathBuf, progress: &'a dyn Progress) -> Self {
        Self { cwd, progress, warned: RefCell::default() }
    }

    /// Discovers the repository on demand, so that `mlx init` and `mlx --help` work anywhere. Settings that
    /// have no effect are named.
    pub fn repo(&self) -> Result<Repo> {
        Ok(self.with_notes(Repo::discover(&self.cwd)?))
    }

    /// Opens the repository to change its settings.
    pub fn repo_for_settings(&self) -> Result<Repo> {
        Ok(self.with_notes(Repo::discover_for_settings(&self.cwd)?))
    }

    fn with_notes(&self, repo: Repo) -> Repo {
        repo.config.notes.iter().for_each(|note| self.progress.warn(note));
        repo
    }

    /// Converts typed paths to repository paths, without duplicates: `data*` names both `data` and
    /// `data.mlx`.
    pub fn paths(&self, repo: &Repo, typed: &[PathBuf]) -> Result<Vec<RepoPath>> {
        let mut paths = Vec::with_capacity(typed.len());
        let mut known = BTreeSet::new();
        for argument in typed {
            let path = self.path(repo, argument)?;
            if known.insert(path.clone()) {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    /// Converts a typed path to a repository path. The name of a pointer file means the path it points to.
    pub fn path(&self, repo: &Repo, typed: &Path) -> Result<RepoPath> {
        let path = repo.path(OsStr::new(typed), &self.cwd)?;
        // `data.mlx` stands for `data`.
        match path.without_suffix(crate::pointer::SUFFIX) {
            Some(target)
                if repo.files.stat(&path)?.is_some() && !matches!(repo.pointer(&target), Ok(None)) =>
            {
                Ok(target)
            }
            _ => Ok(path),
        }
    }

    /// Opens all pipelines of the repository.
    pub fn all_pipelines<'w, 'r>(&self, workspace: &'w Workspace<'r>) -> Result<Pipelines<'w, 'r>> {
        Pipelines::open(workspace, &self.cwd, &BUILTINS)
    }

    /// Opens all pipelines for a command that does not need every one: a broken `mlx.toml` is only a
    /// warning, given once.
    pub fn pipelines<'w, 'r>(&self, workspace: &'w Workspace<'r>) -> Result<Pipelines<'w, 'r>> {
        let pipelines = self.all_pipelines(workspace)?;
        pipelines.broken.iter().for_each(|broken| self.warn_once(&broken.error));
        Ok(pipelines)
    }

    /// Warns of a problem that the command goes on with, once.
    pub fn warn_once(&self, error: &Error) {
        let warning = error.chain_text();
        if self.warned.borrow_mut().insert(warning.clone()) {
            self.progress.warn(&warning);
        }
    }

    /// Returns the first of the problems that a command found while it did all the rest, as the one that ends
    /// it, and warns of the others.
    pub fn failure(&self, problems: impl IntoIterator<Item = Error>) -> Option<Error> {
        let mut problems = problems.into_iter();
        let first = problems.next();
        self.warned.borrow_mut().extend(first.as_ref().map(Error::chain_text));
        problems.for_each(|problem| self.warn_once(&problem));
        first
    }

    /// Warns of the unreadable files that the selected paths do not need, and returns the error for those
    /// that they need, once all the rest is done.
    pub fn unreadable(&self, chosen: Tracked) -> (Vec<Pointer>, Option<Error>) {
        chosen.others.iter().for_each(|file| self.warn_once(&file.error));
        (chosen.pointers, self.failure(chosen.unreadable.into_iter().map(|file| file.error)))
    }

    /// Returns everything tracked here whose content only the store has: pointers, then outputs of stages.
    pub fn tracked(&self, workspace: &Workspace<'_>) -> Result<Tracked> {
        self.tracked_with(workspace, &self.pipelines(workspace)?)
    }

    /// Returns what [`Context::tracked`] does, for a command that has opened the pipelines.
    pub fn tracked_with(&self, workspace: &Workspace<'_>, pipelines: &Pipelines<'_, '_>) -> Result<Tracked> {
        let mut tracked = workspace.pointers()?;
        tracked.extend(pipelines.recorded_outputs()?);
        Ok(tracked)
    }

    /// Returns the data that this worktree last had and that neither a pointer nor a stage records now; none
    /// while a lockfile cannot be read, since that may record all of it.
    pub fn unrecorded_data(
        &self,
        workspace: &Workspace<'_>,
        pipelines: &Pipelines<'_, '_>,
        tracked: &Tracked,
    ) -> Result<Vec<Pointer>> {
        let Some(claimed) = claimed(pipelines, tracked) else { return Ok(Vec::new()) };
        let mut found = workspace.unrecorded_data(&claimed)?;
        if !found.is_empty() {
            // Pipelines elsewhere that Git does not track yet are looked for only now.
            let more = pipelines.claims_outside_git()?;
            let more: BTreeSet<_> = more.into_iter().collect();
            found.retain(|data| !data.path.overlaps_any(&more));
        }
        Ok(found)
    }

    /// Returns the data that nothing records now either, and of which this worktree does not know whether it
    /// had it.
    pub fn forgotten_data(&self, pipelines: &Pipelines<'_, '_>, tracked: &Tracked) -> Result<Vec<Pointer>> {
        let Some(claimed) = claimed(pipelines, tracked) else { return Ok(Vec::new()) };
        let mut found = pipelines.former_data()?;
        found.retain(|data| !data.path.overlaps_any(&claimed));
        Ok(found)
    }

    /// Returns the paths whose data is here and whose pointer someone deleted by hand, each with the reason.
    pub fn deleted_pointers(
        &self,
        workspace: &Workspace<'_>,
        pipelines: &Pipelines<'_, '_>,
        tracked: &Tracked,
    ) -> Result<Vec<(RepoPath, String)>> {
        claimed(pipelines, tracked).map_or_else(|| Ok(Vec::new()), |paths| workspace.deleted_pointers(&paths))
    }

    /// Returns the contents and runs to transfer: those that pointers and lockfiles name at `paths`, or
    /// everywhere if `paths` is empty. Run keys are included only in the second case. The error is about a
    /// file that names more of them and cannot be read.
    pub fn wants(&self, workspace: &Workspace<'_>, paths: &[RepoPath]) -> Result<(Wants, Option<Error>)> {
        let (chosen, runs) = if paths.is_empty() {
            let mut all = workspace.pointers()?;
            let (recorded, runs) = self.pipelines(workspace)?.recorded_runs()?;
            all.extend(recorded);
            (all, runs)
        } else {
            (workspace.select_whole(self.tracked(workspace)?, paths)?, Vec::new())
        };
        let (pointers, failure) = self.unreadable(chosen);
        let contents = pointers.into_iter().map(|it| (it.path, it.content)).collect();
        Ok((Wants { contents, runs }, failure))
    }
}

/// Returns the paths that pointers and stages record or declare; `None` while a lockfile cannot be read.
fn claimed(pipelines: &Pipelines<'_, '_>, tracked: &Tracked) -> Option<BTreeSet<RepoPath>> {
    if tracked.unreadable.iter().any(Unreadable::is_lockfile) {
        return None;
    }
    let pointers = tracked.pointers.iter().map(|pointer| &pointer.path);
    let unreadable = tracked.unreadable.iter().flat_map(|file| &file.paths);
    let mut claimed: BTreeSet<_> = pointers.chain(unreadable).cloned().collect();
    claimed.extend(pipelines.claims().into_iter().map(|it| it.0));
    Some(claimed)
}
