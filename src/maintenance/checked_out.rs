//! The versions that workspaces have checked out or link to, in all worktrees of all clones that share the
//! store.

use std::{collections::HashSet, path::Path};

use crate::{
    digest::Digest,
    error::Result,
    maintenance::{
        clone_list::CloneNeeds,
        mark::mark,
        roots::{Roots, add_needs, worktree_roots},
        snapshot::{Snapshot, own_snapshot},
    },
    repo::Repo,
    store::FilesInUse,
};

/// Returns the objects of the versions that a worktree has checked out or staged, last had, or links to. Of a
/// clone that cannot be read, everything counts that it needs.
pub fn files_in_use(repo: &Repo, snapshot: &Snapshot, pinned: HashSet<Digest>) -> Result<FilesInUse> {
    let (mut found, mut unknown) = (worktree_roots(&repo.git, snapshot)?, Roots::default());
    let mut linked: HashSet<Digest> = snapshot.links.iter().copied().collect();
    for list in &snapshot.other_clones {
        let needs = list.parse()?;
        if list.refs.is_none() || add_worktrees(repo, &needs, &mut found, &mut linked).is_err() {
            add_all(&needs, &mut unknown);
        }
    }
    linked.extend(mark(&repo.store, &unknown)?.live.objects);
    let mut checked_out = mark(&repo.store, &found)?.live.objects;
    checked_out.extend(&linked);
    Ok(FilesInUse { checked_out, linked, pinned })
}

/// Adds what the worktrees of another clone have.
fn add_worktrees(
    repo: &Repo,
    needs: &CloneNeeds,
    found: &mut Roots,
    linked: &mut HashSet<Digest>,
) -> Result<()> {
    let clone = Repo::open_other(Path::new(&needs.path))?;
    let snapshot = own_snapshot(&clone, &repo.store, 0)?;
    linked.extend(&snapshot.links);
    found.contents.extend(worktree_roots(&clone.git, &snapshot)?.contents);
    Ok(())
}

fn add_all(needs: &CloneNeeds, found: &mut Roots) {
    add_needs(found, &needs.trees, &needs.objects, &mut || None);
    for dropped in &needs.dropped {
        add_needs(found, &dropped.trees, &dropped.objects, &mut || None);
    }
}
