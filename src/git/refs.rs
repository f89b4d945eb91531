//! Lists everything in Git that refers to commits and files: refs, reflogs, stashes, worktrees, indexes.
//!
//! Garbage collection decides by it which data is still needed, so anything unreadable is an error and never
//! left out.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use gix::{bstr::ByteSlice as _, objs::Kind as ObjectKind};

use crate::{
    error::Result,
    fs,
    git::{BlobId, Git, Rev, from_gix, index::staged_files, trees::TreeId, unreadable},
    path::RepoPath,
};

/// Pseudorefs, which can be the only reference to an object.
const PSEUDOREFS: [&str; 9] = [
    "HEAD",
    "ORIG_HEAD",
    "MERGE_HEAD",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "REBASE_HEAD",
    "BISECT_HEAD",
    "AUTO_MERGE",
    "MERGE_AUTOSTASH",
];

/// Files in which an unfinished rebase or series of cherry-picks keeps its autostash and its remaining
/// commits.
const SEQUENCER_FILES: [&str; 8] = [
    "rebase-merge/autostash",
    "rebase-merge/orig-head",
    "rebase-merge/git-rebase-todo",
    "rebase-apply/autostash",
    "rebase-apply/orig-head",
    "rebase-apply/abort-safety",
    "sequencer/head",
    "sequencer/todo",
];

/// Length of the shortest abbreviated id that Git writes, in hex digits.
const MIN_ABBREV: usize = 7;

/// Prefixes of refs that belong to one worktree.
const PER_WORKTREE: [&[u8]; 3] = [b"refs/bisect/", b"refs/worktree/", b"refs/rewritten/"];

/// Reference to an object: a ref, a reflog entry, or an id in a file of an unfinished rebase.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GitRef {
    /// Name such as `refs/heads/main`, prefixed with the Git folder's name and a colon for a linked worktree.
    pub name: String,
    id: gix::ObjectId,
}

/// Object that a reference leads to, past annotated tags.
#[derive(Clone, Debug)]
pub enum Target {
    Commit(Rev),
    Tree(TreeId),
    Blob(BlobId),
}

/// A resolved reference.
#[derive(Clone, Debug)]
pub struct RefTarget {
    pub target: Target,
    /// Messages of the annotated tags that led to it.
    pub messages: Vec<String>,
}

/// Worktree of this clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worktree {
    /// Top folder of its files; `None` if it does not exist now.
    pub root: Option<PathBuf>,
    /// Recorded top folder, if it does not exist now: deleted, or on a disk that is not mounted.
    pub missing_root: Option<PathBuf>,
    /// Git folder of this worktree alone.
    pub git_dir: PathBuf,
    /// Wanted files in its index; all sides of a merge conflict.
    pub staged: Vec<(RepoPath, BlobId)>,
}

impl fmt::Display for GitRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.id)
    }
}

