//! Verifies every stored byte against its digest, and quarantines damaged files; nothing is ever deleted.
//!
//! A gc may move objects meanwhile: before a pack is reported as missing, its index is checked to still
//! exist.

use std::{
    collections::{BTreeSet, HashSet},
    io::Write as _,
    sync::{Arc, PoisonError},
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Kind as ErrorKind, Result, WithContext},
    fs::{self, LinkKind, Mode, Sync},
    path::RepoPath,
    progress::{Event, Progress},
    store::{
        CachedRun, Index, Kind, LeaseRecord, Packed, Store, chunked::ListState, file_path, repack::Repacker,
    },
};

/// The damaged thing, with its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A small file or a page of a folder, in a pack.
    Object(Digest),
    /// A file over 1 MiB, stored as a file of its own.
    LargeFile(Digest),
    /// Bytes of a pack outside of its objects, or a pack that is missing.
    Pack(Digest),
    Index(Digest),
    Run(Digest),
    /// The list of the chunks of a large file.
    Chunks(Digest),
}

/// A stored thing that does not match its digest.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: FaultKind,
    /// File in the store.
    pub file: RepoPath,
    pub why: &'static str,
}

/// Amounts that were checked, and the faults that were found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    pub objects: u64,
    pub bytes: u64,
    pub packs: u64,
    pub runs: u64,
    pub faults: Vec<Fault>,
    /// Objects that were stored and of which no intact copy is left.
    pub lost: BTreeSet<Digest>,
}

impl FaultKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Object(_) => "object",
            Self::LargeFile(_) => "file",
            Self::Pack(_) => "pack",
            Self::Index(_) => "index",
            Self::Run(_) => "run",
            Self::Chunks(_) => "list of chunks",
        }
    }

    pub fn digest(self) -> Digest {
        match self {
            Self::Object(it)
            | Self::LargeFile(it)
            | Self::Pack(it)
            | Self::Index(it)
            | Self::Run(it)
            | Self::Chunks(it) => it,
        }
    }
}

impl Store {
    /// Reads every pack, large file and run record and compares it with its digest.
    pub fn verify(&self, progress: &dyn Progress) -> Result<VerifyReport> {
        self.refresh()?;
        let mut report = VerifyReport::default();
        let large_files = self.list_files("objects")?;
        let (indexes, packs) = self.pack_files()?;
        let total = large_files.iter().map(|it| it.size).chain(packs.values().map(|it| it.size)).sum();
        progress.event(Event::Started { task: "reading", total: Some(total) });
        for name in indexes.keys() {
            self.verify_pack(name, &mut report)?;
            progress.event(Event::Advanced { by: packs.get(name).map_or(0, |it| it.size) });
        }
        let checked = large_files.par_iter().map(|file| {
            let intact = self.large_is_intact(&file.digest);
            progress.event(Event::Advanced { by: file.size });
            (file, intact)
        });
        for (stored, intact) in checked.collect::<Vec<_>>() {
            report.objects += 1;
            report.bytes += stored.size;
            if intact == Some(false) {
                let file = file_path("objects", &stored.digest.hex(), "")?;
                let why = "its content does not match its digest";
                report.faults.push(Fault { kind: FaultKind::LargeFile(stored.digest), file, why });
                report.lost.insert(stored.digest);
            }
        }
        self.verify_chunk_lists(&mut report)?;
        self.verify_runs(&mut report)?;
        progress.event(Event::Finished);
        let is_packed = |digest: &Digest| self.intact_copy(digest, &|_| true).is_some();
        // A damaged object with an intact copy elsewhere is not lost.
        let is_chunked = |digest: &Digest| self.list_state(digest) == ListState::Right;
        report.lost.retain(|digest| {
            !is_packed(digest) && self.large_is_intact(digest) != Some(true) && !is_chunked(digest)
        });
        Ok(report)
    }

    /// Returns true if a large file matches its digest; `None` if it does not exist (any more).
    fn large_is_intact(&self, digest: &Digest) -> Option<bool> {
        let path = file_path("objects", &digest.hex(), "").ok()?;
        let read = self.root.open_file(&path).and_then(|file| crate::store::digest_file(&file));
        match read {
            Ok((found, _)) => Some(found == *digest),
            Err(_) if self.large(digest).is_none() => None,
            // A file that the disk fails to read counts as damaged.
            Err(_) => Some(false),
        }
    }

