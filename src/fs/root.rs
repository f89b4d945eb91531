//! A folder that everything below is reached from.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, Mode, OFlags, ResolveFlags},
    io::retry_on_intr,
};

use crate::{
    error::{Doing, Error, Result},
    fs::{Dir, File, Form, Listing, Sieve, Stamp, Sync},
    path::RepoPath,
};

/// Bytes of settings, pipelines, lockfiles, parameters: a lockfile of a hundred thousand stages has 40 MB.
pub const DOCUMENT: u64 = 64 << 20;

/// An open folder with its path: a workspace, a store, a settings folder.
pub struct Root {
    dir: Dir,
    path: PathBuf,
}

impl Root {
    /// Opens a folder that the user or Git named; up to here links are followed.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = retry_on_intr(|| fs::open(path, flags, Mode::empty())).map_err(io::Error::from);
        let fd = fd.doing(|| format!("cannot open the folder `{}`", path.display()))?;
        Ok(Self { dir: Dir::new(fd, RepoPath::root()), path: path.to_owned() })
    }

    /// As this one; what comes about below it is its group's as well, if the folder itself is.
    pub fn shared(mut self) -> Result<Self> {
        self.dir.share()?;
        Ok(self)
    }

    /// Opens a folder, made with those above it if it is not there.
    pub fn create(path: &Path) -> Result<Self> {
        crate::fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// A folder of mlx's own at the top, whose name no data may have; a link in its place is refused.
    pub fn own(&self, name: &'static str, make: bool) -> Result<Option<Self>> {
        let path = self.path.join(name);
        if make && !crate::fs::is_dir(&path) {
            crate::fs::create_dir(&path)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match retry_on_intr(|| fs::openat(self.dir.fd(), name, flags, Mode::empty())) {
            Ok(fd) => Ok(Some(Self { dir: Dir::new(fd, RepoPath::root()), path })),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(io::Error::from(error)).doing(|| format!("cannot open the folder `{name}`")),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether anything can come about here: the file system is not read-only, and this user may.
    pub fn is_writable(&self) -> bool {
        fs::accessat(self.dir.fd(), ".", fs::Access::WRITE_OK, fs::AtFlags::EACCESS).is_ok()
    }

    fn top(&self) -> Result<Dir> {
        self.dir.again()
    }

    /// Opens a folder below, name by name.
    pub fn dir(&self, path: &RepoPath) -> Result<Dir> {
        path.components().try_fold(self.top()?, |dir, name| dir.open_dir(name))
    }

    /// Opens a folder below; folders that are missing on the way are made.
    pub fn make_dir(&self, path: &RepoPath) -> Result<Dir> {
        path.components().try_fold(self.top()?, |dir, name| dir.make_dir(name))
    }

    fn parent(&self, path: &RepoPath) -> Result<Dir> {
        self.dir(&path.parent().ok_or_else(|| Error::usage("the root is not a file"))?)
    }

    /// What lies at `path`; nothing when it, or a folder above it, is not there.
    pub fn stamp(&self, path: &RepoPath) -> Result<Option<Stamp>> {
        if path.is_root() {
            let stat = fs::fstat(self.dir.fd()).map_err(io::Error::from);
            return Ok(Some(Stamp::of(&stat.doing(|| "cannot look at the root".into())?)));
        }
        let Some(dir) = self.parent_if_there(path)? else { return Ok(None) };
        dir.stamp(path.name())
    }

    /// The folder that `path` lies in; nothing when it, or one above it, is no folder.
    fn parent_if_there(&self, path: &RepoPath) -> Result<Option<Dir>> {
        let mut dir = self.top()?;
        let parent = path.parent().unwrap_or_default();
        for name in parent.components() {
            match dir.stamp(name)?.map(|it| it.form) {
                None | Some(Form::File | Form::Other) => return Ok(None),
                Some(Form::Folder | Form::Link) => dir = dir.open_dir(name)?,
            }
        }
        Ok(Some(dir))
    }

    /// Opens a plain file for reading; links on the way are refused.
    pub fn open_file(&self, path: &RepoPath) -> Result<File> {
        // In one call where the kernel can; whatever goes wrong, name by name it is told why.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        if crate::fs::fault::point("open").is_ok()
            && !path.is_root()
            && let Ok(fd) =
                retry_on_intr(|| fs::openat2(self.dir.fd(), path.bytes(), flags, Mode::empty(), within))
        {
            let file = File::from(fd);
            if file.metadata().is_ok_and(|it| it.is_file()) {
                return Ok(file);
            }
        }
        self.parent(path)?.open(path.name())
    }

    pub fn read(&self, path: &RepoPath) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(path)?.read_to_end(&mut bytes).doing(|| format!("cannot read `{path}`"))?;
        Ok(bytes)
    }

    /// The bytes of a file, or nothing when there is none.
    pub fn read_if_there(&self, path: &RepoPath) -> Result<Option<Vec<u8>>> {
        match self.stamp(path)? {
            None => Ok(None),
            Some(_) => self.read(path).map(Some),
        }
    }

    /// As [`Root::read_if_there`], and no more than the first `most` bytes.
    pub fn read_start(&self, path: &RepoPath, most: u64) -> Result<Option<Vec<u8>>> {
        if self.stamp(path)?.is_none() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let file = self.open_file(path)?;
        file.take(most).read_to_end(&mut bytes).doing(|| format!("cannot read `{path}`"))?;
        Ok(Some(bytes))
    }

    /// As [`Root::read_if_there`], of what people write and what is taken into memory whole: refused when it is
    /// larger than that can be.
    pub fn read_document(&self, path: &RepoPath) -> Result<Option<Vec<u8>>> {
        let bytes = self.read_start(path, DOCUMENT + 1)?;
        match bytes {
            Some(bytes) if bytes.len() as u64 > DOCUMENT => {
                let message = format!("`{path}` is larger than {} MiB", DOCUMENT >> 20);
                Err(Error::corrupt(message).hint("such a file is read whole: keep data in files of its own"))
            }
            bytes => Ok(bytes),
        }
    }

    pub fn read_link(&self, path: &RepoPath) -> Result<Vec<u8>> {
        self.parent(path)?.read_link(path.name())
    }

    /// Everything below `path` that `sieve` lets through, sorted.
    pub fn entries(&self, path: &RepoPath, sieve: &dyn Sieve) -> Result<Listing> {
        self.dir(path)?.entries(sieve)
    }

    /// Replaces a file at once; the folders above it are made.
    pub fn write(&self, path: &RepoPath, bytes: &[u8], sync: Sync) -> Result<()> {
        self.write_mode(path, bytes, sync, 0o666)
    }

    /// As [`Root::write`], with these permissions (before umask).
    pub fn write_mode(&self, path: &RepoPath, bytes: &[u8], sync: Sync, mode: u32) -> Result<()> {
        let dir = self.make_dir(&path.parent().unwrap_or_default())?;
        let mut temp = dir.create(mode)?;
        temp.write_all(bytes).doing(|| format!("cannot write `{path}`"))?;
        temp.publish(path.name(), sync)
    }

    /// As [`Root::write`], piece by piece.
    pub fn write_by(
        &self,
        path: &RepoPath,
        sync: Sync,
        print: &dyn Fn(&mut dyn io::Write) -> io::Result<()>,
    ) -> Result<()> {
        let dir = self.make_dir(&path.parent().unwrap_or_default())?;
        let mut out = io::BufWriter::with_capacity(1 << 20, dir.create(0o666)?);
        let printed = print(&mut out).and_then(|()| out.into_inner().map_err(io::IntoInnerError::into_error));
        printed.doing(|| format!("cannot write `{path}`"))?.publish(path.name(), sync)
    }

    /// Adds bytes to the end of a file that only this process writes, such as a log.
    pub fn append(&self, path: &RepoPath) -> Result<File> {
        let dir = self.make_dir(&path.parent().unwrap_or_default())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || fs::openat(dir.fd(), path.name(), flags, Mode::from_raw_mode(0o666));
        let fd = retry_on_intr(open).map_err(io::Error::from);
        let fd = fd.and_then(|it| dir.open_to_group(&it).map(|()| it));
        Ok(File::from(fd.doing(|| format!("cannot write `{path}`"))?))
    }

    /// Removes what is at `path`, whole; nothing there is fine.
    pub fn remove(&self, path: &RepoPath) -> Result<()> {
        match self.parent_if_there(path)? {
            Some(dir) => dir.remove(path.name()),
            None => Ok(()),
        }
    }

    /// Whether a file belongs to somebody else than this process's user.
    pub fn is_foreign(&self, path: &RepoPath) -> Result<bool> {
        self.parent(path)?.is_foreign(path.name())
    }

    pub fn set_read_only(&self, path: &RepoPath) -> Result<()> {
        self.parent(path)?.set_read_only(path.name())
    }

    /// Moves what is at `from`; the folders above `to` are made.
    pub fn rename(&self, from: &RepoPath, to: &RepoPath) -> Result<()> {
        let target = self.make_dir(&to.parent().unwrap_or_default())?;
        self.parent(from)?.rename(from.name(), &target, to.name())
    }

    /// Moves what is at `path` under another root; across file systems that cannot be, and fails.
    pub fn rename_to(&self, path: &RepoPath, other: &Self, to: &RepoPath) -> Result<()> {
        let target = other.make_dir(&to.parent().unwrap_or_default())?;
        self.parent(path)?.rename(path.name(), &target, to.name())
    }

    /// Makes a file that somebody else renamed into place survive a power cut.
    pub fn sync_file(&self, path: &RepoPath) -> Result<()> {
        let file = self.open_file(path)?;
        crate::fs::fault::tell("sync", || format!("`{}`", path.to_text()))
            .and_then(|()| file.sync_all())
            .doing(|| format!("cannot sync `{path}`"))?;
        self.parent(path)?.sync()
    }

    /// Makes everything written below this root survive a power cut.
    pub fn sync_all(&self) -> Result<()> {
        crate::fs::fault::tell("sync-all", || self.path.display().to_string())
            .and_then(|()| Ok(retry_on_intr(|| fs::syncfs(self.dir.fd()))?))
            .doing(|| format!("cannot sync the disk of `{}`", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    #[test]
    fn a_link_in_the_way_is_never_followed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), temp.path().join("out")).unwrap();
        let root = Root::open(temp.path()).unwrap();
        assert_eq!(root.write(&path("out/x"), b"no", Sync::Later).unwrap_err().kind(), Kind::Denied);
        assert_eq!(root.read(&path("out/x")).unwrap_err().kind(), Kind::Denied);
        assert_eq!(root.stamp(&path("out/x")).unwrap_err().kind(), Kind::Denied);
        assert!(crate::fs::names(outside.path()).is_empty());
    }

    #[test]
    fn a_link_at_the_end_is_replaced_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path().join("x"), temp.path().join("x")).unwrap();
        let root = Root::open(temp.path()).unwrap();
        root.write(&path("x"), b"mine", Sync::Yes).unwrap();
        assert_eq!(root.read(&path("x")).unwrap(), b"mine");
        assert!(crate::fs::names(outside.path()).is_empty());
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let dir = root.dir(&RepoPath::root()).unwrap();
        drop(dir.create(0o666).unwrap());
        assert!(crate::fs::names(temp.path()).is_empty());
    }

    #[test]
    fn sweeping_takes_the_leavings_of_the_dead_only() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let mine = format!(".mlx-tmp-{}-0-0", std::process::id());
        for name in [".mlx-tmp-4194999-0-0", &mine, "data"] {
            root.append(&path(name)).unwrap();
        }
        root.dir(&RepoPath::root()).unwrap().sweep().unwrap();
        assert_eq!(crate::fs::names(temp.path()), [mine.as_str(), "data"]);
    }

    #[test]
    fn sweeping_leaves_what_somebody_holds_whose_process_is_not_seen_from_here() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let name = ".mlx-tmp-4194999-0-0";
        let held = root.append(&path(name)).unwrap();
        held.lock().unwrap();
        root.dir(&RepoPath::root()).unwrap().sweep().unwrap();
        assert_eq!(crate::fs::names(temp.path()), [name]);
        drop(held);
        root.dir(&RepoPath::root()).unwrap().sweep().unwrap();
        assert!(crate::fs::names(temp.path()).is_empty());
    }

    #[test]
    fn a_walk_is_sorted_and_knows_modes_and_links() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        root.write(&path("b/x"), b"1", Sync::Later).unwrap();
        root.write_mode(&path("a.sh"), b"2", Sync::Later, 0o777).unwrap();
        root.dir(&RepoPath::root()).unwrap().symlink(b"b/x", b"l").unwrap();
        let found = root.entries(&RepoPath::root(), &crate::fs::Everything).unwrap();
        let forms: Vec<_> = found.iter().map(|it| (it.name, it.stamp.form, it.stamp.executable)).collect();
        let expected: [(&[u8], _, _); 3] =
            [(b"a.sh", Form::File, true), (b"b", Form::Folder, false), (b"l", Form::Link, false)];
        assert_eq!(forms, expected);
        assert_eq!(found.iter().nth(1).unwrap().children.iter().count(), 1);
    }
}
