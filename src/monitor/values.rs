//! A report as named numbers, for rules to be written against.

use std::collections::BTreeMap;

use crate::monitor::{Class, Drift, Integrity, Performance, Report, Test, Verdict};

/// Names with their numbers; what is not known is not put in.
#[derive(Default)]
struct Values(BTreeMap<String, f64>);

impl Values {
    fn put(&mut self, name: impl Into<String>, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into().filter(|it| it.is_finite()) {
            self.0.insert(name.into(), value);
        }
    }

    fn count(&mut self, name: impl Into<String>, value: u64) {
        self.put(name, value as f64);
    }

    fn share(&mut self, name: &str, part: u64, whole: u64) {
        self.put(name, (whole > 0).then(|| part as f64 / whole as f64));
    }
}

impl Report {
    /// All numbers of the report that a rule may name: `integrity.dark_share`, `drift.brightness.ks`,
    /// `performance.recall.cat`. What was not measured is absent.
    pub fn values(&self) -> BTreeMap<String, f64> {
        let mut values = Values::default();
        integrity(&mut values, &self.integrity);
        for (name, it) in &self.drift {
            drift(&mut values, &format!("drift.{name}"), it);
        }
        let decided = || self.drift.values().filter(|it| it.verdict != Verdict::None);
        if decided().next().is_some() {
            let drifted = decided().filter(|it| it.verdict == Verdict::Drifted).count();
            values.count("drift.drifted", drifted as u64);
        }
        if let Some(it) = &self.performance {
            performance(&mut values, it);
        }
        self.bias_values(&mut values);
        self.telemetry_values(&mut values);
        values.0
    }

    fn bias_values(&self, values: &mut Values) {
        let Some(bias) = &self.bias else { return };
        let gaps = [("class", &bias.class_gap), ("group", &bias.group_gap)];
        for (name, gap) in gaps {
            values.put(format!("bias.{name}_difference"), gap.as_ref().map(|it| it.difference));
        }
        let largest = gaps.iter().filter_map(|it| Some(it.1.as_ref()?.difference)).reduce(f64::max);
        values.put("bias.difference", largest);
        for (kind, rates) in [("class", &bias.classes), ("group", &bias.groups)] {
            for (name, it) in rates.iter().filter(|it| it.1.enough) {
                values.put(format!("bias.{kind}.{name}.error_rate"), it.rate);
            }
        }
    }

    fn telemetry_values(&self, values: &mut Values) {
        if let Some(it) = &self.latency {
            let all = [("p50", it.p50), ("p95", it.p95), ("p99", it.p99), ("max", it.max)];
            all.iter().for_each(|(name, it)| values.put(format!("telemetry.latency_{name}"), *it));
        }
        let Some(machine) = &self.machine else { return };
        let means = [
            ("cpu", machine.cpu),
            ("memory", machine.memory),
            ("resident", machine.resident),
            ("disk", machine.disk),
            ("temperature", machine.temperature),
        ];
        for (name, it) in means {
            values.put(format!("telemetry.{name}_mean"), it.map(|it| it.mean));
            values.put(format!("telemetry.{name}_max"), it.map(|it| it.max));
        }
        values.count("telemetry.answers", machine.answers);
        values.count("telemetry.errors", machine.errors);
        values.count("telemetry.dropped", machine.dropped);
        values.count("telemetry.largest_queue", machine.largest_queue);
    }
}

fn integrity(values: &mut Values, it: &Integrity) {
    let counts = [
        ("frames", it.frames),
        ("frozen_longest_run", it.longest_run),
        ("missing_hours", it.missing_hours.len() as u64),
        ("dropped", it.dropped),
    ];
    counts.iter().for_each(|(name, count)| values.count(format!("integrity.{name}"), *count));
    let shares = [
        ("damaged", Some(it.damaged), it.frames),
        ("frozen", Some(it.frozen), it.frames),
        ("duplicate", Some(it.duplicates), it.frames),
        ("near_duplicate", Some(it.near_duplicates), it.frames),
        ("error", Some(it.errors), it.frames),
        ("dark", Some(it.dark), it.seen),
        ("overexposed", Some(it.overexposed), it.seen),
        ("blurred", it.blurred, it.seen),
    ];
    for (name, part, whole) in shares {
        if let Some(part) = part {
            values.count(format!("integrity.{name}"), part);
            values.share(&format!("integrity.{name}_share"), part, whole);
        }
    }
}

fn drift(values: &mut Values, name: &str, it: &Drift) {
    values.count(format!("{name}.rows"), it.day_rows);
    values.put(format!("{name}.mean"), it.day_mean);
    values.put(format!("{name}.shift"), it.shift);
    let Some(test) = &it.tested else { return };
    match test.test {
        Test::Ks => values.put(format!("{name}.ks"), test.statistic),
        Test::ChiSquare => {
            values.put(format!("{name}.chi_square"), test.statistic);
            values.put(format!("{name}.change"), test.effect);
        }
    }
    values.put(format!("{name}.p"), test.p);
    values.put(format!("{name}.p_adjusted"), test.adjusted);
    values.put(format!("{name}.psi"), test.psi);
    values.put(format!("{name}.psi_expected"), test.psi_expected);
    values.put(format!("{name}.js_distance_natural"), test.js_distance_natural);
    values.put(format!("{name}.js_distance_base2"), test.js_distance_base2);
    let drifted = match it.verdict {
        Verdict::Drifted => Some(1.0),
        Verdict::Same => Some(0.0),
        Verdict::None => None,
    };
    values.put(format!("{name}.drifted"), drifted);
}

fn performance(values: &mut Values, it: &Performance) {
    values.count("performance.labeled", it.labeled);
    values.put("performance.accuracy", it.accuracy);
    values.put("performance.accuracy_low", it.accuracy_span.low);
    values.put("performance.accuracy_high", it.accuracy_span.high);
    for (measure, average) in measures(&it.average) {
        values.put(format!("performance.macro.{measure}"), average);
    }
    for (name, class) in &it.classes {
        measures(class).iter().for_each(|(it, value)| values.put(format!("performance.{it}.{name}"), *value));
    }
}

fn measures(it: &Class) -> [(&'static str, Option<f64>); 3] {
    [("precision", it.precision), ("recall", it.recall), ("f1", it.f1)]
}
