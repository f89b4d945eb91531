use std::{fmt, os::unix::ffi::OsStrExt as _, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::add::{for_git, next, warn_hidden},
    },
    error::Result,
    fs::Form,
    path::RepoPath,
    pipeline::Pipeline,
    pointer::Pointer,
    upkeep,
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

pub struct Done {
    moved: Moved,
    /// For `git add`.
    files: Vec<RepoPath>,
    at_top: bool,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Done> {
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
    workspace.save(ctx.progress)?;
    upkeep::renew(&repo, ctx.progress)?;
    let moved = moved?;
    warn_readers(ctx, &pipelines, &from);
    let files = for_git(&repo, moved.written.iter().map(Pointer::file).chain(moved.gone.iter().cloned()))?;
    warn_hidden(ctx, &repo, &files)?;
    let at_top = RepoPath::parse(".".as_ref(), &ctx.cwd, repo.root())?.is_root();
    Ok(Done { moved, files, at_top })
}

/// Says which stages read what is no longer there for them.
pub fn warn_readers(ctx: &Context<'_>, pipelines: &[Pipeline<'_, '_>], path: &RepoPath) {
    for pipeline in pipelines {
        let reads = |it: &RepoPath| it.overlaps(path);
        for (name, _) in pipeline.manifest.stages.iter().filter(|it| it.1.dependencies.iter().any(reads)) {
            ctx.progress.warn(&format!("the stage `{name}` still reads `{path}`: change its `mlx.toml`"));
        }
    }
}

impl Report for Done {
    fn json(&self) -> Value {
        let written: Vec<_> = self.moved.written.iter().map(Pointer::file).collect();
        json!({"from": self.moved.from, "to": self.moved.to, "written": written, "gone": self.moved.gone})
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} is now {}", self.moved.from, self.moved.to)?;
        next(f, &self.files, self.at_top)
    }
}
