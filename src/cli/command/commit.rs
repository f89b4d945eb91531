//! `mlx commit`: records edits of tracked files and stage outputs in pointers and lockfiles.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::transfer::with_trees,
        report::{bytes, count},
    },
    error::Result,
    maintenance,
    path::RepoPath,
    pointer::Pointer,
    workspace::{State, Workspace},
};

/// Record edits of tracked files and of stage outputs
///
/// Stores changed content and rewrites pointers and `mlx.lock`. It never makes a Git commit.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx commit\n  mlx commit data/cat/ models/backbone.onnx\n\n\
JSON: {\"committed\": [{\"path\", \"digest\", \"files\", \"size\"}]}")]
pub struct Args {
    /// Paths to record (default: all)
    paths: Vec<PathBuf>,
}

/// Report of `mlx commit`: the pointers as recorded now.
pub struct Committed(Vec<Pointer>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Committed> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    let chosen = workspace.select(ctx.tracked(&workspace)?, &paths)?;
    if let Some((_, error)) = chosen.unreadable.into_iter().next() {
        return Err(error);
    }
    let mut committed = Vec::new();
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
            committed.extend(Some(with_trees(ctx, &workspace, act)?).filter(|recorded| *recorded != pointer));
        }
    }
    for pipeline in ctx.pipelines(&workspace)?.iter() {
        if paths.is_empty() {
            committed.extend(pipeline.commit(None, ctx.progress)?);
        }
        for path in &paths {
            committed.extend(pipeline.commit(Some(path), ctx.progress)?);
        }
    }
    workspace.save(ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    Ok(Committed(committed))
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
    Ok(workspace.add_all(&existing, &[], ctx.progress)?.pop().unwrap_or(recorded))
}

impl Report for Committed {
    fn json(&self) -> Value {
        let row = |pointer: &Pointer| {
            let content = &pointer.content;
            json!({"path": pointer.path, "digest": content.digest, "files": content.files,
                "size": content.size})
        };
        json!({"committed": self.0.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pointer in &self.0 {
            let (files, size) = (count(pointer.content.files, "file"), bytes(pointer.content.size));
            writeln!(f, "{}: {files}, {size}, {}", pointer.path, pointer.content.digest.short())?;
        }
        f.write_str(if self.0.is_empty() { "nothing to record" } else { "" })
    }
}
