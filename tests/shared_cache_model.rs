//! Runs clones that share a cache at random: commits, fetches, branches that go, clones that are away, and
//! `gc`, beside a model of what each clone's refs name. Nothing that is named is freed, and all else is.
//!
//! `MLX_SEEDS=100` runs that many seeds; a failure prints its seed, which `MLX_SEED=N` repeats alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Duration,
};

use mlx::{
    digest::Digest,
    store::{Index, Kind},
};
use serde_json::Value;

use crate::{
    gc_roots::remove_any,
    sandbox::{CommandResult, Sandbox, command_result},
};

const CLONES: usize = 3;
const STEPS: u32 = 40;
const SEEDS: u64 = 5;

/// Contents, by the number that they are made of.
type Contents = BTreeSet<u32>;

/// A clone as the model knows it.
#[derive(Clone, Default)]
struct CloneModel {
    /// Contents in the history of each ref.
    refs: BTreeMap<String, Contents>,
    /// Contents of the pointer in the worktree and of the one in Git's index.
    pointers: Contents,
    branch: String,
    is_away: bool,
    /// Contents that its list in the cache names, and the day on which it was written.
    listed: Contents,
    written: u32,
}

struct World {
    sandbox: Sandbox,
    random: u64,
    clones: Vec<CloneModel>,
    /// Day on which a list named each content last.
    named: BTreeMap<u32, u32>,
    day: u32,
    /// Number of contents and branches so far.
    count: u32,
    steps: Vec<String>,
}

impl CloneModel {
    fn needs(&self) -> Contents {
        self.refs.values().flatten().chain(&self.pointers).copied().collect()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let sandbox = Sandbox::new();
        sandbox.commit("start");
        let clone = CloneModel { branch: "main".into(), ..CloneModel::default() };
        let mut world = Self {
            sandbox,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            clones: vec![clone; CLONES],
            named: BTreeMap::new(),
            day: 0,
            count: 0,
            steps: Vec::new(),
        };
        let cache = world.sandbox.root().join("cache");
        for clone in 0..CLONES {
            let folder = world.folder(clone);
            world.sandbox.git(&format!("clone -q {} {}", world.sandbox.repo.display(), folder.display()));
            world.mlx(clone, &format!("config set --local cache.dir {}", cache.display()));
            world.commit(clone);
        }
        world
    }

    fn random(&mut self, below: usize) -> usize {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % below
    }

    fn folder(&self, clone: usize) -> PathBuf {
        self.sandbox.root().join(format!("clone-{clone}"))
    }

    fn git(&self, clone: usize, args: &str) {
        self.sandbox.at(&self.folder(clone)).git(args);
    }

    fn run(&self, clone: usize, args: &str) -> CommandResult {
        let mut mlx = self.sandbox.command(env!("CARGO_BIN_EXE_mlx"), &self.folder(clone));
        let time = 1_700_000_000 + u64::from(self.day) * 86_400;
        command_result(mlx.args(args.split(' ')).env("MLX_TIMESTAMP", time.to_string()).output().unwrap())
    }

    fn mlx(&self, clone: usize, args: &str) {
        let ran = self.run(clone, args);
        assert_eq!(ran.code, 0, "{args} in {clone}: {}\n{:#?}", ran.err, self.steps);
    }

    /// The clone publishes what it needs.
    fn publish(&mut self, clone: usize) {
        let needs = self.clones[clone].needs();
        for content in self.clones[clone].listed.union(&needs) {
            self.named.insert(*content, self.day);
        }
        self.clones[clone].listed = needs;
        self.clones[clone].written = self.day;
    }

    /// Stores a new content; only the pointer in the worktree names it.
    fn add(&mut self, clone: usize) {
        self.count += 1;
        fs::write(self.folder(clone).join("f"), text(self.count)).unwrap();
        self.mlx(clone, "add f");
        // The workspace's last version counts as needed; here only pointers and refs do.
        remove_any(&self.folder(clone).join(".git/mlx/base"));
        let staged =
            self.clones[clone].refs.get(&self.clones[clone].branch).and_then(|it| it.last().copied());
        self.clones[clone].pointers = staged.into_iter().chain([self.count]).collect();
        // Publishes its needs, and those of all others, even if an old list then stops it.
        self.run(clone, "gc");
        self.publish_readable();
    }

