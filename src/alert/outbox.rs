//! The outbox: alerts of this machine that are still to be delivered.
//!
//! A delivery is queued before the alert's event is published, so that an interruption of the command loses
//! none. The next check of a day delivers what is pending and drops deliveries whose event was never
//! published.

use std::{collections::BTreeSet, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    alert::{Sink, Sinks, Transition},
    digest::Digest,
    error::{Error, Kind, Result},
    fs::{self, Root, Sync},
    ledger::{self, Entry},
    path::RepoPath,
};

/// Number of attempts before a delivery is given up.
const MAX_TRIES: u32 = 10;

/// Pending deliveries of one machine.
pub struct Outbox<'r> {
    root: &'r Root,
    folder: RepoPath,
}

/// An alert and the targets it is still to be delivered to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct PendingDelivery {
    kind: ledger::Kind,
    environment: String,
    rule: String,
    day: String,
    sinks: BTreeSet<Sink>,
    tries: u32,
    alert: Value,
}

/// A queued delivery; empty if no targets are configured.
pub struct Queued(Option<RepoPath>);

impl<'r> Outbox<'r> {
    /// Opens the outbox in a repository's shared private folder.
    pub fn open(shared: &'r Root) -> Result<Self> {
        Ok(Self { root: shared, folder: RepoPath::from_text("alerts")? })
    }

    /// Queues the delivery of a change whose event is about to be published.
    pub fn enqueue(&self, transition: &Transition, environment: &str, sinks: &Sinks) -> Result<Queued> {
        let configured: BTreeSet<Sink> = sinks.configured().into_iter().collect();
        if configured.is_empty() {
            return Ok(Queued(None));
        }
        let delivery = PendingDelivery {
            kind: transition.kind,
            environment: environment.to_owned(),
            rule: transition.rule.name.clone(),
            day: transition.day.clone(),
            sinks: configured,
            tries: 0,
            alert: payload(transition, environment),
        };
        let key = format!("{}\n{environment}\n{}\n{}", delivery.kind.name(), delivery.day, delivery.rule);
        let path = self.own_path(&Digest::of(key.as_bytes()).hex())?;
        self.write(&path, &delivery)?;
        Ok(Queued(Some(path)))
    }

    /// Removes a queued delivery: another process published the event and delivers it.
    pub fn cancel(&self, queued: &Queued) -> Result<()> {
        queued.0.as_ref().map_or(Ok(()), |path| self.root.remove(path))
    }

    /// Delivers what is pending and returns the failures. A target that does not respond is not tried again
    /// in this call.
    pub fn deliver(&self, events: &[Entry], sinks: &Sinks, folder: &Path) -> Result<Vec<Error>> {
        let (mut failed, mut unavailable) = (Vec::new(), BTreeSet::new());
        for (number, path, mut delivery) in self.take_pending(events)? {
            delivery.alert["alert"] = json!(number);
            delivery.tries += 1;
            delivery.sinks.retain(|sink| sinks.configured().contains(sink));
            let targets = delivery.sinks.clone().into_iter().filter(|sink| !unavailable.contains(sink));
            for sink in targets.collect::<Vec<_>>() {
                match sinks.send(sink, folder, &delivery.alert) {
                    Ok(()) => {
                        delivery.sinks.remove(&sink);
                        self.write(&path, &delivery)?;
                    }
                    Err(error) => {
                        if error.kind() == Kind::Unavailable {
                            unavailable.insert(sink);
                        }
                        failed.push(error);
                    }
                }
            }
            if delivery.sinks.is_empty() || delivery.tries >= MAX_TRIES {
                self.root.remove(&path)?;
            } else {
                self.write(&path, &delivery)?;
            }
        }
        Ok(failed)
    }

    /// Takes over the deliveries of dead processes. Returns them and those of this process, by the number of
    /// their event; deliveries without a published event are removed.
    fn take_pending(&self, events: &[Entry]) -> Result<Vec<(u64, RepoPath, PendingDelivery)>> {
        let mut pending = Vec::new();
        if self.root.stat(&self.folder)?.is_none() {
            return Ok(pending);
        }
        for (name, _) in self.root.dir(&self.folder)?.names()? {
            let Some((pid, key)) = parse_file_name(&name) else { continue };
            let own = pid == std::process::id();
            if !own && fs::is_alive(pid) {
                continue;
            }
            let (old, path) = (self.folder.join(&name)?, self.own_path(key)?);
            // If two processes take over a delivery, the rename of the second one fails.
            if !own && self.root.rename(&old, &path).is_err() {
                continue;
            }
            let delivery: Option<PendingDelivery> = serde_json::from_slice(&self.root.read(&path)?).ok();
            match delivery.and_then(|delivery| Some((event_number(&delivery, events)?, delivery))) {
                Some((number, delivery)) => pending.push((number, path, delivery)),
                None => self.root.remove(&path)?,
            }
        }
        pending.sort_by_key(|(number, ..)| *number);
        Ok(pending)
    }

