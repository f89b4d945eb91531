//! `mlx status`: compares the workspace with pointers and lockfiles, and lists the stages that are out of
//! date.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, report::count, staging::ignored_why},
    error::{Error, Result},
    git::IgnoredFile,
    path::{RepoPath, quoted_list},
    pipeline::{self, Leftover, LeftoverKind, NOT_RUN, Pipelines, PlannedAction, StageId},
    pointer::Pointer,
    repo::Repo,
    workspace::{Behind, Change, KEPT_DAYS, PathStatus, State, Unreadable, Workspace, kept_versions},
};

/// Reason for tracked data in [`Status::git`].
const EXPOSED: &str = "Git does not ignore this data: `mlx checkout` repairs `.gitignore`";

/// Reason for data in [`Status::git`] that nothing records now.
const UNRECORDED: &str =
    "nothing records this data now, and Git does not ignore it: `mlx checkout` removes what is stored of it";

/// Reason for data in [`Status::git`] that nothing records now, and that may not have come with a checkout.
const FORGOTTEN: &str = "nothing records this data now, and Git does not ignore it: another commit has its \
                         pointer; `mlx add` tracks it here, or delete it";

/// Reason for data in [`Status::git`] that nothing records now, and that Git ignores.
const LEFT: &str = "nothing records this data now: `mlx checkout` removes what is stored of it, and with \
                    `--force` all of it";

/// Maximum number of changes, and of unknown paths, that the text report lists for each tracked path.
const MAX_LISTED: usize = 20;

/// Show what changed since it was recorded
///
/// Compares tracked files and stage outputs with their pointers and `mlx.lock`, file by file, and reports
/// which stages are out of date and why. Runs no stage and never uses the network.
///
/// A path that exists is same, changed, behind or unknown (it cannot be read, or the store lacks its record).
/// Changes are your edits since the last checkout; a path is behind where it is as last checked out and
/// recorded otherwise, such as after `git pull`. A path that is recorded but does not exist is absent. `mlx
/// commit` records only changes, but the workspace is not clean.
///
/// An `mlx.toml` or `mlx.lock` that cannot be read is an error (exit 2 or 5), after the report on all else.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx status\n  mlx status --check && echo clean\n\n\
JSON: {\"clean\": bool, \"data\": [{\"path\", \"state\": \"same\" | \"changed\" | \"absent\" | \
\"unknown\", \"why\",\n\
  \"changes\": [{\"path\", \"change\": \"added\" | \"modified\" | \"deleted\" | \"conflict\"}],\n\
  \"behind\": [{\"path\", \"change\": \"absent\" | \"older\" | \"removed\"}], \"unknown\": [{\"path\", \
  \"why\"}]}],\n\
  \"stages\": [{\"name\": \"folder:stage\", \"stage\" at the top, \"outcome\": \"would run\" | \"would \
  restore\" |\n\
  \"would remove\" | \"unchanged\" | \"blocked\", \"not_run\": bool, \"why\": [text…]}], \
\"problems\": [text…],\n\
  \"git\": [{\"path\", \"why\"}]: data that Git would add or that nothing records, and files that Git would \
  not add,\n\
  \"failed\": failed runs whose outputs are here, \"kept\": replaced versions that are kept}")]
pub struct Args {
    /// Paths to compare (default: all)
    paths: Vec<PathBuf>,
    /// Exit with code 10 unless everything is as recorded
    #[arg(long)]
    check: bool,
}

/// A stage with its planned outcome.
struct StageRow {
    id: StageId,
    /// Its shortest name.
    label: String,
    outcome: &'static str,
    why: Vec<String>,
    not_run: bool,
}