    fn commit(&mut self, clone: usize) {
        self.add(clone);
        self.git(clone, "add -A");
        self.git(clone, "commit -q -m more");
        let model = &mut self.clones[clone];
        model.refs.entry(model.branch.clone()).or_default().insert(self.count);
        model.pointers = Contents::from([self.count]);
    }

    fn fetch(&mut self, clone: usize, from: usize) {
        if from == clone || self.clones[from].is_away {
            return;
        }
        let folder = self.folder(from);
        self.git(
            clone,
            &format!(
                "fetch -q --prune --no-write-fetch-head {} +refs/heads/*:refs/fetched/{from}/*",
                folder.display()
            ),
        );
        let heads = self.clones[from].refs.clone();
        let heads = heads.into_iter().filter(|(name, _)| !name.starts_with("refs/"));
        let model = &mut self.clones[clone];
        model.refs.retain(|name, _| !name.starts_with(&format!("refs/fetched/{from}/")));
        model.refs.extend(heads.map(|(name, contents)| (format!("refs/fetched/{from}/{name}"), contents)));
    }

    /// Creates a branch here, or removes a branch or a fetched ref.
    fn change_refs(&mut self, clone: usize, remove: bool) {
        let model = &self.clones[clone];
        let others: Vec<_> = model.refs.keys().filter(|name| **name != model.branch).cloned().collect();
        if !remove || others.is_empty() {
            self.count += 1;
            let name = format!("b{}", self.count);
            self.git(clone, &format!("branch -q {name}"));
            let model = &mut self.clones[clone];
            let contents = model.refs.get(&model.branch).cloned().unwrap_or_default();
            model.refs.insert(name, contents);
            return;
        }
        let name = others[self.random(others.len())].clone();
        let full = if name.starts_with("refs/") { name.clone() } else { format!("refs/heads/{name}") };
        self.git(clone, &format!("update-ref -d {full}"));
        self.clones[clone].refs.remove(&name);
    }

    fn switch(&mut self, clone: usize) {
        let model = &self.clones[clone];
        let branches: Vec<_> = model.refs.keys().filter(|name| !name.starts_with("refs/")).cloned().collect();
        if branches.is_empty() {
            return;
        }
        let name = branches[self.random(branches.len())].clone();
        self.git(clone, &format!("checkout -q -f {name}"));
        let model = &mut self.clones[clone];
        model.pointers = model.refs[&name].last().copied().into_iter().collect();
        model.branch = name;
    }

    /// Moves a clone to a disk that is not mounted, or brings it back.
    fn move_away(&mut self, clone: usize) {
        let (here, away) = (self.folder(clone), self.sandbox.root().join(format!("away-{clone}")));
        let is_away = &mut self.clones[clone].is_away;
        if *is_away {
            fs::rename(away, here).unwrap();
        } else {
            fs::rename(here, away).unwrap();
        }
        *is_away = !*is_away;
    }

    /// Lets days pass: all files of the cache become older.
    fn pass(&mut self, days: u32) {
        self.day += days;
        for entry in walkdir::WalkDir::new(self.sandbox.root().join("cache")) {
            let entry = entry.unwrap();
            if entry.file_type().is_file() {
                let time = entry.metadata().unwrap().modified().unwrap()
                    - Duration::from_hours(24 * u64::from(days));
                fs::File::open(entry.path()).unwrap().set_modified(time).unwrap();
            }
        }
    }

