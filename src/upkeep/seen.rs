//! What names anything at this moment: Git's names and indexes, the pointers and lockfiles of all worktrees, the
//! lists of other clones. Two looks that are equal lead to the same roots.

use std::{collections::BTreeSet, path::PathBuf};

use crate::{
    digest::Digest,
    error::{Doing, Result},
    fs::{self, Link, Root},
    git::{Name, Worktree},
    lineage::speaks,
    path::RepoPath,
    pointer::{ENOUGH, SUFFIX},
    repo::Repo,
    upkeep::clones,
};

/// One look at everything that may change while somebody works.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub names: Vec<Name>,
    pub worktrees: Vec<Worktree>,
    /// Pointers and lockfiles with the worktree they lie in.
    pub files: Vec<(PathBuf, RepoPath, Vec<u8>)>,
    /// Whole files of the store that links in a worktree stand for.
    pub links: BTreeSet<Digest>,
    /// Lists of other clones, as they are written.
    pub lists: Vec<(String, Vec<u8>)>,
}

/// Looks; logs of Git count as far as they are no older than `recent` seconds.
pub fn look(repo: &Repo, recent: i64) -> Result<Seen> {
    // First what is read later: whatever moves from a worktree into a commit meanwhile is seen twice.
    let worktrees = repo.git.worktrees(&speaks)?;
    let (mut files, mut links) = (Vec::new(), BTreeSet::new());
    let linked = repo.config.links()?.contains(&Link::Symlink);
    for root in worktrees.iter().filter_map(|it| it.root.as_ref()) {
        let top = Root::open(root)?;
        let walk = Walk { repo, top: &top, linked };
        let mut found = Vec::new();
        walk.folder(&RepoPath::root(), &mut found, &mut links)
            .doing(|| format!("cannot look for pointers in `{}`", root.display()))?;
        files.extend(found.into_iter().map(|(path, bytes)| (root.clone(), path, bytes)));
    }
    let names = repo.git.names(recent)?;
    Ok(Seen { names, worktrees, files, links, lists: clones::others(repo)? })
}

struct Walk<'w> {
    repo: &'w Repo,
    top: &'w Root,
    /// Whether files of the workspace may be links into the store.
    linked: bool,
}

impl Walk<'_> {
    /// Every pointer and lockfile, known to Git or not. Folders that a pointer stands for hold none.
    fn folder(
        &self,
        folder: &RepoPath,
        found: &mut Vec<(RepoPath, Vec<u8>)>,
        links: &mut BTreeSet<Digest>,
    ) -> Result<()> {
        let (mut below, mut tracked) = (Vec::new(), BTreeSet::new());
        for (name, kind) in self.top.dir(folder)?.names()? {
            // What no path may be called (`.git`, `.mlx`) is not for pointers.
            let Ok(path) = folder.join(&name) else { continue };
            if kind.is_dir() {
                below.push(path);
            } else if kind.is_file() && speaks(&name) && !name.starts_with(fs::TEMPORARY) {
                // One that goes while we look stands for nothing.
                let most = if name.ends_with(SUFFIX.as_bytes()) { ENOUGH } else { fs::DOCUMENT + 1 };
                if let Some(bytes) = self.top.read_start(&path, most)? {
                    tracked.extend(path.without_suffix(SUFFIX));
                    found.push((path, bytes));
                }
            } else if kind.is_symlink() && self.linked {
                let target = self.top.read_link(&path)?;
                links.extend(self.repo.store.linked(&target).map(|it| it.digest()));
            }
        }
        for path in below {
            if self.linked || !tracked.contains(&path) {
                let mut inner = Vec::new();
                self.folder(&path, &mut inner, links)?;
                if !tracked.contains(&path) {
                    found.append(&mut inner);
                }
            }
        }
        Ok(())
    }
}
