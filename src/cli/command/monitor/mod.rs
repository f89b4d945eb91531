//! `mlx monitor`: reports on a day of traffic and its alerts, and accepts days as the new reference.

mod accept;
mod actions;
mod publish;
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
        command::{alert::alert_json, baseline, traffic::fetch_tables},
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

/// Monitor a model in production
#[derive(clap::Subcommand)]
pub enum Command {
    /// Report on a sealed day: integrity, drift, performance, bias, machine load
    ///
    /// Writes `monitor/ENV/DAY.json` and `.html`. Rules of the policy turn measured values into alerts: each
    /// is an event on the audit chain and is delivered to `alert.file`, `alert.command` and `alert.webhook`
    /// of the configuration. Exits with 10 while an alert fires. Running the same day again gives the same
    /// report and raises no alert twice; failed deliveries and actions are retried. A rule with `days = N`
    /// reads the reports of earlier days: commit `monitor/`, or they are missing in the next clone.
    #[command(after_help = "Examples:\n  mlx monitor run --day 2026-03-09 --env production\n\n\
JSON: {\"day\", \"environment\", \"report\": FILE, \"page\": FILE, \"values\": {NAME: number}, \
\"findings\": [{\"level\", \"subject\", \"text\"}],\n  \"raised\": [{\"rule\", \"why\", \"event\"}], \
\"resolved\": […], \"firing\": [as `mlx alert list`], \"actions\": [text…]}")]
    Run(RunArgs),
    /// Accept days as the new reference that later days are compared with
    #[command(
        after_help = "Examples:\n  mlx monitor accept --from 2026-03-15 --to 2026-03-17 --env production \
        --as qa@park.example --why 'new camera'\n\n\
JSON: {\"from\", \"to\", \"environment\", \"who\", \"event\", \"pushed_to\"}"
    )]
    Accept(AcceptArgs),
}

#[derive(clap::Args)]
pub struct RunArgs {
    /// Day to report on, UTC, as in 2026-03-09
    #[arg(long)]
    day: Day,
    /// Environment in which the model serves
    #[arg(long, default_value = "production")]
    env: String,
    /// Raise alerts, but run none of their actions
    #[arg(long)]
    no_act: bool,
}

pub struct RunOutcome {
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

pub fn run(ctx: &Context<'_>, args: &RunArgs) -> Result<RunOutcome> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let view = ledger::refresh(&repo)?;
    let policy = Policy::at(&repo.git, view.policy.as_ref())?;
    policy.environment(&args.env)?;
    let report = measure(ctx, &workspace, &args.env, args.day)?;
    warn_of_unknown_values(ctx, &policy.rules, &args.env, &report);
    let mut reports = reports::Reports::read(ctx, &repo, &args.env)?;
    let file = reports.write(&repo, &report)?;
    let (day, days) = (args.day.to_string(), reports.values());
    let events = || ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref());
    let changes = alert::decide(&policy.rules, &args.env, &day, &days, &events()?);
    let published = publish::publish_transitions(ctx, &repo, &args.env, changes, &days)?;
    let firing = alert::firing(&events()?, &args.env, &day);
    let page = reports.write_page(&repo, &report, &firing)?;
    let actions = if args.no_act {
        Vec::new()
    } else {
        actions::run_due_actions(ctx, &repo, &args.env, &day, &policy.rules, &reports)?
    };
    let (raised, resolved) =
        published.into_iter().partition(|(transition, _)| transition.kind == ledger::Kind::Alerted);
    let (day, environment) = (args.day, args.env.clone());
    Ok(RunOutcome { day, environment, report, file, page, raised, resolved, firing, actions })
}

/// Warns of rules about a value that no report has: they would never fire.
fn warn_of_unknown_values(ctx: &Context<'_>, rules: &[Rule], environment: &str, report: &monitor::Report) {
    let applies = |rule: &&Rule| rule.env.as_deref().is_none_or(|env| env == environment);
    let unknown = |rule: &&Rule| !monitor::is_value(&rule.value, &report.classes);
    for rule in rules.iter().filter(applies).filter(unknown) {
        ctx.progress.warn(&format!(
            "the alert `{}` uses `{}`, which no report has: `mlx monitor run --json` lists the values",
            rule.name, rule.value
        ));
    }
}

