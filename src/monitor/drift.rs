//! Whether the day is like the reference.

use std::collections::BTreeMap;

use crate::{
    monitor::{
        Day, Drift, Histogram, Reference, Test, Tested, Thresholds, Verdict,
        embedding::distances,
        measure::answered,
        performance::said,
        statistics::{
            Column, Edges, MOST, benjamini_hochberg, chi_square, js_distance_base2, js_distance_natural, ks,
            largest_change, psi, psi_expected,
        },
    },
    traffic::{Looks, Record},
};

/// Bins of the index, with equally many rows of the reference.
const BINS: usize = 10;
/// Bins for people to look at.
const SHOWN: usize = 20;
/// Smaller chances are said to be this one: no sum over rows knows them better.
const LEAST_CHANCE: f64 = 1e-15;

/// Measures everything and then decides on all at once.
pub fn measures(day: &Day<'_>, reference: &Reference, limits: &Thresholds) -> BTreeMap<String, Drift> {
    let mut found = BTreeMap::new();
    let days: Vec<&Record> = day.records.iter().filter(|it| answered(it)).collect();
    let known: Vec<&Record> = reference.rows.iter().collect();
    for (name, value) in LOOKS {
        let column = |rows: &[&Record]| {
            let looks = rows.iter().filter_map(|it| it.looks.as_ref());
            Column::of(looks.map(|it| value(it).into()))
        };
        found.insert(name.to_owned(), columns(&column(&known), &column(&days), limits));
    }
    found.insert("embedding".into(), embedding(&known, &days, limits));
    found.insert("classes".into(), classes(day.classes, &known, &days, limits));
    decide(&mut found, limits);
    found
}

/// What is measured of a picture itself.
const LOOKS: [(&str, fn(&Looks) -> f32); 6] = [
    ("brightness", |it| it.brightness),
    ("contrast", |it| it.contrast),
    ("sharpness", |it| it.sharpness),
    ("red", |it| it.colors[0]),
    ("green", |it| it.colors[1]),
    ("blue", |it| it.colors[2]),
];

/// The one place where a verdict is made: a change must be too large for chance and large enough to matter.
fn decide(found: &mut BTreeMap<String, Drift>, limits: &Thresholds) {
    let tested: Vec<_> = found.values_mut().filter(|it| it.tested.is_some()).collect();
    let chances: Vec<_> = tested.iter().filter_map(|it| Some(it.tested.as_ref()?.p)).collect();
    for (drift, adjusted) in tested.into_iter().zip(benjamini_hochberg(&chances)) {
        let Some(test) = &mut drift.tested else { continue };
        test.adjusted = adjusted;
        let matters = match test.test {
            Test::Ks => limits.distance,
            Test::ChiSquare => limits.change,
        };
        let changed = adjusted <= limits.chance && test.effect >= matters;
        drift.verdict = if changed { Verdict::Drifted } else { Verdict::Same };
    }
}

fn columns(reference: &Column, day: &Column, limits: &Thresholds) -> Drift {
    let (known, seen) = (reference.thinned(MOST), day.thinned(MOST));
    let tested = enough(reference.len(), day.len(), limits)
        .then(|| {
            let edges = Edges::of(reference, BINS)?;
            let found = ks(&known, &seen)?;
            let counts = (edges.count(reference), edges.count(day));
            shares(Test::Ks, found.statistic, found.statistic, found.p, (&counts.0, &counts.1))
        })
        .flatten();
    Drift {
        reference_rows: reference.len() as u64,
        day_rows: day.len() as u64,
        set_aside: reference.set_aside + day.set_aside,
        verdict: Verdict::None,
        tested,
        shift: None,
        shift_expected: None,
        reference_mean: reference.mean(),
        day_mean: day.mean(),
        histogram: histogram(reference, day).unwrap_or_default(),
    }
}

