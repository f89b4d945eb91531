//! What a day changes, put on the record and told to people: first all of it is published, then it is delivered.

use std::collections::BTreeMap;

use crate::{
    alert::{self, Outbox, Sinks, Transition, Values},
    cli::Context,
    error::{Error, Kind, Result},
    ledger::{self, Draft},
    policy::Rule,
    repo::Repo,
};

const BEATEN: &str = "another mlx raised it";

/// Publishes what a day changes and delivers it, with what was left to deliver: transitions and their events.
pub fn announce(
    ctx: &Context<'_>,
    repo: &Repo,
    environment: &str,
    changes: Vec<Transition>,
    days: &BTreeMap<String, Values>,
) -> Result<Vec<(Transition, String)>> {
    let (sinks, outbox) = (Sinks::of(&repo.config), Outbox::open(&repo.shared)?);
    let mut done = Vec::new();
    let publish_all = || -> Result<()> {
        for transition in changes {
            let posted = outbox.put(&transition, environment, &sinks)?;
            match publish(repo, environment, &transition, days)? {
                Some(event) => done.push((transition, event)),
                None => outbox.take_back(&posted)?,
            }
        }
        Ok(())
    };
    // What is in force is told, whatever became of the rest.
    let published = publish_all();
    let events = ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref())?;
    for error in outbox.deliver(&events, &sinks, repo.root())? {
        ctx.progress.warn(&error.full_text());
    }
    published.map(|()| done)
}

/// The event's commit. None when somebody else published it meanwhile.
fn publish(
    repo: &Repo,
    environment: &str,
    transition: &Transition,
    days: &BTreeMap<String, Values>,
) -> Result<Option<String>> {
    let rules: Vec<Rule> = vec![transition.rule.clone()];
    let published = ledger::publish(repo, &|view| {
        let events = ledger::read(&repo.git, view.tip.as_ref())?;
        if alert::decide(&rules, environment, &transition.day, days, &events) != [transition.clone()] {
            return Err(Error::new(Kind::Conflict, BEATEN));
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
        Err(error) if error.kind() == Kind::Conflict && error.to_string() == BEATEN => Ok(None),
        other => Ok(Some(other?.rev.to_string())),
    }
}
