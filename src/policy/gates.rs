//! Gates on a test report: compares its numbers with the limits of an environment.

use std::collections::BTreeMap;

use crate::{digest::Digest, policy::Environment};

/// Results of an application test of a version, as far as policies limit them.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    pub version: String,
    pub package: Digest,
    pub accuracy: f64,
    /// Precision by class.
    pub precision: BTreeMap<String, f64>,
    /// Recall by class.
    pub recall: BTreeMap<String, f64>,
    /// 99th percentile of the latency, in milliseconds.
    pub p99: f64,
    /// Names of failed checks of the application.
    pub failed: Vec<String>,
}

/// A requirement and what was found; the gate is open if the requirement is met.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    pub name: String,
    pub required: String,
    pub found: String,
    pub is_open: bool,
}

/// Returns a gate for each limit of the environment. A number that is missing or NaN closes its gate.
pub fn check_limits(environment: &Environment, evidence: &Evidence) -> Vec<Gate> {
    let mut gates = vec![Gate {
        name: "checks".into(),
        required: "all passed".into(),
        found: if evidence.failed.is_empty() {
            "all passed".into()
        } else {
            format!("failed: {}", evidence.failed.join(", "))
        },
        is_open: evidence.failed.is_empty(),
    }];
    if let Some(minimum) = environment.accuracy {
        gates.push(at_least("accuracy".into(), minimum, Some(evidence.accuracy)));
    }
    for (metric, minimum, values) in [
        ("precision", environment.precision, &evidence.precision),
        ("recall", environment.recall, &evidence.recall),
    ] {
        let Some(minimum) = minimum else { continue };
        if values.is_empty() {
            gates.push(at_least(metric.into(), minimum, None));
        }
        let by_class = values.iter();
        gates.extend(
            by_class.map(|(class, value)| at_least(format!("{metric} of {class}"), minimum, Some(*value))),
        );
    }
    if let Some(maximum) = environment.p99 {
        gates.push(Gate {
            name: "p99".into(),
            required: format!("at most {maximum} ms"),
            found: format!("{:.1} ms", evidence.p99),
            is_open: evidence.p99 <= maximum,
        });
    }
    gates
}

/// Returns the gate of a value that has to reach `minimum`.
fn at_least(name: String, minimum: f64, value: Option<f64>) -> Gate {
    Gate {
        name,
        required: format!("at least {minimum}"),
        found: value.map_or_else(|| "none".into(), |value| format!("{value:.4}")),
        is_open: value.is_some_and(|value| value >= minimum),
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
        let policy = "format = 1\n[env.production]\napprovals = 0\naccuracy = 0.97\nprecision = 0.9\n\
        recall = 0.94\np99 = 20.0\n";
        let policy = crate::policy::Policy::parse(policy.as_bytes()).unwrap();
        let mut evidence = evidence();
        change(&mut evidence);
        let gates = check_limits(policy.environment("production").unwrap(), &evidence);
        gates.into_iter().filter(|gate| !gate.is_open).map(|gate| gate.name).collect()
    }

    #[test]
    fn a_low_or_missing_number_closes_its_gate() {
        assert_eq!(closed(|_| ()), Vec::<String>::new());
        assert_eq!(closed(|it| it.accuracy = 0.9699), ["accuracy"]);
        assert_eq!(closed(|it| it.accuracy = f64::NAN), ["accuracy"]);
        assert_eq!(closed(|it| *it.recall.get_mut("cat").unwrap() = 0.1), ["recall of cat"]);
        assert_eq!(closed(|it| it.precision.clear()), ["precision"]);
        assert_eq!(closed(|it| it.p99 = f64::NAN), ["p99"]);
        assert_eq!(closed(|it| it.failed.push("burst".into())), ["checks"]);
    }
}
