//! The service itself: connections, limits, and who may ask.
//!
//! What one stranger sends must not cost another their answer. So bodies in memory, pictures being decoded,
//! requests in the queue and open connections are each bounded, everything has a deadline, and what is
//! too much is refused at once with a status that says so.

use std::{
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::BodyExt as _;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{
    deploy::{
        Answer, Served,
        counters::{Counters, Labels},
        page::{self, View},
        protocol::{self, DATATYPE, Tensor},
    },
    error::{Doing, Error, Kind, Result},
    model::picture,
};

/// Bodies are counted in pieces of this size.
const PIECE: usize = 64 << 10;
const JSON_LENGTH: &str = "inference-header-content-length";
const ID: &str = "x-request-id";

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
    /// Bytes of all bodies at once.
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
    live: RwLock<Arc<Served>>,
    stopping: AtomicBool,
    bodies: Arc<Semaphore>,
    decoders: Semaphore,
}

/// An answer that is none: a status, and why.
struct Refusal(StatusCode, String);

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
            bodies: Arc::new(Semaphore::new(options.bodies.div_ceil(PIECE))),
            decoders: Semaphore::new(cores),
            live: RwLock::new(served),
            stopping: AtomicBool::new(false),
            counters: Counters::new(),
            started: Instant::now(),
            options,
        })
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

    pub fn is_ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
    }

    fn routes(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/", get(status))
            .route("/metrics", get(metrics))
            .route("/classify", post(classify))
            .route("/v2", get(server_metadata))
            .route("/v2/models/{model}", get(model_metadata))
            .route("/v2/models/{model}/versions/{version}", get(model_metadata))
            .route("/v2/models/{model}/ready", get(model_ready))
            .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
            .route("/v2/models/{model}/infer", post(infer))
            .route("/v2/models/{model}/versions/{version}/infer", post(infer))
            .route_layer(middleware::from_fn_with_state(Arc::clone(self), authorized))
            .route("/v2/health/live", get(|| async { axum::Json(json!({"live": true})) }))
            .route("/v2/health/ready", get(ready))
            .fallback(|| async { Refusal(StatusCode::NOT_FOUND, "there is no such address".into()) })
            .layer(middleware::from_fn_with_state(Arc::clone(self), counted))
            .with_state(Arc::clone(self))
    }

    /// Reads a body within the limits; its room is free again when the permit is dropped.
    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
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
        let mut room = Arc::clone(&self.bodies).try_acquire_owned().map_err(|_| full())?;
        let mut bytes = Vec::new();
        let mut body = body;
        let reading = async {
            while let Some(frame) = body.frame().await {
                let broken = |_| Refusal(StatusCode::BAD_REQUEST, "the body ends too early".into());
                let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
                if bytes.len() + data.len() > most {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&data);
                while room.num_permits() * PIECE < bytes.len() {
                    room.merge(Arc::clone(&self.bodies).try_acquire_owned().map_err(|_| full())?);
                }
            }
            Ok(())
        };
        let late = |_| Refusal(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time".into());
        timeout(self.options.deadline, reading).await.map_err(late)??;
        Ok((bytes.into(), room))
    }

    /// Runs pictures and notes how it went.
    async fn run(&self, served: &Served, planes: Vec<f32>, rows: usize) -> Result<Vec<Answer>, Refusal> {
        let late = |_| Refusal(StatusCode::GATEWAY_TIMEOUT, "no answer in time".into());
        let outcome =
            timeout(self.options.deadline, served.batcher.run(planes, rows)).await.map_err(late)??;
        self.counters.batch.observe(outcome.batch as f64);
        Ok(served.answers(&outcome.values, rows)?)
    }

    async fn decode(&self, served: &Arc<Served>, bytes: Bytes) -> Result<Vec<f32>, Refusal> {
        let (most, served) = (self.options.pixels, Arc::clone(served));
        let work = move || -> Result<Vec<f32>, Refusal> {
            let pixels = picture::pixels(&bytes)?;
            if pixels > most {
                let message = format!("a picture has {most} pixels at most, and this one {pixels}");
                return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            Ok(served.planes(&bytes)?)
        };
        let late = |_| Refusal(StatusCode::SERVICE_UNAVAILABLE, "too many pictures at once".into());
        let _turn = timeout(self.options.deadline, self.decoders.acquire()).await.map_err(late)?;
        let failed = |_| Refusal(StatusCode::BAD_REQUEST, "the picture cannot be decoded".into());
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }
}

