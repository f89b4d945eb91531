//! Fetches the objects that the store lacks: trees level by level, then contents.
//!
//! Each object is checked against its digest before it is stored. After an interruption the stored ones are
//! kept.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};

use serde::Serialize;

use crate::{
    digest::Digest,
    error::{Error, Kind as ErrorKind, Result, WithContext},
    path::RepoPath,
    pointer::{Content, ContentKind},
    progress::{Event, Progress},
    remote::{
        Access, Remote, Wants,
        catalog::{Catalog, partial_path},
        chunks::{self, Chunk},
        read::ObjectReader,
    },
    repo::Repo,
    store::{CachedRun, EntryKind, Kind, Page, Writer, decode_page, is_newer_page},
};

/// Chunks of a large file that are in memory at once: several requests, of a MiB on average for each chunk.
const CHUNKS_AT_ONCE: usize = 32;
/// Largest number of paths in a message.
const MAX_NAMED: usize = 10;
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
    objects: ObjectReader<'f>,
    progress: &'f dyn Progress,
    /// Objects that the remote does not have, each with a path that needs it.
    absent: Vec<(Digest, RepoPath)>,
    /// Objects of which no copy at the remote is intact, likewise.
    damaged: Vec<(Digest, RepoPath)>,
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
    let mut fetcher = Fetcher { repo, objects, progress, absent: Vec::new(), damaged: Vec::new() };
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
            if self.is_tree(content) {
                level.insert(content.digest, path.clone());
            } else {
                contents.insert(content.digest, (content.size, path.clone()));
            }
        }
        let mut seen = BTreeSet::new();
        while !level.is_empty() {
            self.fetch_objects(&level, Kind::Tree)?;
            let mut below = BTreeMap::new();
            let store = &self.repo.store;
            for (digest, path) in level {
                if seen.insert(digest) && store.contains(&digest) {
                    match read_page(&store.read(&digest)?, &path, &mut below, &mut contents) {
                        // A record called a file a folder.
                        Err(_) if store.is_file(&digest) => {}
                        read => read?,
                    }
                }
            }
            level = below;
        }
        Ok(contents)
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

    fn fetch_contents(&mut self, contents: BTreeMap<Digest, (u64, RepoPath)>) -> Result<()> {
        let missing: BTreeMap<_, _> =
            contents.into_iter().filter(|content| !self.repo.store.pin(&content.0)).collect();
        let total = missing.values().fold(0_u64, |sum, it| sum.saturating_add(it.0));
        self.progress.event(Event::Started { task: "fetching", total: Some(total) });
        let (mut round, mut bytes) = (BTreeMap::new(), 0);
        for (digest, (size, path)) in missing {
            if self.objects.catalog.find(&digest, &[Kind::Content]).is_none()
                && self.objects.catalog.find(&digest, &[Kind::Chunks]).is_some()
            {
                self.fetch_large(&digest, size, &path)?;
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
            let found_as = |kinds: &[Kind]| self.objects.catalog.find(digest, kinds);
            match found_as(&[kind]).or_else(|| found_as(&[Kind::Content, Kind::Tree])) {
                Some(at) => found.push(at),
                None => self.absent.push((*digest, path.clone())),
            }
        }
        let mut writer = Writer::new(&self.repo.store);
        let is_page = |bytes: &[u8]| decode_page(bytes).is_ok() || is_newer_page(bytes);
        let fetched = self.objects.read(found, &mut |row, bytes| {
            let kind = if kind == Kind::Tree && !is_page(bytes) { Kind::Content } else { kind };
            writer.put(kind, row.digest, bytes)
        });
        // Objects that arrived are kept, even if others failed.
        writer.finish()?;
        self.damaged.extend(fetched?.into_iter().map(|digest| (digest, wanted[&digest].clone())));
        Ok(())
    }

    /// Returns the chunks of a large file: the first list of them at the remote that gives `size` bytes.
    fn chunk_list(&mut self, digest: &Digest, size: u64) -> Result<Option<Vec<Chunk>>> {
        for at in self.objects.catalog.find_all(digest, &[Kind::Chunks]) {
            let mut list = None;
            self.objects.read(vec![at], &mut |_, bytes| {
                list = chunks::decode(bytes).ok();
                Ok(())
            })?;
            let sum =
                |list: &Vec<Chunk>| list.iter().fold(0_u64, |sum, chunk| sum.saturating_add(chunk.length));
            if let Some(list) = list.filter(|list| sum(list) == size) {
                return Ok(Some(list));
            }
        }
        Ok(None)
    }

    /// Fetches a large file of `size` bytes chunk by chunk, continuing what an earlier fetch left.
    fn fetch_large(&mut self, digest: &Digest, size: u64, path: &RepoPath) -> Result<()> {
        let Some(list) = self.chunk_list(digest, size)? else {
            self.damaged.push((*digest, path.clone()));
            return Ok(());
        };
        let root = self.repo.store.root();
        let part = partial_path(digest)?;
        // Another process may fetch the same file into the same store: its work is waited for, not repeated.
        let _lock = crate::fs::lock_patiently(root, &part.with_suffix(".lock"), self.progress)?;
        if self.repo.store.pin(digest) || !self.append_chunks(&part, &list, path)? {
            return Ok(());
        }
        match self.repo.store.adopt_large(digest, &part) {
            // The list is of another file.
            Err(error) if error.kind() == ErrorKind::Corrupt => self.damaged.push((*digest, path.clone())),
            adopted => adopted.context(|| format!("cannot fetch `{path}`"))?,
        }
        Ok(())
    }

    /// Appends the chunks that a partial file lacks. Returns false if the remote lacks one.
    fn append_chunks(&mut self, part: &RepoPath, list: &[Chunk], path: &RepoPath) -> Result<bool> {
        let root = self.repo.store.root();
        let present = intact_chunks(root, part, list)?;
        let mut file = root.open_append(part)?;
        for batch in list[present..].chunks(CHUNKS_AT_ONCE) {
            let mut found = Vec::new();
            for chunk in batch {
                match self.objects.catalog.find(&chunk.digest, &[Kind::Content]) {
                    Some(at) => found.push(at),
                    None => {
                        self.absent.push((chunk.digest, path.clone()));
                        return Ok(false);
                    }
                }
            }
            found.dedup();
            let mut contents = BTreeMap::new();
            let damaged = self.objects.read(found, &mut |row, bytes| {
                contents.insert(row.digest, bytes.to_vec());
                Ok(())
            })?;
            if let Some(first) = damaged.first() {
                self.damaged.push((*first, path.clone()));
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
            for at in self.objects.catalog.find_all(key, &[Kind::Run]) {
                // Without a record of its run a stage runs once more.
                self.objects.read(vec![at], &mut |_, record| {
                    self.repo.store.put_cached_run(&CachedRun::parse(key, record)?).map(drop)
                })?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Fetched> {
        self.objects.leave_notes();
        let remote = &self.objects.remote.name;
        if let Some((digest, _)) = self.damaged.first() {
            let (digest, paths) = (digest.short(), named(&self.damaged));
            let error =
                Error::corrupt(format!("the remote `{remote}` has damaged data ({digest}) for {paths}"));
            return Err(error.hint(
                "everything else has been fetched; `mlx push` from a machine that has these files repairs it",
            ));
        }
        let Some((digest, _)) = self.absent.first() else { return Ok(self.objects.stats) };
        let message = format!("the remote `{remote}` lacks {} for {}", digest.short(), named(&self.absent));
        Err(Error::not_found(message)
            .hint("push from a machine that has it; everything else has been fetched"))
    }
}

/// Names the paths that need objects.
fn named(objects: &[(Digest, RepoPath)]) -> String {
    let paths: BTreeSet<&RepoPath> = objects.iter().map(|(_, path)| path).collect();
    let named: Vec<_> = paths.iter().take(MAX_NAMED).map(|path| format!("`{path}`")).collect();
    match paths.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
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
