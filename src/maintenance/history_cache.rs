//! Caches what history refers to, so that the next time a clone publishes its needs, only new commits are
//! read.
//!
//! ```text
//! .git/mlx/history   digest of the rest; then JSON: the tips it was read from, and all references found
//! ```
//!
//! Commits never change, so their references do not either. If a tip was left behind (an amended commit, a
//! removed branch), if history was cut off or completed, or if anything does not match, all of it is read
//! again. A gc removes the cache and reads everything.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::Result,
    fs::Sync,
    git::{Git, Rev, RevDifference},
    maintenance::roots::Roots,
    path::RepoPath,
    repo::Repo,
};

const FILE: &str = "history";
const FORMAT: u64 = 1;

/// Tips that lead to all history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tips {
    pub all: BTreeSet<Rev>,
    /// Tips of event history, which are among `all`.
    pub events: BTreeSet<Rev>,
}

/// References found in history.
#[derive(Debug, Default)]
pub struct HistoryCache {
    tips: Tips,
    /// Points where history is cut off, in a shallow clone.
    cuts: String,
    contents: BTreeMap<Digest, bool>,
    runs: BTreeSet<Digest>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheFile {
    format: u64,
    tips: BTreeSet<String>,
    events: BTreeSet<String>,
    cuts: String,
    trees: BTreeSet<Digest>,
    objects: BTreeSet<Digest>,
    runs: BTreeSet<Digest>,
}

/// Commits whose files and events have not been read yet.
pub struct Unread {
    pub commits: Vec<Rev>,
    pub events: Vec<Rev>,
}

fn file() -> Result<RepoPath> {
    RepoPath::from_text(FILE)
}

impl HistoryCache {
    /// Loads the cache; an empty one if it is damaged or of another version.
    pub fn load(repo: &Repo) -> Result<Self> {
        let bytes = repo.shared.read_if_exists(&file()?)?.unwrap_or_default();
        Ok(Self::parse(&bytes).unwrap_or_default())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (check, text) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
        if check != Digest::of(text.as_bytes()).to_string() {
            return None;
        }
        let written: CacheFile = serde_json::from_str(text).ok()?;
        let revs =
            |hashes: BTreeSet<String>| hashes.iter().map(|hex| Rev::from_hex(hex)).collect::<Option<_>>();
        let trees = written.trees.into_iter().map(|digest| (digest, true));
        let contents = trees.chain(written.objects.into_iter().map(|digest| (digest, false))).collect();
        let tips = Tips { all: revs(written.tips)?, events: revs(written.events)? };
        let cache = Self { tips, cuts: written.cuts, contents, runs: written.runs };
        (written.format == FORMAT).then_some(cache)
    }

    fn to_text(&self) -> String {
        let revs = |revs: &BTreeSet<Rev>| revs.iter().map(Rev::to_string).collect();
        let of = |tree: bool| self.contents.iter().filter(|it| *it.1 == tree).map(|it| *it.0).collect();
        let written = CacheFile {
            format: FORMAT,
            tips: revs(&self.tips.all),
            events: revs(&self.tips.events),
            cuts: self.cuts.clone(),
            trees: of(true),
            objects: of(false),
            runs: self.runs.clone(),
        };
        let text = serde_json::to_string(&written).expect("plain values are serializable");
        format!("{}\n{text}", Digest::of(text.as_bytes()))
    }

    /// Removes the cache.
    pub fn clear(repo: &Repo) -> Result<()> {
        repo.shared.remove(&file()?)
    }

    /// Returns the commits that `tips` lead to and that were not read yet; empties the cache if it may no
    /// longer be right.
    pub fn unread(&mut self, git: &Git, tips: &Tips) -> Result<Unread> {
        let cuts = git.shallow_boundary()?;
        let (all, events) = (
            git.rev_difference(&self.tips.all, &tips.all)?,
            git.rev_difference(&self.tips.events, &tips.events)?,
        );
        if cuts == self.cuts && !all.any_removed && !events.any_removed {
            return Ok(Unread { commits: all.added, events: events.added });
        }
        *self = Self { cuts, ..Self::default() };
        let whole = |tips: &BTreeSet<Rev>| {
            git.rev_difference(&BTreeSet::new(), tips).map(|it: RevDifference| it.added)
        };
        Ok(Unread { commits: whole(&tips.all)?, events: whole(&tips.events)? })
    }

