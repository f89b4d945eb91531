//! What nobody needs goes: decided from indexes and ages alone, then done.
//!
//! Of a pack of which less than half is needed, what is needed goes into a new pack, which is at rest before the
//! old one is touched. So do many small packs (every `add` makes some), as soon as nothing in them must stay for its
//! age alone: in a new pack it would be young again. An index goes before its pack, so that nothing is ever named that is not there; stopped
//! anywhere, this leaves garbage. Bytes that move are checked on the way, and a second copy is looked at before
//! the first goes: damage never becomes the only copy.

use std::{
    collections::{BTreeSet, HashSet},
    io::{BufWriter, Write as _},
};

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    digest::Digest,
    error::{Doing, Error, Kind as ErrorKind, Result},
    fs::{Sync, Temp},
    store::{Kind, PackWriter, Packed, Row, Stock, Store, WholeFile, place, stock::Stray},
};

/// A pack is ended at this size.
const FULL: u64 = 64 << 20;
/// Fewer small packs than this are left as they are.
const MANY: usize = 16;
/// Objects that are read at once.
const LOT: usize = 512;

/// What must stay.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    pub objects: HashSet<Digest>,
    pub runs: HashSet<Digest>,
}

/// How many things and how many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub count: u64,
    pub bytes: u64,
}

/// What goes, by what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// Small files in packs.
    pub contents: Amount,
    /// Pages of folders.
    pub trees: Amount,
    /// Large files.
    pub whole: Amount,
    pub runs: Amount,
    /// What killed commands left.
    pub leavings: Amount,
    /// Objects that are there twice.
    pub doubles: Amount,
}

/// What a sweep would do; making one changes nothing.
#[derive(Debug, Default)]
pub struct Plan {
    pub freed: Freed,
    /// Packs of which little is needed, with what they hold of the needed, as it is.
    pub rewritten: Amount,
    /// Small packs that become few, with what they hold of the needed.
    pub gathered: Amount,
    /// What nobody needs in packs that are mostly needed.
    pub stays: Amount,
    packs: Vec<Going>,
    whole: Vec<WholeFile>,
    runs: Vec<WholeFile>,
    strays: Vec<Stray>,
    /// Packs that are needed and have lost their index: they get a new one.
    regained: BTreeSet<Digest>,
}

/// A pack that goes.
#[derive(Debug)]
struct Going {
    name: Digest,
    /// What moves into a new pack.
    moves: Vec<Row>,
    /// What another pack has as well.
    doubles: Vec<Digest>,
    freed: Freed,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }

    fn join(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }
}

impl Freed {
    pub fn join(&mut self, other: &Self) {
        self.contents.join(other.contents);
        self.trees.join(other.trees);
        self.whole.join(other.whole);
        self.runs.join(other.runs);
        self.leavings.join(other.leavings);
        self.doubles.join(other.doubles);
    }

    pub fn total(&self) -> Amount {
        let mut sum = self.contents;
        for it in [self.trees, self.whole, self.runs, self.leavings, self.doubles] {
            sum.join(it);
        }
        sum
    }
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.whole.is_empty() && self.runs.is_empty() && self.strays.is_empty()
    }

    fn let_go(&mut self, name: Digest, weight: &Weight, fates: impl Iterator<Item = (Fate, Row)>) {
        let mut going = Going { name, moves: Vec::new(), doubles: Vec::new(), freed: weight.freed };
        for (fate, row) in fates {
            match fate {
                Fate::Needed => going.moves.push(row),
                Fate::Double => going.doubles.push(row.digest),
                Fate::Free => {}
            }
        }
        self.freed.join(&weight.freed);
        self.packs.push(going);
    }
}

