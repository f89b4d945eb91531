//! Numbers of any length, compared exactly.
//!
//! A number is kept as its canonical decimal text, so that two are equal exactly when their texts are:
//!
//! | kind | text | examples |
//! |---|---|---|
//! | integer | sign and digits without leading zeros | `7`, `-0`, `302934307671667531413257853548` |
//! | double | as `serde_json` prints it, where that is exact | `0.1`, `-0.0`, `1e+23` |
//! | other decimal | one digit, the fraction, the exponent | `1.00000000000000000001e-1` |
//!
//! `0.10` is `0.1`; `1` is not `1.0`, `0.0` not `-0.0`, `0` not `-0`.

use std::fmt;

/// Most digits of an integer in another base than ten, whose conversion takes the square of the digits.
const MAX_DIGITS: usize = 4000;

/// An integer or a finite decimal number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number(String);

/// The value of a decimal text: `digits` × 10^`exponent`, without zeros at either end of the digits.
#[derive(PartialEq, Eq)]
struct Decimal {
    is_negative: bool,
    digits: String,
    exponent: i64,
}

impl Number {
    /// Parses decimal notation of any length: sign, digits, fraction, exponent. `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let decimal = Decimal::parse(text)?;
        if !text.contains(['.', 'e', 'E']) {
            let digits = text.trim_start_matches(['+', '-']).trim_start_matches('0');
            let sign = if decimal.is_negative { "-" } else { "" };
            return Some(Self(format!("{sign}{}", if digits.is_empty() { "0" } else { digits })));
        }
        let double = text.parse().ok().and_then(Self::from_f64);
        let is_exact = |number: &Self| Decimal::parse(&number.0).as_ref() == Some(&decimal);
        Some(double.filter(is_exact).unwrap_or_else(|| Self(decimal.scientific())))
    }

    /// Parses the digits of an integer in another base.
    pub fn from_radix(digits: &str, radix: u32) -> Option<Self> {
        let (sign, digits) = match digits.strip_prefix('-') {
            Some(rest) => ("-", rest),
            None => ("", digits.trim_start_matches('+')),
        };
        if digits.is_empty() || digits.len() > MAX_DIGITS {
            return None;
        }
        // Decimal digits, the lowest first.
        let mut decimal = vec![0_u32];
        for digit in digits.chars() {
            let mut carry = digit.to_digit(radix)?;
            for place in &mut decimal {
                let sum = *place * radix + carry;
                (*place, carry) = (sum % 10, sum / 10);
            }
            while carry > 0 {
                decimal.push(carry % 10);
                carry /= 10;
            }
        }
        let text: String = decimal.iter().rev().filter_map(|&digit| char::from_digit(digit, 10)).collect();
        Self::parse(&format!("{sign}{text}"))
    }

    /// Returns a finite double; `None` for NaN and infinities.
    pub fn from_f64(value: f64) -> Option<Self> {
        serde_json::Number::from_f64(value).map(|number| Self(number.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_integer(&self) -> bool {
        !self.0.contains(['.', 'e'])
    }

    /// Returns the nearest double; `None` if that is infinite.
    pub fn as_f64(&self) -> Option<f64> {
        self.0.parse().ok().filter(|number: &f64| number.is_finite())
    }

    /// Returns the double that is printed as this number; `None` if the nearest one is another number.
    pub fn as_exact_f64(&self) -> Option<f64> {
        let nearest = self.as_f64()?;
        let printed = Self::from_f64(nearest).and_then(|number| Decimal::parse(&number.0));
        (printed == Decimal::parse(&self.0)).then_some(nearest)
    }

    /// Returns the number as `serde_json` holds it; `None` if it would lose digits there.
    pub fn to_json(&self) -> Option<serde_json::Number> {
        let number = if !self.is_integer() {
            self.as_f64().and_then(serde_json::Number::from_f64)
        } else if self.0.starts_with('-') {
            self.0.parse::<i64>().ok().map(serde_json::Number::from)
        } else {
            self.0.parse::<u64>().ok().map(serde_json::Number::from)
        };
        number.filter(|number| number.to_string() == self.0)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (is_negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let short = all.trim_end_matches('0');
        let zeros = i64::try_from(all.len() - short.len()).ok()?;
        let places = i64::try_from(fraction.len()).ok()?;
        let digits = short.trim_start_matches('0').to_owned();
        // Zero has no digits, whatever its exponent.
        let exponent =
            if digits.is_empty() { 0 } else { exponent.checked_sub(places)?.checked_add(zeros)? };
        Some(Self { is_negative, digits, exponent })
    }

    fn scientific(&self) -> String {
        let (first, rest) = self.digits.split_at(1.min(self.digits.len()));
        let rest = if rest.is_empty() { "0" } else { rest };
        let exponent = i128::from(self.exponent) + self.digits.len() as i128 - 1;
        format!("{}{first}.{rest}e{exponent}", if self.is_negative { "-" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(typed: &str) -> Option<String> {
        Number::parse(typed).map(|number| number.0)
    }

    #[test]
    fn numbers_are_equal_exactly_when_their_values_and_types_are() {
        for (one, two, is_equal) in [
            ("0.10", "0.1", true),
            ("1e2", "100.0", true),
            ("1.50E+3", "1500.0", true),
            ("007", "7", true),
            ("+7", "7", true),
            (".5", "0.5", true),
            ("5.", "5.0", true),
            ("0e99", "0.0", true),
            ("1e400", "10e399", true),
            ("1", "1.0", false),
            ("0.0", "-0.0", false),
            ("0", "-0", false),
            ("302934307671667531413257853548643485645", "302934307671667531413257853548643485646", false),
            ("0.1", "0.100000000000000000001", false),
            ("1e400", "1e401", false),
            ("1e-400", "0.0", false),
        ] {
            assert_eq!(text(one) == text(two), is_equal, "{one} {two}: {:?} {:?}", text(one), text(two));
            assert!(text(one).is_some(), "{one}");
        }
    }

    #[test]
    fn only_decimal_notation_is_a_number() {
        for wrong in
            ["", "-", ".", "e5", "1e", "1_000", "0x1F", "1.2.3", "--1", "nan", "1e9999999999999999999"]
        {
            assert_eq!(text(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn other_bases_become_decimal() {
        let from = |digits: &str, radix| Number::from_radix(digits, radix).map(|number| number.0);
        assert_eq!(from("1F", 16).unwrap(), "31");
        assert_eq!(from("-17", 8).unwrap(), "-15");
        assert_eq!(from(&"f".repeat(32), 16).unwrap(), u128::MAX.to_string());
        assert_eq!(from("19", 8), None);
        assert_eq!(from(&"1".repeat(MAX_DIGITS + 1), 2), None);
    }

    #[test]
    fn serde_json_gets_only_the_numbers_that_it_holds_exactly() {
        for held in ["1", "-5", "18446744073709551615", "-9223372036854775808", "0.1", "-0.0", "1e+23"] {
            assert_eq!(Number::parse(held).unwrap().to_json().unwrap().to_string(), held);
        }
        for lost in ["18446744073709551616", "-0", "1e400", "0.100000000000000000001"] {
            assert_eq!(Number::parse(lost).unwrap().to_json(), None, "{lost}");
        }
    }

    proptest! {
        #[test]
        fn numbers_of_64_bits_keep_their_json_text(double: f64, signed: i64, unsigned: u64) {
            let json = serde_json::Number::from_f64(double).map(|number| number.to_string());
            prop_assert_eq!(json.as_deref().and_then(text), json);
            prop_assert_eq!(text(&signed.to_string()), Some(signed.to_string()));
            prop_assert_eq!(text(&unsigned.to_string()), Some(unsigned.to_string()));
        }

        #[test]
        fn the_canonical_text_is_its_own(typed in "[-+]?[0-9]{1,30}(\\.[0-9]{0,30})?([eE][-+]?[0-9]{1,3})?") {
            let once = text(&typed).unwrap();
            prop_assert_eq!(text(&once), Some(once.clone()));
        }

        #[test]
        fn zeros_that_mean_nothing_change_nothing(digits in "[1-9][0-9]{0,40}", zeros in 0_usize..20) {
            let padded = format!("{}.{digits}{}", "0".repeat(zeros + 1), "0".repeat(zeros));
            prop_assert_eq!(text(&padded), text(&format!("0.{digits}")));
            prop_assert_eq!(text(&format!("{}{digits}", "0".repeat(zeros))), Some(digits));
        }

        #[test]
        fn another_last_digit_is_another_number(digits in "[1-9][0-9]{0,60}", last in 0_u8..9) {
            let with = |last: u8| text(&format!("{digits}{last}"));
            prop_assert_ne!(with(last), with(last + 1));
            let with = |last: u8| text(&format!("0.{digits}{last}"));
            prop_assert_ne!(with(last), with(last + 1));
        }
    }
}
