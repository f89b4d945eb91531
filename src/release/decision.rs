//! Approvals and rejections of a version in an environment, read from their tags, and which of them count.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::Result,
    git::{Git, Tag},
    ledger::{self, Event},
    model::registry::Version,
    policy::{Environment, Policy},
    release::{AuditIndex, Message},
    repo::Repo,
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
    index.check_tags(&[ledger::Kind::Approved, ledger::Kind::Rejected], &is_relevant, &existing)?;
    let (mut last, mut notes) = (BTreeMap::new(), Vec::new());
    for decision in claimed {
        let who = &decision.message.who;
        let is_signed = || -> Result<bool> {
            let bytes = repo.git.tag_bytes(&decision.tag.id)?;
            repo.git.is_signed_by(&repo.private, &bytes, who, &policy.keys(who)?)
        };
        let mismatch = index.mismatch(&decision.tag, &decision.message, decision.verdict.kind(), environment);
        match objection(&decision, version, required, mismatch, &is_signed)? {
            Some(why) => notes.push(format!("`{}` does not count: {why}", decision.tag.name)),
            None => drop(last.insert(who.clone(), decision)),
        }
    }
    Ok((last.into_values().collect(), notes))
}

/// Returns why a decision does not count, if it does not. `mismatch` is how it differs from the audit chain.
fn objection(
    decision: &Decision,
    version: &Version,
    required: &Environment,
    mismatch: Option<String>,
    is_signed: &dyn Fn() -> Result<bool>,
) -> Result<Option<String>> {
    let who = &decision.message.who;
    let because = |reason: &str| Ok(Some(format!("{who} {reason}")));
    if !required.approvers.contains(who) {
        return because("is not among the approvers");
    }
    if let Some(mismatch) = mismatch {
        return Ok(Some(format!("it {mismatch}")));
    }
    if decision.message.package != version.package.digest {
        return because("decided on another package");
    }
    if required.independent && is_registrant(version, who) {
        return because("registered the version");
    }
    if required.signed && !is_signed()? {
        return because("did not sign with a key listed in the policy");
    }
    Ok(None)
}

/// Returns true if this person registered the version. The case of addresses is ignored.
fn is_registrant(version: &Version, who: &str) -> bool {
    version.tag.tagger.to_lowercase().contains(&format!("<{}>", who.to_lowercase()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::Digest,
        git::Rev,
        model::registry::VersionNumber,
        path::RepoPath,
        pointer::{Content, ContentKind},
        time::Timestamp,
    };

    const NAME: &str = "mlx/approve/pets@v0.1.0/production/1";

    fn tag(name: &str, message: String) -> Tag {
        let rev = Rev::from_hex("0123456789abcdef0123456789abcdef01234567").unwrap();
        let (tagger, when) = ("Ada <ada@park.example>".to_owned(), Timestamp::from_seconds(0));
        Tag { name: name.into(), id: String::new(), rev, message, tagger, when }
    }

    fn message() -> Message {
        Message::new("pets@v0.1.0", Digest::of(b"package"), Digest::of(b"policy"), "qa@park.example")
    }

    fn version() -> Version {
        let package = Content { digest: Digest::of(b"package"), files: 1, kind: ContentKind::Tree, size: 1 };
        Version {
            model: "pets".into(),
            number: VersionNumber(0, 1, 0),
            package,
            path: RepoPath::from_text("models/pets").unwrap(),
            metrics: BTreeMap::new(),
            tag: tag("pets@v0.1.0", String::new()),
        }
    }

    /// Returns the objection to an approval of this person, after a change, with these flags of the policy.
    fn objection_to(
        who: &str,
        (signed, independent): (bool, bool),
        change: impl Fn(&mut Decision, &mut Option<String>, &mut bool),
    ) -> Option<String> {
        let people = ["qa@park.example", "Ada@park.example", "da@park.example"];
        let environment = Environment {
            approvers: people.map(str::to_owned).to_vec(),
            approvals: 1,
            signed,
            independent,
            accuracy: None,
            precision: None,
            recall: None,
            p99: None,
        };
        let mut decision = parse(Verdict::Approved, tag(NAME, message().print("approve").unwrap())).unwrap();
        decision.message.who = who.into();
        let (mut mismatch, mut is_signed) = (None, true);
        change(&mut decision, &mut mismatch, &mut is_signed);
        objection(&decision, &version(), &environment, mismatch, &|| Ok(is_signed)).unwrap()
    }

    #[test]
    fn a_decision_counts_only_if_no_rule_of_the_environment_objects() {
        let (qa, strict, lax) = ("qa@park.example", (true, true), (false, false));
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(objection_to(qa, strict, |_, _, _| ()), None);
        let eve = "eve@park.example is not among the approvers";
        assert_eq!(objection_to("eve@park.example", lax, |_, _, _| ()), text(eve));
        let forged = |_: &mut Decision, mismatch: &mut Option<String>, _: &mut bool| {
            *mismatch = Some("is not on the audit chain".into());
        };
        assert_eq!(objection_to(qa, lax, forged), text("it is not on the audit chain"));
        assert_eq!(objection_to("eve@park.example", lax, forged), text(eve));
        let other = |decision: &mut Decision, _: &mut Option<String>, _: &mut bool| {
            decision.message.package = Digest::of(b"other");
        };
        assert_eq!(objection_to(qa, lax, other), text("qa@park.example decided on another package"));
        // The version's tagger is `ada@park.example`.
        let ada = "Ada@park.example registered the version";
        assert_eq!(objection_to("Ada@park.example", (false, true), |_, _, _| ()), text(ada));
        assert_eq!(objection_to("Ada@park.example", (true, false), |_, _, _| ()), None);
        assert_eq!(objection_to("da@park.example", strict, |_, _, _| ()), None);
        let unsigned = |_: &mut Decision, _: &mut Option<String>, is_signed: &mut bool| *is_signed = false;
        let reason = "qa@park.example did not sign with a key listed in the policy";
        assert_eq!(objection_to(qa, (true, false), unsigned), text(reason));
        assert_eq!(objection_to(qa, (false, true), unsigned), None);
    }

    #[test]
    fn a_tag_is_a_decision_only_under_the_name_that_its_message_gives_it() {
        let text = message().print("approve").unwrap();
        let found = parse(Verdict::Approved, tag(NAME, text.clone())).unwrap();
        assert_eq!((found.environment.as_str(), found.number), ("production", 1));
        for name in [
            "mlx/approve/pets@v0.1.0/production/0",
            "mlx/approve/pets@v0.1.0/production/01",
            "mlx/approve/pets@v0.1.0/production/x",
            "mlx/approve/pets@v0.1.0/1",
            "mlx/approve/pets@v0.2.0/production/1",
            "mlx/reject/pets@v0.1.0/production/1",
        ] {
            assert!(parse(Verdict::Approved, tag(name, text.clone())).is_none(), "{name}");
        }
        assert!(parse(Verdict::Approved, tag(NAME, "approve\n\nsomething else".into())).is_none());
    }
}
