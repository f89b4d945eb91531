//! Outputs that Git holds: an output committed to Git may lie here with other line ends than it was recorded
//! with, since Git converts them on checkout (`core.autocrlf`, `eol` in `.gitattributes`).

use crate::{
    digest::Digest, error::Result, fs::MAX_DOCUMENT_SIZE, path::RepoPath, pipeline::Pipeline,
    pointer::Content,
};

impl Pipeline<'_, '_> {
    /// Returns true if the file is as in Git's index, apart from line ends.
    pub(super) fn is_as_in_git(&self, path: &RepoPath) -> Result<bool> {
        let Some(bytes) = self.small_file(path)? else { return Ok(false) };
        let staged = self.repo().git.staged(path)?;
        Ok(staged.is_some_and(|staged| with_newlines(&staged) == with_newlines(&bytes)))
    }

    /// Returns true if Git converted the line ends of the recorded file, and nothing else changed.
    pub(super) fn is_converted(&self, path: &RepoPath, recorded: &Content) -> Result<bool> {
        let Some(bytes) = self.small_file(path)? else { return Ok(false) };
        Ok(differs_in_line_ends(&bytes, &recorded.digest) && self.is_as_in_git(path)?)
    }

    fn small_file(&self, path: &RepoPath) -> Result<Option<Vec<u8>>> {
        let files = &self.repo().files;
        if files.stat(path)?.is_none_or(|stat| stat.size > MAX_DOCUMENT_SIZE) {
            return Ok(None);
        }
        files.read_prefix(path, MAX_DOCUMENT_SIZE)
    }
}

/// Returns true if `bytes` have another digest, but would have this one with other line ends.
fn differs_in_line_ends(bytes: &[u8], digest: &Digest) -> bool {
    let lines = with_newlines(bytes);
    let returns: Vec<u8> =
        lines.iter().flat_map(|&byte| if byte == b'\n' { vec![b'\r', byte] } else { vec![byte] }).collect();
    Digest::of(bytes) != *digest && [lines, returns].iter().any(|text| Digest::of(text) == *digest)
}

/// Replaces each carriage return and newline by a newline.
fn with_newlines(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len());
    for (at, &byte) in bytes.iter().enumerate() {
        if byte != b'\r' || bytes.get(at + 1) != Some(&b'\n') {
            text.push(byte);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_line_ends_may_differ() {
        let recorded = Digest::of(b"{\n\"a\": 1\n}\n");
        assert!(differs_in_line_ends(b"{\r\n\"a\": 1\r\n}\r\n", &recorded));
        assert!(!differs_in_line_ends(b"{\n\"a\": 1\n}\n", &recorded), "nothing differs");
        assert!(!differs_in_line_ends(b"{\r\n\"a\": 2\r\n}\r\n", &recorded));
        let recorded = Digest::of(b"a\r\nb\r\n");
        assert!(differs_in_line_ends(b"a\nb\n", &recorded), "recorded on another system");
        assert!(!differs_in_line_ends(b"a\n\nb\n", &recorded));
        assert_eq!(with_newlines(b"a\rb\r\r\n\r"), b"a\rb\r\n\r");
    }
}
