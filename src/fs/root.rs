//! Root folders: file operations on repository paths below one open folder, without following symlinks.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, Mode, OFlags, ResolveFlags},
    io::retry_on_intr,
};

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::{Dir, File, FileKind, FileStat, Listing, Sync, WalkFilter},
    path::RepoPath,
};

/// Largest size of a document (settings, pipelines, lockfiles, parameters), in bytes. A lockfile of 100,000
/// stages has 40 MB.
pub const MAX_DOCUMENT_SIZE: u64 = 64 << 20;

/// Open folder with its absolute path, such as a workspace, a store or a settings folder.
pub struct Root {
    dir: Dir,
    path: PathBuf,
}

impl Root {
    /// Opens a folder that the user or Git named. Symlinks in this path are followed; below it they are not.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = retry_on_intr(|| fs::open(path, flags, Mode::empty())).map_err(io::Error::from);
        let fd = fd.context(|| format!("cannot open the folder `{}`", path.display()))?;
        Ok(Self { dir: Dir::new(fd, RepoPath::root()), path: path.to_owned() })
    }

    /// Makes everything created below this root writable by its group, if the root itself is.
    pub fn with_group_access(mut self) -> Result<Self> {
        self.dir.inherit_group_access()?;
        Ok(self)
    }

    /// Opens a folder; it and its missing parents are created.
    pub fn create(path: &Path) -> Result<Self> {
        crate::fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// Opens a folder of mlx's own, such as `.mlx`, whose name is not a valid [`RepoPath`]. A symlink in its
    /// place is an error. `None` means that it does not exist and `create` is false.
    pub fn open_own_folder(&self, name: &'static str, create: bool) -> Result<Option<Self>> {
        let path = self.path.join(name);
        if create && !crate::fs::is_dir(&path) {
            crate::fs::create_dir(&path)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match retry_on_intr(|| fs::openat(self.dir.fd(), name, flags, Mode::empty())) {
            Ok(fd) => Ok(Some(Self { dir: Dir::new(fd, RepoPath::root()), path })),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(io::Error::from(error)).context(|| format!("cannot open the folder `{name}`")),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if this user may create files here and the file system is not read-only.
    pub fn is_writable(&self) -> bool {
        fs::accessat(self.dir.fd(), ".", fs::Access::WRITE_OK, fs::AtFlags::EACCESS).is_ok()
    }

    /// Opens a folder below the root, name by name.
    pub fn dir(&self, path: &RepoPath) -> Result<Dir> {
        self.descend(path, Dir::open_dir)
    }

    /// Opens a folder below the root; it and its missing parents are created.
    pub fn create_dir(&self, path: &RepoPath) -> Result<Dir> {
        self.descend(path, Dir::create_dir)
    }

    /// Opens the folders on the way to `path`, one in the other, and returns the last one.
    fn descend(&self, path: &RepoPath, open: fn(&Dir, &[u8]) -> Result<Dir>) -> Result<Dir> {
        let mut names = path.components();
        let Some(first) = names.next() else { return self.dir.try_clone() };
        names.try_fold(open(&self.dir, first)?, |dir, name| open(&dir, name))
    }

    fn parent(&self, path: &RepoPath) -> Result<Dir> {
        self.dir(&path.parent().ok_or_else(|| Error::usage("the root is not a file"))?)
    }

    /// Returns the metadata of `path`; `None` if it or a folder above it does not exist.
    pub fn stat(&self, path: &RepoPath) -> Result<Option<FileStat>> {
        if path.is_root() {
            let stat = fs::fstat(self.dir.fd()).map_err(io::Error::from);
            return Ok(Some(FileStat::of(&stat.context(|| "cannot stat the root folder".into())?)));
        }
        if path.components().nth(1).is_none() {
            return self.dir.stat(path.name());
        }
        let Some(dir) = self.parent_if_exists(path)? else { return Ok(None) };
        dir.stat(path.name())
    }

    /// Opens the folder that contains `path`; `None` if it, or one above it, is missing or not a folder.
    fn parent_if_exists(&self, path: &RepoPath) -> Result<Option<Dir>> {
        let mut dir: Option<Dir> = None;
        let parent = path.parent().unwrap_or_default();
        for name in parent.components() {
            let above = dir.as_ref().unwrap_or(&self.dir);
            match above.stat(name)?.map(|it| it.kind) {
                None | Some(FileKind::File | FileKind::Other) => return Ok(None),
                Some(FileKind::Folder | FileKind::Symlink) => dir = Some(above.open_dir(name)?),
            }
        }
        dir.map_or_else(|| self.dir.try_clone(), Ok).map(Some)
    }

    /// Opens a regular file for reading. A symlink anywhere in the path is an error.
    pub fn open_file(&self, path: &RepoPath) -> Result<File> {
        // In one call where the kernel supports it; if that fails, opening name by name reports the reason.
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
        self.open_file(path)?.read_to_end(&mut bytes).context(|| format!("cannot read `{path}`"))?;
        Ok(bytes)
    }

    /// Reads a file; `None` if it does not exist.
    pub fn read_if_exists(&self, path: &RepoPath) -> Result<Option<Vec<u8>>> {
        let Some(mut file) = self.open_if_exists(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context(|| format!("cannot read `{path}`"))?;
        Ok(Some(bytes))
    }

    /// Opens a file; `None` if it does not exist, or if another process removes it at this moment.
    fn open_if_exists(&self, path: &RepoPath) -> Result<Option<File>> {
        if self.stat(path)?.is_none() {
            return Ok(None);
        }
        match self.open_file(path) {
            Err(error) if error.kind() == Kind::NotFound && self.stat(path)?.is_none() => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Like [`Root::read_if_exists`], but reads no more than the first `limit` bytes.
    pub fn read_prefix(&self, path: &RepoPath, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open_if_exists(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).context(|| format!("cannot read `{path}`"))?;
        Ok(Some(bytes))
    }

    /// Like [`Root::read_if_exists`], for a document that people write and that is read into memory whole. A
    /// file larger than [`MAX_DOCUMENT_SIZE`] is an error.
    pub fn read_document(&self, path: &RepoPath) -> Result<Option<Vec<u8>>> {
        let bytes = self.read_prefix(path, MAX_DOCUMENT_SIZE + 1)?;
        match bytes {
            Some(bytes) if bytes.len() as u64 > MAX_DOCUMENT_SIZE => {
                let message = format!("`{path}` is larger than {} MiB", MAX_DOCUMENT_SIZE >> 20);
                Err(Error::corrupt(message)
                    .hint("such files are read into memory whole: keep data in separate files"))
            }
            bytes => Ok(bytes),
        }
    }

    pub fn read_link(&self, path: &RepoPath) -> Result<Vec<u8>> {
        self.parent(path)?.read_link(path.name())
    }

    /// Lists everything below `path` that `filter` keeps, sorted.
    pub fn entries(&self, path: &RepoPath, filter: &dyn WalkFilter) -> Result<Listing> {
        self.dir(path)?.entries(filter)
    }

    /// Replaces a file atomically; missing parent folders are created.
    pub fn write(&self, path: &RepoPath, bytes: &[u8], sync: Sync) -> Result<()> {
        self.write_mode(path, bytes, sync, 0o666)
    }

    /// Like [`Root::write`], with these permission bits (before umask).
    pub fn write_mode(&self, path: &RepoPath, bytes: &[u8], sync: Sync, mode: u32) -> Result<()> {
        let dir = self.create_dir(&path.parent().unwrap_or_default())?;
        let mut temp = dir.create(mode)?;
        temp.write_all(bytes).context(|| format!("cannot write `{path}`"))?;
        temp.publish(path.name(), sync)
    }

    /// Like [`Root::write`], with the content that `print` writes, so that it is never in memory whole.
    pub fn write_with(
        &self,
        path: &RepoPath,
        sync: Sync,
        print: &dyn Fn(&mut dyn io::Write) -> io::Result<()>,
    ) -> Result<()> {
        let dir = self.create_dir(&path.parent().unwrap_or_default())?;
        let mut out = io::BufWriter::with_capacity(1 << 20, dir.create(0o666)?);
        let printed = print(&mut out).and_then(|()| out.into_inner().map_err(io::IntoInnerError::into_error));
        printed.context(|| format!("cannot write `{path}`"))?.publish(path.name(), sync)
    }

    /// Opens a file for appending, such as a log that only this process writes; it is created if missing.
    pub fn open_append(&self, path: &RepoPath) -> Result<File> {
        let dir = self.create_dir(&path.parent().unwrap_or_default())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || fs::openat(dir.fd(), path.name(), flags, Mode::from_raw_mode(0o666));
        let fd = retry_on_intr(open).map_err(io::Error::from);
        let fd = fd.and_then(|fd| dir.grant_group_access(&fd).map(|()| fd));
        Ok(File::from(fd.context(|| format!("cannot write `{path}`"))?))
    }

    /// Removes a file, symlink or whole folder; a missing one is fine.
    pub fn remove(&self, path: &RepoPath) -> Result<()> {
        match self.parent_if_exists(path)? {
            Some(dir) => dir.remove(path.name()),
            None => Ok(()),
        }
    }

    /// Returns true if a file belongs to another user than this process's.
    pub fn is_owned_by_other(&self, path: &RepoPath) -> Result<bool> {
        self.parent(path)?.is_owned_by_other(path.name())
    }

    pub fn set_read_only(&self, path: &RepoPath) -> Result<()> {
        self.parent(path)?.set_read_only(path.name())
    }

    /// Renames a file or folder; missing parents of `to` are created.
    pub fn rename(&self, from: &RepoPath, to: &RepoPath) -> Result<()> {
        let target = self.create_dir(&to.parent().unwrap_or_default())?;
        self.parent(from)?.rename(from.name(), &target, to.name())
    }

    /// Renames a file or folder to a path below another root, which must be on the same file system.
    pub fn rename_to(&self, path: &RepoPath, other: &Self, to: &RepoPath) -> Result<()> {
        let target = other.create_dir(&to.parent().unwrap_or_default())?;
        self.parent(path)?.rename(path.name(), &target, to.name())
    }

    /// Makes a file that was written without a sync survive a power cut, with its name.
    pub fn sync_file(&self, path: &RepoPath) -> Result<()> {
        let file = self.open_file(path)?;
        crate::fs::fault::logged_point("sync", || format!("`{}`", path.to_text()))
            .and_then(|()| file.sync_all())
            .context(|| format!("cannot sync `{path}`"))?;
        self.parent(path)?.sync()
    }

    /// Syncs the folder that contains `path`, so that the name survives a power cut.
    pub fn sync_folder_of(&self, path: &RepoPath) -> Result<()> {
        self.parent(path)?.sync()
    }

    /// Syncs the whole file system, so that everything written below this root survives a power cut.
    pub fn sync_all(&self) -> Result<()> {
        crate::fs::fault::logged_point("sync-all", || self.path.display().to_string())
            .and_then(|()| Ok(retry_on_intr(|| fs::syncfs(self.dir.fd()))?))
            .context(|| format!("cannot sync the disk of `{}`", self.path.display()))
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
    fn a_symlink_in_a_parent_is_never_followed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), temp.path().join("out")).unwrap();
        let root = Root::open(temp.path()).unwrap();
        assert_eq!(root.write(&path("out/x"), b"no", Sync::Later).unwrap_err().kind(), Kind::Denied);
        assert_eq!(root.read(&path("out/x")).unwrap_err().kind(), Kind::Denied);
        assert_eq!(root.stat(&path("out/x")).unwrap_err().kind(), Kind::Denied);
        assert!(crate::fs::names(outside.path()).is_empty());
    }

    #[test]
    fn a_symlink_as_the_last_name_is_replaced_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path().join("x"), temp.path().join("x")).unwrap();
        let root = Root::open(temp.path()).unwrap();
        root.write(&path("x"), b"mine", Sync::Now).unwrap();
        assert_eq!(root.read(&path("x")).unwrap(), b"mine");
        assert!(crate::fs::names(outside.path()).is_empty());
    }

    #[test]
    fn a_dropped_temporary_file_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let dir = root.dir(&RepoPath::root()).unwrap();
        drop(dir.create(0o666).unwrap());
        assert!(crate::fs::names(temp.path()).is_empty());
    }

    #[test]
    fn only_temporary_files_of_dead_processes_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let mine = String::from_utf8(crate::fs::name::new_temp_name()).unwrap();
        for name in [".mlx-tmp-4194999-0-0", &mine, "data"] {
            root.open_append(&path(name)).unwrap();
        }
        root.dir(&RepoPath::root()).unwrap().clean_own().unwrap();
        assert_eq!(crate::fs::names(temp.path()), [mine.as_str(), "data"]);
    }

    #[test]
    fn a_locked_temporary_file_is_kept_even_if_its_process_is_not_visible() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let name = ".mlx-tmp-4194999-0-0";
        let held = root.open_append(&path(name)).unwrap();
        held.lock().unwrap();
        root.dir(&RepoPath::root()).unwrap().clean_own().unwrap();
        assert_eq!(crate::fs::names(temp.path()), [name]);
        drop(held);
        root.dir(&RepoPath::root()).unwrap().clean_own().unwrap();
        assert!(crate::fs::names(temp.path()).is_empty());
    }

    #[test]
    fn a_walk_is_sorted_and_reports_modes_and_symlinks() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        root.write(&path("b/x"), b"1", Sync::Later).unwrap();
        root.write_mode(&path("a.sh"), b"2", Sync::Later, 0o777).unwrap();
        root.dir(&RepoPath::root()).unwrap().symlink(b"b/x", b"l").unwrap();
        let found = root.entries(&RepoPath::root(), &crate::fs::NoFilter).unwrap();
        let forms: Vec<_> = found.iter().map(|it| (it.name, it.stat.kind, it.stat.executable)).collect();
        let expected: [(&[u8], _, _); 3] = [
            (b"a.sh", FileKind::File, true),
            (b"b", FileKind::Folder, false),
            (b"l", FileKind::Symlink, false),
        ];
        assert_eq!(forms, expected);
        assert_eq!(found.iter().nth(1).unwrap().children.iter().count(), 1);
    }
}
