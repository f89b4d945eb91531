//! Refuses files that a Git filter (`filter=…` in `.gitattributes`) would change on their way into a commit.
//!
//! mlx reads pointers and lockfiles from commits, so a commit has to hold them as they are.

use std::collections::BTreeMap;

use crate::{
    error::{Error, Kind, Result},
    git::Git,
    path::RepoPath,
};

impl Git {
    /// Fails if one of `files`, which need not exist, has a filter.
    pub fn check_unfiltered(&self, files: &[RepoPath]) -> Result<()> {
        self.filters(files)?
            .first_key_value()
            .map_or(Ok(()), |(file, filter)| Err(filter_error(file, filter)))
    }

    /// Returns the filters of those of `files` that have one; empty if `git` cannot be run.
    pub fn filters(&self, files: &[RepoPath]) -> Result<BTreeMap<RepoPath, String>> {
        let names: Vec<u8> = files.iter().flat_map(|file| [file.bytes(), &[0]].concat()).collect();
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let output = self.query(&["check-attr", "-z", "--stdin", "filter"], &names).unwrap_or_default();
        parse_filters(&output)
    }
}

/// Returns the error for a file that has a filter.
pub fn filter_error(file: &RepoPath, filter: &str) -> Error {
    let message = format!("`{file}` passes the Git filter `{filter}`, so commits would not hold it as it is");
    let name = String::from_utf8_lossy(file.name()).into_owned();
    let line = format!("`{} -filter`", attribute_pattern(&name));
    Error::new(Kind::Conflict, message).hint(format!("exempt it: add the line {line} to `.gitattributes`"))
}

/// Reads the paths that have a filter, with their filters, from the output of `git check-attr -z filter`.
fn parse_filters(output: &[u8]) -> Result<BTreeMap<RepoPath, String>> {
    let fields: Vec<&[u8]> = output.split(|byte| *byte == 0).collect();
    let filtered =
        fields.as_chunks::<3>().0.iter().filter(|row| !matches!(row[2], b"unspecified" | b"unset"));
    let filter = |row: &[&[u8]; 3]| String::from_utf8_lossy(row[2]).into_owned();
    filtered.map(|row| Ok((RepoPath::from_bytes(row[0])?, filter(row)))).collect()
}

/// Returns the pattern for a file in `.gitattributes`: names that it could not hold are left to the suffix.
fn attribute_pattern(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    match name.rsplit_once('.') {
        Some((_, suffix)) if !name.chars().all(is_plain) => format!("*.{suffix}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_a_filter_are_found() {
        let found = |output: &[u8]| -> Vec<(String, String)> {
            parse_filters(output)
                .unwrap()
                .into_iter()
                .map(|(file, filter)| (file.to_text(), filter))
                .collect()
        };
        let output = b"a.mlx\0filter\0unspecified\0b.mlx\0filter\0unset\0c.mlx\0filter\0lfs\0";
        assert_eq!(found(output), [("c.mlx".to_owned(), "lfs".to_owned())]);
        assert_eq!(found(b"a.mlx\0filter\0unspecified\0"), []);
        assert_eq!(found(b""), []);
    }

    #[test]
    fn a_name_that_a_pattern_cannot_hold_is_left_to_its_suffix() {
        assert_eq!(["d.mlx", "a b.mlx", "mlx.lock"].map(attribute_pattern), ["d.mlx", "*.mlx", "mlx.lock"]);
    }
}
