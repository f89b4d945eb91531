//! Fetches the objects that the store lacks: trees level by level, then contents.
//!
//! Each object is checked against its digest before it is stored. After an interruption the stored ones are
//! kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
};

use serde::Serialize;

use crate::{
    digest::Digest,
    error::{Error, Kind as ErrorKind, Result, WithContext},
    path::RepoPath,
    pointer::{Content, ContentKind, SUFFIX},
    progress::{Event, Progress},
    remote::{
        Access, Remote, Wants,
        catalog::{Catalog, Place, partial_path},
        contents::Contents,
        lists,
        needs::named,
        read::ObjectReader,
    },
    repo::Repo,
    store::{
        CachedRun, EntryKind, Kind, Page, Writer,
        chunks::{self, Chunk},
        decode_page, is_newer_page,
    },
};

/// Chunks of a large file that are in memory at once: several requests, of a MiB on average for each chunk.
const CHUNKS_AT_ONCE: usize = 32;

/// Extent of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Only the pages of folders: enough to compare and plan.
    Trees,
    /// Pages of folders and the contents of files.
    Everything,
}

/// Counts of a fetch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fetched {
    pub objects: u64,
    pub requests: u64,
    pub bytes: u64,
}

struct Fetcher<'f> {
    repo: &'f Repo,
    objects: ObjectReader<'f>,
    progress: &'f dyn Progress,
    /// Pages and files that the remote does not have, or not all chunks of them.
    absent: BTreeSet<Digest>,
    /// Pages and files of which no copy at the remote is intact.
    damaged: BTreeSet<Digest>,
    /// Large files whose lists of chunks a newer mlx wrote.
    newer: BTreeSet<Digest>,
    /// Large files with their sizes by their records, and by their lists of chunks.
    other_sizes: BTreeMap<Digest, (u64, u64)>,
}

/// Reason for which a list of chunks does not give its file.
enum ListProblem {
    /// The remote does not have one of the chunks.
    Absent,
    /// No copy of one of the chunks is intact.
    Chunk,
    /// The list is damaged or of another file.
    Damaged,
    Newer,
    /// The file has this many bytes by the list, and another number by its record.
    Size(u64),
}

/// Fetches the objects that `wants` names and the store lacks.
pub fn fetch(
    repo: &Repo,
    remote: &Remote,
    wants: &Wants,
    depth: Depth,
    progress: &dyn Progress,
) -> Result<Fetched> {
    let missing =
        |want: &&(RepoPath, Content)| depth == Depth::Everything || want.1.kind == ContentKind::Tree;
    if wants.contents.iter().filter(missing).count() == 0 && wants.runs.is_empty() {
        return Ok(Fetched::default());
    }
    let objects = ObjectReader::new(remote, Catalog::load(repo, remote, Access::Read)?, progress);
    let (absent, damaged, newer) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut fetcher =
        Fetcher { repo, objects, progress, absent, damaged, newer, other_sizes: BTreeMap::new() };
    let contents = fetcher.fetch_trees(wants)?;
    if depth == Depth::Everything {
        fetcher.fetch_contents(contents)?;
        fetcher.fetch_runs(&wants.runs)?;
    }
    fetcher.finish(wants)
}

