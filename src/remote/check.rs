//! Checks what a remote holds: names, indexes, lists of roots, and the bytes of packs.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    error::Result,
    progress::{Event, Progress},
    remote::{
        Access, Remote,
        catalog::{Catalog, forget_index, index_path, pack_path, roots_path},
        read::{ObjectReader, leave_note},
        repair::{
            PackState, known_index, lost_objects, read_pack, remove_unreadable, repair_pack, restore_lost,
        },
    },
    repo::Repo,
    store::{Kind, Writer},
};

/// Packs whose bytes a check reads, beside those in which a reader found damage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    Noted,
    /// This share of all packs, 0 to 1, others each day; at least one.
    Share(f64),
    All,
}

/// Result of the check of a remote.
#[derive(Debug, Default)]
pub struct RemoteCheck {
    /// Packs that have an index.
    pub packs: u64,
    /// Packs that were read in full.
    pub read: u64,
    /// Packs that have or had an index but do not exist, or whose index and end are damaged.
    pub lost: Vec<Digest>,
    /// Packs whose indexes are missing or damaged, or were until they were written again.
    pub indexes: BTreeSet<Digest>,
    /// Damaged packs, each with the objects of which no intact bytes were found.
    pub damaged: BTreeMap<Digest, BTreeSet<Digest>>,
    /// Packs that were written again.
    pub repaired: Vec<Digest>,
    /// Packs that were removed, as neither their indexes nor their ends could be read.
    pub removed: Vec<Digest>,
    /// Damaged lists of roots; a repair removes them, and the next push of these roots writes them again.
    pub damaged_lists: Vec<Digest>,
    /// Contents that a push asked to keep and that are not there.
    pub absent_roots: BTreeSet<Digest>,
    /// Objects that packs which were read name and that are not there.
    pub absent: BTreeSet<Digest>,
    /// True if indexes were written again.
    repairs: bool,
}

impl RemoteCheck {
    /// Returns true if anything is damaged or lost.
    pub fn has_problems(&self) -> bool {
        !(self.lost.is_empty()
            && self.damaged.is_empty()
            && self.damaged_lists.is_empty()
            && (self.repairs || self.indexes.is_empty())
            && self.absent.is_empty()
            && self.absent_roots.is_empty())
    }
}

/// Checks a remote and, if `repairs`, writes damaged packs again from the local store and from the remote
/// `source`.
pub fn check(
    repo: &Repo,
    remote: &Remote,
    sample: Sample,
    repairs: bool,
    source: Option<&Remote>,
    progress: &dyn Progress,
) -> Result<RemoteCheck> {
    let access = if repairs { Access::Write } else { Access::Read };
    let mut catalog = Catalog::load(repo, remote, access)?;
    let chosen = choose(&catalog, sample, crate::time::Timestamp::now().seconds() / 86_400);
    let mut found = RemoteCheck { packs: catalog.packs().count() as u64, repairs, ..RemoteCheck::default() };
    check_indexes(remote, &catalog, &mut found)?;
    progress.event(Event::Started { task: "checking", total: Some(chosen.len() as u64) });
    for pack in chosen {
        found.read += 1;
        progress.event(Event::Advanced { by: 1 });
        let read = read_pack(repo, remote, &catalog, &pack)?;
        found.absent.extend(read.absent);
        let Some(objects) = read.damaged else {
            if repairs && catalog.damaged_packs.contains(&pack) {
                repair_pack(repo, remote, &mut catalog, &pack, progress)?;
            }
            continue;
        };
        if let Some(source) = source {
            fetch_objects(repo, source, &objects, progress)?;
        }
        let state = if repairs {
            repair_pack(repo, remote, &mut catalog, &pack, progress)?
        } else {
            leave_note(remote, &pack, &objects);
            PackState::Damaged(objects)
        };
        match state {
            PackState::Damaged(objects) => drop(found.damaged.insert(pack, objects)),
            // The catalog leaves them out.
            PackState::Unreadable => found.lost.push(pack),
            PackState::Intact | PackState::Repaired => found.repaired.push(pack),
        }
    }
    progress.event(Event::Finished);
    for pack in catalog.lost_packs.clone() {
        let list = if !repairs {
            &mut found.lost
        } else if restore(repo, remote, &mut catalog, &pack, source, progress)? {
            &mut found.repaired
        } else if known_index(repo, remote, &pack)?.is_some() {
            // This clone has nothing of it. If its index is gone, too, it is not named again.
            forget_index(repo, remote, &pack)?;
            &mut found.lost
        } else if remove_unreadable(remote, &pack)? {
            &mut found.removed
        } else {
            &mut found.lost
        };
        list.push(pack);
    }
    catalog.lost_packs.clone_from(&found.lost);
    check_roots(remote, &catalog, &mut found)?;
    found.absent.retain(|digest| !catalog.has_object(digest));
    if repairs {
        let damaged = std::mem::take(&mut found.damaged_lists);
        damaged.iter().try_for_each(|list| remote.delete(&roots_path(list)))?;
    }
    Ok(found)
}

