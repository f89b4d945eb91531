//! Puts content where its pointer says: decided first, then done.

use std::{
    collections::BTreeSet,
    io::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Doing, Error, Kind, Result},
    fs::{self, Dir, Form, Link, Mode, Root, Stamp},
    path::RepoPath,
    pointer::{Pointer, Shape},
    progress::{Event, Progress},
    store::{Difference, EntryKind, Side, Store, TreeEntry, WHOLE, file_at},
    workspace::{
        Node, Workspace, collision,
        compare::{as_entry, differences},
        filter::ScanFilter,
        scan::{check_stays_inside, scan_filtered},
    },
};

/// Files that one thread writes before it takes the next batch.
const BATCH_FILES: usize = 256;

/// What a checkout would do; making one changes nothing.
#[derive(Debug, Default)]
pub struct Plan {
    write: Vec<(RepoPath, Side)>,
    /// The exec bit alone differs.
    modes: Vec<(RepoPath, EntryKind)>,
    folders: BTreeSet<RepoPath>,
    remove: Vec<(RepoPath, EntryKind)>,
    /// What files that go, or are written over, are now.
    replaced: Vec<Digest>,
    /// What would go and is stored nowhere.
    pub unsaved: Vec<RepoPath>,
}

/// What a checkout did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckedOut {
    pub written: u64,
    pub removed: u64,
    /// Empty folders that came or went.
    pub folders: u64,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.write.is_empty() && self.modes.is_empty() && self.remove.is_empty() && self.folders.is_empty()
    }

    fn unsaved_error(&self) -> Error {
        let some: Vec<_> = self.unsaved.iter().take(5).map(|it| format!("`{it}`")).collect();
        let more = if self.unsaved.len() > 5 {
            format!(" and {} more", self.unsaved.len() - 5)
        } else {
            String::new()
        };
        let message =
            format!("this would overwrite or delete what is stored nowhere: {}{more}", some.join(", "));
        Error::new(Kind::Conflict, message)
            .hint("keep it with `mlx add` or `mlx commit`, or give it up with `--force`")
    }
}