    fn verify_pack(&self, name: &Digest, report: &mut VerifyReport) -> Result<()> {
        let (index_file, pack_file) =
            (file_path("packs", &name.hex(), ".idx")?, file_path("packs", &name.hex(), ".pack")?);
        let index = match self.root.read_if_exists(&index_file) {
            Ok(Some(bytes)) => Index::parse(bytes).ok(),
            Ok(None) => return Ok(()),
            Err(_) => None,
        };
        let pack = match self.root.read(&pack_file) {
            // This is a shortage of this process, for example of file handles, not damage to the pack.
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            read => read.ok(),
        };
        let was_removed = || -> Result<bool> { Ok(self.root.stat(&index_file)?.is_none()) };
        report.packs += 1;
        let Some(pack) = pack else {
            if !was_removed()? {
                let why = "its pack is missing or cannot be read";
                report.faults.push(Fault { kind: FaultKind::Pack(*name), file: index_file, why });
                report.lost.extend(index.iter().flat_map(Index::rows).map(|it| it.digest));
            }
            return Ok(());
        };
        let embedded = Index::from_pack(&pack).ok();
        let wrong = match (&index, &embedded) {
            (None, _) => Some("it is incomplete or damaged"),
            (Some(index), Some(embedded)) if index.bytes() != embedded.bytes() => {
                Some("it differs from the copy in its pack")
            }
            _ => None,
        };
        if let Some(why) = wrong {
            report.faults.push(Fault { kind: FaultKind::Index(*name), file: index_file, why });
        }
        let before = report.faults.len();
        // If the two differ, the one at the end of the pack is right: the pack's name covers it.
        let matches = Digest::of(&pack) == *name;
        let index = if wrong.is_some() || matches { embedded.or(index) } else { index };
        for row in index.iter().flat_map(|index| damaged_rows(index, &pack, report)).collect::<Vec<_>>() {
            let why = "its content does not match its digest";
            report.faults.push(Fault { kind: FaultKind::Object(row), file: pack_file.clone(), why });
            report.lost.insert(row);
        }
        if !matches && before == report.faults.len() {
            let why = "its content does not match its digest, but its objects are intact";
            report.faults.push(Fault { kind: FaultKind::Pack(*name), file: pack_file, why });
        }
        Ok(())
    }

    fn verify_runs(&self, report: &mut VerifyReport) -> Result<()> {
        for run in self.list_files("runs")? {
            let file = file_path("runs", &run.digest.hex(), "")?;
            let Some(bytes) = self.root.read_if_exists(&file)? else { continue };
            report.runs += 1;
            if CachedRun::parse(&run.digest, &bytes).is_err() {
                let why = "it is damaged or belongs to another run";
                report.faults.push(Fault { kind: FaultKind::Run(run.digest), file, why });
            }
        }
        Ok(())
    }

    /// Writes missing indexes again, from the copies in their packs.
    pub fn rebuild_indexes(&self) -> Result<()> {
        self.load_orphan_packs()?.iter().try_for_each(|name| self.rebuild_index(name))
    }

    /// Moves damaged files into quarantine; intact objects of a damaged pack are copied into a new pack
    /// first. An index that is damaged alone is written again from its pack. Returns the packs that stay,
    /// since running commands rely on them.
    pub fn quarantine(&self, report: &VerifyReport) -> Result<BTreeSet<Digest>> {
        self.rebuild_indexes()?;
        let mut packs = BTreeSet::new();
        for fault in &report.faults {
            match fault.kind {
                FaultKind::Object(_) | FaultKind::Pack(_) => {
                    let name = fault.file.name().split(|&it| it == b'.').next();
                    let name = name.and_then(|it| std::str::from_utf8(it).ok());
                    packs.extend(name.and_then(|it| Digest::from_hex(it).ok()));
                }
                FaultKind::Index(name) => self.rebuild_index(&name)?,
                // Another command stored an intact copy meanwhile.
                FaultKind::LargeFile(digest) if self.large_is_intact(&digest) == Some(true) => {}
                // Its other chunks may be needed once those that it lacks are back.
                FaultKind::Chunks(digest) if self.list_state(&digest) != ListState::Wrong => {}
                FaultKind::Chunks(digest) => {
                    self.move_to_quarantine(&fault.file)?;
                    self.rewrite_list(&digest)?;
                }
                FaultKind::LargeFile(digest) => {
                    self.save_chunks(&digest)?;
                    self.move_to_quarantine(&fault.file)?;
                }
                FaultKind::Run(_) => self.move_to_quarantine(&fault.file)?,
            }
        }
        let mut staying = BTreeSet::new();
        for name in packs {
            if !self.salvage(&name)? {
                staying.insert(name);
            }
        }
        for digest in report.lost.iter().filter(|digest| self.large_is_intact(digest) != Some(true)) {
            self.mark_damaged(digest);
        }
        Ok(staying)
    }

