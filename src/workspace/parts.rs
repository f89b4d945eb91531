//! The parts of an output that a scan includes: mlx removes and moves these, and leaves the rest in place.
//!
//! Files that `.mlxignore` names and the Git folders of nested repositories are in no record and in no store,
//! so that they are never removed together with an output.

use crate::{
    error::Result,
    fs::{self, FileKind, Listing, Root},
    path::{RepoPath, escape_bytes},
    workspace::{Workspace, filter::ScanFilter},
};

/// Number of left out names that a warning lists.
const MAX_LISTED: usize = 3;

impl Workspace<'_> {
    /// Returns the topmost paths at and below `path` that a scan includes whole, sorted; none if nothing
    /// exists there.
    pub fn included_parts(&self, path: &RepoPath) -> Result<Vec<RepoPath>> {
        let mut parts = Vec::new();
        match self.repo.files.stat(path)?.map(|it| it.kind) {
            None => {}
            Some(FileKind::Folder) => {
                let filter = ScanFilter::new(self, path, None)?.collect_errors();
                let files = &self.repo.files;
                let listing = fs::on_io_threads(|| files.entries(path, &filter))?;
                collect_parts(path, &listing, &mut parts)?;
            }
            Some(_) => parts.push(path.clone()),
        }
        Ok(parts)
    }

    /// Removes what a scan of `path` includes.
    pub fn remove_included(&self, path: &RepoPath) -> Result<()> {
        let parts = self.included_parts(path)?;
        parts.iter().try_for_each(|part| self.repo.files.remove(part))?;
        self.remove_empty_folders(&parts, path)
    }

    /// Moves what a scan of `path` includes to the folder `to` of another root on the same file system.
    /// Returns true if there was anything.
    pub fn move_included(&self, path: &RepoPath, other: &Root, to: &RepoPath) -> Result<bool> {
        let parts = self.included_parts(path)?;
        for part in &parts {
            self.repo.files.rename_to(part, other, &to.join_path(part)?)?;
        }
        self.remove_empty_folders(&parts, path)?;
        Ok(!parts.is_empty())
    }

    /// Removes the folders that are empty without `parts`, up to the folder `top`.
    pub fn remove_empty_folders(&self, parts: &[RepoPath], top: &RepoPath) -> Result<()> {
        for part in parts {
            for folder in part.ancestors().skip(1).take_while(|folder| folder.is_within(top)) {
                let parent = self.repo.files.dir(&folder.parent().unwrap_or_default())?;
                if !parent.remove_empty(folder.name()) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Moves the Git folders of nested repositories in `path` to the folder `to` of another root on the same
    /// file system, and returns their paths as text. A stage that clones into its output cannot do so over
    /// the Git folder of its last run.
    pub fn move_git_folders(&self, path: &RepoPath, other: &Root, to: &RepoPath) -> Result<Vec<String>> {
        let files = &self.repo.files;
        if files.stat(path)?.is_none_or(|it| it.kind != FileKind::Folder) {
            return Ok(Vec::new());
        }
        let filter = ScanFilter::new(self, path, None)?.collect_errors().list_left_out();
        drop(fs::on_io_threads(|| files.entries(path, &filter))?);
        let mut moved = Vec::new();
        for (folder, name) in filter.into_left_out().into_iter().filter(|it| it.1 == b".git") {
            let target = other.create_dir(&to.join_path(&folder)?)?;
            // A name that mlx itself may walk.
            files.dir(&folder)?.rename(&name, &target, b"git")?;
            moved.push(format!("{}/.git", folder.to_text()));
        }
        Ok(moved)
    }
}

/// Describes names that a scan of the output `path` left out; `None` without any.
pub fn left_out_text(path: &RepoPath, names: &[(RepoPath, Vec<u8>)]) -> Option<String> {
    let text = |(folder, name): &(RepoPath, Vec<u8>)| format!("`{folder}/{}`", escape_bytes(name));
    let mut listed: Vec<_> = names.iter().map(text).collect();
    listed.sort();
    let more = listed.len().saturating_sub(MAX_LISTED);
    listed.truncate(MAX_LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let names = listed.join(", ");
    (!listed.is_empty())
        .then(|| format!("not part of the output `{path}`, so that no clone gets it: {names}{more}"))
}

fn collect_parts(path: &RepoPath, listing: &Listing, parts: &mut Vec<RepoPath>) -> Result<()> {
    if is_whole(listing) {
        parts.push(path.clone());
        return Ok(());
    }
    for entry in listing.iter() {
        collect_parts(&path.join(entry.name)?, entry.children, parts)?;
    }
    Ok(())
}

/// Returns true if the walk left out nothing in a folder and below it.
fn is_whole(listing: &Listing) -> bool {
    listing.omitted() == 0
        && listing.iter().filter(|it| it.stat.kind == FileKind::Folder).all(|it| is_whole(it.children))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fs::Sync, repo::Repo};

    #[test]
    fn folders_that_become_empty_are_removed_up_to_the_output() {
        let temp = tempfile::tempdir().unwrap();
        let mut init = std::process::Command::new("git");
        assert!(init.args(["init", "-q"]).arg(temp.path()).status().unwrap().success());
        let repo = Repo::init(temp.path()).unwrap();
        let workspace = Workspace::open(&repo).unwrap();
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        let remove = |part: &str, top: &str| {
            repo.files.remove(&path(part)).unwrap();
            workspace.remove_empty_folders(&[path(part)], &path(top)).unwrap();
        };
        for file in ["top/out/a/b/one", "top/out/c/two", "top/out/c/left-out"] {
            repo.files.write(&path(file), b"", Sync::Later).unwrap();
        }
        remove("top/out/a/b/one", "top/out");
        remove("top/out/c/two", "top/out");
        assert_eq!(fs::names(&temp.path().join("top/out")), ["c"]);
        remove("top/out/c/left-out", "top/out");
        assert!(fs::names(&temp.path().join("top")).is_empty());
    }
}
