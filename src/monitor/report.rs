//! The report of one day of one model: its data types and its JSON form, `monitor/ENV/DAY.json`.
//!
//! Reports are stored, so fields keep their JSON names: where a Rust name differs, `serde(rename)` gives the
//! stored one. Numbers are rounded to six significant digits, and the same report always gives the same
//! bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{Error, Kind, Result},
    monitor::Thresholds,
};

/// Version of the report format.
pub const FORMAT: u64 = 1;
/// Significant digits of a stored number: more would be noise, and these round-trip exactly.
const SIGNIFICANT_DIGITS: usize = 6;
/// Absolute value below which a number is a rounding error and stored as zero.
const ROUNDING_ERROR: f64 = 1e-16;

/// Measurements of one day of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub format: u64,
    /// Date of the day, as in `2026-11-24`.
    pub day: String,
    /// Name of the reference that the day was compared with.
    pub reference: String,
    pub reference_rows: u64,
    /// Number of frames by the version that answered.
    pub versions: BTreeMap<String, u64>,
    pub classes: Vec<String>,
    pub integrity: Integrity,
    /// Drift by measure: `brightness`, `contrast`, `sharpness`, `red`, `green`, `blue`, `classes`,
    /// `embedding`.
    pub drift: BTreeMap<String, Drift>,
    /// Accuracy; `None` if no labels are known.
    pub performance: Option<Performance>,
    /// Accuracy by version; empty if only one version answered.
    pub performance_by_version: BTreeMap<String, Performance>,
    pub bias: Option<Bias>,
    pub latency: Option<Latency>,
    pub machine: Option<Machine>,
    /// Measurements by hour, UTC; 24 elements.
    pub hours: Vec<Hour>,
    pub thresholds: Thresholds,
}

/// Data quality: counts of images that are damaged, poor or repeated, and of failed requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Integrity {
    /// Number of requests of the day.
    pub frames: u64,
    /// Number of frames whose image was decoded.
    #[serde(rename = "seen")]
    pub decoded: u64,
    pub damaged: u64,
    pub dark: u64,
    pub overexposed: u64,
    /// Number of blurred frames; `None` if the reference has no sharpness to compare with.
    pub blurred: Option<u64>,
    /// Sharpness below which a frame counts as blurred.
    pub blurred_below: Option<f64>,
    /// Number of frames in runs of consecutive look-alikes.
    pub frozen: u64,
    /// Length of the longest such run.
    pub longest_run: u64,
    /// Number of frames with the same bytes as an earlier frame of the day.
    pub duplicates: u64,
    /// Number of frames that look nearly like the previous frame but differ in bytes.
    pub near_duplicates: u64,
    /// Expected hours, UTC, without any frame.
    pub missing_hours: Vec<u8>,
    /// Number of answers with a 5xx status.
    pub errors: u64,
    /// Number of records lost to a full queue or a disk error; `None` without machine samples.
    pub dropped: Option<u64>,
}

/// Comparison of one measure between the day and the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drift {
    pub reference_rows: u64,
    pub day_rows: u64,
    /// Number of rows on both sides that were left out: values that are not finite numbers, and classes
    /// unknown to the model.
    #[serde(rename = "set_aside")]
    pub excluded: u64,
    pub verdict: Verdict,
    /// Result of the statistical test; `None` if there were too few rows.
    #[serde(rename = "tested")]
    pub result: Option<TestResult>,
    /// Distance that the mean moved, in standard deviations of the reference; of embeddings only.
    pub shift: Option<f64>,
    /// Distance that the mean moves by chance alone, in the same unit.
    pub shift_expected: Option<f64>,
    pub reference_mean: Option<f64>,
    pub day_mean: Option<f64>,
    /// Counts to display: one bin per class in the model's order, or bins of equal width.
    pub histogram: Histogram,
}

/// Counts of both sides in the same bins between `low` and `high`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    pub low: f64,
    pub high: f64,
    pub reference: Vec<u64>,
    pub day: Vec<u64>,
}

/// Result of a drift decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    #[serde(rename = "same")]
    Same,
    #[serde(rename = "drifted")]
    Drifted,
    /// Too few rows to test.
    #[serde(rename = "no verdict")]
    Undecided,
}

/// Statistical test that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TestKind {
    #[serde(rename = "ks exact")]
    Ks,
    #[serde(rename = "chi-square contingency")]
    ChiSquare,
}

/// Result of one statistical test, and the distances between both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestResult {
    #[serde(rename = "test")]
    pub kind: TestKind,
    pub statistic: f64,
    /// Effect size: for columns the largest difference of cumulative shares, for classes the largest change
    /// of a share.
    pub effect: f64,
    pub p: f64,
    /// Value of p, adjusted for the number of tests in this report.
    pub adjusted: f64,
    /// Population stability index.
    pub psi: f64,
    /// Mean of the index if nothing has changed.
    pub psi_expected: f64,
    pub js_distance_natural: f64,
    pub js_distance_base2: f64,
}

/// Accuracy of the day's predictions against the true labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Performance {
    /// Number of answered frames with a label.
    pub labeled: u64,
    /// Number of answered frames whose label is not a class of the model; not counted in `labeled`.
    #[serde(rename = "foreign")]
    pub unknown_labels: u64,
    pub accuracy: f64,
    #[serde(rename = "accuracy_span")]
    pub accuracy_interval: ConfidenceInterval,
    pub classes: BTreeMap<String, ClassMetrics>,
    /// Unweighted mean over the classes that were labeled or predicted.
    pub average: ClassMetrics,
    /// Counts as `[label][prediction]`.
    pub confusion: Vec<Vec<u64>>,
}

