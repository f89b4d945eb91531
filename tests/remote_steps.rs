//! Drives real clones through the steps of the model of a remote, and compares the files at the remote with
//! the model after each step, so that the two cannot part.
//!
//! The service holds each request that changes a file until the model makes that step. Requests that only
//! read are answered at once, and the model makes these steps at once, too. Walks are drawn from seeds.

use std::{
    collections::BTreeSet,
    process::{Child, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use axum::{body::Bytes, http::Method};

use crate::{
    fake_s3::{Bucket, Held},
    remote_files::{File, List, Pack, Remote, packs_of, set_of},
    remote_model::{Action, Operation, Protocol, Request, State},
    remote_model_checks::{complete, killed, merged},
    s3_faults::draw,
    sandbox::command_result,
    three_clones::{CLONES, Place, key, name_of},
};

const WALKS: u64 = 40;
const STEPS: u64 = 30;
const THREADS: usize = 4;
/// Days by which the clock of each clone is behind.
const BEHIND: [i64; 3] = [21, 0, 0];

struct Walk<'p> {
    place: &'p Place,
    protocol: Protocol,
    state: State,
    seed: u64,
    running: [Option<(Child, Operation)>; 3],
    /// Of each clone, the number of requests before its command, and the packs that it uses again.
    reused: [(usize, Vec<Pack>); 3],
    late: Option<(Method, String, Bytes)>,
    operations: i64,
    steps: Vec<String>,
    /// Reason for which the walk ended early.
    end: Option<&'static str>,
    /// Kinds of steps that were made.
    kinds: BTreeSet<String>,
}

#[test]
fn seeded_walks_of_real_clones_follow_the_model() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let only = number("MLX_SEED");
    let seeds = only.map_or(0..number("MLX_SEEDS").unwrap_or(WALKS), |seed| seed..seed + 1);
    let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
    let kinds: BTreeSet<String> = std::thread::scope(|scope| {
        let worker = || {
            let place = Place::new();
            let seeds = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::SeqCst)));
            let walks = seeds.take_while(|seed| *seed < end).flat_map(|seed| Walk::run(&place, seed));
            walks.collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let expected = [
        "Damage",
        "Land",
        "Wait",
        "Start Push",
        "Start Clear",
        "Start Fetch",
        "Step Put(Pack)",
        "Step Put(Index)",
        "Step Put(Replaced)",
        "Step Put(Roots)",
        "Step Put(Note)",
        "Step Delete(Pack)",
        "Step Delete(Index)",
        "Step Delete(Replaced)",
        "Step Delete(Note)",
        "Stop Put(Pack)",
        "Stop Put(Index)",
        "GiveUp Put(Pack)",
        "GiveUp Put(Index)",
        "GiveUp Delete(Pack)",
        "Repeat Put(Pack)",
        "Repeat Put(Index)",
    ];
    let missing: Vec<_> = expected.iter().filter(|kind| !kinds.contains(**kind)).collect();
    let ended = kinds.iter().filter(|kind| kind.contains("another order")).count() as u64;
    assert!(ended * 4 <= end.max(4), "{ended} of {end} walks end early");
    assert!(missing.is_empty() || only.is_some(), "no walk makes the steps {missing:?}");
}

impl<'p> Walk<'p> {
    /// Makes a walk. Returns the kinds of its steps.
    fn run(place: &'p Place, seed: u64) -> BTreeSet<String> {
        let starts = [Remote::default(), complete(), merged(2), merged(3), killed(0), killed(2)];
        let start = starts[draw(seed, "start") as usize % starts.len()].clone();
        let protocol = Protocol::new(vec![start.clone()], (7, 5, 5));
        let state = protocol.start(&start);
        let mut walk = Self {
            place,
            protocol,
            state,
            seed,
            running: [None, None, None],
            reused: Default::default(),
            late: None,
            operations: 0,
            steps: Vec::new(),
            end: None,
            kinds: BTreeSet::new(),
        };
        (0..CLONES.len()).for_each(|clone| place.restore(clone));
        walk.fill_bucket(&start);
        walk.compare();
        for step in 0..STEPS {
            let Some(action) = walk.choose(step) else { break };
            walk.steps.push(format!("{action:?}"));
            walk.act(action);
            if let Some(end) = walk.end {
                walk.kinds.insert(format!("{end} {seed}"));
                break;
            }
            walk.compare();
        }
        for (child, _) in walk.running.iter_mut().flatten() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        walk.kinds
    }

