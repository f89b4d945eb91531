//! Brings back what is damaged: from a file of the workspace that still has the right bytes, else from the default
//! remote.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
};

use crate::{
    digest::Digest,
    error::{Doing, Error, Result},
    fs::Form,
    path::RepoPath,
    pointer::{Content, Shape},
    progress::Progress,
    remote::{self, Access, Depth, Remote, Wants},
    repo::Repo,
    store::{Kind, WHOLE, Writer, digest_file},
    upkeep::{check::Checked, roots::Holder},
    workspace::Workspace,
};

/// Where an object came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Workspace(RepoPath),
    Remote(String),
}

/// What became of a repair.
#[derive(Debug, Default)]
pub struct Mended {
    pub back: BTreeMap<Digest, Source>,
    /// What nobody has.
    pub left: BTreeSet<Digest>,
    /// Why the remote was of no help.
    pub trouble: Option<Error>,
}

/// Brings back what is damaged.
pub fn mend(workspace: &Workspace<'_>, checked: &Checked, progress: &dyn Progress) -> Result<Mended> {
    let store = &workspace.repo.store;
    let mut mended = Mended { left: checked.damaged.clone(), ..Mended::default() };
    if mended.left.is_empty() {
        return Ok(mended);
    }
    from_workspace(workspace, checked, &mut mended, progress)?;
    if !mended.left.is_empty() {
        let asked = from_remote(workspace.repo, &mended.left, &checked.pages, progress);
        // What came before it went wrong is here all the same.
        let (back, left): (BTreeSet<Digest>, BTreeSet<Digest>) =
            mended.left.iter().partition(|it| store.contains(it) && store.is_sound(it));
        let name = workspace.repo.config.remote(None).map(|it| it.name).unwrap_or_default();
        mended.back.extend(back.into_iter().map(|it| (it, Source::Remote(name.clone()))));
        mended.left = left;
        mended.trouble = asked.err();
    }
    Ok(mended)
}

fn from_workspace(
    workspace: &Workspace<'_>,
    checked: &Checked,
    mended: &mut Mended,
    progress: &dyn Progress,
) -> Result<()> {
    let repo = workspace.repo;
    let mut tried = BTreeSet::new();
    for hit in &checked.hits {
        let path = &hit.place.path;
        if path.is_root() || !mended.left.contains(&hit.object) || !tried.insert((hit.object, path.clone())) {
            continue;
        }
        let back = match repo.files.stamp(path)?.map(|it| it.form) {
            Some(Form::File) => file_back(repo, path, &hit.object)?,
            Some(Form::Link) => link_back(repo, path, &hit.object)?,
            // The pages of a folder are made again from what is in it, as far as it is what it was.
            Some(Form::Folder) if matches!(&hit.place.holder, Holder::Worktree(it) if it == repo.root()) => {
                workspace.store(path, progress)?;
                repo.store.contains(&hit.object)
            }
            _ => false,
        };
        if back && mended.left.remove(&hit.object) {
            mended.back.insert(hit.object, Source::Workspace(path.clone()));
        }
    }
    Ok(())
}

/// Stores a file if its bytes are the ones wanted; what the index says of it is not asked.
fn file_back(repo: &Repo, path: &RepoPath, wanted: &Digest) -> Result<bool> {
    let (digest, size) = digest_file(&repo.files.open_file(path)?)?;
    if digest != *wanted {
        return Ok(false);
    }
    let mut file = repo.files.open_file(path)?;
    if size > WHOLE {
        return Ok(repo.store.put_large(&file, &|_, _| Ok(()))?.0 == *wanted);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).doing(|| format!("cannot read `{path}`"))?;
    put(repo, wanted, &bytes)
}

fn link_back(repo: &Repo, path: &RepoPath, wanted: &Digest) -> Result<bool> {
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

/// Asks the default remote, for pages and for files.
fn from_remote(
    repo: &Repo,
    left: &BTreeSet<Digest>,
    pages: &BTreeSet<Digest>,
    progress: &dyn Progress,
) -> Result<()> {
    let remote = Remote::open(&repo.config.remote(None)?, Access::Read)?;
    let (trees, files): (BTreeSet<Digest>, BTreeSet<Digest>) = left.iter().partition(|it| pages.contains(it));
    let mut trouble = None;
    for (digests, kind, depth) in
        [(trees, Shape::Tree, Depth::Trees), (files, Shape::File, Depth::Everything)]
    {
        let want = |digest: &Digest| -> Result<_> {
            let path = RepoPath::from_text(&format!("damaged/{}", digest.short()))?;
            Ok((path, Content { digest: *digest, files: 1, kind, size: 0 }))
        };
        let contents = digests.iter().map(want).collect::<Result<_>>()?;
        let wants = Wants { contents, runs: Vec::new() };
        trouble = remote::fetch(repo, &remote, &wants, depth, progress).err().or(trouble);
    }
    match trouble {
        Some(error) if left.iter().any(|it| !repo.store.contains(it)) => Err(error),
        _ => Ok(()),
    }
}
