//! What lies at a path, with digests: from the index where it can vouch, from the bytes where not.

use std::{collections::BTreeSet, io::Read as _};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Doing, Error, Kind as ErrorKind, Result},
    fs::{self, Entry, File, Form, Stamp},
    path::{RepoPath, show},
    progress::{Event, Progress},
    store::{EntryKind, Kind, TreeEntry, WHOLE, Writer, digest_file},
    workspace::Workspace,
};

/// Bytes read at once, by all cores together.
const BATCH: u64 = 32 << 20;
const BATCH_FILES: usize = 1024;

/// A file or folder of the workspace with its digest (that of a folder comes with [`Node::content`]).
pub struct Node {
    pub path: RepoPath,
    pub kind: EntryKind,
    pub stamp: Stamp,
    pub digest: Digest,
    pub children: Vec<Node>,
}

/// A file to be read.
struct Job {
    path: RepoPath,
    stamp: Stamp,
}

impl Node {
    /// This node as a row of a tree.
    pub(super) fn entry(&self, writer: &mut Option<&mut Writer<'_>>) -> Result<TreeEntry> {
        let content = self.content(writer)?;
        let name = self.path.name().into();
        Ok(TreeEntry {
            name,
            kind: self.kind,
            size: content.size,
            files: content.files,
            digest: content.digest,
        })
    }

    /// All files, links and empty folders, sorted by path within each folder.
    pub fn leaves<'n>(&'n self, found: &mut Vec<&'n Self>) {
        if self.kind != EntryKind::Folder || self.children.is_empty() {
            found.push(self);
        }
        self.children.iter().for_each(|it| it.leaves(found));
    }
}

/// Looks at `path`; with a writer, everything that is not stored is, but for the pages of folders.
pub(super) fn scan(
    workspace: &Workspace<'_>,
    path: &RepoPath,
    writer: Option<&mut Writer<'_>>,
    progress: &dyn Progress,
) -> Result<Option<Node>> {
    let files = &workspace.repo.files;
    let Some(stamp) = files.stamp(path)? else { return Ok(None) };
    let children = if stamp.form == Form::Folder { files.entries(path, &|_| false)? } else { Vec::new() };
    let entry = Entry { name: path.name().into(), stamp, children };
    let mut scanner = Scanner { workspace, writer, jobs: Vec::new(), present: BTreeSet::new() };
    let mut node = scanner.node(path.clone(), entry)?;
    let digests = scanner.run(progress)?;
    let mut next = digests.into_iter();
    fill(&mut node, &mut next);
    workspace.index.borrow_mut().forget(path, &scanner.present);
    Ok(Some(node))
}

struct Scanner<'s, 'r, 'w, 'o> {
    workspace: &'s Workspace<'r>,
    writer: Option<&'o mut Writer<'w>>,
    jobs: Vec<Job>,
    present: BTreeSet<RepoPath>,
}

/// Stands for a digest that is still to be read.
fn unread() -> Digest {
    Digest::from_bytes([0; 32])
}

/// Puts the digests that were read where they belong, in the order they were asked for.
fn fill(node: &mut Node, digests: &mut impl Iterator<Item = Digest>) {
    if node.kind != EntryKind::Folder && node.digest == unread() {
        node.digest = digests.next().expect("every unread file was a job");
    }
    node.children.iter_mut().for_each(|it| fill(it, digests));
}

impl Scanner<'_, '_, '_, '_> {
    fn node(&mut self, path: RepoPath, entry: Entry) -> Result<Node> {
        let mut stamp = entry.stamp;
        let (kind, digest) = match stamp.form {
            Form::Folder => (EntryKind::Folder, unread()),
            Form::Link => {
                let (kind, digest, size) = self.link(&path)?;
                stamp.size = size;
                (kind, digest)
            }
            Form::File if stamp.executable => (EntryKind::Executable, self.file(&path, stamp)),
            Form::File => (EntryKind::File, self.file(&path, stamp)),
            Form::Other => {
                let error = Error::new(ErrorKind::Usage, format!("`{path}` is a fifo, a socket or a device"));
                return Err(error.hint("only files, folders and links have content; move it elsewhere"));
            }
        };
        let children = entry.children.into_iter();
        let children = children.map(|it| self.node(path.join(&it.name)?, it)).collect::<Result<_>>()?;
        Ok(Node { path, kind, stamp, digest, children })
    }

    /// A link is data, but for those into the store that `cache.link` made: they stand for files.
    fn link(&mut self, path: &RepoPath) -> Result<(EntryKind, Digest, u64)> {
        let target = self.workspace.repo.files.read_link(path)?;
        if let Some((digest, size)) = self.workspace.repo.store.linked(&target) {
            return Ok((EntryKind::File, digest, size));
        }
        let digest = match &mut self.writer {
            Some(writer) => writer.put_bytes(&target)?,
            None => Digest::of(&target),
        };
        Ok((EntryKind::Link, digest, target.len() as u64))
    }

    /// The digest from the index, or a job.
    fn file(&mut self, path: &RepoPath, stamp: Stamp) -> Digest {
        self.present.insert(path.clone());
        let known = self.workspace.index.borrow().vouch(path, &stamp);
        match (known, &self.writer) {
            (Some(digest), None) => digest,
            (Some(digest), Some(writer)) if writer.contains(&digest) => digest,
            _ => {
                self.jobs.push(Job { path: path.clone(), stamp });
                unread()
            }
        }
    }

