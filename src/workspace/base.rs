//! Bases: which tree this worktree last had for each tracked path, and which parts of it were here.
//!
//! `add`, `commit` and `repro` merge against them: a file that is missing here counts as deleted only if the
//! base lists it. Unlike the index this is not a cache. A path enters a base only after its file is in place;
//! before a checkout, the tree it is going to is noted as a second one, so that a killed checkout looks like
//! a mixture of both and not like edits. A file that is lost, damaged, of another version or of another
//! folder (of a copied clone) leaves all bases unknown, in which case nothing counts as deleted. A base whose
//! trees the store lost is unknown, too. Damaged ones stop a merge, since `fsck --repair` may bring them
//! back.
//!
//! A base may be ahead of the record: Git went back to a version that the base was made from, and mlx did not
//! check it out (`git checkout main`). Then a file that is added by its own path is recorded although the
//! record differs from the base, since others did not change it. In a folder that is added as a whole it
//! stays a conflict: what else the other branch has must not get into this one unnoticed.
//!
//! ```text
//! "mlxbase" 1 │ inode of the work tree, 8 bytes, little-endian │ number of rows │ rows │ BLAKE3
//! row         path │ 1 if complete, 1 byte │ number of contents │ contents
//! content     1 byte: 0 nothing, 1 file, 2 executable, 3 tree │ unless nothing: size │ files │ digest
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    error::{Kind, Result, WithContext},
    fs::{Lock, Sync},
    git::{BlobId, HeadLines},
    path::RepoPath,
    pointer::{Content, ContentKind, Pointer},
    progress::{Progress, Silent},
    repo::Repo,
    store::{EntryKind, Store, TreeEntry, Writer, update_folder},
    wire::{Reader, put_bytes, put_varint},
    workspace::{
        Node, Workspace,
        compare::{as_entry, differences},
        merge::{Base, Merge, Mine, is_same, merge},
        siblings::recorded_entry,
        steering::is_tracking_file,
    },
};

const MAGIC: &[u8; 8] = b"mlxbase\x01";

/// Base of one tracked path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    complete: bool,
    /// The content it last had; while a checkout is under way, also the one it is going to.
    contents: Vec<Option<Content>>,
}

impl Row {
    /// Returns the row of a path that nothing is known about.
    fn unknown() -> Self {
        Self { complete: false, contents: vec![None] }
    }

    /// Returns the row with these entries in each of its contents. If these cannot be read, only the entries
    /// are known: the files and pointers that they are of have changed already.
    fn with_parts(&self, store: &Store, entries: &BTreeMap<RepoPath, Option<TreeEntry>>) -> Result<Self> {
        match with_parts(store, &self.contents, entries) {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => {
                Ok(Self { complete: false, contents: with_parts(store, &[None], entries)? })
            }
            contents => Ok(Self { complete: self.complete, contents: contents? }),
        }
    }
}

/// A change of a row.
#[derive(Clone, Debug)]
enum Step {
    /// The workspace has this content, whole.
    Whole(Content),
    /// The workspace has these entries, or lacks them.
    Parts {
        entries: BTreeMap<RepoPath, Option<TreeEntry>>,
        /// The recorded content, if a checkout of these parts of it ends.
        ended: Option<Content>,
    },
    /// A checkout of this content begins; `true` if nothing exists at the path yet.
    Begin(Content, bool),
    Forget,
}

/// The bases of a worktree, with the changes that are not saved yet.
#[derive(Default)]
pub struct Bases {
    rows: BTreeMap<RepoPath, Row>,
    /// True if there was no valid file of this worktree.
    is_lost: bool,
    /// Bytes of the file that was loaded.
    loaded: Option<Vec<u8>>,
    unsaved: Vec<(RepoPath, Step)>,
    /// Parts of one path that are not applied yet: many together cost as much as one.
    queued: Option<(RepoPath, Step)>,
    /// Paths of which this process began a checkout.
    begun: BTreeSet<RepoPath>,
}

impl Bases {
    /// Name of the file in a worktree's private folder.
    pub const FILE: &str = "base";

