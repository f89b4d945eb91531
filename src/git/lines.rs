//! Tells whether a file changed on the line of HEAD since it parted from a commit that HEAD was at before.
//!
//! The reflog of HEAD, which each worktree has for itself, lists where HEAD was. Without one, and in shallow
//! and partial clones, which do not have all of history, nothing is known. Commits are compared once for all
//! files, so that the cost follows what they changed.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use crate::{
    error::Result,
    git::{BlobId, Git, Rev, from_gix},
    path::{MAX_DEPTH, RepoPath},
};

/// Number of positions of HEAD that are considered, newest first.
const MAX_POSITIONS: usize = 1000;

/// The two versions of a file in a commit and its parent; `None` where it does not exist.
type Step = [Option<BlobId>; 2];

/// Steps of the files that some commits changed.
type Steps = BTreeMap<RepoPath, BTreeSet<Step>>;

/// The commits that HEAD was at, and what changed since each.
pub struct HeadLines {
    head: Rev,
    /// Accepts the paths of the files of interest.
    wanted: fn(&[u8]) -> bool,
    /// Newest first.
    positions: Vec<Rev>,
    /// For each file, where it differs from the position before: the index of the position, and its version.
    versions: BTreeMap<RepoPath, Vec<(usize, Option<BlobId>)>>,
    /// By position: the steps of the commits that HEAD has and that one has not; `None` if one of these
    /// begins a history.
    since: RefCell<BTreeMap<Rev, Option<Rc<Steps>>>>,
}

impl Git {
    /// Compares the positions of HEAD by the files that `wanted` accepts; `None` if nothing is known of them.
    pub fn head_lines(&self, wanted: fn(&[u8]) -> bool) -> Result<Option<HeadLines>> {
        let Some(head) = self.head() else { return Ok(None) };
        if self.promisor().is_some() || !self.shallow_boundary()?.is_empty() {
            return Ok(None);
        }
        let positions = self.positions()?;
        let mut versions: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (at, pair) in positions.windows(2).enumerate() {
            for (file, [_, older]) in self.changed_files(&pair[0], &pair[1], wanted)? {
                versions.entry(file).or_default().push((at + 1, older));
            }
        }
        Ok(Some(HeadLines { head, wanted, positions, versions, since: RefCell::default() }))
    }

    /// Lists the commits that HEAD was at, newest first, as far as they still exist.
    fn positions(&self) -> Result<Vec<Rev>> {
        let context = || "cannot read the reflog of `HEAD`".to_owned();
        let Some(head) = from_gix(self.repo.try_find_reference("HEAD"), context)? else {
            return Ok(Vec::new());
        };
        let mut log = head.log_iter();
        let Some(lines) = from_gix(log.all(), context)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for line in lines {
            found.push(Rev(from_gix(line, context)?.new_oid()));
        }
        let newest = found.into_iter().rev().take(MAX_POSITIONS);
        let mut found: Vec<_> = newest.filter(|rev| self.repo.has_object(rev.0)).collect();
        found.dedup();
        Ok(found)
    }

    /// Lists the files that `wanted` accepts and that differ in two commits.
    fn changed_files(
        &self,
        one: &Rev,
        two: &Rev,
        wanted: fn(&[u8]) -> bool,
    ) -> Result<Vec<(RepoPath, Step)>> {
        let tree = |rev: &Rev| self.tree_id(rev, || format!("cannot list the files of {}", rev.short()));
        let mut found = Vec::new();
        let trees = [Some(tree(one)?), Some(tree(two)?)];
        self.changed_below(&RepoPath::root(), trees, wanted, &mut found)?;
        Ok(found)
    }

    fn changed_below(
        &self,
        folder: &RepoPath,
        trees: [Option<gix::ObjectId>; 2],
        wanted: fn(&[u8]) -> bool,
        found: &mut Vec<(RepoPath, Step)>,
    ) -> Result<()> {
        if trees[0] == trees[1] || folder.components().count() > MAX_DEPTH {
            return Ok(());
        }
        let mut old = self.rows(trees[0])?;
        let mut changed = Vec::new();
        for (name, row) in self.rows(trees[1])? {
            let before = old.remove(&name);
            if before != Some(row) {
                changed.push((name, [before, Some(row)]));
            }
        }
        changed.extend(old.into_iter().map(|(name, row)| (name, [Some(row), None])));
        for (name, rows) in changed {
            // mlx cannot have written below a name that is not valid in its paths.
            let Ok(path) = folder.join(&name) else { continue };
            let of_kind = |is_tree: bool| rows.map(|row| row.filter(|row| row.0 == is_tree).map(|row| row.1));
            let blobs = of_kind(false).map(|blob| blob.map(BlobId::new));
            self.changed_below(&path, of_kind(true), wanted, found)?;
            if blobs[0] != blobs[1] && wanted(path.bytes()) {
                found.push((path, blobs));
            }
        }
        Ok(())
    }

