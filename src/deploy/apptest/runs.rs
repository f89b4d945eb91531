//! Right requests: pictures one after another, several at once, at a steady rate, and as tensors.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    deploy::{
        Answered, Client,
        apptest::data::Case,
        protocol::{DATATYPE, JSON_LENGTH},
    },
    error::{Error, Kind, Result},
    model::{package::Description, picture, registry::Version, settings::Backbone, softmax::best},
    progress::{Event, Progress},
    store::Store,
};

const THREADS: usize = 8;
/// Fewer requests than this say little about a throughput; the pictures are asked about again.
const ENOUGH: usize = 64;
/// Requests without any answer, one after another, until the service is taken for gone.
const PATIENCE: usize = 3;
const STREAM: Duration = Duration::from_secs(2);
const TENSORS: usize = 32;
const ROWS: usize = 4;

/// Who is asked about what.
pub struct Subject<'s> {
    pub client: &'s Client,
    pub store: &'s Store,
    pub version: &'s Version,
    pub description: &'s Description,
    pub cases: &'s [Case],
}

/// How a request about a picture ended.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Place in the list of pictures.
    pub case: usize,
    /// 0 where there was no answer.
    pub status: u16,
    pub said: Option<Said>,
    /// What is wrong with it, where nothing was said.
    pub why: String,
    pub milliseconds: f64,
}

/// What a service says of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub class: usize,
    /// In the package's order.
    pub scores: Vec<f64>,
    /// `pets@v0.1.0`
    pub version: String,
}

impl Subject<'_> {
    pub fn classify(&self, case: usize) -> Reply {
        let asked = self.cases[case].bytes(self.store).and_then(|it| self.client.classify(it, &[]));
        self.reply(case, asked)
    }

    fn reply(&self, case: usize, asked: Result<Answered>) -> Reply {
        match asked {
            Err(error) => Reply { case, why: error.full_text(), ..Reply::default() },
            Ok(it) => {
                let (status, milliseconds) = (it.status, it.milliseconds);
                let said = if status == 200 { self.understand(&it.body) } else { None };
                let why = if said.is_some() { String::new() } else { excuse(&it) };
                Reply { case, status, said, why, milliseconds }
            }
        }
    }

    /// What an answer of `/classify` says; nothing where it lacks a class or a probability.
    fn understand(&self, body: &Value) -> Option<Said> {
        let classes = &self.description.classes;
        let class = classes.iter().position(|it| body["class"] == **it)?;
        let scores = classes.iter().map(|it| body["scores"][it].as_f64()).collect::<Option<Vec<_>>>()?;
        let version = format!("{}@{}", body["model"].as_str()?, body["version"].as_str()?);
        Some(Said { class, scores, version })
    }
}

/// Why an answer is none, as far as it says.
fn excuse(answered: &Answered) -> String {
    let told = answered.body["error"].as_str().unwrap_or("it has no class with probabilities");
    let told: String = told.chars().filter(|it| !it.is_control()).take(120).collect();
    format!("{}: {told}", answered.status)
}

/// Every picture, one after another.
pub fn one_by_one(subject: &Subject<'_>, progress: &dyn Progress) -> Result<Vec<Reply>> {
    let total = subject.cases.len();
    progress.event(Event::Started { task: "asking", total: Some(total as u64) });
    let (mut replies, mut silent) = (Vec::with_capacity(total), 0);
    for case in 0..total {
        let reply = subject.classify(case);
        silent = if reply.status == 0 { silent + 1 } else { 0 };
        if silent == PATIENCE.min(total) {
            progress.event(Event::Finished);
            let message = format!("the service gives no answers any more: {}", reply.why);
            return Err(Error::new(Kind::Unavailable, message));
        }
        replies.push(reply);
        progress.event(Event::Advanced { by: 1 });
    }
    progress.event(Event::Finished);
    Ok(replies)
}

/// All pictures, as many at once as there are threads; and the seconds it took.
pub fn together(subject: &Subject<'_>) -> (Vec<Reply>, f64) {
    let (next, total) = (AtomicUsize::new(0), subject.cases.len().max(ENOUGH));
    let start = Instant::now();
    let turns = || {
        let mine = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        mine.take_while(|it| *it < total).map(|it| subject.classify(it % subject.cases.len())).collect()
    };
    let replies = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(turns)).collect();
        let joined = threads.into_iter().map(|it| it.join().expect("asking does not panic"));
        joined.flat_map(|it: Vec<Reply>| it).collect()
    });
    (replies, start.elapsed().as_secs_f64())
}

/// Requests at a steady rate a second, whether or not the ones before were answered: times count from the
/// moment a request was due.
pub fn stream(subject: &Subject<'_>, rate: f64) -> Vec<Reply> {
    let start = Instant::now();
    let total = (rate * STREAM.as_secs_f64()).ceil() as usize;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..total)
            .map(|turn| {
                let due = start + Duration::from_secs_f64(turn as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                scope.spawn(move || {
                    let reply = subject.classify(turn % subject.cases.len());
                    Reply { milliseconds: due.elapsed().as_secs_f64() * 1000.0, ..reply }
                })
            })
            .collect();
        threads.into_iter().map(|it| it.join().expect("asking does not panic")).collect()
    })
}

