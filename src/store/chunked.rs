//! Large files that are kept as chunks: old versions, most of whose bytes other versions have as well.
//!
//! `chunks/DIGEST` lists the chunks of a file. Each is an object of a pack, or a part of a large file that is
//! stored whole and has a list, too; if that file was damaged, its intact chunks are read from quarantine.
//!
//! A gc writes the lists ([`crate::store::ChunkPlan`]) and removes a whole file only after it was read back
//! from its chunks. A file that is read from its chunks is compared with its digest: a wrong list is found
//! like a damaged chunk.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read},
    sync::{Arc, MutexGuard, PoisonError},
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    fs::{self, Dir, LinkKind, Mode, Sync},
    path::RepoPath,
    store::{
        Kind as ObjectKind, LargeFile, Store,
        chunks::{self, Chunk},
        file_path,
        large::copy,
    },
};

pub(super) const FOLDER: &str = "chunks";
const READ_ONLY: u32 = 0o444;
/// Folders with whole files; those in quarantine are damaged, but their other chunks are not.
const SOURCE_FOLDERS: [&str; 2] = ["objects", "quarantine"];
/// Number of chunks that are read at once.
const CHUNKS_AT_ONCE: usize = 8;

/// A large file that is kept as chunks, all of which are stored.
pub struct ChunkedFile<'s> {
    store: &'s Store,
    digest: Digest,
    list: Vec<Chunk>,
    sources: Arc<Sources>,
    /// True if no other sources may be used.
    is_fixed: bool,
}

/// State of the list of a file's chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListState {
    /// It gives the file.
    Right,
    /// It cannot be read, or gives another file.
    Wrong,
    /// It names chunks that are damaged or not stored.
    Lacking,
    /// A newer mlx wrote it.
    Newer,
    /// There is none (any more).
    Absent,
}

/// The lists of a store, as far as they are known.
#[derive(Default)]
pub(super) struct KnownLists {
    names: BTreeSet<Digest>,
    /// Time at which the folder changed last, in nanoseconds since 1970; 0 if there is none, and nothing if
    /// it may change again within that tick of the clock.
    changed: Option<i64>,
    /// True for each file all of whose chunks are stored.
    complete: HashMap<Digest, bool>,
    sources: Option<Arc<Sources>>,
}

/// Places of the chunks of large files that are stored whole, or damaged.
#[derive(Default)]
pub(super) struct Sources {
    files: Vec<RepoPath>,
    /// Digest of a chunk, number of the file, and offset in it; sorted.
    places: Vec<(Digest, usize, u64)>,
}

impl Sources {
    fn add(&mut self, file: RepoPath, list: &[Chunk]) {
        let (number, mut offset) = (self.files.len(), 0);
        self.files.push(file);
        for chunk in list {
            self.places.push((chunk.digest, number, offset));
            offset += chunk.length;
        }
    }

    fn places(&self, chunk: &Digest) -> &[(Digest, usize, u64)] {
        let start = self.places.partition_point(|place| place.0 < *chunk);
        let count = self.places[start..].partition_point(|place| place.0 == *chunk);
        &self.places[start..start + count]
    }

    pub fn contains(&self, chunk: &Digest) -> bool {
        !self.places(chunk).is_empty()
    }

    /// Reads a chunk; `None` if no file has it, or those that should have other bytes.
    pub fn read(&self, store: &Store, chunk: &Chunk) -> Result<Option<Vec<u8>>> {
        for (_, number, offset) in self.places(&chunk.digest) {
            let path = &self.files[*number];
            let file = match store.root.open_file(path) {
                Err(error) if error.kind() == Kind::NotFound => continue,
                opened => opened?,
            };
            let mut bytes = vec![0; usize::try_from(chunk.length).unwrap_or_default()];
            match fs::read_at(&file, &mut bytes, *offset) {
                Ok(()) if Digest::of(&bytes) == chunk.digest => return Ok(Some(bytes)),
                Ok(()) => {}
                // It ends before the chunk.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Err(error).context(|| format!("cannot read `{path}`")),
            }
        }
        Ok(None)
    }
}

