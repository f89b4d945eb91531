//! `mlx add`: stores files and folders and writes their pointers.
//!
//! All paths are checked, scanned and merged before any pointer is written. A path inside a tracked folder
//! updates that folder's pointer; other paths get pointers of their own and lines in `.gitignore`. Changes of
//! a tracked path are made against the base of this worktree and merged into the pointer as it is now.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    error::{Error, Kind, Result},
    path::RepoPath,
    pointer::{Content, Pointer, SUFFIX},
    progress::Progress,
    store::{TreeEntry, Writer, update_folder},
    workspace::{
        AddRules, Node, Workspace,
        addable::Target,
        compare::as_entry,
        merge::{Merge, Mine},
        named_paths::NamedPaths,
        scan,
        steering::is_of_pipeline,
    },
};

/// Entries of one tracked path that are ready to be recorded. Those in a tracked folder have their paths in
/// it; that of the path itself has the root, and `tracked` may be a pointer that does not exist yet.
struct Addition {
    tracked: Pointer,
    entries: BTreeMap<RepoPath, Option<TreeEntry>>,
}

/// Additions in the order of their first entries.
#[derive(Default)]
struct Additions {
    all: Vec<Addition>,
    /// The place of each tracked path in `all`.
    places: HashMap<RepoPath, usize>,
}

/// Result of merging an addition: the pointer to write.
struct Merged {
    pointer: Pointer,
    /// Entries that the workspace has.
    entries: BTreeMap<RepoPath, Option<TreeEntry>>,
    /// The merge that made it, which tells how it differs from the workspace.
    merge: Merge,
}

