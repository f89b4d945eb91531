//! Detects file names that differ only in case: a case-insensitive file system keeps just one of them.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::{
    error::Result,
    fs::{Dir, Root},
    path::RepoPath,
    progress::Progress,
    workspace::Workspace,
};

/// Warns of paths that are the same file on a case-insensitive file system. The disk is asked only if there
/// are such paths.
pub fn warn<'p>(
    files: &Root,
    paths: impl Iterator<Item = &'p RepoPath>,
    progress: &dyn Progress,
) -> Result<()> {
    let found = collisions(paths);
    if found.is_empty() || !files.dir(&RepoPath::root())?.is_case_insensitive()? {
        return Ok(());
    }
    for (first, second) in found {
        progress.warn(&format!(
            "`{first}` and `{second}` are the same name on this file system: only one of them will exist here"
        ));
    }
    Ok(())
}

impl Workspace<'_> {
    /// Returns true if names that differ in case alone may be one file here. The disk is asked once.
    pub(super) fn is_case_insensitive(&self) -> Result<bool> {
        if let Some(known) = self.case_insensitive.get() {
            return Ok(*known);
        }
        let found = self.repo.files.dir(&RepoPath::root())?.is_case_insensitive().unwrap_or(false);
        Ok(*self.case_insensitive.get_or_init(|| found))
    }
}

/// The exact spellings of the names in a folder.
pub struct SpelledNames(BTreeSet<Vec<u8>>);

impl SpelledNames {
    /// Lists the names in a folder.
    pub fn read(dir: &Dir) -> Result<Self> {
        Ok(Self(dir.names()?.into_iter().map(|it| it.0).collect()))
    }

    /// Returns true if a file with another spelling of `name` exists, which nothing planned to overwrite;
    /// otherwise reserves `name`.
    pub fn is_taken(&mut self, dir: &Dir, name: &[u8]) -> bool {
        let taken = !self.0.contains(name) && dir.stat(name).is_ok_and(|it| it.is_some());
        if !taken {
            self.0.insert(name.to_vec());
        }
        taken
    }
}

/// Returns paths that differ in case alone, each after the earlier path that it would replace.
fn collisions<'p>(paths: impl Iterator<Item = &'p RepoPath>) -> Vec<(&'p RepoPath, &'p RepoPath)> {
    // Keyed by hash to save memory; equal hashes are rare and compared in full.
    let mut seen: HashMap<u64, Vec<&RepoPath>> = HashMap::new();
    let mut found = Vec::new();
    for path in paths {
        let folded = fold_case(path);
        let mut hasher = DefaultHasher::new();
        folded.hash(&mut hasher);
        let same = seen.entry(hasher.finish()).or_default();
        found.extend(
            same.iter()
                .find(|other| **other != path && fold_case(other) == folded)
                .map(|other| (*other, path)),
        );
        same.push(path);
    }
    found
}

fn fold_case(path: &RepoPath) -> Vec<u8> {
    match std::str::from_utf8(path.bytes()) {
        Ok(text) if !text.is_ascii() => text.to_lowercase().into_bytes(),
        _ => path.bytes().to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(paths: &[&[u8]]) -> Vec<String> {
        let paths: Vec<RepoPath> = paths.iter().map(|path| RepoPath::from_bytes(path).unwrap()).collect();
        collisions(paths.iter()).into_iter().map(|(first, second)| format!("{first} {second}")).collect()
    }

    #[test]
    fn another_spelling_of_a_name_is_taken() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Root::open(temp.path()).unwrap().dir(&RepoPath::root()).unwrap();
        crate::fs::create_dir(&temp.path().join("a")).unwrap();
        let mut spelled = SpelledNames::read(&dir).unwrap();
        // Simulates another spelling of an existing name.
        crate::fs::create_dir(&temp.path().join("b")).unwrap();
        assert!(!spelled.is_taken(&dir, b"a") && spelled.is_taken(&dir, b"b"));
        assert!(!spelled.is_taken(&dir, b"c"));
        crate::fs::create_dir(&temp.path().join("c")).unwrap();
        assert!(!spelled.is_taken(&dir, b"c"), "a name may be written twice");
    }

    #[test]
    fn names_that_differ_in_case_alone_are_found() {
        assert_eq!(found(&[b"d/A", b"d/a", b"d/b", b"a"]), ["d/A d/a"]);
        assert_eq!(found(&["d/Ä.jpg".as_bytes(), "d/ä.JPG".as_bytes()]), ["d/Ä.jpg d/ä.JPG"]);
        assert_eq!(found(&[b"x\xff", b"X\xff", b"x\xfe"]), ["x%FF X%FF"]);
        assert_eq!(found(&[b"D/x", b"d/x", b"d/X", b"d/y"]), ["D/x d/x", "D/x d/X"]);
        assert!(found(&[b"a", b"b", b"ab", b"a"]).is_empty());
    }
}
