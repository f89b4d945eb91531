//! What all requests share, and the limits they are held to.
//!
//! What one stranger sends must not cost another their answer. So bodies in memory and pictures being decoded
//! are bounded, everything has a deadline, and what is too much is refused at once with a status that says so.
//!
//! Nobody can end a network that hangs but by ending the process. So when one run of it has outlasted three
//! deadlines, the service is neither ready, which keeps requests away, nor live, which makes Kubernetes start it
//! anew; what is asked meanwhile is refused at once. Should the run end after all, or another version be released,
//! all is well again. A stop only takes readiness away.

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
        Answer, Served,
        counters::Counters,
        note::{Seen, seen},
        protocol::{self, Request},
        room::{Room, Rooms},
    },
    digest::Digest,
    error::{Error, Kind, Result},
    model::{looks::looks, picture},
    traffic::Spool,
};

/// Deadlines that one run of the network may miss.
const MISSED: u32 = 3;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    pub environment: String,
    pub address: SocketAddr,
    /// What `Authorization: Bearer` must say; none lets everybody in.
    pub token: Option<String>,
    /// For reading a request, and again for answering it.
    pub deadline: Duration,
    /// Bytes of one body.
    pub largest_body: usize,
    /// Bytes of all bodies at once, besides the beginning of each.
    pub bodies: usize,
    /// Pixels of one picture.
    pub pixels: u64,
    pub connections: usize,
}

/// What all requests share.
pub struct Service {
    pub options: Options,
    pub counters: Counters,
    pub started: Instant,
    bound: OnceLock<SocketAddr>,
    live: RwLock<Arc<Served>>,
    stopping: AtomicBool,
    spool: OnceLock<Spool>,
    rooms: Rooms,
    decoders: Arc<Semaphore>,
}

/// An answer that is none: a status, and why.
pub(super) struct Refusal(pub StatusCode, pub String);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error.kind() {
            Kind::Usage | Kind::Corrupt => Self(StatusCode::BAD_REQUEST, error.full_text()),
            Kind::NotFound => Self(StatusCode::NOT_FOUND, error.full_text()),
            Kind::Unavailable => Self(StatusCode::SERVICE_UNAVAILABLE, error.full_text()),
            // What went wrong inside is for the log, not for strangers.
            _ => Self(StatusCode::INTERNAL_SERVER_ERROR, "the model could not be run".into()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.0, axum::Json(json!({"error": self.1}))).into_response();
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

impl Service {
    pub fn new(served: Arc<Served>, options: Options) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Arc::new(Self {
            rooms: Rooms::new(options.connections, options.bodies),
            decoders: Arc::new(Semaphore::new(cores)),
            bound: OnceLock::new(),
            live: RwLock::new(served),
            stopping: AtomicBool::new(false),
            spool: OnceLock::new(),
            counters: Counters::new(),
            started: Instant::now(),
            options,
        })
    }

    /// Makes every request a record from now on; the first spool stays.
    pub fn record_into(&self, spool: Spool) {
        let _second = self.spool.set(spool);
    }

    pub fn spool(&self) -> Option<&Spool> {
        self.spool.get()
    }

    /// Says where it can be asked.
    pub(super) fn listens_at(&self, address: SocketAddr) {
        let _second = self.bound.set(address);
    }

    /// Where it can be asked, once it can.
    pub fn address(&self) -> SocketAddr {
        self.bound.get().copied().unwrap_or(self.options.address)
    }