/// Decides what goes: what is not kept and is `old` by the time of its file.
pub fn plan(stock: &Stock, kept: &Kept, old: &dyn Fn(i64) -> bool) -> Plan {
    let mut plan = Plan::default();
    plan_packs(stock, kept, old, &mut plan);
    for it in stock.whole.iter().filter(|it| !kept.objects.contains(&it.digest) && old(it.mtime)) {
        plan.freed.whole.add(it.size);
        plan.whole.push(*it);
    }
    for it in stock.runs.iter().filter(|it| !kept.runs.contains(&it.digest) && old(it.mtime)) {
        plan.freed.runs.add(it.size);
        plan.runs.push(*it);
    }
    // What a killed gc was about to name lies where it was before.
    let kinds = [Kind::Content, Kind::Tree];
    let elsewhere = |it: &Digest| {
        let packed = stock.packs.iter().any(|pack| pack.packed.index.find(it, &kinds).is_some());
        packed || stock.whole.iter().any(|whole| whole.digest == *it)
    };
    let needed = |it: &Packed| {
        it.index.rows().any(|row| kept.objects.contains(&row.digest) && !elsewhere(&row.digest))
    };
    plan.regained = stock.adopted.iter().filter(|it| needed(it.1)).map(|it| *it.0).collect();
    for it in stock.strays.iter().filter(|it| it.dead || old(it.mtime)) {
        if it.pack.is_some_and(|it| plan.regained.contains(&it)) {
            continue;
        }
        plan.freed.leavings.add(it.size);
        plan.strays.push(it.clone());
    }
    plan
}

fn plan_packs(stock: &Stock, kept: &Kept, old: &dyn Fn(i64) -> bool, plan: &mut Plan) {
    let mut packs: Vec<_> = stock.packs.iter().collect();
    // What was stored anew because its bytes were wrong lies in the newer pack.
    packs.sort_by_key(|it| std::cmp::Reverse((it.mtime, it.name)));
    let (mut seen, mut small) = (HashSet::new(), Vec::new());
    for (at, pack) in packs.iter().enumerate() {
        let fates = || pack.packed.index.rows().map(|row| (fate(&row, kept, &seen), row));
        let weight = Weight::of(fates());
        let (old, double) = (old(pack.mtime), weight.freed.doubles.count > 0);
        let free = weight.freed.contents.count + weight.freed.trees.count;
        if old && weight.is_light() || free == 0 && weight.used.count == 0 && double {
            if weight.used.count > 0 {
                plan.rewritten.add(weight.used.bytes);
            }
            plan.let_go(pack.name, &weight, fates());
        } else if pack.size < FULL / 2 && (old || free == 0) {
            small.push((pack.size, pack.name, weight, fates().collect::<Vec<_>>()));
        } else {
            plan.stays.join(weight.freed.contents);
            plan.stays.join(weight.freed.trees);
        }
        // Nobody asks after the last one.
        if at + 1 < packs.len() {
            let needed: Vec<_> = fates().filter(|it| it.0 == Fate::Needed).map(|it| it.1).collect();
            seen.extend(needed.iter().map(|it| (it.digest, it.kind)));
        }
    }
    gather(small, plan);
}

/// Small packs become one, if there are many. One that weighs more than twice what is smaller stays, so that a byte
/// is not written again each time something small came.
fn gather(mut small: Vec<(u64, Digest, Weight, Vec<(Fate, Row)>)>, plan: &mut Plan) {
    small.sort_by_key(|it| (it.0, it.1));
    let (mut sum, mut count) = (0, 0);
    for (at, it) in small.iter().enumerate() {
        if it.0 <= 2 * sum {
            count = at + 1;
        }
        sum += it.0;
    }
    let count = if count < MANY { 0 } else { count };
    for (at, (_, name, weight, fates)) in small.into_iter().enumerate() {
        if at < count {
            plan.gathered.add(weight.used.bytes);
            plan.let_go(name, &weight, fates.into_iter());
        } else {
            plan.stays.join(weight.freed.contents);
            plan.stays.join(weight.freed.trees);
        }
    }
}

/// What a pack holds.
#[derive(Clone, Copy, Default)]
struct Weight {
    freed: Freed,
    used: Amount,
}

