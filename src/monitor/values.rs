//! Named numbers of a report, such as `integrity.dark_share`, that the alert rules of a policy refer to.

use std::collections::BTreeMap;

use crate::monitor::{
    ClassMetrics, Drift, Integrity, Performance, Report, TestKind, Verdict, findings::DRIFT_MEASURES,
};

/// Numbers by name; unknown values are not inserted.
#[derive(Default)]
struct Values(BTreeMap<String, f64>);

impl Values {
    fn put(&mut self, name: impl Into<String>, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into().filter(|number| number.is_finite()) {
            self.0.insert(name.into(), value);
        }
    }

    fn count(&mut self, name: impl Into<String>, value: u64) {
        self.put(name, value as f64);
    }

    fn share(&mut self, name: &str, part: u64, total: u64) {
        self.put(name, (total > 0).then(|| part as f64 / total as f64));
    }
}

impl Report {
    /// Returns all numbers of the report that a rule can name: `integrity.dark_share`, `drift.brightness.ks`,
    /// `performance.recall.cat`. Values that were not measured are absent.
    pub fn values(&self) -> BTreeMap<String, f64> {
        let mut values = Values::default();
        integrity(&mut values, &self.integrity);
        for (name, measure) in &self.drift {
            drift(&mut values, &format!("drift.{name}"), measure);
        }
        let decided = || self.drift.values().filter(|drift| drift.verdict != Verdict::Undecided);
        if decided().next().is_some() {
            let drifted = decided().filter(|drift| drift.verdict == Verdict::Drifted).count();
            values.count("drift.drifted", drifted as u64);
        }
        if let Some(result) = &self.performance {
            performance(&mut values, result);
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
        let largest = gaps.iter().filter_map(|(_, gap)| Some(gap.as_ref()?.difference)).reduce(f64::max);
        values.put("bias.difference", largest);
        for (kind, rates) in [("class", &bias.classes), ("group", &bias.groups)] {
            for (name, rate) in rates.iter().filter(|(_, rate)| rate.comparable) {
                values.put(format!("bias.{kind}.{name}.error_rate"), rate.rate);
            }
        }
    }

    fn telemetry_values(&self, values: &mut Values) {
        if let Some(latency) = &self.latency {
            let quantiles =
                [("p50", latency.p50), ("p95", latency.p95), ("p99", latency.p99), ("max", latency.max)];
            for (name, time) in quantiles {
                values.put(format!("telemetry.latency_{name}"), time);
            }
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

/// Returns true if a report on these classes can contain a number of this name. On a given day it may be
/// absent.
pub fn is_value(name: &str, classes: &[String]) -> bool {
    let Some((group, rest)) = name.split_once('.') else { return false };
    let class = |name: &str| classes.iter().any(|known| known == name);
    match group {
        "integrity" => {
            let shares = ["damaged", "frozen", "duplicate", "near_duplicate", "error"];
            let image_shares = ["dark", "overexposed", "blurred"];
            let counted = rest.strip_suffix("_share").unwrap_or(rest);
            ["frames", "frozen_longest_run", "missing_hours", "dropped"].contains(&rest)
                || shares.iter().chain(&image_shares).any(|name| *name == counted)
        }
        "drift" => {
            rest == "drifted"
                || rest.split_once('.').is_some_and(|(measure, key)| {
                    DRIFT_MEASURES.iter().any(|(name, _)| *name == measure) && DRIFT_VALUES.contains(&key)
                })
        }
        "performance" => {
            let measure = |name: &str| ["precision", "recall", "f1"].contains(&name);
            ["labeled", "accuracy", "accuracy_low", "accuracy_high"].contains(&rest)
                || rest.strip_prefix("macro.").is_some_and(measure)
                || rest.split_once('.').is_some_and(|(name, of)| measure(name) && class(of))
        }
        "bias" => {
            let rate = |kind: &str| rest.strip_prefix(kind)?.strip_suffix(".error_rate");
            ["difference", "class_difference", "group_difference"].contains(&rest)
                || rate("class.").is_some_and(class)
                || rate("group.").is_some()
        }
        "telemetry" => {
            let latency = |name: &str| ["p50", "p95", "p99", "max"].contains(&name);
            let mean = |(name, kind): (&str, &str)| {
                MACHINE_VALUES.contains(&name) && ["mean", "max"].contains(&kind)
            };
            ["answers", "errors", "dropped", "largest_queue"].contains(&rest)
                || rest.strip_prefix("latency_").is_some_and(latency)
                || rest.rsplit_once('_').is_some_and(mean)
        }
        _ => false,
    }
}

/// Numbers that each drift measure can have.
const DRIFT_VALUES: [&str; 13] = [
    "rows",
    "mean",
    "shift",
    "ks",
    "chi_square",
    "change",
    "p",
    "p_adjusted",
    "psi",
    "psi_expected",
    "js_distance_natural",
    "js_distance_base2",
    "drifted",
];

/// Machine measures, each with a mean and a maximum.
const MACHINE_VALUES: [&str; 5] = ["cpu", "memory", "resident", "disk", "temperature"];

fn integrity(values: &mut Values, integrity: &Integrity) {
    let Integrity { frames, decoded, .. } = *integrity;
    let counts = [
        ("frames", frames),
        ("frozen_longest_run", integrity.longest_run),
        ("missing_hours", integrity.missing_hours.len() as u64),
    ];
    values.put("integrity.dropped", integrity.dropped.map(|count| count as f64));
    counts.iter().for_each(|(name, count)| values.count(format!("integrity.{name}"), *count));
    let shares = [
        ("damaged", Some(integrity.damaged), frames),
        ("frozen", Some(integrity.frozen), frames),
        ("duplicate", Some(integrity.duplicates), frames),
        ("near_duplicate", Some(integrity.near_duplicates), frames),
        ("error", Some(integrity.errors), frames),
        ("dark", Some(integrity.dark), decoded),
        ("overexposed", Some(integrity.overexposed), decoded),
        ("blurred", integrity.blurred, decoded),
    ];
    for (name, part, total) in shares {
        if let Some(part) = part {
            values.count(format!("integrity.{name}"), part);
            values.share(&format!("integrity.{name}_share"), part, total);
        }
    }
}

fn drift(values: &mut Values, name: &str, drift: &Drift) {
    values.count(format!("{name}.rows"), drift.day_rows);
    values.put(format!("{name}.mean"), drift.day_mean);
    values.put(format!("{name}.shift"), drift.shift);
    let Some(test) = &drift.result else { return };
    match test.kind {
        TestKind::Ks => values.put(format!("{name}.ks"), test.statistic),
        TestKind::ChiSquare => {
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
    let drifted = match drift.verdict {
        Verdict::Drifted => Some(1.0),
        Verdict::Same => Some(0.0),
        Verdict::Undecided => None,
    };
    values.put(format!("{name}.drifted"), drifted);
}

fn performance(values: &mut Values, performance: &Performance) {
    values.count("performance.labeled", performance.labeled);
    values.put("performance.accuracy", performance.accuracy);
    values.put("performance.accuracy_low", performance.accuracy_interval.low);
    values.put("performance.accuracy_high", performance.accuracy_interval.high);
    for (measure, average) in measures(&performance.average) {
        values.put(format!("performance.macro.{measure}"), average);
    }
    for (name, class) in &performance.classes {
        for (measure, value) in measures(class) {
            values.put(format!("performance.{measure}.{name}"), value);
        }
    }
}

fn measures(class: &ClassMetrics) -> [(&'static str, Option<f64>); 3] {
    [("precision", class.precision), ("recall", class.recall), ("f1", class.f1)]
}

#[cfg(test)]
mod tests {
    use crate::monitor::{
        is_value,
        synthetic::{TYPICAL, frames, labeled, reference},
    };
    use crate::traffic::Labels;

    const NAMES: &str = "\
            bias.class.cat.error_rate bias.class.dog.error_rate bias.class_difference bias.difference \
            bias.group.afternoon.error_rate bias.group.morning.error_rate bias.group_difference \
            drift.brightness.drifted drift.brightness.js_distance_base2 \
            drift.brightness.js_distance_natural drift.brightness.ks drift.brightness.mean \
            drift.brightness.p drift.brightness.p_adjusted drift.brightness.psi \
            drift.brightness.psi_expected drift.brightness.rows drift.classes.change \
            drift.classes.chi_square drift.classes.drifted drift.classes.js_distance_base2 \
            drift.classes.js_distance_natural drift.classes.p drift.classes.p_adjusted drift.classes.psi \
            drift.classes.psi_expected drift.classes.rows drift.drifted drift.embedding.drifted \
            drift.embedding.js_distance_base2 drift.embedding.js_distance_natural drift.embedding.ks \
            drift.embedding.mean drift.embedding.p drift.embedding.p_adjusted drift.embedding.psi \
            drift.embedding.psi_expected drift.embedding.rows drift.embedding.shift integrity.blurred \
            integrity.blurred_share integrity.damaged integrity.damaged_share integrity.dark \
            integrity.dark_share integrity.dropped integrity.duplicate integrity.duplicate_share \
            integrity.error integrity.error_share integrity.frames integrity.frozen \
            integrity.frozen_longest_run integrity.frozen_share integrity.missing_hours \
            integrity.near_duplicate integrity.near_duplicate_share integrity.overexposed \
            integrity.overexposed_share performance.accuracy performance.accuracy_high \
            performance.accuracy_low performance.f1.cat performance.f1.dog performance.labeled \
            performance.macro.f1 performance.macro.precision performance.macro.recall \
            performance.precision.cat performance.precision.dog performance.recall.cat \
            performance.recall.dog telemetry.answers telemetry.cpu_max telemetry.cpu_mean \
            telemetry.disk_max telemetry.disk_mean telemetry.dropped telemetry.errors \
            telemetry.largest_queue telemetry.latency_max telemetry.latency_p50 telemetry.latency_p95 \
            telemetry.latency_p99 telemetry.memory_max telemetry.memory_mean telemetry.resident_max \
            telemetry.resident_mean telemetry.temperature_max telemetry.temperature_mean";

    #[test]
    fn the_names_that_rules_use_do_not_change() {
        let (records, labels) = frames(TYPICAL, 1, 60);
        let values = labeled(&records, &labels, &reference(400)).values();
        let like_brightness = ["red", "green", "blue", "contrast", "sharpness"];
        let other =
            |key: &&str| !like_brightness.iter().any(|name| key.starts_with(&format!("drift.{name}.")));
        let names: Vec<_> = values.keys().map(String::as_str).filter(other).collect();
        assert_eq!(names.join(" "), NAMES);
        let classes = crate::monitor::synthetic::classes();
        let unknown = values.keys().find(|it| !is_value(it, &classes));
        assert_eq!(unknown, None);
    }

    #[test]
    fn a_misspelled_name_is_not_a_value() {
        let classes = crate::monitor::synthetic::classes();
        for name in [
            "integrity.drak_share",
            "integrity.frames_share",
            "drift.brightnes.drifted",
            "drift.brightness",
            "performance.recall.kat",
            "bias.class.kat.error_rate",
            "telemetry.latency_p98",
            "accuracy",
        ] {
            assert!(!is_value(name, &classes), "{name}");
        }
    }

    #[test]
    fn values_that_were_not_measured_are_absent() {
        let values = labeled(&[], &Labels::default(), &crate::monitor::Reference::default()).values();
        let measured = values.iter().filter(|(name, value)| **value != 0.0 && !name.starts_with("telemetry"));
        assert_eq!(measured.collect::<Vec<_>>(), [(&"integrity.missing_hours".to_owned(), &5.0)]);
        let absent = |name: &String| name.contains("share") || name.starts_with("performance");
        assert!(!values.keys().any(absent));
    }

    #[test]
    fn dropped_records_are_unknown_without_samples() {
        let mut report = labeled(&[], &Labels::default(), &crate::monitor::Reference::default());
        report.integrity.dropped = None;
        assert!(!report.values().contains_key("integrity.dropped"));
    }
}
