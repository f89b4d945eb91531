//! Files that processes of mlx left in a folder when they were killed.

use rustix::{
    fs::{self, FlockOperation},
    io::Errno,
};

use crate::{
    error::Result,
    fs::{
        Dir,
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
    /// Removes the temporary files of dead processes, and leaves to `rescue` what these had set aside.
    pub fn clean(&self, rescue: impl FnMut(&Vec<u8>) -> Result<()>) -> Result<()> {
        let stale = self.stale_names()?;
        stale.temp.iter().try_for_each(|name| self.remove(name))?;
        stale.aside.iter().try_for_each(rescue)
    }

    /// Cleans a folder of mlx itself, in which nothing is set aside.
    pub fn clean_own(&self) -> Result<()> {
        self.clean(|_| Ok(()))
    }

    /// Lists what dead processes left here.
    pub fn stale_names(&self) -> Result<StaleNames> {
        let mut stale = StaleNames::default();
        for (name, _) in self.names()? {
            let Some(own) = own_name(&name).filter(|own| !own.process().is_running()) else { continue };
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

    /// Returns true if a process has the file locked: it may be one of another container, or of another
    /// machine that shares the disk.
    fn is_locked(&self, name: &[u8]) -> bool {
        let shared = FlockOperation::NonBlockingLockShared;
        let file = self.open(name);
        file.is_ok_and(|file| fs::flock(&file, shared) == Err(Errno::WOULDBLOCK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fs::{Root, name::new_aside_name},
        path::RepoPath,
    };

    #[test]
    fn what_was_set_aside_is_not_removed_but_gets_a_free_name() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let dead = ".mlx-old-a.csv-4194999-0-0";
        let alive = String::from_utf8(new_aside_name(b"a.csv")).unwrap();
        for name in [dead, &alive, "a.csv.kept-1", ".mlx-tmp-4194999-0-0"] {
            root.open_append(&RepoPath::from_text(name).unwrap()).unwrap();
        }
        let dir = root.dir(&RepoPath::root()).unwrap();
        dir.clean_own().unwrap();
        assert_eq!(dir.stale_names().unwrap(), StaleNames { temp: vec![], aside: vec![dead.into()] });
        assert_eq!(dir.keep_aside(dead.as_bytes()).unwrap().unwrap(), b"a.csv.kept-2");
        assert_eq!(dir.keep_aside(dead.as_bytes()).unwrap(), None);
        assert_eq!(crate::fs::names(temp.path()), [alive.as_str(), "a.csv.kept-1", "a.csv.kept-2"]);
    }

    #[test]
    fn names_of_a_dead_process_are_stale_although_its_id_is_in_use_again() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let dir = root.dir(&RepoPath::root()).unwrap();
        for pid in [1, std::process::id()] {
            let names = [format!(".mlx-old-a-{pid}-0-abcdef"), format!(".mlx-tmp-{pid}-0-abcdef")];
            let path = |name: &String| RepoPath::from_text(name).unwrap();
            let held = names.each_ref().map(|name| root.open_append(&path(name)).unwrap());
            held.iter().for_each(|file| file.lock().unwrap());
            assert_eq!(dir.stale_names().unwrap(), StaleNames::default(), "a lock holds them, process {pid}");
            drop(held);
            let [aside, temp] = names.map(String::into_bytes);
            let stale = StaleNames { temp: vec![temp.clone()], aside: vec![aside.clone()] };
            assert_eq!(dir.stale_names().unwrap(), stale, "process {pid}");
            dir.clean(|name| dir.remove(name)).unwrap();
            assert!(dir.names().unwrap().is_empty());
        }
    }
}
