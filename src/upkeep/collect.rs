//! What nobody needs any more goes, and nothing else.
//!
//! Decided without any lock, from what was seen at one moment; then, under the store's gate, it is looked again. If
//! a pointer, a name or a list has changed meanwhile, or something came that may complete a folder that was not
//! here whole, everything is decided anew. What running commands rely on is in their leases (`store::lease`). So
//! the gate is held only while files are removed, and an `add` of an hour beside it loses nothing.

use std::collections::HashSet;

use crate::{
    digest::Digest,
    error::{Doing, Error, Kind, Result},
    fs::{self, Lock},
    path::RepoPath,
    progress::Progress,
    repo::Repo,
    store::{Amount, Freed, Inventory, PrunePlan, plan_prune},
    upkeep::{
        clones,
        mark::{Marked, mark},
        memory::Memory,
        roots::{Detail, Roots, roots},
        seen::{Seen, look},
    },
};

/// How often everything may change while we decide.
const TRIES: u32 = 20;
/// Files that are named one by one.
const NAMED: usize = 5;

/// What went, or would go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Collected {
    pub freed: Freed,
    pub rewritten: Amount,
    /// Small packs that become few.
    pub gathered: Amount,
    /// What nobody needs and stays, in packs that are mostly needed.
    pub stays: Amount,
    /// Objects that are needed.
    pub kept: u64,
    /// Clones that share the store.
    pub clones: u64,
    pub done: bool,
}

/// Frees what nobody needs and is older than `grace` seconds; without `really` it only says so.
pub fn collect(repo: &Repo, grace: i64, really: bool, progress: &dyn Progress) -> Result<Collected> {
    let _alone = if really { Some(only_one(repo, progress)?) } else { None };
    let told = tell(repo, really, progress)?;
    let mut freed = Freed::default();
    for _ in 0..TRIES {
        let decided = decide(repo, grace)?;
        if !really {
            decided.warn(progress);
            return Ok(decided.collected(false));
        }
        let emptied = repo.store.repack(&decided.plan)?;
        let gate = repo.store.lock_gate()?;
        // Before the pointers: who ends in between has written what it was about to.
        let leased = leased(repo)?;
        if !still_holds(repo, grace, &decided)? {
            drop(gate);
            continue;
        }
        let went = repo.store.prune(&decided.plan, &emptied, &leased)?;
        drop(gate);
        freed.add(&went);
        if emptied.disk_full && went.total().count > 0 {
            // What went makes room for what must be moved before more can go.
            continue;
        }
        decided.warn(progress);
        let mut collected = Collected { freed, ..decided.collected(true) };
        if emptied.disk_full {
            progress
                .warn("the disk is full: half-empty and small packs stay as they are; run `mlx gc` again");
            (collected.rewritten, collected.gathered) = (Amount::default(), Amount::default());
        }
        finish(repo, told, progress)?;
        return Ok(collected);
    }
    if freed == Freed::default() {
        progress.warn("nothing was freed");
    }
    let error = Error::new(Kind::Conflict, "others change what is tracked faster than it can be looked at");
    Err(error.hint("run `mlx gc` again when they are done"))
}

/// Tells the other clones what this one needs, unless the disk is full: what goes now makes room for that. This
/// gc itself reads no list of its own clone; whoever only looks may do so on a disk that takes nothing.
fn tell(repo: &Repo, really: bool, progress: &dyn Progress) -> Result<bool> {
    match Memory::forget(repo).and_then(|()| clones::renew(repo, progress)) {
        Err(error) if really && error.kind() != Kind::Unavailable => Err(error),
        told => Ok(told.is_ok()),
    }
}

fn finish(repo: &Repo, told: bool, progress: &dyn Progress) -> Result<()> {
    repo.store.prune_verified()?;
    for root in [&repo.shared, &repo.private] {
        root.dir(&RepoPath::root())?.sweep()?;
    }
    if told { Ok(()) } else { clones::renew(repo, progress) }
}

/// Two at once would each take the other's new packs for garbage.
pub fn only_one(repo: &Repo, progress: &dyn Progress) -> Result<Lock> {
    fs::lock_telling(repo.store.root(), &RepoPath::from_text("gc.lock")?, progress)
}

struct Decided {
    seen: Seen,
    marked: Marked,
    stock: Inventory,
    plan: PrunePlan,
    /// What the user should know of files that could not be understood.
    odd: Vec<String>,
}

