//! Tells whether a file changed on the line of HEAD since it parted from a commit that HEAD was at before.
//!
//! The reflog of HEAD, which each worktree has for itself, lists where HEAD was. Without one, and in shallow
//! and partial clones, which do not have all of history, nothing is known. Commits are compared once for all
//! files that can matter, newest first and only until the answer is known. Of each commit, only the folders
//! of these files are read, and of these only those that it changed.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
};

use crate::{
    error::Result,
    git::{
        BlobId, Git, Rev, from_gix,
        tree_changes::{Filter, Step},
    },
    path::RepoPath,
};

/// Number of positions of HEAD that are considered, newest first.
const MAX_POSITIONS: usize = 1000;

/// The commits that HEAD was at, and what changed since each.
pub struct HeadLines {
    head: Rev,
    /// Accepts the paths of the files of interest.
    wanted: fn(&[u8]) -> bool,
    /// Newest first.
    positions: Vec<Rev>,
    /// For each file, where it differs from the position before: the index of the position, and its version.
    versions: BTreeMap<RepoPath, Vec<(usize, Option<BlobId>)>>,
    /// By position: the commits that HEAD has and that one has not; `None` if one of these begins a history.
    since: RefCell<BTreeMap<Rev, Option<Since>>>,
}

/// The commits that HEAD has and an earlier position has not.
struct Since {
    /// The files of interest that differ between the two: only for these it matters whether a commit changed
    /// them.
    files: BTreeSet<RepoPath>,
    /// All folders above these files.
    folders: BTreeSet<RepoPath>,
    /// Pairs of an older and a newer commit that are to be compared, the next one last.
    pending: Vec<[Rev; 2]>,
    /// Steps of the files that the pairs compared so far changed.
    steps: BTreeMap<RepoPath, BTreeSet<Step>>,
}

impl Git {
    /// Compares the positions of HEAD by the files that `wanted` accepts; `None` if nothing is known of them.
    pub fn head_lines(&self, wanted: fn(&[u8]) -> bool) -> Result<Option<HeadLines>> {
        let Some(head) = self.head() else { return Ok(None) };
        if self.promisor().is_some() || !self.shallow_boundary()?.is_empty() {
            return Ok(None);
        }
        let positions = self.positions()?;
        let mut versions: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let filter = Filter { file: &|file| wanted(file.bytes()), folder: &|_| true };
        for (at, pair) in positions.windows(2).enumerate() {
            for (file, [_, older]) in self.changed_between(&pair[0], &pair[1], &filter)? {
                versions.entry(file).or_default().push((at + 1, older));
            }
        }
        Ok(Some(HeadLines { head, wanted, positions, versions, since: RefCell::default() }))
    }

    /// Lists the commits that HEAD was at, newest first, as far as they still exist.
    fn positions(&self) -> Result<Vec<Rev>> {
        let context = || "cannot read the reflog of `HEAD`".to_owned();
        let Some(head) = from_gix(self.repo.try_find_reference("HEAD"), context)? else {
            return Ok(Vec::new());
        };
        let mut log = head.log_iter();
        let Some(lines) = from_gix(log.all(), context)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for line in lines {
            found.push(Rev(from_gix(line, context)?.new_oid()));
        }
        let newest = found.into_iter().rev().take(MAX_POSITIONS);
        let mut found: Vec<_> = newest.filter(|rev| self.repo.has_object(rev.0)).collect();
        found.dedup();
        Ok(found)
    }

    /// Lists the files that `filter` selects and that differ in two commits.
    fn changed_between(&self, one: &Rev, two: &Rev, filter: &Filter<'_>) -> Result<Vec<(RepoPath, Step)>> {
        self.changed_files([Some(self.top_tree(one)?), Some(self.top_tree(two)?)], filter)
    }
}