/// Serves until the process is asked to end; requests that were taken are answered. `ready` is told the
/// address.
pub fn serve(service: &Arc<Service>, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.doing(|| "cannot start the network".into())?.block_on(accept(service, ready))
}

async fn accept(service: &Arc<Service>, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let address = service.options.address;
    let listener = TcpListener::bind(address).await.doing(|| format!("cannot listen at {address}"))?;
    ready(listener.local_addr().doing(|| "cannot tell the address".into())?);
    let stop = |kind| signal(kind).doing(|| "cannot wait for signals".into());
    let (mut term, mut int) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(service.options.connections));
    let routes = service.routes();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(service.options.deadline).max_buf_size(64 << 10);
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let stream = tokio::select! {
            taken = listener.accept() => match taken {
                Ok((stream, _)) => stream,
                // Out of file descriptors: others will go away.
                Err(_) => { tokio::time::sleep(Duration::from_millis(20)).await; continue }
            },
            _ = term.recv() => break,
            _ = int.recv() => break,
        };
        let _slower = stream.set_nodelay(true);
        let connection =
            http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off is its own affair.
            let _ended = connection.await;
            drop(place);
        });
    }
    service.stopping.store(true, Ordering::Relaxed);
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(service.options.deadline * 2) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

type Shared = State<Arc<Service>>;

/// Refuses whoever does not know the token.
async fn authorized(State(service): Shared, request: Request, next: Next) -> Response {
    let Some(token) = &service.options.token else { return next.run(request).await };
    let said = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |it| it.as_bytes());
    let said = said.strip_prefix(b"Bearer ").unwrap_or_default();
    if bool::from(said.ct_eq(token.as_bytes())) {
        return next.run(request).await;
    }
    let refusal = Refusal(StatusCode::UNAUTHORIZED, "a bearer token is needed".into());
    ([(header::WWW_AUTHENTICATE, "Bearer")], refusal).into_response()
}

/// Counts and times every answer.
async fn counted(State(service): Shared, request: Request, next: Next) -> Response {
    let asked = matches!(request.uri().path(), it if it == "/classify" || it.ends_with("/infer"));
    let start = Instant::now();
    service.counters.open.inc();
    let response = next.run(request).await;
    service.counters.open.dec();
    if asked {
        let served = service.live();
        let labels = Labels {
            model: served.model.clone(),
            version: served.number.clone(),
            code: response.status().as_u16().into(),
        };
        service.counters.count(&labels);
        service.counters.seconds.observe(start.elapsed().as_secs_f64());
    }
    response
}

async fn status(State(service): Shared) -> Html<String> {
    let answers = service.counters.answers();
    Html(page::status(&View {
        served: &service.live(),
        environment: &service.options.environment,
        address: service.options.address.to_string(),
        ready: service.is_ready(),
        age: service.started.elapsed().as_secs(),
        answers: answers.iter().map(|(code, count)| format!("{count} with {code}")).collect(),
    }))
}

async fn metrics(State(service): Shared) -> Response {
    service.counters.waiting.set(service.live().batcher.waiting() as i64);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], service.counters.text()).into_response()
}

async fn ready(State(service): Shared) -> Response {
    if service.is_ready() {
        return axum::Json(json!({"ready": true})).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"ready": false}))).into_response()
}

async fn server_metadata() -> axum::Json<Value> {
    let version = env!("CARGO_PKG_VERSION");
    axum::Json(json!({"name": "mlx", "version": version, "extensions": ["binary_tensor_data"]}))
}

