//! Reads the folders of many commits: all files of one kind, those that are new, or given files. A folder
//! that commits share is read once.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
};

use crate::{
    error::Result,
    git::{BlobId, Git, Rev, from_gix},
    path::{MAX_DEPTH, RepoPath},
};

/// Files that a [`FileLookup`] remembers before it forgets what it found.
const MAX_KNOWN: usize = 1 << 18;

/// Id of a folder in Git.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TreeId(gix::ObjectId);

impl TreeId {
    pub(super) fn new(id: gix::ObjectId) -> Self {
        Self(id)
    }

    pub(super) fn id(self) -> gix::ObjectId {
        self.0
    }
}

/// Lists the files of one kind in commits.
pub struct TreeScan<'g> {
    git: &'g Git,
    wanted: fn(&[u8]) -> bool,
    cache: HashMap<gix::ObjectId, Rc<[(RepoPath, BlobId)]>>,
}

/// Lists the files of one kind in commits, each path with each of its contents once, whatever the number of
/// commits that have it. Keeps what differs between commits only.
pub struct NewFiles<'g> {
    git: &'g Git,
    wanted: fn(&[u8]) -> bool,
    folders: HashMap<RepoPath, Seen>,
}

/// The trees that were listed for a folder, and their files: names with a zero and the id behind them.
#[derive(Default)]
struct Seen {
    trees: HashSet<gix::ObjectId>,
    files: HashSet<Box<[u8]>>,
}

/// Takes a file; returns false if it is to be listed again for the next commit that has it.
type TakeFile<'t> = dyn FnMut(&RepoPath, BlobId) -> Result<bool> + 't;

/// Finds given files in commits.
pub struct FileLookup<'g> {
    git: &'g Git,
    /// The folders of the files, the root first.
    folders: Vec<Folder>,
    /// Files found below a tree, by the folder that it was taken for.
    known: HashMap<(gix::ObjectId, usize), Rc<[(usize, BlobId)]>>,
    known_files: usize,
}

/// Files and folders to look for in a folder, by name.
#[derive(Default)]
struct Folder {
    files: BTreeMap<Box<[u8]>, usize>,
    folders: BTreeMap<Box<[u8]>, usize>,
}

impl Git {
    /// Returns the top folder of a commit.
    pub fn top_tree(&self, rev: &Rev) -> Result<TreeId> {
        self.tree_id(rev, || format!("cannot list the files of {}", rev.short())).map(TreeId)
    }
}

impl<'g> TreeScan<'g> {
    /// Creates a scan for files whose last name `wanted` accepts.
    pub fn new(git: &'g Git, wanted: fn(&[u8]) -> bool) -> Self {
        Self { git, wanted, cache: HashMap::new() }
    }

    /// Lists the wanted files in a commit.
    pub fn files(&mut self, rev: &Rev) -> Result<Rc<[(RepoPath, BlobId)]>> {
        let tree = self.git.top_tree(rev)?;
        self.files_of_tree(tree)
    }

    /// Lists the wanted files in a tree.
    pub fn files_of_tree(&mut self, tree: TreeId) -> Result<Rc<[(RepoPath, BlobId)]>> {
        self.below(tree.0, 0)
    }

    fn below(&mut self, tree: gix::ObjectId, depth: usize) -> Result<Rc<[(RepoPath, BlobId)]>> {
        if let Some(files) = self.cache.get(&tree) {
            return Ok(Rc::clone(files));
        }
        let context = || "cannot read a tree from Git".to_owned();
        let object = self.git.tree(tree, context)?;
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in object.iter() {
            let entry = from_gix(entry, context)?;
            let is_wanted = entry.mode().is_blob() && (self.wanted)(entry.filename());
            let is_folder = entry.mode().is_tree() && depth < MAX_DEPTH;
            if !is_wanted && !is_folder {
                continue;
            }
            // mlx cannot have written below a name that is not valid in its paths.
            let Ok(name) = RepoPath::from_bytes(entry.filename()) else { continue };
            if is_wanted {
                files.push((name, BlobId::new(entry.object_id())));
            } else {
                folders.push((name, entry.object_id()));
            }
        }
        for (folder, id) in folders {
            for (path, blob) in self.below(id, depth + 1)?.iter() {
                if let Ok(path) = folder.join_path(path) {
                    files.push((path, *blob));
                }
            }
        }
        let files: Rc<[_]> = files.into();
        self.cache.insert(tree, Rc::clone(&files));
        Ok(files)
    }
}

