//! What runs leave beside their results: marks of those under way, halves of those that were killed, edits
//! of people. Bytes stored nowhere are never removed.

use crate::{
    digest::Digest,
    error::{Doing, Result},
    fs::lock,
    path::RepoPath,
    pipeline::{Pipeline, Stage},
    pointer::Pointer,
    progress::Progress,
    time::Timestamp,
    workspace::checkout,
};

impl Pipeline<'_, '_> {
    /// A file that says something of a running stage; pipelines in other folders have stages of that name, too.
    pub(super) fn running(&self, name: &str, what: &str) -> Result<RepoPath> {
        let folder = Digest::of(self.folder.bytes()).short();
        RepoPath::from_text(&format!("running/{folder}-{name}{what}"))
    }

    pub(super) fn mark(&self, name: &str) -> Result<RepoPath> {
        self.running(name, "")
    }

    /// Whether a run of the stage was begun and not ended.
    pub(super) fn is_marked(&self, name: &str) -> Result<bool> {
        Ok(self.repo().private.stamp(&self.mark(name)?)?.is_some())
    }

    /// What a killed run left half written is moved aside, never taken for a result.
    pub(super) fn clear_leavings(&self, name: &str, stage: &Stage, progress: &dyn Progress) -> Result<()> {
        let private = &self.repo().private;
        let guard = self.running(name, ".lock")?;
        let _alone = lock(private, &guard).doing(|| format!("the stage `{name}` is still ending"))?;
        if !self.is_marked(name)? {
            return Ok(());
        }
        self.set_aside(name, stage, progress)?;
        self.bring_back(name, stage, progress);
        private.remove(&self.mark(name)?)
    }

    /// Moves what lies at a stage's outputs to mlx's own folder and says where.
    pub(super) fn set_aside(&self, name: &str, stage: &Stage, progress: &dyn Progress) -> Result<()> {
        let repo = self.repo();
        let folder = RepoPath::from_text(&format!(
            "failed/{name}-{}-{}",
            Timestamp::now().compact(),
            std::process::id()
        ))?;
        let mut moved = Vec::new();
        for out in &stage.outputs {
            if repo.files.stamp(&out.path)?.is_some() {
                let moved_there =
                    repo.files.rename_to(&out.path, &repo.private, &folder.join_path(&out.path)?);
                if moved_there.is_ok() {
                    moved.push(format!("`{}`", out.path));
                } else if let Some(stored) = self.workspace.store(&out.path, progress)? {
                    // Another file system: the store keeps it instead.
                    progress
                        .note(&format!("what `{name}` left of `{}` is kept as {}", out.path, stored.digest));
                    repo.files.remove(&out.path)?;
                }
            }
        }
        if !moved.is_empty() {
            let place = folder.on_disk(repo.private.path());
            progress.note(&format!(
                "what `{name}` left of {} is now in {}",
                moved.join(", "),
                place.display()
            ));
        }
        Ok(())
    }

    /// Puts the recorded outputs back after a failure, as far as the store has them.
    pub(super) fn bring_back(&self, name: &str, stage: &Stage, progress: &dyn Progress) {
        let Ok(lock) = self.lock() else { return };
        let Some(record) = lock.get(name) else { return };
        for out in &stage.outputs {
            let content = record.outputs.get(&out.path).or_else(|| record.in_git.get(&out.path));
            let pointer = content.map(|it| Pointer { path: out.path.clone(), content: *it });
            if let Some(error) = pointer.and_then(|it| checkout(self.workspace, &it, false, progress).err()) {
                progress.warn(&format!("the former `{}` is not back: {}", out.path, error.full_text()));
            }
        }
    }

    /// Stores what a person put where an output belongs, so that it can go.
    pub(super) fn save_edits(&self, name: &str, stage: &Stage, progress: &dyn Progress) -> Result<()> {
        let lock = self.lock()?;
        for out in &stage.outputs {
            let recorded =
                lock.get(name).and_then(|it| it.outputs.get(&out.path).or_else(|| it.in_git.get(&out.path)));
            let Some(now) = self.workspace.content(&out.path, progress)? else { continue };
            if Some(&now) == recorded && self.is_stored(&now) {
                continue;
            }
            let stored = self.workspace.store(&out.path, progress)?.expect("it was there a moment ago");
            if Some(&now) != recorded {
                progress.note(&format!(
                    "`{}` was changed by hand; that version is kept as {}",
                    out.path, stored.digest
                ));
            }
        }
        Ok(())
    }
}
