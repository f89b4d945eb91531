//! `mlx approve` and `mlx reject`: record an approver's decision on a version in an environment.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, command::evidence, report::table},
    error::{Error, Kind, Result},
    ledger::{self, Draft, LedgerState, Published, RequiredSignature, TagDraft},
    maintenance,
    model::registry::{self, Version},
    pointer::Content,
    policy::{Environment, Gate, Policy, check_limits},
    release::{self, Message, Verdict},
    repo::Repo,
};

/// Approve a version for an environment
///
/// Creates an annotated tag that names the digests of the package, the report and the policy, and an event on
/// the audit chain. Both are pushed at once; if the push fails, the approval is not in effect. With `signed =
/// true` in the policy the tag is signed with the key that Git signs with.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx approve pets@v0.1.0 --env production --report apptest/report.json --as \
    qa@park.example\n\n\
JSON: {\"version\", \"environment\", \"verdict\", \"who\", \"tag\", \"event\", \"pushed_to\", \"signed\", \
\"report\", \"gates\": [{\"gate\", \"asked\", \"found\", \"open\"}]}"
)]
pub struct ApproveArgs {
    #[command(flatten)]
    target: Target,
    /// JSON report written by `mlx apptest`
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
    /// Reason or comment
    #[arg(long)]
    why: Option<String>,
}

/// Reject a version for an environment
///
/// The rejection is in effect until the same person approves the version.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx reject pets@v0.1.0 --env production --as qa@park.example --why \
    'confuses puppies'\n\n\
JSON: as `mlx approve`")]
pub struct RejectArgs {
    #[command(flatten)]
    target: Target,
    /// Reason for the rejection
    #[arg(long)]
    why: String,
}

#[derive(clap::Args)]
struct Target {
    /// Version, such as `pets@v0.1.0`
    version: String,
    /// Environment to decide on
    #[arg(long)]
    env: String,
    /// Your name as the policy lists it
    #[arg(long = "as", value_name = "PERSON")]
    who: String,
}

pub struct DecisionReport {
    verdict: Verdict,
    version: String,
    environment: String,
    who: String,
    report: Option<Content>,
    gates: Vec<Gate>,
    signed: bool,
    published: Published,
}

/// A decision to be published, before it is checked whether the policy allows it.
struct NewDecision<'s> {
    verdict: Verdict,
    target: &'s Target,
    why: Option<&'s str>,
    report: Option<(Content, Vec<u8>)>,
}

pub fn approve(ctx: &Context<'_>, args: &ApproveArgs) -> Result<DecisionReport> {
    let repo = ctx.repo()?;
    let bytes = crate::fs::read_user_file(&ctx.cwd.join(&args.report))?;
    let (target, why) = (&args.target, args.why.as_deref());
    // Everything that can fail is checked before the report is stored.
    let view = ledger::refresh(&repo)?;
    let (_, _, version) = authorize(&repo, &view, target)?;
    evidence::parse_for(&bytes, &version)?;
    let report = evidence::store_report(ctx, &repo, &bytes)?;
    publish(
        ctx,
        &repo,
        NewDecision { verdict: Verdict::Approved, target, why, report: Some((report, bytes)) },
    )
}

pub fn reject(ctx: &Context<'_>, args: &RejectArgs) -> Result<DecisionReport> {
    let repo = ctx.repo()?;
    if args.why.trim().is_empty() {
        return Err(Error::usage("a rejection needs a reason").hint("give it with `--why`"));
    }
    publish(
        ctx,
        &repo,
        NewDecision { verdict: Verdict::Rejected, target: &args.target, why: Some(&args.why), report: None },
    )
}

/// Checks that the policy lists the person as an approver. Returns the policy, the environment's requirements
/// and the version.
fn authorize(repo: &Repo, view: &LedgerState, target: &Target) -> Result<(Policy, Environment, Version)> {
    let policy = Policy::at(&repo.git, view.policy.as_ref())?;
    let required = policy.environment(&target.env)?.clone();
    let version = require_version(repo, &target.version)?;
    if !required.approvers.contains(&target.who) {
        let error = Error::new(
            Kind::Denied,
            format!("the policy does not list `{}` as an approver of `{}`", target.who, target.env),
        );
        return Err(error.hint(format!("listed approvers: {}", required.approvers.join(", "))));
    }
    Ok((policy, required, version))
}

/// Finds a version named with its number: decisions and releases are about one certain version.
pub fn require_version(repo: &Repo, name: &str) -> Result<Version> {
    if name.contains('@') {
        return registry::require(&repo.git, name);
    }
    Err(Error::usage(format!("`{name}` is not the full name of a version"))
        .hint(format!("add the number, such as `{name}@v0.1.0`; `mlx model list` shows all versions")))
}