    /// The version that answers now.
    pub fn live(&self) -> Arc<Served> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets another version answer from now on; requests that were taken are answered by the former.
    pub fn switch(&self, served: Arc<Served>) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = served;
        self.counters.switches.inc();
    }

    /// Says that no more requests are taken.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether requests are welcome.
    pub fn is_ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed) && self.is_live()
    }

    /// Whether the network comes back from what it is given.
    pub fn is_live(&self) -> bool {
        !self.hangs(&self.live())
    }

    fn hangs(&self, served: &Served) -> bool {
        served.batcher.is_stuck(self.options.deadline * MISSED)
    }

    /// Reads a body within the limits; its room is free again when that is dropped.
    pub(super) async fn read(&self, headers: &HeaderMap, mut body: Body) -> Result<(Bytes, Room), Refusal> {
        let most = self.options.largest_body;
        let too_large = || Refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has {most} bytes at most"));
        let said = headers.get(header::CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
        if said.is_some_and(|it| it > most as u64) {
            return Err(too_large());
        }
        let encoding = headers.get(header::CONTENT_ENCODING).map_or(&b"identity"[..], |it| it.as_bytes());
        if encoding != b"identity" {
            return Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bodies are not compressed here".into()));
        }
        let full = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once".into());
        let mut room = self.rooms.enter().ok_or_else(full)?;
        let mut bytes = Vec::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                let broken = |_| Refusal(StatusCode::BAD_REQUEST, "the body ends too early".into());
                let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
                if bytes.len() + data.len() > most {
                    return Err(too_large());
                }
                if !room.hold(bytes.len() + data.len()) {
                    return Err(full());
                }
                bytes.extend_from_slice(&data);
            }
            Ok(())
        };
        let late = |_| Refusal(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time".into());
        timeout(self.options.deadline, reading).await.map_err(late)??;
        Ok((bytes.into(), room))
    }

    /// Runs pictures and notes how it went.
    pub(super) async fn run(
        &self,
        served: &Served,
        planes: Vec<f32>,
        rows: usize,
    ) -> Result<Vec<Answer>, Refusal> {
        if self.hangs(served) {
            return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, "the network hangs".into()));
        }
        let late = |_| Refusal(StatusCode::GATEWAY_TIMEOUT, "no answer in time".into());
        let outcome =
            timeout(self.options.deadline, served.batcher.run(planes, rows)).await.map_err(late)??;
        self.counters.batch.observe(outcome.batch as f64);
        Ok(served.answers(&outcome.values, rows)?)
    }

    /// Does what takes a while with a stranger's bytes on a thread where that delays nobody else; there are as many
    /// turns as cores.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let late = |_| Refusal(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once".into());
        let turn = timeout(self.options.deadline, Arc::clone(&self.decoders).acquire_owned());
        let turn = turn.await.map_err(late)?;
        let work = move || {
            // Whoever goes away leaves the work behind: its turn ends with the work.
            let _turn = turn;
            work()
        };
        let failed = |_| Refusal(StatusCode::BAD_REQUEST, "the body cannot be read".into());
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }

    /// Planes of a picture; what it looks like is added to `seen` when requests are recorded.
    pub(super) async fn decode(
        &self,
        served: &Arc<Served>,
        bytes: Bytes,
        seen: &mut Vec<Seen>,
    ) -> Result<Vec<f32>, Refusal> {
        let (most, served, recorded) = (self.options.pixels, Arc::clone(served), self.spool().is_some());
        let work = move || {
            let pixels = picture::pixels(&bytes)?;
            if pixels > most {
                let message = format!("a picture has {most} pixels at most, and this one {pixels}");
                return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            let planes = served.planes(&bytes)?;
            let side = served.description.input.crop as usize;
            let seen = || Seen { input: Digest::of(&bytes), looks: Some(looks(&planes, side)) };
            let seen = recorded.then(seen);
            Ok((planes, seen))
        };
        let (planes, found) = self.work(work).await?;
        seen.extend(found);
        Ok(planes)
    }

    /// Reads tensors; what their rows look like stands beside them when requests are recorded.
    pub(super) async fn parse(
        &self,
        served: &Arc<Served>,
        bytes: Bytes,
        length: Option<usize>,
    ) -> Result<(Request, Vec<Seen>), Refusal> {
        let (served, recorded) = (Arc::clone(served), self.spool().is_some());
        let work = move || {
            let (input, output) = served.tensors();
            let request = protocol::parse(&bytes, length, &input, &output)?;
            let side = served.description.input.crop as usize;
            let rows = if recorded { request.rows } else { 0 };
            let seen = seen(&request.values, rows, side);
            Ok((request, seen))
        };
        self.work(work).await
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::runtime::Builder;

    use super::*;
    use crate::deploy::samples::{Gate, ask, picture, served, service};

    #[test]
    fn a_network_that_hangs_is_neither_ready_nor_live_until_it_comes_back() {
        let gate = Gate::closed();
        let service = service(&gate, Duration::from_millis(100));
        let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
        let get = |path| runtime.block_on(ask(&service, "GET", path, Body::empty())).0;
        let classify = || runtime.block_on(ask(&service, "POST", "/classify", picture(1).into()));
        let health = || ["/v2/health/live", "/v2/health/ready", "/v2/models/pets/ready"].map(&get);
        let until = |wanted: u16| {
            for _ in 0..1000 {
                if health() == [wanted; 3] {
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
            panic!("{wanted} never came: {:?}", health());
        };
        assert_eq!(health(), [200; 3]);
        assert_eq!(classify().0, 504);
        until(503);
        let (code, text) = classify();
        assert_eq!((code, &text[..]), (503, "{\"error\":\"the network hangs\"}"));
        assert_eq!(service.live().batcher.waiting(), 0, "nothing more is queued");
        gate.open();
        until(200);
        assert_eq!(classify().0, 200);
        gate.close();
        assert_eq!(classify().0, 504);
        until(503);
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
