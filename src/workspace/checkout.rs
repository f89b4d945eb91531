//! Checkout: makes the workspace match its pointers.
//!
//! A pure step compares the recorded trees with the files and plans what to write and remove; a second step
//! (`execute`) carries the plans out. Files whose bytes are not stored anywhere are never lost without
//! `force`: those that the plans found are all named before anything changes, and those that are saved
//! meanwhile stay.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::FileKind,
    path::{RepoPath, quoted_list},
    pointer::Pointer,
    progress::Progress,
    store::{DiffSide, Difference, EntryKind, MAX_PACKED_SIZE, Store, TreeEntry},
    workspace::{
        Node, Workspace, collision,
        compare::differences,
        execute::{Executed, Plan, Write, execute},
        filter::ScanFilter,
        scan::{check_stays_inside, scan_filtered},
        siblings::{Part, visit_parts},
    },
};

/// Counts of what a checkout did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckoutStats {
    pub written: u64,
    pub removed: u64,
    /// Empty folders created or removed.
    pub folders: u64,
}

/// Error for files that a checkout would overwrite or delete, and that the store lacks.
fn unsaved_error(unsaved: &[RepoPath]) -> Error {
    let names = quoted_list(unsaved);
    let message = format!("this would overwrite or delete files that are not stored anywhere: {names}");
    Error::new(Kind::Conflict, message)
        .hint("keep them with `mlx add` or `mlx commit`, or discard them with `--force`")
}

/// Error for files that another program saved during a checkout.
fn kept_error(kept: &[RepoPath]) -> Error {
    let message =
        format!("files changed during the checkout and were left as they are: {}", quoted_list(kept));
    Error::new(Kind::Conflict, message)
        .hint("keep the changes with `mlx add` or `mlx commit`, or discard them with `mlx checkout --force`")
}

/// Plans how to get from what is present to what is recorded; changes nothing.
fn plan_part<'p>(workspace: &Workspace<'_>, part: Part<'p>, progress: &dyn Progress) -> Result<Planned<'p>> {
    let Part { pointer, path, recorded, present } = part;
    let store = &workspace.repo.store;
    let links = workspace.repo.config.links()?;
    let links = links.iter().any(|link| link.is_same_file());
    // Linked files stay linked after the setting changes.
    let shared = |path: &RepoPath| links || workspace.is_shared(path);
    let found = differences(store, path, recorded.as_ref(), present.as_ref());
    let found = workspace.without_git_files(path, found.context(|| doing(path))?)?;
    let mut plan = plan_changes(store, found, &shared);
    if plan.writes_anything()
        && let Some((file, side)) = blocking_file(workspace, pointer, path, progress)?
    {
        plan.unsaved.extend((!store.is_intact(&side.digest)).then(|| file.clone()));
        plan.remove.push((file, side));
    }
    plan.unsaved.retain(|path| !workspace.is_dangling_store_link(path));
    Ok(Planned { pointer, part: path, recorded, plan })
}

/// Returns the context of an error about a part.
fn doing(part: &RepoPath) -> String {
    format!("cannot check out `{part}`")
}

