//! Splits the text of a lockfile into its head and the table of each stage, so that two versions of it can
//! be compared table by table: most commits change few of them, and to parse TOML takes far longer.
//!
//! If each part is a TOML document of its own, their sequence is one, too, and says the same: no value
//! reaches from one part into the next. Left to the parser of the whole text is what could say something else
//! in company: a table in another place than at the start of a part, and two tables of one name.

/// Start of the first line of a stage's table.
const START: &str = "[stage.";

/// The parts of a lockfile.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parts<'t> {
    pub head: &'t str,
    /// The names of the stages as they are written, and their tables.
    pub tables: Vec<(&'t str, &'t str)>,
}

/// Splits a text before each line that starts a stage's table. Returns none if another table starts anywhere.
pub fn split(text: &str) -> Option<Parts<'_>> {
    let (mut parts, mut at, mut start, mut name) = (Parts::default(), 0, 0, None);
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with('[') {
            let next = line.strip_prefix(START)?.trim_end().strip_suffix(']')?;
            parts.add(name.replace(next), &text[start..at]);
            start = at;
        }
        at += line.len();
    }
    parts.add(name, &text[start..]);
    Some(parts)
}

impl<'t> Parts<'t> {
    fn add(&mut self, name: Option<&'t str>, text: &'t str) {
        match name {
            Some(name) => self.tables.push((name, text)),
            None => self.head = text,
        }
    }
}

/// Returns true if two tables are the same, up to empty lines behind them.
pub fn is_same(one: &str, other: &str) -> bool {
    one.trim_end_matches('\n') == other.trim_end_matches('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_split_before_each_table_and_nothing_is_lost() {
        let text = "# head\nformat = 1\n\n[stage.a]\nx = 1\n\n[stage.b]\ny = [1]";
        let parts = split(text).unwrap();
        assert_eq!(parts.head, "# head\nformat = 1\n\n");
        assert_eq!(parts.tables, [("a", "[stage.a]\nx = 1\n\n"), ("b", "[stage.b]\ny = [1]")]);
        assert_eq!(split("").unwrap(), Parts::default());
        assert_eq!(split("x").unwrap(), Parts { head: "x", tables: Vec::new() });
        assert!(is_same("[stage.a]\n", "[stage.a]\n\n\n") && !is_same("[stage.a]\n", "[stage.a]\n \n"));
    }

    #[test]
    fn other_tables_are_left_to_the_parser_of_the_whole() {
        for line in ["[stage]", "[[stage.a]]", "[stage.a] # x", " [stage.a]", "[other]", "  [1],", "[stage.a"]
        {
            assert_eq!(split(&format!("format = 1\n{line}\n")), None, "{line}");
        }
    }
}
