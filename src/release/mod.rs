//! Approvals and releases of versions in environments, read from tags and checked against the policy.
//!
//! ```text
//! pets@v0.1.0                                  a version (`model::registry`)
//! mlx/approve/pets@v0.1.0/production/1         an approval; a rejection is mlx/reject/…
//! pets#production#7                            a release: from here on the version serves
//! ```
//!
//! Each is an annotated tag on the version's commit. It is never moved, and names the digests of the package
//! and the policy, the tag before it in its series, and its own event on the audit chain. The last release
//! follows from the numbers and from the predecessor that each names, never from a clock.

mod assess;
mod audit_index;
mod decision;
mod timeline;

pub use self::{
    assess::{Assessment, assess},
    audit_index::AuditIndex,
    decision::{Decision, Verdict, decisions, effective_decisions},
    timeline::{Release, active_releases, claimed_releases, recorded_releases, releases},
};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
    pointer::Content,
};

const FORMAT: u64 = 1;
/// Start of the first line of a signature.
const SIGNATURE: &str = "-----BEGIN ";

/// The TOML document in a tag's message, below its title line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    pub format: u64,
    /// Commit of its event on the audit chain.
    pub audit: String,
    pub package: Digest,
    pub policy: Digest,
    /// Tag before this one in the same series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// Name of the version, such as `pets@v0.1.0`.
    pub version: String,
    pub who: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Of a release: true if it reverts the release before it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback: bool,
    /// Of a release: tags of the approvals that allowed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<String>,
    /// Of an approval: the test report it is based on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Content>,
}

impl Message {
    /// Creates a message without optional fields. Its `audit` field is a placeholder until the event's commit
    /// is known.
    pub fn new(version: &str, package: Digest, policy: Digest, who: &str) -> Self {
        Self {
            format: FORMAT,
            audit: "{audit}".to_owned(),
            package,
            policy,
            previous: None,
            version: version.to_owned(),
            who: who.to_owned(),
            why: None,
            rollback: false,
            approvals: Vec::new(),
            report: None,
        }
    }

    /// Prints the whole message of a tag.
    pub fn print(&self, title: &str) -> Result<String> {
        let body = toml::to_string(self).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
        let text = format!("{title}\n\n{body}");
        // A tag that cannot be parsed would occupy its name forever, since tags are never moved.
        if Self::parse(&text).as_ref() == Some(self) && !text.lines().any(|it| it.starts_with(SIGNATURE)) {
            return Ok(text);
        }
        Err(Error::usage("the reason cannot be stored in a tag: one of its lines looks like a signature")
            .hint(format!("remove lines that start with `{SIGNATURE}` from `--why`")))
    }

    /// Parses the output of [`Message::print`]; none for the message of another tag.
    fn parse(text: &str) -> Option<Self> {
        let body = text.split_once('\n')?.1;
        toml::from_str::<Self>(unsigned(body)).ok().filter(|it| it.format == FORMAT)
    }
}

/// Returns a tag's message without the signature at its end.
fn unsigned(message: &str) -> &str {
    let offsets = message.match_indices(SIGNATURE).map(|(offset, _)| offset);
    let starts_line = |offset: &usize| *offset == 0 || message.as_bytes()[offset - 1] == b'\n';
    &message[..offsets.filter(starts_line).last().unwrap_or(message.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_message_parses_back_signed_or_not() {
        let mut message = Message::new("pets@v0.1.0", Digest::of(b"p"), Digest::of(b"q"), "qa@park.example");
        message.why = Some("it is \"good\"\nand fast".into());
        message.report = Some(Content {
            digest: Digest::of(b"r"),
            files: 1,
            kind: crate::pointer::ContentKind::File,
            size: 9,
        });
        let text = message.print("approve").unwrap();
        assert_eq!(Message::parse(&text), Some(message.clone()));
        assert_eq!(Message::parse(&format!("{text}-----BEGIN SSH SIGNATURE-----\nx")), Some(message.clone()));
        message.why = Some("see -----BEGIN NOTE\nand {audit}".into());
        let text = message.print("approve").unwrap();
        assert_eq!(Message::parse(&format!("{text}-----BEGIN PGP SIGNATURE-----\nx")), Some(message.clone()));
        message.why = Some("x\n-----BEGIN SSH SIGNATURE-----\ny".into());
        let parsed = message.print("approve").map(|text| Message::parse(&text));
        assert!(parsed.is_err() || parsed.unwrap() == Some(message));
        assert_eq!(Message::parse("a release\n\nof something else"), None);
    }
}
