//! Open folders: file operations by name that never follow symlinks, and atomic writes.
//!
//! A file is written under a temporary name in the same folder and then renamed.

use std::{
    io::{self, Seek as _, SeekFrom, Write},
    os::fd::OwnedFd,
};

use rayon::prelude::*;
use rustix::{
    fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags},
    io::{Errno, retry_on_intr},
};

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::{
        File, FileKind, FileStat, LinkKind, Listing, WalkFilter, fault,
        link_support::LinkRoute,
        name::{hash_name, new_temp_name, own_name},
    },
    path::{RepoPath, check_name, escape_bytes},
};

/// Time at which a written file must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before its name becomes visible.
    Now,
    /// At a later sync of the whole file system. Used for workspace files, which are synced before the index
    /// names them.
    Later,
}

/// Open folder below a root. Names are resolved from its handle, and symlinks are not followed.
pub struct Dir {
    fd: OwnedFd,
    /// Path below the root, for messages and for the paths of entries.
    path: RepoPath,
    /// True if the group gets the owner's permissions on everything created here.
    group_access: bool,
}

/// New file that is not visible under its name until [`TempFile::publish`]. It is removed when dropped before
/// that.
pub struct TempFile {
    dir: Dir,
    name: Vec<u8>,
    file: Option<File>,
    /// Length of the file if it ends in a hole that was skipped and not written.
    end: Option<u64>,
    /// Number of bytes written so far.
    written: u64,
    /// Largest size of a file that this process may write, in bytes.
    limit: u64,
}

/// Names and kinds of the entries in a folder, sorted by name, and their inodes.
type Names = (Vec<(Vec<u8>, FileType)>, Vec<u64>);

/// Entries of a folder as they are read.
#[derive(Default)]
struct Rows(Vec<((Vec<u8>, FileType), u64)>);

impl Rows {
    fn push(&mut self, name: &[u8], kind: FileType, inode: u64) {
        if name != b"." && name != b".." {
            self.0.push(((name.to_vec(), kind), inode));
        }
    }
}

/// Bytes of a folder that are read at once.
const LISTING_BUFFER: usize = 1 << 15;
/// Depth up to which the folders of a walk are read in parallel.
const PARALLEL_DEPTH: usize = 6;
/// Length below which a path, in bytes, is neither too long nor too deep.
const ALWAYS_VALID_LEN: usize = 1000;

/// Zeros to compare writes with: runs of them at least this long become holes, so that a sparse file stays
/// sparse.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

impl Dir {
    pub(super) fn new(fd: OwnedFd, path: RepoPath) -> Self {
        Self { fd, path, group_access: false }
    }

    /// Makes everything created here writable by the group, if the folder itself is.
    pub(super) fn inherit_group_access(&mut self) -> Result<()> {
        let stat = fs::fstat(&self.fd).map_err(io::Error::from);
        let stat = stat.context(|| format!("cannot stat the folder `{}`", self.path))?;
        self.group_access = stat.st_mode & 0o020 != 0;
        Ok(())
    }

    /// Gives the group the owner's permissions on a new file or folder, regardless of the umask.
    pub(super) fn grant_group_access(&self, fd: &impl std::os::fd::AsFd) -> io::Result<()> {
        if !self.group_access {
            return Ok(());
        }
        let stat = fs::fstat(fd)?;
        let mode = stat.st_mode & 0o7777;
        let wanted = mode | (mode & 0o700) >> 3;
        if mode == wanted || stat.st_uid != rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        Ok(fs::fchmod(fd, Mode::from_raw_mode(wanted))?)
    }

