//! What a model was asked and answered, one record a picture.
//!
//! A served model's requests come about as records, wait in a [`spool`] of this machine, and are sealed day by
//! day into datasets like any other. The pictures that a model was trained on are kept in its package in the
//! same form, so that both can be compared. Days are UTC.

mod feedback;
mod frame;
mod place;
mod seal;
pub mod spool;
mod table;
mod telemetry;
mod writer;

#[cfg(test)]
pub mod samples;

pub use self::{
    feedback::{Labels, Learnt, Subject, Truth, feedback, labels, parse_truth},
    place::{check_environment, labels_file, sealed_days, seals},
    seal::{Seal, Sealed, each, picture, seal, sealed},
    spool::Spool,
    table::{read_requests, read_telemetry, write_requests, write_telemetry},
};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What is measured of a picture itself, after resize and crop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Looks {
    /// Mean gray, 0–1.
    pub brightness: f32,
    /// Standard deviation of gray, 0–1.
    pub contrast: f32,
    /// Mean difference of neighboring grays after removing light and contrast; low where all is blurred.
    pub sharpness: f32,
    /// Mean share of red, green and blue in their sum.
    pub colors: [f32; 3],
    /// 8×8 gradients of gray, one bit each: near pictures differ in few bits.
    pub fingerprint: u64,
}

/// One picture that a model saw, and what it said.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The request's id; of a training picture its digest.
    pub id: String,
    /// When the picture was taken as the client says, else when it came; milliseconds since 1970.
    pub captured: i64,
    /// When it came, milliseconds since 1970.
    pub received: i64,
    /// `pets@v0.1.0`
    pub version: String,
    pub package: Digest,
    /// Digest of the picture's bytes, or of the tensor's.
    pub input: Digest,
    /// The file's name as the client says; may be empty.
    pub name: String,
    /// The HTTP status of the answer.
    pub status: u16,
    /// Milliseconds from the request to its answer.
    pub latency: f32,
    /// The class that was said; of a training picture its label; empty where nothing was said.
    pub class: String,
    /// Probability of each class, in the package's order.
    pub scores: Vec<f32>,
    /// What the head saw; may be empty.
    pub features: Vec<f32>,
    /// None where the picture could not be decoded, or came as a tensor of a rejected request.
    pub looks: Option<Looks>,
    /// Whether the picture itself was kept.
    pub kept: bool,
}

/// What the machine looked like at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds since 1970, by the clock of the records it stands among.
    pub time: i64,
    /// Share of all cores in use, 0–1.
    pub cpu: f32,
    /// Share of memory in use, 0–1.
    pub memory: f32,
    /// Bytes of this process.
    pub resident: u64,
    /// Share of the disk in use, 0–1.
    pub disk: f32,
    /// Degrees Celsius of the hottest sensor, where the kernel shows one.
    pub temperature: Option<f32>,
    /// Requests in the queue.
    pub waiting: u32,
    /// Answers since the sample before.
    pub answers: u32,
    /// Answers with a 5xx status since the sample before.
    pub errors: u32,
    /// Records dropped since the sample before.
    pub dropped: u32,
}
