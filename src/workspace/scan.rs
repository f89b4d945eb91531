//! Scans a path: walks its files and returns their digests as a [`Node`].
//!
//! Digests of unchanged files come from the stat cache; other files are read in batches by all cores. With a
//! writer, whatever the store lacks is stored along the way, each batch while the next one is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Error, Kind as ErrorKind, Result, WithContext},
    fs::{self, Entry, File, FileKind, FileStat, Listing, Root, WalkFilter as _},
    path::{RepoPath, escape_bytes},
    progress::{Event, Progress},
    store::{EncodedObject, EntryKind, Kind, MAX_PACKED_SIZE, Store, Writer, digest_file},
    workspace::{Node, Stamps, Workspace, filter::ScanFilter, modes::executables, stats_above},
};

/// Bytes of a batch, which all cores read together.
const BATCH_SIZE: u64 = 16 << 20;
const BATCH_FILES: usize = 1024;
/// Files that are read sooner than another thread starts.
const FEW_FILES: usize = 2;
/// Digests that are collected before they are filled in, approximately.
const MAX_PENDING_DIGESTS: usize = 1 << 16;
/// Files queued for reading before the queue is processed.
const MAX_PENDING_FILES: usize = 4 * BATCH_FILES;

/// A file to be read.
struct Job {
    path: RepoPath,
    stat: FileStat,
    /// For a link into the store, the digest of its target; a write through the link may have changed it.
    linked: Option<Digest>,
}

/// Scans `path`; with a writer, also stores everything that is not stored yet.
pub(super) fn scan(
    workspace: &Workspace<'_>,
    path: &RepoPath,
    writer: Option<&mut Writer<'_>>,
    progress: &dyn Progress,
) -> Result<Option<Node>> {
    let record = workspace.record_of(path);
    let filter = ScanFilter::new(workspace, path, record.as_ref())?;
    let filter = if writer.is_some() { filter.cleaning(&workspace.repo.store, progress) } else { filter };
    scan_filtered(workspace, path, &filter, writer, progress)
}

/// As [`scan`], without storing anything and with the stats that the digests belong to.
pub(super) fn scan_stamped(
    workspace: &Workspace<'_>,
    path: &RepoPath,
    filter: &ScanFilter<'_>,
    progress: &dyn Progress,
) -> Result<Option<(Node, Stamps)>> {
    // Taken before the files are read: a later move is found.
    let above = stats_above(&workspace.repo.files, path)?;
    let found = scan_all(workspace, path, filter, None, progress)?;
    Ok(found.map(|(node, stamps)| (node, stamps.with_above(above))))
}

/// As [`scan`], limited to the files that `filter` includes.
pub(super) fn scan_filtered(
    workspace: &Workspace<'_>,
    path: &RepoPath,
    filter: &ScanFilter<'_>,
    writer: Option<&mut Writer<'_>>,
    progress: &dyn Progress,
) -> Result<Option<Node>> {
    Ok(scan_all(workspace, path, filter, writer, progress)?.map(|scanned| scanned.0))
}

fn scan_all(
    workspace: &Workspace<'_>,
    path: &RepoPath,
    filter: &ScanFilter<'_>,
    writer: Option<&mut Writer<'_>>,
    progress: &dyn Progress,
) -> Result<Option<(Node, Stamps)>> {
    let files = &workspace.repo.files;
    let Some(stat) = files.stat(path)? else { return Ok(None) };
    let children = if stat.kind == FileKind::Folder {
        fs::on_io_threads(|| files.entries(path, filter))?
    } else {
        Listing::default()
    };
    let entry = Entry { name: path.name(), stat, children: &children };
    let mut scanner = Scanner {
        workspace,
        filter,
        writer,
        progress,
        jobs: Vec::new(),
        digests: Vec::new(),
        unwritten: Vec::new(),
        walked: BTreeSet::new(),
        stored: BTreeMap::new(),
        executables: executables(workspace, path),
    };
    let above = path.parent().unwrap_or_default();
    let total = scanner.bytes_to_read(&above, &|| std::iter::once(entry));
    if total > BATCH_SIZE {
        progress.event(Event::Started { task: "reading", total: Some(total) });
    }
    let known = scanner.cached_digests(&above, std::iter::once(entry)).pop().flatten();
    let Some(mut node) = scanner.node(path.clone(), entry, known)? else { return Ok(None) };
    let digests = scanner.finish()?;
    fill(&mut node, &mut digests.into_iter());
    if filter.is_unrestricted() {
        workspace.index.borrow_mut().retain_folders(path, &scanner.walked);
    }
    // A partial scan of a folder does not know all of its pages' entries, so that none is stored.
    node.compute_digests(&mut scanner.writer.filter(|_| filter.is_unrestricted()))?;
    let stored = scanner.stored;
    Ok((!is_unread(&node)).then(|| (node, Stamps::new(path.clone(), stat, children, stored))))
}

