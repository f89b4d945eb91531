//! What was said against what was, and on whom it errs more.

use std::collections::BTreeMap;

use crate::{
    model::evaluate::Confusion,
    monitor::{
        Bias, Class, Day, Gap, Performance, Rate, Span, Thresholds,
        measure::{answered, judged, part_of_day},
        statistics::{Interval, difference, wilson},
    },
    traffic::Record,
};

/// Place of the class that was said.
pub fn said(record: &Record, classes: &[String]) -> Option<usize> {
    classes.iter().position(|it| *it == record.class)
}

/// Compares the day's answers with the labels that are known.
pub fn performance(day: &Day<'_>) -> Option<Performance> {
    let rows = judged(day);
    let mut counts = vec![vec![0; day.classes.len()]; day.classes.len()];
    rows.iter().for_each(|&(_, label, said)| counts[label][said] += 1);
    let right = rows.iter().filter(|it| it.1 == it.2).count() as u64;
    let accuracy_span = wilson(right, rows.len() as u64)?.into();
    let found = Confusion { classes: day.classes.to_vec(), counts, loss: 0.0 };
    let foreign = |it: &&Record| day.labels.of(it).is_some_and(|it| !day.classes.contains(it));
    Some(Performance {
        labeled: rows.len() as u64,
        foreign: day.records.iter().filter(|it| answered(it)).filter(foreign).count() as u64,
        accuracy: found.accuracy(),
        accuracy_span,
        classes: day.classes.iter().cloned().zip((0..).map(|at| class(&found, at))).collect(),
        average: average(&found),
        confusion: found.counts,
    })
}

fn class(found: &Confusion, at: usize) -> Class {
    let (precision, recall, f1, labeled) = found.class(at);
    let said = found.counts.iter().map(|it| it[at]).sum::<u64>();
    Class {
        labeled,
        precision: (said > 0).then_some(precision),
        recall: (labeled > 0).then_some(recall),
        f1: (said + labeled > 0).then_some(f1),
    }
}

/// Even over the classes that were there or were said: a day without birds says nothing about birds.
fn average(found: &Confusion) -> Class {
    let there: Vec<_> = (0..found.classes.len())
        .filter(|&at| class(found, at).f1.is_some())
        .map(|at| found.class(at))
        .collect();
    let mean = |value: &dyn Fn(&(f64, f64, f64, u64)) -> f64| {
        (!there.is_empty()).then(|| there.iter().map(value).sum::<f64>() / there.len() as f64)
    };
    Class {
        labeled: there.iter().map(|it| it.3).sum(),
        precision: mean(&|it| it.0),
        recall: mean(&|it| it.1),
        f1: mean(&|it| it.2),
    }
}

/// Error rates of classes and of groups.
pub fn bias(day: &Day<'_>, thresholds: &Thresholds) -> Option<Bias> {
    let rows = judged(day);
    let (mut classes, mut groups) = (BTreeMap::new(), BTreeMap::new());
    for (record, label, said) in &rows {
        let group = if day.groups.is_empty() {
            Some(part_of_day(record.captured).to_owned())
        } else {
            day.groups.get(&record.id).cloned()
        };
        let count = |counts: &mut BTreeMap<String, (u64, u64)>, name: String| {
            let entry = counts.entry(name).or_default();
            *entry = (entry.0 + u64::from(label != said), entry.1 + 1);
        };
        count(&mut classes, day.classes[*label].clone());
        group.into_iter().for_each(|it| count(&mut groups, it));
    }
    let rates = |counts: BTreeMap<String, (u64, u64)>| -> BTreeMap<String, Rate> {
        counts.into_iter().filter_map(|(name, it)| Some((name, rate(it, thresholds)?))).collect()
    };
    let (classes, groups) = (rates(classes), rates(groups));
    let found = Bias { class_gap: gap(&classes), group_gap: gap(&groups), classes, groups };
    (!rows.is_empty()).then_some(found)
}

fn rate((wrong, labeled): (u64, u64), thresholds: &Thresholds) -> Option<Rate> {
    let span = wilson(wrong, labeled)?.into();
    let rate = wrong as f64 / labeled as f64;
    Some(Rate { wrong, labeled, rate, span, enough: labeled >= thresholds.group_rows })
}

/// The worst against the best of those that have enough labels; of equals the first and the last.
fn gap(rates: &BTreeMap<String, Rate>) -> Option<Gap> {
    let enough = || rates.iter().filter(|it| it.1.enough);
    let worst = enough().reduce(|one, two| if two.1.rate > one.1.rate { two } else { one })?;
    let best = enough().reduce(|one, two| if two.1.rate <= one.1.rate { two } else { one })?;
    if enough().count() < 2 {
        return None;
    }
    let found = difference(worst.1.wrong, worst.1.labeled, best.1.wrong, best.1.labeled)?;
    Some(Gap {
        worst: worst.0.clone(),
        best: best.0.clone(),
        difference: found.difference,
        span: found.interval.into(),
        p: found.p,
    })
}

