//! What another user of this machine wrote into a shared store is looked at whole before it is relied on: an index
//! may promise what its pack does not hold. What was looked at is remembered, by what the file system says of it,
//! in the clone, where nobody else writes.

use rayon::prelude::*;

use crate::{
    digest::Digest,
    error::Result,
    fs::{Root, Sync},
    path::RepoPath,
    store::{Index, Store, place},
};

/// The clone that works with a shared store.
pub struct Sharer {
    pub id: String,
    /// Where what was verified is remembered.
    pub memory: Root,
}

impl Store {
    /// As this one, shared by several clones and users; this is which.
    pub fn shared_by(mut self, clone: Sharer) -> Self {
        self.clone = Some(clone);
        self
    }

    /// Whether a pack is ours, or is what its name says, with everything in it.
    pub(super) fn trusts_pack(&self, name: &Digest) -> Result<bool> {
        let files = [place("packs", &name.hex(), ".pack")?, place("packs", &name.hex(), ".idx")?];
        self.trusts(name, &files, &|| {
            let Some(packed) = self.packs().get(name).cloned() else { return Ok(false) };
            let bytes = self.root.read(&files[0])?;
            let whole = Digest::of(&bytes) == *name
                && Index::of_pack(&bytes).is_ok_and(|it| it.bytes() == packed.index.bytes());
            let rows: Vec<_> = packed.index.rows().collect();
            Ok(whole && rows.par_iter().all(|it| packed.read(it).is_ok()))
        })
    }

    /// As [`Store::trusts_pack`], of a whole file.
    pub(super) fn trusts_large(&self, digest: &Digest) -> Result<bool> {
        let file = place("objects", &digest.hex(), "")?;
        self.trusts(digest, std::slice::from_ref(&file), &|| Ok(self.is_sound(digest)))
    }

    fn trusts(&self, name: &Digest, files: &[RepoPath], verify: &dyn Fn() -> Result<bool>) -> Result<bool> {
        let Some(clone) = &self.clone else { return Ok(true) };
        let mut foreign = false;
        for file in files {
            foreign |= self.root.is_foreign(file)?;
        }
        if !foreign {
            return Ok(true);
        }
        let known = place("verified", &name.hex(), "")?;
        let looks = self.looks(files)?;
        if clone.memory.read_if_there(&known)?.is_some_and(|it| it == looks.as_bytes()) {
            return Ok(true);
        }
        let sound = verify()?;
        if sound {
            clone.memory.write(&known, looks.as_bytes(), Sync::Later)?;
        } else {
            self.distrust(name);
        }
        Ok(sound)
    }

    /// What the file system says of files: if it says the same again, nobody wrote to them.
    fn looks(&self, files: &[RepoPath]) -> Result<String> {
        let mut text = String::new();
        for file in files {
            if let Some(it) = self.root.stamp(file)? {
                text.push_str(&format!("{} {} {} {}\n", it.size, it.mtime, it.ctime, it.inode));
            }
        }
        Ok(text)
    }
}
