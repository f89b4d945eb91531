//! Keeps tracked data out of Git, with one line per path in the `.gitignore` of its folder.
//!
//! Git itself is asked whether a line works: a later one, or one of another file, may include the path again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io::{self, Write as _},
    os::unix::ffi::OsStrExt as _,
    process::{Command, Stdio},
};

use crate::{
    error::Result,
    fs::{FileKind, Root, Sync},
    git::Git,
    path::{RepoPath, escape_bytes},
};

/// A path and what is, or will be, there: a rule that ends with a slash matches folders only.
#[derive(Clone, Copy, Debug)]
pub enum Target<'p> {
    File(&'p RepoPath),
    Folder(&'p RepoPath),
}

impl<'p> Target<'p> {
    pub fn path(&self) -> &'p RepoPath {
        match self {
            Self::File(path) | Self::Folder(path) => path,
        }
    }

    /// Returns the target for what is at the path now; a file if nothing is.
    pub fn at(workspace: &Root, path: &'p RepoPath) -> Self {
        match workspace.stat(path) {
            Ok(Some(stat)) if stat.kind == FileKind::Folder => Self::Folder(path),
            _ => Self::File(path),
        }
    }
}

impl Git {
    /// Adds each path to the `.gitignore` in its folder, unless it is listed already, and moves its line to
    /// the end where a later one includes it again. Returns the paths that Git would add nevertheless.
    pub fn ignore<'p>(&self, workspace: &Root, targets: &[Target<'p>]) -> Result<Vec<&'p RepoPath>> {
        for (file, lines) in lines_by_file(targets.iter().map(Target::path))? {
            let text = workspace.read_document(&file)?.unwrap_or_default();
            let missing: Vec<_> =
                lines.into_iter().filter(|line| !rows(&text).any(|row| row == line)).collect();
            if !missing.is_empty() {
                workspace.write(&file, &with_lines(&text, &missing), Sync::Now)?;
            }
        }
        self.repair_ignore_lines(workspace, targets)
    }

    /// Adds to the `.gitignore` in its folder, as the last line, each path that Git would add: nothing in the
    /// file can include it again then. Returns the paths that Git would add nevertheless.
    pub fn repair_ignore_lines<'p>(
        &self,
        workspace: &Root,
        targets: &[Target<'p>],
    ) -> Result<Vec<&'p RepoPath>> {
        let exposed = self.exposed(targets)?;
        for (file, lines) in lines_by_file(exposed.iter().map(Target::path))? {
            let text = workspace.read_document(&file)?.unwrap_or_default();
            workspace.write(&file, &with_lines(&without_lines(&text, &lines), &lines), Sync::Now)?;
        }
        if exposed.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.exposed(&exposed)?.iter().map(Target::path).collect())
    }

    /// Removes `path` from the `.gitignore` in its folder. The file is removed if it becomes empty.
    pub fn unignore(&self, workspace: &Root, path: &RepoPath) -> Result<()> {
        for (file, lines) in lines_by_file(std::iter::once(path))? {
            let Some(text) = workspace.read_document(&file)? else { return Ok(()) };
            let kept = without_lines(&text, &lines);
            if kept.is_empty() && !text.is_empty() {
                workspace.remove(&file)?;
            } else if kept != text {
                workspace.write(&file, &kept, Sync::Now)?;
            }
        }
        Ok(())
    }

    /// Returns those paths that `git add` would take: Git neither ignores nor tracks them, nor anything in
    /// them. Empty if `git` cannot be run.
    pub fn exposed<'p>(&self, targets: &[Target<'p>]) -> Result<Vec<Target<'p>>> {
        let mut by_name = BTreeMap::new();
        for target in targets {
            if self.tracked_within(target.path())?.is_none() {
                let slash: &[u8] = if matches!(target, Target::Folder(_)) { b"/" } else { b"" };
                by_name.insert([target.path().bytes(), slash].concat(), *target);
            }
        }
        let rows = self.check_ignore(by_name.keys());
        Ok(rows
            .iter()
            .filter(|row| !row.is_ignored())
            .filter_map(|row| by_name.get(&row.name).copied())
            .collect())
    }
}

/// Groups the lines of paths by the `.gitignore` that they belong in.
fn lines_by_file<'p>(
    paths: impl Iterator<Item = &'p RepoPath>,
) -> Result<BTreeMap<RepoPath, BTreeSet<Vec<u8>>>> {
    let mut files: BTreeMap<RepoPath, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for path in paths {
        let file = path.parent().unwrap_or_default().join(b".gitignore")?;
        files.entry(file).or_default().insert(pattern(path.name()));
    }
    Ok(files)
}

