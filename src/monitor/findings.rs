//! Findings: rates each measurement of a report as good, watch, bad or undecided, with one line of text, and
//! sums the day up in a headline.

use crate::{
    alert::Alert,
    monitor::{
        Drift, Integrity, Machine, MeanMax, Performance, RateGap, Report, TestKind, Thresholds, Verdict,
    },
};

/// Severity of a finding, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Good,
    /// Too few rows to decide.
    Unknown,
    /// Needs attention, but is not bad.
    Watch,
    Bad,
}

/// One rated measurement of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub level: Level,
    /// Measured subject, as in `dark images`.
    pub subject: String,
    /// Measured value, as in `12 of 60, 20 %`.
    pub text: String,
}

impl Level {
    /// Returns the word to show, which `--json` prints as well.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Unknown => "no verdict",
            Self::Watch => "watch",
            Self::Bad => "bad",
        }
    }
}

/// Returns all findings of a day, worst first. Those of the same level keep their order: firing alerts, then
/// image quality, drift, accuracy, bias and machine load.
pub fn findings(report: &Report, firing: &[Alert]) -> Vec<Finding> {
    let mut found: Vec<Finding> = firing.iter().map(alert).collect();
    found.extend(frames(report));
    found.extend(images(report));
    for (name, subject) in DRIFT_MEASURES {
        found.extend(report.drift.get(name).map(|it| drift(it, subject, report)));
    }
    if let Some(result) = &report.performance {
        found.push(performance(result, report.thresholds.accuracy));
    }
    if let Some(rates) = &report.bias {
        let gaps = [("class", &rates.class_gap), ("group", &rates.group_gap)];
        found.extend(gaps.iter().filter_map(|(kind, gap)| Some(bias(kind, gap.as_ref()?, report))));
    }
    found.extend(machine(report));
    found.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    found
}

/// Returns the worst level of the day and a line that names the findings behind it.
pub fn headline(report: &Report, firing: &[Alert]) -> (Level, String) {
    let frames = report.integrity.frames;
    if frames == 0 {
        return (Level::Bad, "no frames".into());
    }
    let found = findings(report, firing);
    let subjects = |level: Level| -> Vec<_> {
        found.iter().filter(|finding| finding.level == level).map(|it| it.subject.as_str()).collect()
    };
    let (bad, watch, unknown) = (subjects(Level::Bad), subjects(Level::Watch), subjects(Level::Unknown));
    let frames = count(frames, "frame");
    if !bad.is_empty() {
        (Level::Bad, format!("problems found: {}", listed(&bad)))
    } else if !watch.is_empty() {
        (Level::Watch, format!("needs attention: {}", listed(&watch)))
    } else if !unknown.is_empty() {
        (
            Level::Unknown,
            format!("no problems in {frames}; too few rows for a verdict on {}", listed(&unknown)),
        )
    } else {
        (Level::Good, format!("no problems in {frames}"))
    }
}

/// Names of the drift measures and their subjects to show, in display order.
pub const DRIFT_MEASURES: [(&str, &str); 8] = [
    ("brightness", "brightness"),
    ("contrast", "contrast"),
    ("sharpness", "sharpness"),
    ("red", "share of red"),
    ("green", "share of green"),
    ("blue", "share of blue"),
    ("embedding", "embedding"),
    ("classes", "predicted classes"),
];

/// Formats a count with its noun, as in `3 frames`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Formats a share as a percentage, as in `4.2 %`; from 10 % on without decimals.
pub fn percent(share: f64) -> String {
    let digits = usize::from(share.abs() < 0.1 && share != 0.0);
    format!("{:.*} %", digits, share * 100.0)
}

/// Formats a number of any size in few digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size < 0.001 => format!("{value:.0e}"),
        size if size < 10.0 => trimmed(format!("{value:.3}")),
        size if size < 1000.0 => trimmed(format!("{value:.1}")),
        _ => format!("{value:.0}"),
    }
}

/// Removes trailing zeros of a decimal number.
fn trimmed(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [one, two] => format!("{one} and {two}"),
        [one, two, three] => format!("{one}, {two} and {three}"),
        [one, two, rest @ ..] => format!("{one}, {two} and {} more", rest.len()),
    }
}

fn finding(level: Level, subject: &str, text: String) -> Finding {
    Finding { level, subject: subject.to_owned(), text }
}

/// Rates a firing alert: bad if it is critical, else watch.
fn alert(alert: &Alert) -> Finding {
    let level = if alert.severity == "critical" { Level::Bad } else { Level::Watch };
    finding(level, &format!("alert `{}`", alert.rule), format!("{}, since {}", alert.text, alert.day))
}

fn frames(report: &Report) -> Vec<Finding> {
    let Integrity { frames, missing_hours, .. } = &report.integrity;
    let level = if *frames == 0 { Level::Bad } else { Level::Good };
    let mut found = vec![finding(level, "frames", count(*frames, "frame"))];
    if !missing_hours.is_empty() {
        let level = if missing_hours.len() > 2 { Level::Bad } else { Level::Watch };
        let hours: Vec<_> = missing_hours.iter().map(|hour| format!("{hour}:00")).collect();
        found.push(finding(level, "missing hours", format!("no frames at {}", hours.join(", "))));
    }
    found
}