/// The model and version of an address, if they are the ones that answer.
fn named(service: &Service, names: &[(String, String)]) -> Result<Arc<Served>, Refusal> {
    let served = service.live();
    for (key, value) in names {
        let own = if key == "model" { &served.model } else { &served.number };
        if value != own {
            let message = format!("there is no such {key}; this is {} {}", served.model, served.number);
            return Err(Refusal(StatusCode::NOT_FOUND, message));
        }
    }
    Ok(served)
}

/// What a version takes and gives.
fn tensors(served: &Served) -> (Tensor, Tensor) {
    let side = i64::from(served.description.input.crop);
    let input = Tensor {
        name: served.description.input.name.clone(),
        datatype: DATATYPE,
        shape: vec![-1, 3, side, side],
    };
    let classes = served.description.classes.len() as i64;
    let output =
        Tensor { name: served.description.output.clone(), datatype: DATATYPE, shape: vec![-1, classes] };
    (input, output)
}

type Names = Path<Vec<(String, String)>>;

async fn model_metadata(State(service): Shared, Path(names): Names) -> Result<axum::Json<Value>, Refusal> {
    let served = named(&service, &names)?;
    let (input, output) = tensors(&served);
    Ok(axum::Json(json!({"name": served.model, "versions": [served.number], "platform": "onnx_onnxv1",
        "parameters": {"package": served.package}, "inputs": [input], "outputs": [output]})))
}

async fn model_ready(State(service): Shared, Path(names): Names) -> Result<Response, Refusal> {
    let served = named(&service, &names)?;
    let code = if service.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((code, axum::Json(json!({"name": served.model, "ready": service.is_ready()}))).into_response())
}

async fn infer(
    State(service): Shared,
    Path(names): Names,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let served = named(&service, &names)?;
    let (bytes, _room) = service.read(&headers, body).await?;
    let length = match headers.get(JSON_LENGTH) {
        None => None,
        Some(it) => Some(it.to_str().ok().and_then(|it| it.parse().ok()).ok_or_else(|| {
            Refusal(StatusCode::BAD_REQUEST, format!("`{JSON_LENGTH}` is no count of bytes"))
        })?),
    };
    let (input, output) = tensors(&served);
    let mut request = protocol::parse(&bytes, length, &input, &output)?;
    let planes = std::mem::take(&mut request.values);
    let answers = service.run(&served, planes, request.rows).await?;
    let scores: Vec<f32> = answers.iter().flat_map(|it| it.scores.iter().copied()).collect();
    let names = (&served.model[..], &served.number[..]);
    let (body, length) = protocol::print(names, &request, &output, &scores);
    let Some(length) = length else {
        return Ok(([(header::CONTENT_TYPE, "application/json".to_owned())], body).into_response());
    };
    let kind = (header::CONTENT_TYPE, "application/octet-stream".to_owned());
    let length = (header::HeaderName::from_static(JSON_LENGTH), length.to_string());
    Ok(([kind, length], body).into_response())
}

async fn classify(State(service): Shared, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let served = service.live();
    let id = match headers.get(ID) {
        None => new_id(),
        Some(it) => it.to_str().unwrap_or_default().to_owned(),
    };
    protocol::check_id(&id)?;
    let (bytes, _room) = service.read(&headers, body).await?;
    let planes = service.decode(&served, bytes).await?;
    let answer = service.run(&served, planes, 1).await?.remove(0);
    let scores: serde_json::Map<String, Value> =
        served.description.classes.iter().cloned().zip(answer.scores.iter().map(|it| json!(it))).collect();
    let body = json!({"id": id, "class": answer.class, "probability": answer.probability, "scores": scores,
        "model": served.model, "version": served.number});
    Ok(([(header::HeaderName::from_static(ID), id)], axum::Json(body)).into_response())
}

/// An id that no other request has.
fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}