    /// Draws the next action: mostly a request of an operation that is under way.
    fn choose(&self, step: u64) -> Option<Action> {
        let mut choices = Vec::new();
        for action in self.state.actions() {
            let weight = match action {
                Action::Step(_) => 8,
                Action::Start(..) | Action::Land | Action::Wait => 2,
                // A pack with a new name cannot be made again from its objects.
                Action::Damage(pack) if pack.number() > 0 => 0,
                _ => 1,
            };
            choices.extend(std::iter::repeat_n(action, weight));
            if let Action::GiveUp(clone) = action {
                choices.push(Action::Stop(clone));
            }
        }
        choices.retain(|action| self.is_modeled(*action));
        let number = draw(self.seed, &format!("step {step}")) as usize;
        (!choices.is_empty()).then(|| choices[number % choices.len()])
    }

    /// Leaves out what depends on the order of names, which the model does not know.
    fn is_modeled(&self, action: Action) -> bool {
        let remote = &self.state.remote;
        let damage = remote.damaged | remote.notes;
        match action {
            // Which pack is read, or repaired first?
            Action::Damage(_) => damage == 0,
            Action::Start(_, Operation::Fetch) => {
                damage == 0 || remote.visible(true).count_ones() < 2 || remote.lists.is_empty()
            }
            Action::Start(clone, Operation::Push) => {
                // A pack that this clone named anew gets a third name.
                let renamed =
                    packs_of(remote.unindexed()).any(|pack| usize::from(pack.number()) == clone + 1);
                !renamed && (remote.notes == 0 || remote.unindexed() == 0)
            }
            _ => true,
        }
    }

    /// Puts the files of a remote of the model into the bucket.
    fn fill_bucket(&mut self, start: &Remote) {
        let files = &self.place.files;
        let mut bucket = self.place.service.bucket();
        *bucket = Bucket::default();
        bucket.gates = true;
        let mut put = |key: &str, age: u8| {
            bucket.objects.insert(key.to_owned(), files[key].clone());
            bucket.ages.insert(key.to_owned(), 7 * u64::from(age));
        };
        put("p/mlx-remote.toml", 0);
        for (pack_key, bytes) in files.iter().filter(|(key, _)| key.contains("/packs/")) {
            let pack = Pack::new(self.place.objects_of(bytes).unwrap(), 0);
            let Some(age) = start.age(pack) else { continue };
            put(pack_key, age);
            self.protocol.names.packs.insert(pack, name_of(pack_key).to_owned());
        }
        for pack in packs_of(start.indexes) {
            put(&key("indexes", &self.protocol.names.packs[&pack]), 0);
        }
        let of_folder = |folder: &str| files.keys().find(|key| key.contains(folder)).unwrap();
        for (list, age) in &start.lists {
            put(of_folder("/replaced/"), *age);
            self.protocol.names.lists.insert(*list, name_of(of_folder("/replaced/")).to_owned());
        }
        if start.has_roots {
            put(of_folder("/roots/"), 0);
        }
    }

    /// Makes a step of the model and of the real clones.
    fn act(&mut self, action: Action) {
        self.note(action);
        let clone = match action {
            Action::Start(clone, operation) => {
                self.start(clone, operation);
                clone
            }
            Action::Step(clone) => {
                self.release(clone, true);
                clone
            }
            Action::Repeat(clone) => {
                self.keep_late(clone);
                self.release(clone, true);
                clone
            }
            Action::Stop(clone) => {
                self.stop(clone);
                clone
            }
            Action::GiveUp(clone) => {
                self.keep_late(clone);
                self.kill(clone);
                clone
            }
            Action::Land => {
                let (method, key, body) = self.late.take().unwrap();
                let mut bucket = self.place.service.bucket();
                bucket.change(key, (method == Method::PUT).then_some(body));
                drop(bucket);
                self.state = self.protocol.next(&self.state, action);
                return;
            }
            Action::Damage(pack) => {
                let mut bucket = self.place.service.bucket();
                let bytes = bucket.objects.get_mut(&key("packs", &self.protocol.names.packs[&pack])).unwrap();
                *bytes = bytes.iter().map(|byte| !byte).collect();
                drop(bucket);
                self.state = self.protocol.next(&self.state, action);
                return;
            }
            Action::Wait => {
                let mut bucket = self.place.service.bucket();
                let keys: Vec<String> = bucket.objects.keys().cloned().collect();
                keys.into_iter().for_each(|key| *bucket.ages.entry(key).or_default() += 7);
                drop(bucket);
                self.state = self.protocol.next(&self.state, action);
                if self.state.late.is_none() {
                    self.late = None;
                }
                return;
            }
        };
        self.state = self.protocol.next(&self.state, action);
        if matches!(action, Action::Start(..)) {
            self.reused[clone].1 = self.reused_packs(clone);
        }
        self.make_reads(clone);
        self.settle(clone);
    }

