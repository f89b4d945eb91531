//! Loose documents that people write: parameters and metrics as JSON, TOML or YAML, in one shape.
//!
//! Numbers keep their kind (`1` is not `1.0`), dates are text, NaN and infinities are the texts
//! `nan`, `inf` and `-inf`, since JSON has no words for them.

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

/// The number on the line `format = N` of a file of ours.
pub fn format_of(text: &str) -> Option<u64> {
    text.lines().find_map(|it| it.strip_prefix("format = ")?.trim().parse().ok())
}

/// Reads a document by the ending of its name.
pub fn parse(name: &RepoPath, bytes: &[u8]) -> Result<Value> {
    let wrong = |why: String| Error::new(Kind::Corrupt, format!("cannot read `{name}`: {why}"));
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".into()))?;
    if has_conflict_marks(text) {
        return Err(
            wrong("it has merge-conflict marks".into()).hint("resolve the conflict in it, then try again")
        );
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let ending = name.name().rsplit(|&it| it == b'.').next().unwrap_or_default();
    match ending {
        b"json" => serde_json::from_str::<Loose>(&plain_json(text))
            .map(|it| it.0)
            .map_err(|it| wrong(it.to_string())),
        b"toml" => text.parse::<toml::Table>().map(from_toml).map_err(|it| wrong(it.to_string())),
        b"yaml" | b"yml" => serde_saphyr::from_str_with_options::<Loose>(text, yaml())
            .map(|it| it.0)
            .map_err(|it| wrong(it.to_string())),
        _ => Err(wrong("it is none of .json, .toml, .yaml".into())),
    }
}

/// Bounded in depth and size; floats may be anything.
fn yaml() -> serde_saphyr::Options {
    serde_saphyr::options! { non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough }
}

/// A value of JSON or YAML: its floats may be anything, and no key comes twice.
struct Loose(Value);

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor).map(Self)
    }
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, it: bool) -> Result<Value, E> {
        Ok(Value::Bool(it))
    }

    fn visit_i64<E>(self, it: i64) -> Result<Value, E> {
        Ok(Value::from(it))
    }

    fn visit_u64<E>(self, it: u64) -> Result<Value, E> {
        Ok(Value::from(it))
    }

    fn visit_f64<E>(self, it: f64) -> Result<Value, E> {
        Ok(number(it))
    }

    fn visit_str<E>(self, it: &str) -> Result<Value, E> {
        Ok(Value::from(it))
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
        let mut found = Vec::new();
        while let Some(Loose(it)) = list.next_element()? {
            found.push(it);
        }
        Ok(Value::Array(found))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut found = Map::new();
        while let Some((key, Loose(it))) = map.next_entry::<Loose, Loose>()? {
            let key = key.0.as_str().map_or_else(|| key.0.to_string(), str::to_owned);
            if found.insert(key.clone(), it).is_some() {
                return Err(de::Error::custom(format!("the key `{key}` comes twice")));
            }
        }
        Ok(Value::Object(found))
    }
}

/// Whether Git left marks of a merge conflict at the start of lines.
pub fn has_conflict_marks(text: &str) -> bool {
    let starts = |mark: &str| text.lines().any(|it| it.starts_with(mark));
    starts("<<<<<<< ") && starts(">>>>>>> ")
}

/// The value at dotted `keys`, if it is there.
pub fn find<'a>(value: &'a Value, keys: &str) -> Option<&'a Value> {
    if keys.is_empty() {
        return Some(value);
    }
    let map = value.as_object()?;
    if let Some(found) = map.get(keys) {
        return Some(found);
    }
    // A key may hold dots itself, so every cut is tried.
    keys.match_indices('.').find_map(|(at, _)| find(map.get(&keys[..at])?, &keys[at + 1..]))
}

/// All leaves with their keys joined by dots, in order; lists are leaves only when they are empty.
pub fn leaves(value: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    collect(value, String::new(), &mut found);
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn collect(value: &Value, key: String, found: &mut Vec<(String, Value)>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(name, it)| collect(it, below(name), found));
        }
        Value::Array(list) if !list.is_empty() => {
            list.iter().enumerate().for_each(|(at, it)| collect(it, below(&at.to_string()), found));
        }
        leaf => found.push((key, leaf.clone())),
    }
}

/// One spelling for one value: keys sorted, no spaces.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_by_key(|it| it.0);
            let parts =
                keys.iter().map(|(key, it)| format!("{}:{}", Value::from(key.as_str()), canonical(it)));
            format!("{{{}}}", parts.collect::<Vec<_>>().join(","))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(",")),
        leaf => leaf.to_string(),
    }
}

