//! Garbage collection: removes objects that nothing refers to any more.
//!
//! The removal is planned without any lock, from one snapshot of all references; then, while the store's gate
//! is locked, a second snapshot is taken. If a pointer, a Git name or the needs of another clone changed
//! meanwhile, or if packs were added that may complete a folder that was missing in part, everything is
//! planned again. Objects used by running commands are in their leases (`store::lease`). So the gate is
//! locked only while files are removed, and an hour-long `add` at the same time loses nothing.

use std::collections::{BTreeSet, HashSet};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    fs::{self, Lock},
    maintenance::{
        checked_out::files_in_use,
        clones,
        history_cache::HistoryCache,
        leftovers::{FreedLeftovers, free_leftovers},
        mark::{Marked, mark},
        roots::{Detail, Roots, roots},
        snapshot::{Snapshot, take_snapshot},
    },
    path::RepoPath,
    progress::Progress,
    repo::Repo,
    store::{Amount, ChunkPlan, FilesInUse, Freed, Inventory, PrunePlan, plan_prune},
    time::Timestamp,
    workspace::{clean_work_tree, forget_expired},
};

/// Number of times a gc starts over because references changed meanwhile.
const MAX_ATTEMPTS: u32 = 20;
/// Number of warnings that are shown one by one.
const MAX_WARNINGS: usize = 5;

/// Amounts that were removed, or would be.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcReport {
    pub freed: Freed,
    /// Outputs of failed runs, and logs.
    pub leftovers: FreedLeftovers,
    pub rewritten: Amount,
    /// Small packs that are merged.
    pub merged: Amount,
    /// Unreferenced objects that stay, in packs that are young or mostly referenced.
    pub retained: Amount,
    /// Old versions of large files that a dry run did not compare with others.
    pub not_compared: Amount,
    /// Number of referenced objects.
    pub kept: u64,
    /// Number of other clones that share the store.
    pub clones: u64,
    pub done: bool,
}

/// Choice between removing objects and only reporting them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcMode {
    DryRun,
    Apply,
}

/// Removes unreferenced objects that are older than `grace`, in seconds.
pub fn collect(repo: &Repo, grace: i64, mode: GcMode, progress: &dyn Progress) -> Result<GcReport> {
    let _lock = if mode == GcMode::Apply { Some(lock_gc(repo, progress)?) } else { None };
    let published = publish_own_needs(repo, mode, progress)?;
    let mut freed = Freed::default();
    for _ in 0..MAX_ATTEMPTS {
        let failed = clones::renew_lists(repo)?;
        let mut decision = decide(repo, grace, &failed, mode, progress)?;
        if mode == GcMode::DryRun {
            decision.warn(progress);
            let leftovers = free_leftovers(&decision.snapshot, false, progress)?;
            return Ok(GcReport { leftovers, ..decision.report(false) });
        }
        let mut repacked = repo.store.repack(&decision.plan)?;
        let removed = decision.plan.removed_large_files();
        let held = repo.store.write_chunks(&decision.chunks, &removed)?;
        decision.plan.hold(&held.files);
        repacked.disk_full |= held.disk_full;
        let gate = repo.store.lock_gate()?;
        // Before the second snapshot: a command that ends in between has written its pointers by then.
        let leased = leased(repo)?;
        if decision.chunks.drops_any(&leased) || !is_still_valid(repo, grace, &decision)? {
            drop(gate);
            continue;
        }
        decision.hold_in_use(repo)?;
        // Records before the objects they name, those of all versions that had expired for the plan.
        forget_expired(repo, Timestamp::now())?;
        let removed = repo.store.prune(&decision.plan, &repacked, &leased)?;
        drop(gate);
        freed.add(&removed);
        if repacked.disk_full && removed.total().count > 0 {
            // There is space now for repacking, which allows more to be removed.
            continue;
        }
        decision.warn(progress);
        if held.lacking > 0 {
            progress.warn(&format!(
                "old versions that lack chunks: {}; large files stay, as they may have them: run `mlx fsck`",
                held.lacking
            ));
        }
        let leftovers = free_leftovers(&decision.snapshot, true, progress)?;
        let mut report = GcReport { freed, leftovers, ..decision.report(true) };
        if repacked.disk_full {
            progress
                .warn("the disk is full: half-empty and small packs stay as they are; run `mlx gc` again");
            (report.rewritten, report.merged) = (Amount::default(), Amount::default());
        }
        clean_up(repo, published, progress)?;
        return Ok(report);
    }
    if freed == Freed::default() {
        progress.warn("nothing was freed");
    }
    let message = format!("gave up after {MAX_ATTEMPTS} tries: tracked files kept changing");
    Err(Error::new(Kind::Conflict, message).hint("run `mlx gc` again when no other command changes them"))
}

