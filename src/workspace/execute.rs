//! Carries out the plan of a checkout: removes files, makes folders and writes files, in parallel. Files that
//! changed since they were scanned are left as they are.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io::Write as _,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    fs::{self, Dir, FileKind, FileStat, LinkKind, Mode, Root, TempName},
    path::RepoPath,
    pointer::Pointer,
    progress::{Event, Progress},
    store::{DiffSide, EntryKind, MAX_PACKED_SIZE, Store},
    workspace::{
        CheckoutStats, Workspace, collision,
        guard::{Guard, Guarded},
    },
};

/// Files that one thread writes before it takes the next batch, at most.
const BATCH_FILES: usize = 256;
/// Files that are written before their metadata are cached.
const MAX_WRITTEN: usize = 1 << 16;

/// A file or link to write.
#[derive(Debug)]
pub struct Write {
    pub path: RepoPath,
    pub side: DiffSide,
    /// The file or link that the scan saw there.
    pub scanned: Option<DiffSide>,
}

/// Planned changes of a checkout.
#[derive(Debug, Default)]
pub struct Plan {
    pub write: Vec<Write>,
    /// Files whose executable bit alone differs.
    pub modes: Vec<(RepoPath, EntryKind)>,
    pub folders: BTreeSet<RepoPath>,
    pub remove: Vec<(RepoPath, DiffSide)>,
    /// Digests of large files that the plan removes or overwrites.
    pub replaced: Vec<Digest>,
    /// Paths that would be overwritten or deleted and are not stored anywhere.
    pub unsaved: Vec<RepoPath>,
}

/// Result of a carried out plan.
#[derive(Debug, Default)]
pub struct Executed {
    pub stats: CheckoutStats,
    /// Files that changed since they were scanned, and stay.
    pub kept: Vec<RepoPath>,
    /// All files that were not written, for this and for other reasons.
    pub skipped: Vec<RepoPath>,
}

impl Plan {
    /// Returns true if nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        !self.writes_anything() && self.modes.is_empty() && self.remove.is_empty()
    }

    /// Adds what another plan changes.
    pub fn append(&mut self, other: Self) {
        self.write.extend(other.write);
        self.modes.extend(other.modes);
        self.folders.extend(other.folders);
        self.remove.extend(other.remove);
        self.replaced.extend(other.replaced);
        self.unsaved.extend(other.unsaved);
    }

    /// Returns true if a file or folder is to be made.
    pub fn writes_anything(&self) -> bool {
        !self.write.is_empty() || !self.folders.is_empty()
    }
}

impl Executed {
    /// Returns the counts of each of these parts of the plan's path, none of which contains another.
    pub fn stats_of(&self, plan: &Plan, parts: &[&RepoPath]) -> Vec<CheckoutStats> {
        if parts.len() == 1 {
            return vec![self.stats];
        }
        let places: HashMap<&RepoPath, usize> =
            parts.iter().enumerate().map(|(at, part)| (*part, at)).collect();
        let place = |path: &RepoPath| path.ancestors().find_map(|path| places.get(&path)).copied();
        let skipped: HashSet<&RepoPath> = self.skipped.iter().collect();
        let mut stats = vec![CheckoutStats::default(); parts.len()];
        let written = plan.write.iter().map(|write| &write.path).chain(plan.modes.iter().map(|it| &it.0));
        for at in written.filter(|path| !skipped.contains(path)).filter_map(place) {
            stats[at].written += 1;
        }
        plan.folders.iter().filter_map(place).for_each(|at| stats[at].folders += 1);
        for (path, side) in plan.remove.iter().filter(|(path, _)| !self.kept.contains(path)) {
            let Some(at) = place(path) else { continue };
            let is_folder = side.kind == EntryKind::Folder;
            *(if is_folder { &mut stats[at].folders } else { &mut stats[at].removed }) += 1;
        }
        stats
    }
}

