//! What history named when a clone last told the others: the next time only commits that came since are read.
//!
//! ```text
//! .git/mlx/history   digest of the rest; then JSON: from which tips it was read, and what it names
//! ```
//!
//! Commits never change, so what they name does not either. Where a tip was left (an amended commit, a branch that
//! is no more), where history was cut off or completed, or where anything is odd, all of it is read anew. A gc
//! does so, too, whatever is remembered.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::Result,
    fs::Sync,
    git::{Apart, Git, Rev},
    path::RepoPath,
    repo::Repo,
    upkeep::roots::Roots,
};

const FILE: &str = "history";
const FORMAT: u64 = 1;

/// The tips that lead to all history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tips {
    pub all: BTreeSet<Rev>,
    /// Those of events, which are among them.
    pub events: BTreeSet<Rev>,
}

/// What was read of history.
#[derive(Debug, Default)]
pub struct Memory {
    tips: Tips,
    /// Where history is cut off, and what stands in for other commits.
    cuts: String,
    contents: BTreeMap<Digest, bool>,
    runs: BTreeSet<Digest>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u64,
    tips: BTreeSet<String>,
    events: BTreeSet<String>,
    cuts: String,
    trees: BTreeSet<Digest>,
    objects: BTreeSet<Digest>,
    runs: BTreeSet<Digest>,
}

/// Commits whose files and whose events are still to be read.
pub struct Unread {
    pub commits: Vec<Rev>,
    pub events: Vec<Rev>,
}

fn file() -> Result<RepoPath> {
    RepoPath::from_text(FILE)
}

impl Memory {
    /// What is remembered; nothing, if that is damaged or of another mlx.
    pub fn load(repo: &Repo) -> Result<Self> {
        let bytes = repo.shared.read_if_there(&file()?)?.unwrap_or_default();
        Ok(Self::parse(&bytes).unwrap_or_default())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (check, text) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
        if check != Digest::of(text.as_bytes()).to_string() {
            return None;
        }
        let it: Written = serde_json::from_str(text).ok()?;
        let revs = |it: BTreeSet<String>| it.iter().map(|it| Rev::from_hex(it)).collect::<Option<_>>();
        let trees = it.trees.into_iter().map(|it| (it, true));
        let contents = trees.chain(it.objects.into_iter().map(|it| (it, false))).collect();
        let tips = Tips { all: revs(it.tips)?, events: revs(it.events)? };
        (it.format == FORMAT).then_some(Self { tips, cuts: it.cuts, contents, runs: it.runs })
    }

    fn print(&self) -> String {
        let revs = |it: &BTreeSet<Rev>| it.iter().map(Rev::to_string).collect();
        let of = |tree: bool| self.contents.iter().filter(|it| *it.1 == tree).map(|it| *it.0).collect();
        let written = Written {
            format: FORMAT,
            tips: revs(&self.tips.all),
            events: revs(&self.tips.events),
            cuts: self.cuts.clone(),
            trees: of(true),
            objects: of(false),
            runs: self.runs.clone(),
        };
        let text = serde_json::to_string(&written).expect("plain values");
        format!("{}\n{text}", Digest::of(text.as_bytes()))
    }

    /// Forgets everything.
    pub fn forget(repo: &Repo) -> Result<()> {
        repo.shared.remove(&file()?)
    }

    /// What is not read yet of what `tips` lead to; what is remembered goes if it may say too much or too little.
    pub fn unread(&mut self, git: &Git, tips: &Tips) -> Result<Unread> {
        let cuts = git.cuts()?;
        let (all, events) =
            (git.apart(&self.tips.all, &tips.all)?, git.apart(&self.tips.events, &tips.events)?);
        if cuts == self.cuts && !all.some_went && !events.some_went {
            return Ok(Unread { commits: all.came, events: events.came });
        }
        *self = Self { cuts, ..Self::default() };
        let whole = |tips: &BTreeSet<Rev>| git.apart(&BTreeSet::new(), tips).map(|it: Apart| it.came);
        Ok(Unread { commits: whole(&tips.all)?, events: whole(&tips.events)? })
    }

