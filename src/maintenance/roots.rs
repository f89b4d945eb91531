//! Roots of garbage collection: everything that the [`Snapshot`], all history behind it, run records, kept
//! versions and the traffic spool refer to.
//!
//! Each file is read once, however many commits hold it. If a pointer or lockfile in a worktree cannot be
//! parsed, its needs are unknown until the user fixes it. A file that has the suffix of a pointer but is not
//! one needs nothing. Messages of tags and events name packages and reports by their digests: everything that
//! looks like a digest there is kept, whether of a version, a release, or an event of a newer mlx.
//!
//! History is read as it is stored, without replacements (`git replace`). A replacement is a ref itself, so
//! that both are kept, as Git's own `gc` does.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::PathBuf,
    rc::Rc,
};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    fs,
    git::{BlobId, Git, GitRef, NewFiles, Rev, Target, TreeScan},
    ledger::AUDIT,
    maintenance::{
        history_cache::{HistoryCache, Tips},
        references::{
            FileReferences, ReadBlob, Unreadable, digests_in, filtered, overwritten, parse, read_committed,
        },
        snapshot::Snapshot,
    },
    path::RepoPath,
    pointer::{Content, ContentKind, SUFFIX},
    repo::Repo,
    store::Store,
    time::Timestamp,
    traffic::spool,
    workspace::{KeptVersion, is_tracking_file},
};

/// Place that refers to an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Referrer {
    Worktree(PathBuf),
    Index(PathBuf),
    Commit(Rev),
    /// A tag's message, an event, a record of a run, the spool, another clone.
    Other(String),
}

/// A place that refers to an object, and the path under which it does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    pub referrer: Referrer,
    pub path: RepoPath,
}

/// A referenced object.
#[derive(Clone, Debug, Default)]
pub struct RootEntry {
    /// Its content; `None` if only its digest is known, in which case it may never have been stored.
    pub content: Option<Content>,
    /// References to the object, if they were requested.
    pub references: Vec<Reference>,
}

/// All referenced objects and runs.
#[derive(Debug, Default)]
pub struct Roots {
    pub contents: BTreeMap<Digest, RootEntry>,
    /// Runs that lockfiles refer to.
    pub runs: BTreeSet<Digest>,
    /// Pointers and lockfiles whose needs are unknown, with their location.
    pub unreadable: Vec<(String, Error)>,
    /// Pointers and lockfiles that cannot be parsed and need only the digests written in them.
    pub salvaged: Vec<(String, Error)>,
    /// Locations among `unreadable` and `salvaged` that have the marks of a merge conflict.
    pub conflicts: BTreeSet<String>,
    /// Files that have the suffix of a pointer but are not pointers.
    pub not_pointers: BTreeSet<RepoPath>,
    /// Number of commits read.
    pub commits: u64,
    /// The commits, newest first, if their paths were requested.
    pub history: Vec<Rev>,
}

/// Choice between collecting digests only, references to each of which one commit names a path, and all
/// references to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    Digests,
    Paths,
    References,
}

/// Collects everything that the snapshot and its history refer to.
pub fn roots(repo: &Repo, snapshot: &Snapshot, detail: Detail) -> Result<Roots> {
    let git = repo.git.without_replacements();
    let mut reader = RootsReader::new(&git, detail);
    let tips = reader.tips(&snapshot.names)?;
    reader.commits(&tips.all)?;
    reader.events(if tips.events.is_empty() { Vec::new() } else { git.ancestors(&to_vec(&tips.events))? })?;
    reader.rest(repo, snapshot)
}

/// Collects roots as [`roots`] does, but digests only; history that was read before is not read again.
pub fn roots_since(repo: &Repo, snapshot: &Snapshot) -> Result<Roots> {
    let git = repo.git.without_replacements();
    let mut reader = RootsReader::new(&git, Detail::Digests);
    reader.update_history_cache(repo, &snapshot.names)?;
    reader.rest(repo, snapshot)
}

/// Reads commits that were added to history, so that [`roots_since`] has little left to do.
pub fn update_history_cache(repo: &Repo, names: &[GitRef]) -> Result<()> {
    RootsReader::new(&repo.git.without_replacements(), Detail::Digests).update_history_cache(repo, names)
}