/// Report of `mlx status`.
pub struct Status {
    items: Vec<PathStatus>,
    stages: Vec<StageRow>,
    /// The `mlx.toml` and `mlx.lock` files that cannot be read.
    broken: Vec<Error>,
    /// Paths that Git treats otherwise than it should, each with the reason.
    git: Vec<(RepoPath, String)>,
    /// Number of failed runs whose outputs are still here, and of versions that are kept.
    failed: usize,
    kept: usize,
    check: bool,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Status> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    let pipelines = ctx.all_pipelines(&workspace)?;
    let tracked = ctx.tracked_with(&workspace, &pipelines)?;
    let (mut unrecorded, mut forgotten, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
    if paths.is_empty() {
        unrecorded = ctx.unrecorded_data(&workspace, &pipelines, &tracked)?;
        forgotten = ctx.forgotten_data(&pipelines, &tracked)?;
        deleted = ctx.deleted_pointers(&workspace, &pipelines, &tracked)?;
    }
    let tracked = workspace.select(tracked, &paths)?;
    tracked.others.iter().for_each(|file| ctx.warn_once(&file.error));
    let mut git = exposed_data(&workspace, &tracked.pointers, EXPOSED)?;
    git.extend(unrecorded_data(&workspace, &unrecorded)?);
    git.extend(exposed_data(&workspace, &forgotten, FORGOTTEN)?);
    git.extend(data_in_git(&workspace, &tracked.pointers)?);
    let mut own_files: Vec<_> = tracked.pointers.iter().map(Pointer::file).collect();
    let compared = tracked
        .pointers
        .iter()
        .map(|pointer| Ok(workspace.compare(pointer, ctx.progress)?.restrict_to(&paths)));
    let mut items = compared.collect::<Result<Vec<_>>>()?;
    name_unfinished(&pipelines, &mut items)?;
    for file in &tracked.unreadable {
        let why = with_hint(&file.error);
        items.extend(file.paths.iter().map(|path| PathStatus::unknown(path.clone(), why.clone())));
    }
    items.extend(deleted.into_iter().map(|(path, why)| PathStatus::unknown(path, why)));
    let lockfiles = tracked.unreadable.into_iter().filter(Unreadable::is_lockfile);
    let mut broken: Vec<_> = lockfiles.map(|file| file.error).collect();
    let mut stages = Vec::new();
    if paths.is_empty() {
        stages = plan_all(&pipelines)?;
        for pipeline in pipelines.iter() {
            own_files.extend(pipeline.files_in_git()?);
        }
        broken.splice(0..0, pipelines.broken.into_iter().map(|it| it.error));
    } else {
        pipelines.broken.iter().for_each(|it| ctx.warn_once(&it.error));
    }
    broken.iter().skip(1).for_each(|error| ctx.warn_once(error));
    git.extend(hidden_files(&repo, own_files)?);
    workspace.save_if_free();
    let is_failed = |leftover: &Leftover| leftover.kind == LeftoverKind::Failed;
    let failed = pipeline::leftovers(&repo.private)?.iter().filter(|leftover| is_failed(leftover)).count();
    let kept = kept_versions(&repo)?.len();
    Ok(Status { items, stages, broken, git, failed, kept, check: args.check })
}

/// Plans all stages of the repository.
fn plan_all(pipelines: &Pipelines<'_, '_>) -> Result<Vec<StageRow>> {
    let plan = pipeline::plan(pipelines, &pipelines.select_all(), false)?;
    let row = |id: StageId, outcome, why, not_run| StageRow {
        label: pipelines.label(&id),
        id,
        outcome,
        why,
        not_run,
    };
    let steps = plan.steps.into_iter();
    let steps = steps.map(|step| row(step.id, outcome_name(step.action), step.reasons, step.not_run));
    Ok(steps.chain(plan.gone.into_iter().map(|(id, why)| row(id, WOULD_REMOVE, why, false))).collect())
}

/// Explains outputs that a run of their stage left in between.
fn name_unfinished(pipelines: &Pipelines<'_, '_>, items: &mut [PathStatus]) -> Result<()> {
    for (id, state) in pipelines.unfinished()? {
        let outputs = pipelines.declared(&id).map_or(&[][..], |stage| &stage.outputs);
        let is_output = |item: &&mut PathStatus| outputs.iter().any(|out| out.path == item.path);
        for item in items.iter_mut().filter(is_output).filter(|item| item.state != State::Same) {
            item.reason.get_or_insert(state.reason_of_output(&pipelines.label(&id)));
        }
    }
    Ok(())
}

/// Returns the data that Git would add, each path with this reason, or with what is wrong with its
/// `.gitignore`.
fn exposed_data(workspace: &Workspace<'_>, data: &[Pointer], why: &str) -> Result<Vec<(RepoPath, String)>> {
    let exposed = workspace.exposed_data(&data.iter().collect::<Vec<_>>())?;
    let repo = workspace.repo;
    let reason = |path: &RepoPath| match repo.git.check_ignorable(&repo.files, path) {
        Ok(()) => why.to_owned(),
        Err(error) => format!("Git does not ignore this data: {}", error.chain_text()),
    };
    Ok(exposed.into_iter().map(|path| (path.clone(), reason(&path))).collect())
}

/// Returns the data that nothing records now, each path with what is to be done.
fn unrecorded_data(workspace: &Workspace<'_>, data: &[Pointer]) -> Result<Vec<(RepoPath, String)>> {
    let mut rows = exposed_data(workspace, data, UNRECORDED)?;
    let exposed: BTreeSet<_> = rows.iter().map(|row| row.0.clone()).collect();
    let hidden = data.iter().filter(|data| !exposed.contains(&data.path));
    rows.extend(hidden.map(|data| (data.path.clone(), LEFT.to_owned())));
    Ok(rows)
}

/// Returns what is wrong with a file, and what to do about it.
fn with_hint(error: &Error) -> String {
    let hint = error.hint_text().map_or_else(String::new, |hint| format!("; {hint}"));
    format!("{}{hint}", error.chain_text())
}

/// Returns the data with files that Git tracks as well, each with the way out.
fn data_in_git(workspace: &Workspace<'_>, data: &[Pointer]) -> Result<Vec<(RepoPath, String)>> {
    let mut found = Vec::new();
    for pointer in data {
        let files = workspace.data_in_git(pointer)?;
        let remedy = match &files[..] {
            [] => continue,
            [file] => format!("git rm --cached {file}"),
            _ => format!("git rm -r --cached {}", pointer.path),
        };
        let why = format!("Git tracks this data, too ({}): take it out with `{remedy}`", quoted_list(&files));
        found.push((pointer.path.clone(), why));
    }
    Ok(found)
}

/// Returns those of mlx's own files that exist and that Git ignores, each with the rule.
fn hidden_files(repo: &Repo, files: Vec<RepoPath>) -> Result<Vec<(RepoPath, String)>> {
    let mut here = vec![RepoPath::in_mlx_folder("config.toml")];
    for file in files {
        if repo.files.stat(&file)?.is_some() {
            here.push(file);
        }
    }
    let hidden = repo.git.ignored_files(&here)?.into_iter();
    let why = |hidden: &IgnoredFile| format!("Git ignores it, {}", ignored_why(hidden));
    Ok(hidden.map(|hidden| (hidden.file.clone(), why(&hidden))).collect())
}

impl Status {
    fn is_clean(&self) -> bool {
        self.items.iter().all(|it| it.state == State::Same)
            && self.broken.is_empty()
            && self.git.is_empty()
            && self.stages.iter().all(|stage| stage.outcome == UNCHANGED)
    }

