//! Three-way merge of tracked paths: my changes since a base, made to the recorded tree.
//!
//! [`merge`] is a pure function on three trees. *Base* is what a workspace last had, *mine* what it has now,
//! *theirs* what is recorded, which others may have changed meanwhile:
//!
//! | mine against base | theirs against base | result |
//! |-------------------|---------------------|--------|
//! | same              | any                 | theirs |
//! | changed           | same                | mine   |
//! | changed           | changed alike       | either |
//! | changed           | changed otherwise   | folders: by name; anything else: a conflict |
//!
//! The module `base` resolves the conflict of a file where theirs is a version that base was made from.
//!
//! A missing path is a value like any other, so that a file counts as deleted here only if the base has it. A
//! checkout that was killed leaves each path as either of two trees had it: a base then has both, and a path
//! is unchanged if it is as one of them. The result is a list of changes to *theirs*, which
//! `store::update_folder` applies. The cost follows the differences: equal folders and pages are not read.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
    path::RepoPath,
    pointer::{Content, ContentKind},
    store::{
        ChangedEntries, EntryKind, Store, TreeEntry, Writer, changed_entries, entries, entry_at,
        update_folder,
    },
    workspace::{
        Node,
        named_paths::{MAX_NAMED, NamedPaths},
    },
};

/// State that a workspace last had a path in.
#[derive(Clone, Debug)]
pub struct Base {
    /// Contents, of which each path below has one; `None` where nothing existed.
    pub contents: Vec<Option<TreeEntry>>,
    /// False if files may have been here that the base does not list: in a clone of an older mlx, or if the
    /// file with the bases is lost. An unlisted file that differs from the recorded one then counts as an
    /// edit of it, instead of as a second file of that name.
    pub complete: bool,
}

/// The workspace's side of a merge.
#[derive(Clone)]
pub enum Mine<'n> {
    Absent,
    Stored(TreeEntry),
    Scanned(&'n Node),
}

/// Changes to the recorded tree, and the differences that remain between the result and the workspace.
#[derive(Debug, Default)]
pub struct Merge {
    /// New entries by path; `None` removes one.
    pub changes: BTreeMap<RepoPath, Option<TreeEntry>>,
    /// Paths that both sides changed in different ways. With any of them, the changes must not be applied.
    pub conflicts: Vec<RepoPath>,
    /// Those of them that the recorded tree has not any more.
    pub removed: BTreeSet<RepoPath>,
    /// Recorded paths that are not in the workspace.
    pub absent: NamedPaths,
    /// Paths whose record differs from the workspace, which has them as the base does.
    pub outdated: NamedPaths,
    /// Paths that are not recorded any more, and are here as the base has them.
    pub dropped: NamedPaths,
}

impl Base {
    /// Returns the base of a path that nothing is known about.
    pub fn unknown() -> Self {
        Self { contents: vec![None], complete: false }
    }

    /// Returns true if this content is all that is known to have been here.
    pub fn is_only(&self, content: &TreeEntry) -> bool {
        self.complete && self.contents.iter().all(|base| is_same(base.as_ref(), Some(content)))
    }

    /// Returns the base of the path `below` in this one.
    pub fn at(&self, store: &Store, below: &RepoPath) -> Result<Self> {
        let within = |content: &Option<TreeEntry>| match content {
            Some(folder) if !below.is_root() && folder.kind == EntryKind::Folder => {
                entry_at(store, &folder.digest, below)
            }
            Some(_) if !below.is_root() => Ok(None),
            content => Ok(content.clone()),
        };
        let contents = self.contents.iter().map(within).collect::<Result<Vec<_>>>()?;
        Ok(Self { contents, complete: self.complete })
    }
}

