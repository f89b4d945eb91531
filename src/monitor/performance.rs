//! Accuracy of a day's predictions against its labels, and bias: error rates by class and by group, with the
//! largest gaps between them.

use std::collections::BTreeMap;

use crate::{
    model::evaluate::ConfusionMatrix,
    monitor::{
        Bias, ClassMetrics, ConfidenceInterval, Day, ErrorRate, Performance, RateGap, Thresholds,
        measure::{is_answered, labeled_answers, part_of_day},
        statistics::{Interval, compare_rates, wilson_interval},
    },
    traffic::Record,
};

/// Returns the index of the predicted class; `None` if it is not a class of the model.
pub fn predicted_class(record: &Record, classes: &[String]) -> Option<usize> {
    classes.iter().position(|class| *class == record.class)
}

/// Compares the day's predictions with the known labels; `None` without any labeled answer.
pub fn performance(day: &Day<'_>) -> Option<Performance> {
    let rows = labeled_answers(day);
    let mut counts = vec![vec![0; day.classes.len()]; day.classes.len()];
    rows.iter().for_each(|&(_, label, predicted)| counts[label][predicted] += 1);
    let correct = rows.iter().filter(|(_, label, predicted)| label == predicted).count() as u64;
    let accuracy_interval = wilson_interval(correct, rows.len() as u64)?.into();
    let confusion = ConfusionMatrix { classes: day.classes.to_vec(), counts, loss: 0.0 };
    let has_unknown_label =
        |record: &&Record| day.labels.get(record).is_some_and(|label| !day.classes.contains(label));
    Some(Performance {
        labeled: rows.len() as u64,
        unknown_labels: day.records.iter().filter(|it| is_answered(it)).filter(has_unknown_label).count()
            as u64,
        accuracy: confusion.accuracy(),
        accuracy_interval,
        classes: day.classes.iter().cloned().zip((0..).map(|index| class(&confusion, index))).collect(),
        average: average(&confusion),
        confusion: confusion.counts,
    })
}

fn class(confusion: &ConfusionMatrix, index: usize) -> ClassMetrics {
    let (precision, recall, f1, labeled) = confusion.class_metrics(index);
    let predicted = confusion.counts.iter().map(|row| row[index]).sum::<u64>();
    ClassMetrics {
        labeled,
        precision: (predicted > 0).then_some(precision),
        recall: (labeled > 0).then_some(recall),
        f1: (predicted + labeled > 0).then_some(f1),
    }
}

/// Returns the unweighted mean over the classes that were labeled or predicted: a day without birds has no
/// information about birds.
fn average(confusion: &ConfusionMatrix) -> ClassMetrics {
    let present: Vec<_> = (0..confusion.classes.len())
        .filter(|&index| class(confusion, index).f1.is_some())
        .map(|index| confusion.class_metrics(index))
        .collect();
    let mean = |value: &dyn Fn(&(f64, f64, f64, u64)) -> f64| {
        (!present.is_empty()).then(|| present.iter().map(value).sum::<f64>() / present.len() as f64)
    };
    ClassMetrics {
        labeled: present.iter().map(|(.., labeled)| labeled).sum(),
        precision: mean(&|(precision, ..)| *precision),
        recall: mean(&|(_, recall, ..)| *recall),
        f1: mean(&|(_, _, f1, _)| *f1),
    }
}

/// Measures the error rates of classes and of groups; `None` without any labeled answer.
pub fn bias(day: &Day<'_>, thresholds: &Thresholds) -> Option<Bias> {
    let rows = labeled_answers(day);
    let (mut classes, mut groups) = (BTreeMap::new(), BTreeMap::new());
    for (record, label, predicted) in &rows {
        let group = if day.groups.is_empty() {
            Some(part_of_day(record.captured).to_owned())
        } else {
            day.groups.get(&record.id).cloned()
        };
        let count = |counts: &mut BTreeMap<String, (u64, u64)>, name: String| {
            let entry = counts.entry(name).or_default();
            *entry = (entry.0 + u64::from(label != predicted), entry.1 + 1);
        };
        count(&mut classes, day.classes[*label].clone());
        group.into_iter().for_each(|name| count(&mut groups, name));
    }
    let rates = |counts: BTreeMap<String, (u64, u64)>| -> BTreeMap<String, ErrorRate> {
        counts.into_iter().filter_map(|(name, pair)| Some((name, error_rate(pair, thresholds)?))).collect()
    };
    let (classes, groups) = (rates(classes), rates(groups));
    let bias = Bias { class_gap: gap(&classes), group_gap: gap(&groups), classes, groups };
    (!rows.is_empty()).then_some(bias)
}

fn error_rate((wrong, labeled): (u64, u64), thresholds: &Thresholds) -> Option<ErrorRate> {
    let interval = wilson_interval(wrong, labeled)?.into();
    let rate = wrong as f64 / labeled as f64;
    Some(ErrorRate { wrong, labeled, rate, interval, comparable: labeled >= thresholds.group_rows })
}

