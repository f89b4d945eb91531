//! Findings that call somebody: which rules of the policy a day breaks, what is raised, what is over.
//!
//! Deciding is a pure function of rules, reports and the events so far, so that a day that is looked at twice
//! raises nothing twice. What fires is not raised again; what cannot be measured neither raises nor ends.

mod deliver;
mod outbox;

pub use self::{
    deliver::{Sink, Sinks},
    outbox::{Outbox, Posted},
};

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    ledger::{Entry, Kind},
    policy::{Action, Rule},
};

/// The numbers of a day's report, by name.
pub type Values = BTreeMap<String, f64>;

/// An alert that was raised, and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// The number of its event: its name.
    pub number: u64,
    pub rule: String,
    pub environment: String,
    /// `2026-03-09`
    pub day: String,
    pub severity: String,
    pub value: f64,
    /// `integrity.dark_share is 0.31, above 0.2`
    pub text: String,
    /// What it was to set off.
    pub action: Option<String>,
    /// The day it was over.
    pub resolved: Option<String>,
    /// Who took notice.
    pub acknowledged: Option<String>,
}

/// What a day changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    pub kind: Kind,
    pub rule: Rule,
    pub day: String,
    pub value: f64,
}

impl Transition {
    /// What the event says beside its kind.
    pub fn facts(&self) -> BTreeMap<String, Value> {
        let mut facts: BTreeMap<String, Value> = [
            ("day".to_owned(), json!(self.day)),
            ("number".to_owned(), json!(self.rule.value)),
            ("severity".to_owned(), json!(self.rule.severity.name())),
            ("value".to_owned(), json!(self.value)),
        ]
        .into();
        facts.extend(self.rule.above.map(|it| ("above".to_owned(), json!(it))));
        facts.extend(self.rule.below.map(|it| ("below".to_owned(), json!(it))));
        facts.extend(self.rule.action.map(|it| ("action".to_owned(), json!(it.name()))));
        facts
    }

    /// `integrity.dark_share is 0.31, above 0.2`
    pub fn text(&self) -> String {
        let rule = &self.rule;
        let limit =
            rule.above.map(|it| format!("above {it}")).or_else(|| rule.below.map(|it| format!("below {it}")));
        let limit = limit.unwrap_or_default();
        if self.kind == Kind::Alerted {
            format!("{} is {:.4}, {limit}", rule.value, self.value)
        } else {
            format!("{} is {:.4}, no longer {limit}", rule.value, self.value)
        }
    }
}

/// Alerts of all environments, oldest first.
pub fn alerts(events: &[Entry]) -> Vec<Alert> {
    let mut found: Vec<Alert> = Vec::new();
    for entry in events {
        let event = &entry.event;
        let environment = event.environment.clone().unwrap_or_default();
        let fact = |key: &str| event.facts.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let open = |found: &mut Vec<Alert>| {
            found.iter().rposition(|it| it.rule == event.subject && it.environment == environment)
        };
        match event.kind {
            Kind::Alerted => found.push(Alert {
                number: event.number,
                rule: event.subject.clone(),
                environment,
                day: fact("day"),
                severity: fact("severity"),
                value: event.facts.get("value").and_then(Value::as_f64).unwrap_or(f64::NAN),
                text: event.why.clone().unwrap_or_default(),
                action: event.facts.get("action").and_then(Value::as_str).map(str::to_owned),
                resolved: None,
                acknowledged: None,
            }),
            Kind::Resolved => {
                if let Some(at) = open(&mut found) {
                    found[at].resolved.get_or_insert(fact("day"));
                }
            }
            Kind::Acknowledged => {
                let number = event.facts.get("alert").and_then(Value::as_u64);
                if let Some(alert) = found.iter_mut().find(|it| Some(it.number) == number) {
                    alert.acknowledged.get_or_insert(event.who.clone());
                }
            }
            _ => {}
        }
    }
    found
}

/// Alerts of an environment that fired on a day, whatever became of them later.
pub fn firing(events: &[Entry], environment: &str, day: &str) -> Vec<Alert> {
    let fires = |it: &Alert| {
        let lasts = it.resolved.as_ref().is_none_or(|over| over.as_str() > day);
        it.environment == environment && it.day.as_str() <= day && lasts
    };
    alerts(events).into_iter().filter(fires).collect()
}

