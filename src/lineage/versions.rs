//! Versions of a tracked path: the commits that changed its content.

use crate::{
    digest::Digest,
    error::{Error, Result},
    git::{BlobId, Commit, Git, Rev},
    path::RepoPath,
    pipeline::{Lockfile, StageRecord},
    pointer::{Content, Pointer, SUFFIX},
    store::{Store, entry_at},
    workspace::{is_lockfile, is_tracking_file},
};

/// State of a path in a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Content(Content),
    /// It is not tracked there.
    Absent,
    /// A pointer or lockfile that may track it cannot be read.
    Unreadable {
        why: String,
        file: BlobId,
    },
}

/// A commit that changed the content of a path, removed it, or wrote what cannot be read.
#[derive(Clone, Debug)]
pub struct Version {
    pub commit: Commit,
    pub state: State,
    /// True if the content was recorded as a stage's result without a run.
    pub not_run: bool,
}

impl State {
    fn content(&self) -> Option<&Content> {
        if let Self::Content(content) = self { Some(content) } else { None }
    }

    /// Returns the error for a commit with this state if a pointer or lockfile cannot be read there.
    fn error(&self, rev: &Rev) -> Option<Error> {
        if let Self::Unreadable { why, .. } = self { Some(unreadable(rev, why)) } else { None }
    }

    /// Returns true if the commit of the other state changed nothing: what cannot be read is compared by the
    /// bytes of its file.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Content(one), Self::Content(two)) => one.digest == two.digest,
            (one, two) => one == two,
        }
    }
}

/// Returns the versions of `path` among the ancestors of `start` and itself, newest first.
pub fn versions(git: &Git, store: &Store, start: &Rev, path: &RepoPath) -> Result<Vec<Version>> {
    let (commits, errors) = history(git, start)?;
    errors.into_iter().next().map_or(Ok(()), Err)?;
    let mut found = Vec::new();
    let mut is_known = false;
    for commit in commits {
        let current = state_at(git, store, &commit.rev, path)?;
        is_known |= current.content().is_some();
        if is_version(git, store, &commit, &current, path, &|_| {})? {
            let not_run = current.content().is_some() && is_not_run(git, &commit.rev, path)?;
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
    git: &Git,
    store: &Store,
    commit: &Commit,
    state: &State,
    path: &RepoPath,
    note: &dyn Fn(Error),
) -> Result<bool> {
    let mut errors = Vec::new();
    for parent in &commit.parents {
        let before = state_at(git, store, parent, path)?;
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
    let (commits, errors) = git.readable_log(std::slice::from_ref(start))?;
    let revs: Vec<Rev> = commits.iter().map(|commit| commit.rev.clone()).collect();
    git.prefetch(&revs, is_tracking_file);
    Ok((commits, errors))
}

/// Returns the content of a path at a commit, from its own pointer or that of a folder above it, or from a
/// lockfile; `None` if it is not tracked there. It is an error if that cannot be read.
pub fn content_at(git: &Git, store: &Store, rev: &Rev, path: &RepoPath) -> Result<Option<Content>> {
    match state_at(git, store, rev, path)? {
        State::Content(content) => Ok(Some(content)),
        State::Absent => Ok(None),
        State::Unreadable { why, .. } => Err(unreadable(rev, &why)),
    }
}

/// Returns the error for a commit at which a pointer or a lockfile cannot be read.
fn unreadable(rev: &Rev, why: &str) -> Error {
    Error::corrupt(format!("at the commit {}, {why}", rev.short()))
        .hint("name a commit whose pointers and lockfiles can be read")
}

/// Returns the state of a path at a commit, from its own pointer or that of a folder above it, or from a
/// lockfile.
pub fn state_at(git: &Git, store: &Store, rev: &Rev, path: &RepoPath) -> Result<State> {
    let mut next = Some(path.clone());
    while let Some(top) = next.filter(|it| !it.is_root()) {
        next = top.parent();
        let Some(file) = git.blob(rev, &top.with_suffix(SUFFIX))? else { continue };
        let bytes = git.read_blob(file)?;
        // Other programs use the suffix of pointers, too.
        if Pointer::looks_like_pointer(&bytes) {
            return match Pointer::parse(top, &bytes) {
                Ok(pointer) => content_within(store, &pointer, path),
                Err(error) => Ok(State::Unreadable { why: error.chain_text(), file }),
            };
        }
    }
    recorded_at(git, store, rev, path)
}

/// Returns the state of a path by the lockfiles of a commit. Any of them may record an output at any path, so
/// that it is unknown while one of them cannot be read.
fn recorded_at(git: &Git, store: &Store, rev: &Rev, path: &RepoPath) -> Result<State> {
    let mut state = State::Absent;
    for lockfile in git.files(rev, &is_lockfile)? {
        let Some(file) = git.blob(rev, &lockfile)? else { continue };
        let lock = match Lockfile::parse(&lockfile, &git.read_blob(file)?) {
            Ok(lock) => lock,
            Err(error) => {
                state = State::Unreadable { why: error.chain_text(), file };
                continue;
            }
        };
        if let Some((top, content)) = lock.output(path) {
            return content_within(store, &Pointer { path: top.clone(), content: *content }, path);
        }
    }
    Ok(state)
}

/// Returns true if the lockfiles of a commit record a path as a result that was not run; unreadable ones are
/// skipped.
fn is_not_run(git: &Git, rev: &Rev, path: &RepoPath) -> Result<bool> {
    for file in git.files(rev, &is_lockfile)? {
        let Ok(lock) = Lockfile::parse(&file, &git.read(rev, &file)?.unwrap_or_default()) else { continue };
        let mut records = lock.records().map(|(_, record)| record);
        let makes = |record: &StageRecord| record.contents().any(|(top, _)| path.is_within(top));
        if let Some(record) = records.find(|record| makes(record)) {
            return Ok(record.not_run);
        }
    }
    Ok(false)
}

/// Returns the content of `path` within that of a pointer above it.
fn content_within(store: &Store, pointer: &Pointer, path: &RepoPath) -> Result<State> {
    let below = path.strip_prefix(&pointer.path).unwrap_or_default();
    if below.is_root() {
        return Ok(State::Content(pointer.content));
    }
    let entry = entry_at(store, &pointer.content.digest, &below)?;
    Ok(entry.map_or(State::Absent, |entry| {
        State::Content(Content {
            digest: entry.digest,
            files: entry.files,
            kind: entry.kind.content_kind(),
            size: entry.size,
        })
    }))
}

/// Returns the first of these commits, newest first, that made `wanted` the content of `path`. Reads no trees
/// of commits before its parents. Calls `note` for each commit on the way at which a pointer or lockfile
/// cannot be read.
pub fn introducing_commit(
    git: &Git,
    store: &Store,
    commits: &[Commit],
    path: &RepoPath,
    wanted: &Digest,
    note: &dyn Fn(Error),
) -> Result<Option<Commit>> {
    for commit in commits {
        let state = state_at(git, store, &commit.rev, path)?;
        state.error(&commit.rev).into_iter().for_each(note);
        let is_wanted = state.content().is_some_and(|content| content.digest == *wanted);
        if is_wanted && is_version(git, store, commit, &state, path, note)? {
            return Ok(Some(commit.clone()));
        }
    }
    Ok(None)
}