impl Workspace<'_> {
    /// Stores the file or folder at `path` and writes its pointer; inside a tracked folder, that folder's.
    pub fn add(&self, path: &RepoPath, rules: AddRules<'_>, progress: &dyn Progress) -> Result<Pointer> {
        let mut added = self.add_all(std::slice::from_ref(path), rules, progress)?;
        Ok(added.pop().expect("an added path has a pointer"))
    }

    /// As [`Workspace::add`] for many paths in one pass; if one of them cannot be added, none is.
    pub fn add_all(
        &self,
        paths: &[RepoPath],
        rules: AddRules<'_>,
        progress: &dyn Progress,
    ) -> Result<Vec<Pointer>> {
        self.check_unfiltered(paths)?;
        self.clean_beside(paths.iter(), progress);
        let pointed = self.pointer_paths()?;
        let mut writer = Writer::new(&self.repo.store);
        let mut found = Additions::default();
        for target in self.add_targets(&outermost(paths), rules)? {
            if let Target { is_here: false, own: Some(tracked), .. } = target {
                found.add_absent(tracked);
                continue;
            }
            let path = target.path;
            if let Some(pointer) = target.record()
                && self.check_merge_of(pointer, path, progress)?
                && !rules.only_edits
            {
                return Err(removed_by_others(path, &pointer.path));
            }
            let node = self.scan_and_store(path, target.top(), &pointed, &mut writer, progress)?;
            found.add(path, target.parent, &node);
        }
        writer.finish()?;
        self.record(found.all, progress)
    }

    /// Refuses an edit of `part` that cannot be merged, before it is stored: a checkout takes what is stored
    /// for saved.
    pub fn check_mergeable(&self, pointer: &Pointer, part: &RepoPath, progress: &dyn Progress) -> Result<()> {
        self.check_merge_of(pointer, part, progress).map(drop)
    }

    /// Returns true if others removed `part`, which is here and was not edited. An edit that cannot be merged
    /// is an error.
    fn check_merge_of(&self, pointer: &Pointer, part: &RepoPath, progress: &dyn Progress) -> Result<bool> {
        if !self.may_conflict(pointer)? {
            return Ok(false);
        }
        let Some(node) = self.scan(part, progress)? else { return Ok(false) };
        let merge = self.merge_part(pointer, part, &Mine::Scanned(&node))?;
        merge.check(&pointer.path)?;
        Ok(part != &pointer.path && merge.dropped.first.contains(&relative_to(part, pointer)))
    }

    /// Returns true if others may have changed the tracked path since this worktree last had it.
    pub(super) fn may_conflict(&self, pointer: &Pointer) -> Result<bool> {
        Ok(!self.base(&pointer.path)?.is_only(&as_entry(&pointer.content)))
    }

    /// Merges all additions into the pointers as they are now, then writes these. With a conflict, nothing is
    /// written.
    fn record(&self, additions: Vec<Addition>, progress: &dyn Progress) -> Result<Vec<Pointer>> {
        // Another process may have changed a pointer meanwhile: its present state is the one to change.
        let lock = self.repo.lock_with_progress(progress)?;
        let merged = additions.into_iter().map(|it| self.merge_addition(it)).collect::<Result<Vec<_>>>()?;
        let (mut own, mut parts) = (Vec::new(), Vec::new());
        for Merged { pointer, entries, .. } in &merged {
            let is_own = entries.contains_key(&RepoPath::root());
            if is_own { own.push(pointer) } else { parts.push(pointer) }
        }
        self.ignore_data(&own, &lock, progress)?;
        self.repair_locked(&parts, &lock, progress)?;
        self.clean_beside(merged.iter().map(|it| &it.pointer.path), progress);
        self.repo.write_pointers(merged.iter().map(|it| &it.pointer))?;
        let mut pointers = Vec::new();
        for Merged { pointer, entries, merge } in merged {
            self.note_base_parts(&pointer.path, entries)?;
            self.index_pointer(&pointer.path);
            report_kept(&pointer.path, &merge, progress);
            pointers.push(pointer);
        }
        drop(lock);
        Ok(pointers)
    }

    fn merge_addition(&self, Addition { tracked, entries }: Addition) -> Result<Merged> {
        let (path, store) = (tracked.path.clone(), &self.repo.store);
        self.check_replaceable(&path)?;
        let named = entries.keys().map(|below| path.join_path(below)).collect::<Result<Vec<_>>>()?;
        let pointer = match self.pointer_to_change(&path, &named) {
            Ok(Some(pointer)) => pointer,
            Err(error) if self.repo.sides(&path)?.is_some() => return Err(error),
            found => match self.lost_pointer(&path)? {
                Some(pointer) => self.corrected(pointer),
                // A damaged pointer, which names no tree to merge into, is replaced.
                None if entries.contains_key(&RepoPath::root()) => {
                    return Ok(Merged { pointer: tracked, entries, merge: Merge::default() });
                }
                None => found?.unwrap_or(tracked),
            },
        };
        let merge = self.merge_entries(&pointer, &entries)?;
        let mut writer = Writer::new(store);
        let content = merge.apply(Some(&mut writer), store, &pointer.content)?;
        writer.finish()?;
        Ok(Merged { pointer: Pointer { path, content }, entries, merge })
    }

    /// Merges entries, by their paths in the tracked path, into what it records; a conflict is an error.
    pub(super) fn merge_entries(
        &self,
        pointer: &Pointer,
        entries: &BTreeMap<RepoPath, Option<TreeEntry>>,
    ) -> Result<Merge> {
        let mut all = Merge::default();
        for (below, entry) in entries {
            let mine = entry.clone().map_or(Mine::Absent, Mine::Stored);
            all.extend(self.merge_part(pointer, &pointer.path.join_path(below)?, &mine)?);
        }
        all.check(&pointer.path)?;
        Ok(all)
    }

    /// Records the files of a tracked folder that changed: those of `entries`, by their paths in it.
    pub(super) fn record_entries(
        &self,
        tracked: Pointer,
        entries: BTreeMap<RepoPath, Option<TreeEntry>>,
        progress: &dyn Progress,
    ) -> Result<Pointer> {
        let mut written = self.record(vec![Addition { tracked, entries }], progress)?;
        Ok(written.pop().expect("an addition has a pointer"))
    }

    /// Records that `part` of a tracked folder was deleted, as far as it was here.
    pub fn record_absence(
        &self,
        parent: &Pointer,
        part: &RepoPath,
        progress: &dyn Progress,
    ) -> Result<Pointer> {
        let entries = BTreeMap::from([(relative_to(part, parent), None)]);
        self.record_entries(parent.clone(), entries, progress)
    }

    /// Records the edits of `part` of a tracked path that were made here; returns its pointer if it changed.
    pub fn record_edits(
        &self,
        pointer: &Pointer,
        part: &RepoPath,
        progress: &dyn Progress,
    ) -> Result<Option<Pointer>> {
        let Some(node) = self.scan(part, progress)? else { return Ok(None) };
        if part == &pointer.path && node.content() == pointer.content {
            return Ok(None);
        }
        let merged = self.merge_part(pointer, part, &Mine::Scanned(&node))?;
        if merged.changes.is_empty() && merged.conflicts.is_empty() {
            return Ok(None);
        }
        let recorded = self.add(part, AddRules { only_edits: true, ..AddRules::default() }, progress)?;
        Ok(Some(recorded).filter(|recorded| recorded != pointer))
    }

    /// Merges the stored present content of a tracked path into its record; returns the content to record.
    pub fn merge_stored(
        &self,
        recorded: &Pointer,
        stored: Content,
        progress: &dyn Progress,
    ) -> Result<Content> {
        let (path, store) = (&recorded.path, &self.repo.store);
        let recorded = &self.corrected(recorded.clone());
        let merged = self.merge_part(recorded, path, &Mine::Stored(as_entry(&stored)))?;
        merged.check(path)?;
        let mut writer = Writer::new(store);
        let content = merged.apply(Some(&mut writer), store, &recorded.content)?;
        writer.finish()?;
        self.note_base(path, stored)?;
        report_kept(path, &merged, progress);
        Ok(content)
    }

    /// Adds `path` to the index of pointers. Its writer may have been killed before it did so.
    pub fn index_pointer(&self, path: &RepoPath) {
        self.index.borrow_mut().add_pointer(path.clone());
    }

    /// Scans and stores `path`; refuses nested pointers and links that lead out of `top`.
    fn scan_and_store(
        &self,
        path: &RepoPath,
        top: &RepoPath,
        pointed: &BTreeSet<RepoPath>,
        writer: &mut Writer<'_>,
        progress: &dyn Progress,
    ) -> Result<Node> {
        // Checked first, so that nothing is stored in vain.
        if let Some(inner) = path.first_below(pointed) {
            let error = Error::new(
                Kind::Conflict,
                format!("`{path}` contains `{inner}`, which has a pointer of its own"),
            );
            return Err(error.hint("add its other parts one by one, or remove that pointer first"));
        }
        let missing = || Error::not_found(format!("`{path}` not found"));
        let node = scan::scan(self, path, Some(writer), progress)?.ok_or_else(missing)?;
        let tracked = self.record_of(path);
        node.walk(&path.parent().unwrap_or_default(), &mut |folder, leaf| {
            if is_of_pipeline(&leaf.name) {
                self.check_is_no_pipeline(&folder.join(&leaf.name)?, path, tracked.as_ref())?;
            }
            let named = leaf.name.ends_with(SUFFIX.as_bytes());
            let Some(inner) =
                named.then(|| folder.join(&leaf.name)).transpose()?.filter(|file| self.is_pointer(file))
            else {
                return Ok(());
            };
            let error = Error::new(Kind::Conflict, format!("`{path}` contains the pointer `{inner}`"));
            Err(error.hint("a folder is tracked as a whole or in parts: move that pointer out of it"))
        })?;
        scan::check_links(self, &node, path, top)?;
        Ok(node)
    }

    /// Removes a path from the tree of the tracked folder that contains it, whether or not it is here.
    pub fn record_removal(
        &self,
        parent: &Pointer,
        path: &RepoPath,
        progress: &dyn Progress,
    ) -> Result<Pointer> {
        let lock = self.repo.lock_with_progress(progress)?;
        let parent = self.pointer(&parent.path)?.unwrap_or_else(|| parent.clone());
        let changes = BTreeMap::from([(relative_to(path, &parent), None)]);
        let (store, tree) = (&self.repo.store, &parent.content.digest);
        let mut writer = Writer::new(store);
        let content = update_folder(Some(&mut writer), store, Some(tree), &changes)?;
        writer.finish()?;
        let pointer = Pointer { path: parent.path, content };
        self.repair_locked(&[&pointer], &lock, progress)?;
        self.write_pointer(&pointer, progress)?;
        self.note_base_parts(&pointer.path, changes)?;
        Ok(pointer)
    }
}

