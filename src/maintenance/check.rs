//! Checks the whole store against its digests and reads every pointer in history; reports damage by path and
//! commit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
    maintenance::{
        collect::lock_gc,
        mark::{Marked, mark},
        references::parse,
        repair::{RepairReport, restore_damaged},
        roots::{Detail, Reference, Referrer, Roots, roots},
        snapshot::{Snapshot, own_snapshot},
    },
    path::{MAX_DEPTH, RepoPath},
    pointer::{Content, ContentKind, SUFFIX},
    progress::Progress,
    repo::Repo,
    store::{EntryKind, FaultKind, Page, Store, VerifyReport, decode_page, described},
    workspace::{Unreadable, Workspace, false_lines},
};

/// Number of times a check starts over because tracked files changed meanwhile.
const MAX_ATTEMPTS: u32 = 10;

/// A damaged object and one reference to it: the path of the file itself, not of its folder's pointer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AffectedPath {
    pub object: Digest,
    pub reference: Reference,
}

/// Findings of a check, and the repair if one was requested.
#[derive(Debug, Default)]
pub struct CheckReport {
    pub verified: VerifyReport,
    /// Referenced objects whose bytes are wrong or lost.
    pub damaged: BTreeSet<Digest>,
    pub affected: Vec<AffectedPath>,
    /// Sizes of damaged files, as records and folders tell them.
    pub sizes: BTreeMap<Digest, u64>,
    /// Missing and damaged objects that are pages of folders.
    pub missing_pages: BTreeSet<Digest>,
    /// Referenced objects that are not stored here, though a remote may have them.
    pub absent: BTreeSet<Digest>,
    /// Pointers and lockfiles that cannot be read, with their location.
    pub unreadable: Vec<(String, Error)>,
    /// Locations among these that have the marks of a merge conflict, which is not damage.
    pub conflicts: BTreeSet<String>,
    /// Records of worktrees that say something wrong about their digest, with their location.
    pub misstated: Vec<(String, Error)>,
    /// Damaged packs that a repair left in place, since running commands use them.
    pub in_use: BTreeSet<Digest>,
    /// Workspace files that share their bytes with a damaged file of the store.
    pub changed: Vec<(RepoPath, Digest)>,
    pub pointers: u64,
    pub commits: u64,
    /// Outcome of the repair, if one was requested.
    pub repair: Option<RepairReport>,
}

impl CheckReport {
    /// Returns true if anything is still damaged or unreadable.
    pub fn has_problems(&self) -> bool {
        self.is_damaged()
            || !self.misstated.is_empty()
            || self.unreadable.iter().any(|(place, _)| !self.conflicts.contains(place))
    }

    /// Returns true if stored objects are still damaged.
    pub fn is_damaged(&self) -> bool {
        match &self.repair {
            Some(repaired) => !repaired.unrepaired.is_empty() || !self.in_use.is_empty(),
            None => !self.damaged.is_empty() || !self.verified.faults.is_empty(),
        }
    }
}

/// Checks the store and all pointers; with `repair`, restores damaged objects as far as possible.
pub fn check(workspace: &Workspace<'_>, repair: bool, progress: &dyn Progress) -> Result<CheckReport> {
    let repo = workspace.repo;
    let _lock = if repair { Some(lock_gc(repo, progress)?) } else { None };
    if repair {
        // The objects of a pack that only lost its index are not lost.
        repo.store.rebuild_indexes()?;
    }
    let (found, mut report) = check_stable(repo, progress)?;
    // A pointer that Git does not know yet looks like any file once it is overwritten.
    for Unreadable { file, error, .. } in workspace.pointers()?.unreadable {
        let place = Referrer::Worktree(repo.root().to_owned()).location(&file);
        // Git's index tells more of a conflict than the marks in a file.
        report.unreadable.retain(|(known, _)| *known != place);
        report.conflicts.extend((error.kind() == Kind::Conflict).then(|| place.clone()));
        report.unreadable.push((place, error));
    }
    if !report.verified.faults.is_empty() {
        // From here on damaged objects count as absent, so that they are stored again when they are next
        // added.
        if repair {
            report.in_use = repo.store.quarantine(&report.verified)?;
            for pack in &report.in_use {
                progress.warn(&format!(
                    "the damaged pack {} stays, since a running command uses it; run `mlx fsck --repair` \
                     again once that has ended",
                    pack.short()
                ));
            }
        } else {
            repo.store.mark_lost(&report.verified);
        }
        find_affected_paths(repo, &found, &mut report)?;
    }
    if repair {
        report.repair = Some(restore_damaged(workspace, &report, progress)?);
        restore_children(workspace, &found, &mut report, progress)?;
    }
    Ok(report)
}