/// Measures a sealed day against the reference of the version that answered last.
fn measure(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    day: Day,
) -> Result<monitor::Report> {
    let repo = workspace.repo;
    let sealed = baseline::sealed_day(ctx, workspace, environment, day)?;
    let records = sealed.records;
    let last = records.iter().rfind(|record| record.status == 200).or(records.last());
    let last = last.ok_or_else(|| {
        Error::not_found(format!("no traffic of {day} in `{environment}` is sealed")).hint(format!(
            "`mlx traffic seal --day {day} --env {environment}`; `mlx traffic list` shows the sealed days"
        ))
    })?;
    let version = registry::require(&repo.git, &last.version)?;
    let reference = baseline::load(ctx, workspace, environment, &version, day)?;
    let labels = traffic::read_labels(&repo.files, environment, day)?;
    let hours = expected_hours(ctx, workspace, environment, day, &records)?;
    let day = monitor::Day {
        name: &day.to_string(),
        records: &records,
        samples: &sealed.samples,
        labels: &labels,
        groups: &BTreeMap::new(),
        classes: &reference.classes,
        expected_hours: &hours,
    };
    Ok(monitor::measure(&day, &reference.rows, &Thresholds::default()))
}

/// Returns the hours in which images are expected: those with images on most of the last seven sealed days,
/// or the day's own hours if it is the first.
fn expected_hours(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    day: Day,
    own: &[Record],
) -> Result<BTreeSet<u8>> {
    let repo = workspace.repo;
    let mut before = Vec::new();
    let sealed_days = traffic::sealed_days(&repo.files, environment)?;
    for earlier in sealed_days.into_iter().rev().filter(|sealed| *sealed < day) {
        if before.len() < 7 && !traffic::seal_pointers(repo, environment, earlier)?.is_empty() {
            before.push(earlier);
        }
    }
    if let Err(error) = fetch_tables(ctx, repo, environment, &before) {
        ctx.progress.warn(&format!("missing hours are determined from fewer days: {}", error.chain_text()));
    }
    let hours_of = |records: &[Record]| records.iter().map(|it| Day::hour(it.captured)).collect();
    let readable = before.iter().filter_map(|day| traffic::read_sealed(repo, environment, *day).ok());
    let days: Vec<BTreeSet<u8>> = readable.map(|sealed| hours_of(&sealed.records)).collect();
    Ok(majority(&days).unwrap_or_else(|| hours_of(own)))
}

/// Returns the hours that occur on more than half of the days; `None` without days.
fn majority(days: &[BTreeSet<u8>]) -> Option<BTreeSet<u8>> {
    let frequent = |hour: &u8| days.iter().filter(|hours| hours.contains(hour)).count() * 2 > days.len();
    (!days.is_empty()).then(|| (0..24).filter(frequent).collect())
}

fn transitions(list: &[(Transition, String)]) -> Value {
    list.iter()
        .map(|(transition, event)| {
            json!({"rule": transition.rule.name, "why": transition.text(), "event": event})
        })
        .collect()
}

impl Report for RunOutcome {
    fn json(&self) -> Value {
        let findings = monitor::findings(&self.report, &self.firing);
        let findings: Vec<Value> = findings
            .iter()
            .map(|finding| {
                json!({"level": finding.level.word(), "subject": finding.subject, "text": finding.text})
            })
            .collect();
        json!({"day": self.day.to_string(), "environment": self.environment, "report": self.file,
            "page": self.page,
            "values": self.report.values(), "findings": findings, "raised": transitions(&self.raised),
            "resolved": transitions(&self.resolved),
            "firing": self.firing.iter().map(alert_json).collect::<Vec<_>>(),
            "actions": self.actions})
    }

    fn has_findings(&self) -> bool {
        !self.firing.is_empty() || !self.raised.is_empty()
    }
}

impl fmt::Display for RunOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", monitor::render_text(&self.report, &self.firing).trim_end())?;
        for (raised, _) in &self.raised {
            writeln!(f, "ALERT ({}) {}: {}", raised.rule.severity.name(), raised.rule.name, raised.text())?;
        }
        for (resolved, _) in &self.resolved {
            writeln!(f, "resolved: {}: {}", resolved.rule.name, resolved.text())?;
        }
        let is_older =
            |alert: &&alert::Alert| !self.raised.iter().any(|(raised, _)| raised.rule.name == alert.rule);
        for alert in self.firing.iter().filter(is_older) {
            writeln!(f, "still firing since {}: {}", alert.day, alert.rule)?;
        }
        self.actions.iter().try_for_each(|action| writeln!(f, "{action}"))?;
        write!(f, "page: {}", self.page)
    }
}
