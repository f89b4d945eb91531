//! Audit ledger: events that no commit of the project records (approved, released, switched, alerted, …).
//!
//! Each event is one commit on `refs/mlx/audit` with one small JSON file; Git's parent links form the chain.
//! An event with a tag names the tag, and the tag names the event's commit, so that removing one is noticed.

mod chain;
mod publish;
mod sync;
mod tag_names;

pub use self::{
    chain::{AUDIT, Entry, append, contains, read, tip},
    publish::{Draft, Published, RequiredSignature, TagDraft, publish},
    sync::{LedgerState, last_seen_tip, refresh},
    tag_names::{audit_commit, is_commit_id, is_mlx_tag},
};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Format number of stored events.
pub const FORMAT: u64 = 1;

/// Kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Approved,
    Rejected,
    Released,
    RolledBack,
    /// A service switched to another version.
    Switched,
    Alerted,
    /// The cause of an alert ended.
    Resolved,
    Acknowledged,
    /// Days were accepted as the new baseline.
    Accepted,
    /// A retraining produced a candidate.
    Retrained,
}

/// One event, as stored in its commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub format: u64,
    /// Position in the chain; 1 for the first event.
    pub number: u64,
    pub kind: Kind,
    /// Time by the writer's clock; for information only, nothing is decided by it.
    pub when: String,
    /// The person or service that reports the event.
    pub who: String,
    /// A version such as `pets@v0.1.0`, or the rule of an alert.
    pub subject: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The tag that belongs to this event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Digests and numbers, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, Value>,
}

impl Kind {
    /// Returns the name used in commit messages and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Released => "released",
            Self::RolledBack => "rolled back",
            Self::Switched => "switched",
            Self::Alerted => "alerted",
            Self::Resolved => "resolved",
            Self::Acknowledged => "acknowledged",
            Self::Accepted => "accepted",
            Self::Retrained => "retrained",
        }
    }
}
