//! Approvals and rejections of a version in an environment, read from their tags.

use crate::{
    error::Result,
    git::{Git, Tag},
    ledger,
    release::Message,
};

/// Verdict of an approver on a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Approved,
    Rejected,
}

/// An approver's decision on a version in an environment.
#[derive(Clone, Debug)]
pub struct Decision {
    pub verdict: Verdict,
    /// Number among the decisions on this version in this environment, from 1.
    pub number: u64,
    pub environment: String,
    pub message: Message,
    pub tag: Tag,
}

impl Verdict {
    /// Returns the prefix of its tags' names.
    fn tag_prefix(self) -> &'static str {
        match self {
            Self::Approved => "mlx/approve/",
            Self::Rejected => "mlx/reject/",
        }
    }

    /// Returns the kind of its event on the audit chain.
    pub fn kind(self) -> ledger::Kind {
        match self {
            Self::Approved => ledger::Kind::Approved,
            Self::Rejected => ledger::Kind::Rejected,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }

    /// Returns the name of a decision's tag, such as `mlx/approve/pets@v0.1.0/production/1`.
    pub fn tag_name(self, version: &str, environment: &str, number: u64) -> String {
        format!("{}{version}/{environment}/{number}", self.tag_prefix())
    }
}

/// Returns all decisions that tags claim, of one version or of all, by version, environment and number. Tags
/// with such a name but another content are skipped. [`crate::release::AuditIndex`] determines which
/// decisions are on the audit chain.
pub fn decisions(git: &Git, version: Option<&str>) -> Result<Vec<Decision>> {
    let mut decisions = Vec::new();
    for verdict in [Verdict::Approved, Verdict::Rejected] {
        let prefix = version.map_or_else(
            || verdict.tag_prefix().to_owned(),
            |name| format!("{}{name}/", verdict.tag_prefix()),
        );
        decisions.extend(git.tags(&prefix)?.into_iter().filter_map(|tag| parse(verdict, tag)));
    }
    decisions.sort_by(|a, b| {
        (&a.message.version, &a.environment, a.number).cmp(&(&b.message.version, &b.environment, b.number))
    });
    Ok(decisions)
}

/// Parses a decision's tag; none if it is another tag.
fn parse(verdict: Verdict, tag: Tag) -> Option<Decision> {
    let message = Message::parse(&tag.message)?;
    let rest = tag.name.strip_prefix(verdict.tag_prefix())?;
    let (rest, number) = rest.rsplit_once('/')?;
    let (version, environment) = rest.rsplit_once('/')?;
    let number = number.parse().ok().filter(|it| *it > 0)?;
    // The name has to agree with the message, in its one canonical spelling.
    let is_canonical =
        version == message.version && tag.name == verdict.tag_name(version, environment, number);
    let environment = environment.to_owned();
    is_canonical.then_some(Decision { verdict, number, environment, message, tag })
}
