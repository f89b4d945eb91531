//! Reads commits: their files, metadata and ancestors.

use std::collections::{HashMap, HashSet};

use gix::revision::walk::Sorting;

use crate::{
    error::{Error, Result},
    git::{Git, Rev, from_gix, unreadable},
    path::{MAX_DEPTH, RepoPath},
    time::Timestamp,
};

/// Id of a blob (a file's content in Git). Equal ids mean equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId(gix::ObjectId);

impl BlobId {
    pub(super) fn new(id: gix::ObjectId) -> Self {
        Self(id)
    }

    pub(super) fn id(self) -> gix::ObjectId {
        self.0
    }

    /// Returns true for the blob without bytes, such as of a file that is only intended to be added.
    pub fn is_empty(self) -> bool {
        self.0 == gix::ObjectId::empty_blob(self.0.kind())
    }
}

/// Context of an error of a walk over commits.
const HISTORY: &str = "cannot read Git's history";

/// Cache of the folders with a file of one name, by tree, so that trees that commits share are read once.
#[derive(Default)]
pub struct FolderCache(HashMap<gix::ObjectId, Vec<RepoPath>>);

/// Commit with the metadata that a log shows.
#[derive(Clone, Debug)]
pub struct Commit {
    pub rev: Rev,
    /// Without those that are missing in a shallow clone by design.
    pub parents: Vec<Rev>,
    pub when: Timestamp,
    pub author: String,
    pub summary: String,
}