/// Scans `part`, without files that are ignored and not tracked. Removes what killed commands left.
fn scan_part(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Option<Node>> {
    let filter = ScanFilter::new(workspace, part, Some(pointer))?.cleaning(&workspace.repo.store, progress);
    scan_filtered(workspace, part, &filter, None, progress)
}

/// Returns a file that has to make room for a folder on the way to `part`.
fn blocking_file(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Option<(RepoPath, DiffSide)>> {
    let mut ancestor = part.clone();
    while let Some(parent) = ancestor.parent().filter(|it| it.is_within(&pointer.path)) {
        ancestor = parent;
        let Ok(Some(stat)) = workspace.repo.files.stat(&ancestor) else { continue };
        if stat.kind == FileKind::Folder {
            break;
        }
        let node = scan_part(workspace, pointer, &ancestor, progress)?;
        let side = |node: Node| DiffSide { kind: node.kind, digest: node.digest, size: node.size };
        return Ok(node.map(|node| (ancestor, side(node))));
    }
    Ok(None)
}

/// Plans how to get from the present files to the recorded ones; `shared` is true for files with other names.
/// The differences become the files to write in place, since there may be millions.
fn plan_changes(store: &Store, found: Vec<Difference>, shared: &dyn Fn(&RepoPath) -> bool) -> Plan {
    let is_folder = |it: &&Difference| {
        it.old.is_none() && it.new.is_some_and(|present| present.kind == EntryKind::Folder)
    };
    let folders = found.iter().filter(is_folder).map(|it| &it.path);
    let needed: BTreeSet<_> = folders.filter(|folder| has_wanted_below(&found, folder)).cloned().collect();
    let mut plan = Plan::default();
    let write = found.into_iter().filter_map(|difference| {
        note_replaced(&mut plan, store, &difference);
        plan_change(&mut plan, difference, shared, &needed)
    });
    let write = write.collect();
    Plan { write, ..plan }
}

/// Notes what is lost with the present file, which goes or is overwritten.
fn note_replaced(
    plan: &mut Plan,
    store: &Store,
    Difference { path, old: wanted, new: present }: &Difference,
) {
    let Some(side) = present else { return };
    let unchanged = wanted.is_some_and(|wanted| wanted.digest == side.digest);
    plan.replaced.extend((side.size > MAX_PACKED_SIZE).then_some(side.digest));
    if !unchanged && side.kind != EntryKind::Folder && !store.is_intact(&side.digest) {
        plan.unsaved.push(path.clone());
    }
}

/// Adds a change to the plan, or returns the file to write. Folders that are `needed` for others stay.
fn plan_change(
    plan: &mut Plan,
    Difference { path, old: wanted, new: present }: Difference,
    shared: &dyn Fn(&RepoPath) -> bool,
    needed: &BTreeSet<RepoPath>,
) -> Option<Write> {
    match (wanted, present) {
        // The mode of a file that other names share must not change: the file is written anew.
        (Some(side), Some(present))
            if present.digest == side.digest
                && present.kind.is_regular()
                && side.kind.is_regular()
                && !shared(&path) =>
        {
            plan.modes.push((path, side.kind));
        }
        (Some(side), present) if side.kind == EntryKind::Folder => {
            // A file makes room for the folder.
            plan.remove.extend(present.map(|present| (path.clone(), present)));
            plan.folders.insert(path);
        }
        (Some(side), present) => {
            let scanned = present.filter(|present| present.kind != EntryKind::Folder);
            return Some(Write { path, side, scanned });
        }
        (None, Some(side)) if side.kind != EntryKind::Folder || !needed.contains(&path) => {
            plan.remove.push((path, side));
        }
        (None, _) => {}
    }
    None
}

/// Returns true if an entry below `folder`, which is an empty folder now, is to be written.
fn has_wanted_below(found: &[Difference], folder: &RepoPath) -> bool {
    let after = &found[found.partition_point(|difference| difference.path <= *folder)..];
    let near = after.iter().take_while(|difference| difference.path.bytes().starts_with(folder.bytes()));
    near.filter(|difference| difference.path.is_within(folder)).any(|difference| difference.old.is_some())
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
    let planned = plan_parts(workspace, &[(pointer, part)], force, progress)?;
    Ok(carry_out(workspace, planned, &|_| true, progress)?
        .first()
        .map_or_else(CheckoutStats::default, |row| row.1))
}

/// As [`checkout_part`] for many parts of data, each with its pointer; also repairs their lines in
/// `.gitignore`, and first retires the data in `retired`. Unless `force`, unsaved files in any of the parts
/// are an error before anything changes, and those in retired data stay. Where content is missing, the other
/// parts are checked out.
pub fn checkout_parts(
    workspace: &Workspace<'_>,
    parts: &[(&Pointer, &RepoPath)],
    retired: &[Pointer],
    force: bool,
    progress: &dyn Progress,
) -> Result<Vec<(RepoPath, CheckoutStats)>> {
    let planned = plan_parts(workspace, parts, force, progress)?;
    let mut pointers: Vec<_> = parts.iter().map(|it| it.0).collect();
    pointers.dedup_by(|a, b| std::ptr::eq(*a, *b));
    workspace.repair_ignore_lines(&pointers, progress)?;
    let mut done = Vec::new();
    for data in retired {
        done.push((data.path.clone(), workspace.retire(data, force, progress)?));
    }
    done.extend(carry_out(workspace, planned, &|_| true, progress)?);
    Ok(done)
}

/// As [`checkout_parts`] for content that is not recorded now. Where `is_edit` returns true, it counts as
/// written by the user: it does not become the base, so that `add` and `commit` record it.
pub fn place_parts(
    workspace: &Workspace<'_>,
    parts: &[(&Pointer, &RepoPath)],
    is_edit: impl Fn(&Pointer) -> bool,
    force: bool,
    progress: &dyn Progress,
) -> Result<Vec<(RepoPath, CheckoutStats)>> {
    let planned = plan_parts(workspace, parts, force, progress)?;
    carry_out(workspace, planned, &|pointer| !is_edit(pointer), progress)
}

/// Plan of one part.
struct Planned<'p> {
    pointer: &'p Pointer,
    part: &'p RepoPath,
    recorded: Option<TreeEntry>,
    plan: Plan,
}

/// Plans of several parts, those of one pointer in a row.
struct Plans<'p> {
    all: Vec<Planned<'p>>,
    /// The first error of a part that was left out because its tree is not stored.
    missing: Option<Error>,
}

