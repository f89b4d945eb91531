//! A report as named numbers, for rules to be written against.

use std::collections::BTreeMap;

use crate::monitor::{Class, Drift, Integrity, Performance, Report, Test, Verdict, findings::ORDER};

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

/// Whether a report on these classes can have a number of this name; it may be absent on a day nevertheless.
pub fn is_value(name: &str, classes: &[String]) -> bool {
    let Some((group, rest)) = name.split_once('.') else { return false };
    let class = |it: &str| classes.iter().any(|known| known == it);
    match group {
        "integrity" => {
            let shares = ["damaged", "frozen", "duplicate", "near_duplicate", "error"];
            let looks = ["dark", "overexposed", "blurred"];
            let counted = rest.strip_suffix("_share").unwrap_or(rest);
            ["frames", "frozen_longest_run", "missing_hours", "dropped"].contains(&rest)
                || shares.iter().chain(&looks).any(|it| *it == counted)
        }
        "drift" => {
            rest == "drifted"
                || rest.split_once('.').is_some_and(|(measure, key)| {
                    ORDER.iter().any(|it| it.0 == measure) && DRIFT.contains(&key)
                })
        }
        "performance" => {
            let measure = |it: &str| ["precision", "recall", "f1"].contains(&it);
            ["labeled", "accuracy", "accuracy_low", "accuracy_high"].contains(&rest)
                || rest.strip_prefix("macro.").is_some_and(measure)
                || rest.split_once('.').is_some_and(|it| measure(it.0) && class(it.1))
        }
        "bias" => {
            let rate = |kind: &str| rest.strip_prefix(kind)?.strip_suffix(".error_rate");
            ["difference", "class_difference", "group_difference"].contains(&rest)
                || rate("class.").is_some_and(class)
                || rate("group.").is_some()
        }
        "telemetry" => {
            let latency = |it: &str| ["p50", "p95", "p99", "max"].contains(&it);
            let mean = |it: (&str, &str)| MACHINE.contains(&it.0) && ["mean", "max"].contains(&it.1);
            ["answers", "errors", "dropped", "largest_queue"].contains(&rest)
                || rest.strip_prefix("latency_").is_some_and(latency)
                || rest.rsplit_once('_').is_some_and(mean)
        }
        _ => false,
    }
}

/// What is told of each measure.
const DRIFT: [&str; 13] = [
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

const MACHINE: [&str; 5] = ["cpu", "memory", "resident", "disk", "temperature"];

fn integrity(values: &mut Values, it: &Integrity) {
    let counts = [
        ("frames", it.frames),
        ("frozen_longest_run", it.longest_run),
        ("missing_hours", it.missing_hours.len() as u64),
    ];
    values.put("integrity.dropped", it.dropped.map(|it| it as f64));
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

#[cfg(test)]
mod tests {
    use crate::monitor::{
        drawn::{USUAL, frames, labeled, reference},
        is_value,
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
    fn people_have_written_rules_with_these_names() {
        let (records, labels) = frames(USUAL, 1, 60);
        let values = labeled(&records, &labels, &reference(400)).values();
        let like_brightness = ["red", "green", "blue", "contrast", "sharpness"];
        let other = |it: &&str| !like_brightness.iter().any(|name| it.starts_with(&format!("drift.{name}.")));
        let names: Vec<_> = values.keys().map(String::as_str).filter(other).collect();
        assert_eq!(names.join(" "), NAMES);
        let classes = crate::monitor::drawn::classes();
        let strange = values.keys().find(|it| !is_value(it, &classes));
        assert_eq!(strange, None);
    }

    #[test]
    fn a_misspelt_name_is_no_value() {
        let classes = crate::monitor::drawn::classes();
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
    fn what_was_not_measured_is_absent() {
        let values = labeled(&[], &Labels::default(), &crate::monitor::Reference::default()).values();
        let measured = values.iter().filter(|it| *it.1 != 0.0 && !it.0.starts_with("telemetry"));
        assert_eq!(measured.collect::<Vec<_>>(), [(&"integrity.missing_hours".to_owned(), &5.0)]);
        assert!(!values.keys().any(|it| it.contains("share") || it.starts_with("performance")));
    }

    #[test]
    fn records_lost_are_unknown_without_samples() {
        let mut report = labeled(&[], &Labels::default(), &crate::monitor::Reference::default());
        report.integrity.dropped = None;
        assert!(!report.values().contains_key("integrity.dropped"));
    }
}
