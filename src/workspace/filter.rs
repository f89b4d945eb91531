//! Scan filter: which files of the workspace a scan includes, and whether unreadable ones abort it.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use crate::{
    error::{Error, Kind, Result},
    fs::{Dir, FileType, Root, WalkFilter},
    path::{RepoPath, check_name},
    pointer::Pointer,
    progress::Progress,
    store::Store,
    workspace::{Workspace, git_ignored::GitIgnored, glob::Glob, ignore::Rules, leftovers},
};

/// Selects the files that are not ignored, optionally only those that match a pattern.
pub struct ScanFilter<'v> {
    rules: Rules<'v>,
    git: Option<GitIgnored<'v>>,
    glob: Option<&'v Glob>,
    /// The names that count in one folder.
    names: Option<(RepoPath, BTreeSet<Vec<u8>>)>,
    errors: Option<Mutex<Vec<(RepoPath, Error)>>>,
    /// Set if what killed commands left in the scanned folders is to be removed or kept.
    cleans: Option<(&'v Store, &'v dyn Progress)>,
    left_out: Option<Mutex<Vec<(RepoPath, Vec<u8>)>>>,
    files: &'v Root,
}

impl<'v> ScanFilter<'v> {
    /// Creates a filter for a scan of `path`; `record` is the pointer that tracks it.
    pub fn new(workspace: &Workspace<'v>, path: &RepoPath, record: Option<&Pointer>) -> Result<Self> {
        let rules = Rules::open(workspace, path, record)?;
        let files = &workspace.repo.files;
        Ok(Self {
            rules,
            git: None,
            glob: None,
            names: None,
            errors: None,
            left_out: None,
            cleans: None,
            files,
        })
    }

    /// Leaves out what Git ignores as well.
    pub fn without_git_ignored(self, git: Option<GitIgnored<'v>>) -> Self {
        Self { git, ..self }
    }

    /// Lists the names that are left out, and the Git folders of nested repositories.
    pub fn list_left_out(self) -> Self {
        Self { left_out: Some(Mutex::default()), ..self }
    }

    /// Returns the topmost names that were left out, each with its folder.
    pub fn into_left_out(self) -> Vec<(RepoPath, Vec<u8>)> {
        let list = self.left_out.unwrap_or_default();
        list.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Continues after unreadable files and collects their errors instead of failing at the first.
    pub fn collect_errors(self) -> Self {
        Self { errors: Some(Mutex::default()), ..self }
    }

    /// Removes what killed commands left in the scanned folders; what is stored nowhere is kept.
    pub fn cleaning(self, store: &'v Store, progress: &'v dyn Progress) -> Self {
        Self { cleans: Some((store, progress)), ..self }
    }

    /// Includes only files that match `glob`.
    pub fn matching(self, glob: &'v Glob) -> Self {
        Self { glob: Some(glob), ..self }
    }

    /// Includes only these names of one folder.
    pub fn naming(self, folder: RepoPath, names: BTreeSet<Vec<u8>>) -> Self {
        Self { names: Some((folder, names)), ..self }
    }

    /// Returns true if a scan of a folder includes all of its files that are not ignored.
    pub fn is_unrestricted(&self) -> bool {
        self.glob.is_none() && self.names.is_none()
    }

    /// Returns true if the ignore rules match a path below `top`, or a folder between the two.
    pub fn ignores(&self, top: &RepoPath, path: &RepoPath, is_dir: bool) -> Result<bool> {
        self.rules.ignores(top, path, is_dir)
    }

    /// Returns the collected errors with their paths.
    pub fn into_errors(self) -> Vec<(RepoPath, Error)> {
        self.errors
            .map(|errors| errors.into_inner().unwrap_or_else(PoisonError::into_inner))
            .unwrap_or_default()
    }
}

impl ScanFilter<'_> {
    /// Refuses the repository itself, which may be mounted in one of its folders.
    fn check_nested(&self, dir: &Dir) -> Result<()> {
        if dir.stat(b".git")? != self.files.dir(&RepoPath::root())?.stat(b".git")? {
            return Ok(());
        }
        let message = format!("cannot track `{}`: it is this repository itself", dir.path());
        Err(Error::new(Kind::Denied, message).hint("unmount it, or name it in a `.mlxignore`"))
    }
}

impl WalkFilter for ScanFilter<'_> {
    fn filter(&self, dir: &Dir, names: &mut Vec<(Vec<u8>, FileType)>) -> Result<()> {
        if !dir.path().is_root() && names.iter().any(|it| it.0 == b".git") {
            self.check_nested(dir)?;
        }
        let all = self.left_out.is_some().then(|| names.clone());
        self.rules.filter(dir, names, |it| it.is_dir())?;
        if let Some(git) = &self.git {
            git.filter(dir, names)?;
        }
        if let (Some(all), Some(list)) = (all, &self.left_out) {
            let is_kept =
                |name: &Vec<u8>| name != b".git" && names.binary_search_by(|it| it.0.cmp(name)).is_ok();
            let left_out = all.into_iter().map(|it| it.0).filter(|name| !is_kept(name));
            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
            list.extend(left_out.map(|name| (dir.path().clone(), name)));
        }
        if let Some((folder, wanted)) = &self.names
            && dir.path() == folder
        {
            names.retain(|(name, _)| wanted.contains(name));
        }
        if let Some(glob) = self.glob {
            names.retain(|(name, kind)| {
                check_name(name).is_ok()
                    && dir.path().join(name).is_ok_and(|path| kind.is_dir() || glob.matches(&path))
            });
        }
        Ok(())
    }

    fn on_own_files(&self, dir: &Dir) {
        if let Some((store, progress)) = self.cleans {
            // They are only in the way: those that cannot be removed stay.
            let _kept = leftovers::clean(dir, store, progress);
        }
    }

    fn lists_emptied(&self, folder: &RepoPath) -> Result<bool> {
        Ok(self.lists_empty(folder) && self.rules.is_tracked(folder)?)
    }

    fn lists_empty(&self, folder: &RepoPath) -> bool {
        self.git.as_ref().is_none_or(|git| git.is_kept(folder))
    }

    fn on_error(&self, path: &RepoPath, error: Error) -> Result<()> {
        let Some(errors) = &self.errors else { return Err(error) };
        errors.lock().unwrap_or_else(PoisonError::into_inner).push((path.clone(), error));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fs::Sync, repo::Repo};

    #[test]
    fn names_that_are_ignored_and_the_folders_of_nested_repositories_are_listed() {
        let temp = tempfile::tempdir().unwrap();
        let mut init = std::process::Command::new("git");
        assert!(init.args(["init", "-q"]).arg(temp.path()).status().unwrap().success());
        let repo = Repo::init(temp.path()).unwrap();
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        for file in ["data/a", "data/b.tmp", "data/c/d.tmp", "data/inner/e"] {
            repo.files.write(&path(file), b"", Sync::Later).unwrap();
        }
        repo.files.write(&path(".mlxignore"), b"*.tmp\n", Sync::Later).unwrap();
        crate::fs::create_dir(&temp.path().join("data/inner/.git")).unwrap();
        let workspace = Workspace::open(&repo).unwrap();
        let filter = ScanFilter::new(&workspace, &path("data"), None).unwrap().list_left_out();
        repo.files.entries(&path("data"), &filter).unwrap();
        let mut left_out = filter.into_left_out();
        left_out.sort();
        let expected = [("data", "b.tmp"), ("data/c", "d.tmp"), ("data/inner", ".git")];
        assert_eq!(left_out, expected.map(|(folder, name)| (path(folder), name.as_bytes().to_vec())));
    }
}
