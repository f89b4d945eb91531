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
    workspace::Workspace,
};

/// Track files or folders
///
/// Stores the content and writes PATH.mlx beside it, which belongs into Git; PATH itself is put into
/// `.gitignore`. Adding a path inside a tracked folder updates that folder's pointer.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx add data/\n  mlx add --git-add data/ models/backbone.onnx\n  mlx add data/cat/new.jpg\n\n\
JSON: {\"added\": [{\"path\", \"pointer\", \"digest\", \"kind\", \"files\", \"size\"}]}"
)]
pub struct Args {
    /// What to track
    #[arg(required = true)]
    paths: Vec<PathBuf>,
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
    let mut pointers = Vec::new();
    for path in ctx.paths(&repo, &args.paths)? {
        let added = workspace.add(&path, &claimed, ctx.progress);
        // What was learnt is kept, whatever became of the rest.
        workspace.save()?;
        upkeep::renew(&repo)?;
        pointers.push(added?);
    }
    let files = for_git(&repo, &pointers)?;
    if args.git_add {
        repo.git.stage(&files)?;
    }
    let at_top = RepoPath::parse(".".as_ref(), &ctx.cwd, repo.root())?.is_root();
    Ok(Added { pointers, files, at_top, staged: args.git_add })
}

/// What belongs into Git now: pointers and the `.gitignore` files beside them.
fn for_git(repo: &Repo, pointers: &[Pointer]) -> Result<Vec<RepoPath>> {
    let mut files: BTreeSet<_> = pointers.iter().map(Pointer::file).collect();
    for pointer in pointers {
        let ignore = pointer.path.parent().unwrap_or_default().join(b".gitignore")?;
        if repo.files.stamp(&ignore)?.is_some() {
            files.insert(ignore);
        }
    }
    Ok(files.into_iter().collect())
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
        if !self.staged {
            let top = if self.at_top { "" } else { ":/" };
            let files: Vec<_> = self.files.iter().map(|it| shell_word(&format!("{top}{it}"))).collect();
            writeln!(f, "next: git add {}", files.join(" "))?;
        }
        Ok(())
    }
}
