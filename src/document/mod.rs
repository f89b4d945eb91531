//! Documents that people write, JSON, TOML and YAML: read into one [`Value`], and compared.
//!
//! Values are exact: integers of any length, decimals to their last digit, integers and floats apart (`1` is
//! not `1.0`). Dates, NaN and infinities are literals, since JSON has no types for them. YAML is read by the
//! core schema of version 1.2; a plain scalar that version 1.1 reads otherwise is kept as its text.

mod fault;
mod json;
mod keys;
mod number;
mod plain;
mod record;
mod toml_text;
mod value;
mod yaml;

pub use self::{
    keys::{Difference, Names, Path, differences, leaf_paths, leaves},
    number::Number,
    record::{from_toml, to_json, to_toml, toml_quote},
    value::Value,
};

use serde_json::Value as Json;

use crate::{
    error::{Error, Kind, Result},
    path::RepoPath,
};

/// Endings of the names of documents.
const FORMATS: [(&[u8], Parser); 4] =
    [(b"json", json::parse), (b"toml", toml_text::parse), (b"yaml", yaml::parse), (b"yml", yaml::parse)];

type Parser = fn(&str) -> Result<Value, fault::Fault>;

/// Returns the format version of an mlx file: the number on its line `format = N`.
pub fn format_version(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("format = ")?.trim().parse().ok())
}

/// Returns true if the extension of a name says that it is a document.
pub fn is_document(name: &RepoPath) -> bool {
    parser(name).is_some()
}

fn parser(name: &RepoPath) -> Option<Parser> {
    let extension = name.name().rsplit(|&byte| byte == b'.').next().unwrap_or_default();
    FORMATS.iter().find(|format| format.0 == extension).map(|format| format.1)
}

/// Parses a document in the format that the extension of its name says.
pub fn parse(name: &RepoPath, bytes: &[u8]) -> Result<Value> {
    let wrong = |why: &str| Error::new(Kind::Corrupt, format!("cannot read `{name}`: {why}"));
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8"))?;
    if has_conflict_markers(text) {
        let hint = "resolve the merge conflict, then try again";
        return Err(wrong("it has merge conflict markers").hint(hint));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let parser = parser(name).ok_or_else(|| wrong("its extension is not .json, .toml, .yaml or .yml"))?;
    parser(text).map_err(|fault| wrong(&fault.why).hint(fault.hint))
}

/// Returns true if lines start with Git's merge-conflict markers.
pub fn has_conflict_markers(text: &str) -> bool {
    let any_line_starts_with = |marker: &str| text.lines().any(|line| line.starts_with(marker));
    any_line_starts_with("<<<<<<< ") && any_line_starts_with(">>>>>>> ")
}

/// Returns the error for a file of which Git left two versions, in its index or between conflict markers.
/// `sides` tell them apart, as far as that is known.
pub fn conflict_error(file: &RepoPath, sides: &[String], hint: String) -> Error {
    let named = if sides.is_empty() { String::new() } else { format!(": {}", sides.join(" and ")) };
    let message = format!("`{file}` is in conflict, since Git merged two versions of it{named}");
    Error::new(Kind::Conflict, message).hint(hint)
}

/// Formats JSON canonically: keys sorted, no spaces.
pub fn canonical(value: &Json) -> String {
    match value {
        Json::Object(map) => {
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_by_key(|it| it.0);
            let parts =
                keys.iter().map(|(key, value)| format!("{}:{}", Json::from(key.as_str()), canonical(value)));
            format!("{{{}}}", parts.collect::<Vec<_>>().join(","))
        }
        Json::Array(list) => format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(",")),
        leaf => leaf.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(name: &str, text: &str) -> Value {
        parse(&RepoPath::from_text(name).unwrap(), text.as_bytes()).unwrap()
    }

    #[test]
    fn all_three_formats_parse_to_the_same_value() {
        let expected = Value::from(&json!({"train": {"folds": 5, "rate": 0.5, "name": "x"}}));
        assert_eq!(read("a.toml", "[train]\nfolds = 5\nrate = 0.50\nname = 'x'"), expected);
        assert_eq!(read("a.json", r#"{"train": {"folds": 5, "rate": 0.50, "name": "x"}}"#), expected);
        assert_eq!(read("a.yaml", "train:\n  folds: 5\n  rate: 0.50\n  name: x\n"), expected);
    }

    #[test]
    fn non_finite_numbers_are_the_same_literals_in_every_format() {
        let expected = "{\"a\":nan,\"b\":-inf,\"c\":\"NaN \\\"q\\\"\"}";
        assert_eq!(read("a.json", r#"{"a": NaN, "b": -Infinity, "c": "NaN \"q\""}"#).canonical(), expected);
        assert_eq!(read("a.yaml", "a: .nan\nb: -.inf\nc: 'NaN \"q\"'").canonical(), expected);
        assert_eq!(read("a.toml", "a = nan\nb = -inf\nc = 'NaN \"q\"'").canonical(), expected);
    }

    #[test]
    fn malformed_documents_are_refused_with_the_name_and_a_hint() {
        let error = |name: &str, text: &str| {
            let error = parse(&RepoPath::from_text(name).unwrap(), text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{name}");
            assert!(
                error.hint_text().is_some() || !is_document(&RepoPath::from_text(name).unwrap()),
                "{error}"
            );
            error.to_string()
        };
        for (name, text, part) in [
            ("a.json", "{", "cannot read `a.json`: a key in quotes is expected at line 1 column 2"),
            ("a.yaml", "a: 1\n---\nb: 1", "cannot read `a.yaml`: it has two documents"),
            ("a.toml", "a = 1\na = 2", "cannot read `a.toml`: duplicate key at line 2 column 1"),
            ("a.csv", "a,b", "cannot read `a.csv`: its extension is not .json"),
            ("p.toml", "<<<<<<< HEAD\n=======\n>>>>>>> other\n", "`p.toml`: it has merge conflict markers"),
        ] {
            let error = error(name, text);
            assert!(error.contains(part), "{name}: {error}");
        }
    }

    #[test]
    fn a_byte_order_mark_and_carriage_returns_are_skipped() {
        for (name, text) in [
            ("a.json", "\u{feff}{\"a\": 1}\r\n"),
            ("a.toml", "\u{feff}a = 1\r\n"),
            ("a.yaml", "\u{feff}a: 1\r\n"),
        ] {
            assert_eq!(read(name, text), Value::from(&json!({"a": 1})), "{name}");
        }
    }

    #[test]
    fn canonical_json_keeps_types_apart() {
        let texts: Vec<_> = [json!(1), json!(1.0), json!(true), json!("1")].iter().map(canonical).collect();
        assert_eq!(texts, ["1", "1.0", "true", "\"1\""]);
    }
}
