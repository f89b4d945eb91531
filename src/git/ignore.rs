//! Keeps tracked data out of Git, with one line per path in the `.gitignore` of its folder.
//!
//! Whether a line works is decided by all of Git's rules: a later one may include the path again. They are
//! read by `gix`: `git check-ignore` could run programs that the repository's settings name.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use gix::{
    bstr::ByteSlice as _, ignore::search::Match, index::entry::Mode, worktree::stack::state::ignore::Source,
};

use crate::{
    error::Result,
    fs::{FileKind, FileType, Root, Sync},
    git::{Git, from_gix, rule_files::IGNORE},
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
            let text = self.read_ignore_file(workspace, &file)?.unwrap_or_default();
            let present: HashSet<_> = rows(&text).collect();
            let missing: Vec<_> = lines.iter().filter(|line| !present.contains(&line[..])).collect();
            if !missing.is_empty() {
                workspace.write(&file, &with_lines(&text, missing), Sync::Now)?;
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
            let text = self.read_ignore_file(workspace, &file)?.unwrap_or_default();
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
            let Some(text) = self.read_ignore_file(workspace, &file)? else { return Ok(()) };
            let kept = without_lines(&text, &lines);
            if kept.is_empty() && !text.is_empty() {
                workspace.remove(&file)?;
            } else if kept != text {
                workspace.write(&file, &kept, Sync::Now)?;
            }
        }
        Ok(())
    }

    /// Reads a `.gitignore`; one that a sparse checkout leaves out is read from Git's index.
    fn read_ignore_file(&self, workspace: &Root, file: &RepoPath) -> Result<Option<Vec<u8>>> {
        workspace.read_document(file)?.map_or_else(|| self.read_skipped(file), |text| Ok(Some(text)))
    }

    /// Returns those paths that `git add` would take: Git neither ignores nor tracks them. Of a folder with
    /// files that Git tracks, the others count.
    pub fn exposed<'p>(&self, targets: &[Target<'p>]) -> Result<Vec<Target<'p>>> {
        let mut found = Vec::new();
        for (target, rule) in self.rules(self.unlisted(targets).into_iter())? {
            let is_partly_tracked = || self.tracked_within(target.path()).map(|file| file.is_some());
            if rule.is_none_or(|rule| rule.includes)
                && (!is_partly_tracked()? || self.has_exposed_file(target.path())?)
            {
                found.push(target);
            }
        }
        Ok(found)
    }

    /// Leaves out the paths that their own line keeps out of Git for certain. Many rules are not tried on
    /// many paths then.
    fn unlisted<'p>(&self, targets: &[Target<'p>]) -> Vec<Target<'p>> {
        let Ok(workspace) = Root::open(self.root()) else { return targets.to_vec() };
        let mut texts: BTreeMap<RepoPath, Vec<u8>> = BTreeMap::new();
        for folder in targets.iter().filter_map(|target| target.path().parent()) {
            texts.entry(folder).or_insert_with_key(|folder| {
                let file = folder.join(b".gitignore");
                file.and_then(|file| workspace.read_document(&file)).ok().flatten().unwrap_or_default()
            });
        }
        let lines: BTreeMap<_, _> =
            texts.iter().map(|(folder, text)| (folder, certain_lines(text))).collect();
        let is_listed = |path: &RepoPath| {
            let lines = path.parent().and_then(|folder| lines.get(&folder));
            lines.is_some_and(|lines| lines.contains(&pattern(path.name())[..]))
        };
        targets.iter().filter(|target| !is_listed(target.path())).copied().collect()
    }

    /// Returns true if `git add` would take a file in a folder, whose own path Git does not ignore.
    fn has_exposed_file(&self, folder: &RepoPath) -> Result<bool> {
        let names = Root::open(self.root()).and_then(|workspace| workspace.dir(folder)?.names());
        // A folder that cannot be read is reported by the step that needs it.
        let names = names.unwrap_or_default();
        if names.iter().any(|name| name.0 == b".git") {
            return Ok(false);
        }
        let path = |(name, kind): (Vec<u8>, FileType)| Some((folder.join(&name).ok()?, kind.is_dir()));
        let paths: Vec<_> = names.into_iter().filter_map(path).collect();
        let target = |(path, is_dir)| if is_dir { Target::Folder(path) } else { Target::File(path) };
        let rules = self.rules(paths.iter().map(|(path, is_dir)| target((path, *is_dir))))?;
        for (target, _) in rules.into_iter().filter(|(_, rule)| rule.as_ref().is_none_or(|it| it.includes)) {
            if matches!(target, Target::File(_)) || self.has_exposed_file(target.path())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Fails if the `.gitignore` for a path cannot be read, and so not be changed.
    pub fn check_ignorable(&self, workspace: &Root, path: &RepoPath) -> Result<()> {
        let mut files = lines_by_file(std::iter::once(path))?.into_keys();
        files.try_for_each(|file| self.read_ignore_file(workspace, &file).map(drop))
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

/// Returns the lines of a `.gitignore` after which no line includes anything again. No rules count more than
/// those in the folder of a path.
fn certain_lines(text: &[u8]) -> HashSet<&[u8]> {
    let mut lines = HashSet::new();
    for row in rows(text) {
        if row.starts_with(b"!") {
            lines.clear();
        }
        lines.insert(row);
    }
    lines
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

/// The last rule that matches a path.
struct Rule {
    /// True for a rule that starts with `!` and includes the path again.
    includes: bool,
    source: String,
    line: String,
    pattern: String,
}

impl Git {
    /// Returns those of `files` that Git ignores and does not track.
    pub fn ignored_files(&self, files: &[RepoPath]) -> Result<Vec<IgnoredFile>> {
        let rules = self.rules(files.iter().map(Target::File))?.into_iter();
        let ignored = rules.filter_map(|(target, rule)| Some((target, rule.filter(|rule| !rule.includes)?)));
        let file = |(target, Rule { source, line, pattern, .. }): (Target<'_>, Rule)| IgnoredFile {
            file: target.path().clone(),
            source,
            line,
            pattern,
        };
        Ok(ignored.map(file).collect())
    }

    /// Returns the rule that decides about each path that Git does not track. Empty if the rules cannot be
    /// read, or could block: a FIFO or a device in the place of a `.gitignore`.
    fn rules<'p>(
        &self,
        targets: impl Iterator<Item = Target<'p>>,
    ) -> Result<Vec<(Target<'p>, Option<Rule>)>> {
        let mut untracked = Vec::new();
        for target in targets {
            if self.tracked_within(target.path())?.is_none_or(|file| file != *target.path()) {
                untracked.push(target);
            }
        }
        if untracked.is_empty() || !IGNORE.can_be_read(self, untracked.iter().map(Target::path)) {
            return Ok(Vec::new());
        }
        let index = from_gix(self.repo.index_or_empty(), || "cannot read Git's index".into())?;
        let Ok(mut stack) = self.repo.excludes(&index, None, Source::default()) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for target in untracked {
            let mode = if matches!(target, Target::Folder(_)) { Mode::DIR } else { Mode::FILE };
            if let Ok(place) = stack.at_entry(target.path().bytes().as_bstr(), Some(mode)) {
                found.push((target, place.matching_exclude_pattern().map(|it| self.rule(&it))));
            }
        }
        Ok(found)
    }

    fn rule(&self, found: &Match<'_>) -> Rule {
        let source = found.source.map(|path| path.strip_prefix(self.root()).unwrap_or(path));
        Rule {
            includes: found.pattern.is_negative(),
            source: source.map_or_else(String::new, |path| path.display().to_string()),
            line: found.sequence_number.to_string(),
            pattern: found.pattern.to_string(),
        }
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
    fn only_lines_after_the_last_one_that_includes_are_certain() {
        assert_eq!(certain_lines(b"/a\n!/b\n/c\r\n# !\n"), HashSet::from([&b"!/b"[..], b"/c", b"# !", b""]));
        assert_eq!(certain_lines(b"/a\n!*"), HashSet::from([&b"!*"[..]]));
    }

    #[test]
    fn lines_are_added_and_removed_whole() {
        let lines = BTreeSet::from([b"/a".to_vec()]);
        assert_eq!(with_lines(b"x", &lines), b"x\n/a\n");
        assert_eq!(without_lines(b"/a\r\n/ab\n# /a\n/a", &lines), b"/ab\n# /a\n");
    }
}
