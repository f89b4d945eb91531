//! Merges the small packs of many pushes at a remote, so that readers need few requests.
//!
//! New packs are written first, then their indexes, then the list `v1/replaced/HEX` of the packs that they
//! replace, which names the new ones, too. Readers take the lists first and skip the indexes that they name.
//! After two weeks the old indexes go, then their packs, then the list; two pushes that merge at once leave
//! two valid results.

use std::collections::{BTreeSet, HashSet};

use crate::{
    digest::Digest,
    error::Result,
    progress::Progress,
    remote::{
        Remote,
        catalog::{Catalog, ReplacedPacks, index_path, pack_path, replaced_path},
        limit,
        uploader::PackUploader,
    },
    repo::Repo,
    store::{Index, Kind, Row},
};

/// Number of small packs beyond which they are merged.
const MAX_SMALL_PACKS: u64 = 50;
/// Bytes of packs that one push merges at most.
const MAX_MERGED: usize = 64 << 20;
/// Size below which a pack is small, in bytes.
const SMALL_SIZE: u64 = 1 << 20;

/// Merges the small packs of a remote if there are many. A damaged one stays as it is.
pub fn merge_small_packs(
    repo: &Repo,
    remote: &Remote,
    catalog: &mut Catalog,
    progress: &dyn Progress,
) -> Result<()> {
    let small: Vec<Digest> = catalog.packs().filter(|pack| is_small(catalog.index(pack))).copied().collect();
    if small.len() as u64 <= limit(MAX_SMALL_PACKS, "MLX_SMALL_PACKS") {
        return Ok(());
    }
    let (mut merged, mut seen, mut size) = (Vec::new(), HashSet::new(), 0);
    let mut objects: Vec<(Row, Vec<u8>)> = Vec::new();
    for name in small {
        let Some(bytes) = remote.read_if_there(&pack_path(&name))?.filter(|bytes| Digest::of(bytes) == name)
        else {
            continue;
        };
        let index = catalog.index(&name).expect("the catalog lists it");
        for row in index.rows() {
            let stored = &bytes[row.offset as usize..][..row.stored as usize];
            // Records of a run and lists of chunks are not named by their own digests, and all are kept.
            let is_named = matches!(row.kind, Kind::Content | Kind::Tree);
            if seen.insert((row.digest, row.kind, (!is_named).then(|| Digest::of(stored)))) {
                objects.push((row, stored.to_vec()));
            }
        }
        merged.push(name);
        size += bytes.len();
        if size > MAX_MERGED {
            break;
        }
    }
    if merged.len() < 2 {
        return Ok(());
    }
    // Contents before the pages that name them, as in every push.
    objects.sort_by_key(|(row, _)| (row.kind == Kind::Run, row.kind == Kind::Tree));
    let mut uploader = PackUploader::new(repo, remote, catalog, progress).with_full_packs();
    objects.iter().try_for_each(|(row, stored)| uploader.put_stored(row, stored))?;
    uploader.flush()?;
    let by = std::mem::take(&mut uploader.names);
    replace(remote, merged, by)
}

/// Tells readers that the packs `by` have the objects of others.
pub fn replace(remote: &Remote, packs: Vec<Digest>, by: BTreeSet<Digest>) -> Result<()> {
    let packs = packs.into_iter().filter(|name| !by.contains(name)).collect();
    let text = ReplacedPacks { packs, by }.to_text();
    remote.write(&replaced_path(&Digest::of(text.as_bytes())), text.into_bytes())
}

fn is_small(index: Option<&Index>) -> bool {
    index.is_some_and(|index| index.rows().map(|row| row.offset + row.stored).max().unwrap_or(0) < SMALL_SIZE)
}

/// Returns the indexes of the packs that a list names, then these packs, if others that are not known to be
/// damaged have all of their objects.
pub fn replaced_files(
    repo: &Repo,
    remote: &Remote,
    catalog: &Catalog,
    list: &Digest,
) -> Result<Option<Vec<String>>> {
    let packs = &catalog.replaced_lists[list].packs;
    let is_elsewhere = |row: &Row| {
        let kinds = [row.kind];
        let mut packs = catalog.places(&row.digest, &kinds).map(|place| catalog.at(place).0);
        packs.any(|pack| !catalog.damaged_packs.contains(&pack))
    };
    for pack in packs {
        let Some(index) = Catalog::read_index(repo, remote, pack)? else { continue };
        if !index.rows().all(|row| is_elsewhere(&row)) {
            return Ok(None);
        }
    }
    Ok(Some(packs.iter().map(index_path).chain(packs.iter().map(pack_path)).collect()))
}
