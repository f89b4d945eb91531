//! What a command has to say.

use std::fmt::Display;

use serde_json::Value;

use crate::error::Error;

/// People read `Display`, programs read `json`, shells read `found` and `failure`.
pub trait Report: Display {
    fn json(&self) -> Value;

    /// True when a check did its job and found something. Exit 10.
    fn found(&self) -> bool {
        false
    }

    /// What went wrong although there is something to report.
    fn failure(&self) -> Option<&Error> {
        None
    }
}

/// `1 file`, `2 files`.
pub fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// `12.3 MB`: decimal, as disks are sold.
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

/// A word as a shell takes it.
pub fn shell_word(text: &str) -> String {
    let plain = |it: char| it.is_ascii_alphanumeric() || "-_./:=,+@%".contains(it);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A table without a frame, as wide as it needs; what may be long belongs into the last column, where a narrow
/// terminal breaks it without breaking the others.
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
    fn a_shell_takes_words_as_one() {
        let words = ["data/a-1.mlx", ":/x", "my photos", "it's", "$HOME", ""].map(shell_word);
        assert_eq!(words, ["data/a-1.mlx", ":/x", "'my photos'", r"'it'\''s'", "'$HOME'", "''"]);
    }

    #[test]
    fn sizes_read_well() {
        let texts: Vec<_> = [0, 1, 999, 1000, 999_949, 999_950, 1_234_567_890].map(bytes).into();
        assert_eq!(texts, ["0 bytes", "1 byte", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "1.2 GB"]);
    }
}
