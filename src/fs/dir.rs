//! An open folder, and files that come about in it under a temporary name.

use std::{
    io::{self, Seek as _, SeekFrom, Write},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
};

use rayon::prelude::*;
use rustix::{
    fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags},
    io::retry_on_intr,
};

use crate::{
    error::{Doing, Error, Kind, Result},
    fs::{File, Form, Link, Listing, Sieve, Stamp, TEMPORARY, fault, is_alive, refused::Way},
    path::{RepoPath, check_name, show},
};

/// Whether bytes must survive a power cut before their name is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    Yes,
    /// Workspace files: one sync of the whole file system comes before the index names them.
    Later,
}

/// An open folder below a root; names are used from its handle and links are not followed.
pub struct Dir {
    fd: OwnedFd,
    /// For messages, and to build the paths of what is in it.
    shown: RepoPath,
    /// Whether its group may do what its owner may, with everything that comes about in it.
    shared: bool,
}

/// A new file that nobody sees until [`Temp::publish`]; dropped before that, it is gone.
pub struct Temp {
    dir: Dir,
    name: Vec<u8>,
    file: Option<File>,
    /// Where it ends, if that is in a hole that was skipped and not written.
    end: Option<u64>,
    /// Bytes so far, and how many a file may have.
    at: u64,
    limit: u64,
}

/// So many folders from the top, folders are walked by all cores.
const WIDE: usize = 6;
/// A path of fewer bytes is neither too long nor too deep.
const SHORT: usize = 1000;

/// Runs of zeros at least this long become holes: a sparse file stays one.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

impl Dir {
    pub(super) fn new(fd: OwnedFd, shown: RepoPath) -> Self {
        Self { fd, shown, shared: false }
    }

    /// What comes about here is its group's as well, if the folder itself is.
    pub(super) fn share(&mut self) -> Result<()> {
        let stat = fs::fstat(&self.fd).map_err(io::Error::from);
        let stat = stat.doing(|| format!("cannot look at the folder `{}`", self.shown))?;
        self.shared = stat.st_mode & 0o020 != 0;
        Ok(())
    }

    /// Gives the group what the owner of a new file or folder may, whatever the umask says.
    pub(super) fn open_to_group(&self, fd: &impl std::os::fd::AsFd) -> io::Result<()> {
        if !self.shared {
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

    /// Whether a file belongs to somebody else than this process's user.
    pub fn is_foreign(&self, name: &[u8]) -> Result<bool> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(stat.st_uid != rustix::process::geteuid().as_raw()),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(io::Error::from(error)).doing(|| format!("cannot look at {}", self.at(name))),
        }
    }

    /// A second handle on the same folder.
    pub fn again(&self) -> Result<Self> {
        let fd = self.fd.try_clone().doing(|| format!("cannot open the folder `{}` again", self.shown))?;
        Ok(Self { fd, shown: self.shown.clone(), shared: self.shared })
    }

    /// Where it lies below its root.
    pub fn path(&self) -> &RepoPath {
        &self.shown
    }

    fn at(&self, name: &[u8]) -> String {
        let folder = if self.shown.is_root() { String::new() } else { format!("{}/", self.shown.to_text()) };
        format!("`{folder}{}`", show(name))
    }

