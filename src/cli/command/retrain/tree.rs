//! The worktree in which a retraining runs: nobody's files are touched, whoever calls and whatever hooks there are.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cli::{Context, report::count},
    error::{Doing, Error, Kind, Result},
    fs::{self, Lock, Root, Sync},
    lineage::content_at,
    model::registry::{self, Version},
    path::RepoPath,
    repo::Repo,
};

const NAME: &str = "retrain-";
/// What Git tells its hooks, and what would lead commands of ours to the caller's files.
const OF_CALLER: [&str; 9] = [
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

/// A linked worktree of HEAD, gone when dropped.
pub struct Tree<'c> {
    pub ctx: &'c Context<'c>,
    pub repo: Repo,
    origin: PathBuf,
    /// The caller's own place for logs.
    private: PathBuf,
    place: PathBuf,
}

impl<'c> Tree<'c> {
    pub fn make(ctx: &'c Context<'c>, repo: &Repo) -> Result<Self> {
        let origin = repo.root().to_owned();
        let lock = lock(&repo.shared)?;
        sweep(&repo.shared, &origin);
        let place = repo.shared.path().join(format!("{NAME}{}", std::process::id()));
        let text = place.display().to_string();
        git(&origin, &["worktree", "add", "--quiet", "--detach", &text, "HEAD"])?;
        drop(lock);
        let private = repo.private.path().to_owned();
        let repo = Repo::own(&place)?;
        Ok(Self { ctx, repo, origin, private, place })
    }

    pub fn checkout(&self, data: &RepoPath) -> Result<()> {
        self.mlx(&["checkout".as_ref(), "--quiet".as_ref(), OsStr::from_bytes(data.bytes())])
    }

    /// Runs the pipeline and commits what came out, if anything changed; the commit.
    pub fn train(&self, data: &RepoPath, added: u64, environment: &str) -> Result<String> {
        self.mlx(&["add".as_ref(), "--quiet".as_ref(), OsStr::from_bytes(data.bytes())])?;
        self.mlx(&["repro".as_ref(), "--quiet".as_ref()])?;
        git(&self.place, &["add", "--all"])?;
        if !git(&self.place, &["status", "--porcelain"])?.is_empty() {
            let message =
                format!("retrain: {} of {environment} join {data}", count(added, "labeled picture"));
            git(&self.place, &["commit", "--quiet", "--no-verify", "-m", &message])?;
        }
        Ok(git(&self.place, &["rev-parse", "HEAD"])?.trim().to_owned())
    }

    /// The version that has the committed package, and whether it is a new one.
    pub fn register(&self, model: &str, package: &RepoPath) -> Result<(Version, bool)> {
        let (git, store) = (&self.repo.git, &self.repo.store);
        let rev = git.resolve("HEAD")?;
        let content = content_at(git, store, &rev, package)?;
        let known = || -> Result<Option<Version>> {
            let all = registry::versions(git, Some(model))?;
            Ok(all.into_iter().find(|it| Some(it.package.digest) == content.map(|it| it.digest)))
        };
        if let Some(version) = known()? {
            return Ok((version, false));
        }
        let said = self.run(&["model".as_ref(), "register".as_ref(), "--quiet".as_ref(), model.as_ref()])?;
        match (known()?, said) {
            (Some(version), None) => Ok((version, true)),
            // Another retraining was first.
            (Some(version), Some(_)) => Ok((version, false)),
            (None, said) => Err(self.failed("model register", &said.unwrap_or_default())),
        }
    }

    /// Runs this very mlx in the worktree.
    fn mlx(&self, args: &[&OsStr]) -> Result<()> {
        let name = args.first().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        self.run(args)?.map_or(Ok(()), |said| Err(self.failed(&name, &said)))
    }

    /// What a failing mlx said.
    fn run(&self, args: &[&OsStr]) -> Result<Option<String>> {
        let exe = std::env::current_exe().doing(|| "cannot find mlx itself".into())?;
        let mut command = Command::new(exe);
        alone(&mut command).args(args).current_dir(&self.place);
        let output = command.output().doing(|| "cannot run mlx".into())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok((!output.status.success()).then_some(said))
    }

    /// What it said, with logs that outlast the worktree.
    fn failed(&self, name: &str, said: &str) -> Error {
        let (from, to) = (self.repo.private.path(), &self.private);
        let kept = keep_logs(&self.repo.private, to).is_ok();
        let said = if kept {
            said.replace(&*from.to_string_lossy(), &to.to_string_lossy())
        } else {
            said.to_owned()
        };
        self.ctx.progress.warn(&said);
        Error::new(Kind::Stage, format!("`mlx {name}` failed in the worktree of the retraining"))
    }
}

impl Drop for Tree<'_> {
    fn drop(&mut self) {
        // Without it, too: what is left over is worse than what Git may grumble at.
        let _lock = lock(&self.repo.shared);
        remove(&self.repo.shared, &self.origin, &self.place);
    }
}

fn keep_logs(private: &Root, to: &Path) -> Result<()> {
    let (folder, to) = (RepoPath::from_text("logs")?, Root::open(to)?);
    if private.stamp(&folder)?.is_none() {
        return Ok(());
    }
    for (name, _) in private.dir(&folder)?.names()? {
        let path = folder.join(&name)?;
        to.write(&path, &private.read(&path)?, Sync::Later)?;
    }
    Ok(())
}

/// Git stumbles over a worktree that another command is about to make or remove.
fn lock(shared: &Root) -> Result<Lock> {
    fs::lock(shared, &RepoPath::from_text("retrain.lock")?)
}

/// What killed retrainings left goes. One with our own number cannot run: numbers come again.
fn sweep(shared: &Root, origin: &Path) {
    for name in fs::names(shared.path()) {
        let pid = name.to_str().and_then(|it| it.strip_prefix(NAME)?.parse::<u32>().ok());
        if pid.is_some_and(|it| it == std::process::id() || !fs::is_alive(it)) {
            remove(shared, origin, &shared.path().join(name));
        }
    }
}

/// Removes a worktree, its folder and what Git knows of it; what cannot go now goes with the next.
fn remove(shared: &Root, origin: &Path, place: &Path) {
    // Twice, since one that was killed early is locked.
    let _gone = git(origin, &["worktree", "remove", "--force", "--force", &place.display().to_string()]);
    if let Some(name) = place.file_name()
        && let Ok(path) = RepoPath::root().join(name.as_bytes())
        && fs::is_dir(place)
    {
        let _gone = shared.remove(&path);
    }
    let _gone = git(origin, &["worktree", "prune"]);
}

/// A command that does not hear which repository its caller works on.
fn alone(command: &mut Command) -> &mut Command {
    OF_CALLER.iter().fold(command, |command, it| command.env_remove(it))
}

/// Hooks are the user's, and this is none of the user's commits.
fn git(folder: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    alone(&mut command).arg("-C").arg(folder).args(["-c", "core.hooksPath=/dev/null"]).args(args);
    let output = command.output().doing(|| "cannot run `git`".into())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stderr, output.stdout].map(|it| String::from_utf8_lossy(&it).trim().to_owned());
    let said = said.into_iter().find(|it| !it.is_empty()).unwrap_or_else(|| output.status.to_string());
    Err(Error::new(Kind::Internal, format!("`git {}` failed: {said}", args.join(" "))))
}