    /// Returns the packs without an index that a clone uses again.
    fn reused_packs(&self, clone: usize) -> Vec<Pack> {
        let Some(process) = &self.state.clones[clone] else { return Vec::new() };
        let is_sent = |pack: Pack| process.left.contains(&Request::Put(File::Pack(pack)));
        let indexed = process.left.iter().filter_map(|request| match request {
            Request::Put(File::Index(pack)) => Some(*pack),
            _ => None,
        });
        indexed.filter(|pack| !is_sent(*pack)).collect()
    }

    /// Remembers the kind of a step.
    fn note(&mut self, action: Action) {
        let of_request = |clone: usize| {
            let text = format!("{:?}", self.next_request(clone).unwrap());
            let parts: Vec<&str> = text.split('(').collect();
            format!("{}({})", parts[0], parts[1].trim_end_matches(')'))
        };
        self.kinds.insert(match action {
            Action::Start(_, operation) => format!("Start {operation:?}"),
            Action::Step(clone) => format!("Step {}", of_request(clone)),
            Action::Stop(clone) => format!("Stop {}", of_request(clone)),
            Action::GiveUp(clone) => format!("GiveUp {}", of_request(clone)),
            Action::Repeat(clone) => format!("Repeat {}", of_request(clone)),
            Action::Damage(_) => "Damage".to_owned(),
            Action::Land => "Land".to_owned(),
            Action::Wait => "Wait".to_owned(),
        });
    }

    fn next_request(&self, clone: usize) -> Option<Request> {
        self.state.clones[clone].as_ref().map(|process| *process.left.last().unwrap())
    }

    /// Starts a command.
    fn start(&mut self, clone: usize, operation: Operation) {
        self.operations += 1;
        if clone == 2 {
            // It may have fetched what it lacks in the model.
            self.place.restore(clone);
        }
        // Others days each time, since a clone looks for leftovers once a day.
        let time = 1_700_000_000 + 86_400 * (self.operations - BEHIND[clone]);
        let folder = self.place.sandbox.root().join(CLONES[clone]);
        let mut command = self.place.sandbox.command(env!("CARGO_BIN_EXE_mlx"), &folder);
        command.args(match operation {
            Operation::Push => &["push", "d"][..],
            Operation::Clear => &["remote", "gc"],
            Operation::Fetch => &["fetch", "d"],
        });
        command.env("MLX_PACK_SIZE", "1").env("MLX_SMALL_PACKS", "1").env("MLX_TIMESTAMP", time.to_string());
        self.reused[clone] = (self.place.service.bucket().log.len(), Vec::new());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        self.running[clone] = Some((child, operation));
    }

    /// Stops a command: it is killed, or refused.
    fn stop(&mut self, clone: usize) {
        let is_refused = draw(self.seed, &format!("refuse {}", self.steps.len())).is_multiple_of(2);
        // A push goes on after a repair that was refused, and a pack does not wait for another.
        let is_pack = matches!(self.next_request(clone), Some(Request::Put(File::Pack(_))));
        if is_refused && !is_pack && self.state.remote.notes == 0 {
            self.release(clone, false);
        } else {
            self.kill(clone);
        }
    }

    fn kill(&mut self, clone: usize) {
        let (mut child, _) = self.running[clone].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        self.place.service.bucket().held.retain(|held| held.client != clone);
    }

