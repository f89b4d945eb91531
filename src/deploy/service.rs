//! State shared by all requests, and the limits that keep one client from degrading the service for others.
//!
//! Request bodies in memory and concurrent image decoding are bounded, every step has a deadline, and a
//! request that exceeds a limit is rejected at once with a status that says why.
//!
//! A model call that hangs can only be ended by ending the process. So once one call has taken three
//! deadlines, the service is neither ready, which keeps requests away, nor live, which makes Kubernetes
//! restart it; meanwhile, new requests are rejected at once. Should the call return after all, or another
//! version be released, the service recovers. A stop only clears readiness.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    deploy::{
        Prediction, ServedModel,
        body_memory::{BodyMemory, Reservation},
        counters::Counters,
        protocol::{self, InferRequest},
        request_log::{InputRow, input_rows},
    },
    digest::Digest,
    error::{Error, Kind, Result},
    model::{image_stats::measure_image, preprocess},
    traffic::Spool,
};

/// Deadlines after which a model call counts as stuck.
const STUCK_DEADLINES: u32 = 3;

/// Address, authentication and limits of a service.
#[derive(Clone, Debug)]
pub struct Options {
    pub environment: String,
    pub address: SocketAddr,
    /// Token expected in `Authorization: Bearer`; `None` accepts every request.
    pub token: Option<String>,
    /// Time limit for reading a request, and again for answering it.
    pub deadline: Duration,
    /// Largest body in bytes.
    pub max_body: usize,
    /// Memory in bytes for all bodies at once, not counting the first MiB of each.
    pub body_memory: usize,
    /// Largest image in pixels.
    pub max_pixels: u64,
    pub max_connections: usize,
}

/// State shared by all requests.
pub struct Service {
    pub options: Options,
    pub counters: Counters,
    pub started: Instant,
    bound: OnceLock<SocketAddr>,
    current: RwLock<Arc<ServedModel>>,
    stopping: AtomicBool,
    spool: OnceLock<Spool>,
    body_memory: BodyMemory,
    /// Permits for CPU-bound work, as many as cores.
    workers: Arc<Semaphore>,
}

/// Error response: a status and the message of its JSON body.
pub(super) struct HttpError(pub StatusCode, pub String);

