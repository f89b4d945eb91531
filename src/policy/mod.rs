//! What a version must meet, who may vouch for it, and what is worth an alert: `.mlx/policy.toml`.
//!
//! The policy that counts is the one at the tip of the Git remote's default branch (at HEAD without a remote),
//! never the file in the workspace: what guards a branch guards the policy. Where nothing is said the gate is
//! closed.

mod gates;

pub use self::gates::{Evidence, Gate, gates};

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    digest::Digest,
    document,
    error::{Doing, Error, Kind, Result},
    git::{Git, Key, Rev},
    path::RepoPath,
};

/// Where the policy lies.
pub const FILE: &str = ".mlx/policy.toml";
const FORMAT: u64 = 1;

/// What the numbers of a report start with.
const REPORTED: [&str; 5] = ["integrity.", "drift.", "performance.", "bias.", "telemetry."];

/// The policy with its name.
#[derive(Clone, Debug)]
pub struct Policy {
    pub digest: Digest,
    pub environments: BTreeMap<String, Environment>,
    pub people: BTreeMap<String, Person>,
    pub rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u64,
    #[serde(default)]
    env: BTreeMap<String, Environment>,
    #[serde(default)]
    people: BTreeMap<String, Person>,
    #[serde(default)]
    alert: Vec<Rule>,
}

/// Somebody who may be named as approver.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// Who this is, for people.
    #[serde(default)]
    pub name: String,
    /// `ssh-ed25519 AAAA…` or `gpg FINGERPRINT`.
    #[serde(default)]
    pub keys: Vec<String>,
}

/// What it takes to serve in an environment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Who may approve.
    #[serde(default)]
    pub approvers: Vec<String>,
    /// How many of them have to.
    #[serde(default = "one")]
    pub approvals: u32,
    /// Whether an approval counts only with a signature by a key of that person.
    #[serde(default)]
    pub signed: bool,
    /// Whether who registered a version may not approve it.
    #[serde(default)]
    pub independent: bool,
    /// Smallest accuracy in the report.
    pub accuracy: Option<f64>,
    /// Smallest precision of any class.
    pub precision: Option<f64>,
    /// Smallest recall of any class.
    pub recall: Option<f64>,
    /// Largest 99th percentile of the latency, milliseconds.
    pub p99: Option<f64>,
}

fn one() -> u32 {
    1
}

/// When a number of a day's report is worth an alert.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub name: String,
    /// Only in this environment.
    pub env: Option<String>,
    /// A number of the report, such as `integrity.dark_share`.
    pub value: String,
    pub above: Option<f64>,
    pub below: Option<f64>,
    /// For so many days in a row.
    #[serde(default = "one")]
    pub days: u32,
    #[serde(default)]
    pub severity: Severity,
    /// Days after an alert's end in which it is not raised again.
    #[serde(default)]
    pub cooldown: u32,
    pub action: Option<Action>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    #[default]
    Warning,
    Critical,
}

/// What an alert sets off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A candidate, trained anew.
    Retrain,
    /// The version before answers again.
    Rollback,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Self::Retrain => "retrain",
            Self::Rollback => "rollback",
        }
    }
}

impl Policy {
    /// The policy in a commit.
    pub fn at(git: &Git, rev: Option<&Rev>) -> Result<Self> {
        let path = RepoPath::of_mlx("policy.toml");
        let bytes = rev.map(|it| git.read(it, &path)).transpose()?.flatten();
        let place = rev.map_or_else(|| "the Git remote".to_owned(), |it| format!("commit {}", it.short()));
        let bytes = bytes.ok_or_else(|| {
            Error::new(Kind::Denied, format!("there is no policy in {place}, so nothing is allowed"))
                .hint(format!("commit `{FILE}` (and push it to the default branch); `mlx init --template pets` writes one"))
        })?;
        Self::parse(&bytes).doing(|| format!("cannot use `{FILE}` of {place}"))
    }

