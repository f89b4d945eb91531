//! A day's records become a report.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    deploy::GONE,
    monitor::{
        FORMAT, Hour, Report, Thresholds, drift,
        integrity::integrity,
        machine::{latency, machine},
        performance::{self, bias, performance},
        statistics::Column,
    },
    traffic::{Labels, Record, Sample},
};

/// All that is known of a day.
#[derive(Clone, Copy, Debug)]
pub struct Day<'d> {
    /// `2026-11-24`
    pub name: &'d str,
    /// In order of time.
    pub records: &'d [Record],
    /// In order of time.
    pub samples: &'d [Sample],
    /// True classes, as far as known.
    pub labels: &'d Labels,
    /// Request id → group; where it is empty, the parts of the day are the groups.
    pub groups: &'d BTreeMap<String, String>,
    /// The model's classes, in the package's order.
    pub classes: &'d [String],
    /// Hours of the day, UTC, in which pictures are expected.
    pub hours: &'d BTreeSet<u8>,
}

/// What a day is held against: the training side, or days that were accepted.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// For people: `training side of pets@v0.1.0`
    pub name: String,
    pub rows: Vec<Record>,
}

/// Measures one day.
pub fn measure(day: &Day<'_>, reference: &Reference, thresholds: &Thresholds) -> Report {
    let versions = by_version(day.records);
    let of_version = |version: &String| {
        let records: Vec<_> = day.records.iter().filter(|it| it.version == *version).cloned().collect();
        Some((version.clone(), performance(&Day { records: &records, ..*day })?))
    };
    Report {
        format: FORMAT,
        day: day.name.to_owned(),
        reference: reference.name.clone(),
        reference_rows: reference.rows.len() as u64,
        classes: day.classes.to_vec(),
        integrity: integrity(day, reference, thresholds),
        drift: drift::measures(day, reference, thresholds),
        performance: performance(day),
        performance_by_version: if versions.len() > 1 {
            versions.keys().filter_map(of_version).collect()
        } else {
            BTreeMap::new()
        },
        bias: bias(day, thresholds),
        latency: latency(day.records),
        machine: machine(day.samples),
        hours: (0..24).map(|it| hour(day, it)).collect(),
        versions,
        thresholds: thresholds.clone(),
    }
    .rounded()
}

/// Whether the model answered.
pub fn answered(record: &Record) -> bool {
    (200..300).contains(&record.status)
}

/// Whether whoever asked went away before the answer.
pub fn gone(record: &Record) -> bool {
    record.status == GONE
}

/// Whether we failed, not whoever asked.
pub fn failed(record: &Record) -> bool {
    record.status >= 500
}

/// The hour of the day, UTC.
pub fn hour_of(milliseconds: i64) -> u8 {
    milliseconds.div_euclid(3_600_000).rem_euclid(24) as u8
}

fn by_version(records: &[Record]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for record in records {
        *found.entry(record.version.clone()).or_default() += 1;
    }
    found
}

fn hour(day: &Day<'_>, hour: u8) -> Hour {
    let records: Vec<_> = day.records.iter().filter(|it| hour_of(it.captured) == hour).collect();
    let samples: Vec<_> = day.samples.iter().filter(|it| hour_of(it.time) == hour).collect();
    let mean = |value: &dyn Fn(&Sample) -> f32| Column::of(samples.iter().map(|it| value(it).into())).mean();
    let latency = records.iter().filter(|it| answered(it)).map(|it| f64::from(it.latency));
    Hour {
        frames: records.len() as u64,
        errors: records.iter().filter(|it| failed(it)).count() as u64,
        latency_p95: Column::of(latency).quantile(0.95),
        cpu: mean(&|it| it.cpu),
        memory: mean(&|it| it.memory),
        temperature: mean(&|it| it.temperature.unwrap_or(f32::NAN)),
        queue: samples.iter().map(|it| u64::from(it.waiting)).max(),
    }
}

/// Part of the day in which a picture was taken, UTC.
pub fn part_of_day(milliseconds: i64) -> &'static str {
    ["night", "morning", "afternoon", "evening"][usize::from(hour_of(milliseconds) / 6)]
}

/// Labeled answers: record, place of the label, place of what was said.
pub fn judged<'d>(day: &Day<'d>) -> Vec<(&'d Record, usize, usize)> {
    let place = |class: &String| day.classes.iter().position(|it| it == class);
    let label = |it: &Record| place(day.labels.of(it)?);
    let rows = day.records.iter().filter(|it| answered(it));
    rows.filter_map(|it| Some((it, label(it)?, performance::said(it, day.classes)?))).collect()
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