    /// Loads the bases; without a valid file of this worktree there are none.
    pub fn load(repo: &Repo) -> Result<Self> {
        // An unreadable file counts as missing.
        let loaded = repo.private.read_if_exists(&RepoPath::from_text(Self::FILE)?).unwrap_or_default();
        let inode = inode(repo)?;
        let rows = loaded.as_deref().and_then(|bytes| parse(bytes, inode).ok());
        Ok(Self { is_lost: rows.is_none(), rows: rows.unwrap_or_default(), loaded, ..Self::default() })
    }

    /// Returns the contents that the file with these bytes names, whichever worktree it is of.
    pub fn contents(bytes: &[u8]) -> Vec<Content> {
        let inode = bytes.get(8..16).map_or(0, |it| u64::from_le_bytes(it.try_into().expect("8 bytes")));
        let rows = parse(bytes, inode).unwrap_or_default();
        rows.into_values().flat_map(|row| row.contents).flatten().collect()
    }

    /// Returns the content that each path last had; while a checkout is under way, the one it is going to.
    fn last_contents(&self) -> impl Iterator<Item = Pointer> {
        let last = |row: &Row| row.contents.iter().flatten().last().copied();
        self.rows
            .iter()
            .filter_map(move |(path, row)| Some(Pointer { path: path.clone(), content: last(row)? }))
    }

    fn base(&self, path: &RepoPath) -> Base {
        let Some(row) = self.rows.get(path) else { return Base::unknown() };
        let contents = row.contents.iter().map(|content| content.as_ref().map(as_entry)).collect();
        Base { contents, complete: row.complete }
    }

    fn apply(&mut self, store: &Store, path: &RepoPath, step: &Step) -> Result<()> {
        match step {
            Step::Whole(content) => {
                let row = Row { complete: true, contents: vec![Some(*content)] };
                self.rows.insert(path.clone(), row);
            }
            Step::Forget => drop(self.rows.remove(path)),
            Step::Begin(content, new) => {
                let unknown = Row { complete: *new, contents: vec![None] };
                let row = self.rows.entry(path.clone()).or_insert(unknown);
                if !row.contents.contains(&Some(*content)) {
                    row.contents.push(Some(*content));
                }
            }
            Step::Parts { entries, ended } => {
                let mut row = self.rows.get(path).cloned().unwrap_or_else(Row::unknown);
                // Only the parts of it are here now.
                row.contents.retain(|content| content.is_none() || content != ended);
                self.rows.insert(path.clone(), row.with_parts(store, entries)?);
            }
        }
        Ok(())
    }

    fn change(&mut self, store: &Store, path: &RepoPath, step: Step) -> Result<()> {
        match (&mut self.queued, &step) {
            (Some((other, Step::Parts { entries, ended })), Step::Parts { entries: more, ended: end })
                if other == path && ended == end =>
            {
                entries.extend(more.iter().map(|(path, entry)| (path.clone(), entry.clone())));
                return Ok(());
            }
            _ => self.flush(store)?,
        }
        self.queued = Some((path.clone(), step));
        Ok(())
    }

    /// Applies what is queued.
    fn flush(&mut self, store: &Store) -> Result<()> {
        let Some((path, step)) = self.queued.take() else { return Ok(()) };
        self.apply(store, &path, &step)?;
        self.unsaved.push((path, step));
        Ok(())
    }

    /// Replaces the file on disk; changes that another process saved meanwhile are kept.
    fn save_locked(&mut self, repo: &Repo, _lock: &Lock) -> Result<()> {
        self.flush(&repo.store)?;
        let path = RepoPath::from_text(Self::FILE)?;
        let steps = std::mem::take(&mut self.unsaved);
        if repo.private.read_if_exists(&path)? != self.loaded {
            *self = Self::load(repo)?;
            steps.iter().try_for_each(|(path, step)| self.apply(&repo.store, path, step))?;
        }
        let bytes = print(&self.rows, inode(repo)?);
        if self.loaded.as_ref() != Some(&bytes) {
            repo.private.write(&path, &bytes, Sync::Now)?;
            self.loaded = Some(bytes);
        }
        Ok(())
    }
}

