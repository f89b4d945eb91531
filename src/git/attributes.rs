//! Refuses files that Git would change on their way into a commit: by a filter (`filter=…` in
//! `.gitattributes`), or from another encoding (`working-tree-encoding=…`).
//!
//! mlx reads pointers and lockfiles from commits, so a commit has to hold them as they are. The attributes
//! are read by `gix`: `git check-attr` is a program to start, which `status` must not and need not do.

use std::collections::BTreeMap;

use gix::{
    attrs::StateRef, bstr::ByteSlice as _, index::entry::Mode, worktree::stack::state::attributes::Source,
};

use crate::{
    error::{Error, Kind, Result},
    git::{Git, from_gix, rule_files::ATTRIBUTES},
    path::RepoPath,
};

const FILTER: &str = "filter";
const ENCODING: &str = "working-tree-encoding";

/// An attribute by which Git changes a file on its way into a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    attribute: String,
    value: String,
}

impl Git {
    /// Fails if one of `files`, which need not exist, would be changed.
    pub fn check_unfiltered(&self, files: &[RepoPath]) -> Result<()> {
        self.conversions(files)?
            .first_key_value()
            .map_or(Ok(()), |(file, it)| Err(conversion_error(file, it)))
    }

    /// Returns those of `files` that Git would change. Empty if the attributes cannot be read, or reading
    /// could block.
    pub fn conversions(&self, files: &[RepoPath]) -> Result<BTreeMap<RepoPath, Conversion>> {
        let mut found = BTreeMap::new();
        if files.is_empty() || !ATTRIBUTES.can_be_read(self, files.iter()) {
            return Ok(found);
        }
        let index = from_gix(self.repo.index_or_empty(), || "cannot read Git's index".into())?;
        let Ok(mut stack) = self.repo.attributes_only(&index, Source::WorktreeThenIdMapping) else {
            return Ok(found);
        };
        let mut matches = stack.selected_attribute_matches([FILTER, ENCODING]);
        for file in files {
            let Ok(place) = stack.at_entry(file.bytes().as_bstr(), Some(Mode::FILE)) else { continue };
            place.matching_attributes(&mut matches);
            let all = matches.iter_selected().map(|found| found.assignment);
            let all = all.filter_map(|found| conversion(found.name.as_str(), found.state));
            found.extend(all.map(|conversion| (file.clone(), conversion)));
        }
        Ok(found)
    }
}

/// Returns the conversion that an attribute of this state asks for.
fn conversion(attribute: &str, state: StateRef<'_>) -> Option<Conversion> {
    let value = match state {
        StateRef::Value(name) => name.as_bstr().to_string(),
        StateRef::Set if attribute == FILTER => "set".to_owned(),
        StateRef::Set | StateRef::Unset | StateRef::Unspecified => return None,
    };
    let is_plain = attribute == ENCODING && ["utf-8", "utf8"].contains(&value.to_lowercase().as_str());
    (!is_plain).then(|| Conversion { attribute: attribute.to_owned(), value })
}

/// Returns the error for a file that Git would change.
pub fn conversion_error(file: &RepoPath, Conversion { attribute, value }: &Conversion) -> Error {
    let how = if attribute == FILTER {
        format!("`{file}` passes the Git filter `{value}`")
    } else {
        format!("Git converts `{file}` (`{attribute}={value}`)")
    };
    let name = String::from_utf8_lossy(file.name()).into_owned();
    let line = format!("`{} -{attribute}`", attribute_pattern(&name));
    Error::new(Kind::Conflict, format!("{how}, so commits would not hold it as it is"))
        .hint(format!("exempt it: add the line {line} to `.gitattributes`"))
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
    fn files_that_git_would_change_are_found() {
        let temp = tempfile::tempdir().unwrap();
        gix::init(temp.path()).unwrap();
        let root = fs::Root::open(temp.path()).unwrap();
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        let write =
            |file: &str, text: &str| root.write(&path(file), text.as_bytes(), fs::Sync::Later).unwrap();
        write(".gitattributes", "*.mlx filter=lfs\nunset.mlx -filter\nnone.mlx !filter\nset.mlx filter\n");
        write("sub/.gitattributes", "*.mlx filter=crypt\n*.lock working-tree-encoding=UTF-16\n");
        write("plain/.gitattributes", "*.lock working-tree-encoding=utf-8\n");
        let names = ["a.mlx", "unset.mlx", "none.mlx", "set.mlx", "a.lock", "sub/unset.mlx", "sub/a.lock"];
        let files = names.into_iter().chain(["plain/a.lock"]).map(path).collect::<Vec<_>>();
        let found = Git::discover(temp.path()).unwrap().conversions(&files).unwrap();
        let found: Vec<_> =
            found.iter().map(|(file, it)| (file.to_text(), &it.attribute[..], &it.value[..])).collect();
        let expected = [
            ("a.mlx", FILTER, "lfs"),
            ("set.mlx", FILTER, "set"),
            ("sub/a.lock", ENCODING, "UTF-16"),
            ("sub/unset.mlx", FILTER, "crypt"),
        ];
        assert_eq!(found, expected.map(|(file, attribute, value)| (file.to_owned(), attribute, value)));
    }

    #[test]
    fn a_name_that_a_pattern_cannot_hold_is_left_to_its_suffix() {
        assert_eq!(["d.mlx", "a b.mlx", "mlx.lock"].map(attribute_pattern), ["d.mlx", "*.mlx", "mlx.lock"]);
    }
}
