//! Alerts: decides from the policy's rules which alerts a day's report raises and resolves, and queues their
//! delivery.
//!
//! Decisions are a pure function of rules, reports and earlier events, so that checking a day twice raises
//! nothing twice. An alert that is firing is not raised again. A day without a value neither raises nor
//! resolves an alert.

mod deliver;
mod outbox;

pub use self::{
    deliver::{Sink, Sinks},
    outbox::{Outbox, Queued},
};

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    ledger::{Entry, Kind},
    policy::{Action, Rule},
};

/// Numbers of a day's report, by name.
pub type Values = BTreeMap<String, f64>;

/// A raised alert and its current state.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// Number of its event, which identifies the alert.
    pub number: u64,
    pub rule: String,
    pub environment: String,
    /// Day it was raised for, such as `2026-03-09`.
    pub day: String,
    pub severity: String,
    pub value: f64,
    /// Description, such as `integrity.dark_share is 0.3100, above 0.2`.
    pub text: String,
    /// Name of the action it triggers.
    pub action: Option<String>,
    /// Day it was resolved.
    pub resolved: Option<String>,
    /// Person who acknowledged it.
    pub acknowledged: Option<String>,
}

/// A change that a day's report makes: an alert is raised or resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    pub kind: Kind,
    pub rule: Rule,
    pub day: String,
    pub value: f64,
}

impl Transition {
    /// Returns the facts for its event.
    pub fn facts(&self) -> BTreeMap<String, Value> {
        let mut facts: BTreeMap<String, Value> = [
            ("day".to_owned(), json!(self.day)),
            ("number".to_owned(), json!(self.rule.value)),
            ("severity".to_owned(), json!(self.rule.severity.name())),
            ("value".to_owned(), json!(self.value)),
        ]
        .into();
        facts.extend(self.rule.above.map(|limit| ("above".to_owned(), json!(limit))));
        facts.extend(self.rule.below.map(|limit| ("below".to_owned(), json!(limit))));
        facts.extend(self.rule.action.map(|action| ("action".to_owned(), json!(action.name()))));
        facts
    }

    /// Returns its description, such as `integrity.dark_share is 0.3100, above 0.2`.
    pub fn text(&self) -> String {
        let rule = &self.rule;
        let limit = rule
            .above
            .map(|limit| format!("above {limit}"))
            .or_else(|| rule.below.map(|limit| format!("below {limit}")));
        let limit = limit.unwrap_or_default();
        if self.kind == Kind::Alerted {
            format!("{} is {:.4}, {limit}", rule.value, self.value)
        } else {
            format!("{} is {:.4}, no longer {limit}", rule.value, self.value)
        }
    }
}

