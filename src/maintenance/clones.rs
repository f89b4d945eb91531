//! Clones that share a store: each publishes there which objects it needs, and a gc in any of them keeps
//! those of all.
//!
//! Every command that writes updates its clone's list before it gives up its lease. If the list is older than
//! the clone's refs (`git fetch` was run and no mlx command since), a gc reads the clone itself and renews
//! its list. If it cannot be read, everything is kept that any list named within the last 30 days, and
//! everything that came to the store since that list was written. A list that is older than that stops the
//! gc.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Kind, Result, WithContext},
    fs::{self, Sync},
    git::GitRef,
    maintenance::{
        clone_list::{CloneList, CloneNeeds, DAYS, list_path, lock_path, names, other_lists, refs_digest},
        roots::{Roots, add_needs, roots_since, update_history_cache},
        snapshot::{Snapshot, own_snapshot},
    },
    pointer::ContentKind,
    progress::{Progress, Silent},
    repo::Repo,
    store::LeaseRecord,
    time::Timestamp,
};

const DAY: i64 = 86_400;

/// Publishes what this clone needs. Does nothing if no store is shared, or if this user may only read the
/// store: then this clone added nothing to it.
pub fn publish_needs(repo: &Repo, progress: &dyn Progress) -> Result<()> {
    let root = repo.store.root();
    let Some(id) = repo.clone_id()?.filter(|_| root.is_writable()) else { return Ok(()) };
    let context = || "cannot publish which objects this clone needs".to_owned();
    // First without a lock, since it may take long.
    update_history_cache(repo, &names(&repo.git).context(context)?).context(context)?;
    // In turn, so that an older snapshot never replaces a newer one.
    let _lock = fs::lock_with_progress(root, &lock_path(&id)?, progress)?;
    // Before the snapshot: then the snapshot includes everything that ended commands wrote.
    let leases = complete_leases(repo)?;
    let owner = CloneNeeds::new(String::new());
    write_list(repo, &id, repo, &owner).context(context)?;
    // The published needs include what killed commands of this clone pinned, as far as anything refers to it.
    for lease in leases.iter().filter(|it| !it.alive && it.clone.as_ref() == Some(&id)) {
        repo.store.remove_lease(lease)?;
    }
    repo.store.mark_published();
    Ok(())
}

/// Publishes as [`publish_needs`] does, for commands that only read from the store: if this user may not
/// write to it, the error is ignored, since nothing new was pinned there either.
pub fn publish_needs_if_allowed(repo: &Repo, progress: &dyn Progress) -> Result<()> {
    let ignore_denied = |error: Error| if error.kind() == Kind::Denied { Ok(()) } else { Err(error) };
    publish_needs(repo, progress).or_else(ignore_denied)
}

/// Renews the lists of the other clones that can be read. Returns the ids of those of which that failed.
pub fn renew_lists(repo: &Repo) -> Result<BTreeSet<String>> {
    let mut failed = BTreeSet::new();
    for list in other_lists(repo)? {
        // A gc names a list that cannot be parsed.
        let Ok(needs) = list.parse() else { continue };
        let is_current = list.refs == Some(needs.refs) && age(&list) < DAY;
        if !is_current && list.refs.is_some() && renew_list(repo, &list.id, &needs).is_err() {
            failed.insert(list.id);
        }
    }
    Ok(failed)
}

fn renew_list(repo: &Repo, id: &str, before: &CloneNeeds) -> Result<()> {
    let clone = Repo::open_other(Path::new(&before.path))?;
    let root = repo.store.root();
    let _lock = fs::lock_with_progress(root, &lock_path(id)?, &Silent)?;
    // It may have been forgotten meanwhile.
    if root.stat(&list_path(id)?)?.is_none() { Ok(()) } else { write_list(repo, id, &clone, before) }
}

/// Writes the list of a clone, whose lock must be held, into the store of `repo`. One that stays the same is
/// written again after a day, so that its age tells when it was last right.
fn write_list(repo: &Repo, id: &str, clone: &Repo, owner: &CloneNeeds) -> Result<()> {
    // Before the snapshot: a ref that comes meanwhile makes the list count as old.
    let names = names(&clone.git)?;
    let snapshot = own_snapshot(clone, &repo.store, 0)?;
    let found = roots_since(clone, &snapshot)?;
    let mut needs = needs(clone, &names, &found, owner);
    let away = snapshot.worktrees.iter().filter_map(|it| it.missing_root.as_ref());
    let describe = |path: &PathBuf| format!("all of the worktree `{}`, which is not here", path.display());
    needs.unreadable.extend(away.map(describe));
    let (root, path) = (repo.store.root(), list_path(id)?);
    let before = root.read_if_exists(&path)?;
    if let Some(earlier) = before.as_ref().and_then(|bytes| CloneNeeds::parse(id, bytes).ok()) {
        needs.remember(earlier, Timestamp::now().seconds() / DAY);
    }
    let text = needs.to_toml();
    let is_new = root.stat(&path)?.is_some_and(|stat| seconds_since(stat.mtime) < DAY);
    if is_new && before.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    root.write_mode(&path, text.as_bytes(), Sync::Now, 0o644)
}

/// Returns all leases while no pin is being written: a lease that is only half created would look like an
/// ended command's.
fn complete_leases(repo: &Repo) -> Result<Vec<LeaseRecord>> {
    let _gate = repo.store.lock_gate()?;
    repo.store.leases()
}