impl Weight {
    fn of(fates: impl Iterator<Item = (Fate, Row)>) -> Self {
        let mut it = Self::default();
        for (fate, row) in fates {
            match fate {
                Fate::Free if row.kind == Kind::Tree => it.freed.trees.add(row.stored),
                Fate::Free => it.freed.contents.add(row.stored),
                Fate::Double => it.freed.doubles.add(row.stored),
                Fate::Needed => it.used.add(row.stored),
            }
        }
        it
    }

    /// Whether less than half of it is needed.
    fn is_light(&self) -> bool {
        let all = self.used.bytes + self.freed.total().bytes;
        self.used.count == 0 || self.used.bytes < all.div_ceil(2)
    }
}

/// What becomes of an object in a pack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Needed,
    /// A newer pack has it.
    Double,
    Free,
}

fn fate(row: &Row, kept: &Kept, seen: &HashSet<(Digest, Kind)>) -> Fate {
    let known = matches!(row.kind, Kind::Content | Kind::Tree);
    if known && !kept.objects.contains(&row.digest) {
        Fate::Free
    } else if seen.contains(&(row.digest, row.kind)) {
        Fate::Double
    } else {
        Fate::Needed
    }
}

/// Packs whose needed objects lie elsewhere now.
pub struct Emptied {
    names: BTreeSet<Digest>,
    /// Whether the disk had no room for new packs: what would have moved stays where it is.
    pub full: bool,
}

impl Store {
    /// Moves what is needed out of packs that go; when it returns, all of it is at rest. On a full disk only packs
    /// that nothing need be moved out of are emptied.
    pub fn move_out(&self, plan: &Plan) -> Result<Emptied> {
        let going: BTreeSet<Digest> = plan.packs.iter().map(|it| it.name).collect();
        let (moved, published, full) = match self.move_rows(plan) {
            Ok((moved, published)) => (moved, published, false),
            // Who frees what nobody needs may do so because the disk is full.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                (plan.packs.iter().filter(|it| it.moves.is_empty()).collect(), Vec::new(), true)
            }
            Err(error) => return Err(error),
        };
        let stays = |name: &Digest| published.contains(name) || !going.contains(name);
        let whole = |it: &&Going| it.doubles.iter().all(|it| self.sound_copy(it, &stays).is_some());
        let mut names: BTreeSet<Digest> = moved.into_iter().filter(whole).map(|it| it.name).collect();
        // A new pack may hold the very bytes of one that was to go.
        names.retain(|it| !published.contains(it));
        Ok(Emptied { names, full })
    }

    /// Packs whose rows lie in new ones now, and these.
    fn move_rows<'p>(&self, plan: &'p Plan) -> Result<(Vec<&'p Going>, Vec<Digest>)> {
        let (mut moved, mut mover) = (Vec::new(), Mover::new(self));
        for pack in &plan.packs {
            match mover.take(&pack.name, &pack.moves) {
                Ok(()) => moved.push(pack),
                // What cannot be moved whole stays where it is, for `fsck`.
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        Ok((moved, mover.finish()?))
    }

    /// The object's bytes from a pack of these or a whole file, if they are what they should be.
    pub(super) fn sound_copy(&self, digest: &Digest, from: &dyn Fn(&Digest) -> bool) -> Option<Vec<u8>> {
        let packs: Vec<_> =
            self.packs().iter().filter(|it| from(it.0)).map(|it| std::sync::Arc::clone(it.1)).collect();
        let kinds = [Kind::Content, Kind::Tree];
        packs.iter().find_map(|it| it.read(&it.index.find(digest, &kinds)?).ok())
    }

    /// Removes what the plan says but for what is `leased`; records and indexes before what they name. What went.
    pub fn remove(&self, plan: &Plan, emptied: &Emptied, leased: &HashSet<Digest>) -> Result<Freed> {
        for it in &plan.regained {
            // On a full disk they stay as they are.
            let _later = self.mend_index(it);
        }
        let mut freed = Freed::default();
        for it in &plan.runs {
            self.root.remove(&place("runs", &it.digest.hex(), "")?)?;
            freed.runs.add(it.size);
        }
        let goes = |it: &&Going| emptied.names.contains(&it.name) && !leased.contains(&it.name);
        let packs: Vec<&Going> = plan.packs.iter().filter(goes).collect();
        for pack in &packs {
            self.root.remove(&place("packs", &pack.name.hex(), ".idx")?)?;
        }
        if !packs.is_empty() {
            // Else a power cut might bring back an index without its pack.
            self.dir("packs")?.sync()?;
        }
        for pack in packs {
            self.forget(&pack.name);
            self.root.remove(&place("packs", &pack.name.hex(), ".pack")?)?;
            freed.join(&pack.freed);
        }
        for it in plan.whole.iter().filter(|it| !leased.contains(&it.digest)) {
            self.root.remove(&place("objects", &it.digest.hex(), "")?)?;
            freed.whole.add(it.size);
        }
        for it in plan.strays.iter().filter(|it| it.pack.is_none_or(|it| !leased.contains(&it))) {
            self.root.remove(&it.path)?;
            freed.leavings.add(it.size);
        }
        Ok(freed)
    }
}

/// Gathers objects out of old packs into new ones.
pub(super) struct Mover<'s> {
    store: &'s Store,
    contents: Option<PackWriter<BufWriter<Temp>>>,
    trees: Option<PackWriter<BufWriter<Temp>>>,
    published: Vec<Digest>,
}