/// A number as JSON can hold it; what is not finite becomes a text.
pub fn number(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| Value::from(text_of(value)), Value::Number)
}

fn text_of(value: f64) -> &'static str {
    if value.is_nan() {
        "nan"
    } else if value > 0.0 {
        "inf"
    } else {
        "-inf"
    }
}

fn from_toml(table: toml::Table) -> Value {
    let map: Map<_, _> = table.into_iter().map(|(key, it)| (key, from_toml_value(it))).collect();
    Value::Object(map)
}

fn from_toml_value(value: toml::Value) -> Value {
    match value {
        toml::Value::String(it) => Value::String(it),
        toml::Value::Integer(it) => Value::from(it),
        toml::Value::Float(it) => number(it),
        toml::Value::Boolean(it) => Value::Bool(it),
        toml::Value::Datetime(it) => Value::String(it.to_string()),
        toml::Value::Array(it) => Value::Array(it.into_iter().map(from_toml_value).collect()),
        toml::Value::Table(it) => from_toml(it),
    }
}

/// Python writes bare `NaN`, `Infinity` and `-Infinity` into JSON; outside strings they become texts.
fn plain_json(text: &str) -> String {
    const WORDS: [(&str, &str); 3] = [("-Infinity", "\"-inf\""), ("Infinity", "\"inf\""), ("NaN", "\"nan\"")];
    if !WORDS.iter().any(|it| text.contains(it.0)) {
        return text.to_owned();
    }
    let (mut out, mut rest, mut quoted) = (String::with_capacity(text.len()), text, false);
    while let Some(it) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !quoted && rest.starts_with(word.0));
        let (written, read) = match (it, word) {
            (_, Some(word)) => (word.1, word.0.len()),
            ('\\', _) if quoted => {
                let read = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (&rest[..read], read)
            }
            _ => (&rest[..it.len_utf8()], it.len_utf8()),
        };
        quoted ^= it == '"';
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
    fn three_formats_give_one_shape() {
        let expected = json!({"train": {"folds": 5, "rate": 0.5, "name": "x"}});
        assert_eq!(read("a.toml", "[train]\nfolds = 5\nrate = 0.5\nname = 'x'"), expected);
        assert_eq!(read("a.json", r#"{"train": {"folds": 5, "rate": 0.5, "name": "x"}}"#), expected);
        assert_eq!(read("a.yaml", "train:\n  folds: 5\n  rate: 0.5\n  name: x\n"), expected);
    }

    #[test]
    fn what_is_not_finite_is_text_in_every_format() {
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
    fn kinds_of_numbers_are_told_apart() {
        let texts: Vec<_> = [json!(1), json!(1.0), json!(true), json!("1")].iter().map(canonical).collect();
        assert_eq!(texts, ["1", "1.0", "true", "\"1\""]);
    }

    #[test]
    fn what_is_odd_is_refused_with_its_place_or_read_as_meant() {
        let refused = |name: &str, text: &str| {
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
            ("a.json", "{\n\"a\": 1,\n\"a\": 2}".into(), "the key `a` comes twice at line 3 column"),
            ("a.yaml", "a: 1\na: 2\n".into(), "duplicate mapping key: a"),
            ("a.toml", "a = 1\na = 2\n".into(), "line 2, column 1"),
            ("a.json", "{\"a\": 1e400}".into(), "number out of range at line 1 column"),
            ("a.toml", "a = 9223372036854775808".into(), "line 1, column 5"),
        ] {
            let said = refused(name, &text);
            assert!(said.contains(part), "{name}: {said:.300}");
        }
        let bomb = (0..12).fold("a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, it| {
            let (old, new) = ((b'a' + it) as char, (b'b' + it) as char);
            format!("{text}{new}: &{new} [{}]\n", vec![format!("*{old}"); 9].join(","))
        });
        assert!(refused("a.yaml", &bomb).contains("line "), "billion laughs");
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
    fn conflict_marks_are_named() {
        let text = "a = 1\n<<<<<<< HEAD\nb = 1\n=======\nb = 2\n>>>>>>> other\n";
        let error = parse(&RepoPath::from_text("p.toml").unwrap(), text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `p.toml`: it has merge-conflict marks");
    }

    proptest! {
        #[test]
        fn no_text_makes_json_panic(text: String) {
            drop(parse(&RepoPath::from_text("a.json").unwrap(), text.as_bytes()));
        }
    }
}
