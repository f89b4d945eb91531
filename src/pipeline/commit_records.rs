//! Content and run-cache keys that many commits record. Files and commits that cannot be read are left out,
//! and named.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::{
    digest::Digest,
    error::{Error, Result},
    git::{BlobId, Git, NewFiles, Rev},
    path::RepoPath,
    pipeline::{Lockfile, add_contents},
    pointer::Content,
    workspace::{is_lockfile, is_tracking_file},
};

/// Records of commits, and the faults met on the way. A file is read once, however many commits have it.
pub struct CommitRecords<'g> {
    git: &'g Git,
    files: NewFiles<'g>,
    records: Records,
}

#[derive(Default)]
struct Records {
    contents: HashSet<(RepoPath, Content)>,
    runs: BTreeSet<Digest>,
    faults: BTreeMap<String, Fault>,
}

/// A reason why something cannot be read.
struct Fault {
    error: Error,
    /// The first place it was met at, and the number of others.
    place: String,
    others: u64,
}

impl<'g> CommitRecords<'g> {
    /// Creates an empty list for the commits of a repository.
    pub fn new(git: &'g Git) -> Self {
        Self { git, files: NewFiles::new(git, is_tracking_file), records: Records::default() }
    }

    /// Adds what a commit records, as far as it can be read.
    pub fn add(&mut self, rev: &Rev) {
        let (git, records, commit) = (self.git, &mut self.records, rev.short());
        let listed = self.files.list(rev, &mut |file, blob| {
            let read = records.add_file(git, file, blob);
            let is_read = read.is_ok();
            read.unwrap_or_else(|error| records.add_fault(error, format!("`{file}` of the commit {commit}")));
            Ok(is_read)
        });
        listed.unwrap_or_else(|error| self.records.add_fault(error, format!("the commit {commit}")));
    }

    /// Returns the contents and runs, and one error for each reason why something cannot be read, which names
    /// the first place.
    pub fn finish(self) -> (HashSet<(RepoPath, Content)>, BTreeSet<Digest>, Vec<Error>) {
        let Records { contents, runs, faults } = self.records;
        let error = |Fault { error, place, others }| {
            let more = match others {
                0 => String::new(),
                1 => " and of another".to_owned(),
                _ => format!(" and of {others} others"),
            };
            Error::new(error.kind(), format!("cannot read {place}{more}")).with_source(error)
        };
        (contents, runs, faults.into_values().map(error).collect())
    }
}

impl Records {
    fn add_file(&mut self, git: &Git, file: &RepoPath, blob: BlobId) -> Result<()> {
        let (bytes, mut contents) = (git.read_blob(blob)?, BTreeMap::new());
        add_contents(file, &bytes, &mut contents)?;
        self.contents.extend(contents);
        if is_lockfile(file.bytes()) {
            let lock = Lockfile::parse(file, &bytes)?;
            self.runs.extend(lock.records().flat_map(|(_, record)| record.keys()));
        }
        Ok(())
    }

    fn add_fault(&mut self, error: Error, place: String) {
        // Commits share files and folders: each fault is told once.
        let reason = error.chain_text();
        let known = self.faults.get_mut(&reason).map(|fault| fault.others += 1);
        known.unwrap_or_else(|| drop(self.faults.insert(reason, Fault { error, place, others: 0 })));
    }
}