impl Mine<'_> {
    pub(super) fn entry(&self) -> Option<TreeEntry> {
        match self {
            Self::Absent => None,
            Self::Stored(entry) => Some(entry.clone()),
            Self::Scanned(node) => Some(node.entry()),
        }
    }

    /// Returns the entry of this name in a folder; `entry` is it as a tree entry.
    fn child(&self, name: &[u8], entry: Option<TreeEntry>) -> Self {
        match self {
            Self::Scanned(node) => {
                let children = node.children();
                let found = children.binary_search_by(|child| child.name[..].cmp(name));
                found.map_or(Self::Absent, |at| Self::Scanned(&children[at]))
            }
            _ => entry.map_or(Self::Absent, Self::Stored),
        }
    }

    /// Returns the names whose entries in the stored folder `old` differ from those in this folder. Anything
    /// that is not a folder counts as an empty one.
    fn changed_from(&self, store: &Store, old: Option<Digest>) -> Result<ChangedEntries> {
        match self {
            Self::Scanned(node) => changed_children(store, old, node),
            Self::Stored(entry) => changed_entries(store, old.as_ref(), folder(Some(entry)).as_ref()),
            Self::Absent => changed_entries(store, old.as_ref(), None),
        }
    }
}

impl Merge {
    /// Returns true if the result is what the workspace has.
    pub fn is_here(&self) -> bool {
        let kept = [&self.absent, &self.outdated, &self.dropped];
        kept.iter().all(|paths| paths.is_empty()) && self.conflicts.is_empty()
    }

    /// Refuses a merge with conflicts in the tracked path `top`, naming them.
    pub fn check(&self, top: &RepoPath) -> Result<()> {
        let Some(first) = self.conflicts.first() else { return Ok(()) };
        let full = |path: &RepoPath| top.join_path(path).unwrap_or_else(|_| top.clone());
        let named: Vec<_> =
            self.conflicts.iter().take(MAX_NAMED).map(|path| format!("`{}`", full(path))).collect();
        let more = self.conflicts.len() - named.len();
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let message = format!(
            "both you and others changed this since your last checkout of `{top}`: {}{more}",
            named.join(", ")
        );
        let path = full(first);
        Err(Error::new(Kind::Conflict, message).hint(if self.removed.contains(first) {
            format!(
                "others removed it: move your version aside and run `mlx add {top}`; to keep it, move it \
                 back then and add it again"
            )
        } else {
            format!(
                "move your version aside, get the recorded one with `mlx checkout {path}` (`mlx pull {path}` \
                 if it is not stored here), combine them, and try again"
            )
        }))
    }

    /// Adds the merge of another part of the same tracked path.
    pub fn extend(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.conflicts.extend(other.conflicts);
        self.removed.extend(other.removed);
        self.absent.extend(other.absent);
        self.outdated.extend(other.outdated);
        self.dropped.extend(other.dropped);
    }

    /// Applies the changes to the recorded content `theirs`; with a writer, stores the pages of the result.
    pub fn apply(&self, writer: Option<&mut Writer<'_>>, store: &Store, theirs: &Content) -> Result<Content> {
        if let Some(Some(whole)) = self.changes.get(&RepoPath::root()) {
            return Ok(whole.content());
        }
        if self.changes.is_empty() {
            return Ok(*theirs);
        }
        let tree = (theirs.kind == ContentKind::Tree).then_some(&theirs.digest);
        update_folder(writer, store, tree, &self.changes)
    }
}

/// Merges the workspace's change of one path since `base` into `theirs`, the recorded entry. `at` is the path
/// in the tracked folder, which the paths of the result begin with; the root for the tracked path itself.
pub fn merge(
    store: &Store,
    at: &RepoPath,
    base: &Base,
    mine: &Mine<'_>,
    theirs: Option<&TreeEntry>,
) -> Result<Merge> {
    let mut merger = Merger { store, complete: base.complete, done: Merge::default() };
    merger.merge_entry(at, &base.contents, mine, theirs)?;
    Ok(merger.done)
}

struct Merger<'s> {
    store: &'s Store,
    complete: bool,
    done: Merge,
}

