use std::fmt;

use serde_json::{Value, json};

use crate::{
    audit::{self, Checked, Row},
    cli::{
        Context, Report,
        report::{count, table},
    },
    error::Result,
    ledger,
    path::show,
};

/// Show who did what: one timeline from data to release and alert
///
/// Commits and tags are read from Git, other events from the audit chain (`refs/mlx/audit`), which is fetched
/// first where there is a Git remote. `--verify` looks for an edit, a gap, a reordering, and a cut-off end: exit 10
/// if it finds one.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx audit\n  mlx audit --of pets@v0.1.0\n  mlx audit --verify\n\n\
JSON: {\"rows\": [{\"when\", \"what\", \"who\", \"subject\", \"environment\", \"why\", \"digest\", \"rev\"}]};\n\
  with --verify {\"sound\": bool, \"events\", \"tags\", \"findings\": [text…]}")]
pub struct Args {
    /// Check the record instead of showing it
    #[arg(long)]
    verify: bool,
    /// Only rows about this: a version, an environment, a path, a person
    #[arg(long, value_name = "TEXT")]
    of: Option<String>,
    /// Do not ask the Git remote
    #[arg(long)]
    offline: bool,
}

pub enum Shown {
    Rows(Vec<Row>),
    Checked(Checked),
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Shown> {
    let repo = ctx.repo()?;
    let mut unseen = Vec::new();
    if !args.offline
        && let Err(error) = ledger::refresh(&repo)
    {
        // What is here can be looked at; what the other side hides is itself a finding, unless it is not there at all.
        if args.verify && error.kind() != crate::error::Kind::Unavailable {
            unseen.push(error.full_text());
        } else {
            ctx.progress.warn(&format!("showing what is here: {}", error.full_text()));
        }
    }
    if args.verify {
        let mut checked = audit::verify(&repo)?;
        checked.findings.splice(0..0, unseen);
        return Ok(Shown::Checked(checked));
    }
    let mut rows = audit::timeline(&repo)?;
    if let Some(text) = &args.of {
        let about = |it: &Row| {
            it.subject.contains(text) || it.who.contains(text) || it.environment.as_deref() == Some(text)
        };
        rows.retain(about);
    }
    Ok(Shown::Rows(rows))
}

impl Report for Shown {
    fn json(&self) -> Value {
        match self {
            Self::Checked(it) => {
                json!({"sound": it.findings.is_empty(), "events": it.events, "tags": it.tags, "findings": it.findings})
            }
            Self::Rows(rows) => {
                let row = |it: &Row| {
                    json!({"when": it.when, "what": it.what.name(), "who": it.who, "subject": it.subject,
                        "environment": it.environment, "why": it.why, "digest": it.digest, "rev": it.rev})
                };
                json!({"rows": rows.iter().map(row).collect::<Vec<_>>()})
            }
        }
    }

    fn found(&self) -> bool {
        matches!(self, Self::Checked(it) if !it.findings.is_empty())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checked(it) => {
                it.findings.iter().try_for_each(|it| writeln!(f, "{it}"))?;
                let (events, tags) = (count(it.events as u64, "event"), count(it.tags as u64, "tag"));
                if it.findings.is_empty() {
                    return write!(f, "the record is whole: {events}, {tags}");
                }
                write!(
                    f,
                    "the record is not whole: {} in {events}, {tags}",
                    count(it.findings.len() as u64, "finding")
                )
            }
            Self::Rows(rows) if rows.is_empty() => f.write_str("nothing happened yet that is recorded"),
            Self::Rows(rows) => {
                let row = |it: &Row| {
                    let subject = match &it.environment {
                        Some(environment) => format!("{} in {environment}", it.subject),
                        None => it.subject.clone(),
                    };
                    let digest = it.digest.map(|it| it.short()).unwrap_or_default();
                    let why = it.why.as_deref().unwrap_or_default();
                    vec![
                        show(it.when.as_bytes()),
                        it.what.name().to_owned(),
                        show(subject.as_bytes()),
                        show(it.who.as_bytes()),
                        digest,
                        show(why.as_bytes()),
                    ]
                };
                let head = ["when", "what", "subject", "who", "digest", "why"];
                write!(f, "{}", table(&head, rows.iter().map(row).collect()))
            }
        }
    }
}
