//! Which commits two sets of tips do not share, at a cost that follows their number and not that of all history.
//!
//! From both sets at once, newest first, each commit passes on to its parents from which side it is seen; as soon as
//! all that wait are seen from both, the rest is shared. Clocks that were wrong can make a shared commit look like
//! one that is not, never the other way round.

use std::collections::{BTreeSet, BinaryHeap, HashMap};

use crate::{
    error::{Doing, Error, Kind, Result},
    git::{Git, Rev, ours},
};

const BEFORE: u8 = 1;
const NOW: u8 = 2;
const BOTH: u8 = BEFORE | NOW;

/// What two sets of tips do not share.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Apart {
    /// Commits that only the tips of now descend from, and they themselves.
    pub came: Vec<Rev>,
    /// Whether some commit that the tips of before descended from is left by those of now.
    pub some_went: bool,
}

#[derive(Default)]
struct Walk {
    seen: HashMap<gix::ObjectId, Seen>,
    /// By time, newest first.
    open: BinaryHeap<(i64, gix::ObjectId)>,
    /// How many of these are seen from one side only.
    apart: usize,
}

#[derive(Default)]
struct Seen {
    sides: u8,
    /// How often it waits.
    waits: usize,
    time: i64,
}

impl Git {
    /// What changes where history leads without any name changing: where it is cut off, and what stands in for
    /// other commits.
    pub fn cuts(&self) -> Result<String> {
        let doing = || "cannot read where history is cut off".to_owned();
        let last = ours(self.repo.shallow_commits(), doing)?;
        let mut lines: Vec<String> = last.iter().flat_map(|it| it.iter()).map(ToString::to_string).collect();
        for reference in ours(ours(self.repo.references(), doing)?.prefixed("refs/replace/"), doing)? {
            let reference = ours(reference, doing)?;
            lines.push(format!("{} {}", reference.name().as_bstr(), reference.id()));
        }
        Ok(lines.join("\n"))
    }

    /// What `before` and `now` do not share.
    pub fn apart(&self, before: &BTreeSet<Rev>, now: &BTreeSet<Rev>) -> Result<Apart> {
        if before == now {
            return Ok(Apart::default());
        }
        let doing = || "cannot read which commits are not here".to_owned();
        let last: BTreeSet<gix::ObjectId> = ours(self.repo.shallow_commits(), doing)?
            .map(|it| it.iter().copied().collect())
            .unwrap_or_default();
        let mut walk = Walk::default();
        for (tips, side) in [(before, BEFORE), (now, NOW)] {
            for tip in tips {
                // Git has thrown it away: nobody descends from it any more.
                if side == BEFORE && !self.repo.has_object(tip.0) {
                    return Ok(Apart { came: Vec::new(), some_went: true });
                }
                walk.reach(self, tip.0, side)?;
            }
        }
        while walk.apart > 0 {
            let Some((id, sides)) = walk.next() else { break };
            if last.contains(&id) {
                continue;
            }
            let doing = || format!("cannot read the commit {id}");
            let commit = ours(self.repo.find_commit(id), doing)?;
            for parent in commit.parent_ids() {
                walk.reach(self, parent.detach(), sides)?;
            }
        }
        let from = |sides: u8| walk.seen.iter().filter(move |it| it.1.sides == sides).map(|it| Rev(*it.0));
        Ok(Apart { came: from(NOW).collect(), some_went: from(BEFORE).next().is_some() })
    }
}

impl Walk {
    fn reach(&mut self, git: &Git, id: gix::ObjectId, side: u8) -> Result<()> {
        let seen = self.seen.entry(id).or_default();
        if seen.sides & side == side {
            return Ok(());
        }
        if seen.sides == 0 {
            let commit = git.repo.find_commit(id).map_err(|it| Error::new(Kind::Internal, it.to_string()));
            let time = commit.and_then(|it| ours(it.time(), || "cannot read its time".into()));
            seen.time = time.doing(|| format!("cannot read the commit {id}"))?.seconds;
        }
        if seen.sides != 0 && seen.sides != BOTH && seen.sides | side == BOTH {
            self.apart -= seen.waits;
        }
        seen.sides |= side;
        seen.waits += 1;
        self.apart += usize::from(seen.sides != BOTH);
        self.open.push((seen.time, id));
        Ok(())
    }

    fn next(&mut self) -> Option<(gix::ObjectId, u8)> {
        let (_, id) = self.open.pop()?;
        let seen = self.seen.get_mut(&id)?;
        seen.waits -= 1;
        self.apart -= usize::from(seen.sides != BOTH);
        Some((id, seen.sides))
    }
}
