//! Plans which large files a gc keeps as chunks, and writes what that takes.
//!
//! A version that no workspace has checked out is kept as chunks if other files that stay have at least half
//! of it: either stored whole, or as chunks in packs. What only it has is copied into packs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    digest::Digest,
    error::{Kind as ErrorKind, Result, WithContext},
    progress::{Event, Progress},
    store::{Amount, Inventory, LargeFile, LiveSet, PrunePlan, Store, StoredFile, chunks::Chunk},
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
    pub(super) kept: BTreeSet<Digest>,
    /// Lists of files that nothing needs any more.
    pub(super) dropped: Vec<StoredFile>,
    /// All lists that were needed for the plan.
    pub(super) lists: HashMap<Digest, Arc<Vec<Chunk>>>,
    /// Files whose lists are not stored yet.
    pub(super) new_lists: BTreeSet<Digest>,
    /// Chunks to be copied into packs.
    pub(super) copied: Vec<Chunk>,
    /// Size in bytes of those of them that only files to be kept as chunks have.
    own: u64,
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
                chooser.keep(list.digest)?;
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
    /// Notes that a file stays as chunks. If its list cannot be read, it is unknown what it needs.
    fn keep(&mut self, digest: Digest) -> Result<()> {
        let context = || format!("nothing was freed: it is unknown which chunks {} needs", digest.short());
        let list = self.store.chunk_list(&digest).context(context).map_err(|error| match error.kind() {
            ErrorKind::Corrupt => error.hint("run `mlx fsck --repair`"),
            _ => error,
        })?;
        if let Some(list) = list {
            self.needed.extend(list.iter().map(|chunk| (chunk.digest, chunk.length)));
            self.plan.lists.insert(digest, Arc::new(list));
            self.plan.kept.insert(digest);
        }
        Ok(())
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
        self.plan.own += added;
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

    pub fn converts_any(&self) -> bool {
        !self.converted.is_empty()
    }

    /// Returns the files that are kept as chunks now or from now on.
    pub(super) fn chunked(&self) -> impl Iterator<Item = &Digest> {
        self.kept.iter().chain(self.converted.keys())
    }

    /// Returns the chunks of a file; none if it has no list that can be read.
    pub(super) fn chunks(&self, file: &Digest) -> &[Chunk] {
        self.lists.get(file).map_or(&[], |list| list)
    }
}

impl PrunePlan {
    /// Adds what a plan of chunks removes.
    pub fn add_chunks(&mut self, chunks: &ChunkPlan, inventory: &Inventory) {
        self.converted.clone_from(&chunks.converted);
        let converted = inventory.large_files.iter().filter(|file| self.converted.contains_key(&file.digest));
        self.large_files.extend(converted);
        self.converted.values().for_each(|freed| self.freed.chunked.add_one(*freed));
        self.chunk_lists.clone_from(&chunks.dropped);
        let copied: u64 = chunks.copied.iter().map(|chunk| chunk.length).sum();
        self.copied_bytes = copied.saturating_sub(chunks.own);
        self.freed.large_files.subtract(self.copied_bytes);
        let removed = self.removed_large_files();
        let staying = inventory.large_files.iter().map(|file| file.digest).filter(|it| !removed.contains(it));
        self.keep_lists(&staying.collect());
        let large_files = &mut self.freed.large_files;
        dropped_lists(&self.chunk_lists, removed).for_each(|list| large_files.add_one(list.size));
    }

    /// Keeps the lists of the chunks of these files: others may need them.
    fn keep_lists(&mut self, files: &HashSet<Digest>) {
        self.chunk_lists.retain(|list| !files.contains(&list.digest));
    }

    /// Returns the lists that are removed of files that are kept as chunks.
    pub(super) fn dropped_lists(&self) -> impl Iterator<Item = &StoredFile> {
        dropped_lists(&self.chunk_lists, self.removed_large_files())
    }

    /// Returns the large files that the plan removes.
    pub fn removed_large_files(&self) -> BTreeSet<Digest> {
        self.large_files.iter().map(|file| file.digest).collect()
    }

    /// Keeps these large files.
    pub fn hold(&mut self, held: &HashSet<Digest>) {
        for file in self.large_files.extract_if(.., |file| held.contains(&file.digest)) {
            match self.converted.remove(&file.digest) {
                Some(freed) => self.freed.chunked.remove_one(freed),
                None => self.freed.large_files.remove_one(file.size),
            }
        }
        self.keep_lists(held);
    }

    /// Returns those of these files that are to be kept as chunks from now on.
    pub fn converted_among(&self, files: &HashSet<Digest>) -> HashSet<Digest> {
        self.converted.keys().filter(|file| files.contains(file)).copied().collect()
    }
}

/// Returns those of the lists whose files are not among the large files to be removed.
fn dropped_lists(lists: &[StoredFile], removed: BTreeSet<Digest>) -> impl Iterator<Item = &StoredFile> {
    lists.iter().filter(move |list| !removed.contains(&list.digest))
}
