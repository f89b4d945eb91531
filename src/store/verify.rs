//! Every byte of the store against its name; what is damaged is put aside, never thrown away.
//!
//! A gc may move objects while this reads: before a pack is accused, it is looked whether it is still there.

use std::{
    collections::{BTreeSet, HashSet},
    io::Write as _,
    sync::{Arc, PoisonError},
};

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::{Doing, Kind as ErrorKind, Result},
    fs::{self, Link, Mode, Sync},
    path::RepoPath,
    progress::{Event, Progress},
    store::{Index, Kind, Packed, Run, Store, place, sweep::Mover},
};

/// What kind of thing is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A small file or a page of a folder in a pack.
    Object(Digest),
    /// A file that is stored whole.
    Whole(Digest),
    /// Bytes of a pack outside of its objects, or a pack that is gone.
    Pack(Digest),
    Index(Digest),
    Run(Digest),
}

/// One thing that is not what its name says.
#[derive(Clone, Debug)]
pub struct Fault {
    pub what: What,
    /// The file in the store.
    pub file: RepoPath,
    pub why: &'static str,
}

/// What was looked at and what is wrong with it.
#[derive(Debug, Default)]
pub struct Verified {
    pub objects: u64,
    pub bytes: u64,
    pub packs: u64,
    pub runs: u64,
    pub faults: Vec<Fault>,
    /// Objects of which no sound copy is here though they were stored.
    pub lost: BTreeSet<Digest>,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            Self::Object(_) => "object",
            Self::Whole(_) => "file",
            Self::Pack(_) => "pack",
            Self::Index(_) => "index",
            Self::Run(_) => "run",
        }
    }

    pub fn digest(self) -> Digest {
        match self {
            Self::Object(it) | Self::Whole(it) | Self::Pack(it) | Self::Index(it) | Self::Run(it) => it,
        }
    }
}

impl Store {
    /// Reads everything and compares it with its name.
    pub fn verify(&self, progress: &dyn Progress) -> Result<Verified> {
        self.refresh()?;
        let mut found = Verified::default();
        let whole = self.whole_files("objects")?;
        let (indexes, packs) = self.pack_names()?;
        let total = whole.iter().map(|it| it.size).chain(packs.values().map(|it| it.size)).sum();
        progress.event(Event::Started { task: "reading", total: Some(total) });
        for name in indexes.keys() {
            self.verify_pack(name, &mut found)?;
            progress.event(Event::Advanced { by: packs.get(name).map_or(0, |it| it.size) });
        }
        let sound = whole.par_iter().map(|it| {
            let sound = self.large_as_named(&it.digest);
            progress.event(Event::Advanced { by: it.size });
            (it, sound)
        });
        for (it, sound) in sound.collect::<Vec<_>>() {
            found.objects += 1;
            found.bytes += it.size;
            if sound == Some(false) {
                let file = place("objects", &it.digest.hex(), "")?;
                let why = "its bytes are not what its name says";
                found.faults.push(Fault { what: What::Whole(it.digest), file, why });
                found.lost.insert(it.digest);
            }
        }
        self.verify_runs(&mut found)?;
        progress.event(Event::Finished);
        let sound =
            |it: &Digest| self.sound_copy(it, &|_| true).is_some() || self.large_as_named(it) == Some(true);
        // A damaged copy beside a sound one is no loss.
        found.lost.retain(|it| !sound(it));
        Ok(found)
    }

    /// Nothing when it is not there (any more).
    fn large_as_named(&self, digest: &Digest) -> Option<bool> {
        let read = self.large(digest)?.open().and_then(|it| crate::store::digest_file(&it));
        match read {
            Ok((is, _)) => Some(is == *digest),
            Err(_) if self.large(digest).is_none() => None,
            // What the disk does not give back is as good as wrong.
            Err(_) => Some(false),
        }
    }

