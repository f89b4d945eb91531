//! Checks the audit trail for events and tags that were edited, removed, reordered or cut off.
//!
//! The chain is read link by link, then compared with the tags of releases and decisions, the versions they
//! name, and the chain as the Git remote last had it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::Result,
    git::Tag,
    ledger::{self, Entry, Kind},
    model::registry,
    release::{self, AuditIndex, Message, decisions},
    repo::Repo,
};

/// Result of a check.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    pub events: usize,
    pub tags: usize,
    /// Problems found, one text each.
    pub findings: Vec<String>,
}

/// A release or decision tag, which names its event.
struct ClaimedTag {
    tag: Tag,
    message: Message,
    kind: Kind,
    environment: String,
}

/// Checks the chain, the tags, and the versions that the tags name.
pub fn verify(repo: &Repo) -> Result<Verification> {
    let git = &repo.git;
    let mut result = Verification::default();
    let events = match ledger::tip(git).and_then(|it| ledger::read(git, it.as_ref())) {
        Ok(events) => events,
        Err(error) => {
            result.findings.push(error.chain_text());
            Vec::new()
        }
    };
    let tags = tags(repo)?;
    (result.events, result.tags) = (events.len(), tags.len());
    let index = AuditIndex::new(&events);
    for claim in &tags {
        let mismatch = index.mismatch(&claim.tag, &claim.message, claim.kind, &claim.environment);
        result.findings.extend(mismatch.map(|why| format!("the tag `{}` {why}", claim.tag.name)));
    }
    result.findings.extend(unmatched_events(&events, &tags));
    result.findings.extend(changed_versions(repo, &tags)?);
    result.findings.extend(numbering_gaps(repo)?);
    result.findings.extend(truncation(repo)?);
    let mut reported = BTreeSet::new();
    result.findings.retain(|finding| reported.insert(finding.clone()));
    Ok(result)
}

/// Returns all tags that claim to be a release or a decision.
fn tags(repo: &Repo) -> Result<Vec<ClaimedTag>> {
    let released = release::claimed_releases(&repo.git)?.into_iter().map(|release| {
        let kind = release.kind();
        ClaimedTag { tag: release.tag, message: release.message, kind, environment: release.environment }
    });
    let decided = decisions(&repo.git, None)?.into_iter().map(|decision| ClaimedTag {
        tag: decision.tag,
        message: decision.message,
        kind: decision.verdict.kind(),
        environment: decision.environment,
    });
    Ok(released.chain(decided).collect())
}

/// Reports events whose tag is missing, and tags that two events name.
fn unmatched_events(events: &[Entry], tags: &[ClaimedTag]) -> Vec<String> {
    let existing: BTreeSet<&str> = tags.iter().map(|claim| claim.tag.name.as_str()).collect();
    let (mut named, mut problems) = (BTreeMap::new(), Vec::new());
    for entry in events {
        let (Some(name), number) = (&entry.event.tag, entry.event.number) else { continue };
        if !existing.contains(&name[..]) {
            problems.push(format!("the tag `{name}` of event {number} is missing or was changed"));
        }
        if let Some(other) = named.insert(name, number) {
            problems.push(format!("events {other} and {number} name the same tag `{name}`"));
        }
    }
    problems
}

/// Reports versions that tags name and that are missing, or now have another package or commit.
fn changed_versions(repo: &Repo, tags: &[ClaimedTag]) -> Result<Vec<String>> {
    let mut problems = BTreeSet::new();
    for claim in tags {
        let name = &claim.message.version;
        match registry::find(&repo.git, name)? {
            None => drop(problems.insert(format!("the version `{name}` is missing or was changed"))),
            Some(version)
                if version.package.digest != claim.message.package || version.tag.rev != claim.tag.rev =>
            {
                let tag = &claim.tag.name;
                problems.insert(format!(
                    "the version `{name}` has another package or commit than the tag `{tag}` names"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(problems.into_iter().collect())
}

/// Reports gaps in the numbering of releases and decisions.
fn numbering_gaps(repo: &Repo) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let claimed = release::claimed_releases(&repo.git)?.into_iter();
    let mut series: Vec<(String, String)> =
        claimed.map(|release| (release.model, release.environment)).collect();
    series.dedup();
    for (model, environment) in series {
        if let Err(error) = release::releases(&repo.git, Some(&model), &environment) {
            problems.push(error.chain_text());
        }
    }
    let mut last: BTreeMap<(String, String), (u64, String)> = BTreeMap::new();
    for decision in decisions(&repo.git, None)? {
        let key = (decision.message.version.clone(), decision.environment.clone());
        let before = last.insert(key, (decision.number, decision.tag.name.clone()));
        let (number, name) = before.map_or((0, None), |(number, name)| (number, Some(name)));
        if decision.number != number + 1 || decision.message.previous != name {
            problems.push(format!("a decision before `{}` is missing", decision.tag.name));
        }
    }
    Ok(problems)
}

/// Reports events that the Git remote's chain had when it was last fetched and the local chain lacks.
fn truncation(repo: &Repo) -> Result<Option<String>> {
    let Some(upstream) = repo.git.upstream()? else { return Ok(None) };
    let Some(seen) = ledger::last_seen_tip(&repo.git, &upstream)? else { return Ok(None) };
    let tip = ledger::tip(&repo.git)?;
    if ledger::contains(&repo.git, tip.as_ref(), &seen)? {
        return Ok(None);
    }
    Ok(Some(format!(
        "the local audit chain lacks events that `{}` had: it was cut off or rewritten",
        upstream.0
    )))
}
