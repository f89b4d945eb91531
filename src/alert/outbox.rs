//! Alerts that wait for their delivery. A letter lies here before its event is published, so that whatever stops
//! this command loses none: the next look at a day delivers what is left, and drops letters without an event.

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

/// How often a letter is tried.
const TRIES: u32 = 10;

/// What one machine still has to tell.
pub struct Outbox<'r> {
    root: &'r Root,
    folder: RepoPath,
}

/// One alert and where it has to go still.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Letter {
    kind: ledger::Kind,
    environment: String,
    rule: String,
    day: String,
    sinks: BTreeSet<Sink>,
    tries: u32,
    alert: Value,
}

/// A letter's place.
pub struct Posted(Option<RepoPath>);

impl<'r> Outbox<'r> {
    pub fn open(shared: &'r Root) -> Result<Self> {
        Ok(Self { root: shared, folder: RepoPath::from_text("alerts")? })
    }

    /// Writes down what is going to be published.
    pub fn put(&self, transition: &Transition, environment: &str, sinks: &Sinks) -> Result<Posted> {
        let there: BTreeSet<Sink> = sinks.there().into_iter().collect();
        if there.is_empty() {
            return Ok(Posted(None));
        }
        let letter = Letter {
            kind: transition.kind,
            environment: environment.to_owned(),
            rule: transition.rule.name.clone(),
            day: transition.day.clone(),
            sinks: there,
            tries: 0,
            alert: told(transition, environment),
        };
        let key = format!("{}\n{environment}\n{}\n{}", letter.kind.name(), letter.day, letter.rule);
        let path = self.own(&Digest::of(key.as_bytes()).hex())?;
        self.write(&path, &letter)?;
        Ok(Posted(Some(path)))
    }

    /// Takes a letter back: somebody else published what it tells, and tells it.
    pub fn take_back(&self, posted: &Posted) -> Result<()> {
        posted.0.as_ref().map_or(Ok(()), |it| self.root.remove(it))
    }

    /// Delivers what waits; what went wrong. A sink that gives no answer is not asked again this time.
    pub fn deliver(&self, events: &[Entry], sinks: &Sinks, folder: &Path) -> Result<Vec<Error>> {
        let (mut failed, mut silent) = (Vec::new(), BTreeSet::new());
        for (number, path, mut letter) in self.waiting(events)? {
            letter.alert["alert"] = json!(number);
            letter.tries += 1;
            letter.sinks.retain(|it| sinks.there().contains(it));
            for sink in letter.sinks.clone().into_iter().filter(|it| !silent.contains(it)).collect::<Vec<_>>()
            {
                match sinks.tell(sink, folder, &letter.alert) {
                    Ok(()) => {
                        letter.sinks.remove(&sink);
                        self.write(&path, &letter)?;
                    }
                    Err(error) => {
                        if error.kind() == Kind::Unavailable {
                            silent.insert(sink);
                        }
                        failed.push(error);
                    }
                }
            }
            if letter.sinks.is_empty() || letter.tries >= TRIES {
                self.root.remove(&path)?;
            } else {
                self.write(&path, &letter)?;
            }
        }
        Ok(failed)
    }

    /// Letters of this process and of dead ones whose event is there, by its number; others of them go.
    fn waiting(&self, events: &[Entry]) -> Result<Vec<(u64, RepoPath, Letter)>> {
        let mut found = Vec::new();
        if self.root.stamp(&self.folder)?.is_none() {
            return Ok(found);
        }
        for (name, _) in self.root.dir(&self.folder)?.names()? {
            let Some((pid, key)) = parts(&name) else { continue };
            let own = pid == std::process::id();
            if !own && fs::is_alive(pid) {
                continue;
            }
            let (old, path) = (self.folder.join(&name)?, self.own(key)?);
            // Who comes second finds it gone.
            if !own && self.root.rename(&old, &path).is_err() {
                continue;
            }
            let letter: Option<Letter> = serde_json::from_slice(&self.root.read(&path)?).ok();
            match letter.and_then(|it| Some((number(&it, events)?, it))) {
                Some((number, letter)) => found.push((number, path, letter)),
                None => self.root.remove(&path)?,
            }
        }
        found.sort_by_key(|it| it.0);
        Ok(found)
    }

