//! `mlx unprotect`: replaces files that `cache.link` shares with the store by private, writable copies.

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    fs::{Dir, FileKind, FileStat, Listing, Mode},
    path::RepoPath,
    progress::Progress,
    workspace::{Workspace, leftovers::Cleaning},
};

/// Files that became private.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnprotectStats {
    pub files: u64,
    pub bytes: u64,
}

impl Workspace<'_> {
    /// Replaces every linked or read-only file at or below `path` with a writable copy of its own. The bytes
    /// are those of the file, even if they differ from the record.
    pub fn unprotect(&self, path: &RepoPath, progress: &dyn Progress) -> Result<UnprotectStats> {
        self.clean_beside(std::iter::once(path), progress);
        let mut done = UnprotectStats::default();
        let Some(stat) = self.repo.files.stat(path)? else { return Ok(done) };
        if stat.kind == FileKind::Folder {
            let dir = self.repo.files.dir(path)?;
            self.unprotect_all(
                &dir,
                &dir.entries(&Cleaning { store: &self.repo.store, progress })?,
                &mut done,
            )?;
        } else {
            self.unprotect_one(
                &self.repo.files.dir(&path.parent().unwrap_or_default())?,
                path,
                stat,
                &mut done,
            )?;
        }
        Ok(done)
    }

    /// Returns true if a file has other names or is a link into the store, so that its mode is shared.
    pub(super) fn is_shared(&self, path: &RepoPath) -> bool {
        let is_private = || -> Result<bool> {
            let dir = self.repo.files.dir(&path.parent().unwrap_or_default())?;
            let is_file = dir.stat(path.name())?.is_some_and(|it| it.kind == FileKind::File);
            Ok(is_file && dir.is_private(path.name())?)
        };
        !is_private().unwrap_or(false)
    }

    /// Returns true if a link points to where the store was before the repository moved, and the store still
    /// has its target.
    pub(super) fn is_dangling_store_link(&self, path: &RepoPath) -> bool {
        let Ok(target) = self.repo.files.read_link(path) else { return false };
        let mut names = target.rsplit(|it| *it == b'/');
        let (Some(name), Some(b"objects")) = (names.next(), names.next()) else { return false };
        let digest = std::str::from_utf8(name).ok().and_then(|name| Digest::from_hex(name).ok());
        digest.is_some_and(|digest| self.repo.store.is_intact(&digest))
    }

    fn unprotect_all(&self, dir: &Dir, entries: &Listing, done: &mut UnprotectStats) -> Result<()> {
        for entry in entries.iter() {
            let path = dir.path().join(entry.name)?;
            if entry.stat.kind == FileKind::Folder {
                self.unprotect_all(&dir.open_dir(entry.name)?, entry.children, done)?;
            } else {
                self.unprotect_one(dir, &path, entry.stat, done)?;
            }
        }
        Ok(())
    }

    fn unprotect_one(
        &self,
        dir: &Dir,
        path: &RepoPath,
        stat: FileStat,
        done: &mut UnprotectStats,
    ) -> Result<()> {
        let name = path.name();
        let (from, size) = match stat.kind {
            FileKind::Symlink => {
                let Some(large) = self.repo.store.large_from_link(&dir.read_link(name)?) else {
                    return Ok(());
                };
                (large.open()?, large.stat().size)
            }
            FileKind::File if !dir.is_private(name)? => (dir.open(name)?, stat.size),
            _ => return Ok(()),
        };
        let mode = if stat.executable { Mode::Executable } else { Mode::Plain };
        dir.unshare(name, &stat, from, mode).context(|| format!("cannot unprotect `{path}`"))?;
        done.files += 1;
        done.bytes += size;
        Ok(())
    }
}