struct Scanner<'s, 'r, 'w, 'o> {
    workspace: &'s Workspace<'r>,
    filter: &'s ScanFilter<'r>,
    writer: Option<&'o mut Writer<'w>>,
    progress: &'s dyn Progress,
    jobs: Vec<Job>,
    /// Digests of the finished jobs, in order.
    digests: Vec<Digest>,
    /// Files that were read and are not written yet.
    unwritten: ReadFiles,
    walked: BTreeSet<RepoPath>,
    /// Stats of the stored files that links lead to, by the path of the link.
    stored: BTreeMap<RepoPath, FileStat>,
    /// The files recorded as executable, where the file system's bits mean nothing.
    executables: Option<BTreeSet<RepoPath>>,
}

/// Placeholder of a digest that is not computed yet.
fn placeholder() -> Digest {
    Digest::from_bytes([0; 32])
}

fn is_unread(node: &Node) -> bool {
    node.kind != EntryKind::Folder && node.digest == placeholder()
}

/// Replaces placeholders with the computed digests, in the order of the jobs; drops unreadable files.
fn fill(node: &mut Node, digests: &mut impl Iterator<Item = Digest>) {
    if is_unread(node) {
        node.digest = digests.next().expect("every unread file was a job");
    }
    if let Some(children) = node.children_mut() {
        children.iter_mut().for_each(|child| fill(child, digests));
        children.retain(|it| !is_unread(it));
    }
}

impl Scanner<'_, '_, '_, '_> {
    /// Returns the node of an entry; `None` for an unreadable one that the filter lets pass.
    fn node(&mut self, path: RepoPath, entry: Entry<'_>, known: Option<Digest>) -> Result<Option<Node>> {
        let mut stat = entry.stat;
        let (kind, digest) = match stat.kind {
            FileKind::Folder => (EntryKind::Folder, placeholder()),
            FileKind::Symlink => match self.link(&path, known) {
                Ok((kind, digest, size)) => {
                    stat.size = size;
                    (kind, digest)
                }
                Err(error) => return self.filter.on_error(&path, error).map(|()| None),
            },
            FileKind::File if self.is_executable(&path, &stat) => {
                (EntryKind::Executable, self.file(&path, stat, known))
            }
            FileKind::File => (EntryKind::File, self.file(&path, stat, known)),
            FileKind::Other => {
                let error = Error::new(ErrorKind::Usage, format!("`{path}` is a fifo, a socket or a device"));
                let error = error.hint("only files, folders and links have content; move it elsewhere");
                return self.filter.on_error(&path, error).map(|()| None);
            }
        };
        let mut children = Vec::new();
        if kind == EntryKind::Folder {
            self.enter(&path, entry.children);
            let known = self.cached_digests(&path, entry.children.iter());
            children.reserve_exact(known.len());
            // Without pending jobs from outside, this folder's digests are filled in before the scan ends.
            let own = self.digests.is_empty() && self.jobs.is_empty();
            let mut filled = 0;
            for (child, known) in entry.children.iter().zip(known) {
                children.extend(self.node(path.join(child.name)?, child, known)?);
                if self.jobs.len() >= MAX_PENDING_FILES {
                    self.flush()?;
                }
                if own && self.digests.len() >= MAX_PENDING_DIGESTS {
                    self.flush()?;
                    let mut digests = std::mem::take(&mut self.digests).into_iter();
                    children[filled..].iter_mut().for_each(|child| fill(child, &mut digests));
                    children.retain(|it| !is_unread(it));
                    filled = children.len();
                }
            }
        }
        children.shrink_to_fit();
        Ok(Some(if kind == EntryKind::Folder {
            Node::folder(entry.name, digest, children)
        } else {
            Node::file(entry.name, kind, stat.size, digest)
        }))
    }

    fn is_executable(&self, path: &RepoPath, stat: &FileStat) -> bool {
        self.executables.as_ref().map_or(stat.executable, |paths| paths.contains(path))
    }

    /// Notes that a folder is walked and removes its deleted files from the index.
    fn enter(&mut self, folder: &RepoPath, children: &Listing) {
        self.walked.insert(folder.clone());
        if self.filter.is_unrestricted() {
            let files = children.iter().filter(|child| child.stat.kind != FileKind::Folder);
            let names: Vec<&[u8]> = files.map(|it| it.name).collect();
            self.workspace.index.borrow_mut().retain_files(folder, &names);
        }
    }

