use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, report::count},
    error::Result,
    pipeline::{self, Forecast, Step},
    workspace::{Change, Item, State, Workspace},
};

/// Lines of one kind that people are shown.
const SHOWN: usize = 20;

/// Show what changed since it was recorded
///
/// Compares tracked files and the outputs of stages with their pointers and `mlx.lock`, file by file, and
/// says which stages are out of date and why. It runs nothing and never uses the network.
///
/// What is here is the same as recorded, changed, or unknown: it cannot be read, or its record is not here.
/// Absent is what is recorded and not here at all: no change, so `mlx commit` passes it over, and not clean.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx status\n  mlx status --check && echo clean\n\n\
JSON: {\"clean\": bool, \"data\": [{\"path\", \"state\": \"same\" | \"changed\" | \"absent\" | \"unknown\", \"why\",\n\
  \"changes\": [{\"path\", \"change\": \"added\" | \"modified\" | \"deleted\"}], \"unknown\": [{\"path\", \"why\"}]}],\n\
  \"stages\": [{\"name\", \"outcome\", \"why\": [text…]}], \"problems\": [text…]}")]
pub struct Args {
    /// Only these
    paths: Vec<PathBuf>,
    /// Exit 10 unless everything is as recorded
    #[arg(long)]
    check: bool,
}

pub struct Status {
    items: Vec<Item>,
    steps: Vec<Step>,
    problems: Vec<String>,
    check: bool,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Status> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let paths = ctx.paths(&repo, &args.paths)?;
    let tracked = workspace.select(ctx.tracked(&workspace)?, &paths)?;
    let compared = tracked.pointers.iter().map(|it| Ok(workspace.compare(it, ctx.progress)?.near(&paths)));
    let mut items = compared.collect::<Result<Vec<_>>>()?;
    items.extend(tracked.unreadable.into_iter().map(|(path, error)| Item::unknown(path, error.full_text())));
    let (mut steps, mut problems) = (Vec::new(), Vec::new());
    if paths.is_empty() {
        for pipeline in ctx.pipelines(&workspace)? {
            match pipeline::plan(&pipeline, &[], false) {
                Ok(found) => steps.extend(found),
                Err(error) => problems.push(error.full_text()),
            }
        }
    }
    workspace.save_if_free();
    Ok(Status { items, steps, problems, check: args.check })
}

impl Status {
    fn clean(&self) -> bool {
        let items = self.items.iter().all(|it| it.state == State::Same);
        items && self.problems.is_empty() && self.steps.iter().all(|it| it.forecast == Forecast::Unchanged)
    }
}

/// The word of `--json` for what would become of a stage.
pub fn outcome(forecast: Forecast) -> &'static str {
    match forecast {
        Forecast::Run => "would run",
        Forecast::Restore => "would restore",
        Forecast::Unchanged => "unchanged",
    }
}

impl Report for Status {
    fn json(&self) -> Value {
        let items = self.items.iter().map(|it| {
            let changes = it.changes.iter().map(|(path, change)| json!({"path": path, "change": change}));
            let unknown = it.unknown.iter().map(|(path, why)| json!({"path": path, "why": why}));
            json!({"path": it.path, "state": it.state, "why": it.why, "changes": changes.collect::<Vec<_>>(),
                "unknown": unknown.collect::<Vec<_>>()})
        });
        let steps = self
            .steps
            .iter()
            .map(|it| json!({"name": it.name, "outcome": outcome(it.forecast), "why": it.why}));
        json!({"clean": self.clean(), "data": items.collect::<Vec<_>>(), "stages": steps.collect::<Vec<_>>(),
            "problems": self.problems})
    }

    fn found(&self) -> bool {
        self.check && !self.clean()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.clean() {
            return f.write_str("clean: everything is as recorded");
        }
        for item in self.items.iter().filter(|it| it.state != State::Same) {
            match item.state {
                State::Absent => {
                    writeln!(f, "{}: absent (`mlx pull` or `mlx checkout` brings it)", item.path)?;
                }
                State::Unknown => {
                    writeln!(f, "{}: unknown ({})", item.path, item.why.as_deref().unwrap_or_default())?;
                    unknown(f, item)?;
                    if !item.changes.is_empty() {
                        changes(f, item)?;
                    }
                }
                _ => changes(f, item)?,
            }
        }
        for step in self.steps.iter().filter(|it| it.forecast != Forecast::Unchanged) {
            writeln!(f, "stage {}: {}", step.name, outcome(step.forecast))?;
            step.why.iter().try_for_each(|it| writeln!(f, "  {it}"))?;
        }
        self.problems.iter().try_for_each(|it| writeln!(f, "pipeline: {it}"))
    }
}

fn unknown(f: &mut fmt::Formatter<'_>, item: &Item) -> fmt::Result {
    item.unknown
        .iter()
        .take(SHOWN)
        .try_for_each(|(path, why)| writeln!(f, "  {:9} {path}: {why}", "unknown"))?;
    if item.unknown.len() > SHOWN {
        writeln!(f, "  … and {} more (`--json` lists all)", item.unknown.len() - SHOWN)?;
    }
    Ok(())
}

fn changes(f: &mut fmt::Formatter<'_>, item: &Item) -> fmt::Result {
    writeln!(f, "{}: {}", item.path, count(item.changes.len() as u64, "change"))?;
    for (path, change) in item.changes.iter().take(SHOWN) {
        writeln!(f, "  {:9} {path}", word(*change))?;
    }
    if item.changes.len() > SHOWN {
        writeln!(f, "  … and {} more (`--json` lists all)", item.changes.len() - SHOWN)?;
    }
    Ok(())
}

/// The word for a change.
pub fn word(change: Change) -> &'static str {
    match change {
        Change::Added => "added",
        Change::Modified => "modified",
        Change::Deleted => "deleted",
    }
}
