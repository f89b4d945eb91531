//! Whether the record is whole: nothing edited, left out, put elsewhere or cut off.

use std::collections::BTreeMap;

use crate::{
    error::Result,
    ledger::{self, Entry},
    release::{self, decisions},
    repo::Repo,
};

/// How a check of the record ended.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    pub events: usize,
    pub tags: usize,
    /// What is wrong, one sentence each.
    pub findings: Vec<String>,
}

/// A tag that speaks of an event.
struct Speaks {
    name: String,
    audit: String,
    package: String,
}

/// Reads the chain link by link, then holds it and the tags to each other.
pub fn verify(repo: &Repo) -> Result<Checked> {
    let git = &repo.git;
    let mut checked = Checked::default();
    let events = match ledger::tip(git).and_then(|it| ledger::read(git, it.as_ref())) {
        Ok(events) => events,
        Err(error) => {
            checked.findings.push(error.full_text());
            Vec::new()
        }
    };
    let tags = tags(repo)?;
    (checked.events, checked.tags) = (events.len(), tags.len());
    let by_rev: BTreeMap<String, &Entry> = events.iter().map(|it| (it.rev.to_string(), it)).collect();
    for tag in &tags {
        checked.findings.extend(against_chain(tag, &by_rev));
    }
    for entry in &events {
        let Some(name) = &entry.event.tag else { continue };
        if !tags.iter().any(|it| it.name == *name) {
            checked
                .findings
                .push(format!("the tag `{name}` of event {} is missing or was changed", entry.event.number));
        }
    }
    checked.findings.extend(gaps(repo)?);
    Ok(checked)
}

fn tags(repo: &Repo) -> Result<Vec<Speaks>> {
    let released = release::all(&repo.git)?.into_iter().map(|it| (it.tag.name, it.message));
    let decided = decisions(&repo.git, None)?.into_iter().map(|it| (it.tag.name, it.message));
    let speaks = |(name, message): (String, release::Message)| Speaks {
        name,
        audit: message.audit,
        package: message.package.to_string(),
    };
    Ok(released.chain(decided).map(speaks).collect())
}

fn against_chain(tag: &Speaks, events: &BTreeMap<String, &Entry>) -> Option<String> {
    let Some(entry) = events.get(&tag.audit) else {
        return Some(format!(
            "the tag `{}` names an event that the audit chain does not hold: it was cut off or rewritten",
            tag.name
        ));
    };
    let event = &entry.event;
    let package = event.facts.get("package").and_then(|it| it.as_str());
    if event.tag.as_deref() != Some(&tag.name) || package != Some(&tag.package) {
        return Some(format!("the tag `{}` and event {} say different things", tag.name, event.number));
    }
    None
}

/// Numbers that are missing among releases and decisions.
fn gaps(repo: &Repo) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut places: Vec<(String, String)> =
        release::all(&repo.git)?.into_iter().map(|it| (it.model, it.environment)).collect();
    places.dedup();
    for (model, environment) in places {
        if let Err(error) = release::releases(&repo.git, Some(&model), &environment) {
            found.push(error.full_text());
        }
    }
    let mut last: BTreeMap<(String, String), (u64, String)> = BTreeMap::new();
    for decision in decisions(&repo.git, None)? {
        let key = (decision.message.version.clone(), decision.environment.clone());
        let before = last.insert(key, (decision.number, decision.tag.name.clone()));
        let (number, name) = before.map_or((0, None), |it| (it.0, Some(it.1)));
        if decision.number != number + 1 || decision.message.previous != name {
            found.push(format!("a decision before `{}` is missing", decision.tag.name));
        }
    }
    Ok(found)
}
