//! `mlx monitor`: a day of traffic looked at, and days that become the new normal.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::{Value, json};

use crate::{
    alert::{self, Sinks, Transition, Values},
    cli::{
        Context, Report,
        command::{alert::row as alert_row, approve::in_force, reference, release, retrain},
    },
    error::{Error, Kind, Result},
    fs::Sync,
    ledger::{self, Draft, Published},
    model::registry,
    monitor::{self, Thresholds},
    path::RepoPath,
    policy::{Action, Policy, Rule},
    repo::Repo,
    time::Day,
    traffic::{self, Record},
    workspace::Workspace,
};

/// Earlier days whose numbers a report shows beside its own.
const TREND: usize = 30;

/// Watch a model in use
#[derive(clap::Subcommand)]
pub enum Command {
    /// Look at a sealed day: integrity, drift, performance, bias, the machine
    ///
    /// Writes `monitor/ENV/DAY.json` and `.html`. Rules of the policy turn findings into alerts: each is an event on
    /// the audit chain and goes where `alert.file`, `alert.command` and `alert.webhook` say. Exit 10 while an alert
    /// fires. The same day again gives the same report and raises nothing twice.
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

#[derive(clap::Args)]
pub struct AcceptArgs {
    /// The first of the days
    #[arg(long)]
    from: Day,
    /// The last of the days
    #[arg(long)]
    to: Day,
    /// Where the model serves
    #[arg(long, default_value = "production")]
    env: String,
    /// Who you are
    #[arg(long = "as", value_name = "PERSON")]
    who: String,
    /// Why
    #[arg(long)]
    why: Option<String>,
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

pub struct Accepted {
    from: Day,
    to: Day,
    published: Published,
}

pub fn run(ctx: &Context<'_>, args: &RunArgs) -> Result<Looked> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let view = ledger::refresh(&repo)?;
    let policy = Policy::at(&repo.git, view.policy.as_ref())?;
    policy.environment(&args.env)?;
    let report = measure(ctx, &workspace, &args.env, args.day)?;
    let (file, page) = write(&repo, &args.env, &report)?;
    let days = values(&repo, &args.env)?;
    let events = ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref())?;
    let (mut raised, mut resolved) = (Vec::new(), Vec::new());
    for transition in alert::decide(&policy.rules, &args.env, &args.day.to_string(), &days, &events) {
        let Some(event) = announce(ctx, &repo, &args.env, &transition, &days)? else { continue };
        let list = if transition.kind == ledger::Kind::Alerted { &mut raised } else { &mut resolved };
        list.push((transition, event));
    }
    let actions = if args.no_act { Vec::new() } else { act(ctx, &repo, &args.env, &raised)? };
    let events = ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref())?;
    let mut firing = alert::alerts(&events);
    firing.retain(|it| it.environment == args.env && it.resolved.is_none() && it.day <= args.day.to_string());
    let (day, environment) = (args.day, args.env.clone());
    Ok(Looked { day, environment, report, file, page, raised, resolved, firing, actions })
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
    let hours = hours(workspace, environment, day, &records)?;
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
fn hours(workspace: &Workspace<'_>, environment: &str, day: Day, own: &[Record]) -> Result<BTreeSet<u8>> {
    let days = traffic::sealed_days(&workspace.repo.files, environment)?;
    let before: Vec<Day> = days.into_iter().rev().filter(|it| *it < day).take(7).collect();
    if before.is_empty() {
        return Ok(own.iter().map(|it| Day::hour(it.captured)).collect());
    }
    let mut seen: BTreeMap<u8, usize> = BTreeMap::new();
    for day in &before {
        // A day that is not here says nothing.
        let Ok(sealed) = traffic::sealed(workspace.repo, environment, *day) else { continue };
        let hours: BTreeSet<u8> = sealed.records.iter().map(|it| Day::hour(it.captured)).collect();
        hours.into_iter().for_each(|it| *seen.entry(it).or_default() += 1);
    }
    Ok(seen.into_iter().filter(|it| it.1 * 2 > before.len()).map(|it| it.0).collect())
}

fn folder(environment: &str) -> Result<RepoPath> {
    RepoPath::from_text(&format!("monitor/{environment}"))
}

/// Writes the report and its page.
fn write(repo: &Repo, environment: &str, report: &monitor::Report) -> Result<(RepoPath, RepoPath)> {
    let folder = folder(environment)?;
    let file = folder.join(format!("{}.json", report.day).as_bytes())?;
    let page = folder.join(format!("{}.html", report.day).as_bytes())?;
    let before = reports(repo, environment)?.into_iter().filter(|it| it.day < report.day).collect::<Vec<_>>();
    let before = &before[before.len().saturating_sub(TREND)..];
    let text =
        serde_json::to_string_pretty(report).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
    repo.files.write(&page, monitor::page(report, before).as_bytes(), Sync::Later)?;
    repo.files.write(&file, format!("{text}\n").as_bytes(), Sync::Yes)?;
    Ok((file, page))
}

/// All reports of an environment, by day.
fn reports(repo: &Repo, environment: &str) -> Result<Vec<monitor::Report>> {
    let folder = folder(environment)?;
    if repo.files.stamp(&folder)?.is_none() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (name, _) in repo.files.dir(&folder)?.names()? {
        if name.ends_with(b".json") {
            let path = folder.join(&name)?;
            let bytes = repo.files.read(&path)?;
            let broken = |it: serde_json::Error| {
                Error::corrupt(format!("`{path}` is no report of a day: {it}"))
                    .hint("`mlx monitor run --day DAY` writes it anew, after you removed it")
            };
            found.push(serde_json::from_slice::<monitor::Report>(&bytes).map_err(broken)?);
        }
    }
    Ok(found)
}

fn values(repo: &Repo, environment: &str) -> Result<BTreeMap<String, Values>> {
    Ok(reports(repo, environment)?.into_iter().map(|it| (it.day.clone(), it.values())).collect())
}

/// Puts a transition on the record and tells people; the event's commit. None when somebody else did so meanwhile.
fn announce(
    ctx: &Context<'_>,
    repo: &Repo,
    environment: &str,
    transition: &Transition,
    days: &BTreeMap<String, Values>,
) -> Result<Option<String>> {
    let rules: Vec<Rule> = vec![transition.rule.clone()];
    let published = ledger::publish(repo, &|view| {
        let events = ledger::read(&repo.git, view.tip.as_ref())?;
        if alert::decide(&rules, environment, &transition.day, days, &events) != [transition.clone()] {
            return Err(Error::new(Kind::Conflict, "another mlx raised it"));
        }
        Ok(Draft {
            kind: transition.kind,
            who: crate::fs::host_name(),
            subject: transition.rule.name.clone(),
            environment: Some(environment.to_owned()),
            why: Some(transition.text()),
            facts: transition.facts(),
            tag: None,
        })
    });
    let published = match published {
        Err(error) if error.kind() == Kind::Conflict && error.to_string() == "another mlx raised it" => {
            return Ok(None);
        }
        other => other?,
    };
    let word = if transition.kind == ledger::Kind::Alerted { "raised" } else { "resolved" };
    let told = json!({"state": word, "rule": transition.rule.name, "environment": environment, "day": transition.day,
        "severity": transition.rule.severity.name(), "number": transition.rule.value, "value": transition.value,
        "text": transition.text(), "alert": published.event.number});
    for error in alert::deliver(&Sinks::of(&repo.config), repo.root(), &told) {
        ctx.progress.warn(&error.full_text());
    }
    Ok(Some(published.rev.to_string()))
}

/// What the raised alerts set off: each kind of action once.
fn act(
    ctx: &Context<'_>,
    repo: &Repo,
    environment: &str,
    raised: &[(Transition, String)],
) -> Result<Vec<String>> {
    let mut told = Vec::new();
    for action in [Action::Rollback, Action::Retrain] {
        let Some((transition, _)) = raised.iter().find(|it| it.0.rule.action == Some(action)) else {
            continue;
        };
        let why = format!("alert `{}`: {}", transition.rule.name, transition.text());
        let done = match action {
            Action::Rollback => release::rollback(repo, None, environment, Some(&why))
                .map(|it| format!("rolled back: {}", it.version())),
            Action::Retrain => {
                let data = RepoPath::from_text("data")?;
                let asked = retrain::Asked { environment, model: None, data, why: Some(&why) };
                retrain::retrain(ctx, repo, &asked)
                    .map(|it| format!("retrained: {} is a candidate", it.candidate()))
            }
        };
        // The alert stands, whatever became of its action.
        match done {
            Ok(text) => told.push(text),
            Err(error) => {
                ctx.progress.warn(&format!("{} could not be done: {}", action.name(), error.full_text()));
                told.push(format!("{} failed: {}", action.name(), error.full_text()));
            }
        }
    }
    Ok(told)
}

pub fn accept(ctx: &Context<'_>, args: &AcceptArgs) -> Result<Accepted> {
    let repo = ctx.repo()?;
    let days = traffic::sealed_days(&repo.files, &args.env)?;
    let within = days.iter().filter(|it| **it >= args.from && **it <= args.to).count();
    if within == 0 {
        return Err(Error::not_found(format!(
            "no day from {} to {} of `{}` is sealed",
            args.from, args.to, args.env
        ))
        .hint("`mlx traffic list` shows what is there"));
    }
    let published = ledger::publish(&repo, &|view| {
        Policy::at(&repo.git, view.policy.as_ref())?.environment(&args.env)?;
        Ok(Draft {
            kind: ledger::Kind::Accepted,
            who: args.who.clone(),
            subject: format!("{} to {}", args.from, args.to),
            environment: Some(args.env.clone()),
            why: args.why.clone(),
            facts: [
                ("from".to_owned(), json!(args.from.to_string())),
                ("to".to_owned(), json!(args.to.to_string())),
            ]
            .into(),
            tag: None,
        })
    })?;
    Ok(Accepted { from: args.from, to: args.to, published })
}

fn transitions(list: &[(Transition, String)]) -> Value {
    list.iter().map(|(it, event)| json!({"rule": it.rule.name, "why": it.text(), "event": event})).collect()
}

impl Report for Looked {
    fn json(&self) -> Value {
        let findings = monitor::findings(&self.report);
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
        writeln!(f, "{}", monitor::text(&self.report).trim_end())?;
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

impl Report for Accepted {
    fn json(&self) -> Value {
        json!({"from": self.from.to_string(), "to": self.to.to_string(), "environment": self.published.event.environment,
            "who": self.published.event.who, "event": self.published.rev.to_string(), "pushed_to": self.published.upstream})
    }
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} to {} are the reference from now on", self.from, self.to)?;
        in_force(f, &self.published)
    }
}
