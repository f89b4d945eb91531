//! HTML rendering of an application test's report: one self-contained file without scripts.

use std::{collections::BTreeMap, io::Cursor};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use image::ImageFormat;

use crate::{
    deploy::{
        apptest::report::{Check, Group, InvalidRequest, Misclassified, Report},
        escape_html,
    },
    digest::Digest,
    model::preprocess,
};

/// Largest side of a thumbnail in pixels.
const THUMBNAIL: u32 = 160;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:56em;margin:3em auto;padding:0 1em;\
color:#222;background:#fff}h1{font-size:1.6em;margin-bottom:0}h2{font-size:1.15em;margin-top:2em}\
p{margin:.3em 0}.quiet{color:#666}table{border-collapse:collapse}\
td,th{padding:.3em 1.2em .3em 0;text-align:left;vertical-align:top;border-bottom:1px solid #eee}\
th{font-weight:normal;color:#666}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
.m td.n,.m th.n{padding:.4em .9em}code{background:#f2f2f2;padding:.1em .3em;border-radius:3px;\
word-break:break-all}.name{white-space:nowrap}.yes{color:#186a3b}.no{color:#a93226;font-weight:600}\
.cards{display:flex;flex-wrap:wrap;gap:1em}.card{border:1px solid #e5e5e5;border-radius:6px;padding:.7em \
1.1em;\
min-width:7em}.card b{display:block;font-size:1.4em;font-weight:600}figure{margin:0;width:10em}\
figure img{width:10em;height:10em;object-fit:cover;border-radius:4px;background:#f2f2f2}\
figcaption{font-size:.85em;color:#444}\
@media(max-width:40em){body{margin:1em \
auto}td,th{padding-right:.7em}.name{white-space:normal}td.quiet{overflow-wrap:anywhere}}";

/// Renders the page. `bytes` returns the file of an image, for its thumbnail.
pub fn render(report: &Report, bytes: &dyn Fn(&Digest) -> Option<Vec<u8>>) -> String {
    let (word, class) = if report.passed() { ("passed", "yes") } else { ("failed", "no") };
    let version = escape_html(&report.version);
    let parts = [
        head(report, &version, word, class),
        section("Checks", &checks(report)),
        section("Numbers", &numbers(report)),
        section("Classes", &classes(report)),
        section("Confusion matrix (true class by predicted class)", &matrix(report)),
        section("Groups", &groups(report)),
        section("Invalid requests and burst", &robustness(report)),
        section("Misclassified images with the highest probability", &worst(report, bytes)),
    ];
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
<title>{version}: {word}</title><style>{STYLE}</style>{}</html>\n",
        parts.concat()
    )
}

fn section(name: &str, body: &str) -> String {
    if body.is_empty() { String::new() } else { format!("<h2>{name}</h2>{body}\n") }
}

fn head(report: &Report, version: &str, word: &str, class: &str) -> String {
    let failed = report.checks.iter().filter(|it| !it.passed).count();
    let found = match failed {
        0 => format!("all {} checks passed", report.checks.len()),
        failed => format!("{failed} of {} checks failed", report.checks.len()),
    };
    let data = &report.data;
    let damaged =
        if data.damaged == 0 { String::new() } else { format!(", {} of them damaged", data.damaged) };
    format!(
        "<h1>{version} <span class={class}>{word}</span></h1><p class=quiet>Application test of {}: \
        {found}.</p>\
<p class=quiet>Package <code>{}</code><br>{} images of <code>{}</code>{damaged}, digest <code>{}</code><br>\
Compared with {} on {} cores.</p>\n",
        escape_html(&report.when),
        report.package,
        data.images,
        escape_html(&data.name),
        data.digest.short(),
        escape_html(&report.engine),
        report.cores,
    )
}

fn checks(report: &Report) -> String {
    let row = |check: &Check| {
        let (word, class) = if check.passed { ("passed", "yes") } else { ("failed", "no") };
        let (name, found) = (escape_html(&check.name), escape_html(&check.found));
        format!("<tr><td class={class}>{word}<td class=name>{name}<td class=quiet>{found}")
    };
    format!("<table>{}</table>", report.checks.iter().map(row).collect::<String>())
}

fn numbers(report: &Report) -> String {
    let latency = &report.latency;
    let cards = [
        ("accuracy", percent(report.accuracy)),
        ("median latency", format!("{:.1} ms", latency.p50)),
        ("p95 latency", format!("{:.1} ms", latency.p95)),
        ("p99 latency", format!("{:.1} ms", latency.p99)),
        ("mean latency", format!("{:.1} ms", latency.mean)),
        ("images per second", format!("{:.0}", report.throughput)),
        ("images per second in a local loop", format!("{:.0}", report.loop_throughput)),
        ("errors", report.errors.to_string()),
    ];
    let card = |(name, value): &(&str, String)| {
        format!("<div class=card><b>{value}</b><span class=quiet>{name}</span></div>")
    };
    format!("<div class=cards>{}</div>", cards.iter().map(card).collect::<String>())
}

fn classes(report: &Report) -> String {
    let row = |(name, recall): (&String, &f64)| {
        let of = |values: &BTreeMap<String, f64>| percent(values.get(name).copied().unwrap_or(0.0));
        let images = report.groups.class.get(name).map_or(0, |it| it.images);
        let numbers = [of(&report.precision), percent(*recall), of(&report.f1), images.to_string()];
        format!("<tr><td>{}{}", escape_html(name), cells(&numbers))
    };
    format!(
        "<table><tr><th>class<th class=n>precision<th class=n>recall<th class=n>F1<th \
        class=n>images{}</table>",
        report.recall.iter().map(row).collect::<String>()
    )
}

fn cells(values: &[String]) -> String {
    values.iter().map(|it| format!("<td class=n>{it}")).collect()
}

fn matrix(report: &Report) -> String {
    let names =
        report.confusion.keys().map(|it| format!("<th class=n>{}", escape_html(it))).collect::<String>();
    let row = |(label, row): (&String, &BTreeMap<String, u64>)| {
        let all = row.values().sum::<u64>().max(1) as f64;
        let cell = |(predicted, count): (&String, &u64)| {
            // Correct cells are green and wrong ones red, darker with a larger share of the row.
            let color = if predicted == label { "46,139,87" } else { "192,57,43" };
            let depth = *count as f64 / all * 0.45;
            format!("<td class=n style='background:rgba({color},{depth:.2})'>{count}")
        };
        format!("<tr><td>{}{}", escape_html(label), row.iter().map(cell).collect::<String>())
    };
    let rows = report.confusion.iter().map(row).collect::<String>();
    format!("<table class=m><tr><th>true ↓ &nbsp; predicted →{names}{rows}</table>")
}

fn groups(report: &Report) -> String {
    let groups = &report.groups;
    let rows = |groups: &BTreeMap<String, Group>| -> String {
        let row = |(name, group): (&String, &Group)| {
            let values = [percent(group.accuracy), group.images.to_string()];
            format!("<tr><td>{}{}", escape_html(name), cells(&values))
        };
        groups.iter().map(row).collect()
    };
    let table = |name: &str, groups: &BTreeMap<String, Group>| {
        format!("<table><tr><th>{name}<th class=n>accuracy<th class=n>images{}</table>", rows(groups))
    };
    let mut text = format!("<p>The largest difference is {}.</p>", percent(groups.largest_difference));
    text.push_str(&table("class", &groups.class));
    if !groups.folder.is_empty() {
        text.push_str(&format!("<p></p>{}", table("folder", &groups.folder)));
    }
    text
}

fn robustness(report: &Report) -> String {
    let status = |code: u16| if code == 0 { "no answer".to_owned() } else { code.to_string() };
    let row = |request: &InvalidRequest| {
        format!("<tr><td>{}<td class=n>{}", escape_html(&request.name), status(request.status))
    };
    let rows = report.wrong_requests.iter().map(row).collect::<String>();
    let burst: Vec<String> =
        report.burst.iter().map(|(status, count)| format!("{count} with {}", escape_html(status))).collect();
    format!("<table><tr><th>request<th class=n>status{rows}</table><p>Burst: {}.</p>", burst.join(", "))
}

fn worst(report: &Report, bytes: &dyn Fn(&Digest) -> Option<Vec<u8>>) -> String {
    if report.worst.is_empty() {
        return "<p class=quiet>None: every image was classified correctly.</p>".to_owned();
    }
    let figure = |image: &Misclassified| {
        let jpeg = bytes(&image.digest).and_then(|it| thumbnail(&it));
        let tag = jpeg.map(|it| format!("<img alt='' src='data:image/jpeg;base64,{it}'>"));
        format!(
            "<figure>{}<figcaption>{}, predicted {}<br>{}<br><code>{}</code></figcaption></figure>",
            tag.unwrap_or_default(),
            escape_html(&image.label),
            escape_html(&image.class),
            percent(image.probability),
            image.digest.short(),
        )
    };
    format!("<div class=cards>{}</div>", report.worst.iter().map(figure).collect::<String>())
}

/// Returns a small JPEG as base64. It is re-encoded, so that only pixels of the untrusted file get into the
/// page.
fn thumbnail(bytes: &[u8]) -> Option<String> {
    let small = preprocess::decode(bytes).ok()?.thumbnail(THUMBNAIL, THUMBNAIL).to_rgb8();
    let mut jpeg = Vec::new();
    small.write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg).ok()?;
    Some(BASE64_STANDARD.encode(jpeg))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
