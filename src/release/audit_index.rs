//! The events of the audit chain (`refs/mlx/audit`), indexed to check the tags that name them.
//!
//! Anyone who can push tags can create one that looks like a release. A tag only counts if the event it names
//! is on the audit chain and has the same contents: an event cannot be forged without rewriting the chain. An
//! event without its tag is an error, so that deleting a tag cannot revoke a rejection.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Result},
    git::{Git, Tag},
    ledger::{self, Entry, Event, Kind},
    release::Message,
};

/// Events of the audit chain, by commit.
pub struct AuditIndex {
    events: BTreeMap<String, Event>,
}

impl AuditIndex {
    /// Reads the audit chain of a repository.
    pub fn read(git: &Git) -> Result<Self> {
        Ok(Self::new(&ledger::read(git, ledger::tip(git)?.as_ref())?))
    }

    /// Indexes the entries of an audit chain.
    pub fn new(entries: &[Entry]) -> Self {
        Self { events: entries.iter().map(|entry| (entry.rev.to_string(), entry.event.clone())).collect() }
    }

    /// Returns the reason why a tag does not count, as the end of a sentence about it; none if it counts.
    pub fn mismatch(&self, tag: &Tag, message: &Message, kind: Kind, environment: &str) -> Option<String> {
        let Some(event) = self.events.get(&message.audit) else {
            return Some("is not on the audit chain".to_owned());
        };
        let fact = |key: &str| event.facts.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        let report = message.report.as_ref().map(|it| it.digest.to_string());
        let differences = [
            ("tag", event.tag.as_deref() != Some(&tag.name)),
            ("kind", event.kind != kind),
            ("environment", event.environment.as_deref() != Some(environment)),
            ("version", event.subject != message.version),
            ("person", event.who != message.who),
            ("reason", event.why != message.why),
            ("package", fact("package") != Some(message.package.to_string())),
            ("policy", fact("policy") != Some(message.policy.to_string())),
            ("report", fact("report") != report),
        ];
        let (field, _) = differences.into_iter().find(|(_, differs)| *differs)?;
        Some(format!("does not match event {} (the {field} differs)", event.number))
    }

    /// Checks that no tag is missing: `existing` has to hold the tag of every event of these kinds that
    /// `is_relevant` accepts.
    pub fn check_tags(
        &self,
        kinds: &[Kind],
        is_relevant: &dyn Fn(&Event) -> bool,
        existing: &BTreeSet<&str>,
    ) -> Result<()> {
        let relevant = self.events.values().filter(|event| kinds.contains(&event.kind) && is_relevant(event));
        let mut missing: Vec<_> = relevant
            .filter_map(|event| Some((event.number, event.tag.as_deref()?)))
            .filter(|(_, tag)| !existing.contains(tag))
            .collect();
        missing.sort_unstable();
        let Some((number, name)) = missing.first() else { return Ok(()) };
        let error = Error::corrupt(format!("the tag `{name}` of event {number} is missing or was changed"));
        Err(error.hint(format!(
            "restore it with `git fetch REMOTE tag {name}`, or ask a colleague who has it to push it; `mlx \
            audit --verify` shows details"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest::Digest, git::Rev, ledger::FORMAT, time::Timestamp};

    fn rev() -> Rev {
        Rev::from_hex("0123456789abcdef0123456789abcdef01234567").unwrap()
    }

    fn pair() -> (Event, Tag, Message) {
        let mut message =
            Message::new("pets@v0.1.0", Digest::of(b"package"), Digest::of(b"policy"), "qa@park.example");
        message.audit = rev().to_string();
        let fact = |digest: Digest| serde_json::Value::from(digest.to_string());
        let event = Event {
            format: FORMAT,
            number: 1,
            kind: Kind::Approved,
            when: String::new(),
            who: message.who.clone(),
            subject: message.version.clone(),
            environment: Some("production".into()),
            why: None,
            tag: Some("mlx/approve/pets@v0.1.0/production/1".into()),
            facts: [("package".into(), fact(message.package)), ("policy".into(), fact(message.policy))]
                .into(),
        };
        let tag = Tag {
            name: event.tag.clone().unwrap(),
            id: String::new(),
            rev: rev(),
            message: String::new(),
            tagger: String::new(),
            when: Timestamp::from_seconds(0),
        };
        (event, tag, message)
    }

    fn mismatch(change: impl Fn(&mut Event, &mut Tag, &mut Message)) -> Option<String> {
        let (mut event, mut tag, mut message) = pair();
        change(&mut event, &mut tag, &mut message);
        let index = AuditIndex::new(&[Entry { rev: rev(), event }]);
        index.mismatch(&tag, &message, Kind::Approved, "production")
    }

    #[test]
    fn a_tag_counts_only_if_its_event_has_the_same_contents() {
        assert_eq!(mismatch(|_, _, _| ()), None);
        assert_eq!(
            mismatch(|_, _, it| it.audit = "refs/mlx/audit".into()).unwrap(),
            "is not on the audit chain"
        );
        let changes: [(&str, fn(&mut Event, &mut Tag, &mut Message)); 9] = [
            ("tag", |_, it, _| it.name.push('0')),
            ("kind", |it, _, _| it.kind = Kind::Rejected),
            ("environment", |it, _, _| it.environment = Some("test".into())),
            ("version", |_, _, it| it.version = "pets@v0.2.0".into()),
            ("person", |_, _, it| it.who = "eve".into()),
            ("reason", |_, _, it| it.why = Some("so".into())),
            ("package", |_, _, it| it.package = Digest::of(b"other")),
            ("policy", |it, _, _| drop(it.facts.remove("policy"))),
            ("report", |it, _, _| drop(it.facts.insert("report".into(), "b3:00".into()))),
        ];
        for (field, change) in changes {
            assert_eq!(mismatch(change).unwrap(), format!("does not match event 1 (the {field} differs)"));
        }
    }

    #[test]
    fn an_event_without_its_tag_is_an_error() {
        let (event, tag, _) = pair();
        let index = AuditIndex::new(&[Entry { rev: rev(), event }]);
        let check = |kind, existing: &[&str]| {
            index
                .check_tags(&[kind], &|_| true, &existing.iter().copied().collect())
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(Kind::Approved, &[&tag.name]), Ok(()));
        assert_eq!(check(Kind::Released, &[]), Ok(()));
        assert!(check(Kind::Approved, &[]).unwrap_err().contains(&tag.name));
    }
}
