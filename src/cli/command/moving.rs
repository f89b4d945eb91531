use std::{fmt, os::unix::ffi::OsStrExt as _, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report},
    error::Result,
    fs::Form,
    pipeline::Pipeline,
    workspace::{Moved, Workspace},
};

/// Give something tracked another name or place
///
/// Moves the pointer, the line in `.gitignore` and the files, by renaming them; nothing is read and nothing
/// overwritten. Into a tracked folder and out of one, too. If NEW is a folder, OLD goes into it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx move data/ photos/2026\n  mlx move data/cat/a.jpg data/dog/\n\n\
JSON: {\"from\", \"to\", \"written\": [pointer files], \"gone\": [pointer files]}")]
pub struct Args {
    /// What is tracked, or a part of it
    old: PathBuf,
    /// Where it goes
    new: PathBuf,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Moved> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipelines = ctx.pipelines(&workspace)?;
    let claimed: Vec<_> = pipelines.iter().flat_map(Pipeline::claimed).collect();
    let (from, mut to) = (ctx.path(&repo, &args.old)?, ctx.path(&repo, &args.new)?);
    let slash = args.new.as_os_str().as_bytes().ends_with(b"/");
    let folder = repo.files.stamp(&to)?.is_some_and(|it| it.form == Form::Folder);
    // Without its files here, a folder of the new name is what a move that was cut off put there.
    if to.is_root() || folder && (slash || repo.files.stamp(&from)?.is_some()) {
        to = to.join(from.name())?;
    }
    let moved = workspace.rename(&from, &to, &claimed, ctx.progress);
    workspace.save()?;
    let moved = moved?;
    for pipeline in &pipelines {
        let reads = |it: &crate::path::RepoPath| it.overlaps(&from);
        for (name, _) in pipeline.manifest.stages.iter().filter(|it| it.1.dependencies.iter().any(reads)) {
            ctx.progress.warn(&format!("the stage `{name}` still reads `{from}`: change its `mlx.toml`"));
        }
    }
    Ok(moved)
}

impl Report for Moved {
    fn json(&self) -> Value {
        let written: Vec<_> = self.written.iter().map(crate::pointer::Pointer::file).collect();
        json!({"from": self.from, "to": self.to, "written": written, "gone": self.gone})
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is now {}", self.from, self.to)
    }
}
