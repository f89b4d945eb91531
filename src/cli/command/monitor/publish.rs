//! Publishes the alerts that a day raises or resolves as ledger events, then delivers them to the configured
//! sinks.

use std::collections::BTreeMap;

use crate::{
    alert::{self, Outbox, Sinks, Transition, Values},
    cli::Context,
    error::{Error, Kind, Result},
    ledger::{self, Draft},
    policy::Rule,
    repo::Repo,
};

const ALREADY_PUBLISHED: &str = "another mlx published the alert first";

/// Publishes all transitions, then delivers them together with earlier deliveries that are still pending.
/// Returns each published transition with the commit of its event.
pub fn publish_transitions(
    ctx: &Context<'_>,
    repo: &Repo,
    environment: &str,
    changes: Vec<Transition>,
    days: &BTreeMap<String, Values>,
) -> Result<Vec<(Transition, String)>> {
    let (sinks, outbox) = (Sinks::from_config(&repo.config), Outbox::open(&repo.shared)?);
    let mut published = Vec::new();
    let publish_all = || -> Result<()> {
        for transition in changes {
            let queued = outbox.enqueue(&transition, environment, &sinks)?;
            match publish_transition(repo, environment, &transition, days)? {
                Some(event) => published.push((transition, event)),
                None => outbox.cancel(&queued)?,
            }
        }
        Ok(())
    };
    // Published alerts are delivered even if a later one could not be published.
    let result = publish_all();
    let events = ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref())?;
    for error in outbox.deliver(&events, &sinks, repo.root())? {
        ctx.progress.warn(&error.chain_text());
    }
    result.map(|()| published)
}

/// Publishes one transition and returns its event's commit; `None` if another process published it first.
fn publish_transition(
    repo: &Repo,
    environment: &str,
    transition: &Transition,
    days: &BTreeMap<String, Values>,
) -> Result<Option<String>> {
    let rules: Vec<Rule> = vec![transition.rule.clone()];
    let published = ledger::publish(repo, &|view| {
        let events = ledger::read(&repo.git, view.tip.as_ref())?;
        if alert::decide(&rules, environment, &transition.day, days, &events) != [transition.clone()] {
            return Err(Error::new(Kind::Conflict, ALREADY_PUBLISHED));
        }
        Ok(Draft {
            kind: transition.kind,
            who: crate::fs::host_name(),
            subject: transition.rule.name.clone(),
            environment: Some(environment.to_owned()),
            why: Some(transition.text()),
            facts: transition.facts(),
            tag: None,
        })
    });
    match published {
        Err(error) if error.kind() == Kind::Conflict && error.to_string() == ALREADY_PUBLISHED => Ok(None),
        other => Ok(Some(other?.rev.to_string())),
    }
}
