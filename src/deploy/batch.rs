//! Dynamic batching: collects waiting requests into one model call, within a maximum wait and a bounded
//! queue.

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
    error::{Error, Kind, Result, WithContext},
    model::engine::Engine,
};

/// Limits of batching.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Largest number of images in one model call.
    pub max_batch: usize,
    /// Longest time that the first request of a batch waits for others.
    pub max_wait: Duration,
    /// Largest number of waiting requests.
    pub queue: usize,
}

/// Model output for one request.
pub struct BatchOutput {
    /// Output values of the request's images, row by row.
    pub values: Vec<f32>,
    /// Number of images in the model call, including those of other requests.
    pub batch_size: usize,
}

struct Job {
    planes: Vec<f32>,
    rows: usize,
    reply: oneshot::Sender<Result<BatchOutput>>,
}

/// Handle of the thread that owns a model. The thread ends once the handle is dropped and all accepted
/// requests are answered.
pub struct Batcher {
    sender: SyncSender<Job>,
    waiting: Arc<AtomicUsize>,
    run_start: Arc<RunStart>,
    max_batch: usize,
}

impl Batcher {
    /// Starts the thread. `side` is the height and width of an image in pixels.
    pub fn start(engine: Box<dyn Engine>, side: usize, limits: BatchLimits) -> Result<Self> {
        let (sender, receiver) = sync_channel(limits.queue);
        let waiting = Arc::new(AtomicUsize::new(0));
        let run_start = Arc::<RunStart>::default();
        let shared = (Arc::clone(&waiting), Arc::clone(&run_start));
        let worker = Worker { engine, side, limits, receiver, waiting: shared.0, run_start: shared.1 };
        let thread = thread::Builder::new().name("model".into()).spawn(move || worker.run());
        thread.context(|| "cannot start the model thread".into())?;
        Ok(Self { sender, waiting, run_start, max_batch: limits.max_batch })
    }

    /// Returns the number of requests in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns true if the current model call has taken at least `limit`.
    pub fn is_stuck(&self, limit: Duration) -> bool {
        let start = *self.run_start.lock().unwrap_or_else(PoisonError::into_inner);
        start.is_some_and(|it| it.elapsed() >= limit)
    }

    /// Runs the model on `rows` images, given as N×3×side×side values. More images than fit into one batch
    /// are run in several calls. Fails with [`Kind::Unavailable`] if the queue is full.
    pub async fn run(&self, planes: Vec<f32>, rows: usize) -> Result<BatchOutput> {
        if rows <= self.max_batch {
            return self.submit(planes, rows).await;
        }
        let width = planes.len() / rows;
        let mut combined = BatchOutput { values: Vec::new(), batch_size: 0 };
        for part in planes.chunks(width * self.max_batch) {
            let part = self.submit(part.to_vec(), part.len() / width).await?;
            combined.values.extend(part.values);
            combined.batch_size = combined.batch_size.max(part.batch_size);
        }
        Ok(combined)
    }

    /// Queues one job and waits for its result.
    async fn submit(&self, planes: Vec<f32>, rows: usize) -> Result<BatchOutput> {
        let (reply, result) = oneshot::channel();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.sender.try_send(Job { planes, rows, reply }) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(match error {
                TrySendError::Full(_) => Error::new(Kind::Unavailable, "the queue is full"),
                TrySendError::Disconnected(_) => Error::new(Kind::Internal, "the model thread has stopped"),
            });
        }
        result.await.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the model gave no answer")))
    }
}

/// Start of the current model call; `None` between calls.
type RunStart = Mutex<Option<Instant>>;

struct Worker {
    engine: Box<dyn Engine>,
    side: usize,
    limits: BatchLimits,
    receiver: Receiver<Job>,
    waiting: Arc<AtomicUsize>,
    run_start: Arc<RunStart>,
}

impl Worker {
    fn run(mut self) {
        let mut carried_over = None;
        while let Some(first) = carried_over.take().or_else(|| self.receiver.recv().ok()) {
            let mut jobs = vec![first];
            carried_over = self.fill(&mut jobs);
            self.waiting.fetch_sub(jobs.len(), Ordering::Relaxed);
            // A client that disconnected needs no answer.
            jobs.retain(|it| !it.reply.is_closed());
            self.answer(jobs);
        }
    }