fn decide(repo: &Repo, grace: i64) -> Result<Decided> {
    let seen = look(repo, grace)?;
    clones::check_others(&seen)?;
    check_worktrees(&seen)?;
    let mut found = roots(repo, &seen, Detail::Digests)?;
    if let Some((place, error)) = found.unreadable.pop() {
        let doing = || format!("nothing was freed: what {place} needs is not known");
        return Err(error).doing(doing).map_err(|it| match it.hint_text() {
            Some(_) => it,
            None => it.hint("mend or remove it; `mlx fsck` lists all that cannot be read"),
        });
    }
    // An index that is lost or another's would hide what is needed.
    repo.store.load_orphan_packs()?;
    repo.store.reload_differing_indexes()?;
    let odd = odd(&found);
    let stock = repo.store.inventory()?;
    repo.store.check_readable().doing(|| "nothing was freed: what is needed is not known".into())?;
    let now = fs::tick();
    let old = |mtime: i64| now.saturating_sub(mtime).max(0) >= grace.saturating_mul(1_000_000_000);
    let young: Vec<Digest> = stock.runs.iter().filter(|it| !old(it.mtime)).map(|it| it.digest).collect();
    found.with_runs(&repo.store, &young)?;
    let marked = mark(&repo.store, &found)?;
    if let Some(page) = marked.damaged.first() {
        let message = format!(
            "nothing was freed: the list of a folder, {page}, is damaged, and what it needs is not known"
        );
        return Err(Error::corrupt(message).hint("`mlx fsck --repair` mends it"));
    }
    let plan = plan_prune(&stock, &marked.kept, &old);
    Ok(Decided { seen, marked, stock, plan, odd })
}

/// What only the files of a worktree name is not known while they are not here.
fn check_worktrees(seen: &Seen) -> Result<()> {
    let Some(away) = seen.worktrees.iter().find_map(|it| it.away.as_ref()) else { return Ok(()) };
    let message = format!("nothing was freed: the worktree `{}` is not here", away.display());
    let hint = "bring it back, tell Git where it is (`git worktree repair PATH`), or say that it is gone for good \
                (`git worktree unlock` if it is locked, then `git worktree prune`)";
    Err(Error::new(Kind::Unavailable, message).hint(hint))
}

fn odd(found: &Roots) -> Vec<String> {
    let guessed = found.guessed.iter().map(|(place, error)| {
        format!("{place} cannot be read ({}): the digests that are written in it are kept", error.full_text())
    });
    let foreign = found
        .foreign
        .iter()
        .map(|it| format!("`{it}` is called like a pointer and is none: it keeps nothing"));
    guessed.chain(foreign).collect()
}

impl Decided {
    fn warn(&self, progress: &dyn Progress) {
        self.odd.iter().take(NAMED).for_each(|it| progress.warn(it));
        if self.odd.len() > NAMED {
            progress.warn(&format!("… and {} more files like these", self.odd.len() - NAMED));
        }
    }

    fn collected(&self, done: bool) -> Collected {
        Collected {
            freed: self.plan.freed,
            rewritten: self.plan.rewritten,
            gathered: self.plan.merged,
            stays: self.plan.retained,
            kept: self.marked.kept.objects.len() as u64,
            clones: self.seen.lists.len() as u64,
            done,
        }
    }
}

/// Whether what was decided is still right; the gate is closed.
fn still_holds(repo: &Repo, grace: i64, decided: &Decided) -> Result<bool> {
    if decided.plan.is_empty() {
        return Ok(true);
    }
    if look(repo, grace)? != decided.seen {
        return Ok(false);
    }
    // A page that came since may name what was there before.
    Ok(decided.marked.absent.is_empty() || repo.store.has_no_new_packs(&decided.stock)?)
}

/// What running commands rely on, and in a shared store what killed ones did. Where the store is ours alone, what
/// a killed command wrote is in sight, and its lease goes.
fn leased(repo: &Repo) -> Result<HashSet<Digest>> {
    let shared = repo.clone_id()?.is_some();
    let mut found = HashSet::new();
    for leased in repo.store.leases()? {
        if leased.alive || shared {
            found.extend(leased.pinned);
        } else {
            repo.store.remove_lease(&leased)?;
        }
    }
    Ok(found)
}
