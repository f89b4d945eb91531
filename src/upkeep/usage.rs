//! What takes the room: by kind of object, by pointer, by revision, and what was saved by keeping equal bytes once
//! and by compression.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::{
    digest::Digest,
    error::Result,
    git::{Commit, Rev},
    path::RepoPath,
    pointer::{Content, Shape},
    repo::Repo,
    store::{Amount, EntryKind, Page, Store, decode_page},
    upkeep::{
        mark::mark,
        roots::{Detail, Holder, Roots, roots},
        seen::look,
    },
};

/// Needed by more than one.
const MANY: u32 = u32::MAX;

/// Objects of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Class {
    pub objects: u64,
    /// Bytes as they came.
    pub bytes: u64,
    /// Bytes on the disk.
    pub stored: u64,
}

/// What a pointer or a revision takes.
#[derive(Clone, Debug, Default)]
pub struct Share<T> {
    pub of: T,
    /// Versions of a pointer, pointers of a revision.
    pub count: u64,
    /// Bytes of the newest version, or of all pointers.
    pub size: u64,
    /// Bytes on the disk that nothing else of its kind needs.
    pub only: Amount,
}

/// Commits that hold the same data.
#[derive(Clone, Debug)]
pub struct Revision {
    /// The newest of them; none for what is in no commit.
    pub newest: Option<Commit>,
    pub commits: u64,
}

/// What takes the room.
#[derive(Debug, Default)]
pub struct Usage {
    pub contents: Class,
    pub trees: Class,
    pub whole: Class,
    pub runs: Class,
    pub quarantine: Class,
    /// What nothing needs.
    pub unneeded: Amount,
    /// Bytes of all versions of all pointers, if each were kept as it is.
    pub versions: u64,
    /// Bytes of their distinct contents.
    pub distinct: u64,
    /// Bytes of these on the disk.
    pub stored: u64,
    pub pointers: Vec<Share<RepoPath>>,
    pub revisions: Vec<Share<Revision>>,
}

/// Counts everything.
pub fn usage(repo: &Repo) -> Result<Usage> {
    let seen = look(repo, 0)?;
    let found = roots(repo, &seen, Detail::Places)?;
    let mut usage = Usage::default();
    let sizes = classes(&repo.store, &mut usage)?;
    let marked = mark(&repo.store, &found)?;
    for (digest, size) in &sizes {
        if !marked.kept.objects.contains(digest) {
            usage.unneeded.count += 1;
            usage.unneeded.bytes += size.stored;
        }
    }
    let mut counter =
        Counter { store: &repo.store, sizes: &sizes, known: HashMap::new(), distinct: BTreeSet::new() };
    counter.versions(&found, &mut usage)?;
    usage.pointers = pointers(&repo.store, &found, &sizes)?;
    usage.revisions = revisions(repo, &found, &sizes)?;
    Ok(usage)
}

type Sizes = HashMap<Digest, Class>;

fn classes(store: &Store, usage: &mut Usage) -> Result<Sizes> {
    let stock = store.inventory()?;
    let mut sizes = Sizes::new();
    for (digest, tree, bytes, stored) in stock.packed_objects() {
        let class = if tree { &mut usage.trees } else { &mut usage.contents };
        class.add(bytes, stored);
        sizes.entry(digest).or_default().add(bytes, stored);
    }
    for it in &stock.large_files {
        usage.whole.add(it.size, it.size);
        sizes.entry(it.digest).or_default().add(it.size, it.size);
    }
    stock.runs.iter().for_each(|it| usage.runs.add(it.size, it.size));
    for size in store.quarantined_sizes()? {
        usage.quarantine.add(size, size);
    }
    Ok(sizes)
}

impl Class {
    fn add(&mut self, bytes: u64, stored: u64) {
        self.objects += 1;
        self.bytes += bytes;
        self.stored += stored;
    }
}

/// Sums the sizes of folders as if every file were there on its own.
struct Counter<'c> {
    store: &'c Store,
    sizes: &'c Sizes,
    known: HashMap<Digest, u64>,
    distinct: BTreeSet<Digest>,
}

impl Counter<'_> {
    fn versions(&mut self, found: &Roots, usage: &mut Usage) -> Result<()> {
        for (digest, rooted) in &found.contents {
            let Some(content) = rooted.content else { continue };
            let paths: BTreeSet<_> =
                rooted.places.iter().map(|it| &it.path).filter(|it| !it.is_root()).collect();
            let size = if content.kind == Shape::Tree { self.folder(digest)? } else { self.file(digest) };
            usage.versions += size * paths.len() as u64;
        }
        for digest in &self.distinct {
            usage.distinct += self.sizes[digest].bytes / self.sizes[digest].objects;
            usage.stored += self.sizes[digest].stored;
        }
        Ok(())
    }

    /// What is not here takes no room and saves none.
    fn file(&mut self, digest: &Digest) -> u64 {
        let Some(size) = self.sizes.get(digest) else { return 0 };
        self.distinct.insert(*digest);
        size.bytes / size.objects
    }

    fn folder(&mut self, tree: &Digest) -> Result<u64> {
        if let Some(size) = self.known.get(tree) {
            return Ok(*size);
        }
        let mut size = 0;
        for (digest, folder) in rows(self.store, tree)? {
            size += if folder { self.folder(&digest)? } else { self.file(&digest) };
        }
        self.known.insert(*tree, size);
        Ok(size)
    }
}

