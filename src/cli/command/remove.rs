use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            add::{for_git, next},
            moving::warn_readers,
        },
        report::count,
    },
    error::Result,
    path::RepoPath,
    pipeline::Pipeline,
    pointer::{Pointer, SUFFIX},
    upkeep,
    workspace::{Data, Removed, Workspace},
};

/// Stop tracking files or folders
///
/// Removes PATH.mlx and PATH's line in `.gitignore`; the files stay in the workspace, and what was stored
/// stays in the store. A path inside a tracked folder goes from that folder's record.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx remove data/\n  mlx remove --data data/cat/blurred.jpg\n\n\
JSON: {\"removed\": [{\"path\", \"pointer\": text, null once it is gone, \"files\": number deleted}]}")]
pub struct Args {
    /// What to track no longer
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Also delete the files, unless they are stored nowhere
    #[arg(long)]
    data: bool,
    /// With `--data`: delete even what is stored nowhere
    #[arg(short, long, requires = "data")]
    force: bool,
}

pub struct Done {
    removed: Vec<Removed>,
    /// For `git add`.
    files: Vec<RepoPath>,
    at_top: bool,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Done> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipelines = ctx.pipelines(&workspace)?;
    let claimed: Vec<_> = pipelines.iter().flat_map(Pipeline::claimed).collect();
    let data = match (args.data, args.force) {
        (false, _) => Data::Keep,
        (true, false) => Data::Delete,
        (true, true) => Data::Force,
    };
    let mut removed = Vec::new();
    let done = ctx.paths(&repo, &args.paths)?.iter().try_for_each(|path| {
        removed.push(workspace.remove(path, data, &claimed, ctx.progress)?);
        if args.data {
            warn_readers(ctx, &pipelines, path);
        }
        Ok(())
    });
    workspace.save(ctx.progress)?;
    upkeep::renew(&repo, ctx.progress)?;
    done?;
    let pointers = removed
        .iter()
        .map(|it| it.parent.as_ref().map_or_else(|| it.path.with_suffix(SUFFIX), Pointer::file));
    let files = for_git(&repo, pointers)?;
    let at_top = RepoPath::parse(".".as_ref(), &ctx.cwd, repo.root())?.is_root();
    Ok(Done { removed, files, at_top })
}

impl Report for Done {
    fn json(&self) -> Value {
        let row = |it: &Removed| {
            let pointer = it.parent.as_ref().map(Pointer::file);
            json!({"path": it.path, "pointer": pointer, "files": it.files})
        };
        json!({"removed": self.removed.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for it in &self.removed {
            match &it.parent {
                Some(parent) => write!(f, "{}: no longer on record in `{}`", it.path, parent.path)?,
                None => write!(f, "{}: no longer tracked", it.path)?,
            }
            if it.files > 0 {
                write!(f, ", {} deleted", count(it.files, "file"))?;
            }
            writeln!(f)?;
        }
        next(f, &self.files, self.at_top)
    }
}
