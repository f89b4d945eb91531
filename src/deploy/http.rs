//! HTTP routes and middleware: authenticates, dispatches, counts and times requests.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use subtle::ConstantTimeEq as _;

use crate::deploy::{
    Service,
    counters::Labels,
    handlers::{classify, infer, live, metrics, model_metadata, model_ready, ready, server_metadata, status},
    request_log::CLIENT_CLOSED,
    service::HttpError,
};

/// State that every handler gets.
pub(super) type SharedService = State<Arc<Service>>;

/// Returns the router. Only the two health endpoints and unknown paths need no token.
pub(super) fn routes(service: &Arc<Service>) -> Router {
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
        .route_layer(middleware::from_fn_with_state(Arc::clone(service), require_token))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .fallback(|| async { HttpError(StatusCode::NOT_FOUND, "not found".into()) })
        .layer(middleware::from_fn_with_state(Arc::clone(service), count_request))
        .with_state(Arc::clone(service))
}

/// Rejects requests without the bearer token, if the service has one.
async fn require_token(State(service): SharedService, request: Request, next: Next) -> Response {
    let Some(token) = &service.options.token else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |it| it.as_bytes());
    let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
    if bool::from(given.ct_eq(token.as_bytes())) {
        return next.run(request).await;
    }
    let error = HttpError(StatusCode::UNAUTHORIZED, "a bearer token is required".into());
    ([(header::WWW_AUTHENTICATE, "Bearer")], error).into_response()
}

/// Guard of one inference request: counted as open until dropped, then counted by status. The status stays
/// 499 if the client disconnects before there is a response.
struct OpenRequest {
    service: Arc<Service>,
    status: u16,
}

impl OpenRequest {
    fn new(service: &Arc<Service>) -> Self {
        service.counters.open.inc();
        Self { service: Arc::clone(service), status: CLIENT_CLOSED }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let (counters, served) = (&self.service.counters, self.service.current());
        counters.open.dec();
        counters.count(&Labels {
            model: served.model.clone(),
            version: served.number.clone(),
            code: self.status.into(),
        });
    }
}

/// Counts inference requests, including those whose client disconnected, and times those that get a response.
async fn count_request(State(service): SharedService, request: Request, next: Next) -> Response {
    if !matches!(request.uri().path(), path if path == "/classify" || path.ends_with("/infer")) {
        return next.run(request).await;
    }
    let start = Instant::now();
    let mut open = OpenRequest::new(&service);
    let response = next.run(request).await;
    open.status = response.status().as_u16();
    service.counters.seconds.observe(start.elapsed().as_secs_f64());
    response
}
