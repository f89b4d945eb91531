//! Numbers a run leaves behind, and how they differ between versions.
//!
//! Metrics and parameters are plain files in Git; which files, the `mlx.toml` of the same version says.

mod delta;

pub use self::delta::{Delta, diff};

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use serde_json::Value;

use crate::{
    document,
    error::Result,
    git::{BlobId, Places, Rev},
    path::RepoPath,
    pipeline::{self, MANIFEST, Manifest, Role},
    repo::Repo,
};

/// Which numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    Metrics,
    Params,
}

/// A version: the files as they are, or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    Workspace,
    Commit(Rev),
}

/// Documents of one version by file.
pub type Documents = BTreeMap<RepoPath, Value>;

/// Reads documents of many versions; what Git stores once is parsed once.
pub struct Reader<'r> {
    repo: &'r Repo,
    /// Where an `mlx.toml` may lie in the workspace.
    folders: BTreeSet<RepoPath>,
    places: RefCell<Places>,
    parsed: RefCell<HashMap<(BlobId, RepoPath), Value>>,
    manifests: RefCell<HashMap<(BlobId, RepoPath, Topic), Vec<RepoPath>>>,
}

impl<'r> Reader<'r> {
    /// `cwd` is where the user stands: pipelines from there to the top count, whether or not Git knows them.
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

    /// All documents of a topic in one version. A file that is not there is left out.
    pub fn read(&self, topic: Topic, at: &At) -> Result<Documents> {
        let folders = match at {
            At::Workspace => self.folders.iter().cloned().collect(),
            At::Commit(rev) => self.repo.git.folders_with(rev, MANIFEST, &mut self.places.borrow_mut())?,
        };
        let mut found = Documents::new();
        for folder in folders {
            for file in self.files(topic, at, &folder.join(MANIFEST.as_bytes())?)? {
                if let Some(value) = self.document(at, &file)? {
                    found.insert(file, value);
                }
            }
        }
        Ok(found)
    }

    fn files(&self, topic: Topic, at: &At, manifest: &RepoPath) -> Result<Vec<RepoPath>> {
        let list = |bytes: &[u8]| -> Result<Vec<RepoPath>> {
            let manifest = Manifest::parse(manifest, bytes, self.repo.root())?;
            Ok(match topic {
                Topic::Metrics => manifest.files_of(Role::Metrics),
                Topic::Params => manifest.params_files(),
            })
        };
        match at {
            At::Workspace => {
                self.repo.files.read_document(manifest)?.map_or_else(|| Ok(Vec::new()), |it| list(&it))
            }
            At::Commit(rev) => {
                let Some(id) = self.repo.git.blob(rev, manifest)? else { return Ok(Vec::new()) };
                let known = self.manifests.borrow().get(&(id, manifest.clone(), topic)).cloned();
                if let Some(files) = known {
                    return Ok(files);
                }
                // A version whose pipeline cannot be read has no numbers; the others still have.
                let files = list(&self.repo.git.read_blob(id)?).unwrap_or_default();
                self.manifests.borrow_mut().insert((id, manifest.clone(), topic), files.clone());
                Ok(files)
            }
        }
    }

    fn document(&self, at: &At, file: &RepoPath) -> Result<Option<Value>> {
        let At::Commit(rev) = at else {
            let bytes = self.repo.files.read_document(file)?;
            return bytes.map(|it| document::parse(file, &it)).transpose();
        };
        let Some(id) = self.repo.git.blob(rev, file)? else { return Ok(None) };
        if let Some(value) = self.parsed.borrow().get(&(id, file.clone())) {
            return Ok(Some(value.clone()));
        }
        // A past version that cannot be read has no numbers; it will not be mended.
        let Ok(value) = document::parse(file, &self.repo.git.read_blob(id)?) else { return Ok(None) };
        self.parsed.borrow_mut().insert((id, file.clone()), value.clone());
        Ok(Some(value))
    }
}