/// Returns the error for a path that is to be added, is as it was last checked out, and is not recorded now.
fn removed_by_others(path: &RepoPath, top: &RepoPath) -> Error {
    let message = format!("others removed `{path}` since your last checkout of `{top}`: nothing was added");
    Error::new(Kind::Conflict, message).hint(format!(
        "`mlx checkout {path}` removes it here, too; to keep it, move it aside, run `mlx checkout {top}`, \
         move it back and add it again"
    ))
}

/// Tells which recorded paths stay recorded although they are not here, or not in their recorded version.
fn report_kept(top: &RepoPath, merge: &Merge, progress: &dyn Progress) {
    let Merge { absent, outdated, dropped, .. } = merge;
    let named = |paths: &NamedPaths| {
        let full = |path: &RepoPath| top.join_path(path).unwrap_or_else(|_| top.clone());
        let first: Vec<_> = paths.first.iter().map(|path| format!("`{}`", full(path))).collect();
        let more = if paths.count > first.len() as u64 { ", …" } else { "" };
        format!("{}{more}", first.join(", "))
    };
    if !absent.is_empty() {
        progress.note(&format!(
            "`{top}` stays recorded with {} that {} not here: {} (get them with `mlx pull {top}`, or stop \
             tracking one with `mlx remove PATH`)",
            if absent.count == 1 { "a file".to_owned() } else { format!("{} files", absent.count) },
            if absent.count == 1 { "is" } else { "are" },
            named(absent)
        ));
    }
    if !outdated.is_empty() {
        progress.note(&format!(
            "`{top}` is recorded with newer changes than the files here have: {} (get them with `mlx pull \
             {top}`)",
            named(outdated)
        ));
    }
    if !dropped.is_empty() {
        progress.note(&format!(
            "others removed files of `{top}` since your last checkout, which were not added: {} (`mlx \
             checkout {top}` removes them here, too)",
            named(dropped)
        ));
    }
}