    /// Opens a folder in this one; a link in its place is refused.
    pub fn open_dir(&self, name: &[u8]) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fault::point("open").and_then(|()| self.open_at(name, flags, Mode::empty()));
        let shown = self.shown.join(name)?;
        match fd {
            Ok(fd) => Ok(Self { fd, shown, shared: self.shared }),
            Err(error) => {
                self.refuse_link(name)?;
                Err(error).doing(|| format!("cannot open the folder {}", self.at(name)))
            }
        }
    }

    /// What could not be opened is a link: that says more than the system's own words.
    fn refuse_link(&self, name: &[u8]) -> Result<()> {
        if self.stamp(name)?.is_some_and(|it| it.form == Form::Link) {
            let message = format!("{} is a link, and mlx does not go through links", self.at(name));
            return Err(Error::new(Kind::Denied, message).hint("replace the link by what it points to"));
        }
        Ok(())
    }

    /// Opens a folder in this one, made if it is not there.
    pub fn make_dir(&self, name: &[u8]) -> Result<Self> {
        let made = fault::tell("folder", || self.at(name))
            .and_then(|()| Ok(fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777))?));
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && self.stamp(name)?.is_none() => {
                Err(error).doing(|| format!("cannot make the folder {}", self.at(name)))
            }
            Err(_) => self.open_dir(name),
            Ok(()) => {
                let made = self.open_dir(name)?;
                let opened = made.open_to_group(&made.fd);
                opened.doing(|| format!("cannot change the mode of {}", self.at(name)))?;
                Ok(made)
            }
        }
    }

    pub fn stamp(&self, name: &[u8]) -> Result<Option<Stamp>> {
        match retry_on_intr(|| fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(Stamp::of(&stat))),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(io::Error::from(error)).doing(|| format!("cannot look at {}", self.at(name))),
        }
    }

    /// An open that a signal cuts short is made again.
    fn open_at(&self, name: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        Ok(retry_on_intr(|| fs::openat(&self.fd, name, flags, mode))?)
    }

    /// Opens a plain file for reading; links, fifos and devices are refused without blocking.
    pub fn open(&self, name: &[u8]) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = fault::point("open").and_then(|()| self.open_at(name, flags, Mode::empty()));
        let file = match opened {
            Ok(fd) => File::from(fd),
            Err(error) => {
                self.refuse_link(name)?;
                return Err(error).doing(|| format!("cannot open {}", self.at(name)));
            }
        };
        if !file.metadata().is_ok_and(|it| it.is_file()) {
            return Err(Error::new(Kind::Denied, format!("{} is not a plain file", self.at(name))));
        }
        Ok(file)
    }

    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>> {
        let target = fs::readlinkat(&self.fd, name, Vec::new()).map_err(io::Error::from);
        Ok(target.doing(|| format!("cannot read the link {}", self.at(name)))?.into_bytes())
    }

    /// Everything below this folder that `sieve` lets through; our own unfinished files are left out.
    pub fn entries(&self, sieve: &dyn Sieve) -> Result<Listing> {
        let mut names = self.names()?;
        names.retain(|it| owner(&it.0).is_none());
        sieve.sift(self, &mut names)?;
        let mut listing = Listing::default();
        // Near the top all cores walk; below, folders are too many and stacks too deep for that.
        if self.shown.components().count() < WIDE && names.len() > 1 {
            let found: Vec<_> = names.par_iter().map(|it| self.taken(&it.0, it.1, sieve)).collect();
            for (found, (name, _)) in found.into_iter().zip(&names) {
                found?.into_iter().for_each(|(stamp, below)| listing.push(name, &stamp, below));
            }
        } else {
            for (name, kind) in &names {
                self.taken(name, *kind, sieve)?
                    .into_iter()
                    .for_each(|(stamp, below)| listing.push(name, &stamp, below));
            }
        }
        Ok(listing.end())
    }

    /// What lies under a name, if it can be taken and read.
    fn taken(&self, name: &[u8], kind: FileType, sieve: &dyn Sieve) -> Result<Option<(Stamp, Listing)>> {
        // `.git` and its like inside data: named with the folder it is in.
        let short = self.shown.bytes().len() + name.len() < SHORT;
        let fits = if short { check_name(name) } else { self.shown.join(name).map(drop) };
        if let Err(error) = fits {
            let error = error.hint("name it in a `.mlxignore` to leave it out, or move it away");
            let error = Err(error).doing(|| format!("cannot take {}", self.at(name)));
            return error.or_else(|it| sieve.trouble(&self.shown, it)).map(|()| None);
        }
        match self.entry(name, kind, sieve) {
            Ok(entry) => Ok(entry),
            Err(error) => sieve.trouble(&self.shown.join(name)?, error).map(|()| None),
        }
    }

    fn entry(&self, name: &[u8], kind: FileType, sieve: &dyn Sieve) -> Result<Option<(Stamp, Listing)>> {
        let Some(stamp) = self.stamp(name)? else { return Ok(None) };
        let folder = kind == FileType::Directory || stamp.form == Form::Folder;
        let children = if folder {
            let dir = self.open_dir(name)?;
            let children = dir.entries(sieve)?;
            if children.is_empty() && dir.holds_any()? && !sieve.shows_emptied(&dir.shown)? {
                return Ok(None);
            }
            children
        } else {
            Listing::default()
        };
        Ok(Some((stamp, children)))
    }

    /// Whether something lies in this folder; our own unfinished files are nothing.
    fn holds_any(&self) -> Result<bool> {
        Ok(self.names()?.iter().any(|it| owner(&it.0).is_none()))
    }

    /// Names and kinds in this folder, sorted by the bytes of the names.
    pub fn names(&self) -> Result<Vec<(Vec<u8>, FileType)>> {
        let read = || -> io::Result<Vec<_>> {
            fault::point("readdir")?;
            let mut names = Vec::new();
            for entry in retry_on_intr(|| fs::Dir::read_from(&self.fd))? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    names.push((name.to_vec(), entry.file_type()));
                }
            }
            names.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(names)
        };
        read().doing(|| format!("cannot list the folder `{}`", self.shown))
    }

    /// Removes unfinished files of processes that are no more.
    pub fn sweep(&self) -> Result<()> {
        self.leavings()?.iter().try_for_each(|it| self.remove(it))
    }

    /// Unfinished files of processes that are no more.
    pub fn leavings(&self) -> Result<Vec<Vec<u8>>> {
        let names = self.names()?.into_iter().map(|it| it.0);
        let dead = |it: &[u8]| owner(it).is_some_and(|pid| !is_alive(pid)) && !self.is_held(it);
        Ok(names.filter(|it| dead(it)).collect())
    }

    /// Whether somebody has the file locked: in another container, or on another machine that shares the disk,
    /// the number of a process says nothing here.
    fn is_held(&self, name: &[u8]) -> bool {
        let file = self.open(name);
        file.is_ok_and(|it| {
            fs::flock(&it, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
        })
    }

    /// Starts a new file with these permissions (before umask).
    pub fn create(&self, mode: u32) -> Result<Temp> {
        let name = temporary_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened =
            fault::point("create").and_then(|()| self.open_at(&name, flags, Mode::from_raw_mode(mode)));
        let file = opened.and_then(|it| self.open_to_group(&it).map(|()| it));
        let file = file.doing(|| format!("cannot write in the folder `{}`", self.shown))?;
        let limit = crate::fs::largest_file();
        Ok(Temp { dir: self.again()?, name, file: Some(File::from(file)), end: None, at: 0, limit })
    }

    /// Gives a link or a second name of a file (made by `make` under a temporary name) its place.
    pub(super) fn put(&self, name: &[u8], make: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let temporary = temporary_name();
        fault::point("link").and_then(|()| make(&temporary))?;
        let renamed =
            fault::point("rename").and_then(|()| Ok(fs::renameat(&self.fd, &temporary[..], &self.fd, name)?));
        // Renaming one of two names of the same file onto the other does nothing and keeps both.
        let _gone = fs::unlinkat(&self.fd, &temporary[..], AtFlags::empty());
        renamed
    }

    pub fn symlink(&self, target: &[u8], name: &[u8]) -> Result<()> {
        self.put(name, |temporary| Ok(fs::symlinkat(target, &self.fd, temporary)?))
            .doing(|| format!("cannot make the link {}", self.at(name)))
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
        change().doing(|| format!("cannot change the mode of {}", self.at(name)))
    }

    /// Takes away everyone's right to write a file: others share it.
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
        changed.doing(|| format!("cannot change the mode of {}", self.at(name)))
    }

    /// Removes a file, a link, or a folder with everything in it; nothing there is fine.
    pub fn remove(&self, name: &[u8]) -> Result<()> {
        let unlink = |flags| {
            fault::tell("remove", || self.at(name)).and_then(|()| Ok(fs::unlinkat(&self.fd, name, flags)?))
        };
        match unlink(AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                if self.stamp(name)?.is_none_or(|it| it.form != Form::Folder) {
                    return Err(error).doing(|| format!("cannot remove {}", self.at(name)));
                }
                let inner = self.open_dir(name)?;
                for (below, _) in inner.names()? {
                    inner.remove(&below)?;
                }
                unlink(AtFlags::REMOVEDIR).doing(|| format!("cannot remove {}", self.at(name)))
            }
        }
    }

    /// Removes a folder if it is empty.
    pub fn remove_empty(&self, name: &[u8]) -> bool {
        fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR).is_ok()
    }

    pub fn rename(&self, name: &[u8], to: &Self, new: &[u8]) -> Result<()> {
        fault::tell("rename", || format!("{} {}", self.at(name), to.at(new)))
            .and_then(|()| Ok(fs::renameat(&self.fd, name, &to.fd, new)?))
            .doing(|| format!("cannot move {} to {}", self.at(name), to.at(new)))
    }

    /// Makes the names in this folder survive a power cut.
    pub fn sync(&self) -> Result<()> {
        fault::tell("sync-folder", || format!("`{}`", self.shown.to_text()))
            .and_then(|()| Ok(retry_on_intr(|| fs::fsync(&self.fd))?))
            .doing(|| format!("cannot sync the folder `{}`", self.shown))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl Temp {
    /// Gives the file its name, over whatever had it.
    pub fn publish(mut self, name: &[u8], sync: Sync) -> Result<()> {
        self.close_hole()?;
        let file = self.file.take().expect("a file is published once");
        let dir = &self.dir;
        let doing = || format!("cannot write {}", dir.at(name));
        if sync == Sync::Yes {
            fault::tell("sync", || dir.at(&self.name)).and_then(|()| file.sync_all()).doing(doing)?;
        }
        fault::tell("rename", || format!("{} {}", dir.at(&self.name), dir.at(name)))
            .and_then(|()| Ok(fs::renameat(&dir.fd, &self.name[..], &dir.fd, name)?))
            .doing(doing)?;
        self.name.clear();
        // Until here it was held.
        drop(file);
        if sync == Sync::Yes { self.dir.sync() } else { Ok(()) }
    }

    /// As [`Temp::publish`] without a sync; what the file system says of the file under its name, unless
    /// somebody touched it meanwhile.
    pub fn publish_stamped(mut self, name: &[u8]) -> Result<Option<Stamp>> {
        self.close_hole()?;
        let before = fs::fstat(self.file()).ok().map(|it| Stamp::of(&it));
        let dir = self.dir.again()?;
        drop(self.file.take());
        fault::point("rename")
            .and_then(|()| Ok(fs::renameat(&dir.fd, &self.name[..], &dir.fd, name)?))
            .doing(|| format!("cannot write {}", dir.at(name)))?;
        self.name.clear();
        let same = |it: &Stamp| {
            before.is_some_and(|old| (old.inode, old.mtime, old.size) == (it.inode, it.mtime, it.size))
        };
        Ok(dir.stamp(name)?.filter(same))
    }

    /// Keeps it locked until it is published, so that nobody takes it for the leavings of a dead process, wherever
    /// they run.
    #[must_use]
    pub fn held(self) -> Self {
        // Where the file system knows no locks, the number of the process has to do.
        let _unheld = fs::flock(self.file(), FlockOperation::NonBlockingLockExclusive);
        self
    }

    /// Shares the blocks of `file`, where the file system can: tried once, and remembered.
    pub fn share(&self, file: &File) -> bool {
        let way = Way::new(Link::Reflink, file, &self.dir.fd);
        if way.is_some_and(|it| it.is_refused()) {
            return false;
        }
        let shared = fault::point("reflink").and_then(|()| Ok(fs::ioctl_ficlone(self.file(), file)?));
        if let (Err(error), Some(way)) = (&shared, way) {
            way.note(error, true);
        }
        shared.is_ok()
    }

    /// A second handle on the bytes written so far, from the start.
    pub fn reread(&self) -> Result<File> {
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
        reopen().doing(|| "cannot read back a temporary file".into())
    }

    /// A file that ends in a hole gets its length.
    fn close_hole(&mut self) -> Result<()> {
        let Some(end) = self.end.take() else { return Ok(()) };
        self.file().set_len(end).doing(|| format!("cannot write in the folder `{}`", self.dir.shown))
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("it is not published yet")
    }
}

impl Write for Temp {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        fault::point("write")?;
        let hole = bytes.len() >= ZEROS.len() && bytes.chunks(ZEROS.len()).all(|it| *it == ZEROS[..it.len()]);
        if hole {
            let skipped = i64::try_from(bytes.len()).map_err(io::Error::other)?;
            let end = self.file().seek(SeekFrom::Current(skipped))?;
            if end > self.limit {
                return Err(rustix::io::Errno::FBIG.into());
            }
            (self.at, self.end) = (end, Some(end));
            return Ok(bytes.len());
        }
        self.end = None;
        if self.at >= self.limit {
            // The kernel would end the process with a signal.
            return Err(rustix::io::Errno::FBIG.into());
        }
        let room = usize::try_from(self.limit - self.at).unwrap_or(usize::MAX);
        let wanted = fault::piece(bytes.len().min(room))?;
        let written = self.file().write(&bytes[..wanted])?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _gone = fs::unlinkat(&self.dir.fd, &self.name[..], AtFlags::empty());
        }
    }
}

/// The process that an unfinished file belongs to; other files that are called so are not ours.
fn owner(name: &[u8]) -> Option<u32> {
    let rest = std::str::from_utf8(name.strip_prefix(TEMPORARY)?).ok()?;
    let parts: Vec<&str> = rest.split('-').collect();
    let [pid, count, nonce] = parts[..] else { return None };
    let ours = count.parse::<u64>().is_ok() && u64::from_str_radix(nonce, 16).is_ok();
    pid.parse().ok().filter(|_| ours)
}

/// `.mlx-tmp-PID-COUNT-NONCE`: unique among the living.
fn temporary_name() -> Vec<u8> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nonce = crate::fs::tick() & 0xff_ffff;
    [TEMPORARY, format!("{}-{count}-{nonce:x}", std::process::id()).as_bytes()].concat()
}
