//! Places files again that are here already, as `cache.link` says now.
//!
//! Only files over 1 MiB can be linked, and only files that are as recorded are touched: no content changes,
//! and a file that is saved meanwhile stays. A file that is placed by the first kind of link that works here
//! is left alone, at the cost of a look at it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use crate::{
    error::{Result, WithContext},
    fs::{self, Dir, FileKind, FileStat, LinkKind, Mode, shares_blocks},
    path::RepoPath,
    pointer::Pointer,
    progress::{Event, Progress},
    store::{DiffSide, EntryKind, LargeFile, MAX_PACKED_SIZE, Store},
    workspace::{
        Node, Workspace,
        checkout::{recorded_entry, scan_part},
        compare::differences,
        guard::{Guard, Guarded},
    },
};

/// Outcome for one path.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Relinked {
    /// Number of files that were placed again, by kind of link.
    pub kinds: BTreeMap<LinkKind, u64>,
    /// Files that differ from their record.
    pub edited: Vec<RepoPath>,
    /// Files over 1 MiB that the store lacks.
    pub missing: Vec<RepoPath>,
}

impl Relinked {
    /// Returns the number of files that were placed again.
    pub fn files(&self) -> u64 {
        self.kinds.values().sum()
    }
}

/// Places the files again that are as recorded, in many parts of data, each with its pointer.
pub fn relink_parts(
    workspace: &Workspace<'_>,
    parts: &[(&Pointer, &RepoPath)],
    progress: &dyn Progress,
) -> Result<Vec<(RepoPath, Relinked)>> {
    let relinked = |&(pointer, part): &(&Pointer, &RepoPath)| {
        let done = relink(workspace, pointer, part, progress);
        done.context(|| format!("cannot link `{part}` again")).map(|done| (part.clone(), done))
    };
    parts.iter().map(relinked).collect()
}

fn relink(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Relinked> {
    let store = &workspace.repo.store;
    let Some(node) = scan_part(workspace, pointer, part, progress)? else { return Ok(Relinked::default()) };
    let found = differences(store, part, recorded_entry(store, pointer, part)?.as_ref(), Some(&node))?;
    let is_edited = |old: Option<_>, new: Option<_>| old.is_some() && new.is_some();
    let edited = found.iter().filter(|it| is_edited(it.old, it.new)).map(|it| it.path.clone()).collect();
    let files = large_files(part, &node, &found.into_iter().map(|it| it.path).collect())?;
    Ok(Relinked { edited, ..place_all(workspace, &files, progress)? })
}

/// Returns the files over 1 MiB that are not in `changed`, in the order of a scan.
fn large_files(
    part: &RepoPath,
    node: &Node,
    changed: &BTreeSet<RepoPath>,
) -> Result<Vec<(RepoPath, DiffSide)>> {
    let mut files = Vec::new();
    node.walk(&part.parent().unwrap_or_default(), &mut |folder, leaf| {
        if leaf.kind.is_regular() && leaf.size > MAX_PACKED_SIZE {
            let side = DiffSide { kind: leaf.kind, digest: leaf.digest, size: leaf.size };
            files.push((folder.join(&leaf.name)?, side));
        }
        Ok(())
    })?;
    files.retain(|file| !changed.contains(&file.0));
    Ok(files)
}

fn place_all(
    workspace: &Workspace<'_>,
    files: &[(RepoPath, DiffSide)],
    progress: &dyn Progress,
) -> Result<Relinked> {
    let (store, root) = (&workspace.repo.store, &workspace.repo.files);
    let verified = store.verified_files(&files.iter().map(|file| file.1.digest).collect::<Vec<_>>())?;
    let index = workspace.index.borrow();
    let links = workspace.repo.config.links()?;
    let placer = Placer {
        store,
        links: &links,
        guard: Guard::new(&index, store, files.iter().map(|file| &file.0)),
        done: Mutex::default(),
    };
    progress.event(Event::Started { task: "linking", total: Some(files.iter().map(|it| it.1.size).sum()) });
    let folders: Vec<_> = files.chunk_by(|one, two| one.0.parent() == two.0.parent()).collect();
    let stats = folders.par_iter().map(|folder| {
        let dir = root.dir(&folder[0].0.parent().unwrap_or_default())?;
        let mut stats = Vec::new();
        for (path, side) in *folder {
            let stat = placer.place(&dir, path, *side).context(|| format!("cannot link `{path}`"))?;
            stats.extend(stat.map(|stat| (path, stat, side.digest)));
            progress.event(Event::Advanced { by: side.size });
        }
        Ok(stats)
    });
    let stats = stats.collect::<Result<Vec<_>>>();
    progress.event(Event::Finished);
    // Links that were made before an error count, too.
    store.refresh_verified(&verified)?;
    let mut done = placer.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    drop(index);
    let tick = fs::coarse_now();
    let mut index = workspace.index.borrow_mut();
    for (path, stat, digest) in stats?.into_iter().flatten() {
        index.insert(path, &stat, digest, tick);
    }
    index.merge_pending();
    done.edited.sort();
    done.missing.sort();
    Ok(done)
}

/// Parameters and results that all threads share.
struct Placer<'p> {
    store: &'p Store,
    links: &'p [LinkKind],
    guard: Guard<'p>,
    done: Mutex<Relinked>,
}

