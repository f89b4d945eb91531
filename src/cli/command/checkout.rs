//! `mlx checkout`: makes workspace files match what pointers and lockfiles record, now or at another
//! revision, or places them again as `cache.link` says.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, command::transfer::with_trees_of, report::count},
    error::{Error, Kind, Result},
    git::Rev,
    maintenance,
    path::{RepoPath, quoted_list},
    pipeline::contents_at,
    pointer::Pointer,
    remote::Wants,
    workspace::{CheckoutStats, Relinked, Tracked, Workspace, checkout_parts, place_parts, relink_parts},
};

/// Make the workspace match the pointers and `mlx.lock`
///
/// Files that are not stored anywhere are neither overwritten nor deleted, unless `--force` is given. Data of
/// the last checkout that nothing records now, such as that of another branch, is removed as far as it is
/// stored.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  git checkout v1 && mlx checkout\n  mlx checkout data/cats/\n  \
mlx checkout --rev v1 data/\n  mlx config set cache.link hardlink,copy && mlx checkout --relink\n\n\
JSON: {\"checked_out\": [{\"path\", \"written\", \"removed\", \"folders\": empty ones created or removed}]}; \
with --relink {\"relinked\": [{\"path\", \"files\", \"kinds\": files by kind of link, \"edited\": [paths], \
\"missing\": [paths that the store lacks]}]}")]
pub struct Args {
    /// Paths to check out (default: all)
    paths: Vec<PathBuf>,
    /// Check out what this revision records, without moving HEAD or any pointer
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// Overwrite and delete even files that are not stored anywhere
    #[arg(short, long)]
    force: bool,
    /// Link or copy files that are here already again, as `cache.link` says now; edited files stay as they
    /// are, and files up to 1 MiB are always copies
    #[arg(long, conflicts_with_all = ["rev", "force"])]
    pub relink: bool,
}

/// Report of `mlx checkout`.
pub struct CheckoutReport {
    /// Each path with what was done there.
    done: Vec<(RepoPath, CheckoutStats)>,
    /// The error for a file that records more and cannot be read.
    pub failure: Option<Error>,
}

/// Report of `mlx checkout --relink`: each path with the files that were linked again, and the error that
/// left some out.
pub struct RelinkReport(Vec<(RepoPath, Relinked)>, Option<Error>);

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<CheckoutReport> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    match &args.rev {
        Some(rev) => checkout_rev(ctx, &workspace, &repo.git.resolve(rev)?, &paths, args.force),
        None => checkout_tracked(ctx, &workspace, &paths, args.force),
    }
}