impl Git {
    /// Returns the blob of a file in a commit; `None` if it does not exist there.
    pub fn blob(&self, rev: &Rev, path: &RepoPath) -> Result<Option<BlobId>> {
        let context = || format!("cannot read `{path}` at {}", rev.short());
        let mut here = self.tree_id(rev, context)?;
        let mut names = path.components().peekable();
        while let Some(name) = names.next() {
            let tree = self.tree(here, context)?;
            let Some(entry) = from_gix(tree.lookup_entry([name]), context)? else { return Ok(None) };
            let is_last = names.peek().is_none();
            match entry.mode() {
                mode if is_last => return Ok(mode.is_blob().then(|| BlobId(entry.object_id()))),
                mode if mode.is_tree() => here = entry.object_id(),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Lists the folders of a commit that contain a file of this name. A `cache` must always be used with the
    /// same name.
    pub fn folders_with(&self, rev: &Rev, name: &str, cache: &mut FolderCache) -> Result<Vec<RepoPath>> {
        let context = || format!("cannot list the files of {}", rev.short());
        self.folders_below(self.tree_id(rev, context)?, name, cache, 0)
    }

    fn folders_below(
        &self,
        tree: gix::ObjectId,
        name: &str,
        cache: &mut FolderCache,
        depth: usize,
    ) -> Result<Vec<RepoPath>> {
        if let Some(folders) = cache.0.get(&tree) {
            return Ok(folders.clone());
        }
        let context = || "cannot read a tree from Git".to_owned();
        let object = self.tree(tree, context)?;
        let mut folders = Vec::new();
        for entry in object.iter() {
            let entry = from_gix(entry, context)?;
            if entry.mode().is_blob() && entry.filename() == name {
                folders.push(RepoPath::root());
            } else if entry.mode().is_tree() && depth < MAX_DEPTH {
                // mlx cannot have written below a name that is not valid in its paths.
                let Ok(folder) = RepoPath::from_bytes(entry.filename()) else { continue };
                let below = self.folders_below(entry.object_id(), name, cache, depth + 1)?;
                folders.extend(below.iter().filter_map(|path| folder.join_path(path).ok()));
            }
        }
        cache.0.insert(tree, folders.clone());
        Ok(folders)
    }

    /// Like [`Git::read_blob`], but returns `None` for a blob of more than `limit` bytes.
    pub fn read_small_blob(&self, id: BlobId, limit: u64) -> Result<Option<Vec<u8>>> {
        match self.repo.find_header(id.0) {
            Ok(header) if header.size() > limit => Ok(None),
            Ok(_) => self.read_blob(id).map(Some),
            // Promised by a remote: its size is known once it is here.
            Err(_) => Ok(Some(self.read_blob(id)?).filter(|bytes| bytes.len() as u64 <= limit)),
        }
    }

    /// Reads a blob.
    pub fn read_blob(&self, id: BlobId) -> Result<Vec<u8>> {
        let mut object = self.object(id.0, || "cannot read a blob from Git".into())?;
        Ok(std::mem::take(&mut object.data))
    }

    /// Lists the commits reachable from `from`, including these, newest first and children before parents.
    pub fn log(&self, from: &[Rev]) -> Result<Vec<Commit>> {
        let (commits, errors) = self.readable_log(from)?;
        errors.into_iter().next().map_or(Ok(commits), Err)
    }

    /// Lists the commits that [`Git::log`] does, as far as they can be read, and the errors for the others.
    pub fn readable_log(&self, from: &[Rev]) -> Result<(Vec<Commit>, Vec<Error>)> {
        let tips = from.iter().map(|it| it.0);
        let sorting = Sorting::ByCommitTime(Default::default());
        let walk = self.repo.rev_walk(tips).sorting(sorting).all();
        let walk = walk.map_err(|error| unreadable(&error, HISTORY))?;
        let (mut commits, mut errors) = (Vec::new(), Vec::new());
        for found in walk {
            let found = found.map_err(|error| unreadable(&error, HISTORY));
            match found.and_then(|found| self.commit(&Rev(found.id))) {
                Ok(commit) => commits.push(commit),
                Err(error) => errors.push(error),
            }
        }
        Ok((commits, errors))
    }

    /// Reads the metadata of one commit.
    pub fn commit(&self, rev: &Rev) -> Result<Commit> {
        let context = || format!("cannot read the commit {}", rev.short());
        let commit = self.repo.find_commit(rev.0).map_err(|error| unreadable(&error, &context()))?;
        let mut parents: Vec<Rev> = commit.parent_ids().map(|id| Rev(id.detach())).collect();
        let is_here = |rev: &Rev| self.repo.has_object(rev.0);
        if !parents.iter().all(is_here) && self.is_shallow_at(rev)? {
            parents.retain(is_here);
        }
        let author = from_gix(commit.author(), context)?;
        let author_text = format!("{} <{}>", author.name, author.email);
        let when = from_gix(commit.time(), context)?.seconds;
        let summary = from_gix(commit.message(), context)?.summary().to_string();
        Ok(Commit {
            rev: rev.clone(),
            parents,
            when: Timestamp::from_seconds(when),
            author: author_text,
            summary,
        })
    }

    /// Returns true for one of the oldest commits of a shallow clone, whose parents are missing.
    fn is_shallow_at(&self, rev: &Rev) -> Result<bool> {
        let boundary = from_gix(self.repo.shallow_commits(), || HISTORY.to_owned())?;
        Ok(boundary.is_some_and(|commits| commits.contains(&rev.0)))
    }

    /// Returns the commit that is checked out, the one that was before the last merge, reset or rebase, and
    /// the parents of both.
    pub fn recent_heads(&self) -> Vec<Rev> {
        let mut heads: Vec<Rev> = self.head().into_iter().chain(self.resolve("ORIG_HEAD")).collect();
        let parents = heads.iter().filter_map(|rev| self.commit(rev).ok()).flat_map(|commit| commit.parents);
        heads.extend(parents.collect::<Vec<_>>());
        heads
    }

    /// Lists the commits of all branches and tags, in no particular order, and the errors for those that
    /// cannot be read.
    pub fn all_commits(&self) -> Result<(Vec<Rev>, Vec<Error>)> {
        let (mut pending, missing) = self.tips_and_missing()?;
        if missing.is_empty()
            && let Ok(revs) = self.ancestors(&pending)
        {
            return Ok((revs, Vec::new()));
        }
        pending.extend(missing);
        let (mut revs, mut errors, mut known) = (Vec::new(), Vec::new(), HashSet::new());
        while let Some(rev) = pending.pop() {
            if !known.insert(rev.clone()) {
                continue;
            }
            let context = || format!("cannot read the commit {}", rev.short());
            let object = self.object(rev.0, context);
            match object.and_then(|object| from_gix(object.try_into_commit(), context)) {
                Ok(commit) => {
                    let parents = commit.parent_ids().map(|id| Rev(id.detach()));
                    if !self.is_shallow_at(&rev)? {
                        pending.extend(parents);
                    }
                    revs.push(rev);
                }
                Err(error) => errors.push(error),
            }
        }
        Ok((revs, errors))
    }

    /// Lists the tips of all branches and tags, local and remote-tracking.
    pub fn tips(&self) -> Result<Vec<Rev>> {
        Ok(self.tips_and_missing()?.0)
    }

    /// Lists the tips as [`Git::tips`] does, and those that do not exist or cannot be read.
    fn tips_and_missing(&self) -> Result<(Vec<Rev>, Vec<Rev>)> {
        let context = || "cannot read Git's refs".into();
        let references = from_gix(self.repo.references(), context)?;
        let (mut tips, mut missing): (Vec<Rev>, _) = (self.head().into_iter().collect(), Vec::new());
        for reference in from_gix(references.all(), context)? {
            let Ok(mut reference) = reference else { continue };
            let id = reference.try_id().map(gix::Id::detach);
            match reference.peel_to_commit() {
                Ok(commit) => tips.push(Rev(commit.id)),
                Err(_) => missing.extend(id.and_then(|id| self.named_commit(id)).map(Rev)),
            }
        }
        tips.sort();
        tips.dedup();
        Ok((tips, missing))
    }

    /// Follows tags to what they name. Returns none if that is a file or a folder, and else the commit, or
    /// the object that cannot be read.
    fn named_commit(&self, mut id: gix::ObjectId) -> Option<gix::ObjectId> {
        while let Ok(object) = self.repo.find_object(id) {
            match object.kind {
                gix::object::Kind::Blob | gix::object::Kind::Tree => return None,
                gix::object::Kind::Commit => break,
                gix::object::Kind::Tag => match object.into_tag().target_id() {
                    Ok(target) => id = target.detach(),
                    Err(_) => break,
                },
            }
        }
        Some(id)
    }
}
