//! The events that no commit of the project tells: approved, released, switched, alerted, acknowledged.
//!
//! Each is one commit on `refs/mlx/audit` that holds one small JSON file; Git's parent links are the chain. What
//! has a tag as well names it, and the tag names the event's commit, so that neither can go without being missed.

mod chain;
mod publish;
mod sync;
mod tag_names;

pub use self::{
    chain::{AUDIT, Entry, append, holds, read, tip},
    publish::{Draft, Published, Signed, TagDraft, publish},
    sync::{View, last_seen, refresh},
    tag_names::{audit_commit, is_commit_id, is_mlx_tag},
};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub const FORMAT: u64 = 1;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Approved,
    Rejected,
    Released,
    RolledBack,
    /// A service lets another version answer.
    Switched,
    Alerted,
    /// What an alert was about is over.
    Resolved,
    Acknowledged,
    /// Days became the new reference.
    Accepted,
    /// A candidate came out of a retraining.
    Retrained,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub format: u64,
    /// 1 for the first.
    pub number: u64,
    pub kind: Kind,
    /// When, as the clock of the one who wrote it says; it decides nothing.
    pub when: String,
    /// Who says so.
    pub who: String,
    /// `pets@v0.1.0`, or the rule of an alert.
    pub subject: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The tag that this event stands beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Digests and numbers, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, Value>,
}

impl Kind {
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
