//! Removes unreferenced objects. The plan uses pack indexes and file ages only; a second step applies it.
//!
//! If less than half of a pack is referenced, the referenced objects are copied into a new pack, which is
//! synced before the old one is removed. Many small packs (every `add` makes some) are merged in the same
//! way, but only those that hold nothing which is kept for its age alone: in a new pack it would count as
//! young again. An index is removed before its pack, so that no index ever names missing objects; stopped at
//! any point, pruning leaves garbage at worst. Copied bytes are verified, and so is the remaining copy of a
//! duplicate: a damaged copy never becomes the only one.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;

use crate::{
    digest::Digest,
    error::{Kind as ErrorKind, Result},
    store::{
        Inventory, Kind, PackFile, Packed, Row, Store, StoredFile, chunked, file_path,
        inventory::OrphanFile,
        repack::{MAX_PACK_SIZE, Repacker},
    },
};

/// Smallest number of small packs that are merged.
const MIN_MERGED: usize = 16;

/// Everything that is referenced and must be kept.
#[derive(Clone, Debug, Default)]
pub struct LiveSet {
    pub objects: HashSet<Digest>,
    pub runs: HashSet<Digest>,
}

/// A number of things and their total size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub count: u64,
    pub bytes: u64,
}

/// Amounts that are removed, by kind of object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// Small files in packs.
    pub contents: Amount,
    /// Pages of folders.
    pub trees: Amount,
    /// Large files.
    pub large_files: Amount,
    /// Old versions of large files that are kept as chunks from now on, and what that frees.
    pub chunked: Amount,
    pub runs: Amount,
    /// Files left behind by killed commands.
    pub orphans: Amount,
    /// Second copies of objects.
    pub duplicates: Amount,
}

/// Removals and rewrites that a prune would make; computing a plan changes nothing.
#[derive(Debug, Default)]
pub struct PrunePlan {
    pub freed: Freed,
    /// Packs that are rewritten because little of them is referenced, with the size of their referenced
    /// objects.
    pub rewritten: Amount,
    /// Small packs that are merged, with the size of their referenced objects.
    pub merged: Amount,
    /// Unreferenced objects that stay, in packs that are young or mostly referenced.
    pub retained: Amount,
    packs: Vec<PackRemoval>,
    pub(super) large_files: Vec<StoredFile>,
    /// Large files that are kept as chunks, with the number of bytes that this frees.
    pub(super) converted: BTreeMap<Digest, u64>,
    pub(super) chunk_lists: Vec<StoredFile>,
    /// Bytes of large files to be removed that are copied into packs first, since others need them.
    pub(super) copied_bytes: u64,
    runs: Vec<StoredFile>,
    orphans: Vec<OrphanFile>,
    /// Packs that are referenced and lost their index: it is rebuilt.
    lost_indexes: BTreeSet<Digest>,
}

/// A pack to remove.
#[derive(Debug)]
struct PackRemoval {
    name: Digest,
    /// Referenced objects, which are copied into a new pack.
    moved: Vec<Row>,
    /// Objects that another pack holds as well.
    duplicates: Vec<Digest>,
    freed: Freed,
}

impl Amount {
    pub(super) fn add_one(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }

    pub(super) fn remove_one(&mut self, bytes: u64) {
        self.count -= 1;
        self.subtract(bytes);
    }

    pub(super) fn subtract(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }
}

impl Freed {
    pub fn add(&mut self, other: &Self) {
        self.contents.add(other.contents);
        self.trees.add(other.trees);
        self.large_files.add(other.large_files);
        self.chunked.add(other.chunked);
        self.runs.add(other.runs);
        self.orphans.add(other.orphans);
        self.duplicates.add(other.duplicates);
    }

    pub fn total(&self) -> Amount {
        let mut sum = self.contents;
        for amount in [self.trees, self.large_files, self.chunked, self.runs, self.orphans, self.duplicates] {
            sum.add(amount);
        }
        sum
    }
}

impl PrunePlan {
    pub fn is_empty(&self) -> bool {
        let files = self.large_files.len() + self.chunk_lists.len() + self.runs.len() + self.orphans.len();
        self.packs.len() + files == 0
    }