    /// Looks up the digests of unchanged files in the index; returns one element per entry.
    fn cached_digests<'l>(
        &self,
        folder: &RepoPath,
        children: impl Iterator<Item = Entry<'l>>,
    ) -> Vec<Option<Digest>> {
        let index = self.workspace.index.borrow();
        let rows = index.folder(folder);
        let lookup = |entry: Entry<'_>| {
            let rows = rows.as_ref()?;
            // For a link into the store, the row holds the stat of its target.
            let linked = if entry.stat.kind == FileKind::Symlink {
                self.stored_file(&folder.join(entry.name).ok()?)
            } else {
                None
            };
            rows.digest_if_unchanged(entry.name, &linked.map_or(entry.stat, |(_, stat)| stat))
        };
        children.map(lookup).collect()
    }

    /// Returns the digest and stat of the stored file that a link points to, if mlx made the link.
    fn stored_file(&self, link: &RepoPath) -> Option<(Digest, FileStat)> {
        let target = self.workspace.repo.files.read_link(link).ok()?;
        let large = self.workspace.repo.store.large_from_link(&target)?;
        Some((large.digest(), *large.stat()))
    }

    /// Records a link as data, except for those that `cache.link` made into the store: they count as files.
    fn link(&mut self, path: &RepoPath, known: Option<Digest>) -> Result<(EntryKind, Digest, u64)> {
        if let Some((digest, stat)) = self.stored_file(path) {
            self.stored.insert(path.clone(), stat);
            return Ok((EntryKind::File, self.digest_or_job(path, stat, known, Some(digest)), stat.size));
        }
        let target = self.workspace.repo.files.read_link(path)?;
        let digest = match &mut self.writer {
            Some(writer) => writer.put_bytes(&target)?,
            None => Digest::of(&target),
        };
        Ok((EntryKind::Link, digest, target.len() as u64))
    }

    fn file(&mut self, path: &RepoPath, stat: FileStat, known: Option<Digest>) -> Digest {
        self.digest_or_job(path, stat, known, None)
    }

    /// Returns the cached digest, or queues the file and returns the placeholder.
    fn digest_or_job(
        &mut self,
        path: &RepoPath,
        stat: FileStat,
        known: Option<Digest>,
        linked: Option<Digest>,
    ) -> Digest {
        match (known, &self.writer) {
            (Some(digest), None) => digest,
            (Some(digest), Some(writer))
                if stat.size <= MAX_PACKED_SIZE && writer.contains_packed(&digest) =>
            {
                digest
            }
            (Some(digest), Some(writer)) if stat.size > MAX_PACKED_SIZE && writer.contains_large(&digest) => {
                digest
            }
            _ => {
                self.jobs.push(Job { path: path.clone(), stat, linked });
                placeholder()
            }
        }
    }

    /// Processes the queued jobs in order and in batches: while one batch is read, the one before is written.
    fn flush(&mut self) -> Result<()> {
        let jobs = std::mem::take(&mut self.jobs);
        for batch in batches(&jobs) {
            let tick = fs::coarse_now();
            let before = std::mem::take(&mut self.unwritten);
            let read = if let [job] = batch
                && job.stat.size > MAX_PACKED_SIZE
            {
                self.put(before)?;
                let unread = |error| self.filter.on_error(&job.path, error).map(|()| placeholder());
                vec![(self.hash_large(job).or_else(unread)?, None)]
            } else {
                self.read_and_put(batch, before)?
            };
            let mut index = self.workspace.index.borrow_mut();
            for (job, (digest, _)) in
                batch.iter().zip(&read).filter(|(_, (digest, _))| *digest != placeholder())
            {
                index.insert(&job.path, &job.stat, *digest, tick);
            }
            drop(index);
            self.digests.extend(read.iter().map(|(digest, _)| digest));
            self.unwritten = read;
            self.progress.event(Event::Advanced { by: batch.iter().map(|job| job.stat.size).sum() });
        }
        Ok(())
    }

    /// Processes all jobs and returns their digests, in order.
    fn finish(&mut self) -> Result<Vec<Digest>> {
        self.flush()?;
        let last = std::mem::take(&mut self.unwritten);
        self.put(last)?;
        self.progress.event(Event::Finished);
        Ok(std::mem::take(&mut self.digests))
    }

    /// Returns the number of bytes that have to be read.
    fn bytes_to_read<'l, I: Iterator<Item = Entry<'l>>>(
        &self,
        folder: &RepoPath,
        entries: &dyn Fn() -> I,
    ) -> u64 {
        let known = self.cached_digests(folder, entries());
        let files = entries()
            .zip(known)
            .filter(|(entry, known)| entry.stat.kind == FileKind::File && known.is_none());
        let own: u64 = files.map(|(entry, _)| entry.stat.size).sum();
        let below = |entry: Entry<'_>| {
            folder.join(entry.name).map_or(0, |path| self.bytes_to_read(&path, &|| entry.children.iter()))
        };
        own + entries().filter(|entry| entry.stat.kind == FileKind::Folder).map(below).sum::<u64>()
    }

    fn read_and_put(&mut self, batch: &[Job], before: ReadFiles) -> Result<ReadFiles> {
        let reader = FileReader {
            files: &self.workspace.repo.files,
            store: &self.workspace.repo.store,
            filter: self.filter,
            store_bytes: self.writer.is_some(),
        };
        if batch.len() <= FEW_FILES {
            self.put(before)?;
            return batch.iter().map(|job| reader.read_one(job)).collect();
        }
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let put = std::thread::scope(|scope| {
            scope.spawn(move || sender.send(fs::on_io_threads(|| reader.read_all(batch))));
            self.put(before)
        });
        let read = receiver.recv().expect("the reader sends before it ends");
        put.and(read)
    }

    fn put(&mut self, files: ReadFiles) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        for (digest, ready) in files {
            if let Some(ready) = ready {
                writer.put_encoded(Kind::Content, digest, &ready)?;
            }
        }
        Ok(())
    }

    fn hash_large(&self, job: &Job) -> Result<Digest> {
        let store = &self.workspace.repo.store;
        let file = open(&self.workspace.repo.files, store, job)?;
        let check_unchanged = |file: &File, size| {
            if size == job.stat.size && is_unchanged(file, &job.stat) { Ok(()) } else { Err(changed(job)) }
        };
        let context = || format!("cannot read `{}`", job.path);
        // An unchanged link target is in the store already.
        if self.writer.is_none() || job.linked.is_some() {
            let (digest, size) = digest_file(&file).context(context)?;
            check_unchanged(&file, size)?;
            if self.writer.is_none() || job.linked == Some(digest) {
                return Ok(digest);
            }
        }
        store.put_large(&file, &check_unchanged).map(|it| it.0)
    }
}