    /// Returns a reason as the text shows it: only the first line of the error of a broken file, which is
    /// printed whole at the end.
    fn shown<'t>(&self, reason: &'t str) -> &'t str {
        let is_told = self.broken.iter().any(|error| reason.contains(&error.chain_text()));
        let line = reason.lines().next().filter(|_| is_told);
        line.unwrap_or(reason)
    }
}

const UNCHANGED: &str = "unchanged";
/// Outcome planned for a stage that is gone from its `mlx.toml`.
pub const WOULD_REMOVE: &str = "would remove";

/// Returns the `--json` value for the planned action of a stage.
pub fn outcome_name(action: Option<PlannedAction>) -> &'static str {
    match action {
        Some(PlannedAction::Run) => "would run",
        Some(PlannedAction::Restore) => "would restore",
        Some(PlannedAction::Unchanged) => UNCHANGED,
        None => "blocked",
    }
}

impl Report for Status {
    fn json(&self) -> Value {
        let items = self.items.iter().map(|item| {
            let changes = item.changes.iter().map(|(path, change)| json!({"path": path, "change": change}));
            let unknown = item.unknown.iter().map(|(path, why)| json!({"path": path, "why": why}));
            let behind = item.behind.iter().map(|(path, change)| json!({"path": path, "change": change}));
            json!({"path": item.path, "state": item.state, "why": item.reason,
                "changes": changes.collect::<Vec<_>>(), "behind": behind.collect::<Vec<_>>(),
                "unknown": unknown.collect::<Vec<_>>()})
        });
        let stages = self.stages.iter().map(|stage| {
            json!({"name": stage.id.to_string(), "outcome": stage.outcome, "not_run": stage.not_run,
                "why": stage.why})
        });
        json!({"clean": self.is_clean(), "data": items.collect::<Vec<_>>(),
            "stages": stages.collect::<Vec<_>>(),
            "problems": self.broken.iter().map(Error::chain_text).collect::<Vec<_>>(),
            "git": self.git.iter().map(|(path, why)| json!({"path": path, "why": why})).collect::<Vec<_>>(),
            "failed": self.failed, "kept": self.kept})
    }

    fn has_findings(&self) -> bool {
        self.check && !self.is_clean()
    }

