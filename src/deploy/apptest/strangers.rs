//! Wrong requests, and too many: each must be refused with a status that says so, and cost nobody else an answer.

use std::{collections::BTreeMap, sync::Barrier, thread};

use serde_json::json;

use crate::{
    deploy::{
        apptest::{
            report::WrongRequest,
            runs::{Reply, Subject, address},
        },
        protocol::{DATATYPE, JSON_LENGTH},
    },
    error::Result,
};

const BURST: usize = 200;

/// What came of a burst.
pub struct Burst {
    /// Status, or `none`, and how often it came.
    pub counts: BTreeMap<String, u64>,
    /// Refusals with 503 that do not say when to come again.
    pub without_retry: u64,
}

impl Burst {
    pub fn passed(&self) -> bool {
        self.without_retry == 0 && self.counts.keys().all(|it| it == "200" || it == "503")
    }
}

/// Requests that no service may answer with anything but a status between 400 and 499.
pub fn wrong_requests(subject: &Subject<'_>, usable: usize) -> Result<Vec<WrongRequest>> {
    let (client, infer) = (subject.client, address(subject.version));
    let picture = subject.cases[usable].bytes(subject.store)?;
    let input = &subject.description.input;
    let side = input.crop;
    let tensor = |shape: [u32; 4], data: &str| {
        let input = json!({"name": input.name, "shape": shape, "datatype": DATATYPE});
        // NaN is no JSON, so the numbers are put in as text.
        let text = json!({"inputs": [input]}).to_string();
        text.replace("}]}", &format!(",{data}}}]}}")).into_bytes()
    };
    let lie = tensor([1, 3, side, side], "\"parameters\":{\"binary_data_size\":4}");
    let length = (JSON_LENGTH, lie.len().to_string());
    let half = picture[..(picture.len() / 2).min(200)].to_vec();
    let asked = [
        ("no picture", client.classify(b"this is no picture".to_vec(), &[])),
        ("empty body", client.classify(Vec::new(), &[])),
        ("truncated picture", client.classify(half, &[])),
        ("wrong path", client.post("/no/such/address", &[], picture)),
        ("wrong method", client.get("/classify")),
        ("no JSON", client.post(&infer, &[], b"{".to_vec())),
        ("wrong tensor shape", client.post(&infer, &[], tensor([1, 3, 1, 1], "\"data\":[1,2,3]"))),
        ("too few numbers", client.post(&infer, &[], tensor([1, 3, side, side], "\"data\":[1,2,3]"))),
        ("NaN in JSON", client.post(&infer, &[], tensor([1, 3, side, side], "\"data\":[NaN]"))),
        ("binary size that lies", client.post(&infer, &[length], [lie, vec![0; 4]].concat())),
    ];
    let row = |(name, answered): (&str, Result<crate::deploy::Answered>)| WrongRequest {
        name: name.to_owned(),
        status: answered.map_or(0, |it| it.status),
    };
    Ok(asked.into_iter().map(row).collect())
}

/// Many requests at the same moment.
pub fn burst(subject: &Subject<'_>, usable: usize) -> Result<Burst> {
    let picture = subject.cases[usable].bytes(subject.store)?;
    let gate = Barrier::new(BURST);
    let ask = || {
        gate.wait();
        subject.client.classify(picture.clone(), &[])
    };
    let answers: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..BURST).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|it| it.join().expect("asking does not panic")).collect()
    });
    let mut found = Burst { counts: BTreeMap::new(), without_retry: 0 };
    for answer in &answers {
        let name = answer.as_ref().map_or_else(|_| "none".to_owned(), |it| it.status.to_string());
        *found.counts.entry(name).or_default() += 1;
        let silent = |it: &crate::deploy::Answered| it.status == 503 && it.retry_after.is_none();
        found.without_retry += u64::from(answer.as_ref().is_ok_and(silent));
    }
    Ok(found)
}

/// Whether the service still answers a right request.
pub fn still_answers(subject: &Subject<'_>, usable: usize) -> Reply {
    subject.classify(usable)
}
