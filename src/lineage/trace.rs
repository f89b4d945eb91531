//! Traces how content was produced, from an output back to its inputs, by lockfiles and pointers.
//!
//! An input is traced further only if its recorded content is the one that the current stage record or
//! pointer names. Pointers and lockfiles that cannot be read are left out, and named.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
};

use crate::{
    digest::Digest,
    document::Value,
    error::{Error, Kind, Result},
    git::{Commit, Git, Rev},
    lineage::versions::{State, history, introducing_commit, state_at},
    path::RepoPath,
    pipeline::{Lockfile, StageId, StageRecord},
    pointer::{Content, Pointer, SUFFIX},
    store::Store,
    workspace::is_tracking_file,
};

/// Origin of a file or folder.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Output of a stage.
    Stage { id: StageId, command: String, params: BTreeMap<String, Value>, edited: bool, not_run: bool },
    /// Added by a user with `mlx add`.
    Added,
    /// A file tracked by Git, or an untracked one.
    Plain,
}

/// Commit that introduced content.
#[derive(Clone, Debug)]
pub enum Introduction {
    Commit(Commit),
    NotCommitted,
    /// The store lacks trees of commits that may have done so.
    Unknown,
    /// Commits that may have done so cannot be read.
    Unreadable,
}

/// A file or folder with its content, origin and inputs.
#[derive(Clone, Debug)]
pub struct Node {
    pub path: RepoPath,
    pub content: Content,
    pub origin: Origin,
    pub introduction: Introduction,
    pub inputs: Vec<Node>,
}

/// The lineage of a file or folder.
#[derive(Debug)]
pub struct Lineage {
    pub root: Node,
    /// The errors for what cannot be read and may tell more.
    pub problems: Vec<Error>,
}

impl Node {
    /// Returns the first path, of this and of its inputs, whose commit is unknown.
    pub fn unknown(&self) -> Option<&RepoPath> {
        match self.introduction {
            Introduction::Unknown => Some(&self.path),
            _ => self.inputs.iter().find_map(Self::unknown),
        }
    }
}

/// The lockfiles and pointers of the workspace or of a commit.
struct Sources<'s> {
    git: &'s Git,
    store: &'s Store,
    /// Commit from which history is searched.
    start: Option<Rev>,
    /// This commit and its ancestors, newest first, as far as they can be read.
    history: OnceCell<Vec<Commit>>,
    /// True if some of them cannot be read.
    is_cut: Cell<bool>,
    /// Lockfiles, each with its folder.
    locks: Vec<(RepoPath, Lockfile)>,
    pointers: BTreeMap<RepoPath, Content>,
    /// Errors about files and commits that cannot be read, by message.
    problems: RefCell<BTreeMap<String, Error>>,
}

/// Traces `path` at `rev`, or in the workspace without one; then `workspace` reads a file of it and `tracked`
/// lists its lockfiles and pointers.
pub fn trace(
    git: &Git,
    store: &Store,
    rev: Option<&Rev>,
    path: &RepoPath,
    workspace: &dyn Fn(&RepoPath) -> Result<Option<Vec<u8>>>,
    tracked: &[RepoPath],
) -> Result<Lineage> {
    let read = |file: &RepoPath| match rev {
        Some(rev) => git.read(rev, file),
        None => workspace(file),
    };
    let files = match rev {
        Some(rev) => git.files(rev, &is_tracking_file)?,
        None => tracked.to_vec(),
    };
    let mut sources = Sources {
        git,
        store,
        start: rev.cloned().or_else(|| git.head()),
        history: OnceCell::new(),
        is_cut: Cell::new(false),
        locks: Vec::new(),
        pointers: BTreeMap::new(),
        problems: RefCell::default(),
    };
    for file in files {
        let added = read(&file).and_then(|bytes| match bytes {
            Some(bytes) => sources.add(&file, &bytes),
            None => Ok(()),
        });
        added.unwrap_or_else(|error| sources.note(error));
    }
    let untracked = || {
        Error::not_found(format!("`{path}` is not tracked by mlx")).hint(
            "name an output of a stage, a tracked file or folder, or a registered version such as \
            `pets@v0.1.0`",
        )
    };
    // It may be what an unreadable file tracks.
    let missing = || sources.problems.take().into_values().next().unwrap_or_else(untracked);
    let (stage, content) = sources.find(path)?.ok_or_else(missing)?;
    let root = sources.node(path, content, stage)?;
    Ok(Lineage { root, problems: sources.problems.take().into_values().collect() })
}

type Producer<'l> = Option<(StageId, &'l StageRecord)>;

