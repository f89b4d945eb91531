//! `mlx monitor`: a day of traffic looked at, and days that become the new normal.

mod accept;
mod act;
mod announce;
mod reports;

pub use self::accept::{AcceptArgs, accept};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::{Value, json};

use crate::{
    alert::{self, Transition},
    cli::{
        Context, Report,
        command::{alert::row as alert_row, reference, traffic::bring_tables},
    },
    error::{Error, Result},
    ledger,
    model::registry,
    monitor::{self, Thresholds},
    path::RepoPath,
    policy::{Policy, Rule},
    time::Day,
    traffic::{self, Record},
    workspace::Workspace,
};

/// Watch a model in use
#[derive(clap::Subcommand)]
pub enum Command {
    /// Look at a sealed day: integrity, drift, performance, bias, the machine
    ///
    /// Writes `monitor/ENV/DAY.json` and `.html`. Rules of the policy turn findings into alerts: each is an event on
    /// the audit chain and goes where `alert.file`, `alert.command` and `alert.webhook` say. Exit 10 while an alert
    /// fires. The same day again gives the same report and raises nothing twice; what could not be delivered or set
    /// off is tried again. A rule with `days = N` looks at the reports of earlier days: commit `monitor/`, or they
    /// are missing in the next clone.
    #[command(after_help = "Examples:\n  mlx monitor run --day 2026-03-09 --env production\n\n\
JSON: {\"day\", \"environment\", \"report\": FILE, \"page\": FILE, \"values\": {NAME: number}, \"findings\": [{\"level\", \"subject\", \"text\"}],\n  \"raised\": [{\"rule\", \"why\", \"event\"}], \"resolved\": […], \"firing\": [as `mlx alert list`], \"actions\": [text…]}")]
    Run(RunArgs),
    /// Make days the new reference: what was seen then is normal from now on
    #[command(
        after_help = "Examples:\n  mlx monitor accept --from 2026-03-15 --to 2026-03-17 --env production --as qa@park.example --why 'new camera'\n\n\
JSON: {\"from\", \"to\", \"environment\", \"who\", \"event\", \"pushed_to\"}"
    )]
    Accept(AcceptArgs),
}

#[derive(clap::Args)]
pub struct RunArgs {
    /// The day, UTC: 2026-03-09
    #[arg(long)]
    day: Day,
    /// Where the model serves
    #[arg(long, default_value = "production")]
    env: String,
    /// Raise alerts, but set nothing off
    #[arg(long)]
    no_act: bool,
}

pub struct Looked {
    day: Day,
    environment: String,
    report: monitor::Report,
    file: RepoPath,
    page: RepoPath,
    raised: Vec<(Transition, String)>,
    resolved: Vec<(Transition, String)>,
    firing: Vec<alert::Alert>,
    actions: Vec<String>,
}

pub fn run(ctx: &Context<'_>, args: &RunArgs) -> Result<Looked> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let view = ledger::refresh(&repo)?;
    let policy = Policy::at(&repo.git, view.policy.as_ref())?;
    policy.environment(&args.env)?;
    let report = measure(ctx, &workspace, &args.env, args.day)?;
    warn_of_unknown(ctx, &policy.rules, &args.env, &report);
    let mut reports = reports::Reports::read(ctx, &repo, &args.env)?;
    let file = reports.write(&repo, &report)?;
    let (day, days) = (args.day.to_string(), reports.values());
    let events = || ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref());
    let changes = alert::decide(&policy.rules, &args.env, &day, &days, &events()?);
    let changed = announce::announce(ctx, &repo, &args.env, changes, &days)?;
    let firing = alert::firing(&events()?, &args.env, &day);
    let page = reports.write_page(&repo, &report, &firing)?;
    let actions = if args.no_act {
        Vec::new()
    } else {
        act::act(ctx, &repo, &args.env, &day, &policy.rules, &reports)?
    };
    let (raised, resolved) = changed.into_iter().partition(|it| it.0.kind == ledger::Kind::Alerted);
    let (day, environment) = (args.day, args.env.clone());
    Ok(Looked { day, environment, report, file, page, raised, resolved, firing, actions })
}

/// A rule about a number that no report has would never be broken.
fn warn_of_unknown(ctx: &Context<'_>, rules: &[Rule], environment: &str, report: &monitor::Report) {
    let own = |it: &&Rule| it.env.as_deref().is_none_or(|it| it == environment);
    for rule in rules.iter().filter(own).filter(|it| !monitor::is_value(&it.value, &report.classes)) {
        ctx.progress.warn(&format!(
            "the alert `{}` is about `{}`, which no report has: `mlx monitor run --json` lists the numbers",
            rule.name, rule.value
        ));
    }
}

