//! Reads Git's index: the files that Git tracks in this worktree, also those that a sparse checkout leaves
//! out of it.
//!
//! In a sparse index (`index.sparse`), one entry stands for a whole folder that is left out.

use std::collections::BTreeSet;

use gix::{
    bstr::ByteSlice as _,
    index::{
        State,
        entry::{Flags, Stage},
    },
};

use crate::{
    error::Result,
    fs,
    git::{BlobId, Git, from_gix},
    path::{MAX_DEPTH, RepoPath},
};

/// File in Git's index.
struct IndexedFile {
    path: RepoPath,
    blob: gix::ObjectId,
    /// True if a sparse checkout leaves the file out of the worktree.
    skipped: bool,
}

/// File of mlx's own folder in Git's index.
pub struct OwnFile {
    pub bytes: Vec<u8>,
    /// True if a sparse checkout leaves the file out of the worktree.
    pub is_skipped: bool,
}

impl Git {
    /// Lists the files that Git tracks in this worktree whose path `wanted` accepts.
    pub fn tracked(&self, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Vec<RepoPath>> {
        Ok(files(&self.repo, &*self.index()?, wanted)?.into_iter().map(|file| file.path).collect())
    }

    /// Lists the files as [`Git::tracked`] does which a sparse checkout leaves out of the worktree.
    pub fn skipped(&self, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Vec<(RepoPath, BlobId)>> {
        let files = files(&self.repo, &*self.index()?, wanted)?.into_iter();
        Ok(files.filter(|file| file.skipped).map(|file| (file.path, BlobId::new(file.blob))).collect())
    }

    /// Reads a file that a sparse checkout leaves out of the worktree; `None` if it is not such a file.
    pub fn read_skipped(&self, file: &RepoPath) -> Result<Option<Vec<u8>>> {
        let index = self.index()?;
        let blob = match index.entry_by_path(file.bytes().as_bstr()) {
            Some(entry) => entry.flags.contains(Flags::SKIP_WORKTREE).then_some(entry.id),
            None => self.find_in_sparse_folder(&index, file)?,
        };
        blob.map(|id| self.read_blob(BlobId::new(id))).transpose()
    }

    /// Reads a file as it is in Git's index; `None` if Git does not track it or does not have its bytes here.
    pub fn staged(&self, file: &RepoPath) -> Result<Option<Vec<u8>>> {
        self.staged_small(file, u64::MAX)
    }

    /// Reads a file as [`Git::staged`] does; `None` if it has more than `limit` bytes, too.
    pub fn staged_small(&self, file: &RepoPath, limit: u64) -> Result<Option<Vec<u8>>> {
        let index = self.index()?;
        let id = match index.entry_by_path(file.bytes().as_bstr()) {
            Some(entry) => Some(entry.id),
            None => self.find_in_sparse_folder(&index, file)?,
        };
        let id = id.filter(|id| self.repo.find_header(*id).is_ok_and(|header| header.size() <= limit));
        Ok(id.and_then(|id| self.repo.find_object(id).ok()).map(|object| object.data.clone()))
    }

    /// Returns true if a merge left several versions of a file in Git's index.
    pub fn is_unmerged(&self, file: &RepoPath) -> Result<bool> {
        Ok(unmerged_blobs(&*self.index()?, file).iter().any(Option::is_some))
    }

    /// Reads the versions of a file that a merge left in Git's index: the base, ours and theirs. `None` if it
    /// left one version.
    pub fn unmerged_versions(&self, file: &RepoPath) -> Result<Option<[Option<Vec<u8>>; 3]>> {
        let blobs = unmerged_blobs(&*self.index()?, file);
        if blobs.iter().all(Option::is_none) {
            return Ok(None);
        }
        let mut versions = [const { None }; 3];
        for (version, blob) in versions.iter_mut().zip(blobs) {
            *version = blob.map(|id| self.read_blob(BlobId::new(id))).transpose()?;
        }
        Ok(Some(versions))
    }

    /// Lists the files of which a merge left several versions and whose path `wanted` accepts.
    pub fn unmerged(&self, wanted: &dyn Fn(&[u8]) -> bool) -> Result<BTreeSet<RepoPath>> {
        let index = self.index()?;
        let unmerged = index.entries().iter().filter(|entry| entry.stage_raw() != 0);
        let paths = unmerged.map(|entry| entry.path(&index).as_bytes()).filter(|path| wanted(path));
        Ok(paths.filter_map(|path| RepoPath::from_bytes(path).ok()).collect())
    }

    /// Reads a file of a folder at the top whose name no [`RepoPath`] may have, such as `.mlx`, as it is in
    /// Git's index.
    pub fn staged_own(&self, folder: &str, name: &str) -> Result<Option<OwnFile>> {
        let index = self.index()?;
        let path = format!("{folder}/{name}");
        if let Some(entry) = index.entry_by_path(path.as_str().into()) {
            let bytes = self.read_blob(BlobId::new(entry.id))?;
            return Ok(Some(OwnFile { bytes, is_skipped: entry.flags.contains(Flags::SKIP_WORKTREE) }));
        }
        let Some(entry) = index.entry_by_path(format!("{folder}/").as_str().into()) else { return Ok(None) };
        let context = || format!("cannot read `{folder}` from Git");
        let tree = from_gix(self.repo.find_tree(entry.id), context)?;
        let Some(found) = from_gix(tree.lookup_entry([name]), context)? else { return Ok(None) };
        let bytes = self.read_blob(BlobId::new(found.object_id()))?;
        Ok(Some(OwnFile { bytes, is_skipped: true }))
    }

    /// Returns one file that Git tracks at `path` or below it, if any.
    pub fn tracked_within(&self, path: &RepoPath) -> Result<Option<RepoPath>> {
        let index = self.index()?;
        if index.entry_by_path(path.bytes().as_bstr()).is_some()
            || self.find_in_sparse_folder(&index, path)?.is_some()
        {
            return Ok(Some(path.clone()));
        }
        let folder = [path.bytes(), b"/"].concat();
        let below = index.prefixed_entries(folder.as_bstr()).and_then(|it| it.first());
        Ok(below.and_then(|it| RepoPath::from_bytes(it.path(&index).trim_end_with(|c| c == '/')).ok()))
    }

    fn index(&self) -> Result<gix::worktree::Index> {
        from_gix(self.repo.index_or_empty(), || "cannot read Git's index".into())
    }

    /// Finds a file or folder in the folder of a sparse index that contains it.
    fn find_in_sparse_folder(&self, index: &State, path: &RepoPath) -> Result<Option<gix::ObjectId>> {
        let mut folder = path.parent().filter(|_| index.is_sparse());
        while let Some(top) = folder.filter(|it| !it.is_root()) {
            if let Some(entry) = index.entry_by_path([top.bytes(), b"/"].concat().as_bstr()) {
                let context = || format!("cannot read `{top}` from Git");
                let tree = from_gix(self.repo.find_tree(entry.id), context)?;
                let below = path.strip_prefix(&top).unwrap_or_default();
                let found = from_gix(tree.lookup_entry(below.components().map(<[u8]>::to_vec)), context)?;
                return Ok(found.map(|it| it.object_id()));
            }
            folder = top.parent();
        }
        Ok(None)
    }
}

/// Returns the versions of a file that a merge left in an index: the base, ours and theirs.
fn unmerged_blobs(index: &State, file: &RepoPath) -> [Option<gix::ObjectId>; 3] {
    let path = file.bytes().as_bstr();
    [Stage::Base, Stage::Ours, Stage::Theirs]
        .map(|stage| index.entry_by_path_and_stage(path, stage).map(|entry| entry.id))
}

/// Lists the files of an index file whose path `wanted` accepts, in all stages of a merge; none if it does
/// not exist.
pub(super) fn staged_files(
    repo: &gix::Repository,
    index: &std::path::Path,
    wanted: &dyn Fn(&[u8]) -> bool,
) -> Result<Vec<(RepoPath, BlobId)>> {
    if !fs::is_file(index) {
        return Ok(Vec::new());
    }
    let options = gix::index::decode::Options::default();
    let index = gix::index::File::at(index, repo.object_hash(), false, options);
    let index = from_gix(index, || "cannot read Git's index".into())?;
    Ok(files(repo, &index, wanted)?.into_iter().map(|file| (file.path, BlobId::new(file.blob))).collect())
}

fn files(repo: &gix::Repository, index: &State, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Vec<IndexedFile>> {
    let mut found = Vec::new();
    for entry in index.entries() {
        let path = entry.path(index);
        if entry.mode.is_sparse() {
            let folder = RepoPath::from_bytes(path.trim_end_with(|c| c == '/'));
            folder.map_or(Ok(()), |folder| files_below(repo, &folder, entry.id, wanted, &mut found, 0))?;
        } else if !entry.mode.is_submodule() && wanted(path.as_bytes()) {
            let skipped = entry.flags.contains(Flags::SKIP_WORKTREE);
            let file = RepoPath::from_bytes(path).map(|path| IndexedFile { path, blob: entry.id, skipped });
            found.extend(file);
        }
    }
    Ok(found)
}

/// Lists the files below a folder that a sparse checkout leaves out.
fn files_below(
    repo: &gix::Repository,
    folder: &RepoPath,
    tree: gix::ObjectId,
    wanted: &dyn Fn(&[u8]) -> bool,
    found: &mut Vec<IndexedFile>,
    depth: usize,
) -> Result<()> {
    let context = || format!("cannot read `{folder}` from Git");
    let tree = from_gix(repo.find_tree(tree), context)?;
    for entry in tree.iter() {
        let entry = from_gix(entry, context)?;
        // mlx cannot have written below a name that is not valid in its paths.
        let Ok(path) = folder.join(entry.filename()) else { continue };
        if entry.mode().is_tree() && depth < MAX_DEPTH {
            files_below(repo, &path, entry.object_id(), wanted, found, depth + 1)?;
        } else if !entry.mode().is_tree() && !entry.mode().is_commit() && wanted(path.bytes()) {
            found.push(IndexedFile { path, blob: entry.object_id(), skipped: true });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(folder: &std::path::Path, args: &[&str]) {
        let mut command = std::process::Command::new("git");
        command.arg("-C").arg(folder).args(["-c", "user.name=Ada", "-c", "user.email=ada@park.example"]);
        assert!(command.args(args).status().unwrap().success(), "{args:?}");
    }

    #[test]
    fn files_outside_a_sparse_checkout_are_read_from_the_index() {
        for sparse_index in ["false", "true"] {
            let temp = tempfile::tempdir().unwrap();
            git(temp.path(), &["init", "-q"]);
            let root = fs::Root::open(temp.path()).unwrap();
            let path = |text: &str| RepoPath::from_text(text).unwrap();
            for file in ["top", "a/in", "b/c/out", "d/out"] {
                root.write(&path(file), file.as_bytes(), fs::Sync::Later).unwrap();
            }
            git(temp.path(), &["add", "."]);
            git(temp.path(), &["commit", "-q", "-m", "files"]);
            git(temp.path(), &["config", "index.sparse", sparse_index]);
            git(temp.path(), &["sparse-checkout", "set", "a"]);
            let repo = Git::discover(temp.path()).unwrap();
            assert_eq!(repo.index().unwrap().is_sparse(), sparse_index == "true");
            let skipped: Vec<_> = repo.skipped(&|_| true).unwrap().into_iter().map(|it| it.0).collect();
            assert_eq!(skipped, ["b/c/out", "d/out"].map(path));
            assert_eq!(repo.tracked(&|_| true).unwrap(), ["a/in", "b/c/out", "d/out", "top"].map(path));
            let read = |text: &str| repo.read_skipped(&path(text)).unwrap();
            assert_eq!(read("b/c/out").as_deref(), Some(&b"b/c/out"[..]));
            assert_eq!(["a/in", "top", "b/c/none", "none"].map(read), [None, None, None, None]);
            let within = |text: &str| repo.tracked_within(&path(text)).unwrap().is_some();
            assert!(["b", "b/c", "b/c/out", "a", "a/in"].into_iter().all(within), "{sparse_index}");
            assert!(!within("b/none") && !within("c"), "{sparse_index}");
            let own = |folder: &str, name: &str| repo.staged_own(folder, name).unwrap();
            assert!(own("a", "in").is_some_and(|it| it.bytes == b"a/in" && !it.is_skipped));
            assert!(own("d", "out").is_some_and(|it| it.bytes == b"d/out" && it.is_skipped));
            assert!(own("d", "none").is_none() && own("c", "none").is_none());
        }
    }
}
