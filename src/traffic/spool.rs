//! Spool: the on-disk buffer of traffic records on the machine that served them, until their day is sealed.
//!
//! ```text
//! traffic/ENV/lock                    locked while a process writes or removes files
//! traffic/ENV/DAY/NAME.log            segment: frames of one service, the only writer
//! traffic/ENV/DAY/NAME.log.damaged    segment of a day with damage, kept after the day was sealed
//! traffic/ENV/DAY/pictures/HEX        stored images
//! ```
//!
//! A service passes its records to one thread through a bounded queue and never blocks: records that do not
//! fit are dropped and counted. The thread writes twice a second and syncs once a second, so that a killed
//! service loses at most its last second. Disk errors are counted and reported, but do not stop the service.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    digest::Digest,
    error::{Error, Result, WithContext},
    fs::{self, Lock, Root},
    path::RepoPath,
    time::Day,
    traffic::{
        Record, TelemetrySample,
        frame::{self, Frame},
        paths,
        writer::{Message, Writer},
    },
};

/// Capacity of the thread's queue, in records.
const MAX_QUEUED: usize = 1024;
/// Largest size of the queued images together, in bytes.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Suffix of the segments of a day with damage, which are kept after the day was sealed.
const DAMAGED_SUFFIX: &str = ".damaged";
const SEGMENT_SUFFIX: &str = ".log";
/// HTTP status of a request whose image cannot be decoded.
const UNDECODABLE: u16 = 400;
/// Interval at which a stopping spool checks if the thread has ended.
const POLL: Duration = Duration::from_millis(10);

/// Options of a spool: which images to store, and which disk to watch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Share of images to store, 0–1. The digest decides, so that the same image is stored always or never.
    pub keep_share: f64,
    /// Largest image that is stored although it could not be decoded, in bytes. If `keep_share` is 0, none
    /// is.
    pub max_undecodable_size: usize,
    /// Largest total size of such images per day, in bytes.
    pub max_undecodable_per_day: u64,
    /// Path of the disk that telemetry samples measure.
    pub disk: PathBuf,
}

/// One service's handle to the spool.
pub struct Spool {
    sender: SyncSender<Message>,
    state: Arc<State>,
    options: Options,
    /// Day of the last stored image that could not be decoded, and total size of such images on that day.
    undecodable: Mutex<(Day, u64)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// State shared between service and thread.
#[derive(Default)]
pub(super) struct State {
    recorded: AtomicU64,
    /// Number of records that were accepted, but not yet written.
    pub(super) pending: AtomicU64,
    pub(super) dropped: AtomicU64,
    /// Size of the images that are queued, in bytes.
    pub(super) queued_bytes: AtomicUsize,
    /// Longest request queue since the last telemetry sample.
    pub(super) waiting: AtomicUsize,
    last_error: Mutex<Option<String>>,
}

/// Spooled traffic of a day.
#[derive(Default)]
pub struct SpooledDay {
    pub records: Vec<Record>,
    pub samples: Vec<TelemetrySample>,
    /// Paths of stored images by digest, relative to the root.
    pub images: BTreeMap<Digest, RepoPath>,
    /// Number of damaged places in segments.
    pub damaged: u64,
    /// Segments with the lengths that were read.
    segments: BTreeMap<RepoPath, usize>,
}

impl Spool {
    /// Starts the thread that writes to `traffic/ENV/` below this root.
    pub fn start(root: Root, environment: &str, options: Options) -> Result<Self> {
        let state = Arc::<State>::default();
        let (sender, receiver) = sync_channel(MAX_QUEUED);
        let writer = Writer::new(root, environment, &options, Arc::clone(&state))?;
        let thread = thread::Builder::new().name("spool".into()).spawn(move || writer.run(&receiver));
        let thread = Mutex::new(Some(thread.context(|| "cannot start the spool thread".into())?));
        Ok(Self { sender, state, options, undecodable: Mutex::new((Day::of(0), 0)), thread })
    }