/// Returns the alerts of all environments, oldest first.
pub fn alerts(events: &[Entry]) -> Vec<Alert> {
    let mut alerts: Vec<Alert> = Vec::new();
    for entry in events {
        let event = &entry.event;
        let environment = event.environment.clone().unwrap_or_default();
        let fact = |key: &str| event.facts.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let latest = |alerts: &mut Vec<Alert>| {
            let is_same = |alert: &Alert| alert.rule == event.subject && alert.environment == environment;
            alerts.iter().rposition(is_same)
        };
        match event.kind {
            Kind::Alerted => alerts.push(Alert {
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
                if let Some(at) = latest(&mut alerts) {
                    alerts[at].resolved.get_or_insert(fact("day"));
                }
            }
            Kind::Acknowledged => {
                let number = event.facts.get("alert").and_then(Value::as_u64);
                if let Some(alert) = alerts.iter_mut().find(|alert| Some(alert.number) == number) {
                    alert.acknowledged.get_or_insert(event.who.clone());
                }
            }
            _ => {}
        }
    }
    alerts
}

/// Returns the alerts of an environment that were firing on a day, even if they were resolved later.
pub fn firing(events: &[Entry], environment: &str, day: &str) -> Vec<Alert> {
    let is_firing = |alert: &Alert| {
        let unresolved = alert.resolved.as_ref().is_none_or(|resolved| resolved.as_str() > day);
        alert.environment == environment && alert.day.as_str() <= day && unresolved
    };
    alerts(events).into_iter().filter(is_firing).collect()
}

/// Returns the newest alert up to `day` that is still firing and whose action is still to be done: no event
/// of that kind happened in the environment since. The action counts if the alert was raised with it and the
/// rule still has it.
pub fn due(rules: &[Rule], environment: &str, day: &str, action: Action, events: &[Entry]) -> Option<Alert> {
    let mut candidates = firing(events, environment, day);
    candidates.retain(|alert| alert.resolved.is_none() && alert.action.as_deref() == Some(action.name()));
    let has_rule =
        |alert: &Alert| rules.iter().any(|rule| rule.name == alert.rule && rule.action == Some(action));
    let alert = candidates.into_iter().rfind(has_rule)?;
    let done: &[Kind] = match action {
        // A later release or rollback is a decision that replaces this one.
        Action::Rollback => &[Kind::RolledBack, Kind::Released],
        Action::Retrain => &[Kind::Retrained],
    };
    let is_done = events.iter().map(|entry| &entry.event).any(|event| {
        event.number > alert.number
            && event.environment.as_deref() == Some(environment)
            && done.contains(&event.kind)
    });
    (!is_done).then_some(alert)
}

/// Returns the changes that the report of `day` makes. `days` holds the numbers of all reports by day, that
/// one included.
pub fn decide(
    rules: &[Rule],
    environment: &str,
    day: &str,
    days: &BTreeMap<String, Values>,
    events: &[Entry],
) -> Vec<Transition> {
    let all = alerts(events);
    let rules = rules.iter().filter(|rule| rule.env.as_deref().is_none_or(|env| env == environment));
    rules.filter_map(|rule| transition(rule, environment, day, days, &all)).collect()
}

/// Returns the change that the report of `day` makes for one rule.
fn transition(
    rule: &Rule,
    environment: &str,
    day: &str,
    days: &BTreeMap<String, Values>,
    all: &[Alert],
) -> Option<Transition> {
    let last = all.iter().rfind(|alert| alert.rule == rule.name && alert.environment == environment);
    let newest = last.map(|alert| alert.resolved.as_ref().unwrap_or(&alert.day).as_str());
    // A day that is checked again, or late, does not change the past.
    if newest.is_some_and(|newest| newest >= day) {
        return None;
    }
    let value = *days.get(day)?.get(&rule.value)?;
    let make = |kind| Some(Transition { kind, rule: rule.clone(), day: day.to_owned(), value });
    if last.is_some_and(|it| it.resolved.is_none()) {
        return if rule.is_broken_by(value) { None } else { make(Kind::Resolved) };
    }
    let resolved = last.and_then(|alert| alert.resolved.as_ref());
    let quiet_until = resolved.and_then(|resolved| add_days(resolved, rule.cooldown));
    if quiet_until.is_some_and(|until| day <= until.as_str()) {
        return None;
    }
    let measured = days.range(..=day.to_owned()).rev().filter_map(|(_, values)| values.get(&rule.value));
    let window: Vec<f64> = measured.take(rule.days as usize).copied().collect();
    let all_break =
        window.len() == rule.days as usize && window.iter().all(|value| rule.is_broken_by(*value));
    if all_break { make(Kind::Alerted) } else { None }
}

/// Returns the day that is `days` after `day`; none if `day` is not a date.
fn add_days(day: &str, days: u32) -> Option<String> {
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
            "format = 1\n[env.production]\napprovals = 0\n[[alert]]\nname = 'dark'\nvalue = 'integrity.x'\n\
            above = 0.5\n{text}\n"
        );
        Policy::parse(text.as_bytes()).unwrap().rules
    }

    const X: &str = "integrity.x";

    /// Returns some commit; the rules use only the events.
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

    /// Creates an event in `production`.
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

    /// Checks days one after another and returns which alerts were raised and resolved on which day.
    fn replay(text: &str, values: &[Option<f64>]) -> Vec<String> {
        let rules = rules(text);
        let (mut events, mut days, mut changes) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (at, value) in values.iter().enumerate() {
            let day = format!("2026-03-{:02}", at + 1);
            let row: Values = value.map(|value| (X.to_owned(), value)).into_iter().collect();
            days.insert(day.clone(), row);
            // The second check of a day changes nothing.
            for _ in 0..2 {
                for change in decide(&rules, "production", &day, &days, &events) {
                    changes.push(format!("{} {}", at + 1, change.kind.name()));
                    let number = events.len() as u64 + 1;
                    events.push(entry(number, change.kind, &change.rule.name, change.facts()));
                }
            }
        }
        changes
    }

    #[test]
    fn a_firing_alert_is_not_raised_again_and_resolves_once() {
        let (bad, good) = (Some(0.9), Some(0.1));
        assert_eq!(
            replay("", &[good, bad, bad, bad, good, good, bad]),
            ["2 alerted", "5 resolved", "7 alerted"]
        );
        assert_eq!(replay("days = 2", &[bad, good, bad, bad, bad, good]), ["4 alerted", "6 resolved"]);
        assert_eq!(
            replay("cooldown = 3", &[bad, good, bad, bad, bad, bad]),
            ["1 alerted", "2 resolved", "6 alerted"]
        );
    }

    #[test]
    fn a_missing_value_neither_raises_nor_resolves() {
        let (bad, good, none) = (Some(0.9), Some(0.1), None);
        assert_eq!(replay("", &[bad, none, none, good]), ["1 alerted", "4 resolved"]);
        assert_eq!(replay("days = 2", &[bad, none, bad]), ["3 alerted"]);
        assert_eq!(replay("", &[none, none]), Vec::<String>::new());
        assert_eq!(replay("", &[Some(f64::NAN), good]), Vec::<String>::new());
    }

    #[test]
    fn a_rule_applies_to_its_environment_and_a_day_without_report_changes_nothing() {
        assert_eq!(replay("env = 'production'", &[Some(0.9)]), ["1 alerted"]);
        let rules = rules("");
        let days = [("2026-03-01".to_owned(), [(X.to_owned(), 0.9)].into())].into();
        let changes = decide(&rules, "production", "2026-03-01", &days, &[]);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].text(), "integrity.x is 0.9000, above 0.5");
        assert!(decide(&rules, "production", "2026-03-02", &days, &[]).is_empty());
    }

    #[test]
    fn an_action_is_due_until_it_is_done_or_the_alert_is_resolved() {
        let rules = rules("action = 'rollback'");
        let raise = |number, day: &str| {
            let kind = Kind::Alerted;
            let transition = Transition { kind, rule: rules[0].clone(), day: day.into(), value: 0.9 };
            entry(number, kind, "dark", transition.facts())
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
        // An alert of a later day does not count yet.
        assert_eq!(due(&[raise(1, "2026-03-10")], Action::Rollback), None);
        let resolved = entry(2, Kind::Resolved, "dark", [("day".to_owned(), json!("2026-03-09"))].into());
        assert_eq!(due(&[raise(1, "2026-03-08"), resolved], Action::Rollback), None);
        // An action that was removed from the rule is not due.
        assert_eq!(due_by(&self::rules(""), &events[1..2], Action::Rollback), None);
    }

    #[test]
    fn a_resolved_alert_still_counts_as_firing_on_its_days() {
        let day = |day: &str| [("day".to_owned(), json!(day))].into();
        let events = [
            entry(1, Kind::Alerted, "dark", day("2026-03-02")),
            entry(2, Kind::Resolved, "dark", day("2026-03-04")),
        ];
        let counts: Vec<usize> =
            (1..6).map(|day| firing(&events, "production", &format!("2026-03-0{day}")).len()).collect();
        assert_eq!(counts, [0, 1, 1, 0, 0]);
        assert!(firing(&events, "test", "2026-03-02").is_empty());
    }
}
