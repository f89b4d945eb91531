//! `mlx add`: stores files and folders and writes their pointers.
//!
//! All paths are checked and scanned before any pointer is written. A path inside a tracked folder updates
//! that folder's pointer; other paths get pointers of their own and lines in `.gitignore`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Kind, Result},
    fs::FileKind,
    path::RepoPath,
    pointer::{ContentKind, Pointer, SUFFIX},
    progress::Progress,
    store::{TreeEntry, Writer, update_folder},
    workspace::{
        Node, Workspace,
        ignore::{self, Rules},
        scan,
    },
};

/// A scanned path that is ready to be recorded: in a pointer of its own, or as entries of a tracked folder.
enum Addition {
    Own(Pointer),
    InFolder(Pointer, BTreeMap<RepoPath, Option<TreeEntry>>),
}

impl Workspace<'_> {
    /// Stores the file or folder at `path` and writes its pointer; inside a tracked folder, that folder's.
    /// `declared_outputs` are paths that belong to stages, each with the stage's name.
    pub fn add(
        &self,
        path: &RepoPath,
        claimed: &[(RepoPath, String)],
        progress: &dyn Progress,
    ) -> Result<Pointer> {
        let mut added = self.add_all(std::slice::from_ref(path), claimed, progress)?;
        Ok(added.pop().expect("an added path has a pointer"))
    }

    /// As [`Workspace::add`] for many paths in one pass; if one of them cannot be added, none is.
    pub fn add_all(
        &self,
        paths: &[RepoPath],
        claimed: &[(RepoPath, String)],
        progress: &dyn Progress,
    ) -> Result<Vec<Pointer>> {
        let pointed = self.pointer_paths()?;
        let mut writer = Writer::new(&self.repo.store);
        let mut found = Vec::new();
        for path in outermost(paths) {
            check_claims(path, claimed)?;
            self.check_addable(path)?;
            let parent = self.tracked_parent(path)?;
            self.check_ignore_rules(path, parent.as_ref())?;
            let top = parent.as_ref().map_or(path, |it| &it.path);
            let node = self.scan_and_store(path, top, &pointed, &mut writer, progress)?;
            collect_addition(&mut found, path, parent, &node);
        }
        writer.finish()?;
        found.into_iter().map(|addition| self.record(addition, progress)).collect()
    }

    fn record(&self, addition: Addition, progress: &dyn Progress) -> Result<Pointer> {
        let pointer = match addition {
            Addition::InFolder(parent, changes) => self.record_in_folder(&parent, &changes, progress)?,
            Addition::Own(pointer) => {
                let _lock = self.repo.lock_with_progress(progress)?;
                self.repo.git.ignore(&self.repo.files, &pointer.path)?;
                self.repo.write_pointer(&pointer)?;
                pointer
            }
        };
        self.index_pointer(&pointer.path);
        Ok(pointer)
    }

    /// Returns the pointer of the tracked folder that contains `path`; a tracked file there is an error.
    fn tracked_parent(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        match path.parent().map(|parent| self.pointer_of(&parent)).transpose()?.flatten() {
            Some(parent) if parent.content.kind != ContentKind::Tree => {
                let error = Error::new(
                    Kind::Conflict,
                    format!("`{}` is tracked as a file, so `{path}` cannot be added below it", parent.path),
                );
                Err(error.hint(format!("remove `{}` first", parent.file())))
            }
            parent => Ok(parent),
        }
    }

    fn check_ignore_rules(&self, path: &RepoPath, parent: Option<&Pointer>) -> Result<()> {
        let is_dir = self.repo.files.stat(path)?.is_some_and(|it| it.kind == FileKind::Folder);
        let own = self.repo.pointer(path).ok().flatten();
        if Rules::open(self.repo, path, own.as_ref().or(parent))?.excludes(path, is_dir)? {
            let error = Error::usage(format!("`{path}` is ignored by a `{}`", ignore::FILE));
            return Err(error.hint("remove the rule, or add one that begins with `!`"));
        }
        Ok(())
    }

    /// Adds `path` to the index of pointers. Its writer may have been killed before it did so.
    pub fn index_pointer(&self, path: &RepoPath) {
        self.index.borrow_mut().add_pointer(path.clone());
    }

    fn check_addable(&self, path: &RepoPath) -> Result<()> {
        if path.is_root() {
            return Err(Error::usage("the whole repository cannot be tracked").hint("name a folder in it"));
        }
        let Some(stat) = self.repo.files.stat(path)? else {
            return Err(Error::not_found(format!("`{path}` not found")));
        };
        let is_store_link = || {
            self.repo
                .files
                .read_link(path)
                .is_ok_and(|target| self.repo.store.large_from_link(&target).is_some())
        };
        if stat.kind == FileKind::Symlink && !is_store_link() {
            let error = Error::usage(format!("`{path}` is a symlink"))
                .hint("add what it points to, or the folder it is in");
            return Err(error);
        }
        if self.is_pointer(path) {
            return Err(
                Error::usage(format!("`{path}` is a pointer")).hint("pointers belong in Git: `git add` it")
            );
        }
        self.repo.check_replaceable(path)?;
        if let Some(file) = self.repo.git.tracked_within(path)? {
            let error = Error::new(Kind::Conflict, format!("Git already tracks `{file}`"));
            return Err(error.hint(format!("remove it from Git's index first: `git rm -r --cached {path}`")));
        }
        Ok(())
    }

    pub(super) fn is_pointer(&self, path: &RepoPath) -> bool {
        path.without_suffix(SUFFIX).is_some_and(|tracked| matches!(self.repo.pointer(&tracked), Ok(Some(_))))
    }

    /// Scans and stores `path`; refuses nested pointers and links that lead out of `top`.
    fn scan_and_store(
        &self,
        path: &RepoPath,
        top: &RepoPath,
        pointed: &BTreeSet<RepoPath>,
        writer: &mut Writer<'_>,
        progress: &dyn Progress,
    ) -> Result<Node> {
        // Checked first, so that nothing is stored in vain.
        if let Some(inner) = pointed.iter().find(|inner| *inner != path && inner.is_within(path)) {
            let error = Error::new(
                Kind::Conflict,
                format!("`{path}` contains `{inner}`, which has a pointer of its own"),
            );
            return Err(error.hint("add its other parts one by one, or remove that pointer first"));
        }
        let missing = || Error::not_found(format!("`{path}` not found"));
        let node = scan::scan(self, path, Some(writer), progress)?.ok_or_else(missing)?;
        node.walk(&path.parent().unwrap_or_default(), &mut |folder, leaf| {
            let named = leaf.name.ends_with(SUFFIX.as_bytes());
            let Some(inner) =
                named.then(|| folder.join(&leaf.name)).transpose()?.filter(|file| self.is_pointer(file))
            else {
                return Ok(());
            };
            let error = Error::new(Kind::Conflict, format!("`{path}` contains the pointer `{inner}`"));
            Err(error.hint("a folder is tracked as a whole or in parts: move that pointer out of it"))
        })?;
        scan::check_links(self, &node, path, top)?;
        Ok(node)
    }

    /// Removes a deleted path from the tree of the tracked folder that contained it.
    pub fn record_deletion(
        &self,
        parent: &Pointer,
        path: &RepoPath,
        progress: &dyn Progress,
    ) -> Result<Pointer> {
        self.record_in_folder(parent, &BTreeMap::from([(relative_to(path, parent), None)]), progress)
    }

    fn record_in_folder(
        &self,
        parent: &Pointer,
        changes: &BTreeMap<RepoPath, Option<TreeEntry>>,
        progress: &dyn Progress,
    ) -> Result<Pointer> {
        // Another process may have added to the folder meanwhile: its pointer is the one to change.
        let _lock = self.repo.lock_with_progress(progress)?;
        let parent = self.repo.pointer(&parent.path)?.unwrap_or_else(|| parent.clone());
        let mut writer = Writer::new(&self.repo.store);
        let content = update_folder(&mut writer, &self.repo.store, Some(&parent.content.digest), changes)?;
        writer.finish()?;
        let pointer = Pointer { path: parent.path, content };
        self.repo.write_pointer(&pointer)?;
        Ok(pointer)
    }
}

