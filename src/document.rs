//! Parser for parameter and metric files in JSON, TOML or YAML, with one value type for all three.
//!
//! Integers and floats stay apart (`1` is not `1.0`), dates become strings, and NaN and infinities become the
//! strings `nan`, `inf` and `-inf`, since JSON has no literals for them.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use crate::{
    error::{Error, Kind, Result},
    path::RepoPath,
};

/// Returns the format version of an mlx file: the number on its line `format = N`.
pub fn format_version(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("format = ")?.trim().parse().ok())
}

/// Parses a document in the format that the extension of its name says.
pub fn parse(name: &RepoPath, bytes: &[u8]) -> Result<Value> {
    let wrong = |why: String| Error::new(Kind::Corrupt, format!("cannot read `{name}`: {why}"));
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".into()))?;
    if has_conflict_markers(text) {
        return Err(
            wrong("it has merge conflict markers".into()).hint("resolve the merge conflict, then try again")
        );
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let extension = name.name().rsplit(|&byte| byte == b'.').next().unwrap_or_default();
    match extension {
        b"json" => serde_json::from_str::<UniqueKeys>(&quote_non_finite(text))
            .map(|it| it.0)
            .map_err(|it| wrong(it.to_string())),
        b"toml" => text.parse::<toml::Table>().map(from_toml).map_err(|it| wrong(it.to_string())),
        b"yaml" | b"yml" => serde_saphyr::from_str_with_options::<UniqueKeys>(text, yaml_options())
            .map(|it| it.0)
            .map_err(|it| wrong(it.to_string())),
        _ => Err(wrong("its extension is not .json, .toml, .yaml or .yml".into())),
    }
}

/// Returns parser options that keep the default limits on depth and size, and accept NaN and infinities.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! { non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough }
}

/// JSON or YAML value whose floats may be NaN or infinite, and in which a duplicate key is an error.
struct UniqueKeys(Value);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor).map(Self)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(UniqueKeys(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some((key, UniqueKeys(value))) = map.next_entry::<UniqueKeys, UniqueKeys>()? {
            let key = key.0.as_str().map_or_else(|| key.0.to_string(), str::to_owned);
            if entries.insert(key.clone(), value).is_some() {
                return Err(de::Error::custom(format!("duplicate key `{key}`")));
            }
        }
        Ok(Value::Object(entries))
    }
}

/// Returns true if lines start with Git's merge-conflict markers.
pub fn has_conflict_markers(text: &str) -> bool {
    let any_line_starts_with = |marker: &str| text.lines().any(|line| line.starts_with(marker));
    any_line_starts_with("<<<<<<< ") && any_line_starts_with(">>>>>>> ")
}

/// Returns the value at a dotted key such as `train.rate`, if it exists.
pub fn find<'a>(value: &'a Value, keys: &str) -> Option<&'a Value> {
    if keys.is_empty() {
        return Some(value);
    }
    let map = value.as_object()?;
    if let Some(found) = map.get(keys) {
        return Some(found);
    }
    // A key may contain dots itself, so every split is tried.
    keys.match_indices('.').find_map(|(at, _)| find(map.get(&keys[..at])?, &keys[at + 1..]))
}

/// Returns all leaf values with their dotted keys, sorted by key. An empty map or list is a leaf, too.
pub fn leaves(value: &Value) -> Vec<(String, Value)> {
    let mut leaves = Vec::new();
    collect_leaves(value, String::new(), &mut leaves);
    leaves.sort_by(|a, b| a.0.cmp(&b.0));
    leaves
}

fn collect_leaves(value: &Value, key: String, leaves: &mut Vec<(String, Value)>) {
    let child_key = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(name, child)| collect_leaves(child, child_key(name), leaves));
        }
        Value::Array(list) if !list.is_empty() => {
            for (at, child) in list.iter().enumerate() {
                collect_leaves(child, child_key(&at.to_string()), leaves);
            }
        }
        leaf => leaves.push((key, leaf.clone())),
    }
}

/// Formats a value as canonical JSON: keys sorted, no spaces.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_by_key(|it| it.0);
            let parts =
                keys.iter().map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)));
            format!("{{{}}}", parts.collect::<Vec<_>>().join(","))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(",")),
        leaf => leaf.to_string(),
    }
}

/// Converts a float to a JSON value; NaN and infinities become strings.
pub fn number(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| Value::from(non_finite_text(value)), Value::Number)
}

fn non_finite_text(value: f64) -> &'static str {
    if value.is_nan() {
        "nan"
    } else if value > 0.0 {
        "inf"
    } else {
        "-inf"
    }
}

fn from_toml(table: toml::Table) -> Value {
    let map: Map<_, _> = table.into_iter().map(|(key, value)| (key, from_toml_value(value))).collect();
    Value::Object(map)
}

fn from_toml_value(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(integer) => Value::from(integer),
        toml::Value::Float(float) => number(float),
        toml::Value::Boolean(boolean) => Value::Bool(boolean),
        toml::Value::Datetime(datetime) => Value::String(datetime.to_string()),
        toml::Value::Array(list) => Value::Array(list.into_iter().map(from_toml_value).collect()),
        toml::Value::Table(table) => from_toml(table),
    }
}

