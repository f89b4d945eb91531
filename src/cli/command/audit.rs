//! `mlx audit`: shows or checks the audit trail.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    audit::{self, Row, Verification},
    cli::{
        Context, Report,
        report::{count, table},
    },
    error::Result,
    ledger,
    path::escape_bytes,
};

/// Show who did what, from data to releases and alerts
///
/// Commits and tags are read from Git, other events from the audit chain (`refs/mlx/audit`), which is first
/// fetched if there is a Git remote. `--verify` checks for edited, missing, reordered and cut-off events
/// instead, and exits with code 10 if it finds any.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx audit\n  mlx audit --of pets@v0.1.0\n  mlx audit --verify\n\n\
JSON: {\"rows\": [{\"when\", \"what\", \"who\", \"subject\", \"environment\", \"why\", \"digest\", \
\"rev\"}]};\n\
  with --verify {\"sound\": bool, \"events\", \"tags\", \"findings\": [text…]}")]
pub struct Args {
    /// Check the audit trail instead of showing it
    #[arg(long)]
    verify: bool,
    /// Show only rows about this version, environment, path or person
    #[arg(long, value_name = "TEXT")]
    of: Option<String>,
    /// Do not fetch from the Git remote
    #[arg(long)]
    offline: bool,
}

pub enum Output {
    Rows(Vec<Row>),
    Verification(Verification),
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Output> {
    let repo = ctx.repo()?;
    let mut fetch_errors = Vec::new();
    if !args.offline
        && let Err(error) = ledger::refresh(&repo)
    {
        // The local events can still be shown. For a check, a failed fetch is a finding itself, since the
        // remote may withhold events, except when the remote is not reachable at all.
        if args.verify && error.kind() != crate::error::Kind::Unavailable {
            fetch_errors.push(error.chain_text());
        } else {
            ctx.progress.warn(&format!("only local events are used: {}", error.chain_text()));
        }
    }
    if args.verify {
        let mut result = audit::verify(&repo)?;
        result.findings.splice(0..0, fetch_errors);
        return Ok(Output::Verification(result));
    }
    let mut rows = audit::timeline(&repo)?;
    if let Some(text) = &args.of {
        let matches = |row: &Row| {
            row.subject.contains(text) || row.who.contains(text) || row.environment.as_deref() == Some(text)
        };
        rows.retain(matches);
    }
    Ok(Output::Rows(rows))
}

impl Report for Output {
    fn json(&self) -> Value {
        match self {
            Self::Verification(result) => {
                json!({"sound": result.findings.is_empty(), "events": result.events, "tags": result.tags,
                    "findings": result.findings})
            }
            Self::Rows(rows) => {
                let row = |row: &Row| {
                    json!({"when": row.when, "what": row.activity.name(), "who": row.who,
                        "subject": row.subject,
                        "environment": row.environment, "why": row.why, "digest": row.digest, "rev": row.rev})
                };
                json!({"rows": rows.iter().map(row).collect::<Vec<_>>()})
            }
        }
    }

    fn has_findings(&self) -> bool {
        matches!(self, Self::Verification(it) if !it.findings.is_empty())
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verification(result) => {
                let findings = &result.findings;
                findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
                let (events, tags) = (count(result.events as u64, "event"), count(result.tags as u64, "tag"));
                if findings.is_empty() {
                    return write!(f, "the audit trail is intact: {events}, {tags}");
                }
                let findings = count(findings.len() as u64, "finding");
                write!(f, "the audit trail is not intact: {findings} in {events}, {tags}")
            }
            Self::Rows(rows) if rows.is_empty() => f.write_str("no recorded activity"),
            Self::Rows(rows) => {
                let cells = |row: &Row| {
                    let subject = match &row.environment {
                        Some(environment) => format!("{} in {environment}", row.subject),
                        None => row.subject.clone(),
                    };
                    let digest = row.digest.map(|digest| digest.short()).unwrap_or_default();
                    let why = row.why.as_deref().unwrap_or_default();
                    vec![
                        escape_bytes(row.when.as_bytes()),
                        row.activity.name().to_owned(),
                        escape_bytes(subject.as_bytes()),
                        escape_bytes(row.who.as_bytes()),
                        digest,
                        escape_bytes(why.as_bytes()),
                    ]
                };
                let head = ["when", "what", "subject", "who", "digest", "why"];
                write!(f, "{}", table(&head, rows.iter().map(cells).collect()))
            }
        }
    }
}