/// Returns the lines of a `.gitignore` as Git reads them.
fn rows(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n').map(|row| row.strip_suffix(b"\r").unwrap_or(row))
}

fn with_lines<'l>(text: &[u8], lines: impl IntoIterator<Item = &'l Vec<u8>>) -> Vec<u8> {
    let mut text = text.to_vec();
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    for line in lines {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}

fn without_lines(text: &[u8], lines: &BTreeSet<Vec<u8>>) -> Vec<u8> {
    let is_other = |row: &&[u8]| rows(row).next().is_none_or(|row| !lines.contains(row));
    text.split_inclusive(|&byte| byte == b'\n').filter(is_other).collect::<Vec<_>>().concat()
}

/// Returns the line for the `.gitignore` at the top that names this path and no other.
pub fn ignore_line(path: &RepoPath, is_folder: bool) -> String {
    let mut line: Vec<u8> = path.components().flat_map(pattern).collect();
    line.extend(is_folder.then_some(b'/'));
    escape_bytes(&line)
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

/// Answer of `git check-ignore` for one name.
struct Verdict {
    name: Vec<u8>,
    /// File with the rule, its line and the rule; empty if none matches.
    rule: [String; 3],
}

impl Verdict {
    fn is_ignored(&self) -> bool {
        // The last matching rule decides; one that starts with `!` includes the file again.
        !self.rule[2].is_empty() && !self.rule[2].starts_with('!')
    }
}

impl Git {
    /// Returns those of `files` that Git ignores and does not track; empty if `git` cannot be run.
    pub fn ignored_files(&self, files: &[RepoPath]) -> Result<Vec<IgnoredFile>> {
        let mut untracked = BTreeMap::new();
        for file in files {
            if self.tracked_within(file)?.is_none() {
                untracked.insert(file.bytes().to_vec(), file);
            }
        }
        let ignored = self.check_ignore(untracked.keys()).into_iter().filter(Verdict::is_ignored);
        let file = |verdict: Verdict| {
            let [source, line, pattern] = verdict.rule;
            Some(IgnoredFile { file: (*untracked.get(&verdict.name)?).clone(), source, line, pattern })
        };
        Ok(ignored.filter_map(file).collect())
    }

    /// Asks Git which rule decides about each name; no answers if `git` cannot be run.
    fn check_ignore<'n>(&self, names: impl Iterator<Item = &'n Vec<u8>>) -> Vec<Verdict> {
        let mut input = Vec::new();
        for name in names {
            input.extend_from_slice(name);
            input.push(0);
        }
        if input.is_empty() {
            return Vec::new();
        }
        let output = self.run_check_ignore(&input).unwrap_or_default();
        let fields: Vec<&[u8]> = output.split(|byte| *byte == 0).collect();
        let text = |bytes: &[u8]| OsStr::from_bytes(bytes).display().to_string();
        let verdict =
            |row: &[&[u8]; 4]| Verdict { name: row[3].to_vec(), rule: [row[0], row[1], row[2]].map(text) };
        fields.as_chunks::<4>().0.iter().map(verdict).collect()
    }

    /// Runs `git check-ignore` on paths that each end with a NUL byte, and returns its output.
    fn run_check_ignore(&self, paths: &[u8]) -> io::Result<Vec<u8>> {
        let mut command = Command::new("git");
        command.arg("-C").arg(self.root()).args(["check-ignore", "-v", "-n", "-z", "--stdin"]);
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
            b'\n' | b'\r' => push_byte_class(&mut line, byte),
            b'*' | b'?' | b'[' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
            _ => line.push(byte),
        }
    }
    if line.ends_with(b" ") {
        line.insert(line.len() - 1, b'\\');
    }
    line
}

/// Appends a pattern for a byte that no line can contain: the class of all bytes but those below and above
/// it. The upper range ends with the last character of Unicode, so that the line stays UTF-8.
fn push_byte_class(line: &mut Vec<u8>, byte: u8) {
    line.extend_from_slice(&[b'[', b'!', 1, b'-', byte - 1, byte + 1, b'-']);
    line.extend_from_slice("\u{10ffff}]".as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_escapes_special_characters() {
        assert_eq!(pattern(b"data"), b"/data");
        assert_eq!(pattern(b"a*[x] "), br"/a\*\[x]\ ");
        assert_eq!(pattern(b"a\nb"), "/a[!\u{1}-\t\u{b}-\u{10ffff}]b".as_bytes());
    }

    #[test]
    fn lines_are_added_and_removed_whole() {
        let lines = BTreeSet::from([b"/a".to_vec()]);
        assert_eq!(with_lines(b"x", &lines), b"x\n/a\n");
        assert_eq!(without_lines(b"/a\r\n/ab\n# /a\n/a", &lines), b"/ab\n# /a\n");
    }
}
