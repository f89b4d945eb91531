use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count},
    },
    error::Result,
    path::RepoPath,
    workspace::{Unprotected, Workspace},
};

/// Make linked files private, to edit them
///
/// A file that `cache.link` shares with the store is read-only; it becomes a copy of its own.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx unprotect data/\n  mlx unprotect models/backbone.onnx\n\n\
JSON: {\"unprotected\": [{\"path\", \"files\", \"bytes\"}]}")]
pub struct Args {
    /// What to make private
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

pub struct Done(Vec<(RepoPath, Unprotected)>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Done> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    let mut done = Vec::new();
    for pointer in workspace.select(ctx.tracked(&workspace)?, &paths)?.whole()? {
        let whole = paths.iter().any(|it| pointer.path.is_within(it));
        let parts = paths.iter().filter(|it| !whole && it.is_within(&pointer.path));
        for part in parts.chain(whole.then_some(&pointer.path)) {
            done.push((part.clone(), workspace.unprotect(part)?));
        }
    }
    Ok(Done(done))
}

impl Report for Done {
    fn json(&self) -> Value {
        let rows =
            self.0.iter().map(|(path, it)| json!({"path": path, "files": it.files, "bytes": it.bytes}));
        json!({"unprotected": rows.collect::<Vec<_>>()})
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, it) in self.0.iter().filter(|it| it.1.files > 0) {
            writeln!(f, "{path}: {} copied, {}", count(it.files, "file"), bytes(it.bytes))?;
        }
        if self.0.iter().all(|it| it.1.files == 0) {
            f.write_str("nothing to do: no file there is shared")?;
        }
        Ok(())
    }
}
