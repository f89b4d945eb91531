//! The policy, `.mlx/policy.toml`: requirements for serving, who may approve versions, and alert rules.
//!
//! The policy in effect is the one at the tip of the Git remote's default branch (at HEAD without a remote),
//! never the file in the workspace, so that the protection of that branch also protects the policy. Whatever
//! the policy does not allow is denied.

mod gates;

pub use self::gates::{Evidence, Gate, check_limits};

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    digest::Digest,
    document,
    error::{Error, Kind, Result, WithContext},
    git::{Git, Key, Rev},
    path::RepoPath,
};

/// Path of the policy in a repository.
pub const FILE: &str = ".mlx/policy.toml";
const FORMAT: u64 = 1;

/// Prefixes of the names of numbers in a report.
const REPORT_PREFIXES: [&str; 5] = ["integrity.", "drift.", "performance.", "bias.", "telemetry."];

/// A parsed policy.
#[derive(Clone, Debug)]
pub struct Policy {
    pub digest: Digest,
    pub environments: BTreeMap<String, Environment>,
    pub people: BTreeMap<String, Person>,
    pub rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    format: u64,
    #[serde(default)]
    env: BTreeMap<String, Environment>,
    #[serde(default)]
    people: BTreeMap<String, Person>,
    #[serde(default)]
    alert: Vec<Rule>,
}

/// A person who can be listed as an approver.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// Full name, for readers.
    #[serde(default)]
    pub name: String,
    /// Public keys: `ssh-ed25519 AAAA…` or `gpg FINGERPRINT`.
    #[serde(default)]
    pub keys: Vec<String>,
}

/// Requirements for serving in an environment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// People who may approve.
    #[serde(default)]
    pub approvers: Vec<String>,
    /// Number of approvals needed.
    #[serde(default = "one")]
    pub approvals: u32,
    /// True if an approval has to be signed with a key of its approver.
    #[serde(default)]
    pub signed: bool,
    /// True if the person who registered a version may not approve it.
    #[serde(default)]
    pub independent: bool,
    /// Minimum accuracy in the report.
    pub accuracy: Option<f64>,
    /// Minimum precision of each class.
    pub precision: Option<f64>,
    /// Minimum recall of each class.
    pub recall: Option<f64>,
    /// Maximum 99th percentile of the latency, in milliseconds.
    pub p99: Option<f64>,
}

fn one() -> u32 {
    1
}

/// An alert rule: a limit on a number of daily reports.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub name: String,
    /// Environment to which the rule applies; all if none.
    pub env: Option<String>,
    /// Name of a number in the report, such as `integrity.dark_share`.
    pub value: String,
    pub above: Option<f64>,
    pub below: Option<f64>,
    /// Number of consecutive reported days that have to break the limit.
    #[serde(default = "one")]
    pub days: u32,
    #[serde(default)]
    pub severity: Severity,
    /// Days after an alert is resolved during which it is not raised again.
    #[serde(default)]
    pub cooldown: u32,
    pub action: Option<Action>,
}

/// Severity of an alert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    #[default]
    Warning,
    Critical,
}