fn embedding(reference: &[&Record], day: &[&Record], limits: &Thresholds) -> Drift {
    let rows = |it: &[&Record]| -> u64 { it.iter().filter(|it| !it.features.is_empty()).count() as u64 };
    let offered = rows(reference) + rows(day);
    let features: [Vec<&[f32]>; 2] =
        [reference, day].map(|it| it.iter().map(|it| &it.features[..]).collect());
    let found = distances(&features[0], &features[1]);
    let drift = columns(&Column::of(found.reference), &Column::of(found.day), limits);
    Drift {
        shift: found.shift,
        shift_expected: found.shift_expected,
        // Rows of a foreign width and such without finite numbers never became a distance.
        set_aside: offered.saturating_sub(drift.reference_rows + drift.day_rows),
        ..drift
    }
}

fn classes(classes: &[String], reference: &[&Record], day: &[&Record], limits: &Thresholds) -> Drift {
    let count = |rows: &[&Record], class: &dyn Fn(&Record) -> Option<usize>| {
        let mut counts = vec![0; classes.len()];
        rows.iter().filter_map(|it| class(it)).for_each(|at| counts[at] += 1);
        counts
    };
    // Said against said: the label of a training picture is used only where the model was not asked.
    let known = count(reference, &|it| likeliest(it, classes.len()).or_else(|| said(it, classes)));
    let seen = count(day, &|it| said(it, classes));
    let totals = (known.iter().sum::<u64>(), seen.iter().sum::<u64>());
    let tested = enough(totals.0 as usize, totals.1 as usize, limits)
        .then(|| {
            let found = chi_square(&known, &seen)?;
            let change = largest_change(&known, &seen)?.1.abs();
            shares(Test::ChiSquare, found.statistic, change, found.p, (&known, &seen))
        })
        .flatten();
    Drift {
        reference_rows: totals.0,
        day_rows: totals.1,
        set_aside: (reference.len() + day.len()) as u64 - totals.0 - totals.1,
        verdict: Verdict::None,
        tested,
        shift: None,
        shift_expected: None,
        reference_mean: None,
        day_mean: None,
        histogram: Histogram { low: 0.0, high: classes.len() as f64, reference: known, day: seen },
    }
}

fn likeliest(record: &Record, classes: usize) -> Option<usize> {
    let usable = record.scores.len() == classes && record.scores.iter().all(|it| it.is_finite());
    let order = |one: &usize, two: &usize| record.scores[*one].total_cmp(&record.scores[*two]);
    // Of equals the first, as the head itself chooses.
    if usable { (0..classes).rev().max_by(order) } else { None }
}

fn enough(reference: usize, day: usize, limits: &Thresholds) -> bool {
    reference as u64 >= limits.reference_rows && day as u64 >= limits.day_rows
}

