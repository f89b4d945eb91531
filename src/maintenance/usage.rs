//! Computes disk usage by kind of object, by pointer and by revision, and the savings of deduplication and
//! compression.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::{
    digest::Digest,
    error::Result,
    git::{Commit, Rev},
    maintenance::{
        leftovers::all_leftovers,
        mark::mark,
        roots::{Detail, Referrer, Roots, roots},
        snapshot::take_snapshot,
    },
    path::RepoPath,
    pipeline::{LeftoverKind, extent},
    pointer::{Content, ContentKind},
    repo::Repo,
    store::{Amount, EntryKind, Page, Store, decode_page},
    workspace::{KeptVersion, kept_versions},
};

/// Owner of an object that more than one group needs.
const SHARED: u32 = u32::MAX;

/// Sizes of all objects of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClassUsage {
    pub objects: u64,
    /// Size before compression, in bytes.
    pub bytes: u64,
    /// Size on disk, in bytes.
    pub stored: u64,
}

/// Disk usage of one pointer or revision.
#[derive(Clone, Debug, Default)]
pub struct Share<T> {
    pub subject: T,
    /// Number of versions of a pointer, or of pointers of a revision.
    pub count: u64,
    /// Size of the newest version, or of all pointers, in bytes.
    pub size: u64,
    /// Size on disk of the objects that no other pointer or revision needs.
    pub exclusive: Amount,
}

/// Commits that refer to the same data.
#[derive(Clone, Debug)]
pub struct Revision {
    /// Newest of the commits; `None` for data that is in no commit.
    pub newest: Option<Commit>,
    pub commits: u64,
}

/// Disk usage of a store.
#[derive(Debug, Default)]
pub struct Usage {
    pub contents: ClassUsage,
    pub trees: ClassUsage,
    pub large_files: ClassUsage,
    pub runs: ClassUsage,
    pub quarantine: ClassUsage,
    /// Outputs of failed runs, and logs of runs, in all worktrees.
    pub failed: ClassUsage,
    pub logs: ClassUsage,
    /// Objects that nothing refers to.
    pub unneeded: Amount,
    /// Size of all versions of all pointers without deduplication and compression, in bytes.
    pub versions: u64,
    /// Size of their distinct contents, in bytes.
    pub distinct: u64,
    /// Size of these on disk, in bytes.
    pub stored: u64,
    /// Versions that commands replaced, newest first.
    pub kept: Vec<KeptVersion>,
    pub pointers: Vec<Share<RepoPath>>,
    pub revisions: Vec<Share<Revision>>,
}

/// Computes the disk usage of a repository's store.
pub fn usage(repo: &Repo) -> Result<Usage> {
    let snapshot = take_snapshot(repo, 0)?;
    let found = roots(repo, &snapshot, Detail::References)?;
    let mut usage = Usage::default();
    let sizes = classes(&repo.store, &mut usage)?;
    let marked = mark(&repo.store, &found)?;
    for (digest, size) in &sizes {
        if !marked.live.objects.contains(digest) {
            usage.unneeded.count += 1;
            usage.unneeded.bytes += size.stored;
        }
    }
    let mut counter = VersionCounter {
        store: &repo.store,
        sizes: &sizes,
        cache: HashMap::new(),
        distinct: BTreeSet::new(),
    };
    counter.versions(&found, &mut usage)?;
    for (private, leftovers) in all_leftovers(&snapshot)? {
        for leftover in leftovers {
            let extent = extent(&private, &leftover.path);
            let class = match leftover.kind {
                LeftoverKind::Failed => &mut usage.failed,
                LeftoverKind::Log => &mut usage.logs,
            };
            class.objects += extent.files;
            class.bytes += extent.bytes;
            class.stored += extent.bytes;
        }
    }
    usage.kept = kept_versions(repo)?;
    usage.pointers = pointers(&repo.store, &found, &sizes)?;
    usage.revisions = revisions(repo, &found, &sizes)?;
    Ok(usage)
}

