//! What each address answers.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::deploy::{
    Served, Service,
    http::Shared,
    note::{Facts, Note},
    page::{self, View},
    protocol::{self, JSON_LENGTH},
    service::Refusal,
};

const ID: &str = "x-request-id";

pub(super) async fn status(State(service): Shared) -> Html<String> {
    let answers = service.counters.answers();
    Html(page::status(&View {
        served: &service.live(),
        environment: &service.options.environment,
        address: service.address().to_string(),
        state: match (service.is_live(), service.is_ready()) {
            (false, _) => "stuck",
            (true, true) => "ready",
            (true, false) => "stopping",
        },
        age: service.started.elapsed().as_secs(),
        answers: answers.iter().map(|(code, count)| format!("{count} with {code}")).collect(),
    }))
}

pub(super) async fn metrics(State(service): Shared) -> Response {
    let counters = &service.counters;
    counters.waiting.set(service.live().batcher.waiting() as i64);
    if let Some(spool) = service.spool() {
        counters.recorded.inner().fetch_max(spool.recorded(), Ordering::Relaxed);
        counters.dropped.inner().fetch_max(spool.dropped(), Ordering::Relaxed);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], service.counters.text()).into_response()
}

pub(super) async fn live(State(service): Shared) -> Response {
    let live = service.is_live();
    (status_if(live), axum::Json(json!({"live": live}))).into_response()
}

pub(super) async fn ready(State(service): Shared) -> Response {
    let ready = service.is_ready();
    (status_if(ready), axum::Json(json!({"ready": ready}))).into_response()
}

fn status_if(well: bool) -> StatusCode {
    if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

pub(super) async fn server_metadata() -> axum::Json<Value> {
    let version = env!("CARGO_PKG_VERSION");
    axum::Json(json!({"name": "mlx", "version": version, "extensions": ["binary_tensor_data"]}))
}

/// Parts of an address; none where they are no text.
type Names = Result<Path<Vec<(String, String)>>, PathRejection>;

/// Refuses addresses of another model or version than the one that answers.
fn check_names(served: &Served, names: Names) -> Result<(), Refusal> {
    let unreadable = |_| Refusal(StatusCode::NOT_FOUND, "there is no such address".into());
    for (key, value) in names.map_err(unreadable)?.0 {
        let own = if key == "model" { &served.model } else { &served.number };
        if value != *own {
            let message = format!("there is no such {key}; this is {} {}", served.model, served.number);
            return Err(Refusal(StatusCode::NOT_FOUND, message));
        }
    }
    Ok(())
}

pub(super) async fn model_metadata(
    State(service): Shared,
    names: Names,
) -> Result<axum::Json<Value>, Refusal> {
    let served = service.live();
    check_names(&served, names)?;
    let (input, output) = served.tensors();
    Ok(axum::Json(json!({"name": served.model, "versions": [served.number], "platform": "onnx_onnxv1",
        "parameters": {"package": served.package}, "inputs": [input], "outputs": [output]})))
}

pub(super) async fn model_ready(State(service): Shared, names: Names) -> Result<Response, Refusal> {
    let served = service.live();
    check_names(&served, names)?;
    let ready = service.is_ready();
    Ok((status_if(ready), axum::Json(json!({"name": served.model, "ready": ready}))).into_response())
}

pub(super) async fn infer(
    State(service): Shared,
    names: Names,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let mut note = Note::new(&service);
    let served = Arc::clone(&note.served);
    let answered = match check_names(&served, names) {
        Ok(()) => try_infer(&service, &served, &headers, body, &mut note.facts).await,
        Err(refusal) => Err(refusal),
    };
    note.end(status_of(&answered));
    answered
}

async fn try_infer(
    service: &Arc<Service>,
    served: &Arc<Served>,
    headers: &HeaderMap,
    body: Body,
    facts: &mut Facts,
) -> Result<Response, Refusal> {
    facts.read(headers)?;
    let (bytes, _room) = service.read(headers, body).await?;
    let length = match headers.get(JSON_LENGTH) {
        None => None,
        Some(it) => Some(it.to_str().ok().and_then(|it| it.parse().ok()).ok_or_else(|| {
            Refusal(StatusCode::BAD_REQUEST, format!("`{JSON_LENGTH}` is no count of bytes"))
        })?),
    };
    facts.body = Some(bytes.clone());
    let (mut request, seen) = service.parse(served, bytes, length).await?;
    facts.id = request.id.clone().unwrap_or_else(|| std::mem::take(&mut facts.id));
    facts.seen = seen;
    let planes = std::mem::take(&mut request.values);
    let answers = service.run(served, planes, request.rows).await?;
    let scores: Vec<f32> = answers.iter().flat_map(|it| it.scores.iter().copied()).collect();
    facts.answers = answers;
    let names = (&served.model[..], &served.number[..]);
    let (body, length) = protocol::print(names, &request, &served.tensors().1, &scores);
    let id = (header::HeaderName::from_static(ID), facts.id.clone());
    let Some(length) = length else {
        return Ok(([(header::CONTENT_TYPE, "application/json".to_owned()), id], body).into_response());
    };
    let kind = (header::CONTENT_TYPE, "application/octet-stream".to_owned());
    let length = (header::HeaderName::from_static(JSON_LENGTH), length.to_string());
    Ok(([kind, length, id], body).into_response())
}

pub(super) async fn classify(
    State(service): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let mut note = Note::new(&service);
    let served = Arc::clone(&note.served);
    let answered = try_classify(&service, &served, &headers, body, &mut note.facts).await;
    note.end(status_of(&answered));
    answered
}

async fn try_classify(
    service: &Arc<Service>,
    served: &Arc<Served>,
    headers: &HeaderMap,
    body: Body,
    facts: &mut Facts,
) -> Result<Response, Refusal> {
    if let Some(given) = headers.get(ID) {
        let given = given.to_str().unwrap_or_default();
        protocol::check_id(given)?;
        given.clone_into(&mut facts.id);
    }
    facts.read(headers)?;
    let (bytes, _room) = service.read(headers, body).await?;
    (facts.body, facts.picture) = (Some(bytes.clone()), true);
    let planes = service.decode(served, bytes, &mut facts.seen).await?;
    let answer = service.run(served, planes, 1).await?.remove(0);
    let scores: serde_json::Map<String, Value> =
        served.description.classes.iter().cloned().zip(answer.scores.iter().map(|it| json!(it))).collect();
    let body = json!({"id": facts.id, "class": answer.class, "probability": answer.probability, "scores": scores,
        "model": served.model, "version": served.number});
    facts.answers.push(answer);
    Ok(([(header::HeaderName::from_static(ID), facts.id.clone())], axum::Json(body)).into_response())
}

fn status_of(answered: &Result<Response, Refusal>) -> StatusCode {
    match answered {
        Ok(response) => response.status(),
        Err(refusal) => refusal.0,
    }
}
