//! Metrics and parameters of versions: read from Git or the workspace, and compared.
//!
//! Both are plain files in Git; params may also be data that mlx tracks. Which files belong to a version is
//! declared by the `mlx.toml` files of that version.

mod delta;

pub use self::delta::{Delta, DeltaKind, diff};

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use crate::{
    document::{self, Value},
    error::{Error, Kind, Result},
    git::{BlobId, FolderCache, Rev},
    path::RepoPath,
    pipeline::{self, LOCKFILE, MANIFEST, Manifest, Role},
    pointer::SUFFIX,
    repo::Repo,
    store::entry_at,
};

/// Kind of values to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    Metrics,
    Params,
}

/// A version to read: the workspace or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revision {
    Workspace,
    Commit(Rev),
}

/// Parsed documents of one version, by file.
pub type Documents = BTreeMap<RepoPath, Value>;

/// Result of reading one version: its documents, and the files that could not be read.
#[derive(Default)]
pub struct Reading {
    pub documents: Documents,
    /// Documents and `mlx.toml` files that could not be read.
    pub faults: BTreeMap<RepoPath, Error>,
    /// The `mlx.toml` that names a document.
    manifests: BTreeMap<RepoPath, RepoPath>,
}

/// Reads the documents of many versions. Each Git blob is parsed once.
pub struct Reader<'r> {
    repo: &'r Repo,
    /// Folders of the workspace that may hold an `mlx.toml`.
    folders: BTreeSet<RepoPath>,
    places: RefCell<FolderCache>,
    parsed: RefCell<HashMap<(BlobId, RepoPath), Value>>,
    manifests: RefCell<HashMap<(BlobId, RepoPath, Topic), Vec<RepoPath>>>,
}

impl<'r> Reader<'r> {
    /// Creates a reader. Pipelines from `cwd` to the top of the repository are included even if Git does not
    /// track them.
    pub fn new(repo: &'r Repo, cwd: &Path) -> Result<Self> {
        let folders = pipeline::manifest_folders(repo, cwd)?;
        Ok(Self {
            repo,
            folders,
            places: RefCell::default(),
            parsed: RefCell::default(),
            manifests: RefCell::default(),
        })
    }

    /// Reads all documents of a topic in one version. Missing files are left out; one that cannot be read
    /// does not hide the others.
    pub fn read(&self, topic: Topic, revision: &Revision) -> Result<Reading> {
        let folders = match revision {
            Revision::Workspace => self.folders.iter().cloned().collect(),
            Revision::Commit(rev) => {
                self.repo.git.folders_with(rev, MANIFEST, &mut self.places.borrow_mut())?
            }
        };
        let mut reading = Reading::default();
        for folder in folders {
            let manifest = folder.join(MANIFEST.as_bytes())?;
            let files = self.files(topic, revision, &manifest);
            for file in files.unwrap_or_else(|error| reading.add_fault(&manifest, error)) {
                match self.document(revision, &file) {
                    Ok(value) => reading.documents.extend(value.map(|value| (file.clone(), value))),
                    Err(error) => drop(reading.add_fault(&file, error)),
                }
                reading.manifests.insert(file, manifest.clone());
            }
        }
        Ok(reading)
    }

    /// Returns the files that a manifest lists for a topic.
    fn files(&self, topic: Topic, revision: &Revision, manifest: &RepoPath) -> Result<Vec<RepoPath>> {
        let list = |bytes: &[u8]| -> Result<Vec<RepoPath>> {
            let manifest = Manifest::parse(manifest, bytes, self.repo.root())?;
            Ok(match topic {
                Topic::Metrics => manifest.files_of(Role::Metrics),
                Topic::Params => manifest.params_files(),
            })
        };
        match revision {
            Revision::Workspace => {
                self.repo.read_document(manifest)?.map_or_else(|| Ok(Vec::new()), |bytes| list(&bytes))
            }
            Revision::Commit(rev) => {
                let Some(id) = self.repo.git.blob(rev, manifest)? else { return Ok(Vec::new()) };
                let known = self.manifests.borrow().get(&(id, manifest.clone(), topic)).cloned();
                if let Some(files) = known {
                    return Ok(files);
                }
                let files = list(&self.repo.git.read_blob(id)?)?;
                self.manifests.borrow_mut().insert((id, manifest.clone(), topic), files.clone());
                Ok(files)
            }
        }
    }

    /// Reads and parses one file of a version.
    fn document(&self, revision: &Revision, file: &RepoPath) -> Result<Option<Value>> {
        let Revision::Commit(rev) = revision else {
            let bytes = match self.repo.read_document(file)? {
                None => self.stored(file, &|record| self.repo.read_document(record))?,
                present => present,
            };
            return bytes.map(|bytes| document::parse(file, &bytes)).transpose();
        };
        let git = &self.repo.git;
        let Some(id) = git.blob(rev, file)? else {
            let blob = |record: &RepoPath| git.blob(rev, record)?.map(|id| git.read_blob(id)).transpose();
            return self.stored(file, &blob)?.map(|bytes| document::parse(file, &bytes)).transpose();
        };
        if let Some(value) = self.parsed.borrow().get(&(id, file.clone())) {
            return Ok(Some(value.clone()));
        }
        let value = document::parse(file, &git.read_blob(id)?)?;
        self.parsed.borrow_mut().insert((id, file.clone()), value.clone());
        Ok(Some(value))
    }

    /// Reads a file that mlx keeps from the store, if a pointer or lockfile beside it or above records it.
    /// `read` reads such a record.
    fn stored(
        &self,
        file: &RepoPath,
        read: &dyn Fn(&RepoPath) -> Result<Option<Vec<u8>>>,
    ) -> Result<Option<Vec<u8>>> {
        let mut contents = BTreeMap::new();
        for path in file.ancestors().filter(|path| !path.is_root()) {
            let lockfile = path.parent().unwrap_or_default().join(LOCKFILE.as_bytes())?;
            for record in [path.with_suffix(SUFFIX), lockfile] {
                if let Some(bytes) = read(&record)? {
                    pipeline::add_contents(&record, &bytes, &mut contents)?;
                }
            }
        }
        let recorded = file.ancestors().find_map(|path| Some((contents.get(&path)?, path)));
        let Some((content, top)) = recorded else { return Ok(None) };
        let below = file.strip_prefix(&top).unwrap_or_default();
        let store = &self.repo.store;
        let content_of = |below: &RepoPath| -> Result<Option<Vec<u8>>> {
            let digest = if below.is_root() {
                Some(content.digest)
            } else {
                entry_at(store, &content.digest, below)?.map(|entry| entry.digest)
            };
            digest.map(|digest| store.read(&digest)).transpose()
        };
        content_of(&below).map_err(|error| match error.kind() {
            Kind::NotFound => content
                .missing_error(file)
                .hint("get it with `mlx pull`, or `mlx fetch --all-commits` for other commits"),
            _ => error,
        })
    }
}

impl Reading {
    /// Notes a file that cannot be read; returns the files that it names, none.
    fn add_fault(&mut self, file: &RepoPath, error: Error) -> Vec<RepoPath> {
        self.faults.insert(file.clone(), error);
        Vec::new()
    }

    /// Returns false if this version may have the file of the other one, but cannot tell: the file itself or
    /// the `mlx.toml` that names it could not be read.
    fn is_known(&self, file: &RepoPath, other: &Self) -> bool {
        let is_broken = |path: &RepoPath| self.faults.contains_key(path);
        !is_broken(file) && !other.manifests.get(file).is_some_and(is_broken)
    }
}
