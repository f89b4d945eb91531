//! Keeping what mlx stores out of Git: one line a path in the `.gitignore` beside it.

use crate::{
    error::Result,
    fs::{Root, Sync},
    git::Git,
    path::RepoPath,
};

impl Git {
    /// Adds `path` to the `.gitignore` in its folder, unless it stands there; says which file changed.
    pub fn ignore(&self, workspace: &Root, path: &RepoPath) -> Result<Option<RepoPath>> {
        let file = path.parent().unwrap_or_default().join(b".gitignore")?;
        let mut text = workspace.read_if_there(&file)?.unwrap_or_default();
        let line = pattern(path.name());
        if text.split(|&it| it == b'\n').any(|it| it.trim_ascii_end() == line) {
            return Ok(None);
        }
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend_from_slice(&line);
        text.push(b'\n');
        workspace.write(&file, &text, Sync::Yes)?;
        Ok(Some(file))
    }
}

/// The line that matches this name here and nothing else.
fn pattern(name: &[u8]) -> Vec<u8> {
    let mut line = vec![b'/'];
    for &byte in name {
        if matches!(byte, b'*' | b'?' | b'[' | b'\\') {
            line.push(b'\\');
        }
        line.push(byte);
    }
    if line.ends_with(b" ") {
        line.insert(line.len() - 1, b'\\');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::pattern;

    #[test]
    fn a_pattern_matches_its_name_alone() {
        assert_eq!(pattern(b"data"), b"/data");
        assert_eq!(pattern(b"a*[x] "), br"/a\*\[x]\ ");
    }
}
