//! `mlx add`: stores files or folders and writes their pointers. Also holds what `move` and `remove` share
//! with it: the files to stage in Git, the warning about ignored ones, and the `next: git add …` line.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::transfer::with_trees,
        report::{bytes, count, shell_quote},
    },
    error::Result,
    git::IgnoredFile,
    maintenance,
    path::RepoPath,
    pointer::Pointer,
    repo::Repo,
    workspace::{Glob, Workspace},
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
    /// Files to `git add`.
    files: Vec<RepoPath>,
    /// True if the working directory is the top of the repository.
    at_top: bool,
    staged: bool,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Added> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let claimed = ctx.pipelines(&workspace)?.claims();
    let paths = ctx.paths(&repo, &args.paths)?;
    let added = with_trees(ctx, &workspace, || workspace.add_all(&paths, &claimed, ctx.progress));
    // The stat cache is saved even if a later path failed.
    workspace.save(ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    let mut pointers = added?;
    let cwd = RepoPath::parse(".".as_ref(), &ctx.cwd, repo.root())?;
    for pattern in &args.glob {
        let glob = Glob::new(pattern, &cwd)?;
        let added = with_trees(ctx, &workspace, || workspace.add_matching(&glob, &claimed, ctx.progress));
        workspace.save(ctx.progress)?;
        pointers.extend(added?);
    }
    // A pointer that several patterns changed is reported once, in its final state.
    let mut reported = BTreeSet::new();
    pointers.reverse();
    pointers.retain(|pointer| reported.insert(pointer.path.clone()));
    pointers.reverse();
    let files = files_to_stage(&repo, pointers.iter().map(Pointer::file))?;
    warn_ignored(ctx, &repo, &files)?;
    if args.git_add {
        repo.git.add(&files)?;
    }
    Ok(Added { pointers, files, at_top: cwd.is_root(), staged: args.git_add })
}

/// Returns the files to `git add`: these pointer files and the `.gitignore` beside each, if they exist, or if
/// Git tracks them and has to record their deletion.
pub fn files_to_stage(repo: &Repo, pointers: impl Iterator<Item = RepoPath>) -> Result<Vec<RepoPath>> {
    let mut files = BTreeSet::new();
    for pointer in pointers {
        files.insert(pointer.parent().unwrap_or_default().join(b".gitignore")?);
        files.insert(pointer);
    }
    let mut known = Vec::new();
    for file in files {
        if repo.files.stat(&file)?.is_some() || repo.git.tracked_within(&file)?.is_some() {
            known.push(file);
        }
    }
    Ok(known)
}

/// Warns of files that Git ignores: they would not be committed, so no other clone would get them.
pub fn warn_ignored(ctx: &Context<'_>, repo: &Repo, files: &[RepoPath]) -> Result<()> {
    for hidden in repo.git.ignored_files(files)? {
        ctx.progress.warn(&format!("Git ignores `{}`, {}", hidden.file, ignored_why(&hidden)));
    }
    Ok(())
}

/// Returns which rule hides a file from Git, and what follows.
pub fn ignored_why(hidden: &IgnoredFile) -> String {
    let IgnoredFile { pattern, line, source, .. } = hidden;
    format!("by `{pattern}` in line {line} of `{source}`: other clones will not get it")
}

/// Writes the `next: git add …` line; nothing if there are no files to stage.
pub fn write_next_step(f: &mut fmt::Formatter<'_>, files: &[RepoPath], at_top: bool) -> fmt::Result {
    if files.is_empty() {
        return Ok(());
    }
    let top = if at_top { "" } else { ":/" };
    let files: Vec<_> = files.iter().map(|file| shell_quote(&format!("{top}{file}"))).collect();
    writeln!(f, "next: git add {}", files.join(" "))
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
        if self.staged { Ok(()) } else { write_next_step(f, &self.files, self.at_top) }
    }
}
