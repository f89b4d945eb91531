//! The `Report` trait that every command's result implements, and the formatting that reports share: counts,
//! byte sizes, shell quoting and tables.

use std::fmt::Display;

use serde_json::Value;

use crate::error::Error;

/// Result of a command. `Display` is the text for people, `json` the output for programs; `found` and
/// `failure` decide the exit code.
pub trait Report: Display {
    fn json(&self) -> Value;

    /// Returns true if a check ran and found something. Exit 10.
    fn has_findings(&self) -> bool {
        false
    }

    /// Returns the error that ended the work although there are results to report.
    fn failure(&self) -> Option<&Error> {
        None
    }
}

/// Formats a number with its noun: `1 file`, `2 files`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Formats a size in decimal units, as disks are sold: `12.3 MB`.
pub fn bytes(number: u64) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { count(number, "byte") } else { format!("{value:.1} {}", units[unit]) }
}

/// Quotes a text for a POSIX shell, if it needs quotes.
pub fn shell_quote(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Quotes a name for a shell. Line breaks, other control characters and bytes that are not text are escaped.
pub fn shell_quote_bytes(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(char::is_control) => return shell_quote(text),
        _ => {}
    }
    let escape = |byte: &u8| match byte {
        b'\n' => "\\n".to_owned(),
        b'\'' | b'\\' => format!("\\{}", char::from(*byte)),
        b' '..=b'~' => char::from(*byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    format!("$'{}'", name.iter().map(escape).collect::<String>())
}

/// Builds a table without a frame, as wide as its content. Long values belong in the last column, where a
/// narrow terminal wraps them without breaking the other columns.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(head.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
    table.add_rows(rows);
    let last = table.column_count().saturating_sub(1);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if at == last { 0 } else { 2 }));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_where_a_shell_needs_it() {
        let words = ["data/a-1.mlx", ":/x", "my photos", "it's", "$HOME", ""].map(shell_quote);
        assert_eq!(words, ["data/a-1.mlx", ":/x", "'my photos'", r"'it'\''s'", "'$HOME'", "''"]);
    }

    #[test]
    fn sizes_are_rounded_to_one_decimal_of_the_largest_unit() {
        let texts: Vec<_> = [0, 1, 999, 1000, 999_949, 999_950, 1_234_567_890].map(bytes).into();
        assert_eq!(texts, ["0 bytes", "1 byte", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "1.2 GB"]);
    }
}
