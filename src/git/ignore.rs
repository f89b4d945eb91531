//! Keeps tracked data out of Git, with one line per path in the `.gitignore` of its folder.

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
    /// Adds `path` to the `.gitignore` in its folder, unless it is listed already. Returns the file if it
    /// changed.
    pub fn ignore(&self, workspace: &Root, path: &RepoPath) -> Result<Option<RepoPath>> {
        let file = path.parent().unwrap_or_default().join(b".gitignore")?;
        let mut text = workspace.read_document(&file)?.unwrap_or_default();
        let line = pattern(path.name());
        let is_line = |row: &[u8]| row.strip_suffix(b"\r").unwrap_or(row) == line;
        if text.split(|&byte| byte == b'\n').any(is_line) {
            return Ok(None);
        }
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend_from_slice(&line);
        text.push(b'\n');
        workspace.write(&file, &text, Sync::Now)?;
        Ok(Some(file))
    }
}

impl Git {
    /// Removes `path` from the `.gitignore` in its folder. The file is removed if it becomes empty.
    pub fn unignore(&self, workspace: &Root, path: &RepoPath) -> Result<()> {
        let file = path.parent().unwrap_or_default().join(b".gitignore")?;
        let Some(text) = workspace.read_document(&file)? else { return Ok(()) };
        let line = pattern(path.name());
        let is_line = |row: &[u8]| {
            let row = row.strip_suffix(b"\n").unwrap_or(row);
            row.strip_suffix(b"\r").unwrap_or(row) == line
        };
        let rows = text.split_inclusive(|&byte| byte == b'\n');
        let kept = rows.filter(|row| !is_line(row)).collect::<Vec<_>>().concat();
        if kept == text {
            Ok(())
        } else if kept.is_empty() {
            workspace.remove(&file)
        } else {
            workspace.write(&file, &kept, Sync::Now)
        }
    }
}

/// File that Git ignores, and the rule that causes it.
#[derive(Debug)]
pub struct IgnoredFile {
    pub file: RepoPath,
    /// File that contains the rule, such as `.gitignore`.
    pub source: String,
    /// Line number of the rule.
    pub line: String,
    pub pattern: String,
}

impl Git {
    /// Returns those of `files` that Git ignores and does not track; empty if `git` cannot be run.
    pub fn ignored_files(&self, files: &[RepoPath]) -> Result<Vec<IgnoredFile>> {
        let mut untracked = Vec::new();
        for file in files {
            if self.tracked_within(file)?.is_none() {
                untracked.extend_from_slice(file.bytes());
                untracked.push(0);
            }
        }
        if untracked.is_empty() {
            return Ok(Vec::new());
        }
        let output = self.check_ignore(&untracked).unwrap_or_default();
        let fields: Vec<&[u8]> = output.split(|byte| *byte == 0).collect();
        let text = |bytes: &[u8]| OsStr::from_bytes(bytes).display().to_string();
        let mut found = Vec::new();
        for row in fields.as_chunks::<4>().0 {
            let [source, line, pattern] = [row[0], row[1], row[2]].map(text);
            // The last matching rule decides; one that starts with `!` includes the file again.
            if !pattern.starts_with('!') {
                found.push(IgnoredFile { file: RepoPath::from_bytes(row[3])?, source, line, pattern });
            }
        }
        Ok(found)
    }

    /// Runs `git check-ignore` on paths that each end with a NUL byte, and returns its output.
    fn check_ignore(&self, paths: &[u8]) -> io::Result<Vec<u8>> {
        let mut command = Command::new("git");
        command.arg("-C").arg(self.root()).args(["check-ignore", "-v", "-z", "--stdin"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        // Written on a thread, since the command answers while it still reads.
        std::thread::scope(|scope| {
            scope.spawn(|| stdin.map(|mut pipe| pipe.write_all(paths)));
            Ok(child.wait_with_output()?.stdout)
        })
    }
}

/// Returns the `.gitignore` line that matches this name in its folder, and no other name.
fn pattern(name: &[u8]) -> Vec<u8> {
    let mut line = vec![b'/'];
    for &byte in name {
        match byte {
            // A line cannot contain these; `?` matches any one character.
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
    fn a_pattern_escapes_special_characters() {
        assert_eq!(pattern(b"data"), b"/data");
        assert_eq!(pattern(b"a*[x] "), br"/a\*\[x]\ ");
        assert_eq!(pattern(b"a\nb"), b"/a?b");
    }
}
