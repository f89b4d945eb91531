//! Property test: after any sequence of edits, adds, stage results, commits, checkouts, restores, resets, gcs
//! and crashes, the store holds every object that any commit refers to. The expected state is kept in memory.
//! Results are recorded without a run, since a test has no `mlx` that could start one.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use crate::{
    digest::Digest,
    error::Kind,
    fs::{self, Crash, Sync},
    git::{Rev, SingleFile},
    maintenance::{GcMode, check, collect},
    path::RepoPath,
    pipeline::{LOCKFILE, Lockfile, Options, Pipelines, accept, repro},
    pointer::{ContentKind, Pointer},
    progress::Silent,
    repo::Repo,
    store::{EntryKind, Store, diff},
    workspace::{AddRules, Workspace, checkout},
};

type FileContents = BTreeMap<RepoPath, Vec<u8>>;

#[derive(Clone, Debug)]
enum Step {
    Edit(u8, u8),
    Delete(u8),
    Add,
    /// Changes a file of the stage's output and records it as the result.
    Accept(u8, u8),
    /// Deletes the stage's output and restores it.
    Restore,
    /// Commits the pointer or the lockfile.
    Commit(&'static str),
    Checkout(usize),
    /// Moves the branch back; the commits after that point are no longer needed.
    Reset(usize),
    Gc,
    /// Crashes a step at its n-th disk operation, on whichever thread that is.
    Crash(u64, Box<Step>),
}

fn step() -> impl Strategy<Value = Step> {
    let step = prop_oneof![
        4 => (0..6_u8, 0..9_u8).prop_map(|(name, text)| Step::Edit(name, text)),
        1 => (0..6_u8).prop_map(Step::Delete),
        4 => Just(Step::Add),
        2 => (0..3_u8, 0..9_u8).prop_map(|(name, text)| Step::Accept(name, text)),
        1 => Just(Step::Restore),
        3 => Just(Step::Commit("data.mlx")),
        1 => Just(Step::Commit(LOCKFILE)),
        2 => any::<usize>().prop_map(Step::Checkout),
        1 => any::<usize>().prop_map(Step::Reset),
        4 => Just(Step::Gc),
    ];
    let step = step.boxed();
    let crashed = (1..60_u64, step.clone()).prop_map(|(at, step)| Step::Crash(at, Box::new(step)));
    prop_oneof![3 => step, 1 => crashed]
}

fn path(text: &str) -> RepoPath {
    RepoPath::from_text(text).unwrap()
}

/// Returns a few bytes, or more than a pack takes.
fn content(number: u8) -> Vec<u8> {
    if number == 8 { vec![number; 1_100_000] } else { vec![number; usize::from(number) * 10 + 1] }
}

struct World {
    temp: tempfile::TempDir,
    /// Expected files for each digest of `data` and of `out`.
    expected: HashMap<Digest, FileContents>,
    /// Commits of the branch, oldest first, each with its only file.
    commits: Vec<(Rev, &'static str, Vec<u8>)>,
    /// True once a step may have crashed.
    crashed: bool,
}

impl World {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let git = |args: &[&str]| {
            let mut command = std::process::Command::new("git");
            command.arg("-C").arg(temp.path()).args(args);
            assert!(command.status().unwrap().success());
        };
        git(&["init", "-q", "-b", "main"]);
        git(&["config", "user.name", "Ada"]);
        git(&["config", "user.email", "ada@park.example"]);
        let repo = Repo::init(temp.path()).unwrap();
        repo.files.write(&path("data/start"), b"start", Sync::Later).unwrap();
        repo.files.write(&path("out/result"), b"result", Sync::Later).unwrap();
        let stage = b"[stage.s]\ncmd = 'false'\nouts = ['out']\n";
        repo.files.write(&path("mlx.toml"), stage, Sync::Later).unwrap();
        Self { temp, expected: HashMap::new(), commits: Vec::new(), crashed: false }
    }

    fn repo(&self) -> Repo {
        Repo::discover(self.temp.path()).unwrap()
    }

    /// Returns the current files of a folder of the workspace.
    fn files(&self, folder: &str) -> FileContents {
        let repo = self.repo();
        let mut found = FileContents::new();
        for (name, _) in repo.files.dir(&path(folder)).unwrap().names().unwrap() {
            if !name.starts_with(fs::TEMP_PREFIX) {
                let path = path(folder).join(&name).unwrap();
                found.insert(path.clone(), repo.files.read(&path).unwrap());
            }
        }
        found
    }