type Sizes = HashMap<Digest, ClassUsage>;

fn classes(store: &Store, usage: &mut Usage) -> Result<Sizes> {
    let inventory = store.inventory()?;
    let mut sizes = Sizes::new();
    for (digest, tree, bytes, stored) in inventory.packed_objects() {
        let class = if tree { &mut usage.trees } else { &mut usage.contents };
        class.add(bytes, stored);
        sizes.entry(digest).or_default().add(bytes, stored);
    }
    for file in &inventory.large_files {
        usage.large_files.add(file.size, file.size);
        sizes.entry(file.digest).or_default().add(file.size, file.size);
    }
    inventory.runs.iter().for_each(|it| usage.runs.add(it.size, it.size));
    for size in store.quarantined_sizes()? {
        usage.quarantine.add(size, size);
    }
    Ok(sizes)
}

impl ClassUsage {
    fn add(&mut self, bytes: u64, stored: u64) {
        self.objects += 1;
        self.bytes += bytes;
        self.stored += stored;
    }
}

/// Adds up the sizes of folders without deduplication.
struct VersionCounter<'c> {
    store: &'c Store,
    sizes: &'c Sizes,
    cache: HashMap<Digest, u64>,
    distinct: BTreeSet<Digest>,
}

impl VersionCounter<'_> {
    fn versions(&mut self, found: &Roots, usage: &mut Usage) -> Result<()> {
        for (digest, entry) in &found.contents {
            let Some(content) = entry.content else { continue };
            let paths: BTreeSet<_> =
                entry.references.iter().map(|it| &it.path).filter(|it| !it.is_root()).collect();
            let size =
                if content.kind == ContentKind::Tree { self.folder(digest)? } else { self.file(digest) };
            usage.versions += size * paths.len() as u64;
        }
        for digest in &self.distinct {
            usage.distinct += self.sizes[digest].bytes / self.sizes[digest].objects;
            usage.stored += self.sizes[digest].stored;
        }
        Ok(())
    }

    /// A file that is not stored here uses no space and saves none.
    fn file(&mut self, digest: &Digest) -> u64 {
        let Some(size) = self.sizes.get(digest) else { return 0 };
        self.distinct.insert(*digest);
        size.bytes / size.objects
    }

    fn folder(&mut self, tree: &Digest) -> Result<u64> {
        if let Some(size) = self.cache.get(tree) {
            return Ok(*size);
        }
        let mut size = 0;
        for (digest, folder) in rows(self.store, tree)? {
            size += if folder { self.folder(&digest)? } else { self.file(&digest) };
        }
        self.cache.insert(*tree, size);
        Ok(size)
    }
}

/// Returns the digests that a page lists, with true for each page or folder; nothing if the page is not
/// stored here.
fn rows(store: &Store, tree: &Digest) -> Result<Vec<(Digest, bool)>> {
    if !store.contains(tree) {
        return Ok(Vec::new());
    }
    Ok(match decode_page(&store.read(tree)?)? {
        Page::Branch(_, rows) => rows.iter().map(|it| (it.digest, true)).collect(),
        Page::Leaf(rows) => rows.iter().map(|it| (it.digest, it.kind == EntryKind::Folder)).collect(),
    })
}

/// Returns the only group that needs each object, or [`SHARED`]. A folder is walked again only when its owner
/// changes.
fn owners(store: &Store, groups: &[(Content, u32)]) -> Result<HashMap<Digest, u32>> {
    let mut owners: HashMap<Digest, u32> = HashMap::new();
    for (content, group) in groups {
        let mut pending = vec![(content.digest, content.kind == ContentKind::Tree)];
        while let Some((digest, folder)) = pending.pop() {
            let before = owners.get(&digest).copied();
            let now = if before.is_none_or(|it| it == *group) { *group } else { SHARED };
            owners.insert(digest, now);
            if folder && before != Some(now) {
                pending.extend(rows(store, &digest)?);
            }
        }
    }
    Ok(owners)
}

