//! Differences between the metrics or parameters of two versions, one per leaf value.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::{document, metrics::Documents, path::RepoPath};

/// A leaf value that differs; null for a side without it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delta {
    pub file: RepoPath,
    pub metric: String,
    pub old: Value,
    pub new: Value,
    /// `new - old` if both are finite numbers, else null.
    pub change: Value,
}

/// Returns all leaves that differ, sorted by file and key.
pub fn diff(old: &Documents, new: &Documents) -> Vec<Delta> {
    let files: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let mut deltas = Vec::new();
    for file in files {
        let leaves = |documents: &Documents| -> BTreeMap<String, Value> {
            documents.get(file).map(document::leaves).unwrap_or_default().into_iter().collect()
        };
        let (before, after) = (leaves(old), leaves(new));
        let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let side = |leaves: &BTreeMap<String, Value>| leaves.get(key).cloned().unwrap_or_default();
            let (old, new) = (side(&before), side(&after));
            if old != new {
                let change = change(&old, &new);
                deltas.push(Delta { file: file.clone(), metric: key.clone(), old, new, change });
            }
        }
    }
    deltas
}

/// Returns `new - old`, an integer for two integers; null unless both are finite numbers.
fn change(old: &Value, new: &Value) -> Value {
    if let (Some(old), Some(new)) = (old.as_i64(), new.as_i64())
        && let Some(change) = new.checked_sub(old)
    {
        return Value::from(change);
    }
    match (old.as_f64(), new.as_f64()) {
        (Some(old), Some(new)) if (new - old).is_finite() => document::number(new - old),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_delta_has_both_values_and_their_difference() {
        let path = RepoPath::from_text("m.json").unwrap();
        let old =
            Documents::from([(path.clone(), json!({"acc": 0.5, "n": 3, "same": 1, "gone": 1, "x": "nan"}))]);
        let new = Documents::from([(path, json!({"acc": 0.75, "n": 5, "same": 1, "new": true, "x": 1.0}))]);
        let rows: Vec<_> =
            diff(&old, &new).into_iter().map(|row| (row.metric, row.old, row.new, row.change)).collect();
        let expected = [
            ("acc".to_owned(), json!(0.5), json!(0.75), json!(0.25)),
            ("gone".to_owned(), json!(1), json!(null), json!(null)),
            ("n".to_owned(), json!(3), json!(5), json!(2)),
            ("new".to_owned(), json!(null), json!(true), json!(null)),
            ("x".to_owned(), json!("nan"), json!(1.0), json!(null)),
        ];
        assert_eq!(rows, expected);
    }
}
