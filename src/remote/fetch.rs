//! Fetches the objects that the store lacks: trees level by level, then contents.
//!
//! Each object is checked against its digest before it is stored. After an interruption the stored ones are
//! kept.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};

use futures::{StreamExt as _, stream};
use serde::Serialize;

use crate::{
    digest::Digest,
    error::{Error, Result, WithContext},
    path::RepoPath,
    pointer::ContentKind,
    progress::{Event, Progress},
    remote::{
        PARALLEL, Remote, Wants,
        catalog::{Catalog, pack_path, partial_path},
        chunks,
    },
    repo::Repo,
    store::{CachedRun, EntryKind, Kind, Page, Row, Writer, decode_page},
};

/// Largest gap between two objects of a pack that are read in one request, in bytes.
const MAX_GAP: u64 = 64 << 10;
/// Largest request, in bytes.
const MAX_REQUEST: u64 = 8 << 20;
/// Bytes of contents per local pack; an interrupted fetch loses no more than this.
const ROUND_SIZE: u64 = 64 << 20;

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
    remote: &'f Remote,
    catalog: Catalog,
    progress: &'f dyn Progress,
    stats: Fetched,
    /// Objects that the remote does not have, each with a path that needs it.
    absent: Vec<(Digest, RepoPath)>,
}

/// A range of a pack that is read in one request.
struct Span {
    pack: Digest,
    start: u64,
    end: u64,
    rows: Vec<Row>,
}

/// Fetches the objects that `wants` names and the store lacks.
pub fn fetch(
    repo: &Repo,
    remote: &Remote,
    wants: &Wants,
    depth: Depth,
    progress: &dyn Progress,
) -> Result<Fetched> {
    let missing = |want: &&(RepoPath, crate::pointer::Content)| {
        depth == Depth::Everything || want.1.kind == ContentKind::Tree
    };
    if wants.contents.iter().filter(missing).count() == 0 && wants.runs.is_empty() {
        return Ok(Fetched::default());
    }
    let catalog = Catalog::load(repo, remote)?;
    let mut fetcher =
        Fetcher { repo, remote, catalog, progress, stats: Fetched::default(), absent: Vec::new() };
    let contents = fetcher.fetch_trees(wants)?;
    if depth == Depth::Everything {
        fetcher.fetch_contents(contents)?;
        fetcher.fetch_runs(&wants.runs)?;
    }
    fetcher.finish()
}