fn sums(owners: &HashMap<Digest, u32>, sizes: &Sizes, count: usize) -> Vec<Amount> {
    let mut sums = vec![Amount::default(); count];
    for (digest, owner) in owners.iter().filter(|it| *it.1 != SHARED) {
        if let Some(size) = sizes.get(digest) {
            sums[*owner as usize].count += 1;
            sums[*owner as usize].bytes += size.stored;
        }
    }
    sums
}

fn pointers(store: &Store, found: &Roots, sizes: &Sizes) -> Result<Vec<Share<RepoPath>>> {
    let mut paths: BTreeMap<&RepoPath, Vec<(Content, bool)>> = BTreeMap::new();
    for entry in found.contents.values() {
        let Some(content) = entry.content else { continue };
        let in_worktree: BTreeSet<_> = entry
            .references
            .iter()
            .filter(|it| matches!(it.referrer, Referrer::Worktree(_)))
            .map(|it| &it.path)
            .collect();
        let all: BTreeSet<_> = entry.references.iter().map(|it| &it.path).collect();
        for path in all.into_iter().filter(|it| !it.is_root()) {
            paths.entry(path).or_default().push((content, in_worktree.contains(path)));
        }
    }
    let mut groups = Vec::new();
    for (group, versions) in paths.values().enumerate() {
        groups.extend(versions.iter().map(|it| (it.0, group as u32)));
    }
    let sums = sums(&owners(store, &groups)?, sizes, paths.len());
    let share = |((path, versions), exclusive): ((&RepoPath, Vec<(Content, bool)>), Amount)| {
        let newest = versions.iter().find(|it| it.1).or(versions.first());
        let size = newest.map_or(0, |it| it.0.size);
        Share { subject: path.clone(), count: versions.len() as u64, size, exclusive }
    };
    Ok(paths.into_iter().zip(sums).map(share).collect())
}

fn revisions(repo: &Repo, found: &Roots, sizes: &Sizes) -> Result<Vec<Share<Revision>>> {
    let mut by_revision: BTreeMap<Option<&Rev>, BTreeMap<Digest, Content>> = BTreeMap::new();
    for (digest, entry) in &found.contents {
        let Some(content) = entry.content else { continue };
        for reference in &entry.references {
            let rev = match &reference.referrer {
                Referrer::Commit(rev) => Some(rev),
                Referrer::Worktree(_) | Referrer::Index(_) => None,
                Referrer::Other(_) => continue,
            };
            by_revision.entry(rev).or_default().insert(*digest, content);
        }
    }
    // Commits with the same data are grouped: otherwise no data would belong to one of them alone.
    let mut states: BTreeMap<Vec<Digest>, (Vec<Option<&Rev>>, Vec<Content>)> = BTreeMap::new();
    for (rev, contents) in by_revision {
        let key = contents.keys().copied().collect();
        let state = states.entry(key).or_insert_with(|| (Vec::new(), contents.into_values().collect()));
        state.0.push(rev);
    }
    let mut groups = Vec::new();
    for (group, (_, contents)) in states.values().enumerate() {
        groups.extend(contents.iter().map(|it| (*it, group as u32)));
    }
    let sums = sums(&owners(&repo.store, &groups)?, sizes, states.len());
    let mut shares = Vec::new();
    for ((revs, contents), exclusive) in states.into_values().zip(sums) {
        let commits = revs.iter().flatten().map(|it| repo.git.commit(it)).collect::<Result<Vec<_>>>()?;
        let count = commits.len() as u64;
        let newest = commits.into_iter().max_by_key(|it| it.when);
        let subject = Revision { newest, commits: count };
        let size = contents.iter().map(|it| it.size).fold(0, u64::saturating_add);
        shares.push(Share { subject, count: contents.len() as u64, size, exclusive });
    }
    let time =
        |share: &Share<Revision>| share.subject.newest.as_ref().map_or(i64::MAX, |it| it.when.seconds());
    shares.sort_by_key(|share| std::cmp::Reverse(time(share)));
    Ok(shares)
}