/// Links files again that are as recorded.
pub fn relink(ctx: &Context<'_>, args: &Args) -> Result<RelinkReport> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    let (pointers, failure) = ctx.unreadable(workspace.select(ctx.tracked(&workspace)?, &paths)?);
    let done = relink_parts(&workspace, &all_parts(&pointers, &paths), ctx.progress);
    // The stat cache is saved even if a path failed.
    workspace.save(ctx.progress)?;
    let (rows, problems) = done?;
    Ok(RelinkReport(rows, ctx.failure(failure.into_iter().chain(problems))))
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
    let pointers = workspace.select_recorded(recorded, paths)?.into_pointers()?;
    let more = || {
        let contents = pointers.iter().map(|it| (it.path.clone(), it.content)).collect();
        Ok(Wants { contents, ..Wants::default() })
    };
    let done = with_trees_of(ctx, workspace, &more, || {
        checkout_pointers(ctx, workspace, &pointers, paths, |parts| {
            // Outputs are what stages made of them; another version of tracked data can be recorded.
            let is_tracked = |data: &Pointer| matches!(workspace.pointer(&data.path), Ok(Some(_)));
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
    let (pointers, failure) = ctx.unreadable(workspace.select_whole(tracked, paths)?);
    let done = checkout_pointers(ctx, workspace, &pointers, paths, |parts| {
        checkout_parts(workspace, parts, &retired, force, ctx.progress)
    });
    match (done, failure) {
        (Ok(report), failure) => Ok(CheckoutReport { failure, ..report }),
        (Err(error), None) => Err(error),
        (Err(error), Some(failure)) => {
            ctx.warn_once(&error);
            Err(failure)
        }
    }
}

fn checkout_pointers(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    pointers: &[Pointer],
    paths: &[RepoPath],
    checkout: impl Fn(&[(&Pointer, &RepoPath)]) -> Result<Vec<(RepoPath, CheckoutStats)>>,
) -> Result<CheckoutReport> {
    let parts = all_parts(pointers, paths);
    workspace.check_parts(&parts)?;
    let result = checkout(&parts);
    // The stat cache is saved even if a path failed.
    workspace.save(ctx.progress)?;
    maintenance::publish_needs_if_allowed(workspace.repo, ctx.progress)?;
    Ok(CheckoutReport { done: result?, failure: None })
}

/// Returns the requested parts of all pointers' paths.
fn all_parts<'p>(pointers: &'p [Pointer], paths: &'p [RepoPath]) -> Vec<(&'p Pointer, &'p RepoPath)> {
    let with_parts = |pointer| parts(pointer, paths).into_iter().map(move |part| (pointer, part));
    pointers.iter().flat_map(with_parts).collect()
}

/// Returns the requested parts of a pointer's path, sorted: all of it, or paths inside it, none of which
/// contains another.
fn parts<'p>(pointer: &'p Pointer, paths: &'p [RepoPath]) -> Vec<&'p RepoPath> {
    if paths.is_empty() || paths.iter().any(|it| pointer.path.is_within(it)) {
        return vec![&pointer.path];
    }
    let inside: BTreeSet<&RepoPath> = paths.iter().filter(|it| it.is_within(&pointer.path)).collect();
    let is_covered = |path: &RepoPath| path.ancestors().skip(1).any(|above| inside.contains(&above));
    inside.iter().copied().filter(|path| !is_covered(path)).collect()
}

impl Report for CheckoutReport {
    fn json(&self) -> Value {
        let rows = self.done.iter().map(|(path, done)| {
            json!({"path": path, "written": done.written, "removed": done.removed, "folders": done.folders})
        });
        json!({"checked_out": rows.collect::<Vec<_>>()})
    }

    fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }
}

impl fmt::Display for CheckoutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed: Vec<_> = self.done.iter().filter(|it| it.1 != CheckoutStats::default()).collect();
        for (path, done) in &changed {
            write!(f, "{path}: {} written, {} removed", count(done.written, "file"), done.removed)?;
            if done.folders > 0 {
                write!(f, ", {} created or removed", count(done.folders, "empty folder"))?;
            }
            writeln!(f)?;
        }
        if changed.is_empty() && self.failure.is_none() {
            f.write_str("nothing to do: the workspace is as recorded")?;
        }
        Ok(())
    }
}

impl Report for RelinkReport {
    fn json(&self) -> Value {
        let rows = self.0.iter().map(|(path, done)| {
            let (kinds, edited, missing) = (&done.kinds, &done.edited, &done.missing);
            json!({
                "path": path, "files": done.files(), "kinds": kinds, "edited": edited, "missing": missing,
            })
        });
        json!({"relinked": rows.collect::<Vec<_>>()})
    }

    fn failure(&self) -> Option<&Error> {
        self.1.as_ref()
    }
}

impl fmt::Display for RelinkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, done) in self.0.iter().filter(|it| it.1.files() > 0) {
            let kinds: Vec<_> = done.kinds.iter().map(|(kind, files)| format!("{files} {kind}")).collect();
            writeln!(f, "{path}: {} linked again ({})", count(done.files(), "file"), kinds.join(", "))?;
        }
        for (path, done) in &self.0 {
            for (files, why) in [(&done.edited, "edited"), (&done.missing, "without stored content")] {
                if !files.is_empty() {
                    let (number, names) = (count(files.len() as u64, "file"), quoted_list(files));
                    writeln!(f, "{path}: {number} {why}, left unchanged: {names}")?;
                }
            }
        }
        if self.1.is_none() && self.0.iter().all(|row| row.1 == Relinked::default()) {
            f.write_str("nothing to do: all files that are here are placed as `cache.link` says")?;
        }
        Ok(())
    }
}
