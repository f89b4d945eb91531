//! `.mlxignore`: which files of the workspace are nobody's business, by gitignore's rules.
//!
//! The file nearest to a path has the first word, its last matching line decides, and nothing inside an
//! ignored folder comes back by a `!`. As with Git, what is on record stays on record: rules are for files
//! that mlx does not track yet. What is named outright (a pointer, an output) is looked at whatever the
//! rules above it say; those below it hold.
//!
//! A folder in which everything is ignored is as good as ignored, unless it is on record: where a checkout takes
//! the files of a folder away and leaves the ignored ones, nothing has changed. An empty folder is recorded.

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
    fs::{Dir, Form, Root},
    path::RepoPath,
    pointer::{Content, Pointer, Shape},
    repo::Repo,
    store::{EntryKind, Store, entries, file_at},
};

/// The name of a file with rules.
pub const FILE: &str = ".mlxignore";
/// Bytes of such a file. It may come with data of strangers, and matching takes many times its room.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// The rules that hold at and below one path.
pub struct Rules<'r> {
    store: &'r Store,
    tracked: Option<(RepoPath, Content)>,
    /// Folders with something to say; the nearest one at or above a path speaks for it.
    levels: RwLock<HashMap<RepoPath, Arc<Level>>>,
}

struct Level {
    folder: RepoPath,
    rules: Option<Gitignore>,
    parent: Option<Arc<Level>>,
    /// An ignored folder that is entered for what is on record in it.
    ignore_all: bool,
}

