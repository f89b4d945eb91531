//! `.mlxignore`: which workspace files mlx skips, by gitignore's rules.
//!
//! As in Git, tracked files stay tracked: rules apply to files that
//! mlx does not track yet. A path that is named explicitly (a pointer, an output) is scanned whatever the
//! rules above it say; the rules below it apply.
//!
//! A folder in which everything is ignored counts as ignored unless it is tracked: a checkout that removes
//! the files of a folder and leaves the ignored ones changes nothing else. An empty folder is recorded.

use std::{
    collections::BTreeMap,
    io::Read as _,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
    fs::Dir,
    path::RepoPath,
    pointer::{Content, ContentKind, Pointer},
    store::{EntryKind, Store, TreeEntry, entries, entry_at},
    workspace::{
        Workspace,
        levels::{InvalidLine, Level, Levels, MAX_FILE_SIZE, parse, read_rules},
    },
};

/// Name of a file with ignore rules.
pub const FILE: &str = ".mlxignore";

/// Recorded folders kept in memory: those on the way to the folders that all cores walk.
const MAX_RECENT: usize = 16;

/// The rules that apply at and below one path.
pub struct Rules<'r> {
    store: &'r Store,
    tracked: Option<(RepoPath, Content)>,
    levels: Levels,
    /// Files with rules that a sparse checkout leaves out, by folder.
    skipped: Arc<BTreeMap<RepoPath, Vec<u8>>>,
    /// Recorded folders, by their path below the tracked one, the last used one first.
    recent: Mutex<Vec<(RepoPath, Rows)>>,
}

/// The rows of a recorded folder, sorted by name.
type Rows = Arc<Vec<TreeEntry>>;

impl<'r> Rules<'r> {
    /// Reads the rules for a scan of `path`; `tracked` is the pointer that tracks it.
    pub fn open(workspace: &Workspace<'r>, path: &RepoPath, tracked: Option<&Pointer>) -> Result<Self> {
        let tracked = tracked.map(|pointer| (pointer.path.clone(), pointer.content));
        let (repo, skipped) = (workspace.repo, workspace.skipped_rules()?);
        let rules = Self {
            store: &repo.store,
            tracked,
            levels: Levels::default(),
            skipped,
            recent: Mutex::default(),
        };
        let mut folder = RepoPath::root();
        for name in path.components() {
            // An invalid line is an error: to skip it would add files that it was meant to exclude.
            let own = match rules.skipped.get(&folder) {
                Some(bytes) => Some(parse(&folder.join(FILE.as_bytes())?, bytes, InvalidLine::Refuse)?),
                None => read_rules(&repo.files, &folder, FILE, InvalidLine::Refuse)?,
            };
            if let Some(own) = own {
                rules.levels.add(&folder, Some(own), false);
            }
            folder = folder.join(name)?;
        }
        Ok(rules)
    }

    /// Returns true if the rules exclude a path or a folder above it, and the path is not tracked.
    pub fn excludes(&self, path: &RepoPath, is_dir: bool) -> Result<bool> {
        Ok(self.ignores(&RepoPath::root(), path, is_dir)? && !self.is_tracked(path)?)
    }

