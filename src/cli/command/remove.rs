//! `mlx remove`: stops tracking paths, and deletes their files on request.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::rename::warn_dependent_stages,
        report::count,
        staging::{Staging, files_to_stage},
    },
    error::Result,
    maintenance,
    pointer::{Pointer, SUFFIX},
    workspace::{FilePolicy, RemoveResult, Workspace},
};

/// Stop tracking files or folders
///
/// Removes PATH.mlx and PATH's line in `.gitignore`; the files stay in the workspace, and their content stays
/// in the store. For a path inside a tracked folder, removes it from that folder's pointer.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx remove data/\n  mlx remove --data data/cat/blurred.jpg\n\n\
JSON: {\"removed\": [{\"path\", \"pointer\": text, null if removed, \"files\": number deleted}]}")]
pub struct Args {
    /// Paths to stop tracking
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Also delete the files; refused if any of them is not stored anywhere
    #[arg(long)]
    data: bool,
    /// With `--data`: delete even files that are not stored anywhere
    #[arg(short, long, requires = "data")]
    force: bool,
}

/// Report of `mlx remove`.
pub struct RemoveReport {
    removed: Vec<RemoveResult>,
    staging: Staging,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<RemoveReport> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipelines = ctx.pipelines(&workspace)?;
    let claimed = pipelines.claims();
    let data = match (args.data, args.force) {
        (false, _) => FilePolicy::Keep,
        (true, false) => FilePolicy::Delete,
        (true, true) => FilePolicy::Force,
    };
    let mut removed = Vec::new();
    let result = ctx.paths(&repo, &args.paths)?.iter().try_for_each(|path| {
        removed.push(workspace.remove(path, data, &claimed, ctx.progress)?);
        if args.data {
            warn_dependent_stages(ctx, &pipelines, path);
        }
        Ok(())
    });
    workspace.save(ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    result?;
    let pointers = removed.iter().map(|removed| {
        removed.parent.as_ref().map_or_else(|| removed.path.with_suffix(SUFFIX), Pointer::file)
    });
    let files = files_to_stage(&repo, pointers)?;
    Ok(RemoveReport { removed, staging: Staging::new(ctx, &repo, files)? })
}

impl Report for RemoveReport {
    fn json(&self) -> Value {
        let row = |removed: &RemoveResult| {
            let pointer = removed.parent.as_ref().map(Pointer::file);
            json!({"path": removed.path, "pointer": pointer, "files": removed.files})
        };
        json!({"removed": self.removed.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for RemoveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for removed in &self.removed {
            match &removed.parent {
                Some(parent) => write!(f, "{}: no longer tracked in `{}`", removed.path, parent.path)?,
                None => write!(f, "{}: no longer tracked", removed.path)?,
            }
            if removed.files > 0 {
                write!(f, ", {} deleted", count(removed.files, "file"))?;
            }
            writeln!(f)?;
        }
        self.staging.fmt(f)
    }
}