    /// Queues a record, with its image if that is to be stored. Never blocks; returns false if the record was
    /// dropped.
    pub fn record(&self, mut record: Record, image: Option<Bytes>) -> bool {
        let image = image
            .filter(|bytes| self.should_store(&record, bytes.len()) && self.reserve_queue_bytes(bytes.len()));
        record.kept = image.is_some();
        let length = image.as_ref().map_or(0, Bytes::len);
        self.state.pending.fetch_add(1, Ordering::Relaxed);
        match self.sender.try_send(Message::Record(Box::new(record), image)) {
            Ok(()) => {
                self.state.recorded.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.state.pending.fetch_sub(1, Ordering::Relaxed);
                self.state.queued_bytes.fetch_sub(length, Ordering::Relaxed);
                self.state.dropped.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    fn should_store(&self, record: &Record, length: usize) -> bool {
        if record.image_stats.is_some() {
            return unit_hash(&record.input) < self.options.keep_share;
        }
        // Only undecodable images hint at a broken camera; rejection by size or overload does not.
        let relevant = record.status == UNDECODABLE && self.options.keep_share > 0.0;
        relevant
            && length <= self.options.max_undecodable_size
            && self.reserve_undecodable_bytes(record, length as u64)
    }

    /// Counts an image against the daily limit of undecodable images; false if it does not fit. Without the
    /// limit, untrusted clients could fill the disk.
    fn reserve_undecodable_bytes(&self, record: &Record, length: u64) -> bool {
        let mut used = self.undecodable.lock().unwrap_or_else(PoisonError::into_inner);
        let today = Day::of(record.received);
        if used.0 != today {
            *used = (today, 0);
        }
        let fits = used.1 + length <= self.options.max_undecodable_per_day;
        used.1 += if fits { length } else { 0 };
        fits
    }

    /// Reserves queue space for an image; false if it does not fit, and then the record is queued without it.
    fn reserve_queue_bytes(&self, length: usize) -> bool {
        let fits = |queued: usize| queued.checked_add(length).filter(|it| *it <= MAX_QUEUED_BYTES);
        self.state.queued_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Reports the current number of queued requests; the next telemetry sample stores the largest one.
    pub fn report_queue_length(&self, requests: usize) {
        self.state.waiting.fetch_max(requests, Ordering::Relaxed);
    }

    /// Returns the number of records accepted so far.
    pub fn recorded(&self) -> u64 {
        self.state.recorded.load(Ordering::Relaxed)
    }

    /// Returns the number of records that were not written to the disk.
    pub fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }

    /// Returns the last disk error, if there was one.
    pub fn last_error(&self) -> Option<String> {
        self.state.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes and syncs all accepted records and ends the thread. Later records are dropped.
    pub fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // If the thread has ended, there is nothing left to write.
            let _ended = self.sender.send(Message::Stop);
            let _panicked = thread.join();
        }
    }

    /// Stops like [`Spool::stop`], but waits no longer than `limit`. Returns the number of records that had
    /// not been written by then; they count as dropped.
    pub fn stop_within(&self, limit: Duration) -> u64 {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return 0 };
        let end = Instant::now() + limit;
        let mut sent = false;
        while !thread.is_finished() {
            // The queue may be full while the thread waits for the disk.
            sent = sent || !matches!(self.sender.try_send(Message::Stop), Err(TrySendError::Full(_)));
            if Instant::now() >= end {
                let lost = self.state.pending.load(Ordering::Relaxed);
                self.state.dropped.fetch_add(lost, Ordering::Relaxed);
                return lost;
            }
            thread::sleep(POLL);
        }
        0
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    /// Counts records that could not be written, and stores the error.
    pub(super) fn fail(&self, records: usize, error: &Error) {
        self.dropped.fetch_add(records as u64, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.chain_text());
    }
}

/// Maps an image's digest to a number in [0, 1), uniformly.
fn unit_hash(digest: &Digest) -> f64 {
    let bits = u64::from_le_bytes(digest.bytes()[8..16].try_into().expect("a digest has 32 bytes"));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Locks the spool of an environment for writing or removing, which takes milliseconds.
pub(super) fn lock(root: &Root, environment: &str) -> Result<Lock> {
    fs::lock(root, &paths::folder(environment)?.join(b"lock")?)
}

/// Returns the path of a service's segment for a day.
pub(super) fn segment(environment: &str, day: Day, name: &str) -> Result<RepoPath> {
    paths::day_folder(environment, day)?.join(format!("{name}{SEGMENT_SUFFIX}").as_bytes())
}

/// Returns the path of a stored image of a day.
pub(super) fn image(environment: &str, day: Day, digest: &Digest) -> Result<RepoPath> {
    paths::day_folder(environment, day)?.join(paths::IMAGES.as_bytes())?.join(digest.hex().as_bytes())
}

/// Returns the days with spooled traffic, in order.
pub fn days(root: &Root, environment: &str) -> Result<Vec<Day>> {
    paths::days_in(root, &paths::folder(environment)?)
}

/// Reads the spooled traffic of a day: intact records and samples only, in the order in which they were
/// written.
pub fn read(root: &Root, environment: &str, day: Day) -> Result<SpooledDay> {
    let folder = paths::day_folder(environment, day)?;
    let mut found = SpooledDay::default();
    if root.stat(&folder)?.is_none() {
        return Ok(found);
    }
    for (name, _) in root.dir(&folder)?.names()? {
        let path = folder.join(&name)?;
        if path.without_suffix(SEGMENT_SUFFIX).is_none() {
            continue;
        }
        let bytes = root.read(&path)?;
        let (frames, damaged) = frame::read(&bytes);
        found.damaged += damaged;
        for frame in frames {
            match frame {
                Frame::Record(record) => found.records.push(*record),
                Frame::Sample(sample) => found.samples.push(sample),
            }
        }
        found.segments.insert(path, bytes.len());
    }
    let images = folder.join(paths::IMAGES.as_bytes())?;
    if root.stat(&images)?.is_some() {
        for (name, _) in root.dir(&images)?.names()? {
            let hex = std::str::from_utf8(&name).ok();
            if let Some(digest) = hex.and_then(|hex| Digest::from_hex(hex).ok()) {
                found.images.insert(digest, images.join(&name)?);
            }
        }
    }
    Ok(found)
}

impl SpooledDay {
    /// Reads a stored image; None if it is missing or incomplete.
    pub fn image(&self, root: &Root, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.images.get(digest) else { return Ok(None) };
        Ok(root.read_if_exists(path)?.filter(|bytes| Digest::of(bytes) == *digest))
    }
}

/// Removes a day whose contents, as in `read`, are stored elsewhere. Returns false, and removes nothing, if
/// more has been written since.
pub(super) fn remove(root: &Root, environment: &str, day: Day, read: &SpooledDay) -> Result<bool> {
    let _lock = lock(root, environment)?;
    let now = self::read(root, environment, day)?;
    if now.segments != read.segments {
        return Ok(false);
    }
    if read.damaged == 0 {
        return root.remove(&paths::day_folder(environment, day)?).map(|()| true);
    }
    // If any segment is damaged, all segments of the day are kept, with its images: nothing unreadable is
    // deleted.
    for path in read.segments.keys() {
        root.rename(path, &path.with_suffix(DAMAGED_SUFFIX))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::samples::record;

    const DAY: i64 = 86_400_000;

    fn options(keep: f64) -> Options {
        Options { keep_share: keep, max_undecodable_size: 10, max_undecodable_per_day: 12, disk: "/".into() }
    }

    fn root(temp: &tempfile::TempDir) -> Root {
        Root::open(temp.path()).unwrap()
    }

    #[test]
    fn damaged_segments_are_counted_and_kept() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(1.0)).unwrap();
        (0..3).for_each(|number| assert!(spool.record(record(&format!("r{number}"), 0, b"x"), None)));
        spool.stop();
        let day = Day::of(0);
        let path = read(&root(&temp), "test", day).unwrap().segments.keys().next().unwrap().clone();
        let mut bytes = root(&temp).read(&path).unwrap();
        bytes[20] ^= 1;
        root(&temp).write(&path, &bytes, fs::Sync::Later).unwrap();
        let found = read(&root(&temp), "test", day).unwrap();
        assert_eq!((found.records.len(), found.damaged), (2, 1));
        assert!(remove(&root(&temp), "test", day, &found).unwrap());
        assert_eq!(root(&temp).read(&path.with_suffix(DAMAGED_SUFFIX)).unwrap(), bytes);
        assert!(read(&root(&temp), "test", day).unwrap().records.is_empty());
    }

    #[test]
    fn records_are_read_back_by_day_with_their_images() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(1.0)).unwrap();
        for number in 0..5 {
            let bytes = Bytes::from(format!("image {number}"));
            assert!(spool.record(record(&format!("r{number}"), DAY * (number % 2), &bytes), Some(bytes)));
        }
        spool.report_queue_length(7);
        spool.stop();
        assert_eq!((spool.recorded(), spool.dropped(), spool.last_error()), (5, 0, None));
        assert!(!spool.record(record("late", 0, b""), None), "the spool has stopped");
        let found: Vec<_> = days(&root(&temp), "test").unwrap();
        assert_eq!(found, [Day::of(0), Day::of(DAY)]);
        let first = read(&root(&temp), "test", Day::of(0)).unwrap();
        let ids: Vec<_> = first.records.iter().map(|record| (&record.id[..], record.kept)).collect();
        assert_eq!(ids, [("r0", true), ("r2", true), ("r4", true)]);
        let digest = Digest::of(b"image 4");
        assert_eq!(first.image(&root(&temp), &digest).unwrap().unwrap(), b"image 4");
        let second = read(&root(&temp), "test", Day::of(DAY)).unwrap();
        assert_eq!((second.records.len(), second.images.len()), (2, 2));
        let samples: Vec<_> = first.samples.iter().chain(&second.samples).collect();
        assert_eq!(samples.iter().map(|it| it.answers).sum::<u32>(), 5);
        assert!(samples.iter().any(|it| it.waiting == 7), "{samples:?}");
    }

