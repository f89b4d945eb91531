//! Renames that overwrite nothing unseen: two names change places in one step, and a file takes a name only
//! if that is free. Some file systems know neither.

use std::io;

use rustix::{
    fs::{self, AtFlags, RenameFlags},
    io::{Errno, retry_on_intr},
};

use crate::{
    error::{Result, WithContext},
    fs::{
        Dir, FileStat, fault,
        name::{new_aside_name, new_temp_name},
    },
};

/// Outcome of an exchange of two names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    Done,
    /// One of the names does not exist.
    Missing,
    /// The file system cannot do it.
    Unsupported,
}

/// Temporary name in a folder. What has the name is removed with the value while it is `ours`.
pub struct TempName<'d> {
    dir: &'d Dir,
    name: Vec<u8>,
    /// False while a file of the user may have the name, or nothing.
    pub ours: bool,
}

impl<'d> TempName<'d> {
    pub fn new(dir: &'d Dir, name: Vec<u8>) -> Self {
        Self { dir, name, ours: true }
    }

    pub fn name(&self) -> &[u8] {
        &self.name
    }

    pub fn dir(&self) -> &'d Dir {
        self.dir
    }

    /// Changes this name to one for what will be exchanged with `name`, and may then be a file of the user:
    /// if the process ends, it is not removed unseen.
    pub fn begin_exchange(&mut self, name: &[u8]) -> Result<()> {
        let aside = new_aside_name(name);
        self.dir.rename(&self.name, self.dir, &aside)?;
        self.name = aside;
        Ok(())
    }

    /// Gives the user's file that an exchange brought to this name its own back, where now a new file is,
    /// with the metadata `placed`. Returns false if it is not here any more.
    pub fn put_back(&mut self, name: &[u8], mut placed: Option<FileStat>) -> Result<bool> {
        let key = |stat: Option<FileStat>| stat.map(|stat| (stat.inode, stat.size, stat.mtime));
        loop {
            let Some(mine) = self.dir.stat(&self.name)? else { return Ok(false) };
            if self.dir.exchange(&self.name, name)? != Exchange::Done {
                // The user removed the new file. One that has the name since then replaces the earlier one.
                self.ours = !self.dir.rename_new(&self.name, name)?;
                return Ok(true);
            }
            if key(self.dir.stat(&self.name)?) == key(placed) {
                self.ours = true;
                return Ok(true);
            }
            // A file that was saved between the two exchanges came out, and the one put back is outdated.
            placed = Some(mine);
        }
    }
}

impl Drop for TempName<'_> {
    fn drop(&mut self) {
        if self.ours {
            // An error that led here says more than one of the removal.
            let _removed = fs::unlinkat(self.dir.fd(), &self.name[..], AtFlags::empty());
        }
    }
}

impl Dir {
    /// Lets two names in this folder change places, in one step.
    pub fn exchange(&self, one: &[u8], other: &[u8]) -> Result<Exchange> {
        match self.rename_with(one, other, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(Exchange::Done),
            Err(error) if is_unsupported(&error) => Ok(Exchange::Unsupported),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Exchange::Missing),
            Err(error) => Err(error).context(|| format!("cannot write {}", self.quoted(other))),
        }
    }

    /// Renames a file unless the new name is taken, in which case it returns false. A file system that cannot
    /// do both in one step is asked for the name right before.
    pub fn rename_new(&self, name: &[u8], new: &[u8]) -> Result<bool> {
        match self.rename_with(name, new, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) if is_unsupported(&error) => {
                if self.stat(new)?.is_some() {
                    return Ok(false);
                }
                self.rename(name, self, new).map(|()| true)
            }
            Err(error) => Err(error).context(|| format!("cannot write {}", self.quoted(new))),
        }
    }

    /// Moves an entry to a name in this folder that tells what it was, and returns that name; `None` if it
    /// does not exist.
    pub fn set_aside(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let aside = new_aside_name(name);
        match self.rename_with(name, &aside, RenameFlags::empty()) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(|| format!("cannot remove {}", self.quoted(name))),
        }
    }

    /// Returns a name for a temporary file of this process.
    pub fn temp_name(&self) -> TempName<'_> {
        TempName::new(self, new_temp_name())
    }

    /// Returns true if files in this folder can change places in one step, by trying it.
    pub fn can_exchange(&self) -> Result<bool> {
        let (one, other) = (self.create(0o666)?, self.create(0o666)?);
        Ok(self.exchange(one.name(), other.name())? == Exchange::Done)
    }

    fn rename_with(&self, name: &[u8], new: &[u8], flags: RenameFlags) -> io::Result<()> {
        fault::point("rename")?;
        if !flags.is_empty() && !fault::knows_rename_flags() {
            return Err(Errno::INVAL.into());
        }
        Ok(retry_on_intr(|| fs::renameat_with(self.fd(), name, self.fd(), new, flags))?)
    }
}

/// Returns true if the file system or the kernel does not know the flags of a rename.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fs::{Root, Sync},
        path::RepoPath,
    };

    #[test]
    fn a_name_that_is_taken_is_not_overwritten() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        root.write(&path("a"), b"1", Sync::Later).unwrap();
        root.write(&path("b"), b"2", Sync::Later).unwrap();
        let dir = root.dir(&RepoPath::root()).unwrap();
        assert!(!dir.rename_new(b"a", b"b").unwrap() && dir.rename_new(b"a", b"c").unwrap());
        assert_eq!([root.read(&path("b")).unwrap(), root.read(&path("c")).unwrap()], [b"2", b"1"]);
        let exchanged = dir.exchange(b"b", b"c").unwrap();
        if exchanged == Exchange::Done {
            assert_eq!([root.read(&path("b")).unwrap(), root.read(&path("c")).unwrap()], [b"1", b"2"]);
        }
        assert_eq!(dir.can_exchange().unwrap(), exchanged == Exchange::Done);
        assert_eq!(dir.exchange(b"b", b"nothing").unwrap() == Exchange::Missing, dir.can_exchange().unwrap());
        let aside = dir.set_aside(b"b").unwrap().unwrap();
        assert_eq!((dir.stat(b"b").unwrap(), dir.set_aside(b"b").unwrap()), (None, None));
        dir.remove(&aside).unwrap();
        assert_eq!(crate::fs::names(temp.path()), ["c"]);
    }

    #[test]
    fn a_file_that_came_out_goes_back_also_if_another_name_is_gone_or_was_saved_again() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        let dir = root.create_dir(&path("d")).unwrap();
        let write = |text: &[u8]| root.write(&path("d/a"), text, Sync::Later).unwrap();
        for (case, expected) in [("both", "saved"), ("new file gone", "saved"), ("saved again", "again")] {
            write(b"saved");
            let mut temp = TempName::new(&dir, dir.set_aside(b"a").unwrap().unwrap());
            temp.ours = false;
            write(b"new");
            let placed = dir.stat(b"a").unwrap();
            match case {
                "new file gone" => root.remove(&path("d/a")).unwrap(),
                "saved again" => write(b"again"),
                _ => {}
            }
            assert!(temp.put_back(b"a", placed).unwrap(), "{case}");
            drop(temp);
            assert_eq!(root.read(&path("d/a")).unwrap(), expected.as_bytes(), "{case}");
            assert_eq!(dir.names().unwrap().len(), 1, "{case}");
        }
        let mut gone = dir.temp_name();
        assert!(!gone.put_back(b"a", dir.stat(b"a").unwrap()).unwrap());
        assert_eq!(root.read(&path("d/a")).unwrap(), b"again");
    }
}
