//! Parts of tracked data, each as it is recorded and as it is present. Parts in one folder are read together,
//! so that many cost as much as their folder.

use std::collections::{BTreeMap, HashMap};

use crate::{
    error::{Result, WithContext},
    path::RepoPath,
    pointer::{ContentKind, Pointer},
    progress::Progress,
    store::{EntryKind, Store, TreeEntry, entries, entry_at},
    workspace::{Node, Workspace, compare::as_entry, filter::ScanFilter, scan::scan_filtered},
};

/// A part of the data that `pointer` tracks, or all of it.
pub(super) struct Part<'p> {
    pub pointer: &'p Pointer,
    pub path: &'p RepoPath,
    pub recorded: Option<TreeEntry>,
    /// The file or folder that is there, without ignored files that are not recorded.
    pub present: Option<Node>,
}

/// Calls `visit` for all these parts, those of one pointer in a row, and those in one folder after another.
/// Where some cannot be read, it gets the path of the first of them and the error. `doing` is the context of
/// an error about what is recorded. Removes what killed commands left there.
pub(super) fn visit_parts<'p>(
    workspace: &Workspace<'_>,
    parts: &[(&'p Pointer, &'p RepoPath)],
    doing: fn(&RepoPath) -> String,
    progress: &dyn Progress,
    visit: &mut dyn FnMut(&'p RepoPath, Result<Part<'p>>) -> Result<()>,
) -> Result<()> {
    for of_pointer in parts.chunk_by(|a, b| std::ptr::eq(a.0, b.0)) {
        let pointer = of_pointer[0].0;
        let mut by_folder: BTreeMap<RepoPath, Vec<&'p RepoPath>> = BTreeMap::new();
        for (_, path) in of_pointer {
            let path = if path.is_within(&pointer.path) { path } else { &pointer.path };
            by_folder.entry(path.parent().unwrap_or_default()).or_default().push(path);
        }
        for (folder, paths) in by_folder {
            let reader = Reader { workspace, pointer, doing, progress };
            let read = match paths[..] {
                [path] => reader.one(path).map(|part| vec![part]),
                _ => reader.siblings(&folder, &paths),
            };
            match read {
                Ok(parts) => parts.into_iter().try_for_each(|part| visit(part.path, Ok(part)))?,
                Err(error) => visit(paths[0], Err(error))?,
            }
        }
    }
    Ok(())
}

struct Reader<'r, 'w, 'p> {
    workspace: &'r Workspace<'w>,
    pointer: &'p Pointer,
    doing: fn(&RepoPath) -> String,
    progress: &'r dyn Progress,
}

impl<'p> Reader<'_, '_, 'p> {
    fn one(&self, path: &'p RepoPath) -> Result<Part<'p>> {
        let Self { workspace, pointer, progress, .. } = self;
        let recorded = self.recorded(path, path)?;
        let filter = ScanFilter::new(workspace, path, Some(pointer))?;
        let filter = filter.cleaning(&workspace.repo.store, *progress);
        let present = scan_filtered(workspace, path, &filter, None, *progress)?;
        self.part(path, recorded, present, &filter)
    }

    /// Reads parts that are all in `folder`, each of them once.
    fn siblings(&self, folder: &RepoPath, paths: &[&'p RepoPath]) -> Result<Vec<Part<'p>>> {
        let Self { workspace, pointer, progress, .. } = self;
        let store = &workspace.repo.store;
        let tree = self.recorded(folder, paths[0])?.filter(|entry| entry.kind == EntryKind::Folder);
        let rows = tree.map_or_else(|| Ok(Vec::new()), |tree| entries(store, &tree.digest))?;
        let filter = ScanFilter::new(workspace, folder, Some(pointer))?.cleaning(store, *progress);
        let filter = filter.naming(folder.clone(), paths.iter().map(|path| path.name().to_vec()).collect());
        let mut present = scan_filtered(workspace, folder, &filter, None, *progress)?;
        let nodes = present.as_mut().and_then(Node::children_mut).map(std::mem::take).unwrap_or_default();
        let mut nodes: HashMap<_, _> = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        let read = |path: &&'p RepoPath| {
            let row = rows.binary_search_by(|row| row.name[..].cmp(path.name())).ok();
            self.part(path, row.map(|at| rows[at].clone()), nodes.remove(path.name()), &filter)
        };
        paths.iter().map(read).collect()
    }

    fn recorded(&self, path: &RepoPath, part: &RepoPath) -> Result<Option<TreeEntry>> {
        let recorded = recorded_entry(&self.workspace.repo.store, self.pointer, path);
        recorded.context(|| (self.doing)(part))
    }

    /// A part that is ignored and not recorded counts as missing, as in a scan of all the data.
    fn part(
        &self,
        path: &'p RepoPath,
        recorded: Option<TreeEntry>,
        mut present: Option<Node>,
        filter: &ScanFilter<'_>,
    ) -> Result<Part<'p>> {
        let pointer = self.pointer;
        if let (None, Some(node)) = (&recorded, &present)
            && filter.ignores(&pointer.path, path, node.kind == EntryKind::Folder)?
        {
            present = None;
        }
        Ok(Part { pointer, path, recorded, present })
    }
}

/// Returns the recorded entry of `part`, a path at or below the pointer's.
pub(super) fn recorded_entry(store: &Store, pointer: &Pointer, part: &RepoPath) -> Result<Option<TreeEntry>> {
    let below = part.strip_prefix(&pointer.path).unwrap_or_default();
    if below.is_root() {
        return Ok(Some(as_entry(&pointer.content)));
    }
    if pointer.content.kind != ContentKind::Tree {
        return Ok(None);
    }
    entry_at(store, &pointer.content.digest, &below)
}
