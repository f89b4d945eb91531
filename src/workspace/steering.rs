//! Files that steer Git or mlx by their name, and so belong in Git: as data, which Git ignores, no clone
//! would have them.

use crate::{
    error::{Error, Result},
    path::RepoPath,
    pointer::Pointer,
    workspace::{Workspace, ignore},
};

/// Name of a pipeline.
pub const PIPELINE_FILE: &str = "mlx.toml";
/// Name of the file, beside a pipeline, that records its runs.
pub const LOCKFILE: &str = "mlx.lock";

/// Returns true for a file that Git or mlx reads by its name.
pub fn belongs_in_git(path: &RepoPath) -> bool {
    let git = [".gitattributes", ".gitignore", ".gitmodules", ".mailmap"];
    let own = [ignore::FILE, LOCKFILE, PIPELINE_FILE];
    git.iter().chain(&own).any(|name| name.as_bytes() == path.name())
}

/// Returns true for the name of a pipeline or of its lockfile.
pub(super) fn is_pipeline(name: &[u8]) -> bool {
    [PIPELINE_FILE, LOCKFILE].iter().any(|own| own.as_bytes() == name)
}

/// Refuses a pointer for such a file. In a tracked folder it is content like any other, but for pipelines.
pub(super) fn check_is_data(path: &RepoPath) -> Result<()> {
    if !belongs_in_git(path) {
        return Ok(());
    }
    Err(not_data(path).hint(format!("leave it to Git (`git add {path}`), and name only data")))
}

fn not_data(path: &RepoPath) -> Error {
    Error::usage(format!("`{path}` steers Git or mlx, so it is not data"))
}

impl Workspace<'_> {
    /// Refuses a pipeline in the folder `top` that is to be tracked, unless its record `tracked` has it
    /// already. That of a nested repository belongs there.
    pub(super) fn check_is_no_pipeline(
        &self,
        file: &RepoPath,
        top: &RepoPath,
        tracked: Option<&Pointer>,
    ) -> Result<()> {
        for folder in file.ancestors().skip(1).take_while(|folder| folder.is_within(top)) {
            if self.repo.files.dir(&folder)?.stat(b".git")?.is_some() {
                return Ok(());
            }
        }
        match tracked.map(|tracked| self.part_content(tracked, file)).transpose()?.flatten() {
            Some(_) => Ok(()),
            None => {
                Err(not_data(file)
                    .hint(format!("move it out of `{top}`, or add the files beside it by name")))
            }
        }
    }
}
