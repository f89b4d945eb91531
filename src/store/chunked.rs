//! Large files that are kept as chunks: old versions, most of whose bytes other versions have as well.
//!
//! `chunks/DIGEST` lists the chunks of a file. Each is an object of a pack, or a part of a large file that is
//! stored whole and has a list, too. A gc writes the lists ([`crate::store::ChunkPlan`]) and removes a whole
//! file only after it was read back from its chunks. What is read from chunks is checked as a whole against
//! the digest of the file: a wrong list is found like a damaged chunk.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read},
    sync::{Arc, MutexGuard, PoisonError},
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Error, Result, WithContext},
    fs::{self, Dir, LinkKind, Mode, Sync},
    path::RepoPath,
    store::{
        Kind, LargeFile, Store,
        chunks::{self, Chunk},
        file_path,
        large::copy,
    },
};

pub(super) const FOLDER: &str = "chunks";
const READ_ONLY: u32 = 0o444;
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

/// Places of the chunks of large files that are stored whole.
#[derive(Default)]
pub(super) struct Sources {
    files: Vec<Digest>,
    /// Number of the file, and offset in it.
    places: HashMap<Digest, (usize, u64)>,
}

impl Sources {
    /// Adds the chunks of a file.
    pub fn add(&mut self, file: Digest, list: &[Chunk]) {
        let (number, mut offset) = (self.files.len(), 0);
        self.files.push(file);
        for chunk in list {
            self.places.entry(chunk.digest).or_insert((number, offset));
            offset += chunk.length;
        }
    }

    pub fn contains(&self, chunk: &Digest) -> bool {
        self.places.contains_key(chunk)
    }

    /// Reads a chunk; `None` if no file has it, or the one that should has other bytes.
    pub fn read(&self, store: &Store, chunk: &Chunk) -> Option<Vec<u8>> {
        let (number, offset) = self.places.get(&chunk.digest)?;
        let path = file_path("objects", &self.files[*number].hex(), "").ok()?;
        let mut bytes = vec![0; usize::try_from(chunk.length).ok()?];
        fs::read_at(&store.root.open_file(&path).ok()?, &mut bytes, *offset).ok()?;
        (Digest::of(&bytes) == chunk.digest).then_some(bytes)
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
        Ok(list.iter().all(|chunk| sources.contains(&chunk.digest) || self.contains_packed(&chunk.digest)))
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
        let Ok(Some(list)) = self.chunk_list(digest) else { return ListState::Wrong };
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

    fn lists(&self) -> MutexGuard<'_, KnownLists> {
        self.chunked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sources(&self) -> Arc<Sources> {
        let known = self.lists();
        if let Some(sources) = &known.sources {
            return Arc::clone(sources);
        }
        let names = known.names.clone();
        drop(known);
        let sources = Arc::new(self.sources_among(names.iter()));
        self.lists().sources = Some(Arc::clone(&sources));
        sources
    }

    /// Returns where the chunks of those of these files are that are stored whole.
    pub(super) fn sources_among<'d>(&self, files: impl Iterator<Item = &'d Digest>) -> Sources {
        let mut sources = Sources::default();
        for file in files.filter(|file| self.large(file).is_some()) {
            // `fsck` names a list that cannot be read.
            if let Ok(Some(list)) = self.chunk_list(file) {
                sources.add(*file, &list);
            }
        }
        sources
    }

    /// Returns a chunk from a pack.
    fn packed_chunk(&self, chunk: &Chunk) -> Option<Vec<u8>> {
        let rows = self.rows(&chunk.digest, &[Kind::Content]);
        rows.iter().filter(|(_, row)| row.size == chunk.length).find_map(|(pack, row)| pack.read(row).ok())
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
        each: impl FnMut(Chunk, &[u8]) -> Result<()>,
    ) -> Result<Option<Vec<Chunk>>> {
        let Some(file) = self.open_large(digest)? else { return Ok(None) };
        let (found, list) = chunks::cut(file, each)?;
        if found == *digest { Ok(Some(list)) } else { Err(self.report_damage(digest)) }
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
            Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                Err(error).context(|| format!("cannot write the large file {}", digest.short()))
            }
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

    /// Writes or links the file to `name` in `dir`. To be linked, it is stored whole first.
    pub fn link_or_copy(self, dir: &Dir, name: &[u8], mode: Mode, links: &[LinkKind]) -> Result<LinkKind> {
        if links.iter().any(|kind| kind.is_same_file()) {
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
        let read = |sources: &Sources| store.packed_chunk(chunk).or_else(|| sources.read(store, chunk));
        if let Some(bytes) = read(&self.sources) {
            return Ok(bytes);
        }
        // A concurrent gc may have moved it from a file that it removed.
        let is_renewed = !self.is_fixed && store.refresh().is_ok();
        let found = if is_renewed { read(&store.sources()) } else { None };
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
