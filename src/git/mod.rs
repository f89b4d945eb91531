//! Access to the Git repository: commits, blobs, refs, tags, worktrees, signatures and remotes.
//!
//! Reading, and writing commits and tags of mlx's own, goes through `gix`, which runs no program whatever the
//! repository's configuration says. Staging files, fetching and pushing run the user's `git`.

mod attributes;
mod difference;
mod history;
mod ignore;
mod index;
mod lines;
mod open;
mod promised;
mod refs;
mod rule_files;
mod sign;
mod tags;
mod tree_changes;
mod trees;
mod upstream;
mod write;

pub use self::{
    attributes::{Conversion, conversion_error},
    difference::RevDifference,
    history::{BlobId, Commit, FolderCache},
    ignore::{IgnoredFile, Target as IgnoreTarget, ignore_line},
    index::OwnFile,
    lines::HeadLines,
    refs::{GitRef, RefTarget, Target, Worktree},
    sign::{Key, Signer},
    tags::Tag,
    tree_changes::{Filter, Step},
    trees::{FileLookup, NewFiles, TreeId, TreeScan},
    upstream::{PushOutcome, RefListing, RefToFetch, Upstream},
    write::SingleFile,
};

use std::{
    cell::RefCell,
    fmt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs,
    path::{MAX_DEPTH, RepoPath},
};

/// Git repository with a worktree.
pub struct Git {
    repo: gix::Repository,
    root: PathBuf,
    /// Objects that the remote of a partial clone did not send.
    not_sent: RefCell<promised::NotSent>,
    /// Number of objects read, other than the commits that a walk of history visits.
    reads: Arc<AtomicU64>,
}

/// Id of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rev(gix::ObjectId);

impl Rev {
    /// Parses a full commit id; the commit need not exist in this clone.
    pub fn from_hex(text: &str) -> Option<Self> {
        gix::ObjectId::from_hex(text.as_bytes()).ok().map(Self)
    }

    /// Returns the first ten hex digits, for display.
    pub fn short(&self) -> String {
        self.0.to_hex_with_len(10).to_string()
    }
}

impl fmt::Display for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Converts an error of `gix`, with a message that names the failed operation.
fn from_gix<T, E: fmt::Display>(result: Result<T, E>, context: impl FnOnce() -> String) -> Result<T> {
    result.map_err(|error| Error::new(Kind::Internal, format!("{}: {error}", context())))
}

/// Returns the error for an object or a history that cannot be read, with a message that names it.
fn unreadable(error: &dyn fmt::Display, context: &str) -> Error {
    Error::corrupt(format!("{context}: {error}")).hint("check the repository with `git fsck`")
}

impl Git {
    /// Returns the top folder of the worktree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the Git folder that all linked worktrees share.
    pub fn common_dir(&self) -> PathBuf {
        fs::canonicalize(self.repo.common_dir()).unwrap_or_else(|| self.repo.common_dir().to_owned())
    }

    /// Returns the Git folder of this worktree alone.
    pub fn worktree_dir(&self) -> PathBuf {
        fs::canonicalize(self.repo.git_dir()).unwrap_or_else(|| self.repo.git_dir().to_owned())
    }

    /// Returns the number of objects read so far, other than the commits that a walk of history visits.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Returns true unless `core.fileMode` is false: Git sets that when it creates a repository on a file
    /// system that does not keep executable bits.
    pub fn tracks_exec_bits(&self) -> bool {
        self.repo.config_snapshot().boolean("core.fileMode").unwrap_or(true)
    }

    /// Resolves a revision such as a branch, a tag, a hash or `HEAD~2` to a commit.
    pub fn resolve(&self, spec: &str) -> Result<Rev> {
        let missing = || {
            let error = Error::not_found(format!("revision `{spec}` not found"));
            error.hint(if self.repo.is_shallow().unwrap_or(false) {
                "this clone is shallow: if it is an older commit, get it with `git fetch --unshallow`"
            } else {
                "name a branch, a tag or a commit, as shown by `git log`"
            })
        };
        let id = self.repo.rev_parse_single(spec).map_err(|_| missing())?;
        let object = id.object().map_err(|_| missing())?;
        Ok(Rev(object.peel_to_commit().map_err(|_| missing())?.id))
    }

    /// Returns the commit that is checked out; `None` before the first commit.
    pub fn head(&self) -> Option<Rev> {
        self.repo.head_id().ok().map(|it| Rev(it.detach()))
    }

    /// Reads a file in a commit; `None` if it does not exist there.
    pub fn read(&self, rev: &Rev, path: &RepoPath) -> Result<Option<Vec<u8>>> {
        match self.blob(rev, path)? {
            Some(id) => self.read_blob(id).map(Some),
            None => Ok(None),
        }
    }

    /// Lists the files in a commit whose path `wanted` accepts.
    pub fn files(&self, rev: &Rev, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Vec<RepoPath>> {
        let tree = self.tree_id(rev, || format!("cannot list the files of {}", rev.short()))?;
        let mut found = Vec::new();
        self.files_below(&RepoPath::root(), tree, wanted, &mut found, 0)?;
        Ok(found)
    }

    fn files_below(
        &self,
        folder: &RepoPath,
        tree: gix::ObjectId,
        wanted: &dyn Fn(&[u8]) -> bool,
        found: &mut Vec<RepoPath>,
        depth: usize,
    ) -> Result<()> {
        let context = || format!("cannot read `{folder}` from Git");
        for entry in self.tree(tree, context)?.iter() {
            let entry = from_gix(entry, context)?;
            // mlx cannot have written below a name that is not valid in its paths.
            let Ok(path) = folder.join(entry.filename()) else { continue };
            if entry.mode().is_tree() && depth < MAX_DEPTH {
                self.files_below(&path, entry.object_id(), wanted, found, depth + 1)?;
            } else if !entry.mode().is_tree() && wanted(path.bytes()) {
                found.push(path);
            }
        }
        Ok(())
    }

    /// Runs `git add` on these files, whose names are never taken for patterns.
    pub fn add(&self, paths: &[RepoPath]) -> Result<()> {
        let mut command = Command::new("git");
        command.arg("--literal-pathspecs").arg("-C").arg(&self.root).args(["add", "--"]);
        command.args(paths.iter().map(|path| path.on_disk(Path::new(""))));
        let output = command.output().context(|| "cannot run `git`".into())?;
        if output.status.success() {
            return Ok(());
        }
        let message = format!("`git add` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        Err(Error::new(Kind::Internal, message))
    }

    /// Returns the version that `git --version` prints.
    pub fn git_version() -> Option<String> {
        let output = Command::new("git").arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.trim().trim_start_matches("git version ").to_owned())
    }
}
