//! Finds the commits reachable from one of two sets of tips but not both.
//!
//! The cost grows with the number of these commits, not with all of history. The walk starts at both sets at
//! once and visits commits newest first. Each commit passes on to its parents from which side it was reached;
//! once every queued commit was reached from both sides and is older than all that were reached from one, all
//! further ones are shared. Wrong commit times can make a shared commit count as not shared, never the other
//! way round.

use std::collections::{BTreeSet, BinaryHeap, HashMap};

use crate::{
    error::Result,
    git::{Git, Rev, from_gix, unreadable},
};

const BEFORE: u8 = 1;
const NOW: u8 = 2;
const BOTH: u8 = BEFORE | NOW;

/// Difference between the commits reachable from two sets of tips, `before` and `now`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RevDifference {
    /// Commits reachable from the tips of `now` only, newest first.
    pub added: Vec<Rev>,
    /// True if some commit is reachable from the tips of `before` only.
    pub any_removed: bool,
}

#[derive(Default)]
struct Walk {
    visited: HashMap<gix::ObjectId, Visit>,
    /// Commits to visit by time, newest first.
    queue: BinaryHeap<(i64, gix::ObjectId)>,
    /// Number of queued commits that were reached from one side only.
    one_sided: usize,
    /// Time of the oldest commit that was visited when it was reached from one side only. A queued commit
    /// that is not older may be its descendant: many commits of one second have no order.
    oldest_one_sided: Option<i64>,
}

#[derive(Default)]
struct Visit {
    /// Sides from which the commit was reached: a combination of `BEFORE` and `NOW`.
    sides: u8,
    /// Number of times it is in the queue.
    queued: usize,
    time: i64,
}

impl Git {
    /// Returns text that changes whenever the ancestry of commits changes without any ref changing: the
    /// boundaries of a shallow clone.
    pub fn shallow_boundary(&self) -> Result<String> {
        let boundary =
            from_gix(self.repo.shallow_commits(), || "cannot read the shallow boundary".to_owned())?;
        let lines = boundary.iter().flat_map(|commits| commits.iter()).map(ToString::to_string);
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Compares the commits reachable from `before` and `now`.
    pub fn rev_difference(&self, before: &BTreeSet<Rev>, now: &BTreeSet<Rev>) -> Result<RevDifference> {
        if before == now {
            return Ok(RevDifference::default());
        }
        let context = || "cannot read the shallow boundary".to_owned();
        let boundary: BTreeSet<gix::ObjectId> = from_gix(self.repo.shallow_commits(), context)?
            .map(|it| it.iter().copied().collect())
            .unwrap_or_default();
        let mut walk = Walk::default();
        for (tips, side) in [(before, BEFORE), (now, NOW)] {
            for tip in tips {
                // Git has pruned it, so no current tip descends from it.
                if side == BEFORE && !self.repo.has_object(tip.0) {
                    return Ok(RevDifference { added: Vec::new(), any_removed: true });
                }
                walk.enqueue(self, tip.0, side)?;
            }
        }
        while walk.has_more() {
            let Some((id, sides)) = walk.next() else { break };
            if boundary.contains(&id) {
                continue;
            }
            let commit = self.repo.find_commit(id);
            let commit =
                commit.map_err(|error| unreadable(&error, &format!("cannot read the commit {id}")))?;
            for parent in commit.parent_ids() {
                walk.enqueue(self, parent.detach(), sides)?;
            }
        }
        let any_removed = walk.visited.values().any(|visit| visit.sides == BEFORE);
        let added = walk.visited.into_iter().filter(|(_, visit)| visit.sides == NOW);
        let mut added: Vec<_> = added.map(|(id, visit)| (visit.time, id)).collect();
        added.sort_unstable_by(|one, other| other.cmp(one));
        Ok(RevDifference { added: added.into_iter().map(|(_, id)| Rev(id)).collect(), any_removed })
    }
}

impl Walk {
    /// Queues a commit that was reached from `side`, unless it was queued for that side before.
    fn enqueue(&mut self, git: &Git, id: gix::ObjectId, side: u8) -> Result<()> {
        let visit = self.visited.entry(id).or_default();
        if visit.sides & side == side {
            return Ok(());
        }
        if visit.sides == 0 {
            let context = || format!("cannot read the commit {id}");
            let commit = git.repo.find_commit(id).map_err(|error| unreadable(&error, &context()))?;
            visit.time = from_gix(commit.time(), context)?.seconds;
        }
        if visit.sides != 0 && visit.sides != BOTH && visit.sides | side == BOTH {
            self.one_sided -= visit.queued;
        }
        visit.sides |= side;
        visit.queued += 1;
        self.one_sided += usize::from(visit.sides != BOTH);
        self.queue.push((visit.time, id));
        Ok(())
    }

    /// Returns true while a commit in the queue can change what is known of the sides of commits.
    fn has_more(&self) -> bool {
        let newest = self.queue.peek().map(|commit| commit.0);
        self.one_sided > 0
            || self.oldest_one_sided.is_some_and(|oldest| newest.is_some_and(|it| it >= oldest))
    }

    /// Takes the newest commit from the queue, with the sides from which it was reached.
    fn next(&mut self) -> Option<(gix::ObjectId, u8)> {
        let (time, id) = self.queue.pop()?;
        let visit = self.visited.get_mut(&id)?;
        visit.queued -= 1;
        if visit.sides != BOTH {
            self.one_sided -= 1;
            self.oldest_one_sided = Some(self.oldest_one_sided.map_or(time, |oldest| oldest.min(time)));
        }
        Some((id, visit.sides))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(folder: &std::path::Path, args: &[&str]) -> String {
        let mut command = std::process::Command::new("git");
        command
            .arg("-C")
            .arg(folder)
            .args(["-c", "user.name=Ada", "-c", "user.email=ada@park.example"])
            .args(args);
        command.env("GIT_AUTHOR_DATE", "1700000000 +0000").env("GIT_COMMITTER_DATE", "1700000000 +0000");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Commits of one second are visited in any order.
    #[test]
    fn commits_of_one_second_are_compared_exactly() {
        let temp = tempfile::tempdir().unwrap();
        git(temp.path(), &["init", "-q"]);
        let commit = |number: usize| {
            git(temp.path(), &["commit", "-q", "--allow-empty", "-m", &number.to_string()]);
            Rev::from_hex(&git(temp.path(), &["rev-parse", "HEAD"])).unwrap()
        };
        let commits: Vec<Rev> = (0..40).map(commit).collect();
        let repo = Git::discover(temp.path()).unwrap();
        for pair in commits.windows(2) {
            let tips = |at: usize| BTreeSet::from([pair[at].clone()]);
            let added = RevDifference { added: vec![pair[1].clone()], any_removed: false };
            assert_eq!(repo.rev_difference(&tips(0), &tips(1)).unwrap(), added);
            let removed = RevDifference { added: Vec::new(), any_removed: true };
            assert_eq!(repo.rev_difference(&tips(1), &tips(0)).unwrap(), removed);
        }
    }
}
