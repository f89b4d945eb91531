//! Tells whether a file changed on the line of HEAD since it parted from a commit that HEAD was at before.
//!
//! The reflog of HEAD, which each worktree has for itself, lists where HEAD was. Without one, and in shallow
//! and partial clones, which do not have all of history, nothing is known.

use std::collections::{BTreeSet, HashMap};

use crate::{
    error::Result,
    git::{Git, Rev, from_gix},
    path::RepoPath,
};

/// Number of positions of HEAD that are considered, newest first.
const MAX_POSITIONS: usize = 1000;

impl Git {
    /// Looks for the last commit at HEAD whose version of `file` passes `is_start`. Returns true if the file
    /// is the same in all commits that HEAD has and that one has not, and in their parents: then the version
    /// at HEAD is one that the other version was made from.
    pub fn is_unchanged_since(&self, file: &RepoPath, is_start: &dyn Fn(&[u8]) -> bool) -> Result<bool> {
        if self.promisor().is_some() || !self.shallow_boundary()?.is_empty() {
            return Ok(false);
        }
        let Some(head) = self.head() else { return Ok(false) };
        let Some(now) = self.blob(&head, file)? else { return Ok(false) };
        let Some(start) = self.last_position(file, is_start)? else { return Ok(false) };
        for rev in self.rev_difference(&BTreeSet::from([start]), &BTreeSet::from([head]))?.added {
            let parents = self.commit(&rev)?.parents;
            if parents.is_empty() {
                // A rewritten history: nothing tells what it was made from.
                return Ok(false);
            }
            for rev in parents.iter().chain([&rev]) {
                if self.blob(rev, file)? != Some(now) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Returns the last commit at HEAD whose version of `file` passes `wanted`.
    fn last_position(&self, file: &RepoPath, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Option<Rev>> {
        let mut known = HashMap::new();
        for rev in self.positions()? {
            let Some(blob) = self.blob(&rev, file)? else { continue };
            let is_wanted = match known.get(&blob) {
                Some(is_wanted) => *is_wanted,
                None => wanted(&self.read_blob(blob)?),
            };
            if is_wanted {
                return Ok(Some(rev));
            }
            known.insert(blob, is_wanted);
        }
        Ok(None)
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
        Ok(newest.filter(|rev| self.repo.has_object(rev.0)).collect())
    }
}
