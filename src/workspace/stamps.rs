//! Stamps: the stats of all files of a dependency, which tell whether it stayed the same over a run.
//!
//! A digest tells that the content is the same now and then, not that it was the same all the time. A file
//! counts as unchanged only if its size, mtime, ctime and inode are, too. Where only the ctime and the link
//! count moved, another name was given to the same file, such as a stored file that another worktree linked:
//! there the digest decides. The mtime of a folder tells of names that came and went again; it does not count
//! where the names that the scan left out changed as well.

use std::{cmp::Ordering, collections::BTreeMap};

use crate::{
    fs::{Entry, FileKind, FileStat, Listing},
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
}

/// A file or folder whose stamp moved between two scans.
#[derive(Debug, PartialEq, Eq)]
pub struct Moved {
    pub path: RepoPath,
    pub how: Change,
}

/// Difference of a file or folder between two scans.
#[derive(Debug, PartialEq, Eq)]
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
}

impl Stamps {
    pub(super) fn new(
        path: RepoPath,
        stat: FileStat,
        listing: Listing,
        stored: BTreeMap<RepoPath, FileStat>,
    ) -> Self {
        Self { path, stat, listing, stored }
    }

    /// Creates the stamps of a single file.
    pub fn of_file(path: RepoPath, stat: FileStat) -> Self {
        Self::new(path, stat, Listing::default(), BTreeMap::new())
    }

    /// Returns the first file that differs in a later scan of the same path, or else the first folder.
    pub fn moved(&self, later: &Self) -> Option<Moved> {
        let mut folder = None;
        let (old, new) = (self.entry(), later.entry());
        let file = compare(&self.path, &old, &new, &mut folder);
        let stored = || {
            let (path, new) = later.stored.iter().find(|(path, new)| {
                self.stored.get(path).is_some_and(|old| !differences(old, new).is_empty())
            })?;
            Some(Moved { path: path.clone(), how: Change::Stat(differences(&self.stored[path], new)) })
        };
        file.or_else(stored).or(folder)
    }

    fn entry(&self) -> Entry<'_> {
        Entry { name: self.path.name(), stat: self.stat, children: &self.listing }
    }
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
fn compare(path: &RepoPath, old: &Entry<'_>, new: &Entry<'_>, folder: &mut Option<Moved>) -> Option<Moved> {
    if (old.stat.kind, new.stat.kind) != (FileKind::Folder, FileKind::Folder) {
        let parts = differences(&old.stat, &new.stat);
        return (!parts.is_empty()).then(|| Moved { path: path.clone(), how: Change::Stat(parts) });
    }
    let is_excused = old.children.omitted() != new.children.omitted();
    if old.stat.mtime != new.stat.mtime && !is_excused && folder.is_none() {
        *folder = Some(Moved { path: path.clone(), how: Change::Names });
    }
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
            (Some(old), Some(new)) => compare(&path.join(old.name).ok()?, &old, &new, folder),
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
        after.stat.mtime = before.stat.mtime + 1;
        assert_eq!(before.moved(&after), None);
        // Another file of the same name.
        let once_more = folder.stamps();
        folder.1.write(&path("d/.mlx-tmp-1-0-0"), b"", Sync::Later).unwrap();
        assert_ne!(once_more.listing.omitted(), folder.stamps().listing.omitted());
        assert_eq!(after.listing.omitted(), once_more.listing.omitted());
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
