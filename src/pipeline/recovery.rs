//! Recovery of stage outputs: after killed and failed runs, and before a run replaces content that no run
//! recorded.
//!
//! Content that is not in the store is never deleted. It is moved to mlx's private folder, or it is stored
//! first and becomes a kept version.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    fs::{is_locked, lock},
    path::RepoPath,
    pipeline::{
        Lockfile, Output, Pipeline, Pipelines, Stage, StageId,
        aside::{Stamp, quarantine_folder},
        run_cache,
    },
    pointer::{Content, Pointer},
    progress::Progress,
    workspace::{KEPT_DAYS, checkout},
};

/// Metadata of outputs; those that do not exist have none.
pub(super) type Stamps = BTreeMap<RepoPath, Option<Stamp>>;

/// Run of a stage that was started and has not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// Another mlx runs it now.
    Running,
    /// It ended without a word, such as by Ctrl-C: the next run sets aside what it left.
    Interrupted,
}

impl Unfinished {
    /// Returns the text that explains it below the stage.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Running => "it is running now",
            Self::Interrupted => "its last run was interrupted: `mlx repro` sets aside what it left",
        }
    }

    /// Returns the text that explains what is at an output of the stage.
    pub fn reason_of_output(self, stage: &str) -> String {
        match self {
            Self::Running => format!("its stage `{stage}` is running now"),
            Self::Interrupted => {
                format!("left by an interrupted run of its stage `{stage}`: `mlx repro` sets it aside")
            }
        }
    }
}

/// Folder with the markers and locks of stages.
pub(super) const RUNNING: &str = "running";
/// Number of times the outputs are looked at until they stay the same.
const MAX_ROUNDS: u32 = 10;

impl Pipelines<'_, '_> {
    /// Returns the stages whose run has not finished.
    pub fn unfinished(&self) -> Result<BTreeMap<StageId, Unfinished>> {
        let (mut found, private) = (BTreeMap::new(), &self.workspace.repo.private);
        if private.stat(&RepoPath::from_text(RUNNING)?)?.is_none() {
            return Ok(found);
        }
        for (id, _) in self.stages() {
            let pipeline = self.of(&id);
            if pipeline.has_running_marker(&id.name)? {
                let is_running = is_locked(private, &pipeline.turn_file(&id.name)?).unwrap_or(false);
                let state = if is_running { Unfinished::Running } else { Unfinished::Interrupted };
                found.insert(id, state);
            }
        }
        Ok(found)
    }
}

impl Pipeline<'_, '_> {
    /// Returns the path of a marker or lock of a running stage. It contains a digest of the pipeline's
    /// folder, since pipelines in other folders may have a stage of the same name.
    pub(super) fn running_file(&self, name: &str, suffix: &str) -> Result<RepoPath> {
        let folder = Digest::of(self.folder.bytes()).short();
        RepoPath::from_text(&format!("{RUNNING}/{folder}-{name}{suffix}"))
    }

    /// Returns the path of the file that exists while a run of the stage is unfinished.
    pub(super) fn running_marker(&self, name: &str) -> Result<RepoPath> {
        self.running_file(name, "")
    }

    /// Returns the path of the lock that a command holds while it runs, restores or records the stage.
    pub(super) fn turn_file(&self, name: &str) -> Result<RepoPath> {
        self.running_file(name, ".turn")
    }

    /// Returns true if a run of the stage was started and has not finished.
    pub(super) fn has_running_marker(&self, name: &str) -> Result<bool> {
        Ok(self.repo().private.stat(&self.running_marker(name)?)?.is_some())
    }

    /// Quarantines the partial outputs of a killed run and restores the recorded ones.
    pub(super) fn recover_killed_run(
        &self,
        name: &str,
        stage: &Stage,
        progress: &dyn Progress,
    ) -> Result<()> {
        if !self.has_running_marker(name)? {
            return Ok(());
        }
        let private = &self.repo().private;
        let guard = self.running_file(name, ".lock")?;
        let _lock = lock(private, &guard)
            .context(|| format!("the last run of the stage `{name}` is still being stopped"))?;
        self.quarantine_outputs(name, stage, progress)?;
        self.restore_outputs(name, stage, progress);
        self.reads.forget();
        private.remove(&self.running_marker(name)?)
    }

    /// Moves the content at a stage's outputs to mlx's private folder, reports where to, and returns it.
    pub(super) fn quarantine_outputs(
        &self,
        name: &str,
        stage: &Stage,
        progress: &dyn Progress,
    ) -> Result<Option<PathBuf>> {
        let repo = self.repo();
        let folder = quarantine_folder(name)?;
        let mut moved = Vec::new();
        for out in &stage.outputs {
            if repo.files.stat(&out.path)?.is_some() {
                let renamed = self.workspace.move_included(&out.path, &repo.private, &folder);
                if let Ok(is_any) = renamed {
                    moved.extend(is_any.then(|| format!("`{}`", out.path)));
                } else if let Some(stored) = self.workspace.store(&out.path, progress)? {
                    // The private folder is on another file system: the store keeps the content instead.
                    let partial = Pointer { path: out.path.clone(), content: stored };
                    let kept =
                        self.workspace.keep(partial, &format!("a run of the stage `{name}` failed"))?;
                    progress.note(&format!(
                        "the partial output `{}` of the stage `{name}` is kept for {KEPT_DAYS} days: \
                        `{} --to PATH` brings it back",
                        out.path,
                        kept.command()
                    ));
                    self.workspace.remove_included(&out.path)?;
                }
            }
        }
        let folder = folder.on_disk(repo.private.path());
        if !moved.is_empty() {
            progress.note(&format!(
                "partial outputs of the stage `{name}` were moved to {}: {}",
                folder.display(),
                moved.join(", ")
            ));
        }
        Ok((!moved.is_empty()).then_some(folder))
    }

