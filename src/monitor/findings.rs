//! What in a report is good and what is not, in words.

use crate::{
    alert::Alert,
    monitor::{Drift, Gap, Integrity, Machine, Mean, Performance, Report, Test, Thresholds, Verdict},
};

/// How bad something is, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Good,
    /// Too little is known to say.
    Unknown,
    /// Worth a look.
    Watch,
    Bad,
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub level: Level,
    /// `dark pictures`
    pub subject: String,
    /// `12 of 60, 20 %`
    pub text: String,
}

impl Level {
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Unknown => "no verdict",
            Self::Watch => "watch",
            Self::Bad => "bad",
        }
    }
}

/// All that can be said of a day on which some alerts fire: the worst first, else alerts and then the order of a
/// frame's way.
pub fn findings(report: &Report, firing: &[Alert]) -> Vec<Finding> {
    let mut found: Vec<Finding> = firing.iter().map(alert).collect();
    found.extend(frames(report));
    found.extend(pictures(report));
    for (name, shown) in ORDER {
        found.extend(report.drift.get(name).map(|it| drift(it, shown, report)));
    }
    if let Some(it) = &report.performance {
        found.push(performance(it, report.thresholds.accuracy));
    }
    if let Some(it) = &report.bias {
        let gaps = [("classes", &it.class_gap), ("groups", &it.group_gap)];
        found.extend(gaps.iter().filter_map(|(kind, it)| Some(bias(kind, it.as_ref()?, report))));
    }
    found.extend(machine(report));
    found.sort_by_key(|it| std::cmp::Reverse(it.level));
    found
}

/// The level of the day, and one sentence that says why.
pub fn headline(report: &Report, firing: &[Alert]) -> (Level, String) {
    let frames = report.integrity.frames;
    if frames == 0 {
        return (Level::Bad, "No frames came.".into());
    }
    let found = findings(report, firing);
    let of = |level: Level| -> Vec<_> {
        found.iter().filter(|it| it.level == level).map(|it| it.subject.as_str()).collect()
    };
    let (bad, watch, unknown) = (of(Level::Bad), of(Level::Watch), of(Level::Unknown));
    let frames = count(frames, "frame");
    if !bad.is_empty() {
        (Level::Bad, format!("Not a good day: {}.", listed(&bad)))
    } else if !watch.is_empty() {
        (Level::Watch, format!("A fair day; worth a look: {}.", listed(&watch)))
    } else if !unknown.is_empty() {
        (
            Level::Unknown,
            format!("Nothing bad in {frames}, too little for a verdict on {}.", listed(&unknown)),
        )
    } else {
        (Level::Good, format!("A good day: {frames}, nothing stands out."))
    }
}

/// Measures in the order in which they are shown, with their names for people.
pub const ORDER: [(&str, &str); 8] = [
    ("brightness", "brightness"),
    ("contrast", "contrast"),
    ("sharpness", "sharpness"),
    ("red", "share of red"),
    ("green", "share of green"),
    ("blue", "share of blue"),
    ("embedding", "embedding"),
    ("classes", "classes said"),
];

/// `3 frames`
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `12.5 %`
pub fn percent(share: f64) -> String {
    let digits = usize::from(share.abs() < 0.1 && share != 0.0);
    format!("{:.*} %", digits, share * 100.0)
}

/// A number of any size in few digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        it if it < 0.001 => format!("{value:.0e}"),
        it if it < 10.0 => trimmed(format!("{value:.3}")),
        it if it < 1000.0 => trimmed(format!("{value:.1}")),
        _ => format!("{value:.0}"),
    }
}

/// Without zeros that say nothing.
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

/// What the policy calls somebody for is never good.
fn alert(it: &Alert) -> Finding {
    let level = if it.severity == "critical" { Level::Bad } else { Level::Watch };
    finding(level, &format!("alert `{}`", it.rule), format!("{}, since {}", it.text, it.day))
}

fn frames(report: &Report) -> Vec<Finding> {
    let it = &report.integrity;
    let level = if it.frames == 0 { Level::Bad } else { Level::Good };
    let mut found = vec![finding(level, "frames", count(it.frames, "frame"))];
    if !it.missing_hours.is_empty() {
        let level = if it.missing_hours.len() > 2 { Level::Bad } else { Level::Watch };
        let hours: Vec<_> = it.missing_hours.iter().map(|it| format!("{it}:00")).collect();
        found.push(finding(level, "missing hours", format!("nothing came at {}", hours.join(", "))));
    }
    found
}

