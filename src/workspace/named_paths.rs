//! The number of some paths, with the first of them for a message.

use crate::path::RepoPath;

/// Number of paths of a kind that messages can name.
pub(super) const MAX_NAMED: usize = 5;

/// Number of some paths, and the first of them.
#[derive(Clone, Debug, Default)]
pub struct NamedPaths {
    pub count: u64,
    pub first: Vec<RepoPath>,
}

impl NamedPaths {
    pub(super) fn add(&mut self, path: &RepoPath, files: u64) {
        self.count += files.max(1);
        if self.first.len() < MAX_NAMED {
            self.first.push(path.clone());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds the paths of another merge.
    pub fn extend(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.truncate(MAX_NAMED);
    }
}
