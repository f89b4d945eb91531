//! Repairs damaged packs of a remote, and lists of chunks that are not right, from the objects of the local
//! store.
//!
//! A pack is written again under its name if it comes out with the very bytes it had. Otherwise its objects
//! go to another pack and it is removed. A file is overwritten only when its bytes were just read and do not
//! match its name. An intact pack with a list of chunks that does not give its file is replaced by another
//! one with the right list.

use std::collections::BTreeSet;

use crate::{
    digest::Digest,
    error::{Kind as ErrorKind, Result, WithContext},
    progress::Progress,
    remote::{
        Remote,
        catalog::{Catalog, damage_path, index_path, pack_path},
        large,
        merge::replace,
        uploader::PackUploader,
    },
    repo::Repo,
    store::{EncodedObject, Index, Kind, PackWriter, Row, chunks, decode_page},
};

/// State of a pack after a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackState {
    Intact,
    Repaired,
    /// Objects of which neither the pack nor this clone has intact bytes.
    Damaged(BTreeSet<Digest>),
    /// Its index is damaged, too, and this clone does not know it.
    Unreadable,
}

/// A pack of a remote with what is left of its bytes.
struct StoredPack {
    name: Digest,
    bytes: Vec<u8>,
    /// In the order of the pack.
    rows: Vec<Row>,
}

/// Bytes of an object: as they are stored in its damaged pack, or whole, from the local store.
enum Found<'p> {
    Stored(&'p [u8]),
    Whole(Vec<u8>),
}

/// Result of reading a pack.
#[derive(Default)]
pub struct ReadPack {
    /// Objects in it that are not right; `None` if there are none and its bytes match its name.
    pub damaged: Option<BTreeSet<Digest>>,
    /// Objects that its folders and lists of chunks name and that the remote does not have.
    pub absent: BTreeSet<Digest>,
}

/// Reads a pack and compares it with the indexes.
pub fn read_pack(repo: &Repo, remote: &Remote, catalog: &Catalog, name: &Digest) -> Result<ReadPack> {
    let Some(pack) = StoredPack::read(remote, catalog, name)? else { return Ok(ReadPack::default()) };
    let mut objects = pack.wrong_lists(repo)?;
    objects.extend(pack.rows.iter().filter(|row| pack.stored(row).is_none()).map(|row| row.digest));
    let damaged = (!objects.is_empty() || !pack.is_intact()).then_some(objects);
    Ok(ReadPack { damaged, absent: pack.absent(catalog) })
}

/// Repairs a pack as far as it and the local store have its objects. A note of damage goes with the damage.
pub fn repair_pack(
    repo: &Repo,
    remote: &Remote,
    catalog: &mut Catalog,
    name: &Digest,
    progress: &dyn Progress,
) -> Result<PackState> {
    if catalog.unreadable_packs.contains(name) {
        return Ok(PackState::Unreadable);
    }
    let Some(pack) = StoredPack::read(remote, catalog, name)? else {
        remove_note(remote, catalog, name)?;
        return Ok(PackState::Intact);
    };
    if pack.is_intact() {
        let wrong = pack.wrong_lists(repo)?;
        if !wrong.is_empty() {
            pack.replace_lists(repo, remote, catalog, &wrong, progress)?;
        }
        remove_note(remote, catalog, name)?;
        return Ok(if wrong.is_empty() { PackState::Intact } else { PackState::Repaired });
    }
    let found = pack.find_objects(repo, catalog)?;
    let lost = pack.rows.iter().zip(&found).filter(|(_, found)| found.is_none());
    let lost: BTreeSet<_> = lost.map(|(row, _)| row.digest).collect();
    if lost.is_empty() && !pack.restore(remote, &found)? {
        catalog.remove(name);
        pack.send(repo, remote, catalog, &found, progress)?;
        remote.delete(&index_path(name))?;
        remote.delete(&pack_path(name))?;
    }
    if lost.is_empty() {
        remove_note(remote, catalog, name)?;
        return Ok(PackState::Repaired);
    }
    Ok(PackState::Damaged(lost))
}

/// Sends what the remote lacks of the objects of a lost pack whose index is known, as far as the local store
/// has them. Returns true if all are there then; the index of the lost pack is removed.
pub fn restore_lost(
    repo: &Repo,
    remote: &Remote,
    catalog: &mut Catalog,
    name: &Digest,
    progress: &dyn Progress,
) -> Result<bool> {
    let Some(pack) = StoredPack::lacking(repo, remote, catalog, name)? else { return Ok(false) };
    let found = pack.find_objects(repo, catalog)?;
    pack.send(repo, remote, catalog, &found, progress)?;
    let is_complete = found.iter().all(Option::is_some);
    if is_complete && !remote.exists(&pack_path(name))? {
        remote.delete(&index_path(name))?;
    }
    Ok(is_complete)
}

