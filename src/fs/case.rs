//! Detection of case-insensitive folders, by experiment: it can differ from folder to folder.

use crate::{error::Result, fs::Dir};

impl Dir {
    /// Returns true if names in this folder that differ in case alone are the same file.
    pub fn is_case_insensitive(&self) -> Result<bool> {
        let temp = self.create(0o600)?;
        let upper = temp.name().to_ascii_uppercase();
        Ok(self.stat(&upper)?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use crate::{fs::Root, path::RepoPath};

    #[test]
    fn detection_agrees_with_the_disk_and_leaves_no_file() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Root::open(temp.path()).unwrap().dir(&RepoPath::root()).unwrap();
        let insensitive = dir.is_case_insensitive().unwrap();
        assert!(crate::fs::names(temp.path()).is_empty());
        crate::fs::create_dir(&temp.path().join("a")).unwrap();
        assert_eq!(temp.path().join("A").exists(), insensitive);
    }
}