impl Store {
    /// Returns the file of this digest if it is kept as chunks.
    pub fn chunked(&self, digest: &Digest) -> Option<ChunkedFile<'_>> {
        if !self.is_chunked(digest) || self.damaged().contains(digest) {
            return None;
        }
        let list = self.chunk_list(digest).ok()??;
        Some(self.chunked_file(digest, list))
    }

    /// Returns true if there is a list of the chunks of this file, and all of them are stored.
    pub(super) fn is_chunked(&self, digest: &Digest) -> bool {
        let mut known = self.lists();
        if !known.names.contains(digest) {
            drop(known);
            if !self.renew_lists().unwrap_or(false) {
                return false;
            }
            known = self.lists();
        }
        if !known.names.contains(digest) {
            return false;
        }
        if let Some(complete) = known.complete.get(digest) {
            return *complete;
        }
        drop(known);
        let has_all = || self.has_all_chunks(digest).unwrap_or(false);
        // A concurrent gc may have moved chunks into new packs.
        let complete = has_all() || self.refresh().unwrap_or(false) && has_all();
        self.lists().complete.insert(*digest, complete);
        complete
    }

    fn has_all_chunks(&self, digest: &Digest) -> Result<bool> {
        let Some(list) = self.chunk_list(digest)? else { return Ok(false) };
        let sources = self.sources();
        // Not by marks of damage: a damaged chunk may be stored once more.
        Ok(list.iter().all(|chunk| sources.contains(&chunk.digest) || self.pack_of(&chunk.digest).is_some()))
    }

    /// Reads the list of the chunks of a file, if there is one.
    pub(super) fn chunk_list(&self, digest: &Digest) -> Result<Option<Vec<Chunk>>> {
        let bytes = self.root.read_if_exists(&file_path(FOLDER, &digest.hex(), "")?)?;
        bytes.map(|bytes| chunks::decode(&bytes)).transpose()
    }

    /// Writes the list of a file again that is stored whole.
    pub(super) fn rewrite_list(&self, digest: &Digest) -> Result<()> {
        let Some(list) = self.with_large(digest, LargeFile::cut)?.flatten() else { return Ok(()) };
        self.root.write(&file_path(FOLDER, &digest.hex(), "")?, &chunks::encode(&list), Sync::Now)?;
        self.list_chunked()
    }

    /// Reads a file by the list of its chunks, or compares the list with the file that is stored whole.
    pub(super) fn list_state(&self, digest: &Digest) -> ListState {
        let path = file_path(FOLDER, &digest.hex(), "");
        let bytes = match path.and_then(|path| self.root.read_if_exists(&path)) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return ListState::Absent,
            Err(_) => return ListState::Lacking,
        };
        let list = match chunks::decode(&bytes) {
            Ok(list) => list,
            Err(_) if chunks::is_newer(&bytes) => return ListState::Newer,
            Err(_) => return ListState::Wrong,
        };
        match self.with_large(digest, |large| chunks::is_list_of(&list, large.open()?)) {
            Ok(Some(true)) => ListState::Right,
            Ok(Some(false)) => ListState::Wrong,
            Err(_) => ListState::Lacking,
            Ok(None) => self.chunked_file(digest, list).state(),
        }
    }

    fn chunked_file(&self, digest: &Digest, list: Vec<Chunk>) -> ChunkedFile<'_> {
        ChunkedFile { store: self, digest: *digest, list, sources: self.sources(), is_fixed: false }
    }

    /// Lists the files that are kept as chunks, which another process may have changed.
    pub(super) fn list_chunked(&self) -> Result<()> {
        let digest = |name: &Vec<u8>| Digest::from_hex(std::str::from_utf8(name).ok()?).ok();
        let changed = self.lists_changed()?;
        let names = self.file_names(FOLDER)?.iter().filter_map(digest).collect();
        *self.lists() = KnownLists { names, changed, ..KnownLists::default() };
        Ok(())
    }

    /// Lists the files again if a gc may have added some: since the last time, it may have removed a file
    /// that was stored whole. Returns true if it did so.
    fn renew_lists(&self) -> Result<bool> {
        let (known, now) = (self.lists().changed, self.lists_changed()?);
        if known.is_some() && known == now {
            return Ok(false);
        }
        self.list_chunked().map(|()| true)
    }

    fn lists_changed(&self) -> Result<Option<i64>> {
        let Some(stat) = self.root.stat(&RepoPath::from_text(FOLDER)?)? else { return Ok(Some(0)) };
        Ok(stat.is_older_than_clock_tick(fs::coarse_now()).then_some(stat.mtime))
    }

    /// Forgets where chunks are: a file that has some was removed.
    pub(super) fn forget_sources(&self) {
        let mut known = self.lists();
        known.sources = None;
        known.complete.clear();
    }

    pub(super) fn chunked_names(&self) -> BTreeSet<Digest> {
        self.lists().names.clone()
    }

    fn lists(&self) -> MutexGuard<'_, KnownLists> {
        self.chunked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sources(&self) -> Arc<Sources> {
        let known = self.lists();
        if let Some(sources) = &known.sources {
            return Arc::clone(sources);
        }
        drop(known);
        let names = self.chunked_names();
        let sources = Arc::new(self.sources_among(names.iter()));
        self.lists().sources = Some(Arc::clone(&sources));
        sources
    }

    /// Returns where the chunks of those of these files are that are stored whole, then of damaged ones.
    pub(super) fn sources_among<'d>(&self, files: impl Iterator<Item = &'d Digest>) -> Sources {
        let files: Vec<&Digest> = files.collect();
        let mut sources = Sources::default();
        for folder in SOURCE_FOLDERS {
            for file in &files {
                // `fsck` names a list that cannot be read.
                if let Ok(Some((path, list))) = self.source(folder, file) {
                    sources.add(path, &list);
                }
            }
        }
        sources.places.sort_unstable();
        sources
    }

    /// Returns a file in a folder of the store and the list of its chunks, if it has the size that they give:
    /// in quarantine, it could be a list.
    fn source(&self, folder: &str, file: &Digest) -> Result<Option<(RepoPath, Vec<Chunk>)>> {
        let path = file_path(folder, &file.hex(), "")?;
        let Some(stat) = self.root.stat(&path)? else { return Ok(None) };
        let list = self.chunk_list(file)?.unwrap_or_default();
        let size = list.iter().map(|chunk| chunk.length).sum::<u64>();
        Ok((size == stat.size).then_some((path, list)))
    }

    /// Reads a chunk from a pack or a large file; `None` if none has it intact.
    pub(super) fn read_chunk(&self, sources: &Sources, chunk: &Chunk) -> Result<Option<Vec<u8>>> {
        let mut failed = None;
        let rows = self.rows(&chunk.digest, &[ObjectKind::Content]);
        for (pack, row) in rows.iter().filter(|(_, row)| row.size == chunk.length) {
            match pack.read(row) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {}
                // A read error may be temporary: it is not damage.
                Err(error) => failed = Some(error),
            }
        }
        match (sources.read(self, chunk)?, failed) {
            (None, Some(error)) => Err(error),
            (found, _) => Ok(found),
        }
    }

    /// Opens a large file for reading, however it is stored.
    pub fn open_large(&self, digest: &Digest) -> Result<Option<Box<dyn Read + '_>>> {
        if let Some(file) = self.with_large(digest, LargeFile::open)? {
            return Ok(Some(Box::new(file)));
        }
        Ok(self.chunked(digest).map(|chunked| Box::new(chunked.open()) as Box<dyn Read>))
    }

    /// Cuts a large file into chunks, however it is stored, and passes each to `each`; returns their list.
    /// `None` if it is not here. If its bytes do not match its digest, that is an error once `each` had all.
    pub fn cut_large(
        &self,
        digest: &Digest,
        mut each: impl FnMut(Chunk, &[u8]) -> Result<()>,
    ) -> Result<Option<Vec<Chunk>>> {
        let Some(file) = self.open_large(digest)? else { return Ok(None) };
        let mut is_read = true;
        let pass_on = |chunk: Chunk, bytes: &[u8]| each(chunk, bytes).inspect_err(|_| is_read = false);
        match chunks::cut(file, pass_on) {
            Ok((found, list)) if found == *digest => Ok(Some(list)),
            Err(error) if !is_read || error.kind() != Kind::Corrupt => Err(error),
            _ => Err(self.report_damage(digest)),
        }
    }

    /// Stores a file whole again that is kept as chunks, so that it can be linked into the workspace.
    pub fn restore_large(&self, digest: &Digest) -> Result<Option<LargeFile<'_>>> {
        if let Some(large) = self.large(digest) {
            return Ok(Some(large));
        }
        let Some(chunked) = self.chunked(digest) else { return Ok(None) };
        let mut temp = self.create_temp("objects", READ_ONLY)?;
        chunked.copy_to(&mut temp)?;
        self.pin_new(*digest)?;
        temp.publish(digest.hex().as_bytes(), Sync::Now)?;
        self.mark_just_stored(digest);
        Ok(self.large(digest))
    }
}