    fn remove_pack(&mut self, name: Digest, usage: &PackUsage, rows: impl Iterator<Item = Classified>) {
        let mut removal = PackRemoval { name, moved: Vec::new(), duplicates: Vec::new(), freed: usage.freed };
        for (disposition, row) in rows {
            match disposition {
                Disposition::Referenced => removal.moved.push(row),
                Disposition::Duplicate => removal.duplicates.push(row.digest),
                Disposition::Unreferenced => {}
            }
        }
        self.freed.add(&usage.freed);
        self.packs.push(removal);
    }
}

/// Plans the removal of everything that is not in `live` and whose file is old: `is_old` gets its
/// modification time in nanoseconds since 1970.
pub fn plan_prune(inventory: &Inventory, live: &LiveSet, is_old: &dyn Fn(i64) -> bool) -> PrunePlan {
    let mut plan = PrunePlan::default();
    plan_packs(inventory, live, is_old, &mut plan);
    let unreferenced = inventory.large_files.iter().filter(|it| !live.objects.contains(&it.digest));
    for file in unreferenced.filter(|it| is_old(it.mtime)) {
        plan.freed.large_files.add_one(file.size);
        plan.large_files.push(*file);
    }
    for run in inventory.runs.iter().filter(|it| !live.runs.contains(&it.digest) && is_old(it.mtime)) {
        plan.freed.runs.add_one(run.size);
        plan.runs.push(*run);
    }
    // If a killed gc left a pack without its index, the pack's objects are still where they were before.
    let kinds = [Kind::Content, Kind::Tree];
    let has_other_copy = |digest: &Digest| {
        let packed = inventory.packs.iter().any(|pack| pack.packed.index.find(digest, &kinds).is_some());
        packed || inventory.large_files.iter().any(|file| file.digest == *digest)
    };
    let needs_pack = |row: Row| live.objects.contains(&row.digest) && !has_other_copy(&row.digest);
    let is_needed = |pack: &Packed| pack.index.rows().any(needs_pack);
    let lost = inventory.recovered.iter().filter(|(_, pack)| is_needed(pack));
    plan.lost_indexes = lost.map(|(name, _)| *name).collect();
    for orphan in inventory.orphans.iter().filter(|it| it.owner_ended || is_old(it.mtime)) {
        if orphan.pack.is_some_and(|name| plan.lost_indexes.contains(&name)) {
            continue;
        }
        plan.freed.orphans.add_one(orphan.size);
        plan.orphans.push(orphan.clone());
    }
    plan
}

fn plan_packs(inventory: &Inventory, live: &LiveSet, is_old: &dyn Fn(i64) -> bool, plan: &mut PrunePlan) {
    let mut packs: Vec<_> = inventory.packs.iter().collect();
    // Newest first: an object that was stored again because its bytes were wrong is in the newer pack.
    packs.sort_by_key(|it| std::cmp::Reverse((it.mtime, it.name)));
    let (mut seen, mut small) = (HashSet::new(), Vec::new());
    let mut newer: Option<&PackFile> = None;
    for pack in packs {
        if let Some(newer) = newer.replace(pack) {
            let is_referenced = |row: &Row| disposition(row, live, &seen) == Disposition::Referenced;
            let rows = newer.packed.index.rows().filter(is_referenced);
            seen.extend(rows.map(|row| (row.digest, row.kind)).collect::<Vec<_>>());
        }
        let dispositions = || pack.packed.index.rows().map(|row| (disposition(&row, live, &seen), row));
        let usage = PackUsage::of(dispositions());
        let (old, has_duplicates) = (is_old(pack.mtime), usage.freed.duplicates.count > 0);
        let unreferenced = usage.freed.contents.count + usage.freed.trees.count;
        let only_duplicates = unreferenced == 0 && usage.used.count == 0 && has_duplicates;
        if old && usage.is_mostly_unused() || only_duplicates {
            if usage.used.count > 0 {
                plan.rewritten.add_one(usage.used.bytes);
            }
            plan.remove_pack(pack.name, &usage, dispositions());
        } else if pack.size < MAX_PACK_SIZE / 2 && (old || unreferenced == 0) {
            small.push((pack.size, pack.name, usage, dispositions().collect::<Vec<_>>()));
        } else {
            plan.retained.add(usage.freed.contents);
            plan.retained.add(usage.freed.trees);
        }
    }
    merge_small_packs(small, plan);
}

