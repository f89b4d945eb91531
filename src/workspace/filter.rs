//! Which files of the workspace a scan sees, and what it does about those it cannot read.

use std::sync::{Mutex, PoisonError};

use crate::{
    error::{Error, Result},
    fs::{Dir, FileType, Sieve},
    path::{RepoPath, check_name},
    pointer::Pointer,
    workspace::{Workspace, glob::Glob, ignore::Rules},
};

/// Everything that is not ignored, or less of it.
pub struct ScanFilter<'v> {
    rules: Rules<'v>,
    glob: Option<&'v Glob>,
    errors: Option<Mutex<Vec<(RepoPath, Error)>>>,
}

impl<'v> ScanFilter<'v> {
    /// What lies at `path` and is not ignored; `record` is what is tracked there.
    pub fn new(workspace: &Workspace<'v>, path: &RepoPath, record: Option<&Pointer>) -> Result<Self> {
        Ok(Self { rules: Rules::open(workspace.repo, path, record)?, glob: None, errors: None })
    }

    /// Goes on after what cannot be read, and remembers it.
    pub fn collect_errors(self) -> Self {
        Self { errors: Some(Mutex::default()), ..self }
    }

    /// Sees no files but those that match.
    pub fn matching(self, glob: &'v Glob) -> Self {
        Self { glob: Some(glob), ..self }
    }

    /// Whether a scan of a folder sees all of it.
    pub fn is_unrestricted(&self) -> bool {
        self.glob.is_none()
    }

    /// What could not be read.
    pub fn into_errors(self) -> Vec<(RepoPath, Error)> {
        self.errors.map(|it| it.into_inner().unwrap_or_else(PoisonError::into_inner)).unwrap_or_default()
    }
}

impl Sieve for ScanFilter<'_> {
    fn sift(&self, dir: &Dir, names: &mut Vec<(Vec<u8>, FileType)>) -> Result<()> {
        self.rules.filter(dir, names, |it| it.is_dir())?;
        if let Some(glob) = self.glob {
            names.retain(|(name, kind)| {
                check_name(name).is_ok()
                    && dir.path().join(name).is_ok_and(|it| kind.is_dir() || glob.matches(&it))
            });
        }
        Ok(())
    }

    fn shows_emptied(&self, folder: &RepoPath) -> Result<bool> {
        self.rules.is_tracked(folder)
    }

    fn trouble(&self, path: &RepoPath, error: Error) -> Result<()> {
        let Some(errors) = &self.errors else { return Err(error) };
        errors.lock().unwrap_or_else(PoisonError::into_inner).push((path.clone(), error));
        Ok(())
    }
}
