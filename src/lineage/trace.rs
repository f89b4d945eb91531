//! Traces how content was produced, from an output back to its inputs, by lockfiles and pointers.
//!
//! An input is traced further only if its recorded content is the one that the current stage record or
//! pointer names. Pointers and lockfiles that cannot be read are left out, and named.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
};

use crate::{
    digest::Digest,
    document::Value,
    error::{Error, Kind, Result},
    git::{Commit, Git, Rev},
    lineage::{
        states::{State, StateReader},
        versions::{history, introduces, introduces_file},
    },
    path::RepoPath,
    pipeline::{Lockfile, StageId, StageRecord},
    pointer::{Content, Pointer, SUFFIX},
    store::{Store, entry_at},
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
    /// Places of the inputs in the lineage.
    pub inputs: Vec<usize>,
}

/// The lineage of a file or folder: a graph in which each content of a path is one node.
#[derive(Debug)]
pub struct Lineage {
    /// The first one is that of the traced path.
    pub nodes: Vec<Node>,
    /// The errors for what cannot be read and may tell more.
    pub problems: Vec<Error>,
}

impl Lineage {
    /// Returns the first path whose commit is unknown.
    pub fn unknown(&self) -> Option<&RepoPath> {
        let is_unknown = |node: &&Node| matches!(node.introduction, Introduction::Unknown);
        self.nodes.iter().find(is_unknown).map(|node| &node.path)
    }
}

/// A commit and its ancestors, newest first, as far as they can be read.
struct History {
    commits: Vec<Commit>,
    /// True if some of them cannot be read.
    is_cut: bool,
}

/// The lockfiles and pointers of the workspace or of a commit.
struct Sources<'s> {
    git: &'s Git,
    store: &'s Store,
    /// Commit from which history is searched.
    start: Option<Rev>,
    /// Records of stages, in the order of their lockfiles.
    records: Vec<(StageId, StageRecord)>,
    /// Outputs of stages with their content and the place of their record.
    outputs: BTreeMap<RepoPath, (usize, Content)>,
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
        records: Vec::new(),
        outputs: BTreeMap::new(),
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
    let (_, content) = sources.find(path)?.ok_or_else(missing)?;
    let mut nodes = sources.nodes(path, content)?;
    sources.introduce(&mut nodes)?;
    Ok(Lineage { nodes, problems: sources.problems.take().into_values().collect() })
}

