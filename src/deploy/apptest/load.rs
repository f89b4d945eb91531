//! Valid requests of an application test: images sent sequentially, concurrently, at a steady rate, and as
//! tensors.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    deploy::{
        Client, ServiceResponse,
        apptest::data::Case,
        protocol::{DATATYPE, JSON_LENGTH_HEADER},
    },
    error::{Error, Kind, Result},
    model::{package::Description, preprocess, registry::Version, settings::Backbone, softmax::argmax},
    progress::{Event, Progress},
    store::Store,
};

/// Threads that send requests concurrently.
const THREADS: usize = 8;
/// Smallest number of requests for measuring throughput; a smaller set of images is sent repeatedly.
const MIN_REQUESTS: usize = 64;
/// Consecutive requests without a response after which the service counts as down.
const MAX_SILENT: usize = 3;
/// Length of the steady stream.
const STREAM_TIME: Duration = Duration::from_secs(2);
/// Largest number of images sent as tensors.
const MAX_TENSOR_IMAGES: usize = 32;
/// Images per tensor.
const TENSOR_ROWS: usize = 4;

/// Service under test, its version, and the test images.
pub struct Target<'t> {
    pub client: &'t Client,
    pub store: &'t Store,
    pub version: &'t Version,
    pub description: &'t Description,
    pub cases: &'t [Case],
}

/// Outcome of a request for one image.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Index in the list of images.
    pub case: usize,
    /// Status of the response; 0 if there was none.
    pub status: u16,
    pub prediction: Option<ServedPrediction>,
    /// Error message if the prediction is missing, else empty.
    pub error: String,
    pub milliseconds: f64,
}

/// A service's prediction for one image.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedPrediction {
    /// Index in the package's classes.
    pub class: usize,
    /// Probability of each class, in the package's order.
    pub scores: Vec<f64>,
    /// `pets@v0.1.0`
    pub version: String,
}

impl Target<'_> {
    /// Sends one image to `/classify`.
    pub fn classify(&self, case: usize) -> Reply {
        let result = self.cases[case].bytes(self.store).and_then(|it| self.client.classify(it, &[]));
        self.reply(case, result)
    }

    fn reply(&self, case: usize, result: Result<ServiceResponse>) -> Reply {
        match result {
            Err(error) => Reply { case, error: error.chain_text(), ..Reply::default() },
            Ok(response) => {
                let (status, milliseconds) = (response.status, response.milliseconds);
                let prediction = if status == 200 { self.parse_prediction(&response.body) } else { None };
                let error = if prediction.is_some() { String::new() } else { failure_reason(&response) };
                Reply { case, status, prediction, error, milliseconds }
            }
        }
    }

    /// Parses a response of `/classify`; `None` if it lacks a class or a probability.
    fn parse_prediction(&self, body: &Value) -> Option<ServedPrediction> {
        let classes = &self.description.classes;
        let class = classes.iter().position(|it| body["class"] == **it)?;
        let scores = classes.iter().map(|it| body["scores"][it].as_f64()).collect::<Option<Vec<_>>>()?;
        let version = format!("{}@{}", body["model"].as_str()?, body["version"].as_str()?);
        Some(ServedPrediction { class, scores, version })
    }
}

/// Returns status and error message of a response without a prediction.
fn failure_reason(response: &ServiceResponse) -> String {
    let reason = response.body["error"].as_str().unwrap_or("the response lacks a class or its probabilities");
    let reason: String = reason.chars().filter(|it| !it.is_control()).take(120).collect();
    format!("{}: {reason}", response.status)
}

/// Sends every image, one after another. Fails if the service stops responding.
pub fn sequential(target: &Target<'_>, progress: &dyn Progress) -> Result<Vec<Reply>> {
    let total = target.cases.len();
    progress.event(Event::Started { task: "testing", total: Some(total as u64) });
    let (mut replies, mut silent) = (Vec::with_capacity(total), 0);
    for case in 0..total {
        let reply = target.classify(case);
        silent = if reply.status == 0 { silent + 1 } else { 0 };
        if silent == MAX_SILENT.min(total) {
            progress.event(Event::Finished);
            let message = format!("the service stopped responding: {}", reply.error);
            return Err(Error::new(Kind::Unavailable, message));
        }
        replies.push(reply);
        progress.event(Event::Advanced { by: 1 });
    }
    progress.event(Event::Finished);
    Ok(replies)
}

/// Sends all images, several at once. Returns the replies and the seconds it took.
pub fn concurrent(target: &Target<'_>) -> (Vec<Reply>, f64) {
    let (next, total) = (AtomicUsize::new(0), target.cases.len().max(MIN_REQUESTS));
    let start = Instant::now();
    let work = || {
        let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        let numbers = numbers.take_while(|it| *it < total);
        numbers.map(|it| target.classify(it % target.cases.len())).collect()
    };
    let replies = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("a request does not panic"));
        joined.flat_map(|replies: Vec<Reply>| replies).collect()
    });
    (replies, start.elapsed().as_secs_f64())
}

