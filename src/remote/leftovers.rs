//! Clears what is no longer needed at a remote: what killed pushes left, packs that others replaced, and
//! lists of roots that newer ones contain.
//!
//! Ages are measured by the remote's own clock. An age is read right before a file goes. No push writes an
//! index for a pack that may be going: one without an index that is older than a week is left alone (see
//! `uploader`), and its objects are sent again in another pack.

use std::{collections::HashSet, time::Duration};

use crate::{
    digest::Digest,
    error::Result,
    fs::Sync,
    remote::{
        Access, Remote, cache_folder,
        catalog::{Catalog, cached_texts, pack_path, replaced_path, roots_path},
        clock,
        merge::replaced_files,
    },
    repo::Repo,
    time::Timestamp,
};

/// Age beyond which no push can still be at work on a file.
const MAX_AGE: Duration = Duration::from_hours(14 * 24);

/// Reason for which files of a remote are no longer needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftoverKind {
    /// A file that was being written.
    Temporary,
    /// A pack whose index was never written.
    Pack,
    /// Packs whose objects others have, with their indexes and the list that names them.
    Replaced,
    /// A list of roots that newer lists contain.
    Roots,
}

/// Files that go together, in this order. The age of the last one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub kind: LeftoverKind,
    /// Paths at the remote, with sizes in bytes.
    pub files: Vec<(String, u64)>,
}

/// Leftovers older than two weeks.
pub struct Leftovers {
    pub old: Vec<Leftover>,
    /// Time of the remote, in seconds since 1970.
    now: i64,
}

/// Finds what [`Leftovers::remove`] would remove from a remote.
pub fn leftovers(repo: &Repo, remote: &Remote) -> Result<Leftovers> {
    find(repo, remote, &Catalog::load(repo, remote, Access::Read)?)
}

/// Clears leftovers at the end of a push, once a day for each clone.
pub fn clear(repo: &Repo, remote: &Remote, catalog: &Catalog) -> Result<()> {
    let has_any = unfinished(catalog).next().is_some()
        || !catalog.replaced_lists.is_empty()
        || catalog.root_lists.len() > 1;
    if !has_any {
        return Ok(());
    }
    let (root, folder) = cache_folder(repo, remote);
    let (checked, today) = (folder.join(b"leftovers-checked")?, Timestamp::now().day());
    if root.read_if_exists(&checked)?.as_deref() == Some(today.as_bytes()) {
        return Ok(());
    }
    root.write(&checked, today.as_bytes(), Sync::Later)?;
    find(repo, remote, catalog)?.remove(remote).map(drop)
}

impl Leftovers {
    /// Removes these files, except what a push has written again meanwhile; returns what was removed.
    pub fn remove(self, remote: &Remote) -> Result<Vec<Leftover>> {
        let mut removed = Vec::new();
        for leftover in self.old {
            let Some((dated, _)) = leftover.files.last() else { continue };
            if clock::stat(remote, dated)?.is_some_and(|file| is_past(self.now, file.modified)) {
                leftover.files.iter().try_for_each(|(path, _)| remote.delete(path))?;
                removed.push(leftover);
            }
        }
        Ok(removed)
    }
}

fn is_past(now: i64, modified: i64) -> bool {
    now - modified > MAX_AGE.as_secs().cast_signed()
}

/// Packs without an index and temporary files, of pushes that were killed or are at work.
fn unfinished(catalog: &Catalog) -> impl Iterator<Item = (LeftoverKind, String)> + '_ {
    let is_unknown = |pack: &&Digest| catalog.index(pack).is_none() && !catalog.lost_packs.contains(pack);
    let packs = catalog.packs_without_index.iter().filter(is_unknown);
    let packs = packs.map(|pack| (LeftoverKind::Pack, pack_path(pack)));
    packs.chain(catalog.temporary_files.iter().map(|path| (LeftoverKind::Temporary, path.clone())))
}

fn find(repo: &Repo, remote: &Remote, catalog: &Catalog) -> Result<Leftovers> {
    let now = clock::now(remote)?;
    let mut found: Vec<(LeftoverKind, Vec<String>)> =
        unfinished(catalog).map(|(kind, path)| (kind, vec![path])).collect();
    for list in catalog.replaced_lists.keys() {
        let path = replaced_path(list);
        if clock::stat(remote, &path)?.is_some_and(|file| is_past(now, file.modified))
            && let Some(files) = replaced_files(repo, remote, catalog, list)?
        {
            found.push((LeftoverKind::Replaced, [files, vec![path]].concat()));
        }
    }
    let lists = contained_lists(repo, remote, catalog, now)?;
    found.extend(lists.iter().map(|list| (LeftoverKind::Roots, vec![roots_path(list)])));
    let mut old = Vec::new();
    for (kind, paths) in found {
        let (mut files, mut last) = (Vec::new(), None);
        for path in paths {
            last = clock::stat(remote, &path)?;
            // What is gone already needs no removal.
            files.extend(last.map(|file| (path, file.bytes)));
        }
        if last.is_some_and(|file| is_past(now, file.modified)) {
            old.push(Leftover { kind, files });
        }
    }
    Ok(Leftovers { old, now })
}

/// Returns the old lists of roots of which each root is in a newer list. A damaged list stays.
fn contained_lists(repo: &Repo, remote: &Remote, catalog: &Catalog, now: i64) -> Result<Vec<Digest>> {
    let mut lists: Vec<_> = catalog.root_lists.iter().map(|(name, modified)| (*modified, *name)).collect();
    lists.sort();
    let Some((oldest, _)) = lists.first().filter(|_| lists.len() > 1) else { return Ok(Vec::new()) };
    if !is_past(now, *oldest) {
        return Ok(Vec::new());
    }
    let texts = cached_texts(repo, remote, "roots", catalog.root_lists.keys().copied())?;
    let (mut newer, mut contained) = (HashSet::new(), Vec::new());
    for (modified, name) in lists.into_iter().rev() {
        let Some(text) = texts.get(&name) else { continue };
        if is_past(now, modified) && text.lines().all(|root| newer.contains(root)) {
            contained.push(name);
        }
        newer.extend(text.lines());
    }
    Ok(contained)
}