impl HeadLines {
    /// Looks for the last commit at HEAD whose version of `file` passes `is_start`. Returns true if another
    /// version is at HEAD, and in each commit that HEAD has and that one has not, the file exists and
    /// `is_same` as in the parents: then the version at HEAD is one that the other version was made from.
    pub fn is_unchanged_since(
        &self,
        git: &Git,
        file: &RepoPath,
        is_start: &dyn Fn(BlobId) -> bool,
        is_same: &dyn Fn(BlobId, BlobId) -> bool,
    ) -> Result<bool> {
        let Some(start) = self.last_position(git, file, is_start)? else { return Ok(false) };
        let mut since = self.since.borrow_mut();
        let since = match since.entry(start.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.commits_since(git, start)?),
        };
        let Some(since) = since else { return Ok(false) };
        let is_same = |step: &Step| matches!(*step, [Some(old), Some(new)] if is_same(old, new));
        since.is_unchanged(git, file, &is_same)
    }

    /// Returns the files that differ at earlier positions, each with the last version that it had there.
    pub fn former(&self) -> impl Iterator<Item = (&RepoPath, BlobId)> {
        let last = |versions: &Vec<(usize, Option<BlobId>)>| versions.iter().find_map(|version| version.1);
        self.versions.iter().filter_map(move |(file, versions)| Some((file, last(versions)?)))
    }

    /// Returns the last commit at HEAD whose version of `file` passes `wanted`.
    fn last_position(
        &self,
        git: &Git,
        file: &RepoPath,
        wanted: &dyn Fn(BlobId) -> bool,
    ) -> Result<Option<&Rev>> {
        let Some(newest) = self.positions.first() else { return Ok(None) };
        let first = (0, git.blob(newest, file)?);
        let older = self.versions.get(file).into_iter().flatten().copied();
        let mut versions = std::iter::once(first).chain(older);
        let found = versions.find(|(_, version)| version.is_some_and(wanted));
        Ok(found.map(|(at, _)| &self.positions[at]))
    }

    /// Lists what to compare for the files that differ between `start` and HEAD; `None` if a commit that HEAD
    /// has and `start` has not begins a history.
    fn commits_since(&self, git: &Git, start: &Rev) -> Result<Option<Since>> {
        let (before, now) = (BTreeSet::from([start.clone()]), BTreeSet::from([self.head.clone()]));
        let added = git.rev_difference(&before, &now)?.added;
        let is_added: BTreeSet<&Rev> = added.iter().collect();
        let (mut pending, mut shared) = (Vec::new(), BTreeSet::new());
        for rev in added.iter().rev() {
            let parents = git.commit(rev)?.parents;
            if parents.is_empty() {
                // A rewritten history: nothing tells what it was made from.
                return Ok(None);
            }
            shared.extend(parents.iter().filter(|parent| !is_added.contains(parent)).cloned());
            pending.extend(parents.into_iter().map(|parent| [parent, rev.clone()]));
        }
        // Compared first: where both ends of the line differ, a commit between them changed the file.
        pending.extend(shared.into_iter().map(|parent| [parent, self.head.clone()]));
        let filter = Filter { file: &|file| (self.wanted)(file.bytes()), folder: &|_| true };
        let changed = git.changed_between(start, &self.head, &filter)?;
        let files: BTreeSet<RepoPath> = changed.into_iter().map(|(file, _)| file).collect();
        let folders = files.iter().flat_map(|file| file.ancestors().skip(1)).collect();
        Ok(Some(Since { files, folders, pending, steps: BTreeMap::new() }))
    }
}