impl<'s> Mover<'s> {
    pub fn new(store: &'s Store) -> Self {
        Self { store, contents: None, trees: None, published: Vec::new() }
    }

    /// Takes rows of a pack, each checked; none of a pack that is damaged beyond what others have.
    pub fn take(&mut self, pack: &Digest, rows: &[Row]) -> Result<()> {
        let gone = || Error::corrupt(format!("the pack {} is not readable", pack.short()));
        let packed = self.store.packs().get(pack).cloned().ok_or_else(gone)?;
        for lot in rows.chunks(LOT) {
            let read = lot.par_iter().map(|row| {
                packed
                    .read(row)
                    .or_else(|error| self.store.sound_copy(&row.digest, &|it| it != pack).ok_or(error))
            });
            let read: Vec<Vec<u8>> = read.collect::<Result<_>>()?;
            for (row, bytes) in lot.iter().zip(read) {
                self.put(row.kind, row.digest, &bytes)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, kind: Kind, digest: Digest, bytes: &[u8]) -> Result<()> {
        let slot = if kind == Kind::Tree { &mut self.trees } else { &mut self.contents };
        let pack = match slot {
            Some(pack) => pack,
            None => {
                let temp = self.store.create("packs", 0o666)?;
                slot.insert(PackWriter::new(BufWriter::new(temp)).doing(|| "cannot write a pack".into())?)
            }
        };
        pack.put(kind, digest, bytes).doing(|| "cannot write a pack".into())?;
        if pack.len() >= FULL {
            let full = slot.take();
            self.publish(full)?;
        }
        Ok(())
    }

    /// Publishes what was taken, contents before the trees that name them; the new packs.
    pub fn finish(mut self) -> Result<Vec<Digest>> {
        let contents = self.contents.take();
        self.publish(contents)?;
        let trees = self.trees.take();
        self.publish(trees)?;
        Ok(self.published)
    }

    fn publish(&mut self, pack: Option<PackWriter<BufWriter<Temp>>>) -> Result<()> {
        let Some(pack) = pack else { return Ok(()) };
        let doing = || "cannot write a pack".to_owned();
        let (out, name, index) = pack.finish().doing(doing)?;
        let temp = out.into_inner().map_err(std::io::IntoInnerError::into_error).doing(doing)?;
        self.store.announce(name)?;
        self.published.push(name);
        temp.publish(format!("{}.pack", name.hex()).as_bytes(), Sync::Yes)?;
        let mut temp = self.store.create("packs", 0o666)?;
        temp.write_all(&index).doing(doing)?;
        temp.publish(format!("{}.idx", name.hex()).as_bytes(), Sync::Yes)?;
        self.store.refresh().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fs::Root, store::Writer};

    fn store(temp: &tempfile::TempDir) -> Store {
        Store::open(Root::open(temp.path()).unwrap()).unwrap()
    }

    fn put(store: &Store, objects: &[&[u8]]) -> Vec<Digest> {
        let mut writer = Writer::new(store);
        let digests = objects.iter().map(|it| writer.put_bytes(it).unwrap()).collect();
        writer.finish().unwrap();
        digests
    }

    fn sweep(store: &Store, keep: &[Digest]) -> Freed {
        let kept = Kept { objects: keep.iter().copied().collect(), runs: HashSet::new() };
        let plan = plan(&store.stock().unwrap(), &kept, &|_| true);
        let emptied = store.move_out(&plan).unwrap();
        store.remove(&plan, &emptied, &HashSet::new()).unwrap();
        plan.freed
    }

    #[test]
    fn a_pack_that_is_half_needed_stays_and_one_that_is_less_is_rewritten() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(&temp);
        let digests = put(&store, &[b"0123456789", b"abcdefghij", b"ABCDEFGHIJ"]);
        assert_eq!(sweep(&store, &digests[..2]), Freed::default());
        let freed = sweep(&store, &digests[..1]);
        assert_eq!(freed.contents, Amount { count: 2, bytes: 20 });
        assert_eq!(store.read(&digests[0]).unwrap(), b"0123456789");
        let fresh = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        assert_eq!(fresh.read(&digests[0]).unwrap(), b"0123456789");
        assert!(!fresh.contains(&digests[1]));
        assert_eq!(crate::fs::names(&temp.path().join("packs")).len(), 2, "one pack and its index");
    }

    /// Packs of one object each.
    fn many(temp: &tempfile::TempDir) -> Vec<Digest> {
        (0..MANY).map(|it| put(&store(temp), &[format!("object {it}").as_bytes()])[0]).collect()
    }

    #[test]
    fn many_small_packs_become_one_and_a_heavy_one_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let mut digests = many(&temp);
        let heavy: Vec<u8> =
            (0..100_000_u32).flat_map(|it| Digest::of(&it.to_le_bytes()).bytes()[..2].to_vec()).collect();
        digests.extend(put(&store(&temp), &[&heavy]));
        let kept = Kept { objects: digests.iter().copied().collect(), runs: HashSet::new() };
        let store = store(&temp);
        let gather = |old: bool| {
            let plan = plan(&store.stock().unwrap(), &kept, &|_| old);
            let emptied = store.move_out(&plan).unwrap();
            store.remove(&plan, &emptied, &HashSet::new()).unwrap();
            plan.gathered.count
        };
        assert_eq!((gather(false), gather(false)), (MANY as u64, 0), "young, and all of it needed");
        assert_eq!(crate::fs::names(&temp.path().join("packs")).len(), 4, "two packs and their indexes");
        let fresh = self::store(&temp);
        assert!(digests.iter().all(|it| fresh.read(it).is_ok()));
    }

