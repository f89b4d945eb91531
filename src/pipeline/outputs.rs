//! Outputs of stages as tracked content: read from the lockfiles of the workspace or of a commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    error::Result,
    git::{Git, Rev},
    path::RepoPath,
    pipeline::{Lockfile, Pipeline},
    pointer::{Content, Pointer, SUFFIX},
    repo::Repo,
    workspace::{is_lockfile, is_of_pipeline, is_tracking_file},
};

/// Returns the folders that may hold an `mlx.toml`, or its lockfile after it was deleted: those where Git
/// tracks either, and those from `cwd` to the top.
pub fn manifest_folders(repo: &Repo, cwd: &Path) -> Result<BTreeSet<RepoPath>> {
    let mut folders: BTreeSet<_> =
        repo.git.tracked(&is_of_pipeline)?.iter().filter_map(RepoPath::parent).collect();
    let mut here = Some(RepoPath::parse(".".as_ref(), cwd, repo.root())?);
    while let Some(folder) = here {
        here = folder.parent();
        folders.insert(folder);
    }
    Ok(folders)
}

/// Returns all content tracked at a commit, from its pointers and its lockfiles.
pub fn contents_at(git: &Git, rev: &Rev) -> Result<BTreeMap<RepoPath, Content>> {
    recorded_at(git, rev, &is_tracking_file)
}

/// Returns the outputs that the lockfiles of a commit record.
pub fn outputs_at(git: &Git, rev: &Rev) -> Result<BTreeMap<RepoPath, Content>> {
    recorded_at(git, rev, &is_lockfile)
}

fn recorded_at(git: &Git, rev: &Rev, files: &dyn Fn(&[u8]) -> bool) -> Result<BTreeMap<RepoPath, Content>> {
    let mut contents = BTreeMap::new();
    for file in git.files(rev, files)? {
        add_contents(&file, &git.read(rev, &file)?.unwrap_or_default(), &mut contents)?;
    }
    Ok(contents)
}

/// Returns all content that is tracked by files which a sparse checkout leaves out of the worktree.
pub fn skipped_contents(git: &Git) -> Result<BTreeMap<RepoPath, Content>> {
    let mut contents = BTreeMap::new();
    for (file, blob) in git.skipped(&is_tracking_file)? {
        add_contents(&file, &git.read_blob(blob)?, &mut contents)?;
    }
    Ok(contents)
}

/// Adds the content that a pointer or a lockfile tracks.
pub fn add_contents(file: &RepoPath, bytes: &[u8], contents: &mut BTreeMap<RepoPath, Content>) -> Result<()> {
    if is_lockfile(file.bytes()) {
        let lock = Lockfile::parse(file, bytes)?;
        let outputs = lock.records().flat_map(|(_, record)| record.contents());
        contents.extend(outputs.map(|(path, content)| (path.clone(), *content)));
    } else if let Some(path) = file.without_suffix(SUFFIX).filter(|_| Pointer::looks_like_pointer(bytes)) {
        let content = Pointer::parse(path.clone(), bytes)?.content;
        contents.insert(path, content);
    }
    Ok(())
}

impl Pipeline<'_, '_> {
    /// Returns the recorded outputs that are kept in the store and not in Git. Outputs that `mlx.toml` does
    /// not declare are left out.
    pub(super) fn recorded_outputs(&self, lock: &Lockfile) -> Vec<Pointer> {
        let mut outputs = Vec::new();
        for (name, stage) in &self.manifest.stages {
            let Some(record) = lock.get(name) else { continue };
            let stored = stage.outputs.iter().filter(|out| !out.role.in_git());
            for out in stored {
                if let Some(content) = record.outputs.get(&out.path) {
                    outputs.push(Pointer { path: out.path.clone(), content: *content });
                }
            }
        }
        outputs
    }

    /// Returns the paths of all declared outputs, each with the name of its stage.
    pub fn declared_outputs(&self) -> Vec<(RepoPath, String)> {
        self.manifest.outputs().map(|(stage, out)| (out.path.clone(), self.id(stage).to_string())).collect()
    }
}
