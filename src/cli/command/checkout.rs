use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, report::count},
    error::Result,
    path::RepoPath,
    upkeep,
    workspace::{CheckedOut, Workspace, checkout_part},
};

/// Make the workspace match the pointers and `mlx.lock`
///
/// What is stored nowhere is neither overwritten nor deleted, unless `--force`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  git checkout v1 && mlx checkout\n  mlx checkout data/\n\n\
JSON: {\"checked_out\": [{\"path\", \"written\", \"removed\"}]}")]
pub struct Args {
    /// Only these
    paths: Vec<PathBuf>,
    /// Overwrite and delete even what is stored nowhere
    #[arg(short, long)]
    force: bool,
}

pub struct Done(pub Vec<(RepoPath, CheckedOut)>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Done> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    place(ctx, &workspace, &paths, args.force)
}

/// Checks out what is tracked at these paths (all without any).
pub fn place(ctx: &Context<'_>, workspace: &Workspace<'_>, paths: &[RepoPath], force: bool) -> Result<Done> {
    let mut done = Vec::new();
    for pointer in ctx.tracked(workspace)?.select(paths)?.whole()? {
        let parts: Vec<&RepoPath> = paths.iter().filter(|it| it.is_within(&pointer.path)).collect();
        let parts = if parts.is_empty() { vec![&pointer.path] } else { parts };
        for part in parts {
            let placed = checkout_part(workspace, &pointer, part, force, ctx.progress);
            workspace.save()?;
            done.push((part.clone(), placed?));
        }
    }
    upkeep::renew(workspace.repo)?;
    Ok(Done(done))
}

impl Report for Done {
    fn json(&self) -> Value {
        let rows = self
            .0
            .iter()
            .map(|(path, it)| json!({"path": path, "written": it.written, "removed": it.removed}));
        json!({"checked_out": rows.collect::<Vec<_>>()})
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed: Vec<_> = self.0.iter().filter(|it| it.1 != CheckedOut::default()).collect();
        for (path, it) in &changed {
            writeln!(f, "{path}: {} written, {} removed", count(it.written, "file"), it.removed)?;
        }
        if changed.is_empty() { f.write_str("nothing to do: the workspace is as recorded") } else { Ok(()) }
    }
}
