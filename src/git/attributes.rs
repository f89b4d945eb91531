//! Refuses files that a Git filter (`filter=…` in `.gitattributes`) would change on their way into a commit.
//!
//! mlx reads pointers and lockfiles from commits, so a commit has to hold them as they are. The attributes
//! are read by `gix`: `git check-attr` is a program to start, which `status` must not and need not do.

use std::collections::BTreeMap;

use gix::{
    attrs::StateRef, bstr::ByteSlice as _, index::entry::Mode, worktree::stack::state::attributes::Source,
};

use crate::{
    error::{Error, Kind, Result},
    git::{Git, from_gix},
    path::RepoPath,
};

impl Git {
    /// Fails if one of `files`, which need not exist, has a filter.
    pub fn check_unfiltered(&self, files: &[RepoPath]) -> Result<()> {
        self.filters(files)?
            .first_key_value()
            .map_or(Ok(()), |(file, filter)| Err(filter_error(file, filter)))
    }

    /// Returns the filters of those of `files` that have one. Empty if the attributes cannot be read, or
    /// reading could block.
    pub fn filters(&self, files: &[RepoPath]) -> Result<BTreeMap<RepoPath, String>> {
        let mut found = BTreeMap::new();
        if files.is_empty() || !self.can_read_rules(files.iter(), b".gitattributes") {
            return Ok(found);
        }
        let index = from_gix(self.repo.index_or_empty(), || "cannot read Git's index".into())?;
        let Ok(mut stack) = self.repo.attributes_only(&index, Source::WorktreeThenIdMapping) else {
            return Ok(found);
        };
        let mut matches = stack.selected_attribute_matches(["filter"]);
        for file in files {
            let Ok(place) = stack.at_entry(file.bytes().as_bstr(), Some(Mode::FILE)) else { continue };
            place.matching_attributes(&mut matches);
            let states = matches.iter_selected().map(|found| filter_name(found.assignment.state));
            found.extend(states.flatten().map(|filter| (file.clone(), filter)));
        }
        Ok(found)
    }
}

/// Returns the filter that the state of the attribute `filter` names.
fn filter_name(state: StateRef<'_>) -> Option<String> {
    match state {
        StateRef::Value(name) => Some(name.as_bstr().to_string()),
        StateRef::Set => Some("set".to_owned()),
        StateRef::Unset | StateRef::Unspecified => None,
    }
}

/// Returns the error for a file that has a filter.
pub fn filter_error(file: &RepoPath, filter: &str) -> Error {
    let message = format!("`{file}` passes the Git filter `{filter}`, so commits would not hold it as it is");
    let name = String::from_utf8_lossy(file.name()).into_owned();
    let line = format!("`{} -filter`", attribute_pattern(&name));
    Error::new(Kind::Conflict, message).hint(format!("exempt it: add the line {line} to `.gitattributes`"))
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
    use crate::fs;

    #[test]
    fn files_with_a_filter_are_found() {
        let temp = tempfile::tempdir().unwrap();
        gix::init(temp.path()).unwrap();
        let root = fs::Root::open(temp.path()).unwrap();
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        let write =
            |file: &str, text: &str| root.write(&path(file), text.as_bytes(), fs::Sync::Later).unwrap();
        write(".gitattributes", "*.mlx filter=lfs\nunset.mlx -filter\nnone.mlx !filter\nset.mlx filter\n");
        write("sub/.gitattributes", "*.mlx filter=crypt\n");
        let files = ["a.mlx", "unset.mlx", "none.mlx", "set.mlx", "a.lock", "sub/unset.mlx"].map(path);
        let found = Git::discover(temp.path()).unwrap().filters(&files).unwrap();
        let expected = [("a.mlx", "lfs"), ("set.mlx", "set"), ("sub/unset.mlx", "crypt")];
        assert_eq!(found, expected.map(|(file, filter)| (path(file), filter.to_owned())).into());
    }

    #[test]
    fn a_name_that_a_pattern_cannot_hold_is_left_to_its_suffix() {
        assert_eq!(["d.mlx", "a b.mlx", "mlx.lock"].map(attribute_pattern), ["d.mlx", "*.mlx", "mlx.lock"]);
    }
}
