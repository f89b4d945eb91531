//! Plans which large files a gc keeps as chunks, and writes what that takes.
//!
//! A version that no workspace has checked out is kept as chunks if other files that stay have at least half
//! of it: either stored whole, or as chunks in packs. What only it has is copied into packs. Before a whole
//! file is removed, every file that is kept as chunks and shares some with it is read back without it, and
//! compared with its digest; otherwise the whole file stays.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    digest::Digest,
    error::{Kind as ErrorKind, Result},
    progress::{Event, Progress},
    store::{
        Amount, Inventory, Kind, LargeFile, LiveSet, Store, StoredFile,
        chunked::{FOLDER, ListState},
        chunks::{self, Chunk},
        file_path,
        repack::Repacker,
    },
};

/// Smallest file that is kept as chunks, in bytes: several times the largest chunk.
const MIN_SIZE: u64 = 8 << 20;

/// Files in use, as far as a gc knows of them when it plans.
#[derive(Debug, Default)]
pub struct FilesInUse {
    /// Versions that a workspace has checked out: they stay whole.
    pub checked_out: HashSet<Digest>,
    /// Those of them that a workspace may link to: a user who writes to one must not damage other versions.
    pub linked: HashSet<Digest>,
    /// Files that running commands have pinned.
    pub pinned: HashSet<Digest>,
}

/// Large files to be kept as chunks.
#[derive(Debug, Default)]
pub struct ChunkPlan {
    /// Files that are stored whole until now, with the number of bytes that this frees.
    pub(super) converted: BTreeMap<Digest, u64>,
    /// Files that are kept as chunks already.
    kept: BTreeSet<Digest>,
    /// Lists of files that nothing needs any more.
    pub(super) dropped: Vec<StoredFile>,
    /// All lists that were needed for the plan.
    lists: HashMap<Digest, Arc<Vec<Chunk>>>,
    /// Files whose lists are not stored yet.
    new_lists: BTreeSet<Digest>,
    /// Chunks to be copied into packs.
    copied: Vec<Chunk>,
    /// Old versions that were not compared with others, since a dry run reads no large files.
    pub not_compared: Amount,
}

impl Inventory {
    /// Returns true if there are files that may be kept as chunks, or are.
    pub fn may_have_chunks(&self) -> bool {
        !self.chunk_lists.is_empty() || self.large_files.iter().any(|file| file.size >= MIN_SIZE)
    }
}

/// Chooses among the large files of a store.
struct Chooser<'c> {
    store: &'c Store,
    plan: ChunkPlan,
    /// Chunks of the files that stay whole.
    available: HashSet<Digest>,
    /// Chunks of the files that are kept as chunks.
    needed: HashMap<Digest, u64>,
    /// Chunks that packs get.
    copied: HashSet<Digest>,
    progress: Option<&'c dyn Progress>,
}

impl Store {
    /// Plans which large files are kept as chunks, and adds the chunks that packs must hold to `live`. With
    /// `progress`, files that were not cut into chunks yet are read; without, they are only counted.
    pub fn plan_chunks(
        &self,
        inventory: &Inventory,
        live: &mut LiveSet,
        in_use: &FilesInUse,
        is_old: &dyn Fn(i64) -> bool,
        progress: Option<&dyn Progress>,
    ) -> Result<ChunkPlan> {
        let is_needed = |file: &StoredFile| {
            live.objects.contains(&file.digest) || in_use.pinned.contains(&file.digest) || !is_old(file.mtime)
        };
        let mut chooser = Chooser {
            store: self,
            plan: ChunkPlan::default(),
            available: HashSet::new(),
            needed: HashMap::new(),
            copied: HashSet::new(),
            progress,
        };
        let whole: HashSet<Digest> = inventory.large_files.iter().map(|file| file.digest).collect();
        for list in &inventory.chunk_lists {
            if !is_needed(list) {
                chooser.plan.dropped.push(*list);
            } else if !whole.contains(&list.digest) {
                chooser.keep(list.digest);
            }
        }
        let is_live = |file: &&StoredFile| file.size >= MIN_SIZE && live.objects.contains(&file.digest);
        let (candidates, others): (Vec<&StoredFile>, Vec<_>) = inventory
            .large_files
            .iter()
            .filter(is_live)
            .partition(|file| file.links == 1 && !in_use.checked_out.contains(&file.digest));
        if !candidates.is_empty() || !chooser.plan.kept.is_empty() {
            let sources =
                others.into_iter().filter(|file| file.links == 1 && !in_use.linked.contains(&file.digest));
            chooser.choose(candidates, sources.collect())?;
            chooser.copy_chunks(inventory);
        }
        live.objects.extend(chooser.needed.into_keys());
        Ok(chooser.plan)
    }
}

