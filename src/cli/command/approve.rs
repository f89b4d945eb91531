//! `mlx approve` and `mlx reject`: somebody's word on a version.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, command::evidence, report::table},
    error::{Error, Kind, Result},
    ledger::{self, Draft, Published, Signed, TagDraft, View},
    model::registry::{self, Version},
    pointer::Content,
    policy::{Environment, Gate, Policy, gates},
    release::{self, Message, Verdict},
    repo::Repo,
    upkeep,
};

/// Vouch for a version in an environment
///
/// An annotated tag that names the package by its digest, the report and the policy, and an event on the audit
/// chain; both are pushed at once, or nothing is in force. With `signed = true` in the policy it is signed with the
/// key that Git signs with.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx approve pets@v0.1.0 --env production --report apptest/report.json --as qa@park.example\n\n\
JSON: {\"version\", \"environment\", \"verdict\", \"who\", \"tag\", \"event\", \"pushed_to\", \"signed\", \"report\", \"gates\": [{\"gate\", \"asked\", \"found\", \"open\"}]}"
)]
pub struct ApproveArgs {
    #[command(flatten)]
    word: Word,
    /// What `mlx apptest` found, as JSON
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
    /// What you want to add
    #[arg(long)]
    why: Option<String>,
}

/// Say that a version must not serve in an environment
///
/// It stands until the same person approves the version.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx reject pets@v0.1.0 --env production --as qa@park.example --why 'confuses puppies'\n\n\
JSON: as `mlx approve`"
)]
pub struct RejectArgs {
    #[command(flatten)]
    word: Word,
    /// Why
    #[arg(long)]
    why: String,
}

#[derive(clap::Args)]
struct Word {
    /// `pets@v0.1.0`
    version: String,
    /// Where it would serve
    #[arg(long)]
    env: String,
    /// Who you are, as the policy names you
    #[arg(long = "as", value_name = "PERSON")]
    who: String,
}

pub struct Said {
    verdict: Verdict,
    version: String,
    environment: String,
    who: String,
    report: Option<Content>,
    gates: Vec<Gate>,
    signed: bool,
    published: Published,
}

/// What is said, before it is known whether it may be.
struct Saying<'s> {
    verdict: Verdict,
    word: &'s Word,
    why: Option<&'s str>,
    report: Option<(Content, Vec<u8>)>,
}

pub fn approve(ctx: &Context<'_>, args: &ApproveArgs) -> Result<Said> {
    let repo = ctx.repo()?;
    let bytes = crate::fs::read_outside(&ctx.cwd.join(&args.report))?;
    let (word, why) = (&args.word, args.why.as_deref());
    // Everything that can be wrong is looked at before anything is kept.
    let view = ledger::refresh(&repo)?;
    let (_, _, version) = permitted(&repo, &view, word)?;
    evidence::of(&bytes, &version)?;
    let report = evidence::keep(ctx, &repo, &bytes)?;
    say(ctx, &repo, Saying { verdict: Verdict::Approved, word, why, report: Some((report, bytes)) })
}

pub fn reject(ctx: &Context<'_>, args: &RejectArgs) -> Result<Said> {
    let repo = ctx.repo()?;
    if args.why.trim().is_empty() {
        return Err(Error::usage("a rejection needs a reason").hint("say it with --why"));
    }
    say(
        ctx,
        &repo,
        Saying { verdict: Verdict::Rejected, word: &args.word, why: Some(&args.why), report: None },
    )
}

/// The policy's word on who may speak here, and the version spoken of.
fn permitted(repo: &Repo, view: &View, word: &Word) -> Result<(Policy, Environment, Version)> {
    let policy = Policy::at(&repo.git, view.policy.as_ref())?;
    let asked = policy.environment(&word.env)?.clone();
    let version = exactly(repo, &word.version)?;
    if !asked.approvers.contains(&word.who) {
        let error = Error::new(
            Kind::Denied,
            format!("the policy does not list `{}` as approver of `{}`", word.who, word.env),
        );
        return Err(error.hint(format!("it lists: {}", asked.approvers.join(", "))));
    }
    Ok((policy, asked, version))
}

/// A version with its number: who vouches has to say for what.
pub fn exactly(repo: &Repo, name: &str) -> Result<Version> {
    if name.contains('@') {
        return registry::require(&repo.git, name);
    }
    Err(Error::usage(format!("`{name}` names no version"))
        .hint(format!("write it with its number: {name}@v0.1.0")))
}