    fn verify_pack(&self, name: &Digest, found: &mut Verified) -> Result<()> {
        let (index_file, pack_file) =
            (place("packs", &name.hex(), ".idx")?, place("packs", &name.hex(), ".pack")?);
        let index = match self.root.read_if_there(&index_file) {
            Ok(Some(bytes)) => Index::parse(bytes).ok(),
            Ok(None) => return Ok(()),
            Err(_) => None,
        };
        let pack = match self.root.read(&pack_file) {
            // That is our own trouble, and says nothing of the pack.
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            read => read.ok(),
        };
        let gone = || -> Result<bool> { Ok(self.root.stamp(&index_file)?.is_none()) };
        found.packs += 1;
        let Some(pack) = pack else {
            if !gone()? {
                let why = "its pack is gone or cannot be read";
                found.faults.push(Fault { what: What::Pack(*name), file: index_file, why });
                found.lost.extend(index.iter().flat_map(Index::rows).map(|it| it.digest));
            }
            return Ok(());
        };
        let own = Index::of_pack(&pack).ok();
        let wrong = match (&index, &own) {
            (None, _) => Some("it is not whole"),
            (Some(index), Some(own)) if index.bytes() != own.bytes() => Some("it is not that of its pack"),
            _ => None,
        };
        if let Some(why) = wrong {
            found.faults.push(Fault { what: What::Index(*name), file: index_file, why });
        }
        let before = found.faults.len();
        // Where the two differ, the one at the end of the pack is covered by the pack's name.
        let whole = Digest::of(&pack) == *name;
        let index = if wrong.is_some() || whole { own.or(index) } else { index };
        for row in index.iter().flat_map(|it| wrong_rows(it, &pack, found)).collect::<Vec<_>>() {
            let why = "its bytes are not what its name says";
            found.faults.push(Fault { what: What::Object(row), file: pack_file.clone(), why });
            found.lost.insert(row);
        }
        if !whole && before == found.faults.len() {
            let why = "its bytes are not what its name says, though its objects are sound";
            found.faults.push(Fault { what: What::Pack(*name), file: pack_file, why });
        }
        Ok(())
    }

    fn verify_runs(&self, found: &mut Verified) -> Result<()> {
        for it in self.whole_files("runs")? {
            let file = place("runs", &it.digest.hex(), "")?;
            let Some(bytes) = self.root.read_if_there(&file)? else { continue };
            found.runs += 1;
            if Run::parse(&it.digest, &bytes).is_err() {
                let why = "it is not whole, or belongs to another run";
                found.faults.push(Fault { what: What::Run(it.digest), file, why });
            }
        }
        Ok(())
    }

    /// Writes indexes that are lost anew, from the copies in their packs.
    pub fn regain(&self) -> Result<()> {
        self.adopt()?.iter().try_for_each(|it| self.mend_index(it))
    }

    /// Puts the damaged aside: sound neighbors in the same pack move into a new one first. An index that is
    /// damaged alone is written anew from its pack.
    pub fn put_aside(&self, verified: &Verified) -> Result<()> {
        self.regain()?;
        let mut packs = BTreeSet::new();
        for fault in &verified.faults {
            match fault.what {
                What::Object(_) | What::Pack(_) => {
                    let name = fault.file.name().split(|&it| it == b'.').next();
                    let name = name.and_then(|it| std::str::from_utf8(it).ok());
                    packs.extend(name.and_then(|it| Digest::from_hex(it).ok()));
                }
                What::Index(name) => self.mend_index(&name)?,
                What::Whole(_) | What::Run(_) => self.to_quarantine(&fault.file)?,
            }
        }
        for name in packs {
            self.salvage(&name)?;
        }
        for digest in &verified.lost {
            self.mark_damaged(digest);
        }
        Ok(())
    }