impl Sources<'_> {
    /// Adds what a pointer or a lockfile records. Other programs use the suffix of pointers, too.
    fn add(&mut self, file: &RepoPath, bytes: &[u8]) -> Result<()> {
        if let Some(tracked) = file.without_suffix(SUFFIX) {
            if Pointer::looks_like_pointer(bytes) {
                self.pointers.insert(tracked.clone(), Pointer::parse(tracked, bytes)?.content);
            }
            return Ok(());
        }
        let folder = file.parent().unwrap_or_default();
        for (name, record) in Lockfile::parse(file, bytes)?.records() {
            for (output, content) in record.contents() {
                self.outputs.entry(output.clone()).or_insert((self.records.len(), *content));
            }
            self.records.push((StageId::new(&folder, name), record.clone()));
        }
        Ok(())
    }

    fn note(&self, error: Error) {
        self.problems.borrow_mut().insert(error.chain_text(), error);
    }

    /// Returns the content of a path with the place of the record of the stage that produced it, if one did.
    fn find(&self, path: &RepoPath) -> Result<Option<(Option<usize>, Content)>> {
        let output =
            |top: &RepoPath| self.outputs.get(top).map(|(record, content)| (Some(*record), *content));
        let tracked = |top: &RepoPath| self.pointers.get(top).map(|content| (None, *content));
        let above = |known: &dyn Fn(&RepoPath) -> Option<(Option<usize>, Content)>| {
            path.ancestors().find_map(|top| known(&top).map(|found| (top, found)))
        };
        let Some((top, (record, content))) = above(&output).or_else(|| above(&tracked)) else {
            return Ok(None);
        };
        Ok(self.content_within(path, &top, content)?.map(|content| (record, content)))
    }

    /// Returns the content of `path` within `content`, which belongs to its ancestor `top`.
    fn content_within(&self, path: &RepoPath, top: &RepoPath, content: Content) -> Result<Option<Content>> {
        let below = path.strip_prefix(top).unwrap_or_default();
        if below.is_root() {
            return Ok(Some(content));
        }
        Ok(entry_at(self.store, &content.digest, &below)?.map(|entry| entry.content()))
    }

    /// Returns the node of a path and those of all inputs on the way to it. The producer of an input is
    /// followed only if it produced the recorded content.
    fn nodes(&self, path: &RepoPath, content: Content) -> Result<Vec<Node>> {
        let (mut nodes, mut places) = (Vec::new(), BTreeMap::from([((path.clone(), content.digest), 0)]));
        let mut found = VecDeque::from([(path.clone(), content)]);
        while let Some((path, content)) = found.pop_front() {
            let producer = match self.find(&path)? {
                Some((producer, current)) if current.digest == content.digest => producer,
                _ => None,
            };
            let dependencies = producer.map(|at| &self.records[at].1.dependencies).into_iter().flatten();
            let mut inputs = Vec::new();
            for (input, content) in dependencies {
                let next = places.len();
                let place = *places.entry((input.clone(), content.digest)).or_insert(next);
                if place == next {
                    found.push_back((input.clone(), *content));
                }
                inputs.push(place);
            }
            let origin = self.origin(&path, producer);
            nodes.push(Node { path, content, origin, introduction: Introduction::NotCommitted, inputs });
        }
        Ok(nodes)
    }

    fn origin(&self, path: &RepoPath, producer: Option<usize>) -> Origin {
        let Some((id, record)) = producer.map(|at| &self.records[at]) else {
            let is_added = path.ancestors().any(|top| self.pointers.contains_key(&top));
            return if is_added { Origin::Added } else { Origin::Plain };
        };
        Origin::Stage {
            id: id.clone(),
            command: record.command.clone(),
            params: record.params.clone(),
            edited: record.edited,
            not_run: record.not_run,
        }
    }

    /// Finds the commits that introduced the contents of all nodes, in one walk over history; those that only
    /// Git tracks in another one.
    fn introduce(&self, nodes: &mut [Node]) -> Result<()> {
        let Some(start) = &self.start else { return Ok(()) };
        let paths = nodes.iter().map(|node| node.path.clone()).collect();
        let mut states = StateReader::new(self.git, self.store, paths);
        let (mut tracked, mut plain) = (Vec::new(), Vec::new());
        for (at, node) in nodes.iter_mut().enumerate() {
            match states.state(start, at) {
                Ok(State::Absent) => plain.push(at),
                Ok(_) => tracked.push(at),
                Err(error) => node.introduction = self.failed(error)?,
            }
        }
        let history = match self.history(start) {
            Ok(history) => history,
            Err(error) => {
                let outcome = self.failed(error)?;
                nodes.iter_mut().for_each(|node| node.introduction = outcome.clone());
                return Ok(());
            }
        };
        plain.extend(self.search(nodes, &history, tracked, &mut |commit, at, wanted| {
            introduces(&mut states, commit, at, wanted, &|error| self.note(error))
        })?);
        let left = self.search(nodes, &history, plain, &mut |commit, at, wanted| {
            introduces_file(self.git, &mut states, commit, at, wanted)
        })?;
        if history.is_cut {
            left.into_iter().for_each(|at| nodes[at].introduction = Introduction::Unreadable);
        }
        Ok(())
    }

    /// Walks over history, newest first, until `introduces` is true of each of these nodes. Returns those
    /// that no commit introduced.
    fn search(
        &self,
        nodes: &mut [Node],
        history: &History,
        mut wanted: Vec<usize>,
        introduces: &mut dyn FnMut(&Commit, usize, &Digest) -> Result<bool>,
    ) -> Result<Vec<usize>> {
        for commit in &history.commits {
            let mut left = Vec::new();
            for at in wanted {
                match introduces(commit, at, &nodes[at].content.digest) {
                    Ok(false) => left.push(at),
                    Ok(true) => nodes[at].introduction = Introduction::Commit(commit.clone()),
                    Err(error) => nodes[at].introduction = self.failed(error)?,
                }
            }
            wanted = left;
            if wanted.is_empty() {
                break;
            }
        }
        Ok(wanted)
    }

    /// Returns the outcome of a search that an error ended.
    fn failed(&self, error: Error) -> Result<Introduction> {
        match error.kind() {
            Kind::NotFound => Ok(Introduction::Unknown),
            Kind::Corrupt => {
                self.note(error);
                Ok(Introduction::Unreadable)
            }
            _ => Err(error),
        }
    }

    fn history(&self, start: &Rev) -> Result<History> {
        let (commits, errors) = history(self.git, start)?;
        let is_cut = !errors.is_empty();
        errors.into_iter().for_each(|error| self.note(error));
        Ok(History { commits, is_cut })
    }
}
