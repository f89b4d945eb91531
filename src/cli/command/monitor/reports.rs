//! Stored reports of an environment: reads and writes `monitor/ENV/DAY.json` and the HTML page beside each.

use crate::{
    alert::{Alert, Values},
    cli::Context,
    error::Result,
    fs::Sync,
    monitor::{self, Report},
    path::RepoPath,
    repo::Repo,
    time::Day,
};

/// Largest number of earlier days that the page of a day shows as trends.
const MAX_TREND_DAYS: usize = 30;

/// Reports of an environment in the workspace, ordered by day once one is written.
pub struct Reports {
    folder: RepoPath,
    all: Vec<Report>,
}

impl Reports {
    /// Reads all reports. Files that are not the report of their day are skipped with a warning.
    pub fn read(ctx: &Context<'_>, repo: &Repo, environment: &str) -> Result<Self> {
        let folder = RepoPath::from_text("monitor")?.join(environment.as_bytes())?;
        let mut all = Vec::new();
        if repo.files.stat(&folder)?.is_none() {
            return Ok(Self { folder, all });
        }
        for (name, _) in repo.files.dir(&folder)?.names()? {
            let Some(day) = day_of(&name) else { continue };
            let path = folder.join(&name)?;
            let report = repo.files.read(&path).and_then(|bytes| Report::parse(&path.to_text(), &bytes));
            match report {
                Ok(report) if report.day == day.to_string() => all.push(report),
                Ok(_) => ctx.progress.warn(&format!("`{path}` is the report of another day; skipped")),
                Err(error) => ctx.progress.warn(&format!("{}; skipped", error.chain_text())),
            }
        }
        Ok(Self { folder, all })
    }

    /// Adds or replaces the report of a day and writes it; returns the path of its file.
    pub fn write(&mut self, repo: &Repo, report: &Report) -> Result<RepoPath> {
        self.all.retain(|other| other.day != report.day);
        self.all.push(report.clone());
        self.all.sort_by(|one, two| one.day.cmp(&two.day));
        let file = self.folder.join(format!("{}.json", report.day).as_bytes())?;
        repo.files.write(&file, report.to_json()?.as_bytes(), Sync::Now)?;
        Ok(file)
    }

    /// Writes the HTML page of a day and its firing alerts; returns its path.
    pub fn write_page(&self, repo: &Repo, report: &Report, firing: &[Alert]) -> Result<RepoPath> {
        let page = self.folder.join(format!("{}.html", report.day).as_bytes())?;
        let before = self.all.iter().filter(|other| other.day < report.day).cloned().collect::<Vec<_>>();
        let before = &before[before.len().saturating_sub(MAX_TREND_DAYS)..];
        repo.files.write(&page, monitor::render_page(report, before, firing).as_bytes(), Sync::Later)?;
        Ok(page)
    }

    /// Returns the report of a day.
    pub fn of(&self, day: &str) -> Option<&Report> {
        self.all.iter().find(|report| report.day == day)
    }

    /// Returns the values of all reports by day.
    pub fn values(&self) -> std::collections::BTreeMap<String, Values> {
        self.all.iter().map(|report| (report.day.clone(), report.values())).collect()
    }
}

/// Parses the day from a file name such as `2026-03-09.json`.
fn day_of(name: &[u8]) -> Option<Day> {
    std::str::from_utf8(name).ok()?.strip_suffix(".json")?.parse().ok()
}
