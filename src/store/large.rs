//! Files over 1 MiB: stored whole, read-only, so that they can be linked into the workspace.

use std::io::{self, Read as _};

use crate::{
    digest::{Digest, Hasher},
    error::{Doing, Error, Kind, Result},
    fs::{self, Dir, File, Link, Mode, Sparse, Stamp, Sync, place as place_link},
    path::RepoPath,
    store::{Store, place},
};

const PIECE: usize = 4 << 20;
const READ_ONLY: u32 = 0o444;

/// A whole file in the store.
pub struct Large<'s> {
    store: &'s Store,
    digest: Digest,
    path: RepoPath,
}

impl Store {
    /// The whole file of this digest, if there is one.
    pub fn large(&self, digest: &Digest) -> Option<Large<'_>> {
        let path = place("objects", &digest.hex(), "").ok()?;
        self.root.stamp(&path).ok()??;
        Some(Large { store: self, digest: *digest, path })
    }

    /// The whole file that a link of the workspace points to, if it points into this store.
    pub fn linked(&self, target: &[u8]) -> Option<Large<'_>> {
        let folder = self.root.path().join("objects");
        let hex = target.strip_prefix(folder.as_os_str().as_encoded_bytes())?.strip_prefix(b"/")?;
        self.large(&Digest::from_hex(std::str::from_utf8(hex).ok()?).ok()?)
    }

    /// Whether the object's bytes are here and are what their name says, as far as that is not known already.
    pub fn is_sound(&self, digest: &Digest) -> bool {
        self.large(digest).map_or_else(|| self.read(digest).is_ok(), |it| it.check_once().is_ok())
    }

    /// Stores a whole file, reading it once; it shares blocks with `file` where the file system can. When
    /// `accept` refuses what was read, nothing of it stays.
    pub fn put_large(&self, file: &File, accept: &dyn Fn(&File, u64) -> Result<()>) -> Result<(Digest, u64)> {
        let dir = self.dir("objects")?;
        dir.sweep()?;
        let mut temp = dir.create(READ_ONLY)?.held();
        let copied =
            if temp.share(file) { copy(&temp.reread()?, &mut io::sink()) } else { copy(file, &mut temp) };
        let (digest, size) = copied.doing(|| "cannot store a large file".into())?;
        accept(file, size)?;
        if !self.lean_on(&digest) {
            self.announce(digest)?;
            temp.publish(digest.hex().as_bytes(), Sync::Yes)?;
            self.mark_sound(&digest)?;
            self.vouch_later(&digest);
        }
        Ok((digest, size))
    }

    /// Takes over a file that was put together piece by piece, if it is what its name says.
    pub fn adopt_large(&self, digest: &Digest, part: &RepoPath) -> Result<()> {
        let file = self.root.open_file(part)?;
        let (found, _) = copy(&file, &mut io::sink()).doing(|| format!("cannot read `{part}`"))?;
        if found != *digest {
            self.root.remove(part)?;
            return Err(Error::corrupt(format!("what came for {} is something else", digest.short())));
        }
        file.sync_all().doing(|| format!("cannot sync `{part}`"))?;
        self.root.set_read_only(part)?;
        self.announce(*digest)?;
        self.dir("objects")?;
        self.root.rename(part, &place("objects", &digest.hex(), "")?)?;
        self.dir("objects")?.sync()?;
        self.vouch_later(digest);
        self.mark_sound(digest)
    }
}

impl Large<'_> {
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the file system says of it: a stored file that changes is no longer what its name says.
    pub fn stamp(&self) -> Result<Stamp> {
        let gone = || Error::not_found(format!("the object {} is gone", self.digest));
        self.store.root.stamp(&self.path)?.ok_or_else(gone)
    }

    pub fn open(&self) -> Result<File> {
        self.store.root.open_file(&self.path)
    }

    /// The whole content, checked.
    pub(super) fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open()?.read_to_end(&mut bytes).doing(|| format!("cannot read `{}`", self.path))?;
        if Digest::of(&bytes) == self.digest { Ok(bytes) } else { Err(self.store.damage(&self.digest)) }
    }

    fn check(&self) -> Result<()> {
        let (found, _) =
            copy(&self.open()?, &mut io::sink()).doing(|| format!("cannot read `{}`", self.path))?;
        if found == self.digest { Ok(()) } else { Err(self.store.damage(&self.digest)) }
    }

    /// As [`Large::check`], unless that was done since anybody could write to the file.
    pub(super) fn check_once(&self) -> Result<()> {
        if self.store.vouches(&self.digest)? {
            return Ok(());
        }
        let tick = fs::tick();
        self.check()?;
        self.store.vouch(&self.digest, tick)
    }

    /// Puts the file at `name` in `dir` by the first way of `links` that works, its digest checked before.
    pub fn place(&self, dir: &Dir, name: &[u8], mode: Mode, links: &[Link]) -> Result<Link> {
        if links.iter().any(|&it| it != Link::Copy) {
            self.check_once()?;
            if let Some(link) = place_link(&self.store.root, &self.path, dir, name, mode, links)? {
                return Ok(link);
            }
        }
        let mut temp = dir.create(mode.bits())?;
        let (found, _) =
            copy(&self.open()?, &mut temp).doing(|| format!("cannot write `{}`", crate::path::show(name)))?;
        if found != self.digest {
            return Err(self.store.damage(&self.digest));
        }
        temp.publish(name, Sync::Later)?;
        Ok(Link::Copy)
    }
}

/// Copies and digests in one pass, with constant memory.
fn copy(from: &File, to: &mut dyn io::Write) -> io::Result<(Digest, u64)> {
    let mut from = Sparse::new(from);
    let mut buffer = vec![0; PIECE];
    let (mut hasher, mut size) = (Hasher::default(), 0);
    loop {
        let mut filled = 0;
        while filled < PIECE {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.write_parallel(&buffer[..filled]);
        to.write_all(&buffer[..filled])?;
        size += filled as u64;
    }
}

/// The digest and size of an open file, from its start, with constant memory.
pub fn digest_file(file: &File) -> Result<(Digest, u64)> {
    copy(file, &mut io::sink())
        .map_err(|it| Error::new(Kind::Internal, "cannot read a file to its end").because(it))
}
