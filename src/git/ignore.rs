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
        let mut text = workspace.read_document(&file)?.unwrap_or_default();
        let line = pattern(path.name());
        if text.split(|&it| it == b'\n').any(|it| it.strip_suffix(b"\r").unwrap_or(it) == line) {
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

impl Git {
    /// Takes `path` out of the `.gitignore` in its folder again, which goes when nothing is left in it.
    pub fn unignore(&self, workspace: &Root, path: &RepoPath) -> Result<()> {
        let file = path.parent().unwrap_or_default().join(b".gitignore")?;
        let Some(text) = workspace.read_document(&file)? else { return Ok(()) };
        let line = pattern(path.name());
        let ours = |it: &&[u8]| {
            let it = it.strip_suffix(b"\n").unwrap_or(it);
            it.strip_suffix(b"\r").unwrap_or(it) == line
        };
        let kept: Vec<&[u8]> = text.split_inclusive(|&it| it == b'\n').filter(|it| !ours(it)).collect();
        let kept = kept.concat();
        if kept == text {
            Ok(())
        } else if kept.is_empty() {
            workspace.remove(&file)
        } else {
            workspace.write(&file, &kept, Sync::Yes)
        }
    }
}

/// The line that matches this name here and nothing else.
fn pattern(name: &[u8]) -> Vec<u8> {
    let mut line = vec![b'/'];
    for &byte in name {
        match byte {
            // A line cannot hold these; `?` matches any one character.
            b'\n' | b'\r' => line.push(b'?'),
            b'*' | b'?' | b'[' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
            _ => line.push(byte),
        }
    }
    if line.ends_with(b" ") {
        line.insert(line.len() - 1, b'\\');
    }
    line
}

#[cfg(test)]
mod tests {
    use crate::git::ignore::pattern;

    #[test]
    fn a_pattern_matches_its_name_alone() {
        assert_eq!(pattern(b"data"), b"/data");
        assert_eq!(pattern(b"a*[x] "), br"/a\*\[x]\ ");
        assert_eq!(pattern(b"a\nb"), b"/a?b");
    }
}
