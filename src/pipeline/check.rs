//! Checks before a run: missing parameters and inputs, and outputs at paths that a stage must not overwrite.
//!
//! Every problem that can be detected without running a stage is reported before the first one starts.

use crate::{
    document,
    error::{Error, Kind, Result, WithContext},
    path::RepoPath,
    pipeline::{LOCKFILE, MANIFEST, Pipeline, Role, Stage},
};

/// Checks the stages in `order`. Inputs that another stage makes are skipped: they may not exist yet.
pub fn check(pipeline: &Pipeline<'_, '_>, order: &[String]) -> Result<()> {
    let files = &pipeline.repo().files;
    let lock = pipeline.read_lockfile()?;
    for name in order {
        let stage = &pipeline.manifest.stages[name];
        let is_produced = |file: &RepoPath| pipeline.manifest.producer(file).is_some();
        let params = stage.params.iter().filter(|(file, _)| !is_produced(file)).cloned().collect();
        pipeline.params(&Stage { params, ..stage.clone() })?;
        check_metrics(name, stage)?;
        for path in &stage.dependencies {
            let is_output = pipeline.manifest.outputs().any(|(_, out)| path.overlaps(&out.path));
            if !is_output {
                let single = Stage { dependencies: vec![path.clone()], params: Vec::new(), ..stage.clone() };
                pipeline.inputs(name, &single, &lock, &Default::default())?;
            }
        }
        for out in &stage.outputs {
            let context = || format!("the stage `{name}` cannot write its output `{}`", out.path);
            files.stat(&out.path).context(context)?;
            check_output_path(pipeline, name, &out.path)?;
            // An output committed to Git may be a tracked file itself. A folder may not: rewriting it would
            // remove other tracked files.
            let is_own = |file: &RepoPath| out.role.in_git() && *file == out.path;
            let tracked = pipeline.repo().git.tracked_within(&out.path)?.filter(|file| !is_own(file));
            if let Some(file) = tracked {
                let message =
                    format!("Git tracks `{file}` in the output `{}` of the stage `{name}`", out.path);
                return Err(Error::new(Kind::Conflict, message)
                    .hint(format!("stop tracking it with `git rm -r --cached {}`", out.path)));
            }
        }
    }
    Ok(())
}

/// Rejects a file under `metrics` that no command could show.
pub(super) fn check_metrics(name: &str, stage: &Stage) -> Result<()> {
    let mut metrics = stage.outputs.iter().filter(|out| out.role == Role::Metrics);
    match metrics.find(|out| !document::is_document(&out.path)) {
        None => Ok(()),
        Some(out) => {
            let message = format!("`{}` of the stage `{name}` cannot be read as metrics", out.path);
            Err(Error::usage(message).hint(
                "metrics are .json, .toml, .yaml or .yml files; name tables such as a .csv under `plots`",
            ))
        }
    }
}

/// Rejects an output path that would overwrite pointers, the pipeline's own files or outputs of another
/// pipeline.
fn check_output_path(pipeline: &Pipeline<'_, '_>, name: &str, out: &RepoPath) -> Result<()> {
    let conflict = |problem: String| {
        let message = format!("the output `{out}` of the stage `{name}` {problem}");
        Err(Error::new(Kind::Conflict, message).hint("choose a path that nothing else uses"))
    };
    if pipeline.folder.is_within(out) {
        return conflict("contains the pipeline itself".to_owned());
    }
    for own in [MANIFEST, LOCKFILE, ".gitignore"] {
        if pipeline.folder.join(own.as_bytes())?.is_within(out) || out.name() == own.as_bytes() {
            return conflict(format!("is or contains `{own}`"));
        }
    }
    if let Some(pointer) = pipeline.workspace.pointer_of(out)? {
        return conflict(format!("is in `{}`, which has a pointer", pointer.path));
    }
    if let Some(inner) = pipeline.workspace.pointer_paths()?.iter().find(|path| path.is_within(out)) {
        return conflict(format!("contains `{inner}`, which has a pointer"));
    }
    let others = crate::pipeline::open_all(pipeline.workspace, pipeline.repo().root(), pipeline.builtins)?;
    for other in others.iter().filter(|other| other.folder != pipeline.folder) {
        if let Some((theirs, stage)) = other.declared_outputs().iter().find(|(path, _)| path.overlaps(out)) {
            return conflict(format!(
                "overlaps the output `{theirs}` of the stage `{stage}` in `{}`",
                other.folder
            ));
        }
    }
    Ok(())
}
