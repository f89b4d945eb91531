//! `mlx move`: renames a tracked path without reading its bytes.
//!
//! Order of changes: the new line in `.gitignore`, the files, the new record, the old record. After a kill,
//! the same command continues where it stopped: files that exist at the new path only and match the old
//! record count as moved.

use std::collections::BTreeMap;

use crate::{
    error::{Error, Kind, Result},
    fs::Lock,
    path::RepoPath,
    pointer::{Content, ContentKind, Pointer},
    progress::Progress,
    store::{EntryKind, TreeEntry, Writer, diff, entry_at, update_folder},
    workspace::{
        Workspace,
        merge::Base,
        remove::{check_output, untracked},
        scan::check_stays_inside,
        steering::check_is_data,
    },
};

/// Result of a move.
#[derive(Debug)]
pub struct MoveResult {
    pub from: RepoPath,
    pub to: RepoPath,
    /// Pointers created or changed.
    pub written: Vec<Pointer>,
    /// Pointer files that were removed.
    pub removed: Vec<RepoPath>,
}

/// The place where a tracked path is recorded.
enum RecordLocation {
    /// In a pointer of its own.
    OwnPointer,
    /// In the tree of this tracked folder.
    InFolder(Pointer),
}

impl Workspace<'_> {
    /// Moves the tracked path `from` to `to`, both its record and its files; nothing is overwritten.
    pub fn rename(
        &self,
        from: &RepoPath,
        to: &RepoPath,
        claimed: &[(RepoPath, String)],
        progress: &dyn Progress,
    ) -> Result<MoveResult> {
        check_output(from, claimed)?;
        check_output(to, claimed)?;
        if to.is_within(from) {
            return Err(Error::usage(format!("`{from}` cannot be moved into itself")));
        }
        self.check_unfiltered(std::slice::from_ref(to))?;
        let lock = self.repo.lock_with_progress(progress)?;
        let (source, entry) = self.find_source(from)?;
        let target = self.find_target(to)?;
        self.check_record(to, &target, &entry)?;
        self.check_files(from, to, &entry, progress)?;
        self.check_kind(from, to, &source, &target, &entry)?;
        let files = &self.repo.files;
        if matches!(target, RecordLocation::OwnPointer) {
            let pointer = Pointer { path: to.clone(), content: to_content(&entry) };
            self.ignore_data(&[&pointer], &lock, progress)?;
        }
        if files.stat(from)?.is_some() {
            files.rename(from, to)?;
            self.index.borrow_mut().rename(from, to);
        }
        let moved = self.write_records((from, source), (to, target), entry, &lock)?;
        self.repair_locked(&moved.written.iter().collect::<Vec<_>>(), &lock, progress)?;
        self.clean_beside(moved.written.iter().map(|pointer| &pointer.path), progress);
        Ok(moved)
    }

    /// Returns the record of a tracked path and where it is kept.
    fn find_source(&self, path: &RepoPath) -> Result<(RecordLocation, TreeEntry)> {
        if let Some(pointer) = self.pointer(path)? {
            return Ok((RecordLocation::OwnPointer, to_entry(&pointer.content)));
        }
        let is_parent = |it: &Pointer| it.content.kind == ContentKind::Tree && it.path != *path;
        let parent = self.pointer_of(path)?.filter(is_parent);
        let parent = parent.ok_or_else(|| untracked(path))?;
        let below = path.strip_prefix(&parent.path).expect("the path is inside the tracked folder");
        let entry = entry_at(&self.repo.store, &parent.content.digest, &below)?;
        let entry = entry.ok_or_else(|| {
            let error = Error::not_found(format!("`{path}` is not tracked in `{}`", parent.path));
            error.hint(format!("add it first: `mlx add {path}`"))
        })?;
        Ok((RecordLocation::InFolder(parent), entry))
    }

    fn find_target(&self, path: &RepoPath) -> Result<RecordLocation> {
        let parent = path.parent().map(|parent| self.pointer_of(&parent)).transpose()?.flatten();
        let taken = |what: String| Err(Error::new(Kind::Conflict, what).hint("choose another name"));
        match parent {
            Some(parent) if parent.content.kind == ContentKind::Tree => {
                return Ok(RecordLocation::InFolder(parent));
            }
            Some(parent) => return taken(format!("`{}` is tracked as a file", parent.path)),
            None => {}
        }
        check_is_data(path)?;
        self.repo.check_merged(path)?;
        self.check_replaceable(path)?;
        if let Some(file) = self.repo.git.tracked_within(path)? {
            return taken(format!("Git already tracks `{file}`"));
        }
        if let Some(inner) =
            self.pointer_paths()?.iter().find(|inner| inner.is_within(path) && *inner != path)
        {
            return taken(format!("`{inner}` is tracked in that folder"));
        }
        Ok(RecordLocation::OwnPointer)
    }

    /// Refuses a target that is recorded already, unless an interrupted move of the same entry recorded it.
    fn check_record(&self, to: &RepoPath, target: &RecordLocation, entry: &TreeEntry) -> Result<()> {
        let taken = match target {
            RecordLocation::OwnPointer => self.pointer(to)?.map(|pointer| to_entry(&pointer.content)),
            RecordLocation::InFolder(parent) => {
                let below = to.strip_prefix(&parent.path).expect("the target is inside the tracked folder");
                entry_at(&self.repo.store, &parent.content.digest, &below)?
            }
        };
        match taken {
            Some(it) if (it.kind, it.digest) != (entry.kind, entry.digest) => Err(occupied(to)),
            _ => Ok(()),
        }
    }

    /// Refuses to overwrite files; files only at the target that match the record were moved before.
    fn check_files(
        &self,
        from: &RepoPath,
        to: &RepoPath,
        entry: &TreeEntry,
        progress: &dyn Progress,
    ) -> Result<()> {
        if self.repo.files.stat(to)?.is_none() {
            return Ok(());
        }
        if self.repo.files.stat(from)?.is_some() {
            return Err(occupied(to));
        }
        match self.scan(to, progress)? {
            Some(node) if (node.kind, node.digest) == (entry.kind, entry.digest) => Ok(()),
            _ => Err(occupied(to)),
        }
    }

    /// Refuses links that would be without a tracked folder around them, or lead out of it, at the target.
    fn check_kind(
        &self,
        from: &RepoPath,
        to: &RepoPath,
        source: &RecordLocation,
        target: &RecordLocation,
        entry: &TreeEntry,
    ) -> Result<()> {
        if matches!(source, RecordLocation::OwnPointer) {
            return Ok(());
        }
        let store = &self.repo.store;
        let top = match target {
            RecordLocation::InFolder(parent) => &parent.path,
            RecordLocation::OwnPointer if entry.kind == EntryKind::Link => {
                let error =
                    Error::usage(format!("`{from}` is a symlink, and only a tracked folder can contain one"));
                return Err(error.hint("move it into a tracked folder"));
            }
            RecordLocation::OwnPointer => to,
        };
        if entry.kind == EntryKind::Link {
            return check_stays_inside(to, top, &store.read(&entry.digest)?);
        }
        if entry.kind == EntryKind::Folder {
            for found in diff(store, to, None, Some(&entry.digest))? {
                if let Some(side) = found.new.filter(|side| side.kind == EntryKind::Link) {
                    check_stays_inside(&found.path, top, &store.read(&side.digest)?)?;
                }
            }
        }
        Ok(())
    }

    fn write_records(
        &self,
        (from, source): (&RepoPath, RecordLocation),
        (to, target): (&RepoPath, RecordLocation),
        entry: TreeEntry,
        lock: &Lock,
    ) -> Result<MoveResult> {
        let mut done =
            MoveResult { from: from.clone(), to: to.clone(), written: Vec::new(), removed: Vec::new() };
        let new = (to, Some(entry.clone()));
        self.move_base((from, &source), (to, &target))?;
        match (&source, &target) {
            (RecordLocation::InFolder(old), RecordLocation::InFolder(parent)) if old.path == parent.path => {
                done.written.push(self.update_record(parent, &[(from, None), new])?);
                return Ok(done);
            }
            (_, RecordLocation::InFolder(parent)) => done.written.push(self.update_record(parent, &[new])?),
            (_, RecordLocation::OwnPointer) => {
                let content = to_content(&entry);
                let pointer = Pointer { path: to.clone(), content };
                self.repo.write_pointer(&pointer)?;
                // Git does not track it yet: the index must list it before the old record is removed.
                self.index_pointer(to);
                self.index.borrow_mut().save_locked(self.repo, lock)?;
                done.written.push(pointer);
            }
        }
        match source {
            RecordLocation::InFolder(parent) => {
                done.written.push(self.update_record(&parent, &[(from, None)])?);
            }
            RecordLocation::OwnPointer => {
                self.repo.git.unignore(&self.repo.files, from)?;
                let file = from.with_suffix(crate::pointer::SUFFIX);
                self.repo.files.remove(&file)?;
                self.index.borrow_mut().remove_pointer(from);
                done.removed.push(file);
            }
        }
        Ok(done)
    }

    /// Moves what the base says of the path, which need not be what is recorded.
    fn move_base(
        &self,
        (from, source): (&RepoPath, &RecordLocation),
        (to, target): (&RepoPath, &RecordLocation),
    ) -> Result<()> {
        let below = |path: &RepoPath, top: &RepoPath| path.strip_prefix(top).unwrap_or_default();
        let top = |path: &RepoPath, location: &RecordLocation| match location {
            RecordLocation::OwnPointer => path.clone(),
            RecordLocation::InFolder(parent) => parent.path.clone(),
        };
        let (old, new) = (top(from, source), top(to, target));
        let base = self.base(&old)?.at(&self.repo.store, &below(from, &old));
        let base = base.unwrap_or_else(|_| Base::unknown());
        self.note_base_parts(&old, BTreeMap::from([(below(from, &old), None)]))?;
        // Of a path that is in the middle of a checkout, or whose base cannot be read, nothing is known.
        match &base.contents[..] {
            [Some(entry)] => {
                self.note_base_parts(&new, BTreeMap::from([(below(to, &new), Some(entry.clone()))]))
            }
            _ => Ok(()),
        }
    }

    fn update_record(&self, parent: &Pointer, changes: &[(&RepoPath, Option<TreeEntry>)]) -> Result<Pointer> {
        let store = &self.repo.store;
        let below =
            |path: &RepoPath| path.strip_prefix(&parent.path).expect("the path is inside the tracked folder");
        let changes: BTreeMap<_, _> =
            changes.iter().map(|(path, entry)| (below(path), entry.clone())).collect();
        let mut writer = Writer::new(store);
        let content = update_folder(Some(&mut writer), store, Some(&parent.content.digest), &changes)?;
        writer.finish()?;
        let pointer = Pointer { path: parent.path.clone(), content };
        self.repo.write_pointer(&pointer)?;
        Ok(pointer)
    }
}

fn occupied(path: &RepoPath) -> Error {
    Error::new(Kind::Conflict, format!("`{path}` already exists")).hint("choose another name")
}

fn to_entry(content: &Content) -> TreeEntry {
    let Content { digest, files, kind, size } = *content;
    let kind = match kind {
        ContentKind::File => EntryKind::File,
        ContentKind::Executable => EntryKind::Executable,
        ContentKind::Tree => EntryKind::Folder,
    };
    TreeEntry { name: Box::default(), kind, size, files, digest }
}

fn to_content(entry: &TreeEntry) -> Content {
    Content { digest: entry.digest, files: entry.files, kind: entry.kind.content_kind(), size: entry.size }
}
