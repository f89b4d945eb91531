//! HTML page of a report: headline, findings, charts by hour and trends over days, in one self-contained file
//! without scripts or external resources.

use std::collections::BTreeMap;

use plotters::style::RGBColor;

use crate::{
    alert::Alert,
    deploy::escape_html,
    monitor::{
        Drift, ErrorRate, Finding, Hour, Level, Performance, Report,
        chart::{self, BLUE, GRAY, GREEN, Line, ORANGE},
        findings::{count, findings, headline, percent, short},
    },
};

/// Largest number of earlier days in the trend charts.
const MAX_TREND_DAYS: usize = 30;

const STYLE: &str = "\
:root{--ink:#1f2a37;--soft:#6b7583;--line:#e6e9ee;\
--good:#2f7d55;--watch:#b0730f;--bad:#bb3a36;--unknown:#7b8594}\
*{box-sizing:border-box}body{margin:0;background:#f5f6f8;color:var(--ink);font:15px/1.5 system-ui,sans-serif}\
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}\
header{background:#fff;border-left:6px solid var(--level);border-radius:8px;padding:18px \
24px;margin-bottom:22px;\
box-shadow:0 1px 2px #0001}h1{font-size:1.55em;margin:0 0 .2em;line-height:1.25}\
h1::first-letter{text-transform:uppercase}\
h2{font-size:1.05em;margin:30px 0 10px;font-weight:600}p{margin:.2em 0;color:var(--soft)}\
.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(340px,1fr))}\
.card,figure{background:#fff;border-radius:8px;padding:12px 16px;margin:0;box-shadow:0 1px 2px \
#0001;overflow-x:auto}\
figcaption,.title{font-weight:600;font-size:.92em;display:flex;flex-wrap:wrap;justify-content:space-between;\
gap:0 1em;margin-bottom:6px}figcaption small,.title small{color:var(--soft);font-weight:400}\
svg{display:block;width:100%;height:auto}svg text{font-family:system-ui,sans-serif}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
td,th{padding:5px 12px 5px 0;text-align:left;vertical-align:top;border-top:1px solid \
var(--line);font-weight:400}\
tr:first-child td,tr:first-child th{border-top:0}.grid td,.grid \
th{white-space:nowrap}th{color:var(--soft);font-size:.9em}\
.mark{display:inline-block;min-width:5.6em;padding:0 \
.6em;border-radius:9px;color:#fff;font-size:.82em;text-align:center}\
.good{background:#e4f1ea;color:var(--good)}.watch{background:var(--watch)}\
.bad{background:var(--bad)}.unknown{background:var(--unknown)}\
.key{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin:0 .3em 0 .7em}\
.bar{height:9px;border-radius:2px;margin:2px 0;min-width:1px}.number{text-align:right}\
.cell{text-align:center;min-width:4em;border:2px solid #fff}\
@media print{body{background:#fff}header,.card,figure{box-shadow:none;border:1px solid var(--line)}}";

/// Renders the page of a day and its firing alerts. `earlier` holds reports of other days, in any order;
/// those before the day become the trends.
pub fn render_page(report: &Report, earlier: &[Report], firing: &[Alert]) -> String {
    let (level, headline) = headline(report, firing);
    let mut days: Vec<&Report> = earlier.iter().filter(|other| other.day < report.day).collect();
    days.sort_by(|one, two| one.day.cmp(&two.day));
    days.drain(..days.len().saturating_sub(MAX_TREND_DAYS));
    days.push(report);
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
<title>{day}: {word}</title><style>{STYLE}</style>\n<main><header \
style='--level:var(--{level})'><h1>{headline}</h1>{about}\
</header>\n{findings}{images}{predictions}{labels}{machine}{trends}</main>\n",
        day = escape_html(&report.day),
        word = level.word(),
        level = class_of(level),
        headline = escape_html(&headline),
        about = about(report),
        findings = table_of_findings(report, firing),
        images = image_statistics(report),
        predictions = predictions(report),
        labels = labeled(report),
        machine = machine(report),
        trends = trends(&days),
    )
}

/// Returns the CSS class of a level.
fn class_of(level: Level) -> &'static str {
    match level {
        Level::Good => "good",
        Level::Unknown => "unknown",
        Level::Watch => "watch",
        Level::Bad => "bad",
    }
}

fn about(report: &Report) -> String {
    let versions =
        report.versions.iter().map(|(name, frames)| format!("{name}, {}", count(*frames, "frame")));
    let versions = versions.collect::<Vec<_>>().join("; ");
    let rows = count(report.reference_rows, "row");
    format!(
        "<p>{}, UTC. {}<p>Compared with: {}, {rows}.",
        escape_html(&report.day),
        if versions.is_empty() { String::new() } else { format!("Answered by {}.", escape_html(&versions)) },
        escape_html(&report.reference),
    )
}

fn section(title: &str, cards: &[String]) -> String {
    let cards: String = cards.concat();
    if cards.is_empty() {
        return String::new();
    }
    format!("<h2>{}</h2><div class=grid>{cards}</div>\n", escape_html(title))
}

fn figure(title: &str, note: &str, svg: &str) -> String {
    format!("<figure><figcaption>{} <small>{note}</small></figcaption>{svg}</figure>", escape_html(title))
}

fn key(color: RGBColor, name: &str) -> String {
    format!("<span class=key style='background:{}'></span>{}", chart::css(color), escape_html(name))
}

fn table_of_findings(report: &Report, firing: &[Alert]) -> String {
    let row = |finding: Finding| {
        let (class, word) = (class_of(finding.level), finding.level.word());
        let (subject, text) = (escape_html(&finding.subject), escape_html(&finding.text));
        format!("<tr><td><span class='mark {class}'>{word}</span><td>{subject}<td>{text}")
    };
    let rows: String = findings(report, firing).into_iter().map(row).collect();
    format!("<h2>Findings</h2><div class=card><table>{rows}</table></div>\n")
}

fn image_statistics(report: &Report) -> String {
    let measures = [
        ("brightness", "Brightness"),
        ("sharpness", "Sharpness"),
        ("embedding", "Embedding, distance from the mean"),
    ];
    let cards: Vec<_> = measures
        .iter()
        .filter_map(|(name, title)| {
            let drift = report.drift.get(*name)?;
            let note = format!("{}{}", key(GRAY, "reference"), key(BLUE, "this day"));
            (!drift.histogram.reference.is_empty())
                .then(|| figure(title, &note, &chart::histogram(&drift.histogram)))
        })
        .collect();
    section("Images compared with the reference", &cards)
}

fn predictions(report: &Report) -> String {
    let mut cards = Vec::new();
    if let Some(drift) = report.drift.get("classes") {
        cards.push(shares(drift, &report.classes));
    }
    let frames: Vec<_> = report.hours.iter().map(|it| it.frames).collect();
    cards.push(figure("Frames by hour", "", &chart::bars(&frames, &clock_time)));
    section("Traffic and predictions", &cards)
}

fn shares(drift: &Drift, classes: &[String]) -> String {
    let histogram = &drift.histogram;
    let total = |counts: &[u64]| counts.iter().sum::<u64>().max(1) as f64;
    let totals = (total(&histogram.reference), total(&histogram.day));
    let bar = |color: RGBColor, share: f64| {
        format!("<div class=bar style='width:{:.1}%;background:{}'></div>", share * 100.0, chart::css(color))
    };
    let row = |(class, (known, predicted)): (&String, (&u64, &u64))| {
        let (before, now) = (*known as f64 / totals.0, *predicted as f64 / totals.1);
        let (bars, class) = (bar(GRAY, before) + &bar(BLUE, now), escape_html(class));
        format!(
            "<tr><td>{class}<td style='width:55%'>{bars}<td class=number>{} → {}",
            percent(before),
            percent(now)
        )
    };
    let pairs = histogram.reference.iter().zip(&histogram.day);
    let rows: String = classes.iter().zip(pairs).map(row).collect();
    let keys = key(GRAY, "reference") + &key(BLUE, "this day");
    format!(
        "<div class=card><div class=title>Predicted classes \
        <small>{keys}</small></div><table>{rows}</table></div>"
    )
}

fn labeled(report: &Report) -> String {
    let mut cards = Vec::new();
    if let Some(performance) = &report.performance {
        cards.push(confusion(performance, &report.classes));
        cards.push(by_class(performance));
    }
    if let Some(bias) = &report.bias {
        cards.push(rates("Error rate by group", &bias.groups));
    }
    if !report.performance_by_version.is_empty() {
        cards.push(by_version(&report.performance_by_version));
    }
    section("Predictions compared with labels", &cards)
}

fn confusion(performance: &Performance, classes: &[String]) -> String {
    let head: String = classes.iter().map(|class| format!("<th class=cell>{}", escape_html(class))).collect();
    let mut rows = String::new();
    for (label, (class, counts)) in classes.iter().zip(&performance.confusion).enumerate() {
        let total = counts.iter().sum::<u64>().max(1) as f64;
        rows.push_str(&format!("<tr><th>{}", escape_html(class)));
        for (predicted, count) in counts.iter().enumerate() {
            let color = if predicted == label { "49,103,160" } else { "187,58,54" };
            let shade = *count as f64 / total * 0.75;
            rows.push_str(&format!("<td class=cell style='background:rgba({color},{shade:.2})'>{count}"));
        }
    }
    let title = "Confusion <small>rows: true class; columns: predicted class</small>";
    format!("<div class=card><div class=title>{title}</div><table><tr><th>{head}{rows}</table></div>")
}

fn card(title: &str, head: &[&str], rows: &str) -> String {
    let head: String = head.iter().map(|it| format!("<th>{it}")).collect();
    format!(
        "<div class=card><div class=title>{}</div><table><tr>{head}{rows}</table></div>",
        escape_html(title)
    )
}

fn by_class(performance: &Performance) -> String {
    let share = |value: Option<f64>| value.map_or_else(|| "–".into(), percent);
    let mean = "mean".to_owned();
    let rows = performance.classes.iter().chain([(&mean, &performance.average)]).map(|(name, class)| {
        let numbers = [share(class.precision), share(class.recall), share(class.f1)].join("<td>");
        format!("<tr><td>{}<td>{}<td>{numbers}", escape_html(name), class.labeled)
    });
    card("By class", &["", "labels", "precision", "recall", "F1"], &rows.collect::<String>())
}

fn rates(title: &str, rates: &BTreeMap<String, ErrorRate>) -> String {
    let rows = rates.iter().map(|(name, rate)| {
        let interval = if rate.comparable {
            format!("{} to {}", percent(rate.interval.low), percent(rate.interval.high))
        } else {
            "too few labels".into()
        };
        format!(
            "<tr><td>{}<td>{} of {}<td>{}<td>{interval}",
            escape_html(name),
            rate.wrong,
            rate.labeled,
            percent(rate.rate)
        )
    });
    card(title, &["", "wrong", "rate", "95 % interval"], &rows.collect::<String>())
}

fn by_version(versions: &BTreeMap<String, Performance>) -> String {
    let rows = versions.iter().map(|(name, version)| {
        let interval = version.accuracy_interval;
        let interval = format!("{} to {}", percent(interval.low), percent(interval.high));
        let accuracy = percent(version.accuracy);
        format!("<tr><td>{}<td>{}<td>{accuracy}<td>{interval}", escape_html(name), version.labeled)
    });
    card("By version", &["", "labels", "accuracy", "95 % interval"], &rows.collect::<String>())
}

/// Draws lines with their legend; lines without points are left out, and without any line the text is empty.
fn lines(
    title: &str,
    all: Vec<Line>,
    label: &dyn Fn(f64) -> String,
    value: &dyn Fn(f64) -> String,
) -> String {
    let has_points = |line: &Line| line.points.iter().any(Option::is_some);
    let present: Vec<Line> = all.into_iter().filter(has_points).collect();
    if present.is_empty() {
        return String::new();
    }
    let named = present.iter().filter(|it| !it.name.is_empty());
    let keys: String = named.map(|line| key(line.color, &line.name)).collect();
    figure(title, &keys, &chart::lines(&present, label, value))
}

fn machine(report: &Report) -> String {
    let line = |name: &str, color, value: &dyn Fn(&Hour) -> Option<f64>| Line {
        name: name.to_owned(),
        color,
        points: report.hours.iter().map(value).collect(),
    };
    let latency = vec![line("", BLUE, &|hour| hour.latency_p95)];
    let load = vec![line("cpu", BLUE, &|hour| hour.cpu), line("memory", ORANGE, &|hour| hour.memory)];
    let temperature = vec![line("", ORANGE, &|hour| hour.temperature)];
    let queue = vec![line("", GREEN, &|hour| hour.queue.map(|length| length as f64))];
    let cards = [
        lines("Latency, p95, in milliseconds", latency, &clock_time, &short),
        lines("Load", load, &clock_time, &percent),
        lines("Temperature, in °C", temperature, &clock_time, &short),
        lines("Longest queue", queue, &clock_time, &short),
    ];
    section("Machine by hour", &cards)
}

/// Formats an hour as a time, as in `13:00`.
fn clock_time(hour: f64) -> String {
    format!("{hour:.0}:00")
}

fn trends(days: &[&Report]) -> String {
    if days.len() < 2 {
        return String::new();
    }
    let values: Vec<_> = days.iter().map(|it| it.values()).collect();
    let line = |name: &str, color, value: &str| Line {
        name: name.to_owned(),
        color,
        points: values.iter().map(|it| it.get(value).copied()).collect(),
    };
    let label = |position: f64| {
        // Month and day, as in `11-24`; positions between two days have no label.
        let day = days.get(position.round() as usize).filter(|_| position.fract().abs() < 1e-9);
        day.map(|report| report.day.chars().skip(5).collect()).unwrap_or_default()
    };
    let distance = vec![
        line("brightness", ORANGE, "drift.brightness.ks"),
        line("sharpness", GREEN, "drift.sharpness.ks"),
        line("embedding", BLUE, "drift.embedding.ks"),
    ];
    let poor = vec![
        line("dark", BLUE, "integrity.dark_share"),
        line("blurred", GREEN, "integrity.blurred_share"),
        line("damaged", ORANGE, "integrity.damaged_share"),
    ];
    let accuracy = vec![
        line("95 % interval", GRAY, "performance.accuracy_low"),
        line("", GRAY, "performance.accuracy_high"),
        line("accuracy", BLUE, "performance.accuracy"),
    ];
    let cards = [
        lines("Frames", vec![line("", BLUE, "integrity.frames")], &label, &short),
        lines("KS distance from the reference", distance, &label, &short),
        lines(
            "Largest change of a class's share",
            vec![line("", BLUE, "drift.classes.change")],
            &label,
            &percent,
        ),
        lines("Accuracy", accuracy, &label, &percent),
        lines("Poor images", poor, &label, &percent),
        lines("Latency, p99, in milliseconds", vec![line("", BLUE, "telemetry.latency_p99")], &label, &short),
    ];
    section("Trends", &cards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        monitor::{
            Reference,
            synthetic::{self, Scenario, TYPICAL, frames, reference},
        },
        traffic::Labels,
    };

    fn day(name: &str, scenario: Scenario, seed: u64) -> Report {
        let (records, labels) = frames(scenario, seed, 60);
        Report { day: name.into(), ..synthetic::labeled(&records, &labels, &reference(400)) }
    }

    #[test]
    fn the_headline_rates_the_day() {
        let good = render_page(&day("2026-11-24", TYPICAL, 1), &[], &[]);
        assert!(good.contains("<h1>no problems in 60 frames</h1>"), "{good}");
        assert!(good.contains("--level:var(--good)") && !good.contains("Trends"));
        let dark = Scenario { brightness: 0.05, ..TYPICAL };
        let bad = render_page(&day("2026-11-24", dark, 1), &[], &[]);
        assert!(bad.contains("<h1>problems found: dark images and brightness</h1>"));
    }

    #[test]
    fn untrusted_text_is_escaped() {
        let mut report = day("2026-11-24", TYPICAL, 1);
        let untrusted = "<script>alert('x')</script>";
        report.classes[0] = untrusted.into();
        report.reference = untrusted.into();
        report.versions.insert(untrusted.into(), 1);
        report.day = untrusted.into();
        let bias = report.bias.as_mut().unwrap();
        let rate = bias.groups.values().next().unwrap().clone();
        bias.groups.insert(untrusted.into(), rate);
        let performance = report.performance.as_mut().unwrap();
        performance.classes.insert(untrusted.into(), performance.average.clone());
        report.performance_by_version.insert(untrusted.into(), report.performance.clone().unwrap());
        let alert = Alert {
            number: 1,
            rule: untrusted.into(),
            environment: untrusted.into(),
            day: untrusted.into(),
            severity: untrusted.into(),
            value: 0.0,
            text: untrusted.into(),
            action: None,
            resolved: None,
            acknowledged: None,
        };
        let html = render_page(&report, &[report.clone()], &[alert]);
        assert!(!html.contains("<script") && html.matches("&lt;script&gt;").count() >= 8);
    }

    #[test]
    fn the_page_has_no_external_resources() {
        let days: Vec<_> = (1..9).map(|number| day(&format!("2026-11-0{number}"), TYPICAL, number)).collect();
        let html = render_page(&days[7], &days, &[]);
        let html = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(["http", "src=", "@import", "url("].iter().all(|it| !html.contains(it)));
        assert!(html.contains("Trends") && html.contains("\n11-01\n") && html.contains("\n11-07\n"));
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    }

    #[test]
    fn an_empty_day_has_a_page() {
        let report = synthetic::labeled(&[], &Labels::default(), &Reference::default());
        assert!(render_page(&report, &[], &[]).contains("<h1>no frames</h1>"));
    }
}