    /// Keeps a copy of the next request of a clone.
    fn keep_late(&mut self, clone: usize) {
        let request = self.next_request(clone).unwrap();
        let bucket = self.place.service.bucket();
        let held = bucket.held.iter().find(|held| self.is_of(held, clone, request)).unwrap();
        let late = (held.method.clone(), held.key.clone(), held.body.clone());
        let name = name_of(&held.key).to_owned();
        drop(bucket);
        self.remember(request, name);
        self.late = Some(late);
    }

    /// Remembers the name of a file that a request puts.
    fn remember(&mut self, request: Request, name: String) {
        match request {
            Request::Put(File::Pack(pack)) => drop(self.protocol.names.packs.insert(pack, name)),
            Request::Put(File::Replaced(list)) => drop(self.protocol.names.lists.insert(list, name)),
            _ => {}
        }
    }

    /// Answers the next request of a clone.
    fn release(&mut self, clone: usize, is_done: bool) {
        let request = self.next_request(clone).unwrap();
        let mut bucket = self.place.service.bucket();
        let at = bucket.held.iter().position(|held| self.is_of(held, clone, request)).unwrap();
        let held = bucket.held.swap_remove(at);
        drop(bucket);
        self.remember(request, name_of(&held.key).to_owned());
        if is_done {
            let bytes = (held.method == Method::PUT).then(|| held.body.clone());
            self.place.service.bucket().change(held.key.clone(), bytes);
        }
        held.answer(is_done);
    }

    /// Returns true if a request that is held is this one of the model.
    fn is_of(&self, held: &Held, clone: usize, request: Request) -> bool {
        let (method, file) = match request {
            Request::Put(file) => (Method::PUT, file),
            Request::Delete(file) => (Method::DELETE, file),
            _ => return false,
        };
        let named = |folder: &str, pack: Pack| {
            self.protocol.names.packs.get(&pack).is_some_and(|name| held.key == key(folder, name))
        };
        let is_file = match file {
            File::Pack(pack) if method == Method::PUT && !self.is_known(pack) => {
                held.key.contains("/packs/") && self.place.objects_of(&held.body) == Some(pack.objects())
            }
            File::Pack(pack) => named("packs", pack),
            File::Index(pack) => named("indexes", pack),
            File::Note(pack) => named("damaged", pack),
            File::Roots => held.key.contains("/roots/"),
            File::Replaced(list) if method == Method::PUT => {
                held.key.contains("/replaced/") && self.list(&held.body) == list
            }
            File::Replaced(list) => {
                self.protocol.names.lists.get(&list).is_some_and(|name| held.key == key("replaced", name))
            }
        };
        held.client == clone && held.method == method && is_file && held.is_open()
    }

    /// Returns true if a pack has a name, which only those have for good that are not named anew.
    fn is_known(&self, pack: Pack) -> bool {
        pack.number() == 0 && self.protocol.names.packs.contains_key(&pack)
    }

    /// Parses a list of packs that another one replaces.
    fn list(&self, text: &[u8]) -> List {
        let text = String::from_utf8_lossy(text).into_owned();
        let pack = |line: &str| self.pack(line.rsplit(':').next().unwrap());
        let by = text.lines().find(|line| line.starts_with("by ")).map(pack).unwrap();
        let packs = set_of(text.lines().filter(|line| !line.starts_with("by ")).map(pack));
        List { packs, by }
    }

    fn pack(&self, name: &str) -> Pack {
        let known = self.protocol.names.packs.iter().find(|(_, known)| *known == name);
        *known.unwrap_or_else(|| panic!("{}: the pack {name} is not in the model", self.describe())).0
    }

    /// Makes the steps of the model that only read.
    fn make_reads(&mut self, clone: usize) {
        while self
            .next_request(clone)
            .is_some_and(|next| !matches!(next, Request::Put(_) | Request::Delete(_)))
        {
            self.state = self.protocol.next(&self.state, Action::Step(clone));
        }
    }

