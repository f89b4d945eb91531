//! Temporary linked Git worktree in which a retraining runs, isolated from the caller's files, hooks and Git
//! environment variables. Removed when dropped; worktrees of killed retrainings are removed by the next
//! retraining.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cli::{Context, report::count},
    error::{Error, Kind, Result, WithContext},
    fs::{self, Lock, Root, Sync},
    lineage::content_at,
    model::registry::{self, Version},
    path::RepoPath,
    repo::Repo,
};

const PREFIX: &str = "retrain-";
/// Environment variables that Git sets for its hooks. They would make our commands work on the caller's
/// files.
const GIT_VARIABLES: [&str; 9] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_QUARANTINE_PATH",
    "GIT_NAMESPACE",
];

/// Linked worktree of HEAD, removed when dropped.
pub struct Worktree<'c> {
    pub ctx: &'c Context<'c>,
    pub repo: Repo,
    /// Root of the caller's repository.
    origin: PathBuf,
    /// Private folder of the caller's worktree, where logs are kept.
    private: PathBuf,
    path: PathBuf,
}

impl<'c> Worktree<'c> {
    /// Adds the worktree and opens its repository.
    pub fn create(ctx: &'c Context<'c>, repo: &Repo) -> Result<Self> {
        let origin = repo.root().to_owned();
        let lock = lock(&repo.shared)?;
        remove_orphans(&repo.shared, &origin);
        let path = repo.shared.path().join(format!("{PREFIX}{}", std::process::id()));
        let text = path.display().to_string();
        git(&origin, &["worktree", "add", "--quiet", "--detach", &text, "HEAD"])?;
        drop(lock);
        let private = repo.private.path().to_owned();
        let repo = Repo::open_worktree(&path)?;
        Ok(Self { ctx, repo, origin, private, path })
    }

    /// Checks out the training data.
    pub fn checkout(&self, data: &RepoPath) -> Result<()> {
        self.mlx(&["checkout".as_ref(), "--quiet".as_ref(), OsStr::from_bytes(data.bytes())])
    }

    /// Runs the pipeline, commits its outputs if anything changed, and returns the commit.
    pub fn train(&self, data: &RepoPath, added: u64, environment: &str) -> Result<String> {
        self.mlx(&["add".as_ref(), "--quiet".as_ref(), OsStr::from_bytes(data.bytes())])?;
        self.mlx(&["repro".as_ref(), "--quiet".as_ref()])?;
        git(&self.path, &["add", "--all"])?;
        if !git(&self.path, &["status", "--porcelain"])?.is_empty() {
            let message =
                format!("retrain: add {} of {environment} to {data}", count(added, "labeled image"));
            git(&self.path, &["commit", "--quiet", "--no-verify", "-m", &message])?;
        }
        Ok(git(&self.path, &["rev-parse", "HEAD"])?.trim().to_owned())
    }

    /// Returns the version of the committed package, and true if it was registered just now.
    pub fn register(&self, model: &str, package: &RepoPath) -> Result<(Version, bool)> {
        let (git, store) = (&self.repo.git, &self.repo.store);
        let rev = git.resolve("HEAD")?;
        let content = content_at(git, store, &rev, package)?;
        let known = || -> Result<Option<Version>> {
            let all = registry::versions(git, Some(model))?;
            let digest = content.map(|it| it.digest);
            Ok(all.into_iter().find(|version| Some(version.package.digest) == digest))
        };
        if let Some(version) = known()? {
            return Ok((version, false));
        }
        let failure =
            self.run(&["model".as_ref(), "register".as_ref(), "--quiet".as_ref(), model.as_ref()])?;
        match (known()?, failure) {
            (Some(version), None) => Ok((version, true)),
            // Another retraining registered it first.
            (Some(version), Some(_)) => Ok((version, false)),
            (None, failure) => Err(self.failed("model register", &failure.unwrap_or_default())),
        }
    }