    /// Remembers what was read now, adds what was known before to it, and writes it down if it is new.
    pub fn join(mut self, repo: &Repo, tips: Tips, read: &mut Roots) -> Result<()> {
        for (digest, rooted) in &read.contents {
            *self.contents.entry(*digest).or_default() |= rooted.is_tree();
        }
        self.runs.extend(&read.runs);
        for (digest, tree) in &self.contents {
            read.remember(*digest, *tree);
        }
        read.runs.extend(&self.runs);
        // What could not be read must be told each time.
        if read.unreadable.is_empty() && self.tips != tips {
            self.tips = tips;
            // What cannot be remembered is read again.
            drop(repo.shared.write(&file()?, self.print().as_bytes(), Sync::Later));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        git::Single,
        upkeep::{
            roots::{Detail, roots, roots_since},
            seen::look,
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

        /// A commit of a pointer that nothing else names, on a branch.
        fn commit(&mut self, branch: &str, parent: Option<Rev>) -> Digest {
            self.count += 1;
            let digest = Digest::of(&self.count.to_le_bytes());
            let text = format!("digest = \"{digest}\"\nfiles = 1\nformat = 1\nkind = \"file\"\nsize = 4\n");
            let single = Single { name: "a.mlx", bytes: text.as_bytes(), message: "a" };
            let repo = Repo::discover(self.temp.path()).unwrap();
            let rev = repo.git.commit_single(&single, parent.as_ref()).unwrap();
            self.git(&format!("update-ref refs/heads/{branch} {rev}"));
            self.head = Some(rev);
            digest
        }

        /// How many commits were read, and that nothing is said that a whole reading would not say.
        fn renew(&self) -> u64 {
            let repo = Repo::discover(self.temp.path()).unwrap();
            let seen = look(&repo, 0).unwrap();
            let (since, whole) =
                (roots_since(&repo, &seen).unwrap(), roots(&repo, &seen, Detail::Digests).unwrap());
            assert!(since.contents.keys().eq(whole.contents.keys()) && since.runs == whole.runs);
            since.commits
        }
    }

    #[test]
    fn only_commits_that_came_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let mut world = World { temp, head: None, count: 0 };
        for args in ["init -q -b main", "config user.name Ada", "config user.email ada@park.example"] {
            world.git(args);
        }
        Repo::init(world.temp.path()).unwrap();
        for _ in 0..20 {
            world.commit("main", world.head.clone());
        }
        assert_eq!((world.renew(), world.renew()), (20, 0), "all of it once");
        let base = world.head.clone();
        world.commit("main", base.clone());
        assert_eq!(world.renew(), 1, "a commit");
        world.commit("side", base.clone());
        world.commit("side", world.head.clone());
        assert_eq!(world.renew(), 2, "a branch from within");
        world.git("branch old main~5");
        assert_eq!(world.renew(), 0, "a new name of an old commit");
        world.git("branch -q -D old");
        assert_eq!(world.renew(), 0, "a name went whose commit did not");
        world.git("branch -q -D side");
        assert_eq!(world.renew(), 21, "commits went: what they named is needed no more");
        world.commit("main", base);
        assert_eq!(world.renew(), 21, "a commit took the place of another");
        let memory = world.temp.path().join(".git/mlx/history");
        let repo = Repo::discover(world.temp.path()).unwrap();
        let mut bytes = repo.shared.read(&file().unwrap()).unwrap();
        bytes[90] ^= 1;
        repo.shared.write(&file().unwrap(), &bytes, Sync::Later).unwrap();
        assert_eq!((world.renew(), world.renew()), (21, 0), "{} was damaged", memory.display());
        world.git("replace main~2 main~9");
        assert!((10..21).contains(&world.renew()), "history leads elsewhere");
    }

    #[test]
    fn it_reads_what_it_wrote_and_nothing_that_is_damaged() {
        let rev = Rev::from_hex("0123456789012345678901234567890123456789").unwrap();
        let memory = Memory {
            tips: Tips { all: BTreeSet::from([rev.clone()]), events: BTreeSet::new() },
            cuts: "cut".into(),
            contents: BTreeMap::from([(Digest::of(b"1"), true), (Digest::of(b"2"), false)]),
            runs: BTreeSet::from([Digest::of(b"3")]),
        };
        let text = memory.print().into_bytes();
        let again = Memory::parse(&text).unwrap();
        assert_eq!(
            (&again.tips, &again.contents, &again.runs),
            (&memory.tips, &memory.contents, &memory.runs)
        );
        for at in 0..text.len() {
            let mut bad = text.clone();
            bad[at] ^= 1;
            assert!(Memory::parse(&bad).is_none(), "byte {at}");
        }
    }
}