fn say(ctx: &Context<'_>, repo: &Repo, saying: Saying<'_>) -> Result<Said> {
    let state = std::cell::RefCell::new(None);
    let published = ledger::publish(repo, &|view| {
        let (policy, asked, version) = permitted(repo, view, saying.word)?;
        *state.borrow_mut() = Some((asked.clone(), version.clone()));
        draft(repo, &policy, &asked, &version, &saying)
    })?;
    upkeep::renew(repo, ctx.progress)?;
    let (asked, version) = state.into_inner().expect("what is published was made");
    let found = saying.report.as_ref().map(|it| evidence::of(&it.1, &version)).transpose()?;
    Ok(Said {
        verdict: saying.verdict,
        version: version.name(),
        environment: saying.word.env.clone(),
        who: saying.word.who.clone(),
        report: saying.report.map(|it| it.0),
        gates: found.map(|it| gates(&asked, &it)).unwrap_or_default(),
        signed: asked.signed,
        published,
    })
}

fn draft(
    repo: &Repo,
    policy: &Policy,
    asked: &Environment,
    version: &Version,
    saying: &Saying<'_>,
) -> Result<Draft> {
    let (name, word) = (version.name(), saying.word);
    let before = release::decisions(&repo.git, Some(&name))?;
    let last = before.iter().filter(|it| it.environment == word.env).max_by_key(|it| it.number);
    let number = last.map_or(0, |it| it.number) + 1;
    let tag = saying.verdict.tag_name(&name, &word.env, number);
    let mut message = Message::new(&name, version.package.digest, policy.digest, &word.who);
    message.previous = last.map(|it| it.tag.name.clone());
    message.why = saying.why.map(str::to_owned);
    message.report = saying.report.as_ref().map(|it| it.0);
    let title = format!("{} {name} for {}", saying.verdict.name(), word.env);
    let mut facts: std::collections::BTreeMap<String, Value> =
        [("package".to_owned(), json!(message.package)), ("policy".to_owned(), json!(message.policy))].into();
    facts.extend(message.report.map(|it| ("report".to_owned(), json!(it.digest))));
    let signed = || {
        let (signer, keys) = (repo.git.signer()?, policy.keys(&word.who)?);
        Ok::<_, Error>(Signed { signer, person: word.who.clone(), keys })
    };
    let signed = asked.signed.then(signed).transpose()?;
    Ok(Draft {
        kind: saying.verdict.kind(),
        who: word.who.clone(),
        subject: name,
        environment: Some(word.env.clone()),
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

/// Gates as rows of JSON.
pub fn gates_json(gates: &[Gate]) -> Value {
    gates
        .iter()
        .map(|it| json!({"gate": it.name, "asked": it.asked, "found": it.found, "open": it.is_open}))
        .collect()
}

/// Gates as a table.
pub fn gates_table(gates: &[Gate]) -> String {
    let rows = gates.iter().map(|it| {
        let word = if it.is_open { "open" } else { "CLOSED" };
        vec![it.name.clone(), it.asked.clone(), it.found.clone(), word.to_owned()]
    });
    table(&["gate", "asked", "found", ""], rows.collect()).to_string()
}

impl Report for Said {
    fn json(&self) -> Value {
        json!({"version": self.version, "environment": self.environment, "verdict": self.verdict.name(), "who": self.who,
            "tag": self.published.event.tag, "event": self.published.rev.to_string(), "pushed_to": self.published.upstream,
            "signed": self.signed, "report": self.report.map(|it| it.digest), "gates": gates_json(&self.gates)})
    }
}

impl fmt::Display for Said {
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
            writeln!(f, "  the policy asks for no signature: names are claims")?;
        }
        in_force(f, &self.published)?;
        if self.gates.iter().any(|it| !it.is_open) {
            write!(f, "not enough for a release:\n{}", gates_table(&self.gates))?;
        }
        Ok(())
    }
}

/// Where an event is in force.
pub fn in_force(f: &mut fmt::Formatter<'_>, published: &Published) -> fmt::Result {
    match &published.upstream {
        Some(upstream) => writeln!(f, "  pushed to {upstream}"),
        None => writeln!(f, "  in force in this repository: it has no Git remote"),
    }
}
