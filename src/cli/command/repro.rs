//! `mlx repro`: runs the stages of a pipeline whose inputs changed.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{status::outcome_name, transfer::with_trees},
        context::BUILTINS,
    },
    error::{Error, Result},
    maintenance,
    pipeline::{self, Options, Outcome, Pipeline, PlannedAction, StageRun, Step},
    workspace::Workspace,
};

/// Run the stages whose inputs changed
///
/// Stages are declared in `mlx.toml`. A stage runs only if its command, environment, a dependency or a
/// parameter changed, or an output is missing or was changed; a run with the same inputs is restored from the
/// run cache. Results are recorded in `mlx.lock`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx repro\n  mlx repro --dry-run\n  mlx repro train\n\n\
JSON: {\"stages\": [{\"name\", \"outcome\": \"ran\" | \"restored\" | \"unchanged\" | \"failed\" | \
\"skipped\"\n\
  (with --dry-run: \"would run\" | \"would restore\" | \"unchanged\"), \"why\": [text…]}]}; on failure \
  also \"error\"")]
pub struct Args {
    /// Stages to run, with the stages they need (default: all)
    stages: Vec<String>,
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
    name: String,
    outcome: &'static str,
    why: Vec<String>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Summary> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipeline = Pipeline::require(&workspace, &ctx.cwd, &BUILTINS)?;
    if args.dry_run {
        let planned = with_trees(ctx, &workspace, || pipeline::plan(&pipeline, &args.stages, args.force));
        workspace.save_if_free();
        let steps = planned?;
        let check = args.check && steps.iter().any(|step| step.action != PlannedAction::Unchanged);
        return Ok(Summary { rows: steps.into_iter().map(Row::from).collect(), failure: None, check });
    }
    let options = Options { force: args.force, keep_going: args.keep_going };
    let result = pipeline::repro(&pipeline, &args.stages, options, ctx.progress);
    workspace.save(ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    let (runs, failure) = result?;
    Ok(Summary { rows: runs.into_iter().map(Row::from).collect(), failure, check: false })
}

impl From<Step> for Row {
    fn from(step: Step) -> Self {
        Self { name: step.name, outcome: outcome_name(step.action), why: step.reasons }
    }
}

impl From<StageRun> for Row {
    fn from(run: StageRun) -> Self {
        let outcome = match run.outcome {
            Outcome::Ran => "ran",
            Outcome::Restored => "restored",
            Outcome::Unchanged => "unchanged",
            Outcome::Failed => "failed",
            Outcome::Skipped => "skipped",
        };
        Self { name: run.name, outcome, why: run.reasons }
    }
}

impl Report for Summary {
    fn json(&self) -> Value {
        let row = |row: &Row| json!({"name": row.name, "outcome": row.outcome, "why": row.why});
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
        let width = self.rows.iter().map(|it| it.name.len()).max().unwrap_or(0);
        for row in &self.rows {
            writeln!(f, "{:width$}  {}", row.name, row.outcome)?;
            if row.outcome != "failed" {
                row.why.iter().try_for_each(|reason| writeln!(f, "{:width$}    {reason}", ""))?;
            }
        }
        if self.rows.is_empty() { f.write_str("`mlx.toml` has no stages") } else { Ok(()) }
    }
}