    /// Reads packs that have lost their index by the copy they carry, as long as this process lives; which they are.
    pub fn adopt(&self) -> Result<Vec<Digest>> {
        let (indexes, packs) = self.pack_names()?;
        let Some(folder) = self.dir_if_there("packs")?.map(Arc::new) else { return Ok(Vec::new()) };
        let mut adopted = Vec::new();
        for name in packs.into_keys().filter(|it| !indexes.contains_key(it)) {
            let Some(bytes) = self.root.read_if_there(&place("packs", &name.hex(), ".pack")?)? else {
                continue;
            };
            let Ok(index) = Index::of_pack(&bytes) else { continue };
            if Digest::of(&bytes) == name {
                let packed = Packed { index, name, folder: Arc::clone(&folder), file: None };
                self.packs.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(packed));
                adopted.push(name);
            }
        }
        Ok(adopted)
    }

    /// Counts what is lost as absent from now on, so that whoever has it stores it again.
    pub fn mark_lost(&self, verified: &Verified) {
        verified.lost.iter().for_each(|it| self.mark_damaged(it));
    }

    /// Moves a file into the quarantine.
    pub(super) fn to_quarantine(&self, file: &RepoPath) -> Result<()> {
        if self.root.stamp(file)?.is_none() {
            return Ok(());
        }
        self.root.rename(file, &place("quarantine", &self.quarantine_name(file)?, "")?)
    }

    /// Gives a file a second name in the quarantine: its first is about to be taken by a sound one.
    fn keep_aside(&self, file: &RepoPath) -> Result<()> {
        if self.root.stamp(file)?.is_none() {
            return Ok(());
        }
        let (dir, name) = (self.dir("quarantine")?, self.quarantine_name(file)?);
        if fs::place(&self.root, file, &dir, name.as_bytes(), Mode::Plain, &[Link::Hardlink])?.is_none() {
            self.root.write(&place("quarantine", &name, "")?, &self.root.read(file)?, Sync::Yes)?;
        }
        Ok(())
    }

    /// A file that has this name there already has other damage: both stay.
    fn quarantine_name(&self, file: &RepoPath) -> Result<String> {
        let mut name = String::from_utf8_lossy(file.name()).into_owned();
        while self.root.stamp(&place("quarantine", &name, "")?)?.is_some() {
            name.push('+');
        }
        Ok(name)
    }

    /// Writes a pack's index anew, from the copy in the pack.
    pub(super) fn mend_index(&self, name: &Digest) -> Result<()> {
        let (file, pack) = (place("packs", &name.hex(), ".idx")?, place("packs", &name.hex(), ".pack")?);
        let Ok(index) = Index::of_pack(&self.root.read(&pack)?) else { return Ok(()) };
        self.keep_aside(&file)?;
        let mut temp = self.create("packs", 0o666)?;
        temp.write_all(index.bytes()).doing(|| "cannot write a pack index".into())?;
        temp.publish(file.name(), Sync::Yes)?;
        self.forget(name);
        self.refresh().map(drop)
    }

    fn salvage(&self, name: &Digest) -> Result<()> {
        let (index, pack) = (place("packs", &name.hex(), ".idx")?, place("packs", &name.hex(), ".pack")?);
        self.keep_aside(&index)?;
        self.keep_aside(&pack)?;
        let mut mover = Mover::new(self);
        let packed = self.packs().get(name).cloned();
        if let Some(packed) = packed {
            let sound = packed.index.rows().filter(|it| packed.read(it).is_ok());
            mover.take(name, &sound.collect::<Vec<_>>())?;
        }
        self.forget(name);
        // Where only its end was damaged, the new pack is called as the old one was, and has taken its place.
        if !mover.finish()?.contains(name) {
            self.root.remove(&index)?;
            self.root.remove(&pack)?;
        }
        Ok(())
    }
}

