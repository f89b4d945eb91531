//! Stamps: the stats of all files of a dependency, which tell whether it stayed the same over a run.
//!
//! A digest tells that the content is the same now and then, not that it was the same all the time. A file
//! counts as unchanged only if its size, mtime, ctime and inode are, too. Where only the ctime and the link
//! count moved, another name was given to the same file, such as a stored file that another worktree linked:
//! there the digest decides. The mtime of a folder tells of names that came and went again; it does not count
//! where the names that the scan left out changed as well.
//!
//! A folder may be moved away and back, or one above it, while another takes its place. That moves the ctime
//! of the folder and the mtime of the one above it, and leaves its own mtime. Names that come and go beside
//! the inputs set both times of a folder alike, so that they do not count; a folder that was moved and in
//! which a name came or went after that cannot be told from them.

use std::{cmp::Ordering, collections::BTreeMap};

use crate::{
    error::Result,
    fs::{Entry, FileKind, FileStat, Listing, Root},
    path::RepoPath,
};

/// Stats of everything at and below a path, as of one scan.
#[derive(Clone, Debug)]
pub struct Stamps {
    path: RepoPath,
    stat: FileStat,
    listing: Listing,
    /// Stats of the stored files that links lead to, by the path of the link.
    stored: BTreeMap<RepoPath, FileStat>,
    /// Stats of the folders above, the nearest first, with that of the root.
    above: Vec<FileStat>,
}

/// A file or folder whose stamp moved between two scans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub path: RepoPath,
    pub how: Change,
}

/// Difference of a file or folder between two scans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The topmost new path, with the first file in it; the same path for a file.
    Appeared {
        top: RepoPath,
        is_folder: bool,
    },
    Vanished,
    /// The parts of a file's stat that differ.
    Stat(Vec<&'static str>),
    /// A name in a folder came, went or was replaced.
    Names,
    /// A folder was moved, or its mode changed.
    Place,
}

impl Stamps {
    pub(super) fn new(
        path: RepoPath,
        stat: FileStat,
        listing: Listing,
        stored: BTreeMap<RepoPath, FileStat>,
    ) -> Self {
        Self { path, stat, listing, stored, above: Vec::new() }
    }

    /// Creates the stamps of a single file.
    pub fn of_file(path: RepoPath, stat: FileStat) -> Self {
        Self::new(path, stat, Listing::default(), BTreeMap::new())
    }

    /// Adds the stats of the folders above, see [`stats_above`].
    pub fn with_above(self, above: Vec<FileStat>) -> Self {
        Self { above, ..self }
    }

    /// Returns the first file that differs in a later scan of the same path, or else the first folder.
    pub fn moved(&self, later: &Self) -> Option<Moved> {
        let mut folder = None;
        let (old, new) = (self.entry(), later.entry());
        let parents = self.above.first().zip(later.above.first());
        let file = compare(&self.path, &old, &new, parents, &mut folder);
        let stored = || {
            let (path, new) = later.stored.iter().find(|(path, new)| {
                self.stored.get(path).is_some_and(|old| !differences(old, new).is_empty())
            })?;
            Some(Moved { path: path.clone(), how: Change::Stat(differences(&self.stored[path], new)) })
        };
        file.or_else(stored).or(folder).or_else(|| self.moved_above(later))
    }

    /// Returns the first folder above that was moved.
    fn moved_above(&self, later: &Self) -> Option<Moved> {
        let mut pairs = self.above.iter().zip(&later.above).peekable();
        for folder in self.path.ancestors().skip(1) {
            let (old, new) = pairs.next()?;
            // That of the root says nothing: the root is open all the time.
            let above = *pairs.peek()?;
            if was_moved(old, new, Some(above)) {
                return Some(Moved { path: folder, how: Change::Place });
            }
        }
        None
    }

    /// Returns what the scan listed below the path.
    pub(super) fn listing(&self) -> &Listing {
        &self.listing
    }

    fn entry(&self) -> Entry<'_> {
        Entry { name: self.path.name(), stat: self.stat, children: &self.listing }
    }
}