    /// Adds the references read now to the cache and all cached ones to `read`, and writes the cache if its
    /// tips changed.
    pub fn update(mut self, repo: &Repo, tips: Tips, read: &mut Roots) -> Result<()> {
        for (digest, entry) in &read.contents {
            *self.contents.entry(*digest).or_default() |= entry.is_tree();
        }
        self.runs.extend(&read.runs);
        for (digest, tree) in &self.contents {
            read.add_known(*digest, *tree);
        }
        read.runs.extend(&self.runs);
        // Unreadable files must be reported each time.
        if read.unreadable.is_empty() && self.tips != tips {
            self.tips = tips;
            // If the cache cannot be written, history is read again the next time.
            drop(repo.shared.write(&file()?, self.to_text().as_bytes(), Sync::Later));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        git::SingleFile,
        maintenance::{
            roots::{Detail, roots, roots_since},
            snapshot::take_snapshot,
        },
    };

    struct World {
        temp: tempfile::TempDir,
        head: Option<Rev>,
        count: u32,
    }

    impl World {
        fn git(&self, args: &str) {
            let mut command = std::process::Command::new("git");
            command.arg("-C").arg(self.temp.path()).args(args.split(' '));
            command.env("GIT_COMMITTER_DATE", "1700000000 +0000");
            assert!(command.status().unwrap().success(), "{args}");
        }

        /// Commits a pointer that nothing else refers to, on a branch.
        fn commit(&mut self, branch: &str, parent: Option<Rev>) -> Digest {
            self.count += 1;
            let digest = Digest::of(&self.count.to_le_bytes());
            let text = format!("digest = \"{digest}\"\nfiles = 1\nformat = 1\nkind = \"file\"\nsize = 4\n");
            let single = SingleFile { name: "a.mlx", bytes: text.as_bytes(), message: "a" };
            let repo = Repo::discover(self.temp.path()).unwrap();
            let rev = repo.git.commit_single(&single, parent.as_ref()).unwrap();
            self.git(&format!("update-ref refs/heads/{branch} {rev}"));
            self.head = Some(rev);
            digest
        }

        /// Returns how many commits were read, and checks that reading everything finds the same references.
        fn count_read_commits(&self) -> u64 {
            let repo = Repo::discover(self.temp.path()).unwrap();
            let snapshot = take_snapshot(&repo, 0).unwrap();
            let (since, whole) =
                (roots_since(&repo, &snapshot).unwrap(), roots(&repo, &snapshot, Detail::Digests).unwrap());
            assert!(since.contents.keys().eq(whole.contents.keys()) && since.runs == whole.runs);
            since.commits
        }
    }

    #[test]
    fn only_new_commits_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let mut world = World { temp, head: None, count: 0 };
        for args in ["init -q -b main", "config user.name Ada", "config user.email ada@park.example"] {
            world.git(args);
        }
        Repo::init(world.temp.path()).unwrap();
        for _ in 0..20 {
            world.commit("main", world.head.clone());
        }
        assert_eq!((world.count_read_commits(), world.count_read_commits()), (20, 0), "everything, once");
        let base = world.head.clone();
        world.commit("main", base.clone());
        assert_eq!(world.count_read_commits(), 1, "a commit");
        world.commit("side", base.clone());
        world.commit("side", world.head.clone());
        assert_eq!(world.count_read_commits(), 2, "a branch from an older commit");
        world.git("branch old main~5");
        assert_eq!(world.count_read_commits(), 0, "a new name for an old commit");
        world.git("branch -q -D old");
        assert_eq!(world.count_read_commits(), 0, "a name was removed, its commit was not");
        world.git("branch -q -D side");
        assert_eq!(world.count_read_commits(), 21, "commits were removed: their references are dropped");
        world.commit("main", base);
        assert_eq!(world.count_read_commits(), 21, "a commit replaced another");
        let file_path = world.temp.path().join(".git/mlx/history");
        let repo = Repo::discover(world.temp.path()).unwrap();
        let mut bytes = repo.shared.read(&file().unwrap()).unwrap();
        bytes[90] ^= 1;
        repo.shared.write(&file().unwrap(), &bytes, Sync::Later).unwrap();
        assert_eq!(
            (world.count_read_commits(), world.count_read_commits()),
            (21, 0),
            "{} was damaged",
            file_path.display()
        );
        world.git("replace main~2 main~9");
        assert_eq!(world.count_read_commits(), 0, "a replacement changes only how history is shown");
    }

    #[test]
    fn a_written_cache_is_read_back_and_a_damaged_one_is_rejected() {
        let rev = Rev::from_hex("0123456789012345678901234567890123456789").unwrap();
        let cache = HistoryCache {
            tips: Tips { all: BTreeSet::from([rev.clone()]), events: BTreeSet::new() },
            cuts: "cut".into(),
            contents: BTreeMap::from([(Digest::of(b"1"), true), (Digest::of(b"2"), false)]),
            runs: BTreeSet::from([Digest::of(b"3")]),
        };
        let text = cache.to_text().into_bytes();
        let read_back = HistoryCache::parse(&text).unwrap();
        assert_eq!(
            (&read_back.tips, &read_back.contents, &read_back.runs),
            (&cache.tips, &cache.contents, &cache.runs)
        );
        for at in 0..text.len() {
            let mut bad = text.clone();
            bad[at] ^= 1;
            assert!(HistoryCache::parse(&bad).is_none(), "byte {at}");
        }
    }
}