impl Placer<'_> {
    /// Places a file again unless that is not needed. Returns its metadata for the index.
    fn place(&self, dir: &Dir, path: &RepoPath, side: DiffSide) -> Result<Option<FileStat>> {
        let done = || self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(large) = self.store.large(&side.digest) else {
            done().missing.push(path.clone());
            return Ok(None);
        };
        let name = path.name();
        let temp = dir.temp_name();
        let present = present_kind(dir, name, &large)?;
        let Some(kind) = make(&large, dir, temp.name(), side.kind, &choose(self.links, present))? else {
            return Ok(None);
        };
        let before = dir.stat(temp.name())?;
        if self.guard.put(temp, path, Some(side))? == Guarded::Kept {
            done().edited.push(path.clone());
            return Ok(None);
        }
        *done().kinds.entry(kind).or_default() += 1;
        if kind == LinkKind::Symlink {
            // For a link into the store the index keeps the stat of its target.
            return large.stat().map(Some);
        }
        let key = |stat: FileStat| (stat.inode, stat.mtime, stat.size);
        Ok(dir.stat(name)?.filter(|after| before.map(key) == Some(key(*after))))
    }
}

/// Makes the file under a temporary name; `None` if the present one is as good.
fn make(
    large: &LargeFile<'_>,
    dir: &Dir,
    temp: &[u8],
    kind: EntryKind,
    choice: &Choice<'_>,
) -> Result<Option<LinkKind>> {
    let mode = if kind == EntryKind::Executable { Mode::Executable } else { Mode::Plain };
    match large.link(dir, temp, mode, choice.better)? {
        None if choice.copy => large.link_or_copy(dir, temp, mode, &[]).map(Some),
        linked => Ok(linked),
    }
}

/// Returns how a file is placed that has the content of a stored one; `None` if it shares its bytes with
/// another file.
fn present_kind(dir: &Dir, name: &[u8], large: &LargeFile<'_>) -> Result<Option<LinkKind>> {
    let (Some(stat), stored) = (dir.stat(name)?, large.stat()?) else { return Ok(None) };
    let key = |stat: &FileStat| (stat.inode, stat.size, stat.mtime);
    if stat.kind == FileKind::Symlink {
        return Ok(Some(LinkKind::Symlink));
    }
    if stat.links > 1 && key(&stat) == key(&stored) {
        return Ok(Some(LinkKind::Hardlink));
    }
    if !dir.is_private(name)? {
        return Ok(None);
    }
    let shares = shares_blocks(&dir.open(name)?, &large.open()?);
    Ok(Some(if shares { LinkKind::Reflink } else { LinkKind::Copy }))
}

/// Ways to place a file that are better than its present one.
#[derive(Debug, PartialEq, Eq)]
struct Choice<'l> {
    /// Links to try, in this order; they end before the present one.
    better: &'l [LinkKind],
    /// True if a copy is better than the present state, where no link works.
    copy: bool,
}

/// Chooses by the setting `links`; where nothing in it works, a file is a copy.
fn choose(links: &[LinkKind], present: Option<LinkKind>) -> Choice<'_> {
    let rank = present.and_then(|present| links.iter().position(|&kind| kind == present));
    let better = &links[..rank.unwrap_or(links.len())];
    let is_unlisted = rank.is_none() && present != Some(LinkKind::Copy);
    Choice { better, copy: is_unlisted || better.contains(&LinkKind::Copy) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_placed_again_only_in_a_better_way() {
        use LinkKind::{Copy, Hardlink, Reflink, Symlink};
        let links = [Reflink, Hardlink, Copy];
        for (present, better, copy) in [
            (Some(Reflink), 0, false),
            (Some(Hardlink), 1, false),
            (Some(Copy), 2, false),
            (Some(Symlink), 3, true),
            (None, 3, true),
        ] {
            assert_eq!(choose(&links, present), Choice { better: &links[..better], copy }, "{present:?}");
        }
        // A copy is what a file becomes where no link works: it is as good as that.
        assert_eq!(choose(&[Hardlink], Some(Copy)), Choice { better: &[Hardlink], copy: false });
        assert_eq!(choose(&[Hardlink], Some(Symlink)), Choice { better: &[Hardlink], copy: true });
        assert_eq!(choose(&[Copy, Hardlink], Some(Hardlink)), Choice { better: &[Copy], copy: true });
    }
}
