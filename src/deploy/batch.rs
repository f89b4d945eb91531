//! Several requests, one run of the network: the oldest waits no longer than it must, the queue is bounded.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    error::{Doing, Error, Kind, Result},
    model::engine::Engine,
};

/// How requests are put together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pictures in one run of the network, at most.
    pub batch: usize,
    /// How long the first of a batch waits for others.
    pub wait: Duration,
    /// Requests that may wait.
    pub queue: usize,
}

/// The numbers of some pictures, row by row, and how many pictures were run with them.
pub struct Outcome {
    pub values: Vec<f32>,
    pub batch: usize,
}

struct Job {
    planes: Vec<f32>,
    rows: usize,
    answer: oneshot::Sender<Result<Outcome>>,
}

/// The thread that owns a network. It ends when the last handle is dropped and all that was taken is
/// answered.
pub struct Batcher {
    sender: SyncSender<Job>,
    waiting: Arc<AtomicUsize>,
    running: Arc<Running>,
    most: usize,
}

impl Batcher {
    /// `side` is the height and width of a picture in pixels.
    pub fn start(engine: Box<dyn Engine>, side: usize, limits: Limits) -> Result<Self> {
        let (sender, receiver) = sync_channel(limits.queue);
        let waiting = Arc::new(AtomicUsize::new(0));
        let running = Arc::<Running>::default();
        let (waits, runs) = (Arc::clone(&waiting), Arc::clone(&running));
        let worker = Worker { engine, side, limits, receiver, waiting: waits, running: runs };
        let thread = thread::Builder::new().name("network".into()).spawn(move || worker.run());
        thread.doing(|| "cannot start the network's thread".into())?;
        Ok(Self { sender, waiting, running, most: limits.batch })
    }

    /// Requests that wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether one run of the network has gone on for so long.
    pub fn is_stuck(&self, limit: Duration) -> bool {
        let since = *self.running.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|it| it.elapsed() >= limit)
    }

    /// Runs pictures (N×3×side×side values each); more than one batch holds are run one after another.
    /// [`Kind::Unavailable`] when the queue is full.
    pub async fn run(&self, planes: Vec<f32>, rows: usize) -> Result<Outcome> {
        if rows <= self.most {
            return self.one(planes, rows).await;
        }
        let width = planes.len() / rows;
        let mut whole = Outcome { values: Vec::new(), batch: 0 };
        for part in planes.chunks(width * self.most) {
            let part = self.one(part.to_vec(), part.len() / width).await?;
            whole.values.extend(part.values);
            whole.batch = whole.batch.max(part.batch);
        }
        Ok(whole)
    }

    async fn one(&self, planes: Vec<f32>, rows: usize) -> Result<Outcome> {
        let (answer, answered) = oneshot::channel();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.sender.try_send(Job { planes, rows, answer }) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(match error {
                TrySendError::Full(_) => Error::new(Kind::Unavailable, "the queue is full"),
                TrySendError::Disconnected(_) => Error::new(Kind::Internal, "the network has stopped"),
            });
        }
        answered.await.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the network gave no answer")))
    }
}

/// Since when the network runs, if it does now.
type Running = Mutex<Option<Instant>>;

struct Worker {
    engine: Box<dyn Engine>,
    side: usize,
    limits: Limits,
    receiver: Receiver<Job>,
    waiting: Arc<AtomicUsize>,
    running: Arc<Running>,
}

impl Worker {
    fn run(mut self) {
        let mut held = None;
        while let Some(first) = held.take().or_else(|| self.receiver.recv().ok()) {
            let mut jobs = vec![first];
            held = self.fill(&mut jobs);
            self.waiting.fetch_sub(jobs.len(), Ordering::Relaxed);
            // Whoever went away needs no answer.
            jobs.retain(|it| !it.answer.is_closed());
            self.answer(jobs);
        }
    }