impl Fetcher<'_> {
    /// Fetches the pages of all folders, level by level; returns the contents they name.
    fn fetch_trees(&mut self, wants: &Wants) -> Result<Vec<(Digest, u64)>> {
        let mut contents = Contents::default();
        let mut level = BTreeSet::new();
        for (_, content) in &wants.contents {
            if self.is_tree(content) {
                level.insert(content.digest);
            } else {
                contents.insert(content.digest, content.size);
            }
        }
        let mut seen = BTreeSet::new();
        while !level.is_empty() {
            self.fetch_objects(level.iter().copied(), Kind::Tree)?;
            let mut below = BTreeSet::new();
            let store = &self.repo.store;
            for digest in level {
                if seen.insert(digest) && store.contains(&digest) {
                    match read_page(&store.read(&digest)?, &mut below, &mut contents) {
                        // A record called a file a folder.
                        Err(_) if store.is_file(&digest) => {}
                        read => read.context(|| {
                            format!("cannot read the tree of {}", named(self.repo, wants, &[digest].into()))
                        })?,
                    }
                }
            }
            level = below;
        }
        Ok(contents.into_sorted())
    }

    /// Returns true for a folder. A record may name the wrong kind of an object. The remote knows it, except
    /// of a file that has the bytes of a page.
    fn is_tree(&self, content: &Content) -> bool {
        let find = |kinds: &[Kind]| self.objects.catalog.find(&content.digest, kinds).map(|found| found.1);
        let page = find(&[Kind::Tree]);
        if content.kind == ContentKind::Tree {
            return page.is_some() || find(&[Kind::Content]).is_some() || find(&[Kind::Chunks]).is_none();
        }
        let is_file = find(&[Kind::Content, Kind::Chunks]).is_some();
        page.is_some_and(|page| !is_file && (content.files, content.size) != (1, page.size))
    }

    fn fetch_contents(&mut self, mut contents: Vec<(Digest, u64)>) -> Result<()> {
        contents.retain(|content| !self.repo.store.pin(&content.0));
        let total = contents.iter().fold(0_u64, |sum, content| sum.saturating_add(content.1));
        self.progress.event(Event::Started { task: "fetching", total: Some(total) });
        let is_chunked = |digest: &Digest| {
            let has = |kind| self.objects.catalog.find(digest, &[kind]).is_some();
            !has(Kind::Content) && has(Kind::Chunks)
        };
        let large: Vec<_> = contents.extract_if(.., |content| is_chunked(&content.0)).collect();
        self.fetch_objects(contents.into_iter().map(|content| content.0), Kind::Content)?;
        large.into_iter().try_for_each(|(digest, size)| self.fetch_large(&digest, size))?;
        self.progress.event(Event::Finished);
        Ok(())
    }

    /// Fetches these objects into the store and collects those that the remote does not have.
    fn fetch_objects(&mut self, wanted: impl Iterator<Item = Digest>, kind: Kind) -> Result<()> {
        let mut places = Vec::new();
        for digest in wanted.filter(|digest| !self.repo.store.pin(digest)) {
            let place = |kinds: &[Kind]| self.objects.catalog.places(&digest, kinds).next();
            match place(&[kind]).or_else(|| place(&[Kind::Content, Kind::Tree])) {
                Some(place) => places.push(place),
                None => drop(self.absent.insert(digest)),
            }
        }
        let mut writer = Writer::new(&self.repo.store);
        let is_page = |bytes: &[u8]| decode_page(bytes).is_ok() || is_newer_page(bytes);
        let fetched = self.objects.read(places, &mut |row, object| {
            let kind = if kind == Kind::Tree && !is_page(object.bytes) { Kind::Content } else { kind };
            writer.put_new(kind, row.digest, &row.encoded(object.stored))
        });
        // Objects that arrived are kept, even if others failed.
        writer.finish()?;
        self.damaged.extend(fetched?);
        Ok(())
    }

    /// Fetches a large file of `size` bytes chunk by chunk, continuing what an earlier fetch left. A list of
    /// chunks that does not give the file is noted at the remote, and the next one is tried.
    fn fetch_large(&mut self, digest: &Digest, size: u64) -> Result<()> {
        let root = self.repo.store.root();
        let part = partial_path(digest)?;
        // Another process may fetch the same file into the same store: its work is waited for, not repeated.
        let _lock = crate::fs::lock_patiently(root, &part.with_suffix(".lock"), self.progress)?;
        let mut problem = ListProblem::Damaged;
        for place in self.objects.catalog.places(digest, &[Kind::Chunks]).collect::<Vec<_>>() {
            if self.repo.store.pin(digest) {
                return Ok(());
            }
            let Some(found) = self.fetch_by_list(place, digest, size, &part)? else { return Ok(()) };
            if matches!(found, ListProblem::Damaged | ListProblem::Size(_)) {
                let pack = self.objects.catalog.at(place).0;
                self.objects.note_damage(pack, *digest);
            }
            problem = found;
        }
        match problem {
            ListProblem::Absent => drop(self.absent.insert(*digest)),
            ListProblem::Chunk | ListProblem::Damaged => drop(self.damaged.insert(*digest)),
            ListProblem::Newer => drop(self.newer.insert(*digest)),
            ListProblem::Size(listed) => drop(self.other_sizes.insert(*digest, (size, listed))),
        }
        Ok(())
    }

    /// Fetches a large file by one list of its chunks. Nothing is written unless their lengths add up to
    /// `size` and are those of the chunks.
    fn fetch_by_list(
        &mut self,
        place: Place,
        digest: &Digest,
        size: u64,
        part: &RepoPath,
    ) -> Result<Option<ListProblem>> {
        let Some(bytes) = self.objects.read_copy(place)? else { return Ok(Some(ListProblem::Damaged)) };
        let Ok(list) = chunks::decode(&bytes) else {
            let is_newer = chunks::is_newer(&bytes);
            return Ok(Some(if is_newer { ListProblem::Newer } else { ListProblem::Damaged }));
        };
        let listed = list.iter().fold(0_u64, |sum, chunk| sum.saturating_add(chunk.length));
        if listed != size {
            return Ok(Some(ListProblem::Size(listed)));
        }
        let catalog = &self.objects.catalog;
        let mut places = Vec::new();
        for chunk in &list {
            let Some(place) = catalog.places(&chunk.digest, &[Kind::Content]).next() else {
                return Ok(Some(ListProblem::Absent));
            };
            if catalog.at(place).1.size != chunk.length {
                return Ok(Some(ListProblem::Damaged));
            }
            places.push(place);
        }
        if !self.append_chunks(part, &list, &places)? {
            return Ok(Some(ListProblem::Chunk));
        }
        match self.repo.store.adopt_large(digest, part) {
            // The list is of another file.
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Some(ListProblem::Damaged)),
            Err(error) => Err(error),
            Ok(()) => lists::remember(self.repo, self.objects.remote, digest, &bytes).map(|()| None),
        }
    }

    /// Appends the chunks that a partial file lacks. Returns false if one of them is damaged.
    fn append_chunks(&mut self, part: &RepoPath, list: &[Chunk], places: &[Place]) -> Result<bool> {
        let root = self.repo.store.root();
        let present = intact_chunks(root, part, list)?;
        let mut file = root.open_append(part)?;
        let batches = list[present..].chunks(CHUNKS_AT_ONCE).zip(places[present..].chunks(CHUNKS_AT_ONCE));
        for (batch, places) in batches {
            let mut contents = BTreeMap::new();
            let damaged = self.objects.read(places.to_vec(), &mut |row, object| {
                contents.insert(row.digest, object.bytes.to_vec());
                Ok(())
            })?;
            if !damaged.is_empty() {
                return Ok(false);
            }
            for chunk in batch {
                file.write_all(&contents[&chunk.digest]).context(|| format!("cannot write `{part}`"))?;
            }
        }
        Ok(true)
    }

    /// Fetches records of runs; of several with the same key the newest is kept.
    fn fetch_runs(&mut self, keys: &[Digest]) -> Result<()> {
        for key in keys {
            // A local run is as good as a remote one.
            if self.repo.store.cached_run(key)?.is_some() {
                continue;
            }
            for place in self.objects.catalog.places(key, &[Kind::Run]).collect::<Vec<_>>() {
                // Without a record of its run a stage runs once more.
                self.objects.read(vec![place], &mut |_, record| {
                    self.repo.store.put_cached_run(&CachedRun::parse(key, record.bytes)?).map(drop)
                })?;
            }
        }
        Ok(())
    }

    fn finish(self, wants: &Wants) -> Result<Fetched> {
        self.objects.leave_notes();
        self.failure(wants).map_or(Ok(self.objects.stats), Err)
    }

    /// Returns the error that names what did not arrive, if anything.
    fn failure(&self, wants: &Wants) -> Option<Error> {
        let remote = &self.objects.remote.name;
        let named = |objects| named(self.repo, wants, objects);
        if let Some(digest) = self.damaged.first() {
            let (digest, paths) = (digest.short(), named(&self.damaged));
            let error =
                Error::corrupt(format!("the remote `{remote}` has damaged data ({digest}) for {paths}"));
            return Some(error.hint(
                "everything else has been fetched; `mlx push` from a machine that has these files repairs it",
            ));
        }
        if !self.newer.is_empty() {
            let paths = named(&self.newer);
            let message = format!("the list of the chunks of {paths} was written by a newer mlx");
            return Some(Error::corrupt(message).hint("upgrade mlx"));
        }
        if let Some((digest, (size, listed))) = self.other_sizes.first_key_value() {
            let path = named(&[*digest].into());
            let pointer = wants.contents.iter().find(|(_, content)| content.digest == *digest);
            let pointer = pointer.map(|(path, _)| path.with_suffix(SUFFIX));
            let pointer = pointer.filter(|file| self.repo.files.stat(file).is_ok_and(|stat| stat.is_some()));
            let record = pointer.map_or("the record".to_owned(), |file| format!("the pointer `{file}`"));
            let message = format!(
                "{record} says that {path} has {size} bytes, but its list of chunks at the remote `{remote}` \
                 has {listed}"
            );
            return Some(Error::corrupt(message).hint(
                "everything else has been fetched; correct `size` there, or bring back the version in Git; \
                 if the list is wrong, `mlx push` from a machine that has the file replaces it",
            ));
        }
        let digest = self.absent.first()?;
        let message = format!("the remote `{remote}` lacks {} for {}", digest.short(), named(&self.absent));
        let hint = "push from a machine that has it; everything else has been fetched";
        Some(Error::not_found(message).hint(hint))
    }
}