/// The report of a sealed day.
fn measure(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    day: Day,
) -> Result<monitor::Report> {
    let repo = workspace.repo;
    let sealed = reference::day(ctx, workspace, environment, day)?;
    let records = sealed.records;
    let last = records.iter().rfind(|it| it.status == 200).or(records.last());
    let last = last.ok_or_else(|| {
        Error::not_found(format!("no traffic of {day} in `{environment}` is sealed")).hint(format!(
            "`mlx traffic seal --day {day} --env {environment}`; `mlx traffic list` shows what is there"
        ))
    })?;
    let version = registry::require(&repo.git, &last.version)?;
    let reference = reference::of(ctx, workspace, environment, &version, day)?;
    let labels = traffic::labels(&repo.files, environment, day)?;
    let hours = hours(ctx, workspace, environment, day, &records)?;
    let day = monitor::Day {
        name: &day.to_string(),
        records: &records,
        samples: &sealed.samples,
        labels: &labels,
        groups: &BTreeMap::new(),
        classes: &reference.classes,
        hours: &hours,
    };
    Ok(monitor::measure(&day, &reference.rows, &Thresholds::default()))
}

/// Hours in which pictures came on most of the last seven sealed days; of the first day its own.
fn hours(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    day: Day,
    own: &[Record],
) -> Result<BTreeSet<u8>> {
    let repo = workspace.repo;
    let mut before = Vec::new();
    for it in traffic::sealed_days(&repo.files, environment)?.into_iter().rev().filter(|it| *it < day) {
        if before.len() < 7 && !traffic::seals(repo, environment, it)?.is_empty() {
            before.push(it);
        }
    }
    if let Err(error) = bring_tables(ctx, repo, environment, &before) {
        ctx.progress.warn(&format!("missing hours are judged by fewer days: {}", error.full_text()));
    }
    let read = before.iter().filter_map(|it| traffic::sealed(repo, environment, *it).ok());
    let days: Vec<BTreeSet<u8>> =
        read.map(|it| it.records.iter().map(|it| Day::hour(it.captured)).collect()).collect();
    Ok(usual(&days).unwrap_or_else(|| own.iter().map(|it| Day::hour(it.captured)).collect()))
}

/// What is in more than half of the days; none without days.
fn usual(days: &[BTreeSet<u8>]) -> Option<BTreeSet<u8>> {
    let often = |hour: &u8| days.iter().filter(|it| it.contains(hour)).count() * 2 > days.len();
    (!days.is_empty()).then(|| (0..24).filter(often).collect())
}

fn transitions(list: &[(Transition, String)]) -> Value {
    list.iter().map(|(it, event)| json!({"rule": it.rule.name, "why": it.text(), "event": event})).collect()
}

impl Report for Looked {
    fn json(&self) -> Value {
        let findings = monitor::findings(&self.report, &self.firing);
        let findings: Vec<Value> = findings
            .iter()
            .map(|it| json!({"level": it.level.word(), "subject": it.subject, "text": it.text}))
            .collect();
        json!({"day": self.day.to_string(), "environment": self.environment, "report": self.file, "page": self.page,
            "values": self.report.values(), "findings": findings, "raised": transitions(&self.raised),
            "resolved": transitions(&self.resolved), "firing": self.firing.iter().map(alert_row).collect::<Vec<_>>(),
            "actions": self.actions})
    }

    fn found(&self) -> bool {
        !self.firing.is_empty() || !self.raised.is_empty()
    }
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", monitor::render_text(&self.report, &self.firing).trim_end())?;
        for (it, _) in &self.raised {
            writeln!(f, "ALERT ({}) {}: {}", it.rule.severity.name(), it.rule.name, it.text())?;
        }
        for (it, _) in &self.resolved {
            writeln!(f, "over: {}: {}", it.rule.name, it.text())?;
        }
        let known = |it: &&alert::Alert| !self.raised.iter().any(|raised| raised.0.rule.name == it.rule);
        for it in self.firing.iter().filter(known) {
            writeln!(f, "still fires since {}: {}", it.day, it.rule)?;
        }
        self.actions.iter().try_for_each(|it| writeln!(f, "{it}"))?;
        write!(f, "page {}", self.page)
    }
}