impl Workspace<'_> {
    /// Returns the content that this worktree last had at each path.
    pub(super) fn last_contents(&self) -> Vec<Pointer> {
        self.bases.borrow().last_contents().collect()
    }

    /// Returns true unless this worktree is known not to have had a tracked path.
    pub(super) fn may_have_base(&self, path: &RepoPath) -> bool {
        self.are_bases_lost() || self.bases.borrow().rows.contains_key(path)
    }

    /// Returns true if nothing tells what this worktree last had.
    pub(super) fn are_bases_lost(&self) -> bool {
        self.bases.borrow().is_lost
    }

    /// Returns the base of a tracked path.
    pub(super) fn base(&self, path: &RepoPath) -> Result<Base> {
        let mut bases = self.bases.borrow_mut();
        bases.flush(&self.repo.store)?;
        Ok(bases.base(path))
    }

    /// Returns true if a command of mlx put exactly this content at a tracked path.
    pub fn is_base(&self, path: &RepoPath, content: &Content) -> bool {
        let bases = self.bases.borrow();
        bases.rows.get(path).is_some_and(|row| row.complete && row.contents == [Some(*content)])
    }

    /// Returns the base of the path `below` in a tracked one.
    pub(super) fn base_at(&self, path: &RepoPath, below: &RepoPath) -> Result<Base> {
        let base = self.base(path)?.at(&self.repo.store, below);
        Ok(unless_lost(base)?.unwrap_or_else(Base::unknown))
    }

    /// Merges the workspace's change of `part`, a path in `pointer`'s, into the recorded content.
    pub(super) fn merge_part(&self, pointer: &Pointer, part: &RepoPath, mine: &Mine<'_>) -> Result<Merge> {
        let below = part.strip_prefix(&pointer.path).expect("the part is in the tracked path");
        let theirs = recorded_entry(&self.repo.store, pointer, part)?;
        self.merge_below(pointer, &below, &below, mine, theirs.as_ref())
    }

    /// Merges the change of the path `below` in `pointer`'s into `theirs`; the paths of the result begin with
    /// `at`.
    fn merge_below(
        &self,
        pointer: &Pointer,
        below: &RepoPath,
        at: &RepoPath,
        mine: &Mine<'_>,
        theirs: Option<&TreeEntry>,
    ) -> Result<Merge> {
        let store = &self.repo.store;
        let base = self.base_at(&pointer.path, below)?;
        match unless_lost(merge(store, at, &base, mine, theirs))? {
            Some(done) => Ok(self.resolve(pointer, below, done, &base, mine, theirs)),
            None => merge(store, at, &Base::unknown(), mine, theirs),
        }
    }

    /// Resolves the conflict of a path as mine if it is a file on all three sides and the base is ahead of
    /// theirs.
    fn resolve(
        &self,
        pointer: &Pointer,
        below: &RepoPath,
        done: Merge,
        base: &Base,
        mine: &Mine<'_>,
        theirs: Option<&TreeEntry>,
    ) -> Merge {
        let (Some(at), Some(own), Some(theirs), [Some(base)]) =
            (done.conflicts.first(), mine.entry(), theirs, &base.contents[..])
        else {
            return done;
        };
        let are_files = [base, &own, theirs].iter().all(|side| side.kind != EntryKind::Folder);
        if !are_files || !self.is_ahead(pointer, below, base, theirs) {
            return done;
        }
        Merge { changes: BTreeMap::from([(at.clone(), Some(own))]), ..Merge::default() }
    }

    /// Returns true if Git's history proves that the base of the path `below` was made from the recorded
    /// version and that no commit changed that since: the base is what a commit records that HEAD was at
    /// before, and the path is the same in all commits that HEAD has and that one has not.
    fn is_ahead(&self, pointer: &Pointer, below: &RepoPath, base: &TreeEntry, theirs: &TreeEntry) -> bool {
        let (git, file) = (&self.repo.git, pointer.file());
        let entry = |blob: BlobId| {
            let found = Pointer::parse(pointer.path.clone(), &git.read_blob(blob).ok()?).ok()?;
            let part = pointer.path.join_path(below).ok()?;
            recorded_entry(&self.repo.store, &found, &part).ok().flatten()
        };
        let records = |blob: BlobId, wanted: &TreeEntry| is_same(entry(blob).as_ref(), Some(wanted));
        let at_head = || git.blob(&git.head()?, &file).ok().flatten();
        // A history that cannot be read proves nothing.
        at_head().is_some_and(|blob| records(blob, theirs))
            && self.head_lines().is_some_and(|lines| {
                let is_theirs = |old: BlobId, new: BlobId| records(old, theirs) && records(new, theirs);
                lines.is_unchanged_since(git, &file, &|blob| records(blob, base), &is_theirs).unwrap_or(false)
            })
    }

    /// Returns what Git tells of the pointers and lockfiles where HEAD was before, if it tells anything.
    pub(super) fn head_lines(&self) -> Option<&HeadLines> {
        let read = || self.repo.git.head_lines(is_tracking_file).ok().flatten();
        self.head_lines.get_or_init(read).as_ref()
    }

    /// Returns the content that `part`, scanned as `node`, would have if it were recorded and then pulled;
    /// `None` if that is what is here.
    pub fn content_with_absent(
        &self,
        pointer: &Pointer,
        part: &RepoPath,
        node: &Node,
    ) -> Result<Option<Content>> {
        if part == &pointer.path && node.content() == pointer.content {
            return Ok(None);
        }
        let store = &self.repo.store;
        let below = part.strip_prefix(&pointer.path).expect("the part is in the tracked path");
        let comparing = || format!("cannot compare `{part}` with its record");
        let theirs = recorded_entry(store, pointer, part).context(comparing)?;
        let Some(theirs) = theirs else { return Ok(None) };
        let (root, mine) = (RepoPath::root(), Mine::Scanned(node));
        let merged = self.merge_below(pointer, &below, &root, &mine, Some(&theirs)).context(comparing)?;
        merged.check(part)?;
        if merged.is_here() { Ok(None) } else { merged.apply(None, store, &theirs.content()).map(Some) }
    }

    /// Returns the first recorded path that is not here and never was, if anything of `pointer` is here.
    /// Without the recorded tree no part of it was ever here, so that what is here is another one.
    pub fn first_absent(&self, pointer: &Pointer) -> Result<Option<RepoPath>> {
        let (path, store) = (&pointer.path, &self.repo.store);
        let Some(node) = self.scan(path, &Silent)? else { return Ok(None) };
        let was_here = |missing: &RepoPath| {
            let base = self.base_at(path, &missing.strip_prefix(path).unwrap_or_default());
            base.is_ok_and(|base| base.contents.iter().any(Option::is_some))
        };
        let found = unless_lost(differences(store, path, Some(&as_entry(&pointer.content)), Some(&node)))?;
        let missing = found.into_iter().flatten().filter(|difference| difference.new.is_none());
        Ok(missing.map(|difference| difference.path).find(|missing| !was_here(missing)))
    }

    /// Notes that the workspace has this content at a tracked path.
    pub fn note_base(&self, path: &RepoPath, content: Content) -> Result<()> {
        self.bases.borrow_mut().change(&self.repo.store, path, Step::Whole(content))
    }

    /// Notes which entries of a tracked path the workspace has (`None` for those that it lacks now).
    pub(super) fn note_base_parts(
        &self,
        path: &RepoPath,
        entries: BTreeMap<RepoPath, Option<TreeEntry>>,
    ) -> Result<()> {
        self.note_parts(path, entries, None)
    }

    fn note_parts(
        &self,
        path: &RepoPath,
        entries: BTreeMap<RepoPath, Option<TreeEntry>>,
        ended: Option<Content>,
    ) -> Result<()> {
        let step = match entries.get(&RepoPath::root()) {
            Some(Some(entry)) => Step::Whole(entry.content()),
            Some(None) => Step::Forget,
            None => Step::Parts { entries, ended },
        };
        self.bases.borrow_mut().change(&self.repo.store, path, step)
    }

    /// Forgets the base of a path that is not tracked anymore.
    pub(super) fn forget_base(&self, path: &RepoPath) -> Result<()> {
        self.bases.borrow_mut().change(&self.repo.store, path, Step::Forget)
    }

    /// Notes durably that a checkout of these pointers begins. Many at once cost as much as one.
    pub fn begin_checkout<'p>(
        &self,
        pointers: impl IntoIterator<Item = &'p Pointer>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut durable = false;
        self.bases.borrow_mut().flush(&self.repo.store)?;
        for pointer in pointers {
            let path = &pointer.path;
            let row = self.bases.borrow().rows.get(path).cloned();
            if row.as_ref().is_some_and(|row| row.contents.contains(&Some(pointer.content))) {
                continue;
            }
            let new = row.is_none() && self.repo.files.stat(path)?.is_none();
            durable |= row.is_some();
            let step = Step::Begin(pointer.content, new);
            let mut bases = self.bases.borrow_mut();
            bases.begun.insert(path.clone());
            bases.change(&self.repo.store, path, step)?;
        }
        if durable { self.save_bases(progress) } else { Ok(()) }
    }

    /// Notes the end of a checkout of parts of a path: they are as recorded, but for the paths in `skipped`.
    pub(super) fn end_checkout(
        &self,
        pointer: &Pointer,
        recorded: Vec<(&RepoPath, Option<TreeEntry>)>,
        skipped: &[RepoPath],
    ) -> Result<()> {
        let below = |path: &RepoPath| path.strip_prefix(&pointer.path).unwrap_or_default();
        let begun = self.bases.borrow().begun.contains(&pointer.path);
        let ended = begun.then_some(pointer.content);
        let entries = recorded.into_iter().map(|(part, recorded)| (below(part), recorded)).collect();
        self.note_parts(&pointer.path, entries, ended)?;
        if skipped.is_empty() {
            return Ok(());
        }
        self.note_base_parts(&pointer.path, skipped.iter().map(|path| (below(path), None)).collect())
    }

    pub(super) fn has_unsaved_bases(&self) -> bool {
        let bases = self.bases.borrow();
        !bases.unsaved.is_empty() || bases.queued.is_some()
    }

    /// Writes the changed bases to disk, under a short lock.
    pub(super) fn save_bases(&self, progress: &dyn Progress) -> Result<()> {
        if !self.has_unsaved_bases() {
            return Ok(());
        }
        let lock = self.repo.lock_with_progress(progress)?;
        self.bases.borrow_mut().save_locked(self.repo, &lock)
    }
}

