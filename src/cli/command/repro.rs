//! `mlx repro`: runs the stages of a pipeline whose inputs changed.

use std::{collections::BTreeSet, fmt};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            status::{WOULD_REMOVE, outcome_name},
            transfer::{warn_untracked, with_trees},
        },
        staging::{Staging, warn_ignored},
    },
    error::{Error, Kind, Result},
    maintenance,
    path::RepoPath,
    pipeline::{
        self, Mode, Options, Outcome, Pipelines, Plan, PlannedAction, Selection, StageId, StageRun, Step,
    },
    pointer::Pointer,
    workspace::Workspace,
};

/// Run the stages whose inputs changed
///
/// Stages are declared in `mlx.toml`. A stage runs only if its command, environment, a dependency or a
/// parameter changed, or an output is missing or was changed; a run with the same inputs is restored from the
/// run cache. Results are recorded in the `mlx.lock` beside the stage's `mlx.toml`.
///
/// All `mlx.toml` files that Git tracks form one graph. Without STAGES, the stages of the nearest `mlx.toml`
/// run, and those they need wherever these are declared. A stage of another folder is named `folder:stage`,
/// one at the top `:stage`; a name that only one pipeline has is enough.
///
/// With `--no-run` nothing runs: results that were made elsewhere, or that a change such as a comment did not
/// touch, are recorded as they are and marked so. `mlx commit STAGE` does the same for single stages.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx repro\n  mlx repro --dry-run\n  mlx repro train\n  mlx repro --all\n  \
mlx repro --no-run\n\n\
JSON: {\"stages\": [{\"name\": \"folder:stage\", \"stage\" at the top, \"outcome\": \"ran\" | \
\"restored\" |\n\
  \"recorded\" | \"removed\" | \"unchanged\" | \"failed\" | \"skipped\" (with --dry-run: \"would run\" |\n\
  \"would restore\" | \"would remove\" | \"unchanged\" | \"blocked\"), \"why\": [text…]}]}; on failure \
also \"error\""
)]
pub struct Args {
    /// Stages to run, with the stages they need (default: those of the nearest `mlx.toml`)
    stages: Vec<String>,
    /// Run the stages of all pipelines of the repository
    #[arg(short, long, conflicts_with = "stages")]
    all: bool,
    /// Show what would run and why, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// With --dry-run: exit with code 10 if a stage would run or be restored
    #[arg(long, requires = "dry_run")]
    check: bool,
    /// Run stages even if nothing changed
    #[arg(short, long)]
    force: bool,
    /// Run nothing: record the present outputs of stale stages as their results
    #[arg(long, conflicts_with_all = ["force", "dry_run"])]
    no_run: bool,
    /// After a failure, report it and continue with stages that do not need the failed one
    #[arg(short, long)]
    keep_going: bool,
}

pub struct Summary {
    rows: Vec<Row>,
    /// Files for Git; none after a dry run.
    staging: Option<Staging>,
    failure: Option<Error>,
    check: bool,
}

