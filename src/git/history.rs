//! Commits and what changed in them.

use std::collections::HashMap;

use gix::revision::walk::Sorting;

use crate::{
    error::Result,
    git::{Git, Rev, ours},
    path::{DEEPEST, RepoPath},
    time::Timestamp,
};

/// Bytes in Git: equal ids, equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId(gix::ObjectId);

impl BlobId {
    pub(super) fn of(id: gix::ObjectId) -> Self {
        Self(id)
    }
}

/// Where files of one name lie, tree by tree: what two commits share is read once.
#[derive(Default)]
pub struct Places(HashMap<gix::ObjectId, Vec<RepoPath>>);

/// A commit, as a log shows it.
#[derive(Clone, Debug)]
pub struct Commit {
    pub rev: Rev,
    pub parents: Vec<Rev>,
    pub when: Timestamp,
    pub author: String,
    pub summary: String,
}

impl Git {
    /// Which bytes a file has in a commit.
    pub fn blob(&self, rev: &Rev, path: &RepoPath) -> Result<Option<BlobId>> {
        let doing = || format!("cannot read `{path}` at {}", rev.short());
        let commit = ours(self.repo.find_commit(rev.0), doing)?;
        let tree = ours(commit.tree(), doing)?;
        let names = path.components().map(<[u8]>::to_vec);
        let entry = ours(tree.lookup_entry(names), doing)?;
        Ok(entry.filter(|it| it.mode().is_blob()).map(|it| BlobId(it.object_id())))
    }

    /// Folders of a commit that hold a file of this name, always the same with the same `known`.
    pub fn folders_with(&self, rev: &Rev, name: &str, known: &mut Places) -> Result<Vec<RepoPath>> {
        let doing = || format!("cannot list the files of {}", rev.short());
        let commit = ours(self.repo.find_commit(rev.0), doing)?;
        self.folders_below(ours(commit.tree_id(), doing)?.detach(), name, known, 0)
    }

    fn folders_below(
        &self,
        tree: gix::ObjectId,
        name: &str,
        known: &mut Places,
        depth: usize,
    ) -> Result<Vec<RepoPath>> {
        if let Some(found) = known.0.get(&tree) {
            return Ok(found.clone());
        }
        let doing = || "cannot read a folder from Git".to_owned();
        let object = ours(self.repo.find_tree(tree), doing)?;
        let mut found = Vec::new();
        for entry in object.iter() {
            let entry = ours(entry, doing)?;
            if entry.mode().is_blob() && entry.filename() == name {
                found.push(RepoPath::root());
            } else if entry.mode().is_tree() && depth < DEEPEST {
                // A name that no path may have holds nothing of ours.
                let Ok(folder) = RepoPath::from_bytes(entry.filename()) else { continue };
                let below = self.folders_below(entry.object_id(), name, known, depth + 1)?;
                found.extend(below.iter().filter_map(|it| folder.join_path(it).ok()));
            }
        }
        known.0.insert(tree, found.clone());
        Ok(found)
    }

    /// As [`Git::read_blob`]; nothing of one that has more bytes than `most`.
    pub fn read_small_blob(&self, id: BlobId, most: u64) -> Result<Option<Vec<u8>>> {
        let size = ours(self.repo.find_header(id.0), || "cannot read a file from Git".into())?.size();
        if size > most { Ok(None) } else { self.read_blob(id).map(Some) }
    }

    pub fn read_blob(&self, id: BlobId) -> Result<Vec<u8>> {
        let mut object = ours(self.repo.find_object(id.0), || "cannot read a file from Git".into())?;
        Ok(std::mem::take(&mut object.data))
    }

    /// All commits that `from` descends from and itself, newest first, children before parents.
    pub fn log(&self, from: &[Rev]) -> Result<Vec<Commit>> {
        let doing = || "cannot read Git's history".into();
        let tips = from.iter().map(|it| it.0);
        let sorting = Sorting::ByCommitTime(Default::default());
        let walk = ours(self.repo.rev_walk(tips).sorting(sorting).all(), doing)?;
        walk.map(|it| self.commit(&Rev(ours(it, doing)?.id))).collect()
    }

    /// One commit.
    pub fn commit(&self, rev: &Rev) -> Result<Commit> {
        let doing = || format!("cannot read the commit {}", rev.short());
        let commit = ours(self.repo.find_commit(rev.0), doing)?;
        let author = ours(commit.author(), doing)?;
        let author_text = format!("{} <{}>", author.name, author.email);
        let when = ours(commit.time(), doing)?.seconds;
        let summary = ours(commit.message(), doing)?.summary().to_string();
        Ok(Commit {
            rev: rev.clone(),
            // In a shallow clone the last ones are not here.
            parents: commit
                .parent_ids()
                .filter(|it| self.repo.has_object(it))
                .map(|it| Rev(it.detach()))
                .collect(),
            when: Timestamp::from_seconds(when),
            author: author_text,
            summary,
        })
    }

    /// The tips of all branches and tags, here and as last fetched.
    pub fn tips(&self) -> Result<Vec<Rev>> {
        let doing = || "cannot read Git's references".into();
        let references = ours(self.repo.references(), doing)?;
        let mut tips: Vec<Rev> = self.head().into_iter().collect();
        for reference in ours(references.all(), doing)? {
            let Ok(mut reference) = reference else { continue };
            if let Ok(commit) = reference.peel_to_commit() {
                tips.push(Rev(commit.id));
            }
        }
        tips.sort();
        tips.dedup();
        Ok(tips)
    }
}