    #[test]
    fn what_must_stay_for_its_age_is_not_made_young_again() {
        let temp = tempfile::tempdir().unwrap();
        let digests = many(&temp);
        let kept = Kept { objects: digests[1..].iter().copied().collect(), runs: HashSet::new() };
        let planned = |old: bool| plan(&store(&temp).stock().unwrap(), &kept, &|_| old);
        assert_eq!(planned(false).gathered.count, 0, "too few without the one that nobody needs");
        assert_eq!((planned(true).gathered.count, planned(true).freed.contents.count), (0, 1));
        put(&store(&temp), &[b"one more"]);
        let kept =
            Kept { objects: digests[1..].iter().copied().chain([Digest::of(b"one more")]).collect(), ..kept };
        let plan = plan(&store(&temp).stock().unwrap(), &kept, &|_| false);
        assert_eq!((plan.gathered.count, plan.stays.count), (MANY as u64, 1));
    }

    #[test]
    fn gathering_may_end_at_any_operation() {
        let temp = tempfile::tempdir().unwrap();
        let digests = many(&temp);
        let packs = crate::fs::names(&temp.path().join("packs"));
        let packs: Vec<_> =
            packs.iter().map(|it| place("packs", it.to_str().unwrap(), "").unwrap()).collect();
        let packs: Vec<_> = packs.iter().map(|it| (it, store(&temp).root().read(it).unwrap())).collect();
        for at in 1.. {
            let temp = tempfile::tempdir().unwrap();
            let root = Root::open(temp.path()).unwrap();
            packs.iter().for_each(|(path, bytes)| root.write(path, bytes, Sync::Later).unwrap());
            let crash = crate::fs::Crash::at(at);
            let kept = Kept { objects: digests.iter().copied().collect(), runs: HashSet::new() };
            let gather = || -> Result<()> {
                let store = Store::open(Root::open(temp.path())?)?;
                let plan = plan(&store.stock()?, &kept, &|_| false);
                let emptied = store.move_out(&plan)?;
                store.remove(&plan, &emptied, &HashSet::new()).map(drop)
            };
            let done = gather().is_ok();
            drop(crash);
            let fresh = store(&temp);
            assert!(digests.iter().all(|it| fresh.read(it).is_ok()), "{at}");
            let verified = fresh.verify(&crate::progress::Silent).unwrap();
            assert!(verified.faults.is_empty(), "{at}: {:?}", verified.faults);
            gather().unwrap();
            assert_eq!(store(&temp).packs().len(), 1, "{at}");
            if done {
                assert!(at > 50, "{at}");
                break;
            }
        }
    }

