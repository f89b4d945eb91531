use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{status::outcome, transfer::with_trees},
        context::BUILTINS,
    },
    error::{Error, Result},
    pipeline::{self, Forecast, Options, Outcome, Pipeline, StageRun, Step},
    upkeep,
    workspace::Workspace,
};

/// Run the stages whose inputs changed
///
/// Stages stand in `mlx.toml`. One runs only when its command, a dependency or a parameter changed or an
/// output is missing; a run made once is restored from the run cache. What happened goes to `mlx.lock`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx repro\n  mlx repro --dry-run\n  mlx repro train\n\n\
JSON: {\"stages\": [{\"name\", \"outcome\": \"ran\" | \"restored\" | \"unchanged\" | \"failed\" | \"skipped\"\n\
  (with --dry-run: \"would run\" | \"would restore\" | \"unchanged\"), \"why\": [text…]}]}; on failure also \"error\"")]
pub struct Args {
    /// Only these stages and what they need
    stages: Vec<String>,
    /// Say what would run and why; change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// With --dry-run: exit 10 if something would run or be restored
    #[arg(long, requires = "dry_run")]
    check: bool,
    /// Run even what did not change
    #[arg(short, long)]
    force: bool,
    /// After a failure go on with stages that do not need the failed one
    #[arg(short, long)]
    keep_going: bool,
}

pub struct Done {
    rows: Vec<Row>,
    failure: Option<Error>,
    check: bool,
}

struct Row {
    name: String,
    outcome: &'static str,
    why: Vec<String>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Done> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipeline = Pipeline::require(&workspace, &ctx.cwd, &BUILTINS)?;
    if args.dry_run {
        let planned = with_trees(ctx, &workspace, || pipeline::plan(&pipeline, &args.stages, args.force));
        workspace.save_if_free();
        let steps = planned?;
        let check = args.check && steps.iter().any(|it| it.forecast != Forecast::Unchanged);
        return Ok(Done { rows: steps.into_iter().map(Row::from).collect(), failure: None, check });
    }
    let options = Options { force: args.force, keep_going: args.keep_going };
    let done = pipeline::repro(&pipeline, &args.stages, options, ctx.progress);
    workspace.save(ctx.progress)?;
    upkeep::renew(&repo, ctx.progress)?;
    let (ran, failure) = done?;
    Ok(Done { rows: ran.into_iter().map(Row::from).collect(), failure, check: false })
}

impl From<Step> for Row {
    fn from(it: Step) -> Self {
        Self { name: it.name, outcome: outcome(it.forecast), why: it.why }
    }
}

impl From<StageRun> for Row {
    fn from(it: StageRun) -> Self {
        let outcome = match it.outcome {
            Outcome::Ran => "ran",
            Outcome::Restored => "restored",
            Outcome::Unchanged => "unchanged",
            Outcome::Failed => "failed",
            Outcome::Skipped => "skipped",
        };
        Self { name: it.name, outcome, why: it.why }
    }
}

impl Report for Done {
    fn json(&self) -> Value {
        let row = |it: &Row| json!({"name": it.name, "outcome": it.outcome, "why": it.why});
        json!({"stages": self.rows.iter().map(row).collect::<Vec<_>>()})
    }

    fn found(&self) -> bool {
        self.check
    }

    fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|it| it.name.len()).max().unwrap_or(0);
        for row in &self.rows {
            writeln!(f, "{:width$}  {}", row.name, row.outcome)?;
            if row.outcome != "failed" {
                row.why.iter().try_for_each(|it| writeln!(f, "{:width$}    {it}", ""))?;
            }
        }
        if self.rows.is_empty() { f.write_str("mlx.toml has no stages") } else { Ok(()) }
    }
}
