//! Drift of a day against its reference: Kolmogorov–Smirnov tests of image statistics and embedding
//! distances, and a χ² test of the predicted classes.
//!
//! All p-values are adjusted together (Benjamini–Hochberg). A measure has drifted if the change is both
//! significant and large enough to matter.

use std::collections::BTreeMap;

use crate::{
    monitor::{
        Day, Drift, Histogram, Reference, TestKind, TestResult, Thresholds, Verdict,
        embedding::distances,
        measure::is_answered,
        performance::predicted_class,
        statistics::{
            BinEdges, Column, MAX_KS_ROWS, benjamini_hochberg, chi_square, js_distance_base2,
            js_distance_natural, ks, largest_change, psi, psi_expected,
        },
    },
    traffic::{ImageStats, Record},
};

/// Number of bins of the population stability index, with equally many rows of the reference in each.
const PSI_BINS: usize = 10;
/// Number of bins of the displayed histogram.
const HISTOGRAM_BINS: usize = 20;
/// Smallest p-value that is reported; below it, rounding errors of the sums dominate.
const MIN_P: f64 = 1e-15;

/// Compares all measures of the day with the reference, then decides on all of them together.
pub fn measure_drift(day: &Day<'_>, reference: &Reference, limits: &Thresholds) -> BTreeMap<String, Drift> {
    let mut measures = BTreeMap::new();
    let days: Vec<&Record> = day.records.iter().filter(|it| is_answered(it)).collect();
    let known: Vec<&Record> = reference.rows.iter().collect();
    for (name, value) in IMAGE_STATISTICS {
        let column = |rows: &[&Record]| {
            let stats = rows.iter().filter_map(|it| it.image_stats.as_ref());
            Column::of(stats.map(|it| value(it).into()))
        };
        measures.insert(name.to_owned(), columns(&column(&known), &column(&days), limits));
    }
    measures.insert("embedding".into(), embedding(&known, &days, limits));
    measures.insert("classes".into(), classes(day.classes, &known, &days, limits));
    decide(&mut measures, limits);
    measures
}

/// Statistics of the image itself that are compared.
const IMAGE_STATISTICS: [(&str, fn(&ImageStats) -> f32); 6] = [
    ("brightness", |image| image.brightness),
    ("contrast", |image| image.contrast),
    ("sharpness", |image| image.sharpness),
    ("red", |image| image.colors[0]),
    ("green", |image| image.colors[1]),
    ("blue", |image| image.colors[2]),
];

/// Sets all verdicts, and is the only place that does: a change must be significant and large enough to
/// matter.
fn decide(measures: &mut BTreeMap<String, Drift>, limits: &Thresholds) {
    let tested: Vec<_> = measures.values_mut().filter(|drift| drift.result.is_some()).collect();
    let p_values: Vec<_> = tested.iter().filter_map(|drift| Some(drift.result.as_ref()?.p)).collect();
    for (drift, adjusted) in tested.into_iter().zip(benjamini_hochberg(&p_values)) {
        let Some(test) = &mut drift.result else { continue };
        test.adjusted = adjusted;
        let minimum = match test.kind {
            TestKind::Ks => limits.min_ks_distance,
            TestKind::ChiSquare => limits.min_share_change,
        };
        let changed = adjusted <= limits.significance && test.effect >= minimum;
        drift.verdict = if changed { Verdict::Drifted } else { Verdict::Same };
    }
}

fn columns(reference: &Column, day: &Column, limits: &Thresholds) -> Drift {
    let (thinned_reference, thinned_day) = (reference.thinned(MAX_KS_ROWS), day.thinned(MAX_KS_ROWS));
    let result = has_enough_rows(reference.len(), day.len(), limits)
        .then(|| {
            let edges = BinEdges::of(reference, PSI_BINS)?;
            let test = ks(&thinned_reference, &thinned_day)?;
            let counts = (edges.count(reference), edges.count(day));
            test_result(TestKind::Ks, test.statistic, test.statistic, test.p, (&counts.0, &counts.1))
        })
        .flatten();
    Drift {
        reference_rows: reference.len() as u64,
        day_rows: day.len() as u64,
        excluded: reference.non_finite + day.non_finite,
        verdict: Verdict::Undecided,
        result,
        shift: None,
        shift_expected: None,
        reference_mean: reference.mean(),
        day_mean: day.mean(),
        histogram: histogram(reference, day).unwrap_or_default(),
    }
}