impl Chooser<'_> {
    /// Notes that a file stays as chunks.
    fn keep(&mut self, digest: Digest) {
        // A list that cannot be read gives no file; `fsck` names it.
        if let Some(list) = self.store.chunk_list(&digest).unwrap_or_default() {
            self.needed.extend(list.iter().map(|chunk| (chunk.digest, chunk.length)));
            self.plan.lists.insert(digest, Arc::new(list));
            self.plan.kept.insert(digest);
        }
    }

    fn choose(&mut self, mut candidates: Vec<&StoredFile>, whole: Vec<&StoredFile>) -> Result<()> {
        let total = candidates.iter().chain(&whole).map(|file| file.size).sum();
        if let Some(progress) = self.progress {
            progress.event(Event::Started { task: "comparing versions of large files", total: Some(total) });
        }
        for file in whole {
            if let Some(list) = self.list(file)? {
                self.available.extend(list.iter().map(|chunk| chunk.digest));
            }
        }
        // Newest first: it is the most likely to be checked out again.
        candidates.sort_by_key(|file| std::cmp::Reverse((file.mtime, file.digest)));
        for file in candidates {
            match self.list(file)? {
                Some(list) => self.convert_or_leave(file, &list),
                None if self.progress.is_none() => {
                    self.plan.not_compared.count += 1;
                    self.plan.not_compared.bytes += file.size;
                }
                None => {}
            }
        }
        // Packed ones stay even if a whole file has them: that file was not read again.
        let (available, store) = (&self.available, self.store);
        self.needed.retain(|chunk, _| !available.contains(chunk) || store.contains_packed(chunk));
        if let Some(progress) = self.progress {
            progress.event(Event::Finished);
        }
        Ok(())
    }

    fn convert_or_leave(&mut self, file: &StoredFile, list: &[Chunk]) {
        let is_stored = |chunk: &Digest| {
            self.available.contains(chunk) || self.copied.contains(chunk) || self.store.contains_packed(chunk)
        };
        let lengths = list.iter().map(|chunk| (chunk.digest, chunk.length));
        let own: HashMap<Digest, u64> = lengths.filter(|chunk| !is_stored(&chunk.0)).collect();
        let added: u64 = own.values().sum();
        if added * 2 > file.size {
            self.available.extend(list.iter().map(|chunk| chunk.digest));
            return;
        }
        self.copied.extend(own.keys());
        self.needed.extend(list.iter().map(|chunk| (chunk.digest, chunk.length)));
        self.plan.converted.insert(file.digest, file.size - added);
    }

    /// Returns the list of a file that is stored whole; `None` if it is damaged, or may not be read now.
    fn list(&mut self, file: &StoredFile) -> Result<Option<Arc<Vec<Chunk>>>> {
        let digest = &file.digest;
        let stored = self.store.chunk_list(digest).unwrap_or_default();
        let (list, is_new) = match (stored, self.progress) {
            (Some(list), _) => (list, false),
            (None, None) => return Ok(None),
            // One that is damaged stays as it is; `fsck` names it.
            (None, Some(_)) => match self.store.with_large(digest, LargeFile::cut)?.flatten() {
                Some(list) => (list, true),
                None => return Ok(None),
            },
        };
        if let Some(progress) = self.progress {
            progress.event(Event::Advanced { by: file.size });
        }
        let list = Arc::new(list);
        self.plan.lists.insert(*digest, Arc::clone(&list));
        if is_new {
            self.plan.new_lists.insert(*digest);
        }
        Ok(Some(list))
    }

    /// Plans to copy the chunks that no pack has yet.
    fn copy_chunks(&mut self, inventory: &Inventory) {
        for file in &inventory.large_files {
            // Those that are removed may have chunks that others need.
            if !self.plan.lists.contains_key(&file.digest)
                && let Some(list) = self.store.chunk_list(&file.digest).unwrap_or_default()
            {
                self.plan.lists.insert(file.digest, Arc::new(list));
            }
        }
        let missing = self.needed.iter().filter(|(digest, _)| !self.store.contains_packed(digest));
        self.plan.copied =
            missing.map(|(digest, length)| Chunk { digest: *digest, length: *length }).collect();
    }
}

impl ChunkPlan {
    /// Returns true if the plan drops a file that a command has pinned meanwhile.
    pub fn drops_any(&self, pinned: &HashSet<Digest>) -> bool {
        self.dropped.iter().any(|list| pinned.contains(&list.digest))
    }

    /// Returns the files to be kept as chunks that have a chunk of one of these.
    fn dependent(&self, removed: &BTreeSet<Digest>) -> BTreeSet<Digest> {
        let digests = |file: &Digest| self.lists.get(file).map(|list| list.iter().map(|chunk| chunk.digest));
        let shared: HashSet<Digest> = removed.iter().filter_map(digests).flatten().collect();
        let mut files = self.kept.iter().chain(self.converted.keys()).copied().collect::<BTreeSet<_>>();
        files.retain(|file| {
            digests(file).is_some_and(|mut chunks| chunks.any(|chunk| shared.contains(&chunk)))
        });
        files
    }
}

impl Store {
    /// Writes the chunks and lists of a plan. Returns those of the whole files in `removed` that must stay,
    /// since a file could not be read without them.
    pub fn write_chunks(&self, plan: &ChunkPlan, removed: &BTreeSet<Digest>) -> Result<HashSet<Digest>> {
        match self.write_lists(plan).and_then(|()| self.copy_chunks(plan)) {
            Ok(()) => {}
            // The user may be running the gc because the disk is full.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                return Ok(removed.iter().filter(|file| plan.lists.contains_key(file)).copied().collect());
            }
            Err(error) => return Err(error),
        }
        let staying = plan.lists.keys().filter(|file| !removed.contains(file));
        let sources = Arc::new(self.sources_among(staying));
        let mut held = HashSet::new();
        for file in plan.dependent(removed) {
            let chunked = self.chunked(&file);
            if chunked.is_none_or(|chunked| chunked.with_sources(&sources).state() != ListState::Right) {
                let needs = |other: &&Digest| plan.dependent(&[**other].into()).contains(&file);
                held.extend(removed.iter().filter(needs));
            }
        }
        Ok(held)
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
            // A chunk that is lost is missed when its file is read back.
            if let Some(bytes) = sources.read(self, chunk) {
                repacker.put(Kind::Content, chunk.digest, &bytes)?;
            }
        }
        repacker.finish()?;
        self.refresh().map(drop)
    }
}