/// Returns the roots, and the damage found below them. Damage is reported only once nothing changed during
/// the check: a pointer may have been removed and its objects pruned, or a pack repacked.
fn check_stable(repo: &Repo, progress: &dyn Progress) -> Result<(Roots, CheckReport)> {
    for attempt in 0.. {
        // Each clone checks its own objects.
        let snapshot = own_snapshot(repo, &repo.store, 0)?;
        let mut found = roots(repo, &snapshot, Detail::References)?;
        let mut report = CheckReport {
            verified: repo.store.verify(progress)?,
            unreadable: found.unreadable.drain(..).chain(found.salvaged.drain(..)).collect(),
            pointers: found.contents.len() as u64,
            commits: found.commits,
            conflicts: std::mem::take(&mut found.conflicts),
            misstated: find_misstated(&repo.store, &snapshot),
            ..CheckReport::default()
        };
        report.changed = find_modified_links(repo, &found, &report.verified)?;
        find_affected_paths(repo, &found, &mut report)?;
        let has_changed = || Ok(repo.store.refresh()? || own_snapshot(repo, &repo.store, 0)? != snapshot);
        if !report.has_problems() || attempt == MAX_ATTEMPTS || !has_changed()? {
            return Ok((found, report));
        }
    }
    unreachable!("the loop ends by returning")
}

/// Finds the pointers and lockfiles of worktrees whose summary is not that of the digest beside it.
fn find_misstated(store: &Store, snapshot: &Snapshot) -> Vec<(String, Error)> {
    let mut found = Vec::new();
    for (root, file, bytes) in &snapshot.files {
        // One that cannot be read is reported as such.
        let contents = parse(file, bytes).map(|references| references.contents).unwrap_or_default();
        for (output, content) in contents {
            let Ok(Some(real)) = described(store, &content) else { continue };
            let Some(wrong) = false_lines(&content, &real) else { continue };
            let error = misstated_error(file, output.as_ref(), &wrong);
            found.push((Referrer::Worktree(root.clone()).location(file), error));
        }
    }
    found
}

/// Returns the error for a pointer, or for a lockfile and the output of which it says something wrong.
fn misstated_error(file: &RepoPath, output: Option<&RepoPath>, wrong: &str) -> Error {
    match (output, file.without_suffix(SUFFIX)) {
        (None, Some(path)) => {
            Error::corrupt(format!("it says {wrong}")).hint(format!("`mlx commit {path}` corrects it"))
        }
        (output, _) => {
            let output = output.cloned().unwrap_or_default();
            Error::corrupt(format!("it says {wrong} of `{output}`")).hint(format!(
                "bring back the version in Git with `git checkout -- {file}`, or correct it with `mlx commit \
                 {output}`"
            ))
        }
    }
}

/// Restores what is below restored pages: only then is it known what they list and what of that is missing.
fn restore_children(
    workspace: &Workspace<'_>,
    found: &Roots,
    report: &mut CheckReport,
    progress: &dyn Progress,
) -> Result<()> {
    for _ in 0..MAX_DEPTH {
        let mut next = CheckReport::default();
        find_affected_paths(workspace.repo, found, &mut next)?;
        if next.damaged.iter().all(|it| report.damaged.contains(it)) {
            break;
        }
        next.damaged.retain(|it| !report.damaged.contains(it));
        let more = restore_damaged(workspace, &next, progress)?;
        report.damaged.append(&mut next.damaged);
        report.affected.append(&mut next.affected);
        report.absent = next.absent;
        let repaired = report.repair.get_or_insert_default();
        repaired.restored.extend(more.restored);
        repaired.unrepaired.extend(more.unrepaired);
        repaired.remote_error = repaired.remote_error.take().or(more.remote_error);
    }
    Ok(())
}

fn find_affected_paths(repo: &Repo, found: &Roots, report: &mut CheckReport) -> Result<()> {
    let marked = mark(&repo.store, found)?;
    classify_missing(repo, found, &marked, report);
    let mut finder = PathFinder::new(&repo.store, &report.damaged);
    report.affected = finder.affected_paths(found);
    report.sizes = finder.sizes;
    report.missing_pages.extend(marked.absent.union(&marked.damaged));
    Ok(())
}

/// Sorts missing objects: one is damaged if it was stored here once or if no remote is
/// configured to fetch it from, else absent.
fn classify_missing(repo: &Repo, found: &Roots, marked: &Marked, report: &mut CheckReport) {
    let no_remote = repo.config.remotes().is_empty();
    // A digest without any content information may not name an object at all.
    let is_object = |digest: &Digest| found.contents.get(digest).is_none_or(|it| it.content.is_some());
    for digest in marked.live.objects.iter().filter(|it| !repo.store.contains(it)) {
        if repo.store.is_damaged(digest) || no_remote && is_object(digest) {
            report.damaged.insert(*digest);
        } else if is_object(digest) {
            report.absent.insert(*digest);
        }
    }
}

