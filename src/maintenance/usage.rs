//! Computes disk usage by kind of object, by pointer and by revision, and the savings of deduplication and
//! compression.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::{
    digest::Digest,
    error::Result,
    maintenance::{
        leftovers::all_leftovers,
        mark::mark,
        revisions::{Revision, SHARED, State, revision_states},
        roots::{Detail, Referrer, Roots, roots},
        snapshot::take_snapshot,
    },
    path::RepoPath,
    pipeline::{LeftoverKind, extent},
    pointer::{Content, ContentKind},
    repo::Repo,
    store::{Amount, EntryKind, Inventory, Page, Store, decode_page},
    workspace::{KeptVersion, kept_versions},
};

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

/// Disk usage of a store.
#[derive(Debug, Default)]
pub struct Usage {
    pub contents: ClassUsage,
    pub trees: ClassUsage,
    pub large_files: ClassUsage,
    /// Old versions of large files that are kept as chunks, with the chunks that only they have.
    pub chunked: ClassUsage,
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
    let found = roots(repo, &snapshot, Detail::Paths)?;
    let mut usage = Usage::default();
    let objects = Objects::list(&repo.store, &mut usage)?;
    let live = mark(&repo.store, &found)?.live.objects;
    for (_, size) in objects.0.iter().filter(|(digest, _)| !live.contains(digest)) {
        usage.unneeded.count += 1;
        usage.unneeded.bytes += size.stored;
    }
    drop(live);
    let mut counter = VersionCounter {
        store: &repo.store,
        objects: &objects,
        cache: HashMap::new(),
        distinct: vec![false; objects.0.len()],
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
    usage.pointers = pointers(&repo.store, &found, &objects)?;
    let (states, groups) = revision_states(repo, &found)?;
    usage.revisions = revisions(&repo.store, states, &groups, &objects)?;
    Ok(usage)
}

/// The objects of a store, sorted by digest, each with its sizes. What is known of each is kept by its place
/// among them: a store may have millions.
struct Objects(Vec<(Digest, ClassUsage)>);

impl Objects {
    fn list(store: &Store, usage: &mut Usage) -> Result<Self> {
        let inventory = store.inventory()?;
        let mut objects = Vec::new();
        let mut add = |class: &mut ClassUsage, digest, bytes, stored| {
            class.add(bytes, stored);
            objects.push((digest, ClassUsage { objects: 1, bytes, stored }));
        };
        let mut chunked = ChunkedFiles::list(store, &inventory);
        for (digest, tree, bytes, stored) in inventory.packed_objects() {
            if chunked.add_chunk(&digest, stored) {
                continue;
            }
            add(if tree { &mut usage.trees } else { &mut usage.contents }, digest, bytes, stored);
        }
        for file in &inventory.large_files {
            add(&mut usage.large_files, file.digest, file.size, file.size);
        }
        for (digest, bytes, stored) in chunked.files {
            add(&mut usage.chunked, digest, bytes, stored);
        }
        objects.sort_unstable_by_key(|object| object.0);
        // A pack and another one may have the same object.
        objects.dedup_by(|again, first| {
            let is_same = again.0 == first.0;
            if is_same {
                first.1.add(again.1.bytes, again.1.stored);
            }
            is_same
        });
        inventory.runs.iter().for_each(|it| usage.runs.add(it.size, it.size));
        for size in store.quarantined_sizes()? {
            usage.quarantine.add(size, size);
        }
        Ok(Self(objects))
    }

    fn place(&self, digest: &Digest) -> Option<usize> {
        self.0.binary_search_by_key(digest, |object| object.0).ok()
    }
}

/// Files that are kept as chunks.
#[derive(Default)]
struct ChunkedFiles {
    /// Digest, size in bytes, and size on disk of the list and of the chunks that belong to the file.
    files: Vec<(Digest, u64, u64)>,
    /// The first file with each chunk: its number.
    owners: HashMap<Digest, usize>,
}

impl ChunkedFiles {
    fn list(store: &Store, inventory: &Inventory) -> Self {
        let mut found = Self::default();
        let whole: BTreeSet<Digest> = inventory.large_files.iter().map(|file| file.digest).collect();
        for list in inventory.chunk_lists.iter().filter(|list| !whole.contains(&list.digest)) {
            let Some(chunked) = store.chunked(&list.digest) else { continue };
            for chunk in chunked.list() {
                found.owners.entry(chunk.digest).or_insert(found.files.len());
            }
            found.files.push((list.digest, chunked.size(), list.size));
        }
        found
    }

