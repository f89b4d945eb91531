//! Rules in the syntax of gitignore, by the folder whose file holds them.
//!
//! The nearest file with rules takes precedence, its last matching line decides, and a `!` does not bring
//! back anything inside an ignored folder.

use std::{
    borrow::Cow,
    collections::HashMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

use crate::{
    error::{Error, Result},
    fs::{FileKind, Root},
    path::RepoPath,
};

/// Largest rules file, in bytes: it may be untrusted, and matching takes many times its size in memory.
pub const MAX_FILE_SIZE: u64 = 1 << 20;

/// Folders with rules; the nearest one at or above a path applies to it.
#[derive(Default)]
pub struct Levels(RwLock<HashMap<RepoPath, Arc<Level>>>);

pub struct Level {
    pub folder: RepoPath,
    rules: Option<Gitignore>,
    parent: Option<Arc<Level>>,
    /// True for an ignored folder that is descended into because some of its content counts all the same.
    pub ignore_all: bool,
}

/// Treatment of a line that is not a valid rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidLine {
    Refuse,
    /// As Git does.
    Skip,
}

impl Levels {
    /// Returns the level that applies in a folder.
    pub fn at(&self, folder: &RepoPath) -> Option<Arc<Level>> {
        let levels = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if levels.is_empty() {
            return None;
        }
        folder.ancestors().find_map(|folder| levels.get(&folder).map(Arc::clone))
    }

    /// Adds the rules of a folder below those that apply to it so far.
    pub fn add(&self, folder: &RepoPath, rules: Option<Gitignore>, ignore_all: bool) -> Arc<Level> {
        let parent = self.at(folder);
        self.insert(Level { folder: folder.clone(), rules, parent, ignore_all })
    }

    /// Adds the rules of a folder in which those of the folders above do not apply.
    pub fn add_top(&self, folder: &RepoPath, rules: Option<Gitignore>) -> Arc<Level> {
        self.insert(Level { folder: folder.clone(), rules, parent: None, ignore_all: false })
    }

    fn insert(&self, level: Level) -> Arc<Level> {
        let level = Arc::new(level);
        let mut levels = self.0.write().unwrap_or_else(PoisonError::into_inner);
        levels.insert(level.folder.clone(), Arc::clone(&level));
        level
    }
}

impl Level {
    /// Returns true if the rules exclude a name in a folder at or below this one.
    pub fn ignores(&self, folder: &RepoPath, name: &[u8], is_dir: bool) -> bool {
        let mut here = Some(self);
        while let Some(level) = here {
            if level.ignore_all {
                return true;
            }
            // Built from bytes: a name that mlx cannot track, such as `.GIT`, can still be ignored.
            let below = folder.strip_prefix(&level.folder).unwrap_or_default();
            let below = if below.is_root() { name.to_vec() } else { [below.bytes(), b"/", name].concat() };
            let matched =
                |rules: &Gitignore| match rules.matched(Path::new(OsStr::from_bytes(&below)), is_dir) {
                    Match::Ignore(_) => Some(true),
                    Match::Whitelist(_) => Some(false),
                    Match::None => None,
                };
            match level.rules.as_ref().and_then(matched) {
                Some(ignored) => return ignored,
                None => here = level.parent.as_deref(),
            }
        }
        false
    }
}

/// Reads the rules in a folder; a link in place of the file does not count, as in Git.
pub fn read_rules(
    files: &Root,
    folder: &RepoPath,
    name: &str,
    invalid: InvalidLine,
) -> Result<Option<Gitignore>> {
    let file = folder.join(name.as_bytes())?;
    match files.stat(&file)?.map(|it| it.kind) {
        Some(FileKind::File) => {
            let bytes = files.read_prefix(&file, MAX_FILE_SIZE + 1)?;
            bytes.map(|bytes| parse(&file, &bytes, invalid)).transpose()
        }
        _ => Ok(None),
    }
}

