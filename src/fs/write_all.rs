//! Writes many files with a fixed number of syncs: each of them waits for the disk.

use std::{collections::BTreeMap, io::Write as _};

use rustix::fs::{fstat, syncfs};
use rustix::io::retry_on_intr;

use crate::{
    error::{Result, WithContext},
    fs::{Dir, Root, Sync, fault},
    path::RepoPath,
};

/// Number of files from which the whole file system is synced instead of each file.
const MANY: usize = 16;

/// Files that are written and do not have their names yet. They are removed when this is dropped.
struct Unnamed<'r> {
    root: &'r Root,
    /// The path of each file, and its temporary name.
    files: Vec<(&'r RepoPath, Vec<u8>)>,
    /// A folder on each file system.
    disks: BTreeMap<u64, Dir>,
}

impl Root {
    /// Replaces files as [`Root::write`] does with a sync of each: their bytes survive a power cut before
    /// their names become visible. Missing parent folders are created.
    pub fn write_all(&self, files: &[(RepoPath, Vec<u8>)]) -> Result<()> {
        if files.len() < MANY {
            return files.iter().try_for_each(|(path, bytes)| self.write(path, bytes, Sync::Now));
        }
        let mut unnamed = Unnamed { root: self, files: Vec::new(), disks: BTreeMap::new() };
        files.iter().try_for_each(|(path, bytes)| unnamed.add(path, bytes))?;
        unnamed.sync()?;
        unnamed.publish()?;
        unnamed.sync()
    }
}

impl<'r> Unnamed<'r> {
    fn add(&mut self, path: &'r RepoPath, bytes: &[u8]) -> Result<()> {
        let context = || format!("cannot write `{path}`");
        let dir = self.root.create_dir(&path.parent().unwrap_or_default())?;
        let mut temp = dir.create(0o666)?;
        temp.write_all(bytes).context(context)?;
        let (name, _) = temp.leave()?;
        self.files.push((path, name));
        let disk = fstat(dir.fd()).map_err(std::io::Error::from).context(context)?.st_dev;
        self.disks.entry(disk).or_insert(dir);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.disks.values().try_for_each(|dir| {
            fault::logged_point("sync-all", || format!("`{}`", dir.path()))
                .and_then(|()| Ok(retry_on_intr(|| syncfs(dir.fd()))?))
                .context(|| format!("cannot sync the disk of `{}`", dir.path()))
        })
    }

    /// Gives all files their names.
    fn publish(&mut self) -> Result<()> {
        while let Some((path, name)) = self.files.last() {
            let dir = self.root.dir(&path.parent().unwrap_or_default())?;
            dir.rename(name, &dir, path.name())?;
            self.files.pop();
        }
        Ok(())
    }
}

impl Drop for Unnamed<'_> {
    fn drop(&mut self) {
        for (path, name) in &self.files {
            // An error that led here says more than one of the removal.
            let dir = self.root.dir(&path.parent().unwrap_or_default());
            let _removed = dir.and_then(|dir| dir.remove(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: usize, text: &str) -> Vec<(RepoPath, Vec<u8>)> {
        let path = |at| RepoPath::from_text(&format!("d{}/{at}", at % 3)).unwrap();
        (0..count).map(|at| (path(at), format!("{text} {at}").into_bytes())).collect()
    }

    #[test]
    fn few_and_many_files_are_replaced_and_no_temporary_file_stays() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        for (count, text) in [(3, "one"), (40, "two"), (40, "three")] {
            let files = files(count, text);
            root.write_all(&files).unwrap();
            assert!(files.iter().all(|(path, bytes)| root.read(path).unwrap() == *bytes));
        }
        assert_eq!(root.dir(&RepoPath::from_text("d0").unwrap()).unwrap().names().unwrap().len(), 14);
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_of_the_others() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let mut files = files(40, "text");
        let blocked = RepoPath::from_text("d0/0/below").unwrap();
        root.write(&files[0].0, b"a file in the place of a folder", Sync::Later).unwrap();
        files.push((blocked, Vec::new()));
        assert!(root.write_all(&files).is_err());
        let names = |folder: &str| root.dir(&RepoPath::from_text(folder).unwrap()).unwrap().names().unwrap();
        assert_eq!((names("d0").len(), names("d1").len()), (1, 0));
    }
}
