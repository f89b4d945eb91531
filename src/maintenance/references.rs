//! References in pointers and lockfiles: the objects and runs that one such file needs.
//!
//! A file in a commit that cannot be parsed cannot be fixed either: all digests written in it are kept. It
//! can need nothing else, unless a newer mlx wrote it, or a Git filter changed it.

use std::rc::Rc;

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
    fs,
    git::{BlobId, Git},
    path::RepoPath,
    pipeline::Lockfile,
    pointer::{Content, Pointer, READ_LIMIT, SUFFIX},
};

/// Size of the largest file of a filter that may stand for a pointer, in bytes.
const MAX_FILTERED_SIZE: usize = 1024;

/// References found in one pointer or lockfile.
#[derive(Default)]
pub struct FileReferences {
    /// Contents with their paths; `None` for a pointer, whose path follows from that of its file.
    pub contents: Vec<(Option<RepoPath>, Content)>,
    /// Inputs of runs, which may never have been stored.
    pub inputs: Vec<Digest>,
    pub runs: Vec<Digest>,
    /// Reason why only the digests in the file are known.
    pub salvaged: Option<String>,
    /// True if that is a merge conflict.
    pub conflict: bool,
    pub not_pointer: bool,
}

/// Reason why it is unknown what a file in Git needs.
pub struct Unreadable {
    pub text: String,
    pub hint: String,
}

/// A file in Git, as far as it could be read.
pub type ReadBlob = Rc<Result<FileReferences, Unreadable>>;

impl From<Error> for Unreadable {
    fn from(error: Error) -> Self {
        Self { hint: error.hint_text().unwrap_or("upgrade mlx").to_owned(), text: error.chain_text() }
    }
}

impl FileReferences {
    /// Returns true if nothing could be read from the file.
    pub fn is_without_facts(&self) -> bool {
        let is_empty = self.contents.is_empty() && self.inputs.is_empty() && self.runs.is_empty();
        is_empty && (self.not_pointer || self.salvaged.is_some())
    }
}

/// Reads a file of a commit. The outer error is Git's; the inner one is about the file's content.
pub fn read_committed(git: &Git, path: &RepoPath, blob: BlobId) -> Result<Result<FileReferences>> {
    let limit = if path.without_suffix(SUFFIX).is_some() { READ_LIMIT } else { fs::MAX_DOCUMENT_SIZE };
    Ok(parse_committed(path, git.read_small_blob(blob, limit)?.as_deref()))
}

/// Reads a file in Git, whose bytes are given unless it is larger than any such file.
fn parse_committed(path: &RepoPath, bytes: Option<&[u8]>) -> Result<FileReferences> {
    match bytes {
        Some(bytes) if is_filtered(path, bytes) => Err(filtered(path)),
        Some(bytes) => parse(path, bytes).or_else(|error| salvage(path, bytes, error)),
        None if path.without_suffix(SUFFIX).is_some() => Ok(FileReferences::default()),
        None => Err(too_large(path)),
    }
}

/// Reads a pointer or a lockfile of a worktree.
pub fn parse(path: &RepoPath, bytes: &[u8]) -> Result<FileReferences> {
    let mut found = FileReferences::default();
    if let Some(of) = path.without_suffix(SUFFIX) {
        found.not_pointer = !Pointer::looks_like_pointer(bytes);
        if !found.not_pointer {
            found.contents.push((None, Pointer::parse_here(of, bytes)?.content));
        }
        return Ok(found);
    }
    if bytes.len() as u64 > fs::MAX_DOCUMENT_SIZE {
        return Err(too_large(path));
    }
    for (_, record) in Lockfile::parse(path, bytes)?.records() {
        found.contents.extend(record.contents().map(|(path, content)| (Some(path.clone()), *content)));
        found.inputs.extend(record.inputs().map(|it| it.digest));
        found.runs.extend(record.keys());
    }
    Ok(found)
}

/// Returns everything that a file in Git which cannot be parsed may need: all digests in it.
fn salvage(path: &RepoPath, bytes: &[u8], error: Error) -> Result<FileReferences> {
    let pointer = path.without_suffix(SUFFIX).is_some();
    if if pointer { Pointer::is_newer(bytes) } else { Lockfile::is_newer(bytes) } {
        return Err(error);
    }
    // An editor may have saved the file as UTF-16, with zeros between the letters.
    let digests = digests_in(&String::from_utf8_lossy(bytes).replace('\0', ""));
    let runs = if pointer { Vec::new() } else { digests.clone() };
    Ok(FileReferences {
        inputs: digests,
        runs,
        salvaged: Some(error.chain_text()),
        conflict: error.kind() == Kind::Conflict,
        ..FileReferences::default()
    })
}