/// Parses the rules of a file.
pub fn parse(file: &RepoPath, bytes: &[u8], invalid: InvalidLine) -> Result<Gitignore> {
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(Error::corrupt(format!("`{file}` is larger than {} MiB", MAX_FILE_SIZE >> 20))
            .hint("ignore whole folders instead of listing their files"));
    }
    let mut builder = GitignoreBuilder::new(".");
    let text = String::from_utf8_lossy(bytes);
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let added = builder.add_line(None, &escape_braces(line)).map(drop);
        if invalid == InvalidLine::Refuse {
            added.map_err(|error| invalid_rule(file, at + 1, &error))?;
        }
    }
    builder.build().map_err(|error| invalid_rule(file, 0, &error))
}

/// Escapes braces: in gitignore they are literal, while the glob library reads them as alternatives.
fn escape_braces(line: &str) -> Cow<'_, str> {
    if !line.contains(['{', '}']) {
        return line.into();
    }
    let (mut plain, mut escaped, mut class) = (String::with_capacity(line.len() + 4), false, false);
    for char in line.chars() {
        if matches!(char, '{' | '}') && !escaped && !class {
            plain.push('\\');
        }
        plain.push(char);
        class = !escaped && (char == '[' || class && char != ']');
        escaped = char == '\\' && !escaped;
    }
    plain.into()
}

fn invalid_rule(file: &RepoPath, line: usize, why: &ignore::Error) -> Error {
    Error::usage(format!("`{file}`, line {line}: {why}")).hint("the syntax is that of gitignore")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(folder: &str, text: &str, parent: Option<Arc<Level>>) -> Arc<Level> {
        let folder = RepoPath::from_text(folder).unwrap();
        let rules = Some(parse(&folder, text.as_bytes(), InvalidLine::Refuse).unwrap());
        Arc::new(Level { folder, rules, parent, ignore_all: false })
    }

    fn ignored(level: &Level, path: &str) -> bool {
        let (path, is_dir) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        level.ignores(&RepoPath::from_text(folder).unwrap(), name.as_bytes(), is_dir)
    }

    #[test]
    fn rules_follow_gitignore() {
        let top = level("", "# no\n\n*.tmp\n/cache/\n!keep.tmp\r\nd/**/x\n\\#odd\ntrail\\ \n", None);
        for path in ["a.tmp", "d/a.tmp", "cache/", "d/x", "d/e/f/x", "#odd", "d/trail "] {
            assert!(ignored(&top, path), "{path}");
        }
        for path in ["a.tmp2", "keep.tmp", "d/keep.tmp", "cache", "d/cache/", "x", "# no"] {
            assert!(!ignored(&top, path), "{path}");
        }
    }

    #[test]
    fn names_that_cannot_be_tracked_can_be_ignored() {
        let top = level("", ".GIT\n.git/\n", None);
        assert!(ignored(&top, ".GIT") && ignored(&top, "d/.git/") && !ignored(&top, ".git"));
    }

    #[test]
    fn braces_are_literal() {
        let top = level("", "{a,b}\n\\{x}\n[{]y\n", None);
        assert!(ignored(&top, "{a,b}") && ignored(&top, "{x}") && ignored(&top, "{y"));
        assert!(!ignored(&top, "a") && !ignored(&top, "b") && !ignored(&top, "x"));
    }

    #[test]
    fn the_nearest_rules_take_precedence() {
        let top = level("", "*.tmp\n/d/only\n", None);
        let inner = level("d", "!a.tmp\n/x\n", Some(top));
        assert!(!ignored(&inner, "d/a.tmp") && ignored(&inner, "d/b.tmp") && ignored(&inner, "d/only"));
        assert!(ignored(&inner, "d/x") && !ignored(&inner, "d/e/x"));
    }

    #[test]
    fn an_invalid_line_is_named_or_skipped() {
        let file = RepoPath::from_text("d/.mlxignore").unwrap();
        let error = parse(&file, b"ok\n[z-a]\n", InvalidLine::Refuse).unwrap_err();
        assert!(error.to_string().starts_with("`d/.mlxignore`, line 2: "), "{error}");
        assert_eq!(parse(&file, b"ok\n[z-a]\n", InvalidLine::Skip).unwrap().num_ignores(), 1);
    }
}
