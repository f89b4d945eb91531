//! Who may serve where: approvals and releases, read from tags and held to the policy.
//!
//! ```text
//! pets@v0.1.0                                  a version (`model::registry`)
//! mlx/approve/pets@v0.1.0/production/1         somebody vouches for it there; mlx/reject/… that it must not
//! pets#production#7                            from here on this version serves there
//! ```
//!
//! Each is an annotated tag on the version's commit, never moved, that names the package's digest, the policy's
//! digest, the event before it, and its own event on the audit chain. Which release is the last follows from the
//! numbers and from what each names as its predecessor, never from a clock.

mod decision;
mod examine;
mod record;
mod standing;
mod timeline;

pub use self::{
    decision::{Decision, Verdict, decisions},
    examine::{Examined, examine},
    record::Record,
    standing::{Standing, approvers, standing},
    timeline::{Release, all, claimed, releases, serving},
};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
    pointer::Content,
};

const FORMAT: u64 = 1;
/// How a signature's first line starts.
const SIGNATURE: &str = "-----BEGIN ";

/// What a tag of ours says below its first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    pub format: u64,
    /// The event's commit on the audit chain.
    pub audit: String,
    pub package: Digest,
    pub policy: Digest,
    /// The tag of the event before this one, of its kind and place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// `pets@v0.1.0`
    pub version: String,
    pub who: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Of a release: whether it takes back the one before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback: bool,
    /// Of a release: the approvals it rests on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<String>,
    /// Of an approval: the report it rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Content>,
}

impl Message {
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

    /// The whole message of a tag.
    pub fn print(&self, title: &str) -> Result<String> {
        let body = toml::to_string(self).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
        let text = format!("{title}\n\n{body}");
        // A tag that does not read back would take its name for ever.
        if Self::parse(&text).as_ref() == Some(self) && !text.lines().any(|it| it.starts_with(SIGNATURE)) {
            return Ok(text);
        }
        Err(Error::usage("what you say cannot stand in a tag: a line of it looks like a signature")
            .hint(format!("leave lines that start with `{SIGNATURE}` out of --why")))
    }

    /// Reads what [`Message::print`] wrote; a message of something else is none.
    fn parse(text: &str) -> Option<Self> {
        let body = text.split_once('\n')?.1;
        toml::from_str::<Self>(unsigned(body)).ok().filter(|it| it.format == FORMAT)
    }
}

/// A tag's message without the signature behind it.
fn unsigned(message: &str) -> &str {
    let start = message.match_indices(SIGNATURE).map(|it| it.0);
    let last = start.filter(|it| *it == 0 || message.as_bytes()[it - 1] == b'\n').last();
    &message[..last.unwrap_or(message.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_as_it_was_written_signed_or_not() {
        let mut message = Message::new("pets@v0.1.0", Digest::of(b"p"), Digest::of(b"q"), "qa@park.example");
        message.why = Some("it is \"good\"\nand fast".into());
        message.report =
            Some(Content { digest: Digest::of(b"r"), files: 1, kind: crate::pointer::Shape::File, size: 9 });
        let text = message.print("approve").unwrap();
        assert_eq!(Message::parse(&text), Some(message.clone()));
        assert_eq!(Message::parse(&format!("{text}-----BEGIN SSH SIGNATURE-----\nx")), Some(message.clone()));
        message.why = Some("see -----BEGIN NOTE\nand {audit}".into());
        let text = message.print("approve").unwrap();
        assert_eq!(Message::parse(&format!("{text}-----BEGIN PGP SIGNATURE-----\nx")), Some(message.clone()));
        message.why = Some("x\n-----BEGIN SSH SIGNATURE-----\ny".into());
        let again = message.print("approve").map(|it| Message::parse(&it));
        assert!(again.is_err() || again.unwrap() == Some(message));
        assert_eq!(Message::parse("a release\n\nof something else"), None);
    }
}