/// Returns true for a file that Git LFS or git-crypt put in the place of a pointer or a lockfile. Other
/// programs use the suffix of pointers, too, for files that are larger than any pointer.
fn is_filtered(path: &RepoPath, bytes: &[u8]) -> bool {
    let pointer = path.without_suffix(SUFFIX).is_some();
    if bytes.starts_with(b"\0GITCRYPT\0") {
        return !pointer || bytes.len() <= MAX_FILTERED_SIZE;
    }
    let text = String::from_utf8_lossy(bytes);
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.parse::<usize>().ok());
    text.starts_with("version https://git-lfs") && (!pointer || size.is_none_or(|it| it <= MAX_FILTERED_SIZE))
}

/// Returns the error for a pointer that something overwrote with these bytes since Git staged it.
pub fn overwritten(file: &RepoPath, bytes: &[u8]) -> Error {
    let path = file.without_suffix(SUFFIX).unwrap_or_default();
    let foreign = || Pointer::foreign_error(&path);
    Pointer::parse_here(path.clone(), bytes).err().unwrap_or_else(foreign)
}

/// Returns the error for a file that a filter changed.
pub fn filtered(path: &RepoPath) -> Error {
    Error::corrupt(format!("a Git filter replaced `{path}` by something else")).hint(format!(
        "exempt it from the filter in `.gitattributes`, then run `git add --renormalize {path}`"
    ))
}

fn too_large(path: &RepoPath) -> Error {
    Error::corrupt(format!("`{path}` is larger than {} MiB", fs::MAX_DOCUMENT_SIZE >> 20))
}

/// Returns everything in a text that is written as a digest.
pub fn digests_in(text: &str) -> Vec<Digest> {
    let starts = text.match_indices("b3:").map(|it| it.0);
    starts.filter_map(|at| text.get(at..at + 67)?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_in_any_text() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let text = format!("package = \"{one}\"\n{{\"report\":\"{two}\"}} b3:tooshort é b3:");
        assert_eq!(digests_in(&text), [one, two]);
    }

    #[test]
    fn a_foreign_file_needs_nothing_and_a_broken_pointer_is_an_error() {
        let path = RepoPath::from_text("a.mlx").unwrap();
        for bytes in [&b"PK\x03\x04\x00"[..], b"<!DOCTYPE FilterScript>\n", b"<<<<<<< HEAD\n"] {
            let found = parse(&path, bytes).unwrap();
            assert!(found.not_pointer && found.contents.is_empty());
        }
        assert!(parse(&path, b"").is_err() && parse(&path, b"digest = ").is_err());
    }

    #[test]
    fn a_broken_pointer_in_a_commit_needs_all_digests_in_it() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let text =
            format!("<<<<<<< a\ndigest = \"{one}\"\n=======\ndigest = \"{two}\"\n>>>>>>> b\nsize = 3\n");
        let salvaged = |path: &str, text: &str| {
            let path = RepoPath::from_text(path).unwrap();
            salvage(&path, text.as_bytes(), parse(&path, text.as_bytes()).err().unwrap())
        };
        let found = salvaged("a.mlx", &text).unwrap();
        assert_eq!((&found.inputs[..], &found.runs[..]), (&[one, two][..], &[][..]));
        assert_eq!(salvaged("mlx.lock", &text).unwrap().runs, [one, two]);
        assert!(
            salvaged("a.mlx", &format!("digest = \"{one}\"\nformat = 2\n")).is_err(),
            "written by a newer mlx"
        );
    }

    #[test]
    fn what_a_filter_made_of_a_pointer_is_not_taken_for_a_foreign_file() {
        let filtered = |path: &str, bytes: &[u8]| is_filtered(&RepoPath::from_text(path).unwrap(), bytes);
        let lfs =
            |size: u32| format!("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize {size}\n");
        assert!(filtered("a.mlx", lfs(150).as_bytes()) && filtered("mlx.lock", lfs(5000).as_bytes()));
        assert!(!filtered("a.mlx", lfs(5000).as_bytes()), "a live script");
        let crypt = |size: usize| [&b"\0GITCRYPT\0"[..], &vec![7; size]].concat();
        assert!(filtered("a.mlx", &crypt(150)) && !filtered("a.mlx", &crypt(5000)));
        assert!(filtered("mlx.lock", &crypt(5000)) && !filtered("a.mlx", b"PK\x03\x04"));
    }
}
