//! Parser for JSON as its standard (RFC 8259) says, with three exceptions: numbers have any length, a key
//! that occurs twice is an error, and Python's bare `NaN`, `Infinity` and `-Infinity` are read.

use std::collections::BTreeMap;

use crate::document::{
    fault::{Fault, MAX_DEPTH, place},
    number::Number,
    value::Value,
};

/// Parses a JSON document.
pub fn parse(text: &str) -> Result<Value, Fault> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.skip_space();
    if reader.at < text.len() { Err(reader.fault("text after the end of the document")) } else { Ok(value) }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Reader<'t> {
    fn value(&mut self, depth: usize) -> Result<Value, Fault> {
        self.skip_space();
        match self.peek() {
            Some(b'{' | b'[') if depth == MAX_DEPTH => Err(Fault::too_deep()),
            Some(b'{') => self.table(depth + 1),
            Some(b'[') => self.list(depth + 1),
            Some(b'"') => self.string().map(Value::Text),
            Some(b'-' | b'0'..=b'9') if !self.text[self.at..].starts_with("-I") => self.number(),
            Some(_) => self.word(),
            None => Err(self.fault("the document ends where a value is expected")),
        }
    }

    fn table(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut table = BTreeMap::new();
        self.items(b'}', |reader| {
            let start = reader.at;
            if reader.peek() != Some(b'"') {
                return Err(reader.fault("a key in quotes is expected"));
            }
            let key = reader.string()?;
            reader.skip_space();
            if !reader.eat(b':') {
                return Err(reader.fault("`:` is expected"));
            }
            let value = reader.value(depth)?;
            match table.insert(key.clone(), value) {
                None => Ok(()),
                Some(_) => Err(Fault::new(format!("duplicate key `{key}` at {}", place(reader.text, start)))),
            }
        })?;
        Ok(Value::Table(table))
    }

    fn list(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut list = Vec::new();
        self.items(b']', |reader| reader.value(depth).map(|value| list.push(value)))?;
        Ok(Value::List(list))
    }

    /// Reads the items of a list or table up to its closing bracket, separated by commas.
    fn items(
        &mut self,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.at += 1;
        self.skip_space();
        if self.eat(close) {
            return Ok(());
        }
        loop {
            self.skip_space();
            item(self)?;
            self.skip_space();
            if self.eat(close) {
                return Ok(());
            }
            if !self.eat(b',') {
                return Err(self.fault(&format!("`,` or `{}` is expected", char::from(close))));
            }
        }
    }

    fn string(&mut self) -> Result<String, Fault> {
        let (start, bytes) = (self.at, self.text.as_bytes());
        let mut end = start + 1;
        while bytes.get(end).is_some_and(|&byte| byte != b'"') {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        if end >= bytes.len() {
            return Err(self.fault("a text without a closing quote"));
        }
        self.at = end + 1;
        serde_json::from_str(&self.text[start..=end]).map_err(|_| {
            Fault::new(format!(
                "a text with an invalid escape or a control character at {}",
                place(self.text, start)
            ))
        })
    }

    fn number(&mut self) -> Result<Value, Fault> {
        let start = self.at;
        let number = self.take(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
        let parsed = Number::parse(number).filter(|_| is_json_number(number));
        parsed.map(Value::Number).ok_or_else(|| {
            Fault::new(format!("`{number:.40}` is not a number at {}", place(self.text, start)))
        })
    }

    fn word(&mut self) -> Result<Value, Fault> {
        let start = self.at;
        match self.take(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "NaN" => Ok(Value::from(f64::NAN)),
            "Infinity" => Ok(Value::from(f64::INFINITY)),
            "-Infinity" => Ok(Value::from(f64::NEG_INFINITY)),
            _ => Err(Fault::new(format!("a value is expected at {}", place(self.text, start)))),
        }
    }

    fn take(&mut self, belongs: impl Fn(u8) -> bool) -> &'t str {
        let rest = &self.text[self.at..];
        let end = rest.bytes().position(|byte| !belongs(byte)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn skip_space(&mut self) {
        self.take(|byte| b" \t\r\n".contains(&byte));
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn fault(&self, why: &str) -> Fault {
        Fault::new(format!("{why} at {}", place(self.text, self.at)))
    }
}

/// Returns true if JSON allows a decimal number to be written like this: no `+`, no leading zero, and digits
/// on both sides of a point.
fn is_json_number(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let mantissa = unsigned.split(['e', 'E']).next().unwrap_or_default();
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    !whole.is_empty()
        && !whole.starts_with('+')
        && !fraction.is_empty()
        && (whole == "0" || !whole.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;

    #[test]
    fn only_standard_json_is_read() {
        for wrong in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "{a: 1}",
            "01",
            "+1",
            "1.",
            ".5",
            "1e",
            "-",
            "--1",
            "tru",
            "nul",
            "'a'",
            "\"a",
            "\"\\x\"",
            "\"\n\"",
            "\"\\ud800\"",
            "1 2",
            "[1 2]",
            "{\"a\" 1}",
            "\u{a0}1",
            "nan",
            "// x\n1",
            "\"\\",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let text = "{\"a\": 302934307671667531413257853548643485645, \"b\": [NaN, -Infinity, \"NaN\", 0.10]}";
        let canonical = "{\"a\":302934307671667531413257853548643485645,\"b\":[nan,-inf,\"NaN\",0.1]}";
        assert_eq!(parse(text).unwrap().canonical(), canonical);
    }

    #[test]
    fn faults_name_their_place() {
        let why = |text: &str| parse(text).unwrap_err().why;
        assert_eq!(why("{\n\"a\": 1,\n  \"a\": 2}"), "duplicate key `a` at line 3 column 3");
        assert_eq!(why("{\"a\": x}"), "a value is expected at line 1 column 7");
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(&deep(MAX_DEPTH)).is_ok());
        assert!(why(&deep(MAX_DEPTH + 1)).contains("nested more than 64 levels"));
    }

    proptest! {
        #[test]
        fn it_reads_exactly_what_serde_json_reads(text in "[\\[\\]{}:,\"\\\\ 0-9.eE+truefalsn-]{0,12}") {
            let (ours, theirs) = (parse(&text), serde_json::from_str::<Json>(&text));
            // A key that occurs twice is an error only here, a number beyond a double only there.
            let allowed = match (&ours, &theirs) {
                (Ok(ours), Ok(theirs)) => ours.to_json() == *theirs || text.contains("-0") || text.len() > 15,
                (Err(fault), Ok(_)) => fault.why.contains("duplicate key"),
                (Ok(_), Err(error)) => error.to_string().contains("number out of range"),
                (Err(_), Err(_)) => true,
            };
            prop_assert!(allowed, "{:?} {:?}", ours, theirs);
        }

        #[test]
        fn no_text_causes_a_panic(text: String) {
            drop(parse(&text));
        }
    }
}
