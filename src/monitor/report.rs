//! What was found of one day, as it is kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{Error, Kind, Result},
    monitor::Thresholds,
};

pub const FORMAT: u64 = 1;
/// Digits of a number in a report: more would only be noise, and these are read back as they were written.
const DIGITS: usize = 6;
/// What is smaller is zero but for rounding.
const NOISE: f64 = 1e-16;

/// One day of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub format: u64,
    /// `2026-11-24`
    pub day: String,
    /// What the day was held against.
    pub reference: String,
    pub reference_rows: u64,
    /// Frames by the version that answered.
    pub versions: BTreeMap<String, u64>,
    pub classes: Vec<String>,
    pub integrity: Integrity,
    /// By what was measured: `brightness`, `contrast`, `sharpness`, `red`, `green`, `blue`, `classes`, `embedding`.
    pub drift: BTreeMap<String, Drift>,
    /// None where no labels are known.
    pub performance: Option<Performance>,
    /// By version, where there was more than one.
    pub performance_by_version: BTreeMap<String, Performance>,
    pub bias: Option<Bias>,
    pub latency: Option<Latency>,
    pub machine: Option<Machine>,
    /// 24 of them.
    pub hours: Vec<Hour>,
    pub thresholds: Thresholds,
}

/// Whether what came was fit to be judged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Integrity {
    pub frames: u64,
    /// Frames that were decoded.
    pub seen: u64,
    pub damaged: u64,
    pub dark: u64,
    pub overexposed: u64,
    /// None where the reference has no sharpness to compare with.
    pub blurred: Option<u64>,
    pub blurred_below: Option<f64>,
    /// Frames in runs that look alike.
    pub frozen: u64,
    pub longest_run: u64,
    /// Frames whose bytes came before on the same day.
    pub duplicates: u64,
    /// Frames that nearly look like the one before, with other bytes.
    pub near_duplicates: u64,
    pub missing_hours: Vec<u8>,
    /// Answers with a 5xx status.
    pub errors: u64,
    /// Records lost for want of time; None where nobody counted.
    pub dropped: Option<u64>,
}

/// One measure of the day against the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drift {
    pub reference_rows: u64,
    pub day_rows: u64,
    /// Rows of either side that were no numbers.
    pub set_aside: u64,
    pub verdict: Verdict,
    /// None where there were too few rows.
    pub tested: Option<Tested>,
    /// How far the mean moved, in deviations of the reference; of embeddings only.
    pub shift: Option<f64>,
    /// How far it moves by chance.
    pub shift_expected: Option<f64>,
    pub reference_mean: Option<f64>,
    pub day_mean: Option<f64>,
    /// Counts for people to look at; of classes in their order, else in equal steps.
    pub histogram: Histogram,
}

/// Counts of both sides in the same bins between two ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    pub low: f64,
    pub high: f64,
    pub reference: Vec<u64>,
    pub day: Vec<u64>,
}

/// Whether something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    #[serde(rename = "same")]
    Same,
    #[serde(rename = "drifted")]
    Drifted,
    /// Too few rows.
    #[serde(rename = "no verdict")]
    None,
}

/// Which question was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Test {
    #[serde(rename = "ks exact")]
    Ks,
    #[serde(rename = "chi-square contingency")]
    ChiSquare,
}

/// What a test gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tested {
    pub test: Test,
    pub statistic: f64,
    /// Size of the change: of columns the largest difference of cumulative shares, of classes the largest change of
    /// a share.
    pub effect: f64,
    pub p: f64,
    /// Raised for the number of tests in this report.
    pub adjusted: f64,
    pub psi: f64,
    /// What it would be about without any change.
    pub psi_expected: f64,
    pub js_distance_natural: f64,
    pub js_distance_base2: f64,
}

/// What was said against what was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Performance {
    /// Frames with a label that were answered.
    pub labeled: u64,
    /// Labels that are no class of the model, not counted in `labeled`.
    pub foreign: u64,
    pub accuracy: f64,
    pub accuracy_span: Span,
    pub classes: BTreeMap<String, Class>,
    /// Over the classes that were there or were said.
    pub average: Class,
    /// `[label][said]`
    pub confusion: Vec<Vec<u64>>,
}

/// The numbers of one class; what was never said has no precision, what never was there no recall.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    pub labeled: u64,
    pub precision: Option<f64>,
    pub recall: Option<f64>,
    pub f1: Option<f64>,
}

