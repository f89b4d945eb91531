//! Seeded runs of push and pull from two clones, through an S3 that throttles, delays, refuses, forgets to
//! answer and damages. Each command ends well or with a clear error, and all is right once the faults stop.
//!
//! `MLX_SEEDS` says how many seeds are run, and `MLX_SEED` runs one alone.

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{
    fake_s3::{Bucket, FakeS3},
    loop_mount::random_bytes,
    s3_faults::{Faults, choose, draw},
    sandbox::{CommandResult, Sandbox, command_result, snapshot},
};

/// Seeds without `MLX_SEEDS`.
const SEEDS: u64 = 100;
/// Runs at the same time: most of them wait for the line.
const THREADS: usize = 12;
/// Folders of the clones, and the tracked folder that each changes.
const CLONES: [(&str, &str); 2] = [("repo", "a"), ("other", "b")];
const FOLDERS: [&str; 3] = ["repo", "other", "reader"];

/// Two clones without data, a third one that only reads, and the service of their remote. Runs use it in
/// turn.
struct Place {
    sandbox: Sandbox,
    service: FakeS3,
}

/// State of one run.
struct Run<'p> {
    seed: u64,
    sandbox: &'p Sandbox,
    service: &'p FakeS3,
    pack_size: u64,
    /// Number of draws so far.
    draws: u64,
    /// Clones whose last push said that all is sent.
    is_pushed: [bool; 2],
    steps: Vec<String>,
}

#[test]
fn seeded_runs_end_well_or_with_a_clear_error() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = number("MLX_SEED").map_or(0..number("MLX_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let worker = || {
            let place = Place::new();
            let seeds = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::SeqCst)));
            seeds.take_while(|seed| *seed < end).filter_map(|seed| place.failure_of(seed)).collect::<Vec<_>>()
        };
        let workers: Vec<_> =
            (0..THREADS.min((end - seeds.start) as usize)).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{} of {end} seeds fail:\n{}", failures.len(), failures.join("\n"));
}

impl Place {
    fn new() -> Self {
        let (sandbox, service) = (Sandbox::new(), FakeS3::start());
        sandbox.ok(&format!("remote add s3 {}", service.remote_args()));
        sandbox.commit("start");
        for name in ["other", "reader"] {
            let folder = sandbox.root().join(name);
            sandbox.git(&format!("clone -q {} {}", sandbox.repo.display(), folder.display()));
            sandbox.at(&folder).ok("remote trust s3");
        }
        let place = Self { sandbox, service };
        place.sandbox.copy_folders(&FOLDERS, "saved");
        place
    }

    /// Runs a seed. Returns the failure, with the seed that repeats it, if it fails.
    fn failure_of(&self, seed: u64) -> Option<String> {
        for folder in FOLDERS {
            fs::remove_dir_all(self.sandbox.root().join(folder)).unwrap();
        }
        self.sandbox.copy_folders(
            &FOLDERS.map(|folder| format!("saved/{folder}")).each_ref().map(String::as_str),
            ".",
        );
        *self.service.bucket() = Bucket::default();
        let mut run = Run::new(seed, self);
        let outcome = catch_unwind(AssertUnwindSafe(|| run.run()));
        let panicked = outcome.err()?;
        let text = panicked.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panicked.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Some(format!("MLX_SEED={seed}: after {}: {}", run.steps.join(", "), text.unwrap_or_default()))
    }
}

impl<'p> Run<'p> {
    fn new(seed: u64, place: &'p Place) -> Self {
        // With the smallest packs there are enough of them to be merged.
        let pack_size = choose(seed, "pack size", &[500, 4_000, 4_000, 16_000, 16_000]);
        Self {
            seed,
            sandbox: &place.sandbox,
            service: &place.service,
            pack_size,
            draws: 0,
            is_pushed: [false; 2],
            steps: Vec::new(),
        }
    }

    fn run(&mut self) {
        (0..CLONES.len()).for_each(|clone| self.edit(clone));
        let faults = Faults::new(self.seed);
        let is_lossless = faults.damaged == 0;
        self.service.bucket().start_faults(faults);
        for _ in 0..2 + self.next(3) {
            self.step();
        }
        self.steps.push("the end of the faults".to_owned());
        self.service.bucket().stop_faults();
        if is_lossless {
            self.assert_promises();
        }
        self.settle();
        self.assert_complete();
    }

    /// Makes the next draw.
    fn next(&mut self, choices: u64) -> u64 {
        self.draws += 1;
        draw(self.seed, &format!("step {}", self.draws)) % choices
    }

    /// Returns the folder that a clone changes.
    fn folder(&self, clone: usize) -> PathBuf {
        let (folder, tracked) = CLONES[clone];
        self.sandbox.root().join(folder).join(tracked)
    }

