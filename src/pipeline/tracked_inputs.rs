//! Inputs of stages as other clones will get them: edits of tracked ones are recorded before a run, and those
//! that neither Git nor mlx tracks are listed.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Kind, Result},
    fs::FileKind,
    path::RepoPath,
    pipeline::{Pipeline, Pipelines, Records, Stage, StageId},
    pointer::{Content, Pointer},
    progress::{Progress, Silent},
    workspace::{Node, Workspace},
};

impl Pipeline<'_, '_> {
    /// Records edits of a stage's tracked inputs in their pointers, as `mlx commit` does: a run on bytes that
    /// are recorded nowhere could not be repeated.
    pub(super) fn record_inputs(&self, name: &str, stage: &Stage, progress: &dyn Progress) -> Result<()> {
        for path in self.files_read(name, stage)? {
            self.reads.record_once(&path, || self.record_input(name, &path, progress))?;
        }
        Ok(())
    }

    fn record_input(&self, name: &str, path: &RepoPath, progress: &dyn Progress) -> Result<()> {
        for pointer in pointers_at(self.workspace, path)? {
            let part = if path.is_within(&pointer.path) { path } else { &pointer.path };
            if let Some(recorded) = self.workspace.record_edits(&pointer, part, progress)? {
                let (file, digest) = (recorded.file(), recorded.content.digest.short());
                progress.note(&format!(
                    "`{part}`, an input of the stage `{name}`, was edited: `{file}` now records it ({digest})"
                ));
            }
        }
        Ok(())
    }

    /// Returns the pointers of what a stage reads.
    pub fn input_pointers(&self, name: &str) -> Result<Vec<Pointer>> {
        let Some(stage) = self.manifest.stages.get(name) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for path in self.files_read(name, stage)? {
            found.extend(pointers_at(self.workspace, &path)?);
        }
        Ok(found)
    }

    /// Returns what a stage reads: files and folders, and its parameter files.
    fn files_read(&self, name: &str, stage: &Stage) -> Result<BTreeSet<RepoPath>> {
        let params = stage.params.iter().map(|(file, _)| file.clone());
        Ok(self.reads.of(name, stage)?.into_iter().chain(params).collect())
    }