impl Merger<'_> {
    fn merge_entry(
        &mut self,
        path: &RepoPath,
        bases: &[Option<TreeEntry>],
        mine: &Mine<'_>,
        theirs: Option<&TreeEntry>,
    ) -> Result<()> {
        let own = mine.entry();
        if is_same(own.as_ref(), theirs) {
            return Ok(());
        }
        if bases.iter().any(|base| is_same(base.as_ref(), own.as_ref())) {
            self.keep_theirs(path, own.as_ref(), theirs);
            return Ok(());
        }
        let is_folder = |side: Option<&TreeEntry>| side.is_some_and(|side| side.kind == EntryKind::Folder);
        let (mine_folder, theirs_folder) = (is_folder(own.as_ref()), is_folder(theirs));
        // With several bases, a folder that equals one of them may hold paths that only another one has.
        let base_folder = bases.iter().any(|base| is_folder(base.as_ref()));
        let decided = bases.len() == 1 || !(mine_folder || theirs_folder || base_folder);
        if decided && bases.iter().any(|base| is_same(base.as_ref(), theirs)) {
            self.done.changes.insert(path.clone(), own);
            return Ok(());
        }
        if (mine_folder || own.is_none()) && (theirs_folder || theirs.is_none()) {
            return self.merge_children(path, bases, mine, theirs);
        }
        let unlisted = !self.complete && bases.iter().all(Option::is_none);
        if unlisted && !mine_folder && !theirs_folder {
            self.done.changes.insert(path.clone(), own);
        } else {
            self.done.conflicts.push(path.clone());
            self.done.removed.extend(theirs.is_none().then(|| path.clone()));
        }
        Ok(())
    }

    fn keep_theirs(&mut self, path: &RepoPath, own: Option<&TreeEntry>, theirs: Option<&TreeEntry>) {
        match (own, theirs) {
            (None, Some(entry)) => self.done.absent.add(path, entry.files),
            (Some(entry), None) => self.done.dropped.add(path, entry.files),
            _ => self.done.outdated.add(path, 1),
        }
    }

    /// Merges two folders by name; a missing one counts as empty.
    fn merge_children(
        &mut self,
        path: &RepoPath,
        bases: &[Option<TreeEntry>],
        mine: &Mine<'_>,
        theirs: Option<&TreeEntry>,
    ) -> Result<()> {
        let mut since_bases = Vec::new();
        for base in bases {
            since_bases.push(mine.changed_from(self.store, folder(base.as_ref()))?);
        }
        for (name, (recorded, own)) in mine.changed_from(self.store, folder(theirs))? {
            let base_of = |since: &ChangedEntries| match since.get(&name) {
                Some((base, _)) => base.clone(),
                None => own.clone(),
            };
            let bases: Vec<_> = since_bases.iter().map(base_of).collect();
            self.merge_entry(&path.join(&name)?, &bases, &mine.child(&name, own), recorded.as_ref())?;
        }
        match theirs {
            Some(folder) if matches!(mine, Mine::Absent) => self.remove_emptied(path, folder),
            _ => Ok(()),
        }
    }

    /// Removes a folder that does not exist here if the merge removes everything in it.
    fn remove_emptied(&mut self, path: &RepoPath, folder: &TreeEntry) -> Result<()> {
        let names = entries(self.store, &folder.digest)?;
        let paths = names.iter().map(|entry| path.join(&entry.name)).collect::<Result<Vec<_>>>()?;
        if !path.is_root() && paths.iter().all(|path| self.done.changes.get(path) == Some(&None)) {
            paths.iter().for_each(|path| drop(self.done.changes.remove(path)));
            self.done.changes.insert(path.clone(), None);
        }
        Ok(())
    }
}

/// Returns true if two entries have the same content, or if there is neither.
pub(super) fn is_same(one: Option<&TreeEntry>, two: Option<&TreeEntry>) -> bool {
    one.map(|entry| (entry.kind, entry.digest)) == two.map(|entry| (entry.kind, entry.digest))
}

fn folder(entry: Option<&TreeEntry>) -> Option<Digest> {
    entry.filter(|entry| entry.kind == EntryKind::Folder).map(|entry| entry.digest)
}

