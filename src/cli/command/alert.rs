//! `mlx alert`: lists alerts and acknowledges them.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    alert::{self, Alert},
    cli::{Context, Report, command::approve::write_publication, report::table},
    error::{Error, Kind, Result},
    ledger::{self, Draft, Published},
};

/// List and acknowledge alerts
#[derive(clap::Subcommand)]
pub enum Command {
    /// List alerts that are firing, or all
    #[command(after_help = "Examples:\n  mlx alert list\n  mlx alert list --all --env production\n\n\
JSON: {\"alerts\": [{\"number\", \"rule\", \"environment\", \"day\", \"severity\", \"value\", \
\"resolved\", \"acknowledged\"}]}")]
    List(ListArgs),
    /// Acknowledge an alert
    #[command(after_help = "Examples:\n  mlx alert ack 12 --as ada@park.example --why 'the camera is being \
        cleaned'\n\n\
JSON: {\"alert\", \"who\", \"event\", \"pushed_to\"}")]
    Ack(AckArgs),
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// Include resolved alerts
    #[arg(long)]
    all: bool,
    /// List only alerts of this environment
    #[arg(long)]
    env: Option<String>,
}

#[derive(clap::Args)]
pub struct AckArgs {
    /// Number of the alert, as shown by `mlx alert list`
    number: u64,
    /// Your name
    #[arg(long = "as", value_name = "PERSON")]
    who: String,
    /// Comment, such as what you do about it
    #[arg(long)]
    why: Option<String>,
}

pub struct Alerts(Vec<Alert>);
pub struct Acknowledged(u64, Published);

pub fn list(ctx: &Context<'_>, args: &ListArgs) -> Result<Alerts> {
    let repo = ctx.repo()?;
    let events = ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref())?;
    let mut alerts = alert::alerts(&events);
    alerts.retain(|alert| args.env.as_ref().is_none_or(|env| *env == alert.environment));
    alerts.retain(|alert| args.all || alert.resolved.is_none());
    Ok(Alerts(alerts))
}

pub fn ack(ctx: &Context<'_>, args: &AckArgs) -> Result<Acknowledged> {
    let repo = ctx.repo()?;
    if args.who.trim().is_empty() {
        return Err(Error::usage("the name is empty").hint("give your name with `--as`"));
    }
    let published = ledger::publish(&repo, &|view| {
        let events = ledger::read(&repo.git, view.tip.as_ref())?;
        let all = alert::alerts(&events);
        let missing = || {
            Error::not_found(format!("alert {} not found", args.number))
                .hint("`mlx alert list --all` shows all alerts")
        };
        let alert = all.iter().find(|alert| alert.number == args.number).ok_or_else(missing)?;
        if let Some(who) = &alert.acknowledged {
            return Err(Error::new(
                Kind::Conflict,
                format!("alert {} was already acknowledged by {who}", args.number),
            ));
        }
        Ok(Draft {
            kind: ledger::Kind::Acknowledged,
            who: args.who.clone(),
            subject: alert.rule.clone(),
            environment: Some(alert.environment.clone()),
            why: args.why.clone(),
            facts: [("alert".to_owned(), json!(args.number))].into(),
            tag: None,
        })
    })?;
    Ok(Acknowledged(args.number, published))
}

/// Returns an alert as JSON.
pub fn alert_json(alert: &Alert) -> Value {
    json!({"number": alert.number, "rule": alert.rule, "environment": alert.environment, "day": alert.day,
        "severity": alert.severity, "value": alert.value, "resolved": alert.resolved,
        "acknowledged": alert.acknowledged})
}

impl Report for Alerts {
    fn json(&self) -> Value {
        json!({"alerts": self.0.iter().map(alert_json).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Alerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no alerts are firing");
        }
        let cells = |alert: &Alert| {
            let resolved = alert.resolved.as_ref();
            let state = resolved.map_or_else(|| "firing".to_owned(), |day| format!("resolved on {day}"));
            vec![
                alert.number.to_string(),
                alert.day.clone(),
                alert.environment.clone(),
                alert.severity.clone(),
                alert.rule.clone(),
                format!("{:.4}", alert.value),
                state,
                alert.acknowledged.clone().unwrap_or_default(),
            ]
        };
        let head = ["alert", "since", "environment", "severity", "rule", "value", "state", "acknowledged by"];
        write!(f, "{}", table(&head, self.0.iter().map(cells).collect()))
    }
}

impl Report for Acknowledged {
    fn json(&self) -> Value {
        json!({"alert": self.0, "who": self.1.event.who, "event": self.1.rev.to_string(),
            "pushed_to": self.1.upstream})
    }
}

impl fmt::Display for Acknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "alert {} acknowledged by {}", self.0, self.1.event.who)?;
        write_publication(f, &self.1)
    }
}