    /// Returns true if a file belongs to another user than this process's; false if it does not exist.
    pub fn is_owned_by_other(&self, name: &[u8]) -> Result<bool> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(stat.st_uid != rustix::process::geteuid().as_raw()),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => {
                Err(io::Error::from(error)).context(|| format!("cannot stat {}", self.quoted(name)))
            }
        }
    }

    /// Duplicates the handle of this folder.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().context(|| format!("cannot open the folder `{}` again", self.path))?;
        Ok(Self { fd, path: self.path.clone(), group_access: self.group_access })
    }

    /// Returns the path of this folder below its root.
    pub fn path(&self) -> &RepoPath {
        &self.path
    }

    /// Formats the path of an entry for messages, in backticks.
    pub(super) fn quoted(&self, name: &[u8]) -> String {
        let folder = if self.path.is_root() { String::new() } else { format!("{}/", self.path.to_text()) };
        format!("`{folder}{}`", escape_bytes(name))
    }

    /// Opens a folder in this one. A symlink in its place is an error.
    pub fn open_dir(&self, name: &[u8]) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fault::point("open").and_then(|()| self.open_at(name, flags, Mode::empty()));
        let path = self.path.join(name)?;
        match fd {
            Ok(fd) => Ok(Self { fd, path, group_access: self.group_access }),
            Err(error) => {
                self.refuse_symlink(name)?;
                Err(error).context(|| format!("cannot open the folder {}", self.quoted(name)))
            }
        }
    }

    /// Fails if `name`, which could not be opened, is a symlink: that message says more than the system's.
    fn refuse_symlink(&self, name: &[u8]) -> Result<()> {
        if self.stat(name)?.is_some_and(|it| it.kind == FileKind::Symlink) {
            let message = format!("{} is a symlink, and mlx does not follow symlinks", self.quoted(name));
            return Err(Error::new(Kind::Denied, message).hint("replace the symlink with its target"));
        }
        Ok(())
    }

    /// Opens a folder in this one; it is created if missing.
    pub fn create_dir(&self, name: &[u8]) -> Result<Self> {
        let created = fault::logged_point("folder", || self.quoted(name))
            .and_then(|()| Ok(fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777))?));
        match created {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && self.stat(name)?.is_none() => {
                Err(error).context(|| format!("cannot create the folder {}", self.quoted(name)))
            }
            Err(_) => self.open_dir(name),
            Ok(()) => {
                let dir = self.open_dir(name)?;
                let granted = dir.grant_group_access(&dir.fd);
                granted.context(|| format!("cannot change the mode of {}", self.quoted(name)))?;
                Ok(dir)
            }
        }
    }

    /// Returns the metadata of an entry, without following symlinks; `None` if it does not exist. A name that
    /// is too long for the file system does not, such as that of a pointer beside an output of 255 bytes.
    pub fn stat(&self, name: &[u8]) -> Result<Option<FileStat>> {
        match retry_on_intr(|| fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(FileStat::of(&stat))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => {
                Err(io::Error::from(error)).context(|| format!("cannot stat {}", self.quoted(name)))
            }
        }
    }

    /// Opens an entry; retries if a signal interrupts the call.
    fn open_at(&self, name: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        Ok(retry_on_intr(|| fs::openat(&self.fd, name, flags, mode))?)
    }

    /// Opens a regular file for reading. Symlinks, FIFOs and devices are errors; opening them never blocks.
    pub fn open(&self, name: &[u8]) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = fault::point("open").and_then(|()| self.open_at(name, flags, Mode::empty()));
        let file = match opened {
            Ok(fd) => File::from(fd),
            Err(error) => {
                self.refuse_symlink(name)?;
                return Err(error).context(|| format!("cannot open {}", self.quoted(name)));
            }
        };
        if !file.metadata().is_ok_and(|it| it.is_file()) {
            return Err(Error::new(Kind::Denied, format!("{} is not a regular file", self.quoted(name))));
        }
        Ok(file)
    }

    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>> {
        let target = fs::readlinkat(&self.fd, name, Vec::new()).map_err(io::Error::from);
        Ok(target.context(|| format!("cannot read the symlink {}", self.quoted(name)))?.into_bytes())
    }

    /// Lists everything below this folder that `filter` keeps. Left out are files that mlx itself named, and
    /// the `.git` and `.mlx` of repositories.
    pub fn entries(&self, filter: &dyn WalkFilter) -> Result<Listing> {
        Ok(self.entries_of(self.names_and_inodes()?, filter)?.0)
    }

    /// Does the same for these names. Also returns true if there is anything but files that mlx itself named.
    fn entries_of(&self, (mut names, inodes): Names, filter: &dyn WalkFilter) -> Result<(Listing, bool)> {
        let all: Vec<u64> = names.iter().map(|it| hash_name(&it.0)).collect();
        names.retain(|it| own_name(&it.0).is_none());
        if names.len() < all.len() {
            filter.on_own_files(self);
        }
        let has_any = !names.is_empty();
        filter.filter(self, &mut names)?;
        // The state of a nested repository, and mlx's own folder in it or at the top, is never content.
        if names.iter().any(|it| it.0 == b".git") {
            names.retain(|it| it.0 != b".git" && it.0 != b".mlx");
        }
        let mut listing = Listing::default();
        // The names that are left are a subsequence of all names.
        let mut kept = names.iter().map(|it| hash_name(&it.0)).peekable();
        for (name, inode) in all.into_iter().zip(inodes) {
            if kept.next_if_eq(&name).is_none() {
                listing.omit(name, inode);
            }
        }
        drop(kept);
        // Parallel near the top only: further down there are too many folders, and the stacks get too deep.
        if self.path.components().count() < PARALLEL_DEPTH && names.len() > 1 {
            let visited: Vec<_> =
                names.par_iter().map(|(name, kind)| self.visit(name, *kind, filter)).collect();
            for (entry, (name, _)) in visited.into_iter().zip(&names) {
                match entry? {
                    Some((stat, children)) => listing.push(name, &stat, children),
                    None => listing.omit(hash_name(name), 0),
                }
            }
        } else {
            for (name, kind) in &names {
                match self.visit(name, *kind, filter)? {
                    Some((stat, children)) => listing.push(name, &stat, children),
                    None => listing.omit(hash_name(name), 0),
                }
            }
        }
        Ok((listing.shrink(), has_any))
    }

    /// Reads an entry with everything below it. The filter decides about names that are not allowed and
    /// unreadable entries.
    fn visit(
        &self,
        name: &[u8],
        kind: FileType,
        filter: &dyn WalkFilter,
    ) -> Result<Option<(FileStat, Listing)>> {
        let short = self.path.bytes().len() + name.len() < ALWAYS_VALID_LEN;
        let valid = if short { check_name(name) } else { self.path.join(name).map(drop) };
        if let Err(error) = valid {
            let error = error.hint("add it to a `.mlxignore` to leave it out, or move it elsewhere");
            let error = Err(error).context(|| format!("cannot track {}", self.quoted(name)));
            // Reported for the folder, since an entry such as `.GIT` inside data has no valid path.
            return error.or_else(|error| filter.on_error(&self.path, error)).map(|()| None);
        }
        match self.entry(name, kind, filter) {
            Ok(entry) => Ok(entry),
            Err(error) => filter.on_error(&self.path.join(name)?, error).map(|()| None),
        }
    }

    fn entry(
        &self,
        name: &[u8],
        kind: FileType,
        filter: &dyn WalkFilter,
    ) -> Result<Option<(FileStat, Listing)>> {
        let Some(stat) = self.stat(name)? else { return Ok(None) };
        let folder = kind == FileType::Directory || stat.kind == FileKind::Folder;
        let children = if folder {
            let dir = self.open_dir(name)?;
            let (children, has_any) = dir.entries_of(dir.first_listing()?, filter)?;
            if children.is_empty() {
                let is_listed =
                    if has_any { filter.lists_emptied(&dir.path)? } else { filter.lists_empty(&dir.path) };
                if !is_listed {
                    return Ok(None);
                }
            }
            children
        } else {
            Listing::default()
        };
        Ok(Some((stat, children)))
    }

    /// Lists names and kinds of the entries in this folder, sorted by the bytes of the names.
    pub fn names(&self) -> Result<Vec<(Vec<u8>, FileType)>> {
        Ok(self.names_and_inodes()?.0)
    }

    /// As [`Dir::names`], with the inode of each entry in the same order.
    fn names_and_inodes(&self) -> Result<Names> {
        self.sorted(|rows| {
            for entry in retry_on_intr(|| fs::Dir::read_from(&self.fd))? {
                let entry = entry?;
                rows.push(entry.file_name().to_bytes(), entry.file_type(), entry.ino());
            }
            Ok(())
        })
    }

    /// Does the same for a folder that was opened just now and is listed for the first time: reads from its
    /// own handle, whose position nothing else has moved, without opening it again.
    fn first_listing(&self) -> Result<Names> {
        self.sorted(|rows| {
            let mut buffer = Vec::with_capacity(LISTING_BUFFER);
            let mut entries = fs::RawDir::new(&self.fd, buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                match entry {
                    Ok(entry) => rows.push(entry.file_name().to_bytes(), entry.file_type(), entry.ino()),
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        })
    }

    /// Returns the rows that `read` finds in this folder, sorted by name.
    fn sorted(&self, read: impl FnOnce(&mut Rows) -> io::Result<()>) -> Result<Names> {
        let mut rows = Rows::default();
        let done = fault::point("readdir").and_then(|()| read(&mut rows));
        done.context(|| format!("cannot list the folder `{}`", self.path))?;
        rows.0.sort_by(|a, b| a.0.0.cmp(&b.0.0));
        Ok(rows.0.into_iter().unzip())
    }

    /// Creates a temporary file with these permission bits (before umask).
    pub fn create(&self, mode: u32) -> Result<TempFile> {
        let name = new_temp_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened =
            fault::point("create").and_then(|()| self.open_at(&name, flags, Mode::from_raw_mode(mode)));
        let file = opened.and_then(|fd| self.grant_group_access(&fd).map(|()| fd));
        let file = file.context(|| format!("cannot write to the folder `{}`", self.path))?;
        let limit = crate::fs::max_file_size();
        Ok(TempFile {
            dir: self.try_clone()?,
            name,
            file: Some(File::from(file)),
            end: None,
            written: 0,
            limit,
        })
    }

    /// Creates a symlink or hard link atomically: `create` makes it under a temporary name, which is then
    /// renamed.
    pub(super) fn publish_link(
        &self,
        name: &[u8],
        create: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let temporary = new_temp_name();
        fault::point("link").and_then(|()| create(&temporary))?;
        let renamed =
            fault::point("rename").and_then(|()| Ok(fs::renameat(&self.fd, &temporary[..], &self.fd, name)?));
        // A rename between two hard links of the same file does nothing and keeps both names.
        let _removed = fs::unlinkat(&self.fd, &temporary[..], AtFlags::empty());
        renamed
    }

    /// Creates or replaces a symlink.
    pub fn symlink(&self, target: &[u8], name: &[u8]) -> Result<()> {
        self.publish_link(name, |temporary| Ok(fs::symlinkat(target, &self.fd, temporary)?))
            .context(|| format!("cannot create the symlink {}", self.quoted(name)))
    }

    pub fn set_executable(&self, name: &[u8], executable: bool) -> Result<()> {
        let change = || -> io::Result<()> {
            let file = fs::openat(
                &self.fd,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let mode = fs::fstat(&file)?.st_mode & 0o777;
            let mode = if executable { mode | (mode & 0o444) >> 2 } else { mode & !0o111 };
            fault::point("chmod")?;
            Ok(fs::fchmod(&file, Mode::from_raw_mode(mode))?)
        };
        change().context(|| format!("cannot change the mode of {}", self.quoted(name)))
    }

    /// Removes write permission for all users, for a file that is shared by links.
    pub fn set_read_only(&self, name: &[u8]) -> Result<()> {
        let open = || {
            Ok(fs::openat(
                &self.fd,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?)
        };
        let change = |file: OwnedFd| Ok(fs::fchmod(file, Mode::from_raw_mode(0o444))?);
        let changed: io::Result<()> = open().and_then(change);
        changed.context(|| format!("cannot change the mode of {}", self.quoted(name)))
    }

    /// Removes a file, a symlink, or a folder with everything in it, read-only folders included; a missing
    /// entry is fine.
    pub fn remove(&self, name: &[u8]) -> Result<()> {
        let unlink = |flags| {
            fault::logged_point("remove", || self.quoted(name))
                .and_then(|()| Ok(fs::unlinkat(&self.fd, name, flags)?))
        };
        match unlink(AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                if self.stat(name)?.is_none_or(|it| it.kind != FileKind::Folder) {
                    return Err(error).context(|| format!("cannot remove {}", self.quoted(name)));
                }
                let inner = self.open_dir(name)?;
                inner.make_writable();
                for (child, _) in inner.names()? {
                    inner.remove(&child)?;
                }
                unlink(AtFlags::REMOVEDIR).context(|| format!("cannot remove {}", self.quoted(name)))
            }
        }
    }

    /// Removes a folder if it is empty; returns true if it was removed.
    pub fn remove_empty(&self, name: &[u8]) -> bool {
        fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR).is_ok()
    }

    pub fn rename(&self, name: &[u8], to: &Self, new: &[u8]) -> Result<()> {
        fault::logged_point("rename", || format!("{} {}", self.quoted(name), to.quoted(new)))
            .and_then(|()| Ok(fs::renameat(&self.fd, name, &to.fd, new)?))
            .context(|| format!("cannot move {} to {}", self.quoted(name), to.quoted(new)))
    }

    /// Syncs this folder, so that the names in it survive a power cut.
    pub fn sync(&self) -> Result<()> {
        fault::logged_point("sync-folder", || format!("`{}`", self.path.to_text()))
            .and_then(|()| Ok(retry_on_intr(|| fs::fsync(&self.fd))?))
            .context(|| format!("cannot sync the folder `{}`", self.path))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl TempFile {
    /// Renames the file to its name, replacing any file there.
    pub fn publish(mut self, name: &[u8], sync: Sync) -> Result<()> {
        self.extend_over_hole()?;
        let file = self.file.take().expect("a file is published once");
        let dir = &self.dir;
        let context = || format!("cannot write {}", dir.quoted(name));
        if sync == Sync::Now {
            fault::logged_point("sync", || dir.quoted(&self.name))
                .and_then(|()| file.sync_all())
                .context(context)?;
        }
        fault::logged_point("rename", || format!("{} {}", dir.quoted(&self.name), dir.quoted(name)))
            .and_then(|()| Ok(fs::renameat(&dir.fd, &self.name[..], &dir.fd, name)?))
            .context(context)?;
        self.name.clear();
        // Closing the file releases its lock, which must last until the rename.
        drop(file);
        if sync == Sync::Now { self.dir.sync() } else { Ok(()) }
    }

    /// Finishes the file and leaves it under its temporary name, which is returned with its metadata.
    pub fn leave(mut self) -> Result<(Vec<u8>, FileStat)> {
        self.extend_over_hole()?;
        let stat = fs::fstat(self.file()).map_err(io::Error::from);
        let stat = stat.context(|| format!("cannot stat {}", self.dir.quoted(&self.name)))?;
        drop(self.file.take());
        Ok((std::mem::take(&mut self.name), FileStat::of(&stat)))
    }

    /// Keeps the file locked until it is published, so that no process, wherever it runs, removes it as the
    /// temporary file of a dead process.
    #[must_use]
    pub fn locked(self) -> Self {
        // On a file system without locks, the process in the name has to suffice.
        let _unlocked = fs::flock(self.file(), FlockOperation::NonBlockingLockExclusive);
        self
    }

    /// Makes this file a reflink of `file`, which shares its blocks. Returns false if that is not possible;
    /// lack of support is remembered.
    pub fn reflink_from(&self, file: &File) -> bool {
        let route = LinkRoute::new(LinkKind::Reflink, file, &self.dir.fd);
        if route.is_some_and(|it| it.is_unsupported()) {
            return false;
        }
        let shared = fault::point("reflink").and_then(|()| Ok(fs::ioctl_ficlone(self.file(), file)?));
        if let (Err(error), Some(route)) = (&shared, route) {
            route.mark_unsupported(error, true);
        }
        shared.is_ok()
    }

    /// Opens the bytes written so far for reading, from the start.
    pub fn reopen(&self) -> Result<File> {
        let reopen = || -> io::Result<File> {
            let mut file = File::from(fs::openat(
                &self.dir.fd,
                &self.name[..],
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?);
            file.rewind()?;
            Ok(file)
        };
        reopen().context(|| "cannot read back a temporary file".into())
    }

    /// Sets the length of a file that ends in a hole.
    fn extend_over_hole(&mut self) -> Result<()> {
        let Some(end) = self.end.take() else { return Ok(()) };
        self.file().set_len(end).context(|| format!("cannot write to the folder `{}`", self.dir.path))
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("it is not published yet")
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        fault::point("write")?;
        let hole = bytes.len() >= ZEROS.len()
            && bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()]);
        if hole {
            let skipped = i64::try_from(bytes.len()).map_err(io::Error::other)?;
            let end = self.file().seek(SeekFrom::Current(skipped))?;
            if end > self.limit {
                return Err(Errno::FBIG.into());
            }
            (self.written, self.end) = (end, Some(end));
            return Ok(bytes.len());
        }
        self.end = None;
        if self.written >= self.limit {
            // Checked here, since the kernel would kill the process with a signal.
            return Err(Errno::FBIG.into());
        }
        let allowed = usize::try_from(self.limit - self.written).unwrap_or(usize::MAX);
        let wanted = fault::transfer_size(bytes.len().min(allowed))?;
        let written = self.file().write(&bytes[..wanted])?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _removed = fs::unlinkat(&self.dir.fd, &self.name[..], AtFlags::empty());
        }
    }
}
