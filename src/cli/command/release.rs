//! `mlx release` and `mlx rollback`: which version serves in an environment.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            approve::{exactly, gates_json, gates_table, in_force},
            evidence, version,
        },
    },
    error::{Error, Kind, Result},
    ledger::{self, Draft, Published, TagDraft, View},
    model::registry::{self, Version},
    policy::Policy,
    release::{self, Examined, Message, Release, Verdict},
    repo::Repo,
};

/// Let a version serve in an environment
///
/// Refused while the policy's gates are closed (exit 10). The package is sent to the default remote, the tag
/// `MODEL#ENV#N` and the event to the Git remote; what cannot be sent is not in force.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx release pets@v0.1.0 --env production --why 'new camera'\n\n\
JSON: {\"version\", \"environment\", \"released\": bool, \"tag\", \"event\", \"pushed_to\", \"gates\": [{\"gate\", \"asked\", \"found\", \"open\"}], \"notes\": [text…]}")]
pub struct ReleaseArgs {
    /// `pets@v0.1.0`
    version: String,
    /// Where it is to serve
    #[arg(long)]
    env: String,
    /// Why
    #[arg(long)]
    why: Option<String>,
}

/// Let the version that served before serve again
///
/// It needs no new approval, unless somebody rejected that version since.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx rollback --env production --why 'dogs are cats'\n\nJSON: as `mlx release`"
)]
pub struct RollbackArgs {
    /// The model, where the environment has several
    model: Option<String>,
    /// Where to go back
    #[arg(long)]
    env: String,
    /// Why
    #[arg(long)]
    why: Option<String>,
}

pub struct Outcome {
    version: String,
    environment: String,
    examined: Examined,
    /// None when the gates are closed.
    published: Option<Published>,
}

pub fn release(ctx: &Context<'_>, args: &ReleaseArgs) -> Result<Outcome> {
    let repo = ctx.repo()?;
    let view = ledger::refresh(&repo)?;
    let (policy, version, examined) = judge(ctx, &repo, &view, &args.version, &args.env)?;
    let outcome = |examined, published| Outcome {
        version: version.name(),
        environment: args.env.clone(),
        examined,
        published,
    };
    if !examined.may_serve() {
        return Ok(outcome(examined, None));
    }
    drop(policy);
    version::bring(ctx, &repo, &version, None)?;
    evidence::send(ctx, &repo, vec![(version.path.clone(), version.package)])?;
    let published = ledger::publish(&repo, &|view| {
        let (policy, version, examined) = judge(ctx, &repo, view, &args.version, &args.env)?;
        if !examined.may_serve() {
            return Err(
                Error::new(Kind::Denied, "the gates were closed meanwhile").hint("run it again to see which")
            );
        }
        let before = release::releases(&repo.git, Some(&version.model), &args.env)?;
        if release::serving(&before).last().is_some_and(|it| it.message.version == version.name()) {
            return Err(Error::new(
                Kind::Conflict,
                format!("`{}` serves in {} already", version.name(), args.env),
            )
            .hint("`mlx audit` shows when it was released; `mlx rollback` goes back"));
        }
        let mut message =
            Message::new(&version.name(), version.package.digest, policy.digest, &repo.git.whoami()?);
        message.approvals = examined.approvals.iter().map(|it| it.tag.name.clone()).collect();
        draft(&version, &args.env, &before, message, args.why.as_deref())
    })?;
    Ok(outcome(examined, Some(published)))
}

/// The version held to the policy that counts now.
fn judge(
    ctx: &Context<'_>,
    repo: &Repo,
    view: &View,
    name: &str,
    environment: &str,
) -> Result<(Policy, Version, Examined)> {
    let policy = Policy::at(&repo.git, view.policy.as_ref())?;
    policy.environment(environment)?;
    let version = exactly(repo, name)?;
    let examined =
        release::examine(repo, &policy, &version, environment, &|it| evidence::load(ctx, repo, it))?;
    Ok((policy, version, examined))
}