    /// Returns true if the rules match a path below `top`, or a folder between the two.
    pub fn ignores(&self, top: &RepoPath, path: &RepoPath, is_dir: bool) -> Result<bool> {
        let mut here = RepoPath::root();
        for name in path.components() {
            let folder = here.clone();
            here = here.join(name)?;
            if !folder.is_within(top) {
                continue;
            }
            let level = self.levels.at(&folder);
            if level.is_some_and(|level| level.ignores(&folder, name, is_dir || here != *path)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns true if the path has an entry in the recorded tree, or is on the way to it.
    pub fn is_tracked(&self, path: &RepoPath) -> Result<bool> {
        let Some((top, content)) = &self.tracked else { return Ok(false) };
        let Some(below) = path.strip_prefix(top).filter(|it| !it.is_root()) else {
            return Ok(!path.is_root() && top.is_within(path));
        };
        if content.kind != ContentKind::Tree {
            return Ok(false);
        }
        let rows = self.rows(content, &below.parent().unwrap_or_default())?;
        Ok(find(&rows, below.name()).is_some())
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
            Ok((name, kind)) if !is_dir(kind) => self.load_level(folder, || read(dir, name))?,
            _ => match self.skipped.get(folder) {
                Some(bytes) => self.load_level(folder, || Ok(bytes.clone()))?,
                None => self.levels.at(folder),
            },
        };
        let Some(level) = level else { return Ok(()) };
        let ignored = |entry: &(Vec<u8>, T)| level.ignores(folder, &entry.0, is_dir(&entry.1));
        let ignored: Vec<bool> = names.iter().map(ignored).collect();
        if !ignored.contains(&true) {
            return Ok(());
        }
        let mut kept = Vec::new();
        for (at, (name, kind)) in names.iter().enumerate().filter(|(at, _)| ignored[*at]) {
            let Ok(path) = folder.join(name) else { continue };
            if self.is_tracked(&path)? {
                kept.push(at);
                if is_dir(kind) {
                    self.levels.add(&path, None, true);
                }
            }
        }
        let mut at = 0..;
        names.retain(|_| at.next().is_some_and(|at| !ignored[at] || kept.binary_search(&at).is_ok()));
        Ok(())
    }

    /// Reads the rules of a folder that the scan enters.
    fn load_level(
        &self,
        folder: &RepoPath,
        read: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Option<Arc<Level>>> {
        let level = self.levels.at(folder);
        if level.as_ref().is_some_and(|level| level.ignore_all || level.folder == *folder) {
            return Ok(level);
        }
        let rules = parse(&folder.join(FILE.as_bytes())?, &read()?, InvalidLine::Refuse)?;
        Ok(Some(self.levels.add(folder, Some(rules), false)))
    }

    /// Returns the recorded rows of a folder `below` the tracked one; none if it is not recorded, or not in
    /// the local store.
    fn rows(&self, content: &Content, below: &RepoPath) -> Result<Rows> {
        if let Some(rows) = self.recent(below) {
            return Ok(rows);
        }
        let read = |digest: Option<Digest>| match digest {
            Some(digest) => entries(self.store, &digest),
            None => Ok(Vec::new()),
        };
        let rows = Arc::new(match self.digest(content, below).and_then(read) {
            Err(error) if error.kind() == Kind::NotFound => Vec::new(),
            rows => rows?,
        });
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.insert(0, (below.clone(), Arc::clone(&rows)));
        recent.truncate(MAX_RECENT);
        Ok(rows)
    }

    fn digest(&self, content: &Content, below: &RepoPath) -> Result<Option<Digest>> {
        let Some(parent) = below.parent() else { return Ok(Some(content.digest)) };
        let entry = match self.recent(&parent) {
            Some(rows) => find(&rows, below.name()).cloned(),
            None => entry_at(self.store, &content.digest, below)?,
        };
        Ok(entry.filter(|it| it.kind == EntryKind::Folder).map(|entry| entry.digest))
    }

    fn recent(&self, below: &RepoPath) -> Option<Rows> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let at = recent.iter().position(|(folder, _)| folder == below)?;
        recent[..=at].rotate_right(1);
        Some(Arc::clone(&recent[0].1))
    }
}

fn find<'e>(rows: &'e [TreeEntry], name: &[u8]) -> Option<&'e TreeEntry> {
    rows.binary_search_by(|row| row.name[..].cmp(name)).ok().map(|at| &rows[at])
}

/// Reads a file with rules, up to the limit on its size.
fn read(dir: &Dir, name: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    dir.open(name)?.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes).map_err(|error| {
        Error::new(Kind::Internal, format!("cannot read `{}/{FILE}`", dir.path())).with_source(error)
    })?;
    Ok(bytes)
}
