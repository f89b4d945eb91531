use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, command::transfer::with_trees_of, report::count},
    error::{Kind, Result},
    git::Rev,
    path::RepoPath,
    pipeline::contents_at,
    pointer::Pointer,
    remote::Wants,
    upkeep,
    workspace::{CheckedOut, Tracked, Workspace, checkout_part},
};

/// Make the workspace match the pointers and `mlx.lock`
///
/// What is stored nowhere is neither overwritten nor deleted, unless `--force`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  git checkout v1 && mlx checkout\n  mlx checkout data/cats/\n  \
mlx checkout --rev v1 data/\n\n\
JSON: {\"checked_out\": [{\"path\", \"written\", \"removed\", \"folders\": empty ones made or removed}]}")]
pub struct Args {
    /// Only these
    paths: Vec<PathBuf>,
    /// What this revision records, without moving HEAD or any pointer
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// Overwrite and delete even what is stored nowhere
    #[arg(short, long)]
    force: bool,
}

pub struct Done(pub Vec<(RepoPath, CheckedOut)>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Done> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    match &args.rev {
        Some(rev) => place_at(ctx, &workspace, &repo.git.resolve(rev)?, &paths, args.force),
        None => place(ctx, &workspace, &paths, args.force),
    }
}

/// Checks out what a commit records at these paths; what Git itself keeps is Git's to check out.
fn place_at(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    rev: &Rev,
    paths: &[RepoPath],
    force: bool,
) -> Result<Done> {
    let git = &workspace.repo.git;
    let mut then = Tracked::default();
    for (path, content) in contents_at(git, rev)? {
        if git.blob(rev, &path)?.is_none() {
            then.pointers.push(Pointer { path, content });
        }
    }
    let pointers = workspace.select(then, paths)?.whole()?;
    let more = || {
        let contents = pointers.iter().map(|it| (it.path.clone(), it.content)).collect();
        Ok(Wants { contents, ..Wants::default() })
    };
    let placed = with_trees_of(ctx, workspace, &more, || put(ctx, workspace, &pointers, paths, force));
    placed.map_err(|error| match error.kind() {
        Kind::NotFound => error.hint("bring it with `mlx fetch --all-commits`"),
        _ => error,
    })
}

/// Checks out what is tracked at these paths (all without any).
pub fn place(ctx: &Context<'_>, workspace: &Workspace<'_>, paths: &[RepoPath], force: bool) -> Result<Done> {
    put(ctx, workspace, &ctx.tracked(workspace)?.select(paths)?.whole()?, paths, force)
}

fn put(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    pointers: &[Pointer],
    paths: &[RepoPath],
    force: bool,
) -> Result<Done> {
    let mut done = Vec::new();
    let placed = pointers.iter().try_for_each(|pointer| {
        for part in parts(pointer, paths) {
            workspace.check_part(pointer, part)?;
            done.push((part.clone(), checkout_part(workspace, pointer, part, force, ctx.progress)?));
        }
        Ok(())
    });
    // What was learnt is kept, whatever became of the rest.
    workspace.save(ctx.progress)?;
    upkeep::renew_if_allowed(workspace.repo, ctx.progress)?;
    placed.map(|()| Done(done))
}

/// What is asked for of a pointer's path: all of it, or parts.
fn parts<'p>(pointer: &'p Pointer, paths: &'p [RepoPath]) -> Vec<&'p RepoPath> {
    if paths.is_empty() || paths.iter().any(|it| pointer.path.is_within(it)) {
        return vec![&pointer.path];
    }
    paths.iter().filter(|it| it.is_within(&pointer.path)).collect()
}

impl Report for Done {
    fn json(&self) -> Value {
        let rows = self
            .0
            .iter()
            .map(|(path, it)| {
                json!({"path": path, "written": it.written, "removed": it.removed, "folders": it.folders})
            });
        json!({"checked_out": rows.collect::<Vec<_>>()})
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed: Vec<_> = self.0.iter().filter(|it| it.1 != CheckedOut::default()).collect();
        for (path, it) in &changed {
            write!(f, "{path}: {} written, {} removed", count(it.written, "file"), it.removed)?;
            if it.folders > 0 {
                write!(f, ", {} made or removed", count(it.folders, "empty folder"))?;
            }
            writeln!(f)?;
        }
        if changed.is_empty() { f.write_str("nothing to do: the workspace is as recorded") } else { Ok(()) }
    }
}
