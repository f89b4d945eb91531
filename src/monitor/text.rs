//! A report for a terminal.

use crate::monitor::{
    Finding, Report,
    findings::{count, findings, headline, percent},
};

/// The day in a few lines and narrow tables.
pub fn text(report: &Report) -> String {
    let (_, sentence) = headline(report);
    let rows = count(report.reference_rows, "row");
    let mut text = format!("{}: {sentence}\nreference: {} ({rows})\n", report.day, report.reference);
    let versions =
        report.versions.iter().map(|(name, frames)| format!("{name} ({})", count(*frames, "frame")));
    if !report.versions.is_empty() {
        text.push_str(&format!("answered by: {}\n", versions.collect::<Vec<_>>().join(", ")));
    }
    text.push('\n');
    let line = |it: Finding| [it.level.word().to_owned(), it.subject, it.text];
    text.push_str(&table(&findings(report).into_iter().map(line).collect::<Vec<_>>()));
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

    #[test]
    fn a_dark_day_reads_so() {
        let (records, labels) = frames(World { light: 0.05, ..USUAL }, 1, 60);
        let report = labeled(&records, &labels, &reference(400));
        assert_eq!(text(&report), "");
    }

    #[test]
    fn foreign_names_do_not_reach_the_terminal_as_commands() {
        let found = table(&[["a\u{1b}[2J".into(), "b\n".into(), "c".into()]]);
        assert_eq!(found, "a[2J  b  c\n");
    }
}