/// Action that an alert triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Train a new candidate.
    Retrain,
    /// Roll back to the version that served before.
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
    /// Reads the policy in a commit. A missing commit or policy is an error, since nothing is allowed then.
    pub fn at(git: &Git, rev: Option<&Rev>) -> Result<Self> {
        let path = RepoPath::in_mlx_folder("policy.toml");
        let bytes = rev.map(|rev| git.read(rev, &path)).transpose()?.flatten();
        let location =
            rev.map_or_else(|| "the Git remote".to_owned(), |rev| format!("commit {}", rev.short()));
        let bytes = bytes.ok_or_else(|| {
            Error::new(
                Kind::Denied,
                format!("`{FILE}` not found in {location}, so nothing may be approved or released"),
            )
            .hint(format!(
                "commit `{FILE}` and push it to the default branch; `mlx init --template pets` \
            writes an example"
            ))
        })?;
        Self::parse(&bytes).context(|| format!("cannot use `{FILE}` of {location}"))
    }

    /// Parses a policy. An unknown key is an error, since it may be a misspelled limit.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        if document::has_conflict_markers(&text) {
            return Err(Error::corrupt(format!("`{FILE}` has merge conflict markers"))
                .hint("resolve the conflict in it"));
        }
        let invalid = |why: String| Error::usage(format!("the policy is not valid: {why}"));
        let raw: RawPolicy = toml::from_str(&text).map_err(|error| invalid(error.message().to_owned()))?;
        if raw.format != FORMAT {
            return Err(Error::corrupt(format!("`{FILE}` was written for a newer mlx")).hint("upgrade mlx"));
        }
        let policy =
            Self { digest: Digest::of(bytes), environments: raw.env, people: raw.people, rules: raw.alert };
        policy.check().map_err(invalid)?;
        Ok(policy)
    }

    /// Checks all values; an error is the text of the first problem.
    fn check(&self) -> std::result::Result<(), String> {
        for (name, environment) in &self.environments {
            if !is_environment_name(name) {
                return Err(format!("`{name}` is not a valid environment name: use a-z, 0-9 and `-`"));
            }
            let approvers = &environment.approvers;
            if let Some(unknown) = approvers.iter().find(|person| !self.people.contains_key(*person)) {
                return Err(format!("the approver `{unknown}` of `{name}` is not listed in [people]"));
            }
            let mut people: Vec<&String> = approvers.iter().collect();
            people.sort_unstable();
            if let Some([duplicate, ..]) = people.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(format!("`{name}` lists the approver `{duplicate}` twice"));
            }
            if environment.approvals as usize > approvers.len() {
                return Err(format!(
                    "`{name}` needs {} approvals, but lists {} approvers",
                    environment.approvals,
                    approvers.len()
                ));
            }
            let shares = [environment.accuracy, environment.precision, environment.recall];
            if shares.iter().flatten().any(|share| !(0.0..=1.0).contains(share))
                || environment.p99.is_some_and(|p99| p99.is_nan() || p99 <= 0.0)
            {
                return Err(format!(
                    "a limit of `{name}` is out of range: accuracy, precision and recall are 0 to 1, p99 \
                    is above 0"
                ));
            }
        }
        for (name, person) in &self.people {
            person.parsed_keys().map_err(|error| format!("a key of `{name}`: {error}"))?;
        }
        let mut names: Vec<&str> = self.rules.iter().map(|rule| rule.name.as_str()).collect();
        names.sort_unstable();
        if let Some([duplicate, ..]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("two alerts have the name `{duplicate}`"));
        }
        self.rules.iter().try_for_each(|rule| rule.check(&self.environments))
    }

    /// Returns the requirements of an environment.
    pub fn environment(&self, name: &str) -> Result<&Environment> {
        self.environments.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.environments.keys().map(String::as_str).collect();
            Error::not_found(format!("environment `{name}` not found in the policy")).hint(format!(
                "known environments: {}; add a new one to `{FILE}` as [env.{name}]",
                known.join(", ")
            ))
        })
    }

    /// Returns the public keys of a person; none for an unknown one.
    pub fn keys(&self, person: &str) -> Result<Vec<Key>> {
        self.people.get(person).map_or_else(|| Ok(Vec::new()), Person::parsed_keys)
    }
}

impl Person {
    fn parsed_keys(&self) -> Result<Vec<Key>> {
        self.keys.iter().map(|key| Key::parse(key)).collect()
    }
}

impl Rule {
    fn check(&self, environments: &BTreeMap<String, Environment>) -> std::result::Result<(), String> {
        let name = &self.name;
        if self.above.is_none() == self.below.is_none() {
            return Err(format!("the alert `{name}` needs either `above` or `below`"));
        }
        if self.above.or(self.below).is_some_and(|limit| !limit.is_finite())
            || self.days == 0
            || name.trim().is_empty()
        {
            return Err(format!("the alert `{name}` needs a finite limit, a name, and at least one day"));
        }
        if !REPORT_PREFIXES.iter().any(|prefix| self.value.starts_with(prefix)) {
            let known = REPORT_PREFIXES.map(|prefix| format!("`{prefix}`")).join(", ");
            return Err(format!(
                "the alert `{name}` uses the unknown number `{}`; numbers start with {known}",
                self.value
            ));
        }
        match &self.env {
            Some(env) if !environments.contains_key(env) => {
                Err(format!("the alert `{name}` is for the unknown environment `{env}`"))
            }
            _ => Ok(()),
        }
    }

    /// Returns true if this value breaks the rule's limit; false for NaN.
    pub fn is_broken_by(&self, value: f64) -> bool {
        self.above.is_some_and(|limit| value > limit) || self.below.is_some_and(|limit| value < limit)
    }
}