    /// Reads all jobs, in order, many at a time.
    fn run(&mut self, progress: &dyn Progress) -> Result<Vec<Digest>> {
        let total = self.jobs.iter().map(|it| it.stamp.size).sum();
        if total > BATCH {
            progress.event(Event::Started { task: "reading", total: Some(total) });
        }
        let jobs = std::mem::take(&mut self.jobs);
        let mut digests = Vec::with_capacity(jobs.len());
        for batch in batches(&jobs) {
            let tick = fs::tick();
            for (job, digest) in batch.iter().zip(self.batch(batch)?) {
                self.workspace.index.borrow_mut().learn(job.path.clone(), &job.stamp, digest, tick);
                digests.push(digest);
            }
            progress.event(Event::Advanced { by: batch.iter().map(|it| it.stamp.size).sum() });
        }
        progress.event(Event::Finished);
        Ok(digests)
    }

    fn batch(&mut self, batch: &[Job]) -> Result<Vec<Digest>> {
        let files = &self.workspace.repo.files;
        if let [job] = batch
            && job.stamp.size > WHOLE
        {
            return Ok(vec![self.large(job)?]);
        }
        let store = self.writer.is_some();
        let read = batch.par_iter().map(|job| {
            let bytes = read(&files.open_file(&job.path)?, job)?;
            Ok((Digest::of(&bytes), if store { bytes } else { Vec::new() }))
        });
        let read = read.collect::<Result<Vec<_>>>()?;
        if let Some(writer) = &mut self.writer {
            read.iter().try_for_each(|(digest, bytes)| writer.put(Kind::Content, *digest, bytes))?;
        }
        Ok(read.into_iter().map(|it| it.0).collect())
    }

    fn large(&self, job: &Job) -> Result<Digest> {
        let mut file = self.workspace.repo.files.open_file(&job.path)?;
        let (digest, size) = match &self.writer {
            Some(_) => self.workspace.repo.store.put_large(&mut file),
            None => digest_file(&mut file),
        }
        .doing(|| format!("cannot read `{}`", job.path))?;
        if size == job.stamp.size && is_as_before(&file, &job.stamp) { Ok(digest) } else { Err(changed(job)) }
    }
}

/// Runs of small files that are read together; each large one alone.
fn batches(jobs: &[Job]) -> Vec<&[Job]> {
    let mut found = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, job) in jobs.iter().enumerate() {
        let alone = job.stamp.size > WHOLE;
        if at > start && (alone || bytes + job.stamp.size > BATCH || at - start >= BATCH_FILES) {
            found.push(&jobs[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += job.stamp.size;
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

/// The whole of a small file, if it is one and the same from start to end.
fn read(mut file: &File, job: &Job) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(job.stamp.size).unwrap_or(0) + 1);
    let limit = job.stamp.size + 1;
    file.by_ref().take(limit).read_to_end(&mut bytes).doing(|| format!("cannot read `{}`", job.path))?;
    if bytes.len() as u64 == job.stamp.size && is_as_before(file, &job.stamp) {
        Ok(bytes)
    } else {
        Err(changed(job))
    }
}

fn is_as_before(file: &File, stamp: &Stamp) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().is_ok_and(|it| {
        let mtime = it.mtime().saturating_mul(1_000_000_000).saturating_add(it.mtime_nsec());
        (it.len(), mtime, it.ino()) == (stamp.size, stamp.mtime, stamp.inode)
    })
}

fn changed(job: &Job) -> Error {
    Error::new(ErrorKind::Conflict, format!("`{}` changed while it was read", job.path))
        .hint("wait until nothing writes to it, then try again")
}

/// Refuses links that lead out of the folder that is tracked.
pub(super) fn check_links(workspace: &Workspace<'_>, node: &Node, top: &RepoPath) -> Result<()> {
    let mut leaves = Vec::new();
    node.leaves(&mut leaves);
    for leaf in leaves.iter().filter(|it| it.kind == EntryKind::Link) {
        let target = workspace.repo.files.read_link(&leaf.path)?;
        stays_inside(&leaf.path, top, &target)?;
    }
    Ok(())
}

/// Refuses a link at `link` to `target` that leads out of the folder `top`.
pub(super) fn stays_inside(link: &RepoPath, top: &RepoPath, target: &[u8]) -> Result<()> {
    if is_inside(link, top, target) {
        return Ok(());
    }
    let message = format!("the link `{link}` leads out of `{top}`: to `{}`", show(target));
    Err(Error::new(ErrorKind::Denied, message).hint("put what it points to in the folder, or remove it"))
}

fn is_inside(link: &RepoPath, root: &RepoPath, target: &[u8]) -> bool {
    let Some(below) = link.below(root).and_then(|it| it.parent()) else { return false };
    let mut depth = below.components().count();
    if target.starts_with(b"/") {
        return false;
    }
    for name in target.split(|&it| it == b'/') {
        match name {
            b"" | b"." => {}
            b".." if depth == 0 => return false,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_may_not_climb_out() {
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        let inside = |target: &[u8]| is_inside(&path("data/a/l"), &path("data"), target);
        assert!(inside(b"x") && inside(b"../x") && inside(b"b/../../x"));
        assert!(!inside(b"/etc/passwd") && !inside(b"../../x") && !inside(b"../../data/x"));
    }

    #[test]
    fn large_files_are_read_alone() {
        let path = RepoPath::from_text("x").unwrap();
        let job = |size| Job {
            path: path.clone(),
            stamp: Stamp { form: Form::File, executable: false, size, mtime: 0, ctime: 0, inode: 0 },
        };
        let jobs = [job(1), job(2), job(WHOLE + 1), job(3), job(WHOLE), job(WHOLE + 9)];
        let sizes: Vec<usize> = batches(&jobs).iter().map(|it| it.len()).collect();
        assert_eq!(sizes, [2, 1, 2, 1]);
        assert!(batches(&[]).is_empty());
    }
}