    /// Takes more jobs until the batch is full or its time is over; one that does not fit is handed back.
    fn fill(&self, jobs: &mut Vec<Job>) -> Option<Job> {
        let end = Instant::now() + self.limits.wait;
        let mut rows = jobs[0].rows;
        while rows < self.limits.batch {
            let next = match self.receiver.try_recv() {
                Ok(next) => next,
                Err(_) => match self.receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
                    Ok(next) => next,
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
                },
            };
            if rows + next.rows > self.limits.batch {
                return Some(next);
            }
            rows += next.rows;
            jobs.push(next);
        }
        None
    }

    fn answer(&mut self, mut jobs: Vec<Job>) {
        let rows: usize = jobs.iter().map(|it| it.rows).sum();
        if rows == 0 {
            return jobs.into_iter().for_each(|it| send(it, Ok(Outcome { values: Vec::new(), batch: 0 })));
        }
        let planes = match &mut jobs[..] {
            [only] => std::mem::take(&mut only.planes),
            many => many.iter_mut().flat_map(|it| std::mem::take(&mut it.planes)).collect(),
        };
        match self.try_run(&planes, rows) {
            Ok(values) => {
                let width = values.len() / rows;
                let mut rest = &values[..];
                for job in jobs {
                    let (own, others) = rest.split_at(job.rows * width);
                    rest = others;
                    send(job, Ok(Outcome { values: own.to_vec(), batch: rows }));
                }
            }
            Err(error) => match <[Job; 1]>::try_from(jobs) {
                Ok([only]) => send(only, Err(Error::new(Kind::Internal, error.full_text()))),
                Err(jobs) => self.answer_alone(jobs, &planes, rows),
            },
        }
    }

    /// One of several spoilt it for all: each is run by itself, so that only that one fails.
    fn answer_alone(&mut self, jobs: Vec<Job>, planes: &[f32], rows: usize) {
        let (width, mut rest) = (planes.len() / rows, planes);
        for mut job in jobs {
            let (own, others) = rest.split_at(job.rows * width);
            rest = others;
            job.planes = own.to_vec();
            self.answer(vec![job]);
        }
    }

    /// A network that panics fails its batch, not the service.
    fn try_run(&mut self, planes: &[f32], rows: usize) -> Result<Vec<f32>> {
        self.runs_since(Some(Instant::now()));
        let run = std::panic::AssertUnwindSafe(|| self.engine.run(planes, self.side));
        let ended = std::panic::catch_unwind(run);
        self.runs_since(None);
        let values = ended.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the network panicked")))?;
        if values.is_empty() || values.len() % rows != 0 {
            return Err(Error::new(Kind::Internal, "the network's output does not fit its input"));
        }
        Ok(values)
    }

    fn runs_since(&self, since: Option<Instant>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

fn send(job: Job, outcome: Result<Outcome>) {
    // Nobody waits any more: that is not our failure.
    let _gone = job.answer.send(outcome);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives the first value of each picture and how many pictures came with it; fails where told.
    struct Echo;

    impl Engine for Echo {
        fn run(&mut self, planes: &[f32], side: usize) -> Result<Vec<f32>> {
            assert!(!planes.contains(&-1.0), "asked to panic");
            thread::sleep(Duration::from_millis(2));
            Ok(planes.chunks(3 * side * side).flat_map(|it| [it[0], it[1]]).collect())
        }

        fn id(&self) -> String {
            "echo".into()
        }
    }

    fn limits(batch: usize, queue: usize) -> Limits {
        Limits { batch, wait: Duration::from_millis(1), queue }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn everyone_gets_their_own_answer_in_order(sizes in prop::collection::vec(0_usize..7, 1..40)) {
            let batcher = Arc::new(Batcher::start(Box::new(Echo), 1, limits(4, 1000)).unwrap());
            let runtime = runtime();
            let asked = sizes.iter().enumerate().map(|(at, &rows)| {
                let batcher = Arc::clone(&batcher);
                let planes = (0..rows).flat_map(|row| [at as f32, row as f32, 0.0]).collect();
                runtime.spawn(async move { batcher.run(planes, rows).await })
            });
            for (at, (asked, rows)) in asked.collect::<Vec<_>>().into_iter().zip(&sizes).enumerate() {
                let found = runtime.block_on(asked).unwrap().unwrap();
                let expected: Vec<f32> = (0..*rows).flat_map(|row| [at as f32, row as f32]).collect();
                prop_assert_eq!(found.values, expected);
                prop_assert!(found.batch <= 4);
            }
        }
    }

    #[test]
    fn one_that_spoils_a_batch_fails_alone() {
        let limits = Limits { batch: 8, wait: Duration::from_millis(200), queue: 100 };
        let batcher = Arc::new(Batcher::start(Box::new(Echo), 1, limits).unwrap());
        let runtime = runtime();
        let ask = |value: f32| {
            let batcher = Arc::clone(&batcher);
            runtime.spawn(async move { batcher.run(vec![value; 3], 1).await })
        };
        let asked: Vec<_> = [1.0, 2.0, -1.0, 3.0].map(ask).into_iter().collect();
        let found: Vec<_> = asked.into_iter().map(|it| runtime.block_on(it).unwrap()).collect();
        for (at, value) in [(0, 1.0), (1, 2.0), (3, 3.0)] {
            assert_eq!(found[at].as_ref().unwrap().values, [value; 2]);
        }
        assert_eq!(found[2].as_ref().err().unwrap().to_string(), "the network panicked");
    }

    #[test]
    fn a_full_queue_refuses_and_a_panic_fails_its_batch_alone() {
        let batcher = Arc::new(Batcher::start(Box::new(Echo), 1, limits(1, 1)).unwrap());
        let runtime = runtime();
        let ask = |value: f32| {
            let batcher = Arc::clone(&batcher);
            runtime.spawn(async move { batcher.run(vec![value; 3], 1).await })
        };
        let asked: Vec<_> = (0..50).map(|at| ask(at as f32)).collect();
        let found: Vec<_> = asked.into_iter().map(|it| runtime.block_on(it).unwrap()).collect();
        let refused = found.iter().filter(|it| it.as_ref().is_err_and(|it| it.kind() == Kind::Unavailable));
        assert!(refused.count() > 0 && found.iter().any(Result::is_ok));
        let broken = runtime.block_on(ask(-1.0)).unwrap().err().unwrap();
        assert_eq!(broken.to_string(), "the network panicked");
        assert_eq!(runtime.block_on(ask(7.0)).unwrap().unwrap().values, [7.0, 7.0]);
        assert_eq!(batcher.waiting(), 0);
    }
}
