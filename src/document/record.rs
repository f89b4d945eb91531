//! Values as records keep them: as TOML in the lockfile and as JSON in the run cache. Both read back to the
//! same value, and values that the formats express alike keep the text they always had.
//!
//! | value | in the lockfile | in the run cache |
//! |---|---|---|
//! | null | `{ json = "null" }` | `null` |
//! | integer beyond 64 bits, decimal beyond a double | `{ json = "…" }` | `{"mlx-number": "…"}` |
//! | integer from 2^63 to 2^64 | `{ json = "…" }` | as it is |
//! | literal | `{ literal = "…" }` | `{"mlx-literal": "…"}` |
//! | table that looks like one of these | `{ json = "…" }` | `{"mlx-table": {…}}` |

use serde_json::{Value as Json, json};

use crate::document::{
    json,
    number::Number,
    value::{Value, quote},
};

/// Prints a value as TOML on one line.
pub fn to_toml(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Number(number) if is_toml_number(number) => number.to_string(),
        Value::Null | Value::Number(_) => as_json(value),
        Value::Text(text) => toml_quote(text),
        Value::Literal(text) => format!("{{ literal = {} }}", toml_quote(text)),
        Value::List(list) => format!("[{}]", list.iter().map(to_toml).collect::<Vec<_>>().join(", ")),
        Value::Table(table) if table.is_empty() => "{}".to_owned(),
        Value::Table(table) => {
            if let [(key, Value::Text(_))] = table.iter().collect::<Vec<_>>()[..]
                && ["json", "literal"].contains(&key.as_str())
            {
                return as_json(value);
            }
            let mut pairs: Vec<_> = table
                .iter()
                .map(|(key, value)| format!("{} = {}", toml_quote(key), to_toml(value)))
                .collect();
            pairs.sort();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}

/// Quotes a text for TOML. JSON's escapes are valid there, but JSON leaves one character as it is that TOML
/// has to escape.
pub fn toml_quote(text: &str) -> String {
    quote(text).replace('\u{7f}', "\\u007f")
}

fn as_json(value: &Value) -> String {
    format!("{{ json = {} }}", toml_quote(&value.canonical()))
}

/// Returns true if TOML's reader gives the number back: an `i64`, or a double.
fn is_toml_number(number: &Number) -> bool {
    number.to_json().is_some_and(|json| json.is_i64() || json.is_f64())
}

/// Reads a value that [`to_toml`] printed.
pub fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::Text(text),
        toml::Value::Integer(integer) => Value::from(&Json::from(integer)),
        toml::Value::Float(float) => Value::from(float),
        toml::Value::Boolean(boolean) => Value::Bool(boolean),
        toml::Value::Datetime(datetime) => Value::Literal(datetime.to_string()),
        toml::Value::Array(list) => Value::List(list.into_iter().map(from_toml).collect()),
        toml::Value::Table(table) => {
            let single = if table.len() == 1 { table.iter().next() } else { None };
            match single {
                Some((key, toml::Value::String(text))) if key == "json" => {
                    json::parse(text).unwrap_or_default()
                }
                Some((key, toml::Value::String(text))) if key == "literal" => Value::Literal(text.clone()),
                _ => Value::Table(table.into_iter().map(|(key, value)| (key, from_toml(value))).collect()),
            }
        }
    }
}

/// Converts to JSON that differs wherever the values do.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::Number(number) => {
            number.to_json().map_or_else(|| json!({NUMBER: number.as_str()}), Json::Number)
        }
        Value::Literal(text) => json!({LITERAL: text}),
        Value::List(list) => list.iter().map(to_json).collect(),
        Value::Table(table) => {
            let pairs = table.iter().map(|(key, value)| (key.clone(), to_json(value))).collect();
            let is_marked =
                table.len() == 1 && [NUMBER, LITERAL, TABLE].iter().any(|key| table.contains_key(*key));
            if is_marked { json!({TABLE: Json::Object(pairs)}) } else { Json::Object(pairs) }
        }
        other => other.to_json(),
    }
}

const NUMBER: &str = "mlx-number";
const LITERAL: &str = "mlx-literal";
const TABLE: &str = "mlx-table";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::document::canonical;

    fn from_text(text: &str) -> Value {
        from_toml(toml::from_str::<toml::Table>(&format!("x = {text}")).unwrap().remove("x").unwrap())
    }

    fn number(text: &str) -> Value {
        Value::Number(Number::parse(text).unwrap())
    }

    #[test]
    fn values_that_were_recorded_before_keep_their_text() {
        let value = Value::from(
            &json!({"a": [1, 0.1, "x", true, null], "b": u64::MAX, "c": {}, "json": {"json": "1"}}),
        );
        assert_eq!(
            to_toml(&value),
            concat!(
                r#"{ "a" = [1, 0.1, "x", true, { json = "null" }], "#,
                r#""b" = { json = "18446744073709551615" }, "c" = {}, "#,
                r#""json" = { json = "{\"json\":\"1\"}" } }"#
            )
        );
        assert_eq!(canonical(&to_json(&value)), value.canonical());
    }

    #[test]
    fn values_beyond_json_have_a_form_of_their_own() {
        for (value, toml, json) in [
            (
                number("18446744073709551616"),
                r#"{ json = "18446744073709551616" }"#,
                r#"{"mlx-number":"18446744073709551616"}"#,
            ),
            (number("-0"), r#"{ json = "-0" }"#, r#"{"mlx-number":"-0"}"#),
            (number("1e400"), r#"{ json = "1.0e400" }"#, r#"{"mlx-number":"1.0e400"}"#),
            (Value::Literal("010".into()), r#"{ literal = "010" }"#, r#"{"mlx-literal":"010"}"#),
            (Value::from(f64::NAN), r#"{ literal = "nan" }"#, r#"{"mlx-literal":"nan"}"#),
        ] {
            assert_eq!((to_toml(&value).as_str(), canonical(&to_json(&value)).as_str()), (toml, json));
            assert_eq!(from_text(toml), value);
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            "-?[0-9]{1,40}(\\.[0-9]{1,30}(e[0-9]{1,3})?)?".prop_map(|text| number(&text)),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::Text),
            "[a-z0-9:]{0,6}".prop_map(Value::Literal),
        ];
        let key = prop_oneof![
            "[a-z.\"]{0,3}",
            Just("json".to_owned()),
            Just("literal".to_owned()),
            Just(NUMBER.to_owned()),
            Just(TABLE.to_owned()),
        ];
        scalar.prop_recursive(4, 16, 3, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::List),
                prop::collection::btree_map(key.clone(), inner, 0..3).prop_map(Value::Table),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_lockfile_gives_every_value_back(value in any_value()) {
            prop_assert_eq!(from_text(&to_toml(&value)), value);
        }

        #[test]
        fn two_values_have_two_forms_in_the_run_cache(one in any_value(), two in any_value()) {
            prop_assert_eq!(canonical(&to_json(&one)) == canonical(&to_json(&two)), one == two);
        }
    }
}
