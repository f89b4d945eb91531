//! Connections: who may ask, where each request goes, and how it ends.
//!
//! Queued requests and open connections are bounded, and a stop answers everything that was taken.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use serde_json::json;
use subtle::ConstantTimeEq as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};

use crate::{
    deploy::{
        Service,
        counters::Labels,
        handlers::{classify, infer, metrics, model_metadata, model_ready, ready, server_metadata, status},
        service::Refusal,
    },
    error::{Doing, Result},
};

pub(super) type Shared = State<Arc<Service>>;

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
    let routes = routes(service);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(service.options.deadline).max_buf_size(64 << 10);
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place.expect("it is never closed"),
            _ = term.recv() => break,
            _ = int.recv() => break,
        };
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
    service.stop();
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(service.options.deadline * 2) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

fn routes(service: &Arc<Service>) -> Router {
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
        .route_layer(middleware::from_fn_with_state(Arc::clone(service), authorized))
        .route("/v2/health/live", get(|| async { axum::Json(json!({"live": true})) }))
        .route("/v2/health/ready", get(ready))
        .fallback(|| async { Refusal(StatusCode::NOT_FOUND, "there is no such address".into()) })
        .layer(middleware::from_fn_with_state(Arc::clone(service), counted))
        .with_state(Arc::clone(service))
}

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

/// Counted as open until dropped, even when the client goes away and nobody answers.
struct Open(Arc<Service>);

impl Open {
    fn new(service: &Arc<Service>) -> Self {
        service.counters.open.inc();
        Self(Arc::clone(service))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counters.open.dec();
    }
}

/// Counts and times every answer.
async fn counted(State(service): Shared, request: Request, next: Next) -> Response {
    let asked = matches!(request.uri().path(), it if it == "/classify" || it.ends_with("/infer"));
    let start = Instant::now();
    let open = Open::new(&service);
    let response = next.run(request).await;
    drop(open);
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
