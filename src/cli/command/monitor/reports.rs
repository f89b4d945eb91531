//! Reports of days as files of the workspace: `monitor/ENV/DAY.json`, and a page beside each.

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

/// Earlier days whose numbers a report shows beside its own.
const TREND: usize = 30;

/// The reports of an environment that are here, by day.
pub struct Reports {
    folder: RepoPath,
    all: Vec<Report>,
}

impl Reports {
    /// Reads them; what is no report of its day is left out, and said.
    pub fn read(ctx: &Context<'_>, repo: &Repo, environment: &str) -> Result<Self> {
        let folder = RepoPath::from_text("monitor")?.join(environment.as_bytes())?;
        let mut all = Vec::new();
        if repo.files.stamp(&folder)?.is_none() {
            return Ok(Self { folder, all });
        }
        for (name, _) in repo.files.dir(&folder)?.names()? {
            let Some(day) = day_of(&name) else { continue };
            let path = folder.join(&name)?;
            let found = repo.files.read(&path).and_then(|it| Report::parse(&path.to_text(), &it));
            match found {
                Ok(report) if report.day == day.to_string() => all.push(report),
                Ok(_) => ctx.progress.warn(&format!("`{path}` is the report of another day: it is left out")),
                Err(error) => ctx.progress.warn(&format!("{}: it is left out", error.full_text())),
            }
        }
        Ok(Self { folder, all })
    }

    /// Takes the report of a day in and writes it; its file.
    pub fn write(&mut self, repo: &Repo, report: &Report) -> Result<RepoPath> {
        self.all.retain(|it| it.day != report.day);
        self.all.push(report.clone());
        self.all.sort_by(|one, two| one.day.cmp(&two.day));
        let file = self.folder.join(format!("{}.json", report.day).as_bytes())?;
        repo.files.write(&file, report.to_json()?.as_bytes(), Sync::Yes)?;
        Ok(file)
    }

    /// Writes the page of a day on which some alerts fire.
    pub fn write_page(&self, repo: &Repo, report: &Report, firing: &[Alert]) -> Result<RepoPath> {
        let page = self.folder.join(format!("{}.html", report.day).as_bytes())?;
        let before = self.all.iter().filter(|it| it.day < report.day).cloned().collect::<Vec<_>>();
        let before = &before[before.len().saturating_sub(TREND)..];
        repo.files.write(&page, monitor::render_page(report, before, firing).as_bytes(), Sync::Later)?;
        Ok(page)
    }

    pub fn of(&self, day: &str) -> Option<&Report> {
        self.all.iter().find(|it| it.day == day)
    }

    /// The numbers of all days.
    pub fn values(&self) -> std::collections::BTreeMap<String, Values> {
        self.all.iter().map(|it| (it.day.clone(), it.values())).collect()
    }
}

/// `2026-03-09.json`
fn day_of(name: &[u8]) -> Option<Day> {
    std::str::from_utf8(name).ok()?.strip_suffix(".json")?.parse().ok()
}
