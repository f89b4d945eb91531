//! The writer thread of a spool: appends batches of records, images and telemetry samples to segments.

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
    error::{Result, WithContext},
    fs::{self, File, Root, Sync},
    time::Day,
    traffic::{
        Record, TelemetrySample, frame,
        paths::check_environment,
        spool::{self, Options, State},
        telemetry::Probe,
    },
};

/// Longest time that a record waits for others of its batch.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// Largest number of records in a batch.
const MAX_BATCH: usize = 1024;
/// Largest number of open segments.
const MAX_OPEN_SEGMENTS: usize = 8;

/// Message from a service to the thread.
pub(super) enum Message {
    Record(Box<Record>, Option<Bytes>),
    Stop,
}

type Batch = Vec<(Record, Option<Bytes>)>;

pub(super) struct Writer {
    root: Root,
    environment: String,
    state: Arc<State>,
    probe: Probe,
    /// Name of this service's segments; changed after a write that failed halfway.
    name: String,
    segments: BTreeMap<Day, Segment>,
    /// Days whose segments have not been synced since the last write.
    dirty: BTreeSet<Day>,
    last_sync: Instant,
    /// Time of the last telemetry sample, and the day it was stored under.
    last_sample: Option<(Instant, Day)>,
    counters: Counters,
}

struct Segment {
    file: File,
    inode: u64,
}

/// Counters since the last telemetry sample.
#[derive(Default)]
struct Counters {
    answers: u32,
    errors: u32,
    /// Total number of dropped records at the last sample.
    dropped_before: u64,
    /// Capture time of the latest record, in milliseconds since 1970.
    newest: i64,
}

impl Counters {
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
            probe: Probe::new(&options.disk),
            name: new_name(),
            segments: BTreeMap::new(),
            dirty: BTreeSet::new(),
            last_sync: Instant::now(),
            last_sample: None,
            counters: Counters::default(),
        })
    }

    /// Writes until a stop message arrives or the sender is dropped.
    pub fn run(mut self, receiver: &Receiver<Message>) {
        let mut batch = Batch::new();
        let mut due = None;
        loop {
            let wait =
                due.map_or(FLUSH_INTERVAL, |due: Instant| due.saturating_duration_since(Instant::now()));
            let ended = match receiver.recv_timeout(wait) {
                Ok(Message::Record(record, image)) => {
                    due.get_or_insert_with(|| Instant::now() + FLUSH_INTERVAL);
                    batch.push((*record, image));
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => true,
            };
            if ended || batch.len() >= MAX_BATCH || due.is_some_and(|it| it <= Instant::now()) {
                self.flush(std::mem::take(&mut batch), ended);
                due = None;
            }
            if ended || self.last_sync.elapsed() >= SYNC_INTERVAL {
                self.sync();
            }
            if ended {
                return;
            }
        }
    }

    fn flush(&mut self, mut batch: Batch, last: bool) {
        let image_bytes: usize = batch.iter().filter_map(|(_, image)| image.as_ref()).map(Bytes::len).sum();
        if let Err(error) = self.write(&mut batch, last) {
            self.state.fail(batch.len(), &error);
        }
        self.state.pending.fetch_sub(batch.len() as u64, Ordering::Relaxed);
        self.state.queued_bytes.fetch_sub(image_bytes, Ordering::Relaxed);
    }

    /// Writes the images, then the records that refer to them, and telemetry samples if they are due. `last`
    /// forces a sample for what has not been sampled.
    fn write(&mut self, batch: &mut [(Record, Option<Bytes>)], last: bool) -> Result<()> {
        if batch.is_empty() && !(last && self.counters.answers > 0) {
            return Ok(());
        }
        let _lock = spool::lock(&self.root, &self.environment)?;
        let mut frames: BTreeMap<Day, (usize, Vec<u8>)> = BTreeMap::new();
        for index in 0..batch.len() {
            let next = batch.get(index + 1).map(|(record, _)| Day::of(record.captured));
            let (record, image) = &mut batch[index];
            let day = Day::of(record.captured);
            if let Some(bytes) = image.take()
                && let Err(error) = self.store_image(day, record, &bytes)
            {
                record.kept = false;
                self.state.fail(0, &error);
            }
            self.counters.add(record);
            let (count, bytes) = frames.entry(day).or_default();
            *count += 1;
            frame::put_record(bytes, record);
            // Each day gets a sample, even if the records of a batch span several days.
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

    /// Stores an image, unless a file of its size exists already.
    fn store_image(&self, day: Day, record: &Record, bytes: &[u8]) -> Result<()> {
        let path = spool::image(&self.environment, day, &record.input)?;
        if self.root.stat(&path)?.is_some_and(|stat| stat.size == bytes.len() as u64) {
            return Ok(());
        }
        self.root.write(&path, bytes, Sync::Later)
    }

    /// Takes a telemetry sample, if one is due.
    fn sample(&mut self, last: bool) -> Option<TelemetrySample> {
        let day = Day::of(self.counters.newest);
        let due = self
            .last_sample
            .is_none_or(|(time, sampled_day)| time.elapsed() >= SAMPLE_INTERVAL || sampled_day < day);
        let unsampled = last && self.counters.answers > 0;
        if !(due || unsampled) {
            return None;
        }
        let dropped = self.state.dropped.load(Ordering::Relaxed);
        let new_dropped = dropped.saturating_sub(self.counters.dropped_before);
        let sample = TelemetrySample {
            time: self.counters.newest,
            waiting: u32::try_from(self.state.waiting.swap(0, Ordering::Relaxed)).unwrap_or(u32::MAX),
            answers: self.counters.answers,
            errors: self.counters.errors,
            dropped: u32::try_from(new_dropped).unwrap_or(u32::MAX),
            ..self.probe.sample()
        };
        self.counters = Counters { dropped_before: dropped, newest: sample.time, ..Counters::default() };
        self.last_sample = Some((Instant::now(), day));
        Some(sample)
    }

    /// Appends frames to the segment of a day.
    fn append(&mut self, day: Day, bytes: &[u8]) -> Result<()> {
        let path = spool::segment(&self.environment, day, &self.name)?;
        // Sealing removes segments: an open file whose path is gone or has another inode must not be written.
        let now = self.root.stat(&path)?.map(|it| it.inode);
        if now.is_none() || self.segments.get(&day).map(|it| it.inode) != now {
            if self.segments.len() >= MAX_OPEN_SEGMENTS {
                self.sync();
                self.segments.clear();
            }
            let file = self.root.open_append(&path)?;
            self.root.dir(&path.parent().unwrap_or_default())?.sync()?;
            let inode = self.root.stat(&path)?.map_or(0, |it| it.inode);
            self.segments.insert(day, Segment { file, inode });
        }
        let segment = self.segments.get_mut(&day).expect("it was just opened");
        let written = segment.file.write_all(bytes).context(|| format!("cannot write `{path}`"));
        if written.is_err() {
            // Frames after an incomplete one may not be readable: continue in a new segment.
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
                    segment.file.sync_data().context(|| format!("cannot sync the spool of {day}"))
            {
                self.state.fail(0, &error);
            }
        }
        self.last_sync = Instant::now();
    }
}

/// Returns a segment name that no other service uses.
fn new_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:x}-{}-{}", fs::coarse_now(), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