/// Returns the paths that are not inside another of them.
fn outermost(paths: &[RepoPath]) -> impl Iterator<Item = &RepoPath> {
    let all: BTreeSet<&RepoPath> = paths.iter().collect();
    let above = |path: &RepoPath| std::iter::successors(path.parent(), RepoPath::parent);
    paths.iter().filter(move |path| !above(path).any(|parent| all.contains(&parent)))
}

fn relative_to(path: &RepoPath, parent: &Pointer) -> RepoPath {
    path.strip_prefix(&parent.path).expect("the path is inside the tracked folder")
}

/// Adds the scan of `path` to `found`, merged with other entries of the same tracked folder.
fn collect_addition(found: &mut Vec<Addition>, path: &RepoPath, parent: Option<Pointer>, node: &Node) {
    let Some(parent) = parent else {
        return found.push(Addition::Own(Pointer { path: path.clone(), content: node.content() }));
    };
    let row = (relative_to(path, &parent), Some(node.entry()));
    for addition in found.iter_mut() {
        match addition {
            Addition::InFolder(other, rows) if other.path == parent.path => {
                return drop(rows.insert(row.0, row.1));
            }
            _ => {}
        }
    }
    found.push(Addition::InFolder(parent, BTreeMap::from([row])));
}

/// Refuses paths that overlap an output of a stage.
fn check_claims(path: &RepoPath, claimed: &[(RepoPath, String)]) -> Result<()> {
    let Some((output, stage)) = claimed.iter().find(|it| path.overlaps(&it.0)) else { return Ok(()) };
    let error = Error::new(Kind::Conflict, format!("`{path}` belongs to the stage `{stage}`"));
    Err(error.hint(format!("its output `{output}` is recorded by `mlx repro` and `mlx commit`")))
}