/// Decides how to make the workspace match a pointer, as far as it lies at or below `part`.
pub fn plan(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Plan> {
    let store = &workspace.repo.store;
    let wanted = recorded_entry(store, pointer, part).doing(|| format!("cannot check out `{part}`"))?;
    let there = scan_part(workspace, pointer, part, progress)?;
    let blocking = blocking_file(workspace, pointer, part, progress)?;
    let links = workspace.repo.config.links()?.iter().any(|it| matches!(it, Link::Hardlink | Link::Symlink));
    // What was linked stays so when the setting changes.
    let shared = |path: &RepoPath| links || workspace.is_shared(path);
    let found = differences(store, part, wanted.as_ref(), there.as_ref());
    let mut plan = plan_changes(store, &found.doing(|| format!("cannot check out `{part}`"))?, &shared);
    plan.unsaved.extend(blocking);
    plan.unsaved.retain(|it| !workspace.is_dangling_store_link(it));
    Ok(plan)
}

/// What is on record at `part`.
pub(super) fn recorded_entry(store: &Store, pointer: &Pointer, part: &RepoPath) -> Result<Option<TreeEntry>> {
    let below = part.below(&pointer.path).unwrap_or_default();
    if below.is_root() {
        return Ok(Some(as_entry(&pointer.content)));
    }
    if pointer.content.kind != Shape::Tree {
        return Ok(None);
    }
    file_at(store, &pointer.content.digest, &below)
}

/// What lies at `part` now, but for what is ignored and not on record.
fn scan_part(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Option<Node>> {
    let filter = ScanFilter::new(workspace, part, Some(pointer))?;
    scan_filtered(workspace, part, &filter, None, progress)
}

/// A file on the way to `part` that is stored nowhere; it would make room.
fn blocking_file(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Option<RepoPath>> {
    let mut way = part.clone();
    while let Some(above) = way.parent().filter(|it| it.is_within(&pointer.path)) {
        way = above;
        let Ok(Some(stamp)) = workspace.repo.files.stamp(&way) else { continue };
        if stamp.form == Form::Folder {
            break;
        }
        let node = scan_part(workspace, pointer, &way, progress)?;
        return Ok(node.filter(|it| !workspace.repo.store.is_sound(&it.digest)).map(|_| way));
    }
    Ok(None)
}

/// How to come from what is there to what is wanted; `shared` tells of files that may have other names.
fn plan_changes(store: &Store, found: &[Difference], shared: &dyn Fn(&RepoPath) -> bool) -> Plan {
    let mut plan = Plan::default();
    for Difference { path, old: wanted, new: there } in found {
        match (wanted, there) {
            // The mode of a file that others share is not ours to change: it is written anew.
            (Some(side), Some(is))
                if is.digest == side.digest
                    && is_regular(is.kind)
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
        let Some(side) = there else { continue };
        let stays = wanted.is_some_and(|it| it.digest == side.digest);
        plan.replaced.extend((side.size > WHOLE).then_some(side.digest));
        if !stays && side.kind != EntryKind::Folder && !store.is_sound(&side.digest) {
            plan.unsaved.push(path.clone());
        }
    }
    plan
}

/// Whether something is wanted in an empty folder.
fn has_wanted_below(found: &[Difference], folder: &RepoPath) -> bool {
    let after = &found[found.partition_point(|it| it.path <= *folder)..];
    let near = after.iter().take_while(|it| it.path.bytes().starts_with(folder.bytes()));
    near.filter(|it| it.path.is_within(folder)).any(|it| it.old.is_some())
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
) -> Result<CheckedOut> {
    checkout_part(workspace, pointer, &pointer.path, force, progress)
}

/// As [`checkout`], for what lies at or below `part` alone.
pub fn checkout_part(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    force: bool,
    progress: &dyn Progress,
) -> Result<CheckedOut> {
    let part = if part.is_within(&pointer.path) { part } else { &pointer.path };
    let plan = plan(workspace, pointer, part, progress)?;
    apply(workspace, pointer, &plan, force, progress)
}

/// Removes what lies at or below `part`, ignored files excepted; refuses to lose bytes unless `force`.
pub fn clear(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    force: bool,
    progress: &dyn Progress,
) -> Result<CheckedOut> {
    let there = scan_part(workspace, pointer, part, progress)?;
    let store = &workspace.repo.store;
    let plan = plan_changes(store, &differences(store, part, None, there.as_ref())?, &|_| false);
    let done = apply(workspace, pointer, &plan, force, progress)?;
    if let Some(folder) = part.parent()
        && let Ok(folder) = workspace.repo.files.dir(&folder)
    {
        folder.remove_empty(part.name());
    }
    Ok(done)
}

fn apply(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    plan: &Plan,
    force: bool,
    progress: &dyn Progress,
) -> Result<CheckedOut> {
    if !plan.unsaved.is_empty() && !force {
        return Err(plan.unsaved_error());
    }
    if plan.is_empty() {
        return Ok(CheckedOut::default());
    }
    let store = &workspace.repo.store;
    if let Some((path, side)) = plan.write.iter().find(|it| !store.contains(&it.1.digest)) {
        let message = format!("the content of `{path}` ({}) is not here", side.digest.short());
        return Err(Error::not_found(message).hint("bring it with `mlx pull`"));
    }
    check_links(store, pointer, plan)?;
    // Where the index cannot be written, nothing is.
    drop(workspace.repo.try_lock()?);
    collision::warn(&workspace.repo.files, plan.write.iter().map(|it| &it.0), progress)?;
    execute(workspace, pointer, plan, progress)
}

/// Links that somebody else recorded stay inside their folder, too.
fn check_links(store: &Store, pointer: &Pointer, plan: &Plan) -> Result<()> {
    for (path, side) in plan.write.iter().filter(|it| it.1.kind == EntryKind::Link) {
        check_stays_inside(path, &pointer.path, &store.read(&side.digest)?)?;
    }
    Ok(())
}

fn execute(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<CheckedOut> {
    let files = &workspace.repo.files;
    let placed = plan.write.iter().filter(|it| it.1.size > WHOLE).map(|it| it.1.digest);
    let vouched =
        workspace.repo.store.vouched(&placed.chain(plan.replaced.iter().copied()).collect::<Vec<_>>())?;
    for (path, kind) in &plan.remove {
        // A folder that is not empty holds what is ignored, or what came since the plan was made.
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
        files.make_dir(folder)?.sweep()?;
    }
    if plan.write.len() > BATCH_FILES {
        progress.event(Event::Started {
            task: "writing",
            total: Some(plan.write.iter().fold(0, |sum, it| u64::saturating_add(sum, it.1.size))),
        });
    }
    let links = workspace.repo.config.links()?;
    let case_insensitive = files.dir(&RepoPath::root())?.folds_case().unwrap_or(false);
    let target = WriteContext {
        files,
        store: &workspace.repo.store,
        links: &links,
        case_insensitive,
        skipped: AtomicU64::new(0),
    };
    let batches = batches(&plan.write);
    let stamps = batches.par_iter().map(|it| target.write(it, progress)).collect::<Result<Vec<_>>>()?;
    progress.event(Event::Finished);
    for (path, kind) in &plan.modes {
        let dir = files.dir(&path.parent().unwrap_or_default())?;
        dir.set_executable(path.name(), *kind == EntryKind::Executable)?;
    }
    workspace.repo.store.vouch_again(&vouched)?;
    let tick = fs::tick();
    let mut index = workspace.index.borrow_mut();
    for (path, stamp, side) in stamps.into_iter().flatten() {
        index.insert(&path, &stamp, side.digest, tick);
    }
    index.merge_pending();
    let gone = plan.remove.iter().filter(|it| it.1 == EntryKind::Folder).count();
    Ok(CheckedOut {
        written: (plan.write.len() + plan.modes.len()) as u64 - target.skipped.load(Ordering::Relaxed),
        removed: (plan.remove.len() - gone) as u64,
        folders: (plan.folders.len() + gone) as u64,
    })
}

/// Files of one folder, a few hundred at a time.
fn batches(write: &[(RepoPath, Side)]) -> Vec<&[(RepoPath, Side)]> {
    let folders = write.chunk_by(|a, b| a.0.parent() == b.0.parent());
    folders.flat_map(|it| it.chunks(BATCH_FILES)).collect()
}

/// A file or link where a folder belongs was found stored (or given up) by the plan, and goes.
fn make_room_for_folder(workspace: &Workspace<'_>, folder: &RepoPath, top: &RepoPath) -> Result<()> {
    let mut ways = Vec::new();
    let mut here = Some(folder.clone());
    while let Some(way) = here.filter(|it| !it.is_root()) {
        here = way.parent();
        ways.push(way);
    }
    for way in ways.iter().rev() {
        match workspace.repo.files.stamp(way)?.map(|it| it.form) {
            Some(Form::Folder) => {}
            Some(_) if !way.is_within(top) => {
                let error =
                    Error::new(Kind::Conflict, format!("`{way}` is no folder, and `{top}` belongs into it"));
                return Err(error.hint("move it away"));
            }
            Some(_) => return workspace.repo.files.remove(way),
            None => return Ok(()),
        }
    }
    Ok(())
}

fn remove_empty_parents(workspace: &Workspace<'_>, path: &RepoPath, top: &RepoPath) {
    let mut here = path.parent();
    while let Some(folder) = here.filter(|it| it.is_within(top) && it != top) {
        let gone = folder.parent().and_then(|it| workspace.repo.files.dir(&it).ok());
        if !gone.is_some_and(|it| it.remove_empty(folder.name())) {
            return;
        }
        here = folder.parent();
    }
}

/// Where to, from where, and how: what threads share.
struct WriteContext<'t> {
    files: &'t Root,
    store: &'t Store,
    links: &'t [Link],
    /// Whether names that differ may be one.
    case_insensitive: bool,
    /// Files whose place another spelling of their name has.
    skipped: AtomicU64,
}

impl WriteContext<'_> {
    fn write(
        &self,
        batch: &[(RepoPath, Side)],
        progress: &dyn Progress,
    ) -> Result<Vec<(RepoPath, Stamp, Side)>> {
        let Some((first, _)) = batch.first() else { return Ok(Vec::new()) };
        let dir = self.files.dir(&first.parent().unwrap_or_default())?;
        let mut names = if self.case_insensitive { Some(collision::SpelledNames::read(&dir)?) } else { None };
        let mut stamps = Vec::with_capacity(batch.len());
        for (path, side) in batch {
            if names.as_mut().is_some_and(|it| it.is_taken(&dir, path.name())) {
                progress.warn(&format!(
                    "`{path}` is not written: a file with another spelling of its name is here"
                ));
                self.skipped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let stamp = self.write_one(&dir, path, *side).doing(|| format!("cannot write `{path}`"))?;
            stamps.extend(stamp.map(|it| (path.clone(), it, *side)));
            progress.event(Event::Advanced { by: side.size });
        }
        Ok(stamps)
    }

    fn write_one(&self, dir: &Dir, path: &RepoPath, side: Side) -> Result<Option<Stamp>> {
        let name = path.name();
        // What was planned to go from here is gone.
        if dir.stamp(name)?.is_some_and(|it| it.form == Form::Folder) && !dir.remove_empty(name) {
            let error = Error::new(Kind::Conflict, format!("the folder `{path}` stands in the way"));
            return Err(error.hint("it holds files that mlx ignores or that just came: move them away"));
        }
        let mode = if side.kind == EntryKind::Executable { Mode::Executable } else { Mode::Plain };
        if let Some(large) = self.store.large(&side.digest).filter(|_| is_regular(side.kind)) {
            // A link into the store is as good as what it points to.
            return match large.place(dir, name, mode, self.links)? {
                Link::Symlink => large.stamp().map(Some),
                _ => dir.stamp(name),
            };
        }
        let bytes = self.store.read(&side.digest)?;
        if side.kind == EntryKind::Link {
            return dir.symlink(&bytes, name).map(|()| None);
        }
        let mut temp = dir.create(mode.bits())?;
        temp.write_all(&bytes).doing(|| "cannot write".into())?;
        temp.publish_stamped(name)
    }
}
