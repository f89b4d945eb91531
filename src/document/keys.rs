//! Names of the values inside a document, and the differences between two documents.
//!
//! A name is the keys joined by dots, such as `train.rate`. Where that would name two values, as in
//! `{"a.b": 1, "a": {"b": 2}}`, the key that holds a dot is quoted: `"a.b"` and `a.b`.

use std::collections::{BTreeMap, BTreeSet};

use crate::document::value::{Value, quote};

/// Keys from the document to one of its values; the items of a list count from 0.
pub type Path = Vec<String>;

/// A value that differs between two documents.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub key: String,
    /// `None` if the old document lacks it.
    pub old: Option<Value>,
    /// `None` if the new document lacks it.
    pub new: Option<Value>,
}

/// Names of a set of paths, no two of which are alike.
pub struct Names {
    /// Plain names that more than one path has.
    ambiguous: BTreeSet<String>,
}

impl Names {
    pub fn of<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Self {
        let mut seen: BTreeMap<String, &Path> = BTreeMap::new();
        let mut ambiguous = BTreeSet::new();
        for path in paths {
            let name = plain(path);
            if seen.insert(name.clone(), path).is_some_and(|other| other != path) {
                ambiguous.insert(name);
            }
        }
        Self { ambiguous }
    }

    pub fn name(&self, path: &Path) -> String {
        let name = plain(path);
        if !self.ambiguous.contains(&name) {
            return name;
        }
        let quoted =
            |key: &String| if key.contains('.') || key.is_empty() { quote(key) } else { escape(key) };
        path.iter().map(quoted).collect::<Vec<_>>().join(".")
    }
}

fn plain(path: &Path) -> String {
    path.iter().map(|key| escape(key)).collect::<Vec<_>>().join(".")
}

/// Quotes a key that holds a quotation mark, so that it cannot look like one that is quoted for its dots.
fn escape(key: &str) -> String {
    if key.contains('"') { quote(key) } else { key.to_owned() }
}

/// Returns the scalars of a document with their paths. An empty table or list counts as a scalar.
pub fn leaf_paths(value: &Value) -> Vec<(Path, &Value)> {
    let mut leaves = Vec::new();
    collect(value, &mut Path::new(), &mut leaves);
    leaves
}

/// Returns the scalars of a document with their names, sorted by name.
pub fn leaves(value: &Value) -> Vec<(String, &Value)> {
    let leaves = leaf_paths(value);
    let names = Names::of(leaves.iter().map(|(path, _)| path));
    let mut named: Vec<_> = leaves.iter().map(|(path, leaf)| (names.name(path), *leaf)).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named
}

fn collect<'v>(value: &'v Value, path: &mut Path, leaves: &mut Vec<(Path, &'v Value)>) {
    let mut below = |key: String, child: &'v Value| {
        path.push(key);
        collect(child, path, leaves);
        path.pop();
    };
    match value {
        Value::Table(table) if !table.is_empty() => {
            table.iter().for_each(|(key, child)| below(key.clone(), child));
        }
        Value::List(list) if !list.is_empty() => {
            list.iter().enumerate().for_each(|(at, child)| below(at.to_string(), child));
        }
        leaf => leaves.push((path.clone(), leaf)),
    }
}

/// Returns every difference between two documents, sorted by name. Tables are compared key by key and lists
/// item by item; any other pair, such as a list and a table, is one difference of the whole values.
pub fn differences(old: Option<&Value>, new: Option<&Value>) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(&mut Path::new(), old, new, &mut found);
    let all: Vec<Path> =
        [old, new].into_iter().flatten().flat_map(leaf_paths).map(|(path, _)| path).collect();
    let names = Names::of(all.iter().chain(found.iter().map(|(path, _, _)| path)));
    let named = found.into_iter().map(|(path, old, new)| Difference {
        key: names.name(&path),
        old: old.cloned(),
        new: new.cloned(),
    });
    let mut named: Vec<_> = named.collect();
    named.sort_by(|a, b| a.key.cmp(&b.key));
    named
}

type Found<'v> = Vec<(Path, Option<&'v Value>, Option<&'v Value>)>;

fn compare<'v>(path: &mut Path, old: Option<&'v Value>, new: Option<&'v Value>, found: &mut Found<'v>) {
    let mut below = |key: String, old: Option<&'v Value>, new: Option<&'v Value>| {
        path.push(key);
        compare(path, old, new, found);
        path.pop();
    };
    match (old, new) {
        (Some(old), Some(new)) if old == new => {}
        (Some(Value::Table(old)), Some(Value::Table(new))) => {
            let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            keys.into_iter().for_each(|key| below(key.clone(), old.get(key), new.get(key)));
        }
        (Some(Value::List(old)), Some(Value::List(new))) => {
            (0..old.len().max(new.len())).for_each(|at| below(at.to_string(), old.get(at), new.get(at)));
        }
        (Some(old), Some(new)) => found.push((path.clone(), Some(old), Some(new))),
        (old, None) => added(path, old, found, |leaf| (Some(leaf), None)),
        (None, new) => added(path, new, found, |leaf| (None, Some(leaf))),
    }
}

