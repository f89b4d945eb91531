//! Where records wait until their day is sealed, on the machine that served them.
//!
//! ```text
//! traffic/ENV/lock                    held while somebody writes or removes
//! traffic/ENV/DAY/NAME.log            frames of one service; nobody else writes to it
//! traffic/ENV/DAY/pictures/HEX        pictures that were kept
//! ```
//!
//! A service hands its records to one thread and never waits for it: what does not fit is dropped and
//! counted. The thread writes what it has twice a second and syncs once a second, so that a killed service
//! loses no more than its last second. A disk that fails is counted and told, and stops nobody.

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
    error::{Doing, Error, Result},
    fs::{self, Lock, Root},
    path::RepoPath,
    time::Day,
    traffic::{
        Record, Sample,
        frame::{self, Frame},
        place,
        writer::{Message, Writer},
    },
};

/// Records that may wait for the thread.
const WAITING: usize = 1024;
/// Bytes of pictures that may wait for the thread.
const ROOM: usize = 64 << 20;
/// Behind the name of a segment that was put aside.
const ASIDE: &str = ".damaged";
const ENDING: &str = ".log";
/// The status of a picture that cannot be decoded.
const UNDECODABLE: u16 = 400;
/// How often it is seen whether the thread has ended.
const STEP: Duration = Duration::from_millis(10);

/// What a spool keeps besides records.
#[derive(Clone, Debug)]
pub struct Options {
    /// Share of the pictures to keep, 0–1. The digest decides, so that the same picture is always kept or never.
    pub keep: f64,
    /// What could not be decoded is kept up to so many bytes a picture, where pictures are kept at all.
    pub largest_broken: usize,
    /// Bytes of such pictures in one day.
    pub broken_a_day: u64,
    /// The disk that samples look at.
    pub disk: PathBuf,
}

/// The way into the spool for one service.
pub struct Spool {
    sender: SyncSender<Message>,
    state: Arc<State>,
    options: Options,
    /// The day of the last picture that could not be decoded, and the bytes of those kept on it.
    broken: Mutex<(Day, u64)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What service and thread share.
#[derive(Default)]
pub(super) struct State {
    recorded: AtomicU64,
    /// Records on their way to the disk.
    pub(super) pending: AtomicU64,
    pub(super) dropped: AtomicU64,
    /// Bytes of pictures on their way.
    pub(super) held: AtomicUsize,
    /// The longest queue since it was last asked for.
    pub(super) waiting: AtomicUsize,
    trouble: Mutex<Option<String>>,
}

/// What waits of a day.
#[derive(Default)]
pub struct Spooled {
    pub records: Vec<Record>,
    pub samples: Vec<Sample>,
    /// Kept pictures, by digest: where they lie below the root.
    pub pictures: BTreeMap<Digest, RepoPath>,
    /// Places in segments that could not be read.
    pub damaged: u64,
    /// Segments with the lengths that were read.
    segments: BTreeMap<RepoPath, usize>,
}

impl Spool {
    /// Starts the thread that writes below `traffic/ENV/` of this root.
    pub fn start(root: Root, environment: &str, options: Options) -> Result<Self> {
        let state = Arc::<State>::default();
        let (sender, receiver) = sync_channel(WAITING);
        let writer = Writer::new(root, environment, &options, Arc::clone(&state))?;
        let thread = thread::Builder::new().name("spool".into()).spawn(move || writer.run(&receiver));
        let thread = Mutex::new(Some(thread.doing(|| "cannot start the spool's thread".into())?));
        Ok(Self { sender, state, options, broken: Mutex::new((Day::of(0), 0)), thread })
    }