/// What a page names, and whether that is a page; nothing of one that is not here whole.
fn rows(store: &Store, tree: &Digest) -> Result<Vec<(Digest, bool)>> {
    if !store.contains(tree) {
        return Ok(Vec::new());
    }
    Ok(match decode_page(&store.read(tree)?)? {
        Page::Branch(_, rows) => rows.iter().map(|it| (it.digest, true)).collect(),
        Page::Leaf(rows) => rows.iter().map(|it| (it.digest, it.kind == EntryKind::Folder)).collect(),
    })
}

/// Which group alone needs an object, or [`MANY`]; what is below a folder is only looked at when that changes.
fn owners(store: &Store, groups: &[(Content, u32)]) -> Result<HashMap<Digest, u32>> {
    let mut owners: HashMap<Digest, u32> = HashMap::new();
    for (content, group) in groups {
        let mut open = vec![(content.digest, content.kind == Shape::Tree)];
        while let Some((digest, folder)) = open.pop() {
            let before = owners.get(&digest).copied();
            let now = if before.is_none_or(|it| it == *group) { *group } else { MANY };
            owners.insert(digest, now);
            if folder && before != Some(now) {
                open.extend(rows(store, &digest)?);
            }
        }
    }
    Ok(owners)
}

fn sums(owners: &HashMap<Digest, u32>, sizes: &Sizes, count: usize) -> Vec<Amount> {
    let mut sums = vec![Amount::default(); count];
    for (digest, owner) in owners.iter().filter(|it| *it.1 != MANY) {
        if let Some(size) = sizes.get(digest) {
            sums[*owner as usize].count += 1;
            sums[*owner as usize].bytes += size.stored;
        }
    }
    sums
}

fn pointers(store: &Store, found: &Roots, sizes: &Sizes) -> Result<Vec<Share<RepoPath>>> {
    let mut paths: BTreeMap<&RepoPath, Vec<(Content, bool)>> = BTreeMap::new();
    for rooted in found.contents.values() {
        let Some(content) = rooted.content else { continue };
        let here: BTreeSet<_> = rooted
            .places
            .iter()
            .filter(|it| matches!(it.holder, Holder::Worktree(_)))
            .map(|it| &it.path)
            .collect();
        let all: BTreeSet<_> = rooted.places.iter().map(|it| &it.path).collect();
        for path in all.into_iter().filter(|it| !it.is_root()) {
            paths.entry(path).or_default().push((content, here.contains(path)));
        }
    }
    let mut groups = Vec::new();
    for (group, versions) in paths.values().enumerate() {
        groups.extend(versions.iter().map(|it| (it.0, group as u32)));
    }
    let sums = sums(&owners(store, &groups)?, sizes, paths.len());
    let share = |((path, versions), only): ((&RepoPath, Vec<(Content, bool)>), Amount)| {
        let newest = versions.iter().find(|it| it.1).or(versions.first());
        let size = newest.map_or(0, |it| it.0.size);
        Share { of: path.clone(), count: versions.len() as u64, size, only }
    };
    Ok(paths.into_iter().zip(sums).map(share).collect())
}

fn revisions(repo: &Repo, found: &Roots, sizes: &Sizes) -> Result<Vec<Share<Revision>>> {
    let mut held: BTreeMap<Option<&Rev>, BTreeMap<Digest, Content>> = BTreeMap::new();
    for (digest, rooted) in &found.contents {
        let Some(content) = rooted.content else { continue };
        for place in &rooted.places {
            let rev = match &place.holder {
                Holder::Commit(rev) => Some(rev),
                Holder::Worktree(_) | Holder::Index(_) => None,
                Holder::Other(_) => continue,
            };
            held.entry(rev).or_default().insert(*digest, content);
        }
    }
    // Commits that hold the same are one: else nothing would be needed by one alone.
    let mut states: BTreeMap<Vec<Digest>, (Vec<Option<&Rev>>, Vec<Content>)> = BTreeMap::new();
    for (rev, contents) in held {
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
    for ((revs, contents), only) in states.into_values().zip(sums) {
        let commits = revs.iter().flatten().map(|it| repo.git.commit(it)).collect::<Result<Vec<_>>>()?;
        let count = commits.len() as u64;
        let newest = commits.into_iter().max_by_key(|it| it.when);
        let of = Revision { newest, commits: count };
        let size = contents.iter().map(|it| it.size).fold(0, u64::saturating_add);
        shares.push(Share { of, count: contents.len() as u64, size, only });
    }
    shares
        .sort_by_key(|it| std::cmp::Reverse(it.of.newest.as_ref().map_or(i64::MAX, |it| it.when.seconds())));
    Ok(shares)
}