/// Carries out the plan for a tracked path, whose contents are all stored.
pub fn execute(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<Executed> {
    let store = &workspace.repo.store;
    let large = plan.write.iter().filter(|write| write.side.size > MAX_PACKED_SIZE);
    let placed = large.map(|write| write.side.digest);
    let verified = store.verified_files(&placed.chain(plan.replaced.iter().copied()).collect::<Vec<_>>())?;
    let mut kept = {
        let index = workspace.index.borrow();
        remove(workspace, pointer, plan, &Guard::new(&index, store, plan.remove.iter().map(|it| &it.0)))?
    };
    kept.extend(make_folders(workspace, pointer, plan, progress)?);
    if plan.write.len() > BATCH_FILES {
        let total = plan.write.iter().fold(0, |sum, file| u64::saturating_add(sum, file.side.size));
        progress.event(Event::Started { task: "writing", total: Some(total) });
    }
    let (unmade, mut skipped, mut last) = (kept.clone(), Vec::new(), Vec::new());
    for files in plan.write.chunks(MAX_WRITTEN) {
        let (written, changed, left_out) = write_files(workspace, files, &unmade, progress)?;
        kept.extend(changed);
        skipped.extend(left_out);
        // Those written before these are older than the clock's tick, except the last of them.
        cache(workspace, std::mem::replace(&mut last, written));
    }
    progress.event(Event::Finished);
    for (path, kind) in &plan.modes {
        let dir = workspace.repo.files.dir(&path.parent().unwrap_or_default())?;
        dir.set_executable(path.name(), *kind == EntryKind::Executable)?;
    }
    store.refresh_verified(&verified)?;
    cache(workspace, last);
    Ok(Executed { stats: count(plan, &kept, &skipped), kept, skipped })
}

/// Writes files. Returns them, those that changed since they were scanned, and all that were not written.
fn write_files<'p>(
    workspace: &Workspace<'_>,
    write: &'p [Write],
    unmade: &[RepoPath],
    progress: &dyn Progress,
) -> Result<(Vec<Written<'p>>, Vec<RepoPath>, Vec<RepoPath>)> {
    let (index, store) = (workspace.index.borrow(), &workspace.repo.store);
    let links = workspace.repo.config.links()?;
    let context = WriteContext {
        files: &workspace.repo.files,
        store,
        links: &links,
        case_insensitive: workspace.is_case_insensitive()?,
        guard: Guard::new(&index, store, write.iter().map(|it| &it.path)),
        unmade,
        kept: Mutex::default(),
        skipped: Mutex::default(),
    };
    let batches = batches(write);
    let written =
        batches.par_iter().map(|batch| context.write(batch, progress)).collect::<Result<Vec<_>>>()?;
    let kept = context.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
    let skipped = context.skipped.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((written.into_iter().flatten().collect(), kept, skipped))
}

/// Remembers the stats of written files.
fn cache(workspace: &Workspace<'_>, written: Vec<Written<'_>>) {
    let (tick, mut index) = (fs::coarse_now(), workspace.index.borrow_mut());
    for (write, stat) in written {
        index.insert(&write.path, &stat, write.side.digest, tick);
    }
}

fn count(plan: &Plan, kept: &[RepoPath], skipped: &[RepoPath]) -> CheckoutStats {
    let removed_folders = plan.remove.iter().filter(|it| it.1.kind == EntryKind::Folder).count();
    let kept_files = plan.remove.iter().filter(|it| kept.contains(&it.0)).count();
    CheckoutStats {
        written: (plan.write.len() + plan.modes.len() - skipped.len()) as u64,
        removed: (plan.remove.len() - removed_folders - kept_files) as u64,
        folders: (plan.folders.len() + removed_folders) as u64,
    }
}

/// Removes what the plan removes, and folders that become empty; returns the files that stay.
fn remove(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    plan: &Plan,
    guard: &Guard<'_>,
) -> Result<Vec<RepoPath>> {
    let files = &workspace.repo.files;
    let mut kept = Vec::new();
    for (path, side) in &plan.remove {
        if files.stat(path)?.is_none() {
            continue;
        }
        let dir = files.dir(&path.parent().unwrap_or_default())?;
        if side.kind == EntryKind::Folder {
            // A folder that is not empty holds ignored files, or files created since the plan was made.
            dir.remove_empty(path.name());
        } else if guard.remove(&dir, path, *side)? == Guarded::Kept {
            kept.push(path.clone());
        }
        remove_empty_parents(workspace, path, &pointer.path);
    }
    Ok(kept)
}

