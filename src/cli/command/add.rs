use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count, shell_word},
    },
    error::Result,
    path::RepoPath,
    pointer::Pointer,
    repo::Repo,
    upkeep,
    workspace::{Glob, Workspace},
};

/// Track files or folders
///
/// Stores the content and writes PATH.mlx beside it, which belongs into Git; PATH itself is put into
/// `.gitignore`. Adding a path inside a tracked folder updates that folder's pointer. What a `.mlxignore`
/// names, by gitignore's rules, is left out.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx add data/\n  mlx add --git-add data/ models/backbone.onnx\n  mlx add data/cat/new.jpg\n  mlx add --glob 'data/**/*.jpg'\n\n\
JSON: {\"added\": [{\"path\", \"pointer\", \"digest\", \"kind\", \"files\", \"size\"}]}"
)]
pub struct Args {
    /// What to track
    #[arg(required_unless_present = "glob")]
    paths: Vec<PathBuf>,
    /// Files that match, from here down: `*` stays within a name, `**` goes through folders; what stages
    /// make and what Git tracks is passed over
    #[arg(long, value_name = "PATTERN")]
    glob: Vec<String>,
    /// Also `git add` the pointers and `.gitignore` files
    #[arg(long)]
    git_add: bool,
}

pub struct Added {
    pointers: Vec<Pointer>,
    /// For `git add`.
    files: Vec<RepoPath>,
    at_top: bool,
    staged: bool,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Added> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let claimed: Vec<_> =
        ctx.pipelines(&workspace)?.iter().flat_map(crate::pipeline::Pipeline::claimed).collect();
    let added = workspace.add_all(&ctx.paths(&repo, &args.paths)?, &claimed, ctx.progress);
    // What was learnt is kept, whatever became of the rest.
    workspace.save(ctx.progress)?;
    upkeep::renew(&repo, ctx.progress)?;
    let mut pointers = added?;
    let here = RepoPath::parse(".".as_ref(), &ctx.cwd, repo.root())?;
    for pattern in &args.glob {
        let added = workspace.add_matching(&Glob::new(pattern, &here)?, &claimed, ctx.progress);
        workspace.save(ctx.progress)?;
        pointers.extend(added?);
    }
    // What several patterns changed is told as it is in the end.
    let mut seen = BTreeSet::new();
    pointers.reverse();
    pointers.retain(|it| seen.insert(it.path.clone()));
    pointers.reverse();
    let files = for_git(&repo, pointers.iter().map(Pointer::file))?;
    warn_hidden(ctx, &repo, &files)?;
    if args.git_add {
        repo.git.stage(&files)?;
    }
    Ok(Added { pointers, files, at_top: here.is_root(), staged: args.git_add })
}

/// What belongs into Git now: pointer files and the `.gitignore` files beside them, as far as they are here
/// or Git has to learn that they are gone.
pub fn for_git(repo: &Repo, pointers: impl Iterator<Item = RepoPath>) -> Result<Vec<RepoPath>> {
    let mut files = BTreeSet::new();
    for pointer in pointers {
        files.insert(pointer.parent().unwrap_or_default().join(b".gitignore")?);
        files.insert(pointer);
    }
    let mut known = Vec::new();
    for file in files {
        if repo.files.stamp(&file)?.is_some() || repo.git.tracked_within(&file)?.is_some() {
            known.push(file);
        }
    }
    Ok(known)
}

/// Says which of these files Git would leave out, so that nobody else would ever see them.
pub fn warn_hidden(ctx: &Context<'_>, repo: &Repo, files: &[RepoPath]) -> Result<()> {
    for it in repo.git.hidden(files)? {
        let place = format!("`{}` in line {} of `{}`", it.pattern, it.line, it.source);
        let message = format!("Git ignores `{}`, by {place}: nobody else will get it", it.file);
        ctx.progress.warn(&message);
    }
    Ok(())
}

/// The line that tells what to do next.
pub fn next(f: &mut fmt::Formatter<'_>, files: &[RepoPath], at_top: bool) -> fmt::Result {
    if files.is_empty() {
        return Ok(());
    }
    let top = if at_top { "" } else { ":/" };
    let files: Vec<_> = files.iter().map(|it| shell_word(&format!("{top}{it}"))).collect();
    writeln!(f, "next: git add {}", files.join(" "))
}

impl Report for Added {
    fn json(&self) -> Value {
        let rows = self.pointers.iter().map(|it| {
            let content = it.content;
            json!({"path": it.path, "pointer": it.file(), "digest": content.digest, "kind": content.kind,
                "files": content.files, "size": content.size})
        });
        json!({"added": rows.collect::<Vec<_>>()})
    }
}

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for it in &self.pointers {
            let (files, size) = (count(it.content.files, "file"), bytes(it.content.size));
            writeln!(f, "{}: {files}, {size}, {}", it.path, it.content.digest.short())?;
        }
        if self.staged { Ok(()) } else { next(f, &self.files, self.at_top) }
    }
}