fn needs(clone: &Repo, names: &[GitRef], found: &Roots, owner: &CloneNeeds) -> CloneNeeds {
    let common = clone.git.common_dir();
    let main = common.parent().filter(|_| common.ends_with(".git"));
    let path = main.unwrap_or_else(|| clone.root()).display().to_string();
    let mut needs = CloneNeeds {
        uid: owner.uid,
        user: owner.user.clone(),
        refs: refs_digest(names),
        unreadable: found.unreadable.iter().map(|it| it.0.clone()).collect(),
        runs: found.runs.clone(),
        ..CloneNeeds::new(path)
    };
    for (digest, entry) in &found.contents {
        let is_tree = entry.content.is_some_and(|it| it.kind == ContentKind::Tree);
        if is_tree {
            needs.trees.insert(*digest)
        } else {
            needs.objects.insert(*digest)
        };
    }
    needs
}

fn age(list: &CloneList) -> i64 {
    seconds_since(list.written)
}

/// Returns the age in seconds of a file that was written at this time, in nanoseconds since 1970.
fn seconds_since(mtime: i64) -> i64 {
    fs::coarse_now().saturating_sub(mtime) / 1_000_000_000
}

/// Checks what is known of the other clones. Returns the ones that may need more than their lists name: those
/// that cannot be read, or whose lists could not be renewed (`failed`). It is an error if a list is damaged
/// or too old, or if a pointer in its clone cannot be read.
pub fn unknown_clones<'s>(snapshot: &'s Snapshot, failed: &BTreeSet<String>) -> Result<Vec<&'s CloneList>> {
    let mut unknown = Vec::new();
    for list in &snapshot.other_clones {
        let (id, needs) = (&list.id, list.parse()?);
        let refuse = |why: String| {
            let (path, user) = (&needs.path, &needs.user);
            Error::new(Kind::Conflict, format!("the clone `{path}` of {user} shares this cache, and {why}"))
        };
        let forget = || format!("`mlx gc --forget {id}` if it is gone for good; until then nothing is freed");
        if let Some(file) = needs.unreadable.first() {
            let error = refuse(format!("has a pointer that cannot be read: {file}"));
            return Err(error.hint(format!("fix it there and run `mlx gc`; {}", forget())));
        }
        if list.refs == Some(needs.refs) {
            continue;
        }
        if list.refs.is_some() && !failed.contains(id) {
            return Err(refuse("its refs changed just now".into()).hint("run `mlx gc` again"));
        }
        if age(list) > DAYS * DAY {
            let error = refuse(format!("{}, and its list is older than {DAYS} days", unknown_state(&needs)));
            return Err(
                error.hint(format!("run `mlx gc` there (without `--yes` it only reports); {}", forget()))
            );
        }
        unknown.push(list);
    }
    Ok(unknown)
}

fn unknown_state(needs: &CloneNeeds) -> String {
    if needs.host == fs::host_name() {
        "cannot be read".to_owned()
    } else {
        format!("is on another machine, {}", needs.host)
    }
}

/// Adds what any list named within the last 30 days to the roots. Returns one warning for each unknown clone.
pub fn add_recent_needs(
    repo: &Repo,
    snapshot: &Snapshot,
    unknown: &[&CloneList],
    roots: &mut Roots,
) -> Result<Vec<String>> {
    let mut lists = snapshot.other_clones.iter().map(CloneList::parse).collect::<Result<Vec<_>>>()?;
    if let Some(id) = repo.clone_id()?
        && let Some(bytes) = repo.store.root().read_if_exists(&list_path(&id)?)?
    {
        lists.push(CloneNeeds::parse(&id, &bytes)?);
    }
    for needs in &lists {
        let sets = [(&needs.trees, &needs.objects, &needs.runs)].into_iter();
        for (trees, objects, runs) in
            sets.chain(needs.dropped.iter().map(|it| (&it.trees, &it.objects, &it.runs)))
        {
            add_needs(roots, trees, objects, &mut || None);
            roots.runs.extend(runs);
        }
    }
    let warning = |list: &&CloneList| {
        let needs = list.parse()?;
        Ok(format!(
            "the clone `{}` of {} {}: everything is kept that any clone needed within the last {DAYS} days, \
             or that came since its list was written",
            needs.path,
            needs.user,
            unknown_state(&needs)
        ))
    };
    unknown.iter().map(warning).collect()
}

/// Removes the published needs of a clone, named by its id or its path, and the leases of its killed
/// commands.
pub fn forget_clone(repo: &Repo, clone: &str) -> Result<CloneNeeds> {
    let others = other_lists(repo)?;
    let has_path = |needs: CloneNeeds| Path::new(&needs.path) == Path::new(clone);
    let matches = |list: &&CloneList| list.id == clone || list.parse().is_ok_and(has_path);
    let Some(list) = others.iter().find(matches) else {
        let known: Vec<_> = others.iter().map(|list| list.id.as_str()).collect();
        let error = Error::not_found(format!("no other clone `{clone}` shares this cache"));
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(error.hint(format!("known clones: {known}")));
    };
    let needs = list
        .parse()
        .unwrap_or_else(|_| CloneNeeds { user: String::new(), ..CloneNeeds::new(clone.to_owned()) });
    repo.store.root().remove(&list_path(&list.id)?)?;
    for lease in complete_leases(repo)?.iter().filter(|it| !it.alive && it.clone.as_ref() == Some(&list.id)) {
        repo.store.remove_lease(lease)?;
    }
    Ok(needs)
}
