//! A report for a terminal.

use crate::{
    alert::Alert,
    monitor::{
        Finding, Report,
        findings::{count, findings, headline, percent},
    },
};

/// The day, on which some alerts fire, in a few lines and narrow tables.
pub fn text(report: &Report, firing: &[Alert]) -> String {
    let (_, sentence) = headline(report, firing);
    let rows = count(report.reference_rows, "row");
    let mut text = format!("{}: {sentence}\nreference: {} ({rows})\n", report.day, report.reference);
    let versions =
        report.versions.iter().map(|(name, frames)| format!("{name} ({})", count(*frames, "frame")));
    if !report.versions.is_empty() {
        text.push_str(&format!("answered by: {}\n", versions.collect::<Vec<_>>().join(", ")));
    }
    text.push('\n');
    let line = |it: Finding| [it.level.word().to_owned(), it.subject, it.text];
    text.push_str(&table(&findings(report, firing).into_iter().map(line).collect::<Vec<_>>()));
    if let Some(performance) = &report.performance {
        let share = |it: Option<f64>| it.map_or_else(|| "-".into(), percent);
        let rows = performance.classes.iter().map(|(name, it)| {
            let numbers = format!(
                "precision {}, recall {}, F1 {}",
                share(it.precision),
                share(it.recall),
                share(it.f1)
            );
            [name.clone(), count(it.labeled, "label"), numbers]
        });
        text.push('\n');
        text.push_str(&table(&rows.collect::<Vec<_>>()));
    }
    text
}

/// Columns as wide as their widest text; control characters of foreign names stay out of the terminal.
fn table(rows: &[[String; 3]]) -> String {
    let clean = |it: &String| it.chars().filter(|it| !it.is_control()).collect::<String>();
    let rows: Vec<[String; 3]> =
        rows.iter().map(|it| [clean(&it[0]), clean(&it[1]), clean(&it[2])]).collect();
    let width = |at: usize| rows.iter().map(|it| it[at].chars().count()).max().unwrap_or(0);
    let (one, two) = (width(0), width(1));
    rows.iter().map(|it| format!("{:one$}  {:two$}  {}\n", it[0], it[1], it[2])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::drawn::{USUAL, World, frames, labeled, reference};

    const DARK: &str = "\
2026-11-24: Not a good day: dark pictures and brightness.
reference: training side of pets@v0.1.0 (400 rows)
answered by: pets@v0.1.0 (60 frames)

bad   dark pictures          43 of 60, 72 %
bad   brightness             drifted: KS 0.97, mean 0.448 → 0.063, p 8e-15, PSI 4.12 (by chance 0.17)
good  frames                 60 frames
good  damaged pictures       none
good  overexposed pictures   none
good  blurred pictures       none
good  duplicates             none
good  errors                 none
good  frozen camera          none
good  contrast               as the reference: KS 0.17, mean 0.203 → 0.197, p 0.332, PSI 0.19 (by chance 0.17)
good  sharpness              as the reference: KS 0.09, mean 0.597 → 0.59, p 0.931, PSI 0.07 (by chance 0.17)
good  share of red           as the reference: KS 0.14, mean 0.339 → 0.339, p 0.332, PSI 0.15 (by chance 0.17)
good  share of green         as the reference: KS 0.14, mean 0.33 → 0.328, p 0.332, PSI 0.12 (by chance 0.17)
good  share of blue          as the reference: KS 0.00, mean 0.33 → 0.33, p 1, PSI 0.00 (by chance 0.00)
good  embedding              as the reference: KS 0.14, mean 0.989 → 0.971, p 0.332, PSI 0.14 (by chance 0.17)
good  classes said           as the reference: `cat` 51 % → 53 %, p 0.931, PSI 0.00 (by chance 0.02)
good  accuracy               95 % of 60 labels, 95 % interval 86 % to 98 %
good  errors across classes  errors on `dog` are 4 points above `cat`, p 0.514
good  errors across groups   errors on `afternoon` are 3 points above `morning`, p 0.554
good  time to answer         half within 20 ms, 99 % within 20 ms
good  processor              25 % on average, 30 % at most
good  memory                 40 % on average, 40 % at most
good  disk                   30 % on average, 30 % at most
good  temperature            52 °C on average, 55 °C at most

cat  31 labels  precision 94 %, recall 97 %, F1 95 %
dog  29 labels  precision 96 %, recall 93 %, F1 95 %
";

    #[test]
    fn a_dark_day_reads_so() {
        let (records, labels) = frames(World { light: 0.05, ..USUAL }, 1, 60);
        let report = labeled(&records, &labels, &reference(400));
        assert_eq!(text(&report, &[]), DARK);
    }

    #[test]
    fn foreign_names_do_not_reach_the_terminal_as_commands() {
        let found = table(&[["a\u{1b}[2J".into(), "b\n".into(), "c".into()]]);
        assert_eq!(found, "a[2J  b  c\n");
    }
}