/// Collects what the worktrees of a snapshot have, or last had.
pub(super) fn worktree_roots(git: &Git, snapshot: &Snapshot) -> Result<Roots> {
    let git = git.without_replacements();
    let mut reader = RootsReader::new(&git, Detail::Digests);
    reader.files(snapshot)?;
    snapshot.bases.iter().for_each(|content| reader.roots.add_content(*content, None));
    Ok(reader.roots)
}

impl RootsReader<'_> {
    fn rest(mut self, repo: &Repo, snapshot: &Snapshot) -> Result<Roots> {
        self.files(snapshot)?;
        let detail = self.detail;
        let mut roots = self.roots;
        roots.add_digests(
            snapshot.links.iter().copied(),
            &Referrer::Other("a link into the store".into()),
            detail,
        );
        // Not part of any record: a check does not miss them.
        if detail == Detail::Digests {
            snapshot.bases.iter().for_each(|content| roots.add_content(*content, None));
        }
        add_kept(snapshot, &mut roots, detail);
        add_spooled_traffic(repo, &mut roots, detail)?;
        add_other_needs(snapshot, &mut roots, detail)?;
        Ok(roots)
    }
}

impl Referrer {
    /// Formats the location of a file there for messages.
    pub(super) fn location(&self, path: &RepoPath) -> String {
        match self {
            Self::Worktree(root) => format!("`{}`", path.on_disk(root).display()),
            Self::Index(_) => format!("`{path}` in Git's index"),
            Self::Commit(rev) => format!("`{path}` at {}", rev.short()),
            Self::Other(name) => format!("`{path}` in {name}"),
        }
    }
}

impl RootEntry {
    pub(super) fn is_tree(&self) -> bool {
        self.content.is_some_and(|it| it.kind == ContentKind::Tree)
    }
}

impl Roots {
    /// Adds an object from earlier results.
    pub(super) fn add_known(&mut self, digest: Digest, tree: bool) {
        if tree {
            self.add_content(Content { digest, files: 0, kind: ContentKind::Tree, size: 0 }, None);
        } else {
            self.contents.entry(digest).or_default();
        }
    }

    /// Adds digests about which nothing else is known.
    fn add_digests(
        &mut self,
        digests: impl IntoIterator<Item = Digest>,
        referrer: &Referrer,
        detail: Detail,
    ) {
        for digest in digests {
            let entry = self.contents.entry(digest).or_default();
            if detail != Detail::Digests {
                entry.references.push(Reference { referrer: referrer.clone(), path: RepoPath::root() });
            }
        }
    }

    /// Adds all results of another reader, by digest.
    fn join(&mut self, other: Self) {
        for (digest, entry) in other.contents {
            self.add_known(digest, entry.is_tree());
        }
        self.runs.extend(other.runs);
        self.unreadable.extend(other.unreadable);
        self.salvaged.extend(other.salvaged);
        self.conflicts.extend(other.conflicts);
        self.not_pointers.extend(other.not_pointers);
        self.commits += other.commits;
    }

    pub(super) fn add_content(&mut self, content: Content, reference: Option<Reference>) {
        let entry = self.contents.entry(content.digest).or_default();
        // If references disagree about the kind, a tree is assumed, which needs more.
        if !entry.is_tree() {
            entry.content = Some(content);
        }
        entry.references.extend(reference);
    }

    /// Adds the outputs of run records: of the runs that lockfiles refer to, and of `more`.
    pub fn add_run_outputs(&mut self, store: &Store, more: &[Digest]) -> Result<()> {
        self.runs.extend(more);
        let mut made = Vec::new();
        for key in &self.runs {
            let answer = store.cached_run(key)?.map(|it| it.outputs);
            let outputs: Option<BTreeMap<RepoPath, Content>> =
                answer.and_then(|answer| serde_json::from_value(answer).ok());
            made.extend(outputs.into_iter().flatten().map(|it| it.1.digest));
        }
        self.add_digests(made, &Referrer::Other("a run".into()), Detail::Digests);
        Ok(())
    }
}