impl Sources<'_> {
    /// Adds what a pointer or a lockfile records. Other programs use the suffix of pointers, too.
    fn add(&mut self, file: &RepoPath, bytes: &[u8]) -> Result<()> {
        if let Some(tracked) = file.without_suffix(SUFFIX) {
            if Pointer::looks_like_pointer(bytes) {
                self.pointers.insert(tracked.clone(), Pointer::parse(tracked, bytes)?.content);
            }
        } else {
            self.locks.push((file.parent().unwrap_or_default(), Lockfile::parse(file, bytes)?));
        }
        Ok(())
    }

    fn note(&self, error: Error) {
        self.problems.borrow_mut().insert(error.chain_text(), error);
    }

    /// Returns the content of a path with the stage that produced it, if one did.
    fn find(&self, path: &RepoPath) -> Result<Option<(Producer<'_>, Content)>> {
        let records = self.locks.iter().flat_map(|(folder, lock)| {
            lock.records().map(move |(name, record)| (StageId::new(folder, name), record))
        });
        for (id, record) in records {
            if let Some((top, content)) = record.contents().find(|(top, _)| path.is_within(top)) {
                return Ok(self.content_within(path, top, content)?.map(|it| (Some((id, record)), it)));
            }
        }
        for (top, content) in &self.pointers {
            if path.is_within(top) {
                return Ok(self.content_within(path, top, content)?.map(|it| (None, it)));
            }
        }
        Ok(None)
    }

    /// Returns the content of `path` within `content`, which belongs to its ancestor `top`.
    fn content_within(&self, path: &RepoPath, top: &RepoPath, content: &Content) -> Result<Option<Content>> {
        let below = path.strip_prefix(top).unwrap_or_default();
        if below.is_root() {
            return Ok(Some(*content));
        }
        let entry = crate::store::entry_at(self.store, &content.digest, &below)?;
        Ok(entry.map(|entry| Content {
            digest: entry.digest,
            files: entry.files,
            kind: entry.kind.content_kind(),
            size: entry.size,
        }))
    }

    /// Builds the node of a path and, recursively, of its inputs.
    fn node(&self, path: &RepoPath, content: Content, producer: Producer<'_>) -> Result<Node> {
        let (origin, inputs) = match producer {
            Some((id, record)) => {
                let inputs = record.dependencies.iter().map(|(path, content)| self.input(path, *content));
                let origin = Origin::Stage {
                    id,
                    command: record.command.clone(),
                    params: record.params.clone(),
                    edited: record.edited,
                    not_run: record.not_run,
                };
                (origin, inputs.collect::<Result<Vec<_>>>()?)
            }
            None if self.pointers.keys().any(|it| path.is_within(it)) => (Origin::Added, Vec::new()),
            None => (Origin::Plain, Vec::new()),
        };
        let introduction = match self.commit(path, &content) {
            Ok(Some(commit)) => Introduction::Commit(commit),
            Ok(None) if self.is_cut.get() => Introduction::Unreadable,
            Ok(None) => Introduction::NotCommitted,
            Err(error) if error.kind() == Kind::NotFound => Introduction::Unknown,
            Err(error) if error.kind() == Kind::Corrupt => {
                self.note(error);
                Introduction::Unreadable
            }
            Err(error) => return Err(error),
        };
        Ok(Node { path: path.clone(), content, origin, introduction, inputs })
    }

    /// Builds the node of an input with its recorded content. Its producer is followed only if that produced
    /// this content.
    fn input(&self, path: &RepoPath, content: Content) -> Result<Node> {
        let producer = match self.find(path)? {
            Some((producer, current)) if current.digest == content.digest => producer,
            _ => None,
        };
        self.node(path, content, producer)
    }

    /// Returns the commit that introduced this content of a path.
    fn commit(&self, path: &RepoPath, content: &Content) -> Result<Option<Commit>> {
        let Some(start) = &self.start else { return Ok(None) };
        if state_at(self.git, self.store, start, path)? == State::Absent {
            return self.plain_commit(start, path, content);
        }
        let (history, note) = (self.history(start)?, |error| self.note(error));
        match introducing_commit(self.git, self.store, history, path, &content.digest, &note) {
            Ok(None) => self.plain_commit(start, path, content),
            found => found,
        }
    }

    fn history(&self, start: &Rev) -> Result<&[Commit]> {
        if let Some(known) = self.history.get() {
            return Ok(known);
        }
        let (commits, errors) = history(self.git, start)?;
        self.is_cut.set(!errors.is_empty());
        errors.into_iter().for_each(|error| self.note(error));
        Ok(self.history.get_or_init(|| commits))
    }

    /// Returns the newest commit that gave a file tracked by Git this content.
    fn plain_commit(&self, start: &Rev, path: &RepoPath, content: &Content) -> Result<Option<Commit>> {
        for commit in self.history(start)? {
            let Some(blob) = self.git.blob(&commit.rev, path)? else { continue };
            let mut inherited = false;
            for parent in &commit.parents {
                inherited |= self.git.blob(parent, path)? == Some(blob);
            }
            if !inherited && Digest::of(&self.git.read_blob(blob)?) == content.digest {
                return Ok(Some(commit.clone()));
            }
        }
        Ok(None)
    }
}