/// Prepared pictures in batches through the Open Inference Protocol: as JSON, then as bytes.
pub fn tensors(subject: &Subject<'_>, settings: &Backbone, usable: &[usize]) -> Result<Vec<Reply>> {
    let usable = &usable[..usable.len().min(TENSORS)];
    let mut replies = Vec::new();
    for cases in usable.chunks(ROWS) {
        let mut planes = Vec::new();
        for &case in cases {
            let picture = picture::decode(&subject.cases[case].bytes(subject.store)?)?;
            planes.extend(picture::planes(&picture, settings));
        }
        for binary in [false, true] {
            let asked = infer(subject, &planes, cases.len(), binary);
            replies.extend(rows(subject, cases, asked));
        }
    }
    Ok(replies)
}

/// The address of the model for tensors.
pub fn address(version: &Version) -> String {
    format!("/v2/models/{}/infer", version.model)
}

fn infer(subject: &Subject<'_>, planes: &[f32], rows: usize, binary: bool) -> Result<Answered> {
    let input = &subject.description.input;
    let mut tensor =
        json!({"name": input.name, "shape": [rows, 3, input.crop, input.crop], "datatype": DATATYPE});
    if !binary {
        tensor["data"] = json!(planes);
        let body = json!({"inputs": [tensor]}).to_string();
        return subject.client.post(&address(subject.version), &[], body.into_bytes());
    }
    tensor["parameters"] = json!({"binary_data_size": planes.len() * 4});
    let body = json!({"parameters": {"binary_data_output": true}, "inputs": [tensor]});
    let mut bytes = body.to_string().into_bytes();
    let length = (JSON_LENGTH, bytes.len().to_string());
    planes.iter().for_each(|it| bytes.extend_from_slice(&it.to_le_bytes()));
    subject.client.post(&address(subject.version), &[length], bytes)
}

/// An answer about several pictures, as one each.
fn rows(subject: &Subject<'_>, cases: &[usize], asked: Result<Answered>) -> Vec<Reply> {
    let classes = subject.description.classes.len();
    let numbers = asked.as_ref().ok().and_then(|it| probabilities(it, cases.len() * classes));
    let version = |it: &Answered| {
        let text = |key: &str| it.body[key].as_str().unwrap_or("?").to_owned();
        format!("{}@{}", text("model_name"), text("model_version"))
    };
    let (Ok(answered), Some(numbers)) = (&asked, numbers) else {
        let why = asked.map_or_else(|it| it.full_text(), |it| format!("tensors: {}", excuse(&it)));
        return cases.iter().map(|&case| Reply { case, why: why.clone(), ..Reply::default() }).collect();
    };
    let part = |at: usize| -> Range<usize> { at * classes..(at + 1) * classes };
    let reply = |(at, &case): (usize, &usize)| {
        let scores = numbers[part(at)].to_vec();
        let said = Said { class: best(&scores), scores, version: version(answered) };
        let (status, milliseconds) = (answered.status, answered.milliseconds);
        Reply { case, status, said: Some(said), why: String::new(), milliseconds }
    };
    cases.iter().enumerate().map(reply).collect()
}

/// The numbers of the one output, however they were sent, if there are as many as asked for.
fn probabilities(answered: &Answered, count: usize) -> Option<Vec<f64>> {
    let output = &answered.body["outputs"][0];
    let numbers: Vec<f64> = match output["data"].as_array() {
        Some(list) => list.iter().map(Value::as_f64).collect::<Option<_>>()?,
        None if answered.tail.len() == count * 4 => {
            answered.tail.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it).into()).collect()
        }
        None => return None,
    };
    (answered.status == 200 && numbers.len() == count && numbers.iter().all(|it| it.is_finite()))
        .then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_as_json_or_as_bytes_and_never_too_few() {
        let answered = |body: Value, tail: &[u8]| Answered {
            status: 200,
            body,
            tail: tail.to_vec(),
            ..Answered::default()
        };
        let json = answered(json!({"outputs": [{"data": [0.25, 0.75]}]}), b"");
        assert_eq!(probabilities(&json, 2), Some(vec![0.25, 0.75]));
        assert_eq!(probabilities(&json, 4), None);
        let bytes = [0.25_f32.to_le_bytes(), 0.75_f32.to_le_bytes()].concat();
        let binary = answered(json!({"outputs": [{}]}), &bytes);
        assert_eq!(probabilities(&binary, 2), Some(vec![0.25, 0.75]));
        assert_eq!(probabilities(&binary, 3), None);
        let infinite = answered(json!({}), &f32::INFINITY.to_le_bytes());
        assert_eq!(probabilities(&infinite, 1), None);
        assert_eq!(probabilities(&Answered { status: 500, ..json }, 2), None);
    }
}
