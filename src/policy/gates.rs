//! A report held against the limits of an environment.

use std::collections::BTreeMap;

use crate::{digest::Digest, policy::Environment};

/// What a test of a version found, as far as a policy asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    pub version: String,
    pub package: Digest,
    pub accuracy: f64,
    /// By class.
    pub precision: BTreeMap<String, f64>,
    /// By class.
    pub recall: BTreeMap<String, f64>,
    /// Milliseconds.
    pub p99: f64,
    /// Checks of the application that failed, by name.
    pub failed: Vec<String>,
}

/// One thing asked for, and what was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    pub name: String,
    pub asked: String,
    pub found: String,
    pub is_open: bool,
}

/// Every limit of the environment with what the report says of it. A number that is missing or NaN closes its gate.
pub fn gates(environment: &Environment, evidence: &Evidence) -> Vec<Gate> {
    let mut found = vec![Gate {
        name: "checks".into(),
        asked: "all passed".into(),
        found: if evidence.failed.is_empty() {
            "all passed".into()
        } else {
            format!("failed: {}", evidence.failed.join(", "))
        },
        is_open: evidence.failed.is_empty(),
    }];
    if let Some(least) = environment.accuracy {
        found.push(at_least("accuracy".into(), least, Some(evidence.accuracy)));
    }
    for (what, least, rows) in [
        ("precision", environment.precision, &evidence.precision),
        ("recall", environment.recall, &evidence.recall),
    ] {
        let Some(least) = least else { continue };
        if rows.is_empty() {
            found.push(at_least(what.into(), least, None));
        }
        found.extend(
            rows.iter().map(|(class, value)| at_least(format!("{what} of {class}"), least, Some(*value))),
        );
    }
    if let Some(most) = environment.p99 {
        found.push(Gate {
            name: "p99".into(),
            asked: format!("at most {most} ms"),
            found: format!("{:.1} ms", evidence.p99),
            is_open: evidence.p99 <= most,
        });
    }
    found
}

fn at_least(name: String, least: f64, value: Option<f64>) -> Gate {
    Gate {
        name,
        asked: format!("at least {least}"),
        found: value.map_or_else(|| "nothing".into(), |it| format!("{it:.4}")),
        is_open: value.is_some_and(|it| it >= least),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        let rows = |cat: f64| [("cat".to_owned(), cat), ("dog".to_owned(), 0.95)].into();
        Evidence {
            version: "pets@v0.1.0".into(),
            package: Digest::of(b"p"),
            accuracy: 0.97,
            precision: rows(0.96),
            recall: rows(0.94),
            p99: 20.0,
            failed: Vec::new(),
        }
    }

    fn closed(change: impl Fn(&mut Evidence)) -> Vec<String> {
        let policy = "format = 1\n[env.production]\napprovals = 0\naccuracy = 0.97\nprecision = 0.9\nrecall = 0.94\np99 = 20.0\n";
        let policy = crate::policy::Policy::parse(policy.as_bytes()).unwrap();
        let mut evidence = evidence();
        change(&mut evidence);
        let found = gates(policy.environment("production").unwrap(), &evidence);
        found.into_iter().filter(|it| !it.is_open).map(|it| it.name).collect()
    }

    #[test]
    fn a_number_that_is_short_or_missing_closes_its_gate() {
        assert_eq!(closed(|_| ()), Vec::<String>::new());
        assert_eq!(closed(|it| it.accuracy = 0.9699), ["accuracy"]);
        assert_eq!(closed(|it| it.accuracy = f64::NAN), ["accuracy"]);
        assert_eq!(closed(|it| *it.recall.get_mut("cat").unwrap() = 0.1), ["recall of cat"]);
        assert_eq!(closed(|it| it.precision.clear()), ["precision"]);
        assert_eq!(closed(|it| it.p99 = f64::NAN), ["p99"]);
        assert_eq!(closed(|it| it.failed.push("burst".into())), ["checks"]);
    }
}