    /// Takes more jobs until the batch is full or its wait is over. Returns the job that did not fit, if any.
    fn fill(&self, jobs: &mut Vec<Job>) -> Option<Job> {
        let end = Instant::now() + self.limits.max_wait;
        let mut rows = jobs[0].rows;
        while rows < self.limits.max_batch {
            let next = match self.receiver.try_recv() {
                Ok(next) => next,
                Err(_) => match self.receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
                    Ok(next) => next,
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
                },
            };
            if rows + next.rows > self.limits.max_batch {
                return Some(next);
            }
            rows += next.rows;
            jobs.push(next);
        }
        None
    }

    /// Runs the jobs as one batch and replies to each.
    fn answer(&mut self, mut jobs: Vec<Job>) {
        let rows: usize = jobs.iter().map(|it| it.rows).sum();
        if rows == 0 {
            let empty = || BatchOutput { values: Vec::new(), batch_size: 0 };
            return jobs.into_iter().for_each(|job| send(job, Ok(empty())));
        }
        let planes = match &mut jobs[..] {
            [only] => std::mem::take(&mut only.planes),
            several => several.iter_mut().flat_map(|it| std::mem::take(&mut it.planes)).collect(),
        };
        match self.try_run(&planes, rows) {
            Ok(values) => {
                let width = values.len() / rows;
                let mut rest = &values[..];
                for job in jobs {
                    let (own, others) = rest.split_at(job.rows * width);
                    rest = others;
                    send(job, Ok(BatchOutput { values: own.to_vec(), batch_size: rows }));
                }
            }
            Err(error) => match <[Job; 1]>::try_from(jobs) {
                Ok([only]) => send(only, Err(Error::new(Kind::Internal, error.chain_text()))),
                Err(jobs) => self.answer_one_by_one(jobs, &planes, rows),
            },
        }
    }

    /// Runs each job of a failed batch by itself, so that only the one that caused the failure fails.
    fn answer_one_by_one(&mut self, jobs: Vec<Job>, planes: &[f32], rows: usize) {
        let (width, mut rest) = (planes.len() / rows, planes);
        for mut job in jobs {
            let (own, others) = rest.split_at(job.rows * width);
            rest = others;
            job.planes = own.to_vec();
            self.answer(vec![job]);
        }
    }

    /// Calls the model. A panic in it fails the batch, not the service.
    fn try_run(&mut self, planes: &[f32], rows: usize) -> Result<Vec<f32>> {
        self.set_run_start(Some(Instant::now()));
        let run = std::panic::AssertUnwindSafe(|| self.engine.run(planes, self.side));
        let result = std::panic::catch_unwind(run);
        self.set_run_start(None);
        let values = result.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the model panicked")))?;
        if values.is_empty() || values.len() % rows != 0 {
            return Err(Error::new(Kind::Internal, "the model's output does not match its input"));
        }
        Ok(values)
    }

    fn set_run_start(&self, start: Option<Instant>) {
        *self.run_start.lock().unwrap_or_else(PoisonError::into_inner) = start;
    }
}

fn send(job: Job, result: Result<BatchOutput>) {
    // This fails if the client has disconnected, which is not an error of the service.
    let _disconnected = job.reply.send(result);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fake model that returns the first two values of each image, and panics on a value of -1.
    struct Echo;

    impl Engine for Echo {
        fn run(&mut self, planes: &[f32], side: usize) -> Result<Vec<f32>> {
            assert!(!planes.contains(&-1.0), "a value of -1 panics");
            thread::sleep(Duration::from_millis(2));
            Ok(planes.chunks(3 * side * side).flat_map(|image| [image[0], image[1]]).collect())
        }

        fn id(&self) -> String {
            "echo".into()
        }
    }

    fn limits(max_batch: usize, queue: usize) -> BatchLimits {
        BatchLimits { max_batch, max_wait: Duration::from_millis(1), queue }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn each_request_gets_its_own_output_in_order(sizes in prop::collection::vec(0_usize..7, 1..40)) {
            let batcher = Arc::new(Batcher::start(Box::new(Echo), 1, limits(4, 1000)).unwrap());
            let runtime = runtime();
            let sent = sizes.iter().enumerate().map(|(at, &rows)| {
                let batcher = Arc::clone(&batcher);
                let planes = (0..rows).flat_map(|row| [at as f32, row as f32, 0.0]).collect();
                runtime.spawn(async move { batcher.run(planes, rows).await })
            });
            for (at, (task, rows)) in sent.collect::<Vec<_>>().into_iter().zip(&sizes).enumerate() {
                let found = runtime.block_on(task).unwrap().unwrap();
                let expected: Vec<f32> = (0..*rows).flat_map(|row| [at as f32, row as f32]).collect();
                prop_assert_eq!(found.values, expected);
                prop_assert!(found.batch_size <= 4);
            }
        }
    }

    #[test]
    fn a_request_that_breaks_a_batch_fails_alone() {
        let limits = BatchLimits { max_batch: 8, max_wait: Duration::from_millis(200), queue: 100 };
        let batcher = Arc::new(Batcher::start(Box::new(Echo), 1, limits).unwrap());
        let runtime = runtime();
        let submit = |value: f32| {
            let batcher = Arc::clone(&batcher);
            runtime.spawn(async move { batcher.run(vec![value; 3], 1).await })
        };
        let sent: Vec<_> = [1.0, 2.0, -1.0, 3.0].map(submit).into_iter().collect();
        let found: Vec<_> = sent.into_iter().map(|it| runtime.block_on(it).unwrap()).collect();
        for (at, value) in [(0, 1.0), (1, 2.0), (3, 3.0)] {
            assert_eq!(found[at].as_ref().unwrap().values, [value; 2]);
        }
        assert_eq!(found[2].as_ref().err().unwrap().to_string(), "the model panicked");
    }

    #[test]
    fn a_full_queue_rejects_and_a_panic_fails_only_its_batch() {
        let batcher = Arc::new(Batcher::start(Box::new(Echo), 1, limits(1, 1)).unwrap());
        let runtime = runtime();
        let submit = |value: f32| {
            let batcher = Arc::clone(&batcher);
            runtime.spawn(async move { batcher.run(vec![value; 3], 1).await })
        };
        let sent: Vec<_> = (0..50).map(|at| submit(at as f32)).collect();
        let found: Vec<_> = sent.into_iter().map(|it| runtime.block_on(it).unwrap()).collect();
        let is_busy = |error: &Error| error.kind() == Kind::Unavailable;
        let rejected = found.iter().filter(|result| result.as_ref().is_err_and(is_busy));
        assert!(rejected.count() > 0 && found.iter().any(Result::is_ok));
        let broken = runtime.block_on(submit(-1.0)).unwrap().err().unwrap();
        assert_eq!(broken.to_string(), "the model panicked");
        assert_eq!(runtime.block_on(submit(7.0)).unwrap().unwrap().values, [7.0, 7.0]);
        assert_eq!(batcher.waiting(), 0);
    }
}