struct RootsReader<'g> {
    git: &'g Git,
    detail: Detail,
    cache: HashMap<(BlobId, bool), ReadBlob>,
    roots: Roots,
}

impl RootsReader<'_> {
    fn read(&mut self, path: &RepoPath, blob: BlobId) -> Result<ReadBlob> {
        let key = (blob, path.without_suffix(SUFFIX).is_some());
        if let Some(references) = self.cache.get(&key) {
            return Ok(Rc::clone(references));
        }
        let references = Rc::new(read_committed(self.git, path, blob)?.map_err(Unreadable::from));
        // Otherwise the file is read once.
        if self.detail == Detail::References {
            self.cache.insert(key, Rc::clone(&references));
        }
        Ok(references)
    }

    fn add_blob(&mut self, referrer: &dyn Fn() -> Referrer, path: &RepoPath, references: ReadBlob) {
        match &*references {
            Ok(references) => self.add(referrer, path, references),
            // In Git, only a file that a newer mlx or a filter wrote is unreadable.
            Err(why) => {
                let error = Error::corrupt(why.text.clone()).hint(why.hint.clone());
                self.roots.unreadable.push((referrer().location(path), error));
            }
        }
    }

    fn add_file(&mut self, referrer: &dyn Fn() -> Referrer, path: &RepoPath, read: Result<FileReferences>) {
        match read {
            Ok(references) => self.add(referrer, path, &references),
            Err(error) => self.roots.unreadable.push((referrer().location(path), error)),
        }
    }

    fn add(&mut self, referrer: &dyn Fn() -> Referrer, file: &RepoPath, found: &FileReferences) {
        for (path, content) in &found.contents {
            let path = || path.clone().or_else(|| file.without_suffix(SUFFIX)).unwrap_or_default();
            let reference = || Reference { referrer: referrer(), path: path() };
            self.roots.add_content(*content, (self.detail != Detail::Digests).then(reference));
        }
        self.roots.add_digests(
            found.inputs.iter().copied(),
            &Referrer::Other(String::new()),
            Detail::Digests,
        );
        self.roots.runs.extend(&found.runs);
        if let Some(why) = &found.salvaged {
            let place = referrer().location(file);
            self.roots.conflicts.extend(found.conflict.then(|| place.clone()));
            self.roots.salvaged.push((place, Error::corrupt(why.clone())));
        }
        if found.not_pointer {
            self.roots.not_pointers.insert(file.clone());
        }
    }

    fn new(git: &Git, detail: Detail) -> RootsReader<'_> {
        RootsReader { git, detail, cache: HashMap::new(), roots: Roots::default() }
    }

    /// Reads the pointers and lockfiles of all worktrees and Git indexes.
    fn files(&mut self, snapshot: &Snapshot) -> Result<()> {
        let (mut readable, mut foreign) = (HashSet::new(), HashMap::new());
        for (root, path, bytes) in &snapshot.files {
            let references = parse(path, bytes).context(|| format!("in `{}`", root.display()));
            match &references {
                Ok(found) if found.not_pointer => drop(foreign.insert((Some(root), path), bytes)),
                Ok(_) => drop(readable.insert((Some(root), path))),
                Err(error) if error.kind() == Kind::Conflict => {
                    let place = Referrer::Worktree(root.clone()).location(path);
                    self.roots.conflicts.insert(place);
                }
                Err(_) => {}
            }
            self.add_file(&|| Referrer::Worktree(root.clone()), path, references);
        }
        for worktree in &snapshot.worktrees {
            for (path, blob) in &worktree.staged {
                let mut references = self.read(path, *blob)?;
                let says_nothing = matches!(&*references, Ok(found) if found.is_without_facts());
                if says_nothing && !blob.is_empty() && readable.contains(&(worktree.root.as_ref(), path)) {
                    references = Rc::new(Err(filtered(path).into()));
                }
                let is_pointer = matches!(&*references, Ok(found) if !found.is_without_facts());
                if is_pointer
                    && let Some(root) = &worktree.root
                    && let Some(bytes) = foreign.remove(&(Some(root), path))
                {
                    let error = overwritten(path, bytes);
                    self.add_file(&|| Referrer::Worktree(root.clone()), path, Err(error));
                }
                self.add_blob(&|| Referrer::Index(worktree.git_dir.clone()), path, references);
            }
        }
        Ok(())
    }

    /// Returns the commits that names point to, and adds the digests in the messages of tags on the way.
    fn tips(&mut self, names: &[GitRef]) -> Result<Tips> {
        let mut tips = Tips::default();
        for name in names {
            let target = self.git.resolve_reference(name)?;
            let referrer = Referrer::Other(name.name.clone());
            for message in &target.messages {
                self.roots.add_digests(digests_in(message), &referrer, self.detail);
            }
            match target.target {
                Target::Commit(rev) => {
                    if name.name.starts_with(AUDIT) {
                        tips.events.insert(rev.clone());
                    }
                    tips.all.insert(rev);
                }
                Target::Tree(tree) => {
                    for (path, blob) in TreeScan::new(self.git, is_tracking_file).files_of_tree(tree)?.iter()
                    {
                        let references = self.read(path, *blob)?;
                        self.add_blob(&|| referrer.clone(), path, references);
                    }
                }
                Target::Blob(blob) => self.add_nameless(&referrer, blob)?,
            }
        }
        Ok(tips)
    }

    /// Adds everything that a blob without a name may need: it may be a pointer or a lockfile.
    fn add_nameless(&mut self, referrer: &Referrer, blob: BlobId) -> Result<()> {
        let bytes = self.git.read_small_blob(blob, fs::MAX_DOCUMENT_SIZE)?.unwrap_or_default();
        let found = digests_in(&String::from_utf8_lossy(&bytes));
        self.roots.runs.extend(&found);
        self.roots.add_digests(found, referrer, self.detail);
        Ok(())
    }

    fn update_history_cache(&mut self, repo: &Repo, names: &[GitRef]) -> Result<()> {
        // Tags may be removed, and the references in their messages with them: these are not cached.
        let tips = self.tips(names)?;
        let mut history = RootsReader::new(self.git, self.detail);
        let mut cache = HistoryCache::load(repo)?;
        let unread = cache.unread(self.git, &tips)?;
        history.commit_files(&unread.commits)?;
        history.events(unread.events)?;
        cache.update(repo, tips, &mut history.roots)?;
        self.roots.join(history.roots);
        Ok(())
    }

    fn commits(&mut self, tips: &BTreeSet<Rev>) -> Result<()> {
        let tips = to_vec(tips);
        let commits: Vec<Rev> = match self.detail {
            Detail::Digests => self.git.ancestors(&tips)?,
            Detail::Paths | Detail::References => self.git.log(&tips)?.into_iter().map(|it| it.rev).collect(),
        };
        self.commit_files(&commits)?;
        if self.detail == Detail::Paths {
            self.roots.history = commits;
        }
        Ok(())
    }

    fn commit_files(&mut self, commits: &[Rev]) -> Result<()> {
        self.git.prefetch(commits, is_tracking_file);
        self.roots.commits += commits.len() as u64;
        let (git, is_all) = (self.git, self.detail == Detail::References);
        let (mut new, mut all) = (NewFiles::new(git, is_tracking_file), TreeScan::new(git, is_tracking_file));
        for rev in commits {
            let mut take = |path: &RepoPath, blob: BlobId| {
                let references = self.read(path, blob)?;
                self.add_blob(&|| Referrer::Commit(rev.clone()), path, references);
                Ok(true)
            };
            if is_all {
                all.files(rev)?.iter().try_for_each(|(path, blob)| take(path, *blob).map(drop))?;
            } else {
                new.list(rev, &mut take)?;
            }
        }
        Ok(())
    }

    fn events(&mut self, commits: Vec<Rev>) -> Result<()> {
        let is_event = |name: &[u8]| name == b"event.json";
        self.git.prefetch(&commits, is_event);
        let (git, mut files) = (self.git, NewFiles::new(self.git, is_event));
        for rev in commits {
            files.list(&rev, &mut |_, blob| {
                let found = digests_in(&String::from_utf8_lossy(&git.read_blob(blob)?));
                let referrer = Referrer::Other(format!("the event {}", rev.short()));
                self.roots.add_digests(found, &referrer, self.detail);
                Ok(true)
            })?;
        }
        Ok(())
    }
}