    /// Returns the files and folders of a tree by name, each with true for a folder, and its id.
    fn rows(&self, tree: Option<gix::ObjectId>) -> Result<HashMap<Vec<u8>, (bool, gix::ObjectId)>> {
        let context = || "cannot read a tree from Git".to_owned();
        let Some(tree) = tree else { return Ok(HashMap::new()) };
        let mut rows = HashMap::new();
        for entry in self.tree(tree, context)?.iter() {
            let entry = from_gix(entry, context)?;
            let mode = entry.mode();
            if mode.is_tree() || mode.is_blob() {
                rows.insert(entry.filename().to_vec(), (mode.is_tree(), entry.object_id()));
            }
        }
        Ok(rows)
    }
}

impl HeadLines {
    /// Looks for the last commit at HEAD whose version of `file` passes `is_start`. Returns true if in each
    /// commit that HEAD has and that one has not, the file exists and `is_same` as in the parents: then the
    /// version at HEAD is one that the other version was made from.
    pub fn is_unchanged_since(
        &self,
        git: &Git,
        file: &RepoPath,
        is_start: &dyn Fn(BlobId) -> bool,
        is_same: &dyn Fn(BlobId, BlobId) -> bool,
    ) -> Result<bool> {
        let Some(start) = self.last_position(git, file, is_start)? else { return Ok(false) };
        let Some(steps) = self.steps_since(git, start)? else { return Ok(false) };
        let is_same = |step: &Step| matches!(*step, [Some(old), Some(new)] if is_same(old, new));
        Ok(steps.get(file).is_none_or(|steps| steps.iter().all(is_same)))
    }

    /// Returns the files that differ at earlier positions, each with the last version that it had there.
    pub fn former(&self) -> impl Iterator<Item = (&RepoPath, BlobId)> {
        let last = |versions: &Vec<(usize, Option<BlobId>)>| versions.iter().find_map(|version| version.1);
        self.versions.iter().filter_map(move |(file, versions)| Some((file, last(versions)?)))
    }

    /// Returns the last commit at HEAD whose version of `file` passes `wanted`.
    fn last_position(
        &self,
        git: &Git,
        file: &RepoPath,
        wanted: &dyn Fn(BlobId) -> bool,
    ) -> Result<Option<&Rev>> {
        let Some(newest) = self.positions.first() else { return Ok(None) };
        let first = (0, git.blob(newest, file)?);
        let older = self.versions.get(file).into_iter().flatten().copied();
        let mut versions = std::iter::once(first).chain(older);
        let found = versions.find(|(_, version)| version.is_some_and(wanted));
        Ok(found.map(|(at, _)| &self.positions[at]))
    }

    fn steps_since(&self, git: &Git, start: &Rev) -> Result<Option<Rc<Steps>>> {
        if let Some(known) = self.since.borrow().get(start) {
            return Ok(known.clone());
        }
        let found = self.compare_since(git, start)?.map(Rc::new);
        self.since.borrow_mut().insert(start.clone(), found.clone());
        Ok(found)
    }

    fn compare_since(&self, git: &Git, start: &Rev) -> Result<Option<Steps>> {
        let (before, now) = (BTreeSet::from([start.clone()]), BTreeSet::from([self.head.clone()]));
        let mut steps = Steps::new();
        for rev in git.rev_difference(&before, &now)?.added {
            let parents = git.commit(&rev)?.parents;
            if parents.is_empty() {
                // A rewritten history: nothing tells what it was made from.
                return Ok(None);
            }
            for parent in &parents {
                for (file, step) in git.changed_files(parent, &rev, self.wanted)? {
                    steps.entry(file).or_default().insert(step);
                }
            }
        }
        Ok(Some(steps))
    }
}
