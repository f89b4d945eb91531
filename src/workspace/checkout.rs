//! Checkout: makes the workspace match its pointers.
//!
//! A pure step compares the recorded tree with the files and plans what to write and remove; a second step
//! carries the plan out. Files whose bytes are not stored anywhere are never lost without `force`.

use std::{
    collections::BTreeSet,
    io::Write as _,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    fs::{self, Dir, FileKind, FileStat, LinkKind, Mode, Root},
    path::RepoPath,
    pointer::{ContentKind, Pointer},
    progress::{Event, Progress},
    store::{DiffSide, Difference, EntryKind, MAX_PACKED_SIZE, Store, TreeEntry, entry_at},
    workspace::{
        Node, Workspace, collision,
        compare::{as_entry, differences},
        filter::ScanFilter,
        scan::{check_stays_inside, scan_filtered},
    },
};

/// Files that one thread writes before it takes the next batch, at most.
const BATCH_FILES: usize = 256;

/// Planned changes of a checkout; creating a plan changes nothing.
#[derive(Debug, Default)]
pub struct Plan {
    write: Vec<(RepoPath, DiffSide)>,
    /// Files whose executable bit alone differs.
    modes: Vec<(RepoPath, EntryKind)>,
    folders: BTreeSet<RepoPath>,
    remove: Vec<(RepoPath, EntryKind)>,
    /// Digests of large files that the plan removes or overwrites.
    replaced: Vec<Digest>,
    /// Paths that would be overwritten or deleted and are not stored anywhere.
    pub unsaved: Vec<RepoPath>,
}

/// Counts of what a checkout did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckoutStats {
    pub written: u64,
    pub removed: u64,
    /// Empty folders created or removed.
    pub folders: u64,
}

impl Plan {
    /// Returns true if nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.write.is_empty() && self.modes.is_empty() && self.remove.is_empty() && self.folders.is_empty()
    }

    fn unsaved_error(&self) -> Error {
        let some: Vec<_> = self.unsaved.iter().take(5).map(|path| format!("`{path}`")).collect();
        let more = if self.unsaved.len() > 5 {
            format!(" and {} more", self.unsaved.len() - 5)
        } else {
            String::new()
        };
        let message = format!(
            "this would overwrite or delete files that are not stored anywhere: {}{more}",
            some.join(", ")
        );
        Error::new(Kind::Conflict, message)
            .hint("keep them with `mlx add` or `mlx commit`, or discard them with `--force`")
    }
}

