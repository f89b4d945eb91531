//! `mlx commit`: records edits of tracked files and stage outputs in pointers and lockfiles.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::transfer::with_trees,
        report::{bytes, count},
        staging::{Staging, files_to_stage},
    },
    error::{Error, Result},
    maintenance,
    path::RepoPath,
    pipeline::{self, NOT_RUN, Outcome, Pipelines, StageId, StageRun},
    pointer::Pointer,
    workspace::{AddRules, State, Workspace},
};

/// Record edits of tracked files and of stage outputs
///
/// Stores changed content and rewrites pointers and `mlx.lock`. It never makes a Git commit.
///
/// An argument that is the name of a stage means the stage (`./NAME` means the path): the content of its
/// outputs is recorded as the result of its present inputs, without a run. Such a result is marked, and the
/// run cache does not take it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx commit\n  \
mlx commit data/cat/ models/backbone.onnx\n  mlx commit train\n\n\
JSON: {\"committed\": [{\"path\", \"digest\", \"files\", \"size\"}],\n\
  \"stages\": [{\"name\", \"outcome\": \"recorded\" | \"restored\" | \"unchanged\"}]}")]
pub struct Args {
    /// Paths or stages to record (default: all edited paths)
    #[arg(value_name = "PATH|STAGE")]
    paths: Vec<PathBuf>,
}

/// Report of `mlx commit`: the pointers as recorded now, and the stages whose results were accepted.
pub struct Committed {
    pointers: Vec<Pointer>,
    stages: Vec<StageRun>,
    staging: Staging,
    /// The error for a file that records more and cannot be read.
    failure: Option<Error>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Committed> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipelines = ctx.pipelines(&workspace)?;
    let (ids, typed) = split_stages(&pipelines, &args.paths)?;
    let paths = ctx.paths(&repo, &typed)?;
    let stages = pipeline::accept(&pipelines, &ids, ctx.progress);
    if !ids.is_empty() && paths.is_empty() || stages.is_err() {
        workspace.save(ctx.progress)?;
        maintenance::publish_needs(&repo, ctx.progress)?;
        return Committed::new(ctx, &pipelines, Vec::new(), stages?);
    }
    let chosen = workspace.select(ctx.tracked(&workspace)?, &paths)?;
    let unreadable: BTreeSet<_> =
        chosen.unreadable.iter().chain(&chosen.others).map(|file| file.file.clone()).collect();
    let (_, failure) = ctx.unreadable(chosen);
    let mut committed = workspace.correct_pointers(&paths, ctx.progress)?;
    for pointer in workspace.pointers()?.pointers {
        let whole = paths.is_empty() || paths.iter().any(|it| pointer.path.is_within(it));
        let parts: Vec<_> = paths.iter().filter(|it| !whole && it.is_within(&pointer.path)).collect();
        let parts = if whole { vec![&pointer.path] } else { parts };
        if parts.is_empty() {
            continue;
        }
        // An absent path keeps its record; one that cannot be compared is stored as it is.
        let state = workspace.compare(&pointer, ctx.progress)?.restrict_to(&paths).state;
        // For one that is only behind, this names what is not here.
        if matches!(state, State::Changed | State::Behind | State::Unknown) {
            let act = || record(ctx, &workspace, &pointer, &parts);
            let recorded = with_trees(ctx, &workspace, act)?;
            if recorded != pointer {
                committed.retain(|corrected| corrected.path != recorded.path);
                committed.push(recorded);
            }
        }
    }
    for pipeline in pipelines.iter() {
        if unreadable.contains(&pipeline.lockfile_path()?) {
            continue;
        }
        if paths.is_empty() {
            committed.extend(pipeline.commit(None, ctx.progress)?);
        }
        for path in &paths {
            committed.extend(pipeline.commit(Some(path), ctx.progress)?);
        }
    }
    workspace.save(ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    Ok(Committed { failure, ..Committed::new(ctx, &pipelines, committed, stages?)? })
}

impl Committed {
    fn new(
        ctx: &Context<'_>,
        pipelines: &Pipelines<'_, '_>,
        pointers: Vec<Pointer>,
        stages: Vec<StageRun>,
    ) -> Result<Self> {
        let repo = pipelines.workspace.repo;
        let mut files = files_to_stage(repo, pointers.iter().map(Pointer::file))?;
        for pipeline in pipelines.iter() {
            files.extend(pipeline.files_to_stage()?);
        }
        Ok(Self { pointers, stages, staging: Staging::changed(ctx, repo, files)?, failure: None })
    }
}

/// Separates stages from paths. An argument that is the name of a stage means the stage; `./name` means the
/// path.
fn split_stages(pipelines: &Pipelines<'_, '_>, typed: &[PathBuf]) -> Result<(Vec<StageId>, Vec<PathBuf>)> {
    let (mut stages, mut paths) = (Vec::new(), Vec::new());
    for argument in typed {
        match argument.to_str().map_or(Ok(None), |text| pipelines.find_stage(text))? {
            Some(id) => stages.push(id),
            None => paths.push(argument.clone()),
        }
    }
    Ok((stages, paths))
}

/// Records the present state of parts of a tracked path: stores those that exist, removes from its record
/// those that were deleted here.
fn record(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    parts: &[&RepoPath],
) -> Result<Pointer> {
    let mut recorded = pointer.clone();
    let mut existing = Vec::new();
    for part in parts {
        match workspace.repo.files.stat(part)? {
            Some(_) => existing.push((*part).clone()),
            None => recorded = workspace.record_absence(&recorded, part, ctx.progress)?,
        }
    }
    let rules = AddRules { only_edits: true, ..AddRules::default() };
    Ok(workspace.add_all(&existing, rules, ctx.progress)?.pop().unwrap_or(recorded))
}

impl Report for Committed {
    fn json(&self) -> Value {
        let row = |pointer: &Pointer| {
            let content = &pointer.content;
            json!({"path": pointer.path, "digest": content.digest, "files": content.files,
                "size": content.size})
        };
        let stage = |run: &StageRun| json!({"name": run.id.to_string(), "outcome": run.outcome.name()});
        json!({"committed": self.pointers.iter().map(row).collect::<Vec<_>>(),
            "stages": self.stages.iter().map(stage).collect::<Vec<_>>()})
    }

    fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }
}

impl fmt::Display for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in &self.stages {
            let outcome = match run.outcome {
                Outcome::Recorded => NOT_RUN,
                Outcome::Restored => "recorded as the run that made the same",
                _ => "recorded already",
            };
            writeln!(f, "stage {}: {outcome}", run.id)?;
        }
        for pointer in &self.pointers {
            let (files, size) = (count(pointer.content.files, "file"), bytes(pointer.content.size));
            writeln!(f, "{}: {files}, {size}, {}", pointer.path, pointer.content.digest.short())?;
        }
        if self.pointers.is_empty() && self.stages.is_empty() {
            return if self.failure.is_none() { f.write_str("nothing to record") } else { Ok(()) };
        }
        self.staging.fmt(f)
    }
}