/// Returns the paths that are not inside another of them.
fn outermost(paths: &[RepoPath]) -> Vec<RepoPath> {
    let all: BTreeSet<&RepoPath> = paths.iter().collect();
    let is_covered = |path: &RepoPath| path.ancestors().skip(1).any(|parent| all.contains(&parent));
    paths.iter().filter(|path| !is_covered(path)).cloned().collect()
}

pub(super) fn relative_to(path: &RepoPath, parent: &Pointer) -> RepoPath {
    path.strip_prefix(&parent.path).expect("the path is inside the tracked folder")
}

impl Additions {
    /// Adds a pointer that changes although nothing of its data is here.
    fn add_absent(&mut self, tracked: Pointer) {
        self.places.insert(tracked.path.clone(), self.all.len());
        self.all.push(Addition { tracked, entries: BTreeMap::new() });
    }

    /// Adds the scan of `path`, together with other entries of the same tracked folder.
    fn add(&mut self, path: &RepoPath, parent: Option<Pointer>, node: &Node) {
        let tracked = parent.unwrap_or_else(|| Pointer { path: path.clone(), content: node.content() });
        let below = relative_to(path, &tracked);
        let at = *self.places.entry(tracked.path.clone()).or_insert(self.all.len());
        if at == self.all.len() {
            self.all.push(Addition { tracked, entries: BTreeMap::new() });
        }
        self.all[at].entries.insert(below, Some(node.entry()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{fs::Sync, progress::Event, repo::Repo};

    /// Records the amounts of work that tasks announce.
    #[derive(Default)]
    struct Totals(Mutex<Vec<Option<u64>>>);

    impl Progress for Totals {
        fn event(&self, event: Event<'_>) {
            if let Event::Started { total, .. } = event {
                self.0.lock().unwrap().push(total);
            }
        }
    }

    #[test]
    fn an_add_announces_the_bytes_that_it_has_to_read() {
        let temp = tempfile::tempdir().unwrap();
        let mut init = std::process::Command::new("git");
        assert!(init.args(["init", "-q"]).arg(temp.path()).status().unwrap().success());
        let repo = Repo::init(temp.path()).unwrap();
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        let megabytes = |name: &str, count: usize| {
            let bytes = vec![count as u8; count << 20];
            repo.files.write(&path(name), &bytes, Sync::Later).unwrap();
        };
        megabytes("data/one", 9);
        megabytes("data/inner/two", 9);
        let announced = |name: &str| {
            let totals = Totals::default();
            Workspace::open(&repo).unwrap().add(&path(name), AddRules::default(), &totals).unwrap();
            totals.0.into_inner().unwrap()
        };
        assert_eq!(announced("data"), [Some(18 << 20)]);
        megabytes("small", 1);
        assert_eq!(announced("small"), [], "small amounts are not announced");
    }
}