/// Plans to merge small packs into one if there are many. A pack of more than twice the size of all smaller
/// ones stays, so that its bytes are not rewritten each time a few small packs were added.
fn merge_small_packs(mut small: Vec<(u64, Digest, PackUsage, Vec<Classified>)>, plan: &mut PrunePlan) {
    small.sort_by_key(|it| (it.0, it.1));
    let (mut sum, mut count) = (0, 0);
    for (at, (size, ..)) in small.iter().enumerate() {
        if *size <= 2 * sum {
            count = at + 1;
        }
        sum += size;
    }
    let count = if count < MIN_MERGED { 0 } else { count };
    for (at, (_, name, usage, dispositions)) in small.into_iter().enumerate() {
        if at < count {
            plan.merged.add_one(usage.used.bytes);
            plan.remove_pack(name, &usage, dispositions.into_iter());
        } else {
            plan.retained.add(usage.freed.contents);
            plan.retained.add(usage.freed.trees);
        }
    }
}

/// Referenced and removable objects of a pack.
#[derive(Clone, Copy, Default)]
struct PackUsage {
    freed: Freed,
    used: Amount,
}

impl PackUsage {
    fn of(rows: impl Iterator<Item = Classified>) -> Self {
        let mut usage = Self::default();
        for (disposition, row) in rows {
            match disposition {
                Disposition::Unreferenced if row.kind == Kind::Tree => usage.freed.trees.add_one(row.stored),
                Disposition::Unreferenced => usage.freed.contents.add_one(row.stored),
                Disposition::Duplicate => usage.freed.duplicates.add_one(row.stored),
                Disposition::Referenced => usage.used.add_one(row.stored),
            }
        }
        usage
    }

    /// Returns true if less than half of the pack is referenced.
    fn is_mostly_unused(&self) -> bool {
        let all = self.used.bytes + self.freed.total().bytes;
        self.used.count == 0 || self.used.bytes < all.div_ceil(2)
    }
}

/// Classification of an object in a pack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disposition {
    Referenced,
    /// A newer pack holds it as well.
    Duplicate,
    Unreferenced,
}

type Classified = (Disposition, Row);

fn disposition(row: &Row, live: &LiveSet, seen: &HashSet<(Digest, Kind)>) -> Disposition {
    let is_collectable = matches!(row.kind, Kind::Content | Kind::Tree);
    if is_collectable && !live.objects.contains(&row.digest) {
        Disposition::Unreferenced
    } else if seen.contains(&(row.digest, row.kind)) {
        Disposition::Duplicate
    } else {
        Disposition::Referenced
    }
}

/// Packs whose referenced objects are stored elsewhere now, so that they can be removed.
pub struct Repacked {
    names: BTreeSet<Digest>,
    /// True if the disk had no space for new packs: the objects to be moved stay where they are.
    pub disk_full: bool,
}