fn embedding(reference: &[&Record], day: &[&Record], limits: &Thresholds) -> Drift {
    let with_features =
        |records: &[&Record]| records.iter().filter(|it| !it.features.is_empty()).count() as u64;
    let total = with_features(reference) + with_features(day);
    let features: [Vec<&[f32]>; 2] =
        [reference, day].map(|records| records.iter().map(|it| &it.features[..]).collect());
    let distances = distances(&features[0], &features[1]);
    let drift = columns(&Column::of(distances.reference), &Column::of(distances.day), limits);
    Drift {
        shift: distances.shift,
        shift_expected: distances.shift_expected,
        // No distance exists for rows of another width and rows with numbers that are not finite.
        excluded: total.saturating_sub(drift.reference_rows + drift.day_rows),
        ..drift
    }
}

fn classes(classes: &[String], reference: &[&Record], day: &[&Record], limits: &Thresholds) -> Drift {
    let count = |rows: &[&Record], class: &dyn Fn(&Record) -> Option<usize>| {
        let mut counts = vec![0; classes.len()];
        rows.iter().filter_map(|it| class(it)).for_each(|index| counts[index] += 1);
        counts
    };
    // Predictions are compared with predictions: the label of a training image counts only if it has no
    // scores.
    let known = count(reference, &|record| {
        most_likely_class(record, classes.len()).or_else(|| predicted_class(record, classes))
    });
    let predicted = count(day, &|record| predicted_class(record, classes));
    let totals = (known.iter().sum::<u64>(), predicted.iter().sum::<u64>());
    let result = has_enough_rows(totals.0 as usize, totals.1 as usize, limits)
        .then(|| {
            let test = chi_square(&known, &predicted)?;
            let change = largest_change(&known, &predicted)?.1.abs();
            test_result(TestKind::ChiSquare, test.statistic, change, test.p, (&known, &predicted))
        })
        .flatten();
    Drift {
        reference_rows: totals.0,
        day_rows: totals.1,
        excluded: (reference.len() + day.len()) as u64 - totals.0 - totals.1,
        verdict: Verdict::Undecided,
        result,
        shift: None,
        shift_expected: None,
        reference_mean: None,
        day_mean: None,
        histogram: Histogram { low: 0.0, high: classes.len() as f64, reference: known, day: predicted },
    }
}

/// Returns the class with the highest score; `None` without a finite score for every class.
fn most_likely_class(record: &Record, classes: usize) -> Option<usize> {
    let usable = record.scores.len() == classes && record.scores.iter().all(|it| it.is_finite());
    let order = |one: &usize, two: &usize| record.scores[*one].total_cmp(&record.scores[*two]);
    // On a tie the first class wins, as in the head itself.
    if usable { (0..classes).rev().max_by(order) } else { None }
}

fn has_enough_rows(reference: usize, day: usize, limits: &Thresholds) -> bool {
    reference as u64 >= limits.reference_rows && day as u64 >= limits.day_rows
}

/// Completes a test with the distances between both sides; `reference` and `day` are counts in the same bins.
fn test_result(
    kind: TestKind,
    statistic: f64,
    effect: f64,
    p: f64,
    (reference, day): (&[u64], &[u64]),
) -> Option<TestResult> {
    let bins = reference.iter().zip(day).filter(|&(one, two)| one + two > 0).count();
    let p = p.max(MIN_P);
    Some(TestResult {
        kind,
        statistic,
        effect,
        p,
        adjusted: p,
        psi: psi(reference, day)?,
        psi_expected: psi_expected(bins, reference.iter().sum(), day.iter().sum())?,
        js_distance_natural: js_distance_natural(reference, day)?,
        js_distance_base2: js_distance_base2(reference, day)?,
    })
}

