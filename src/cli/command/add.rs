//! `mlx add`: stores files or folders and writes their pointers.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::transfer::with_trees,
        report::{bytes, count},
        staging::{Staging, files_to_stage, warn_ignored},
    },
    error::Result,
    maintenance,
    path::RepoPath,
    pointer::Pointer,
    workspace::{AddRules, Glob, Workspace},
};

/// Track files or folders
///
/// Stores the content, writes the pointer PATH.mlx, which you commit to Git, and adds PATH to `.gitignore`.
/// Adding a path inside a tracked folder updates that folder's pointer. Files that match a `.mlxignore`,
/// which follows gitignore's rules, are skipped.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx add data/\n  mlx add --git-add data/ models/backbone.onnx\n  mlx add \
    data/cat/new.jpg\n  mlx add --glob 'data/**/*.jpg'\n\n\
JSON: {\"added\": [{\"path\", \"pointer\", \"digest\", \"kind\", \"files\", \"size\"}]}"
)]
pub struct Args {
    /// Files or folders to track
    #[arg(required_unless_present = "glob")]
    paths: Vec<PathBuf>,
    /// Track the files below this folder that match: `*` stays within a name, `**` crosses folders; stage
    /// outputs, files that Git tracks and those that steer Git or mlx are skipped
    #[arg(long, value_name = "PATTERN")]
    glob: Vec<String>,
    /// Also `git add` the pointers and `.gitignore` files
    #[arg(long)]
    git_add: bool,
}

/// Report of `mlx add`.
pub struct Added {
    pointers: Vec<Pointer>,
    /// Files to stage; none if that was done.
    staging: Option<Staging>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Added> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipelines = ctx.pipelines(&workspace)?;
    pipelines.unreadable_lockfiles()?.iter().for_each(|file| ctx.warn_once(&file.error));
    let claimed = pipelines.claims();
    let rules = AddRules { claimed: &claimed, git_add: args.git_add, only_edits: false };
    let paths = ctx.paths(&repo, &args.paths)?;
    let added = with_trees(ctx, &workspace, || workspace.add_all(&paths, rules, ctx.progress));
    // The stat cache is saved even if a later path failed.
    workspace.save(ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    let mut pointers = added?;
    let cwd = RepoPath::parse(".".as_ref(), &ctx.cwd, repo.root())?;
    for pattern in &args.glob {
        let glob = Glob::new(pattern, &cwd)?;
        let added = with_trees(ctx, &workspace, || workspace.add_matching(&glob, rules, ctx.progress));
        workspace.save(ctx.progress)?;
        pointers.extend(added?);
    }
    // A pointer that several patterns changed is reported once, in its final state.
    let mut reported = BTreeSet::new();
    pointers.reverse();
    pointers.retain(|pointer| reported.insert(pointer.path.clone()));
    pointers.reverse();
    let files = files_to_stage(&repo, pointers.iter().map(Pointer::file))?;
    let staging = if args.git_add {
        repo.git.add(&files)?;
        None
    } else {
        warn_ignored(ctx, &repo, &files)?;
        Some(Staging::new(ctx, &repo, files)?)
    };
    Ok(Added { pointers, staging })
}

impl Report for Added {
    fn json(&self) -> Value {
        let rows = self.pointers.iter().map(|pointer| {
            let content = pointer.content;
            json!({"path": pointer.path, "pointer": pointer.file(), "digest": content.digest,
                "kind": content.kind, "files": content.files, "size": content.size})
        });
        json!({"added": rows.collect::<Vec<_>>()})
    }
}

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pointer in &self.pointers {
            let (files, size) = (count(pointer.content.files, "file"), bytes(pointer.content.size));
            writeln!(f, "{}: {files}, {size}, {}", pointer.path, pointer.content.digest.short())?;
        }
        self.staging.as_ref().map_or(Ok(()), |staging| staging.fmt(f))
    }
}