/// Replaces bare `NaN`, `Infinity` and `-Infinity`, which Python writes into JSON, with strings. Text inside
/// strings is kept.
fn quote_non_finite(text: &str) -> String {
    const WORDS: [(&str, &str); 3] = [("-Infinity", "\"-inf\""), ("Infinity", "\"inf\""), ("NaN", "\"nan\"")];
    if !WORDS.iter().any(|it| text.contains(it.0)) {
        return text.to_owned();
    }
    let (mut out, mut rest, mut in_string) = (String::with_capacity(text.len()), text, false);
    while let Some(first) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !in_string && rest.starts_with(word.0));
        let (written, read) = match (first, word) {
            (_, Some(word)) => (word.1, word.0.len()),
            ('\\', _) if in_string => {
                let read = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (&rest[..read], read)
            }
            _ => (&rest[..first.len_utf8()], first.len_utf8()),
        };
        in_string ^= first == '"';
        out.push_str(written);
        rest = &rest[read..];
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(name: &str, text: &str) -> Value {
        parse(&RepoPath::from_text(name).unwrap(), text.as_bytes()).unwrap()
    }

    #[test]
    fn all_three_formats_parse_to_the_same_value() {
        let expected = json!({"train": {"folds": 5, "rate": 0.5, "name": "x"}});
        assert_eq!(read("a.toml", "[train]\nfolds = 5\nrate = 0.5\nname = 'x'"), expected);
        assert_eq!(read("a.json", r#"{"train": {"folds": 5, "rate": 0.5, "name": "x"}}"#), expected);
        assert_eq!(read("a.yaml", "train:\n  folds: 5\n  rate: 0.5\n  name: x\n"), expected);
    }

    #[test]
    fn non_finite_numbers_become_strings_in_every_format() {
        let expected = json!({"a": "nan", "b": "-inf", "c": "NaN \"q\""});
        assert_eq!(read("a.json", r#"{"a": NaN, "b": -Infinity, "c": "NaN \"q\""}"#), expected);
        assert_eq!(read("a.yaml", "a: .nan\nb: -.inf\nc: 'NaN \"q\"'"), expected);
        assert_eq!(read("a.toml", "a = nan\nb = -inf\nc = 'NaN \"q\"'"), expected);
    }

    #[test]
    fn keys_are_joined_by_dots() {
        let value = json!({"b": [1, 2], "a": {"x.y": 1, "z": {}}});
        let keys: Vec<_> = leaves(&value).into_iter().map(|it| it.0).collect();
        assert_eq!(keys, ["a.x.y", "a.z", "b.0", "b.1"]);
        assert_eq!(find(&value, "a.x.y"), Some(&json!(1)));
        assert_eq!(find(&value, "a.q"), None);
    }

    #[test]
    fn integers_and_floats_stay_apart() {
        let texts: Vec<_> = [json!(1), json!(1.0), json!(true), json!("1")].iter().map(canonical).collect();
        assert_eq!(texts, ["1", "1.0", "true", "\"1\""]);
    }

    #[test]
    fn malformed_documents_are_refused_with_the_position_and_unusual_ones_parsed() {
        let parse_error = |name: &str, text: &str| {
            let error = parse(&RepoPath::from_text(name).unwrap(), text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{name}");
            error.to_string()
        };
        let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
        for (name, text, part) in [
            ("a.json", deep("[", "]"), "recursion limit exceeded at line 1 column"),
            ("a.json", deep("{\"a\":", "}"), "recursion limit exceeded at line 1 column"),
            ("a.yaml", deep("[", "]"), "line 1 column"),
            ("a.toml", format!("a = {}", deep("[", "]")), "line 1, column"),
            ("a.toml", format!("[{}a]", "a.".repeat(10_000)), "recursion limit"),
            ("a.json", "{\n\"a\": 1,\n\"a\": 2}".into(), "duplicate key `a` at line 3 column"),
            ("a.yaml", "a: 1\na: 2\n".into(), "duplicate mapping key: a"),
            ("a.toml", "a = 1\na = 2\n".into(), "line 2, column 1"),
            ("a.json", "{\"a\": 1e400}".into(), "number out of range at line 1 column"),
            ("a.toml", "a = 9223372036854775808".into(), "line 1, column 5"),
        ] {
            let error = parse_error(name, &text);
            assert!(error.contains(part), "{name}: {error:.300}");
        }
        let bomb = (0..12).fold("a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, level| {
            let (old, new) = ((b'a' + level) as char, (b'b' + level) as char);
            format!("{text}{new}: &{new} [{}]\n", vec![format!("*{old}"); 9].join(","))
        });
        assert!(parse_error("a.yaml", &bomb).contains("line "), "billion laughs");
        for (name, text) in [
            ("a.json", "\u{feff}{\"a\": 1}\r\n"),
            ("a.toml", "\u{feff}a = 1\r\n"),
            ("a.yaml", "\u{feff}a: 1\r\n"),
        ] {
            assert_eq!(read(name, text), json!({"a": 1}), "{name}");
        }
        assert_eq!(
            canonical(&read("a.json", "{\"a\": 18446744073709551615}")),
            "{\"a\":18446744073709551615}"
        );
    }

    #[test]
    fn merge_conflict_markers_are_reported() {
        let text = "a = 1\n<<<<<<< HEAD\nb = 1\n=======\nb = 2\n>>>>>>> other\n";
        let error = parse(&RepoPath::from_text("p.toml").unwrap(), text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `p.toml`: it has merge conflict markers");
    }

    proptest! {
        #[test]
        fn no_json_text_causes_a_panic(text: String) {
            drop(parse(&RepoPath::from_text("a.json").unwrap(), text.as_bytes()));
        }
    }
}