    /// Loads packs that lost their index file, using the index inside the pack, for this process only;
    /// returns their names.
    pub fn load_orphan_packs(&self) -> Result<Vec<Digest>> {
        let (indexes, packs) = self.pack_files()?;
        let Some(folder) = self.dir_if_exists("packs")?.map(Arc::new) else { return Ok(Vec::new()) };
        let mut recovered = Vec::new();
        for name in packs.into_keys().filter(|name| !indexes.contains_key(name)) {
            let Some(bytes) = self.root.read_if_exists(&file_path("packs", &name.hex(), ".pack")?)? else {
                continue;
            };
            let Ok(index) = Index::from_pack(&bytes) else { continue };
            if Digest::of(&bytes) == name {
                let packed = Packed { index, name, folder: Arc::clone(&folder), file: None };
                self.packs.write().unwrap_or_else(PoisonError::into_inner).insert(packed);
                recovered.push(name);
            }
        }
        Ok(recovered)
    }

    /// Marks lost objects as damaged, so that they count as absent and are stored again when they are next
    /// added. A damaged large file is moved into quarantine.
    pub fn mark_lost(&self, report: &VerifyReport) {
        report.lost.iter().for_each(|it| self.mark_damaged(it));
    }

    /// Moves a file into quarantine.
    pub(super) fn move_to_quarantine(&self, file: &RepoPath) -> Result<()> {
        if self.root.stat(file)?.is_none() {
            return Ok(());
        }
        self.root.rename(file, &file_path("quarantine", &self.quarantine_name(file)?, "")?)
    }

    /// Links or copies a file into quarantine before an intact file replaces it or it is removed.
    fn copy_to_quarantine(&self, file: &RepoPath) -> Result<()> {
        if self.root.stat(file)?.is_none() {
            return Ok(());
        }
        let (dir, name) = (self.dir("quarantine")?, self.quarantine_name(file)?);
        if fs::link_into(&self.root, file, &dir, name.as_bytes(), Mode::Plain, &[LinkKind::Hardlink])?
            .is_none()
        {
            self.root.write(&file_path("quarantine", &name, "")?, &self.root.read(file)?, Sync::Now)?;
        }
        Ok(())
    }

    /// Returns a free name in quarantine; a file of the same name there has other damage, and both are kept.
    fn quarantine_name(&self, file: &RepoPath) -> Result<String> {
        let mut name = String::from_utf8_lossy(file.name()).into_owned();
        while self.root.stat(&file_path("quarantine", &name, "")?)?.is_some() {
            name.push('+');
        }
        Ok(name)
    }

    /// Writes a pack's index again, from the copy in the pack.
    pub(super) fn rebuild_index(&self, name: &Digest) -> Result<()> {
        let (file, pack) =
            (file_path("packs", &name.hex(), ".idx")?, file_path("packs", &name.hex(), ".pack")?);
        let Ok(index) = Index::from_pack(&self.root.read(&pack)?) else { return Ok(()) };
        self.copy_to_quarantine(&file)?;
        let mut temp = self.create_temp("packs", 0o666)?;
        temp.write_all(index.bytes()).context(|| "cannot write a pack index".into())?;
        temp.publish(file.name(), Sync::Now)?;
        self.forget_pack(name);
        self.refresh().map(drop)
    }

    /// Copies the intact objects of a damaged pack into a new one, and moves the damaged pack into
    /// quarantine. As for a gc, the new pack is synced first, and the old one goes while the gate is locked,
    /// its index before its bytes. Returns false if a running command has pinned it: then it stays.
    fn salvage(&self, name: &Digest) -> Result<bool> {
        let (index, pack) =
            (file_path("packs", &name.hex(), ".idx")?, file_path("packs", &name.hex(), ".pack")?);
        self.copy_to_quarantine(&index)?;
        self.copy_to_quarantine(&pack)?;
        self.dir("quarantine")?.sync()?;
        let mut repacker = Repacker::new(self);
        let packed = self.packs().get(name).cloned();
        if let Some(packed) = packed {
            let intact = packed.index.rows().filter(|row| packed.read(row).is_ok());
            repacker.copy_rows(name, &intact.collect::<Vec<_>>())?;
        }
        // If only the end of the pack was damaged, the new pack has the same name and has replaced it.
        let is_replaced = repacker.finish()?.contains(name);
        if !is_replaced {
            let _gate = self.lock_gate()?;
            let counts = |lease: &LeaseRecord| lease.alive || self.sharing_clone.is_some();
            if self.leases()?.iter().any(|lease| counts(lease) && lease.pinned.contains(name)) {
                return Ok(false);
            }
            self.root.remove(&index)?;
            // Otherwise a power failure might bring back the index without its pack.
            self.dir("packs")?.sync()?;
            self.root.remove(&pack)?;
        }
        self.forget_pack(name);
        self.refresh()?;
        Ok(true)
    }
}