/// Returns the stats of the folders above a path, the nearest first, up to the root.
pub fn stats_above(files: &Root, path: &RepoPath) -> Result<Vec<FileStat>> {
    let stats = path.ancestors().skip(1).map(|folder| files.stat(&folder));
    Ok(stats.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Returns true if a folder was moved away and back, or replaced. `parents` are the stats of the one above.
fn was_moved(old: &FileStat, new: &FileStat, parents: Option<(&FileStat, &FileStat)>) -> bool {
    // Programs such as `tar` set the mtime of a folder to an earlier time, which moves the ctime as well.
    let own_mtime = new.mtime == old.mtime || new.mtime > old.ctime;
    let is_renamed = new.ctime != old.ctime && new.ctime > new.mtime && own_mtime;
    old.inode != new.inode || is_renamed && parents.is_none_or(|(old, new)| old.mtime != new.mtime)
}

/// Returns the parts of a file's stat that differ.
fn differences(old: &FileStat, new: &FileStat) -> Vec<&'static str> {
    let mut parts = Vec::new();
    let mut compare = |name, differs: bool| parts.extend(differs.then_some(name));
    compare("kind", (old.kind, old.executable) != (new.kind, new.executable));
    compare("size", old.size != new.size);
    compare("mtime", old.mtime != new.mtime);
    compare("inode", old.inode != new.inode);
    compare("ctime", old.ctime != new.ctime);
    if parts == ["ctime"] && old.links != new.links { Vec::new() } else { parts }
}

/// Compares one entry with everything below it; remembers the first folder whose names changed.
fn compare(
    path: &RepoPath,
    old: &Entry<'_>,
    new: &Entry<'_>,
    parents: Option<(&FileStat, &FileStat)>,
    folder: &mut Option<Moved>,
) -> Option<Moved> {
    if (old.stat.kind, new.stat.kind) != (FileKind::Folder, FileKind::Folder) {
        let parts = differences(&old.stat, &new.stat);
        return (!parts.is_empty()).then(|| Moved { path: path.clone(), how: Change::Stat(parts) });
    }
    let is_excused = old.children.omitted() != new.children.omitted();
    if old.stat.mtime != new.stat.mtime && !is_excused && folder.is_none() {
        *folder = Some(Moved { path: path.clone(), how: Change::Names });
    }
    if folder.is_none() && was_moved(&old.stat, &new.stat, parents) {
        *folder = Some(Moved { path: path.clone(), how: Change::Place });
    }
    let stats = (&old.stat, &new.stat);
    let (mut olds, mut news) = (old.children.iter().peekable(), new.children.iter().peekable());
    loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.name.cmp(new.name),
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        let moved = match (old, new) {
            (Some(old), Some(new)) if is_same(&old, &new) => None,
            (Some(old), Some(new)) => compare(&path.join(old.name).ok()?, &old, &new, Some(stats), folder),
            (Some(old), None) => Some(Moved { path: path.join(old.name).ok()?, how: Change::Vanished }),
            (None, new) => appeared(path, &new?),
        };
        if moved.is_some() {
            return moved;
        }
    }
}

/// Returns true for an unchanged file, without building its path.
fn is_same(old: &Entry<'_>, new: &Entry<'_>) -> bool {
    old.stat.kind != FileKind::Folder && old.stat == new.stat
}

