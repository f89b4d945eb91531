//! Assesses a version against the policy of an environment: approvals, rejections, and limits on reported
//! numbers.

use crate::{
    error::Result,
    model::registry::Version,
    pointer::Content,
    policy::{Evidence, Gate, Policy, check_limits},
    release::{Decision, Verdict, effective_decisions},
    repo::Repo,
};

/// The gates of an environment for a version.
#[derive(Clone, Debug, Default)]
pub struct Assessment {
    pub gates: Vec<Gate>,
    /// Approvals that count.
    pub approvals: Vec<Decision>,
    /// Reasons why other decisions do not count.
    pub notes: Vec<String>,
}

impl Assessment {
    /// Returns true if all gates are open.
    pub fn may_serve(&self) -> bool {
        self.gates.iter().all(|it| it.is_open)
    }
}

/// Assesses a version: no rejection, enough approvals, and limits that every report named by an approval
/// meets. `read` loads such a report.
pub fn assess(
    repo: &Repo,
    policy: &Policy,
    version: &Version,
    environment: &str,
    read: &dyn Fn(&Content) -> Result<Evidence>,
) -> Result<Assessment> {
    let required = policy.environment(environment)?;
    let (decisions, notes) = effective_decisions(repo, policy, version, environment)?;
    let (approvals, rejections): (Vec<_>, Vec<_>) =
        decisions.into_iter().partition(|decision| decision.verdict == Verdict::Approved);
    let names = |list: &[Decision]| {
        list.iter().map(|decision| decision.message.who.clone()).collect::<Vec<_>>().join(", ")
    };
    let mut all_gates = vec![Gate {
        name: "approvals".into(),
        required: if required.approvals == 0 {
            "none".into()
        } else {
            format!("{} of {}", required.approvals, required.approvers.join(", "))
        },
        found: if approvals.is_empty() { "none".into() } else { names(&approvals) },
        is_open: approvals.len() >= required.approvals as usize,
    }];
    if !rejections.is_empty() {
        all_gates.push(Gate {
            name: "rejections".into(),
            required: "none".into(),
            found: names(&rejections),
            is_open: false,
        });
    }
    let reports: Vec<&Content> =
        approvals.iter().filter_map(|approval| approval.message.report.as_ref()).collect();
    let limits = [required.accuracy, required.precision, required.recall, required.p99];
    if reports.is_empty() && limits.iter().any(Option::is_some) {
        all_gates.push(Gate {
            name: "report".into(),
            required: "one named by an approval".into(),
            found: "none".into(),
            is_open: false,
        });
    }
    for report in reports {
        let evidence = read(report)?;
        if evidence.package == version.package.digest {
            all_gates.extend(check_limits(required, &evidence));
        } else {
            let other = format!("of {} ({})", evidence.version, evidence.package.short());
            all_gates.push(Gate {
                name: "report".into(),
                required: "of this package".into(),
                found: other,
                is_open: false,
            });
        }
    }
    Ok(Assessment { gates: all_gates, approvals, notes })
}