    fn gc(&mut self, clone: usize) {
        let before = self.stored();
        let ran = self.run(clone, "gc --grace 0s --yes --json");
        let away: Vec<_> = self.clones.iter().filter(|it| it.is_away).cloned().collect();
        self.publish_readable();
        let oldest = away.iter().map(|it| self.day - it.written).max().unwrap_or(0);
        if ran.code == 4 {
            // At thirty days the seconds decide.
            assert!(oldest >= 30 && ran.err.contains("older than 30 days"), "{}\n{:#?}", ran.err, self.steps);
            return assert_eq!(self.stored(), before, "{:#?}", self.steps);
        }
        assert!(ran.code == 0 && oldest <= 30, "{}\n{:#?}", ran.err, self.steps);
        let stored = self.stored();
        for (number, model) in self.clones.iter().enumerate() {
            let needs = model.needs();
            let lost: Vec<_> = needs.difference(&stored).filter(|it| before.contains(*it)).collect();
            assert_eq!(lost, Vec::<&u32>::new(), "of clone {number}: {:#?}", self.steps);
        }
        if away.is_empty() {
            let needed: Contents = self.clones.iter().flat_map(CloneModel::needs).collect();
            let swept: Value = serde_json::from_str(&ran.out).unwrap();
            // Some stay beside needed ones in a pack that is mostly needed.
            let unneeded = stored.difference(&needed).count() as u64;
            assert_eq!(unneeded, swept["retained"]["count"].as_u64().unwrap(), "{:#?}", self.steps);
        } else {
            let recent = |content: &&u32| self.day - self.named[*content] <= 30;
            let lost: Vec<_> = before.iter().filter(recent).filter(|it| !stored.contains(it)).collect();
            assert_eq!(lost, Vec::<&u32>::new(), "named within 30 days: {:#?}", self.steps);
        }
    }

    /// A gc renews the lists of all clones that it can read.
    fn publish_readable(&mut self) {
        for clone in 0..CLONES {
            if !self.clones[clone].is_away {
                self.publish(clone);
            }
        }
    }

    /// Returns the contents in the cache.
    fn stored(&self) -> Contents {
        let files = fs::read_dir(self.sandbox.root().join("cache/packs")).unwrap();
        let indexes = files
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|it| it == "idx"));
        let indexes: Vec<_> = indexes.map(|path| Index::parse(fs::read(path).unwrap()).unwrap()).collect();
        let is_stored = |content: &u32| {
            let digest = Digest::of(text(*content).as_bytes());
            indexes.iter().any(|index| index.find(&digest, &[Kind::Content]).is_some())
        };
        (1..=self.count).filter(is_stored).collect()
    }

    fn step(&mut self) {
        let (what, clone) = (self.random(20), self.random(CLONES));
        self.steps.push(format!("{what} in {clone}, day {}", self.day));
        if self.clones[clone].is_away && what < 17 {
            if what < 8 {
                self.move_away(clone);
            }
            return;
        }
        match what {
            0..3 => self.commit(clone),
            3 => self.add(clone),
            4..7 => {
                let from = self.random(CLONES);
                self.fetch(clone, from);
            }
            7 => self.change_refs(clone, false),
            8..11 => self.change_refs(clone, true),
            11 => self.switch(clone),
            12..16 => self.gc(clone),
            16 => self.move_away(clone),
            _ => {
                let days = [1, 5, 12][what - 17];
                self.pass(days);
            }
        }
    }
}

/// Text of a content: all have the same length, so that packs are rewritten by their number of needed ones.
fn text(number: u32) -> String {
    format!("content {number:05}")
}

#[test]
fn gc_beside_random_clones_frees_what_no_ref_names_and_nothing_else() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = number("MLX_SEED").map_or(1..number("MLX_SEEDS").unwrap_or(SEEDS) + 1, |seed| seed..seed + 1);
    for seed in seeds {
        let ran = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            (0..STEPS).for_each(|_| world.step());
            for clone in (0..CLONES).filter(|clone| world.clones[*clone].is_away).collect::<Vec<_>>() {
                world.move_away(clone);
            }
            world.gc(0);
        });
        assert!(ran.is_ok(), "MLX_SEED={seed} repeats this");
    }
}