impl Store {
    /// Copies referenced objects out of the packs to be removed; when it returns, all copies are synced to
    /// disk. On a full disk, only packs that hold nothing to be copied are returned.
    pub fn repack(&self, plan: &PrunePlan) -> Result<Repacked> {
        let removed: BTreeSet<Digest> = plan.packs.iter().map(|it| it.name).collect();
        let (moved, published, disk_full) = match self.repack_rows(plan) {
            Ok((moved, published)) => (moved, published, false),
            // The user may be running the gc because the disk is full.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                (plan.packs.iter().filter(|it| it.moved.is_empty()).collect(), Vec::new(), true)
            }
            Err(error) => return Err(error),
        };
        let remains = |name: &Digest| published.contains(name) || !removed.contains(name);
        let has_copy = |digest: &Digest| self.intact_copy(digest, &remains).is_some();
        let is_safe = |pack: &&PackRemoval| pack.duplicates.iter().all(has_copy);
        let mut names: BTreeSet<Digest> = moved.into_iter().filter(is_safe).map(|it| it.name).collect();
        // A new pack may be identical to one that was to be removed.
        names.retain(|name| !published.contains(name));
        Ok(Repacked { names, disk_full })
    }

    /// Copies the planned rows; returns the packs that were copied in full, and the names of the new packs.
    fn repack_rows<'p>(&self, plan: &'p PrunePlan) -> Result<(Vec<&'p PackRemoval>, Vec<Digest>)> {
        let (mut moved, mut repacker) = (Vec::new(), Repacker::new(self));
        for pack in &plan.packs {
            match repacker.copy_rows(&pack.name, &pack.moved) {
                Ok(()) => moved.push(pack),
                // A pack that cannot be copied in full stays where it is, for `fsck`.
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        Ok((moved, repacker.finish()?))
    }

    /// Returns the object's bytes from one of the packs that `from` accepts, if an intact copy is there.
    pub(super) fn intact_copy(&self, digest: &Digest, from: &dyn Fn(&Digest) -> bool) -> Option<Vec<u8>> {
        let packs: Vec<_> =
            self.packs().iter().filter(|it| from(it.0)).map(|it| std::sync::Arc::clone(it.1)).collect();
        let kinds = [Kind::Content, Kind::Tree];
        packs.iter().find_map(|it| it.read(&it.index.find(digest, &kinds)?).ok())
    }

    /// Applies a plan, except for anything `leased`. Run records and pack indexes are removed before the
    /// objects they name. Returns the removed amounts.
    pub fn prune(&self, plan: &PrunePlan, repacked: &Repacked, leased: &HashSet<Digest>) -> Result<Freed> {
        for name in &plan.lost_indexes {
            // On a full disk it stays as it is until the next gc.
            let _later = self.rebuild_index(name);
        }
        let mut freed = Freed::default();
        for run in &plan.runs {
            if self.remove_run(run)? {
                freed.runs.add_one(run.size);
            }
        }
        // Before the packs with the chunks.
        for list in plan.chunk_lists.iter().filter(|list| !leased.contains(&list.digest)) {
            self.root.remove(&file_path(chunked::FOLDER, &list.digest.hex(), "")?)?;
        }
        plan.dropped_lists().for_each(|list| freed.large_files.add_one(list.size));
        let removable = |it: &&PackRemoval| repacked.names.contains(&it.name) && !leased.contains(&it.name);
        let packs: Vec<&PackRemoval> = plan.packs.iter().filter(removable).collect();
        for pack in &packs {
            self.root.remove(&file_path("packs", &pack.name.hex(), ".idx")?)?;
        }
        if !packs.is_empty() {
            // Otherwise a power failure might bring back an index without its pack.
            self.dir("packs")?.sync()?;
        }
        for pack in packs {
            self.forget_pack(&pack.name);
            self.root.remove(&file_path("packs", &pack.name.hex(), ".pack")?)?;
            freed.add(&pack.freed);
        }
        for file in plan.large_files.iter().filter(|it| !leased.contains(&it.digest)) {
            self.root.remove(&file_path("objects", &file.digest.hex(), "")?)?;
            match plan.converted.get(&file.digest) {
                Some(saved) => freed.chunked.add_one(*saved),
                None => freed.large_files.add_one(file.size),
            }
        }
        freed.large_files.subtract(plan.copied_bytes);
        self.list_chunked()?;
        let orphans = plan.orphans.iter().filter(|it| it.pack.is_none_or(|name| !leased.contains(&name)));
        for orphan in orphans {
            // Its writer may have published the index since the plan, and have ended.
            if orphan.pack.is_some_and(|name| self.has_index(&name)) {
                continue;
            }
            self.root.remove(&orphan.path)?;
            freed.orphans.add_one(orphan.size);
        }
        Ok(freed)
    }

    /// Returns true unless the pack has no index for certain.
    fn has_index(&self, pack: &Digest) -> bool {
        let index = file_path("packs", &pack.hex(), ".idx").and_then(|index| self.root.stat(&index));
        !index.is_ok_and(|stat| stat.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fs::{Root, Sync},
        path::RepoPath,
        store::Writer,
    };

    fn store(temp: &tempfile::TempDir) -> Store {
        Store::open(Root::open(temp.path()).unwrap()).unwrap()
    }

    fn put(store: &Store, objects: &[&[u8]]) -> Vec<Digest> {
        let mut writer = Writer::new(store);
        let digests = objects.iter().map(|it| writer.put_bytes(it).unwrap()).collect();
        writer.finish().unwrap();
        digests
    }

    fn prune_all_but(store: &Store, keep: &[Digest]) -> Freed {
        let live = LiveSet { objects: keep.iter().copied().collect(), runs: HashSet::new() };
        let plan = plan_prune(&store.inventory().unwrap(), &live, &|_| true);
        let repacked = store.repack(&plan).unwrap();
        store.prune(&plan, &repacked, &HashSet::new()).unwrap();
        plan.freed
    }

    #[test]
    fn a_pack_is_rewritten_once_less_than_half_of_it_is_referenced() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(&temp);
        let digests = put(&store, &[b"0123456789", b"abcdefghij", b"ABCDEFGHIJ"]);
        assert_eq!(prune_all_but(&store, &digests[..2]), Freed::default());
        let freed = prune_all_but(&store, &digests[..1]);
        assert_eq!(freed.contents, Amount { count: 2, bytes: 20 });
        assert_eq!(store.read(&digests[0]).unwrap(), b"0123456789");
        let reopened = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        assert_eq!(reopened.read(&digests[0]).unwrap(), b"0123456789");
        assert!(!reopened.contains(&digests[1]));
        assert_eq!(crate::fs::names(&temp.path().join("packs")).len(), 2, "one pack and its index");
    }

    #[test]
    fn a_pack_whose_index_was_published_after_the_plan_stays() {
        let temp = tempfile::tempdir().unwrap();
        let digest = put(&store(&temp), &[b"object"])[0];
        let index = crate::fs::names(&temp.path().join("packs")).into_iter().next().unwrap();
        let index = file_path("packs", index.to_str().unwrap(), "").unwrap();
        let (files, aside) = (Root::open(temp.path()).unwrap(), RepoPath::from_text("aside").unwrap());
        files.rename(&index, &aside).unwrap();
        let store = store(&temp);
        let plan = plan_prune(&store.inventory().unwrap(), &LiveSet::default(), &|_| true);
        assert_eq!(plan.orphans.len(), 1);
        files.rename(&aside, &index).unwrap();
        store.prune(&plan, &store.repack(&plan).unwrap(), &HashSet::new()).unwrap();
        assert_eq!(self::store(&temp).read(&digest).unwrap(), b"object");
    }

    /// Stores enough packs of one object each to be merged.
    fn small_packs(temp: &tempfile::TempDir) -> Vec<Digest> {
        (0..MIN_MERGED).map(|it| put(&store(temp), &[format!("object {it}").as_bytes()])[0]).collect()
    }

    #[test]
    fn many_small_packs_are_merged_and_a_large_one_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let mut digests = small_packs(&temp);
        let heavy: Vec<u8> =
            (0..100_000_u32).flat_map(|it| Digest::of(&it.to_le_bytes()).bytes()[..2].to_vec()).collect();
        digests.extend(put(&store(&temp), &[&heavy]));
        let live = LiveSet { objects: digests.iter().copied().collect(), runs: HashSet::new() };
        let store = store(&temp);
        let merge = |old: bool| {
            let plan = plan_prune(&store.inventory().unwrap(), &live, &|_| old);
            let repacked = store.repack(&plan).unwrap();
            store.prune(&plan, &repacked, &HashSet::new()).unwrap();
            plan.merged.count
        };
        assert_eq!((merge(false), merge(false)), (MIN_MERGED as u64, 0), "young, but all of it referenced");
        assert_eq!(crate::fs::names(&temp.path().join("packs")).len(), 4, "two packs and their indexes");
        let reopened = self::store(&temp);
        assert!(digests.iter().all(|it| reopened.read(it).is_ok()));
    }

    #[test]
    fn an_unreferenced_young_object_is_not_moved_to_a_newer_pack() {
        let temp = tempfile::tempdir().unwrap();
        let digests = small_packs(&temp);
        let live = LiveSet { objects: digests[1..].iter().copied().collect(), runs: HashSet::new() };
        let planned = |old: bool| plan_prune(&store(&temp).inventory().unwrap(), &live, &|_| old);
        assert_eq!(planned(false).merged.count, 0, "too few without the unreferenced one");
        assert_eq!((planned(true).merged.count, planned(true).freed.contents.count), (0, 1));
        put(&store(&temp), &[b"one more"]);
        let objects = digests[1..].iter().copied().chain([Digest::of(b"one more")]).collect();
        let live = LiveSet { objects, ..live };
        let plan = plan_prune(&store(&temp).inventory().unwrap(), &live, &|_| false);
        assert_eq!((plan.merged.count, plan.retained.count), (MIN_MERGED as u64, 1));
    }

    #[test]
    fn a_merge_may_be_interrupted_anywhere() {
        crate::fs::Crash::alone("store::prune::tests::a_merge_may_be_interrupted_anywhere", interrupt_merges);
    }

    fn interrupt_merges() {
        let temp = tempfile::tempdir().unwrap();
        let digests = small_packs(&temp);
        let packs = crate::fs::names(&temp.path().join("packs"));
        let path = |name: &std::ffi::OsString| file_path("packs", name.to_str().unwrap(), "").unwrap();
        let packs: Vec<_> = packs.iter().map(path).collect();
        let packs: Vec<_> = packs.iter().map(|it| (it, store(&temp).root().read(it).unwrap())).collect();
        for at in 1.. {
            let temp = tempfile::tempdir().unwrap();
            let root = Root::open(temp.path()).unwrap();
            packs.iter().for_each(|(path, bytes)| root.write(path, bytes, Sync::Later).unwrap());
            let crash = crate::fs::Crash::at(at);
            let live = LiveSet { objects: digests.iter().copied().collect(), runs: HashSet::new() };
            let merge = || -> Result<()> {
                let store = Store::open(Root::open(temp.path())?)?;
                let plan = plan_prune(&store.inventory()?, &live, &|_| false);
                store.prune(&plan, &store.repack(&plan)?, &HashSet::new()).map(drop)
            };
            let done = merge().is_ok();
            drop(crash);
            let reopened = store(&temp);
            assert!(digests.iter().all(|it| reopened.read(it).is_ok()), "{at}");
            assert!(reopened.verify(&crate::progress::Silent).unwrap().faults.is_empty(), "{at}");
            merge().unwrap();
            assert_eq!(store(&temp).packs().len(), 1, "{at}");
            if done {
                return assert!(at > 50, "{at}");
            }
        }
    }

    #[test]
    fn young_or_leased_files_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(&temp);
        put(&store, &[b"one"]);
        let inventory = store.inventory().unwrap();
        assert!(plan_prune(&inventory, &LiveSet::default(), &|_| false).is_empty());
        let plan = plan_prune(&inventory, &LiveSet::default(), &|_| true);
        let repacked = store.repack(&plan).unwrap();
        let leased = store.leases().unwrap().into_iter().flat_map(|lease| lease.pinned).collect();
        store.prune(&plan, &repacked, &leased).unwrap();
        assert!(store.contains(&Digest::of(b"one")), "its writer is still running");
        store.prune(&plan, &repacked, &HashSet::new()).unwrap();
        assert!(!store.contains(&Digest::of(b"one")));
    }

    #[test]
    fn a_duplicate_is_removed_unless_the_other_copy_is_damaged() {
        for damaged in [false, true] {
            let temp = tempfile::tempdir().unwrap();
            let (first, second) = (store(&temp), store(&temp));
            // Two concurrent commands store the same object next to one of their own.
            let digest = put(&first, &[b"the same bytes", b"1"])[0];
            let mut repacker = Repacker::new(&second);
            repacker.put(Kind::Content, digest, b"the same bytes").unwrap();
            repacker.put(Kind::Content, Digest::of(b"2"), b"2").unwrap();
            repacker.finish().unwrap();
            let store = store(&temp);
            if damaged {
                let newest = store.inventory().unwrap().packs.into_iter().max_by_key(|it| it.mtime).unwrap();
                let path = file_path("packs", &newest.name.hex(), ".pack").unwrap();
                let mut bytes = store.root().read(&path).unwrap();
                bytes[10] ^= 1;
                store.root().write(&path, &bytes, Sync::Later).unwrap();
            }
            prune_all_but(&self::store(&temp), &[digest]);
            assert_eq!(self::store(&temp).read(&digest).unwrap(), b"the same bytes", "damaged: {damaged}");
        }
    }
}