    /// Takes a record, and the picture if it is to be kept; never waits. False when it was dropped.
    pub fn record(&self, mut record: Record, picture: Option<Bytes>) -> bool {
        let picture = picture.filter(|it| self.keeps(&record, it.len()) && self.hold(it.len()));
        record.kept = picture.is_some();
        let length = picture.as_ref().map_or(0, Bytes::len);
        self.state.pending.fetch_add(1, Ordering::Relaxed);
        match self.sender.try_send(Message::Record(Box::new(record), picture)) {
            Ok(()) => {
                self.state.recorded.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.state.pending.fetch_sub(1, Ordering::Relaxed);
                self.state.held.fetch_sub(length, Ordering::Relaxed);
                self.state.dropped.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    fn keeps(&self, record: &Record, length: usize) -> bool {
        if record.looks.is_some() {
            return draw(&record.input) < self.options.keep;
        }
        // What was refused for its size, or for want of room, says nothing of the camera.
        let telling = record.status == UNDECODABLE && self.options.keep > 0.0;
        telling && length <= self.options.largest_broken && self.has_room_for_broken(record, length as u64)
    }

    /// Strangers must not fill the disk with rubbish.
    fn has_room_for_broken(&self, record: &Record, length: u64) -> bool {
        let mut kept = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let today = Day::of(record.received);
        if kept.0 != today {
            *kept = (today, 0);
        }
        let fits = kept.1 + length <= self.options.broken_a_day;
        kept.1 += if fits { length } else { 0 };
        fits
    }

    /// Whether there is room for a picture; without it the record goes alone.
    fn hold(&self, length: usize) -> bool {
        let fits = |held: usize| held.checked_add(length).filter(|it| *it <= ROOM);
        self.state.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Tells how many requests wait for the model, for the next sample.
    pub fn waiting(&self, requests: usize) {
        self.state.waiting.fetch_max(requests, Ordering::Relaxed);
    }

    /// Records taken so far.
    pub fn recorded(&self) -> u64 {
        self.state.recorded.load(Ordering::Relaxed)
    }

    /// Records that did not reach the disk.
    pub fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }

    /// The last thing that went wrong with the disk, if anything did.
    pub fn trouble(&self) -> Option<String> {
        self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes and syncs everything that was taken, and ends; what comes later is dropped.
    pub fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that is gone has nothing to write.
            let _gone = self.sender.send(Message::Stop);
            let _panicked = thread.join();
        }
    }

    /// As [`Spool::stop`], but waits no longer than this. How many records had not reached the disk by then: they
    /// count as dropped.
    pub fn stop_within(&self, limit: Duration) -> u64 {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return 0 };
        let end = Instant::now() + limit;
        let mut told = false;
        while !thread.is_finished() {
            // A thread that waits for the disk may not have room for one more message.
            told = told || !matches!(self.sender.try_send(Message::Stop), Err(TrySendError::Full(_)));
            if Instant::now() >= end {
                let left = self.state.pending.load(Ordering::Relaxed);
                self.state.dropped.fetch_add(left, Ordering::Relaxed);
                return left;
            }
            thread::sleep(STEP);
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
    /// Counts records that could not be written, and remembers why.
    pub(super) fn fail(&self, records: usize, error: &Error) {
        self.dropped.fetch_add(records as u64, Ordering::Relaxed);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.full_text());
    }
}

/// A number between 0 and 1 that belongs to a picture.
fn draw(picture: &Digest) -> f64 {
    let bits = u64::from_le_bytes(picture.bytes()[8..16].try_into().expect("a digest has 32 bytes"));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Held for the milliseconds in which somebody writes or removes.
pub(super) fn lock(root: &Root, environment: &str) -> Result<Lock> {
    fs::lock(root, &place::folder(environment)?.join(b"lock")?)
}

/// The file that a service writes a day's frames to.
pub(super) fn segment(environment: &str, day: Day, name: &str) -> Result<RepoPath> {
    place::day_folder(environment, day)?.join(format!("{name}{ENDING}").as_bytes())
}

/// Where a day's picture is kept.
pub(super) fn picture(environment: &str, day: Day, digest: &Digest) -> Result<RepoPath> {
    place::day_folder(environment, day)?.join(place::PICTURES.as_bytes())?.join(digest.hex().as_bytes())
}

/// Days that something waits of, in order.
pub fn days(root: &Root, environment: &str) -> Result<Vec<Day>> {
    place::days_in(root, &place::folder(environment)?)
}

/// What waits of a day: whole records and samples only, in the order they were written.
pub fn read(root: &Root, environment: &str, day: Day) -> Result<Spooled> {
    let folder = place::day_folder(environment, day)?;
    let mut found = Spooled::default();
    if root.stamp(&folder)?.is_none() {
        return Ok(found);
    }
    for (name, _) in root.dir(&folder)?.names()? {
        let path = folder.join(&name)?;
        if path.without_suffix(ENDING).is_none() {
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
    let pictures = folder.join(place::PICTURES.as_bytes())?;
    if root.stamp(&pictures)?.is_some() {
        for (name, _) in root.dir(&pictures)?.names()? {
            if let Some(digest) = std::str::from_utf8(&name).ok().and_then(|it| Digest::from_hex(it).ok()) {
                found.pictures.insert(digest, pictures.join(&name)?);
            }
        }
    }
    Ok(found)
}

impl Spooled {
    /// The bytes of a kept picture; nothing when they are not whole.
    pub fn picture(&self, root: &Root, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.pictures.get(digest) else { return Ok(None) };
        Ok(root.read_if_there(path)?.filter(|it| Digest::of(it) == *digest))
    }
}

/// Removes a day of which everything in `read` is kept elsewhere; false when more has come since.
pub(super) fn remove(root: &Root, environment: &str, day: Day, read: &Spooled) -> Result<bool> {
    let _lock = lock(root, environment)?;
    let now = self::read(root, environment, day)?;
    if now.segments != read.segments {
        return Ok(false);
    }
    if read.damaged == 0 {
        return root.remove(&place::day_folder(environment, day)?).map(|()| true);
    }
    // What nobody can read now is put aside, with its pictures, and not thrown away.
    for path in read.segments.keys() {
        root.rename(path, &path.with_suffix(ASIDE))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::samples::record;

    const DAY: i64 = 86_400_000;

    fn options(keep: f64) -> Options {
        Options { keep, largest_broken: 10, broken_a_day: 12, disk: "/".into() }
    }

    fn root(temp: &tempfile::TempDir) -> Root {
        Root::open(temp.path()).unwrap()
    }

    #[test]
    fn what_is_damaged_is_counted_and_put_aside() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(1.0)).unwrap();
        (0..3).for_each(|it| assert!(spool.record(record(&format!("r{it}"), 0, b"x"), None)));
        spool.stop();
        let day = Day::of(0);
        let path = read(&root(&temp), "test", day).unwrap().segments.keys().next().unwrap().clone();
        let mut bytes = root(&temp).read(&path).unwrap();
        bytes[20] ^= 1;
        root(&temp).write(&path, &bytes, fs::Sync::Later).unwrap();
        let found = read(&root(&temp), "test", day).unwrap();
        assert_eq!((found.records.len(), found.damaged), (2, 1));
        assert!(remove(&root(&temp), "test", day, &found).unwrap());
        assert_eq!(root(&temp).read(&path.with_suffix(ASIDE)).unwrap(), bytes);
        assert!(read(&root(&temp), "test", day).unwrap().records.is_empty());
    }

    #[test]
    fn what_is_recorded_is_read_by_day_with_its_pictures() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(1.0)).unwrap();
        for at in 0..5 {
            let bytes = Bytes::from(format!("picture {at}"));
            assert!(spool.record(record(&format!("r{at}"), DAY * (at % 2), &bytes), Some(bytes)));
        }
        spool.waiting(7);
        spool.stop();
        assert_eq!((spool.recorded(), spool.dropped(), spool.trouble()), (5, 0, None));
        assert!(!spool.record(record("late", 0, b""), None), "it has ended");
        let found: Vec<_> = days(&root(&temp), "test").unwrap();
        assert_eq!(found, [Day::of(0), Day::of(DAY)]);
        let first = read(&root(&temp), "test", Day::of(0)).unwrap();
        let ids: Vec<_> = first.records.iter().map(|it| (&it.id[..], it.kept)).collect();
        assert_eq!(ids, [("r0", true), ("r2", true), ("r4", true)]);
        let digest = Digest::of(b"picture 4");
        assert_eq!(first.picture(&root(&temp), &digest).unwrap().unwrap(), b"picture 4");
        let second = read(&root(&temp), "test", Day::of(DAY)).unwrap();
        assert_eq!((second.records.len(), second.pictures.len()), (2, 2));
        let samples: Vec<_> = first.samples.iter().chain(&second.samples).collect();
        assert_eq!(samples.iter().map(|it| it.answers).sum::<u32>(), 5);
        assert!(samples.iter().any(|it| it.waiting == 7), "{samples:?}");
    }

    #[test]
    fn each_day_has_a_sample_however_fast_it_goes_by() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(0.0)).unwrap();
        for at in 0..30 {
            spool.record(record("r", DAY * (at / 3) + at, b""), None);
        }
        spool.stop();
        for day in 0..10 {
            let found = read(&root(&temp), "test", Day::of(DAY * day)).unwrap();
            assert_eq!(found.samples.iter().map(|it| it.answers).sum::<u32>(), 3, "day {day}");
        }
    }

