//! The versions that workspaces have checked out, in all worktrees of all clones that share the store.

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
};

/// Returns the objects of the versions that a worktree has checked out or staged, last had, or links to. Of a
/// clone that cannot be read, everything counts that it needs.
pub fn checked_out(repo: &Repo, snapshot: &Snapshot) -> Result<HashSet<Digest>> {
    let mut found = worktree_roots(&repo.git, snapshot)?;
    let mut objects: HashSet<Digest> = snapshot.links.iter().copied().collect();
    for list in &snapshot.other_clones {
        let needs = list.parse()?;
        if list.refs.is_none() || add_worktrees(repo, &needs, &mut found, &mut objects).is_err() {
            add_all(&needs, &mut found);
        }
    }
    objects.extend(mark(&repo.store, &found)?.live.objects);
    Ok(objects)
}

/// Adds what the worktrees of another clone have.
fn add_worktrees(
    repo: &Repo,
    needs: &CloneNeeds,
    found: &mut Roots,
    objects: &mut HashSet<Digest>,
) -> Result<()> {
    let clone = Repo::open_other(Path::new(&needs.path))?;
    let snapshot = own_snapshot(&clone, &repo.store, 0)?;
    objects.extend(&snapshot.links);
    found.contents.extend(worktree_roots(&clone.git, &snapshot)?.contents);
    Ok(())
}

fn add_all(needs: &CloneNeeds, found: &mut Roots) {
    add_needs(found, &needs.trees, &needs.objects, &mut || None);
    for dropped in &needs.dropped {
        add_needs(found, &dropped.trees, &dropped.objects, &mut || None);
    }
}
