//! Snapshot of everything that refers to objects at one moment: Git's names and indexes, the pointers and
//! lockfiles of all worktrees, kept versions, and the needs of other clones. Equal snapshots lead to the same
//! roots.

use std::{collections::BTreeSet, path::PathBuf};

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    fs::{self, LinkKind, Root},
    git::{GitRef, Worktree},
    maintenance::clone_list::{CloneList, other_lists},
    path::RepoPath,
    pointer::{Content, READ_LIMIT, SUFFIX},
    repo::Repo,
    store::Store,
    workspace::{Bases, is_tracking_file, read_kept},
};

/// All references that other processes may change at any time.
#[derive(Debug, PartialEq)]
pub struct Snapshot {
    pub names: Vec<GitRef>,
    pub worktrees: Vec<Worktree>,
    /// Pointers and lockfiles, with the worktree they are in.
    pub files: Vec<(PathBuf, RepoPath, Vec<u8>)>,
    /// Contents that the worktrees last had.
    pub bases: Vec<Content>,
    /// Large files of the store that symbolic links in a worktree point to.
    pub links: BTreeSet<Digest>,
    /// Records of kept versions, with their files, unparsed.
    pub kept: Vec<(RepoPath, Vec<u8>)>,
    /// Published needs of other clones, and their refs.
    pub other_clones: Vec<CloneList>,
}

/// Takes a snapshot; of Git's reflogs, lines younger than `recent` seconds are included.
pub fn take_snapshot(repo: &Repo, recent: i64) -> Result<Snapshot> {
    let own = own_snapshot(repo, &repo.store, recent)?;
    Ok(Snapshot { other_clones: other_lists(repo)?, ..own })
}

/// Takes a snapshot as [`take_snapshot`] does, but of one clone alone, which need not be the one of `store`.
pub fn own_snapshot(repo: &Repo, store: &Store, recent: i64) -> Result<Snapshot> {
    // Worktrees before names: a reference that moves from a worktree into a commit meanwhile is found in
    // both.
    let worktrees = repo.git.worktrees(&is_tracking_file)?;
    let (mut files, mut links) = (Vec::new(), BTreeSet::new());
    // Those of another clone are not followed.
    let is_own = store.root().path() == repo.store.root().path();
    let linked = !is_own || repo.config.links()?.contains(&LinkKind::Symlink);
    for root in worktrees.iter().filter_map(|it| it.root.as_ref()) {
        let top = Root::open(root)?;
        let walk = Walk { store, top: &top, linked };
        let mut found = Vec::new();
        walk.folder(&RepoPath::root(), &mut found, &mut links)
            .context(|| format!("cannot look for pointers in `{}`", root.display()))?;
        files.extend(found.into_iter().map(|(path, bytes)| (root.clone(), path, bytes)));
    }
    let bases = worktrees.iter().map(read_bases).collect::<Result<Vec<_>>>()?.concat();
    let names = repo.git.references(recent)?;
    Ok(Snapshot { names, worktrees, files, bases, links, kept: read_kept(repo)?, other_clones: Vec::new() })
}

fn read_bases(worktree: &Worktree) -> Result<Vec<Content>> {
    let folder = worktree.git_dir.join("mlx");
    if !fs::is_dir(&folder) {
        return Ok(Vec::new());
    }
    let bytes = Root::open(&folder)?.read_if_exists(&RepoPath::from_text(Bases::FILE)?)?;
    Ok(bytes.map_or_else(Vec::new, |bytes| Bases::contents(&bytes)))
}

struct Walk<'w> {
    store: &'w Store,
    top: &'w Root,
    /// True if workspace files may be symbolic links into the store.
    linked: bool,
}

impl Walk<'_> {
    /// Collects every pointer and lockfile, tracked by Git or not. Folders that a pointer stands for are
    /// skipped.
    fn folder(
        &self,
        folder: &RepoPath,
        found: &mut Vec<(RepoPath, Vec<u8>)>,
        links: &mut BTreeSet<Digest>,
    ) -> Result<()> {
        let (mut below, mut tracked) = (Vec::new(), BTreeSet::new());
        for (name, kind) in self.top.dir(folder)?.names()? {
            // Names that no path may have (`.git`, `.mlx`) hold no pointers.
            let Ok(path) = folder.join(&name) else { continue };
            if kind.is_dir() {
                below.push(path);
            } else if kind.is_file() && is_tracking_file(&name) && !name.starts_with(fs::TEMP_PREFIX) {
                // A file that is removed meanwhile counts as absent.
                let limit =
                    if name.ends_with(SUFFIX.as_bytes()) { READ_LIMIT } else { fs::MAX_DOCUMENT_SIZE + 1 };
                if let Some(bytes) = self.top.read_prefix(&path, limit)? {
                    tracked.extend(path.without_suffix(SUFFIX));
                    found.push((path, bytes));
                }
            } else if kind.is_symlink() && self.linked {
                let target = self.top.read_link(&path)?;
                links.extend(self.store.large_from_link(&target).map(|it| it.digest()));
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