/// Where the truth lies in 95 of 100 cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    pub low: f64,
    pub high: f64,
}

/// Whether it errs more on some than on others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bias {
    pub classes: BTreeMap<String, Rate>,
    pub groups: BTreeMap<String, Rate>,
    /// None where fewer than two have enough labels.
    pub class_gap: Option<Gap>,
    pub group_gap: Option<Gap>,
}

/// How often it was wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub wrong: u64,
    pub labeled: u64,
    pub rate: f64,
    pub span: Span,
    /// Whether there are enough labels to compare it.
    pub enough: bool,
}

/// The largest difference of two error rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    pub worst: String,
    pub best: String,
    pub difference: f64,
    pub span: Span,
    pub p: f64,
}

/// Milliseconds to an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

/// What the machine looked like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    pub samples: u64,
    pub cpu: Option<Mean>,
    pub memory: Option<Mean>,
    pub resident: Option<Mean>,
    pub disk: Option<Mean>,
    pub temperature: Option<Mean>,
    pub answers: u64,
    pub errors: u64,
    pub dropped: u64,
    pub largest_queue: u64,
}

/// A mean and what it hides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mean {
    pub mean: f64,
    pub max: f64,
}

/// One hour of the day.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hour {
    /// By the time they were taken.
    pub frames: u64,
    pub errors: u64,
    pub latency_p95: Option<f64>,
    pub cpu: Option<f64>,
    pub memory: Option<f64>,
    pub temperature: Option<f64>,
    pub queue: Option<u64>,
}

impl Report {
    /// Reads a report; `name` is what errors call it.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let broken = |it: serde_json::Error| Error::corrupt(format!("`{name}` is not a report: {it}"));
        let value: Value = serde_json::from_slice(bytes).map_err(broken)?;
        if value["format"].as_u64().is_some_and(|it| it > FORMAT) {
            return Err(Error::corrupt(format!("`{name}` was written by a newer mlx")));
        }
        serde_json::from_value(value).map_err(broken)
    }

    /// The same bytes for the same report, one line a fact.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        Ok(text.map_err(|it| Error::new(Kind::Internal, "cannot write a report").because(it))? + "\n")
    }

    /// Numbers cut to what is worth keeping.
    pub fn rounded(self) -> Self {
        let mut value = serde_json::to_value(&self).expect("a report has text keys only");
        round(&mut value);
        serde_json::from_value(value).expect("rounding changes no types")
    }
}

fn round(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(round),
        Value::Object(map) => map.values_mut().for_each(round),
        Value::Number(it) if it.is_f64() => *value = Value::from(digits(it.as_f64().unwrap_or_default())),
        _ => {}
    }
}

fn digits(value: f64) -> f64 {
    if value.abs() < NOISE {
        return 0.0;
    }
    let text = format!("{value:.*e}", DIGITS - 1);
    text.parse().expect("a number as it was just written")
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these numbers are whole or as they were written")]
mod tests {
    use super::*;
    use crate::monitor::drawn::{USUAL, World, frames, labeled, reference};

    #[test]
    fn six_digits_are_kept() {
        assert_eq!(digits(1.0 / 3.0), 0.333_333);
        assert_eq!(digits(123_456_789.0), 123_457_000.0);
        assert_eq!((digits(1e-17), digits(-0.0), digits(1.5)), (0.0, 0.0, 1.5));
    }

    #[test]
    fn a_report_is_read_back_as_it_was_written() {
        let (records, labels) = frames(World { light: 0.2, ..USUAL }, 4, 70);
        for report in [labeled(&records, &labels, &reference(333)), labeled(&[], &labels, &reference(0))] {
            let written = report.to_json().unwrap();
            let read = Report::parse("r.json", written.as_bytes()).unwrap();
            assert_eq!((read.to_json().unwrap(), read), (written, report));
        }
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let newer = Report::parse("r.json", b"{\"format\": 2}").unwrap_err().to_string();
        assert_eq!(newer, "`r.json` was written by a newer mlx");
        let error = Report::parse("r.json", b"{\"format\": 1}").unwrap_err().to_string();
        assert_eq!(error, "`r.json` is not a report: missing field `day`");
        assert!(Report::parse("r.json", b"{").is_err());
    }
}