    /// Reads a policy; a key that is not known is an error, since it may be a misspelt limit.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        if document::has_conflict_marks(&text) {
            return Err(Error::corrupt(format!("`{FILE}` has merge-conflict marks"))
                .hint("resolve the conflict in it"));
        }
        let wrong = |why: String| Error::usage(format!("the policy says what cannot be: {why}"));
        let written: Written = toml::from_str(&text).map_err(|it| wrong(it.message().to_owned()))?;
        if written.format != FORMAT {
            return Err(Error::corrupt(format!("`{FILE}` was written for a newer mlx")).hint("upgrade mlx"));
        }
        let policy = Self {
            digest: Digest::of(bytes),
            environments: written.env,
            people: written.people,
            rules: written.alert,
        };
        policy.check().map_err(wrong)?;
        Ok(policy)
    }

    fn check(&self) -> std::result::Result<(), String> {
        for (name, it) in &self.environments {
            if !is_environment(name) {
                return Err(format!("`{name}` is no name of an environment: a-z, 0-9 and `-`"));
            }
            if let Some(unknown) = it.approvers.iter().find(|it| !self.people.contains_key(*it)) {
                return Err(format!("the approver `{unknown}` of `{name}` is not among [people]"));
            }
            let mut people: Vec<&String> = it.approvers.iter().collect();
            people.sort_unstable();
            if let Some([twice, ..]) = people.windows(2).find(|it| it[0] == it[1]) {
                return Err(format!("`{name}` lists the approver `{twice}` twice"));
            }
            if it.approvals as usize > it.approvers.len() {
                return Err(format!(
                    "`{name}` asks for {} approvals and has {} approvers",
                    it.approvals,
                    it.approvers.len()
                ));
            }
            let shares = [it.accuracy, it.precision, it.recall];
            if shares.iter().flatten().any(|it| !(0.0..=1.0).contains(it))
                || it.p99.is_some_and(|it| it.is_nan() || it <= 0.0)
            {
                return Err(format!(
                    "a limit of `{name}` is out of range: shares are 0 to 1, p99 is above 0"
                ));
            }
        }
        for (name, person) in &self.people {
            person.parsed().map_err(|it| format!("a key of `{name}`: {it}"))?;
        }
        let mut names: Vec<&str> = self.rules.iter().map(|it| it.name.as_str()).collect();
        names.sort_unstable();
        if let Some([twice, ..]) = names.windows(2).find(|it| it[0] == it[1]) {
            return Err(format!("two alerts are called `{twice}`"));
        }
        self.rules.iter().try_for_each(|it| it.check(&self.environments))
    }

    /// What an environment asks for.
    pub fn environment(&self, name: &str) -> Result<&Environment> {
        self.environments.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.environments.keys().map(String::as_str).collect();
            Error::not_found(format!("the policy knows no environment `{name}`"))
                .hint(format!("there are: {}; add [env.{name}] to `{FILE}`", known.join(", ")))
        })
    }

    /// The keys of a person.
    pub fn keys(&self, person: &str) -> Result<Vec<Key>> {
        self.people.get(person).map_or_else(|| Ok(Vec::new()), Person::parsed)
    }
}

impl Person {
    fn parsed(&self) -> Result<Vec<Key>> {
        self.keys.iter().map(|it| Key::parse(it)).collect()
    }
}

impl Rule {
    fn check(&self, environments: &BTreeMap<String, Environment>) -> std::result::Result<(), String> {
        let name = &self.name;
        if self.above.is_none() == self.below.is_none() {
            return Err(format!("the alert `{name}` needs one of above and below"));
        }
        if self.above.or(self.below).is_some_and(|it| !it.is_finite())
            || self.days == 0
            || name.trim().is_empty()
        {
            return Err(format!("the alert `{name}` has a limit that is no number, no name, or no days"));
        }
        if !REPORTED.iter().any(|it| self.value.starts_with(it)) {
            let known = REPORTED.map(|it| format!("`{it}`")).join(", ");
            return Err(format!("the alert `{name}` is about `{}`; numbers start with {known}", self.value));
        }
        match &self.env {
            Some(env) if !environments.contains_key(env) => {
                Err(format!("the alert `{name}` is for the unknown environment `{env}`"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a day with this value is a bad one.
    pub fn is_broken_by(&self, value: f64) -> bool {
        self.above.is_some_and(|it| value > it) || self.below.is_some_and(|it| value < it)
    }
}

/// Names of environments stand in tags and folders.
pub fn is_environment(name: &str) -> bool {
    let plain = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "format = 1\n[people.\"qa@park.example\"]\nname = 'Q'\n[env.production]\napprovers = ['qa@park.example']\naccuracy = 0.9\n[[alert]]\nname = 'dark'\nvalue = 'integrity.dark_share'\nabove = 0.2\n";

    #[test]
    fn what_is_not_known_or_cannot_be_is_refused() {
        let policy = Policy::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(policy.environment("production").unwrap().approvals, 1);
        assert!(policy.rules[0].is_broken_by(0.3) && !policy.rules[0].is_broken_by(f64::NAN));
        assert_eq!(
            policy.environment("prod").unwrap_err().hint_text(),
            Some("there are: production; add [env.prod] to `.mlx/policy.toml`")
        );
        for (old, new, says) in [
            ("accuracy", "acuracy", "unknown field `acuracy`"),
            ("accuracy = 0.9", "accuracy = 97", "out of range"),
            ("['qa@park.example']", "['x@y']", "the approver `x@y` of `production` is not among [people]"),
            ("['qa@park.example']", "[]", "asks for 1 approvals and has 0 approvers"),
            ("above = 0.2", "", "needs one of above and below"),
            (
                "integrity.dark",
                "integrty.dark",
                "the alert `dark` is about `integrty.dark_share`; numbers start",
            ),
            ("name = 'Q'", "keys = ['x']", "`x` is not a key"),
            ("env.production", "env.Production", "no name of an environment"),
            (
                "above = 0.2",
                "above = 0.2\n[[alert]]\nname = 'dark'\nvalue='x'\nbelow = 1.0",
                "two alerts are called `dark`",
            ),
        ] {
            let error = Policy::parse(GOOD.replace(old, new).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        assert_eq!(Policy::parse(GOOD.replace("= 1", "= 2").as_bytes()).unwrap_err().kind(), Kind::Corrupt);
    }
}
