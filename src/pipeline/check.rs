//! What can be seen to go wrong is refused before anything runs.

use crate::{
    error::{Doing, Error, Kind, Result},
    path::RepoPath,
    pipeline::{LOCKFILE, MANIFEST, Pipeline, Stage},
};

/// Refuses what can be seen to go wrong before anything runs.
pub fn check(pipeline: &Pipeline<'_, '_>, order: &[String]) -> Result<()> {
    let files = &pipeline.repo().files;
    let lock = pipeline.lock()?;
    for name in order {
        let stage = &pipeline.manifest.stages[name];
        let given =
            stage.params.iter().filter(|it| pipeline.manifest.maker(&it.0).is_none()).cloned().collect();
        pipeline.params(&Stage { params: given, ..stage.clone() })?;
        for path in &stage.dependencies {
            let made = pipeline.manifest.outputs().any(|it| path.overlaps(&it.1.path));
            if !made {
                let one = Stage { dependencies: vec![path.clone()], params: Vec::new(), ..stage.clone() };
                pipeline.inputs(name, &one, &lock, &Default::default())?;
            }
        }
        for out in &stage.outputs {
            let doing = || format!("the stage `{name}` cannot make `{}`", out.path);
            files.stamp(&out.path).doing(doing)?;
            check_place(pipeline, name, &out.path)?;
            // A file that Git keeps may be one that Git keeps; a folder would take others' files with it.
            let own = |it: &RepoPath| out.role.in_git() && *it == out.path;
            let tracked = pipeline.repo().git.tracked_within(&out.path)?.filter(|it| !own(it));
            if let Some(file) = tracked {
                let message = format!(
                    "Git tracks `{file}`, and it belongs to the output `{}` of the stage `{name}`",
                    out.path
                );
                return Err(
                    Error::new(Kind::Conflict, message).hint(format!("`git rm -r --cached {}`", out.path))
                );
            }
        }
    }
    Ok(())
}

/// Refuses an output that would take with it what others keep there: pointers, the pipeline's own files,
/// outputs of another pipeline.
fn check_place(pipeline: &Pipeline<'_, '_>, name: &str, out: &RepoPath) -> Result<()> {
    let conflict = |what: String| {
        let message = format!("the output `{out}` of the stage `{name}` {what}");
        Err(Error::new(Kind::Conflict, message)
            .hint("what a stage makes lies apart from what is kept otherwise"))
    };
    if pipeline.folder.is_within(out) {
        return conflict("holds the pipeline itself".to_owned());
    }
    for own in [MANIFEST, LOCKFILE, ".gitignore"] {
        if pipeline.folder.join(own.as_bytes())?.is_within(out) || out.name() == own.as_bytes() {
            return conflict(format!("is or holds `{own}`"));
        }
    }
    if let Some(pointer) = pipeline.workspace.pointer_of(out)? {
        return conflict(format!("lies in `{}`", pointer.path));
    }
    if let Some(inner) = pipeline.workspace.pointed()?.iter().find(|it| it.is_within(out)) {
        return conflict(format!("holds `{inner}`, which has a pointer"));
    }
    let others = crate::pipeline::all(pipeline.workspace, pipeline.repo().root(), pipeline.builtins)?;
    for other in others.iter().filter(|it| it.folder != pipeline.folder) {
        if let Some((theirs, stage)) = other.claimed().iter().find(|it| it.0.overlaps(out)) {
            return conflict(format!(
                "meets the output `{theirs}` of the stage `{stage}` in `{}`",
                other.folder
            ));
        }
    }
    Ok(())
}
