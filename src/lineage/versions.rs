//! The versions of a tracked path: commits in which its content changed.

use crate::{
    digest::Digest,
    error::{Error, Result},
    git::{Commit, Git, Rev},
    path::RepoPath,
    pipeline::{LOCKFILE, Lockfile},
    pointer::{Content, Pointer, SUFFIX},
    store::{Store, file_at},
};

/// A commit in which a path got the content it has there; none when it lost it.
#[derive(Clone, Debug)]
pub struct Version {
    pub commit: Commit,
    pub content: Option<Content>,
}

/// Versions of `path`, newest first, as far as `from` descends from them.
pub fn versions(git: &Git, store: &Store, from: &Rev, path: &RepoPath) -> Result<Vec<Version>> {
    let mut found = Vec::new();
    let mut known = false;
    for commit in git.log(std::slice::from_ref(from))? {
        let here = content_at(git, store, &commit.rev, path)?;
        known |= here.is_some();
        let before =
            commit.parents.iter().map(|it| content_at(git, store, it, path)).collect::<Result<Vec<_>>>()?;
        // A merge that took one side's content made no version.
        let same = |it: &Option<Content>| it.map(|it| it.digest) == here.map(|it| it.digest);
        let changed = if before.is_empty() { here.is_some() } else { !before.iter().any(same) };
        if changed {
            found.push(Version { commit, content: here });
        }
    }
    if known {
        return Ok(found);
    }
    let error = Error::not_found(format!("no commit has a version of `{path}`"));
    Err(error
        .hint("track it with `mlx add` or as an output of a stage, and commit the pointer or `mlx.lock`"))
}

/// What a path holds at a commit, by its pointer, its stage's record, or the tree it lies in.
pub fn content_at(git: &Git, store: &Store, rev: &Rev, path: &RepoPath) -> Result<Option<Content>> {
    let mut here = Some(path.clone());
    while let Some(top) = here.filter(|it| !it.is_root()) {
        if let Some(bytes) = git.read(rev, &top.with_suffix(SUFFIX))?
            && let Ok(pointer) = Pointer::parse(top.clone(), &bytes)
        {
            return within(store, &pointer, path);
        }
        here = top.parent();
    }
    recorded_at(git, store, rev, path)
}

fn recorded_at(git: &Git, store: &Store, rev: &Rev, path: &RepoPath) -> Result<Option<Content>> {
    let is_lock = |it: &[u8]| it == LOCKFILE.as_bytes() || it.ends_with(format!("/{LOCKFILE}").as_bytes());
    for file in git.files(rev, &is_lock)? {
        let Ok(lock) = Lockfile::parse(&file, &git.read(rev, &file)?.unwrap_or_default()) else { continue };
        let mut outputs = lock.records().flat_map(|it| it.1.outputs.iter().chain(&it.1.in_git));
        if let Some((top, content)) = outputs.find(|it| path.is_within(it.0)) {
            return within(store, &Pointer { path: top.clone(), content: *content }, path);
        }
    }
    Ok(None)
}

fn within(store: &Store, pointer: &Pointer, path: &RepoPath) -> Result<Option<Content>> {
    let below = path.below(&pointer.path).unwrap_or_default();
    if below.is_root() {
        return Ok(Some(pointer.content));
    }
    let entry = file_at(store, &pointer.content.digest, &below)?;
    Ok(entry.map(|it| Content { digest: it.digest, files: it.files, kind: it.kind.shape(), size: it.size }))
}

/// The commit in which `wanted` became the content of `path`, looking back from `from`.
pub fn introduced(
    git: &Git,
    store: &Store,
    from: &Rev,
    path: &RepoPath,
    wanted: &Digest,
) -> Result<Option<Commit>> {
    let found = versions(git, store, from, path)?;
    let mut with = found.into_iter().filter(|it| it.content.is_some_and(|it| it.digest == *wanted));
    Ok(with.next().map(|it| it.commit))
}
