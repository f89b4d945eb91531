//! Finds the packs that may hold an object, among many, by one search.

use crate::{digest::Digest, store::Index};

/// Start of each object's digest with the number of its pack, sorted: sixteen bytes for each object.
pub struct Lookup {
    packs: Vec<Digest>,
    rows: Vec<(u64, u32)>,
}

impl Lookup {
    /// Creates a lookup over the objects of these packs.
    pub fn new<'i>(indexes: impl Iterator<Item = (&'i Digest, &'i Index)>) -> Self {
        let (mut packs, mut rows) = (Vec::new(), Vec::new());
        for (name, index) in indexes {
            let number = packs.len() as u32;
            rows.extend(index.rows().map(|row| (start_of(&row.digest), number)));
            packs.push(*name);
        }
        rows.sort_unstable();
        rows.dedup();
        Self { packs, rows }
    }

    /// Returns the numbers of the packs with an object whose digest starts as this one does, in the order in
    /// which the packs were given.
    pub fn find(&self, digest: &Digest) -> impl Iterator<Item = u32> {
        let start = start_of(digest);
        let first = self.rows.partition_point(|row| row.0 < start);
        self.rows[first..].iter().take_while(move |row| row.0 == start).map(|row| row.1)
    }

    /// Returns the name of a pack by its number.
    pub fn pack(&self, number: u32) -> &Digest {
        &self.packs[number as usize]
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
        let lookup = Lookup::new(packs.iter().map(|(name, index)| (name, index)));
        let found =
            |number| lookup.find(&digest(number)).map(|number| *lookup.pack(number)).collect::<Vec<_>>();
        let both = vec![names[0], names[1]];
        assert_eq!((found(1), found(3), found(4)), (vec![names[0]], vec![names[1]], vec![names[2]]));
        assert_eq!((found(2), found(5)), (both, Vec::new()));
    }
}
