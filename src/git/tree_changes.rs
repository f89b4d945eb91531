//! Differences between the folders of two commits: equal folders are not read.

use std::collections::{BTreeMap, HashSet};

use gix::objs::tree::EntryRef;

use crate::{
    error::Result,
    git::{BlobId, Git, TreeId, from_gix},
    path::{MAX_DEPTH, RepoPath},
};

/// The versions of a file in two trees; `None` where it does not exist.
pub type Step = [Option<BlobId>; 2];

/// Selects the paths of files of interest, and of the folders that may contain some.
pub struct Filter<'f> {
    pub file: &'f dyn Fn(&RepoPath) -> bool,
    pub folder: &'f dyn Fn(&RepoPath) -> bool,
}

impl Git {
    /// Lists the files that `filter` selects and that differ in two trees.
    pub fn changed_files(
        &self,
        trees: [Option<TreeId>; 2],
        filter: &Filter<'_>,
    ) -> Result<Vec<(RepoPath, Step)>> {
        let mut found = Vec::new();
        self.changed_below(&RepoPath::root(), trees.map(|tree| tree.map(TreeId::id)), filter, &mut found)?;
        Ok(found)
    }

    fn changed_below(
        &self,
        folder: &RepoPath,
        trees: [Option<gix::ObjectId>; 2],
        filter: &Filter<'_>,
        found: &mut Vec<(RepoPath, Step)>,
    ) -> Result<()> {
        if trees[0] == trees[1] || folder.components().count() > MAX_DEPTH {
            return Ok(());
        }
        let context = || "cannot read a tree from Git".to_owned();
        let read = |tree: Option<gix::ObjectId>| tree.map(|id| self.tree(id, context)).transpose();
        let (old, new) = (read(trees[0])?, read(trees[1])?);
        let decode = |tree| from_gix(gix::Tree::decode(tree), context).map(|tree| tree.entries);
        let old = old.as_ref().map_or_else(|| Ok(Vec::new()), decode)?;
        let new = new.as_ref().map_or_else(|| Ok(Vec::new()), decode)?;
        let mut changed: BTreeMap<&[u8], [Option<&EntryRef<'_>>; 2]> = BTreeMap::new();
        for (side, entries) in different(&old, &new).into_iter().enumerate() {
            entries
                .into_iter()
                .for_each(|entry| changed.entry(entry.filename).or_default()[side] = Some(entry));
        }
        for (name, rows) in changed {
            // mlx cannot have written below a name that is not valid in its paths.
            let Ok(path) = folder.join(name) else { continue };
            let id = |row: Option<&EntryRef<'_>>| row.map(|row| row.oid.to_owned());
            let folders = rows.map(|row| id(row.filter(|row| row.mode.is_tree())));
            let blobs = rows.map(|row| id(row.filter(|row| row.mode.is_blob())).map(BlobId::new));
            if (filter.folder)(&path) {
                self.changed_below(&path, folders, filter, found)?;
            }
            if blobs[0] != blobs[1] && (filter.file)(&path) {
                found.push((path, blobs));
            }
        }
        Ok(())
    }
}

/// Returns the entries that only one of two trees has. Few differ in most cases: those before and behind them
/// are only compared in order.
fn different<'e>(old: &'e [EntryRef<'e>], new: &'e [EntryRef<'e>]) -> [Vec<&'e EntryRef<'e>>; 2] {
    let first = old.iter().zip(new).take_while(|(one, other)| one == other).count();
    let (old, new) = (&old[first..], &new[first..]);
    let last = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
    let (old, new) = (&old[..old.len() - last], &new[..new.len() - last]);
    let [before, after] = [old, new].map(|side| side.iter().collect::<HashSet<_>>());
    let only = |side: &'e [EntryRef<'e>], other: &HashSet<&EntryRef<'_>>| {
        side.iter().filter(|entry| !other.contains(entry)).collect()
    };
    [only(old, &after), only(new, &before)]
}
