//! Files that steer Git or mlx by their name, and so belong in Git: as data, which Git ignores, no clone
//! would have them.

use crate::{
    error::{Error, Result},
    path::RepoPath,
    pointer::{Pointer, SUFFIX},
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

/// Returns true for the path of a pipeline or of its lockfile.
pub fn is_of_pipeline(path: &[u8]) -> bool {
    has_name(path, PIPELINE_FILE) || is_lockfile(path)
}

/// Returns true for the path of a lockfile.
pub fn is_lockfile(path: &[u8]) -> bool {
    has_name(path, LOCKFILE)
}

/// Returns true for the path of a file that tracks content: a pointer or a lockfile.
pub fn is_tracking_file(path: &[u8]) -> bool {
    path.ends_with(SUFFIX.as_bytes()) || is_lockfile(path)
}

fn has_name(path: &[u8], name: &str) -> bool {
    path.rsplit(|&byte| byte == b'/').next() == Some(name.as_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mlxs_own_files_are_told_by_their_names() {
        let kinds = |path: &str| {
            let path = path.as_bytes();
            (is_tracking_file(path), is_lockfile(path), is_of_pipeline(path))
        };
        assert_eq!([kinds("mlx.lock"), kinds("a/mlx.lock")], [(true, true, true); 2]);
        assert_eq!([kinds("mlx.toml"), kinds("a/mlx.toml")], [(false, false, true); 2]);
        assert_eq!([kinds("d.mlx"), kinds("a/d.mlx")], [(true, false, false); 2]);
        assert_eq!(
            ["a.lock", "xmlx.lock", "mlx.lock/a", "xmlx.toml", "mlx"].map(kinds),
            [(false, false, false); 5]
        );
    }
}
