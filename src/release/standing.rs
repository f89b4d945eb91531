//! The standing of a version in an environment: candidate, approved, serving, rejected or archived.
//!
//! It follows from the releases and decisions that count under the given policy.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::Result,
    ledger::{Event, Kind},
    model::registry::Version,
    policy::Policy,
    release::{AuditIndex, Decision, Verdict, active_releases, decisions, releases},
    repo::Repo,
};

/// Standing of a version in an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Candidate,
    Approved,
    Serving,
    Rejected,
    /// Served in this environment before.
    Archived,
}

impl Standing {
    pub fn name(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Approved => "approved",
            Self::Serving => "serving",
            Self::Rejected => "rejected",
            Self::Archived => "archived",
        }
    }
}

/// Returns the last decision of each approver that counts: it is about this package, on the audit chain, and
/// signed where the policy requires it. The second list gives the reasons why others do not count.
pub fn effective_decisions(
    repo: &Repo,
    policy: &Policy,
    version: &Version,
    environment: &str,
) -> Result<(Vec<Decision>, Vec<String>)> {
    let required = policy.environment(environment)?;
    let (index, name) = (AuditIndex::read(&repo.git)?, version.name());
    let mut claimed = decisions(&repo.git, Some(&name))?;
    claimed.retain(|decision| decision.environment == environment);
    let existing: BTreeSet<&str> = claimed.iter().map(|decision| decision.tag.name.as_str()).collect();
    let is_relevant =
        |event: &Event| event.subject == name && event.environment.as_deref() == Some(environment);
    index.check_tags(&[Kind::Approved, Kind::Rejected], &is_relevant, &existing)?;
    let (mut last, mut notes) = (BTreeMap::new(), Vec::new());
    for decision in claimed {
        let who = decision.message.who.clone();
        let mismatch = index.mismatch(&decision.tag, &decision.message, decision.verdict.kind(), environment);
        let signed = || -> Result<bool> {
            let bytes = repo.git.tag_bytes(&decision.tag.id)?;
            repo.git.is_signed_by(&repo.private, &bytes, &who, &policy.keys(&who)?)
        };
        let reason = if !required.approvers.contains(&who) {
            Some("is not among the approvers")
        } else if mismatch.is_some() {
            mismatch.as_deref()
        } else if decision.message.package != version.package.digest {
            Some("decided on another package")
        } else if required.independent && is_registrant(version, &who) {
            Some("registered the version")
        } else if required.signed && !signed()? {
            Some("did not sign with a key listed in the policy")
        } else {
            None
        };
        match reason {
            Some(_) if mismatch.is_some() && reason == mismatch.as_deref() => {
                notes.push(format!(
                    "`{}` does not count: it {}",
                    decision.tag.name,
                    reason.unwrap_or_default()
                ));
            }
            Some(reason) => notes.push(format!("`{}` does not count: {who} {reason}", decision.tag.name)),
            None => drop(last.insert(who, decision)),
        }
    }
    Ok((last.into_values().collect(), notes))
}

/// Returns true if this person registered the version. The case of addresses is ignored.
fn is_registrant(version: &Version, who: &str) -> bool {
    version.tag.tagger.to_lowercase().contains(&format!("<{}>", who.to_lowercase()))
}

/// Returns the standing of a version in an environment.
pub fn standing(repo: &Repo, policy: &Policy, version: &Version, environment: &str) -> Result<Standing> {
    let released = releases(&repo.git, Some(&version.model), environment)?;
    let name = version.name();
    if active_releases(&released).last().is_some_and(|it| it.message.version == name) {
        return Ok(Standing::Serving);
    }
    let (decisions, _) = effective_decisions(repo, policy, version, environment)?;
    if decisions.iter().any(|decision| decision.verdict == Verdict::Rejected) {
        return Ok(Standing::Rejected);
    }
    if released.iter().any(|release| release.message.version == name) {
        return Ok(Standing::Archived);
    }
    let required = policy.environment(environment)?.approvals as usize;
    Ok(if decisions.len() >= required { Standing::Approved } else { Standing::Candidate })
}
