//! Versions of a tracked path: the commits that changed its content.

use std::slice::from_ref;

use crate::{
    digest::Digest,
    error::{Error, Result},
    git::{Commit, Git, Rev},
    lineage::states::{State, StateReader},
    path::RepoPath,
    pointer::Content,
    store::Store,
    workspace::is_tracking_file,
};

/// A commit that changed the content of a path, removed it, or wrote what cannot be read.
#[derive(Clone, Debug)]
pub struct Version {
    pub commit: Commit,
    pub state: State,
    /// True if the content was recorded as a stage's result without a run.
    pub not_run: bool,
}

/// Returns the versions of `path` among the ancestors of `start` and itself, newest first.
pub fn versions(git: &Git, store: &Store, start: &Rev, path: &RepoPath) -> Result<Vec<Version>> {
    let (commits, errors) = history(git, start)?;
    errors.into_iter().next().map_or(Ok(()), Err)?;
    let mut states = StateReader::new(git, store, vec![path.clone()]);
    let mut found = Vec::new();
    let mut is_known = false;
    for commit in commits {
        let current = states.state(&commit.rev, 0)?;
        is_known |= current.content().is_some();
        if is_version(&mut states, &commit, 0, &current, &|_| {})? {
            let not_run = current.content().is_some() && states.is_not_run(&commit.rev, 0)?;
            found.push(Version { commit, state: current, not_run });
        }
    }
    if is_known {
        return Ok(found);
    }
    let error = Error::not_found(format!("`{path}` has no versions: no commit tracks it"));
    Err(error
        .hint("track it with `mlx add` or as an output of a stage, then commit its pointer or `mlx.lock`"))
}

/// Returns true if a commit, in which `path` has this state, changed it. A merge that kept one parent's
/// content did not. Calls `note` for each parent that cannot be read.
fn is_version(
    states: &mut StateReader<'_>,
    commit: &Commit,
    path: usize,
    state: &State,
    note: &dyn Fn(Error),
) -> Result<bool> {
    let mut errors = Vec::new();
    for parent in &commit.parents {
        let before = states.state(parent, path)?;
        if state.is_same(&before) {
            return Ok(false);
        }
        errors.extend(before.error(parent));
    }
    errors.into_iter().for_each(note);
    Ok(!commit.parents.is_empty() || *state != State::Absent)
}

/// Returns a commit and its ancestors, newest first, with their pointers and lockfiles at hand, and the
/// errors for those that cannot be read.
pub fn history(git: &Git, start: &Rev) -> Result<(Vec<Commit>, Vec<Error>)> {
    let (commits, errors) = git.readable_log(from_ref(start))?;
    let revs: Vec<Rev> = commits.iter().map(|commit| commit.rev.clone()).collect();
    git.prefetch(&revs, is_tracking_file);
    Ok((commits, errors))
}

/// Returns the content of a path at a commit, from its own pointer or that of a folder above it, or from a
/// lockfile; `None` if it is not tracked there. It is an error if that cannot be read.
pub fn content_at(git: &Git, store: &Store, rev: &Rev, path: &RepoPath) -> Result<Option<Content>> {
    let state = StateReader::new(git, store, vec![path.clone()]).state(rev, 0)?;
    state.error(rev).map_or(Ok(state.content().copied()), Err)
}

/// Returns true if a commit made `wanted` the content of a path. Calls `note` if a pointer or lockfile cannot
/// be read there, or at a parent whose state decides.
pub fn introduces(
    states: &mut StateReader<'_>,
    commit: &Commit,
    path: usize,
    wanted: &Digest,
    note: &dyn Fn(Error),
) -> Result<bool> {
    let state = states.state(&commit.rev, path)?;
    state.error(&commit.rev).into_iter().for_each(note);
    let is_wanted = state.content().is_some_and(|content| content.digest == *wanted);
    Ok(is_wanted && is_version(states, commit, path, &state, note)?)
}

/// Returns true if a commit gave a file tracked by Git this content.
pub fn introduces_file(
    git: &Git,
    states: &mut StateReader<'_>,
    commit: &Commit,
    path: usize,
    wanted: &Digest,
) -> Result<bool> {
    let Some(blob) = states.file(&commit.rev, path)? else { return Ok(false) };
    let mut is_inherited = false;
    for parent in &commit.parents {
        is_inherited |= states.file(parent, path)? == Some(blob);
    }
    Ok(!is_inherited && Digest::of(&git.read_blob(blob)?) == *wanted)
}
