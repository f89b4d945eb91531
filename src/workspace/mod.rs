//! The workspace: finds tracked paths, scans the files for changes, stores them and checks them out.
//!
//! A tracked path has a pointer file beside it (`data.mlx` for `data/`). Each operation is one child module;
//! [`Workspace`] carries them all, with the stat cache (`index`) that spares hashing unchanged files, and the
//! bases (`base`) against which changes are made and merged (`merge`).

mod add;
mod addable;
mod base;
mod checkout;
mod collision;
mod compare;
mod execute;
mod exposed;
mod filter;
mod git_ignored;
mod glob;
mod guard;
mod ignore;
mod index;
mod kept;
mod leftovers;
mod levels;
mod links;
mod merge;
mod modes;
mod named_paths;
mod node;
mod parts;
mod pointers;
mod relink;
mod remove;
mod rename;
mod retire;
mod rows;
mod scan;
mod select;
mod siblings;
mod sides;
mod stamps;
mod status;
mod steering;
mod summary;
mod unprotect;

pub use self::{
    addable::AddRules,
    base::Bases,
    checkout::{CheckoutStats, checkout, checkout_part, checkout_parts, place_parts, remove_files},
    glob::Glob,
    kept::{KEPT_DAYS, KeptVersion, find_version, forget_expired, kept_versions, read_kept, unknown_version},
    leftovers::clean_work_tree,
    links::Links,
    merge::{Base, Merge, Mine, merge},
    named_paths::NamedPaths,
    node::Node,
    relink::{Relinked, relink_parts},
    remove::{FilePolicy, RemoveResult},
    rename::MoveResult,
    select::skipped_error,
    stamps::{Change as StampChange, Moved, Stamps, stats_above},
    status::{Behind, Change, PathStatus, State, Version, diff_versions},
    steering::{LOCKFILE, PIPELINE_FILE, belongs_in_git, is_lockfile, is_of_pipeline, is_tracking_file},
    summary::false_lines,
    unprotect::UnprotectStats,
};

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    error::{Error, Kind, Result},
    fs::{FileKind, FileType},
    git::HeadLines,
    path::RepoPath,
    pointer::{Content, Pointer},
    progress::{Progress, Silent},
    repo::Repo,
    store::{EntryKind, Writer},
};

use self::{filter::ScanFilter, git_ignored::GitIgnored, index::Index};

/// Tracked paths, and files that cannot be read.
#[derive(Default)]
pub struct Tracked {
    pub pointers: Vec<Pointer>,
    pub unreadable: Vec<Unreadable>,
    /// Unreadable files that a selection left out.
    pub others: Vec<Unreadable>,
    /// Paths whose record a sparse checkout leaves out, each with the file to bring.
    pub skipped: Vec<(RepoPath, RepoPath)>,
}

/// Pointer or lockfile that cannot be read.
pub struct Unreadable {
    pub file: RepoPath,
    /// The paths that it tracks, as far as they are known without it.
    pub paths: Vec<RepoPath>,
    pub error: Error,
}

impl Unreadable {
    /// Returns true for a lockfile, which may record more than the known paths.
    pub fn is_lockfile(&self) -> bool {
        is_lockfile(self.file.bytes())
    }

    /// Returns true if the file, or a path that it is known to track, contains `path` or is within it.
    fn overlaps(&self, path: &RepoPath) -> bool {
        self.file.overlaps(path) || self.paths.iter().any(|own| own.overlaps(path))
    }
}

impl Tracked {
    /// Keeps the tracked paths that contain one of `paths` or lie in one; all of them if `paths` is empty.
    pub fn select(mut self, paths: &[RepoPath]) -> Result<Self> {
        if let Some(path) = paths.iter().find(|path| !self.covers(path)) {
            if let Some((_, file)) = self.skipped.iter().find(|(skipped, _)| skipped.overlaps(path)) {
                return Err(skipped_error(file));
            }
            let error = Error::not_found(format!("mlx does not track `{path}`"));
            return Err(error.hint("`mlx status` lists what it tracks; `mlx add` tracks more"));
        }
        if !paths.is_empty() {
            self.pointers.retain(|pointer| paths.iter().any(|path| pointer.path.overlaps(path)));
            let is_wanted = |file: &Unreadable| paths.iter().any(|path| file.overlaps(path));
            let (wanted, others) = self.unreadable.into_iter().partition(is_wanted);
            (self.unreadable, self.others) = (wanted, others);
        }
        Ok(self)
    }

