//! Collects contents of files, each once, in little memory.

use crate::digest::Digest;

/// Number of contents below which duplicates of them stay in memory.
const MIN_DUPLICATES: usize = 1 << 14;

/// Digests and sizes of contents.
#[derive(Default)]
pub struct Contents {
    found: Vec<(Digest, u64)>,
    /// Number of contents when duplicates were last removed.
    distinct: usize,
}

impl Contents {
    /// Adds a content of `size` bytes.
    pub fn insert(&mut self, digest: Digest, size: u64) {
        self.found.push((digest, size));
        if self.found.len() > MIN_DUPLICATES.max(2 * self.distinct) {
            self.remove_duplicates();
        }
    }

    /// Returns the contents, sorted by their digests.
    pub fn into_sorted(mut self) -> Vec<(Digest, u64)> {
        self.remove_duplicates();
        self.found
    }

    fn remove_duplicates(&mut self) {
        self.found.sort_unstable();
        self.found.dedup_by_key(|content| content.0);
        self.distinct = self.found.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_content_is_kept_once_in_little_memory() {
        let digest = |number: usize| Digest::of(&number.to_le_bytes());
        let mut contents = Contents::default();
        for number in 0..10 * MIN_DUPLICATES {
            contents.insert(digest(number % 100), 7);
            assert!(contents.found.len() <= MIN_DUPLICATES);
        }
        let mut expected: Vec<_> = (0..100).map(|number| (digest(number), 7)).collect();
        expected.sort();
        assert_eq!(contents.into_sorted(), expected);
    }
}
