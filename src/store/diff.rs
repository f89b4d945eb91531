//! What differs between two stored folders: cost follows the difference, since pages and folders that are equal are not
//! read.

use std::collections::{BTreeMap, HashSet};

use crate::{
    digest::Digest,
    error::Result,
    path::RepoPath,
    store::{
        EntryKind, Page, Store, TreeEntry,
        folder::{leaf, out_of_place, page},
    },
};

/// One side of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    pub kind: EntryKind,
    pub digest: Digest,
    pub size: u64,
}

/// A path whose content differs between two trees; empty folders count as paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub path: RepoPath,
    pub old: Option<Side>,
    pub new: Option<Side>,
}

impl From<&TreeEntry> for Side {
    fn from(entry: &TreeEntry) -> Self {
        Self { kind: entry.kind, digest: entry.digest, size: entry.size }
    }
}

/// What differs between two folders, by path below `at`; equal subtrees and pages are not read.
pub fn diff(
    store: &Store,
    at: &RepoPath,
    old: Option<&Digest>,
    new: Option<&Digest>,
) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    compare(store, at, old, new, &mut found)?;
    Ok(found)
}

fn compare(
    store: &Store,
    at: &RepoPath,
    old: Option<&Digest>,
    new: Option<&Digest>,
    found: &mut Vec<Difference>,
) -> Result<()> {
    let (before, after) = pages_apart(store, old, new)?;
    let mut names: BTreeMap<Box<[u8]>, (Option<TreeEntry>, Option<TreeEntry>)> = BTreeMap::new();
    for entry in rows(store, &before)? {
        let slot = &mut names.entry(entry.name.clone()).or_default().0;
        *slot = Some(entry);
    }
    for entry in rows(store, &after)? {
        let slot = &mut names.entry(entry.name.clone()).or_default().1;
        *slot = Some(entry);
    }
    for (name, (old, new)) in names {
        if old != new {
            compare_entry(store, &at.join(&name)?, old.as_ref(), new.as_ref(), found)?;
        }
    }
    Ok(())
}

/// Rows of leaves, in order.
fn rows(store: &Store, leaves: &[Part]) -> Result<Vec<TreeEntry>> {
    let rows = leaves.iter().map(|it| leaf(store, &it.digest)).collect::<Result<Vec<_>>>()?;
    Ok(rows.into_iter().flatten().collect())
}

/// A page of a folder, not read yet.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part {
    level: u8,
    digest: Digest,
}

/// The leaves that one of two folders has and the other has not: from above, each page that both have is left out
/// with all that is below it.
fn pages_apart(store: &Store, old: Option<&Digest>, new: Option<&Digest>) -> Result<(Vec<Part>, Vec<Part>)> {
    let mut sides = [top(store, old.filter(|_| old != new))?, top(store, new.filter(|_| old != new))?];
    loop {
        let [before, after] =
            sides.each_ref().map(|it| it.iter().map(|it| it.digest).collect::<HashSet<_>>());
        sides[0].retain(|it| !after.contains(&it.digest));
        sides[1].retain(|it| !before.contains(&it.digest));
        let highest = sides.iter().flatten().map(|it| it.level).max().unwrap_or(0);
        if highest == 0 {
            return Ok(sides.into());
        }
        for side in &mut sides {
            let parts = side.iter().map(|it| below(store, *it, highest)).collect::<Result<Vec<_>>>()?;
            *side = parts.into_iter().flatten().collect();
        }
    }
}

/// The page that stands for a folder.
fn top(store: &Store, tree: Option<&Digest>) -> Result<Vec<Part>> {
    let Some(&digest) = tree else { return Ok(Vec::new()) };
    Ok(vec![match page(store, &digest)? {
        Page::Leaf(_) => Part { level: 0, digest },
        Page::Branch(level, _) => Part { level, digest },
    }])
}

/// The pages below one of this level; one of another level stays as it is.
fn below(store: &Store, part: Part, level: u8) -> Result<Vec<Part>> {
    if part.level != level {
        return Ok(vec![part]);
    }
    match page(store, &part.digest)? {
        Page::Branch(own, rows) if own == level => {
            Ok(rows.into_iter().map(|it| Part { level: level - 1, digest: it.digest }).collect())
        }
        _ => Err(out_of_place(&part.digest)),
    }
}

