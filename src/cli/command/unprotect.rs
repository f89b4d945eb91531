//! `mlx unprotect`: replaces files linked to the store with private, writable copies.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count},
    },
    error::{Error, Result},
    path::RepoPath,
    workspace::{UnprotectStats, Workspace},
};

/// Replace linked files with private copies, to edit them
///
/// Files that `cache.link` shares with the store are read-only; they become private, writable copies.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx unprotect data/\n  mlx unprotect models/backbone.onnx\n\n\
JSON: {\"unprotected\": [{\"path\", \"files\", \"bytes\"}]}")]
pub struct Args {
    /// Tracked paths, or parts of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// Report of `mlx unprotect`: each path with what was copied there, and the error that left some out.
pub struct UnprotectReport(Vec<(RepoPath, UnprotectStats)>, Option<Error>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<UnprotectReport> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    let mut done = Vec::new();
    let chosen = workspace.select(ctx.tracked(&workspace)?, &paths)?;
    let (pointers, failure) = ctx.unreadable(chosen);
    for pointer in pointers {
        let whole = paths.iter().any(|it| pointer.path.is_within(it));
        let parts = paths.iter().filter(|it| !whole && it.is_within(&pointer.path));
        for part in parts.chain(whole.then_some(&pointer.path)) {
            done.push((part.clone(), workspace.unprotect(part, ctx.progress)?));
        }
    }
    Ok(UnprotectReport(done, failure))
}

impl Report for UnprotectReport {
    fn json(&self) -> Value {
        let rows =
            self.0.iter().map(|(path, done)| json!({"path": path, "files": done.files, "bytes": done.bytes}));
        json!({"unprotected": rows.collect::<Vec<_>>()})
    }

    fn failure(&self) -> Option<&Error> {
        self.1.as_ref()
    }
}

impl fmt::Display for UnprotectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, done) in self.0.iter().filter(|it| it.1.files > 0) {
            writeln!(f, "{path}: {} copied, {}", count(done.files, "file"), bytes(done.bytes))?;
        }
        if self.1.is_none() && self.0.iter().all(|it| it.1.files == 0) {
            f.write_str("nothing to do: no file there is linked to the store")?;
        }
        Ok(())
    }
}
