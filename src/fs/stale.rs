//! Files that processes of mlx left in a folder when they were killed.

use rustix::{
    fs::{self, FlockOperation},
    io::Errno,
};

use crate::{
    error::Result,
    fs::{
        Dir, is_alive,
        name::{OwnName, kept_names, own_name},
    },
};

/// Names that dead processes left in a folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StaleNames {
    /// Temporary files, which hold nothing of the user's.
    pub temp: Vec<Vec<u8>>,
    /// Entries that were being replaced or removed. Each may be the only copy of its bytes.
    pub aside: Vec<Vec<u8>>,
}

impl Dir {
    /// Removes the temporary files of dead processes.
    pub fn remove_stale_temp_files(&self) -> Result<()> {
        self.stale_names()?.temp.iter().try_for_each(|name| self.remove(name))
    }

    /// Lists what dead processes left here.
    pub fn stale_names(&self) -> Result<StaleNames> {
        let mut stale = StaleNames::default();
        for (name, _) in self.names()? {
            let Some(own) = own_name(&name).filter(|own| !is_alive(own.pid())) else { continue };
            if !self.is_locked(&name) {
                let list =
                    if matches!(own, OwnName::Temp { .. }) { &mut stale.temp } else { &mut stale.aside };
                list.push(name);
            }
        }
        Ok(stale)
    }

    /// Gives an entry that a dead process left aside a name that the user sees, and returns that name;
    /// `None` if it is gone.
    pub fn keep_aside(&self, aside: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(OwnName::Aside { name, .. }) = own_name(aside) else { return Ok(None) };
        for kept in kept_names(name) {
            if self.stat(aside)?.is_none() {
                return Ok(None);
            }
            if self.rename_new(aside, &kept)? {
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }

    /// Returns true if a process has the file locked. Process ids alone do not tell, since those of another
    /// container, or of another machine that shares the disk, mean nothing here.
    fn is_locked(&self, name: &[u8]) -> bool {
        let shared = FlockOperation::NonBlockingLockShared;
        let file = self.open(name);
        file.is_ok_and(|file| fs::flock(&file, shared) == Err(Errno::WOULDBLOCK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fs::Root, path::RepoPath};

    #[test]
    fn what_was_set_aside_is_not_removed_but_gets_a_free_name() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let dead = ".mlx-old-a.csv-4194999-0-0";
        let alive = format!(".mlx-old-a.csv-{}-0-0", std::process::id());
        for name in [dead, &alive, "a.csv.kept-1", ".mlx-tmp-4194999-0-0"] {
            root.open_append(&RepoPath::from_text(name).unwrap()).unwrap();
        }
        let dir = root.dir(&RepoPath::root()).unwrap();
        dir.remove_stale_temp_files().unwrap();
        assert_eq!(dir.stale_names().unwrap(), StaleNames { temp: vec![], aside: vec![dead.into()] });
        assert_eq!(dir.keep_aside(dead.as_bytes()).unwrap().unwrap(), b"a.csv.kept-2");
        assert_eq!(dir.keep_aside(dead.as_bytes()).unwrap(), None);
        assert_eq!(crate::fs::names(temp.path()), [alive.as_str(), "a.csv.kept-1", "a.csv.kept-2"]);
    }
}
