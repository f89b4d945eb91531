//! Differences between the metrics or parameters of two versions, one per value.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    document::{self, Difference, Number, Value},
    metrics::Reading,
    path::RepoPath,
};

/// A value that differs. A side is null where it lacks the value, as where it is null: `kind` tells.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delta {
    pub file: RepoPath,
    pub metric: String,
    pub old: Option<Value>,
    pub new: Option<Value>,
    /// `new - old` if both are finite numbers, else null.
    pub change: Option<Value>,
    pub kind: DeltaKind,
}

/// Change of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeltaKind {
    Added,
    Removed,
    Changed,
    /// Both sides have a value, of different types: `1` and `1.0`, or `1` and `"1"`.
    Retyped,
}

/// Returns all values that differ, sorted by file and key. Files that one side could not read are left out.
pub fn diff(old: &Reading, new: &Reading) -> Vec<Delta> {
    let files: BTreeSet<_> = old.documents.keys().chain(new.documents.keys()).collect();
    let known = files.into_iter().filter(|file| old.is_known(file, new) && new.is_known(file, old));
    known
        .flat_map(|file| {
            let differences = document::differences(old.documents.get(file), new.documents.get(file));
            differences.into_iter().map(|difference| delta(file.clone(), difference))
        })
        .collect()
}

fn delta(file: RepoPath, difference: Difference) -> Delta {
    let Difference { key: metric, old, new } = difference;
    let kind = match (&old, &new) {
        (None, _) => DeltaKind::Added,
        (_, None) => DeltaKind::Removed,
        (Some(old), Some(new)) if old.type_name() != new.type_name() => DeltaKind::Retyped,
        _ => DeltaKind::Changed,
    };
    let change = old.as_ref().zip(new.as_ref()).and_then(|(old, new)| change(old, new));
    Delta { file, metric, old, new, change, kind }
}

/// Returns `new - old`, an integer for two integers; none where that would not be exact, apart from the
/// rounding of a subtraction of two `f64`.
fn change(old: &Value, new: &Value) -> Option<Value> {
    let (old, new) = (number(old)?, number(new)?);
    let difference = if old.is_integer() && new.is_integer() {
        let integer = |number: &Number| number.as_str().parse::<i128>().ok();
        Number::parse(&integer(&new)?.checked_sub(integer(&old)?)?.to_string())
    } else {
        Number::from_f64(new.as_exact_f64()? - old.as_exact_f64()?)
    };
    difference.map(Value::Number)
}

fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Number(number) => Some(number.clone()),
        Value::Literal(text) => value.as_f64().and_then(|_| Number::parse(text)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn reading(document: &Json) -> Reading {
        let mut reading = Reading::default();
        reading.documents.insert(RepoPath::from_text("m.json").unwrap(), Value::from(document));
        reading
    }

    fn rows(old: &Json, new: &Json) -> Vec<Json> {
        let deltas = diff(&reading(old), &reading(new));
        let row = |delta: &Delta| json!([delta.metric, delta.old, delta.new, delta.change, delta.kind]);
        deltas.iter().map(row).collect()
    }

    #[test]
    fn a_delta_has_both_values_and_their_difference() {
        let old = json!({"acc": 0.5, "n": 3, "same": 1, "gone": 1, "x": "nan"});
        let new = json!({"acc": 0.75, "n": 5, "same": 1, "new": true, "x": 1.0});
        let expected = [
            json!(["acc", 0.5, 0.75, 0.25, "changed"]),
            json!(["gone", 1, null, null, "removed"]),
            json!(["n", 3, 5, 2, "changed"]),
            json!(["new", null, true, null, "added"]),
            json!(["x", "nan", 1.0, null, "retyped"]),
        ];
        assert_eq!(rows(&old, &new), expected);
    }

    #[test]
    fn null_types_and_signs_are_differences() {
        let expected = [json!(["loss", null, null, null, "removed"])];
        assert_eq!(rows(&json!({"loss": null, "b": 1}), &json!({"b": 1})), expected);
        assert_eq!(rows(&json!({"a": "1"}), &json!({"a": 1})), [json!(["a", "1", 1, null, "retyped"])]);
        assert_eq!(rows(&json!({"a": 1}), &json!({"a": 1.0})), [json!(["a", 1, 1.0, 0.0, "retyped"])]);
        assert_eq!(rows(&json!({"a": 0.0}), &json!({"a": -0.0})), [json!(["a", 0.0, -0.0, -0.0, "changed"])]);
        assert_eq!(
            rows(&json!({"a": [1]}), &json!({"a": {"0": 1}})),
            [json!(["a", [1], {"0": 1}, null, "retyped"])]
        );
    }

    #[test]
    fn a_difference_that_floats_cannot_tell_is_exact_or_none() {
        let shown = |old: &str, new: &str| {
            let value = |text| Value::Number(Number::parse(text).unwrap());
            change(&value(old), &value(new)).map(|it| it.canonical())
        };
        let exact = |text: &str| Some(text.to_owned());
        assert_eq!(shown("12345678901234567890123", "12345678901234567890125"), exact("2"));
        assert_eq!(shown("9007199254740992", "9007199254740993"), exact("1"));
        assert_eq!(shown("-9223372036854775808", "9223372036854775807"), exact("18446744073709551615"));
        assert_eq!(shown("9007199254740992.0", "9007199254740993.0"), None);
        assert_eq!(shown("0.1", "0.100000000000000000001"), None);
        assert_eq!(shown("9007199254740993", "1.0"), None);
        assert_eq!(shown("9007199254740992", "1.0"), exact("-9007199254740991.0"));
        assert_eq!(shown(&"9".repeat(40), "1"), None);
        assert_eq!(shown("1e400", "1.0"), None);
    }

    #[test]
    fn files_that_one_side_could_not_read_are_no_difference() {
        let (file, manifest) =
            (RepoPath::from_text("m.json").unwrap(), RepoPath::from_text("mlx.toml").unwrap());
        let mut readable = reading(&json!({"a": 1}));
        readable.manifests.insert(file.clone(), manifest.clone());
        let error = || crate::error::Error::corrupt("broken");
        for broken in [file, manifest] {
            let unreadable = Reading { faults: [(broken, error())].into(), ..Reading::default() };
            assert_eq!(diff(&readable, &unreadable), []);
            assert_eq!(diff(&unreadable, &readable), []);
        }
        assert_eq!(diff(&readable, &Reading::default()).len(), 1);
    }
}