/// The newest alert up to `day` that fires still and whose action is not done: nothing of its kind happened in the
/// environment since. An action counts when the alert was raised with it and the rule has it still.
pub fn due(rules: &[Rule], environment: &str, day: &str, action: Action, events: &[Entry]) -> Option<Alert> {
    let mut fires = firing(events, environment, day);
    fires.retain(|it| it.resolved.is_none() && it.action.as_deref() == Some(action.name()));
    let alert = fires
        .into_iter()
        .rfind(|it| rules.iter().any(|rule| rule.name == it.rule && rule.action == Some(action)))?;
    let done: &[Kind] = match action {
        // Whoever released or rolled back since has decided.
        Action::Rollback => &[Kind::RolledBack, Kind::Released],
        Action::Retrain => &[Kind::Retrained],
    };
    let is_done = events.iter().map(|it| &it.event).any(|it| {
        it.number > alert.number && it.environment.as_deref() == Some(environment) && done.contains(&it.kind)
    });
    (!is_done).then_some(alert)
}

/// What the report of `day` changes; `days` are the numbers of all reports by day, this one among them.
pub fn decide(
    rules: &[Rule],
    environment: &str,
    day: &str,
    days: &BTreeMap<String, Values>,
    events: &[Entry],
) -> Vec<Transition> {
    let all = alerts(events);
    let rules = rules.iter().filter(|it| it.env.as_deref().is_none_or(|it| it == environment));
    rules.filter_map(|rule| transition(rule, environment, day, days, &all)).collect()
}

fn transition(
    rule: &Rule,
    environment: &str,
    day: &str,
    days: &BTreeMap<String, Values>,
    all: &[Alert],
) -> Option<Transition> {
    let last = all.iter().rfind(|it| it.rule == rule.name && it.environment == environment);
    let newest = last.map(|it| it.resolved.as_ref().unwrap_or(&it.day).as_str());
    // A day that is looked at again, or late, changes no history.
    if newest.is_some_and(|it| it >= day) {
        return None;
    }
    let value = *days.get(day)?.get(&rule.value)?;
    let make = |kind| Some(Transition { kind, rule: rule.clone(), day: day.to_owned(), value });
    if last.is_some_and(|it| it.resolved.is_none()) {
        return if rule.is_broken_by(value) { None } else { make(Kind::Resolved) };
    }
    let quiet_until = last.and_then(|it| it.resolved.as_ref()).and_then(|it| after(it, rule.cooldown));
    if quiet_until.is_some_and(|it| day <= it.as_str()) {
        return None;
    }
    let measured = days.range(..=day.to_owned()).rev().filter_map(|it| it.1.get(&rule.value));
    let window: Vec<f64> = measured.take(rule.days as usize).copied().collect();
    let bad = window.len() == rule.days as usize && window.iter().all(|it| rule.is_broken_by(*it));
    if bad { make(Kind::Alerted) } else { None }
}