pub fn rollback(repo: &Repo, model: Option<&str>, environment: &str, why: Option<&str>) -> Result<Outcome> {
    let state = std::cell::RefCell::new(String::new());
    let published = ledger::publish(repo, &|view| {
        let policy = Policy::at(&repo.git, view.policy.as_ref())?;
        policy.environment(environment)?;
        let model = served_model(repo, model, environment)?;
        let before = release::releases(&repo.git, Some(&model), environment)?;
        let stack = release::serving(&before);
        let [.., target, current] = &stack[..] else {
            return Err(Error::not_found(format!("no version served in `{environment}` before"))
                .hint("`mlx audit` shows what was released there"));
        };
        let version = registry::require(&repo.git, &target.message.version)?;
        let (words, _) = release::approvers(repo, &policy, &version, environment)?;
        if let Some(word) = words.iter().find(|it| it.verdict == Verdict::Rejected) {
            let error = Error::new(
                Kind::Denied,
                format!("`{}` was rejected by {}", version.name(), word.message.who),
            );
            return Err(error.hint("release another version instead"));
        }
        state.replace(version.name());
        let mut message =
            Message::new(&version.name(), version.package.digest, policy.digest, &repo.git.whoami()?);
        message.rollback = true;
        message.approvals.clone_from(&target.message.approvals);
        let taken_back = format!("takes back {}", current.message.version);
        draft(&version, environment, &before, message, Some(why.unwrap_or(&taken_back)))
    })?;
    Ok(Outcome {
        version: state.into_inner(),
        environment: environment.to_owned(),
        examined: Examined::default(),
        published: Some(published),
    })
}

impl Outcome {
    pub fn version(&self) -> &str {
        &self.version
    }
}

pub fn run_rollback(ctx: &Context<'_>, args: &RollbackArgs) -> Result<Outcome> {
    rollback(&ctx.repo()?, args.model.as_deref(), &args.env, args.why.as_deref())
}

/// The model that serves in an environment, where only one does or one is named.
pub fn served_model(repo: &Repo, model: Option<&str>, environment: &str) -> Result<String> {
    if let Some(model) = model {
        return Ok(model.to_owned());
    }
    let mut models: Vec<String> = release::all(&repo.git)?
        .into_iter()
        .filter(|it| it.environment == environment)
        .map(|it| it.model)
        .collect();
    models.dedup();
    match &models[..] {
        [one] => Ok(one.clone()),
        [] => Err(Error::not_found(format!("nothing was released in `{environment}`"))
            .hint("`mlx release VERSION --env ENV` does that; `mlx pull` or `git fetch --tags` brings others' releases")),
        many => Err(Error::usage(format!("several models serve in `{environment}`: {}", many.join(", "))).hint("name one")),
    }
}

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

impl Report for Outcome {
    fn json(&self) -> Value {
        let published = self.published.as_ref();
        json!({"version": self.version, "environment": self.environment, "released": published.is_some(),
            "tag": published.and_then(|it| it.event.tag.clone()), "event": published.map(|it| it.rev.to_string()),
            "pushed_to": published.and_then(|it| it.upstream.clone()), "gates": gates_json(&self.examined.gates),
            "notes": self.examined.notes})
    }

    fn found(&self) -> bool {
        self.published.is_none()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.examined.gates.is_empty() {
            writeln!(f, "{}", gates_table(&self.examined.gates))?;
        }
        self.examined.notes.iter().try_for_each(|it| writeln!(f, "{it}"))?;
        let Some(published) = &self.published else {
            return write!(f, "not released: {} may not serve in {}", self.version, self.environment);
        };
        writeln!(f, "{} serves in {}", self.version, self.environment)?;
        writeln!(
            f,
            "  tag {}, event {}",
            published.event.tag.as_deref().unwrap_or_default(),
            published.rev.short()
        )?;
        in_force(f, published)
    }
}