/// Returns the index of a lost pack if it is intact, at the remote or in the cache.
pub fn known_index(repo: &Repo, remote: &Remote, name: &Digest) -> Result<Option<Index>> {
    match Catalog::read_index(repo, remote, name) {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        index => index,
    }
}

/// Returns the objects of a lost pack that the remote lacks.
pub fn lost_objects(
    repo: &Repo,
    remote: &Remote,
    catalog: &Catalog,
    name: &Digest,
) -> Result<BTreeSet<Digest>> {
    let pack = StoredPack::lacking(repo, remote, catalog, name)?;
    Ok(pack.map(|pack| pack.rows.iter().map(|row| row.digest).collect()).unwrap_or_default())
}

/// Removes a lost pack of which neither the index nor the end can be read, so that nothing tells what it
/// holds. Returns false if it can be read.
pub fn remove_unreadable(remote: &Remote, name: &Digest) -> Result<bool> {
    let is_readable = |bytes: Option<Vec<u8>>| bytes.is_some_and(|bytes| Index::parse(bytes).is_ok());
    let pack = remote.read_if_there(&pack_path(name))?.unwrap_or_default();
    if is_readable(remote.read_if_there(&index_path(name))?) || Digest::of(&pack) == *name {
        return Ok(false);
    }
    remote.delete(&index_path(name))?;
    remote.delete(&pack_path(name))?;
    Ok(true)
}

fn remove_note(remote: &Remote, catalog: &mut Catalog, name: &Digest) -> Result<()> {
    if catalog.damaged_packs.remove(name) { remote.delete(&damage_path(name)) } else { Ok(()) }
}

impl StoredPack {
    /// Reads a pack; `None` if the catalog does not list it.
    fn read(remote: &Remote, catalog: &Catalog, name: &Digest) -> Result<Option<Self>> {
        let Some(index) = catalog.index(name) else { return Ok(None) };
        let bytes = remote.read_if_there(&pack_path(name))?.unwrap_or_default();
        let mut rows: Vec<_> = index.rows().collect();
        rows.sort_by_key(|row| row.offset);
        Ok(Some(Self { name: *name, bytes, rows }))
    }

    /// Reads what is left of a lost pack, with those of its rows that the remote lacks; `None` if its index
    /// is not known.
    fn lacking(repo: &Repo, remote: &Remote, catalog: &Catalog, name: &Digest) -> Result<Option<Self>> {
        let Some(index) = known_index(repo, remote, name)? else { return Ok(None) };
        let bytes = remote.read_if_there(&pack_path(name))?.unwrap_or_default();
        let is_absent = |row: &Row| catalog.find(&row.digest, &[row.kind]).is_none();
        Ok(Some(Self { name: *name, bytes, rows: index.rows().filter(is_absent).collect() }))
    }