impl From<Error> for HttpError {
    fn from(error: Error) -> Self {
        match error.kind() {
            Kind::Usage | Kind::Corrupt => Self(StatusCode::BAD_REQUEST, error.chain_text()),
            Kind::NotFound => Self(StatusCode::NOT_FOUND, error.chain_text()),
            Kind::Unavailable => Self(StatusCode::SERVICE_UNAVAILABLE, error.chain_text()),
            // Internal details are not shown to clients.
            _ => Self(StatusCode::INTERNAL_SERVER_ERROR, "the model could not be run".into()),
        }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = (self.0, axum::Json(json!({"error": self.1}))).into_response();
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

impl Service {
    pub fn new(served: Arc<ServedModel>, options: Options) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Arc::new(Self {
            body_memory: BodyMemory::new(options.max_connections, options.body_memory),
            workers: Arc::new(Semaphore::new(cores)),
            bound: OnceLock::new(),
            current: RwLock::new(served),
            stopping: AtomicBool::new(false),
            spool: OnceLock::new(),
            counters: Counters::new(),
            started: Instant::now(),
            options,
        })
    }

    /// Records every request into `spool` from now on. Only the first call has an effect.
    pub fn record_into(&self, spool: Spool) {
        let _second = self.spool.set(spool);
    }

    pub fn spool(&self) -> Option<&Spool> {
        self.spool.get()
    }

    /// Sets the address it listens on.
    pub(super) fn set_address(&self, address: SocketAddr) {
        let _second = self.bound.set(address);
    }

    /// Returns the bound address; before that, the requested one.
    pub fn address(&self) -> SocketAddr {
        self.bound.get().copied().unwrap_or(self.options.address)
    }

    /// Returns the version served now.
    pub fn current(&self) -> Arc<ServedModel> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves another version from now on; requests already accepted are answered by the previous one.
    pub fn switch(&self, served: Arc<ServedModel>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = served;
        self.counters.switches.inc();
    }

    /// Marks the service as stopping: no longer ready.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Returns true if the service accepts requests: not stopping, and live.
    pub fn is_ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed) && self.is_live()
    }

    /// Returns true unless a model call is stuck.
    pub fn is_live(&self) -> bool {
        !self.is_stuck(&self.current())
    }

    fn is_stuck(&self, served: &ServedModel) -> bool {
        served.batcher.is_stuck(self.options.deadline * STUCK_DEADLINES)
    }

    /// Reads a body within the limits. The caller holds on to the reservation for as long as the body is in
    /// memory.
    pub(super) async fn read_body(
        &self,
        headers: &HeaderMap,
        mut body: Body,
    ) -> Result<(Bytes, Reservation), HttpError> {
        let max = self.options.max_body;
        let too_large =
            || HttpError(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {max} bytes"));
        let declared =
            headers.get(header::CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|it| it > max as u64) {
            return Err(too_large());
        }
        let encoding = headers.get(header::CONTENT_ENCODING).map_or(&b"identity"[..], |it| it.as_bytes());
        if encoding != b"identity" {
            return Err(HttpError(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "compressed bodies are not supported".into(),
            ));
        }
        let busy = || HttpError(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once".into());
        let mut memory = self.body_memory.reserve().ok_or_else(busy)?;
        let mut bytes = Vec::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                let truncated = |_| HttpError(StatusCode::BAD_REQUEST, "the body is truncated".into());
                let Ok(data) = frame.map_err(truncated)?.into_data() else { continue };
                if bytes.len() + data.len() > max {
                    return Err(too_large());
                }
                if !memory.grow_to(bytes.len() + data.len()) {
                    return Err(busy());
                }
                bytes.extend_from_slice(&data);
            }
            Ok(())
        };
        let late = |_| HttpError(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time".into());
        timeout(self.options.deadline, reading).await.map_err(late)??;
        Ok((bytes.into(), memory))
    }

    /// Runs the model on the values of some images and returns one prediction each.
    pub(super) async fn run_model(
        &self,
        served: &ServedModel,
        planes: Vec<f32>,
        rows: usize,
    ) -> Result<Vec<Prediction>, HttpError> {
        if self.is_stuck(served) {
            return Err(HttpError(StatusCode::SERVICE_UNAVAILABLE, "the model is not responding".into()));
        }
        let late = |_| HttpError(StatusCode::GATEWAY_TIMEOUT, "the model did not answer in time".into());
        let output =
            timeout(self.options.deadline, served.batcher.run(planes, rows)).await.map_err(late)??;
        self.counters.batch.observe(output.batch_size as f64);
        Ok(served.predictions(&output.values, rows)?)
    }

    /// Runs CPU-bound work on a blocking thread, so that it does not delay other requests. At most as many
    /// jobs run at once as there are cores.
    pub(super) async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, HttpError> + Send + 'static,
    ) -> Result<T, HttpError> {
        let late = |_| HttpError(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once".into());
        let permit = timeout(self.options.deadline, Arc::clone(&self.workers).acquire_owned());
        let permit = permit.await.map_err(late)?;
        let work = move || {
            // The work continues even if the client disconnects, so the permit is released with the work.
            let _permit = permit;
            work()
        };
        let failed = |_| HttpError(StatusCode::BAD_REQUEST, "the body cannot be read".into());
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }

    /// Decodes an image into the model's input values. While requests are recorded, its digest and statistics
    /// are added to `inputs`.
    pub(super) async fn decode_image(
        &self,
        served: &Arc<ServedModel>,
        bytes: Bytes,
        inputs: &mut Vec<InputRow>,
    ) -> Result<Vec<f32>, HttpError> {
        let (max, served, recorded) = (self.options.max_pixels, Arc::clone(served), self.spool().is_some());
        let work = move || {
            let pixels = preprocess::claimed_pixels(&bytes)?;
            if pixels > max {
                let message = format!("the image has {pixels} pixels, and the limit is {max}");
                return Err(HttpError(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            let planes = served.planes(&bytes)?;
            let side = served.description.input.crop as usize;
            let input = || InputRow { digest: Digest::of(&bytes), looks: Some(measure_image(&planes, side)) };
            let input = recorded.then(input);
            Ok((planes, input))
        };
        let (planes, input) = self.run_blocking(work).await?;
        inputs.extend(input);
        Ok(planes)
    }

    /// Parses an inference request; `length` is the length of its JSON where binary data follows. While
    /// requests are recorded, the digest and statistics of each row are returned, too; otherwise that list is
    /// empty.
    pub(super) async fn parse_tensors(
        &self,
        served: &Arc<ServedModel>,
        bytes: Bytes,
        length: Option<usize>,
    ) -> Result<(InferRequest, Vec<InputRow>), HttpError> {
        let (served, recorded) = (Arc::clone(served), self.spool().is_some());
        let work = move || {
            let (input, output) = served.tensors();
            let request = protocol::parse(&bytes, length, &input, &output)?;
            let side = served.description.input.crop as usize;
            let rows = if recorded { request.rows } else { 0 };
            let inputs = input_rows(&request.values, rows, side);
            Ok((request, inputs))
        };
        self.run_blocking(work).await
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::runtime::Builder;

    use super::*;
    use crate::deploy::test_service::{Gate, image, request, served, service};

    #[test]
    fn a_stuck_model_is_neither_ready_nor_live_until_it_returns() {
        let gate = Gate::closed();
        let service = service(&gate, Duration::from_millis(100));
        let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
        let get = |path| runtime.block_on(request(&service, "GET", path, Body::empty())).0;
        let classify = || runtime.block_on(request(&service, "POST", "/classify", image(1).into()));
        let health = || ["/v2/health/live", "/v2/health/ready", "/v2/models/pets/ready"].map(&get);
        let wait_for = |status: u16| {
            for _ in 0..1000 {
                if health() == [status; 3] {
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
            panic!("no status {status}: {:?}", health());
        };
        assert_eq!(health(), [200; 3]);
        assert_eq!(classify().0, 504);
        wait_for(503);
        let (code, text) = classify();
        assert_eq!((code, &text[..]), (503, "{\"error\":\"the model is not responding\"}"));
        assert_eq!(service.current().batcher.waiting(), 0, "nothing more is queued");
        gate.open();
        wait_for(200);
        assert_eq!(classify().0, 200);
        gate.close();
        assert_eq!(classify().0, 504);
        wait_for(503);
        let other = Gate::closed();
        other.open();
        service.switch(served(&other, "pets", ["cat", "dog"]));
        assert_eq!(health(), [200; 3]);
        assert_eq!(classify().0, 200);
        service.stop();
        assert_eq!(health(), [200, 503, 503]);
        gate.open();
    }
}
