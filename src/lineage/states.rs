//! States of some paths in many commits: what the pointers and lockfiles there record. Each of these files is
//! parsed once, whatever the number of paths and of commits that hold it.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use crate::{
    error::{Error, Result},
    git::{BlobId, FileLookup, Git, Rev, TreeId, TreeScan},
    path::RepoPath,
    pipeline::Lockfile,
    pointer::{Content, Pointer, SUFFIX},
    store::{Store, entry_at},
    workspace::is_lockfile,
};

/// State of a path in a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Content(Content),
    /// It is not tracked there.
    Absent,
    /// A pointer or lockfile that may track it cannot be read.
    Unreadable {
        why: String,
        file: BlobId,
    },
}

impl State {
    pub fn content(&self) -> Option<&Content> {
        if let Self::Content(content) = self { Some(content) } else { None }
    }

    /// Returns the error for a commit with this state if a pointer or lockfile cannot be read there.
    pub fn error(&self, rev: &Rev) -> Option<Error> {
        let Self::Unreadable { why, .. } = self else { return None };
        let error = Error::corrupt(format!("at the commit {}, {why}", rev.short()));
        Some(error.hint("name a commit whose pointers and lockfiles can be read"))
    }

    /// Returns true if the commit of the other state changed nothing: what cannot be read is compared by the
    /// bytes of its file.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Content(one), Self::Content(two)) => one.digest == two.digest,
            (one, two) => one == two,
        }
    }
}

/// Reads the states of some paths, each named by its place among them.
pub struct StateReader<'s> {
    git: &'s Git,
    store: &'s Store,
    paths: Vec<RepoPath>,
    /// Finds the paths themselves, and after them the pointers of `pointers`.
    lookup: FileLookup<'s>,
    /// Of each path, what a pointer may track it by, the nearest first, with the place in the lookup.
    pointers: Vec<Vec<(RepoPath, usize)>>,
    lockfiles: TreeScan<'s>,
    trees: HashMap<Rev, TreeId>,
    parsed_pointers: HashMap<(usize, BlobId), Option<Result<Content, String>>>,
    parsed_lockfiles: HashMap<(RepoPath, BlobId), Rc<LockFacts>>,
    /// The version of each lockfile that was parsed last.
    last_lockfiles: HashMap<RepoPath, Lockfile>,
    /// States of paths in folders, by path and digest of the folder.
    within: HashMap<(usize, RepoPath, Content), State>,
}

/// Output that contains a path: its own path and content, and true if it was recorded without a run.
type Output = (RepoPath, Content, bool);

/// The output that contains each path, if there is one; or the reason why the lockfile cannot be read.
type LockFacts = Result<Vec<Option<Output>>, String>;

impl<'s> StateReader<'s> {
    pub fn new(git: &'s Git, store: &'s Store, paths: Vec<RepoPath>) -> Self {
        let mut files = paths.clone();
        let mut places = BTreeMap::new();
        let mut place = |top: RepoPath| {
            let at = *places.entry(top.clone()).or_insert_with(|| {
                files.push(top.with_suffix(SUFFIX));
                files.len() - 1
            });
            (top, at)
        };
        let above = |path: &RepoPath| path.ancestors().filter(|top| !top.is_root()).collect::<Vec<_>>();
        let pointers = paths.iter().map(|path| above(path).into_iter().map(&mut place).collect()).collect();
        Self {
            git,
            store,
            lookup: FileLookup::new(git, &files),
            paths,
            pointers,
            lockfiles: TreeScan::new(git, is_lockfile),
            trees: HashMap::new(),
            parsed_pointers: HashMap::new(),
            parsed_lockfiles: HashMap::new(),
            last_lockfiles: HashMap::new(),
            within: HashMap::new(),
        }
    }

    /// Returns the state of a path at a commit, from its own pointer or that of a folder above it, or from a
    /// lockfile.
    pub fn state(&mut self, rev: &Rev, path: usize) -> Result<State> {
        let tree = self.tree(rev)?;
        let files = self.lookup.find(tree)?;
        for at in 0..self.pointers[path].len() {
            let place = self.pointers[path][at].1;
            let Ok(found) = files.binary_search_by_key(&place, |file| file.0) else { continue };
            let blob = files[found].1;
            let top = self.pointers[path][at].0.clone();
            match self.pointer(&top, place, blob)? {
                None => {}
                Some(Ok(content)) => return self.content_within(path, top, content),
                Some(Err(why)) => return Ok(State::Unreadable { why, file: blob }),
            }
        }
        self.recorded(tree, path)
    }

