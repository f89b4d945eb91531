//! Terminal view of a report: the headline, a table of findings, and a table of metrics by class.

use crate::{
    alert::Alert,
    monitor::{
        Finding, Report,
        findings::{count, findings, headline, percent},
    },
};

/// Renders a report and its firing alerts as text. Control characters are removed from the cells of its
/// tables.
pub fn render_text(report: &Report, firing: &[Alert]) -> String {
    let (_, headline) = headline(report, firing);
    let rows = count(report.reference_rows, "row");
    let mut text = format!("{}: {headline}\nreference: {} ({rows})\n", report.day, report.reference);
    let versions =
        report.versions.iter().map(|(name, frames)| format!("{name} ({})", count(*frames, "frame")));
    if !report.versions.is_empty() {
        text.push_str(&format!("answered by: {}\n", versions.collect::<Vec<_>>().join(", ")));
    }
    text.push('\n');
    let line = |finding: Finding| [finding.level.word().to_owned(), finding.subject, finding.text];
    text.push_str(&table(&findings(report, firing).into_iter().map(line).collect::<Vec<_>>()));
    if let Some(performance) = &report.performance {
        let share = |value: Option<f64>| value.map_or_else(|| "-".into(), percent);
        let rows = performance.classes.iter().map(|(name, class)| {
            let numbers = format!(
                "precision {}, recall {}, F1 {}",
                share(class.precision),
                share(class.recall),
                share(class.f1)
            );
            [name.clone(), count(class.labeled, "label"), numbers]
        });
        text.push('\n');
        text.push_str(&table(&rows.collect::<Vec<_>>()));
    }
    text
}

/// Aligns rows in columns. Control characters are removed, since names come from untrusted files.
fn table(rows: &[[String; 3]]) -> String {
    let clean = |text: &String| text.chars().filter(|it| !it.is_control()).collect::<String>();
    let rows: Vec<[String; 3]> =
        rows.iter().map(|row| [clean(&row[0]), clean(&row[1]), clean(&row[2])]).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    rows.iter().map(|row| format!("{:first$}  {:second$}  {}\n", row[0], row[1], row[2])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::synthetic::{Scenario, TYPICAL, frames, labeled, reference};

    const DARK: &str = "\
2026-11-24: problems found: dark images and brightness
reference: training side of pets@v0.1.0 (400 rows)
answered by: pets@v0.1.0 (60 frames)

bad   dark images          43 of 60, 72 %
bad   brightness           drifted: KS 0.97, mean 0.448 → 0.063, p 8e-15, PSI 4.12 (expected 0.17)
good  frames               60 frames
good  damaged images       none
good  overexposed images   none
good  blurred images       none
good  duplicates           none
good  errors               none
good  frozen camera        none
good  contrast             no drift: KS 0.17, mean 0.203 → 0.197, p 0.332, PSI 0.19 (expected 0.17)
good  sharpness            no drift: KS 0.09, mean 0.597 → 0.59, p 0.931, PSI 0.07 (expected 0.17)
good  share of red         no drift: KS 0.14, mean 0.339 → 0.339, p 0.332, PSI 0.15 (expected 0.17)
good  share of green       no drift: KS 0.14, mean 0.33 → 0.328, p 0.332, PSI 0.12 (expected 0.17)
good  share of blue        no drift: KS 0.00, mean 0.33 → 0.33, p 1, PSI 0.00 (expected 0.00)
good  embedding            no drift: KS 0.14, mean 0.989 → 0.971, p 0.332, PSI 0.14 (expected 0.17)
good  predicted classes    no drift: `cat` 51 % → 53 %, p 0.931, PSI 0.00 (expected 0.02)
good  accuracy             95 % of 60 labels, 95 % interval 86 % to 98 %
good  error rate by class  `dog` is 4 points above `cat`, p 0.514
good  error rate by group  `afternoon` is 3 points above `morning`, p 0.554
good  latency              median 20 ms, p99 20 ms
good  cpu                  25 % on average, 30 % at most
good  memory               40 % on average, 40 % at most
good  disk                 30 % on average, 30 % at most
good  temperature          52 °C on average, 55 °C at most

cat  31 labels  precision 94 %, recall 97 %, F1 95 %
dog  29 labels  precision 96 %, recall 93 %, F1 95 %
";

    #[test]
    fn a_dark_day_is_rendered_as_text() {
        let (records, labels) = frames(Scenario { brightness: 0.05, ..TYPICAL }, 1, 60);
        let report = labeled(&records, &labels, &reference(400));
        assert_eq!(render_text(&report, &[]), DARK);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let found = table(&[["a\u{1b}[2J".into(), "b\n".into(), "c".into()]]);
        assert_eq!(found, "a[2J  b  c\n");
    }
}