/// Plans how to make the workspace match a pointer, at and below `part`.
pub fn plan(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Plan> {
    let store = &workspace.repo.store;
    let wanted = recorded_entry(store, pointer, part).context(|| format!("cannot check out `{part}`"))?;
    let present = scan_part(workspace, pointer, part, progress)?;
    let blocking = blocking_file(workspace, pointer, part, progress)?;
    let links = workspace
        .repo
        .config
        .links()?
        .iter()
        .any(|link| matches!(link, LinkKind::Hardlink | LinkKind::Symlink));
    // Linked files stay linked after the setting changes.
    let shared = |path: &RepoPath| links || workspace.is_shared(path);
    let found = differences(store, part, wanted.as_ref(), present.as_ref());
    let mut plan = plan_changes(store, &found.context(|| format!("cannot check out `{part}`"))?, &shared);
    plan.unsaved.extend(blocking);
    plan.unsaved.retain(|path| !workspace.is_dangling_store_link(path));
    Ok(plan)
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

/// Scans `part`, without files that are ignored and not tracked.
fn scan_part(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Option<Node>> {
    let filter = ScanFilter::new(workspace, part, Some(pointer))?;
    scan_filtered(workspace, part, &filter, None, progress)
}

/// Returns a file that is not stored anywhere and has to make room for a folder on the way to `part`.
fn blocking_file(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Option<RepoPath>> {
    let mut ancestor = part.clone();
    while let Some(parent) = ancestor.parent().filter(|it| it.is_within(&pointer.path)) {
        ancestor = parent;
        let Ok(Some(stat)) = workspace.repo.files.stat(&ancestor) else { continue };
        if stat.kind == FileKind::Folder {
            break;
        }
        let node = scan_part(workspace, pointer, &ancestor, progress)?;
        return Ok(node.filter(|node| !workspace.repo.store.is_intact(&node.digest)).map(|_| ancestor));
    }
    Ok(None)
}

/// Plans how to get from the present files to the recorded ones; `shared` is true for files with
/// other names.
fn plan_changes(store: &Store, found: &[Difference], shared: &dyn Fn(&RepoPath) -> bool) -> Plan {
    let mut plan = Plan::default();
    for Difference { path, old: wanted, new: present } in found {
        match (wanted, present) {
            // The mode of a file that other names share must not change: the file is written anew.
            (Some(side), Some(present))
                if present.digest == side.digest
                    && is_regular(present.kind)
                    && is_regular(side.kind)
                    && !shared(path) =>
            {
                plan.modes.push((path.clone(), side.kind));
            }
            (Some(side), _) if side.kind == EntryKind::Folder => drop(plan.folders.insert(path.clone())),
            (Some(side), _) => plan.write.push((path.clone(), *side)),
            (None, Some(side)) if side.kind != EntryKind::Folder || !has_wanted_below(found, path) => {
                plan.remove.push((path.clone(), side.kind));
            }
            (None, _) => {}
        }
        let Some(side) = present else { continue };
        let unchanged = wanted.is_some_and(|wanted| wanted.digest == side.digest);
        plan.replaced.extend((side.size > MAX_PACKED_SIZE).then_some(side.digest));
        if !unchanged && side.kind != EntryKind::Folder && !store.is_intact(&side.digest) {
            plan.unsaved.push(path.clone());
        }
    }
    plan
}

/// Returns true if an entry below `folder`, which is an empty folder now, is to be written.
fn has_wanted_below(found: &[Difference], folder: &RepoPath) -> bool {
    let after = &found[found.partition_point(|difference| difference.path <= *folder)..];
    let near = after.iter().take_while(|difference| difference.path.bytes().starts_with(folder.bytes()));
    near.filter(|difference| difference.path.is_within(folder)).any(|difference| difference.old.is_some())
}

fn is_regular(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::File | EntryKind::Executable)
}

/// Makes the workspace match a pointer; refuses to lose bytes unless `force`.
pub fn checkout(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    force: bool,
    progress: &dyn Progress,
) -> Result<CheckoutStats> {
    checkout_part(workspace, pointer, &pointer.path, force, progress)
}

/// As [`checkout`], limited to paths at or below `part`.
pub fn checkout_part(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    force: bool,
    progress: &dyn Progress,
) -> Result<CheckoutStats> {
    let part = if part.is_within(&pointer.path) { part } else { &pointer.path };
    let plan = plan(workspace, pointer, part, progress)?;
    if !plan.is_empty() && (force || plan.unsaved.is_empty()) {
        workspace.begin_checkout([pointer], progress)?;
    }
    let (done, skipped) = apply(workspace, pointer, &plan, force, progress)?;
    let recorded = recorded_entry(&workspace.repo.store, pointer, part)?;
    workspace.end_checkout(pointer, part, recorded, &skipped)?;
    Ok(done)
}

/// Puts content at a path as if the user had written it there: it does not become the base, so that `add` and
/// `commit` record it. Refuses to lose bytes.
pub fn place(workspace: &Workspace<'_>, content: &Pointer, progress: &dyn Progress) -> Result<CheckoutStats> {
    let plan = plan(workspace, content, &content.path, progress)?;
    Ok(apply(workspace, content, &plan, false, progress)?.0)
}

/// Removes the files at and below `part` except ignored ones; refuses to lose bytes unless `force`.
pub fn remove_files(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    force: bool,
    progress: &dyn Progress,
) -> Result<CheckoutStats> {
    let present = scan_part(workspace, pointer, part, progress)?;
    let store = &workspace.repo.store;
    let plan = plan_changes(store, &differences(store, part, None, present.as_ref())?, &|_| false);
    let (done, _) = apply(workspace, pointer, &plan, force, progress)?;
    if let Some(folder) = part.parent()
        && let Ok(folder) = workspace.repo.files.dir(&folder)
    {
        folder.remove_empty(part.name());
    }
    Ok(done)
}

/// Carries out a plan; also returns the paths that were not written.
fn apply(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    plan: &Plan,
    force: bool,
    progress: &dyn Progress,
) -> Result<(CheckoutStats, Vec<RepoPath>)> {
    if !plan.unsaved.is_empty() && !force {
        return Err(plan.unsaved_error());
    }
    if plan.is_empty() {
        return Ok(Default::default());
    }
    let store = &workspace.repo.store;
    if let Some((path, side)) = plan.write.iter().find(|(_, side)| !store.contains(&side.digest)) {
        let message = format!("the content of `{path}` ({}) is not in the local store", side.digest.short());
        return Err(Error::not_found(message).hint("get it with `mlx pull`"));
    }
    check_links(store, pointer, plan)?;
    // Fails early if the index cannot be written.
    drop(workspace.repo.try_lock()?);
    collision::warn(&workspace.repo.files, plan.write.iter().map(|it| &it.0), progress)?;
    execute(workspace, pointer, plan, progress)
}

/// Refuses recorded links that lead out of the tracked folder: a commit may come from anyone.
fn check_links(store: &Store, pointer: &Pointer, plan: &Plan) -> Result<()> {
    for (path, side) in plan.write.iter().filter(|(_, side)| side.kind == EntryKind::Link) {
        check_stays_inside(path, &pointer.path, &store.read(&side.digest)?)?;
    }
    Ok(())
}

fn execute(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<(CheckoutStats, Vec<RepoPath>)> {
    let files = &workspace.repo.files;
    let placed =
        plan.write.iter().filter(|(_, side)| side.size > MAX_PACKED_SIZE).map(|(_, side)| side.digest);
    let verified = workspace
        .repo
        .store
        .verified_files(&placed.chain(plan.replaced.iter().copied()).collect::<Vec<_>>())?;
    for (path, kind) in &plan.remove {
        // A folder that is not empty holds ignored files, or files created since the plan was made.
        match (kind, path.parent()) {
            (EntryKind::Folder, Some(parent)) => drop(files.dir(&parent)?.remove_empty(path.name())),
            _ => files.remove(path)?,
        }
        remove_empty_parents(workspace, path, &pointer.path);
    }
    let folders: BTreeSet<RepoPath> =
        plan.write.iter().filter_map(|it| it.0.parent()).chain(plan.folders.iter().cloned()).collect();
    for folder in &folders {
        make_room_for_folder(workspace, folder, &pointer.path)?;
        files.create_dir(folder)?.remove_stale_temp_files()?;
    }
    if plan.write.len() > BATCH_FILES {
        progress.event(Event::Started {
            task: "writing",
            total: Some(plan.write.iter().fold(0, |sum, file| u64::saturating_add(sum, file.1.size))),
        });
    }
    let links = workspace.repo.config.links()?;
    let case_insensitive = files.dir(&RepoPath::root())?.is_case_insensitive().unwrap_or(false);
    let context = WriteContext {
        files,
        store: &workspace.repo.store,
        links: &links,
        case_insensitive,
        skipped: Mutex::default(),
    };
    let batches = batches(&plan.write);
    let stats = batches.par_iter().map(|batch| context.write(batch, progress)).collect::<Result<Vec<_>>>()?;
    progress.event(Event::Finished);
    for (path, kind) in &plan.modes {
        let dir = files.dir(&path.parent().unwrap_or_default())?;
        dir.set_executable(path.name(), *kind == EntryKind::Executable)?;
    }
    workspace.repo.store.refresh_verified(&verified)?;
    let tick = fs::coarse_now();
    let mut index = workspace.index.borrow_mut();
    for (path, stat, side) in stats.into_iter().flatten() {
        index.insert(&path, &stat, side.digest, tick);
    }
    index.merge_pending();
    let removed_folders = plan.remove.iter().filter(|it| it.1 == EntryKind::Folder).count();
    let skipped = context.skipped.into_inner().unwrap_or_else(PoisonError::into_inner);
    let stats = CheckoutStats {
        written: (plan.write.len() + plan.modes.len() - skipped.len()) as u64,
        removed: (plan.remove.len() - removed_folders) as u64,
        folders: (plan.folders.len() + removed_folders) as u64,
    };
    Ok((stats, skipped))
}

/// Splits files into batches of one folder and at most [`BATCH_FILES`] each.
fn batches(write: &[(RepoPath, DiffSide)]) -> Vec<&[(RepoPath, DiffSide)]> {
    let folders = write.chunk_by(|a, b| a.0.parent() == b.0.parent());
    folders.flat_map(|folder| folder.chunks(BATCH_FILES)).collect()
}

/// Removes a file or link where `folder` or one of its parents belongs. The plan found it stored, or `force`
/// gave it up; above the tracked path `top` it is an error.
fn make_room_for_folder(workspace: &Workspace<'_>, folder: &RepoPath, top: &RepoPath) -> Result<()> {
    let mut ancestors = Vec::new();
    let mut here = Some(folder.clone());
    while let Some(ancestor) = here.filter(|it| !it.is_root()) {
        here = ancestor.parent();
        ancestors.push(ancestor);
    }
    for ancestor in ancestors.iter().rev() {
        match workspace.repo.files.stat(ancestor)?.map(|it| it.kind) {
            Some(FileKind::Folder) => {}
            Some(_) if !ancestor.is_within(top) => {
                let error = Error::new(
                    Kind::Conflict,
                    format!("`{ancestor}` is a file, but `{top}` needs a folder there"),
                );
                return Err(error.hint("move the file elsewhere"));
            }
            Some(_) => return workspace.repo.files.remove(ancestor),
            None => return Ok(()),
        }
    }
    Ok(())
}

fn remove_empty_parents(workspace: &Workspace<'_>, path: &RepoPath, top: &RepoPath) {
    let mut here = path.parent();
    while let Some(folder) = here.filter(|it| it.is_within(top) && it != top) {
        let parent = folder.parent().and_then(|path| workspace.repo.files.dir(&path).ok());
        if !parent.is_some_and(|dir| dir.remove_empty(folder.name())) {
            return;
        }
        here = folder.parent();
    }
}

/// Parameters of a checkout that all threads share.
struct WriteContext<'t> {
    files: &'t Root,
    store: &'t Store,
    links: &'t [LinkKind],
    /// True if names that differ in case may be one file.
    case_insensitive: bool,
    /// Files not written because another spelling of their name is taken.
    skipped: Mutex<Vec<RepoPath>>,
}

impl WriteContext<'_> {
    fn write(
        &self,
        batch: &[(RepoPath, DiffSide)],
        progress: &dyn Progress,
    ) -> Result<Vec<(RepoPath, FileStat, DiffSide)>> {
        let Some((first, _)) = batch.first() else { return Ok(Vec::new()) };
        let dir = self.files.dir(&first.parent().unwrap_or_default())?;
        let mut names = if self.case_insensitive { Some(collision::SpelledNames::read(&dir)?) } else { None };
        let mut stats = Vec::with_capacity(batch.len());
        for (path, side) in batch {
            if names.as_mut().is_some_and(|names| names.is_taken(&dir, path.name())) {
                progress.warn(&format!(
                    "`{path}` is not written: a file with another spelling of its name exists"
                ));
                self.skipped.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
                continue;
            }
            let stat = self.write_one(&dir, path, *side).context(|| format!("cannot write `{path}`"))?;
            stats.extend(stat.map(|stat| (path.clone(), stat, *side)));
            progress.event(Event::Advanced { by: side.size });
        }
        Ok(stats)
    }

    fn write_one(&self, dir: &Dir, path: &RepoPath, side: DiffSide) -> Result<Option<FileStat>> {
        let name = path.name();
        // Planned removals are done by now: a folder that still exists was not part of the plan.
        if dir.stat(name)?.is_some_and(|it| it.kind == FileKind::Folder) && !dir.remove_empty(name) {
            let error = Error::new(Kind::Conflict, format!("the folder `{path}` is in the way"));
            return Err(error.hint("it contains ignored or newly created files: move them elsewhere"));
        }
        let mode = if side.kind == EntryKind::Executable { Mode::Executable } else { Mode::Plain };
        if let Some(large) = self.store.large(&side.digest).filter(|_| is_regular(side.kind)) {
            // For a link into the store the index keeps the stat of its target.
            return match large.link_or_copy(dir, name, mode, self.links)? {
                LinkKind::Symlink => large.stat().map(Some),
                _ => dir.stat(name),
            };
        }
        let bytes = self.store.read(&side.digest)?;
        if side.kind == EntryKind::Link {
            return dir.symlink(&bytes, name).map(|()| None);
        }
        let mut temp = dir.create(mode.bits())?;
        temp.write_all(&bytes).context(|| "cannot write".into())?;
        temp.publish_with_stat(name)
    }
}
