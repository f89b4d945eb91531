use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count},
    },
    error::Result,
    path::RepoPath,
    pointer::Pointer,
    upkeep,
    workspace::{State, Workspace},
};

/// Record edits of tracked files and of stage outputs
///
/// Stores what changed and rewrites pointers and `mlx.lock`. It never makes a Git commit.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx commit\n  mlx commit data/\n\n\
JSON: {\"committed\": [{\"path\", \"digest\", \"files\", \"size\"}]}")]
pub struct Args {
    /// Only what lies here
    path: Option<PathBuf>,
}

pub struct Committed(Vec<Pointer>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Committed> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let path = args.path.as_ref().map(|it| ctx.path(&repo, it)).transpose()?;
    let chosen = workspace.select(ctx.tracked(&workspace)?, path.as_slice())?;
    if let Some((_, error)) = chosen.unreadable.into_iter().next() {
        return Err(error);
    }
    let mut committed = Vec::new();
    for pointer in workspace.pointers()?.pointers {
        if path.as_ref().is_some_and(|it| !it.overlaps(&pointer.path)) {
            continue;
        }
        // What is not here stays as recorded; what cannot be compared is stored as it is.
        if matches!(workspace.compare(&pointer, ctx.progress)?.state, State::Changed | State::Unknown) {
            committed.push(record(ctx, &workspace, &pointer, path.as_ref())?);
        }
    }
    for pipeline in ctx.pipelines(&workspace)? {
        committed.extend(pipeline.commit(path.as_ref(), ctx.progress)?);
    }
    workspace.save()?;
    upkeep::renew(&repo)?;
    Ok(Committed(committed))
}

fn record(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    path: Option<&RepoPath>,
) -> Result<Pointer> {
    let part = path.filter(|it| it.is_within(&pointer.path)).unwrap_or(&pointer.path);
    match workspace.repo.files.stamp(part)? {
        Some(_) => workspace.add(part, &[], ctx.progress),
        None => workspace.record_deletion(pointer, part, ctx.progress),
    }
}

impl Report for Committed {
    fn json(&self) -> Value {
        let row = |it: &Pointer| json!({"path": it.path, "digest": it.content.digest, "files": it.content.files, "size": it.content.size});
        json!({"committed": self.0.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for it in &self.0 {
            let (files, size) = (count(it.content.files, "file"), bytes(it.content.size));
            writeln!(f, "{}: {files}, {size}, {}", it.path, it.content.digest.short())?;
        }
        f.write_str(if self.0.is_empty() { "nothing to record" } else { "" })
    }
}
