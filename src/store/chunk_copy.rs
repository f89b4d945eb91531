//! Writes what a gc needs to keep files as chunks, and checks that nothing is lost by it.
//!
//! Before a whole file is removed, each of its chunks that a file kept as chunks needs is read from
//! elsewhere, and a file that is to be kept as chunks is read back and compared with its digest. If that
//! fails, the whole file stays.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Kind as ErrorKind, Result},
    store::{
        ChunkPlan, Kind, Store,
        chunked::{FOLDER, ListState, Sources},
        chunks::{self, Chunk},
        file_path,
        repack::Repacker,
    },
};

/// Whole files that a gc must not remove.
#[derive(Debug, Default)]
pub struct HeldFiles {
    pub files: HashSet<Digest>,
    /// True if the disk had no space for chunks.
    pub disk_full: bool,
    /// Number of files that are kept as chunks and lack some. Any large file may have them, even if it has a
    /// list, which may be wrong: none is removed.
    pub lacking: usize,
}

impl Store {
    /// Writes the chunks and lists of a plan. Returns those of the whole files in `removed` that must stay.
    pub fn write_chunks(&self, plan: &ChunkPlan, removed: &BTreeSet<Digest>) -> Result<HeldFiles> {
        let mut held = HeldFiles::default();
        match self.write_lists(plan).and_then(|()| self.copy_chunks(plan)) {
            Ok(()) => {}
            // The user may be running the gc because the disk is full.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                held.disk_full = true;
                held.files.extend(plan.converted.keys());
                self.refresh()?;
            }
            Err(error) => return Err(error),
        }
        let staying = plan.lists.keys().filter(|file| !removed.contains(file) || held.files.contains(file));
        let sources = Arc::new(self.sources_among(staying));
        self.hold_last_copies(plan, removed, &sources, &mut held);
        self.hold_unreadable(plan, removed, &sources, &mut held);
        held.lacking = plan.kept.iter().filter(|file| !self.is_chunked(file)).count();
        if held.lacking > 0 {
            held.files.extend(removed);
        }
        Ok(held)
    }

    /// Holds files with a chunk that another needs and that cannot be read from elsewhere.
    fn hold_last_copies(
        &self,
        plan: &ChunkPlan,
        removed: &BTreeSet<Digest>,
        sources: &Sources,
        held: &mut HeldFiles,
    ) {
        let of_removed: HashSet<Digest> =
            removed.iter().flat_map(|file| plan.chunks(file)).map(|chunk| chunk.digest).collect();
        let needed =
            plan.chunked().filter(|file| !held.files.contains(file)).flat_map(|file| plan.chunks(file));
        let shared: HashMap<Digest, Chunk> = needed
            .filter(|chunk| of_removed.contains(&chunk.digest))
            .map(|chunk| (chunk.digest, *chunk))
            .collect();
        let is_elsewhere = |chunk: &Chunk| self.read_chunk(sources, chunk).is_ok_and(|bytes| bytes.is_some());
        let lost: HashSet<Digest> = shared
            .into_par_iter()
            .filter(|(_, chunk)| !is_elsewhere(chunk))
            .map(|(digest, _)| digest)
            .collect();
        let has_lost = |file: &&Digest| plan.chunks(file).iter().any(|chunk| lost.contains(&chunk.digest));
        held.files.extend(removed.iter().filter(has_lost));
    }

    /// Holds files to be kept as chunks that do not give the same bytes when they are read back.
    fn hold_unreadable(
        &self,
        plan: &ChunkPlan,
        removed: &BTreeSet<Digest>,
        sources: &Arc<Sources>,
        held: &mut HeldFiles,
    ) {
        for file in plan.converted.keys().filter(|file| removed.contains(file)) {
            let is_right = !held.files.contains(file)
                && self
                    .chunked(file)
                    .is_some_and(|chunked| chunked.with_sources(sources).state() == ListState::Right);
            if !is_right {
                held.files.insert(*file);
            }
        }
    }

    fn write_lists(&self, plan: &ChunkPlan) -> Result<()> {
        let file = |file: &Digest| -> Result<_> {
            Ok((file_path(FOLDER, &file.hex(), "")?, chunks::encode(&plan.lists[file])))
        };
        self.root.write_all(&plan.new_lists.iter().map(file).collect::<Result<Vec<_>>>()?)
    }

    fn copy_chunks(&self, plan: &ChunkPlan) -> Result<()> {
        let sources = self.sources_among(plan.lists.keys());
        let mut repacker = Repacker::new(self);
        for chunk in &plan.copied {
            // One that is lost is missed when it is read back.
            if let Ok(Some(bytes)) = sources.read(self, chunk) {
                repacker.put(Kind::Content, chunk.digest, &bytes)?;
            }
        }
        repacker.finish()?;
        self.refresh().map(drop)
    }

    /// Copies the chunks of a damaged file, as far as they are intact and other files need them, into packs.
    pub(super) fn save_chunks(&self, damaged: &Digest) -> Result<()> {
        let Ok(Some(list)) = self.chunk_list(damaged) else { return Ok(()) };
        let mut needed = HashSet::new();
        for file in self.chunked_names().iter().filter(|file| self.large(file).is_none()) {
            let others = self.chunk_list(file).ok().flatten().unwrap_or_default();
            needed.extend(others.into_iter().map(|chunk| chunk.digest));
        }
        let sources = self.sources_among([damaged].into_iter());
        let mut repacker = Repacker::new(self);
        for chunk in &list {
            if needed.remove(&chunk.digest)
                && !self.contains_packed(&chunk.digest)
                && let Ok(Some(bytes)) = sources.read(self, chunk)
            {
                repacker.put(Kind::Content, chunk.digest, &bytes)?;
            }
        }
        repacker.finish().map(drop)
    }
}
