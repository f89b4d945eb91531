//! `mlx move`: renames tracked paths, with their pointers, their lines in `.gitignore` and their files.

use std::{fmt, os::unix::ffi::OsStrExt as _, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        staging::{Staging, files_to_stage, warn_ignored},
    },
    error::Result,
    fs::FileKind,
    maintenance,
    path::RepoPath,
    pipeline::Pipelines,
    pointer::Pointer,
    workspace::{MoveResult, Workspace},
};

/// Rename or move a tracked path
///
/// Moves the pointer, the line in `.gitignore` and the files, by renaming them; no content is read and
/// nothing is overwritten. Paths can also be moved into a tracked folder and out of one. If NEW is a folder,
/// OLD is moved into it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx move data/ photos/2026\n  mlx move data/cat/a.jpg data/dog/\n\n\
JSON: {\"from\", \"to\", \"written\": [pointer files], \"gone\": [pointer files]}")]
pub struct Args {
    /// Tracked path, or a part of one
    old: PathBuf,
    /// New path, or the folder to move into
    new: PathBuf,
}

/// Report of `mlx move`.
pub struct MoveReport {
    moved: MoveResult,
    staging: Staging,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<MoveReport> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipelines = ctx.pipelines(&workspace)?;
    let claimed = pipelines.claims();
    let (from, mut to) = (ctx.path(&repo, &args.old)?, ctx.path(&repo, &args.new)?);
    let slash = args.new.as_os_str().as_bytes().ends_with(b"/");
    let folder = repo.files.stat(&to)?.is_some_and(|stat| stat.kind == FileKind::Folder);
    // If the old files are gone and a folder has the new name, an interrupted move has already put them
    // there.
    if to.is_root() || folder && (slash || repo.files.stat(&from)?.is_some()) {
        to = to.join(from.name())?;
    }
    let moved = workspace.rename(&from, &to, &claimed, ctx.progress);
    workspace.save(ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    let moved = moved?;
    warn_dependent_stages(ctx, &pipelines, &from);
    let files =
        files_to_stage(&repo, moved.written.iter().map(Pointer::file).chain(moved.removed.iter().cloned()))?;
    warn_ignored(ctx, &repo, &files)?;
    Ok(MoveReport { moved, staging: Staging::new(ctx, &repo, files)? })
}

/// Warns of stages that still depend on a path that was moved or deleted.
pub fn warn_dependent_stages(ctx: &Context<'_>, pipelines: &Pipelines<'_, '_>, path: &RepoPath) {
    for pipeline in pipelines.iter() {
        let is_affected = |dependency: &RepoPath| dependency.overlaps(path);
        for (name, _) in
            pipeline.manifest.stages.iter().filter(|it| it.1.dependencies.iter().any(is_affected))
        {
            ctx.progress
                .warn(&format!("the stage `{name}` still depends on `{path}`: update its `mlx.toml`"));
        }
    }
}

impl Report for MoveReport {
    fn json(&self) -> Value {
        let written: Vec<_> = self.moved.written.iter().map(Pointer::file).collect();
        json!({"from": self.moved.from, "to": self.moved.to, "written": written, "gone": self.moved.removed})
    }
}

impl fmt::Display for MoveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "moved {} to {}", self.moved.from, self.moved.to)?;
        self.staging.fmt(f)
    }
}