/// Returns the names whose entries in the stored folder `old` differ from the scanned ones.
fn changed_children(store: &Store, old: Option<Digest>, node: &Node) -> Result<ChangedEntries> {
    let mut changed = ChangedEntries::new();
    if node.kind == EntryKind::Folder && old == Some(node.digest) {
        return Ok(changed);
    }
    let mut rows = old.map_or_else(|| Ok(Vec::new()), |old| entries(store, &old))?.into_iter().peekable();
    let mut nodes = node.children().iter().peekable();
    loop {
        let order = match (rows.peek(), nodes.peek()) {
            (None, None) => return Ok(changed),
            (Some(row), Some(node)) => row.name[..].cmp(&node.name[..]),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
        };
        let row = if order.is_le() { rows.next() } else { None };
        let node = if order.is_ge() { nodes.next() } else { None };
        let same = matches!((&row, node), (Some(a), Some(b)) if (a.kind, a.digest) == (b.kind, b.digest));
        if !same {
            let name = row.as_ref().map_or_else(|| node.map_or(&[][..], |node| &node.name), |row| &row.name);
            changed.insert(name.into(), (row, node.map(Node::entry)));
        }
    }
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;
    use crate::{fs::Root, store::diff};

    /// Files by path; a number stands for the content.
    type Files = BTreeMap<String, u8>;

    struct World {
        _temp: tempfile::TempDir,
        store: Store,
    }

    impl World {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
            Self { _temp: temp, store }
        }

        fn put(&self, files: &Files) -> TreeEntry {
            let mut writer = Writer::new(&self.store);
            let mut node = node(b"", files);
            node.compute_digests(&mut Some(&mut writer)).unwrap();
            writer.finish().unwrap();
            node.entry()
        }

        fn read(&self, content: &Content) -> Files {
            let found = diff(&self.store, &RepoPath::root(), None, Some(&content.digest)).unwrap();
            let files = found.into_iter().filter_map(|found| {
                let side = found.new.filter(|side| side.kind != EntryKind::Folder)?;
                Some((found.path.to_text(), u8::try_from(side.size).unwrap()))
            });
            files.collect()
        }

        /// Merges and applies; returns the files of the result and the conflicts.
        fn merge(&self, base: &Base, mine: &Mine<'_>, theirs: &TreeEntry) -> (Files, Merge) {
            let done = merge(&self.store, &RepoPath::root(), base, mine, Some(theirs)).unwrap();
            let mut writer = Writer::new(&self.store);
            let content = done.apply(Some(&mut writer), &self.store, &theirs.content()).unwrap();
            writer.finish().unwrap();
            assert_eq!(done.apply(None, &self.store, &theirs.content()).unwrap(), content);
            (self.read(&content), done)
        }

        fn merge_files(&self, bases: &[&Files], mine: &Files, theirs: &Files) -> (Files, Merge) {
            let contents = bases.iter().map(|files| Some(self.put(files))).collect();
            let base = Base { contents, complete: true };
            self.merge(&base, &Mine::Stored(self.put(mine)), &self.put(theirs))
        }
    }

    fn node(name: &[u8], files: &Files) -> Node {
        let mut folders: BTreeMap<&str, Files> = BTreeMap::new();
        let mut children = Vec::new();
        for (path, content) in files {
            match path.split_once('/') {
                Some((folder, rest)) => {
                    folders.entry(folder).or_default().insert(rest.to_owned(), *content);
                }
                None => {
                    let digest = Digest::of(&[*content]);
                    children.push(Node::file(path.as_bytes(), EntryKind::File, (*content).into(), digest));
                }
            }
        }
        children.extend(folders.iter().map(|(name, files)| node(name.as_bytes(), files)));
        children.sort_by(|a, b| a.name.cmp(&b.name));
        Node::folder(name, Digest::of(b""), children)
    }

    fn files(of: &[(&str, u8)]) -> Files {
        of.iter().map(|(path, content)| ((*path).to_owned(), *content)).collect()
    }

    /// Generates files at some of these paths.
    fn some_of(paths: &'static [&'static str]) -> impl Strategy<Value = Files> {
        let path = prop::sample::select(paths.to_vec()).prop_map(str::to_owned);
        prop::collection::btree_map(path, 0..3_u8, 0..8).prop_map(|files| {
            let names: Vec<_> = files.keys().cloned().collect();
            let is_folder = |path: &str| names.iter().any(|name| name.starts_with(&format!("{path}/")));
            files.into_iter().filter(|(path, _)| !is_folder(path)).collect()
        })
    }

    /// Paths of which none is a folder of another, and paths of which some are.
    const SEPARATE: &[&str] = &["a", "b", "d/a", "d/b", "d/e/a", "d/e/b", "f/a"];
    const NESTED: &[&str] = &["a", "a/b", "a/b/c", "a/d", "e", "e/a", "f"];

    /// Returns each path's merged content, and the conflicting paths, by the table in the module's head.
    fn expected(bases: &[&Files], mine: &Files, theirs: &Files) -> (Files, BTreeSet<String>) {
        let (mut result, mut conflicts) = (theirs.clone(), BTreeSet::new());
        for path in mine.keys().chain(theirs.keys()).chain(bases.iter().flat_map(|base| base.keys())) {
            let (own, recorded) = (mine.get(path), theirs.get(path));
            let in_base = |content: Option<&u8>| bases.iter().any(|base| base.get(path) == content);
            if own == recorded || in_base(own) {
                continue;
            }
            if !in_base(recorded) {
                conflicts.insert(path.clone());
            }
            match own {
                Some(content) => drop(result.insert(path.clone(), *content)),
                None => drop(result.remove(path)),
            }
        }
        (result, conflicts)
    }

    fn names(paths: &[RepoPath]) -> BTreeSet<String> {
        paths.iter().map(RepoPath::to_text).collect()
    }

    proptest! {
        // Each case writes several packs.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn files_are_merged_by_path(
            base in some_of(SEPARATE), other in some_of(SEPARATE),
            mine in some_of(SEPARATE), theirs in some_of(SEPARATE),
        ) {
            let world = World::new();
            for bases in [&[&base][..], &[&base, &other][..]] {
                let (result, done) = world.merge_files(bases, &mine, &theirs);
                let (files, conflicts) = expected(bases, &mine, &theirs);
                prop_assert_eq!(names(&done.conflicts), conflicts.clone());
                if conflicts.is_empty() {
                    prop_assert_eq!(&result, &files);
                    prop_assert_eq!(done.is_here(), result == mine);
                }
            }
        }

        #[test]
        fn no_change_of_either_side_is_dropped(
            base in some_of(NESTED), other in some_of(NESTED),
            mine in some_of(NESTED), theirs in some_of(NESTED),
        ) {
            let world = World::new();
            for bases in [&[&base][..], &[&base, &other][..]] {
                let (result, done) = world.merge_files(bases, &mine, &theirs);
                if !done.conflicts.is_empty() {
                    continue;
                }
                for path in NESTED.iter().map(|path| (*path).to_owned()) {
                    let in_base =
                        |files: &Files| bases.iter().any(|base| base.get(&path) == files.get(&path));
                    let kept = [mine.get(&path), theirs.get(&path)].contains(&result.get(&path));
                    prop_assert!(kept, "{path} is as neither side has it");
                    prop_assert!(in_base(&mine) || result.get(&path) == mine.get(&path), "my {path}");
                    prop_assert!(in_base(&theirs) || result.get(&path) == theirs.get(&path), "their {path}");
                }
            }
        }

        #[test]
        fn a_scanned_folder_merges_as_a_stored_one(
            base in some_of(NESTED), mine in some_of(NESTED), theirs in some_of(NESTED), complete: bool,
        ) {
            let world = World::new();
            let base = Base { contents: vec![Some(world.put(&base))], complete };
            let theirs = world.put(&theirs);
            let mut scanned = node(b"", &mine);
            scanned.compute_digests(&mut None).unwrap();
            // A scan with a writer stores what the merge's result names.
            let stored = Mine::Stored(world.put(&mine));
            let (result, done) = world.merge(&base, &Mine::Scanned(&scanned), &theirs);
            let (same, again) = world.merge(&base, &stored, &theirs);
            prop_assert_eq!(result, same);
            prop_assert_eq!(done.conflicts, again.conflicts);
        }

        #[test]
        fn without_a_base_every_recorded_file_stays(mine in some_of(SEPARATE), theirs in some_of(SEPARATE)) {
            let world = World::new();
            let mine_entry = Mine::Stored(world.put(&mine));
            let (result, done) = world.merge(&Base::unknown(), &mine_entry, &world.put(&theirs));
            let mut both = theirs.clone();
            both.extend(mine.clone());
            prop_assert_eq!(result, both);
            prop_assert!(done.conflicts.is_empty());
            let absent = theirs.iter().filter(|(path, _)| !mine.contains_key(*path)).count() as u64;
            prop_assert_eq!(done.absent.count, absent);
        }
    }

    #[test]
    fn a_killed_checkout_leaves_no_edit_and_no_deletion() {
        let world = World::new();
        let (old, new) =
            (files(&[("a", 1), ("b", 1), ("gone", 1)]), files(&[("a", 2), ("b", 2), ("d/x", 2)]));
        // It replaced `a`, removed `gone`, and stopped there; then the pointer moved on.
        let here = files(&[("a", 2), ("b", 1)]);
        let next = files(&[("a", 1), ("b", 3), ("gone", 1), ("d/x", 2), ("d/y", 3)]);
        let (result, done) = world.merge_files(&[&old, &new], &here, &next);
        assert_eq!((result, done.changes.len()), (next, 0));
        // A file that both versions have was deleted by hand.
        let (result, _) = world.merge_files(&[&old, &new], &files(&[("a", 2)]), &new);
        assert_eq!(result, files(&[("a", 2), ("d/x", 2)]));
    }

    #[test]
    fn a_folder_that_loses_all_files_here_is_removed() {
        let world = World::new();
        let base = files(&[("d/a", 1), ("d/e/b", 1), ("f", 1)]);
        let other = files(&[("d/a", 1), ("d/e/b", 1), ("f", 1), ("g", 1)]);
        let (_, done) = world.merge_files(&[&base], &files(&[("f", 1)]), &other);
        assert_eq!(done.changes.into_iter().collect::<Vec<_>>(), [(RepoPath::from_text("d").unwrap(), None)]);
        // Others added a file to it meanwhile: it stays with that file.
        let theirs = files(&[("d/a", 1), ("d/e/b", 1), ("d/new", 2), ("f", 1)]);
        let (result, done) = world.merge_files(&[&base], &files(&[("f", 1)]), &theirs);
        assert_eq!(result, files(&[("d/new", 2), ("f", 1)]));
        assert_eq!(done.absent.first, [RepoPath::from_text("d/new").unwrap()]);
        // And without their change to a subfolder, that one goes as a whole.
        assert_eq!(done.changes.get(&RepoPath::from_text("d/e").unwrap()), Some(&None));
    }

    #[test]
    fn a_file_against_a_folder_is_a_conflict() {
        let world = World::new();
        let base = files(&[("a", 1)]);
        let (_, done) = world.merge_files(&[&base], &files(&[("a", 2)]), &files(&[("a/b", 1)]));
        assert_eq!(names(&done.conflicts), BTreeSet::from(["a".to_owned()]));
        let error = done.check(&RepoPath::from_text("data").unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        let (result, done) = world.merge_files(&[&base], &base, &files(&[("a/b", 1)]));
        assert_eq!((result, done.conflicts.len()), (files(&[("a/b", 1)]), 0));
    }

    #[test]
    fn the_number_of_pages_read_follows_the_changes() {
        let reads = |size: u32| {
            let world = World::new();
            let all: Files = (0..size).map(|at| (format!("d/f{at:06}"), 1)).collect();
            let with = |name: &str| {
                let mut files = all.clone();
                files.insert(name.to_owned(), 2);
                world.put(&files)
            };
            let (base, mine, theirs) = (world.put(&all), with("d/f000077"), with("d/f000078"));
            let base = Base { contents: vec![Some(base)], complete: true };
            let before = world.store.reads();
            let done =
                merge(&world.store, &RepoPath::root(), &base, &Mine::Stored(mine), Some(&theirs)).unwrap();
            assert_eq!((done.changes.len(), done.conflicts.len()), (1, 0));
            world.store.reads() - before
        };
        assert_eq!(reads(5_000), reads(40_000));
    }
}
