//! The value that JSON, TOML and YAML have in common: parameters, metrics and settings.
//!
//! Equality is exact: types, every digit of a number, and the difference between a text and a scalar that is
//! only written like one. `serde_json::Value` cannot serve: it rounds integers beyond 64 bits, and its
//! feature `arbitrary_precision` would change how every JSON document of this program and of its libraries is
//! read and printed.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use crate::document::number::Number;

/// A value of a document.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    /// A scalar written without quotes that JSON has no type for: a date, `nan` or `inf`, a YAML scalar that
    /// readers of YAML 1.1 and 1.2 take for different values. It differs from the text of the same letters.
    Literal(String),
    List(Vec<Value>),
    Table(BTreeMap<String, Value>),
}

impl Value {
    /// Returns the value of a key, if this is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Table(table) => table.get(key),
            _ => None,
        }
    }

    /// Returns the values that a dotted key such as `train.rate` may mean. There are several only where a key
    /// holds dots itself, as in `{"a.b": 1, "a": {"b": 2}}`.
    pub fn find(&self, keys: &str) -> Vec<&Self> {
        if keys.is_empty() {
            return vec![self];
        }
        let splits = keys.match_indices('.').map(|(at, _)| (&keys[..at], &keys[at + 1..]));
        let below = splits.filter_map(|(key, rest)| Some((self.get(key)?, rest)));
        let below = below.filter(|(_, rest)| !rest.is_empty()).flat_map(|(value, rest)| value.find(rest));
        self.get(keys).into_iter().chain(below).collect()
    }

    /// Returns the nearest double of a number, or of a YAML scalar such as `1e-3` that all readers which take
    /// it for a number read alike.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(number) => number.as_f64(),
            Self::Literal(text) if text.contains(['.', 'e', 'E']) => Number::parse(text)?.as_f64(),
            _ => None,
        }
    }

    /// Returns the name of the type, as in "a list".
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(number) if number.is_integer() => "an integer",
            Self::Number(_) => "a decimal number",
            Self::Text(_) => "a text",
            Self::Literal(_) => "a plain scalar",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }

    /// Prints the value on one line, as JSON with sorted keys and without spaces; literals stand bare.
    pub fn canonical(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => quote(text),
            Self::Literal(text) => text.clone(),
            Self::List(list) => {
                format!("[{}]", list.iter().map(Self::canonical).collect::<Vec<_>>().join(","))
            }
            Self::Table(table) => {
                let pairs = table.iter().map(|(key, value)| format!("{}:{}", quote(key), value.canonical()));
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
            }
        }
    }

    /// Converts to JSON for programs. Literals become text, and so do numbers that most readers of JSON would
    /// round: integers beyond 64 bits, and decimals that a double does not hold.
    pub fn to_json(&self) -> Json {
        self.to_json_with(&|literal| Json::from(literal))
    }

    /// Converts to JSON for a reader that expects certain types: like [`Value::to_json`], but literals that
    /// are numbers, such as YAML's `1e-3`, become numbers.
    pub fn to_typed_json(&self) -> Json {
        self.to_json_with(&|literal| {
            let number = Self::Literal(literal.to_owned()).as_f64().and_then(serde_json::Number::from_f64);
            number.map_or_else(|| Json::from(literal), Json::Number)
        })
    }

    fn to_json_with(&self, literal: &dyn Fn(&str) -> Json) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Number(number) => {
                number.to_json().map_or_else(|| Json::from(number.as_str()), Json::Number)
            }
            Self::Text(text) => Json::from(text.as_str()),
            Self::Literal(text) => literal(text),
            Self::List(list) => list.iter().map(|value| value.to_json_with(literal)).collect(),
            Self::Table(table) => {
                let pairs = table.iter().map(|(key, value)| (key.clone(), value.to_json_with(literal)));
                Json::Object(pairs.collect())
            }
        }
    }
}

/// Quotes a text as JSON does.
pub fn quote(text: &str) -> String {
    Json::from(text).to_string()
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        let bare = || {
            if value.is_nan() {
                "nan"
            } else if value > 0.0 {
                "inf"
            } else {
                "-inf"
            }
        };
        Number::from_f64(value).map_or_else(|| Self::Literal(bare().to_owned()), Self::Number)
    }
}

impl From<&Json> for Value {
    fn from(json: &Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => {
                Self::Number(Number::parse(&number.to_string()).expect("JSON's numbers are decimal"))
            }
            Json::String(text) => Self::Text(text.clone()),
            Json::Array(list) => Self::List(list.iter().map(Self::from).collect()),
            Json::Object(map) => {
                Self::Table(map.iter().map(|(key, value)| (key.clone(), Self::from(value))).collect())
            }
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_and_digits_stay_apart() {
        let number = |text: &str| Value::Number(Number::parse(text).unwrap());
        let (text, literal) = (Value::Text("1".into()), Value::Literal("1".into()));
        let all = [number("1"), number("1.0"), number("0.0"), number("-0.0"), text, literal, Value::Null];
        for (at, one) in all.iter().enumerate() {
            for (other_at, other) in all.iter().enumerate() {
                assert_eq!(one == other, at == other_at, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_dotted_key_finds_every_value_that_it_may_mean() {
        let value =
            Value::from(&json!({"a.b": 1, "a": {"b": 2, "": 3}, "c": {"d.e": {"f": 4}}, "": {"x": 5}}));
        let find = |keys: &str| value.find(keys).into_iter().map(Value::canonical).collect::<Vec<_>>();
        assert_eq!(find("a.b"), ["1", "2"]);
        assert_eq!(find("c.d.e.f"), ["4"]);
        assert_eq!(find("c.d.e"), ["{\"f\":4}"]);
        assert_eq!(find("q"), Vec::<String>::new());
        assert_eq!(find("").len(), 1);
    }

    #[test]
    fn json_for_programs_loses_no_digit() {
        let big = "302934307671667531413257853548643485645";
        let value = Value::List(vec![
            Value::Number(Number::parse(big).unwrap()),
            Value::Literal("1e-3".into()),
            Value::Literal("010".into()),
            Value::from(f64::NAN),
            Value::from(0.5),
        ]);
        assert_eq!(value.to_json(), json!([big, "1e-3", "010", "nan", 0.5]));
        assert_eq!(value.to_typed_json(), json!([big, 0.001, "010", "nan", 0.5]));
        assert_eq!(value.canonical(), format!("[{big},1e-3,010,nan,0.5]"));
    }
}