    fn own(&self, key: &str) -> Result<RepoPath> {
        self.folder.join(format!("{}-{key}.json", std::process::id()).as_bytes())
    }

    fn write(&self, path: &RepoPath, letter: &Letter) -> Result<()> {
        let text = serde_json::to_string(letter).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
        self.root.write(path, text.as_bytes(), Sync::Yes)
    }
}

/// `PID-KEY.json`
fn parts(name: &[u8]) -> Option<(u32, &str)> {
    let (pid, key) = std::str::from_utf8(name).ok()?.strip_suffix(".json")?.split_once('-')?;
    Some((pid.parse().ok()?, key))
}

/// The number of the event that a letter tells of.
fn number(letter: &Letter, events: &[Entry]) -> Option<u64> {
    let found = events.iter().rev().map(|it| &it.event).find(|it| {
        it.kind == letter.kind
            && it.subject == letter.rule
            && it.environment.as_deref() == Some(&letter.environment[..])
            && it.facts.get("day").and_then(Value::as_str) == Some(&letter.day[..])
    });
    found.map(|it| it.number)
}

fn told(transition: &Transition, environment: &str) -> Value {
    let rule = &transition.rule;
    let word = if transition.kind == ledger::Kind::Alerted { "raised" } else { "resolved" };
    json!({"state": word, "rule": rule.name, "environment": environment, "day": transition.day,
        "severity": rule.severity.name(), "number": rule.value, "value": transition.value,
        "text": transition.text()})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::alert::tests::{entry, rules};

    fn sinks(root: &Path, command: &str) -> Sinks {
        let file = Some(root.join("told"));
        Sinks { file, command: Some(command.into()), webhook: None, patience: Duration::from_millis(200) }
    }

    /// Two alerts are posted, the first of them published; what each round of delivery with a command says.
    fn rounds(commands: &[&str]) -> (Vec<usize>, String) {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::create(&temp.path().join("shared")).unwrap();
        let outbox = Outbox::open(&root).unwrap();
        let mut events = Vec::new();
        for (at, day) in ["2026-03-01", "2026-03-02", "2026-03-03"].into_iter().enumerate() {
            let kind = ledger::Kind::Alerted;
            let transition = Transition { kind, rule: rules("").remove(0), day: day.into(), value: 0.9 };
            outbox.put(&transition, "production", &sinks(temp.path(), "true")).unwrap();
            // The last one was never published.
            if at < 2 {
                events.push(entry(events.len() as u64 + 1, kind, "dark", transition.facts()));
            }
        }
        let round = |it: &&str| outbox.deliver(&events, &sinks(temp.path(), it), temp.path()).unwrap().len();
        let failed = commands.iter().map(round).collect();
        (failed, String::from_utf8(fs::read_outside(&temp.path().join("told")).unwrap()).unwrap())
    }

    #[test]
    fn what_could_not_be_delivered_is_tried_again_and_nothing_is_told_twice() {
        let (failed, told) = rounds(&["exit 1", "exit 1", "cat >> heard", "cat >> heard"]);
        assert_eq!(failed, [2, 2, 0, 0]);
        let days: Vec<Value> = told.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        let days: Vec<_> =
            days.iter().map(|it| (it["day"].as_str().unwrap(), it["alert"].as_u64())).collect();
        assert_eq!(days, [("2026-03-01", Some(1)), ("2026-03-02", Some(2))]);
    }

    #[test]
    fn a_sink_that_gives_no_answer_is_asked_once_a_time() {
        assert_eq!(rounds(&["sleep 30"]).0, [1]);
    }

    #[test]
    fn a_letter_is_given_up_at_last() {
        let failed = rounds(&["exit 1"; 12]).0;
        assert_eq!(failed, [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0]);
    }
}