    /// Counts an object of a pack if it is a chunk; returns true if so.
    fn add_chunk(&mut self, object: &Digest, stored: u64) -> bool {
        let Some(owner) = self.owners.get(object) else { return false };
        self.files[*owner].2 += stored;
        true
    }
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
    objects: &'c Objects,
    cache: HashMap<Digest, u64>,
    /// True for each object that was met.
    distinct: Vec<bool>,
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
        let met = self.objects.0.iter().zip(&self.distinct).filter(|(_, is_met)| **is_met);
        for ((_, size), _) in met {
            usage.distinct += size.bytes / size.objects;
            usage.stored += size.stored;
        }
        Ok(())
    }

    /// A file that is not stored here uses no space and saves none.
    fn file(&mut self, digest: &Digest) -> u64 {
        let Some(at) = self.objects.place(digest) else { return 0 };
        self.distinct[at] = true;
        let size = self.objects.0[at].1;
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

/// Returns the sizes of the objects that only one group needs, for each of `count` groups. A folder is walked
/// again only when its owner changes.
fn sums(store: &Store, objects: &Objects, groups: &[(Content, u32)], count: usize) -> Result<Vec<Amount>> {
    let mut owners: Vec<Option<u32>> = vec![None; objects.0.len()];
    for (content, group) in groups {
        let mut pending = vec![(content.digest, content.kind == ContentKind::Tree)];
        while let Some((digest, folder)) = pending.pop() {
            // What is not stored here uses no space.
            let Some(at) = objects.place(&digest) else { continue };
            let before = owners[at];
            let now = if before.is_none_or(|it| it == *group) { *group } else { SHARED };
            owners[at] = Some(now);
            if folder && before != Some(now) {
                pending.extend(rows(store, &digest)?);
            }
        }
    }
    let mut sums = vec![Amount::default(); count];
    for (owner, (_, size)) in owners.into_iter().zip(&objects.0) {
        if let Some(owner) = owner.filter(|owner| *owner != SHARED) {
            sums[owner as usize].count += 1;
            sums[owner as usize].bytes += size.stored;
        }
    }
    Ok(sums)
}

fn pointers(store: &Store, found: &Roots, objects: &Objects) -> Result<Vec<Share<RepoPath>>> {
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
    let sums = sums(store, objects, &groups, paths.len())?;
    let share = |((path, versions), exclusive): ((&RepoPath, Vec<(Content, bool)>), Amount)| {
        let newest = versions.iter().find(|it| it.1).or(versions.first());
        let size = newest.map_or(0, |it| it.0.size);
        Share { subject: path.clone(), count: versions.len() as u64, size, exclusive }
    };
    Ok(paths.into_iter().zip(sums).map(share).collect())
}

/// Returns the disk usage of the states that commits have.
fn revisions(
    store: &Store,
    states: Vec<State>,
    groups: &[(Content, u32)],
    objects: &Objects,
) -> Result<Vec<Share<Revision>>> {
    let sums = sums(store, objects, groups, states.len())?;
    let share = |(state, exclusive): (State, Amount)| Share {
        subject: state.revision,
        count: state.contents,
        size: state.size,
        exclusive,
    };
    let mut shares: Vec<_> = states.into_iter().zip(sums).map(share).collect();
    let time =
        |share: &Share<Revision>| share.subject.newest.as_ref().map_or(i64::MAX, |it| it.when.seconds());
    shares.sort_by_key(|share| std::cmp::Reverse(time(share)));
    Ok(shares)
}
