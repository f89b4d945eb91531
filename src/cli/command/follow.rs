//! A service that follows the releases of its environment: it looks, brings the package, warms the new model beside
//! the old, and only then lets it answer. What cannot be trusted or loaded changes nothing.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use serde_json::json;

use crate::{
    cli::{
        Context,
        command::{evidence, release::served_model, version::bring},
    },
    deploy::{Limits, Served, Service},
    error::{Doing, Error, Kind, Result},
    ledger::{self, Draft},
    model::registry::{self, Version},
    policy::Policy,
    progress::{Progress, Silent},
    release::{self, Release, Verdict},
    repo::Repo,
    upkeep,
};

/// What to follow.
pub struct Following {
    pub cwd: PathBuf,
    /// The model, where the environment has several.
    pub model: Option<String>,
    pub environment: String,
    pub every: Duration,
    pub limits: Limits,
}

/// The version that serves now by the record, if it may be trusted; and its release.
pub fn current(ctx: &Context<'_>, repo: &Repo, following: &Following) -> Result<(Version, Release)> {
    let view = ledger::refresh(repo)?;
    let environment = &following.environment;
    let model = served_model(repo, following.model.as_deref(), environment)?;
    let all = release::releases(&repo.git, Some(&model), environment)?;
    let nothing = || Error::not_found(format!("no version of `{model}` serves in `{environment}`"));
    let last = all.last().ok_or_else(nothing)?.clone();
    let version = registry::require(&repo.git, &last.message.version)?;
    if last.message.package != version.package.digest {
        return Err(untrusted(&last, "names another package than its version"));
    }
    let policy = Policy::at(&repo.git, view.policy.as_ref())?;
    if last.message.rollback {
        // What served before needs no new approval, unless somebody spoke against it since.
        let (words, _) = release::approvers(repo, &policy, &version, environment)?;
        if words.iter().any(|it| it.verdict == Verdict::Rejected) {
            return Err(untrusted(&last, "goes back to a version that was rejected"));
        }
    } else {
        let examined =
            release::examine(repo, &policy, &version, environment, &|it| evidence::load(ctx, repo, it))?;
        if let Some(gate) = examined.gates.iter().find(|it| !it.is_open) {
            return Err(untrusted(
                &last,
                &format!("does not meet the policy: {} is {}, not {}", gate.name, gate.found, gate.asked),
            ));
        }
    }
    Ok((version, last))
}

fn untrusted(release: &Release, why: &str) -> Error {
    Error::new(Kind::Denied, format!("the release `{}` {why}", release.name()))
        .hint("`mlx audit --verify` looks at the whole record; release another version, or roll back")
}

/// Brings and loads a version.
pub fn load(ctx: &Context<'_>, repo: &Repo, version: &Version, limits: Limits) -> Result<Arc<Served>> {
    bring(ctx, repo, version, None)?;
    Served::load(repo, version, limits)
}

/// Follows in the background for as long as the process lives.
pub fn follow(service: Arc<Service>, following: Following) -> Result<()> {
    let named = thread::Builder::new().name("follow".into());
    let spawned = named.spawn(move || {
        let mut state = State { told: String::new(), recorded: String::new() };
        loop {
            // Whatever a stranger's tag makes of one turn, there is a next.
            let turn = std::panic::AssertUnwindSafe(|| state.turn(&service, &following));
            if std::panic::catch_unwind(turn).is_err() {
                crate::cli::ui::log("a look at the releases went wrong; the next one follows");
            }
            thread::sleep(following.every);
        }
    });
    spawned.map(drop).doing(|| "cannot start the thread that follows releases".into())
}

/// What was said already, so that it is said once.
struct State {
    told: String,
    /// The release whose switch is on the record.
    recorded: String,
}

/// Warnings of the thread go to standard error, a line each.
struct Log;

impl Progress for Log {
    fn event(&self, event: crate::progress::Event<'_>) {
        use crate::progress::Event::{Note, Warning};
        if let Note { message } | Warning { message } = event {
            crate::cli::ui::log(message);
        }
    }
}

impl State {
    fn turn(&mut self, service: &Arc<Service>, following: &Following) {
        let ctx = Context::new(following.cwd.clone(), &Log);
        match self.look(&ctx, service, following) {
            Ok(()) => self.told.clear(),
            Err(error) => {
                let text = error.full_text();
                if text != self.told {
                    ctx.progress.warn(&format!("{} goes on: {text}", service.live().name()));
                    self.told = text;
                }
            }
        }
    }

    fn look(&mut self, ctx: &Context<'_>, service: &Arc<Service>, following: &Following) -> Result<()> {
        let repo = ctx.repo()?;
        let (version, last) = current(ctx, &repo, following)?;
        let before = service.live();
        if before.package != version.package.digest || before.name() != version.name() {
            service.switch(load(ctx, &repo, &version, following.limits)?);
            ctx.progress.note(&format!(
                "{} answers now, by {}; before it {}",
                version.name(),
                last.name(),
                before.name()
            ));
        }
        if self.recorded != last.name() {
            record(&repo, &version, &last, following)?;
            self.recorded = last.name();
        }
        Ok(())
    }
}

/// Puts the switch on the record, once a release and machine.
fn record(repo: &Repo, version: &Version, last: &Release, following: &Following) -> Result<()> {
    let machine = crate::fs::host_name();
    let events = ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref())?;
    let known = events.iter().any(|it| {
        it.event.kind == ledger::Kind::Switched
            && it.event.facts.get("release") == Some(&json!(last.name()))
            && it.event.who == machine
    });
    if known {
        return Ok(());
    }
    let published = ledger::publish(repo, &|_| {
        Ok(Draft {
            kind: ledger::Kind::Switched,
            who: machine.clone(),
            subject: version.name(),
            environment: Some(following.environment.clone()),
            why: None,
            facts: [
                ("package".to_owned(), json!(version.package.digest)),
                ("release".to_owned(), json!(last.name())),
            ]
            .into(),
            tag: None,
        })
    });
    published.doing(|| "the switch could not be put on the record".into())?;
    upkeep::renew(repo, &Silent)
}
