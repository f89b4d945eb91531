//! Outputs that somebody changed by hand, taken into the record.

use crate::{
    error::{Error, Kind, Result},
    path::RepoPath,
    pipeline::Pipeline,
    pointer::{Content, Pointer},
    progress::{Progress, Silent},
    workspace::State,
};

impl Pipeline<'_, '_> {
    /// Stores outputs at or around `path` (all, without one) as they are now and records them; the record
    /// says from then on that it was edited. What is not here stays as recorded.
    pub fn commit(&self, path: Option<&RepoPath>, progress: &dyn Progress) -> Result<Vec<Pointer>> {
        let mut committed = Vec::new();
        let lock = self.lock()?;
        for (name, stage) in &self.manifest.stages {
            let Some(old) = lock.get(name) else { continue };
            if self.is_marked(name)? {
                let error = Error::new(Kind::Conflict, format!("a run of the stage `{name}` did not end"));
                return Err(error.hint("what lies at its outputs may be half written: run `mlx repro` first"));
            }
            let mut record = old.clone();
            for out in stage.outputs.iter().filter(|it| path.is_none_or(|path| path.overlaps(&it.path))) {
                let slot = record.outputs.get_mut(&out.path).or_else(|| record.in_git.get_mut(&out.path));
                let Some(slot) = slot else { continue };
                if let Some(content) = self.changed(&out.path, *slot, progress)? {
                    *slot = content;
                    committed.push(Pointer { path: out.path.clone(), content });
                }
            }
            if record != *old {
                record.edited = true;
                self.write_record(name, record)?;
            }
        }
        Ok(committed)
    }

    fn changed(
        &self,
        path: &RepoPath,
        recorded: Content,
        progress: &dyn Progress,
    ) -> Result<Option<Content>> {
        let pointer = Pointer { path: path.clone(), content: recorded };
        match self.workspace.compare(&pointer, &Silent)?.state {
            State::Same | State::Absent => Ok(None),
            State::Changed | State::Unknown => self.workspace.store_output(path, progress),
        }
    }
}
