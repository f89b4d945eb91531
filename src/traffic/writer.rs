//! The thread that writes a spool.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    error::{Doing, Result},
    fs::{self, File, Root, Sync},
    time::Day,
    traffic::{
        Record, Sample, frame,
        place::check_environment,
        spool::{self, Options, State},
        telemetry::Machine,
    },
};

/// How long the first record waits for others.
const GATHER: Duration = Duration::from_millis(500);
const SYNC: Duration = Duration::from_secs(1);
const SAMPLE: Duration = Duration::from_secs(10);
/// Records written together, at most.
const BATCH: usize = 1024;
/// Days whose segments are held open.
const OPEN: usize = 8;

/// What a service tells the thread.
pub(super) enum Message {
    Record(Box<Record>, Option<Bytes>),
    Stop,
}

type Batch = Vec<(Record, Option<Bytes>)>;

pub(super) struct Writer {
    root: Root,
    environment: String,
    state: Arc<State>,
    machine: Machine,
    /// Names this service's segments; another one after a write that failed half way.
    name: String,
    segments: BTreeMap<Day, Segment>,
    dirty: BTreeSet<Day>,
    synced: Instant,
    /// When a sample was taken last, and of which day.
    sampled: Option<(Instant, Day)>,
    /// What came since the last sample.
    since: Since,
}

struct Segment {
    file: File,
    inode: u64,
}

#[derive(Default)]
struct Since {
    answers: u32,
    errors: u32,
    /// All that had been dropped by then.
    dropped: u64,
    newest: i64,
}

impl Since {
    fn add(&mut self, record: &Record) {
        self.answers = self.answers.saturating_add(1);
        self.errors = self.errors.saturating_add(u32::from(record.status >= 500));
        self.newest = record.captured;
    }
}

impl Writer {
    pub fn new(root: Root, environment: &str, options: &Options, state: Arc<State>) -> Result<Self> {
        check_environment(environment)?;
        Ok(Self {
            root,
            environment: environment.to_owned(),
            state,
            machine: Machine::new(&options.disk),
            name: new_name(),
            segments: BTreeMap::new(),
            dirty: BTreeSet::new(),
            synced: Instant::now(),
            sampled: None,
            since: Since::default(),
        })
    }