    fn command(&self, folder: &str, args: &str) -> Command {
        let mut command = self.sandbox.command(env!("CARGO_BIN_EXE_mlx"), &self.sandbox.root().join(folder));
        command.args(args.split(' ')).env("MLX_PACK_SIZE", self.pack_size.to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn mlx(&self, folder: &str, args: &str) -> CommandResult {
        let ran = command_result(self.command(folder, args).output().unwrap());
        assert_clear(args, &ran);
        ran
    }

    fn step(&mut self) {
        let clone = self.next(2) as usize;
        match self.next(6) {
            0 => self.edit(clone),
            1 => self.push_both(),
            2 => self.kill_push(clone),
            3 => {
                self.steps.push(format!("pull {clone}"));
                self.mlx(CLONES[clone].0, "pull a b");
            }
            _ => drop(self.push(clone)),
        }
    }

    /// Changes files of the clone's own folder, and gives the other one and the reader its pointer.
    fn edit(&mut self, clone: usize) {
        self.steps.push(format!("edit {clone}"));
        self.is_pushed[clone] = false;
        let (name, tracked) = CLONES[clone];
        let folder = self.folder(clone);
        fs::create_dir_all(folder.join("sub")).unwrap();
        for number in 0..8 + self.next(12) {
            // Both clones draw from the same contents.
            let content = self.next(60);
            let path = folder.join(if number % 3 == 0 { "sub" } else { "." }).join(number.to_string());
            fs::write(path, random_bytes(content as usize * 50, content)).unwrap();
        }
        if self.next(8) == 0 {
            let content = self.next(60);
            fs::write(folder.join("large"), random_bytes(1_300_000, content)).unwrap();
        }
        assert_eq!(self.mlx(name, &format!("add {tracked}")).code, 0);
        for other in FOLDERS.iter().filter(|other| **other != name) {
            let (to, pointer) = (self.sandbox.root().join(other), format!("{tracked}.mlx"));
            fs::copy(self.folder(clone).with_file_name(&pointer), to.join(&pointer)).unwrap();
        }
    }

    fn push(&mut self, clone: usize) -> CommandResult {
        self.steps.push(format!("push {clone}"));
        let pushed = self.mlx(CLONES[clone].0, "push a b");
        self.is_pushed[clone] |= pushed.code == 0;
        pushed
    }

    /// Pushes from both clones at the same time.
    fn push_both(&mut self) {
        self.steps.push("push both".to_owned());
        let pushes: Vec<Child> =
            CLONES.iter().map(|(folder, _)| self.command(folder, "push a b").spawn().unwrap()).collect();
        for (clone, push) in pushes.into_iter().enumerate() {
            let pushed = command_result(push.wait_with_output().unwrap());
            assert_clear("push", &pushed);
            self.is_pushed[clone] |= pushed.code == 0;
        }
    }

    /// Kills a push at one of its uploads, unless it has fewer.
    fn kill_push(&mut self, clone: usize) {
        let left = self.next(30) as usize;
        self.steps.push(format!("kill push {clone} at upload {left}"));
        (self.service.bucket().uploads_left, self.service.bucket().hangs) = (Some(left), true);
        let mut push = self.command(CLONES[clone].0, "push a b").spawn().unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        while !self.service.bucket().waiting && push.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the push hangs");
            std::thread::sleep(Duration::from_millis(3));
        }
        push.kill().unwrap();
        let pushed = command_result(push.wait_with_output().unwrap());
        let mut bucket = self.service.bucket();
        (bucket.uploads_left, bucket.hangs, bucket.waiting) = (None, false, false);
        self.is_pushed[clone] |= pushed.code == 0;
    }

    /// Checks that a reader gets all that was said to be sent.
    fn assert_promises(&mut self) {
        for clone in (0..CLONES.len()).filter(|clone| self.is_pushed[*clone]) {
            let tracked = CLONES[clone].1;
            let pulled = self.mlx("reader", &format!("pull {tracked}"));
            assert_eq!(pulled.code, 0, "`{tracked}` was said to be sent: {}", pulled.err);
        }
    }

    /// Runs the commands again that failed, without faults; damage is found by a reader and repaired by
    /// pushes.
    fn settle(&mut self) {
        for round in 0..3 {
            let mut pushes = [0, 1].map(|clone| self.push(clone));
            if pushes[0].code == 3 {
                // It lacked data that the other one sent now.
                pushes[0] = self.push(0);
            }
            assert!(pushes.iter().all(|push| push.code == 0), "{pushes:?}");
            self.steps.push("pull of the reader".to_owned());
            let pulled = self.mlx("reader", "pull a b");
            match pulled.code {
                0 => break,
                3 | 5 if round < 2 => {}
                _ => panic!("{pulled:?}"),
            }
        }
    }

    /// Checks that all clones have all data, and that the remote is whole.
    fn assert_complete(&mut self) {
        let contents = || -> Vec<BTreeMap<_, _>> {
            (0..CLONES.len()).map(|clone| snapshot(&self.folder(clone))).collect()
        };
        let added = contents();
        for folder in FOLDERS {
            // The reader has pulled already.
            if folder != "reader" {
                let pulled = self.mlx(folder, "pull a b");
                assert_eq!(pulled.code, 0, "{folder}: {}", pulled.err);
            }
            let there = CLONES.map(|(_, tracked)| snapshot(&self.sandbox.root().join(folder).join(tracked)));
            assert!(there.to_vec() == added && contents() == added, "{folder} has other bytes");
        }
        let mut checked = self.mlx("repo", "fsck --remote s3 --full");
        for folder in ["repo", "other"] {
            if checked.code == 10 {
                self.steps.push(format!("repair by {folder}"));
                checked = self.mlx(folder, "fsck --remote s3 --full --repair");
            }
        }
        assert_eq!(checked.code, 0, "{checked:?}");
    }
}

/// Checks that a command succeeded, found problems, or names in one sentence what stands in its way, and what
/// to do.
fn assert_clear(args: &str, ran: &CommandResult) {
    if [0, 10].contains(&ran.code) {
        return;
    }
    assert!([3, 5, 6, 7].contains(&ran.code), "{args}: {ran:?}");
    let mut lines = ran.err.lines().rev();
    let (hint, error) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let names_the_culprit = error.contains("s3") && error.starts_with("error: ");
    assert!(names_the_culprit && hint.starts_with("hint: "), "{args}: {ran:?}");
}