impl From<Interval> for Span {
    fn from(it: Interval) -> Self {
        Self { low: it.low, high: it.high }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these numbers are whole or as they were written")]
mod tests {
    use super::*;
    use crate::{
        monitor::{
            Reference,
            drawn::{USUAL, World, frames, labeled, reference},
        },
        traffic::Labels,
    };

    #[test]
    fn averages_are_as_scikit_learn_has_them() {
        let all: serde_json::Value =
            serde_json::from_str(include_str!("../../fixtures/statistics.json")).unwrap();
        for case in all["metrics"].as_array().unwrap() {
            let counts: Vec<Vec<u64>> = serde_json::from_value(case["confusion"].clone()).unwrap();
            let classes = serde_json::from_value(case["classes"].clone()).unwrap();
            let found = average(&Confusion { classes, counts, loss: 0.0 });
            for (value, expected) in [found.precision, found.recall, found.f1].iter().zip(0..) {
                let expected = case["macro"][expected].as_f64().unwrap();
                assert!((value.unwrap() - expected).abs() < 1e-12, "{value:?} {expected}");
            }
        }
    }

    #[test]
    fn labels_tell_how_good_it_was() {
        let (records, mut labels) = frames(World { wrong: 0.2, ..USUAL }, 3, 60);
        labels.insert(&records[0], "bird".into());
        labels.forget(&records[1]);
        let report = labeled(&records, &labels, &reference(60));
        let found = report.performance.as_ref().unwrap();
        assert_eq!((found.labeled, found.foreign), (58, 1));
        assert!(found.accuracy_span.low < found.accuracy && found.accuracy < found.accuracy_span.high);
        assert_eq!(report.values()["performance.accuracy"], found.accuracy);
        assert!(report.performance_by_version.is_empty());
    }

    #[test]
    fn without_labels_nothing_is_claimed() {
        let report = labeled(&frames(USUAL, 3, 60).0, &Labels::default(), &reference(60));
        assert_eq!((&report.performance, &report.bias), (&None, &None));
        let names: Vec<_> = report.values().into_keys().collect();
        assert!(!names.iter().any(|it| it.starts_with("performance") || it.starts_with("bias")), "{names:?}");
    }

    #[test]
    fn what_never_was_has_no_recall_and_what_was_never_said_no_precision() {
        let (mut records, mut labels) = frames(USUAL, 3, 20);
        records.iter_mut().for_each(|it| it.class = "cat".into());
        records.iter().for_each(|it| drop(labels.insert(it, "cat".into())));
        let values = labeled(&records, &labels, &Reference::default()).values();
        assert_eq!(values["performance.recall.cat"], 1.0);
        assert_eq!(values["performance.macro.f1"], 1.0);
        assert!(!values.contains_key("performance.recall.dog") && !values.contains_key("performance.f1.dog"));
    }

    #[test]
    fn each_version_is_judged_by_itself() {
        let (mut records, labels) = frames(World { wrong: 0.0, ..USUAL }, 3, 40);
        for record in &mut records[30..] {
            record.version = "pets@v0.2.0".into();
            record.class = if record.class == "cat" { "dog".into() } else { "cat".into() };
        }
        let report = labeled(&records, &labels, &reference(60));
        let accuracy: Vec<_> = report.performance_by_version.values().map(|it| it.accuracy).collect();
        assert_eq!((accuracy, report.performance.unwrap().accuracy), (vec![1.0, 0.0], 0.75));
        assert_eq!(report.versions["pets@v0.2.0"], 10);
    }

    #[test]
    fn a_group_that_fares_worse_is_named_if_it_is_large_enough() {
        let (mut records, labels) = frames(World { wrong: 0.0, ..USUAL }, 3, 70);
        for record in records.iter_mut().filter(|it| part_of_day(it.captured) == "evening") {
            record.class = if record.class == "cat" { "dog".into() } else { "cat".into() };
        }
        let report = labeled(&records, &labels, &reference(60));
        let gap = report.bias.as_ref().unwrap().group_gap.as_ref().unwrap();
        assert_eq!((gap.worst.as_str(), gap.difference), ("evening", 1.0));
        assert_eq!(report.values()["bias.difference"], 1.0);
        let few = labeled(&records[..9], &labels, &reference(60));
        let values = few.values();
        assert!(few.bias.unwrap().groups.values().all(|it| !it.enough));
        assert!(!values.contains_key("bias.difference"));
    }
}
