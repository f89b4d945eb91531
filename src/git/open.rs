//! Opens a repository, and says why one cannot be opened.
//!
//! Refs are always those of the whole repository: `GIT_NAMESPACE` selects what is served to others and hides
//! the rest, which garbage collection would take for garbage. Git's own `gc` does not regard it either.

use std::{
    cell::RefCell,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use gix::bstr::ByteSlice as _;

use crate::{
    error::{Error, Result},
    fs,
    git::Git,
};

impl Git {
    /// Finds the repository that contains `start`.
    pub fn discover(start: &Path) -> Result<Self> {
        check_record(start)?;
        let mut repo = gix::discover(start).map_err(|error| explain(start, &error))?;
        repo.clear_namespace();
        // Refs in any other format would appear to be missing, and so would all commits that they lead to.
        if repo.config_snapshot().string("extensions.refStorage").is_some_and(|it| it.as_bytes() != b"files")
        {
            let error = Error::usage(
                "this Git repository keeps its refs in a table (the reftable format), which mlx cannot read",
            );
            return Err(error.hint("convert them with `git refs migrate --ref-format=files`"));
        }
        // Without it, every commit would appear to be missing.
        repo.head().map_err(|error| unreadable_head(&repo, &error))?;
        let root = repo.workdir().map(Path::to_owned).ok_or_else(|| {
            Error::usage("this Git repository is bare: it has no files to work with")
                .hint("use a clone with a worktree")
        })?;
        let root = fs::canonicalize(&root).unwrap_or(root);
        check_head_commit(&repo)?;
        Ok(Self { repo, root, not_sent: RefCell::default(), reads: Arc::default() })
    }

    /// Like [`Git::discover`], for a command that works on the files in `start`. Refuses a repository whose
    /// worktree is elsewhere, and one that is not the one in `GIT_DIR`, so that the data of one repository is
    /// never applied to the files of another.
    pub fn discover_checked(start: &Path) -> Result<Self> {
        let found = Self::discover(start)?;
        if fs::canonicalize(start).is_some_and(|it| !it.starts_with(&found.root)) {
            let message = format!(
                "`{}` is not in the worktree of its repository, which is `{}`",
                start.display(),
                found.root.display()
            );
            return Err(Error::usage(message)
                .hint("change to that folder, or check `GIT_WORK_TREE` and `git config core.worktree`"));
        }
        let git_dir = std::env::var_os("GIT_DIR").map(PathBuf::from);
        if git_dir.as_ref().is_some_and(|dir| fs::canonicalize(dir).as_ref() != Some(&found.worktree_dir())) {
            let git_dir = git_dir.unwrap_or_default();
            let message = format!(
                "`GIT_DIR` is `{}`, but the repository here is `{}`",
                git_dir.display(),
                found.worktree_dir().display()
            );
            return Err(Error::usage(message).hint("unset `GIT_DIR`, or change to the repository it names"));
        }
        Ok(found)
    }

    /// Returns this repository as it is stored, without replacements (`git replace`), for garbage collection:
    /// Git keeps what it replaced, and shows it again once the replacement is deleted.
    pub fn without_replacements(&self) -> Self {
        let mut repo = self.repo.clone();
        repo.objects.ignore_replacements = true;
        Self {
            repo,
            root: self.root.clone(),
            not_sent: self.not_sent.clone(),
            reads: Arc::clone(&self.reads),
        }
    }
}

/// Returns the error for a `HEAD` that does not lead to a commit or to the name of a branch. It names the
/// file that is broken: `HEAD`, that of the branch it names, or the one that holds packed branches.
fn unreadable_head(repo: &gix::Repository, error: &dyn std::fmt::Display) -> Error {
    let (mut file, mut branch) = (repo.git_dir().join("HEAD"), None);
    // As many steps as Git takes.
    for _ in 0..5 {
        let text = fs::read_user_file(&file).unwrap_or_default();
        let Some(name) = text.strip_prefix(b"ref:").map(<[u8]>::trim_ascii) else { break };
        if gix::refs::FullName::try_from(name.as_bstr()).is_err() {
            break;
        }
        let name = OsStr::from_bytes(name);
        file = repo.common_dir().join(name);
        branch = Some(name.to_owned());
    }
    let hint = match branch {
        None => {
            "write `ref: refs/heads/BRANCH` there, with the name of the branch that was checked out".into()
        }
        Some(name) => {
            let log = repo.common_dir().join("logs").join(name);
            format!("write the id of the branch's last commit there; `{}` may tell it", log.display())
        }
    };
    let file = if fs::is_file(&file) { file } else { repo.common_dir().join("packed-refs") };
    let reason = error.to_string().replace('\n', " ");
    Error::corrupt(format!("cannot read `{}`: {reason}", file.display())).hint(hint)
}

/// Fails if the commit that is checked out is missing: the repository would look like one without commits.
fn check_head_commit(repo: &gix::Repository) -> Result<()> {
    let Ok(mut head) = repo.head() else { return Ok(()) };
    if head.is_unborn() {
        return Ok(());
    }
    let Err(error) = head.peel_to_commit() else { return Ok(()) };
    let branch = head.referent_name();
    let log = branch.map_or_else(|| repo.git_dir(), |_| repo.common_dir()).join("logs");
    let name = branch.map_or_else(|| "HEAD".to_owned(), |name| name.as_bstr().to_string());
    let error = Error::corrupt(format!("cannot read the commit of `{name}`, which is checked out: {error}"));
    Err(error.hint(format!(
        "check the repository with `git fsck`; `git fetch` gets the commit from a clone that has it, and \
         `{}` tells which commits came before",
        log.join(name).display()
    )))
}

/// Returns the innermost folder from `start` upwards that has a `.git`, and that `.git`.
fn enclosing(start: &Path) -> Option<(PathBuf, PathBuf)> {
    let start = fs::canonicalize(start)?;
    let is_git = |folder: &&Path| fs::is_file(&folder.join(".git")) || fs::is_file(&folder.join(".git/HEAD"));
    let found = start.ancestors().find(is_git)?;
    Some((found.to_owned(), found.join(".git")))
}

/// Returns the folder that the file `.git` of a linked worktree or submodule names.
fn named_folder(file: &Path) -> Option<PathBuf> {
    let text = fs::is_file(file).then(|| fs::read_user_file(file).ok()).flatten()?;
    let named = text.strip_prefix(b"gitdir:")?.trim_ascii();
    Some(file.parent()?.join(OsStr::from_bytes(named)))
}

/// Fails if the innermost `.git` names a folder that does not exist. Looking further up would find another
/// repository, and apply commands to it.
fn check_record(start: &Path) -> Result<()> {
    let Some((top, file)) = enclosing(start) else { return Ok(()) };
    let Some(folder) = named_folder(&file).filter(|folder| !fs::is_dir(folder)) else { return Ok(()) };
    let message = format!(
        "the worktree `{}` has lost its Git folder: `{}` names `{}`, which does not exist",
        top.display(),
        file.display(),
        folder.display()
    );
    Err(Error::not_found(message).hint(
        "if the repository was moved, run `git worktree repair PATH` in it; otherwise make a new worktree \
         with `git worktree add`, and copy your files there",
    ))
}

/// Returns the error for a repository that cannot be opened.
fn explain(start: &Path, error: &gix::Error) -> Error {
    let Some((top, file)) = enclosing(start) else {
        return Error::not_found(format!("`{}` is not in a Git repository", start.display()))
            .hint("create one with `git init`, or name another folder with `-C DIR`");
    };
    let folder = named_folder(&file).unwrap_or(file);
    let common = fs::read_user_file(&folder.join("commondir")).ok();
    let common =
        common.map_or_else(|| folder.clone(), |text| folder.join(OsStr::from_bytes(text.trim_ascii())));
    let config = fs::canonicalize(&common).unwrap_or(common).join("config");
    let text = fs::read_user_file(&config).unwrap_or_default();
    if has_sha256_objects(&String::from_utf8_lossy(&text)) {
        let message =
            format!("the Git repository `{}` has SHA-256 objects, which mlx cannot read", top.display());
        return Error::usage(message).hint("use a repository with SHA-1 objects, Git's default");
    }
    let reason = reason_of_git(&top).unwrap_or_else(|| error.to_string().replace('\n', " "));
    let message = format!("cannot open the Git repository `{}`: {reason}", top.display());
    Error::corrupt(message).hint(format!("correct it, then check it with `git -C {} status`", top.display()))
}

/// Returns the reason for which `git` itself cannot open a repository, such as the line of a configuration
/// file; `None` if it can.
fn reason_of_git(top: &Path) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(top).args(["rev-parse", "--git-dir"]).env("LC_ALL", "C");
    let output = command.output().ok().filter(|output| !output.status.success())?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("fatal: "))?;
    Some(line.to_owned())
}

/// Returns true if the text of a configuration file sets `extensions.objectFormat` to SHA-256.
fn has_sha256_objects(config: &str) -> bool {
    config.lines().filter_map(|line| line.split_once('=')).any(|(key, value)| {
        key.trim().eq_ignore_ascii_case("objectformat") && value.trim().eq_ignore_ascii_case("sha256")
    })
}
