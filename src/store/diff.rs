//! Compares two stored folders. The cost depends on the size of the difference: equal pages and folders are
//! not read.

use std::collections::{BTreeMap, HashSet};

use crate::{
    digest::Digest,
    error::Result,
    path::RepoPath,
    store::{
        EntryKind, Page, Store, TreeEntry,
        folder::{misplaced_page, read_leaf, read_page},
    },
};

/// One side of a difference. Packed, since a checkout may keep millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(Rust, packed)]
pub struct DiffSide {
    pub kind: EntryKind,
    pub digest: Digest,
    pub size: u64,
}

/// A path whose content differs between two trees; empty folders count as paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub path: RepoPath,
    pub old: Option<DiffSide>,
    pub new: Option<DiffSide>,
}

impl From<&TreeEntry> for DiffSide {
    fn from(entry: &TreeEntry) -> Self {
        Self { kind: entry.kind, digest: entry.digest, size: entry.size }
    }
}

/// Compares two folders and returns the differing paths, prefixed by `at`; equal subtrees and pages are not
/// read.
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
    for (name, (old, new)) in changed_entries(store, old, new)? {
        compare_entry(store, &at.join(&name)?, old.as_ref(), new.as_ref(), found)?;
    }
    Ok(())
}

/// Names of a folder with their old and new entries, which differ.
pub type ChangedEntries = BTreeMap<Box<[u8]>, (Option<TreeEntry>, Option<TreeEntry>)>;

/// Compares two folders by name, without descending; equal pages are not read.
pub fn changed_entries(store: &Store, old: Option<&Digest>, new: Option<&Digest>) -> Result<ChangedEntries> {
    let (before, after) = differing_leaves(store, old, new)?;
    let mut names = ChangedEntries::new();
    for entry in rows(store, &before)? {
        let slot = &mut names.entry(entry.name.clone()).or_default().0;
        *slot = Some(entry);
    }
    for entry in rows(store, &after)? {
        let slot = &mut names.entry(entry.name.clone()).or_default().1;
        *slot = Some(entry);
    }
    names.retain(|_, (old, new)| old != new);
    Ok(names)
}

/// Returns the rows of some leaves, in order.
fn rows(store: &Store, leaves: &[PageRef]) -> Result<Vec<TreeEntry>> {
    let rows = leaves.iter().map(|it| read_leaf(store, &it.digest)).collect::<Result<Vec<_>>>()?;
    Ok(rows.into_iter().flatten().collect())
}

/// Reference to a page of a folder that has not been read yet.
#[derive(Clone, Copy, PartialEq, Eq)]
struct PageRef {
    level: u8,
    digest: Digest,
}

/// Returns the leaves that only one of the two folders has. Working from the top down, a page that both have
/// is left out with everything below it.
fn differing_leaves(
    store: &Store,
    old: Option<&Digest>,
    new: Option<&Digest>,
) -> Result<(Vec<PageRef>, Vec<PageRef>)> {
    let mut sides =
        [root_page(store, old.filter(|_| old != new))?, root_page(store, new.filter(|_| old != new))?];
    loop {
        let [before, after] =
            sides.each_ref().map(|side| side.iter().map(|page| page.digest).collect::<HashSet<_>>());
        sides[0].retain(|it| !after.contains(&it.digest));
        sides[1].retain(|it| !before.contains(&it.digest));
        let highest = sides.iter().flatten().map(|it| it.level).max().unwrap_or(0);
        if highest == 0 {
            return Ok(sides.into());
        }
        for side in &mut sides {
            let parts =
                side.iter().map(|page| children(store, *page, highest)).collect::<Result<Vec<_>>>()?;
            *side = parts.into_iter().flatten().collect();
        }
    }
}

/// Returns the top page of a folder.
fn root_page(store: &Store, tree: Option<&Digest>) -> Result<Vec<PageRef>> {
    let Some(&digest) = tree else { return Ok(Vec::new()) };
    Ok(vec![match read_page(store, &digest)? {
        Page::Leaf(_) => PageRef { level: 0, digest },
        Page::Branch(level, _) => PageRef { level, digest },
    }])
}

/// Returns the pages below a page of this level; a page of another level is returned as it is.
fn children(store: &Store, part: PageRef, level: u8) -> Result<Vec<PageRef>> {
    if part.level != level {
        return Ok(vec![part]);
    }
    match read_page(store, &part.digest)? {
        Page::Branch(own, rows) if own == level => {
            Ok(rows.into_iter().map(|it| PageRef { level: level - 1, digest: it.digest }).collect())
        }
        _ => Err(misplaced_page(&part.digest)),
    }
}

fn compare_entry(
    store: &Store,
    path: &RepoPath,
    old: Option<&TreeEntry>,
    new: Option<&TreeEntry>,
    found: &mut Vec<Difference>,
) -> Result<()> {
    let is_folder = |entry: &&TreeEntry| entry.kind == EntryKind::Folder;
    let folder = |entry: Option<&TreeEntry>| entry.filter(is_folder).map(|it| it.digest);
    let is_leaf = |entry: &&TreeEntry| entry.kind != EntryKind::Folder || entry.files == 0;
    let leaf = |entry: Option<&TreeEntry>| entry.filter(is_leaf).map(DiffSide::from);
    let (old_folder, new_folder) = (folder(old), folder(new));
    if leaf(old).is_some() || leaf(new).is_some() {
        let difference = Difference { path: path.clone(), old: leaf(old), new: leaf(new) };
        let emptied = |side: Option<DiffSide>| side.is_some_and(|it| it.kind == EntryKind::Folder);
        // A folder that gained or lost its files is reported by its files.
        if !(emptied(difference.old) && new_folder.is_some()
            || emptied(difference.new) && old_folder.is_some())
        {
            found.push(difference);
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

    /// Counts the pages that are read to find `changes` in a folder of `size` names.
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
    fn the_number_of_pages_read_depends_on_the_changes_only() {
        // On each side: the top page twice (for its level, then for its rows), and the leaf.
        assert_eq!([5_000, 50_000].map(|size| reads(size, &[77])), [6, 6]);
        let counts = [5_000, 50_000].map(|size| reads(size, &[77, 2_000, 4_444]));
        assert!(counts.iter().all(|&it| it <= 10), "{counts:?}");
        assert_eq!(reads(5_000, &[]), 0);
    }

    proptest! {
        #[test]
        fn all_differences_are_found_and_nothing_else(
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
                names.get(&it).map(|&seed| DiffSide::from(&entry(it, seed)))
            };
            prop_assert_eq!(found.len(), expected.len());
            for (one, name) in found.iter().zip(expected) {
                prop_assert_eq!((one.old, one.new), (side(&old, name), side(&new, name)));
            }
        }
    }
}