fn to_vec(tips: &BTreeSet<Rev>) -> Vec<Rev> {
    tips.iter().cloned().collect()
}

/// Adds the versions that are kept, until they expire. If a record cannot be parsed, its digests are kept.
fn add_kept(snapshot: &Snapshot, roots: &mut Roots, detail: Detail) {
    let now = Timestamp::now();
    for (_, bytes) in &snapshot.kept {
        match KeptVersion::parse(bytes) {
            Some(version) if version.until() <= now => {}
            Some(version) => {
                let referrer = Referrer::Other(format!("a kept version of `{}`", version.path));
                let reference = || Reference { referrer, path: RepoPath::root() };
                roots.add_content(version.content, (detail != Detail::Digests).then(reference));
            }
            None => {
                let digests = digests_in(&String::from_utf8_lossy(bytes));
                roots.add_digests(digests, &Referrer::Other("a kept version".to_owned()), detail);
            }
        }
    }
}

/// Adds the packages that answered requests in the spool, and the inputs of these requests.
fn add_spooled_traffic(repo: &Repo, roots: &mut Roots, detail: Detail) -> Result<()> {
    let folder = RepoPath::from_text("traffic")?;
    if repo.shared.stat(&folder)?.is_none() {
        return Ok(());
    }
    for (name, kind) in repo.shared.dir(&folder)?.names()? {
        let Ok(environment) = std::str::from_utf8(&name) else { continue };
        if !kind.is_dir() {
            continue;
        }
        let referrer = Referrer::Other(format!("traffic of `{environment}`"));
        for day in spool::days(&repo.shared, environment)? {
            let records = spool::read(&repo.shared, environment, day)?.records;
            roots.add_digests(records.iter().flat_map(|it| [it.package, it.input]), &referrer, detail);
        }
    }
    Ok(())
}

