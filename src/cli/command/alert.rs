//! `mlx alert`: what was raised, and who took notice.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    alert::{self, Alert},
    cli::{Context, Report, command::approve::in_force, report::table},
    error::{Error, Kind, Result},
    ledger::{self, Draft, Published},
};

/// Look at alerts and take notice of them
#[derive(clap::Subcommand)]
pub enum Command {
    /// List alerts: those that fire, or all
    #[command(after_help = "Examples:\n  mlx alert list\n  mlx alert list --all --env production\n\n\
JSON: {\"alerts\": [{\"number\", \"rule\", \"environment\", \"day\", \"severity\", \"value\", \"resolved\", \"acknowledged\"}]}")]
    List(ListArgs),
    /// Say that you know of an alert and what you do about it
    #[command(
        after_help = "Examples:\n  mlx alert ack 12 --as ada@park.example --why 'the camera is being cleaned'\n\n\
JSON: {\"alert\", \"who\", \"event\", \"pushed_to\"}"
    )]
    Ack(AckArgs),
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// Those that are over, too
    #[arg(long)]
    all: bool,
    /// Only this environment
    #[arg(long)]
    env: Option<String>,
}

#[derive(clap::Args)]
pub struct AckArgs {
    /// The alert's number, as `mlx alert list` shows it
    number: u64,
    /// Who you are
    #[arg(long = "as", value_name = "PERSON")]
    who: String,
    /// What you do about it
    #[arg(long)]
    why: Option<String>,
}

pub struct Alerts(Vec<Alert>);
pub struct Acknowledged(u64, Published);

pub fn list(ctx: &Context<'_>, args: &ListArgs) -> Result<Alerts> {
    let repo = ctx.repo()?;
    let events = ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref())?;
    let mut found = alert::alerts(&events);
    found.retain(|it| args.env.as_ref().is_none_or(|env| *env == it.environment));
    found.retain(|it| args.all || it.resolved.is_none());
    Ok(Alerts(found))
}

pub fn ack(ctx: &Context<'_>, args: &AckArgs) -> Result<Acknowledged> {
    let repo = ctx.repo()?;
    if args.who.trim().is_empty() {
        return Err(Error::usage("nobody is named").hint("say who you are with --as"));
    }
    let published = ledger::publish(&repo, &|view| {
        let events = ledger::read(&repo.git, view.tip.as_ref())?;
        let all = alert::alerts(&events);
        let missing = || {
            Error::not_found(format!("there is no alert {}", args.number))
                .hint("`mlx alert list --all` shows them")
        };
        let found = all.iter().find(|it| it.number == args.number).ok_or_else(missing)?;
        if let Some(who) = &found.acknowledged {
            return Err(Error::new(
                Kind::Conflict,
                format!("{who} took notice of alert {} already", args.number),
            ));
        }
        Ok(Draft {
            kind: ledger::Kind::Acknowledged,
            who: args.who.clone(),
            subject: found.rule.clone(),
            environment: Some(found.environment.clone()),
            why: args.why.clone(),
            facts: [("alert".to_owned(), json!(args.number))].into(),
            tag: None,
        })
    })?;
    Ok(Acknowledged(args.number, published))
}

/// An alert as JSON.
pub fn row(it: &Alert) -> Value {
    json!({"number": it.number, "rule": it.rule, "environment": it.environment, "day": it.day, "severity": it.severity,
        "value": it.value, "resolved": it.resolved, "acknowledged": it.acknowledged})
}

impl Report for Alerts {
    fn json(&self) -> Value {
        json!({"alerts": self.0.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Alerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing fires");
        }
        let row = |it: &Alert| {
            let state =
                it.resolved.as_ref().map_or_else(|| "fires".to_owned(), |day| format!("over on {day}"));
            vec![
                it.number.to_string(),
                it.day.clone(),
                it.environment.clone(),
                it.severity.clone(),
                it.rule.clone(),
                format!("{:.4}", it.value),
                state,
                it.acknowledged.clone().unwrap_or_default(),
            ]
        };
        let head = ["alert", "since", "environment", "severity", "rule", "value", "state", "known to"];
        write!(f, "{}", table(&head, self.0.iter().map(row).collect()))
    }
}

impl Report for Acknowledged {
    fn json(&self) -> Value {
        json!({"alert": self.0, "who": self.1.event.who, "event": self.1.rev.to_string(), "pushed_to": self.1.upstream})
    }
}

impl fmt::Display for Acknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} knows of alert {}", self.1.event.who, self.0)?;
        in_force(f, &self.1)
    }
}
