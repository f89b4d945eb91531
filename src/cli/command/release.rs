//! `mlx release` and `mlx rollback`: choose the version that serves in an environment.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            approve::{gates_json, gates_table, require_version, write_publication},
            evidence, version,
        },
    },
    error::{Error, Kind, Result},
    ledger::{self, Draft, LedgerState, Published, TagDraft},
    model::registry::{self, Version},
    pointer::Content,
    policy::Policy,
    release::{self, Assessment, Message, Release, Verdict},
    repo::Repo,
};

/// Release a version to an environment
///
/// Exits with code 10 while gates of the policy are closed. The package is sent to the default remote, the
/// tag `MODEL#ENV#N` and the event to the Git remote; if sending fails, the release is not in effect.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx release pets@v0.1.0 --env production --why 'new camera'\n\n\
JSON: {\"version\", \"environment\", \"released\": bool, \"tag\", \"event\", \"pushed_to\", \"gates\": \
[{\"gate\", \"asked\", \"found\", \"open\"}], \"notes\": [text…]}")]
pub struct ReleaseArgs {
    /// Version, such as `pets@v0.1.0`
    version: String,
    /// Environment to release to
    #[arg(long)]
    env: String,
    /// Reason
    #[arg(long)]
    why: Option<String>,
}

/// Roll back to the version that served before
///
/// Needs no new approval, but fails if an approver rejected that version in the meantime.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx rollback --env production --why 'too many wrong answers'\n\nJSON: as \
    `mlx release`"
)]
pub struct RollbackArgs {
    /// Model to roll back (default: the only one in the environment)
    model: Option<String>,
    /// Environment to roll back
    #[arg(long)]
    env: String,
    /// Reason
    #[arg(long)]
    why: Option<String>,
}

pub struct ReleaseReport {
    version: String,
    environment: String,
    assessment: Assessment,
    /// Published event; none if gates are closed.
    published: Option<Published>,
}

pub fn release(ctx: &Context<'_>, args: &ReleaseArgs) -> Result<ReleaseReport> {
    let repo = ctx.repo()?;
    let view = ledger::refresh(&repo)?;
    let (policy, version, assessment) = assess(ctx, &repo, &view, &args.version, &args.env)?;
    let outcome = |assessment, published| ReleaseReport {
        version: version.name(),
        environment: args.env.clone(),
        assessment,
        published,
    };
    if !assessment.may_serve() {
        return Ok(outcome(assessment, None));
    }
    drop(policy);
    version::fetch_package(ctx, &repo, &version, None)?;
    evidence::send(ctx, &repo, vec![(version.path.clone(), version.package)])?;
    let published = ledger::publish(&repo, &|view| {
        let (policy, version, assessment) = assess(ctx, &repo, view, &args.version, &args.env)?;
        if !assessment.may_serve() {
            return Err(Error::new(Kind::Denied, "a gate was closed in the meantime")
                .hint("run it again to see which"));
        }
        let before = release::releases(&repo.git, Some(&version.model), &args.env)?;
        if release::active_releases(&before).last().is_some_and(|last| last.message.version == version.name())
        {
            return Err(Error::new(
                Kind::Conflict,
                format!("`{}` already serves in `{}`", version.name(), args.env),
            )
            .hint("`mlx audit` shows when it was released; `mlx rollback` returns to the version before"));
        }
        let mut message =
            Message::new(&version.name(), version.package.digest, policy.digest, &repo.git.identity()?);
        message.approvals = assessment.approvals.iter().map(|approval| approval.tag.name.clone()).collect();
        draft(&version, &args.env, &before, message, args.why.as_deref())
    })?;
    Ok(outcome(assessment, Some(published)))
}

/// Assesses a version against the policy that is in effect.
fn assess(
    ctx: &Context<'_>,
    repo: &Repo,
    view: &LedgerState,
    name: &str,
    environment: &str,
) -> Result<(Policy, Version, Assessment)> {
    let policy = Policy::at(&repo.git, view.policy.as_ref())?;
    policy.environment(environment)?;
    let version = require_version(repo, name)?;
    let load = |report: &Content| evidence::load(ctx, repo, report);
    let assessment = release::assess(repo, &policy, &version, environment, &load)?;
    Ok((policy, version, assessment))
}

