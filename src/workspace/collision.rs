//! Names that differ in case alone: on some file systems one of them would be lost.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::{error::Result, fs::Root, path::RepoPath, progress::Progress};

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
    for (one, two) in found {
        progress.warn(&format!(
            "`{one}` and `{two}` are one name on this file system: only one of them will be here"
        ));
    }
    Ok(())
}

/// Paths that differ in case alone, each with the one before it that it would replace.
fn collisions<'p>(paths: impl Iterator<Item = &'p RepoPath>) -> Vec<(&'p RepoPath, &'p RepoPath)> {
    // Hashes alone are kept: of a million paths hardly any two meet.
    let mut seen: HashMap<u64, Vec<&RepoPath>> = HashMap::new();
    let mut found = Vec::new();
    for path in paths {
        let folded = fold(path);
        let mut hasher = DefaultHasher::new();
        folded.hash(&mut hasher);
        let same = seen.entry(hasher.finish()).or_default();
        found.extend(same.iter().find(|it| **it != path && fold(it) == folded).map(|it| (*it, path)));
        same.push(path);
    }
    found
}

fn fold(path: &RepoPath) -> Vec<u8> {
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
    fn names_that_differ_in_case_alone_are_found() {
        assert_eq!(found(&[b"d/A", b"d/a", b"d/b", b"a"]), ["d/A d/a"]);
        assert_eq!(found(&["d/Ä.jpg".as_bytes(), "d/ä.JPG".as_bytes()]), ["d/Ä.jpg d/ä.JPG"]);
        assert_eq!(found(&[b"x\xff", b"X\xff", b"x\xfe"]), ["x%FF X%FF"]);
        assert_eq!(found(&[b"D/x", b"d/x", b"d/X", b"d/y"]), ["D/x d/x", "D/x d/X"]);
        assert!(found(&[b"a", b"b", b"ab", b"a"]).is_empty());
    }
}
