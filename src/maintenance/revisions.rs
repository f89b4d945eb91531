//! States of the data that commits record, and which content belongs to one of them alone.
//!
//! History is walked from commit to commit, and only the files that differ between two are read. So a commit
//! costs as much as its change: its state is known by the sum of the digests in it, and whether a content
//! stays or goes with a change, by when it came.

use std::{collections::HashMap, rc::Rc};

use crate::{
    digest::Digest,
    error::Result,
    git::{BlobId, Commit, Filter, Git, TreeId},
    maintenance::{
        references::read_committed,
        roots::{Referrer, RootEntry, Roots},
    },
    path::RepoPath,
    pointer::{Content, SUFFIX},
    repo::Repo,
    workspace::is_tracking_file,
};

/// Owner of an object that more than one group needs.
pub const SHARED: u32 = u32::MAX;

/// Commits that refer to the same data.
#[derive(Clone, Debug)]
pub struct Revision {
    /// Newest of the commits; `None` for data that is in no commit.
    pub newest: Option<Commit>,
    pub commits: u64,
}

/// A set of contents that commits record, or the workspace does.
pub struct State {
    pub revision: Revision,
    pub contents: u64,
    /// Size of all contents, in bytes.
    pub size: u64,
}

/// The sum of the digests of a set, as a number of 256 bits, and their number. Sets with equal sums are
/// equal: digests are as good as random.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct SetSum([u64; 4], u64);

impl SetSum {
    fn add(&mut self, digest: &Digest) {
        self.change(digest, u64::overflowing_add);
        self.1 += 1;
    }

    fn remove(&mut self, digest: &Digest) {
        self.change(digest, u64::overflowing_sub);
        self.1 -= 1;
    }

    fn change(&mut self, digest: &Digest, change: fn(u64, u64) -> (u64, bool)) {
        let mut carry = false;
        for (sum, word) in self.0.iter_mut().zip(digest.bytes().as_chunks().0) {
            let (with_word, first) = change(*sum, u64::from_le_bytes(*word));
            let (with_carry, second) = change(with_word, carry.into());
            (*sum, carry) = (with_carry, first | second);
        }
    }
}

/// Returns the states that commits and the workspace have, and each content with the only state that has it,
/// or [`SHARED`]. States come in the order of their newest commits.
pub fn revision_states(repo: &Repo, found: &Roots) -> Result<(Vec<State>, Vec<(Content, u32)>)> {
    let git = repo.git.without_replacements();
    let mut walk = Walk::new(&git, found);
    let mut before = None;
    for rev in &found.history {
        let tree = git.top_tree(rev)?;
        walk.go(before, tree)?;
        if walk.sum.1 > 0 {
            let commit = repo.git.commit(rev)?;
            walk.current = walk.state(walk.sum, walk.size);
            walk.states[walk.current as usize].add(commit);
        }
        before = Some(tree);
    }
    walk.end();
    walk.add_uncommitted();
    let groups = walk.contents.into_iter().zip(walk.owners);
    Ok((walk.states, groups.filter_map(|(content, owner)| Some((content, owner?))).collect()))
}

impl State {
    fn add(&mut self, commit: Commit) {
        self.revision.commits += 1;
        let order = |commit: &Commit| (commit.when, commit.rev.clone());
        if self.revision.newest.as_ref().is_none_or(|newest| order(newest) < order(&commit)) {
            self.revision.newest = Some(commit);
        }
    }
}

struct Walk<'w> {
    git: &'w Git,
    found: &'w Roots,
    /// All contents, by number.
    contents: Vec<Content>,
    numbers: HashMap<Digest, u32>,
    parsed: HashMap<(BlobId, bool), Rc<[u32]>>,
    /// Number of records of each content in the current commit.
    counts: Vec<u32>,
    /// The change with which each content came.
    came: Vec<u64>,
    owners: Vec<Option<u32>>,
    /// Number of changes so far.
    changes: u64,
    sum: SetSum,
    size: u128,
    /// State of the current commit.
    current: u32,
    states: Vec<State>,
    by_sum: HashMap<SetSum, u32>,
}

impl<'w> Walk<'w> {
    fn new(git: &'w Git, found: &'w Roots) -> Self {
        Self {
            git,
            found,
            contents: Vec::new(),
            numbers: HashMap::new(),
            parsed: HashMap::new(),
            counts: Vec::new(),
            came: Vec::new(),
            owners: Vec::new(),
            changes: 0,
            sum: SetSum::default(),
            size: 0,
            current: SHARED,
            states: Vec::new(),
            by_sum: HashMap::new(),
        }
    }

