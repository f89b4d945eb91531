//! Leftovers of runs in all worktrees of a clone: listed for `du`, removed by `gc` when they are old.

use crate::{
    error::Result,
    fs::Root,
    maintenance::snapshot::Snapshot,
    pipeline::{Leftover, LeftoverKind, expired, extent, leftovers},
    progress::Progress,
    store::Amount,
    time::Timestamp,
};

/// Leftovers that were removed, or would be.
#[derive(Clone, Copy, Debug, Default)]
pub struct FreedLeftovers {
    /// Outputs of failed runs; the count is of files.
    pub failed: Amount,
    pub logs: Amount,
}

/// Lists the leftovers of each worktree, with its private folder.
pub fn all_leftovers(snapshot: &Snapshot) -> Result<Vec<(Root, Vec<Leftover>)>> {
    let mut found = Vec::new();
    for worktree in &snapshot.worktrees {
        // A worktree in which no mlx command ran has no such folder.
        let Ok(private) = Root::open(&worktree.git_dir.join("mlx")) else { continue };
        let leftovers = leftovers(&private)?;
        found.push((private, leftovers));
    }
    Ok(found)
}

/// Removes the leftovers that are old enough, or only adds them up. One that cannot be removed is a warning.
pub fn free_leftovers(snapshot: &Snapshot, remove: bool, progress: &dyn Progress) -> Result<FreedLeftovers> {
    let mut freed = FreedLeftovers::default();
    for (private, all) in all_leftovers(snapshot)? {
        for leftover in expired(&all, Timestamp::now()) {
            let extent = extent(&private, &leftover.path);
            if remove && let Err(error) = private.remove(&leftover.path) {
                progress.warn(&error.chain_text());
                continue;
            }
            let amount = match leftover.kind {
                LeftoverKind::Failed => &mut freed.failed,
                LeftoverKind::Log => &mut freed.logs,
            };
            amount.count += extent.files;
            amount.bytes += extent.bytes;
        }
    }
    Ok(freed)
}
