//! Requests: who may ask, where each goes, and how it is counted.

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
    note::GONE,
    service::Refusal,
};

pub(super) type Shared = State<Arc<Service>>;

/// Where each request goes.
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
        .route_layer(middleware::from_fn_with_state(Arc::clone(service), authorized))
        .route("/v2/health/live", get(live))
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

/// A request to the model, open until it is dropped: by then it has its status, or its client is gone.
struct Open {
    service: Arc<Service>,
    status: u16,
}

impl Open {
    fn new(service: &Arc<Service>) -> Self {
        service.counters.open.inc();
        Self { service: Arc::clone(service), status: GONE }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let (counters, served) = (&self.service.counters, self.service.live());
        counters.open.dec();
        counters.count(&Labels {
            model: served.model.clone(),
            version: served.number.clone(),
            code: self.status.into(),
        });
    }
}

/// Counts and times every answer of the model, and those that nobody waited for.
async fn counted(State(service): Shared, request: Request, next: Next) -> Response {
    if !matches!(request.uri().path(), it if it == "/classify" || it.ends_with("/infer")) {
        return next.run(request).await;
    }
    let start = Instant::now();
    let mut open = Open::new(&service);
    let response = next.run(request).await;
    open.status = response.status().as_u16();
    service.counters.seconds.observe(start.elapsed().as_secs_f64());
    response
}