    /// Returns the path of a delivery that belongs to this process.
    fn own_path(&self, key: &str) -> Result<RepoPath> {
        self.folder.join(format!("{}-{key}.json", std::process::id()).as_bytes())
    }

    fn write(&self, path: &RepoPath, delivery: &PendingDelivery) -> Result<()> {
        let text =
            serde_json::to_string(delivery).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
        self.root.write(path, text.as_bytes(), Sync::Now)
    }
}

/// Parses a file name of the form `PID-KEY.json`.
fn parse_file_name(name: &[u8]) -> Option<(u32, &str)> {
    let (pid, key) = std::str::from_utf8(name).ok()?.strip_suffix(".json")?.split_once('-')?;
    Some((pid.parse().ok()?, key))
}

/// Returns the number of the event that a delivery is about, if it was published.
fn event_number(delivery: &PendingDelivery, events: &[Entry]) -> Option<u64> {
    let found = events.iter().rev().map(|entry| &entry.event).find(|event| {
        event.kind == delivery.kind
            && event.subject == delivery.rule
            && event.environment.as_deref() == Some(&delivery.environment[..])
            && event.facts.get("day").and_then(Value::as_str) == Some(&delivery.day[..])
    });
    found.map(|event| event.number)
}

/// Returns the alert as the JSON that is delivered.
fn payload(transition: &Transition, environment: &str) -> Value {
    let rule = &transition.rule;
    let state = if transition.kind == ledger::Kind::Alerted { "raised" } else { "resolved" };
    json!({"state": state, "rule": rule.name, "environment": environment, "day": transition.day,
        "severity": rule.severity.name(), "number": rule.value, "value": transition.value,
        "text": transition.text()})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::alert::tests::{entry, rules};

    fn sinks(root: &Path, command: &str) -> Sinks {
        let file = Some(root.join("delivered"));
        Sinks { file, command: Some(command.into()), webhook: None, timeout: Duration::from_millis(200) }
    }

    /// Queues three alerts, the first two of them published. Delivers once with each command and returns the
    /// number of failures in each round, and the lines in the file.
    fn rounds(commands: &[&str]) -> (Vec<usize>, String) {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::create(&temp.path().join("shared")).unwrap();
        let outbox = Outbox::open(&root).unwrap();
        let mut events = Vec::new();
        for (at, day) in ["2026-03-01", "2026-03-02", "2026-03-03"].into_iter().enumerate() {
            let kind = ledger::Kind::Alerted;
            let transition = Transition { kind, rule: rules("").remove(0), day: day.into(), value: 0.9 };
            outbox.enqueue(&transition, "production", &sinks(temp.path(), "true")).unwrap();
            // The third one was never published.
            if at < 2 {
                events.push(entry(events.len() as u64 + 1, kind, "dark", transition.facts()));
            }
        }
        let round = |command: &&str| {
            outbox.deliver(&events, &sinks(temp.path(), command), temp.path()).unwrap().len()
        };
        let failed = commands.iter().map(round).collect();
        (failed, String::from_utf8(fs::read_user_file(&temp.path().join("delivered")).unwrap()).unwrap())
    }

    #[test]
    fn a_failed_delivery_is_retried_and_nothing_is_delivered_twice() {
        let (failed, delivered) = rounds(&["exit 1", "exit 1", "cat >> received", "cat >> received"]);
        assert_eq!(failed, [2, 2, 0, 0]);
        let days: Vec<Value> = delivered.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let days: Vec<_> =
            days.iter().map(|alert| (alert["day"].as_str().unwrap(), alert["alert"].as_u64())).collect();
        assert_eq!(days, [("2026-03-01", Some(1)), ("2026-03-02", Some(2))]);
    }

    #[test]
    fn an_unresponsive_sink_is_tried_once_per_round() {
        assert_eq!(rounds(&["sleep 30"]).0, [1]);
    }

    #[test]
    fn a_delivery_is_given_up_after_ten_attempts() {
        let failed = rounds(&["exit 1"; 12]).0;
        assert_eq!(failed, [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0]);
    }
}