/// Bad above the limit, worth a look above half of it.
fn share(subject: &str, part: u64, whole: u64, limit: f64) -> Option<Finding> {
    if whole == 0 {
        return None;
    }
    let found = part as f64 / whole as f64;
    let level = if found > limit {
        Level::Bad
    } else if found > limit / 2.0 {
        Level::Watch
    } else {
        Level::Good
    };
    let text = if part == 0 { "none".into() } else { format!("{part} of {whole}, {}", percent(found)) };
    Some(finding(level, subject, text))
}

fn pictures(report: &Report) -> Vec<Finding> {
    let (it, limits): (&Integrity, _) = (&report.integrity, &report.thresholds);
    let mut found: Vec<_> = [
        share("damaged pictures", it.damaged, it.frames, limits.damaged_share),
        share("dark pictures", it.dark, it.seen, limits.poor_share),
        share("overexposed pictures", it.overexposed, it.seen, limits.poor_share),
        it.blurred.and_then(|blurred| share("blurred pictures", blurred, it.seen, limits.poor_share)),
        share("duplicates", it.duplicates, it.frames, limits.poor_share).map(|found| nearly(found, it)),
        share("errors", it.errors, it.frames, limits.error_share),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(mut frozen) = share("frozen camera", it.frozen, it.frames, limits.poor_share) {
        if it.frozen > 0 {
            frozen.level = frozen.level.max(Level::Watch);
            frozen.text.push_str(&format!("; {} in a row look alike", it.longest_run));
        }
        found.push(frozen);
    }
    if let Some(dropped) = it.dropped.filter(|&it| it > 0) {
        found.push(finding(Level::Watch, "records lost", count(dropped, "record")));
    }
    found
}

/// Pictures that are nearly alike are no fault by themselves: cameras take them in bursts.
fn nearly(mut found: Finding, it: &Integrity) -> Finding {
    if it.near_duplicates > 0 {
        found.text.push_str(&format!("; {} nearly like the one before", it.near_duplicates));
    }
    found
}

fn drift(it: &Drift, subject: &str, report: &Report) -> Finding {
    let unsure = is_unsure(it, &report.thresholds);
    let (level, word) = match it.verdict {
        Verdict::Drifted => (Level::Bad, "drifted"),
        Verdict::Same if unsure => (Level::Unknown, "too few to tell"),
        Verdict::Same => (Level::Good, "as the reference"),
        Verdict::None => (Level::Unknown, ""),
    };
    let Some(test) = &it.tested else {
        let rows = format!("{} against {}", count(it.day_rows, "row"), it.reference_rows);
        return finding(level, subject, format!("{rows} are too few"));
    };
    let how = match test.test {
        Test::Ks => format!("KS {:.2}{}", test.statistic, moved(it)),
        Test::ChiSquare => changed(it, &report.classes),
    };
    let p = short(test.adjusted);
    finding(
        level,
        subject,
        format!("{word}: {how}, p {p}, PSI {:.2} (by chance {:.2})", test.psi, test.psi_expected),
    )
}

/// Whether a change would matter, but so few rows show that by chance.
fn is_unsure(it: &Drift, limits: &Thresholds) -> bool {
    it.tested.as_ref().is_some_and(|test| {
        let matters = match test.test {
            Test::Ks => limits.distance,
            Test::ChiSquare => limits.change,
        };
        test.effect >= matters && test.adjusted > limits.chance
    })
}

/// `, mean 0.410 → 0.120`
fn moved(it: &Drift) -> String {
    match (it.reference_mean, it.day_mean) {
        (Some(one), Some(two)) => format!(", mean {} → {}", short(one), short(two)),
        _ => String::new(),
    }
}

/// `cat 50 % → 90 %`
fn changed(it: &Drift, classes: &[String]) -> String {
    let (known, seen) = (&it.histogram.reference, &it.histogram.day);
    let found = crate::monitor::statistics::largest_change(known, seen);
    let Some((at, class)) = found.and_then(|it| Some((it.0, classes.get(it.0)?))) else {
        return "no classes".into();
    };
    let share = |counts: &[u64]| percent(counts[at] as f64 / counts.iter().sum::<u64>().max(1) as f64);
    format!("`{class}` {} → {}", share(known), share(seen))
}

fn performance(it: &Performance, limit: f64) -> Finding {
    let span = it.accuracy_span;
    let level = if span.high < limit {
        Level::Bad
    } else if it.accuracy < limit {
        Level::Watch
    } else {
        Level::Good
    };
    let labels = count(it.labeled, "label");
    let text = format!(
        "{} of {labels}, 95 % interval {} to {}",
        percent(it.accuracy),
        percent(span.low),
        percent(span.high)
    );
    finding(level, "accuracy", text)
}

fn bias(kind: &str, it: &Gap, report: &Report) -> Finding {
    let level = if it.span.low > report.thresholds.difference {
        Level::Bad
    } else if it.difference > report.thresholds.difference && it.p < 0.05 {
        Level::Watch
    } else {
        Level::Good
    };
    let text = if it.difference == 0.0 {
        "equally often on all".into()
    } else {
        format!(
            "errors on `{}` are {:.0} points above `{}`, p {}",
            it.worst,
            it.difference * 100.0,
            it.best,
            short(it.p)
        )
    };
    finding(level, &format!("errors across {kind}"), text)
}

fn machine(report: &Report) -> Vec<Finding> {
    let limits = &report.thresholds;
    let mut found = Vec::new();
    if let Some(it) = &report.latency {
        let level = if it.p99 > limits.latency { Level::Bad } else { Level::Good };
        let text = format!("half within {} ms, 99 % within {} ms", short(it.p50), short(it.p99));
        found.push(finding(level, "time to answer", text));
    }
    let Some(it): &Option<Machine> = &report.machine else { return found };
    let mut most = |subject: &str, value: Option<Mean>, limit: f64, shown: &dyn Fn(f64) -> String| {
        let Some(value) = value else { return };
        let level = if value.max > limit { Level::Bad } else { Level::Good };
        let text = format!("{} on average, {} at most", shown(value.mean), shown(value.max));
        found.push(finding(level, subject, text));
    };
    // A busy processor is what one pays for; it is never bad by itself.
    most("processor", it.cpu, f64::INFINITY, &percent);
    most("memory", it.memory, limits.full, &percent);
    most("disk", it.disk, limits.full, &percent);
    most("temperature", it.temperature, limits.hot, &|it| format!("{it:.0} °C"));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::drawn::{USUAL, World, frames, labeled, reference};

    #[test]
    fn numbers_are_short() {
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
    fn a_share_is_watched_before_it_is_bad() {
        let level = |part| share("x", part, 100, 0.1).unwrap().level;
        assert_eq!([5, 6, 10, 11].map(level), [Level::Good, Level::Watch, Level::Watch, Level::Bad]);
        assert_eq!(share("x", 0, 0, 0.1), None);
    }

    fn day(cats: f32, count: usize) -> Report {
        let (records, labels) = frames(World { cats, ..USUAL }, 1, count);
        labeled(&records, &labels, &reference(400))
    }

    #[test]
    fn an_alert_lowers_the_day() {
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
        let watch = (Level::Watch, "A fair day; worth a look: alert `dogs`.".to_owned());
        assert_eq!(headline(&report, &[alert("warning")]), watch);
        assert_eq!(headline(&report, &[alert("critical")]).1, "Not a good day: alert `dogs`.");
        let first = findings(&report, &[alert("warning")]).remove(0);
        assert_eq!(first.text, "drift.classes.change is 0.3000, above 0.15, since 2026-11-23");
    }

    #[test]
    fn a_large_change_in_few_rows_is_not_called_the_same() {
        let report = day(0.25, 20);
        let classes = findings(&report, &[]).into_iter().find(|it| it.subject == "classes said").unwrap();
        assert!(report.drift["classes"].tested.as_ref().unwrap().effect >= 0.15, "{classes:?}");
        assert_eq!((classes.level, &classes.text[..16]), (Level::Unknown, "too few to tell:"));
    }
}