/// Compares the worst with the best of those that have enough labels. On ties the first is the worst and the
/// last the best.
fn gap(rates: &BTreeMap<String, ErrorRate>) -> Option<RateGap> {
    let comparable = || rates.iter().filter(|(_, rate)| rate.comparable);
    let worst = comparable().reduce(|one, two| if two.1.rate > one.1.rate { two } else { one })?;
    let best = comparable().reduce(|one, two| if two.1.rate <= one.1.rate { two } else { one })?;
    if comparable().count() < 2 {
        return None;
    }
    let comparison = compare_rates(worst.1.wrong, worst.1.labeled, best.1.wrong, best.1.labeled)?;
    Some(RateGap {
        worst: worst.0.clone(),
        best: best.0.clone(),
        difference: comparison.difference,
        interval: comparison.interval.into(),
        p: comparison.p,
    })
}

impl From<Interval> for ConfidenceInterval {
    fn from(interval: Interval) -> Self {
        Self { low: interval.low, high: interval.high }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these numbers are integers or read back exactly")]
mod tests {
    use super::*;
    use crate::{
        monitor::{
            Reference,
            synthetic::{Scenario, TYPICAL, frames, labeled, reference},
        },
        traffic::Labels,
    };

    #[test]
    fn averages_match_scikit_learn() {
        let all: serde_json::Value =
            serde_json::from_str(include_str!("../../fixtures/statistics.json")).unwrap();
        for case in all["metrics"].as_array().unwrap() {
            let counts: Vec<Vec<u64>> = serde_json::from_value(case["confusion"].clone()).unwrap();
            let classes = serde_json::from_value(case["classes"].clone()).unwrap();
            let found = average(&ConfusionMatrix { classes, counts, loss: 0.0 });
            for (value, expected) in [found.precision, found.recall, found.f1].iter().zip(0..) {
                let expected = case["macro"][expected].as_f64().unwrap();
                assert!((value.unwrap() - expected).abs() < 1e-12, "{value:?} {expected}");
            }
        }
    }

    #[test]
    fn labels_give_the_accuracy() {
        let (records, mut labels) = frames(Scenario { error_rate: 0.2, ..TYPICAL }, 3, 60);
        labels.insert(&records[0], "bird".into());
        labels.remove(&records[1]);
        let report = labeled(&records, &labels, &reference(60));
        let found = report.performance.as_ref().unwrap();
        assert_eq!((found.labeled, found.unknown_labels), (58, 1));
        assert!(
            found.accuracy_interval.low < found.accuracy && found.accuracy < found.accuracy_interval.high
        );
        assert_eq!(report.values()["performance.accuracy"], found.accuracy);
        assert!(report.performance_by_version.is_empty());
    }

    #[test]
    fn without_labels_there_is_no_accuracy() {
        let report = labeled(&frames(TYPICAL, 3, 60).0, &Labels::default(), &reference(60));
        assert_eq!((&report.performance, &report.bias), (&None, &None));
        let names: Vec<_> = report.values().into_keys().collect();
        let labeled = |name: &String| name.starts_with("performance") || name.starts_with("bias");
        assert!(!names.iter().any(labeled), "{names:?}");
    }

    #[test]
    fn an_unlabeled_class_has_no_recall() {
        let (mut records, mut labels) = frames(TYPICAL, 3, 20);
        for record in &mut records {
            record.class = "cat".into();
            labels.insert(record, "cat".into());
        }
        let values = labeled(&records, &labels, &Reference::default()).values();
        assert_eq!(values["performance.recall.cat"], 1.0);
        assert_eq!(values["performance.macro.f1"], 1.0);
        assert!(!values.contains_key("performance.recall.dog") && !values.contains_key("performance.f1.dog"));
    }

    #[test]
    fn each_version_has_its_own_accuracy() {
        let (mut records, labels) = frames(Scenario { error_rate: 0.0, ..TYPICAL }, 3, 40);
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
    fn the_worst_group_is_named_if_it_has_enough_labels() {
        let (mut records, labels) = frames(Scenario { error_rate: 0.0, ..TYPICAL }, 3, 70);
        for record in records.iter_mut().filter(|record| part_of_day(record.captured) == "evening") {
            record.class = if record.class == "cat" { "dog".into() } else { "cat".into() };
        }
        let report = labeled(&records, &labels, &reference(60));
        let gap = report.bias.as_ref().unwrap().group_gap.as_ref().unwrap();
        assert_eq!((gap.worst.as_str(), gap.difference), ("evening", 1.0));
        assert_eq!(report.values()["bias.difference"], 1.0);
        let small = labeled(&records[..9], &labels, &reference(60));
        let values = small.values();
        assert!(small.bias.unwrap().groups.values().all(|rate| !rate.comparable));
        assert!(!values.contains_key("bias.difference"));
    }
}