    fn run(&mut self, step: &Step) {
        // Only the step itself may crash.
        let repo = Crash::pause(|| self.repo());
        match step {
            Step::Edit(name, text) => {
                let name = path(&format!("data/{name}"));
                Crash::pause(|| repo.files.write(&name, &content(*text), Sync::Later).unwrap());
            }
            Step::Delete(name) => {
                Crash::pause(|| repo.files.remove(&path(&format!("data/{name}"))).unwrap());
            }
            Step::Add => self.add(&repo),
            Step::Accept(name, text) => {
                let name = path(&format!("out/{name}"));
                Crash::pause(|| repo.files.write(&name, &content(*text), Sync::Later).unwrap());
                self.accept(&repo);
            }
            Step::Restore => self.restore(&repo),
            Step::Commit(file) => self.commit(&repo, file),
            Step::Checkout(at) => self.checkout(&repo, *at),
            Step::Reset(at) => self.reset(&repo, *at),
            // A gc may fail only because of a crash.
            Step::Gc => {
                let done = collect(&repo, 0, GcMode::Apply, &Silent);
                assert!(done.is_ok() || Crash::has_happened(), "{done:?}");
            }
            Step::Crash(at, step) => {
                self.crashed = true;
                let crash = Crash::at(*at);
                self.run(step);
                drop(crash);
            }
        }
    }

    fn add(&mut self, repo: &Repo) {
        let workspace = Crash::pause(|| Workspace::open(repo).unwrap());
        let added = workspace.add(&path("data"), AddRules::default(), &Silent);
        let saved = added.and_then(|it| workspace.save(&Silent).map(|()| it));
        // An edit on top of a crashed checkout may be one of a file that the pointer changes, too.
        let conflict = self.crashed && saved.as_ref().is_err_and(|error| error.kind() == Kind::Conflict);
        assert!(saved.is_ok() || conflict || Crash::has_happened(), "{saved:?}");
        // Even after a crash, the pointer is either the old one or the new one.
        Crash::pause(|| {
            let repo = self.repo();
            if let Some(pointer) = repo.pointer(&path("data")).unwrap()
                && !self.expected.contains_key(&pointer.content.digest)
            {
                let recorded = read(&repo.store, &pointer);
                // After a crashed checkout, some files are still as they were before, and are not recorded.
                assert!(self.crashed || self.files("data") == recorded, "{recorded:?}");
                self.expected.insert(pointer.content.digest, recorded);
            }
        });
    }

    fn accept(&mut self, repo: &Repo) {
        let workspace = Crash::pause(|| Workspace::open(repo).unwrap());
        let pipelines = Crash::pause(|| Pipelines::open(&workspace, self.temp.path(), &[]).unwrap());
        let done = accept(&pipelines, &[pipelines.stage("s").unwrap()], &Silent);
        let done = done.and_then(|_| workspace.save(&Silent));
        // A crashed restore may have left a part of the output.
        let is_part = self.crashed && done.as_ref().is_err_and(|error| error.kind() == Kind::NotFound);
        assert!(done.is_ok() || is_part || Crash::has_happened(), "{done:?}");
        // Even after a crash, the lockfile is either the old one or the new one.
        Crash::pause(|| {
            let repo = self.repo();
            let bytes = repo.files.read_if_exists(&path(LOCKFILE)).unwrap();
            for output in bytes.iter().flat_map(|bytes| contents(LOCKFILE, bytes)) {
                let recorded = || read(&repo.store, &output);
                self.expected.entry(output.content.digest).or_insert_with(recorded);
                assert!(done.is_err() || self.files("out") == recorded());
            }
        });
    }

    fn restore(&self, repo: &Repo) {
        let Some(bytes) = Crash::pause(|| repo.files.read_if_exists(&path(LOCKFILE)).unwrap()) else {
            return;
        };
        Crash::pause(|| repo.files.remove(&path("out")).unwrap());
        let workspace = Crash::pause(|| Workspace::open(repo).unwrap());
        let pipelines = Crash::pause(|| Pipelines::open(&workspace, self.temp.path(), &[]).unwrap());
        let done = repro(&pipelines, &pipelines.select_all(), Options::default(), &Silent);
        let done = done.and_then(|(_, failure)| failure.map_or(Ok(()), Err));
        let done = done.and_then(|()| workspace.save(&Silent));
        assert!(done.is_ok() || Crash::has_happened(), "{done:?}");
        if done.is_ok() && !Crash::has_happened() {
            let recorded = &contents(LOCKFILE, &bytes)[0].content.digest;
            assert_eq!(Crash::pause(|| self.files("out")), self.expected[recorded]);
        }
    }

