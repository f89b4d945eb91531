//! Whether a version may serve in an environment.

use crate::{
    error::Result,
    model::registry::Version,
    pointer::Content,
    policy::{Evidence, Gate, Policy, gates},
    release::{Decision, Verdict, approvers},
    repo::Repo,
};

/// Everything that is asked for, with what was found.
#[derive(Clone, Debug, Default)]
pub struct Examined {
    pub gates: Vec<Gate>,
    /// The approvals that count.
    pub approvals: Vec<Decision>,
    /// Why others do not count.
    pub notes: Vec<String>,
}

impl Examined {
    pub fn may_serve(&self) -> bool {
        self.gates.iter().all(|it| it.is_open)
    }
}

/// Holds a version to what an environment asks for: nobody's rejection, enough approvals, and limits that every
/// report they rest on meets.
pub fn examine(
    repo: &Repo,
    policy: &Policy,
    version: &Version,
    environment: &str,
    read: &dyn Fn(&Content) -> Result<Evidence>,
) -> Result<Examined> {
    let asked = policy.environment(environment)?;
    let (words, notes) = approvers(repo, policy, version, environment)?;
    let (approvals, rejections): (Vec<_>, Vec<_>) =
        words.into_iter().partition(|it| it.verdict == Verdict::Approved);
    let names =
        |list: &[Decision]| list.iter().map(|it| it.message.who.clone()).collect::<Vec<_>>().join(", ");
    let mut found = vec![Gate {
        name: "approvals".into(),
        asked: if asked.approvals == 0 {
            "none".into()
        } else {
            format!("{} of {}", asked.approvals, asked.approvers.join(", "))
        },
        found: if approvals.is_empty() { "none".into() } else { names(&approvals) },
        is_open: approvals.len() >= asked.approvals as usize,
    }];
    if !rejections.is_empty() {
        found.push(Gate {
            name: "rejections".into(),
            asked: "none".into(),
            found: names(&rejections),
            is_open: false,
        });
    }
    let reports: Vec<&Content> = approvals.iter().filter_map(|it| it.message.report.as_ref()).collect();
    let limits = [asked.accuracy, asked.precision, asked.recall, asked.p99];
    if reports.is_empty() && limits.iter().any(Option::is_some) {
        found.push(Gate {
            name: "report".into(),
            asked: "one that an approval rests on".into(),
            found: "none".into(),
            is_open: false,
        });
    }
    for report in reports {
        let evidence = read(report)?;
        if evidence.package == version.package.digest {
            found.extend(gates(asked, &evidence));
        } else {
            let other = format!("of {} ({})", evidence.version, evidence.package.short());
            found.push(Gate {
                name: "report".into(),
                asked: "of this package".into(),
                found: other,
                is_open: false,
            });
        }
    }
    Ok(Examined { gates: found, approvals, notes })
}