impl<'s> ChunkedFile<'s> {
    pub fn list(&self) -> &[Chunk] {
        &self.list
    }

    /// Returns the size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.list.iter().map(|chunk| chunk.length).sum()
    }

    /// Opens the file; each chunk that is read matches its digest.
    pub fn open(self) -> ChunkReader<'s> {
        ChunkReader { file: self, next: 0, chunks: Vec::new(), position: 0 }
    }

    /// Uses no large file but these.
    pub(super) fn with_sources(self, sources: &Arc<Sources>) -> Self {
        Self { sources: Arc::clone(sources), is_fixed: true, ..self }
    }

    /// Writes the file to `out`; it is an error if it does not match its digest.
    pub fn copy_to(self, out: &mut dyn io::Write) -> Result<()> {
        let (store, digest) = (self.store, self.digest);
        match copy(&mut self.open(), out) {
            Ok((found, _)) if found == digest => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::InvalidData => Err(error)
                .context(|| format!("cannot copy the large file {} from its chunks", digest.short())),
            _ => Err(store.report_damage(&digest)),
        }
    }

    /// Reads the whole content and checks it against its digest.
    pub(super) fn read(self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.copy_to(&mut bytes).map(|()| bytes)
    }

    /// Reads the file and compares it with its digest.
    pub(super) fn state(self) -> ListState {
        let digest = self.digest;
        match copy(&mut self.open(), &mut io::sink()) {
            Ok((found, _)) if found == digest => ListState::Right,
            Ok(_) => ListState::Wrong,
            Err(_) => ListState::Lacking,
        }
    }

    /// Writes or links the file to `name` in `dir`. To be linked, it is stored whole first, if this user may
    /// write to the store.
    pub fn link_or_copy(self, dir: &Dir, name: &[u8], mode: Mode, links: &[LinkKind]) -> Result<LinkKind> {
        if self.store.root.is_writable() && links.iter().any(|kind| kind.is_same_file()) {
            let gone = || Error::not_found(format!("the object {} was removed", self.digest));
            return self
                .store
                .restore_large(&self.digest)?
                .ok_or_else(gone)?
                .link_or_copy(dir, name, mode, links);
        }
        let mut temp = dir.create(mode.bits())?;
        self.copy_to(&mut temp)?;
        temp.publish(name, Sync::Later)?;
        Ok(LinkKind::Copy)
    }

    fn chunk(&self, chunk: &Chunk) -> io::Result<Vec<u8>> {
        let store = self.store;
        let read = |sources: &Sources| store.read_chunk(sources, chunk).map_err(io::Error::other);
        if let Some(bytes) = read(&self.sources)? {
            return Ok(bytes);
        }
        // A concurrent gc may have moved it from a file that it removed.
        let is_renewed = !self.is_fixed && store.refresh().is_ok();
        let found = if is_renewed { read(&store.sources())? } else { None };
        found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("lacks {}", chunk.digest)))
    }
}

/// Reads a file from its chunks, in bounded memory.
pub struct ChunkReader<'s> {
    file: ChunkedFile<'s>,
    /// Number of chunks that were read.
    next: usize,
    /// Chunks that were read last, of which `position` bytes of the first were passed on; in reverse order.
    chunks: Vec<Vec<u8>>,
    position: usize,
}

impl ChunkReader<'_> {
    fn fill(&mut self) -> io::Result<()> {
        let end = self.file.list.len().min(self.next + CHUNKS_AT_ONCE);
        let file = &self.file;
        let read = file.list[self.next..end].par_iter().map(|chunk| file.chunk(chunk));
        self.chunks = read.rev().collect::<io::Result<_>>()?;
        self.next = end;
        Ok(())
    }
}

impl Read for ChunkReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.chunks.is_empty() {
            self.fill()?;
        }
        let Some(chunk) = self.chunks.last() else { return Ok(0) };
        let length = out.len().min(chunk.len() - self.position);
        out[..length].copy_from_slice(&chunk[self.position..][..length]);
        self.position += length;
        if self.position == chunk.len() {
            self.chunks.pop();
            self.position = 0;
        }
        Ok(length)
    }
}