/// Rates a share: bad above the limit, watch above half of it.
fn share(subject: &str, part: u64, total: u64, limit: f64) -> Option<Finding> {
    if total == 0 {
        return None;
    }
    let share = part as f64 / total as f64;
    let level = if share > limit {
        Level::Bad
    } else if share > limit / 2.0 {
        Level::Watch
    } else {
        Level::Good
    };
    let text = if part == 0 { "none".into() } else { format!("{part} of {total}, {}", percent(share)) };
    Some(finding(level, subject, text))
}

fn images(report: &Report) -> Vec<Finding> {
    let (counts, limits) = (&report.integrity, &report.thresholds);
    let (frames, decoded, poor) = (counts.frames, counts.decoded, limits.poor_share);
    let duplicates = share("duplicates", counts.duplicates, frames, poor);
    let mut found: Vec<_> = [
        share("damaged images", counts.damaged, frames, limits.damaged_share),
        share("dark images", counts.dark, decoded, poor),
        share("overexposed images", counts.overexposed, decoded, poor),
        counts.blurred.and_then(|blurred| share("blurred images", blurred, decoded, poor)),
        duplicates.map(|finding| with_near_duplicates(finding, counts)),
        share("errors", counts.errors, frames, limits.error_share),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(mut frozen) = share("frozen camera", counts.frozen, frames, poor) {
        if counts.frozen > 0 {
            frozen.level = frozen.level.max(Level::Watch);
            frozen.text.push_str(&format!("; up to {} alike in a row", counts.longest_run));
        }
        found.push(frozen);
    }
    if let Some(dropped) = counts.dropped.filter(|&dropped| dropped > 0) {
        found.push(finding(Level::Watch, "dropped records", count(dropped, "record")));
    }
    found
}

/// Adds the number of near duplicates. It does not change the level: cameras take bursts of similar images.
fn with_near_duplicates(mut finding: Finding, counts: &Integrity) -> Finding {
    if counts.near_duplicates > 0 {
        finding.text.push_str(&format!("; {} nearly like the previous image", counts.near_duplicates));
    }
    finding
}

fn drift(drift: &Drift, subject: &str, report: &Report) -> Finding {
    let inconclusive = is_inconclusive(drift, &report.thresholds);
    let (level, word) = match drift.verdict {
        Verdict::Drifted => (Level::Bad, "drifted"),
        Verdict::Same if inconclusive => (Level::Unknown, "inconclusive"),
        Verdict::Same => (Level::Good, "no drift"),
        Verdict::Undecided => (Level::Unknown, ""),
    };
    let Some(test) = &drift.result else {
        let rows = format!("{} against {}", count(drift.day_rows, "row"), drift.reference_rows);
        return finding(level, subject, format!("{rows}, too few to test"));
    };
    let change = match test.kind {
        TestKind::Ks => format!("KS {:.2}{}", test.statistic, mean_change(drift)),
        TestKind::ChiSquare => share_change(drift, &report.classes),
    };
    let p = short(test.adjusted);
    finding(
        level,
        subject,
        format!("{word}: {change}, p {p}, PSI {:.2} (expected {:.2})", test.psi, test.psi_expected),
    )
}

/// Returns true if the change is large enough to matter, but with so few rows may be due to chance.
fn is_inconclusive(drift: &Drift, limits: &Thresholds) -> bool {
    drift.result.as_ref().is_some_and(|test| {
        let minimum = match test.kind {
            TestKind::Ks => limits.min_ks_distance,
            TestKind::ChiSquare => limits.min_share_change,
        };
        test.effect >= minimum && test.adjusted > limits.significance
    })
}

/// Formats the change of the mean, as in `, mean 0.41 → 0.12`; empty if a mean is unknown.
fn mean_change(drift: &Drift) -> String {
    match (drift.reference_mean, drift.day_mean) {
        (Some(reference), Some(day)) => format!(", mean {} → {}", short(reference), short(day)),
        _ => String::new(),
    }
}

/// Formats the largest change of a class's share, as in `` `cat` 50 % → 90 % ``.
fn share_change(drift: &Drift, classes: &[String]) -> String {
    let (reference, day) = (&drift.histogram.reference, &drift.histogram.day);
    let largest = crate::monitor::statistics::largest_change(reference, day);
    let Some((index, class)) = largest.and_then(|(index, _)| Some((index, classes.get(index)?))) else {
        return "no classes".into();
    };
    let share = |counts: &[u64]| percent(counts[index] as f64 / counts.iter().sum::<u64>().max(1) as f64);
    format!("`{class}` {} → {}", share(reference), share(day))
}

fn performance(performance: &Performance, limit: f64) -> Finding {
    let interval = performance.accuracy_interval;
    let level = if interval.high < limit {
        Level::Bad
    } else if performance.accuracy < limit {
        Level::Watch
    } else {
        Level::Good
    };
    let labels = count(performance.labeled, "label");
    let text = format!(
        "{} of {labels}, 95 % interval {} to {}",
        percent(performance.accuracy),
        percent(interval.low),
        percent(interval.high)
    );
    finding(level, "accuracy", text)
}

fn bias(kind: &str, gap: &RateGap, report: &Report) -> Finding {
    let limit = report.thresholds.max_rate_difference;
    let level = if gap.interval.low > limit {
        Level::Bad
    } else if gap.difference > limit && gap.p < 0.05 {
        Level::Watch
    } else {
        Level::Good
    };
    let text = if gap.difference == 0.0 {
        "all equal".into()
    } else {
        format!(
            "`{}` is {:.0} points above `{}`, p {}",
            gap.worst,
            gap.difference * 100.0,
            gap.best,
            short(gap.p)
        )
    };
    finding(level, &format!("error rate by {kind}"), text)
}

fn machine(report: &Report) -> Vec<Finding> {
    let limits = &report.thresholds;
    let mut found = Vec::new();
    if let Some(latency) = &report.latency {
        let level = if latency.p99 > limits.latency { Level::Bad } else { Level::Good };
        let text = format!("median {} ms, p99 {} ms", short(latency.p50), short(latency.p99));
        found.push(finding(level, "latency", text));
    }
    let Some(Machine { cpu, memory, disk, temperature, .. }) = &report.machine else { return found };
    let mut add = |subject: &str, value: Option<MeanMax>, limit: f64, format: &dyn Fn(f64) -> String| {
        let Some(value) = value else { return };
        let level = if value.max > limit { Level::Bad } else { Level::Good };
        let text = format!("{} on average, {} at most", format(value.mean), format(value.max));
        found.push(finding(level, subject, text));
    };
    // A busy CPU is never bad by itself.
    add("cpu", *cpu, f64::INFINITY, &percent);
    add("memory", *memory, limits.max_usage, &percent);
    add("disk", *disk, limits.max_usage, &percent);
    add("temperature", *temperature, limits.max_temperature, &|degrees| format!("{degrees:.0} °C"));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::synthetic::{Scenario, TYPICAL, frames, labeled, reference};

    #[test]
    fn numbers_are_formatted_in_few_digits() {
        assert_eq!([0.0, 1e-15, 0.1234, 12.34, 4321.6].map(short), ["0", "1e-15", "0.123", "12.3", "4322"]);
        assert_eq!([0.0, 0.042, 0.5, 1.0].map(percent), ["0 %", "4.2 %", "50 %", "100 %"]);
        assert_eq!((count(1, "row"), count(2, "row")), ("1 row".into(), "2 rows".into()));
    }

    #[test]
    fn a_long_list_is_cut() {
        assert_eq!(listed(&["a"]), "a");
        assert_eq!(listed(&["a", "b", "c"]), "a, b and c");
        assert_eq!(listed(&["a", "b", "c", "d"]), "a, b and 2 more");
    }

    #[test]
    fn a_share_above_half_its_limit_is_watch() {
        let level = |part| share("x", part, 100, 0.1).unwrap().level;
        assert_eq!([5, 6, 10, 11].map(level), [Level::Good, Level::Watch, Level::Watch, Level::Bad]);
        assert_eq!(share("x", 0, 0, 0.1), None);
    }

    fn day(cat_share: f32, count: usize) -> Report {
        let (records, labels) = frames(Scenario { cat_share, ..TYPICAL }, 1, count);
        labeled(&records, &labels, &reference(400))
    }

    #[test]
    fn a_firing_alert_sets_the_level_of_the_day() {
        let report = day(0.5, 60);
        assert_eq!(headline(&report, &[]).0, Level::Good);
        let alert = |severity: &str| Alert {
            number: 7,
            rule: "dogs".into(),
            environment: "production".into(),
            day: "2026-11-23".into(),
            severity: severity.into(),
            value: 0.3,
            text: "drift.classes.change is 0.3000, above 0.15".into(),
            action: None,
            resolved: None,
            acknowledged: None,
        };
        let watch = (Level::Watch, "needs attention: alert `dogs`".to_owned());
        assert_eq!(headline(&report, &[alert("warning")]), watch);
        assert_eq!(headline(&report, &[alert("critical")]).1, "problems found: alert `dogs`");
        let first = findings(&report, &[alert("warning")]).remove(0);
        assert_eq!(first.text, "drift.classes.change is 0.3000, above 0.15, since 2026-11-23");
    }

    #[test]
    fn a_large_change_in_few_rows_is_inconclusive() {
        let report = day(0.25, 20);
        let classes =
            findings(&report, &[]).into_iter().find(|found| found.subject == "predicted classes").unwrap();
        assert!(report.drift["classes"].result.as_ref().unwrap().effect >= 0.15, "{classes:?}");
        assert_eq!((classes.level, &classes.text[..13]), (Level::Unknown, "inconclusive:"));
    }
}