/// Metrics of one class: no precision without predictions of it, no recall without labels of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassMetrics {
    pub labeled: u64,
    pub precision: Option<f64>,
    pub recall: Option<f64>,
    pub f1: Option<f64>,
}

/// 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfidenceInterval {
    pub low: f64,
    pub high: f64,
}

/// Error rates by class and by group, and the largest gaps between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bias {
    pub classes: BTreeMap<String, ErrorRate>,
    pub groups: BTreeMap<String, ErrorRate>,
    /// Largest gap between classes; `None` if fewer than two have enough labels.
    pub class_gap: Option<RateGap>,
    /// Largest gap between groups; `None` if fewer than two have enough labels.
    pub group_gap: Option<RateGap>,
}

/// Error rate of one class or group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorRate {
    pub wrong: u64,
    pub labeled: u64,
    pub rate: f64,
    #[serde(rename = "span")]
    pub interval: ConfidenceInterval,
    /// True if there are enough labels to compare the rate.
    #[serde(rename = "enough")]
    pub comparable: bool,
}

/// Largest difference between two error rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateGap {
    pub worst: String,
    pub best: String,
    pub difference: f64,
    #[serde(rename = "span")]
    pub interval: ConfidenceInterval,
    pub p: f64,
}

/// Quantiles of the latency of answers, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

/// Load of the machine over a day, from its samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    pub samples: u64,
    pub cpu: Option<MeanMax>,
    pub memory: Option<MeanMax>,
    /// Resident memory of the serving process, in bytes.
    pub resident: Option<MeanMax>,
    pub disk: Option<MeanMax>,
    pub temperature: Option<MeanMax>,
    pub answers: u64,
    pub errors: u64,
    pub dropped: u64,
    pub largest_queue: u64,
}

/// Mean and maximum of a measure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeanMax {
    pub mean: f64,
    pub max: f64,
}

/// Measurements of one hour of the day.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hour {
    /// Number of frames captured in this hour.
    pub frames: u64,
    pub errors: u64,
    pub latency_p95: Option<f64>,
    pub cpu: Option<f64>,
    pub memory: Option<f64>,
    pub temperature: Option<f64>,
    /// Largest number of requests in the queue.
    pub queue: Option<u64>,
}

impl Report {
    /// Parses a report; errors name it `name`.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let invalid = |error: serde_json::Error| Error::corrupt(format!("`{name}` is not a report: {error}"));
        let value: Value = serde_json::from_slice(bytes).map_err(invalid)?;
        if value["format"].as_u64().is_some_and(|format| format > FORMAT) {
            return Err(Error::corrupt(format!("`{name}` was written by a newer mlx")));
        }
        serde_json::from_value(value).map_err(invalid)
    }

    /// Serializes the report as indented JSON; the same report gives the same bytes.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        Ok(text
            .map_err(|error| Error::new(Kind::Internal, "cannot serialize the report").with_source(error))?
            + "\n")
    }

    /// Rounds all numbers to the digits that are stored.
    pub fn rounded(self) -> Self {
        let mut value = serde_json::to_value(&self).expect("all keys of a report are strings");
        round(&mut value);
        serde_json::from_value(value).expect("rounding changes no types")
    }
}

fn round(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(round),
        Value::Object(map) => map.values_mut().for_each(round),
        Value::Number(number) if number.is_f64() => {
            *value = Value::from(round_number(number.as_f64().unwrap_or_default()));
        }
        _ => {}
    }
}

fn round_number(value: f64) -> f64 {
    if value.abs() < ROUNDING_ERROR {
        return 0.0;
    }
    let text = format!("{value:.*e}", SIGNIFICANT_DIGITS - 1);
    text.parse().expect("a number that was just formatted")
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these numbers are integers or read back exactly")]
mod tests {
    use super::*;
    use crate::monitor::synthetic::{Scenario, TYPICAL, frames, labeled, reference};

    #[test]
    fn numbers_keep_six_significant_digits() {
        assert_eq!(round_number(1.0 / 3.0), 0.333_333);
        assert_eq!(round_number(123_456_789.0), 123_457_000.0);
        assert_eq!((round_number(1e-17), round_number(-0.0), round_number(1.5)), (0.0, 0.0, 1.5));
    }

    #[test]
    fn a_report_round_trips_through_json() {
        let (records, labels) = frames(Scenario { brightness: 0.2, ..TYPICAL }, 4, 70);
        for report in [labeled(&records, &labels, &reference(333)), labeled(&[], &labels, &reference(0))] {
            let written = report.to_json().unwrap();
            let read = Report::parse("r.json", written.as_bytes()).unwrap();
            assert_eq!((read.to_json().unwrap(), read), (written, report));
        }
    }

    #[test]
    fn invalid_and_newer_reports_are_refused() {
        let newer = Report::parse("r.json", b"{\"format\": 2}").unwrap_err().to_string();
        assert_eq!(newer, "`r.json` was written by a newer mlx");
        let error = Report::parse("r.json", b"{\"format\": 1}").unwrap_err().to_string();
        assert_eq!(error, "`r.json` is not a report: missing field `day`");
        assert!(Report::parse("r.json", b"{").is_err());
    }
}
