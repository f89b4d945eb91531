//! What stages made, as pointers: the lockfiles speak for their outputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    digest::Digest,
    error::Result,
    git::{Git, Rev},
    path::RepoPath,
    pipeline::{Builtin, LOCKFILE, Lockfile, MANIFEST, Pipeline},
    pointer::{Content, Pointer, SUFFIX},
    repo::Repo,
    workspace::Workspace,
};

/// All pipelines that have a say here.
pub fn all<'w, 'r>(
    workspace: &'w Workspace<'r>,
    cwd: &Path,
    builtins: &'w [Builtin],
) -> Result<Vec<Pipeline<'w, 'r>>> {
    let folders = folders(workspace.repo, cwd)?;
    folders.iter().filter_map(|it| Pipeline::open(workspace, it, builtins).transpose()).collect()
}

/// Where an `mlx.toml` may lie: where Git tracks one, and on the way from `cwd` to the top.
pub fn folders(repo: &Repo, cwd: &Path) -> Result<BTreeSet<RepoPath>> {
    let is_manifest =
        |it: &[u8]| it == MANIFEST.as_bytes() || it.ends_with(format!("/{MANIFEST}").as_bytes());
    let mut folders: BTreeSet<_> =
        repo.git.tracked(&is_manifest)?.iter().filter_map(RepoPath::parent).collect();
    let mut here = Some(RepoPath::parse(".".as_ref(), cwd, repo.root())?);
    while let Some(folder) = here {
        here = folder.parent();
        folders.insert(folder);
    }
    Ok(folders)
}

/// Everything tracked at a commit: its pointers, and what its lockfiles record.
pub fn contents_at(git: &Git, rev: &Rev) -> Result<BTreeMap<RepoPath, Content>> {
    let is_lock = |it: &[u8]| it == LOCKFILE.as_bytes() || it.ends_with(format!("/{LOCKFILE}").as_bytes());
    let mut found = BTreeMap::new();
    for file in git.files(rev, &|it| it.ends_with(SUFFIX.as_bytes()) || is_lock(it))? {
        let bytes = git.read(rev, &file)?.unwrap_or_default();
        if is_lock(file.bytes()) {
            let lock = Lockfile::parse(&file, &bytes)?;
            let records = lock.records().flat_map(|it| it.1.outputs.iter().chain(&it.1.in_git));
            found.extend(records.map(|(path, content)| (path.clone(), *content)));
        } else if let Some(path) = file.without_suffix(SUFFIX).filter(|_| Pointer::resembles(&bytes)) {
            let content = Pointer::parse(path.clone(), &bytes)?.content;
            found.insert(path, content);
        }
    }
    Ok(found)
}

/// Keys of the runs that the lockfiles of a commit record.
pub fn runs_at(git: &Git, rev: &Rev) -> Result<Vec<Digest>> {
    let is_lock = |it: &[u8]| it == LOCKFILE.as_bytes() || it.ends_with(format!("/{LOCKFILE}").as_bytes());
    let mut keys = Vec::new();
    for file in git.files(rev, &is_lock)? {
        let lock = Lockfile::parse(&file, &git.read(rev, &file)?.unwrap_or_default())?;
        keys.extend(lock.records().map(|it| it.1.key));
    }
    Ok(keys)
}

impl Pipeline<'_, '_> {
    /// Outputs that lie in the store alone, as last recorded; what `mlx.toml` does not declare is left out.
    pub fn recorded_outputs(&self) -> Result<Vec<(Pointer, String)>> {
        let lock = self.lock()?;
        let mut found = Vec::new();
        for (name, stage) in &self.manifest.stages {
            let Some(record) = lock.get(name) else { continue };
            let declared = stage.outputs.iter().filter(|it| !it.role.in_git());
            for out in declared {
                if let Some(content) = record.outputs.get(&out.path) {
                    found.push((Pointer { path: out.path.clone(), content: *content }, name.clone()));
                }
            }
        }
        Ok(found)
    }

    /// Everything recorded runs made, outputs in Git included, and the keys of those runs.
    pub fn recorded_runs(&self) -> Result<(Vec<Pointer>, Vec<Digest>)> {
        let lock = self.lock()?;
        let records = lock.records().filter(|it| self.manifest.stages.contains_key(it.0));
        let (mut pointers, mut keys) = (Vec::new(), Vec::new());
        for (_, record) in records {
            let outputs = record.outputs.iter().chain(&record.in_git);
            pointers.extend(outputs.map(|(path, content)| Pointer { path: path.clone(), content: *content }));
            keys.push(record.key);
        }
        Ok((pointers, keys))
    }

    /// Paths that belong to stages, with the stage's name.
    pub fn claimed(&self) -> Vec<(RepoPath, String)> {
        self.manifest.outputs().map(|it| (it.1.path.clone(), it.0.to_owned())).collect()
    }
}