impl<'g> NewFiles<'g> {
    /// Creates a list of files whose last name `wanted` accepts.
    pub fn new(git: &'g Git, wanted: fn(&[u8]) -> bool) -> Self {
        Self { git, wanted, folders: HashMap::new() }
    }

    /// Lists the files of a commit that were not listed before.
    pub fn list(&mut self, rev: &Rev, take: &mut TakeFile<'_>) -> Result<()> {
        let tree = self.git.top_tree(rev)?;
        self.below(tree.0, &RepoPath::root(), 0, take).map(drop)
    }

    /// Returns true unless something in the folder is to be listed again.
    fn below(
        &mut self,
        tree: gix::ObjectId,
        folder: &RepoPath,
        depth: usize,
        take: &mut TakeFile<'_>,
    ) -> Result<bool> {
        if self.folders.get(folder).is_some_and(|seen| seen.trees.contains(&tree)) {
            return Ok(true);
        }
        let git = self.git;
        let context = || format!("cannot read `{folder}` from Git");
        let object = git.tree(tree, context)?;
        let (mut key, mut is_done) = (Vec::new(), true);
        for entry in object.iter() {
            let entry = from_gix(entry, context)?;
            let (name, id) = (entry.filename(), entry.object_id());
            if entry.mode().is_tree() && depth < MAX_DEPTH {
                // mlx cannot have written below a name that is not valid in its paths.
                let Ok(path) = folder.join(name) else { continue };
                is_done &= self.below(id, &path, depth + 1, take)?;
            } else if entry.mode().is_blob() && (self.wanted)(name) {
                key.clear();
                key.extend_from_slice(name);
                key.push(0);
                key.extend_from_slice(id.as_bytes());
                if self.folders.get(folder).is_some_and(|seen| seen.files.contains(&key[..])) {
                    continue;
                }
                let Ok(path) = folder.join(name) else { continue };
                if take(&path, BlobId::new(id))? {
                    self.folders.entry(folder.clone()).or_default().files.insert(key[..].into());
                } else {
                    is_done = false;
                }
            }
        }
        if is_done {
            self.folders.entry(folder.clone()).or_default().trees.insert(tree);
        }
        Ok(is_done)
    }
}

impl<'g> FileLookup<'g> {
    /// Creates a lookup of these files.
    pub fn new(git: &'g Git, paths: &[RepoPath]) -> Self {
        let mut folders = vec![Folder::default()];
        for (at, path) in paths.iter().enumerate() {
            let mut here = 0;
            for name in path.parent().unwrap_or_default().components() {
                let next = folders.len();
                let folder = *folders[here].folders.entry(name.into()).or_insert(next);
                if folder == next {
                    folders.push(Folder::default());
                }
                here = folder;
            }
            folders[here].files.insert(path.name().into(), at);
        }
        Self { git, folders, known: HashMap::new(), known_files: 0 }
    }

    /// Returns those of the files that are in a tree, each by its place among the paths, sorted by it.
    pub fn find(&mut self, tree: TreeId) -> Result<Rc<[(usize, BlobId)]>> {
        self.below(tree.0, 0)
    }

    fn below(&mut self, tree: gix::ObjectId, folder: usize) -> Result<Rc<[(usize, BlobId)]>> {
        if let Some(files) = self.known.get(&(tree, folder)) {
            return Ok(Rc::clone(files));
        }
        let context = || "cannot read a tree from Git".to_owned();
        let object = self.git.tree(tree, context)?;
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in object.iter() {
            let entry = from_gix(entry, context)?;
            let (name, wanted): (&[u8], _) = (entry.filename(), &self.folders[folder]);
            if entry.mode().is_blob() {
                files.extend(wanted.files.get(name).map(|at| (*at, BlobId::new(entry.object_id()))));
            } else if entry.mode().is_tree() {
                folders.extend(wanted.folders.get(name).map(|at| (entry.object_id(), *at)));
            }
        }
        for (id, folder) in folders {
            files.extend(self.below(id, folder)?.iter());
        }
        files.sort_unstable();
        let files: Rc<[_]> = files.into();
        if self.known_files > MAX_KNOWN {
            (self.known, self.known_files) = (HashMap::new(), 0);
        }
        self.known_files += 1 + files.len();
        self.known.insert((tree, folder), Rc::clone(&files));
        Ok(files)
    }
}