impl<'r> Rules<'r> {
    /// The rules for what lies at `path`; `record` is what is tracked there.
    pub fn open(repo: &'r Repo, path: &RepoPath, tracked: Option<&Pointer>) -> Result<Self> {
        let tracked = tracked.map(|it| (it.path.clone(), it.content));
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

    /// Whether the rules leave out a path or a folder above it, and it is not on record.
    pub fn excludes(&self, path: &RepoPath, is_dir: bool) -> Result<bool> {
        let mut here = RepoPath::root();
        for name in path.components() {
            let level = self.level(&here);
            here = here.join(name)?;
            if level.is_some_and(|it| it.ignores(&here, is_dir || here != *path)) {
                return Ok(!self.is_tracked(path)?);
            }
        }
        Ok(false)
    }

    /// Whether a path is on record.
    pub fn is_tracked(&self, path: &RepoPath) -> Result<bool> {
        let folder = path.parent().unwrap_or_default();
        Ok(self.tracked_names(&folder)?.is_some_and(|it| it.contains(path.name())))
    }

    /// Takes out of the names in a folder what is ignored and not on record.
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
        let ignored =
            |it: &(Vec<u8>, T)| folder.join(&it.0).is_ok_and(|path| level.ignores(&path, is_dir(&it.1)));
        let ignored: Vec<bool> = names.iter().map(ignored).collect();
        if !ignored.contains(&true) {
            return Ok(());
        }
        let tracked = self.tracked_names(folder)?.unwrap_or_default();
        let mut ignored = ignored.into_iter();
        names.retain(|(name, kind)| {
            if !ignored.next().expect("there is one for each name") {
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

    /// Reads the rules of a folder that a walk comes to.
    fn load_level(&self, dir: &Dir, name: &[u8]) -> Result<Option<Arc<Level>>> {
        let level = self.level(dir.path());
        if level.as_ref().is_some_and(|it| it.ignore_all || it.folder == *dir.path()) {
            return Ok(level);
        }
        let mut bytes = Vec::new();
        dir.open(name)?.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes).map_err(|it| {
            Error::new(Kind::Internal, format!("cannot read `{}/{FILE}`", dir.path())).because(it)
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

    /// The names on record in a folder; of a folder above what is tracked, the next one on the way. A tree
    /// that is not here has none.
    fn tracked_names(&self, folder: &RepoPath) -> Result<Option<HashSet<Vec<u8>>>> {
        let Some((top, content)) = &self.tracked else { return Ok(None) };
        if let Some(below) = top.below(folder).filter(|it| !it.is_root()) {
            return Ok(below.components().next().map(|it| HashSet::from([it.to_vec()])));
        }
        let Some(below) = folder.below(top).filter(|_| content.kind == Shape::Tree) else { return Ok(None) };
        let tree = if below.is_root() {
            Ok(Some(content.digest))
        } else {
            file_at(self.store, &content.digest, &below)
                .map(|it| it.filter(|it| it.kind == EntryKind::Folder).map(|it| it.digest))
        };
        let rows = tree.and_then(|it| it.map(|it| entries(self.store, &it)).transpose());
        match rows {
            Ok(rows) => Ok(rows.map(|it| it.into_iter().map(|it| it.name.into_vec()).collect())),
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
            let below = path.below(&level.folder).unwrap_or_default();
            match level
                .rules
                .as_ref()
                .map(|it| it.matched(Path::new(OsStr::from_bytes(below.bytes())), is_dir))
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
    match files.stamp(&file)?.map(|it| it.form) {
        Some(Form::File) => {
            files.read_start(&file, MAX_FILE_SIZE + 1)?.map(|it| parse(folder, &it)).transpose()
        }
        _ => Ok(None),
    }
}

/// A line that makes no sense is an error: what it was to leave out would be taken in.
fn parse(folder: &RepoPath, bytes: &[u8]) -> Result<Gitignore> {
    if bytes.len() as u64 > MAX_FILE_SIZE {
        let file = folder.to_text();
        let file = if folder.is_root() { FILE.to_owned() } else { format!("{file}/{FILE}") };
        return Err(Error::corrupt(format!("`{file}` is larger than {} MiB", MAX_FILE_SIZE >> 20))
            .hint("rules are lines for people: name a folder instead of its files"));
    }
    let mut builder = GitignoreBuilder::new(".");
    let text = String::from_utf8_lossy(bytes);
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        builder.add_line(None, &escape_braces(line)).map_err(|it| invalid_rule(folder, at + 1, &it))?;
    }
    builder.build().map_err(|it| invalid_rule(folder, 0, &it))
}

/// Git takes braces for themselves, where other globs choose between what stands in them.
fn escape_braces(line: &str) -> Cow<'_, str> {
    if !line.contains(['{', '}']) {
        return line.into();
    }
    let (mut plain, mut escaped, mut class) = (String::with_capacity(line.len() + 4), false, false);
    for it in line.chars() {
        if matches!(it, '{' | '}') && !escaped && !class {
            plain.push('\\');
        }
        plain.push(it);
        class = !escaped && (it == '[' || class && it != ']');
        escaped = it == '\\' && !escaped;
    }
    plain.into()
}

fn invalid_rule(folder: &RepoPath, line: usize, why: &ignore::Error) -> Error {
    let file = folder.join(FILE.as_bytes()).unwrap_or_default();
    Error::usage(format!("`{file}`, line {line}: {why}")).hint("its rules are those of gitignore")
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
        let path = path.strip_suffix('/').map_or((path, false), |it| (it, true));
        level.ignores(&RepoPath::from_text(path.0).unwrap(), path.1)
    }

    #[test]
    fn the_rules_are_those_of_gitignore() {
        let top = level("", "# no\n\n*.tmp\n/cache/\n!keep.tmp\r\nd/**/x\n\\#odd\ntrail\\ \n", None);
        for path in ["a.tmp", "d/a.tmp", "cache/", "d/x", "d/e/f/x", "#odd", "d/trail "] {
            assert!(ignored(&top, path), "{path}");
        }
        for path in ["a.tmp2", "keep.tmp", "d/keep.tmp", "cache", "d/cache/", "x", "# no"] {
            assert!(!ignored(&top, path), "{path}");
        }
    }

    #[test]
    fn braces_stand_for_themselves() {
        let top = level("", "{a,b}\n\\{x}\n[{]y\n", None);
        assert!(ignored(&top, "{a,b}") && ignored(&top, "{x}") && ignored(&top, "{y"));
        assert!(!ignored(&top, "a") && !ignored(&top, "b") && !ignored(&top, "x"));
    }

    #[test]
    fn the_nearest_file_has_the_first_word() {
        let top = level("", "*.tmp\n/d/only\n", None);
        let inner = level("d", "!a.tmp\n/x\n", Some(top));
        assert!(!ignored(&inner, "d/a.tmp") && ignored(&inner, "d/b.tmp") && ignored(&inner, "d/only"));
        assert!(ignored(&inner, "d/x") && !ignored(&inner, "d/e/x"));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        let error = parse(&RepoPath::root(), b"ok\n[z-a]\n").unwrap_err();
        assert!(error.to_string().starts_with("`.mlxignore`, line 2: "), "{error}");
    }
}