    /// Restores the recorded outputs after a failed run, as far as the store has them. Failures are only
    /// warnings.
    pub(super) fn restore_outputs(&self, name: &str, stage: &Stage, progress: &dyn Progress) {
        let Ok(lock) = self.read_lockfile() else { return };
        let Some(record) = lock.get(name) else { return };
        for out in &stage.outputs {
            let content = record.outputs.get(&out.path).or_else(|| record.in_git.get(&out.path));
            let Some(content) = content else { continue };
            let pointer = Pointer { path: out.path.clone(), content: *content };
            if let Err(error) = self.restore_output(&pointer, progress) {
                progress.warn(&format!("cannot restore the recorded `{}`: {}", out.path, error.chain_text()));
            }
        }
    }

    /// Checks out one output. A folder that the stage made read-only becomes writable.
    pub(super) fn restore_output(&self, output: &Pointer, progress: &dyn Progress) -> Result<()> {
        match checkout(self.workspace, output, false, progress) {
            Err(error) if error.kind() == Kind::Denied => {
                self.repo().files.make_folders_writable(&output.path)?;
                checkout(self.workspace, output, false, progress).map(drop)
            }
            done => done.map(drop),
        }
    }

    /// Keeps what is at a stage's outputs before it is replaced, unless it stays or a run recorded it.
    /// `replacement` holds what a restore puts there; a run replaces everything. Returns what the outputs
    /// looked like when all of their content was safe.
    pub(super) fn keep_unrecorded(
        &self,
        name: &str,
        stage: &Stage,
        replacement: &run_cache::Outputs,
        progress: &dyn Progress,
    ) -> Result<Stamps> {
        let mut safe = replacement.clone();
        // Storing may take long. Whatever was saved meanwhile is found by the next round, which reads only
        // what changed.
        for _ in 0..MAX_ROUNDS {
            let stamp = |out: &Output| Ok((out.path.clone(), Stamp::of(&self.repo().files, &out.path)?));
            let stamps = stage.outputs.iter().map(stamp).collect::<Result<Stamps>>()?;
            if !self.keep_round(name, stage, &mut safe, progress)? {
                return Ok(stamps);
            }
        }
        let error = Error::new(Kind::Conflict, format!("the outputs of the stage `{name}` keep changing"));
        Err(error.hint("another program writes to them; end it, then run `mlx repro` again"))
    }

    /// Looks at each output once and makes its content safe; returns false if all of it was `safe` already.
    fn keep_round(
        &self,
        name: &str,
        stage: &Stage,
        safe: &mut run_cache::Outputs,
        progress: &dyn Progress,
    ) -> Result<bool> {
        let mut changed = false;
        for out in &stage.outputs {
            let Some(current) = self.workspace.content(&out.path, progress)? else { continue };
            if safe.get(&out.path) == Some(&current) {
                continue;
            }
            changed = true;
            let recorded = out.role.in_git() && self.is_as_in_git(&out.path)?
                || self.is_recorded_output(&out.path, &current)?;
            if recorded && self.repo().store.pin_complete(&current)? {
                safe.insert(out.path.clone(), current);
                continue;
            }
            let Some(stored) = self.workspace.store(&out.path, progress)? else { continue };
            safe.insert(out.path.clone(), stored);
            if !recorded || stored != current {
                let kept = Pointer { path: out.path.clone(), content: stored };
                let kept = self.workspace.keep(kept, &format!("the stage `{name}` replaced it"))?;
                progress.note(&format!(
                    "`{}` held content that no run recorded; it is kept for {KEPT_DAYS} days: `{}` brings it \
                    back",
                    out.path,
                    kept.command()
                ));
            }
        }
        Ok(changed)
    }

    /// Returns true if a run or a checkout put this content there: by the base, the lockfile, the run cache,
    /// or the lockfile of the commit that is checked out, one of its parents or the one before it. A lockfile
    /// that was moved with its pipeline records the paths of before.
    fn is_recorded_output(&self, path: &RepoPath, content: &Content) -> Result<bool> {
        let names = |lock: &Lockfile| {
            lock.records().flat_map(|(_, record)| record.contents()).any(|(_, known)| known == content)
        };
        let store = &self.repo().store;
        if self.workspace.is_base(path, content)
            || names(self.read_lockfile()?.as_ref())
            || run_cache::has_output(store, path, content)?
        {
            return Ok(true);
        }
        let git = &self.repo().git;
        let lockfile = self.lockfile_path()?;
        for rev in git.recent_heads() {
            // A lockfile that cannot be read, such as one with conflict marks, names nothing.
            let Ok(Some(bytes)) = git.read(&rev, &lockfile) else { continue };
            if Lockfile::parse(&lockfile, &bytes).is_ok_and(|lock| names(&lock)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