    /// Returns true if a tracked path or an unreadable file contains `path` or is within it.
    fn covers(&self, path: &RepoPath) -> bool {
        self.pointers.iter().any(|pointer| pointer.path.overlaps(path))
            || self.unreadable.iter().any(|file| file.overlaps(path))
    }

    /// Returns all pointers; an unreadable file is an error, for callers that must not omit any.
    pub fn into_pointers(self) -> Result<Vec<Pointer>> {
        match self.unreadable.into_iter().next() {
            Some(file) => Err(file.error),
            None => Ok(self.pointers),
        }
    }

    /// Adds the paths and files of `other`.
    pub fn extend(&mut self, other: Self) {
        self.pointers.extend(other.pointers);
        self.unreadable.extend(other.unreadable);
        self.others.extend(other.others);
        self.skipped.extend(other.skipped);
    }
}

/// Takes the entries of a folder and returns those of its folders to go on with.
type Visit<'v> = dyn FnMut(Vec<(RepoPath, FileType)>) -> Vec<RepoPath> + 'v;

/// The files of a repository, with its stat cache and the bases that changes are made against.
pub struct Workspace<'r> {
    pub repo: &'r Repo,
    index: RefCell<Index>,
    bases: RefCell<Bases>,
    skipped_rules: OnceCell<Arc<BTreeMap<RepoPath, Vec<u8>>>>,
    head_lines: OnceCell<Option<HeadLines>>,
    /// Paths with a missing pointer file for which the work tree was searched.
    searched: RefCell<BTreeSet<RepoPath>>,
    /// True if the file system does not tell names that differ in case, once that is known.
    case_insensitive: OnceCell<bool>,
    /// Folders that were cleaned of what killed commands left.
    cleaned: RefCell<BTreeSet<RepoPath>>,
    /// The contents as they are stated by pointers that name the wrong kind.
    misstated: RefCell<BTreeMap<RepoPath, Content>>,
}

impl<'r> Workspace<'r> {
    /// Opens the workspace without a lock: one is held only while the index is replaced.
    pub fn open(repo: &'r Repo) -> Result<Self> {
        let (index, bases) = (Index::load(repo)?, Bases::load(repo)?);
        let (index, bases) = (RefCell::new(index), RefCell::new(bases));
        let (skipped_rules, head_lines) = (OnceCell::new(), OnceCell::new());
        let (searched, cleaned, misstated) = Default::default();
        Ok(Self {
            repo,
            index,
            bases,
            skipped_rules,
            head_lines,
            searched,
            cleaned,
            misstated,
            case_insensitive: OnceCell::new(),
        })
    }

    /// Returns the bytes of each `.mlxignore` that a sparse checkout leaves out, by its folder.
    fn skipped_rules(&self) -> Result<Arc<BTreeMap<RepoPath, Vec<u8>>>> {
        if let Some(known) = self.skipped_rules.get() {
            return Ok(Arc::clone(known));
        }
        let is_rules =
            |path: &[u8]| path.rsplit(|&byte| byte == b'/').next() == Some(ignore::FILE.as_bytes());
        let mut rules = BTreeMap::new();
        for (file, blob) in self.repo.git.skipped(&is_rules)? {
            if self.repo.files.stat(&file)?.is_none() {
                rules.insert(file.parent().unwrap_or_default(), self.repo.git.read_blob(blob)?);
            }
        }
        Ok(Arc::clone(self.skipped_rules.get_or_init(|| Arc::new(rules))))
    }

    /// Returns the folders that hold a pipeline or its lockfile, whether or not Git tracks it.
    pub fn pipeline_folders(&self) -> Result<BTreeSet<RepoPath>> {
        let (pointers, mut found) = (self.pointer_paths()?, BTreeSet::new());
        self.walk(&RepoPath::root(), &mut |entries| {
            let files = entries.iter().filter(|(path, _)| is_of_pipeline(path.name()));
            found.extend(files.filter_map(|(path, _)| path.parent()));
            let folders =
                entries.into_iter().filter(|(path, kind)| kind.is_dir() && !pointers.contains(path));
            folders.map(|(path, _)| path).collect()
        })?;
        Ok(found)
    }

