//! Recovery of stage outputs: after killed and failed runs, and before a run replaces edits made by hand.
//!
//! Content that is not in the store is never deleted. It is moved to mlx's private folder or stored first.

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    fs::lock,
    path::RepoPath,
    pipeline::{Pipeline, Stage},
    pointer::Pointer,
    progress::Progress,
    time::Timestamp,
    workspace::checkout,
};

impl Pipeline<'_, '_> {
    /// Returns the path of a marker or lock of a running stage. It contains a digest of the pipeline's
    /// folder, since pipelines in other folders may have a stage of the same name.
    pub(super) fn running_file(&self, name: &str, suffix: &str) -> Result<RepoPath> {
        let folder = Digest::of(self.folder.bytes()).short();
        RepoPath::from_text(&format!("running/{folder}-{name}{suffix}"))
    }

    /// Returns the path of the file that exists while a run of the stage is unfinished.
    pub(super) fn running_marker(&self, name: &str) -> Result<RepoPath> {
        self.running_file(name, "")
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
        let private = &self.repo().private;
        let guard = self.running_file(name, ".lock")?;
        let _lock = lock(private, &guard)
            .context(|| format!("the last run of the stage `{name}` is still being stopped"))?;
        if !self.has_running_marker(name)? {
            return Ok(());
        }
        self.quarantine_outputs(name, stage, progress)?;
        self.restore_outputs(name, stage, progress);
        private.remove(&self.running_marker(name)?)
    }

    /// Moves the content at a stage's outputs to mlx's private folder and reports where to.
    pub(super) fn quarantine_outputs(
        &self,
        name: &str,
        stage: &Stage,
        progress: &dyn Progress,
    ) -> Result<()> {
        let repo = self.repo();
        let folder = RepoPath::from_text(&format!(
            "failed/{name}-{}-{}",
            Timestamp::now().compact(),
            std::process::id()
        ))?;
        let mut moved = Vec::new();
        for out in &stage.outputs {
            if repo.files.stat(&out.path)?.is_some() {
                let renamed = repo.files.rename_to(&out.path, &repo.private, &folder.join_path(&out.path)?);
                if renamed.is_ok() {
                    moved.push(format!("`{}`", out.path));
                } else if let Some(stored) = self.workspace.store(&out.path, progress)? {
                    // The private folder is on another file system: the store keeps the content instead.
                    let (path, digest) = (&out.path, stored.digest);
                    progress.note(&format!(
                        "the partial output `{path}` of the stage `{name}` is stored as {digest}"
                    ));
                    repo.files.remove(&out.path)?;
                }
            }
        }
        if !moved.is_empty() {
            let folder = folder.on_disk(repo.private.path());
            progress.note(&format!(
                "partial outputs of the stage `{name}` were moved to {}: {}",
                folder.display(),
                moved.join(", ")
            ));
        }
        Ok(())
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
            if let Err(error) = checkout(self.workspace, &pointer, false, progress) {
                progress.warn(&format!("cannot restore the recorded `{}`: {}", out.path, error.chain_text()));
            }
        }
    }

    /// Stores outputs that were edited by hand, so that they can be replaced.
    pub(super) fn save_edits(&self, name: &str, stage: &Stage, progress: &dyn Progress) -> Result<()> {
        let lock = self.read_lockfile()?;
        for out in &stage.outputs {
            let record = lock.get(name);
            let recorded = record
                .and_then(|record| record.outputs.get(&out.path).or_else(|| record.in_git.get(&out.path)));
            let Some(current) = self.workspace.content(&out.path, progress)? else { continue };
            if Some(&current) == recorded && self.is_stored(&current) {
                continue;
            }
            let stored = self.workspace.store(&out.path, progress)?.expect("it was digested just before");
            if Some(&current) != recorded {
                progress.note(&format!(
                    "`{}` was edited by hand; that version is stored as {}",
                    out.path, stored.digest
                ));
            }
        }
        Ok(())
    }
}
