//! `mlx serve --follow`: fetches the release tags and the audit chain that proves them, and switches the
//! service to the version released last.
//!
//! The package is fetched and the new model loaded next to the old one before the switch. A release that does
//! not meet the policy or cannot be loaded changes nothing.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use serde_json::json;

use crate::{
    cli::{
        Context,
        command::{evidence, release::served_model, version::fetch_package},
    },
    deploy::{BatchLimits, ServedModel, Service},
    error::{Error, Kind, Result, WithContext},
    ledger::{self, Draft},
    maintenance,
    model::registry::{self, Version},
    policy::Policy,
    progress::{Progress, Silent},
    release::{self, Release, Verdict},
    repo::Repo,
};

/// Environment to follow, and how.
pub struct FollowOptions {
    pub cwd: PathBuf,
    /// Model to follow; required if the environment has several.
    pub model: Option<String>,
    pub environment: String,
    /// Time between checks.
    pub poll: Duration,
    pub limits: BatchLimits,
}

/// Returns the version that is released now, and its release. Fails if the release does not meet the policy.
pub fn released_version(
    ctx: &Context<'_>,
    repo: &Repo,
    options: &FollowOptions,
) -> Result<(Version, Release)> {
    let remote_state = ledger::refresh(repo)?;
    let environment = &options.environment;
    let model = served_model(repo, options.model.as_deref(), environment)?;
    let all = release::releases(&repo.git, Some(&model), environment)?;
    let missing = || Error::not_found(format!("no version of `{model}` is released in `{environment}`"));
    let last = all.last().ok_or_else(missing)?.clone();
    let version = registry::require(&repo.git, &last.message.version)?;
    if last.message.package != version.package.digest {
        return Err(untrusted(&last, "names a package that is not its version's"));
    }
    let policy = Policy::at(&repo.git, remote_state.policy.as_ref())?;
    if last.message.rollback {
        // A version that has served before needs no new approval, but must not have been rejected since.
        let (decisions, _) = release::effective_decisions(repo, &policy, &version, environment)?;
        if decisions.iter().any(|it| it.verdict == Verdict::Rejected) {
            return Err(untrusted(&last, "rolls back to a rejected version"));
        }
    } else {
        let result =
            release::assess(repo, &policy, &version, environment, &|it| evidence::load(ctx, repo, it))?;
        if let Some(gate) = result.gates.iter().find(|it| !it.is_open) {
            return Err(untrusted(
                &last,
                &format!(
                    "does not meet the policy: {} is {}, required {}",
                    gate.name, gate.found, gate.required
                ),
            ));
        }
    }
    Ok((version, last))
}

fn untrusted(release: &Release, reason: &str) -> Error {
    Error::new(Kind::Denied, format!("the release `{}` {reason}", release.name()))
        .hint("`mlx audit --verify` checks the audit trail; release another version, or roll back")
}

/// Fetches a version's package if necessary, and loads it.
pub fn load(
    ctx: &Context<'_>,
    repo: &Repo,
    version: &Version,
    limits: BatchLimits,
) -> Result<Arc<ServedModel>> {
    fetch_package(ctx, repo, version, None)?;
    ServedModel::load(repo, version, limits)
}

/// Starts a background thread that follows releases until the process ends.
pub fn follow(service: Arc<Service>, options: FollowOptions) -> Result<()> {
    let thread = thread::Builder::new().name("follow".into());
    let spawned = thread.spawn(move || {
        let mut follower = Follower { last_warning: String::new(), recorded: String::new() };
        loop {
            // A panic, such as over a malformed tag, must not end the thread.
            let poll = std::panic::AssertUnwindSafe(|| follower.poll(&service, &options));
            if std::panic::catch_unwind(poll).is_err() {
                crate::cli::ui::log("checking for releases failed; trying again at the next poll");
            }
            thread::sleep(options.poll);
        }
    });
    spawned.map(drop).context(|| "cannot start the thread that follows releases".into())
}

/// State of the thread between polls.
struct Follower {
    /// Last warning shown, so that it is not repeated at every poll.
    last_warning: String,
    /// Release whose switch is recorded on the audit chain.
    recorded: String,
}

/// Progress sink that writes notes and warnings to standard error, one per line.
struct StderrLog;

impl Progress for StderrLog {
    fn event(&self, event: crate::progress::Event<'_>) {
        use crate::progress::Event::{Note, Warning};
        if let Note { message } | Warning { message } = event {
            crate::cli::ui::log(message);
        }
    }
}

impl Follower {
    fn poll(&mut self, service: &Arc<Service>, options: &FollowOptions) {
        let ctx = Context::new(options.cwd.clone(), &StderrLog);
        match self.update(&ctx, service, options) {
            Ok(()) => self.last_warning.clear(),
            Err(error) => {
                let text = error.chain_text();
                if text != self.last_warning {
                    ctx.progress.warn(&format!("still serving {}: {text}", service.current().name()));
                    self.last_warning = text;
                }
            }
        }
    }

    /// Switches to the released version if it changed, and records the switch.
    fn update(&mut self, ctx: &Context<'_>, service: &Arc<Service>, options: &FollowOptions) -> Result<()> {
        let repo = ctx.repo()?;
        let (version, last) = released_version(ctx, &repo, options)?;
        let previous = service.current();
        if previous.package != version.package.digest || previous.name() != version.name() {
            service.switch(load(ctx, &repo, &version, options.limits)?);
            ctx.progress.note(&format!(
                "switched from {} to {} by release {}",
                previous.name(),
                version.name(),
                last.name()
            ));
        }
        if self.recorded != last.name() {
            record_switch(&repo, &version, &last, options)?;
            self.recorded = last.name();
        }
        Ok(())
    }
}

/// Records the switch on the audit chain, once per release and machine.
fn record_switch(repo: &Repo, version: &Version, last: &Release, options: &FollowOptions) -> Result<()> {
    let machine = crate::fs::host_name();
    let events = ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref())?;
    let known = events.iter().any(|entry| {
        entry.event.kind == ledger::Kind::Switched
            && entry.event.facts.get("release") == Some(&json!(last.name()))
            && entry.event.who == machine
    });
    if known {
        return Ok(());
    }
    let published = ledger::publish(repo, &|_| {
        Ok(Draft {
            kind: ledger::Kind::Switched,
            who: machine.clone(),
            subject: version.name(),
            environment: Some(options.environment.clone()),
            why: None,
            facts: [
                ("package".to_owned(), json!(version.package.digest)),
                ("release".to_owned(), json!(last.name())),
            ]
            .into(),
            tag: None,
        })
    });
    published.context(|| "cannot record the switch on the audit chain".into())?;
    maintenance::publish_needs(repo, &Silent)
}
