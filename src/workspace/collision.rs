//! Names that differ in case alone: on some file systems one of them would be lost.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::{
    error::Result,
    fs::{Dir, Root},
    path::RepoPath,
    progress::Progress,
};

/// Warns of files that this file system would take for one; asks the disk only when there are such names.
pub fn warn<'p>(
    files: &Root,
    paths: impl Iterator<Item = &'p RepoPath>,
    progress: &dyn Progress,
) -> Result<()> {
    let found = collisions(paths);
    if found.is_empty() || !files.dir(&RepoPath::root())?.folds_case()? {
        return Ok(());
    }
    for (first, second) in found {
        progress.warn(&format!(
            "`{first}` and `{second}` are one name on this file system: only one of them will be here"
        ));
    }
    Ok(())
}

/// The names in a folder as they are spelled.
pub struct SpelledNames(BTreeSet<Vec<u8>>);

impl SpelledNames {
    pub fn read(dir: &Dir) -> Result<Self> {
        Ok(Self(dir.names()?.into_iter().map(|it| it.0).collect()))
    }

    /// Whether the place of a name has a file that is spelled otherwise, and which nobody meant to overwrite; if not,
    /// it is this name's from now on.
    pub fn is_taken(&mut self, dir: &Dir, name: &[u8]) -> bool {
        let taken = !self.0.contains(name) && dir.stamp(name).is_ok_and(|it| it.is_some());
        if !taken {
            self.0.insert(name.to_vec());
        }
        taken
    }
}

/// Paths that differ in case alone, each with the one before it that it would replace.
fn collisions<'p>(paths: impl Iterator<Item = &'p RepoPath>) -> Vec<(&'p RepoPath, &'p RepoPath)> {
    // Hashes alone are kept: of a million paths hardly any two meet.
    let mut seen: HashMap<u64, Vec<&RepoPath>> = HashMap::new();
    let mut found = Vec::new();
    for path in paths {
        let folded = fold_case(path);
        let mut hasher = DefaultHasher::new();
        folded.hash(&mut hasher);
        let same = seen.entry(hasher.finish()).or_default();
        found.extend(same.iter().find(|it| **it != path && fold_case(it) == folded).map(|it| (*it, path)));
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
        let paths: Vec<RepoPath> = paths.iter().map(|it| RepoPath::from_bytes(it).unwrap()).collect();
        collisions(paths.iter()).into_iter().map(|it| format!("{} {}", it.0, it.1)).collect()
    }

    #[test]
    fn a_place_is_taken_by_what_was_not_seen_under_its_name() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Root::open(temp.path()).unwrap().dir(&RepoPath::root()).unwrap();
        crate::fs::create_dir(&temp.path().join("a")).unwrap();
        let mut spelled = SpelledNames::read(&dir).unwrap();
        // As `b` would be if it were another spelling of what is here.
        crate::fs::create_dir(&temp.path().join("b")).unwrap();
        assert!(!spelled.is_taken(&dir, b"a") && spelled.is_taken(&dir, b"b"));
        assert!(!spelled.is_taken(&dir, b"c"));
        crate::fs::create_dir(&temp.path().join("c")).unwrap();
        assert!(!spelled.is_taken(&dir, b"c"), "it is written twice");
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
