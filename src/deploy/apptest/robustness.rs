//! Robustness tests of a service: invalid requests, which must be rejected with a 4xx status, and a burst of
//! concurrent requests, each of which must be answered or rejected with 503 and `Retry-After`.

use std::{collections::BTreeMap, sync::Barrier, thread};

use serde_json::json;

use crate::{
    deploy::{
        ServiceResponse,
        apptest::{
            load::{Target, infer_path},
            report::InvalidRequest,
        },
        protocol::{DATATYPE, JSON_LENGTH_HEADER},
    },
    error::Result,
};

/// Number of requests in a burst.
const BURST: usize = 200;

/// Result of a burst.
pub struct Burst {
    /// Number of responses by status; `none` where there was no response.
    pub counts: BTreeMap<String, u64>,
    /// Number of 503 responses without `Retry-After`.
    pub without_retry: u64,
}

impl Burst {
    /// Returns true if every request was answered or rejected properly.
    pub fn passed(&self) -> bool {
        self.without_retry == 0 && self.counts.keys().all(|it| it == "200" || it == "503")
    }
}

/// Sends requests that must be answered with a status from 400 to 499. `usable` is the index of an image that
/// can be decoded.
pub fn invalid_requests(target: &Target<'_>, usable: usize) -> Result<Vec<InvalidRequest>> {
    let (client, infer) = (target.client, infer_path(target.version));
    let image = target.cases[usable].bytes(target.store)?;
    let input = &target.description.input;
    let side = input.crop;
    let tensor = |shape: [u32; 4], data: &str| {
        let input = json!({"name": input.name, "shape": shape, "datatype": DATATYPE});
        // The data is inserted as text because NaN is not valid JSON.
        let text = json!({"inputs": [input]}).to_string();
        text.replace("}]}", &format!(",{data}}}]}}")).into_bytes()
    };
    let false_size = tensor([1, 3, side, side], "\"parameters\":{\"binary_data_size\":4}");
    let length = (JSON_LENGTH_HEADER, false_size.len().to_string());
    let half = image[..(image.len() / 2).min(200)].to_vec();
    let sent = [
        ("not an image", client.classify(b"this is not an image".to_vec(), &[])),
        ("empty body", client.classify(Vec::new(), &[])),
        ("truncated image", client.classify(half, &[])),
        ("unknown path", client.post("/no/such/path", &[], image)),
        ("wrong method", client.get("/classify")),
        ("invalid JSON", client.post(&infer, &[], b"{".to_vec())),
        ("wrong tensor shape", client.post(&infer, &[], tensor([1, 3, 1, 1], "\"data\":[1,2,3]"))),
        ("too few numbers", client.post(&infer, &[], tensor([1, 3, side, side], "\"data\":[1,2,3]"))),
        ("NaN in JSON", client.post(&infer, &[], tensor([1, 3, side, side], "\"data\":[NaN]"))),
        ("wrong binary size", client.post(&infer, &[length], [false_size, vec![0; 4]].concat())),
    ];
    let row = |(name, response): (&str, Result<ServiceResponse>)| InvalidRequest {
        name: name.to_owned(),
        status: response.map_or(0, |it| it.status),
    };
    Ok(sent.into_iter().map(row).collect())
}

/// Sends many requests at the same moment.
pub fn burst(target: &Target<'_>, usable: usize) -> Result<Burst> {
    let image = target.cases[usable].bytes(target.store)?;
    let barrier = Barrier::new(BURST);
    let send = || {
        barrier.wait();
        target.client.classify(image.clone(), &[])
    };
    let responses: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..BURST).map(|_| scope.spawn(send)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a request does not panic")).collect()
    });
    let mut burst = Burst { counts: BTreeMap::new(), without_retry: 0 };
    for response in &responses {
        let status = response.as_ref().map_or_else(|_| "none".to_owned(), |it| it.status.to_string());
        *burst.counts.entry(status).or_default() += 1;
        let lacks_retry =
            |response: &ServiceResponse| response.status == 503 && response.retry_after.is_none();
        burst.without_retry += u64::from(response.as_ref().is_ok_and(lacks_retry));
    }
    Ok(burst)
}