fn appeared(folder: &RepoPath, new: &Entry<'_>) -> Option<Moved> {
    let top = folder.join(new.name).ok()?;
    let is_folder = new.stat.kind == FileKind::Folder;
    let mut path = top.clone();
    let mut children = new.children;
    while let Some(first) = children.iter().next() {
        path = path.join(first.name).ok()?;
        children = first.children;
    }
    Some(Moved { path, how: Change::Appeared { top, is_folder } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{NoFilter, Root, Sync};

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    /// A folder `d` with the files `a` and `s/b`, and its stamps at any moment.
    struct Folder(#[expect(dead_code, reason = "the folder is deleted with it")] tempfile::TempDir, Root);

    impl Folder {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let root = Root::open(temp.path()).unwrap();
            for file in ["d/a", "d/s/b"] {
                root.write(&path(file), b"1", Sync::Later).unwrap();
            }
            Self(temp, root)
        }

        fn stamps(&self) -> Stamps {
            let stat = self.1.stat(&path("d")).unwrap().unwrap();
            Stamps::new(path("d"), stat, self.1.entries(&path("d"), &NoFilter).unwrap(), BTreeMap::new())
        }

        /// Returns the stamps with one change, as if the clock had moved.
        fn changed(&self, change: impl Fn(&mut FileStat)) -> Stamps {
            let mut stamps = self.stamps();
            let mut listing = Listing::default();
            for entry in stamps.listing.iter() {
                let mut stat = entry.stat;
                if entry.name == b"a" {
                    change(&mut stat);
                }
                listing.push(entry.name, &stat, entry.children.clone());
            }
            stamps.listing = listing;
            stamps
        }
    }

    #[test]
    fn each_part_of_a_stat_counts() {
        let folder = Folder::new();
        let before = folder.stamps();
        assert_eq!(before.moved(&folder.stamps()), None);
        let moved = |change: fn(&mut FileStat)| before.moved(&folder.changed(change));
        let stat =
            |parts: &[&'static str]| Some(Moved { path: path("d/a"), how: Change::Stat(parts.to_vec()) });
        assert_eq!(moved(|stat| stat.size += 1), stat(&["size"]));
        assert_eq!(moved(|stat| stat.mtime += 1), stat(&["mtime"]));
        assert_eq!(moved(|stat| stat.inode += 1), stat(&["inode"]));
        assert_eq!(moved(|stat| stat.ctime += 1), stat(&["ctime"]));
        assert_eq!(moved(|stat| stat.kind = FileKind::Symlink), stat(&["kind"]));
    }

    #[test]
    fn a_ctime_that_moved_with_the_link_count_alone_does_not_count() {
        let folder = Folder::new();
        let before = folder.stamps();
        let linked = |stat: &mut FileStat| (stat.ctime, stat.links) = (stat.ctime + 1, stat.links + 1);
        assert_eq!(before.moved(&folder.changed(linked)), None);
        let written = folder.changed(|stat| {
            linked(stat);
            stat.mtime += 1;
        });
        assert!(before.moved(&written).is_some());
    }

    #[test]
    fn names_that_come_and_go_are_found() {
        let folder = Folder::new();
        let before = folder.stamps();
        folder.1.write(&path("d/n/x/y"), b"", Sync::Later).unwrap();
        let how = Change::Appeared { top: path("d/n"), is_folder: true };
        assert_eq!(before.moved(&folder.stamps()), Some(Moved { path: path("d/n/x/y"), how }));
        folder.1.remove(&path("d/n")).unwrap();
        let mut came_and_went = folder.stamps();
        came_and_went.stat.mtime = before.stat.mtime + 1;
        assert_eq!(before.moved(&came_and_went), Some(Moved { path: path("d"), how: Change::Names }));
        folder.1.remove(&path("d/s/b")).unwrap();
        let how = Change::Vanished;
        assert_eq!(before.moved(&folder.stamps()), Some(Moved { path: path("d/s/b"), how }));
    }

    #[test]
    fn the_mtime_of_a_folder_in_which_names_are_left_out_does_not_count() {
        let folder = Folder::new();
        let before = folder.stamps();
        // Walks leave out the temporary files of mlx.
        folder.1.write(&path("d/.mlx-tmp-1-0-0"), b"", Sync::Later).unwrap();
        let mut after = folder.stamps();
        let now = before.stat.ctime + 1;
        (after.stat.mtime, after.stat.ctime) = (now, now);
        assert_eq!(before.moved(&after), None);
        // Another file of the same name.
        let once_more = folder.stamps();
        folder.1.write(&path("d/.mlx-tmp-1-0-0"), b"", Sync::Later).unwrap();
        assert_ne!(once_more.listing.omitted(), folder.stamps().listing.omitted());
        assert_eq!(after.listing.omitted(), once_more.listing.omitted());
    }

    #[test]
    fn a_folder_above_that_was_moved_is_found() {
        let stat = FileStat { mtime: 1, ctime: 1, ..Folder::new().stamps().stat };
        let stamps = |d: i64, root: i64| {
            let above = [FileStat { ctime: d, ..stat }, FileStat { mtime: root, ..stat }];
            Stamps::of_file(path("d/a"), stat).with_above(above.to_vec())
        };
        assert_eq!(stamps(1, 1).moved(&stamps(1, 2)), None);
        assert_eq!(stamps(1, 1).moved(&stamps(2, 1)), None);
        let place = Moved { path: path("d"), how: Change::Place };
        assert_eq!(stamps(1, 1).moved(&stamps(2, 2)), Some(place));
    }

    #[test]
    fn the_times_of_a_folder_tell_moves_from_other_changes() {
        let stat = Folder::new().stamps().stat;
        let old = FileStat { mtime: 100, ctime: 110, ..stat };
        let parent = FileStat { mtime: 100, ctime: 100, ..stat };
        let written = FileStat { mtime: 190, ctime: 190, ..stat };
        let moved = |mtime, ctime| {
            let new = FileStat { mtime, ctime, ..old };
            [parent, written].map(|new_parent| was_moved(&old, &new, Some((&parent, &new_parent))))
        };
        assert_eq!(moved(100, 110), [false, false], "nothing happened");
        assert_eq!(moved(150, 150), [false, false], "a name came or went");
        assert_eq!(moved(50, 150), [false, false], "a program set the mtime");
        assert_eq!(moved(100, 150), [false, true], "renamed, or its mode changed");
        assert_eq!(moved(150, 180), [false, true], "a name came before that");
        let replaced = FileStat { inode: old.inode + 1, ..old };
        assert!(was_moved(&old, &replaced, Some((&parent, &parent))));
    }

    #[test]
    fn a_stored_file_behind_a_link_counts() {
        let folder = Folder::new();
        let mut before = folder.stamps();
        let stat = before.stat;
        before.stored.insert(path("d/link"), stat);
        let mut after = before.clone();
        assert_eq!(before.moved(&after), None);
        after.stored.insert(path("d/link"), FileStat { mtime: stat.mtime + 1, ..stat });
        let how = Change::Stat(vec!["mtime"]);
        assert_eq!(before.moved(&after), Some(Moved { path: path("d/link"), how }));
    }
}
