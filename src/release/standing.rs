//! What a version is in an environment, by the policy that counts.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::Result,
    ledger::{Event, Kind},
    model::registry::Version,
    policy::Policy,
    release::{Decision, Record, Verdict, decisions, releases, serving},
    repo::Repo,
};

/// What a version is in an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Candidate,
    Approved,
    Serving,
    Rejected,
    /// It served there before.
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

/// The last word of each person who may speak, as far as it counts: for this package, on the audit chain, and
/// signed where the policy asks for it. The second list says why others do not count.
pub fn approvers(
    repo: &Repo,
    policy: &Policy,
    version: &Version,
    environment: &str,
) -> Result<(Vec<Decision>, Vec<String>)> {
    let asked = policy.environment(environment)?;
    let (record, name) = (Record::read(&repo.git)?, version.name());
    let mut said = decisions(&repo.git, Some(&name))?;
    said.retain(|it| it.environment == environment);
    let there: BTreeSet<&str> = said.iter().map(|it| it.tag.name.as_str()).collect();
    let about = |it: &Event| it.subject == name && it.environment.as_deref() == Some(environment);
    record.check_tags(&[Kind::Approved, Kind::Rejected], &about, &there)?;
    let (mut last, mut others) = (BTreeMap::new(), Vec::new());
    for decision in said {
        let who = decision.message.who.clone();
        let objection =
            record.objection(&decision.tag, &decision.message, decision.verdict.kind(), environment);
        let signed = || -> Result<bool> {
            let bytes = repo.git.tag_bytes(&decision.tag.id)?;
            repo.git.is_signed_by(&repo.private, &bytes, &who, &policy.keys(&who)?)
        };
        let reason = if !asked.approvers.contains(&who) {
            Some("is not among the approvers")
        } else if objection.is_some() {
            objection.as_deref()
        } else if decision.message.package != version.package.digest {
            Some("speaks of another package")
        } else if asked.independent && registered(version, &who) {
            Some("registered the version")
        } else if asked.signed && !signed()? {
            Some("did not sign with a key that the policy lists")
        } else {
            None
        };
        match reason {
            Some(_) if objection.is_some() && reason == objection.as_deref() => {
                others.push(format!(
                    "`{}` does not count: it {}",
                    decision.tag.name,
                    reason.unwrap_or_default()
                ));
            }
            Some(reason) => others.push(format!("`{}` does not count: {who} {reason}", decision.tag.name)),
            None => drop(last.insert(who, decision)),
        }
    }
    Ok((last.into_values().collect(), others))
}

/// Whether this person registered the version; addresses do not differ by case.
fn registered(version: &Version, who: &str) -> bool {
    version.tag.tagger.to_lowercase().contains(&format!("<{}>", who.to_lowercase()))
}

/// What a version is in an environment.
pub fn standing(repo: &Repo, policy: &Policy, version: &Version, environment: &str) -> Result<Standing> {
    let released = releases(&repo.git, Some(&version.model), environment)?;
    let name = version.name();
    if serving(&released).last().is_some_and(|it| it.message.version == name) {
        return Ok(Standing::Serving);
    }
    let (words, _) = approvers(repo, policy, version, environment)?;
    if words.iter().any(|it| it.verdict == Verdict::Rejected) {
        return Ok(Standing::Rejected);
    }
    if released.iter().any(|it| it.message.version == name) {
        return Ok(Standing::Archived);
    }
    let asked = policy.environment(environment)?.approvals as usize;
    Ok(if words.len() >= asked { Standing::Approved } else { Standing::Candidate })
}