    #[test]
    fn what_is_young_or_leased_stays() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(&temp);
        put(&store, &[b"one"]);
        let stock = store.stock().unwrap();
        assert!(plan(&stock, &Kept::default(), &|_| false).is_empty());
        let plan = plan(&stock, &Kept::default(), &|_| true);
        let emptied = store.move_out(&plan).unwrap();
        let leased = store.leases().unwrap().into_iter().flat_map(|it| it.names).collect();
        store.remove(&plan, &emptied, &leased).unwrap();
        assert!(store.contains(&Digest::of(b"one")), "the writer lives");
        store.remove(&plan, &emptied, &HashSet::new()).unwrap();
        assert!(!store.contains(&Digest::of(b"one")));
    }

    #[test]
    fn of_two_copies_one_goes_unless_the_other_is_damaged() {
        for damaged in [false, true] {
            let temp = tempfile::tempdir().unwrap();
            let (first, second) = (store(&temp), store(&temp));
            // Two commands at once store the same beside something of their own.
            let digest = put(&first, &[b"the same bytes", b"1"])[0];
            let mut mover = Mover::new(&second);
            mover.put(Kind::Content, digest, b"the same bytes").unwrap();
            mover.put(Kind::Content, Digest::of(b"2"), b"2").unwrap();
            mover.finish().unwrap();
            let store = store(&temp);
            if damaged {
                let newest = store.stock().unwrap().packs.into_iter().max_by_key(|it| it.mtime).unwrap();
                let path = place("packs", &newest.name.hex(), ".pack").unwrap();
                let mut bytes = store.root().read(&path).unwrap();
                bytes[10] ^= 1;
                store.root().write(&path, &bytes, Sync::Later).unwrap();
            }
            sweep(&self::store(&temp), &[digest]);
            assert_eq!(self::store(&temp).read(&digest).unwrap(), b"the same bytes", "damaged: {damaged}");
        }
    }
}