/// Adds everything that other clones need to the roots.
fn add_other_needs(snapshot: &Snapshot, roots: &mut Roots, detail: Detail) -> Result<()> {
    for list in &snapshot.other_clones {
        let needs = list.parse()?;
        let referrer = Referrer::Other(format!("the clone `{}`", needs.path));
        let mut reference = || {
            let reference = || Reference { referrer: referrer.clone(), path: RepoPath::root() };
            (detail != Detail::Digests).then(reference)
        };
        add_needs(roots, &needs.trees, &needs.objects, &mut reference);
        roots.runs.extend(&needs.runs);
    }
    Ok(())
}

/// Adds needs of a clone to the roots.
pub(super) fn add_needs(
    roots: &mut Roots,
    trees: &BTreeSet<Digest>,
    objects: &BTreeSet<Digest>,
    reference: &mut dyn FnMut() -> Option<Reference>,
) {
    for digest in trees {
        roots.add_content(
            Content { digest: *digest, files: 0, kind: ContentKind::Tree, size: 0 },
            reference(),
        );
    }
    for digest in objects {
        roots.contents.entry(*digest).or_default().references.extend(reference());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_requests_in_the_spool_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let mut init = std::process::Command::new("git");
        assert!(init.args(["init", "-q"]).arg(temp.path()).status().unwrap().success());
        let repo = Repo::init(temp.path()).unwrap();
        let options = spool::Options {
            keep_share: 0.0,
            max_undecodable_size: 0,
            max_undecodable_per_day: 0,
            disk: "/".into(),
        };
        let root = fs::Root::open(repo.shared.path()).unwrap();
        let spool = spool::Spool::start(root, "test", options).unwrap();
        assert!(spool.record(crate::traffic::samples::record("r", 0, b"x"), None));
        spool.stop();
        let snapshot = crate::maintenance::snapshot::take_snapshot(&repo, 0).unwrap();
        let found = roots(&repo, &snapshot, Detail::Digests).unwrap();
        assert!(found.contents.contains_key(&Digest::of(b"package")));
    }
}
