use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count},
    },
    error::Result,
    pointer::Pointer,
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
        pointers.push(added?);
    }
    if args.git_add {
        let mut files: Vec<_> = pointers.iter().map(Pointer::file).collect();
        let ignores = pointers.iter().filter_map(|it| it.path.parent()?.join(b".gitignore").ok());
        files.extend(ignores.filter(|it| repo.files.stamp(it).is_ok_and(|it| it.is_some())));
        repo.git.stage(&files)?;
    }
    Ok(Added { pointers, staged: args.git_add })
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
            let files: Vec<_> = self.pointers.iter().map(|it| it.file().to_text()).collect();
            writeln!(f, "next: git add {} .gitignore", files.join(" "))?;
        }
        Ok(())
    }
}
