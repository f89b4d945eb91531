//! Traffic of served models: one record per image of a request, and telemetry of the serving machine.
//!
//! A service hands its records to the [`spool`] of this machine, from which they are sealed, day by day, into
//! ordinary datasets. The training images of a model are stored in its package in the same format, so that
//! both can be compared. Days are UTC.

mod feedback;
mod frame;
mod paths;
mod seal;
pub mod spool;
mod table;
mod telemetry;
mod writer;

#[cfg(test)]
pub mod samples;

pub use self::{
    feedback::{FeedbackSummary, Labels, Subject, TrueLabel, parse_labels, read_labels, record_labels},
    paths::{check_environment, labels_file, seal_pointers, sealed_days},
    seal::{DayTraffic, SealSummary, for_each_record, read_image, read_sealed, seal},
    spool::Spool,
    table::{read_requests, read_telemetry, write_requests, write_telemetry},
};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Statistics of an image, after resize and crop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageStats {
    /// Mean gray, 0–1.
    pub brightness: f32,
    /// Standard deviation of gray, 0–1.
    pub contrast: f32,
    /// Mean difference between neighboring grays, normalized for light and contrast; low if all is blurred.
    pub sharpness: f32,
    /// Mean share of red, green and blue in their sum.
    pub colors: [f32; 3],
    /// Perceptual hash: 8×8 gradients of gray, one bit each. Similar images differ in few bits.
    pub fingerprint: u64,
}

/// One image that a model received, and its prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Id of the request; of a training image its digest.
    pub id: String,
    /// Time of capture as the client reports it, otherwise of arrival, in milliseconds since 1970.
    pub captured: i64,
    /// Time of arrival, in milliseconds since 1970.
    pub received: i64,
    /// Name of the version, such as `pets@v0.1.0`.
    pub version: String,
    pub package: Digest,
    /// Digest of the image's bytes, or of the tensor's.
    pub input: Digest,
    /// File name as the client reports it; may be empty.
    pub name: String,
    /// HTTP status of the response.
    pub status: u16,
    /// Time from the request to its response, in milliseconds.
    pub latency: f32,
    /// Predicted class; of a training image its label; empty if there was no prediction.
    pub class: String,
    /// Probability of each class, in the package's order.
    pub scores: Vec<f32>,
    /// Features that the head received; may be empty.
    pub features: Vec<f32>,
    /// Statistics of the image. None if it could not be decoded, or was part of a rejected tensor request.
    pub image_stats: Option<ImageStats>,
    /// True if the image itself is stored.
    pub kept: bool,
}

/// Telemetry of the serving machine at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TelemetrySample {
    /// Milliseconds since 1970, by the capture time of the latest record.
    pub time: i64,
    /// Share of all cores in use, 0–1.
    pub cpu: f32,
    /// Share of memory in use, 0–1.
    pub memory: f32,
    /// Resident memory of this process, in bytes.
    pub resident: u64,
    /// Share of the disk in use, 0–1.
    pub disk: f32,
    /// Temperature of the hottest sensor, in degrees Celsius; None if the kernel reports none.
    pub temperature: Option<f32>,
    /// Number of requests in the queue.
    pub waiting: u32,
    /// Number of responses since the previous sample.
    pub answers: u32,
    /// Number of responses with a 5xx status since the previous sample.
    pub errors: u32,
    /// Number of records dropped since the previous sample.
    pub dropped: u32,
}
