//! Merges the small packs of many pushes at a remote, so that readers need few requests.
//!
//! New packs are written first, then their indexes, then the list `v1/replaced/HEX` of the packs that they
//! replace, which names the new ones, too. Readers take the lists first and skip the indexes that they name.
//! After two weeks the old indexes go, then their packs, then the list; two pushes that merge at once leave
//! two valid results.

use std::collections::HashSet;

use crate::{
    digest::Digest,
    error::Result,
    progress::Progress,
    remote::{
        Remote,
        catalog::{Catalog, ReplacedPacks, index_path, pack_path, replaced_path},
        uploader::PackUploader,
    },
    repo::Repo,
    store::{Index, Kind, Row},
};

/// Number of small packs beyond which they are merged.
const MAX_SMALL_PACKS: usize = 50;
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
    if small.len() <= MAX_SMALL_PACKS {
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
        for row in index.rows().filter(|row| row.kind == Kind::Run || seen.insert((row.digest, row.kind))) {
            let stored = &bytes[row.offset as usize..][..row.stored as usize];
            objects.push((row, stored.to_vec()));
        }
        merged.push(name);
        size += bytes.len();
        if size > MAX_MERGED {
            break;
        }
    }
    // Contents before the pages that name them, as in every push.
    objects.sort_by_key(|(row, _)| (row.kind == Kind::Run, row.kind == Kind::Tree));
    let mut uploader = PackUploader::new(repo, remote, catalog, progress);
    objects.iter().try_for_each(|(row, stored)| uploader.put_stored(row, stored))?;
    uploader.flush()?;
    let by = std::mem::take(&mut uploader.names);
    let packs = merged.into_iter().filter(|name| !by.contains(name)).collect();
    let text = ReplacedPacks { packs, by }.to_text();
    remote.write(&replaced_path(&Digest::of(text.as_bytes())), text.into_bytes())
}

fn is_small(index: Option<&Index>) -> bool {
    index.is_some_and(|index| index.rows().map(|row| row.offset + row.stored).max().unwrap_or(0) < SMALL_SIZE)
}

/// Removes packs that others replaced, if these have all of their objects.
pub fn remove_replaced(repo: &Repo, remote: &Remote, catalog: &Catalog, list: &Digest) -> Result<()> {
    let packs = &catalog.replaced_lists[list].packs;
    for pack in packs {
        let Some(index) = Catalog::read_index(repo, remote, pack)? else { continue };
        if !index.rows().all(|row| catalog.find(&row.digest, &[row.kind]).is_some()) {
            return Ok(());
        }
    }
    packs.iter().try_for_each(|pack| remote.delete(&index_path(pack)))?;
    packs.iter().try_for_each(|pack| remote.delete(&pack_path(pack)))?;
    remote.delete(&replaced_path(list))
}
