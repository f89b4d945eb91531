//! Git, as much of it as `mlx` needs.
//!
//! Reading goes through `gix`, which runs no program whatever the repository's configuration says.
//! The few things that write (staging files, making commits in the demo) go through the user's own `git`.

mod apart;
mod history;
mod ignore;
mod reach;
mod sign;
mod tags;
mod upstream;
mod write;

pub use self::{
    apart::Apart,
    history::{BlobId, Commit, Places},
    ignore::Hidden,
    reach::{Census, Name, Target, Worktree},
    sign::{Key, Signer},
    tags::Tag,
    upstream::{Listing, Pushed, Upstream},
    write::Single,
};

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use gix::bstr::ByteSlice as _;

use crate::{
    error::{Doing, Error, Kind, Result},
    fs,
    path::RepoPath,
};

/// A Git repository with a work tree.
pub struct Git {
    repo: gix::Repository,
    root: PathBuf,
}

/// A commit that exists; only [`Git`] makes one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rev(gix::ObjectId);

impl Rev {
    /// A commit by its whole id, whether or not it is here.
    pub fn from_hex(text: &str) -> Option<Self> {
        gix::ObjectId::from_hex(text.as_bytes()).ok().map(Self)
    }

    /// The first ten hex digits, for people.
    pub fn short(&self) -> String {
        self.0.to_hex_with_len(10).to_string()
    }
}

impl fmt::Display for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Turns any error of `gix` into ours.
fn ours<T, E: fmt::Display>(result: Result<T, E>, doing: impl FnOnce() -> String) -> Result<T> {
    result.map_err(|it| Error::new(Kind::Internal, format!("{}: {it}", doing())))
}

impl Git {
    /// Finds the repository that `start` lies in.
    pub fn discover(start: &Path) -> Result<Self> {
        let none = |_| {
            Error::not_found(format!("`{}` is not in a Git repository", start.display()))
                .hint("make one with `git init`, or name another folder with `-C DIR`")
        };
        let repo = gix::discover(start).map_err(none)?;
        // Read as files they would seem to be none, and so would all that they lead to.
        if repo.config_snapshot().string("extensions.refStorage").is_some_and(|it| it.as_bytes() != b"files")
        {
            let error =
                Error::usage("this Git repository keeps its references in a table, which mlx cannot read");
            return Err(error.hint("`git refs migrate --ref-format=files` turns them into files"));
        }
        let root = repo.workdir().map(Path::to_owned).ok_or_else(|| {
            Error::usage("this Git repository is bare: it has no files to work with")
                .hint("use a clone of it")
        })?;
        let root = fs::canonical(&root).unwrap_or(root);
        Ok(Self { repo, root })
    }

    /// As [`Git::discover`], for whoever works where they stand: refuses a repository whose files lie elsewhere, and
    /// one that is not what `GIT_DIR` says, so that one repository's record never meets the files of another.
    pub fn here(start: &Path) -> Result<Self> {
        let found = Self::discover(start)?;
        if fs::canonical(start).is_some_and(|it| !it.starts_with(&found.root)) {
            let message = format!(
                "`{}` is not among the files of its repository, which lie in `{}`",
                start.display(),
                found.root.display()
            );
            return Err(Error::usage(message)
                .hint("go there, or see what `GIT_WORK_TREE` and `git config core.worktree` say"));
        }
        let said = std::env::var_os("GIT_DIR").map(PathBuf::from);
        if said.as_ref().is_some_and(|it| fs::canonical(it).as_ref() != Some(&found.worktree_dir())) {
            let said = said.unwrap_or_default();
            let message = format!(
                "`GIT_DIR` is `{}`, and the repository here is `{}`",
                said.display(),
                found.worktree_dir().display()
            );
            return Err(Error::usage(message).hint("unset `GIT_DIR`, or go to the repository that it names"));
        }
        Ok(found)
    }