struct Row {
    id: StageId,
    label: String,
    outcome: &'static str,
    why: Vec<String>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Summary> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipelines = ctx.all_pipelines(&workspace)?;
    let wanted = wanted(&pipelines, args)?;
    let mut needed: BTreeSet<_> =
        pipelines.graph().upstream_of(&wanted.stages).into_iter().map(|id| id.folder).collect();
    needed.extend(wanted.folders.iter().cloned());
    // That of a needed pipeline is the error of its stages.
    for lockfile in pipelines.unreadable_lockfiles()? {
        if !lockfile.file.parent().is_some_and(|folder| needed.contains(&folder)) {
            ctx.warn_once(&lockfile.error);
        }
    }
    if args.dry_run {
        let plan = plan(ctx, &workspace, &pipelines, &wanted, args.force)?;
        workspace.save_if_free();
        let unchanged = |step: &Step| step.action == Some(PlannedAction::Unchanged);
        let check = args.check && !(plan.steps.iter().all(unchanged) && plan.gone.is_empty());
        let rows = plan.steps.into_iter().map(|step| (step.id, outcome_name(step.action), step.reasons));
        let gone = plan.gone.into_iter().map(|(id, reasons)| (id, WOULD_REMOVE, reasons));
        let rows: Vec<_> = rows.chain(gone).map(|row| Row::new(row, &pipelines)).collect();
        warn_broken(ctx, &pipelines, args, &rows);
        return Ok(Summary {
            rows,
            staging: None,
            failure: ctx.failure(plan.failure.into_iter().chain(plan.problems)),
            check,
        });
    }
    let mut candidates = pipelines.ignore_files(needed.iter().chain(&wanted.folders))?;
    let mode = if args.no_run { Mode::Accept } else { Mode::Run };
    let options = Options { force: args.force, keep_going: args.keep_going, mode };
    let result = pipeline::repro(&pipelines, &wanted, options, ctx.progress);
    workspace.save(ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    warn_ignored(ctx, &repo, &pipelines.files_in_git(&wanted)?)?;
    let (runs, failure) = result.inspect_err(|_| warn_broken(ctx, &pipelines, args, &[]))?;
    let is_new = |outcome| matches!(outcome, Outcome::Ran | Outcome::Restored | Outcome::Recorded);
    warn_untracked(ctx, &pipelines, runs.iter().filter(|run| is_new(run.outcome)).map(|run| &run.id))?;
    candidates.extend(files_for_git(&pipelines, &runs)?);
    let mut staging = Staging::changed(ctx, &repo, candidates)?;
    staging.files.extend(deleted_files(&pipelines, &runs)?);
    let rows = runs.into_iter().map(|run| (run.id, run.outcome.name(), run.reasons));
    let rows: Vec<_> = rows.map(|row| Row::new(row, &pipelines)).collect();
    warn_broken(ctx, &pipelines, args, &rows);
    Ok(Summary { rows, staging: Some(staging), failure, check: false })
}

/// Warns of broken pipelines, unless they were asked for or stopped a stage: those are errors.
fn warn_broken(ctx: &Context<'_>, pipelines: &Pipelines<'_, '_>, args: &Args, rows: &[Row]) {
    for broken in pipelines.broken.iter().filter(|_| !args.all) {
        let text = broken.error.chain_text();
        if !rows.iter().any(|row| row.why.contains(&text)) {
            ctx.warn_once(&broken.error);
        }
    }
}

/// Returns the files of deleted pipelines, whose deletion Git has to record.
fn deleted_files(pipelines: &Pipelines<'_, '_>, runs: &[StageRun]) -> Result<BTreeSet<RepoPath>> {
    let repo = pipelines.workspace.repo;
    let mut files = BTreeSet::new();
    for run in runs.iter().filter(|run| run.outcome == Outcome::Removed) {
        for name in [pipeline::MANIFEST, pipeline::LOCKFILE] {
            let file = run.id.folder.join(name.as_bytes())?;
            if repo.files.stat(&file)?.is_none() && repo.git.staged(&file)?.is_some() {
                files.insert(file);
            }
        }
    }
    Ok(files)
}

/// Returns the files that these runs may have changed and that belong into Git.
fn files_for_git(pipelines: &Pipelines<'_, '_>, runs: &[StageRun]) -> Result<BTreeSet<RepoPath>> {
    let mut files = BTreeSet::new();
    let is_readable = |run: &&StageRun| pipelines.of(&run.id).read_lockfile().is_ok();
    let mut folders = BTreeSet::new();
    for run in runs.iter().filter(is_readable) {
        let pipeline = pipelines.of(&run.id);
        if folders.insert(&run.id.folder) {
            files.extend(pipeline.files_to_stage()?);
        }
        files.extend(pipeline.input_pointers(&run.id.name).unwrap_or_default().iter().map(Pointer::file));
    }
    Ok(files)
}

/// Returns the stages to run.
fn wanted(pipelines: &Pipelines<'_, '_>, args: &Args) -> Result<Selection> {
    match (args.all, &args.stages[..]) {
        (true, _) => Ok(pipelines.select_all()),
        (false, []) => pipelines.select_nearest(),
        (false, stages) => pipelines.select(stages),
    }
}

/// Plans a run. A tree that is missing here is fetched, if that helps.
fn plan(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    pipelines: &Pipelines<'_, '_>,
    wanted: &Selection,
    force: bool,
) -> Result<Plan> {
    let planned = with_trees(ctx, workspace, || {
        let mut plan = pipeline::plan(pipelines, wanted, force)?;
        match plan.failure.take_if(|error| error.kind() == Kind::NotFound) {
            Some(error) => Err(error),
            None => Ok(plan),
        }
    });
    planned.or_else(|_| pipeline::plan(pipelines, wanted, force))
}

impl Row {
    fn new((id, outcome, why): (StageId, &'static str, Vec<String>), pipelines: &Pipelines<'_, '_>) -> Self {
        Self { label: pipelines.label(&id), id, outcome, why }
    }
}

impl Report for Summary {
    fn json(&self) -> Value {
        let row = |row: &Row| json!({"name": row.id.to_string(), "outcome": row.outcome, "why": row.why});
        json!({"stages": self.rows.iter().map(row).collect::<Vec<_>>()})
    }

    fn has_findings(&self) -> bool {
        self.check
    }

    fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|it| it.label.len()).max().unwrap_or(0);
        for row in &self.rows {
            writeln!(f, "{:width$}  {}", row.label, row.outcome)?;
            if row.outcome != "failed" {
                row.why.iter().try_for_each(|reason| writeln!(f, "{:width$}    {reason}", ""))?;
            }
        }
        if self.rows.is_empty() && self.failure.is_some() {
            return Ok(());
        }
        if self.rows.is_empty() {
            return f.write_str("`mlx.toml` has no stages");
        }
        self.staging.as_ref().map_or(Ok(()), |staging| staging.fmt(f))
    }
}
