//! Tags held against the audit chain: what a tag says counts only where the chain's own event says the same.
//!
//! Whoever can push tags can make one that looks like a release. It is no release: only the event's commit, whose
//! place on the chain cannot be forged without rewriting the chain, makes it one. And an event whose tag is gone
//! is an error, so that nobody takes back a rejection by deleting a tag.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Result},
    git::{Git, Tag},
    ledger::{self, Entry, Event, Kind},
    release::Message,
};

/// The chain, ready to be asked about tags.
pub struct Record {
    events: BTreeMap<String, Event>,
}

impl Record {
    pub fn read(git: &Git) -> Result<Self> {
        Ok(Self::of(&ledger::read(git, ledger::tip(git)?.as_ref())?))
    }

    pub fn of(entries: &[Entry]) -> Self {
        Self { events: entries.iter().map(|it| (it.rev.to_string(), it.event.clone())).collect() }
    }

    /// Why a tag does not count, if it does not.
    pub fn objection(&self, tag: &Tag, message: &Message, kind: Kind, environment: &str) -> Option<String> {
        let Some(event) = self.events.get(&message.audit) else {
            return Some("is not on the audit chain".to_owned());
        };
        let fact = |key: &str| event.facts.get(key).and_then(|it| it.as_str()).map(str::to_owned);
        let report = message.report.as_ref().map(|it| it.digest.to_string());
        let wrong = [
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
        let (what, _) = wrong.into_iter().find(|it| it.1)?;
        Some(format!("and event {} name different things: the {what}", event.number))
    }

    /// Refuses a record of which tags are gone: those of events of these kinds that `about` accepts.
    pub fn check_tags(
        &self,
        kinds: &[Kind],
        about: &dyn Fn(&Event) -> bool,
        there: &BTreeSet<&str>,
    ) -> Result<()> {
        let asked = self.events.values().filter(|it| kinds.contains(&it.kind) && about(it));
        let mut gone: Vec<_> = asked
            .filter_map(|it| Some((it.number, it.tag.as_deref()?)))
            .filter(|it| !there.contains(it.1))
            .collect();
        gone.sort_unstable();
        let Some((number, name)) = gone.first() else { return Ok(()) };
        let error = Error::corrupt(format!("the tag `{name}` of event {number} is missing or was changed"));
        Err(error.hint(format!(
            "bring it back: `git fetch REMOTE tag {name}`, or have somebody who has it push it; `mlx audit --verify` says more"
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
        let fact = |it: Digest| serde_json::Value::from(it.to_string());
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

    fn objection(change: impl Fn(&mut Event, &mut Tag, &mut Message)) -> Option<String> {
        let (mut event, mut tag, mut message) = pair();
        change(&mut event, &mut tag, &mut message);
        let record = Record::of(&[Entry { rev: rev(), event }]);
        record.objection(&tag, &message, Kind::Approved, "production")
    }

    #[test]
    fn a_tag_counts_only_where_its_own_event_says_the_same() {
        assert_eq!(objection(|_, _, _| ()), None);
        assert_eq!(
            objection(|_, _, it| it.audit = "refs/mlx/audit".into()).unwrap(),
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
        for (what, change) in changes {
            assert_eq!(objection(change).unwrap(), format!("and event 1 name different things: the {what}"));
        }
    }

    #[test]
    fn an_event_whose_tag_is_gone_is_an_error() {
        let (event, tag, _) = pair();
        let record = Record::of(&[Entry { rev: rev(), event }]);
        let check = |kind, there: &[&str]| {
            record
                .check_tags(&[kind], &|_| true, &there.iter().copied().collect())
                .map_err(|it| it.to_string())
        };
        assert_eq!(check(Kind::Approved, &[&tag.name]), Ok(()));
        assert_eq!(check(Kind::Released, &[]), Ok(()));
        assert!(check(Kind::Approved, &[]).unwrap_err().contains(&tag.name));
    }
}