/// Digests of files that were read, with the encoded objects that are to be stored.
type ReadFiles = Vec<(Digest, Option<EncodedObject<'static>>)>;

/// Reads files on any thread.
#[derive(Clone, Copy)]
struct FileReader<'s, 'r> {
    files: &'s Root,
    store: &'s Store,
    filter: &'s ScanFilter<'r>,
    /// True if the bytes are to be stored, too.
    store_bytes: bool,
}

impl FileReader<'_, '_> {
    fn read_all(self, jobs: &[Job]) -> Result<ReadFiles> {
        jobs.par_iter().map(|job| self.read_one(job)).collect()
    }

    fn read_one(self, job: &Job) -> Result<(Digest, Option<EncodedObject<'static>>)> {
        let bytes = match open(self.files, self.store, job).and_then(|file| read(&file, job)) {
            Ok(bytes) => bytes,
            Err(error) => return self.filter.on_error(&job.path, error).map(|()| (placeholder(), None)),
        };
        let digest = Digest::of(&bytes);
        let skip = !self.store_bytes || self.store.pin_packed(&digest);
        let ready = if skip {
            None
        } else {
            Some(EncodedObject::encode(bytes.into()).context(|| "cannot compress".into())?)
        };
        Ok((digest, ready))
    }
}

fn open(files: &Root, store: &Store, job: &Job) -> Result<File> {
    let missing = || Error::not_found(format!("the stored file that `{}` links to does not exist", job.path));
    match &job.linked {
        Some(digest) => store.large(digest).ok_or_else(missing)?.open(),
        None => files.open_file(&job.path),
    }
}

/// Splits jobs into batches of small files; each large file is a batch of its own.
fn batches(jobs: &[Job]) -> Vec<&[Job]> {
    let mut found = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, job) in jobs.iter().enumerate() {
        let alone = job.stat.size > MAX_PACKED_SIZE;
        if at > start && (alone || bytes + job.stat.size > BATCH_SIZE || at - start >= BATCH_FILES) {
            found.push(&jobs[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += job.stat.size;
        if alone {
            found.push(&jobs[at..=at]);
            (start, bytes) = (at + 1, 0);
        }
    }
    if start < jobs.len() {
        found.push(&jobs[start..]);
    }
    found
}

/// Reads a small file in full; a file that changes meanwhile is an error.
fn read(mut file: &File, job: &Job) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(job.stat.size).unwrap_or(0) + 1);
    let limit = job.stat.size + 1;
    file.by_ref().take(limit).read_to_end(&mut bytes).context(|| format!("cannot read `{}`", job.path))?;
    if bytes.len() as u64 == job.stat.size && is_unchanged(file, &job.stat) {
        Ok(bytes)
    } else {
        Err(changed(job))
    }
}

fn is_unchanged(file: &File, stat: &FileStat) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().is_ok_and(|metadata| {
        let mtime = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        (metadata.len(), mtime, metadata.ino()) == (stat.size, stat.mtime, stat.inode)
    })
}

