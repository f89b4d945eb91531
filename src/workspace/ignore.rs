//! `.mlxignore`: which workspace files mlx skips, by gitignore's rules.
//!
//! The nearest file with rules takes precedence, its last matching line decides, and a `!` does not bring
//! back anything inside an ignored folder. As in Git, tracked files stay tracked: rules apply to files that
//! mlx does not track yet. A path that is named explicitly (a pointer, an output) is scanned whatever the
//! rules above it say; the rules below it apply.
//!
//! A folder in which everything is ignored counts as ignored unless it is tracked: a checkout that removes
//! the files of a folder and leaves the ignored ones changes nothing else. An empty folder is recorded.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    ffi::OsStr,
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

use crate::{
    error::{Error, Kind, Result},
    fs::{Dir, FileKind, Root},
    path::RepoPath,
    pointer::{Content, ContentKind, Pointer},
    repo::Repo,
    store::{EntryKind, Store, entries, entry_at},
};

/// Name of a file with ignore rules.
pub const FILE: &str = ".mlxignore";
/// Largest rules file, in bytes: it may be untrusted, and matching takes many times its size in memory.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// The rules that apply at and below one path.
pub struct Rules<'r> {
    store: &'r Store,
    tracked: Option<(RepoPath, Content)>,
    /// Folders with rules; the nearest one at or above a path applies to it.
    levels: RwLock<HashMap<RepoPath, Arc<Level>>>,
}

struct Level {
    folder: RepoPath,
    rules: Option<Gitignore>,
    parent: Option<Arc<Level>>,
    /// True for an ignored folder that is descended into because it contains tracked files.
    ignore_all: bool,
}

impl<'r> Rules<'r> {
    /// Reads the rules for a scan of `path`; `tracked` is the pointer that tracks it.
    pub fn open(repo: &'r Repo, path: &RepoPath, tracked: Option<&Pointer>) -> Result<Self> {
        let tracked = tracked.map(|pointer| (pointer.path.clone(), pointer.content));
        let rules = Self { store: &repo.store, tracked, levels: RwLock::default() };
        let mut folder = RepoPath::root();
        for name in path.components() {
            if let Some(own) = read_rules(&repo.files, &folder)? {
                rules.add(&folder, Some(own), false);
            }
            folder = folder.join(name)?;
        }
        Ok(rules)
    }

    /// Returns true if the rules exclude a path or a folder above it, and the path is not tracked.
    pub fn excludes(&self, path: &RepoPath, is_dir: bool) -> Result<bool> {
        let mut here = RepoPath::root();
        for name in path.components() {
            let level = self.level(&here);
            here = here.join(name)?;
            if level.is_some_and(|level| level.ignores(&here, is_dir || here != *path)) {
                return Ok(!self.is_tracked(path)?);
            }
        }
        Ok(false)
    }

    /// Returns true if the path has an entry in the recorded tree.
    pub fn is_tracked(&self, path: &RepoPath) -> Result<bool> {
        let folder = path.parent().unwrap_or_default();
        Ok(self.tracked_names(&folder)?.is_some_and(|it| it.contains(path.name())))
    }

    /// Removes ignored, untracked names from the listing of a folder.
    pub fn filter<T>(
        &self,
        dir: &Dir,
        names: &mut Vec<(Vec<u8>, T)>,
        is_dir: impl Fn(&T) -> bool,
    ) -> Result<()> {
        let folder = dir.path();
        // A folder lists its names sorted.
        let rules = names.binary_search_by(|it| it.0[..].cmp(FILE.as_bytes())).map(|at| &names[at]);
        let level = match rules {
            Ok((name, kind)) if !is_dir(kind) => self.load_level(dir, name)?,
            _ => self.level(folder),
        };
        let Some(level) = level else { return Ok(()) };
        let ignored = |entry: &(Vec<u8>, T)| {
            folder.join(&entry.0).is_ok_and(|path| level.ignores(&path, is_dir(&entry.1)))
        };
        let ignored: Vec<bool> = names.iter().map(ignored).collect();
        if !ignored.contains(&true) {
            return Ok(());
        }
        let tracked = self.tracked_names(folder)?.unwrap_or_default();
        let mut ignored = ignored.into_iter();
        names.retain(|(name, kind)| {
            if !ignored.next().expect("every name has a flag") {
                return true;
            }
            let kept = tracked.contains(name);
            if kept
                && is_dir(kind)
                && let Ok(path) = folder.join(name)
            {
                self.add(&path, None, true);
            }
            kept
        });
        Ok(())
    }