    fn failure(&self) -> Option<&Error> {
        self.broken.first()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            f.write_str("clean: everything is as recorded\n")?;
        }
        for item in self.items.iter().filter(|it| it.state != State::Same) {
            match item.state {
                State::Absent => {
                    let why = item.reason.as_deref();
                    let why = why.unwrap_or("run `mlx pull` or `mlx checkout` to get it");
                    writeln!(f, "{}: absent ({why})", item.path)?;
                }
                State::Unknown => {
                    let why = item.reason.as_deref().unwrap_or_default();
                    writeln!(f, "{}: unknown ({})", item.path, self.shown(why))?;
                    write_unknown(f, item)?;
                    if !item.changes.is_empty() {
                        write_changes(f, item)?;
                    }
                }
                State::Behind => {}
                _ => match &item.reason {
                    Some(why) if item.changes.is_empty() => writeln!(f, "{}: {why}", item.path)?,
                    _ => write_changes(f, item)?,
                },
            }
            write_behind(f, item)?;
        }
        for stage in self.stages.iter().filter(|it| it.outcome != UNCHANGED) {
            writeln!(f, "stage {}: {}", stage.label, stage.outcome)?;
            stage.why.iter().try_for_each(|reason| writeln!(f, "  {}", self.shown(reason)))?;
        }
        let mut not_run = self.stages.iter().filter(|it| it.not_run);
        not_run.try_for_each(|stage| writeln!(f, "stage {}: {NOT_RUN}", stage.label))?;
        self.git.iter().try_for_each(|(path, why)| writeln!(f, "{path}: {why}"))?;
        write_kept(f, self.failed as u64, self.kept as u64)
    }
}

fn write_kept(f: &mut fmt::Formatter<'_>, failed: u64, kept: u64) -> fmt::Result {
    let failed = (failed > 0).then(|| format!("outputs of {}", count(failed, "failed run")));
    let kept = (kept > 0).then(|| count(kept, "replaced version"));
    let all: Vec<_> = failed.into_iter().chain(kept).collect();
    if all.is_empty() {
        return Ok(());
    }
    writeln!(f, "kept for {KEPT_DAYS} days: {} (`mlx du` shows them)", all.join(" and "))
}

fn write_unknown(f: &mut fmt::Formatter<'_>, item: &PathStatus) -> fmt::Result {
    item.unknown
        .iter()
        .take(MAX_LISTED)
        .try_for_each(|(path, why)| writeln!(f, "  {:9} {path}: {why}", "unknown"))?;
    if item.unknown.len() > MAX_LISTED {
        writeln!(f, "  … and {} more (`--json` lists all)", item.unknown.len() - MAX_LISTED)?;
    }
    Ok(())
}

fn write_behind(f: &mut fmt::Formatter<'_>, item: &PathStatus) -> fmt::Result {
    if item.behind.is_empty() {
        return Ok(());
    }
    let files = count(item.behind.len() as u64, "file");
    writeln!(f, "{}: {files} not as recorded now (run `mlx checkout` or `mlx pull`)", item.path)?;
    for (path, behind) in item.behind.iter().take(MAX_LISTED) {
        let name = match behind {
            Behind::Absent => "absent",
            Behind::Older => "older",
            Behind::Removed => "removed",
        };
        writeln!(f, "  {name:9} {path}")?;
    }
    if item.behind.len() > MAX_LISTED {
        writeln!(f, "  … and {} more (`--json` lists all)", item.behind.len() - MAX_LISTED)?;
    }
    Ok(())
}

fn write_changes(f: &mut fmt::Formatter<'_>, item: &PathStatus) -> fmt::Result {
    // That of an unknown path was told.
    let why = item.reason.as_ref().filter(|_| item.state == State::Changed);
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    writeln!(f, "{}: {}{why}", item.path, count(item.changes.len() as u64, "change"))?;
    for (path, change) in item.changes.iter().take(MAX_LISTED) {
        writeln!(f, "  {:9} {path}", change_name(*change))?;
    }
    if item.changes.len() > MAX_LISTED {
        writeln!(f, "  … and {} more (`--json` lists all)", item.changes.len() - MAX_LISTED)?;
    }
    Ok(())
}

/// Returns the name of a kind of change, as in `--json`.
pub fn change_name(change: Change) -> &'static str {
    match change {
        Change::Added => "added",
        Change::Modified => "modified",
        Change::Deleted => "deleted",
        Change::Conflict => "conflict",
    }
}