    /// The top of the work tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What all linked worktrees share.
    pub fn common_dir(&self) -> PathBuf {
        fs::canonical(self.repo.common_dir()).unwrap_or_else(|| self.repo.common_dir().to_owned())
    }

    /// What belongs to this worktree alone.
    pub fn worktree_dir(&self) -> PathBuf {
        fs::canonical(self.repo.git_dir()).unwrap_or_else(|| self.repo.git_dir().to_owned())
    }

    /// Whether the exec bits of files mean anything here; Git tries it out when it makes a repository.
    pub fn keeps_modes(&self) -> bool {
        self.repo.config_snapshot().boolean("core.fileMode").unwrap_or(true)
    }

    /// The commit that `spec` names: a branch, a tag, a hash, `HEAD~2`.
    pub fn resolve(&self, spec: &str) -> Result<Rev> {
        let missing = || {
            Error::not_found(format!("there is no revision `{spec}`"))
                .hint("name a branch, a tag or a commit, as `git log` shows them")
        };
        let id = self.repo.rev_parse_single(spec).map_err(|_| missing())?;
        let object = id.object().map_err(|_| missing())?;
        Ok(Rev(object.peel_to_commit().map_err(|_| missing())?.id))
    }

    /// The commit that is checked out; none before the first.
    pub fn head(&self) -> Option<Rev> {
        self.repo.head_id().ok().map(|it| Rev(it.detach()))
    }

    /// The bytes of a file in a commit.
    pub fn read(&self, rev: &Rev, path: &RepoPath) -> Result<Option<Vec<u8>>> {
        match self.blob(rev, path)? {
            Some(id) => self.read_blob(id).map(Some),
            None => Ok(None),
        }
    }

    /// Files in a commit whose path `wanted` accepts.
    pub fn files(&self, rev: &Rev, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Vec<RepoPath>> {
        let doing = || format!("cannot list the files of {}", rev.short());
        let commit = ours(self.repo.find_commit(rev.0), doing)?;
        let index = ours(self.repo.index_from_tree(&ours(commit.tree_id(), doing)?), doing)?;
        Ok(paths_of(&index, wanted))
    }

    /// Files that Git tracks in this worktree whose path `wanted` accepts.
    pub fn tracked(&self, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Vec<RepoPath>> {
        let index = ours(self.repo.index_or_empty(), || "cannot read Git's index".into())?;
        Ok(paths_of(&index, wanted))
    }

    /// One file that Git tracks at `path` or below it, if there is any.
    pub fn tracked_within(&self, path: &RepoPath) -> Result<Option<RepoPath>> {
        let index = ours(self.repo.index_or_empty(), || "cannot read Git's index".into())?;
        if index.entry_by_path(path.bytes().as_bstr()).is_some() {
            return Ok(Some(path.clone()));
        }
        let folder = [path.bytes(), b"/"].concat();
        let below = index.prefixed_entries(folder.as_bstr()).and_then(|it| it.first());
        Ok(below.and_then(|it| RepoPath::from_bytes(it.path(&index)).ok()))
    }

    /// `git add` of these files.
    pub fn stage(&self, paths: &[RepoPath]) -> Result<()> {
        let mut command = Command::new("git");
        command
            .arg("-C")
            .arg(&self.root)
            .args(["add", "--"])
            .args(paths.iter().map(|it| it.on_disk(Path::new(""))));
        let output = command.output().doing(|| "cannot run `git`".into())?;
        if output.status.success() {
            return Ok(());
        }
        let message = format!("`git add` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        Err(Error::new(Kind::Internal, message))
    }

    /// What `git --version` says.
    pub fn program_version() -> Option<String> {
        let output = Command::new("git").arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.trim().trim_start_matches("git version ").to_owned())
    }
}

fn paths_of(index: &gix::index::State, wanted: &dyn Fn(&[u8]) -> bool) -> Vec<RepoPath> {
    let entries = index.entries().iter().map(|it| it.path(index));
    entries.filter(|it| wanted(it.as_bytes())).filter_map(|it| RepoPath::from_bytes(it).ok()).collect()
}