impl Fetcher<'_> {
    /// Fetches the pages of all folders, level by level; returns the contents they name, each with a path.
    fn fetch_trees(&mut self, wants: &Wants) -> Result<BTreeMap<Digest, (u64, RepoPath)>> {
        let mut contents = BTreeMap::new();
        let mut level: BTreeMap<Digest, RepoPath> = BTreeMap::new();
        for (path, content) in &wants.contents {
            if content.kind == ContentKind::Tree {
                level.insert(content.digest, path.clone());
            } else {
                contents.insert(content.digest, (content.size, path.clone()));
            }
        }
        let mut seen = BTreeSet::new();
        while !level.is_empty() {
            self.fetch_objects(&level, Kind::Tree)?;
            let mut below = BTreeMap::new();
            for (digest, path) in level {
                if seen.insert(digest) && self.repo.store.contains(&digest) {
                    read_page(&self.repo.store.read(&digest)?, &path, &mut below, &mut contents)?;
                }
            }
            level = below;
        }
        Ok(contents)
    }

    fn fetch_contents(&mut self, contents: BTreeMap<Digest, (u64, RepoPath)>) -> Result<()> {
        let missing: BTreeMap<_, _> =
            contents.into_iter().filter(|content| !self.repo.store.pin(&content.0)).collect();
        let total = missing.values().fold(0_u64, |sum, it| sum.saturating_add(it.0));
        self.progress.event(Event::Started { task: "fetching", total: Some(total) });
        let (mut round, mut bytes) = (BTreeMap::new(), 0);
        for (digest, (size, path)) in missing {
            if self.catalog.find(&digest, &[Kind::Content]).is_none()
                && let Some(at) = self.catalog.find(&digest, &[Kind::Chunks])
            {
                self.fetch_large(&digest, at, &path)?;
                continue;
            }
            round.insert(digest, path);
            bytes = u64::saturating_add(bytes, size);
            if bytes >= ROUND_SIZE {
                self.fetch_objects(&std::mem::take(&mut round), Kind::Content)?;
                bytes = 0;
            }
        }
        self.fetch_objects(&round, Kind::Content)?;
        self.progress.event(Event::Finished);
        Ok(())
    }

    /// Fetches these objects into the store and collects those that the remote does not have.
    fn fetch_objects(&mut self, wanted: &BTreeMap<Digest, RepoPath>, kind: Kind) -> Result<()> {
        let mut found = Vec::new();
        for (digest, path) in wanted.iter().filter(|want| !self.repo.store.pin(want.0)) {
            match self.catalog.find(digest, &[Kind::Content, Kind::Tree]) {
                Some(at) => found.push(at),
                None => self.absent.push((*digest, path.clone())),
            }
        }
        let mut writer = Writer::new(&self.repo.store);
        let fetched = self.read_objects(found, &mut |row, bytes| writer.put(kind, row.digest, bytes));
        // Objects that arrived are kept, even if others failed.
        writer.finish()?;
        fetched
    }

    /// Reads and checks objects from packs: adjacent ones in one request, several requests at a time.
    fn read_objects(
        &mut self,
        found: Vec<(Digest, Row)>,
        take: &mut dyn FnMut(&Row, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let remote = self.remote;
        let reads = spans(found).into_iter().map(|span| async move {
            let path = pack_path(&span.pack);
            let bytes = remote.operator.read_with(&path).range(span.start..span.end).await;
            (span, bytes)
        });
        let mut reads = stream::iter(reads).buffer_unordered(PARALLEL);
        while let Some((span, bytes)) = remote.runtime.block_on(reads.next()) {
            let bytes = bytes.map_err(|error| remote.to_error("read", &error))?.to_vec();
            self.stats.requests += 1;
            self.stats.bytes += bytes.len() as u64;
            for row in &span.rows {
                let start = usize::try_from(row.offset - span.start).unwrap_or(usize::MAX);
                let end = start.saturating_add(usize::try_from(row.stored).unwrap_or(usize::MAX));
                let stored = bytes.get(start..end).ok_or_else(|| Error::corrupt("a pack is truncated"));
                let object = stored.and_then(|bytes| row.decode(bytes));
                let object = object.context(|| format!("{} sent damaged data", remote.location))?;
                take(row, &object)?;
                self.stats.objects += 1;
                self.progress.event(Event::Advanced { by: row.size });
            }
        }
        Ok(())
    }

    /// Fetches a large file chunk by chunk, continuing what an earlier fetch left.
    fn fetch_large(&mut self, digest: &Digest, at: (Digest, Row), path: &RepoPath) -> Result<()> {
        let mut list = Vec::new();
        self.read_objects(vec![at], &mut |_, bytes| {
            list = bytes.to_vec();
            Ok(())
        })?;
        let list = chunks::decode(&list)?;
        let root = self.repo.store.root();
        let part = partial_path(digest)?;
        // Another process may fetch the same file into the same store: its work is waited for, not repeated.
        let _lock = crate::fs::lock_patiently(root, &part.with_suffix(".lock"), self.progress)?;
        if self.repo.store.pin(digest) {
            return Ok(());
        }
        let present = intact_chunks(root, &part, &list)?;
        let mut file = root.open_append(&part)?;
        for batch in list[present..].chunks(PARALLEL) {
            let mut found = Vec::new();
            for chunk in batch {
                match self.catalog.find(&chunk.digest, &[Kind::Content]) {
                    Some(at) => found.push(at),
                    None => {
                        self.absent.push((chunk.digest, path.clone()));
                        return Ok(());
                    }
                }
            }
            found.dedup();
            let mut contents = BTreeMap::new();
            self.read_objects(found, &mut |row, bytes| {
                contents.insert(row.digest, bytes.to_vec());
                Ok(())
            })?;
            for chunk in batch {
                file.write_all(&contents[&chunk.digest]).context(|| format!("cannot write `{part}`"))?;
            }
        }
        drop(file);
        self.repo.store.adopt_large(digest, &part).context(|| format!("cannot fetch `{path}`"))
    }

    /// Fetches records of runs; of several with the same key the newest is kept.
    fn fetch_runs(&mut self, keys: &[Digest]) -> Result<()> {
        for key in keys {
            // A local run is as good as a remote one.
            if self.repo.store.cached_run(key)?.is_some() {
                continue;
            }
            for at in self.catalog.find_all(key, Kind::Run) {
                let mut record = Vec::new();
                self.read_objects(vec![at], &mut |_, bytes| {
                    record = bytes.to_vec();
                    Ok(())
                })?;
                self.repo.store.put_cached_run(&CachedRun::parse(key, &record)?)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Fetched> {
        let Some((digest, path)) = self.absent.first() else { return Ok(self.stats) };
        let more = self.absent.len() - 1;
        let more = if more == 0 { String::new() } else { format!(" and {more} more objects") };
        let message =
            format!("the remote `{}` lacks {} for `{path}`{more}", self.remote.name, digest.short());
        Err(Error::not_found(message)
            .hint("push from a machine that has it; everything else has been fetched"))
    }
}

fn read_page(
    bytes: &[u8],
    path: &RepoPath,
    below: &mut BTreeMap<Digest, RepoPath>,
    contents: &mut BTreeMap<Digest, (u64, RepoPath)>,
) -> Result<()> {
    match decode_page(bytes).context(|| format!("cannot read the tree of `{path}`"))? {
        Page::Branch(_, rows) => below.extend(rows.into_iter().map(|row| (row.digest, path.clone()))),
        Page::Leaf(rows) => {
            for row in rows {
                let path = path.join(&row.name)?;
                if row.kind == EntryKind::Folder {
                    below.insert(row.digest, path);
                } else {
                    contents.insert(row.digest, (row.size, path));
                }
            }
        }
    }
    Ok(())
}

/// Counts the intact chunks at the start of a partial file and truncates it after them.
fn intact_chunks(root: &crate::fs::Root, part: &RepoPath, list: &[chunks::Chunk]) -> Result<usize> {
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

/// Groups objects into ranges of packs, sorted by pack and offset.
fn spans(mut found: Vec<(Digest, Row)>) -> Vec<Span> {
    found.sort_by_key(|(pack, row)| (*pack, row.offset));
    found.dedup();
    let mut spans: Vec<Span> = Vec::new();
    for (pack, row) in found {
        let end = row.offset + row.stored;
        match spans.last_mut() {
            Some(span)
                if span.pack == pack
                    && row.offset <= span.end + MAX_GAP
                    && end - span.start <= MAX_REQUEST =>
            {
                span.end = span.end.max(end);
                span.rows.push(row);
            }
            _ => spans.push(Span { pack, start: row.offset, end, rows: vec![row] }),
        }
    }
    spans
}