fn plan_parts<'p>(
    workspace: &Workspace<'_>,
    parts: &[(&'p Pointer, &'p RepoPath)],
    force: bool,
    progress: &dyn Progress,
) -> Result<Plans<'p>> {
    workspace.clean_beside(parts.iter().map(|it| it.1), progress);
    let mut plans = Plans { all: Vec::new(), missing: None };
    visit_parts(workspace, parts, doing, progress, &mut |_, part| {
        match part.and_then(|part| plan_part(workspace, part, progress)) {
            Ok(planned) => plans.all.push(planned),
            Err(error) if error.kind() == Kind::NotFound => {
                plans.missing.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    // Several parts may need the place of one file.
    let unsaved: BTreeSet<_> = plans.all.iter().flat_map(|it| it.plan.unsaved.iter().cloned()).collect();
    if unsaved.is_empty() || force {
        return Ok(plans);
    }
    Err(unsaved_error(&unsaved.into_iter().collect::<Vec<_>>()))
}

/// Carries out the plans of each pointer together, so that many parts cost as much as the whole.
fn carry_out(
    workspace: &Workspace<'_>,
    Plans { mut all, mut missing }: Plans<'_>,
    becomes_base: &dyn Fn(&Pointer) -> bool,
    progress: &dyn Progress,
) -> Result<Vec<(RepoPath, CheckoutStats)>> {
    let changed = all.iter().filter(|it| becomes_base(it.pointer) && !it.plan.is_empty());
    workspace.begin_checkout(changed.map(|it| it.pointer), progress)?;
    all.retain(|planned| match check_stored(&workspace.repo.store, &planned.plan) {
        Ok(()) => true,
        Err(error) => {
            missing.get_or_insert(error);
            false
        }
    });
    if all.iter().any(|planned| !planned.plan.is_empty()) {
        // Fails early if the index cannot be written.
        drop(workspace.repo.try_lock()?);
    }
    let (mut done, mut kept) = (Vec::new(), Vec::new());
    for parts in all.chunk_by_mut(|a, b| std::ptr::eq(a.pointer, b.pointer)) {
        let pointer = parts[0].pointer;
        let mut plan = Plan::default();
        parts.iter_mut().for_each(|part| plan.append(std::mem::take(&mut part.plan)));
        match apply(workspace, pointer, &plan, progress) {
            Ok(executed) => {
                if becomes_base(pointer) {
                    let recorded = parts.iter_mut().map(|it| (it.part, it.recorded.take())).collect();
                    workspace.end_checkout(pointer, recorded, &executed.skipped)?;
                }
                let paths: Vec<_> = parts.iter().map(|it| it.part).collect();
                let stats = executed.stats_of(&plan, &paths);
                done.extend(paths.into_iter().cloned().zip(stats));
                kept.extend(executed.kept);
            }
            Err(error) if error.kind() == Kind::NotFound => missing = missing.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if kept.is_empty() => return Err(error),
        Some(error) => progress.warn(&error.chain_text()),
        None => {}
    }
    if kept.is_empty() { Ok(done) } else { Err(kept_error(&kept)) }
}

/// Removes the files at and below `part` except ignored ones; refuses to lose bytes unless `force`.
pub fn remove_files(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    force: bool,
    progress: &dyn Progress,
) -> Result<CheckoutStats> {
    let plan = plan_removal(workspace, pointer, part, progress)?;
    let done = apply_unless_lossy(workspace, pointer, &plan, force, progress)?;
    remove_empty(workspace, part);
    Ok(done)
}

/// Plans the removal of all files at and below `part` except ignored ones; changes nothing.
pub(super) fn plan_removal(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    part: &RepoPath,
    progress: &dyn Progress,
) -> Result<Plan> {
    let present = scan_part(workspace, pointer, part, progress)?;
    let store = &workspace.repo.store;
    let found = workspace.without_git_files(part, differences(store, part, None, present.as_ref())?)?;
    let mut plan = plan_changes(store, found, &|_| false);
    plan.unsaved.retain(|path| !workspace.is_dangling_store_link(path));
    Ok(plan)
}

/// Removes the folder at `path` if it is empty.
pub(super) fn remove_empty(workspace: &Workspace<'_>, path: &RepoPath) {
    if let Some(folder) = path.parent()
        && let Ok(folder) = workspace.repo.files.dir(&folder)
    {
        folder.remove_empty(path.name());
    }
}

/// Carries out a single plan; files that it would lose are an error, unless `force`.
fn apply_unless_lossy(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    plan: &Plan,
    force: bool,
    progress: &dyn Progress,
) -> Result<CheckoutStats> {
    if !plan.unsaved.is_empty() && !force {
        return Err(unsaved_error(&plan.unsaved));
    }
    check_stored(&workspace.repo.store, plan)?;
    if !plan.is_empty() {
        // Fails early if the index cannot be written.
        drop(workspace.repo.try_lock()?);
    }
    let executed = apply(workspace, pointer, plan, progress)?;
    if executed.kept.is_empty() { Ok(executed.stats) } else { Err(kept_error(&executed.kept)) }
}

/// Carries out a plan whose contents are all stored, as [`check_stored`] tells.
fn apply(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<Executed> {
    if plan.is_empty() {
        return Ok(Executed::default());
    }
    check_links(&workspace.repo.store, pointer, plan)?;
    collision::warn(&workspace.repo.files, plan.write.iter().map(|it| &it.path), progress)?;
    execute(workspace, pointer, plan, progress)
}

/// Refuses a plan whose contents are not all stored.
fn check_stored(store: &Store, plan: &Plan) -> Result<()> {
    let missing = plan.write.iter().find(|write| !store.contains(&write.side.digest));
    let Some(Write { path, side, .. }) = missing else { return Ok(()) };
    let message = format!("the content of `{path}` ({}) is not in the local store", side.digest.short());
    Err(Error::not_found(message).hint("get it with `mlx pull`"))
}

/// Refuses recorded links that lead out of the tracked folder: a commit may come from anyone.
fn check_links(store: &Store, pointer: &Pointer, plan: &Plan) -> Result<()> {
    for Write { path, side, .. } in plan.write.iter().filter(|write| write.side.kind == EntryKind::Link) {
        check_stays_inside(path, &pointer.path, &store.read(&side.digest)?)?;
    }
    Ok(())
}