impl Since {
    /// Returns true if the file differs between the two ends, and all of its steps are between versions that
    /// are the same.
    fn is_unchanged(&mut self, git: &Git, file: &RepoPath, is_same: &dyn Fn(&Step) -> bool) -> Result<bool> {
        let mut known = self.steps.get(file).into_iter().flatten();
        if !self.files.contains(file) || !known.all(is_same) {
            return Ok(false);
        }
        while let Some([older, newer]) = self.pending.last() {
            let (files, folders) = (&self.files, &self.folders);
            let filter =
                Filter { file: &|path| files.contains(path), folder: &|path| folders.contains(path) };
            let changed = git.changed_between(older, newer, &filter)?;
            let stays = changed.iter().all(|(path, step)| path != file || is_same(step));
            for (path, step) in changed {
                self.steps.entry(path).or_default().insert(step);
            }
            self.pending.pop();
            if !stays {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, process::Command};

    use super::*;

    /// A repository whose HEAD was at `before` and now is at `now`.
    struct History {
        text: String,
        commits: usize,
    }

    impl History {
        /// Adds a commit to a branch, which begins at `from`.
        fn commit(&mut self, branch: &str, from: Option<&str>, files: &[(String, String)]) {
            self.commits += 1;
            let who = format!("Ada <ada@park.example> {} +0000", 1_700_000_000 + self.commits);
            self.text += &format!("commit refs/heads/{branch}\ncommitter {who}\ndata 0\n");
            self.text += &from.map_or_else(String::new, |from| format!("from refs/heads/{from}\n"));
            for (file, text) in files {
                self.text += &format!("M 100644 inline {file}\ndata {}\n{text}\n", text.len());
            }
        }

        /// Returns whether `f.mlx` stayed the same since HEAD was at `before`, which has the version `start`,
        /// and the number of objects that were read to tell.
        fn stayed_the_same(self, before: &str, now: &str, start: &str) -> (bool, u64) {
            let temp = tempfile::tempdir().unwrap();
            let git = |args: &[&str], input: &str| {
                let mut command = Command::new("git");
                command.args(["-c", "user.name=Ada", "-c", "user.email=ada@park.example"]).args(args);
                let command = command.current_dir(temp.path()).stdin(std::process::Stdio::piped());
                let mut child = command.spawn().unwrap();
                child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
                assert!(child.wait().unwrap().success(), "{args:?}");
            };
            git(&["init", "-q"], "");
            git(&["fast-import", "--quiet"], &self.text);
            git(&["checkout", "-q", before], "");
            git(&["checkout", "-q", now], "");
            let git = Git::discover(temp.path()).unwrap();
            let lines = git.head_lines(|path| path.ends_with(b".mlx")).unwrap().unwrap();
            let (file, read) = (RepoPath::from_text("f.mlx").unwrap(), git.reads());
            let is_start = |blob| git.read_blob(blob).unwrap() == start.as_bytes();
            let found = lines.is_unchanged_since(&git, &file, &is_start, &|old, new| old == new);
            (found.unwrap(), git.reads() - read)
        }
    }

    fn files(folders: usize, text: usize) -> Vec<(String, String)> {
        (0..folders).map(|folder| (format!("code{folder}/a"), text.to_string())).collect()
    }

    fn pointer(text: &str) -> Vec<(String, String)> {
        vec![("f.mlx".into(), text.into()), ("code0/other.mlx".into(), text.into())]
    }

    #[test]
    fn a_change_on_the_line_of_head_is_found_without_reading_each_commit() {
        let reads = |commits: usize| {
            let mut history = History { text: String::new(), commits: 0 };
            history.commit("before", None, &pointer("1"));
            history.commit("main", Some("before"), &pointer("2"));
            (0..commits).for_each(|number| history.commit("main", None, &files(3, number)));
            history.stayed_the_same("before", "main", "1")
        };
        let (few, many) = (reads(5), reads(50));
        assert_eq!((few.0, many), (false, few));
        assert!(few.1 <= 20, "{few:?}");
    }

    #[test]
    fn of_each_commit_only_the_folders_of_the_files_are_read() {
        let reads = |commits: usize, folders: usize, last: &str| {
            let mut history = History { text: String::new(), commits: 0 };
            history.commit("main", None, &[("f.mlx".into(), "1".into())]);
            history.commit("before", Some("main"), &[("f.mlx".into(), "2".into())]);
            (0..commits).for_each(|number| history.commit("main", None, &files(folders, number)));
            history.commit("main", None, &[("f.mlx".into(), last.into())]);
            history.commit("main", None, &[("f.mlx".into(), "1".into())]);
            history.stayed_the_same("before", "main", "2")
        };
        let (few, many) = (reads(5, 1, "1"), reads(50, 1, "1"));
        assert!(few.0 && many.0);
        // Each commit and its parent, and their top folders.
        assert_eq!(many.1 - few.1, 45 * 4);
        assert_eq!(reads(50, 9, "1").1 - reads(5, 9, "1").1, 45 * 4);
        // A change that was reverted is found, and what is older is not read.
        let (few, many) = (reads(5, 1, "3"), reads(50, 1, "3"));
        assert_eq!((few.0, many), (false, few));
    }
}
