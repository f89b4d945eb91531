//! Files that steer Git or mlx by their name, and so belong in Git: as data, which Git ignores, no clone
//! would have them.

use crate::{
    error::{Error, Result},
    path::RepoPath,
    workspace::ignore,
};

/// Name of a pipeline.
pub const PIPELINE_FILE: &str = "mlx.toml";
/// Name of the file, beside a pipeline, that records its runs.
pub const LOCKFILE: &str = "mlx.lock";

/// Returns true for a file that Git or mlx reads by its name.
pub(super) fn belongs_in_git(path: &RepoPath) -> bool {
    let git = [".gitattributes", ".gitignore", ".gitmodules", ".mailmap"];
    let own = [ignore::FILE, LOCKFILE, PIPELINE_FILE];
    git.iter().chain(&own).any(|name| name.as_bytes() == path.name())
}

/// Refuses a pointer for such a file. In a tracked folder it is content like any other.
pub(super) fn check_is_data(path: &RepoPath) -> Result<()> {
    if !belongs_in_git(path) {
        return Ok(());
    }
    let error = Error::usage(format!("`{path}` steers Git or mlx, so it is not data"));
    Err(error.hint(format!("leave it to Git (`git add {path}`), and name only data")))
}
