//! Versions of a tracked path: the commits that changed its content.

use crate::{
    digest::Digest,
    error::{Error, Result},
    git::{Commit, Git, Rev},
    path::RepoPath,
    pipeline::{LOCKFILE, Lockfile, StageRecord},
    pointer::{Content, Pointer, SUFFIX},
    store::{Store, entry_at},
};

/// A commit that changed the content of a path; no content where the commit removed it.
#[derive(Clone, Debug)]
pub struct Version {
    pub commit: Commit,
    pub content: Option<Content>,
    /// True if the content was recorded as a stage's result without a run.
    pub not_run: bool,
}

/// Returns the versions of `path` among the ancestors of `start` and itself, newest first.
pub fn versions(git: &Git, store: &Store, start: &Rev, path: &RepoPath) -> Result<Vec<Version>> {
    let mut found = Vec::new();
    let mut is_known = false;
    for commit in git.log(std::slice::from_ref(start))? {
        let current = content_at(git, store, &commit.rev, path)?;
        is_known |= current.is_some();
        let before = commit.parents.iter().map(|parent| content_at(git, store, parent, path));
        let before = before.collect::<Result<Vec<_>>>()?;
        // A merge that kept one parent's content is not a version.
        let digest = current.map(|content| content.digest);
        let same = |parent: &Option<Content>| parent.map(|content| content.digest) == digest;
        let changed = if before.is_empty() { current.is_some() } else { !before.iter().any(same) };
        if changed {
            let not_run = current.is_some() && is_not_run(git, &commit.rev, path)?;
            found.push(Version { commit, content: current, not_run });
        }
    }
    if is_known {
        return Ok(found);
    }
    let error = Error::not_found(format!("`{path}` has no versions: no commit tracks it"));
    Err(error
        .hint("track it with `mlx add` or as an output of a stage, then commit its pointer or `mlx.lock`"))
}

/// Returns the content of a path at a commit, from its own pointer or that of a folder above it, or from a
/// lockfile.
pub fn content_at(git: &Git, store: &Store, rev: &Rev, path: &RepoPath) -> Result<Option<Content>> {
    let mut next = Some(path.clone());
    while let Some(top) = next.filter(|it| !it.is_root()) {
        if let Some(bytes) = git.read(rev, &top.with_suffix(SUFFIX))?
            && let Ok(pointer) = Pointer::parse(top.clone(), &bytes)
        {
            return content_within(store, &pointer, path);
        }
        next = top.parent();
    }
    recorded_at(git, store, rev, path)
}

/// Returns true if the lockfiles of a commit record a path as a result that was not run.
fn is_not_run(git: &Git, rev: &Rev, path: &RepoPath) -> Result<bool> {
    for lock in lockfiles_at(git, rev)? {
        let mut records = lock.records().map(|(_, record)| record);
        let makes = |record: &StageRecord| record.contents().any(|(top, _)| path.is_within(top));
        if let Some(record) = records.find(|record| makes(record)) {
            return Ok(record.not_run);
        }
    }
    Ok(false)
}

/// Reads the lockfiles of a commit; unreadable ones are skipped.
fn lockfiles_at(git: &Git, rev: &Rev) -> Result<Vec<Lockfile>> {
    let is_lockfile =
        |path: &[u8]| path == LOCKFILE.as_bytes() || path.ends_with(format!("/{LOCKFILE}").as_bytes());
    let mut locks = Vec::new();
    for file in git.files(rev, &is_lockfile)? {
        locks.extend(Lockfile::parse(&file, &git.read(rev, &file)?.unwrap_or_default()).ok());
    }
    Ok(locks)
}

/// Returns the content of a path as the lockfiles of a commit record it; unreadable ones are skipped.
fn recorded_at(git: &Git, store: &Store, rev: &Rev, path: &RepoPath) -> Result<Option<Content>> {
    for lock in lockfiles_at(git, rev)? {
        if let Some((top, content)) = lock.output(path) {
            return content_within(store, &Pointer { path: top.clone(), content: *content }, path);
        }
    }
    Ok(None)
}

/// Returns the content of `path` within that of a pointer above it.
fn content_within(store: &Store, pointer: &Pointer, path: &RepoPath) -> Result<Option<Content>> {
    let below = path.strip_prefix(&pointer.path).unwrap_or_default();
    if below.is_root() {
        return Ok(Some(pointer.content));
    }
    let entry = entry_at(store, &pointer.content.digest, &below)?;
    Ok(entry.map(|entry| Content {
        digest: entry.digest,
        files: entry.files,
        kind: entry.kind.content_kind(),
        size: entry.size,
    }))
}

/// Returns the newest commit, `start` or an ancestor of it, that made `wanted` the content of `path`.
pub fn introducing_commit(
    git: &Git,
    store: &Store,
    start: &Rev,
    path: &RepoPath,
    wanted: &Digest,
) -> Result<Option<Commit>> {
    let found = versions(git, store, start, path)?;
    let has_wanted = |version: &Version| version.content.is_some_and(|content| content.digest == *wanted);
    Ok(found.into_iter().find(has_wanted).map(|version| version.commit))
}