/// Publishes a decision: its tag and its event on the audit chain.
fn publish(ctx: &Context<'_>, repo: &Repo, decision: NewDecision<'_>) -> Result<DecisionReport> {
    let state = std::cell::RefCell::new(None);
    let published = ledger::publish(repo, &|view| {
        let (policy, required, version) = authorize(repo, view, decision.target)?;
        *state.borrow_mut() = Some((required.clone(), version.clone()));
        draft(repo, &policy, &required, &version, &decision)
    })?;
    maintenance::publish_needs(repo, ctx.progress)?;
    let (required, version) = state.into_inner().expect("a published decision was drafted");
    let report = decision.report.as_ref();
    let evidence = report.map(|(_, bytes)| evidence::parse_for(bytes, &version)).transpose()?;
    Ok(DecisionReport {
        verdict: decision.verdict,
        version: version.name(),
        environment: decision.target.env.clone(),
        who: decision.target.who.clone(),
        report: decision.report.map(|(content, _)| content),
        gates: evidence.map(|evidence| check_limits(&required, &evidence)).unwrap_or_default(),
        signed: required.signed,
        published,
    })
}

/// Drafts the event and the tag of a decision.
fn draft(
    repo: &Repo,
    policy: &Policy,
    required: &Environment,
    version: &Version,
    decision: &NewDecision<'_>,
) -> Result<Draft> {
    let (name, target) = (version.name(), decision.target);
    let before = release::decisions(&repo.git, Some(&name))?;
    let last = before.iter().filter(|past| past.environment == target.env).max_by_key(|past| past.number);
    let number = last.map_or(0, |past| past.number) + 1;
    let tag = decision.verdict.tag_name(&name, &target.env, number);
    let mut message = Message::new(&name, version.package.digest, policy.digest, &target.who);
    message.previous = last.map(|past| past.tag.name.clone());
    message.why = decision.why.map(str::to_owned);
    message.report = decision.report.as_ref().map(|(content, _)| *content);
    let title = format!("{} {name} for {}", decision.verdict.name(), target.env);
    let mut facts: std::collections::BTreeMap<String, Value> =
        [("package".to_owned(), json!(message.package)), ("policy".to_owned(), json!(message.policy))].into();
    facts.extend(message.report.map(|report| ("report".to_owned(), json!(report.digest))));
    let signed = || {
        let (signer, keys) = (repo.git.signer()?, policy.keys(&target.who)?);
        Ok::<_, Error>(RequiredSignature { signer, person: target.who.clone(), keys })
    };
    let signed = required.signed.then(signed).transpose()?;
    Ok(Draft {
        kind: decision.verdict.kind(),
        who: target.who.clone(),
        subject: name,
        environment: Some(target.env.clone()),
        why: message.why.clone(),
        facts,
        tag: Some(TagDraft {
            name: tag,
            rev: version.tag.rev.clone(),
            message: message.print(&title)?,
            signed,
        }),
    })
}

/// Returns gates as JSON.
pub fn gates_json(gates: &[Gate]) -> Value {
    gates
        .iter()
        .map(|gate| {
            json!({"gate": gate.name, "asked": gate.required, "found": gate.found,
            "open": gate.is_open})
        })
        .collect()
}

/// Returns gates as a table.
pub fn gates_table(gates: &[Gate]) -> String {
    let rows = gates.iter().map(|gate| {
        let state = if gate.is_open { "open" } else { "CLOSED" };
        vec![gate.name.clone(), gate.required.clone(), gate.found.clone(), state.to_owned()]
    });
    table(&["gate", "required", "found", "state"], rows.collect()).to_string()
}

impl Report for DecisionReport {
    fn json(&self) -> Value {
        json!({"version": self.version, "environment": self.environment, "verdict": self.verdict.name(),
            "who": self.who,
            "tag": self.published.event.tag, "event": self.published.rev.to_string(),
            "pushed_to": self.published.upstream,
            "signed": self.signed, "report": self.report.map(|report| report.digest),
            "gates": gates_json(&self.gates)})
    }
}

impl fmt::Display for DecisionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} for {} by {}", self.verdict.name(), self.version, self.environment, self.who)?;
        writeln!(
            f,
            "  tag {}, event {}",
            self.published.event.tag.as_deref().unwrap_or_default(),
            self.published.rev.short()
        )?;
        if let Some(report) = &self.report {
            writeln!(f, "  report {}", report.digest)?;
        }
        if !self.signed {
            writeln!(
                f,
                "  not signed, since the policy does not require it: the approver's name is not verified"
            )?;
        }
        write_publication(f, &self.published)?;
        if self.gates.iter().any(|it| !it.is_open) {
            write!(f, "some gates for a release are still closed:\n{}", gates_table(&self.gates))?;
        }
        Ok(())
    }
}

/// Writes where an event is in effect.
pub fn write_publication(f: &mut fmt::Formatter<'_>, published: &Published) -> fmt::Result {
    match &published.upstream {
        Some(upstream) => writeln!(f, "  pushed to {upstream}"),
        None => writeln!(f, "  in effect in this repository only: no Git remote is configured"),
    }
}