/// Returns the objects of a pack whose bytes do not match their digests, and adds all to the report's totals.
fn damaged_rows(index: &Index, pack: &[u8], report: &mut VerifyReport) -> Vec<Digest> {
    let rows: Vec<_> = index.rows().filter(|it| matches!(it.kind, Kind::Content | Kind::Tree)).collect();
    report.objects += rows.len() as u64;
    report.bytes += rows.iter().map(|it| it.stored).sum::<u64>();
    let wrong = rows.par_iter().filter(|row| {
        let start = usize::try_from(row.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(row.stored).unwrap_or(usize::MAX));
        pack.get(start..end).is_none_or(|stored| row.decode(stored).is_err())
    });
    let wrong: HashSet<Digest> = wrong.map(|it| it.digest).collect();
    wrong.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fs::Root, progress::Silent, store::Writer};

    fn store(temp: &tempfile::TempDir) -> Store {
        Store::open(Root::open(temp.path()).unwrap()).unwrap()
    }

    /// Stores a pack of three objects, one of them damaged.
    fn damaged(temp: &tempfile::TempDir) -> [Digest; 3] {
        let store = store(temp);
        let mut writer = Writer::new(&store);
        let digests = [b"one", b"two", b"six"].map(|it| writer.put_bytes(it).unwrap());
        writer.finish().unwrap();
        let name = *store.packs().keys().next().unwrap();
        let path = file_path("packs", &name.hex(), ".pack").unwrap();
        let mut bytes = store.root().read(&path).unwrap();
        bytes[8] ^= 1;
        store.root().write(&path, &bytes, Sync::Later).unwrap();
        digests
    }

    #[test]
    fn a_damaged_object_is_reported_and_its_neighbors_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let [one, two, six] = damaged(&temp);
        let store = store(&temp);
        let report = store.verify(&Silent).unwrap();
        assert_eq!(report.faults.iter().map(|it| it.kind).collect::<Vec<_>>(), [FaultKind::Object(one)]);
        assert_eq!(report.lost, BTreeSet::from([one]));
        store.quarantine(&report).unwrap();
        let store = self::store(&temp);
        assert_eq!(
            (store.read(&two).unwrap(), store.read(&six).unwrap()),
            (b"two".to_vec(), b"six".to_vec())
        );
        assert!(!store.contains(&one));
        assert_eq!(fs::names(&temp.path().join("quarantine")).len(), 2, "the pack and its index");
        assert!(store.verify(&Silent).unwrap().faults.is_empty());
    }

    #[test]
    fn a_damaged_pack_that_a_running_command_relies_on_stays() {
        let temp = tempfile::tempdir().unwrap();
        let [one, two, six] = damaged(&temp);
        let running = store(&temp);
        assert!(running.pin(&two));
        let repair = store(&temp);
        let report = repair.verify(&Silent).unwrap();
        let name = *running.packs().keys().next().unwrap();
        assert_eq!(repair.quarantine(&report).unwrap(), BTreeSet::from([name]));
        let open = store(&temp);
        assert_eq!((open.read(&two).unwrap(), open.read(&six).unwrap()), (b"two".to_vec(), b"six".to_vec()));
        assert!(!open.contains(&one) && running.read(&two).is_ok());
        drop(running);
        let (repair, report) = (store(&temp), store(&temp).verify(&Silent).unwrap());
        assert_eq!(repair.quarantine(&report).unwrap(), BTreeSet::new());
        assert!(store(&temp).verify(&Silent).unwrap().faults.is_empty());
    }

    #[test]
    fn an_intact_copy_that_came_after_the_check_stays() {
        let temp = tempfile::tempdir().unwrap();
        let open = store(&temp);
        let mut source = open.root().dir(&RepoPath::root()).unwrap().create(0o644).unwrap();
        std::io::Write::write_all(&mut source, &vec![7; 2 << 20]).unwrap();
        let (digest, _) = open.put_large(&source.reopen().unwrap(), &|_, _| Ok(())).unwrap();
        let path = file_path("objects", &digest.hex(), "").unwrap();
        open.root().write(&path, b"damaged", Sync::Later).unwrap();
        let report = open.verify(&Silent).unwrap();
        assert_eq!(report.lost, BTreeSet::from([digest]));
        open.root().write(&path, &vec![7; 2 << 20], Sync::Later).unwrap();
        open.quarantine(&report).unwrap();
        assert!(store(&temp).contains(&digest) && store(&temp).is_intact(&digest));
    }

    #[test]
    fn a_damaged_index_is_rebuilt_from_its_pack() {
        let temp = tempfile::tempdir().unwrap();
        let digest = {
            let store = store(&temp);
            let mut writer = Writer::new(&store);
            let digest = writer.put_bytes(b"one").unwrap();
            writer.finish().unwrap();
            digest
        };
        let name = *store(&temp).packs().keys().next().unwrap();
        let path = file_path("packs", &name.hex(), ".idx").unwrap();
        store(&temp).root().write(&path, b"nonsense", Sync::Later).unwrap();
        let store = store(&temp);
        let report = store.verify(&Silent).unwrap();
        assert_eq!(report.faults.iter().map(|it| it.kind).collect::<Vec<_>>(), [FaultKind::Index(name)]);
        assert!(report.lost.is_empty());
        store.quarantine(&report).unwrap();
        assert!(self::store(&temp).verify(&Silent).unwrap().faults.is_empty());
        assert_eq!(self::store(&temp).read(&digest).unwrap(), b"one");
    }

    #[test]
    fn a_missing_index_is_rebuilt_unless_its_pack_is_damaged() {
        let temp = tempfile::tempdir().unwrap();
        let [_, two, _] = damaged(&temp);
        let name = *store(&temp).packs().keys().next().unwrap();
        let file = |ending| file_path("packs", &name.hex(), ending).unwrap();
        store(&temp).root().remove(&file(".idx")).unwrap();
        assert!(store(&temp).load_orphan_packs().unwrap().is_empty(), "the pack does not match its name");
        let store = store(&temp);
        let mut bytes = store.root().read(&file(".pack")).unwrap();
        bytes[8] ^= 1;
        store.root().write(&file(".pack"), &bytes, Sync::Later).unwrap();
        assert_eq!(store.load_orphan_packs().unwrap(), [name]);
        assert_eq!(store.read(&two).unwrap(), b"two");
        assert!(!self::store(&temp).contains(&two), "only for this process");
        store.quarantine(&VerifyReport::default()).unwrap();
        assert_eq!(self::store(&temp).read(&two).unwrap(), b"two");
        assert!(store.load_orphan_packs().unwrap().is_empty(), "all indexes are rebuilt");
    }

    #[test]
    fn an_index_without_its_pack_lists_the_lost_objects() {
        let temp = tempfile::tempdir().unwrap();
        let [one, two, six] = damaged(&temp);
        let name = *store(&temp).packs().keys().next().unwrap();
        store(&temp).root().remove(&file_path("packs", &name.hex(), ".pack").unwrap()).unwrap();
        let report = store(&temp).verify(&Silent).unwrap();
        assert_eq!(report.faults[0].kind, FaultKind::Pack(name));
        assert_eq!(report.lost, BTreeSet::from([one, two, six]));
    }

    /// Removes a file as soon as a task starts.
    struct Removing<'r>(&'r Root, RepoPath);

    impl Progress for Removing<'_> {
        fn event(&self, event: Event<'_>) {
            if let Event::Started { .. } = event {
                self.0.remove(&self.1).unwrap();
            }
        }
    }

    #[test]
    fn a_large_file_that_is_removed_meanwhile_is_no_fault() {
        let temp = tempfile::tempdir().unwrap();
        let store = store(&temp);
        let mut source = store.root().dir(&RepoPath::root()).unwrap().create(0o644).unwrap();
        std::io::Write::write_all(&mut source, &vec![7; 2 << 20]).unwrap();
        let (digest, _) = store.put_large(&source.reopen().unwrap(), &|_, _| Ok(())).unwrap();
        let path = file_path("objects", &digest.hex(), "").unwrap();
        let report = store.verify(&Removing(store.root(), path)).unwrap();
        assert_eq!((report.objects, report.faults.len(), report.lost.len()), (1, 0, 0));
    }
}
