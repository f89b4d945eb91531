//! Meaning of YAML's plain scalars, those without quotes.
//!
//! The rules are YAML 1.2's core schema. Where `PyYAML`, which reads YAML 1.1, takes the same letters for
//! another type or value, the scalar is a literal: its text is kept, so that every edit of it is a change.
//!
//! | scalar | YAML 1.2 | PyYAML |
//! |---|---|---|
//! | `010`, `08` | 10, 8 | 8, text |
//! | `1_000`, `0b11`, `12:30`, `yes`, `on`, `2024-01-01` | text | 1000, 3, 750, true, true, a date |
//! | `1e3`, `1.5e3`, `-.5`, `0o17` | 1000.0, 1500.0, -0.5, 15 | text |

use crate::document::{number::Number, value::Value};

/// Returns the value of a plain scalar.
pub fn resolve(text: &str) -> Value {
    let (core, old) = (core(text), old(text));
    if old.as_ref() == Some(&core) { core } else { Value::Literal(text.to_owned()) }
}

/// Returns the value by the core schema of YAML 1.2.
pub fn core(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::from(f64::NAN),
        _ => {}
    }
    let unsigned = text.trim_start_matches(['+', '-']);
    if text.len() - unsigned.len() <= 1 && [".inf", ".Inf", ".INF"].contains(&unsigned) {
        return Value::from(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    let other_base = [("0x", 16), ("0o", 8)].into_iter();
    let mut other_base = other_base.filter_map(|(prefix, radix)| digits(text.strip_prefix(prefix)?, radix));
    // A sign before digits belongs to the number in decimal notation only.
    let number = other_base.next().or_else(|| Number::parse(text));
    number.map_or_else(|| Value::Text(text.to_owned()), Value::Number)
}

fn digits(text: &str, radix: u32) -> Option<Number> {
    if text.starts_with(['+', '-']) { None } else { Number::from_radix(text, radix) }
}

/// Returns the value as `PyYAML` resolves it; `None` where no value of ours equals its value.
fn old(text: &str) -> Option<Value> {
    let booleans = ["yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF"];
    if booleans.contains(&text) || is_date(text) || is_base_sixty(text) || ["<<", "="].contains(&text) {
        return None;
    }
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let starts_with_digit = unsigned.starts_with(|char: char| char.is_ascii_digit());
    let without_marks = unsigned.replace('_', "");
    let number = if let Some(rest) = without_marks.strip_prefix("0x") {
        digits(rest, 16)
    } else if let Some(rest) = without_marks.strip_prefix("0b") {
        digits(rest, 2)
    } else if starts_with_digit && without_marks.bytes().all(|byte| byte.is_ascii_digit()) {
        match without_marks.strip_prefix('0') {
            Some("") => Number::parse("0"),
            Some(rest) => digits(rest, 8),
            None => Number::parse(&without_marks),
        }
    } else if is_old_float(text) {
        Number::parse(&without_marks)
    } else {
        return Some(match core(text) {
            Value::Number(_) => Value::Text(text.to_owned()),
            other => other,
        });
    };
    let signed = number.and_then(|number| Number::parse(&format!("{sign}{number}")));
    Some(signed.map_or_else(|| Value::Text(text.to_owned()), Value::Number))
}

/// Returns true for a number with a point whose exponent, if any, has a sign. One that begins with the point
/// has no sign itself.
fn is_old_float(text: &str) -> bool {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "+0"));
    let exponent_digits = exponent.strip_prefix(['+', '-']).unwrap_or_default();
    let all =
        |text: &str, marks: bool| text.bytes().all(|byte| byte.is_ascii_digit() || marks && byte == b'_');
    let Some((whole, fraction)) = mantissa.split_once('.') else { return false };
    let digit_first = |text: &str| text.starts_with(|char: char| char.is_ascii_digit());
    let unsigned = whole.strip_prefix(['+', '-']).unwrap_or(whole);
    let starts = if whole.is_empty() { digit_first(fraction) } else { digit_first(unsigned) };
    let is_exponent = !exponent_digits.is_empty() && all(exponent_digits, false);
    starts && all(unsigned, true) && all(fraction, true) && is_exponent
}