/// Returns `None` instead of the error about a tree that the store lost.
fn unless_lost<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Puts entries into each of the contents that a path may have.
fn with_parts(
    store: &Store,
    old: &[Option<Content>],
    entries: &BTreeMap<RepoPath, Option<TreeEntry>>,
) -> Result<Vec<Option<Content>>> {
    let mut writer = Writer::new(store);
    let mut contents = Vec::new();
    for content in old {
        let tree = content.filter(|content| content.kind == ContentKind::Tree).map(|content| content.digest);
        let content = Some(update_folder(Some(&mut writer), store, tree.as_ref(), entries)?);
        if !contents.contains(&content) {
            contents.push(content);
        }
    }
    writer.finish()?;
    Ok(contents)
}

/// Returns the inode of the work tree's top folder: that of a copy is another one, that of a moved clone is
/// not.
fn inode(repo: &Repo) -> Result<u64> {
    Ok(repo.files.stat(&RepoPath::root())?.map_or(0, |stat| stat.inode))
}

fn print(rows: &BTreeMap<RepoPath, Row>, inode: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&inode.to_le_bytes());
    put_varint(&mut out, rows.len() as u64);
    for (path, row) in rows {
        put_bytes(&mut out, path.bytes());
        out.push(row.complete.into());
        put_varint(&mut out, row.contents.len() as u64);
        for content in &row.contents {
            let Some(content) = content else {
                out.push(0);
                continue;
            };
            out.push(match content.kind {
                ContentKind::File => 1,
                ContentKind::Executable => 2,
                ContentKind::Tree => 3,
            });
            put_varint(&mut out, content.size);
            put_varint(&mut out, content.files);
            out.extend_from_slice(content.digest.bytes());
        }
    }
    let check = Digest::of(&out);
    out.extend_from_slice(check.bytes());
    out
}

