//! Scan filter: which files of the workspace a scan includes, and whether unreadable ones abort it.

use std::sync::{Mutex, PoisonError};

use crate::{
    error::{Error, Result},
    fs::{Dir, FileType, WalkFilter},
    path::{RepoPath, check_name},
    pointer::Pointer,
    workspace::{Workspace, glob::Glob, ignore::Rules},
};

/// Selects the files that are not ignored, optionally only those that match a pattern.
pub struct ScanFilter<'v> {
    rules: Rules<'v>,
    glob: Option<&'v Glob>,
    errors: Option<Mutex<Vec<(RepoPath, Error)>>>,
    removes_temp_files: bool,
}

impl<'v> ScanFilter<'v> {
    /// Creates a filter for a scan of `path`; `record` is the pointer that tracks it.
    pub fn new(workspace: &Workspace<'v>, path: &RepoPath, record: Option<&Pointer>) -> Result<Self> {
        let rules = Rules::open(workspace.repo, path, record)?;
        Ok(Self { rules, glob: None, errors: None, removes_temp_files: false })
    }

    /// Continues after unreadable files and collects their errors instead of failing at the first.
    pub fn collect_errors(self) -> Self {
        Self { errors: Some(Mutex::default()), ..self }
    }

    /// Removes temporary files that killed commands left in the scanned folders.
    pub fn removing_temp_files(self) -> Self {
        Self { removes_temp_files: true, ..self }
    }

    /// Includes only files that match `glob`.
    pub fn matching(self, glob: &'v Glob) -> Self {
        Self { glob: Some(glob), ..self }
    }

    /// Returns true if a scan of a folder includes all of its files that are not ignored.
    pub fn is_unrestricted(&self) -> bool {
        self.glob.is_none()
    }

    /// Returns the collected errors with their paths.
    pub fn into_errors(self) -> Vec<(RepoPath, Error)> {
        self.errors
            .map(|errors| errors.into_inner().unwrap_or_else(PoisonError::into_inner))
            .unwrap_or_default()
    }
}

impl WalkFilter for ScanFilter<'_> {
    fn filter(&self, dir: &Dir, names: &mut Vec<(Vec<u8>, FileType)>) -> Result<()> {
        self.rules.filter(dir, names, |it| it.is_dir())?;
        if let Some(glob) = self.glob {
            names.retain(|(name, kind)| {
                check_name(name).is_ok()
                    && dir.path().join(name).is_ok_and(|path| kind.is_dir() || glob.matches(&path))
            });
        }
        Ok(())
    }

    fn on_temp_files(&self, dir: &Dir) {
        if self.removes_temp_files {
            // They are only in the way: those that cannot be removed stay.
            let _kept = dir.remove_stale_temp_files();
        }
    }

    fn lists_emptied(&self, folder: &RepoPath) -> Result<bool> {
        self.rules.is_tracked(folder)
    }

    fn on_error(&self, path: &RepoPath, error: Error) -> Result<()> {
        let Some(errors) = &self.errors else { return Err(error) };
        errors.lock().unwrap_or_else(PoisonError::into_inner).push((path.clone(), error));
        Ok(())
    }
}
