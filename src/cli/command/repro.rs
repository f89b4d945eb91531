//! `mlx repro`: runs the stages of a pipeline whose inputs changed.

use std::{collections::BTreeSet, fmt};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            add::warn_ignored,
            status::outcome_name,
            transfer::{warn_untracked, with_trees},
        },
    },
    error::{Error, Kind, Result},
    maintenance,
    pipeline::{self, Options, Outcome, Pipelines, Plan, PlannedAction, StageId, StageRun},
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
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx repro\n  mlx repro --dry-run\n  mlx repro train\n  mlx repro --all\n\n\
JSON: {\"stages\": [{\"name\": \"folder:stage\", \"stage\" at the top, \"outcome\": \"ran\" | \
\"restored\" |\n\
  \"unchanged\" | \"failed\" | \"skipped\" (with --dry-run: \"would run\" | \"would restore\" | \
\"unchanged\" |\n\
  \"blocked\"), \"why\": [text…]}]}; on failure also \"error\""
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
    /// After a failure, continue with stages that do not need the failed one
    #[arg(short, long)]
    keep_going: bool,
}

pub struct Summary {
    rows: Vec<Row>,
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
    if !args.all {
        pipelines.broken.iter().for_each(|broken| ctx.progress.warn(&broken.error.chain_text()));
    }
    if args.dry_run {
        let plan = plan(ctx, &workspace, &pipelines, &wanted, args.force)?;
        workspace.save_if_free();
        let check = args.check && plan.steps.iter().any(|step| step.action != Some(PlannedAction::Unchanged));
        let rows = plan.steps.into_iter().map(|step| Row {
            label: pipelines.label(&step.id),
            id: step.id,
            outcome: outcome_name(step.action),
            why: step.reasons,
        });
        let rows = rows.collect();
        return Ok(Summary { rows, failure: plan.failure.or_else(|| broken(pipelines, args)), check });
    }
    let options = Options { force: args.force, keep_going: args.keep_going };
    let result = pipeline::repro(&pipelines, &wanted, options, ctx.progress);
    workspace.save(ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    for folder in wanted.iter().map(|id| &id.folder).collect::<BTreeSet<_>>() {
        let pipeline = pipelines.iter().find(|pipeline| pipeline.folder == *folder);
        pipeline.map_or(Ok(()), |pipeline| warn_ignored(ctx, &repo, &pipeline.files_in_git()?))?;
    }
    let (runs, failure) = result?;
    let recorded = runs.iter().filter(|run| matches!(run.outcome, Outcome::Ran | Outcome::Restored));
    let stages = recorded.filter_map(|run| pipelines.of(&run.id).manifest.stages.get(&run.id.name));
    warn_untracked(ctx, &workspace, &pipelines, stages)?;
    let rows = runs.into_iter().map(|run| Row::of(run, &pipelines)).collect();
    Ok(Summary { rows, failure: failure.or_else(|| broken(pipelines, args)), check: false })
}

/// Returns the stages to run.
fn wanted(pipelines: &Pipelines<'_, '_>, args: &Args) -> Result<Vec<StageId>> {
    match (args.all, &args.stages[..]) {
        (true, _) => pipelines.all_stages(),
        (false, []) => pipelines.nearest_stages(),
        (false, stages) => stages.iter().map(|stage| pipelines.stage(stage)).collect(),
    }
}

/// Returns the error of the first broken pipeline, if all were asked for.
fn broken(pipelines: Pipelines<'_, '_>, args: &Args) -> Option<Error> {
    pipelines.broken.into_iter().next().map(|it| it.error).filter(|_| args.all)
}

/// Plans a run. A tree that is missing here is fetched, if that helps.
fn plan(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    pipelines: &Pipelines<'_, '_>,
    wanted: &[StageId],
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
    fn of(run: StageRun, pipelines: &Pipelines<'_, '_>) -> Self {
        let outcome = match run.outcome {
            Outcome::Ran => "ran",
            Outcome::Restored => "restored",
            Outcome::Unchanged => "unchanged",
            Outcome::Failed => "failed",
            Outcome::Skipped => "skipped",
        };
        Self { label: pipelines.label(&run.id), id: run.id, outcome, why: run.reasons }
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
        if self.rows.is_empty() { f.write_str("`mlx.toml` has no stages") } else { Ok(()) }
    }
}