    /// Walks over folders: `visit` takes the entries of one and returns those of its folders to go on with.
    fn walk(&self, folder: &RepoPath, visit: &mut Visit<'_>) -> Result<()> {
        let names = match self.repo.files.dir(folder).and_then(|it| it.names()) {
            Ok(names) => names,
            // An unreadable folder does not fail the search; Git still lists its tracked pointers.
            Err(error) if matches!(error.kind(), Kind::Denied | Kind::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        // The files of another repository, such as a submodule, belong to that repository.
        if !folder.is_root() && names.iter().any(|it| it.0 == b".git") {
            return Ok(());
        }
        let entry = |(name, kind): (Vec<u8>, FileType)| Some((folder.join(&name).ok()?, kind));
        let subfolders = visit(names.into_iter().filter_map(entry).collect());
        subfolders.iter().try_for_each(|path| self.walk(path, visit))
    }

    /// Scans `path` without storing anything; `None` if nothing exists there.
    pub fn scan(&self, path: &RepoPath, progress: &dyn Progress) -> Result<Option<Node>> {
        scan::scan(self, path, None, progress)
    }

    /// Scans a dependency of a stage: as [`Workspace::scan`], without the files that the repository's
    /// `.gitignore` files name, with the stats that the digests belong to and the links. `kept` are the paths
    /// that mlx keeps: those with a pointer, and outputs.
    pub fn scan_dependency(
        &self,
        path: &RepoPath,
        kept: &BTreeSet<RepoPath>,
    ) -> Result<Option<(Node, Stamps, Links)>> {
        let filter = self.dependency_filter(path, kept)?;
        let Some((node, stamps)) = scan::scan_stamped(self, path, &filter, &Silent)? else { return Ok(None) };
        let links = Links::new(path, stamps.listing(), filter, kept);
        Ok(Some((node, stamps, links)))
    }

    /// Returns the filter for a walk of a dependency.
    fn dependency_filter<'v>(
        &'v self,
        path: &RepoPath,
        kept: &'v BTreeSet<RepoPath>,
    ) -> Result<ScanFilter<'v>> {
        let record = self.record_of(path);
        let filter = ScanFilter::new(self, path, record.as_ref())?;
        let is_folder = self.repo.files.stat(path)?.is_some_and(|it| it.kind == FileKind::Folder);
        let git = if is_folder { GitIgnored::open(&self.repo.files, path, kept)? } else { None };
        let filter = filter.without_git_ignored(git);
        // Content that mlx keeps has no links that lead out of it.
        Ok(if is_folder && !kept.contains(path) { filter.list_left_out() } else { filter })
    }

    /// Returns the content of `path` without storing it; `None` if nothing exists there.
    pub fn content(&self, path: &RepoPath, progress: &dyn Progress) -> Result<Option<Content>> {
        Ok(self.scan(path, progress)?.map(|it| it.content()))
    }

    /// Stores the file or folder at `path`; `None` if nothing exists there.
    pub fn store(&self, path: &RepoPath, progress: &dyn Progress) -> Result<Option<Content>> {
        let mut writer = Writer::new(&self.repo.store);
        let Some(node) = scan::scan(self, path, Some(&mut writer), progress)? else { return Ok(None) };
        writer.finish()?;
        Ok(Some(node.content()))
    }

    /// Stores an output of a stage, which may be checked out elsewhere later. As [`Workspace::store`], but
    /// refuses links: `path` itself, and any in it that leads out of it. Warns of names that are left out.
    pub fn store_output(&self, path: &RepoPath, progress: &dyn Progress) -> Result<Option<Content>> {
        let mut writer = Writer::new(&self.repo.store);
        let record = self.record_of(path);
        let filter = ScanFilter::new(self, path, record.as_ref())?.list_left_out();
        let node = scan::scan_filtered(self, path, &filter, Some(&mut writer), progress)?;
        let Some(node) = node else { return Ok(None) };
        if node.kind == EntryKind::Link {
            let error = Error::new(Kind::Denied, format!("`{path}` is a symlink"));
            return Err(error.hint("put the file or folder that it points to there"));
        }
        scan::check_links(self, &node, path, path)?;
        writer.finish()?;
        if let Some(text) = parts::left_out_text(path, &filter.into_left_out()) {
            progress.warn(&text);
        }
        Ok(Some(node.content()))
    }

    /// Writes the changed stat cache and bases to disk, under a short lock.
    pub fn save(&self, progress: &dyn Progress) -> Result<()> {
        let synced = self.index.borrow().is_changed();
        self.index.borrow_mut().save(self.repo, progress)?;
        // A path must be durable before a base lists it.
        if !synced && self.has_unsaved_bases() {
            self.repo.files.sync_all()?;
        }
        self.save_bases(progress)
    }

    /// Writes the changed stat cache unless another process holds the lock: for commands that never wait.
    /// Unsaved entries are computed again next time.
    pub fn save_if_free(&self) {
        drop(self.index.borrow_mut().save_if_free(self.repo));
    }
}