/// Finds files of this worktree that are linked to a damaged file of the store: they were changed through the
/// link.
fn find_modified_links(
    repo: &Repo,
    found: &Roots,
    verified: &VerifyReport,
) -> Result<Vec<(RepoPath, Digest)>> {
    let large_files = verified.faults.iter().filter_map(|fault| match fault.kind {
        FaultKind::LargeFile(digest) => Some(digest),
        _ => None,
    });
    let large_files: BTreeSet<Digest> = large_files.collect();
    let mut changed = Vec::new();
    if large_files.is_empty() {
        return Ok(changed);
    }
    let mut finder = PathFinder::new(&repo.store, &large_files);
    for affected in finder.affected_paths(found) {
        let stored = RepoPath::from_text(&format!("objects/{}", affected.object.hex()))?;
        let stored = repo.store.root().stat(&stored)?;
        let is_here = matches!(&affected.reference.referrer, Referrer::Worktree(root) if root == repo.root());
        if !is_here {
            continue;
        }
        let Some(stat) = repo.files.stat(&affected.reference.path)? else { continue };
        let linked = match stat.kind {
            crate::fs::FileKind::Symlink => {
                let target = repo.files.read_link(&affected.reference.path)?;
                repo.store.large_from_link(&target).is_some_and(|it| it.digest() == affected.object)
            }
            _ => stored.is_some_and(|it| it.inode == stat.inode && it.ctime == stat.ctime),
        };
        if linked {
            changed.push((affected.reference.path, affected.object));
        }
    }
    changed.dedup();
    Ok(changed)
}

/// Finds the objects of a set below folders, reading each folder once.
struct PathFinder<'f> {
    store: &'f Store,
    objects: &'f BTreeSet<Digest>,
    cache: HashMap<Digest, Rc<[(RepoPath, Digest)]>>,
    /// Sizes of the files among the objects.
    sizes: BTreeMap<Digest, u64>,
}

impl<'f> PathFinder<'f> {
    fn new(store: &'f Store, objects: &'f BTreeSet<Digest>) -> Self {
        Self { store, objects, cache: HashMap::new(), sizes: BTreeMap::new() }
    }

    fn affected_paths(&mut self, found: &Roots) -> Vec<AffectedPath> {
        let mut paths = BTreeSet::new();
        if self.objects.is_empty() {
            return Vec::new();
        }
        for (digest, entry) in &found.contents {
            let below = match entry.content {
                Some(Content { kind: ContentKind::Tree, .. }) => self.objects_below(digest),
                Some(Content { size, .. }) if self.objects.contains(digest) => {
                    self.sizes.insert(*digest, size);
                    [(RepoPath::root(), *digest)].into()
                }
                _ if self.objects.contains(digest) => [(RepoPath::root(), *digest)].into(),
                _ => continue,
            };
            for reference in &entry.references {
                for (path, object) in below.iter() {
                    let Ok(path) = reference.path.join_path(path) else { continue };
                    let reference = Reference { referrer: reference.referrer.clone(), path };
                    paths.insert(AffectedPath { object: *object, reference });
                }
            }
        }
        paths.into_iter().collect()
    }

    /// Returns the paths and objects of the set below a tree; for a tree that cannot be read, at most the
    /// tree itself.
    fn objects_below(&mut self, tree: &Digest) -> Rc<[(RepoPath, Digest)]> {
        if let Some(found) = self.cache.get(tree) {
            return Rc::clone(found);
        }
        let mut found = Vec::new();
        if self.objects.contains(tree) {
            found.push((RepoPath::root(), *tree));
        }
        let page = self.store.contains(tree).then(|| decode_page(&self.store.read(tree)?));
        match page {
            Some(Ok(Page::Branch(_, rows))) => {
                for row in rows.iter().filter(|it| it.digest != *tree) {
                    found.extend(self.objects_below(&row.digest).iter().cloned());
                }
            }
            Some(Ok(Page::Leaf(rows))) => {
                for row in &rows {
                    let Ok(name) = RepoPath::from_bytes(&row.name) else { continue };
                    if row.kind == EntryKind::Folder {
                        let below = self.objects_below(&row.digest);
                        let below =
                            below.iter().filter_map(|(path, it)| Some((name.join_path(path).ok()?, *it)));
                        found.extend(below);
                    } else if self.objects.contains(&row.digest) {
                        self.sizes.insert(row.digest, row.size);
                        found.push((name, row.digest));
                    }
                }
            }
            _ => {}
        }
        let found: Rc<[_]> = found.into();
        self.cache.insert(*tree, Rc::clone(&found));
        found
    }
}
