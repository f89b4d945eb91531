//! Files of pipelines that Git keeps, and outputs that no stage declares any more.

use std::collections::BTreeSet;

use crate::{
    error::Result,
    path::RepoPath,
    pipeline::{
        LOCKFILE, Lockfile, MANIFEST, Manifest, Pipeline, Pipelines, Selection, pipelines::read_manifest,
        records::read_lockfile,
    },
    pointer::{Pointer, SUFFIX},
    progress::Progress,
};

impl Pipeline<'_, '_> {
    /// Returns the files of this pipeline that belong in Git: itself, its lockfile, and the outputs of its
    /// stages that Git keeps, such as metrics.
    pub fn files_in_git(&self) -> Result<Vec<RepoPath>> {
        let outputs = self.manifest.stages.values().flat_map(|stage| &stage.outputs);
        let kept = outputs.filter(|out| out.role.in_git()).map(|out| out.path.clone());
        let own = [self.folder.join(MANIFEST.as_bytes())?, self.folder.join(LOCKFILE.as_bytes())?];
        Ok(own.into_iter().chain(kept).collect())
    }

    /// Returns the files as [`Pipeline::files_in_git`] does, and the `.gitignore` beside each other output.
    pub fn files_to_stage(&self) -> Result<Vec<RepoPath>> {
        let mut files = self.files_in_git()?;
        let outputs = self.manifest.stages.values().flat_map(|stage| &stage.outputs);
        for out in outputs.filter(|out| !out.role.in_git()) {
            files.push(out.path.parent().unwrap_or_default().join(b".gitignore")?);
        }
        Ok(files)
    }
}

impl Pipelines<'_, '_> {
    /// Returns the files of these stages, and of all they need, that belong in Git: their pipelines with the
    /// lockfiles, the outputs that Git keeps, and the pointers of what they read.
    pub fn files_in_git(&self, wanted: &Selection) -> Result<Vec<RepoPath>> {
        let needed = self.graph().upstream_of(&wanted.stages);
        let folders: BTreeSet<_> = needed.iter().map(|id| &id.folder).chain(&wanted.folders).collect();
        let mut files = BTreeSet::new();
        for folder in folders {
            files.extend([folder.join(MANIFEST.as_bytes())?, folder.join(LOCKFILE.as_bytes())?]);
        }
        for id in &needed {
            let stage = &self.of(id).manifest.stages[&id.name];
            let kept = stage.outputs.iter().filter(|out| out.role.in_git());
            files.extend(kept.map(|out| out.path.clone()));
            let pointers = self.of(id).input_pointers(&id.name).unwrap_or_default();
            files.extend(pointers.iter().map(Pointer::file));
        }
        Ok(files.into_iter().collect())
    }

    /// Returns the `.gitignore` beside each output that the lockfiles in these folders record: a run may
    /// change it for the output of a stage that is gone.
    pub fn ignore_files<'p>(
        &self,
        folders: impl Iterator<Item = &'p RepoPath>,
    ) -> Result<BTreeSet<RepoPath>> {
        let (folders, mut files) = (folders.collect::<BTreeSet<_>>(), BTreeSet::new());
        for pipeline in self.iter().filter(|pipeline| folders.contains(&pipeline.folder)) {
            // A lockfile that cannot be read is named elsewhere, and its pipeline does not run.
            let Ok(lock) = pipeline.read_lockfile() else { continue };
            for output in lock.records().flat_map(|(_, record)| record.outputs.keys()) {
                files.insert(output.parent().unwrap_or_default().join(b".gitignore")?);
            }
        }
        Ok(files)
    }

    /// Returns the data of commits at which HEAD was before, if this worktree does not know what it last had.
    pub fn former_data(&self) -> Result<Vec<Pointer>> {
        let mut found = Vec::new();
        for (file, bytes) in self.workspace.former_records()? {
            // A version that cannot be read says nothing of what is here.
            if let Some(path) = file.without_suffix(SUFFIX) {
                found.extend(Pointer::parse(path, &bytes));
            } else if let Ok(lock) = Lockfile::parse(&file, &bytes) {
                let outputs = lock.records().flat_map(|(_, record)| &record.outputs);
                found
                    .extend(outputs.map(|(path, content)| Pointer { path: path.clone(), content: *content }));
            }
        }
        Ok(found)
    }

    /// Returns the outputs that pipelines declare or record which Git does not track yet, wherever they are.
    /// One that cannot be read claims everything.
    pub fn claims_outside_git(&self) -> Result<Vec<RepoPath>> {
        let known: BTreeSet<_> = self.folders().collect();
        let mut claims = Vec::new();
        for folder in self.workspace.pipeline_folders()?.iter().filter(|folder| !known.contains(folder)) {
            let manifest = read_manifest(self.workspace, folder);
            let (Ok(manifest), Ok(lock)) = (manifest, read_lockfile(self.workspace.repo, folder)) else {
                return Ok(vec![RepoPath::root()]);
            };
            claims.extend(manifest.iter().flat_map(Manifest::outputs).map(|(_, out)| out.path.clone()));
            claims.extend(lock.records().flat_map(|(_, record)| record.contents()).map(|it| it.0.clone()));
        }
        Ok(claims)
    }

    /// Returns the outputs outside Git that lockfiles record and that no stage declares: of stages that were
    /// removed, or under an earlier name. `None` while a lockfile cannot be read: it may record any of them.
    pub(super) fn undeclared_outputs(&self) -> Result<Option<Vec<Pointer>>> {
        if !self.unreadable_lockfiles()?.is_empty() {
            return Ok(None);
        }
        let mut found = Vec::new();
        let claims: BTreeSet<_> = self.claims().into_iter().map(|(claim, _)| claim).collect();
        let is_declared = |path: &RepoPath| path.overlaps_any(&claims);
        for pipeline in self.iter() {
            let lock = pipeline.read_lockfile()?;
            let outputs = lock.records().flat_map(|(_, record)| &record.outputs);
            let undeclared = outputs.filter(|(path, _)| !is_declared(path));
            found.extend(undeclared.map(|(path, content)| Pointer { path: path.clone(), content: *content }));
        }
        Ok(Some(found))
    }

    /// Retires those of these outputs that no lockfile records now: removes them as far as the store has
    /// them, and their lines in `.gitignore`.
    pub(super) fn retire(&self, outputs: Vec<Pointer>, progress: &dyn Progress) -> Result<()> {
        if outputs.is_empty() {
            return Ok(());
        }
        let Some(left) = self.undeclared_outputs()? else { return Ok(()) };
        for output in outputs.iter().filter(|output| !left.contains(output)) {
            if self.is_read(&output.path) {
                progress
                    .note(&format!("`{}` stays, although no stage makes it: a stage reads it", output.path));
            } else if self.workspace.pointer_of(&output.path)?.is_none() {
                self.workspace.retire(output, false, progress)?;
            }
        }
        Ok(())
    }
}
