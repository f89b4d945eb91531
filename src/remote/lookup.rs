//! Finds the packs that may hold an object, among all packs of a remote, by one search.

use std::collections::BTreeMap;

use crate::{digest::Digest, store::Index};

/// Start of each object's digest with the number of its pack, sorted: sixteen bytes for each object.
pub struct Lookup {
    packs: Vec<Digest>,
    rows: Vec<(u64, u32)>,
}

impl Lookup {
    /// Creates a lookup over the objects of these packs.
    pub fn new(indexes: &BTreeMap<Digest, Index>) -> Self {
        let rows = indexes
            .values()
            .zip(0_u32..)
            .flat_map(|(index, number)| index.rows().map(move |row| (start_of(&row.digest), number)));
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable();
        rows.dedup();
        Self { packs: indexes.keys().copied().collect(), rows }
    }

    /// Returns the packs with an object whose digest starts as this one does, in the order of their names.
    pub fn packs(&self, digest: &Digest) -> impl Iterator<Item = &Digest> {
        let start = start_of(digest);
        let first = self.rows.partition_point(|row| row.0 < start);
        let same = self.rows[first..].iter().take_while(move |row| row.0 == start);
        same.map(|row| &self.packs[row.1 as usize])
    }
}

fn start_of(digest: &Digest) -> u64 {
    u64::from_be_bytes(digest.bytes()[..8].try_into().expect("a digest has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Kind, pack};

    #[test]
    fn all_packs_of_an_object_are_found() {
        let digest = |number: u32| Digest::of(&number.to_le_bytes());
        let packs = [&[1, 2][..], &[2, 3], &[4]].map(|numbers| {
            let bytes: Vec<_> = numbers.iter().map(|number: &u32| number.to_le_bytes()).collect();
            let objects: Vec<_> =
                bytes.iter().map(|bytes| (Kind::Content, Digest::of(bytes), &bytes[..])).collect();
            let (name, _, index) = pack(&objects).unwrap();
            (name, Index::parse(index).unwrap())
        });
        let names = packs.each_ref().map(|(name, _)| *name);
        let lookup = Lookup::new(&BTreeMap::from(packs));
        let found = |number| lookup.packs(&digest(number)).copied().collect::<Vec<_>>();
        let mut both = vec![names[0], names[1]];
        both.sort();
        assert_eq!((found(1), found(3), found(4)), (vec![names[0]], vec![names[1]], vec![names[2]]));
        assert_eq!((found(2), found(5)), (both, Vec::new()));
    }
}
