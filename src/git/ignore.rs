//! Keeping what mlx stores out of Git: one line a path in the `.gitignore` beside it.

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    os::unix::ffi::OsStrExt as _,
    process::{Command, Stdio},
};

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

/// A file that Git leaves out, and the line that tells it to.
#[derive(Debug)]
pub struct Hidden {
    pub file: RepoPath,
    /// Where the line stands, and what it says.
    pub source: String,
    pub line: String,
    pub pattern: String,
}

impl Git {
    /// Those of these files that Git does not track and ignores; none when there is no `git` to ask.
    pub fn hidden(&self, files: &[RepoPath]) -> Result<Vec<Hidden>> {
        let mut asked = Vec::new();
        for file in files {
            if self.tracked_within(file)?.is_none() {
                asked.extend_from_slice(file.bytes());
                asked.push(0);
            }
        }
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let output = self.check_ignore(&asked).unwrap_or_default();
        let fields: Vec<&[u8]> = output.split(|it| *it == 0).collect();
        let text = |it: &[u8]| OsStr::from_bytes(it).display().to_string();
        let mut found = Vec::new();
        for row in fields.as_chunks::<4>().0 {
            let [source, line, pattern] = [row[0], row[1], row[2]].map(text);
            // The last line that matches decides, also where it takes a file back.
            if !pattern.starts_with('!') {
                found.push(Hidden { file: RepoPath::from_bytes(row[3])?, source, line, pattern });
            }
        }
        Ok(found)
    }

    /// What `git check-ignore` says of paths that end with a zero byte each.
    fn check_ignore(&self, paths: &[u8]) -> io::Result<Vec<u8>> {
        let mut command = Command::new("git");
        command.arg("-C").arg(self.root()).args(["check-ignore", "-v", "-z", "--stdin"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        // It answers while it is asked.
        std::thread::scope(|scope| {
            scope.spawn(|| stdin.map(|mut it| it.write_all(paths)));
            Ok(child.wait_with_output()?.stdout)
        })
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