    /// Reads the rules of a folder that the scan enters.
    fn load_level(&self, dir: &Dir, name: &[u8]) -> Result<Option<Arc<Level>>> {
        let level = self.level(dir.path());
        if level.as_ref().is_some_and(|level| level.ignore_all || level.folder == *dir.path()) {
            return Ok(level);
        }
        let mut bytes = Vec::new();
        dir.open(name)?.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes).map_err(|error| {
            Error::new(Kind::Internal, format!("cannot read `{}/{FILE}`", dir.path())).with_source(error)
        })?;
        Ok(Some(self.add(dir.path(), Some(parse(dir.path(), &bytes)?), false)))
    }

    fn add(&self, folder: &RepoPath, rules: Option<Gitignore>, ignore_all: bool) -> Arc<Level> {
        let level = Arc::new(Level { folder: folder.clone(), rules, parent: self.level(folder), ignore_all });
        let mut levels = self.levels.write().unwrap_or_else(PoisonError::into_inner);
        levels.insert(folder.clone(), Arc::clone(&level));
        level
    }

    fn level(&self, folder: &RepoPath) -> Option<Arc<Level>> {
        let levels = self.levels.read().unwrap_or_else(PoisonError::into_inner);
        if levels.is_empty() {
            return None;
        }
        let mut here = Some(folder.clone());
        while let Some(folder) = here {
            if let Some(level) = levels.get(&folder) {
                return Some(Arc::clone(level));
            }
            here = folder.parent();
        }
        None
    }

    /// Returns the tracked names in a folder; for a folder above the tracked path, the next component on the
    /// way to it. A tree that is not in the local store has none.
    fn tracked_names(&self, folder: &RepoPath) -> Result<Option<HashSet<Vec<u8>>>> {
        let Some((top, content)) = &self.tracked else { return Ok(None) };
        if let Some(below) = top.strip_prefix(folder).filter(|it| !it.is_root()) {
            return Ok(below.components().next().map(|name| HashSet::from([name.to_vec()])));
        }
        let Some(below) = folder.strip_prefix(top).filter(|_| content.kind == ContentKind::Tree) else {
            return Ok(None);
        };
        let tree = if below.is_root() {
            Ok(Some(content.digest))
        } else {
            entry_at(self.store, &content.digest, &below)
                .map(|entry| entry.filter(|it| it.kind == EntryKind::Folder).map(|entry| entry.digest))
        };
        let rows = tree.and_then(|digest| digest.map(|digest| entries(self.store, &digest)).transpose());
        match rows {
            Ok(rows) => Ok(rows.map(|rows| rows.into_iter().map(|row| row.name.into_vec()).collect())),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Level {
    fn ignores(&self, path: &RepoPath, is_dir: bool) -> bool {
        let mut here = Some(self);
        while let Some(level) = here {
            if level.ignore_all {
                return true;
            }
            let below = path.strip_prefix(&level.folder).unwrap_or_default();
            match level
                .rules
                .as_ref()
                .map(|rules| rules.matched(Path::new(OsStr::from_bytes(below.bytes())), is_dir))
            {
                Some(Match::Ignore(_)) => return true,
                Some(Match::Whitelist(_)) => return false,
                _ => here = level.parent.as_deref(),
            }
        }
        false
    }
}

fn read_rules(files: &Root, folder: &RepoPath) -> Result<Option<Gitignore>> {
    let file = folder.join(FILE.as_bytes())?;
    match files.stat(&file)?.map(|it| it.kind) {
        Some(FileKind::File) => {
            files.read_prefix(&file, MAX_FILE_SIZE + 1)?.map(|bytes| parse(folder, &bytes)).transpose()
        }
        _ => Ok(None),
    }
}

/// Parses rules. An invalid line is an error: ignoring it would add files that it was meant to exclude.
fn parse(folder: &RepoPath, bytes: &[u8]) -> Result<Gitignore> {
    if bytes.len() as u64 > MAX_FILE_SIZE {
        let file = folder.to_text();
        let file = if folder.is_root() { FILE.to_owned() } else { format!("{file}/{FILE}") };
        return Err(Error::corrupt(format!("`{file}` is larger than {} MiB", MAX_FILE_SIZE >> 20))
            .hint("ignore whole folders instead of listing their files"));
    }
    let mut builder = GitignoreBuilder::new(".");
    let text = String::from_utf8_lossy(bytes);
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        builder.add_line(None, &escape_braces(line)).map_err(|error| invalid_rule(folder, at + 1, &error))?;
    }
    builder.build().map_err(|error| invalid_rule(folder, 0, &error))
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

fn invalid_rule(folder: &RepoPath, line: usize, why: &ignore::Error) -> Error {
    let file = folder.join(FILE.as_bytes()).unwrap_or_default();
    Error::usage(format!("`{file}`, line {line}: {why}")).hint("the syntax is that of gitignore")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(folder: &str, text: &str, parent: Option<Arc<Level>>) -> Arc<Level> {
        let folder = RepoPath::from_text(folder).unwrap();
        let rules = Some(parse(&folder, text.as_bytes()).unwrap());
        Arc::new(Level { folder, rules, parent, ignore_all: false })
    }

    fn ignored(level: &Level, path: &str) -> bool {
        let path = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        level.ignores(&RepoPath::from_text(path.0).unwrap(), path.1)
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
    fn an_invalid_line_is_named() {
        let error = parse(&RepoPath::root(), b"ok\n[z-a]\n").unwrap_err();
        assert!(error.to_string().starts_with("`.mlxignore`, line 2: "), "{error}");
    }
}