/// Publishes what this clone needs; returns false if that failed because the disk is full, in which case the
/// gc first makes space for it. The gc itself does not use the needs of its own clone, so in a dry run any
/// error is ignored.
fn publish_own_needs(repo: &Repo, mode: GcMode, progress: &dyn Progress) -> Result<bool> {
    match HistoryCache::clear(repo).and_then(|()| clones::publish_needs(repo, progress)) {
        Err(error) if mode == GcMode::Apply && error.kind() != Kind::Unavailable => Err(error),
        published => Ok(published.is_ok()),
    }
}

fn clean_up(repo: &Repo, published: bool, progress: &dyn Progress) -> Result<()> {
    repo.store.prune_verified()?;
    for root in [&repo.shared, &repo.private] {
        root.dir(&RepoPath::root())?.clean_own()?;
    }
    clean_work_tree(repo, progress)?;
    if published { Ok(()) } else { clones::publish_needs(repo, progress) }
}

/// Prevents a second gc or repair: each would take the other's new packs for garbage.
pub fn lock_gc(repo: &Repo, progress: &dyn Progress) -> Result<Lock> {
    fs::lock_with_progress(repo.store.root(), &RepoPath::from_text("gc.lock")?, progress)
}

struct Decision {
    snapshot: Snapshot,
    marked: Marked,
    inventory: Inventory,
    plan: PrunePlan,
    chunks: ChunkPlan,
    /// Warnings about files that could not be read in full.
    warnings: Vec<String>,
}

fn decide(
    repo: &Repo,
    grace: i64,
    failed: &BTreeSet<String>,
    mode: GcMode,
    progress: &dyn Progress,
) -> Result<Decision> {
    let snapshot = take_snapshot(repo, grace)?;
    let unknown = clones::unknown_clones(&snapshot, failed)?;
    check_worktrees(&snapshot)?;
    let mut found = roots(repo, &snapshot, Detail::Digests)?;
    if let Some((place, error)) = found.unreadable.pop() {
        let context = || format!("nothing was freed: it is unknown what {place} needs");
        return Err(error).context(context).map_err(|error| match error.hint_text() {
            Some(_) => error,
            None => error.hint("fix or remove it; `mlx fsck` lists all files that cannot be read"),
        });
    }
    // A missing or wrong index would hide referenced objects.
    repo.store.load_orphan_packs()?;
    repo.store.reload_differing_indexes()?;
    let mut warnings = warnings(&found);
    let inventory = repo.store.inventory()?;
    repo.store.check_readable().context(|| "nothing was freed: it is unknown what is needed".into())?;
    if !unknown.is_empty() {
        warnings.extend(clones::add_recent_needs(repo, &snapshot, &unknown, &mut found)?);
    }
    let (now, since) = (fs::coarse_now(), unknown.iter().map(|list| list.written).min());
    let is_old = |mtime: i64| {
        let is_past = now.saturating_sub(mtime).max(0) >= grace.saturating_mul(1_000_000_000);
        is_past && since.is_none_or(|since| mtime < since)
    };
    let young: Vec<Digest> =
        inventory.runs.iter().filter(|it| !is_old(it.mtime)).map(|it| it.digest).collect();
    found.add_run_outputs(&repo.store, &young)?;
    let mut marked = mark(&repo.store, &found)?;
    if let Some(page) = marked.damaged.first() {
        let message = format!(
            "nothing was freed: the stored folder {page} is damaged, and it is unknown what it needs"
        );
        return Err(Error::corrupt(message).hint("run `mlx fsck --repair`"));
    }
    let pinned = repo.store.leases()?.into_iter().flat_map(|lease| lease.pinned).collect();
    let in_use = if inventory.may_have_chunks() {
        files_in_use(repo, &snapshot, pinned)?
    } else {
        FilesInUse { pinned, ..FilesInUse::default() }
    };
    let progress = (mode == GcMode::Apply).then_some(progress);
    let chunks = repo.store.plan_chunks(&inventory, &mut marked.live, &in_use, &is_old, progress)?;
    let mut plan = plan_prune(&inventory, &marked.live, &is_old);
    plan.add_chunks(&chunks, &inventory);
    Ok(Decision { snapshot, marked, inventory, plan, chunks, warnings })
}