/// Counts both sides in bins of equal width; `None` if both are empty.
fn histogram(reference: &Column, day: &Column) -> Option<Histogram> {
    let end = |share: f64| [reference.quantile(share), day.quantile(share)].into_iter().flatten();
    let (low, high) = (end(0.0).reduce(f64::min)?, end(1.0).reduce(f64::max)?);
    let high = if high > low { high } else { low + 1.0 };
    let count = |column: &Column| {
        let mut counts = vec![0; HISTOGRAM_BINS];
        for value in column.values() {
            counts[(((value - low) / (high - low) * HISTOGRAM_BINS as f64) as usize)
                .min(HISTOGRAM_BINS - 1)] += 1;
        }
        counts
    };
    Some(Histogram { low, high, reference: count(reference), day: count(day) })
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these numbers are integers or read back exactly")]
mod tests {
    use super::*;
    use crate::monitor::{
        Report,
        synthetic::{Random, Scenario, TYPICAL, frames, reference, report},
    };

    fn drifted(report: &Report) -> Vec<&str> {
        let drifted = report.drift.iter().filter(|(_, drift)| drift.verdict == Verdict::Drifted);
        drifted.map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn three_hundred_typical_days_do_not_drift() {
        for rows in [60, 400] {
            let reference = reference(rows);
            for seed in 0..300 {
                let (records, _) = frames(TYPICAL, seed, 40 + seed as usize % 41);
                let report = report(&records, &reference);
                assert_eq!(drifted(&report), Vec::<&str>::new(), "seed {seed}, {rows} rows");
                assert!(report.drift.values().all(|drift| drift.verdict == Verdict::Same), "seed {seed}");
            }
        }
    }

    #[test]
    fn few_rows_of_many_features_do_not_drift() {
        let wide = |seed: u64, count: usize| {
            let mut random = Random::new(seed);
            let mut records = frames(TYPICAL, seed, count).0;
            for record in &mut records {
                record.features = (0..256).map(|_| random.normal()).collect();
            }
            records
        };
        let reference = Reference { rows: wide(1_000_003, 40), ..Reference::default() };
        for seed in 0..60 {
            let report = report(&wide(seed, 60), &reference);
            assert_eq!(report.drift["embedding"].verdict, Verdict::Same, "seed {seed}");
        }
    }

    #[test]
    fn each_large_change_is_detected_and_nothing_else() {
        let reference = reference(400);
        let scenarios = [
            ("brightness", Scenario { brightness: 0.25, ..TYPICAL }),
            ("sharpness", Scenario { sharpness: 0.3, ..TYPICAL }),
            ("red", Scenario { red: 0.36, ..TYPICAL }),
            ("embedding", Scenario { feature_shift: 3.0, ..TYPICAL }),
            ("classes", Scenario { cat_share: 1.0, ..TYPICAL }),
        ];
        for (name, scenario) in scenarios {
            for seed in 0..30 {
                let report = report(&frames(scenario, seed, 60).0, &reference);
                assert_eq!(drifted(&report), [name], "seed {seed}");
                assert_eq!(report.values()[&format!("drift.{name}.drifted")], 1.0);
            }
        }
    }

    #[test]
    fn a_small_change_in_many_rows_is_not_drift() {
        let reference = reference(3000);
        let scenario = Scenario { brightness: 0.46, ..TYPICAL };
        let report = report(&frames(scenario, 3, 6000).0, &reference);
        let test = report.drift["brightness"].result.as_ref().unwrap();
        assert!(test.adjusted < 0.0001 && test.effect < 0.2, "{test:?}");
        assert_eq!(drifted(&report), Vec::<&str>::new());
    }

    #[test]
    fn too_few_rows_give_no_verdict() {
        let typical = frames(TYPICAL, 1, 60).0;
        let cases = [(&typical[..0], 400), (&typical[..1], 400), (&typical[..9], 400), (&typical[..], 29)];
        for (records, rows) in cases {
            let report = report(records, &reference(rows));
            let undecided = |drift: &Drift| drift.verdict == Verdict::Undecided && drift.result.is_none();
            assert!(report.drift.values().all(undecided));
            let measured = |name: &String| name.ends_with("drifted") || name.contains(".ks");
            assert!(!report.values().keys().any(measured));
        }
    }

    #[test]
    fn values_that_are_not_finite_are_excluded() {
        let mut records = frames(TYPICAL, 1, 60).0;
        records[3].image_stats.as_mut().unwrap().brightness = f32::NAN;
        records[4].features[0] = f32::INFINITY;
        let report = report(&records, &reference(100));
        let rows = |name: &str| (report.drift[name].day_rows, report.drift[name].excluded);
        assert_eq!((rows("brightness"), rows("contrast"), rows("embedding")), ((59, 1), (60, 0), (59, 1)));
    }

    #[test]
    fn training_images_count_by_their_predicted_class() {
        let mut training = reference(40);
        for record in &mut training.rows {
            record.class = "cat".into();
            record.scores = vec![0.5, 0.5];
        }
        training.rows[0].scores = vec![0.2, 0.8];
        training.rows[1].scores = Vec::new();
        let report = report(&frames(TYPICAL, 1, 20).0, &training);
        assert_eq!(report.drift["classes"].histogram.reference, [39, 1]);
    }

    #[test]
    fn a_constant_column_drifts_only_when_it_moves() {
        let column = |value: f64| Column::of([value; 50]);
        let limits = Thresholds::default();
        let test = |day: f64| columns(&column(1.0), &column(day), &limits).result.unwrap();
        assert_eq!((test(1.0).statistic, test(1.0).p), (0.0, 1.0));
        assert!(test(1.5).statistic == 1.0 && test(1.5).p < 1e-10 && test(0.5).psi > 1.0);
    }
}
