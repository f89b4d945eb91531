//! Whether the record is whole: nothing edited, left out, put elsewhere or cut off.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::Result,
    git::Tag,
    ledger::{self, Entry, Kind},
    model::registry,
    release::{self, Message, Record, decisions},
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
    tag: Tag,
    message: Message,
    kind: Kind,
    environment: String,
}

/// Reads the chain link by link, then holds it and the tags to each other, and the versions they speak of.
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
    let record = Record::of(&events);
    for it in &tags {
        let objection = record.objection(&it.tag, &it.message, it.kind, &it.environment);
        checked.findings.extend(objection.map(|why| format!("the tag `{}` {why}", it.tag.name)));
    }
    checked.findings.extend(untagged(&events, &tags));
    checked.findings.extend(versions(repo, &tags)?);
    checked.findings.extend(gaps(repo)?);
    checked.findings.extend(cut_off(repo)?);
    let mut told = BTreeSet::new();
    checked.findings.retain(|it| told.insert(it.clone()));
    Ok(checked)
}

fn tags(repo: &Repo) -> Result<Vec<Speaks>> {
    let released = release::claimed(&repo.git)?.into_iter().map(|it| {
        let kind = it.kind();
        Speaks { tag: it.tag, message: it.message, kind, environment: it.environment }
    });
    let decided = decisions(&repo.git, None)?.into_iter().map(|it| Speaks {
        tag: it.tag,
        message: it.message,
        kind: it.verdict.kind(),
        environment: it.environment,
    });
    Ok(released.chain(decided).collect())
}

/// Events whose tag is gone, and tags that two events name.
fn untagged(events: &[Entry], tags: &[Speaks]) -> Vec<String> {
    let there: BTreeSet<&str> = tags.iter().map(|it| it.tag.name.as_str()).collect();
    let (mut named, mut found) = (BTreeMap::new(), Vec::new());
    for entry in events {
        let (Some(name), number) = (&entry.event.tag, entry.event.number) else { continue };
        if !there.contains(&name[..]) {
            found.push(format!("the tag `{name}` of event {number} is missing or was changed"));
        }
        if let Some(other) = named.insert(name, number) {
            found.push(format!("the events {other} and {number} name the same tag `{name}`"));
        }
    }
    found
}

/// Versions that tags speak of and that are gone, or of another package or commit now.
fn versions(repo: &Repo, tags: &[Speaks]) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for it in tags {
        let name = &it.message.version;
        match registry::find(&repo.git, name)? {
            None => drop(found.insert(format!("the version `{name}` is missing or was changed"))),
            Some(version)
                if version.package.digest != it.message.package || version.tag.rev != it.tag.rev =>
            {
                found.insert(format!("`{name}` is not what the tag `{}` speaks of", it.tag.name));
            }
            Some(_) => {}
        }
    }
    Ok(found.into_iter().collect())
}

/// Numbers that are missing among releases and decisions.
fn gaps(repo: &Repo) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut places: Vec<(String, String)> =
        release::claimed(&repo.git)?.into_iter().map(|it| (it.model, it.environment)).collect();
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

/// What the Git remote's chain held when it was last seen and the chain here does not.
fn cut_off(repo: &Repo) -> Result<Option<String>> {
    let Some(upstream) = repo.git.upstream()? else { return Ok(None) };
    let Some(seen) = ledger::last_seen(&repo.git, &upstream)? else { return Ok(None) };
    let tip = ledger::tip(&repo.git)?;
    if ledger::holds(&repo.git, tip.as_ref(), &seen)? {
        return Ok(None);
    }
    Ok(Some(format!("the chain here lacks events that `{}` held: it was cut off or rewritten", upstream.0)))
}