fn shares(
    test: Test,
    statistic: f64,
    effect: f64,
    p: f64,
    (reference, day): (&[u64], &[u64]),
) -> Option<Tested> {
    let bins = reference.iter().zip(day).filter(|&(one, two)| one + two > 0).count();
    let p = p.max(LEAST_CHANCE);
    Some(Tested {
        test,
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

/// Equal steps over both sides.
fn histogram(reference: &Column, day: &Column) -> Option<Histogram> {
    let end = |share: f64| [reference.quantile(share), day.quantile(share)].into_iter().flatten();
    let (low, high) = (end(0.0).reduce(f64::min)?, end(1.0).reduce(f64::max)?);
    let high = if high > low { high } else { low + 1.0 };
    let count = |column: &Column| {
        let mut counts = vec![0; SHOWN];
        for value in column.values() {
            counts[(((value - low) / (high - low) * SHOWN as f64) as usize).min(SHOWN - 1)] += 1;
        }
        counts
    };
    Some(Histogram { low, high, reference: count(reference), day: count(day) })
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these numbers are whole or as they were written")]
mod tests {
    use super::*;
    use crate::monitor::{
        Report,
        drawn::{Chance, USUAL, World, frames, reference, report},
    };

    fn drifted(report: &Report) -> Vec<&str> {
        let drifted = report.drift.iter().filter(|it| it.1.verdict == Verdict::Drifted);
        drifted.map(|it| it.0.as_str()).collect()
    }

    #[test]
    fn three_hundred_usual_days_are_quiet() {
        for rows in [60, 400] {
            let reference = reference(rows);
            for seed in 0..300 {
                let (records, _) = frames(USUAL, seed, 40 + seed as usize % 41);
                let report = report(&records, &reference);
                assert_eq!(drifted(&report), Vec::<&str>::new(), "seed {seed}, {rows} rows");
                assert!(report.drift.values().all(|it| it.verdict == Verdict::Same), "seed {seed}");
            }
        }
    }

    #[test]
    fn few_rows_of_many_features_are_quiet() {
        let wide = |seed: u64, count: usize| {
            let mut chance = Chance::new(seed);
            let mut records = frames(USUAL, seed, count).0;
            records.iter_mut().for_each(|it| it.features = (0..256).map(|_| chance.normal()).collect());
            records
        };
        let reference = Reference { rows: wide(1_000_003, 40), ..Reference::default() };
        for seed in 0..60 {
            let report = report(&wide(seed, 60), &reference);
            assert_eq!(report.drift["embedding"].verdict, Verdict::Same, "seed {seed}");
        }
    }

    #[test]
    fn each_large_change_is_seen_and_only_it() {
        let reference = reference(400);
        let worlds = [
            ("brightness", World { light: 0.25, ..USUAL }),
            ("sharpness", World { sharpness: 0.3, ..USUAL }),
            ("red", World { red: 0.36, ..USUAL }),
            ("embedding", World { strange: 3.0, ..USUAL }),
            ("classes", World { cats: 1.0, ..USUAL }),
        ];
        for (name, world) in worlds {
            for seed in 0..30 {
                let report = report(&frames(world, seed, 60).0, &reference);
                assert_eq!(drifted(&report), [name], "seed {seed}");
                assert_eq!(report.values()[&format!("drift.{name}.drifted")], 1.0);
            }
        }
    }

    #[test]
    fn a_small_change_of_many_rows_does_not_matter() {
        let reference = reference(3000);
        let world = World { light: 0.46, ..USUAL };
        let report = report(&frames(world, 3, 6000).0, &reference);
        let test = report.drift["brightness"].tested.as_ref().unwrap();
        assert!(test.adjusted < 0.0001 && test.effect < 0.2, "{test:?}");
        assert_eq!(drifted(&report), Vec::<&str>::new());
    }

    #[test]
    fn too_few_rows_give_no_verdict() {
        let usual = frames(USUAL, 1, 60).0;
        for (records, rows) in [(&usual[..0], 400), (&usual[..1], 400), (&usual[..9], 400), (&usual[..], 29)]
        {
            let report = report(records, &reference(rows));
            assert!(report.drift.values().all(|it| it.verdict == Verdict::None && it.tested.is_none()));
            assert!(!report.values().keys().any(|it| it.ends_with("drifted") || it.contains(".ks")));
        }
    }

    #[test]
    fn what_is_no_number_is_set_aside() {
        let mut records = frames(USUAL, 1, 60).0;
        records[3].looks.as_mut().unwrap().brightness = f32::NAN;
        records[4].features[0] = f32::INFINITY;
        let report = report(&records, &reference(100));
        let rows = |name: &str| (report.drift[name].day_rows, report.drift[name].set_aside);
        assert_eq!((rows("brightness"), rows("contrast"), rows("embedding")), ((59, 1), (60, 0), (59, 1)));
    }

    #[test]
    fn training_pictures_count_as_what_the_model_says_of_them() {
        let mut known = reference(40);
        for record in &mut known.rows {
            record.class = "cat".into();
            record.scores = vec![0.5, 0.5];
        }
        known.rows[0].scores = vec![0.2, 0.8];
        known.rows[1].scores = Vec::new();
        let report = report(&frames(USUAL, 1, 20).0, &known);
        assert_eq!(report.drift["classes"].histogram.reference, [39, 1]);
    }

    #[test]
    fn a_constant_column_is_the_same_until_it_moves() {
        let column = |value: f64| Column::of([value; 50]);
        let limits = Thresholds::default();
        let test = |day: f64| columns(&column(1.0), &column(day), &limits).tested.unwrap();
        assert_eq!((test(1.0).statistic, test(1.0).p), (0.0, 1.0));
        assert!(test(1.5).statistic == 1.0 && test(1.5).p < 1e-10 && test(0.5).psi > 1.0);
    }
}
