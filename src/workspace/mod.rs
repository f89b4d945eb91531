//! The working tree as `mlx` sees it: what is tracked, what changed, what to put back.

mod add;
mod checkout;
mod collision;
mod compare;
mod filter;
mod glob;
mod ignore;
mod index;
mod modes;
mod node;
mod remove;
mod rename;
mod scan;
mod select;
mod status;
mod unprotect;

pub use self::{
    checkout::{CheckedOut, checkout, checkout_part, clear},
    glob::Glob,
    node::Node,
    remove::{Data, Removed},
    rename::Moved,
    status::{Change, Item, State, Version, between},
    unprotect::Unprotected,
};

use std::{cell::RefCell, collections::BTreeSet};

use crate::{
    error::{Error, Kind, Result},
    path::RepoPath,
    pointer::{Content, Pointer, SUFFIX},
    progress::Progress,
    repo::Repo,
    store::{EntryKind, Writer},
};

use self::index::Index;

/// What is tracked, and pointers that cannot be read.
#[derive(Default)]
pub struct Tracked {
    pub pointers: Vec<Pointer>,
    pub unreadable: Vec<(RepoPath, Error)>,
}

impl Tracked {
    /// Those at or around these paths; all when none are named.
    pub fn select(mut self, paths: &[RepoPath]) -> Result<Self> {
        let tracked = |path: &RepoPath| {
            let mut all =
                self.pointers.iter().map(|it| &it.path).chain(self.unreadable.iter().map(|it| &it.0));
            all.any(|it| it.overlaps(path))
        };
        if let Some(path) = paths.iter().find(|it| !tracked(it)) {
            let error = Error::not_found(format!("mlx does not track `{path}`"));
            return Err(error.hint("`mlx status` lists what it tracks; `mlx add` tracks more"));
        }
        let wanted = |it: &RepoPath| paths.is_empty() || paths.iter().any(|path| it.overlaps(path));
        self.pointers.retain(|it| wanted(&it.path));
        self.unreadable.retain(|it| wanted(&it.0));
        Ok(self)
    }

    /// All of it, for whoever can leave out nothing.
    pub fn whole(self) -> Result<Vec<Pointer>> {
        match self.unreadable.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(self.pointers),
        }
    }
}

/// The files of a repository and what is remembered of them.
pub struct Workspace<'r> {
    pub repo: &'r Repo,
    index: RefCell<Index>,
}

impl<'r> Workspace<'r> {
    /// Takes no lock: one is held only while the index is replaced.
    pub fn open(repo: &'r Repo) -> Result<Self> {
        Ok(Self { repo, index: RefCell::new(Index::load(repo)?) })
    }

    /// Paths that have a pointer: those Git tracks and those added here since.
    pub fn pointed(&self) -> Result<BTreeSet<RepoPath>> {
        let tracked = self.repo.git.tracked(&|it| it.ends_with(SUFFIX.as_bytes()))?;
        let mut found: BTreeSet<_> = tracked.iter().filter_map(|it| it.without_suffix(SUFFIX)).collect();
        found.extend(self.index.borrow().pointers.iter().cloned());
        if !self.index.borrow().loaded {
            self.find_pointers(&RepoPath::root(), &mut found)?;
            // What other programs call so is no pointer that could be lost.
            let ours = found.iter().filter(|it| !matches!(self.repo.pointer(it), Ok(None)));
            ours.for_each(|it| self.index.borrow_mut().add_pointer(it.clone()));
        }
        let mut there = BTreeSet::new();
        for path in found {
            // One that cannot be looked at is there for whoever reads it, and says so then.
            if !matches!(self.repo.files.stamp(&path.with_suffix(SUFFIX)), Ok(None)) {
                there.insert(path);
            }
        }
        Ok(there)
    }

    /// Looks for pointers that Git does not know yet, when nothing is remembered of them; what has a
    /// pointer is not searched.
    fn find_pointers(&self, folder: &RepoPath, found: &mut BTreeSet<RepoPath>) -> Result<()> {
        let mut below = Vec::new();
        let names = match self.repo.files.dir(folder).and_then(|it| it.names()) {
            Ok(names) => names,
            // What may not be read hides nothing else; Git still knows the pointers that it tracks there.
            Err(error) if matches!(error.kind(), Kind::Denied | Kind::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        // What lies in another repository, such as a submodule, is that one's.
        if !folder.is_root() && names.iter().any(|it| it.0 == b".git") {
            return Ok(());
        }
        for (name, form) in names {
            let Ok(path) = folder.join(&name) else { continue };
            if form.is_dir() {
                below.push(path);
            } else if form.is_file()
                && let Some(of) = path.without_suffix(SUFFIX)
            {
                found.insert(of);
            }
        }
        below.retain(|it| !found.contains(it));
        below.iter().try_for_each(|it| self.find_pointers(it, found))
    }

    /// All pointers of the work tree, sorted by path.
    pub fn pointers(&self) -> Result<Tracked> {
        let mut found = Tracked::default();
        for path in self.pointed()? {
            let known = self.index.borrow().pointers.contains(&path);
            let read = if known { self.repo.strict_pointer(&path) } else { self.repo.pointer(&path) };
            match read {
                Ok(pointer) => found.pointers.extend(pointer),
                Err(error) => found.unreadable.push((path, error)),
            }
        }
        Ok(found)
    }

    /// The pointer that `path` is, or lies in.
    pub fn pointer_of(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        let mut here = Some(path.clone());
        while let Some(path) = here {
            if !path.is_root()
                && let Some(pointer) = self.repo.pointer(&path)?
            {
                return Ok(Some(pointer));
            }
            here = path.parent();
        }
        Ok(None)
    }

    /// What lies at `path` now, without storing it; nothing when nothing is there.
    pub fn look(&self, path: &RepoPath, progress: &dyn Progress) -> Result<Option<Node>> {
        scan::scan(self, path, None, progress)
    }

    /// The content at `path` now, without storing it.
    pub fn content(&self, path: &RepoPath, progress: &dyn Progress) -> Result<Option<Content>> {
        Ok(self.look(path, progress)?.map(|it| it.content()))
    }

    /// Stores what lies at `path`; nothing when nothing is there.
    pub fn store(&self, path: &RepoPath, progress: &dyn Progress) -> Result<Option<Content>> {
        let mut writer = Writer::new(&self.repo.store);
        let Some(node) = scan::scan(self, path, Some(&mut writer), progress)? else { return Ok(None) };
        writer.finish()?;
        Ok(Some(node.content()))
    }

    /// As [`Workspace::store`], of what is to be put back elsewhere: refuses links that lead out of it.
    pub fn store_output(&self, path: &RepoPath, progress: &dyn Progress) -> Result<Option<Content>> {
        let mut writer = Writer::new(&self.repo.store);
        let Some(node) = scan::scan(self, path, Some(&mut writer), progress)? else { return Ok(None) };
        if node.kind == EntryKind::Link {
            let error = Error::new(Kind::Denied, format!("`{path}` is a link"));
            return Err(error.hint("put there what it points to"));
        }
        scan::check_links(self, &node, path, path)?;
        writer.finish()?;
        Ok(Some(node.content()))
    }

    /// Writes what was learnt to disk, under a short lock.
    pub fn save(&self, progress: &dyn Progress) -> Result<()> {
        self.index.borrow_mut().save(self.repo, progress)
    }

    /// As [`Workspace::save`] if nobody has the lock: for commands that never wait. What is not saved is
    /// learnt anew the next time.
    pub fn save_if_free(&self) {
        drop(self.index.borrow_mut().save_if_free(self.repo));
    }
}
