//! Checks before a run: missing parameters and inputs, and outputs at paths that a stage must not overwrite.
//!
//! A plan makes the same checks, so that it never promises a run that would be refused.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    document,
    error::{Error, Kind, Result, WithContext},
    fs::FileKind,
    git::{Conversion, conversion_error},
    path::RepoPath,
    pipeline::{LOCKFILE, Output, Pipelines, Records, Role, Stage, StageId, inputs::Inputs},
};

/// Checks single stages of the repository.
pub struct Checker<'p, 'w, 'r> {
    pipelines: &'p Pipelines<'w, 'r>,
    records: &'p Records<'p>,
    /// Paths that have a pointer.
    pointers: BTreeSet<RepoPath>,
    /// The lockfiles that Git would change.
    conversions: BTreeMap<RepoPath, Conversion>,
    /// Folders whose `.gitignore` can be read.
    ignorable: RefCell<BTreeSet<RepoPath>>,
}

impl<'p, 'w, 'r> Checker<'p, 'w, 'r> {
    pub fn new(pipelines: &'p Pipelines<'w, 'r>, records: &'p Records<'p>) -> Result<Self> {
        let lockfiles = pipelines.iter().map(|pipeline| pipeline.folder.join(LOCKFILE.as_bytes()));
        let conversions =
            pipelines.workspace.repo.git.conversions(&lockfiles.collect::<Result<Vec<_>>>()?)?;
        let (pointers, ignorable) = (pipelines.workspace.pointer_paths()?, RefCell::default());
        Ok(Self { pipelines, records, pointers, conversions, ignorable })
    }

    /// Checks a stage before anything runs.
    pub fn check(&self, id: &StageId) -> Result<()> {
        self.records.of(&id.folder)?;
        let lockfile = id.folder.join(LOCKFILE.as_bytes())?;
        if let Some(conversion) = self.conversions.get(&lockfile) {
            return Err(conversion_error(&lockfile, conversion));
        }
        self.check_outputs(id)?;
        self.inputs(id).map(drop)
    }

    /// Returns the inputs of a stage, all of which must exist. Those that another stage makes are left out:
    /// they may not exist yet.
    pub fn inputs(&self, id: &StageId) -> Result<Inputs> {
        let pipeline = self.pipelines.of(id);
        let stage = &pipeline.manifest.stages[&id.name];
        let is_made = |file: &RepoPath| self.pipelines.graph().makes(file);
        let params = stage.params.iter().filter(|(file, _)| !is_made(file)).cloned().collect();
        let given = Stage { params, ..stage.clone() };
        pipeline.inputs(&id.name, &given, self.records, &Default::default(), &is_made)
    }

    /// Checks that the graph has no fault at this stage, and that its outputs can be written.
    pub fn check_outputs(&self, id: &StageId) -> Result<()> {
        if let Some(fault) = self.pipelines.graph().faults.get(id) {
            return Err(fault.error());
        }
        let stage = &self.pipelines.of(id).manifest.stages[&id.name];
        stage.outputs.iter().try_for_each(|out| self.check_output(id, out))
    }

    /// Rejects an output that Git tracks, or whose path leads through a link or anything else in the way.
    fn check_output(&self, id: &StageId, out: &Output) -> Result<()> {
        let repo = self.pipelines.workspace.repo;
        let context = || format!("the stage `{id}` cannot write its output `{}`", out.path);
        repo.files.stat(&out.path).context(context)?;
        self.check_folders_above(&out.path).context(context)?;
        check_metrics(id, out)?;
        self.check_output_path(id, &out.path)?;
        let folder = out.path.parent().unwrap_or_default();
        if !out.role.in_git() && !self.ignorable.borrow().contains(&folder) {
            repo.git.check_ignorable(&repo.files, &out.path)?;
            self.ignorable.borrow_mut().insert(folder);
        }
        // An output committed to Git may be a tracked file itself. A folder may not: rewriting it would
        // remove other tracked files.
        let is_own = |file: &RepoPath| out.role.in_git() && *file == out.path;
        let Some(file) = repo.git.tracked_within(&out.path)?.filter(|file| !is_own(file)) else {
            return Ok(());
        };
        let message = format!("Git tracks `{file}` in the output `{}` of the stage `{id}`", out.path);
        Err(Error::new(Kind::Conflict, message)
            .hint(format!("stop tracking it with `git rm -r --cached {}`", out.path)))
    }

    /// Rejects a path below a file.
    fn check_folders_above(&self, path: &RepoPath) -> Result<()> {
        for above in path.ancestors().skip(1).filter(|above| !above.is_root()) {
            let stat = self.pipelines.workspace.repo.files.stat(&above)?;
            if stat.is_some_and(|stat| stat.kind != FileKind::Folder) {
                let error = Error::new(Kind::Conflict, format!("`{above}` is a file"));
                return Err(error.hint("move the file away, or choose another path"));
            }
        }
        Ok(())
    }

    /// Rejects an output path that would overwrite pointers, or the own files of a pipeline.
    fn check_output_path(&self, id: &StageId, out: &RepoPath) -> Result<()> {
        let conflict = |problem: String| {
            let message = format!("the output `{out}` of the stage `{id}` {problem}");
            Err(Error::new(Kind::Conflict, message).hint("choose a path that nothing else uses"))
        };
        if id.folder.is_within(out) {
            return conflict("contains the pipeline itself".to_owned());
        }
        if let Some(folder) = self.pipelines.folders().find(|folder| folder.is_within(out)) {
            return conflict(format!("contains the pipeline in `{folder}`"));
        }
        if let Some(pointer) = self.pipelines.workspace.pointer_of(out)? {
            return conflict(format!("is in `{}`, which has a pointer", pointer.path));
        }
        let mut following = self.pointers.range::<RepoPath, _>(out..);
        let inner = following.find(|path| path.is_within(out) || !path.bytes().starts_with(out.bytes()));
        if let Some(inner) = inner.filter(|path| path.is_within(out)) {
            return conflict(format!("contains `{inner}`, which has a pointer"));
        }
        Ok(())
    }
}

/// Rejects a file under `metrics` that no command could show.
fn check_metrics(id: &StageId, out: &Output) -> Result<()> {
    if out.role != Role::Metrics || document::is_document(&out.path) {
        return Ok(());
    }
    let message = format!("`{}` of the stage `{id}` cannot be read as metrics", out.path);
    Err(Error::usage(message)
        .hint("metrics are .json, .toml, .yaml or .yml files; name tables such as a .csv under `plots`"))
}