    /// Goes on from the tree of one commit to that of the next.
    fn go(&mut self, before: Option<TreeId>, tree: TreeId) -> Result<()> {
        let filter = Filter { file: &|file| is_tracking_file(file.bytes()), folder: &|_| true };
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for (path, [old, new]) in self.git.changed_files([before, Some(tree)], &filter)? {
            removed.extend(old.map(|blob| self.parse(&path, blob)).transpose()?);
            added.extend(new.map(|blob| self.parse(&path, blob)).transpose()?);
        }
        let mut before: HashMap<u32, u32> = HashMap::new();
        for (side, is_added) in [(added, true), (removed, false)] {
            for number in side.iter().flat_map(|numbers| numbers.iter()) {
                let count = &mut self.counts[*number as usize];
                before.entry(*number).or_insert(*count);
                *count = if is_added { *count + 1 } else { *count - 1 };
            }
        }
        before.retain(|number, count| (*count > 0) != (self.counts[*number as usize] > 0));
        if !before.is_empty() {
            before.into_keys().for_each(|number| self.flip(number as usize));
            self.changes += 1;
        }
        Ok(())
    }

    /// Adds a content to the set of the next state, or removes it.
    fn flip(&mut self, at: usize) {
        let content = self.contents[at];
        if self.counts[at] > 0 {
            self.sum.add(&content.digest);
            self.size += u128::from(content.size);
            self.came[at] = self.changes + 1;
        } else {
            self.sum.remove(&content.digest);
            self.size -= u128::from(content.size);
            self.leave(at);
        }
    }

    /// Notes which states had a content until now: the current one if it came with it, else several.
    fn leave(&mut self, at: usize) {
        self.own(at, if self.came[at] == self.changes { self.current } else { SHARED });
    }

    fn own(&mut self, at: usize, state: u32) {
        let owner = &mut self.owners[at];
        *owner = Some(if owner.is_none_or(|it| it == state) { state } else { SHARED });
    }

    /// Ends the walk: what the last commit has leaves.
    fn end(&mut self) {
        let present: Vec<_> = (0..self.counts.len()).filter(|at| self.counts[*at] > 0).collect();
        present.into_iter().for_each(|at| self.leave(at));
    }

    /// Adds the state of what worktrees and Git's indexes refer to.
    fn add_uncommitted(&mut self) {
        let is_here = |referrer: &Referrer| matches!(referrer, Referrer::Worktree(_) | Referrer::Index(_));
        let is_uncommitted = |entry: &&RootEntry| entry.references.iter().any(|it| is_here(&it.referrer));
        let here = self.found.contents.values().filter(is_uncommitted);
        let here: Vec<_> = here.filter_map(|entry| entry.content).collect();
        if here.is_empty() {
            return;
        }
        let (mut sum, mut size) = (SetSum::default(), 0);
        for content in &here {
            sum.add(&content.digest);
            size += u128::from(content.size);
        }
        let state = self.state(sum, size);
        for content in here {
            let at = self.number(content) as usize;
            self.own(at, state);
        }
    }

    /// Returns the number of the state that has this set.
    fn state(&mut self, sum: SetSum, size: u128) -> u32 {
        *self.by_sum.entry(sum).or_insert_with(|| {
            let size = u64::try_from(size).unwrap_or(u64::MAX);
            let revision = Revision { newest: None, commits: 0 };
            self.states.push(State { revision, contents: sum.1, size });
            self.states.len() as u32 - 1
        })
    }

    fn number(&mut self, content: Content) -> u32 {
        *self.numbers.entry(content.digest).or_insert_with(|| {
            self.contents.push(content);
            self.counts.push(0);
            self.came.push(0);
            self.owners.push(None);
            self.contents.len() as u32 - 1
        })
    }

    /// Returns the contents that a pointer or a lockfile records, by number; none if it cannot be read.
    fn parse(&mut self, path: &RepoPath, blob: BlobId) -> Result<Rc<[u32]>> {
        let key = (blob, path.without_suffix(SUFFIX).is_some());
        if let Some(numbers) = self.parsed.get(&key) {
            return Ok(Rc::clone(numbers));
        }
        let references = read_committed(self.git, path, blob)?.unwrap_or_default();
        let known = |digest: &Digest| self.found.contents.get(digest).and_then(|entry| entry.content);
        let contents: Vec<_> = references.contents.iter().filter_map(|(_, it)| known(&it.digest)).collect();
        let numbers: Rc<[u32]> = contents.into_iter().map(|content| self.number(content)).collect();
        self.parsed.insert(key, Rc::clone(&numbers));
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_depends_on_the_set_alone() {
        let digests: Vec<_> = (0..50_u8).map(|at| Digest::of(&[at])).collect();
        let sum = |digests: &mut dyn Iterator<Item = &Digest>| {
            digests.fold(SetSum::default(), |mut sum, digest| {
                sum.add(digest);
                sum
            })
        };
        let all = sum(&mut digests.iter());
        assert!(all == sum(&mut digests.iter().rev()) && all != sum(&mut digests[1..].iter()));
        let mut less = all;
        digests[7..].iter().for_each(|digest| less.remove(digest));
        assert!(less == sum(&mut digests[..7].iter()));
    }
}
