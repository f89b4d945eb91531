//! Whether a file system tells `A` from `a`: found out by trying, since it may differ folder by folder.

use crate::{error::Result, fs::Dir};

impl Dir {
    /// Whether names here that differ in case alone are one file.
    pub fn folds_case(&self) -> Result<bool> {
        let temp = self.create(0o600)?;
        let shouted = temp.name().to_ascii_uppercase();
        Ok(self.stamp(&shouted)?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use crate::{fs::Root, path::RepoPath};

    #[test]
    fn trying_agrees_with_the_disk_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Root::open(temp.path()).unwrap().dir(&RepoPath::root()).unwrap();
        let folds = dir.folds_case().unwrap();
        assert!(crate::fs::names(temp.path()).is_empty());
        crate::fs::create_dir(&temp.path().join("a")).unwrap();
        assert_eq!(temp.path().join("A").exists(), folds);
    }
}