/// Sends requests at a steady rate per second, whether or not earlier ones were answered. Times count from
/// the moment a request was due.
pub fn stream(target: &Target<'_>, rate: f64) -> Vec<Reply> {
    let start = Instant::now();
    let total = (rate * STREAM_TIME.as_secs_f64()).ceil() as usize;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..total)
            .map(|number| {
                let due = start + Duration::from_secs_f64(number as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                scope.spawn(move || {
                    let reply = target.classify(number % target.cases.len());
                    Reply { milliseconds: due.elapsed().as_secs_f64() * 1000.0, ..reply }
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a request does not panic")).collect()
    })
}

/// Sends preprocessed images in batches through the Open Inference Protocol: each as JSON, then as binary
/// data.
pub fn tensors(target: &Target<'_>, settings: &Backbone, usable: &[usize]) -> Result<Vec<Reply>> {
    let usable = &usable[..usable.len().min(MAX_TENSOR_IMAGES)];
    let mut replies = Vec::new();
    for cases in usable.chunks(TENSOR_ROWS) {
        let mut planes = Vec::new();
        for &case in cases {
            let image = preprocess::decode(&target.cases[case].bytes(target.store)?)?;
            planes.extend(preprocess::planes(&image, settings));
        }
        for binary in [false, true] {
            let result = infer(target, &planes, cases.len(), binary);
            replies.extend(split_rows(target, cases, result));
        }
    }
    Ok(replies)
}

/// Returns the path of the inference endpoint.
pub fn infer_path(version: &Version) -> String {
    format!("/v2/models/{}/infer", version.model)
}

fn infer(target: &Target<'_>, planes: &[f32], rows: usize, binary: bool) -> Result<ServiceResponse> {
    let input = &target.description.input;
    let mut tensor =
        json!({"name": input.name, "shape": [rows, 3, input.crop, input.crop], "datatype": DATATYPE});
    if !binary {
        tensor["data"] = json!(planes);
        let body = json!({"inputs": [tensor]}).to_string();
        return target.client.post(&infer_path(target.version), &[], body.into_bytes());
    }
    tensor["parameters"] = json!({"binary_data_size": planes.len() * 4});
    let body = json!({"parameters": {"binary_data_output": true}, "inputs": [tensor]});
    let mut bytes = body.to_string().into_bytes();
    let length = (JSON_LENGTH_HEADER, bytes.len().to_string());
    planes.iter().for_each(|it| bytes.extend_from_slice(&it.to_le_bytes()));
    target.client.post(&infer_path(target.version), &[length], bytes)
}

/// Splits a response for several images into one reply per image.
fn split_rows(target: &Target<'_>, cases: &[usize], result: Result<ServiceResponse>) -> Vec<Reply> {
    let classes = target.description.classes.len();
    let numbers = result.as_ref().ok().and_then(|it| probabilities(it, cases.len() * classes));
    let version = |response: &ServiceResponse| {
        let text = |key: &str| response.body[key].as_str().unwrap_or("?").to_owned();
        format!("{}@{}", text("model_name"), text("model_version"))
    };
    let (Ok(response), Some(numbers)) = (&result, numbers) else {
        let error =
            result.map_or_else(|it| it.chain_text(), |it| format!("tensors: {}", failure_reason(&it)));
        return cases.iter().map(|&case| Reply { case, error: error.clone(), ..Reply::default() }).collect();
    };
    let part = |at: usize| -> Range<usize> { at * classes..(at + 1) * classes };
    let reply = |(at, &case): (usize, &usize)| {
        let scores = numbers[part(at)].to_vec();
        let prediction = ServedPrediction { class: argmax(&scores), scores, version: version(response) };
        let (status, milliseconds) = (response.status, response.milliseconds);
        Reply { case, status, prediction: Some(prediction), error: String::new(), milliseconds }
    };
    cases.iter().enumerate().map(reply).collect()
}

/// Returns the numbers of the output, from JSON or binary data; `None` unless there are `count` finite ones.
fn probabilities(response: &ServiceResponse, count: usize) -> Option<Vec<f64>> {
    let output = &response.body["outputs"][0];
    let numbers: Vec<f64> = match output["data"].as_array() {
        Some(list) => list.iter().map(Value::as_f64).collect::<Option<_>>()?,
        None if response.tail.len() == count * 4 => {
            response.tail.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it).into()).collect()
        }
        None => return None,
    };
    (response.status == 200 && numbers.len() == count && numbers.iter().all(|it| it.is_finite()))
        .then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_read_from_json_or_bytes_if_complete() {
        let response = |body: Value, tail: &[u8]| ServiceResponse {
            status: 200,
            body,
            tail: tail.to_vec(),
            ..ServiceResponse::default()
        };
        let json = response(json!({"outputs": [{"data": [0.25, 0.75]}]}), b"");
        assert_eq!(probabilities(&json, 2), Some(vec![0.25, 0.75]));
        assert_eq!(probabilities(&json, 4), None);
        let bytes = [0.25_f32.to_le_bytes(), 0.75_f32.to_le_bytes()].concat();
        let binary = response(json!({"outputs": [{}]}), &bytes);
        assert_eq!(probabilities(&binary, 2), Some(vec![0.25, 0.75]));
        assert_eq!(probabilities(&binary, 3), None);
        let infinite = response(json!({}), &f32::INFINITY.to_le_bytes());
        assert_eq!(probabilities(&infinite, 1), None);
        assert_eq!(probabilities(&ServiceResponse { status: 500, ..json }, 2), None);
    }
}
