//! Measures one day of traffic: turns its records, machine samples and labels into a [`Report`].

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    deploy::CLIENT_CLOSED,
    monitor::{
        FORMAT, Hour, Report, Thresholds, drift,
        integrity::integrity,
        machine::{latency, machine},
        performance::{self, bias, performance},
        statistics::Column,
    },
    traffic::{Labels, Record, TelemetrySample},
};

/// Everything known about one day of traffic.
#[derive(Clone, Copy, Debug)]
pub struct Day<'d> {
    /// Date of the day, as in `2026-11-24`.
    pub name: &'d str,
    /// Requests of the day, ordered by time.
    pub records: &'d [Record],
    /// Machine samples of the day, ordered by time.
    pub samples: &'d [TelemetrySample],
    /// True classes, as far as known.
    pub labels: &'d Labels,
    /// Group of each request id; if empty, requests are grouped by part of the day.
    pub groups: &'d BTreeMap<String, String>,
    /// The model's classes, in the package's order.
    pub classes: &'d [String],
    /// Hours of the day, UTC, in which images are expected.
    pub expected_hours: &'d BTreeSet<u8>,
}

/// Rows that a day is compared with: the training images, or days that were accepted.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// Name to show, as in `training side of pets@v0.1.0`.
    pub name: String,
    pub rows: Vec<Record>,
}

/// Measures one day against a reference.
pub fn measure(day: &Day<'_>, reference: &Reference, thresholds: &Thresholds) -> Report {
    let versions = by_version(day.records);
    let of_version = |version: &String| {
        let records: Vec<_> =
            day.records.iter().filter(|record| record.version == *version).cloned().collect();
        Some((version.clone(), performance(&Day { records: &records, ..*day })?))
    };
    Report {
        format: FORMAT,
        day: day.name.to_owned(),
        reference: reference.name.clone(),
        reference_rows: reference.rows.len() as u64,
        classes: day.classes.to_vec(),
        integrity: integrity(day, reference, thresholds),
        drift: drift::measure_drift(day, reference, thresholds),
        performance: performance(day),
        performance_by_version: if versions.len() > 1 {
            versions.keys().filter_map(of_version).collect()
        } else {
            BTreeMap::new()
        },
        bias: bias(day, thresholds),
        latency: latency(day.records),
        machine: machine(day.samples),
        hours: (0..24).map(|number| hour(day, number)).collect(),
        versions,
        thresholds: thresholds.clone(),
    }
    .rounded()
}

/// Returns true if the model answered the request.
pub fn is_answered(record: &Record) -> bool {
    (200..300).contains(&record.status)
}

/// Returns true if the client disconnected before the answer.
pub fn is_client_closed(record: &Record) -> bool {
    record.status == CLIENT_CLOSED
}

/// Returns true if the request failed through the server's fault, not the client's.
pub fn is_server_error(record: &Record) -> bool {
    record.status >= 500
}

/// Returns the hour of the day, UTC, of a time in milliseconds since 1970.
pub fn hour_of(milliseconds: i64) -> u8 {
    milliseconds.div_euclid(3_600_000).rem_euclid(24) as u8
}

fn by_version(records: &[Record]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for record in records {
        *counts.entry(record.version.clone()).or_default() += 1;
    }
    counts
}

fn hour(day: &Day<'_>, hour: u8) -> Hour {
    let records: Vec<_> = day.records.iter().filter(|record| hour_of(record.captured) == hour).collect();
    let samples: Vec<_> = day.samples.iter().filter(|sample| hour_of(sample.time) == hour).collect();
    let mean = |value: &dyn Fn(&TelemetrySample) -> f32| {
        Column::of(samples.iter().map(|it| value(it).into())).mean()
    };
    let latency = records.iter().filter(|it| is_answered(it)).map(|it| f64::from(it.latency));
    Hour {
        frames: records.len() as u64,
        errors: records.iter().filter(|it| is_server_error(it)).count() as u64,
        latency_p95: Column::of(latency).quantile(0.95),
        cpu: mean(&|sample| sample.cpu),
        memory: mean(&|sample| sample.memory),
        temperature: mean(&|sample| sample.temperature.unwrap_or(f32::NAN)),
        queue: samples.iter().map(|it| u64::from(it.waiting)).max(),
    }
}

/// Returns the part of the day, UTC, of a time in milliseconds since 1970.
pub fn part_of_day(milliseconds: i64) -> &'static str {
    ["night", "morning", "afternoon", "evening"][usize::from(hour_of(milliseconds) / 6)]
}

/// Returns each labeled answer as (record, index of the true class, index of the predicted class).
pub fn labeled_answers<'d>(day: &Day<'d>) -> Vec<(&'d Record, usize, usize)> {
    let index = |class: &String| day.classes.iter().position(|known| known == class);
    let label = |record: &Record| index(day.labels.get(record)?);
    let rows = day.records.iter().filter(|it| is_answered(it));
    rows.filter_map(|record| {
        Some((record, label(record)?, performance::predicted_class(record, day.classes)?))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_utc_also_before_1970() {
        assert_eq!((hour_of(0), hour_of(3_600_000 * 49), hour_of(-1)), (0, 1, 23));
        assert_eq!((part_of_day(0), part_of_day(3_600_000 * 13)), ("night", "afternoon"));
    }
}