/// Objects of a pack that its bytes do not hold.
fn wrong_rows(index: &Index, pack: &[u8], found: &mut Verified) -> Vec<Digest> {
    let rows: Vec<_> = index.rows().filter(|it| matches!(it.kind, Kind::Content | Kind::Tree)).collect();
    found.objects += rows.len() as u64;
    found.bytes += rows.iter().map(|it| it.stored).sum::<u64>();
    let wrong = rows.par_iter().filter(|row| {
        let start = usize::try_from(row.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(row.stored).unwrap_or(usize::MAX));
        pack.get(start..end).is_none_or(|it| row.decode(it).is_err())
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

    /// A pack of three objects, one of them damaged.
    fn damaged(temp: &tempfile::TempDir) -> [Digest; 3] {
        let store = store(temp);
        let mut writer = Writer::new(&store);
        let digests = [b"one", b"two", b"six"].map(|it| writer.put_bytes(it).unwrap());
        writer.finish().unwrap();
        let name = *store.packs().keys().next().unwrap();
        let path = place("packs", &name.hex(), ".pack").unwrap();
        let mut bytes = store.root().read(&path).unwrap();
        bytes[8] ^= 1;
        store.root().write(&path, &bytes, Sync::Later).unwrap();
        digests
    }

    #[test]
    fn one_wrong_object_is_named_and_its_neighbors_are_saved() {
        let temp = tempfile::tempdir().unwrap();
        let [one, two, six] = damaged(&temp);
        let store = store(&temp);
        let verified = store.verify(&Silent).unwrap();
        assert_eq!(verified.faults.iter().map(|it| it.what).collect::<Vec<_>>(), [What::Object(one)]);
        assert_eq!(verified.lost, BTreeSet::from([one]));
        store.put_aside(&verified).unwrap();
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
    fn a_damaged_index_is_made_anew_from_its_pack() {
        let temp = tempfile::tempdir().unwrap();
        let digest = {
            let store = store(&temp);
            let mut writer = Writer::new(&store);
            let digest = writer.put_bytes(b"one").unwrap();
            writer.finish().unwrap();
            digest
        };
        let name = *store(&temp).packs().keys().next().unwrap();
        let path = place("packs", &name.hex(), ".idx").unwrap();
        store(&temp).root().write(&path, b"nonsense", Sync::Later).unwrap();
        let store = store(&temp);
        let verified = store.verify(&Silent).unwrap();
        assert_eq!(verified.faults.iter().map(|it| it.what).collect::<Vec<_>>(), [What::Index(name)]);
        assert!(verified.lost.is_empty());
        store.put_aside(&verified).unwrap();
        assert!(self::store(&temp).verify(&Silent).unwrap().faults.is_empty());
        assert_eq!(self::store(&temp).read(&digest).unwrap(), b"one");
    }

    #[test]
    fn a_pack_that_lost_its_index_gets_it_back_and_a_damaged_one_does_not() {
        let temp = tempfile::tempdir().unwrap();
        let [_, two, _] = damaged(&temp);
        let name = *store(&temp).packs().keys().next().unwrap();
        let file = |ending| place("packs", &name.hex(), ending).unwrap();
        store(&temp).root().remove(&file(".idx")).unwrap();
        assert!(store(&temp).adopt().unwrap().is_empty(), "it is not what its name says");
        let store = store(&temp);
        let mut bytes = store.root().read(&file(".pack")).unwrap();
        bytes[8] ^= 1;
        store.root().write(&file(".pack"), &bytes, Sync::Later).unwrap();
        assert_eq!(store.adopt().unwrap(), [name]);
        assert_eq!(store.read(&two).unwrap(), b"two");
        assert!(!self::store(&temp).contains(&two), "only for this process");
        store.put_aside(&Verified::default()).unwrap();
        assert_eq!(self::store(&temp).read(&two).unwrap(), b"two");
        assert!(store.adopt().unwrap().is_empty(), "there is nothing left to do");
    }

    #[test]
    fn an_index_without_its_pack_says_what_is_lost() {
        let temp = tempfile::tempdir().unwrap();
        let [one, two, six] = damaged(&temp);
        let name = *store(&temp).packs().keys().next().unwrap();
        store(&temp).root().remove(&place("packs", &name.hex(), ".pack").unwrap()).unwrap();
        let verified = store(&temp).verify(&Silent).unwrap();
        assert_eq!(verified.faults[0].what, What::Pack(name));
        assert_eq!(verified.lost, BTreeSet::from([one, two, six]));
    }
}
