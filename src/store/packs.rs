//! The packs of a local store by their names, and the search for those that hold an object.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use crate::{
    digest::Digest,
    store::{Lookup, Packed},
};

/// Number of packs up to which each is searched.
const MAX_SEARCHED: usize = 16;

/// The packs of a store.
#[derive(Default)]
pub(super) struct Packs {
    by_name: BTreeMap<Digest, Arc<Packed>>,
    lookup: Option<Lookup>,
    /// Packs that were added since the lookup was made.
    recent: Vec<Digest>,
}

impl Packs {
    /// Adds a pack, or replaces one whose index was wrong.
    pub fn insert(&mut self, packed: Packed) {
        self.recent.push(packed.name);
        self.by_name.insert(packed.name, Arc::new(packed));
    }

    pub fn remove(&mut self, name: &Digest) {
        self.by_name.remove(name);
    }

    /// Prepares for searches among the packs that were added.
    pub fn prepare(&mut self) {
        if self.recent.len() > MAX_SEARCHED {
            self.lookup = Some(Lookup::new(self.by_name.iter().map(|(name, packed)| (name, &packed.index))));
            self.recent.clear();
        }
    }

    /// Returns the packs that may hold an object.
    pub fn candidates(&self, digest: &Digest) -> impl Iterator<Item = &Arc<Packed>> {
        let found =
            self.lookup.iter().flat_map(|lookup| lookup.find(digest).map(|number| lookup.pack(number)));
        found.chain(&self.recent).filter_map(|name| self.by_name.get(name))
    }
}

impl Deref for Packs {
    type Target = BTreeMap<Digest, Arc<Packed>>;

    fn deref(&self) -> &Self::Target {
        &self.by_name
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        fs::Root,
        store::{Store, Writer, packs::MAX_SEARCHED},
    };

    #[test]
    fn an_object_is_searched_in_few_packs() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        let put = |number: usize| {
            let mut writer = Writer::new(&store);
            let digest = writer.put_bytes(&number.to_le_bytes()).unwrap();
            writer.finish().unwrap();
            digest
        };
        let digests: Vec<_> = (0..3 * MAX_SEARCHED).map(put).collect();
        for digest in &digests {
            assert!(store.contains(digest));
            assert!(store.packs().candidates(digest).count() <= MAX_SEARCHED);
        }
        let reopened = Store::open(Root::open(temp.path()).unwrap()).unwrap();
        assert!(digests.iter().all(|digest| reopened.packs().candidates(digest).count() == 1));
        let pack = reopened.pack_of(&digests[0]).unwrap();
        reopened.forget_pack(&pack);
        assert!(!reopened.contains(&digests[0]) && reopened.contains(&digests[1]));
    }
}