    /// Returns the content of a dependency that exists: the present one, or, if parts of it were not pulled,
    /// the one with them. In the second case, and if tracked paths or outputs in it are missing, adds to
    /// `absent`.
    pub(super) fn present_content(
        &self,
        path: &RepoPath,
        node: &Node,
        records: &Records<'_>,
        absent: &mut BTreeSet<RepoPath>,
    ) -> Result<Content> {
        // A lockfile that cannot be read stops its own stages, not this one.
        if let Ok(Some((top, content))) = records.output(path) {
            let output = Pointer { path: top, content };
            match self.workspace.content_with_absent(&output, path, node) {
                Ok(Some(whole)) => {
                    absent.insert(path.clone());
                    return Ok(whole);
                }
                // An output that was edited since: its stage makes it again, or the edit is an input.
                Err(error) if error.kind() != Kind::Conflict => return Err(error),
                _ => {}
            }
        }
        for pointer in pointers_at(self.workspace, path)? {
            if path.is_within(&pointer.path) {
                if let Some(whole) = self.workspace.content_with_absent(&pointer, path, node)? {
                    absent.insert(path.clone());
                    return Ok(whole);
                }
                continue;
            }
            if !self.is_whole(&pointer)? {
                absent.insert(pointer.path.clone());
            }
        }
        for output in records.outputs_in(path).filter(|output| self.reads.outputs.contains(&output.path)) {
            match self.is_whole(&output) {
                Ok(true) => {}
                Ok(false) => drop(absent.insert(output.path)),
                // As above.
                Err(error) if error.kind() == Kind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Ok(node.content())
    }

    /// Returns true if a tracked path is here and no part of it is absent or outdated.
    fn is_whole(&self, tracked: &Pointer) -> Result<bool> {
        let Some(node) = self.workspace.scan(&tracked.path, &Silent)? else { return Ok(false) };
        Ok(self.workspace.content_with_absent(tracked, &tracked.path, &node)?.is_none())
    }

    /// Returns the error for an input that is not here, or not all of it.
    pub(super) fn absent_input(&self, path: &RepoPath, content: Option<&Content>) -> Error {
        match (self.repo().files.stat(path), content) {
            (Ok(None), Some(content)) if self.repo().store.is_complete(content) => {
                Error::not_found(format!("`{path}` is not here"))
                    .hint(format!("bring it back with `mlx checkout {path}`"))
            }
            (Ok(None), Some(content)) => {
                content.missing_error(path).hint(format!("get it with `mlx pull {path}`"))
            }
            _ => Error::not_found(format!(
                "`{path}` is not here as it is recorded: parts are missing or outdated"
            ))
            .hint(format!("get them with `mlx pull {path}`, or record a deletion with `mlx remove PATH`")),
        }
    }
}

/// Returns the pointer that tracks `path`, or those of tracked paths in it.
fn pointers_at(workspace: &Workspace<'_>, path: &RepoPath) -> Result<Vec<Pointer>> {
    if let Some(pointer) = workspace.pointer_of(path)? {
        return Ok(vec![pointer]);
    }
    if workspace.repo.files.stat(path)?.is_none_or(|stat| stat.kind != FileKind::Folder) {
        return Ok(Vec::new());
    }
    let inside = workspace.pointer_paths()?.into_iter().filter(|inner| inner.is_within(path));
    let pointers = inside.map(|inner| workspace.pointer(&inner)).collect::<Result<Vec<_>>>()?;
    Ok(pointers.into_iter().flatten().collect())
}

impl Pipelines<'_, '_> {
    /// Returns the files that these stages read and that neither Git nor mlx tracks: other clones will lack
    /// them. A folder of which Git tracks nothing stands for its files; in others, files that Git ignores are
    /// left out.
    pub fn untracked_inputs<'i>(&self, ids: impl IntoIterator<Item = &'i StageId>) -> Result<Vec<RepoPath>> {
        let git = &self.workspace.repo.git;
        let tracked: BTreeSet<_> = git.tracked(&|_| true)?.into_iter().collect();
        let outputs: BTreeSet<_> = self.claims().into_iter().map(|(output, _)| output).collect();
        let is_covered = |path: &RepoPath| path.ancestors().any(|above| outputs.contains(&above));
        // A submodule is tracked as one path.
        let is_tracked = |path: &RepoPath| path.ancestors().any(|above| tracked.contains(&above));
        let mut found = BTreeSet::new();
        for path in self.read_by(ids) {
            let has_pointer = || self.workspace.pointer_of(&path).is_ok_and(|it| it.is_some());
            if is_covered(&path) || is_tracked(&path) || has_pointer() {
                continue;
            }
            // A path that cannot be read is reported by those who need its content.
            let Ok(Some(node)) = self.workspace.scan(&path, &Silent) else { continue };
            if git.tracked_within(&path)?.is_none()
                && pointers_at(self.workspace, &path).is_ok_and(|it| it.is_empty())
            {
                found.insert(path);
                continue;
            }
            let pointers = self.workspace.pointer_paths()?;
            let is_ours = |file: &RepoPath| file.ancestors().any(|above| pointers.contains(&above));
            let mut files: Vec<_> = node.leaves(&path)?.into_iter().map(|leaf| leaf.0).collect();
            files.retain(|file| !is_tracked(file) && !is_covered(file) && !is_ours(file));
            let ignored: BTreeSet<_> =
                git.ignored_files(&files)?.into_iter().map(|ignored| ignored.file).collect();
            found.extend(files.into_iter().filter(|file| !ignored.contains(file)));
        }
        Ok(found.into_iter().collect())
    }

    /// Returns what these stages read: dependencies, what links in them lead to, and parameter files. A link
    /// that stops its stage leads nowhere here.
    fn read_by<'i>(&self, ids: impl IntoIterator<Item = &'i StageId>) -> BTreeSet<RepoPath> {
        let mut read = BTreeSet::new();
        for (id, stage) in ids.into_iter().filter_map(|id| Some((id, self.declared(id)?))) {
            read.extend(self.reads.of(&id.name, stage).unwrap_or_else(|_| stage.dependencies.clone()));
            read.extend(stage.params.iter().map(|(file, _)| file.clone()));
        }
        read
    }
}