impl Git {
    /// Lists all references, sorted: refs of the repository and of each worktree, stashes, ids in files of
    /// unfinished rebases, and reflog entries of the last `recent` seconds.
    pub fn references(&self, recent: i64) -> Result<Vec<GitRef>> {
        let mut found = BTreeSet::new();
        let since = fs::coarse_now() / 1_000_000_000 - recent;
        for repo in self.repositories()? {
            let prefix = if repo.git_dir() == repo.common_dir() {
                String::new()
            } else {
                format!("{}:", repo.git_dir().file_name().unwrap_or_default().display())
            };
            for pseudoref in PSEUDOREFS {
                let context = || format!("cannot read `{pseudoref}`");
                let reference = from_gix(repo.try_find_reference(pseudoref), context);
                // AUTO_MERGE is a tree, and some tools keep other data under such names.
                let reference = if pseudoref == "HEAD" { reference? } else { reference.ok().flatten() };
                // The object of a pseudoref that an old merge left may be pruned already.
                let exists =
                    |reference: &gix::Reference<'_>| reference.try_id().is_some_and(|id| repo.has_object(id));
                let reference = reference.filter(|reference| pseudoref == "HEAD" || exists(reference));
                if let Some(reference) = reference {
                    collect(&repo, &prefix, &reference, since, &mut found)?;
                }
            }
            for file in SEQUENCER_FILES {
                let text = fs::read_user_file(&repo.git_dir().join(file)).unwrap_or_default();
                let words = text.split(u8::is_ascii_whitespace);
                // The list of cherry-picks has abbreviated ids.
                let is_id = |word: &&[u8]| word.len() >= MIN_ABBREV && word.iter().all(u8::is_ascii_hexdigit);
                let resolve = |word: &[u8]| Some(repo.rev_parse_single(word.as_bstr()).ok()?.detach());
                let ids = words.filter(is_id).filter_map(resolve);
                found.extend(ids.map(|id| GitRef { name: format!("{prefix}{file}"), id }));
            }
            let context = || "cannot read Git's refs".into();
            for reference in from_gix(from_gix(repo.references(), context)?.all(), context)? {
                let reference = from_gix(reference, context)?;
                // Refs that all worktrees share are listed once, for the main worktree.
                let name = reference.name().as_bstr();
                if prefix.is_empty() || PER_WORKTREE.iter().any(|it| name.starts_with(it)) {
                    collect(&repo, &prefix, &reference, since, &mut found)?;
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Opens the repository as seen from the main worktree and from each linked one.
    fn repositories(&self) -> Result<Vec<gix::Repository>> {
        let context = || "cannot read Git's worktrees".into();
        let mut found = vec![from_gix(self.repo.main_repo(), context)?];
        for proxy in from_gix(self.repo.worktrees(), context)? {
            found.push(from_gix(proxy.into_repo_with_possibly_inaccessible_worktree(), context)?);
        }
        for repo in &mut found {
            repo.clear_namespace();
        }
        Ok(found)
    }

    /// Lists all worktrees, with the files in their indexes whose path `wanted` accepts.
    pub fn worktrees(&self, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Vec<Worktree>> {
        let mut worktrees = Vec::new();
        for repo in self.repositories()? {
            let root = repo.workdir().map(std::path::Path::to_owned);
            let exists = root.as_ref().is_none_or(|it| fs::is_dir(it));
            let mut staged = staged_files(&repo, &repo.index_path(), wanted)?;
            // `GIT_INDEX_FILE` names another index meanwhile, as in Git's own hooks.
            let own = repo.git_dir().join("index");
            if own != repo.index_path() {
                staged.extend(staged_files(&repo, &own, wanted)?);
            }
            let folder = fs::canonicalize(repo.git_dir()).unwrap_or_else(|| repo.git_dir().to_owned());
            let (root, away) = if exists { (root, None) } else { (None, root) };
            worktrees.push(Worktree { staged, root, missing_root: away, git_dir: folder });
        }
        Ok(worktrees)
    }

    /// Follows a reference to what it leads to. It is an error if the object is missing.
    pub fn resolve_reference(&self, name: &GitRef) -> Result<RefTarget> {
        let context = || format!("cannot resolve `{}`", name.name);
        let (mut id, mut messages) = (name.id, Vec::new());
        loop {
            let object = self.object(id, context)?;
            match object.kind {
                ObjectKind::Commit => return Ok(RefTarget { target: Target::Commit(Rev(id)), messages }),
                ObjectKind::Tag => {
                    let tag = from_gix(object.try_into_tag(), context)?;
                    messages.push(from_gix(tag.decode(), context)?.message.to_string());
                    id = from_gix(tag.target_id(), context)?.detach();
                }
                ObjectKind::Tree => return Ok(RefTarget { target: Target::Tree(TreeId::new(id)), messages }),
                ObjectKind::Blob => {
                    return Ok(RefTarget { target: Target::Blob(BlobId::new(id)), messages });
                }
            }
        }
    }

    /// Lists all commits reachable from `from`, including these, in no particular order.
    pub fn ancestors(&self, from: &[Rev]) -> Result<Vec<Rev>> {
        let failed = |error: gix::Error| unreadable(&error, "cannot read Git's history");
        let walk = self.repo.rev_walk(from.iter().map(|it| it.0)).all().map_err(failed)?;
        walk.map(|it| Ok(Rev(it.map_err(failed)?.id))).collect()
    }
}

/// Adds a ref and the recent entries of its reflog. Of `refs/stash` all entries are added, since older
/// stashes exist nowhere else.
fn collect(
    repo: &gix::Repository,
    prefix: &str,
    reference: &gix::Reference<'_>,
    since: i64,
    found: &mut BTreeSet<GitRef>,
) -> Result<()> {
    let full = reference.name().as_bstr().to_string();
    if let Some(id) = reference.try_id() {
        found.insert(GitRef { name: format!("{prefix}{full}"), id: id.detach() });
    } else if full == "HEAD"
        && let Ok(id) = repo.head_id()
    {
        found.insert(GitRef { name: format!("{prefix}{full}"), id: id.detach() });
    }
    let context = || format!("cannot read the reflog of `{full}`");
    let mut log = reference.log_iter();
    let Some(lines) = from_gix(log.all(), context)? else { return Ok(()) };
    for (at, line) in lines.enumerate() {
        let line = from_gix(line, context)?;
        let recent = line.signature.time().is_ok_and(|it| it.seconds > since);
        let id = line.new_oid();
        if (recent || full == "refs/stash") && !id.is_null() && repo.has_object(id) {
            found.insert(GitRef { name: format!("{prefix}{full}@{{{at}}}"), id });
        }
    }
    Ok(())
}