/// The day so many days after another.
fn after(day: &str, days: u32) -> Option<String> {
    let date: jiff::civil::Date = day.parse().ok()?;
    Some(date.checked_add(jiff::Span::new().days(i64::from(days))).ok()?.to_string())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::{
        git::{Git, Rev},
        ledger::{Event, FORMAT},
        policy::Policy,
    };

    pub fn rules(text: &str) -> Vec<Rule> {
        let text = format!(
            "format = 1\n[env.production]\napprovals = 0\n[[alert]]\nname = 'dark'\nvalue = 'integrity.x'\nabove = 0.5\n{text}\n"
        );
        Policy::parse(text.as_bytes()).unwrap().rules
    }

    const X: &str = "integrity.x";

    /// Any commit will do: the rules look at the events alone.
    fn rev() -> Rev {
        let temp = tempfile::tempdir().unwrap();
        let run = |args: &[&str]| {
            let mut git = std::process::Command::new("git");
            git.current_dir(temp.path()).args(["-c", "user.name=a", "-c", "user.email=b"]).args(args);
            assert!(git.status().unwrap().success());
        };
        run(&["init", "-q"]);
        run(&["commit", "-q", "--allow-empty", "-m", "x"]);
        Git::discover(temp.path()).unwrap().head().unwrap()
    }

    /// An event in `production`.
    pub fn entry(number: u64, kind: Kind, subject: &str, facts: BTreeMap<String, Value>) -> Entry {
        let event = Event {
            format: FORMAT,
            number,
            kind,
            when: String::new(),
            who: String::new(),
            subject: subject.to_owned(),
            environment: Some("production".into()),
            why: None,
            tag: None,
            facts,
        };
        Entry { rev: rev(), event }
    }

    /// Plays days one after another and tells what was raised and what ended when.
    fn play(text: &str, values: &[Option<f64>]) -> Vec<String> {
        let rules = rules(text);
        let (mut events, mut days, mut told) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (at, value) in values.iter().enumerate() {
            let day = format!("2026-03-{:02}", at + 1);
            let row: Values = value.map(|it| (X.to_owned(), it)).into_iter().collect();
            days.insert(day.clone(), row);
            // Twice: the second look changes nothing.
            for _ in 0..2 {
                for it in decide(&rules, "production", &day, &days, &events) {
                    told.push(format!("{} {}", at + 1, it.kind.name()));
                    events.push(entry(events.len() as u64 + 1, it.kind, &it.rule.name, it.facts()));
                }
            }
        }
        told
    }

    #[test]
    fn what_fires_is_not_raised_again_and_ends_once() {
        let (bad, good) = (Some(0.9), Some(0.1));
        assert_eq!(
            play("", &[good, bad, bad, bad, good, good, bad]),
            ["2 alerted", "5 resolved", "7 alerted"]
        );
        assert_eq!(play("days = 2", &[bad, good, bad, bad, bad, good]), ["4 alerted", "6 resolved"]);
        assert_eq!(
            play("cooldown = 3", &[bad, good, bad, bad, bad, bad]),
            ["1 alerted", "2 resolved", "6 alerted"]
        );
    }

    #[test]
    fn what_was_not_measured_neither_raises_nor_ends() {
        let (bad, good, none) = (Some(0.9), Some(0.1), None);
        assert_eq!(play("", &[bad, none, none, good]), ["1 alerted", "4 resolved"]);
        assert_eq!(play("days = 2", &[bad, none, bad]), ["3 alerted"]);
        assert_eq!(play("", &[none, none]), Vec::<String>::new());
        assert_eq!(play("", &[Some(f64::NAN), good]), Vec::<String>::new());
    }

    #[test]
    fn a_rule_for_another_environment_is_silent_and_a_late_day_changes_no_history() {
        assert_eq!(play("env = 'production'", &[Some(0.9)]), ["1 alerted"]);
        let rules = rules("");
        let days = [("2026-03-01".to_owned(), [(X.to_owned(), 0.9)].into())].into();
        let found = decide(&rules, "production", "2026-03-01", &days, &[]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].text(), "integrity.x is 0.9000, above 0.5");
        assert!(decide(&rules, "production", "2026-03-02", &days, &[]).is_empty());
    }

    #[test]
    fn an_action_is_due_until_it_is_done_or_the_alert_is_over() {
        let rules = rules("action = 'rollback'");
        let raise = |number, day: &str| {
            let kind = Kind::Alerted;
            let it = Transition { kind, rule: rules[0].clone(), day: day.into(), value: 0.9 };
            entry(number, kind, "dark", it.facts())
        };
        let due_by =
            |rules: &[Rule], events: &[Entry], action| due(rules, "production", "2026-03-09", action, events);
        let due = |events: &[Entry], action| due_by(&rules, events, action);
        let mut events =
            vec![entry(1, Kind::Released, "pets@v0.2.0", BTreeMap::new()), raise(2, "2026-03-08")];
        assert_eq!(due(&events, Action::Rollback).unwrap().number, 2);
        assert_eq!(due(&events, Action::Retrain), None);
        events.push(entry(3, Kind::RolledBack, "pets@v0.1.0", BTreeMap::new()));
        assert_eq!(due(&events, Action::Rollback), None);
        // A day after the one that is looked at says nothing yet.
        assert_eq!(due(&[raise(1, "2026-03-10")], Action::Rollback), None);
        let over = entry(2, Kind::Resolved, "dark", [("day".to_owned(), json!("2026-03-09"))].into());
        assert_eq!(due(&[raise(1, "2026-03-08"), over], Action::Rollback), None);
        // Who took the action out of the rule does not want it.
        assert_eq!(due_by(&self::rules(""), &events[1..2], Action::Rollback), None);
    }

    #[test]
    fn what_fired_on_a_day_is_told_of_it_for_ever() {
        let day = |day: &str| [("day".to_owned(), json!(day))].into();
        let events = [
            entry(1, Kind::Alerted, "dark", day("2026-03-02")),
            entry(2, Kind::Resolved, "dark", day("2026-03-04")),
        ];
        let fires: Vec<usize> =
            (1..6).map(|it| firing(&events, "production", &format!("2026-03-0{it}")).len()).collect();
        assert_eq!(fires, [0, 1, 1, 0, 0]);
        assert!(firing(&events, "test", "2026-03-02").is_empty());
    }
}