    /// Writes until it is told to stop or nobody is left to tell.
    pub fn run(mut self, receiver: &Receiver<Message>) {
        let mut batch = Batch::new();
        let mut due = None;
        loop {
            let wait = due.map_or(GATHER, |it: Instant| it.saturating_duration_since(Instant::now()));
            let ended = match receiver.recv_timeout(wait) {
                Ok(Message::Record(record, picture)) => {
                    due.get_or_insert_with(|| Instant::now() + GATHER);
                    batch.push((*record, picture));
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => true,
            };
            if ended || batch.len() >= BATCH || due.is_some_and(|it| it <= Instant::now()) {
                self.flush(std::mem::take(&mut batch), ended);
                due = None;
            }
            if ended || self.synced.elapsed() >= SYNC {
                self.sync();
            }
            if ended {
                return;
            }
        }
    }

    fn flush(&mut self, mut batch: Batch, last: bool) {
        let held: usize = batch.iter().filter_map(|it| it.1.as_ref()).map(Bytes::len).sum();
        if let Err(error) = self.write(&mut batch, last) {
            self.state.fail(batch.len(), &error);
        }
        self.state.pending.fetch_sub(batch.len() as u64, Ordering::Relaxed);
        self.state.held.fetch_sub(held, Ordering::Relaxed);
    }

    /// Pictures, then the records that speak of them, then perhaps a sample.
    fn write(&mut self, batch: &mut [(Record, Option<Bytes>)], last: bool) -> Result<()> {
        if batch.is_empty() && !(last && self.since.answers > 0) {
            return Ok(());
        }
        let _lock = spool::lock(&self.root, &self.environment)?;
        let mut frames: BTreeMap<Day, (usize, Vec<u8>)> = BTreeMap::new();
        for at in 0..batch.len() {
            let next = batch.get(at + 1).map(|it| Day::of(it.0.captured));
            let (record, picture) = &mut batch[at];
            let day = Day::of(record.captured);
            if let Some(bytes) = picture.take()
                && let Err(error) = self.keep(day, record, &bytes)
            {
                record.kept = false;
                self.state.fail(0, &error);
            }
            self.since.add(record);
            let (count, bytes) = frames.entry(day).or_default();
            *count += 1;
            frame::put_record(bytes, record);
            // Each day has a sample, however fast days go by.
            if next.is_none_or(|it| it > day)
                && let Some(sample) = self.sample(last && next.is_none())
            {
                frame::put_sample(bytes, &sample);
            }
        }
        if batch.is_empty()
            && let Some(sample) = self.sample(last)
        {
            frame::put_sample(&mut frames.entry(Day::of(sample.time)).or_default().1, &sample);
        }
        for (day, (count, bytes)) in frames {
            if let Err(error) = self.append(day, &bytes) {
                self.state.fail(count, &error);
            }
        }
        Ok(())
    }

    fn keep(&self, day: Day, record: &Record, bytes: &[u8]) -> Result<()> {
        let path = spool::picture(&self.environment, day, &record.input)?;
        if self.root.stamp(&path)?.is_some_and(|it| it.size == bytes.len() as u64) {
            return Ok(());
        }
        self.root.write(&path, bytes, Sync::Later)
    }

    /// A sample of the machine, if it is time for one.
    fn sample(&mut self, last: bool) -> Option<Sample> {
        let day = Day::of(self.since.newest);
        let due = self.sampled.is_none_or(|(at, of)| at.elapsed() >= SAMPLE || of < day);
        let leftover = last && self.since.answers > 0;
        if !(due || leftover) {
            return None;
        }
        let dropped = self.state.dropped.load(Ordering::Relaxed);
        let sample = Sample {
            time: self.since.newest,
            waiting: u32::try_from(self.state.waiting.swap(0, Ordering::Relaxed)).unwrap_or(u32::MAX),
            answers: self.since.answers,
            errors: self.since.errors,
            dropped: u32::try_from(dropped.saturating_sub(self.since.dropped)).unwrap_or(u32::MAX),
            ..self.machine.look()
        };
        self.since = Since { dropped, newest: sample.time, ..Since::default() };
        self.sampled = Some((Instant::now(), day));
        Some(sample)
    }

    fn append(&mut self, day: Day, bytes: &[u8]) -> Result<()> {
        let path = spool::segment(&self.environment, day, &self.name)?;
        // Whoever sealed the day has removed the segment.
        let now = self.root.stamp(&path)?.map(|it| it.inode);
        if now.is_none() || self.segments.get(&day).map(|it| it.inode) != now {
            if self.segments.len() >= OPEN {
                self.sync();
                self.segments.clear();
            }
            let file = self.root.append(&path)?;
            self.root.dir(&path.parent().unwrap_or_default())?.sync()?;
            let inode = self.root.stamp(&path)?.map_or(0, |it| it.inode);
            self.segments.insert(day, Segment { file, inode });
        }
        let segment = self.segments.get_mut(&day).expect("it was just opened");
        let written = segment.file.write_all(bytes).doing(|| format!("cannot write `{path}`"));
        if written.is_err() {
            // What follows half a frame cannot be read: go on in another segment.
            self.segments.clear();
            self.name = new_name();
        }
        self.dirty.insert(day);
        written
    }

    fn sync(&mut self) {
        for day in std::mem::take(&mut self.dirty) {
            if let Some(segment) = self.segments.get(&day)
                && let Err(error) =
                    segment.file.sync_data().doing(|| format!("cannot sync the spool of {day}"))
            {
                self.state.fail(0, &error);
            }
        }
        self.synced = Instant::now();
    }
}

/// A name that no other service has.
fn new_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:x}-{}-{}", fs::tick(), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