/// Adds one difference for each scalar of a value that one side lacks.
fn added<'v>(
    path: &Path,
    value: Option<&'v Value>,
    found: &mut Found<'v>,
    sides: impl Fn(&'v Value) -> (Option<&'v Value>, Option<&'v Value>),
) {
    for (below, leaf) in value.map(leaf_paths).unwrap_or_default() {
        let (old, new) = sides(leaf);
        found.push((path.iter().cloned().chain(below).collect(), old, new));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;

    fn rows(old: &Json, new: &Json) -> Vec<String> {
        let (old, new) = (Value::from(old), Value::from(new));
        let show = |side: &Option<Value>| side.as_ref().map_or("-".to_owned(), Value::canonical);
        let rows = differences(Some(&old), Some(&new));
        rows.iter().map(|row| format!("{} {} {}", row.key, show(&row.old), show(&row.new))).collect()
    }

    #[test]
    fn names_join_the_keys_by_dots_and_quote_where_two_would_be_alike() {
        let names = |value: Json| {
            let value = Value::from(&value);
            leaves(&value).into_iter().map(|(name, leaf)| format!("{name}={}", leaf.canonical())).collect()
        };
        let all: Vec<String> = names(json!({"b": [1, 2], "a": {"x.y": 1, "z": {}}}));
        assert_eq!(all, ["a.x.y=1", "a.z={}", "b.0=1", "b.1=2"]);
        let all: Vec<String> = names(json!({"a.b": 1, "a": {"b": 2}, "c.d": 3}));
        assert_eq!(all, ["\"a.b\"=1", "a.b=2", "c.d=3"]);
        let all: Vec<String> = names(json!({"\"a.b\"": 1, "a.b": 2, "a": {"b": 3}}));
        assert_eq!(all, ["\"\\\"a.b\\\"\"=1", "\"a.b\"=2", "a.b=3"]);
    }

    #[test]
    fn every_difference_is_found() {
        let same = json!({"a": [1, {"b": null}]});
        assert_eq!(rows(&same, &same), Vec::<String>::new());
        let (old, new) = (json!({"a.b": 1, "a": {"b": 2}}), json!({"a.b": 1, "a": {"b": 9}}));
        assert_eq!(rows(&old, &new), ["a.b 2 9"]);
        let new = json!({"a.b": 7, "a": {"b": 2}});
        assert_eq!(rows(&old, &new), ["\"a.b\" 1 7"]);
        assert_eq!(rows(&json!({"x": null, "b": 1}), &json!({"b": 1})), ["x null -"]);
        assert_eq!(
            rows(&json!({"x": [1, 2]}), &json!({"x": {"0": 1, "1": 2}})),
            ["x [1,2] {\"0\":1,\"1\":2}"]
        );
        assert_eq!(rows(&json!({"x": [1, 2]}), &json!({"x": [1]})), ["x.1 2 -"]);
        assert_eq!(rows(&json!({"x": {}}), &json!({"x": []})), ["x {} []"]);
        assert_eq!(rows(&json!({"x": 1}), &json!({"x": {"y": 1}})), ["x 1 {\"y\":1}"]);
        assert_eq!(rows(&json!({}), &json!({"x": {"y": 1, "z": {}}})), ["x.y - 1", "x.z - {}"]);
        assert_eq!(rows(&json!(1), &json!("1")), [" 1 \"1\""]);
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let scalar = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            (-2_i64..3).prop_map(Json::from),
            (-1_i8..2).prop_map(|it| Json::from(f64::from(it))),
            "[a.]{0,2}".prop_map(Json::from),
        ];
        scalar.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Json::from),
                prop::collection::btree_map("[ab.0\"]{0,3}", inner, 0..3)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn documents_differ_exactly_when_a_difference_is_listed(old in any_json(), new in any_json()) {
            let (old, new) = (Value::from(&old), Value::from(&new));
            let found = differences(Some(&old), Some(&new));
            prop_assert_eq!(found.is_empty(), old == new);
            prop_assert!(found.iter().all(|row| row.old != row.new));
            let names: BTreeSet<_> = found.iter().map(|row| &row.key).collect();
            prop_assert_eq!(names.len(), found.len(), "two differences have one name");
        }
    }
}
