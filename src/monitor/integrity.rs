//! Whether what came was fit to be judged.

use std::collections::BTreeSet;

use crate::{
    monitor::{
        Day, Integrity, Reference, Thresholds,
        measure::{failed, gone, hour_of},
        statistics::Column,
    },
    traffic::{Looks, Record},
};

/// So much of the reference is the least sharp.
const LEAST_SHARP: f64 = 0.01;

/// Counts what is wrong with a day's frames.
pub fn integrity(day: &Day<'_>, reference: &Reference, thresholds: &Thresholds) -> Integrity {
    let looks: Vec<&Looks> = day.records.iter().filter_map(|it| it.looks.as_ref()).collect();
    let count = |is: &dyn Fn(&Looks) -> bool| looks.iter().filter(|it| is(it)).count() as u64;
    let blurred_below = least_sharpness(reference).map(|it| it * thresholds.blurred);
    let runs = runs(day.records, thresholds.frozen_run);
    let there: BTreeSet<u8> = day.records.iter().map(|it| hour_of(it.captured)).collect();
    Integrity {
        frames: day.records.len() as u64,
        seen: looks.len() as u64,
        damaged: day.records.iter().filter(|it| damaged(it)).count() as u64,
        dark: count(&|it| f64::from(it.brightness) < thresholds.dark),
        overexposed: count(&|it| f64::from(it.brightness) > thresholds.overexposed),
        blurred: blurred_below.map(|limit| count(&|it| f64::from(it.sharpness) < limit)),
        blurred_below,
        frozen: runs.iter().sum(),
        longest_run: runs.iter().max().copied().unwrap_or(0),
        duplicates: duplicates(day.records),
        near_duplicates: near_duplicates(day.records, thresholds.near_bits),
        missing_hours: day.hours.difference(&there).copied().collect(),
        errors: day.records.iter().filter(|it| failed(it)).count() as u64,
        dropped: (!day.samples.is_empty()).then(|| day.samples.iter().map(|it| u64::from(it.dropped)).sum()),
    }
}

/// A request that we failed, or that nobody waited for, was perhaps never looked at; its picture may be fine.
fn damaged(record: &Record) -> bool {
    record.status == 400 || record.looks.is_none() && !failed(record) && !gone(record)
}

fn least_sharpness(reference: &Reference) -> Option<f64> {
    let looks = reference.rows.iter().filter_map(|it| it.looks.as_ref());
    Column::of(looks.map(|it| f64::from(it.sharpness))).quantile(LEAST_SHARP)
}

/// Lengths of runs in which each frame looks like the one before, from `least` frames on.
fn runs(records: &[Record], least: u64) -> Vec<u64> {
    let alike = |one: &Record, two: &Record| {
        let print = |it: &Record| it.looks.as_ref().map(|it| it.fingerprint);
        one.input == two.input || print(one).is_some() && print(one) == print(two)
    };
    let lengths = records.chunk_by(alike).map(|it| it.len() as u64);
    lengths.filter(|&it| it >= least.max(2)).collect()
}

fn duplicates(records: &[Record]) -> u64 {
    let mut seen = BTreeSet::new();
    records.iter().filter(|it| !seen.insert(it.input)).count() as u64
}

fn near_duplicates(records: &[Record], bits: u32) -> u64 {
    let near = |one: &Record, two: &Record| match (&one.looks, &two.looks) {
        (Some(a), Some(b)) => one.input != two.input && (a.fingerprint ^ b.fingerprint).count_ones() <= bits,
        _ => false,
    };
    records.windows(2).filter(|it| near(&it[0], &it[1])).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::drawn::{USUAL, World, frames, reference, report};

    #[test]
    fn a_usual_day_has_nothing_wrong() {
        let found = report(&frames(USUAL, 1, 60).0, &reference(400)).integrity;
        let limit = found.blurred_below;
        assert!(limit.is_some_and(|it| 0.2 < it && it < 0.45), "{limit:?}");
        let good = Integrity {
            frames: 60,
            seen: 60,
            blurred: Some(0),
            blurred_below: limit,
            dropped: Some(0),
            ..Integrity::default()
        };
        assert_eq!(found, good);
    }

    #[test]
    fn bad_pictures_are_counted() {
        let mut records = frames(USUAL, 1, 60).0;
        records[0].looks = None;
        records[1].status = 400;
        records[2].status = 503;
        records[2].looks = None;
        records[6].status = 499;
        records[6].looks = None;
        records[3].looks.as_mut().unwrap().brightness = 0.05;
        records[4].looks.as_mut().unwrap().brightness = 0.95;
        records[5].looks.as_mut().unwrap().sharpness = 0.1;
        let found = report(&records, &reference(400)).integrity;
        assert_eq!((found.frames, found.seen, found.damaged, found.errors), (60, 57, 2, 1));
        assert_eq!((found.dark, found.overexposed, found.blurred), (1, 1, Some(1)));
    }

    #[test]
    fn a_frozen_camera_is_seen_by_bytes_and_by_looks() {
        let mut records = frames(USUAL, 1, 60).0;
        for at in 11..15 {
            records[at].input = records[10].input;
        }
        let print = records[30].looks.unwrap().fingerprint;
        for at in [31, 32] {
            records[at].looks.as_mut().unwrap().fingerprint = print;
        }
        records[41].looks.as_mut().unwrap().fingerprint = records[40].looks.unwrap().fingerprint ^ 5;
        let found = report(&records, &reference(400)).integrity;
        assert_eq!((found.frozen, found.longest_run, found.duplicates), (8, 5, 4));
        assert_eq!(found.near_duplicates, 3);
    }

    #[test]
    fn hours_without_frames_are_named() {
        let records: Vec<_> = frames(USUAL, 1, 60).0;
        let early: Vec<_> = records.into_iter().filter(|it| hour_of(it.captured) != 8).collect();
        assert_eq!(report(&early, &reference(400)).integrity.missing_hours, [8]);
        assert_eq!(report(&[], &reference(400)).integrity.missing_hours, [6, 7, 8, 9, 10]);
    }

    #[test]
    fn without_a_reference_nothing_is_called_blurred() {
        let found =
            report(&frames(World { sharpness: 0.01, ..USUAL }, 1, 9).0, &Reference::default()).integrity;
        assert_eq!((found.blurred, found.blurred_below), (None, None));
    }
}