/// Fails if a worktree is missing: it is unknown what its files refer to.
fn check_worktrees(snapshot: &Snapshot) -> Result<()> {
    let Some(away) = snapshot.worktrees.iter().find_map(|it| it.missing_root.as_ref()) else { return Ok(()) };
    let message = format!("nothing was freed: the worktree `{}` is missing", away.display());
    let hint = "bring it back, tell Git where it is (`git worktree repair PATH`), or remove it for good \
                (`git worktree unlock` if it is locked, then `git worktree prune`)";
    Err(Error::new(Kind::Unavailable, message).hint(hint))
}

fn warnings(found: &Roots) -> Vec<String> {
    let salvaged = found.salvaged.iter().map(|(place, error)| {
        format!("{place} cannot be read ({}): all digests written in it are kept", error.chain_text())
    });
    let not_pointers = found.not_pointers.iter();
    let not_pointers = not_pointers
        .map(|path| format!("`{path}` ends in .mlx but is not a pointer; it keeps nothing alive"));
    salvaged.chain(not_pointers).collect()
}

impl Decision {
    /// Holds versions that another clone has checked out since the plan; the gate must be locked.
    fn hold_in_use(&mut self, repo: &Repo) -> Result<()> {
        if self.chunks.converts_any() {
            let in_use = files_in_use(repo, &self.snapshot, HashSet::new())?;
            let held = self.plan.converted_among(&in_use.checked_out);
            self.plan.hold(&held);
        }
        Ok(())
    }

    fn warn(&self, progress: &dyn Progress) {
        self.warnings.iter().take(MAX_WARNINGS).for_each(|it| progress.warn(it));
        if self.warnings.len() > MAX_WARNINGS {
            progress.warn(&format!("… and {} more files like these", self.warnings.len() - MAX_WARNINGS));
        }
    }

    fn report(&self, done: bool) -> GcReport {
        GcReport {
            freed: self.plan.freed,
            rewritten: self.plan.rewritten,
            merged: self.plan.merged,
            retained: self.plan.retained,
            not_compared: self.chunks.not_compared,
            leftovers: FreedLeftovers::default(),
            kept: self.marked.live.objects.len() as u64,
            clones: self.snapshot.other_clones.len() as u64,
            done,
        }
    }
}

/// Returns true if the decision still holds; the gate must be locked.
fn is_still_valid(repo: &Repo, grace: i64, decision: &Decision) -> Result<bool> {
    if decision.plan.is_empty() {
        return Ok(true);
    }
    if take_snapshot(repo, grace)? != decision.snapshot {
        return Ok(false);
    }
    // A page that was added since may refer to objects that were stored before.
    Ok(decision.marked.absent.is_empty() || repo.store.has_no_new_packs(&decision.inventory)?)
}

/// Returns everything pinned by running commands and, in a shared store, by killed ones. If the store is not
/// shared, whatever a killed command wrote is found among this clone's references, and its lease is removed.
fn leased(repo: &Repo) -> Result<HashSet<Digest>> {
    let shared = repo.clone_id()?.is_some();
    let mut found = HashSet::new();
    for lease in repo.store.leases()? {
        if lease.alive || shared {
            found.extend(lease.pinned);
        } else {
            repo.store.remove_lease(&lease)?;
        }
    }
    Ok(found)
}