/// Rolls an environment back: releases the version that served before once more.
pub fn rollback(
    repo: &Repo,
    model: Option<&str>,
    environment: &str,
    why: Option<&str>,
) -> Result<ReleaseReport> {
    let state = std::cell::RefCell::new(String::new());
    let published = ledger::publish(repo, &|view| {
        let policy = Policy::at(&repo.git, view.policy.as_ref())?;
        policy.environment(environment)?;
        let model = served_model(repo, model, environment)?;
        let before = release::releases(&repo.git, Some(&model), environment)?;
        let stack = release::active_releases(&before);
        let [.., target, current] = &stack[..] else {
            return Err(Error::not_found(format!("no earlier version served in `{environment}`"))
                .hint("`mlx audit` shows what was released there"));
        };
        let version = registry::require(&repo.git, &target.message.version)?;
        let (decisions, _) = release::effective_decisions(repo, &policy, &version, environment)?;
        if let Some(rejection) = decisions.iter().find(|decision| decision.verdict == Verdict::Rejected) {
            let error = Error::new(
                Kind::Denied,
                format!("`{}` was rejected by {}", version.name(), rejection.message.who),
            );
            return Err(error.hint("release another version instead"));
        }
        state.replace(version.name());
        let mut message =
            Message::new(&version.name(), version.package.digest, policy.digest, &repo.git.identity()?);
        message.rollback = true;
        message.approvals.clone_from(&target.message.approvals);
        let default_reason = format!("takes back {}", current.message.version);
        draft(&version, environment, &before, message, Some(why.unwrap_or(&default_reason)))
    })?;
    Ok(ReleaseReport {
        version: state.into_inner(),
        environment: environment.to_owned(),
        assessment: Assessment::default(),
        published: Some(published),
    })
}

impl ReleaseReport {
    pub fn version(&self) -> &str {
        &self.version
    }
}

pub fn run_rollback(ctx: &Context<'_>, args: &RollbackArgs) -> Result<ReleaseReport> {
    rollback(&ctx.repo()?, args.model.as_deref(), &args.env, args.why.as_deref())
}

/// Returns the named model, or else the only one that was released to an environment.
pub fn served_model(repo: &Repo, model: Option<&str>, environment: &str) -> Result<String> {
    if let Some(model) = model {
        return Ok(model.to_owned());
    }
    let mut models: Vec<String> = release::recorded_releases(&repo.git)?
        .into_iter()
        .filter(|release| release.environment == environment)
        .map(|release| release.model)
        .collect();
    models.dedup();
    match &models[..] {
        [model] => Ok(model.clone()),
        [] => Err(Error::not_found(format!("no version was released to `{environment}`")).hint(
            "release one with `mlx release VERSION --env ENV`, or fetch existing releases with `mlx \
            pull` or `git fetch --tags`",
        )),
        many => {
            let many = many.join(", ");
            let error = Error::usage(format!("several models serve in `{environment}`: {many}"));
            Err(error.hint("name one of them"))
        }
    }
}

/// Drafts the event and the tag of a release.
fn draft(
    version: &Version,
    environment: &str,
    before: &[Release],
    mut message: Message,
    why: Option<&str>,
) -> Result<Draft> {
    let last = before.last();
    message.previous = last.map(Release::name);
    message.why = why.map(str::to_owned);
    let number = last.map_or(0, |it| it.number) + 1;
    let title = format!("{} serves in {environment}", version.name());
    let facts =
        [("package".to_owned(), json!(message.package)), ("policy".to_owned(), json!(message.policy))].into();
    Ok(Draft {
        kind: if message.rollback { ledger::Kind::RolledBack } else { ledger::Kind::Released },
        who: message.who.clone(),
        subject: version.name(),
        environment: Some(environment.to_owned()),
        why: message.why.clone(),
        facts,
        tag: Some(TagDraft {
            name: Release::tag_name(&version.model, environment, number),
            rev: version.tag.rev.clone(),
            message: message.print(&title)?,
            signed: None,
        }),
    })
}

impl Report for ReleaseReport {
    fn json(&self) -> Value {
        let published = self.published.as_ref();
        json!({"version": self.version, "environment": self.environment, "released": published.is_some(),
            "tag": published.and_then(|it| it.event.tag.clone()),
            "event": published.map(|it| it.rev.to_string()),
            "pushed_to": published.and_then(|it| it.upstream.clone()),
            "gates": gates_json(&self.assessment.gates),
            "notes": self.assessment.notes})
    }

    fn has_findings(&self) -> bool {
        self.published.is_none()
    }
}

impl fmt::Display for ReleaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.assessment.gates.is_empty() {
            writeln!(f, "{}", gates_table(&self.assessment.gates))?;
        }
        self.assessment.notes.iter().try_for_each(|note| writeln!(f, "{note}"))?;
        let Some(published) = &self.published else {
            return write!(
                f,
                "not released: {} does not meet the policy of {}",
                self.version, self.environment
            );
        };
        writeln!(f, "{} serves in {}", self.version, self.environment)?;
        writeln!(
            f,
            "  tag {}, event {}",
            published.event.tag.as_deref().unwrap_or_default(),
            published.rev.short()
        )?;
        write_publication(f, published)
    }
}
