//! Names that differ in case alone: on some file systems one of them would be lost.

use std::collections::{HashMap, HashSet};

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

/// Pairs of paths that differ in case alone, by folders too; each path is paired with the first of its kind.
fn collisions<'p>(paths: impl Iterator<Item = &'p RepoPath>) -> Vec<(RepoPath, RepoPath)> {
    let (mut seen, mut kept) = (HashSet::new(), HashMap::new());
    let mut found = Vec::new();
    let mut reported = HashSet::new();
    for path in paths {
        let mut here = path.clone();
        while !here.is_root() && seen.insert(here.clone()) {
            let first = kept.entry(fold(&here)).or_insert_with(|| here.clone());
            // Two folders say it for what is in them.
            if *first != here && reported.insert(here.clone()) {
                found.push((first.clone(), here.clone()));
            }
            here = here.parent().unwrap_or_default();
        }
    }
    let inner: HashSet<RepoPath> = found.iter().map(|it| it.1.clone()).collect();
    found.retain(|it| it.1.parent().is_none_or(|it| !inner.contains(&it)));
    found.sort();
    found
}

fn fold(path: &RepoPath) -> Vec<u8> {
    match std::str::from_utf8(path.bytes()) {
        Ok(text) => text.to_lowercase().into_bytes(),
        Err(_) => path.bytes().to_ascii_lowercase(),
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
        assert!(found(&[b"a", b"b", b"ab"]).is_empty());
    }

    #[test]
    fn folders_speak_for_what_is_in_them() {
        assert_eq!(found(&[b"D/x", b"d/x", b"d/y"]), ["D d"]);
    }
}