/// Returns true for a number in base 60, such as `12:30` or `1:02:03.5`.
fn is_base_sixty(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (places, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let mut places = places.split(':');
    let first = places.next().unwrap_or_default();
    let is_first = first.starts_with(|char: char| char.is_ascii_digit())
        && first.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let mut rest = places.peekable();
    is_first
        && rest.peek().is_some()
        && rest.all(|place| matches!(place.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']))
        && fraction.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
}

/// Returns true for a date, alone or with a time of the day.
fn is_date(text: &str) -> bool {
    let is_number = |text: &str, shortest: usize, longest: usize| {
        (shortest..=longest).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (date, time) = match text.find(['T', 't', ' ', '\t']) {
        Some(at) => (&text[..at], Some(text[at + 1..].trim_start())),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let (year, month, day, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
    let shortest = if time.is_some() { 1 } else { 2 };
    let is_day = |part: Option<&str>| part.is_some_and(|part| is_number(part, shortest, 2));
    let is_date =
        year.is_some_and(|year| is_number(year, 4, 4)) && is_day(month) && is_day(day) && rest.is_none();
    let Some(time) = time else { return is_date };
    // The zone is not looked at: a text that only looks like a date is kept as its text all the same.
    let mut clock = time.splitn(3, ':');
    let (hour, minute, second) = (clock.next(), clock.next(), clock.next());
    let second = second.map(|second| second.get(..2).unwrap_or_default());
    is_date
        && hour.is_some_and(|hour| is_number(hour, 1, 2))
        && minute.is_some_and(|minute| is_number(minute, 2, 2))
        && second.is_some_and(|second| is_number(second, 2, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the type and the canonical text of a scalar.
    fn read(text: &str) -> String {
        let value = resolve(text);
        format!("{} {}", value.type_name(), value.canonical())
    }

    #[test]
    fn scalars_that_both_versions_read_alike_have_their_type() {
        for (text, expected) in [
            ("", "null null"),
            ("~", "null null"),
            ("NULL", "null null"),
            ("True", "a boolean true"),
            ("FALSE", "a boolean false"),
            ("12", "an integer 12"),
            ("+12", "an integer 12"),
            ("0", "an integer 0"),
            ("007", "an integer 7"),
            ("0x1F", "an integer 31"),
            ("340282366920938463463374607431768211455", "an integer 340282366920938463463374607431768211455"),
            ("1.50", "a decimal number 1.5"),
            ("1.", "a decimal number 1.0"),
            (".5", "a decimal number 0.5"),
            ("-0.0", "a decimal number -0.0"),
            ("1.5e+3", "a decimal number 1500.0"),
            ("1.5E-3", "a decimal number 0.0015"),
            ("y", "a text \"y\""),
            ("N", "a text \"N\""),
            ("yEs", "a text \"yEs\""),
            ("1.2.3", "a text \"1.2.3\""),
            ("a b", "a text \"a b\""),
            ("-", "a text \"-\""),
            ("1e", "a text \"1e\""),
            ("12:3x", "a text \"12:3x\""),
            ("12:75", "a text \"12:75\""),
            ("2024-1-1", "a text \"2024-1-1\""),
            ("--1", "a text \"--1\""),
            ("_1", "a text \"_1\""),
            (".", "a text \".\""),
            ("nan", "a text \"nan\""),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn scalars_that_the_versions_read_differently_are_kept_as_their_text() {
        for text in [
            "010",
            "-010",
            "08",
            "0o17",
            "1_000",
            "0b11",
            "0x_1F",
            "yes",
            "Yes",
            "no",
            "on",
            "OFF",
            "12:30",
            "190:20:30.15",
            "1e3",
            "1E-3",
            "1.5e3",
            "-.5",
            "+.5",
            "1_0.5",
            "2024-01-01",
            "2024-1-1 1:02:03",
            "2001-12-14t21:59:43.10-05:00",
            "=",
            "-0x10",
        ] {
            assert_eq!(read(text), format!("a plain scalar {text}"), "{text}");
        }
        for (text, spelled) in [(".nan", "nan"), (".NaN", "nan"), ("-.inf", "-inf"), ("+.Inf", "inf")] {
            assert_eq!(read(text), format!("a plain scalar {spelled}"), "{text}");
        }
    }
}
