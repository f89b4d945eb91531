//! Handlers of the HTTP endpoints: status page, metrics, health, Open Inference Protocol V2 and `/classify`.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::deploy::{
    ServedModel, Service,
    http::SharedService,
    page::{self, StatusView},
    protocol::{self, JSON_LENGTH_HEADER},
    request_log::{RequestFacts, RequestLog},
    service::HttpError,
};

/// Header with the request id, in requests and responses.
const ID_HEADER: &str = "x-request-id";

pub(super) async fn status(State(service): SharedService) -> Html<String> {
    let responses = service.counters.responses();
    Html(page::status(&StatusView {
        served: &service.current(),
        environment: &service.options.environment,
        address: service.address().to_string(),
        state: match (service.is_live(), service.is_ready()) {
            (false, _) => "stuck",
            (true, true) => "ready",
            (true, false) => "stopping",
        },
        uptime: service.started.elapsed().as_secs(),
        responses: responses.iter().map(|(code, count)| format!("{count} with {code}")).collect(),
    }))
}

pub(super) async fn metrics(State(service): SharedService) -> Response {
    let counters = &service.counters;
    counters.waiting.set(service.current().batcher.waiting() as i64);
    if let Some(spool) = service.spool() {
        counters.recorded.inner().fetch_max(spool.recorded(), Ordering::Relaxed);
        counters.dropped.inner().fetch_max(spool.dropped(), Ordering::Relaxed);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], service.counters.text()).into_response()
}

pub(super) async fn live(State(service): SharedService) -> Response {
    let live = service.is_live();
    (status_if(live), axum::Json(json!({"live": live}))).into_response()
}

pub(super) async fn ready(State(service): SharedService) -> Response {
    let ready = service.is_ready();
    (status_if(ready), axum::Json(json!({"ready": ready}))).into_response()
}

fn status_if(healthy: bool) -> StatusCode {
    if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

pub(super) async fn server_metadata() -> axum::Json<Value> {
    let version = env!("CARGO_PKG_VERSION");
    axum::Json(json!({"name": "mlx", "version": version, "extensions": ["binary_tensor_data"]}))
}

/// Parameters in the path; an error if they are not valid UTF-8.
type PathParams = Result<Path<Vec<(String, String)>>, PathRejection>;

/// Checks that the path names the served model and version; 404 otherwise.
fn check_path(served: &ServedModel, params: PathParams) -> Result<(), HttpError> {
    let unreadable = |_| HttpError(StatusCode::NOT_FOUND, "not found".into());
    for (key, value) in params.map_err(unreadable)?.0 {
        let expected = if key == "model" { &served.model } else { &served.number };
        if value != *expected {
            let message = format!("unknown {key}: this service serves {} {}", served.model, served.number);
            return Err(HttpError(StatusCode::NOT_FOUND, message));
        }
    }
    Ok(())
}

pub(super) async fn model_metadata(
    State(service): SharedService,
    params: PathParams,
) -> Result<axum::Json<Value>, HttpError> {
    let served = service.current();
    check_path(&served, params)?;
    let (input, output) = served.tensors();
    Ok(axum::Json(json!({"name": served.model, "versions": [served.number], "platform": "onnx_onnxv1",
        "parameters": {"package": served.package}, "inputs": [input], "outputs": [output]})))
}

pub(super) async fn model_ready(
    State(service): SharedService,
    params: PathParams,
) -> Result<Response, HttpError> {
    let served = service.current();
    check_path(&served, params)?;
    let ready = service.is_ready();
    Ok((status_if(ready), axum::Json(json!({"name": served.model, "ready": ready}))).into_response())
}

pub(super) async fn infer(
    State(service): SharedService,
    params: PathParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let mut log = RequestLog::new(&service);
    let served = Arc::clone(&log.served);
    let result = match check_path(&served, params) {
        Ok(()) => try_infer(&service, &served, &headers, body, &mut log.facts).await,
        Err(error) => Err(error),
    };
    log.finish(status_of(&result));
    result
}

async fn try_infer(
    service: &Arc<Service>,
    served: &Arc<ServedModel>,
    headers: &HeaderMap,
    body: Body,
    facts: &mut RequestFacts,
) -> Result<Response, HttpError> {
    facts.read_headers(headers)?;
    let (bytes, _memory) = service.read_body(headers, body).await?;
    let length = match headers.get(JSON_LENGTH_HEADER) {
        None => None,
        Some(value) => Some(value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            HttpError(StatusCode::BAD_REQUEST, format!("`{JSON_LENGTH_HEADER}` is not a byte count"))
        })?),
    };
    facts.body = Some(bytes.clone());
    let (mut request, inputs) = service.parse_tensors(served, bytes, length).await?;
    facts.id = request.id.clone().unwrap_or_else(|| std::mem::take(&mut facts.id));
    facts.inputs = inputs;
    let planes = std::mem::take(&mut request.values);
    let predictions = service.run_model(served, planes, request.rows).await?;
    let scores: Vec<f32> = predictions.iter().flat_map(|it| it.scores.iter().copied()).collect();
    facts.predictions = predictions;
    let names = (&served.model[..], &served.number[..]);
    let (body, length) = protocol::encode(names, &request, &served.tensors().1, &scores);
    let id = (header::HeaderName::from_static(ID_HEADER), facts.id.clone());
    let Some(length) = length else {
        return Ok(([(header::CONTENT_TYPE, "application/json".to_owned()), id], body).into_response());
    };
    let kind = (header::CONTENT_TYPE, "application/octet-stream".to_owned());
    let length = (header::HeaderName::from_static(JSON_LENGTH_HEADER), length.to_string());
    Ok(([kind, length, id], body).into_response())
}

pub(super) async fn classify(
    State(service): SharedService,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let mut log = RequestLog::new(&service);
    let served = Arc::clone(&log.served);
    let result = try_classify(&service, &served, &headers, body, &mut log.facts).await;
    log.finish(status_of(&result));
    result
}

async fn try_classify(
    service: &Arc<Service>,
    served: &Arc<ServedModel>,
    headers: &HeaderMap,
    body: Body,
    facts: &mut RequestFacts,
) -> Result<Response, HttpError> {
    if let Some(given) = headers.get(ID_HEADER) {
        let given = given.to_str().unwrap_or_default();
        protocol::check_id(given)?;
        given.clone_into(&mut facts.id);
    }
    facts.read_headers(headers)?;
    let (bytes, _memory) = service.read_body(headers, body).await?;
    (facts.body, facts.is_image) = (Some(bytes.clone()), true);
    let planes = service.decode_image(served, bytes, &mut facts.inputs).await?;
    let prediction = service.run_model(served, planes, 1).await?.remove(0);
    let scores: serde_json::Map<String, Value> = served
        .description
        .classes
        .iter()
        .cloned()
        .zip(prediction.scores.iter().map(|it| json!(it)))
        .collect();
    let body = json!({"id": facts.id, "class": prediction.class, "probability": prediction.probability,
        "scores": scores, "model": served.model, "version": served.number});
    facts.predictions.push(prediction);
    Ok(([(header::HeaderName::from_static(ID_HEADER), facts.id.clone())], axum::Json(body)).into_response())
}

fn status_of(result: &Result<Response, HttpError>) -> StatusCode {
    match result {
        Ok(response) => response.status(),
        Err(error) => error.0,
    }
}