    /// Waits until a real clone is at the next request of the model, or has ended.
    fn settle(&mut self, clone: usize) {
        let left = self.state.clones[clone].as_ref().map(|process| process.left.clone()).unwrap_or_default();
        let is_pack = |request: &&Request| matches!(request, Request::Put(File::Pack(_)));
        // Packs are sent at the same time.
        let packs = left.iter().rev().take_while(is_pack).count();
        let expected = &left[left.len() - packs.max(1).min(left.len())..];
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let bucket = self.place.service.bucket();
            let is_held =
                |request: &Request| bucket.held.iter().any(|held| self.is_of(held, clone, *request));
            let is_there = expected.iter().all(is_held) && self.has_read_reused(&bucket, clone);
            let held: Vec<_> = bucket
                .held
                .iter()
                .filter(|held| held.client == clone)
                .map(|held| (&held.method, &held.key))
                .collect();
            let text = format!(
                "{}: the model is at {left:?}, the clone at {held:?} {:?} {:?}",
                self.describe(),
                self.protocol.names.packs,
                self.state.remote
            );
            let is_named_anew = bucket.held.iter().any(|held| self.is_same_merge(held, clone, expected));
            drop(bucket);
            let Some((child, _)) = &mut self.running[clone] else { return };
            let has_ended = child.try_wait().unwrap().is_some();
            if has_ended && expected.is_empty() {
                break;
            }
            if is_there && !expected.is_empty() {
                return;
            }
            if is_named_anew {
                self.end = Some("a merged pack has its objects in another order");
                return;
            }
            assert!(!has_ended || !expected.is_empty(), "{text}");
            if has_ended || Instant::now() > deadline {
                let (mut child, _) = self.running[clone].take().unwrap();
                child.kill().unwrap();
                panic!("{text}: {:?}", command_result(child.wait_with_output().unwrap()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let (child, operation) = self.running[clone].take().unwrap();
        self.place.service.bucket().held.retain(|held| held.client != clone);
        let ended = command_result(child.wait_with_output().unwrap());
        let was_stopped = self.steps.last().unwrap().starts_with("Stop");
        let lacks = clone == 2 && [3, 5].contains(&ended.code) && operation != Operation::Clear;
        assert!(ended.code == 0 || was_stopped || lacks, "{}: {ended:?}", self.describe());
    }

    /// Returns true if a clone has read the packs that it uses again: it does so while it sends others.
    fn has_read_reused(&self, bucket: &Bucket, clone: usize) -> bool {
        let (start, reused) = &self.reused[clone];
        let is_read = |pack: &Pack| {
            let key = key("packs", &self.protocol.names.packs[pack]);
            bucket.log[*start..].iter().any(|(method, read)| *method == Method::GET && *read == key)
        };
        reused.iter().all(is_read)
    }

    /// Returns true if a clone sends the merged pack of the model with another name: it found the packs in
    /// another order.
    fn is_same_merge(&self, held: &Held, clone: usize, expected: &[Request]) -> bool {
        let [Request::Put(File::Pack(pack))] = expected else { return false };
        let is_other = self.is_known(*pack) && held.key != key("packs", &self.protocol.names.packs[pack]);
        let is_put = held.client == clone && held.method == Method::PUT && held.key.contains("/packs/");
        is_other && is_put && self.place.objects_of(&held.body) == Some(pack.objects())
    }

    /// Compares the files at the remote with the model.
    fn compare(&self) {
        let bucket = self.place.service.bucket();
        let mut real = Remote::default();
        for (key, bytes) in &bucket.objects {
            let age = (bucket.ages.get(key).unwrap_or(&0) / 7).min(9) as u8;
            let Some((folder, name)) = key.strip_prefix("p/v1/").and_then(|key| key.split_once('/')) else {
                continue;
            };
            match folder {
                "packs" => {
                    real.add(File::Pack(self.pack(name)), age);
                    if blake3::hash(bytes).to_string() != name {
                        real.damage(self.pack(name));
                    }
                }
                "indexes" => real.add(File::Index(self.pack(name)), age),
                "damaged" => real.add(File::Note(self.pack(name)), age),
                "replaced" => real.add(File::Replaced(self.list(bytes)), age),
                "roots" => real.add(File::Roots, age),
                _ => {}
            }
        }
        drop(bucket);
        assert_eq!(real, self.state.remote, "{}", self.describe());
    }

    fn describe(&self) -> String {
        format!("MLX_SEED={}: after {}", self.seed, self.steps.join(", "))
    }
}