fn parse(bytes: &[u8], inode: u64) -> Result<BTreeMap<RepoPath, Row>> {
    let (body, check) = bytes.split_at(bytes.len().saturating_sub(32));
    let mut reader = Reader::new(body, "the file of bases");
    reader.expect_magic(MAGIC)?;
    if Digest::of(body).bytes()[..] != *check || reader.take(8)? != inode.to_le_bytes() {
        return Err(reader.corrupt("is damaged, or of another folder"));
    }
    let mut rows = BTreeMap::new();
    for _ in 0..reader.varint()? {
        let path = RepoPath::from_bytes(reader.bytes()?)?;
        let complete = reader.byte()? != 0;
        let mut contents = Vec::new();
        for _ in 0..reader.varint()? {
            contents.push(parse_content(&mut reader)?);
        }
        rows.insert(path, Row { complete, contents });
    }
    reader.expect_end()?;
    Ok(rows)
}

fn parse_content(reader: &mut Reader<'_>) -> Result<Option<Content>> {
    let kind = match reader.byte()? {
        0 => return Ok(None),
        1 => ContentKind::File,
        2 => ContentKind::Executable,
        3 => ContentKind::Tree,
        _ => return Err(reader.corrupt("has an unknown kind of content")),
    };
    let (size, files) = (reader.varint()?, reader.varint()?);
    Ok(Some(Content { digest: reader.digest()?, files, kind, size }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Root;

    const INODE: u64 = 0x0102_0304_0506_0708;

    /// Returns rows with every kind of content, of a path that is complete and of one whose checkout began.
    fn rows() -> BTreeMap<RepoPath, Row> {
        let content =
            |text: &str, files, kind| Content { digest: Digest::of(text.as_bytes()), files, kind, size: 300 };
        let old = content("old", 200, ContentKind::Tree);
        let new = content("new", 1, ContentKind::Executable);
        let path = |text| RepoPath::from_text(text).expect("the path is valid");
        let file = Row { complete: true, contents: vec![Some(content("file", 1, ContentKind::File))] };
        let begun = Row { complete: false, contents: vec![None, Some(old), Some(new)] };
        BTreeMap::from([(path("a/file"), file), (path("b"), begun)])
    }

    #[test]
    fn format_1_stays_readable() {
        let golden = include_bytes!("../../fixtures/formats/base-1");
        assert_eq!(parse(golden, INODE).unwrap(), rows());
        assert_eq!(print(&rows(), INODE), golden);
        let contents: Vec<_> = rows().into_values().flat_map(|row| row.contents).flatten().collect();
        assert_eq!(Bases::contents(golden), contents);
    }

    #[test]
    fn parts_of_a_base_that_the_store_lost_are_all_that_is_known() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        let part = |text: &str| {
            let path = RepoPath::from_text(text).unwrap();
            let digest = Digest::of(text.as_bytes());
            let entry = TreeEntry { name: Box::default(), kind: EntryKind::File, size: 1, files: 1, digest };
            BTreeMap::from([(path, Some(entry))])
        };
        let a = Row { complete: true, contents: vec![None] }.with_parts(&store, &part("a")).unwrap();
        let both = a.with_parts(&store, &part("b")).unwrap();
        assert_eq!(both.contents.iter().flatten().map(|content| content.files).collect::<Vec<_>>(), [2]);
        let lost = Content { digest: Digest::of(b"lost"), files: 9, kind: ContentKind::Tree, size: 9 };
        let lost = Row { complete: true, contents: vec![Some(lost)] };
        let known = lost.with_parts(&store, &part("a")).unwrap();
        assert_eq!((a.complete, both.complete), (true, true));
        assert_eq!(known, Row { complete: false, contents: a.contents });
    }

    #[test]
    fn a_file_that_is_damaged_or_newer_or_of_another_folder_has_no_rows() {
        let bytes = print(&rows(), INODE);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(parse(&damaged, INODE).is_err(), "byte {at}");
            assert!(parse(&bytes[..at], INODE).is_err(), "{at} bytes");
        }
        assert!(parse(&bytes, INODE + 1).is_err());
        let mut newer = bytes[..bytes.len() - 32].to_vec();
        newer[7] = 2;
        let check = Digest::of(&newer);
        let error = parse(&[&newer[..], check.bytes()].concat(), INODE).unwrap_err();
        assert!(error.to_string().contains("was written by a newer mlx"), "{error}");
    }
}