    #[test]
    fn each_day_has_a_sample_even_if_records_span_many_days() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(0.0)).unwrap();
        for number in 0..30 {
            spool.record(record("r", DAY * (number / 3) + number, b""), None);
        }
        spool.stop();
        for day in 0..10 {
            let found = read(&root(&temp), "test", Day::of(DAY * day)).unwrap();
            assert_eq!(found.samples.iter().map(|it| it.answers).sum::<u32>(), 3, "day {day}");
        }
    }

    #[test]
    fn the_digest_decides_which_images_are_stored_and_a_limit_which_undecodable_ones() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(0.3)).unwrap();
        for number in 0..400 {
            let bytes = Bytes::from(format!("picture {number}"));
            while !spool.record(record("r", 0, &bytes), Some(bytes.clone())) {}
        }
        let record_failed = |bytes: &'static str, status| {
            let failed = Record { image_stats: None, status, ..record("b", 0, bytes.as_bytes()) };
            spool.record(failed, Some(bytes.into()));
        };
        for bytes in ["broken", "broken and far too large", "one more"] {
            record_failed(bytes, UNDECODABLE);
        }
        record_failed("busy", 503);
        spool.stop();
        let found = read(&root(&temp), "test", Day::of(0)).unwrap();
        let (failed, good): (Vec<_>, Vec<_>) =
            found.records.iter().partition(|record| record.image_stats.is_none());
        assert_eq!(failed.iter().map(|it| it.kept).collect::<Vec<_>>(), [true, false, false, false]);
        let kept = good.iter().filter(|it| it.kept).count();
        assert!((90..150).contains(&kept), "{kept} of 400");
        assert!(good.iter().all(|record| record.kept == (unit_hash(&record.input) < 0.3)));
        assert_eq!(found.images.len(), kept + 1);
    }

    #[test]
    fn a_removed_segment_is_started_again_and_a_grown_one_is_kept() {
        let temp = tempfile::tempdir().unwrap();
        let root = root(&temp);
        let spool = Spool::start(Root::open(temp.path()).unwrap(), "test", options(0.0)).unwrap();
        let written = |count: usize| {
            for _ in 0..500 {
                let found = read(&root, "test", Day::of(0)).unwrap();
                if found.records.len() == count {
                    return found;
                }
                thread::sleep(Duration::from_millis(10));
            }
            panic!("{count} records were not written");
        };
        spool.record(record("a", 0, b""), None);
        let first = written(1);
        spool.record(record("b", 0, b""), None);
        let second = written(2);
        assert!(!remove(&root, "test", Day::of(0), &first).unwrap());
        assert!(remove(&root, "test", Day::of(0), &second).unwrap());
        spool.record(record("c", 0, b""), None);
        assert_eq!(written(1).records[0].id, "c");
    }

    #[test]
    fn a_disk_error_is_reported_and_does_not_stop_the_spool() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(0.0)).unwrap();
        // A file where the day's folder should be.
        root(&temp).write(&paths::day_folder("test", Day::of(0)).unwrap(), b"", fs::Sync::Later).unwrap();
        spool.record(record("a", 0, b""), None);
        spool.record(record("b", DAY, b""), None);
        spool.stop();
        assert_eq!((spool.recorded(), spool.dropped()), (2, 1));
        assert!(spool.last_error().unwrap().contains("1970-01-01"), "{:?}", spool.last_error());
        assert_eq!(read(&root(&temp), "test", Day::of(DAY)).unwrap().records.len(), 1);
    }

    #[test]
    fn a_held_lock_does_not_delay_stopping_beyond_the_limit() {
        let temp = tempfile::tempdir().unwrap();
        let held = lock(&root(&temp), "test").unwrap();
        let spool = Spool::start(root(&temp), "test", options(0.0)).unwrap();
        let is_accepted = |number: &usize| spool.record(record(&number.to_string(), 0, b""), None);
        let accepted = (0..MAX_QUEUED + 10).filter(is_accepted).count() as u64;
        let dropped = spool.dropped();
        assert_eq!(spool.stop_within(Duration::from_millis(100)), accepted);
        assert_eq!(spool.dropped(), accepted + dropped);
        drop((held, spool));
        let spool = Spool::start(root(&temp), "other", options(0.0)).unwrap();
        assert!(spool.record(record("a", 0, b""), None));
        assert_eq!((spool.stop_within(Duration::from_mins(1)), spool.dropped()), (0, 0));
        assert_eq!(read(&root(&temp), "other", Day::of(0)).unwrap().records.len(), 1);
    }

    #[test]
    fn two_services_can_write_at_the_same_time() {
        let temp = tempfile::tempdir().unwrap();
        let spools = [0, 1].map(|_| Spool::start(root(&temp), "test", options(0.0)).unwrap());
        for number in 0..20 {
            spools[number % 2].record(record(&number.to_string(), 0, b""), None);
        }
        drop(spools);
        let found = read(&root(&temp), "test", Day::of(0)).unwrap();
        assert_eq!((found.records.len(), found.segments.len()), (20, 2));
    }

    #[test]
    fn an_invalid_environment_name_is_rejected() {
        let temp = tempfile::tempdir().unwrap();
        assert!(Spool::start(root(&temp), "../x", options(0.0)).is_err());
    }
}
