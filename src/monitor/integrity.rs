//! Data quality of a day: counts damaged, dark, overexposed, blurred, frozen and duplicate frames, missing
//! hours, and failed requests.

use std::collections::BTreeSet;

use crate::{
    monitor::{
        Day, Integrity, Reference, Thresholds,
        measure::{hour_of, is_client_closed, is_server_error},
        statistics::Column,
    },
    traffic::{ImageStats, Record},
};

/// Quantile of the reference's sharpness that blur is measured from.
const SHARPNESS_QUANTILE: f64 = 0.01;

/// Counts the data-quality problems of a day's frames.
pub fn integrity(day: &Day<'_>, reference: &Reference, thresholds: &Thresholds) -> Integrity {
    let stats: Vec<&ImageStats> = day.records.iter().filter_map(|it| it.image_stats.as_ref()).collect();
    let count = |matches: &dyn Fn(&ImageStats) -> bool| stats.iter().filter(|it| matches(it)).count() as u64;
    let blurred_below = low_sharpness(reference).map(|sharpness| sharpness * thresholds.blurred);
    let runs = runs(day.records, thresholds.frozen_run);
    let hours_with_frames: BTreeSet<u8> = day.records.iter().map(|it| hour_of(it.captured)).collect();
    Integrity {
        frames: day.records.len() as u64,
        decoded: stats.len() as u64,
        damaged: day.records.iter().filter(|it| is_damaged(it)).count() as u64,
        dark: count(&|image| f64::from(image.brightness) < thresholds.dark),
        overexposed: count(&|image| f64::from(image.brightness) > thresholds.overexposed),
        blurred: blurred_below.map(|limit| count(&|image| f64::from(image.sharpness) < limit)),
        blurred_below,
        frozen: runs.iter().sum(),
        longest_run: runs.iter().max().copied().unwrap_or(0),
        duplicates: duplicates(day.records),
        near_duplicates: near_duplicates(day.records, thresholds.near_bits),
        missing_hours: day.expected_hours.difference(&hours_with_frames).copied().collect(),
        errors: day.records.iter().filter(|it| is_server_error(it)).count() as u64,
        dropped: (!day.samples.is_empty()).then(|| day.samples.iter().map(|it| u64::from(it.dropped)).sum()),
    }
}

/// Returns true if the image was rejected or could not be decoded. A server error or a disconnected client
/// does not count: its image may never have been decoded.
fn is_damaged(record: &Record) -> bool {
    record.status == 400
        || record.image_stats.is_none() && !is_server_error(record) && !is_client_closed(record)
}

fn low_sharpness(reference: &Reference) -> Option<f64> {
    let stats = reference.rows.iter().filter_map(|it| it.image_stats.as_ref());
    Column::of(stats.map(|it| f64::from(it.sharpness))).quantile(SHARPNESS_QUANTILE)
}

/// Returns the lengths of runs of at least `min_length` frames in which each frame looks like the previous
/// one.
fn runs(records: &[Record], min_length: u64) -> Vec<u64> {
    let alike = |one: &Record, two: &Record| {
        let fingerprint = |record: &Record| record.image_stats.as_ref().map(|it| it.fingerprint);
        one.input == two.input || fingerprint(one).is_some() && fingerprint(one) == fingerprint(two)
    };
    let lengths = records.chunk_by(alike).map(|it| it.len() as u64);
    lengths.filter(|&length| length >= min_length.max(2)).collect()
}

fn duplicates(records: &[Record]) -> u64 {
    let mut seen = BTreeSet::new();
    records.iter().filter(|it| !seen.insert(it.input)).count() as u64
}

fn near_duplicates(records: &[Record], bits: u32) -> u64 {
    let near = |one: &Record, two: &Record| match (&one.image_stats, &two.image_stats) {
        (Some(a), Some(b)) => one.input != two.input && (a.fingerprint ^ b.fingerprint).count_ones() <= bits,
        _ => false,
    };
    records.windows(2).filter(|pair| near(&pair[0], &pair[1])).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::synthetic::{Scenario, TYPICAL, frames, reference, report};

    #[test]
    fn a_typical_day_has_no_problems() {
        let found = report(&frames(TYPICAL, 1, 60).0, &reference(400)).integrity;
        let limit = found.blurred_below;
        assert!(limit.is_some_and(|limit| 0.2 < limit && limit < 0.45), "{limit:?}");
        let good = Integrity {
            frames: 60,
            decoded: 60,
            blurred: Some(0),
            blurred_below: limit,
            dropped: Some(0),
            ..Integrity::default()
        };
        assert_eq!(found, good);
    }

    #[test]
    fn damaged_and_poor_images_are_counted() {
        let mut records = frames(TYPICAL, 1, 60).0;
        records[0].image_stats = None;
        records[1].status = 400;
        records[2].status = 503;
        records[2].image_stats = None;
        records[6].status = 499;
        records[6].image_stats = None;
        records[3].image_stats.as_mut().unwrap().brightness = 0.05;
        records[4].image_stats.as_mut().unwrap().brightness = 0.95;
        records[5].image_stats.as_mut().unwrap().sharpness = 0.1;
        let found = report(&records, &reference(400)).integrity;
        assert_eq!((found.frames, found.decoded, found.damaged, found.errors), (60, 57, 2, 1));
        assert_eq!((found.dark, found.overexposed, found.blurred), (1, 1, Some(1)));
    }

    #[test]
    fn a_frozen_camera_is_detected_by_bytes_and_by_fingerprint() {
        let mut records = frames(TYPICAL, 1, 60).0;
        for index in 11..15 {
            records[index].input = records[10].input;
        }
        let fingerprint = records[30].image_stats.unwrap().fingerprint;
        for index in [31, 32] {
            records[index].image_stats.as_mut().unwrap().fingerprint = fingerprint;
        }
        records[41].image_stats.as_mut().unwrap().fingerprint =
            records[40].image_stats.unwrap().fingerprint ^ 5;
        let found = report(&records, &reference(400)).integrity;
        assert_eq!((found.frozen, found.longest_run, found.duplicates), (8, 5, 4));
        assert_eq!(found.near_duplicates, 3);
    }

    #[test]
    fn hours_without_frames_are_missing() {
        let records: Vec<_> = frames(TYPICAL, 1, 60).0;
        let kept: Vec<_> = records.into_iter().filter(|record| hour_of(record.captured) != 8).collect();
        assert_eq!(report(&kept, &reference(400)).integrity.missing_hours, [8]);
        assert_eq!(report(&[], &reference(400)).integrity.missing_hours, [6, 7, 8, 9, 10]);
    }

    #[test]
    fn without_a_reference_no_image_is_blurred() {
        let found =
            report(&frames(Scenario { sharpness: 0.01, ..TYPICAL }, 1, 9).0, &Reference::default()).integrity;
        assert_eq!((found.blurred, found.blurred_below), (None, None));
    }
}
