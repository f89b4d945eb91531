//! Reader of TOML documents: numbers of any length, dates as literals.

use toml::de::{DeTable, DeValue};

use crate::document::{
    fault::{Fault, MAX_DEPTH, place},
    number::Number,
    value::Value,
};

/// Parses a TOML document.
pub fn parse(text: &str) -> Result<Value, Fault> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map(|span| place(text, floor_char(text, span.start)));
        match (error.message(), at) {
            (message, _) if message.contains("recurs") => Fault::too_deep(),
            (message, Some(at)) => Fault::new(format!("{message} at {at}")),
            (message, None) => Fault::new(message),
        }
    })?;
    convert_table(table.get_ref(), 1)
}

fn floor_char(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default()
}

fn convert_table(table: &DeTable<'_>, depth: usize) -> Result<Value, Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::too_deep());
    }
    let pairs = table.iter();
    let pairs = pairs.map(|(key, value)| Ok((key.get_ref().to_string(), convert(value.get_ref(), depth)?)));
    pairs.collect::<Result<_, _>>().map(Value::Table)
}

fn convert(value: &DeValue<'_>, depth: usize) -> Result<Value, Fault> {
    match value {
        DeValue::String(text) => Ok(Value::Text(text.to_string())),
        DeValue::Integer(integer) => {
            let (digits, radix) = (integer.as_str(), integer.radix());
            let number = if radix == 10 { Number::parse(digits) } else { Number::from_radix(digits, radix) };
            number
                .map(Value::Number)
                .ok_or_else(|| Fault::new(format!("the integer `{digits:.40}` is too long")))
        }
        DeValue::Float(float) => {
            let text = float.as_str();
            let non_finite = || text.parse().map(|double: f64| Value::from(double));
            Number::parse(text)
                .map(Value::Number)
                .map_or_else(non_finite, Ok)
                .map_err(|_| Fault::new(format!("`{text:.40}` is not a number")))
        }
        DeValue::Boolean(boolean) => Ok(Value::Bool(*boolean)),
        DeValue::Datetime(datetime) => Ok(Value::Literal(datetime.to_string())),
        DeValue::Array(_) if depth == MAX_DEPTH => Err(Fault::too_deep()),
        DeValue::Array(list) => list
            .iter()
            .map(|item| convert(item.get_ref(), depth + 1))
            .collect::<Result<_, _>>()
            .map(Value::List),
        DeValue::Table(table) => convert_table(table, depth + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact_and_dates_are_literals() {
        let text = "a = 302_934_307671667531413257853548643485645\nb = 0xffff_ffff_ffff_ffff_ffff\n\
                    c = 0.10\nd = -0.0\ne = 2024-01-01\nf = '2024-01-01'\ng = nan\nh = -inf\ni = 0o17\n\
                    j = 1e400\nk = +1_0.5\n";
        let canonical = "{\"a\":302934307671667531413257853548643485645,\"b\":1208925819614629174706175,\
                         \"c\":0.1,\"d\":-0.0,\"e\":2024-01-01,\"f\":\"2024-01-01\",\"g\":nan,\
                         \"h\":-inf,\"i\":15,\"j\":1.0e400,\"k\":10.5}";
        assert_eq!(parse(text).unwrap().canonical(), canonical);
    }

    #[test]
    fn faults_name_their_place_and_nesting_has_a_limit() {
        let why = |text: &str| parse(text).unwrap_err().why;
        assert_eq!(why("a = 1\na = 2\n"), "duplicate key at line 2 column 1");
        let wrong = "a = 'ä' b";
        assert!(why(wrong).ends_with("at line 1 column 9"), "{}", why(wrong));
        let deep = |levels: usize| format!("a = {}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(&deep(MAX_DEPTH - 1)).is_ok());
        for levels in [MAX_DEPTH, 10_000] {
            assert!(why(&deep(levels)).contains("nested more than 64 levels"), "{}", why(&deep(levels)));
        }
        assert!(why(&format!("[{}a]", "a.".repeat(10_000))).contains("nested more than 64 levels"));
    }
}