/// Returns true if a name can be an environment's: it becomes part of tag and folder names.
pub fn is_environment_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(is_allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "format = 1\n[people.\"qa@park.example\"]\nname = 'Q'\n[env.production]\napprovers \
    = ['qa@park.example']\naccuracy = 0.9\n[[alert]]\nname = 'dark'\nvalue = 'integrity.dark_share'\nabove \
    = 0.2\n";

    #[test]
    fn unknown_keys_and_invalid_values_are_errors() {
        let policy = Policy::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(policy.environment("production").unwrap().approvals, 1);
        assert_eq!(
            policy.environment("prod").unwrap_err().hint_text(),
            Some("known environments: production; add a new one to `.mlx/policy.toml` as [env.prod]")
        );
        for (old, new, message) in [
            ("accuracy", "acuracy", "unknown field `acuracy`"),
            (
                "['qa@park.example']",
                "['x@y']",
                "the approver `x@y` of `production` is not listed in [people]",
            ),
            ("['qa@park.example']", "[]", "needs 1 approvals, but lists 0 approvers"),
            (
                "integrity.dark",
                "integrty.dark",
                "the alert `dark` uses the unknown number `integrty.dark_share`; numbers start",
            ),
            ("name = 'Q'", "keys = ['x']", "`x` is not a key"),
            ("env.production", "env.Production", "is not a valid environment name"),
            (
                "above = 0.2",
                "above = 0.2\n[[alert]]\nname = 'dark'\nvalue='x'\nbelow = 1.0",
                "two alerts have the name `dark`",
            ),
        ] {
            let error = Policy::parse(GOOD.replace(old, new).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
        assert_eq!(Policy::parse(GOOD.replace("= 1", "= 2").as_bytes()).unwrap_err().kind(), Kind::Corrupt);
    }

    /// Parses the good policy with one part replaced; an error is its text.
    fn with(old: &str, new: &str) -> std::result::Result<Policy, String> {
        assert!(GOOD.contains(old));
        Policy::parse(GOOD.replace(old, new).as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn limits_of_an_environment_are_shares_and_a_latency_above_0() {
        for name in ["accuracy", "precision", "recall"] {
            for (value, is_valid) in
                [("0.0", true), ("1.0", true), ("-0.1", false), ("1.1", false), ("nan", false), ("97", false)]
            {
                let parsed = with("accuracy = 0.9", &format!("{name} = {value}"));
                assert_eq!(parsed.is_ok(), is_valid, "{name} = {value}: {parsed:?}");
                assert!(is_valid || parsed.unwrap_err().contains("is out of range"));
            }
        }
        for (value, is_valid) in
            [("0.1", true), ("9000.0", true), ("0.0", false), ("-1.0", false), ("nan", false)]
        {
            let parsed = with("accuracy = 0.9", &format!("p99 = {value}"));
            assert_eq!(parsed.is_ok(), is_valid, "p99 = {value}: {parsed:?}");
        }
    }

    #[test]
    fn an_approver_counts_once() {
        let twice = "['qa@park.example', 'qa@park.example']";
        let error = with("['qa@park.example']", twice).unwrap_err();
        assert!(error.contains("`production` lists the approver `qa@park.example` twice"), "{error}");
        let error = with("accuracy", "approvals = 2\naccuracy").unwrap_err();
        assert!(error.contains("needs 2 approvals, but lists 1 approvers"), "{error}");
        assert!(with("accuracy", "approvals = 0\naccuracy").is_ok());
    }

    #[test]
    fn an_alert_needs_one_finite_limit_a_name_and_a_day() {
        let incomplete = "needs a finite limit, a name, and at least one day";
        for (old, new, message) in [
            ("above = 0.2", "", "needs either `above` or `below`"),
            ("above = 0.2", "above = 0.2\nbelow = 0.1", "needs either `above` or `below`"),
            ("above = 0.2", "above = inf", incomplete),
            ("above = 0.2", "above = nan", incomplete),
            ("above = 0.2", "below = -inf", incomplete),
            ("above = 0.2", "above = 0.2\ndays = 0", incomplete),
            ("name = 'dark'", "name = ' '", incomplete),
            ("above = 0.2", "above = 0.2\nenv = 'prod'", "is for the unknown environment `prod`"),
        ] {
            let error = with(old, new).unwrap_err();
            assert!(error.contains(message), "{new}: {error}");
        }
        for new in ["below = 0.2", "above = 0.2\ndays = 1", "above = 0.2\nenv = 'production'"] {
            assert!(with("above = 0.2", new).is_ok(), "{new}");
        }
    }

    #[test]
    fn a_rule_is_broken_beyond_its_limit_on_its_side() {
        let broken = |limit: &str| {
            let rule = with("above = 0.2", limit).unwrap().rules.remove(0);
            [0.1, 0.2, 0.3, f64::NAN].map(|value| rule.is_broken_by(value))
        };
        assert_eq!(broken("above = 0.2"), [false, false, true, false]);
        assert_eq!(broken("below = 0.2"), [true, false, false, false]);
    }

    #[test]
    fn a_name_of_an_environment_can_be_part_of_tag_and_folder_names() {
        for name in ["a", "0", "a-1", &"a".repeat(64)] {
            assert!(is_environment_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "-", "A", "a_b", "a b", "a/b", "\u{e9}", &"a".repeat(65)] {
            assert!(!is_environment_name(name), "{name}");
        }
    }
}