    /// Sends those of the objects that were found and that the remote lacks.
    fn send(
        &self,
        repo: &Repo,
        remote: &Remote,
        catalog: &mut Catalog,
        found: &[Option<Found<'_>>],
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut uploader = PackUploader::new(repo, remote, catalog, progress);
        for (row, found) in self.rows.iter().zip(found) {
            if let Some(found) = found
                && !uploader.has(&row.digest, row.kind)
            {
                uploader.put(row.kind, row.digest, &found.whole(row)?)?;
            }
        }
        uploader.flush()
    }

    /// Returns the objects that folders and lists of chunks of the pack name, and that the remote lacks.
    fn absent(&self, catalog: &Catalog) -> BTreeSet<Digest> {
        let mut absent = BTreeSet::new();
        for row in &self.rows {
            let Some(Ok(bytes)) = self.stored(row).map(|stored| row.decode(stored)) else { continue };
            let named = match row.kind {
                // Of several lists, one is enough.
                Kind::Chunks if catalog.places(&row.digest, &[Kind::Chunks]).nth(1).is_some() => continue,
                Kind::Chunks => chunks::decode(&bytes).map(|list| list.iter().map(|it| it.digest).collect()),
                Kind::Tree => decode_page(&bytes).map(|page| page.named()),
                _ => continue,
            };
            absent.extend(named.unwrap_or_default().iter().filter(|digest| !catalog.has_object(digest)));
        }
        absent
    }

    fn is_intact(&self) -> bool {
        Digest::of(&self.bytes) == self.name
    }

    /// Returns the files of the local store of which the pack has a wrong list of chunks.
    fn wrong_lists(&self, repo: &Repo) -> Result<BTreeSet<Digest>> {
        let mut wrong = BTreeSet::new();
        for row in self.rows.iter().filter(|row| row.kind == Kind::Chunks) {
            let list = self.stored(row).map(|stored| row.decode(stored)).transpose()?;
            if let Some(list) = list
                && large::is_wrong_list(repo, &row.digest, &list)?
            {
                wrong.insert(row.digest);
            }
        }
        Ok(wrong)
    }

    /// Puts the objects of an intact pack into another one, with the right lists of chunks instead of the
    /// wrong ones. Readers skip this one from then on.
    fn replace_lists(
        &self,
        repo: &Repo,
        remote: &Remote,
        catalog: &mut Catalog,
        wrong: &BTreeSet<Digest>,
        progress: &dyn Progress,
    ) -> Result<()> {
        catalog.remove(&self.name);
        let mut uploader = PackUploader::new(repo, remote, catalog, progress);
        for row in self.rows.iter().filter(|row| row.kind != Kind::Chunks || !wrong.contains(&row.digest)) {
            if let Some(stored) = self.stored(row) {
                uploader.put_stored(row, stored)?;
            }
        }
        for digest in wrong {
            if let Some(list) = large::push_chunks(repo, &mut uploader, digest)? {
                uploader.put(Kind::Chunks, *digest, &list)?;
            }
        }
        uploader.flush()?;
        let by = std::mem::take(&mut uploader.names);
        replace(remote, vec![self.name], by)
    }

    /// Returns the stored bytes of an object that is intact, as far as its digest can tell.
    fn stored(&self, row: &Row) -> Option<&[u8]> {
        let start = usize::try_from(row.offset).ok()?;
        let stored = self.bytes.get(start..start.checked_add(usize::try_from(row.stored).ok()?)?)?;
        row.decode(stored).is_ok().then_some(stored)
    }

    /// Finds the bytes of each object, in the order of the rows. Records and lists of chunks are not named by
    /// their own digests, so that those of the local store come first.
    fn find_objects(&self, repo: &Repo, catalog: &Catalog) -> Result<Vec<Option<Found<'_>>>> {
        let is_checked = |row: &Row| matches!(row.kind, Kind::Content | Kind::Tree);
        let mut found = Vec::new();
        for row in &self.rows {
            let stored = self.stored(row).map(Found::Stored);
            found.push(match stored {
                Some(stored) if is_checked(row) => Some(stored),
                stored => local_object(repo, row)?.map(Found::Whole).or(stored),
            });
        }
        let mut chunks: BTreeSet<Digest> = self
            .rows
            .iter()
            .zip(&found)
            .filter(|(row, found)| found.is_none() && row.kind == Kind::Content)
            .map(|(row, _)| row.digest)
            .collect();
        let lists = self.rows.iter().filter(|row| row.kind == Kind::Chunks).map(|row| row.digest);
        for large in catalog.large_files().into_iter().chain(lists) {
            if chunks.is_empty() {
                break;
            }
            let Some(file) = repo.store.open_large(&large)? else { continue };
            let cut = chunks::cut(file, |chunk, bytes| {
                if chunks.remove(&chunk.digest)
                    && let Some(at) = self.rows.iter().position(|row| row.digest == chunk.digest)
                {
                    found[at] = Some(Found::Whole(bytes.to_vec()));
                }
                Ok(())
            });
            match cut {
                // What it gave is right all the same; `fsck` names it.
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                cut => drop(cut?),
            }
        }
        Ok(found)
    }

    /// Writes the pack again under its name, if its objects give the very bytes that it is named by.
    fn restore(&self, remote: &Remote, found: &[Option<Found<'_>>]) -> Result<bool> {
        let context = || "cannot write a pack".to_owned();
        let mut pack = PackWriter::new(Vec::new()).context(context)?;
        for (row, found) in self.rows.iter().zip(found) {
            let encoded = match found {
                Some(Found::Stored(stored)) => row.encoded(*stored),
                Some(Found::Whole(bytes)) => EncodedObject::encode(bytes.into()).context(context)?,
                None => return Ok(false),
            };
            pack.put_encoded(row.kind, row.digest, &encoded).context(context)?;
        }
        let (bytes, name, index) = pack.finish().context(context)?;
        if name != self.name {
            return Ok(false);
        }
        remote.write(&pack_path(&name), bytes)?;
        remote.write(&index_path(&name), index)?;
        Ok(true)
    }
}

impl Found<'_> {
    fn whole(&self, row: &Row) -> Result<Vec<u8>> {
        match self {
            Self::Stored(stored) => row.decode(stored),
            Self::Whole(bytes) => Ok(bytes.clone()),
        }
    }
}

/// Returns an object of the local store as a pack holds it.
fn local_object(repo: &Repo, row: &Row) -> Result<Option<Vec<u8>>> {
    let (store, digest) = (&repo.store, &row.digest);
    match row.kind {
        Kind::Run => Ok(store.cached_run(digest)?.map(|run| run.to_bytes())),
        Kind::Chunks => match large::list_of(repo, digest) {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
            list => list,
        },
        Kind::Content | Kind::Tree if store.contains_packed(digest) => store.read(digest).map(Some),
        Kind::Content | Kind::Tree => Ok(None),
    }
}