    #[test]
    fn the_digest_decides_which_pictures_are_kept_and_room_which_broken_ones() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(0.3)).unwrap();
        for at in 0..400 {
            let bytes = Bytes::from(format!("picture {at}"));
            while !spool.record(record("r", 0, &bytes), Some(bytes.clone())) {}
        }
        let broken = |bytes: &'static str, status| {
            let broken = Record { looks: None, status, ..record("b", 0, bytes.as_bytes()) };
            spool.record(broken, Some(bytes.into()));
        };
        for bytes in ["broken", "broken and far too large", "one more"] {
            broken(bytes, UNDECODABLE);
        }
        broken("busy", 503);
        spool.stop();
        let found = read(&root(&temp), "test", Day::of(0)).unwrap();
        let (broken, sound): (Vec<_>, Vec<_>) = found.records.iter().partition(|it| it.looks.is_none());
        assert_eq!(broken.iter().map(|it| it.kept).collect::<Vec<_>>(), [true, false, false, false]);
        let kept = sound.iter().filter(|it| it.kept).count();
        assert!((90..150).contains(&kept), "{kept} of 400");
        assert!(sound.iter().all(|it| it.kept == (draw(&it.input) < 0.3)));
        assert_eq!(found.pictures.len(), kept + 1);
    }

    #[test]
    fn a_removed_segment_is_begun_anew_and_a_grown_one_stays() {
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
    fn a_disk_that_fails_is_told_and_stops_nobody() {
        let temp = tempfile::tempdir().unwrap();
        let spool = Spool::start(root(&temp), "test", options(0.0)).unwrap();
        // A file where the day's folder should be.
        root(&temp).write(&place::day_folder("test", Day::of(0)).unwrap(), b"", fs::Sync::Later).unwrap();
        spool.record(record("a", 0, b""), None);
        spool.record(record("b", DAY, b""), None);
        spool.stop();
        assert_eq!((spool.recorded(), spool.dropped()), (2, 1));
        assert!(spool.trouble().unwrap().contains("1970-01-01"), "{:?}", spool.trouble());
        assert_eq!(read(&root(&temp), "test", Day::of(DAY)).unwrap().records.len(), 1);
    }

    #[test]
    fn a_lock_that_is_held_delays_the_end_no_longer_than_told() {
        let temp = tempfile::tempdir().unwrap();
        let held = lock(&root(&temp), "test").unwrap();
        let spool = Spool::start(root(&temp), "test", options(0.0)).unwrap();
        let taken = |at: &usize| spool.record(record(&at.to_string(), 0, b""), None);
        let taken = (0..WAITING + 10).filter(taken).count() as u64;
        let dropped = spool.dropped();
        assert_eq!(spool.stop_within(Duration::from_millis(100)), taken);
        assert_eq!(spool.dropped(), taken + dropped);
        drop((held, spool));
        let spool = Spool::start(root(&temp), "other", options(0.0)).unwrap();
        assert!(spool.record(record("a", 0, b""), None));
        assert_eq!((spool.stop_within(Duration::from_mins(1)), spool.dropped()), (0, 0));
        assert_eq!(read(&root(&temp), "other", Day::of(0)).unwrap().records.len(), 1);
    }

    #[test]
    fn two_services_write_beside_each_other() {
        let temp = tempfile::tempdir().unwrap();
        let spools = [0, 1].map(|_| Spool::start(root(&temp), "test", options(0.0)).unwrap());
        for at in 0..20 {
            spools[at % 2].record(record(&at.to_string(), 0, b""), None);
        }
        drop(spools);
        let found = read(&root(&temp), "test", Day::of(0)).unwrap();
        assert_eq!((found.records.len(), found.segments.len()), (20, 2));
    }

    #[test]
    fn an_odd_environment_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        assert!(Spool::start(root(&temp), "../x", options(0.0)).is_err());
    }
}
