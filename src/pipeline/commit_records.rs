//! Content and run-cache keys that many commits record. Files and commits that cannot be read are left out,
//! and named.

use std::collections::BTreeMap;

use crate::{
    digest::Digest,
    error::{Error, Result},
    git::{Git, Rev},
    path::RepoPath,
    pipeline::{Lockfile, add_contents},
    pointer::Content,
    workspace::{is_lockfile, is_tracking_file},
};

/// Records of commits, and the faults met on the way.
#[derive(Default)]
pub struct CommitRecords {
    pub contents: Vec<(RepoPath, Content)>,
    pub runs: Vec<Digest>,
    faults: BTreeMap<String, Fault>,
}

/// A reason why something cannot be read.
struct Fault {
    error: Error,
    /// The first place it was met at, and the number of others.
    place: String,
    others: u64,
}

impl CommitRecords {
    /// Adds what a commit records, as far as it can be read.
    pub fn add(&mut self, git: &Git, rev: &Rev) {
        let commit = rev.short();
        let files = match git.files(rev, &is_tracking_file) {
            Ok(files) => files,
            Err(error) => return self.add_fault(error, format!("the commit {commit}")),
        };
        for file in files {
            let read =
                git.read(rev, &file).and_then(|bytes| self.add_file(&file, &bytes.unwrap_or_default()));
            if let Err(error) = read {
                self.add_fault(error, format!("`{file}` of the commit {commit}"));
            }
        }
    }

    fn add_file(&mut self, file: &RepoPath, bytes: &[u8]) -> Result<()> {
        let mut contents = BTreeMap::new();
        add_contents(file, bytes, &mut contents)?;
        self.contents.extend(contents);
        if is_lockfile(file.bytes()) {
            let lock = Lockfile::parse(file, bytes)?;
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

    /// Returns one error for each reason, which names the first place.
    pub fn into_errors(self) -> impl Iterator<Item = Error> {
        self.faults.into_values().map(|Fault { error, place, others }| {
            let more = match others {
                0 => String::new(),
                1 => " and of another".to_owned(),
                _ => format!(" and of {others} others"),
            };
            Error::new(error.kind(), format!("cannot read {place}{more}")).with_source(error)
        })
    }
}
