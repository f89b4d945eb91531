//! Restores damaged objects: from a workspace file that still has the right content, or else from the default
//! remote.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
};

use crate::{
    digest::Digest,
    error::{Error, Result, WithContext},
    fs::FileKind,
    maintenance::{
        check::{AffectedPath, CheckReport},
        roots::Referrer,
    },
    path::RepoPath,
    pointer::{Content, ContentKind},
    progress::Progress,
    remote::{self, Access, Depth, Remote, Wants},
    repo::Repo,
    store::{Kind, MAX_PACKED_SIZE, Store, Writer, digest_file},
    workspace::Workspace,
};

/// Source that an object was restored from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairSource {
    Workspace(RepoPath),
    Remote(String),
    /// Chunks that other versions have as well.
    Chunks,
}

/// Outcome of a repair.
#[derive(Debug, Default)]
pub struct RepairReport {
    pub restored: BTreeMap<Digest, RepairSource>,
    /// Damaged objects of which no intact copy was found.
    pub unrepaired: BTreeSet<Digest>,
    /// Error of the default remote, if it could not help.
    pub remote_error: Option<Error>,
}

/// Restores damaged objects from the workspace, then from the default remote.
pub fn restore_damaged(
    workspace: &Workspace<'_>,
    report: &CheckReport,
    progress: &dyn Progress,
) -> Result<RepairReport> {
    let store = &workspace.repo.store;
    let mut repaired = RepairReport { unrepaired: report.damaged.clone(), ..RepairReport::default() };
    if repaired.unrepaired.is_empty() {
        return Ok(repaired);
    }
    from_workspace(workspace, report, &mut repaired, progress)?;
    from_chunks(store, &mut repaired)?;
    if !repaired.unrepaired.is_empty() {
        let fetched = from_remote(workspace.repo, &repaired.unrepaired, report, progress);
        // Objects that arrived before an error are stored all the same.
        let (restored, unrepaired): (BTreeSet<Digest>, BTreeSet<Digest>) =
            repaired.unrepaired.iter().partition(|it| store.contains(it) && store.is_intact(it));
        let name = workspace.repo.config.remote(None).map(|it| it.name).unwrap_or_default();
        let source = |digest| (digest, RepairSource::Remote(name.clone()));
        repaired.restored.extend(restored.into_iter().map(source));
        repaired.unrepaired = unrepaired;
        repaired.remote_error = fetched.err();
    }
    Ok(repaired)
}

fn from_workspace(
    workspace: &Workspace<'_>,
    report: &CheckReport,
    repaired: &mut RepairReport,
    progress: &dyn Progress,
) -> Result<()> {
    let repo = workspace.repo;
    let mut tried = BTreeSet::new();
    for AffectedPath { object, reference } in &report.affected {
        let path = &reference.path;
        if path.is_root() || !repaired.unrepaired.contains(object) || !tried.insert((*object, path.clone())) {
            continue;
        }
        let is_here = matches!(&reference.referrer, Referrer::Worktree(root) if root == repo.root());
        let is_restored = match repo.files.stat(path)?.map(|it| it.kind) {
            Some(FileKind::File) => restore_file(repo, path, object)?,
            Some(FileKind::Symlink) => restore_link(repo, path, object)?,
            // The folder is stored again, which restores its pages as far as it is unchanged.
            Some(FileKind::Folder) if is_here => {
                workspace.store(path, progress)?;
                repo.store.contains(object)
            }
            _ => false,
        };
        if is_restored && repaired.unrepaired.remove(object) {
            repaired.restored.insert(*object, RepairSource::Workspace(path.clone()));
        }
    }
    Ok(())
}

/// Finds the files of which all chunks are stored again.
fn from_chunks(store: &Store, repaired: &mut RepairReport) -> Result<()> {
    for digest in repaired.unrepaired.clone() {
        if store.recover_chunked(&digest)? {
            repaired.unrepaired.remove(&digest);
            repaired.restored.insert(digest, RepairSource::Chunks);
        }
    }
    Ok(())
}

/// Stores a file again if its bytes match the digest; the stat cache is not used.
fn restore_file(repo: &Repo, path: &RepoPath, wanted: &Digest) -> Result<bool> {
    let (digest, size) = digest_file(&repo.files.open_file(path)?)?;
    if digest != *wanted {
        return Ok(false);
    }
    let mut file = repo.files.open_file(path)?;
    if size > MAX_PACKED_SIZE {
        return Ok(repo.store.put_large(&file, &|_, _| Ok(()))?.0 == *wanted);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).context(|| format!("cannot read `{path}`"))?;
    put(repo, wanted, &bytes)
}

fn restore_link(repo: &Repo, path: &RepoPath, wanted: &Digest) -> Result<bool> {
    let target = repo.files.read_link(path)?;
    put(repo, wanted, &target)
}

fn put(repo: &Repo, wanted: &Digest, bytes: &[u8]) -> Result<bool> {
    if Digest::of(bytes) != *wanted {
        return Ok(false);
    }
    let mut writer = Writer::new(&repo.store);
    writer.put(Kind::Content, *wanted, bytes)?;
    writer.finish().map(|()| true)
}

/// Fetches pages and files from the default remote.
fn from_remote(
    repo: &Repo,
    left: &BTreeSet<Digest>,
    report: &CheckReport,
    progress: &dyn Progress,
) -> Result<()> {
    let remote = Remote::open(&repo.config.remote(None)?, Access::Read)?;
    let is_page = |digest: &&Digest| report.missing_pages.contains(digest);
    let (trees, files): (BTreeSet<Digest>, BTreeSet<Digest>) = left.iter().partition(is_page);
    let mut error = None;
    for (digests, kind, depth) in
        [(trees, ContentKind::Tree, Depth::Trees), (files, ContentKind::File, Depth::Everything)]
    {
        let want = |digest: &Digest| -> Result<_> {
            let path = RepoPath::from_text(&format!("damaged/{}", digest.short()))?;
            let size = report.sizes.get(digest).copied().unwrap_or(0);
            Ok((path, Content { digest: *digest, files: 1, kind, size }))
        };
        let contents = digests.iter().map(want).collect::<Result<_>>()?;
        let wants = Wants { contents, runs: Vec::new() };
        error = remote::fetch(repo, &remote, &wants, depth, progress).err().or(error);
    }
    match error {
        Some(error) if left.iter().any(|it| !repo.store.contains(it)) => Err(error),
        _ => Ok(()),
    }
}