    fn commit(&mut self, repo: &Repo, name: &'static str) {
        let Some(bytes) = Crash::pause(|| repo.files.read_if_exists(&path(name)).unwrap()) else {
            return;
        };
        let single = SingleFile { name, bytes: &bytes, message: "data" };
        let parent = self.commits.last().map(|it| it.0.clone());
        let rev = repo.git.commit_single(&single, parent.as_ref()).unwrap();
        self.commits.push((rev, name, bytes));
        self.update_branch();
    }

    /// Runs Git's own program, which injected crashes do not affect.
    fn update_branch(&self) {
        let Some((rev, ..)) = self.commits.last() else { return };
        let mut command = std::process::Command::new("git");
        command.arg("-C").arg(self.temp.path()).args(["update-ref", "refs/heads/main", &rev.to_string()]);
        assert!(command.status().unwrap().success());
    }

    fn checkout(&mut self, repo: &Repo, at: usize) {
        let pointers: Vec<_> = self.commits.iter().filter(|it| it.1 == "data.mlx").collect();
        if pointers.is_empty() {
            return;
        }
        let bytes = &pointers[at % pointers.len()].2;
        if repo.files.write(&path("data.mlx"), bytes, Sync::Now).is_err() {
            return;
        }
        let workspace = Crash::pause(|| Workspace::open(repo).unwrap());
        let Ok(Some(pointer)) = repo.pointer(&path("data")) else { return };
        let done = checkout(&workspace, &pointer, true, &Silent);
        let done = done.and_then(|_| workspace.save(&Silent));
        assert!(done.is_ok() || Crash::has_happened(), "{done:?}");
        if done.is_ok() && !Crash::has_happened() {
            assert_eq!(Crash::pause(|| self.files("data")), self.expected[&pointer.content.digest]);
        }
    }

    fn reset(&mut self, _: &Repo, at: usize) {
        if !self.commits.is_empty() {
            self.commits.truncate(at % self.commits.len() + 1);
            self.update_branch();
        }
    }

    /// Checks that a newly opened store holds everything that any commit or the workspace's pointer and
    /// lockfile refer to.
    fn check_objects(&self) {
        let repo = self.repo();
        let current = |file: &'static str| Some((file, repo.files.read_if_exists(&path(file)).unwrap()?));
        let current = ["data.mlx", LOCKFILE].into_iter().filter_map(current);
        let committed = self.commits.iter().map(|(_, file, bytes)| (*file, bytes.clone()));
        for (file, bytes) in committed.chain(current) {
            for pointer in contents(file, &bytes) {
                assert_eq!(pointer.content.kind, ContentKind::Tree);
                assert_eq!(read(&repo.store, &pointer), self.expected[&pointer.content.digest]);
            }
        }
    }
}

/// Returns the contents that a pointer or lockfile records.
fn contents(file: &str, bytes: &[u8]) -> Vec<Pointer> {
    if file != LOCKFILE {
        return vec![Pointer::parse(path("data"), bytes).unwrap()];
    }
    let lock = Lockfile::parse(&path(file), bytes).unwrap();
    let outputs = lock.records().flat_map(|(_, record)| &record.outputs);
    outputs.map(|(path, content)| Pointer { path: path.clone(), content: *content }).collect()
}

fn read(store: &Store, recorded: &Pointer) -> FileContents {
    let mut found = FileContents::new();
    for difference in diff(store, &recorded.path, None, Some(&recorded.content.digest)).unwrap() {
        let side = difference.new.unwrap();
        if side.kind != EntryKind::Folder {
            found.insert(difference.path, store.read(&side.digest).unwrap());
        }
    }
    found
}

#[test]
fn every_object_that_a_commit_refers_to_is_kept() {
    let name = "maintenance::model_test::every_object_that_a_commit_refers_to_is_kept";
    Crash::alone(name, check_random_steps);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    fn check_random_steps(steps in prop::collection::vec(step(), 1..16)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
            world.check_objects();
        }
        // Files that a crash left behind are removed and do not count as damage.
        let repo = world.repo();
        collect(&repo, 0, GcMode::Apply, &Silent).unwrap();
        let workspace = Workspace::open(&repo).unwrap();
        let report = check(&workspace, false, &Silent).unwrap();
        prop_assert!(!report.has_problems(), "{:?}", report);
        world.check_objects();
    }
}