fn changed(job: &Job) -> Error {
    Error::new(ErrorKind::Conflict, format!("`{}` changed while it was read", job.path))
        .hint("wait until no process writes to it, then try again")
}

/// Refuses links in `node` that lead out of the tracked folder `top`.
pub(super) fn check_links(
    workspace: &Workspace<'_>,
    node: &Node,
    path: &RepoPath,
    top: &RepoPath,
) -> Result<()> {
    node.walk(&path.parent().unwrap_or_default(), &mut |folder, leaf| {
        if leaf.kind != EntryKind::Link {
            return Ok(());
        }
        let link = folder.join(&leaf.name)?;
        check_stays_inside(&link, top, &workspace.repo.files.read_link(&link)?)
    })
}

/// Refuses a link at `link` to `target` that leads out of the folder `top`.
pub(super) fn check_stays_inside(link: &RepoPath, top: &RepoPath, target: &[u8]) -> Result<()> {
    if is_inside(link, top, target) {
        return Ok(());
    }
    let message = format!("the link `{link}` leads out of `{top}`: to `{}`", escape_bytes(target));
    Err(Error::new(ErrorKind::Denied, message).hint("move its target into the folder, or remove the link"))
}

fn is_inside(link: &RepoPath, root: &RepoPath, target: &[u8]) -> bool {
    let Some(below) = link.strip_prefix(root).and_then(|path| path.parent()) else { return false };
    let mut depth = below.components().count();
    if target.starts_with(b"/") {
        return false;
    }
    let mut descended = false;
    for name in target.split(|&it| it == b'/') {
        match name {
            b"" | b"." => {}
            // A name may be a link itself: it is unknown where `..` after it leads.
            b".." if depth == 0 || descended => return false,
            b".." => depth -= 1,
            _ => descended = true,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_must_not_lead_out_of_the_folder() {
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        let inside = |target: &[u8]| is_inside(&path("data/a/l"), &path("data"), target);
        assert!(inside(b"x") && inside(b"../x") && inside(b"./../b/x"));
        assert!(
            !inside(b"/etc/passwd") && !inside(b"../../x") && !inside(b"../../data/x") && !inside(b"b/../x")
        );
    }

    #[test]
    fn a_file_that_changed_during_the_read_is_named() {
        use std::io::Write as _;

        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = RepoPath::from_text("x").unwrap();
        root.write(&path, b"before", fs::Sync::Later).unwrap();
        let job = Job { path: path.clone(), stat: root.stat(&path).unwrap().unwrap(), linked: None };
        assert_eq!(read(&root.open_file(&path).unwrap(), &job).unwrap(), b"before");
        root.open_append(&path).unwrap().write_all(b" and after").unwrap();
        let grown = read(&root.open_file(&path).unwrap(), &job).unwrap_err();
        root.write(&path, b"less", fs::Sync::Later).unwrap();
        let shrunk = read(&root.open_file(&path).unwrap(), &job).unwrap_err();
        root.write(&path, b"sixsix", fs::Sync::Later).unwrap();
        let replaced = read(&root.open_file(&path).unwrap(), &job).unwrap_err();
        for error in [grown, shrunk, replaced] {
            assert_eq!(error.to_string(), "`x` changed while it was read");
        }
    }

    #[test]
    fn large_files_are_read_alone() {
        let path = RepoPath::from_text("x").unwrap();
        let job = |size| Job {
            path: path.clone(),
            stat: FileStat {
                kind: FileKind::File,
                executable: false,
                size,
                mtime: 0,
                ctime: 0,
                inode: 0,
                links: 1,
            },
            linked: None,
        };
        let jobs = [
            job(1),
            job(2),
            job(MAX_PACKED_SIZE + 1),
            job(3),
            job(MAX_PACKED_SIZE),
            job(MAX_PACKED_SIZE + 9),
        ];
        let sizes: Vec<usize> = batches(&jobs).iter().map(|it| it.len()).collect();
        assert_eq!(sizes, [2, 1, 2, 1]);
        assert!(batches(&[]).is_empty());
    }
}
