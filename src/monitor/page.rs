//! A report as one page that needs nothing else: no scripts, no other files.

use std::collections::BTreeMap;

use plotters::style::RGBColor;

use crate::{
    alert::Alert,
    deploy::escape,
    monitor::{
        Drift, Level, Performance, Rate, Report,
        chart::{self, BLUE, GRAY, GREEN, Line, ORANGE},
        findings::{count, findings, headline, percent, short},
    },
};

/// Days that trends show at most, without the day itself.
const TREND: usize = 30;

const STYLE: &str = "\
:root{--ink:#1f2a37;--soft:#6b7583;--line:#e6e9ee;--good:#2f7d55;--watch:#b0730f;--bad:#bb3a36;--unknown:#7b8594}\
*{box-sizing:border-box}body{margin:0;background:#f5f6f8;color:var(--ink);font:15px/1.5 system-ui,sans-serif}\
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}\
header{background:#fff;border-left:6px solid var(--level);border-radius:8px;padding:18px 24px;margin-bottom:22px;\
box-shadow:0 1px 2px #0001}h1{font-size:1.55em;margin:0 0 .2em;line-height:1.25}\
h2{font-size:1.05em;margin:30px 0 10px;font-weight:600}p{margin:.2em 0;color:var(--soft)}\
.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(340px,1fr))}\
.card,figure{background:#fff;border-radius:8px;padding:12px 16px;margin:0;box-shadow:0 1px 2px #0001;overflow-x:auto}\
figcaption,.title{font-weight:600;font-size:.92em;display:flex;flex-wrap:wrap;justify-content:space-between;\
gap:0 1em;margin-bottom:6px}figcaption small,.title small{color:var(--soft);font-weight:400}\
svg{display:block;width:100%;height:auto}svg text{font-family:system-ui,sans-serif}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
td,th{padding:5px 12px 5px 0;text-align:left;vertical-align:top;border-top:1px solid var(--line);font-weight:400}\
tr:first-child td,tr:first-child th{border-top:0}.grid td,.grid th{white-space:nowrap}th{color:var(--soft);font-size:.9em}\
.mark{display:inline-block;min-width:5.6em;padding:0 .6em;border-radius:9px;color:#fff;font-size:.82em;text-align:center}\
.good{background:#e4f1ea;color:var(--good)}.watch{background:var(--watch)}.bad{background:var(--bad)}.unknown{background:var(--unknown)}\
.key{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin:0 .3em 0 .7em}\
.bar{height:9px;border-radius:2px;margin:2px 0;min-width:1px}.number{text-align:right}\
.cell{text-align:center;min-width:4em;border:2px solid #fff}\
@media print{body{background:#fff}header,.card,figure{box-shadow:none;border:1px solid var(--line)}}";

/// The page of a day on which some alerts fire; `earlier` are reports of days before, in any order.
pub fn page(report: &Report, earlier: &[Report], firing: &[Alert]) -> String {
    let (level, sentence) = headline(report, firing);
    let mut days: Vec<&Report> = earlier.iter().filter(|it| it.day < report.day).collect();
    days.sort_by(|one, two| one.day.cmp(&two.day));
    days.drain(..days.len().saturating_sub(TREND));
    days.push(report);
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
<title>{day}: {word}</title><style>{STYLE}</style>\n<main><header style='--level:var(--{level})'><h1>{sentence}</h1>{about}\
</header>\n{findings}{pictures}{said}{judged}{machine}{trends}</main>\n",
        day = escape(&report.day),
        word = level.word(),
        level = class_of(level),
        sentence = escape(&sentence),
        about = about(report),
        findings = table_of_findings(report, firing),
        pictures = pictures(report),
        said = said(report),
        judged = judged(report),
        machine = machine(report),
        trends = trends(&days),
    )
}

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
        escape(&report.day),
        if versions.is_empty() { String::new() } else { format!("Answered by {}.", escape(&versions)) },
        escape(&report.reference),
    )
}

fn section(title: &str, cards: &[String]) -> String {
    let cards: String = cards.concat();
    if cards.is_empty() {
        return String::new();
    }
    format!("<h2>{}</h2><div class=grid>{cards}</div>\n", escape(title))
}

fn figure(title: &str, note: &str, svg: &str) -> String {
    format!("<figure><figcaption>{} <small>{note}</small></figcaption>{svg}</figure>", escape(title))
}

fn key(color: RGBColor, name: &str) -> String {
    format!("<span class=key style='background:{}'></span>{}", chart::css(color), escape(name))
}

fn table_of_findings(report: &Report, firing: &[Alert]) -> String {
    let row = |it: crate::monitor::Finding| {
        let (class, word) = (class_of(it.level), it.level.word());
        let (subject, text) = (escape(&it.subject), escape(&it.text));
        format!("<tr><td><span class='mark {class}'>{word}</span><td>{subject}<td>{text}")
    };
    let rows: String = findings(report, firing).into_iter().map(row).collect();
    format!("<h2>Findings</h2><div class=card><table>{rows}</table></div>\n")
}

fn pictures(report: &Report) -> String {
    let shown = [
        ("brightness", "Brightness"),
        ("sharpness", "Sharpness"),
        ("embedding", "Embedding, distance from the middle"),
    ];
    let cards: Vec<_> = shown
        .iter()
        .filter_map(|(name, title)| {
            let drift = report.drift.get(*name)?;
            let note = format!("{}{}", key(GRAY, "reference"), key(BLUE, "this day"));
            (!drift.histogram.reference.is_empty())
                .then(|| figure(title, &note, &chart::histogram(&drift.histogram)))
        })
        .collect();
    section("Pictures against the reference", &cards)
}

fn said(report: &Report) -> String {
    let mut cards = Vec::new();
    if let Some(drift) = report.drift.get("classes") {
        cards.push(shares(drift, &report.classes));
    }
    let frames: Vec<_> = report.hours.iter().map(|it| it.frames).collect();
    cards.push(figure("Frames by hour", "", &chart::bars(&frames, &clock)));
    section("What came and what was said", &cards)
}

fn shares(drift: &Drift, classes: &[String]) -> String {
    let histogram = &drift.histogram;
    let total = |counts: &[u64]| counts.iter().sum::<u64>().max(1) as f64;
    let totals = (total(&histogram.reference), total(&histogram.day));
    let bar = |color: RGBColor, share: f64| {
        format!("<div class=bar style='width:{:.1}%;background:{}'></div>", share * 100.0, chart::css(color))
    };
    let row = |(class, (known, seen)): (&String, (&u64, &u64))| {
        let (one, two) = (*known as f64 / totals.0, *seen as f64 / totals.1);
        let (bars, class) = (bar(GRAY, one) + &bar(BLUE, two), escape(class));
        format!(
            "<tr><td>{class}<td style='width:55%'>{bars}<td class=number>{} → {}",
            percent(one),
            percent(two)
        )
    };
    let pairs = histogram.reference.iter().zip(&histogram.day);
    let rows: String = classes.iter().zip(pairs).map(row).collect();
    let keys = key(GRAY, "reference") + &key(BLUE, "this day");
    format!(
        "<div class=card><div class=title>Classes said <small>{keys}</small></div><table>{rows}</table></div>"
    )
}

fn judged(report: &Report) -> String {
    let mut cards = Vec::new();
    if let Some(it) = &report.performance {
        cards.push(confusion(it, &report.classes));
        cards.push(by_class(it));
    }
    if let Some(it) = &report.bias {
        cards.push(rates("Errors by group", &it.groups));
    }
    if !report.performance_by_version.is_empty() {
        cards.push(by_version(&report.performance_by_version));
    }
    section("Against labels", &cards)
}

fn confusion(it: &Performance, classes: &[String]) -> String {
    let head: String = classes.iter().map(|it| format!("<th class=cell>{}", escape(it))).collect();
    let mut rows = String::new();
    for (at, (class, counts)) in classes.iter().zip(&it.confusion).enumerate() {
        let whole = counts.iter().sum::<u64>().max(1) as f64;
        rows.push_str(&format!("<tr><th>{}", escape(class)));
        for (said, count) in counts.iter().enumerate() {
            let color = if said == at { "49,103,160" } else { "187,58,54" };
            let shade = *count as f64 / whole * 0.75;
            rows.push_str(&format!("<td class=cell style='background:rgba({color},{shade:.2})'>{count}"));
        }
    }
    let title = "Confusion <small>rows: what it was; columns: what was said</small>";
    format!("<div class=card><div class=title>{title}</div><table><tr><th>{head}{rows}</table></div>")
}

fn card(title: &str, head: &[&str], rows: &str) -> String {
    let head: String = head.iter().map(|it| format!("<th>{it}")).collect();
    format!("<div class=card><div class=title>{}</div><table><tr>{head}{rows}</table></div>", escape(title))
}

fn by_class(it: &Performance) -> String {
    let share = |it: Option<f64>| it.map_or_else(|| "–".into(), percent);
    let all = "mean".to_owned();
    let rows = it.classes.iter().chain([(&all, &it.average)]).map(|(name, it)| {
        let numbers = [share(it.precision), share(it.recall), share(it.f1)].join("<td>");
        format!("<tr><td>{}<td>{}<td>{numbers}", escape(name), it.labeled)
    });
    card("By class", &["", "labels", "precision", "recall", "F1"], &rows.collect::<String>())
}

fn rates(title: &str, rates: &BTreeMap<String, Rate>) -> String {
    let rows = rates.iter().map(|(name, it)| {
        let span = if it.enough {
            format!("{} to {}", percent(it.span.low), percent(it.span.high))
        } else {
            "too few".into()
        };
        format!(
            "<tr><td>{}<td>{} of {}<td>{}<td>{span}",
            escape(name),
            it.wrong,
            it.labeled,
            percent(it.rate)
        )
    });
    card(title, &["", "wrong", "rate", "95 % interval"], &rows.collect::<String>())
}

fn by_version(versions: &BTreeMap<String, Performance>) -> String {
    let rows = versions.iter().map(|(name, it)| {
        let span = format!("{} to {}", percent(it.accuracy_span.low), percent(it.accuracy_span.high));
        format!("<tr><td>{}<td>{}<td>{}<td>{span}", escape(name), it.labeled, percent(it.accuracy))
    });
    card("By version", &["", "labels", "accuracy", "95 % interval"], &rows.collect::<String>())
}

/// Lines with their keys; nothing where no line has a point.
fn lines(
    title: &str,
    all: Vec<Line>,
    label: &dyn Fn(f64) -> String,
    shown: &dyn Fn(f64) -> String,
) -> String {
    let there: Vec<Line> = all.into_iter().filter(|it| it.points.iter().any(Option::is_some)).collect();
    if there.is_empty() {
        return String::new();
    }
    let named = there.iter().filter(|it| !it.name.is_empty());
    let keys: String = named.map(|it| key(it.color, &it.name)).collect();
    figure(title, &keys, &chart::lines(&there, label, shown))
}

fn machine(report: &Report) -> String {
    let line = |name: &str, color, value: &dyn Fn(&crate::monitor::Hour) -> Option<f64>| Line {
        name: name.to_owned(),
        color,
        points: report.hours.iter().map(value).collect(),
    };
    let latency = vec![line("", BLUE, &|it| it.latency_p95)];
    let load = vec![line("processor", BLUE, &|it| it.cpu), line("memory", ORANGE, &|it| it.memory)];
    let heat = vec![line("", ORANGE, &|it| it.temperature)];
    let queue = vec![line("", GREEN, &|it| it.queue.map(|it| it as f64))];
    let cards = [
        lines("Milliseconds to an answer, 95 %", latency, &clock, &short),
        lines("Load", load, &clock, &percent),
        lines("Degrees Celsius", heat, &clock, &short),
        lines("Longest queue", queue, &clock, &short),
    ];
    section("Machine by hour", &cards)
}

fn clock(hour: f64) -> String {
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
    let label = |at: f64| {
        // `11-24`; between two days there is none.
        let day = days.get(at.round() as usize).filter(|_| at.fract().abs() < 1e-9);
        day.map(|it| it.day.chars().skip(5).collect()).unwrap_or_default()
    };
    let apart = vec![
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
        lines("Distance from the reference, KS", apart, &label, &short),
        lines(
            "Largest change of a class's share",
            vec![line("", BLUE, "drift.classes.change")],
            &label,
            &percent,
        ),
        lines("Accuracy", accuracy, &label, &percent),
        lines("Poor pictures", poor, &label, &percent),
        lines(
            "Milliseconds to an answer, 99 %",
            vec![line("", BLUE, "telemetry.latency_p99")],
            &label,
            &short,
        ),
    ];
    section("Over days", &cards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        monitor::drawn::{USUAL, World, frames, labeled, reference},
        traffic::Labels,
    };

    fn day(name: &str, world: World, seed: u64) -> Report {
        let (records, labels) = frames(world, seed, 60);
        Report { day: name.into(), ..labeled(&records, &labels, &reference(400)) }
    }

    #[test]
    fn the_page_says_at_once_how_the_day_was() {
        let good = page(&day("2026-11-24", USUAL, 1), &[], &[]);
        assert!(good.contains("<h1>A good day: 60 frames, nothing stands out.</h1>"), "{good}");
        assert!(good.contains("--level:var(--good)") && !good.contains("Over days"));
        let bad = page(&day("2026-11-24", World { light: 0.05, ..USUAL }, 1), &[], &[]);
        assert!(bad.contains("<h1>Not a good day: dark pictures and brightness.</h1>"));
    }

    #[test]
    fn foreign_text_stays_text() {
        let mut report = day("2026-11-24", USUAL, 1);
        let foreign = "<script>alert('x')</script>";
        report.classes[0] = foreign.into();
        report.reference = foreign.into();
        report.versions.insert(foreign.into(), 1);
        report.day = foreign.into();
        let bias = report.bias.as_mut().unwrap();
        let rate = bias.groups.values().next().unwrap().clone();
        bias.groups.insert(foreign.into(), rate);
        let performance = report.performance.as_mut().unwrap();
        performance.classes.insert(foreign.into(), performance.average.clone());
        report.performance_by_version.insert(foreign.into(), report.performance.clone().unwrap());
        let foreign_alert = Alert {
            number: 1,
            rule: foreign.into(),
            environment: foreign.into(),
            day: foreign.into(),
            severity: foreign.into(),
            value: 0.0,
            text: foreign.into(),
            action: None,
            resolved: None,
            acknowledged: None,
        };
        let found = page(&report, &[report.clone()], &[foreign_alert]);
        assert!(!found.contains("<script") && found.matches("&lt;script&gt;").count() >= 8);
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let days: Vec<_> = (1..9).map(|it| day(&format!("2026-11-0{it}"), USUAL, it)).collect();
        let found = page(&days[7], &days, &[]);
        let found = found.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(["http", "src=", "@import", "url("].iter().all(|it| !found.contains(it)));
        assert!(found.contains("Over days") && found.contains("\n11-01\n") && found.contains("\n11-07\n"));
        assert_eq!(found.matches("<svg").count(), found.matches("</svg>").count());
    }

    #[test]
    fn a_day_of_which_nothing_is_known_has_a_page() {
        let report = labeled(&[], &Labels::default(), &crate::monitor::Reference::default());
        assert!(page(&report, &[], &[]).contains("<h1>No frames came.</h1>"));
    }
}