    /// Runs the current mlx executable in the worktree.
    fn mlx(&self, args: &[&OsStr]) -> Result<()> {
        let name = args.first().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        self.run(args)?.map_or(Ok(()), |stderr| Err(self.failed(&name, &stderr)))
    }

    /// Runs mlx in the worktree; returns its error output if it fails.
    fn run(&self, args: &[&OsStr]) -> Result<Option<String>> {
        let exe = std::env::current_exe().context(|| "cannot find the mlx executable".into())?;
        let mut command = Command::new(exe);
        without_git_variables(&mut command).args(args).current_dir(&self.path);
        let output = command.output().context(|| "cannot run mlx".into())?;
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok((!output.status.success()).then_some(stderr))
    }

    /// Copies the logs to the caller, since the worktree is removed, warns with the error output, and returns
    /// the error.
    fn failed(&self, name: &str, stderr: &str) -> Error {
        let (from, to) = (self.repo.private.path(), &self.private);
        let copied = copy_logs(&self.repo.private, to).is_ok();
        let text = if copied {
            stderr.replace(&*from.to_string_lossy(), &to.to_string_lossy())
        } else {
            stderr.to_owned()
        };
        self.ctx.progress.warn(&text);
        Error::new(Kind::Stage, format!("`mlx {name}` failed in the worktree of the retraining"))
    }
}

impl Drop for Worktree<'_> {
    fn drop(&mut self) {
        // Continues without the lock, too: a leftover worktree is worse than a warning from Git.
        let _lock = lock(&self.repo.shared);
        remove(&self.repo.shared, &self.origin, &self.path);
    }
}

fn copy_logs(private: &Root, to: &Path) -> Result<()> {
    let (folder, to) = (RepoPath::from_text("logs")?, Root::open(to)?);
    if private.stat(&folder)?.is_none() {
        return Ok(());
    }
    for (name, _) in private.dir(&folder)?.names()? {
        let path = folder.join(&name)?;
        to.write(&path, &private.read(&path)?, Sync::Later)?;
    }
    Ok(())
}

/// Locks the adding and removing of worktrees: Git fails on one that another command is adding or removing.
fn lock(shared: &Root) -> Result<Lock> {
    fs::lock(shared, &RepoPath::from_text("retrain.lock")?)
}

/// Removes the worktrees of killed retrainings. One with our own process id is a leftover, too: ids are
/// reused.
fn remove_orphans(shared: &Root, origin: &Path) {
    for name in fs::names(shared.path()) {
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| pid == std::process::id() || !fs::is_alive(pid)) {
            remove(shared, origin, &shared.path().join(name));
        }
    }
}

/// Removes a worktree, its folder and its entry in Git. Errors are ignored: the next retraining tries again.
fn remove(shared: &Root, origin: &Path, worktree: &Path) {
    // `--force` twice: a worktree whose creation was killed is still locked.
    let _result = git(origin, &["worktree", "remove", "--force", "--force", &worktree.display().to_string()]);
    if let Some(name) = worktree.file_name()
        && let Ok(path) = RepoPath::root().join(name.as_bytes())
        && fs::is_dir(worktree)
    {
        let _result = shared.remove(&path);
    }
    let _result = git(origin, &["worktree", "prune"]);
}

/// Removes the variables that point a command to the caller's repository.
fn without_git_variables(command: &mut Command) -> &mut Command {
    GIT_VARIABLES.iter().fold(command, |command, name| command.env_remove(name))
}

/// Runs Git in a folder without hooks, which are meant for the user's own commits, and returns its output.
fn git(folder: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    without_git_variables(&mut command)
        .arg("-C")
        .arg(folder)
        .args(["-c", "core.hooksPath=/dev/null"])
        .args(args);
    let output = command.output().context(|| "cannot run `git`".into())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let texts = [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    let text = texts.into_iter().find(|it| !it.is_empty()).unwrap_or_else(|| output.status.to_string());
    Err(Error::new(Kind::Internal, format!("`git {}` failed: {text}", args.join(" "))))
}