fn remove_empty_parents(workspace: &Workspace<'_>, path: &RepoPath, top: &RepoPath) {
    let mut here = path.parent();
    while let Some(folder) = here.filter(|it| it.is_within(top) && it != top) {
        let parent = folder.parent().and_then(|path| workspace.repo.files.dir(&path).ok());
        if !parent.is_some_and(|dir| dir.remove_empty(folder.name())) {
            return;
        }
        here = folder.parent();
    }
}

/// Makes the folders of all files to write, and the empty ones. Returns the files that were saved in their
/// place since the plan was made.
fn make_folders(
    workspace: &Workspace<'_>,
    pointer: &Pointer,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<Vec<RepoPath>> {
    let files = &workspace.repo.files;
    let of_files = plan.write.iter().filter_map(|write| write.path.parent());
    let folders: BTreeSet<RepoPath> = of_files.chain(plan.folders.iter().cloned()).collect();
    let mut kept: Vec<RepoPath> = Vec::new();
    for folder in &folders {
        if kept.iter().any(|file| folder.is_within(file)) {
            continue;
        }
        match file_in_the_way(files, folder)? {
            Some(file) if file.is_within(&pointer.path) => kept.push(file),
            Some(file) => {
                let message = format!("`{file}` is a file, but `{}` needs a folder there", pointer.path);
                return Err(Error::new(Kind::Conflict, message).hint("move the file elsewhere"));
            }
            None => {
                files.create_dir(folder)?;
                workspace.clean_folder(folder, progress)?;
            }
        }
    }
    Ok(kept)
}

/// Returns a file or link where `folder` or one of its parents belongs.
fn file_in_the_way(files: &Root, folder: &RepoPath) -> Result<Option<RepoPath>> {
    let mut ancestors: Vec<_> = folder.ancestors().take_while(|it| !it.is_root()).collect();
    ancestors.reverse();
    for ancestor in ancestors {
        match files.stat(&ancestor)?.map(|it| it.kind) {
            Some(FileKind::Folder) => {}
            Some(_) => return Ok(Some(ancestor)),
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// Splits files into batches of one folder and at most [`BATCH_FILES`] each.
fn batches(write: &[Write]) -> Vec<&[Write]> {
    let folders = write.chunk_by(|a, b| a.path.parent() == b.path.parent());
    folders.flat_map(|folder| folder.chunks(BATCH_FILES)).collect()
}

/// Written file with its metadata, if no other process changed it since.
type Written<'p> = (&'p Write, FileStat);

/// Parameters of a checkout that all threads share.
struct WriteContext<'t> {
    files: &'t Root,
    store: &'t Store,
    links: &'t [LinkKind],
    /// True if names that differ in case may be one file.
    case_insensitive: bool,
    guard: Guard<'t>,
    /// Files where folders should be.
    unmade: &'t [RepoPath],
    /// Files that changed since they were scanned.
    kept: Mutex<Vec<RepoPath>>,
    /// Files not written, for this and for other reasons.
    skipped: Mutex<Vec<RepoPath>>,
}

impl WriteContext<'_> {
    fn write<'p>(&self, batch: &'p [Write], progress: &dyn Progress) -> Result<Vec<Written<'p>>> {
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        let folder = first.path.parent().unwrap_or_default();
        if self.unmade.iter().any(|file| folder.is_within(file)) {
            batch.iter().for_each(|write| self.skip(&write.path));
            return Ok(Vec::new());
        }
        let dir = self.files.dir(&folder)?;
        let mut names = if self.case_insensitive { Some(collision::SpelledNames::read(&dir)?) } else { None };
        let mut stats = Vec::with_capacity(batch.len());
        for write in batch {
            let path = &write.path;
            if names.as_mut().is_some_and(|names| names.is_taken(&dir, path.name())) {
                progress.warn(&format!(
                    "`{path}` is not written: a file with another spelling of its name exists"
                ));
                self.skip(path);
                continue;
            }
            let stat = self.write_one(&dir, write).context(|| format!("cannot write `{path}`"))?;
            stats.extend(stat.map(|stat| (write, stat)));
            progress.event(Event::Advanced { by: write.side.size });
        }
        Ok(stats)
    }

    fn skip(&self, path: &RepoPath) {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
    }

    /// Writes a file, unless another one was saved there since the scan. Returns its metadata for the index.
    fn write_one(&self, dir: &Dir, write: &Write) -> Result<Option<FileStat>> {
        let name = write.path.name();
        // Planned removals are done by now: a folder that still exists was not part of the plan.
        if dir.stat(name)?.is_some_and(|it| it.kind == FileKind::Folder) && !dir.remove_empty(name) {
            let error = Error::new(Kind::Conflict, format!("the folder `{}` is in the way", write.path));
            return Err(error.hint("it contains ignored or newly created files: move them elsewhere"));
        }
        let (temp, link, before) = self.prepare(dir, write.side)?;
        if self.guard.put(temp, &write.path, write.scanned)? == Guarded::Kept {
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(write.path.clone());
            self.skip(&write.path);
            return Ok(None);
        }
        match link {
            // For a link into the store the index keeps the stat of its target.
            Some(LinkKind::Symlink) => Ok(self.store.large(&write.side.digest).map(|it| *it.stat())),
            _ if write.side.kind == EntryKind::Link => Ok(None),
            _ => {
                let key = |stat: &FileStat| (stat.inode, stat.mtime, stat.size);
                Ok(dir.stat(name)?.filter(|after| key(after) == key(&before)))
            }
        }
    }

    /// Makes the file under a temporary name. Returns it with its metadata, and how it is linked to the
    /// store.
    fn prepare<'d>(
        &self,
        dir: &'d Dir,
        side: DiffSide,
    ) -> Result<(TempName<'d>, Option<LinkKind>, FileStat)> {
        let mode = if side.kind == EntryKind::Executable { Mode::Executable } else { Mode::Plain };
        let is_large = side.kind.is_regular() && !self.store.contains_packed(&side.digest);
        let temp = dir.temp_name();
        let placed = if is_large { self.place_large(dir, temp.name(), mode, &side.digest)? } else { None };
        let link = match placed {
            Some(link) => Some((temp, Some(link))),
            None if side.kind == EntryKind::Link => {
                dir.symlink(&self.store.read(&side.digest)?, temp.name())?;
                Some((temp, None))
            }
            None => None,
        };
        if let Some((temp, link)) = link {
            let stat = dir.stat(temp.name())?;
            let stat = stat.ok_or_else(|| Error::not_found("a temporary file vanished"))?;
            return Ok((temp, link, stat));
        }
        let bytes = self.store.read(&side.digest)?;
        let mut temp = dir.create(mode.bits())?;
        temp.write_all(&bytes).context(|| "cannot write".into())?;
        let (name, stat) = temp.leave()?;
        Ok((TempName::new(dir, name), None, stat))
    }

    /// Links or copies a large file to `temp`; `None` if it is not stored as one.
    fn place_large(&self, dir: &Dir, temp: &[u8], mode: Mode, digest: &Digest) -> Result<Option<LinkKind>> {
        if self.links.contains(&LinkKind::Symlink) && self.store.root().is_writable() {
            // The file that it links to stays.
            self.store.restore_large(digest)?;
            self.store.pin(digest);
        }
        let placed =
            self.store.with_large(digest, |large| large.link_or_copy(dir, temp, mode, self.links))?;
        if placed.is_some() {
            return Ok(placed);
        }
        let chunked = self.store.chunked(digest);
        chunked.map(|chunked| chunked.link_or_copy(dir, temp, mode, self.links)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Sync;

    #[test]
    fn a_file_or_link_in_the_place_of_a_folder_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let files = Root::open(temp.path()).unwrap();
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        files.write(&path("folder/file"), b"", Sync::Later).unwrap();
        files.dir(&path("folder")).unwrap().symlink(b"elsewhere", b"link").unwrap();
        let found = |folder: &str| file_in_the_way(&files, &path(folder)).unwrap();
        assert_eq!(found("folder/file/a/b"), Some(path("folder/file")));
        assert_eq!(found("folder/link"), Some(path("folder/link")));
        assert_eq!((found("folder"), found("folder/new/a"), found("new")), (None, None, None));
    }
}