fn read_page(bytes: &[u8], below: &mut BTreeSet<Digest>, contents: &mut Contents) -> Result<()> {
    match decode_page(bytes)? {
        Page::Branch(_, rows) => below.extend(rows.into_iter().map(|row| row.digest)),
        Page::Leaf(rows) => {
            for row in rows {
                if row.kind == EntryKind::Folder {
                    below.insert(row.digest);
                } else {
                    contents.insert(row.digest, row.size);
                }
            }
        }
    }
    Ok(())
}

/// Counts the intact chunks at the start of a partial file and truncates it after them.
fn intact_chunks(root: &crate::fs::Root, part: &RepoPath, list: &[Chunk]) -> Result<usize> {
    if root.stat(part)?.is_none() {
        return Ok(0);
    }
    let file = root.open_file(part)?;
    let (mut count, mut length) = (0, 0);
    for chunk in list {
        let mut bytes = Vec::new();
        (&file).take(chunk.length).read_to_end(&mut bytes).context(|| format!("cannot read `{part}`"))?;
        if Digest::of(&bytes) != chunk.digest {
            break;
        }
        count += 1;
        length += chunk.length;
    }
    root.open_append(part)?.set_len(length).context(|| format!("cannot truncate `{part}`"))?;
    Ok(count)
}
