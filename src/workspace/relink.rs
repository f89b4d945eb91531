//! Places files again that are here already, as `cache.link` says now.
//!
//! Only files over 1 MiB can be linked, and only files that are as recorded are touched: no content changes,
//! and a file that is saved meanwhile stays. A file that is placed by the first kind of link that works here
//! is left alone, at the cost of a look at it.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::{self, Dir, FileKind, FileStat, LinkKind, Mode, Root, shares_blocks},
    path::RepoPath,
    pointer::Pointer,
    progress::{Event, Progress},
    store::{DiffSide, EntryKind, LargeFile, MAX_PACKED_SIZE, Store},
    workspace::{
        Node, Workspace,
        compare::differences,
        guard::{Guard, Guarded},
        siblings::{Part, visit_parts},
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

/// A large file that is as recorded, in one of several parts.
struct File {
    /// Number of the part.
    row: usize,
    path: RepoPath,
    side: DiffSide,
}

/// Outcome for one file.
enum Placed {
    AsGood,
    Missing,
    Edited,
    /// With its metadata for the index.
    Again(LinkKind, Option<FileStat>),
}

/// Places the files again that are as recorded, in many parts of data, each with its pointer. Goes on after
/// parts and files that cannot be read, and returns the errors about them.
pub fn relink_parts(
    workspace: &Workspace<'_>,
    parts: &[(&Pointer, &RepoPath)],
    progress: &dyn Progress,
) -> Result<(Vec<(RepoPath, Relinked)>, Vec<Error>)> {
    let (mut rows, mut files, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    visit_parts(workspace, parts, doing, progress, &mut |path, part| match part
        .and_then(|part| compare(&workspace.repo.store, &part))
    {
        Ok((edited, large)) => {
            let row = rows.len();
            files.extend(large.into_iter().map(|(path, side)| File { row, path, side }));
            rows.push((path.clone(), Relinked { edited, ..Relinked::default() }));
            Ok(())
        }
        Err(error) => note(error, &mut problems),
    })?;
    place_all(workspace, &files, &mut rows, &mut problems, progress)?;
    for (_, row) in &mut rows {
        row.edited.sort();
        row.missing.sort();
    }
    Ok((rows, problems))
}

fn doing(part: &RepoPath) -> String {
    format!("cannot link `{part}` again")
}

/// Adds an error that is about one file or part only; returns any other.
fn note(error: Error, problems: &mut Vec<Error>) -> Result<()> {
    if is_general(&error) {
        return Err(error);
    }
    problems.push(error);
    Ok(())
}

/// Returns true for an error that other files would meet, too, such as a full disk.
fn is_general(error: &Error) -> bool {
    matches!(error.kind(), Kind::Internal | Kind::Unavailable)
}

/// Returns the files that differ from their record, and those over 1 MiB that do not.
fn compare(store: &Store, part: &Part<'_>) -> Result<(Vec<RepoPath>, Vec<(RepoPath, DiffSide)>)> {
    let Part { path, recorded, present: Some(node), .. } = part else { return Ok(Default::default()) };
    let found = differences(store, path, recorded.as_ref(), Some(node)).context(|| doing(path))?;
    let is_edited = |old: Option<_>, new: Option<_>| old.is_some() && new.is_some();
    let edited = found.iter().filter(|it| is_edited(it.old, it.new)).map(|it| it.path.clone()).collect();
    Ok((edited, large_files(path, node, &found.into_iter().map(|it| it.path).collect())?))
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

/// Places the files again, and adds the outcomes to the rows of their parts.
fn place_all(
    workspace: &Workspace<'_>,
    files: &[File],
    rows: &mut [(RepoPath, Relinked)],
    problems: &mut Vec<Error>,
    progress: &dyn Progress,
) -> Result<()> {
    let (store, root) = (&workspace.repo.store, &workspace.repo.files);
    let verified = store.verified_files(&files.iter().map(|file| file.side.digest).collect::<Vec<_>>())?;
    let index = workspace.index.borrow();
    let links = workspace.repo.config.links()?;
    let guard = Guard::new(&index, store, files.iter().map(|file| &file.path));
    let placer = Placer { store, links: &links, guard };
    progress
        .event(Event::Started { task: "linking", total: Some(files.iter().map(|it| it.side.size).sum()) });
    let folders: Vec<_> = files.chunk_by(|one, two| one.path.parent() == two.path.parent()).collect();
    let place = |folder: &&[File]| placer.place_folder(root, folder, progress);
    let placed: Vec<_> = folders.par_iter().map(place).collect();
    progress.event(Event::Finished);
    // Links that were made before an error count, too.
    store.refresh_verified(&verified)?;
    drop(index);
    let tick = fs::coarse_now();
    let mut index = workspace.index.borrow_mut();
    let mut stopped = None;
    for (folder, placed) in folders.into_iter().zip(placed) {
        for (File { row, path, side }, placed) in folder.iter().zip(placed) {
            let row = &mut rows[*row].1;
            match placed {
                Ok(Placed::AsGood) => {}
                Ok(Placed::Missing) => row.missing.push(path.clone()),
                Ok(Placed::Edited) => row.edited.push(path.clone()),
                Ok(Placed::Again(kind, stat)) => {
                    *row.kinds.entry(kind).or_default() += 1;
                    stat.iter().for_each(|stat| index.insert(path, stat, side.digest, tick));
                }
                Err(error) => stopped = stopped.or(note(error, problems).err()),
            }
        }
    }
    stopped.map_or(Ok(()), Err)
}

/// Parameters that all threads share.
struct Placer<'p> {
    store: &'p Store,
    links: &'p [LinkKind],
    guard: Guard<'p>,
}

impl Placer<'_> {
    /// Places the files of one folder again, up to an error that is about more than one file.
    fn place_folder(&self, root: &Root, files: &[File], progress: &dyn Progress) -> Vec<Result<Placed>> {
        let dir = match root.dir(&files[0].path.parent().unwrap_or_default()) {
            Ok(dir) => dir,
            Err(error) => return vec![Err(error)],
        };
        let mut done = Vec::with_capacity(files.len());
        for File { path, side, .. } in files {
            done.push(self.place(&dir, path, *side).context(|| format!("cannot link `{path}`")));
            progress.event(Event::Advanced { by: side.size });
            if done.last().is_some_and(|it| it.as_ref().is_err_and(is_general)) {
                break;
            }
        }
        done
    }

    /// Places a file again unless that is not needed.
    fn place(&self, dir: &Dir, path: &RepoPath, side: DiffSide) -> Result<Placed> {
        // One that is kept as chunks is linked from nowhere: a copy is as good.
        let may_restore =
            self.store.root().is_writable() && self.links.iter().any(|kind| kind.is_same_file());
        let large = if may_restore {
            self.store.restore_large(&side.digest)?
        } else {
            self.store.large(&side.digest)
        };
        let Some(large) = large else {
            let is_stored = self.store.contains(&side.digest);
            return Ok(if is_stored { Placed::AsGood } else { Placed::Missing });
        };
        let name = path.name();
        let temp = dir.temp_name();
        let present = present_kind(dir, name, &large)?;
        let Some(kind) = make(&large, dir, temp.name(), side.kind, &choose(self.links, present))? else {
            return Ok(Placed::AsGood);
        };
        let before = dir.stat(temp.name())?;
        if self.guard.put(temp, path, Some(side))? == Guarded::Kept {
            return Ok(Placed::Edited);
        }
        if kind == LinkKind::Symlink {
            // For a link into the store the index keeps the stat of its target.
            let linked = self.store.large(&side.digest).map(|large| *large.stat());
            return Ok(Placed::Again(kind, linked));
        }
        let key = |stat: FileStat| (stat.inode, stat.mtime, stat.size);
        let stat = dir.stat(name)?.filter(|after| before.map(key) == Some(key(*after)));
        Ok(Placed::Again(kind, stat))
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
    let (Some(stat), stored) = (dir.stat(name)?, large.stat()) else { return Ok(None) };
    let key = |stat: &FileStat| (stat.inode, stat.size, stat.mtime);
    if stat.kind == FileKind::Symlink {
        return Ok(Some(LinkKind::Symlink));
    }
    if stat.links > 1 && key(&stat) == key(stored) {
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
