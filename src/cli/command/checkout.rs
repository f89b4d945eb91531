//! `mlx checkout`: makes workspace files match what pointers and lockfiles record, now or at another
//! revision.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, command::transfer::with_trees_of, report::count},
    error::{Kind, Result},
    git::Rev,
    maintenance,
    path::RepoPath,
    pipeline::contents_at,
    pointer::Pointer,
    remote::Wants,
    workspace::{CheckoutStats, Tracked, Workspace, checkout_parts, place_parts},
};

/// Make the workspace match the pointers and `mlx.lock`
///
/// Files that are not stored anywhere are neither overwritten nor deleted, unless `--force` is given. Data of
/// the last checkout that nothing records now, such as that of another branch, is removed as far as it is
/// stored.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  git checkout v1 && mlx checkout\n  mlx checkout data/cats/\n  \
mlx checkout --rev v1 data/\n\n\
JSON: {\"checked_out\": [{\"path\", \"written\", \"removed\", \"folders\": empty ones created or removed}]}")]
pub struct Args {
    /// Paths to check out (default: all)
    paths: Vec<PathBuf>,
    /// Check out what this revision records, without moving HEAD or any pointer
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// Overwrite and delete even files that are not stored anywhere
    #[arg(short, long)]
    force: bool,
}

/// Report of `mlx checkout`: each path with what was done there.
pub struct CheckoutReport(Vec<(RepoPath, CheckoutStats)>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<CheckoutReport> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    match &args.rev {
        Some(rev) => checkout_rev(ctx, &workspace, &repo.git.resolve(rev)?, &paths, args.force),
        None => checkout_tracked(ctx, &workspace, &paths, args.force),
    }
}

/// Checks out what a commit records at these paths. Skips outputs that Git itself stores.
fn checkout_rev(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    rev: &Rev,
    paths: &[RepoPath],
    force: bool,
) -> Result<CheckoutReport> {
    let git = &workspace.repo.git;
    let mut recorded = Tracked::default();
    for (path, content) in contents_at(git, rev)? {
        if git.blob(rev, &path)?.is_none() {
            recorded.pointers.push(Pointer { path, content });
        }
    }
    let pointers = workspace.select(recorded, paths)?.into_pointers()?;
    let more = || {
        let contents = pointers.iter().map(|it| (it.path.clone(), it.content)).collect();
        Ok(Wants { contents, ..Wants::default() })
    };
    let done = with_trees_of(ctx, workspace, &more, || {
        checkout_pointers(ctx, workspace, &pointers, paths, |parts| {
            // Outputs are what stages made of them; another version of tracked data can be recorded.
            let is_tracked = |data: &Pointer| matches!(workspace.repo.pointer(&data.path), Ok(Some(_)));
            place_parts(workspace, parts, is_tracked, force, ctx.progress)
        })
    });
    done.map_err(|error| match error.kind() {
        Kind::NotFound => error.hint("get it with `mlx fetch --all-commits`"),
        _ => error,
    })
}

/// Checks out what is tracked at these paths, or everything if `paths` is empty, in which case data that is
/// not recorded any more is removed, as far as the store has it.
pub fn checkout_tracked(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    paths: &[RepoPath],
    force: bool,
) -> Result<CheckoutReport> {
    let pipelines = ctx.pipelines(workspace)?;
    let tracked = ctx.tracked_with(workspace, &pipelines)?;
    let retired =
        if paths.is_empty() { ctx.unrecorded_data(workspace, &pipelines, &tracked)? } else { Vec::new() };
    let pointers = workspace.select_whole(tracked, paths)?.into_pointers()?;
    checkout_pointers(ctx, workspace, &pointers, paths, |parts| {
        checkout_parts(workspace, parts, &retired, force, ctx.progress)
    })
}

fn checkout_pointers(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    pointers: &[Pointer],
    paths: &[RepoPath],
    checkout: impl Fn(&[(&Pointer, &RepoPath)]) -> Result<Vec<(RepoPath, CheckoutStats)>>,
) -> Result<CheckoutReport> {
    let parts: Vec<_> = pointers
        .iter()
        .flat_map(|pointer| parts(pointer, paths).into_iter().map(move |part| (pointer, part)))
        .collect();
    parts.iter().try_for_each(|(pointer, part)| workspace.check_part(pointer, part))?;
    let result = checkout(&parts);
    // The stat cache is saved even if a path failed.
    workspace.save(ctx.progress)?;
    maintenance::publish_needs_if_allowed(workspace.repo, ctx.progress)?;
    result.map(CheckoutReport)
}

/// Returns the requested parts of a pointer's path: all of it, or paths inside it.
fn parts<'p>(pointer: &'p Pointer, paths: &'p [RepoPath]) -> Vec<&'p RepoPath> {
    if paths.is_empty() || paths.iter().any(|it| pointer.path.is_within(it)) {
        return vec![&pointer.path];
    }
    paths.iter().filter(|it| it.is_within(&pointer.path)).collect()
}

impl Report for CheckoutReport {
    fn json(&self) -> Value {
        let rows = self.0.iter().map(|(path, done)| {
            json!({"path": path, "written": done.written, "removed": done.removed, "folders": done.folders})
        });
        json!({"checked_out": rows.collect::<Vec<_>>()})
    }
}

impl fmt::Display for CheckoutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed: Vec<_> = self.0.iter().filter(|it| it.1 != CheckoutStats::default()).collect();
        for (path, done) in &changed {
            write!(f, "{path}: {} written, {} removed", count(done.written, "file"), done.removed)?;
            if done.folders > 0 {
                write!(f, ", {} created or removed", count(done.folders, "empty folder"))?;
            }
            writeln!(f)?;
        }
        if changed.is_empty() { f.write_str("nothing to do: the workspace is as recorded") } else { Ok(()) }
    }
}
