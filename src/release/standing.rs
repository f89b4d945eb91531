//! What a version is in an environment, by the policy that counts.

use std::collections::BTreeMap;

use crate::{
    error::Result,
    ledger,
    model::registry::Version,
    policy::Policy,
    release::{Decision, Verdict, decisions, releases, serving},
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
    let tip = ledger::tip(&repo.git)?;
    let events = ledger::read(&repo.git, tip.as_ref())?;
    let (mut last, mut others) = (BTreeMap::new(), Vec::new());
    let name = version.name();
    for decision in decisions(&repo.git, Some(&name))?.into_iter().filter(|it| it.environment == environment)
    {
        let who = decision.message.who.clone();
        let on_chain = events.iter().any(|it| {
            it.rev.to_string() == decision.message.audit
                && it.event.tag.as_deref() == Some(&decision.tag.name)
        });
        let signed = || -> Result<bool> {
            let bytes = repo.git.tag_bytes(&decision.tag.id)?;
            repo.git.is_signed_by(&repo.private, &bytes, &who, &policy.keys(&who)?)
        };
        let reason = if !asked.approvers.contains(&who) {
            Some("is not among the approvers")
        } else if decision.message.package != version.package.digest {
            Some("speaks of another package")
        } else if !on_chain {
            Some("is not on the audit chain")
        } else if asked.independent && version.tag.tagger.contains(&format!("<{who}>")) {
            Some("registered the version")
        } else if asked.signed && !signed()? {
            Some("did not sign with a key that the policy lists")
        } else {
            None
        };
        match reason {
            Some(reason) => others.push(format!("`{}` does not count: {who} {reason}", decision.tag.name)),
            None => drop(last.insert(who, decision)),
        }
    }
    Ok((last.into_values().collect(), others))
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