/// Sends the objects of a lost pack again. Returns true if all are there then.
fn restore(
    repo: &Repo,
    remote: &Remote,
    catalog: &mut Catalog,
    pack: &Digest,
    source: Option<&Remote>,
    progress: &dyn Progress,
) -> Result<bool> {
    if let Some(source) = source {
        fetch_objects(repo, source, &lost_objects(repo, remote, catalog, pack)?, progress)?;
    }
    restore_lost(repo, remote, catalog, pack, progress)
}

/// Compares the indexes at the remote with those that are known to be right, and writes them again.
fn check_indexes(remote: &Remote, catalog: &Catalog, found: &mut RemoteCheck) -> Result<()> {
    found.indexes.clone_from(&catalog.repaired_indexes);
    for pack in catalog.packs() {
        let Some(index) = catalog.index(pack) else { continue };
        match remote.read_if_there(&index_path(pack))? {
            Some(bytes) if bytes == index.bytes()[..] => {}
            // It was written again with the catalog, or another clone is removing the pack.
            None if found.repairs || !remote.exists(&pack_path(pack))? => {}
            stored => {
                found.indexes.insert(*pack);
                if stored.is_some() && found.repairs {
                    remote.write(&index_path(pack), index.bytes().clone())?;
                }
            }
        }
    }
    Ok(())
}

/// Chooses the packs to read; `day` decides which ones a sample holds.
fn choose(catalog: &Catalog, sample: Sample, day: i64) -> Vec<Digest> {
    let all: Vec<Digest> = catalog.packs().copied().collect();
    let noted = |pack: &&Digest| catalog.damaged_packs.contains(pack);
    let share = match sample {
        Sample::Noted => return all.iter().filter(noted).copied().collect(),
        Sample::All => return all,
        Sample::Share(share) => share,
    };
    let mut others: Vec<_> = all.iter().filter(|pack| !noted(pack)).copied().collect();
    others.sort_by_key(|pack| Digest::of(&[&pack.bytes()[..], &day.to_le_bytes()].concat()));
    others.truncate(((all.len() as f64 * share).ceil() as usize).max(1));
    others.extend(all.iter().filter(noted));
    others
}

/// Fetches what another remote has of these objects into the local store.
fn fetch_objects(
    repo: &Repo,
    source: &Remote,
    objects: &BTreeSet<Digest>,
    progress: &dyn Progress,
) -> Result<()> {
    let catalog = Catalog::load(repo, source, Access::Read)?;
    let missing = objects.iter().filter(|digest| !repo.store.contains(digest));
    let found = missing.filter_map(|digest| catalog.places(digest, &[Kind::Content, Kind::Tree]).next());
    let found = found.collect();
    let mut writer = Writer::new(&repo.store);
    let mut reader = ObjectReader::new(source, catalog, progress);
    let read = reader.read(found, &mut |row, object| writer.put(row.kind, row.digest, object.bytes));
    writer.finish()?;
    read.map(drop)
}

/// Finds damaged lists of roots, and the roots of all others that no pack holds.
fn check_roots(remote: &Remote, catalog: &Catalog, found: &mut RemoteCheck) -> Result<()> {
    for list in catalog.root_lists.keys() {
        let Some(bytes) = remote.read_if_there(&roots_path(list))? else { continue };
        if Digest::of(&bytes) != *list {
            found.damaged_lists.push(*list);
            continue;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let roots = text.lines().filter_map(|line| line.parse::<Digest>().ok());
        found.absent_roots.extend(roots.filter(|root| !catalog.has_content(root)));
    }
    Ok(())
}