    /// Returns true if the lockfiles of a commit record a path as a result that was not run; unreadable ones
    /// are skipped.
    pub fn is_not_run(&mut self, rev: &Rev, path: usize) -> Result<bool> {
        let tree = self.tree(rev)?;
        for (file, blob) in self.lockfiles.files_of_tree(tree)?.iter() {
            if let Ok(outputs) = &*self.lockfile(file, *blob)?
                && let Some(output) = &outputs[path]
            {
                return Ok(output.2);
            }
        }
        Ok(false)
    }

    /// Returns the file at a path itself that Git tracks at a commit.
    pub fn file(&mut self, rev: &Rev, path: usize) -> Result<Option<BlobId>> {
        let tree = self.tree(rev)?;
        let files = self.lookup.find(tree)?;
        Ok(files.binary_search_by_key(&path, |file| file.0).ok().map(|found| files[found].1))
    }

    fn tree(&mut self, rev: &Rev) -> Result<TreeId> {
        if let Some(tree) = self.trees.get(rev) {
            return Ok(*tree);
        }
        let tree = self.git.top_tree(rev)?;
        self.trees.insert(rev.clone(), tree);
        Ok(tree)
    }

    /// Returns the content that a pointer tracks, or why it cannot be read; `None` for the file of another
    /// program that uses the suffix, too.
    fn pointer(
        &mut self,
        top: &RepoPath,
        place: usize,
        blob: BlobId,
    ) -> Result<Option<Result<Content, String>>> {
        if let Some(known) = self.parsed_pointers.get(&(place, blob)) {
            return Ok(known.clone());
        }
        let bytes = self.git.read_blob(blob)?;
        let parse = || Pointer::parse(top.clone(), &bytes).map(|it| it.content).map_err(|it| it.chain_text());
        let parsed = Pointer::looks_like_pointer(&bytes).then(parse);
        self.parsed_pointers.insert((place, blob), parsed.clone());
        Ok(parsed)
    }

    /// Returns the state of a path by the lockfiles of a commit. Any of them may record an output at any
    /// path, so that it is unknown while one of them cannot be read.
    fn recorded(&mut self, tree: TreeId, path: usize) -> Result<State> {
        let mut state = State::Absent;
        for (file, blob) in self.lockfiles.files_of_tree(tree)?.iter() {
            match &*self.lockfile(file, *blob)? {
                Err(why) => state = State::Unreadable { why: why.clone(), file: *blob },
                Ok(outputs) => {
                    if let Some((top, content, _)) = &outputs[path] {
                        return self.content_within(path, top.clone(), *content);
                    }
                }
            }
        }
        Ok(state)
    }

    fn lockfile(&mut self, file: &RepoPath, blob: BlobId) -> Result<Rc<LockFacts>> {
        let key = (file.clone(), blob);
        if let Some(known) = self.parsed_lockfiles.get(&key) {
            return Ok(Rc::clone(known));
        }
        let known = self.last_lockfiles.remove(file).unwrap_or_default();
        let parsed = Lockfile::parse_after(file, &self.git.read_blob(blob)?, &known);
        let facts = parsed.as_ref().map(|lock| self.outputs(lock)).map_err(Error::chain_text);
        self.last_lockfiles.insert(file.clone(), parsed.unwrap_or(known));
        let facts = Rc::new(facts);
        self.parsed_lockfiles.insert(key, Rc::clone(&facts));
        Ok(facts)
    }

    fn outputs(&self, lock: &Lockfile) -> Vec<Option<Output>> {
        let recorded = lock.records().flat_map(|(_, record)| record.contents().map(move |it| (it, record)));
        let mut outputs = BTreeMap::new();
        for ((top, content), record) in recorded {
            outputs.entry(top).or_insert((top.clone(), *content, record.not_run));
        }
        let above = |path: &RepoPath| path.ancestors().find_map(|top| outputs.get(&top).cloned());
        self.paths.iter().map(above).collect()
    }

    /// Returns the state of a path within `content`, which belongs to its ancestor `top`.
    fn content_within(&mut self, path: usize, top: RepoPath, content: Content) -> Result<State> {
        let below = self.paths[path].strip_prefix(&top).unwrap_or_default();
        if below.is_root() {
            return Ok(State::Content(content));
        }
        let key = (path, top, content);
        if let Some(known) = self.within.get(&key) {
            return Ok(known.clone());
        }
        let entry = entry_at(self.store, &content.digest, &below)?;
        let state = entry.map_or(State::Absent, |entry| State::Content(entry.content()));
        self.within.insert(key, state.clone());
        Ok(state)
    }
}