fn compare_entry(
    store: &Store,
    path: &RepoPath,
    old: Option<&TreeEntry>,
    new: Option<&TreeEntry>,
    found: &mut Vec<Difference>,
) -> Result<()> {
    let folder = |it: Option<&TreeEntry>| it.filter(|it| it.kind == EntryKind::Folder).map(|it| it.digest);
    let leaf = |it: Option<&TreeEntry>| {
        it.filter(|it| it.kind != EntryKind::Folder || it.files == 0).map(Side::from)
    };
    let (old_folder, new_folder) = (folder(old), folder(new));
    if leaf(old).is_some() || leaf(new).is_some() {
        let one = Difference { path: path.clone(), old: leaf(old), new: leaf(new) };
        let emptied = |it: Option<Side>| it.is_some_and(|it| it.kind == EntryKind::Folder);
        // A folder that gained or lost its files is told by its files.
        if !(emptied(one.old) && new_folder.is_some() || emptied(one.new) && old_folder.is_some()) {
            found.push(one);
        }
    }
    if old_folder.is_some() || new_folder.is_some() {
        compare(store, path, old_folder.as_ref(), new_folder.as_ref(), found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        fs::Root,
        store::{Writer, put_folder},
    };

    fn entry(name: usize, seed: u64) -> TreeEntry {
        let digest = Digest::of(&seed.to_le_bytes());
        TreeEntry {
            name: format!("f{name:06}").into_bytes().into(),
            kind: EntryKind::File,
            size: seed % 1000,
            files: 1,
            digest,
        }
    }

    fn put(store: &Store, entries: &[TreeEntry]) -> Digest {
        let mut writer = Writer::new(store);
        let content = put_folder(entries, Some(&mut writer)).unwrap();
        writer.finish().unwrap();
        content.digest
    }

    /// Pages of a folder of `size` names that are read to find `changes`.
    fn reads(size: usize, changes: &[usize]) -> u64 {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        let mut entries: Vec<_> = (0..size).map(|it| entry(it, it as u64)).collect();
        let old = put(&store, &entries);
        changes.iter().for_each(|&it| entries[it] = entry(it, u64::MAX));
        let new = put(&store, &entries);
        let before = store.reads();
        let found = diff(&store, &RepoPath::root(), Some(&old), Some(&new)).unwrap();
        let names: Vec<_> = found.iter().map(|it| it.path.name().to_vec()).collect();
        assert_eq!(names, changes.iter().map(|&it| entries[it].name.to_vec()).collect::<Vec<_>>());
        store.reads() - before
    }

    #[test]
    fn pages_are_read_for_what_changed_and_not_for_what_is_there() {
        // On each side: the top, twice (for its level, then for its rows), and the leaf.
        assert_eq!([5_000, 50_000].map(|size| reads(size, &[77])), [6, 6]);
        let few = [5_000, 50_000].map(|size| reads(size, &[77, 2_000, 4_444]));
        assert!(few.iter().all(|&it| it <= 10), "{few:?}");
        assert_eq!(reads(5_000, &[]), 0);
    }

    proptest! {
        #[test]
        fn it_finds_what_differs_and_nothing_else(
            old: BTreeMap<u16, u64>, new: BTreeMap<u16, u64>, many in 0..3_000_usize
        ) {
            let temp = tempfile::tempdir().unwrap();
            let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
            let both = |own: &BTreeMap<u16, u64>| {
                let mut names: BTreeMap<usize, u64> = (0..many).map(|it| (it * 7, 5)).collect();
                names.extend(own.iter().map(|(&name, &seed)| (usize::from(name), seed)));
                names
            };
            let (old, new) = (both(&old), both(&new));
            let tree = |names: &BTreeMap<usize, u64>| {
                put(&store, &names.iter().map(|(&name, &seed)| entry(name, seed)).collect::<Vec<_>>())
            };
            let found = diff(&store, &RepoPath::root(), Some(&tree(&old)), Some(&tree(&new))).unwrap();
            let names: HashSet<usize> = old.keys().chain(new.keys()).copied().collect();
            let mut expected: Vec<_> = names.into_iter().filter(|it| old.get(it) != new.get(it)).collect();
            expected.sort_unstable();
            let side = |names: &BTreeMap<usize, u64>, it: usize| {
                names.get(&it).map(|&seed| Side::from(&entry(it, seed)))
            };
            prop_assert_eq!(found.len(), expected.len());
            for (one, name) in found.iter().zip(expected) {
                prop_assert_eq!((one.old, one.new), (side(&old, name), side(&new, name)));
            }
        }
    }
}
