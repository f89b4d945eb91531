//! What alerts set off. An action is due while its alert fires and nothing of its kind happened since: what failed
//! or was held back is done by a later look.

use crate::{
    alert::{self, Alert},
    cli::{
        Context,
        command::{monitor::reports::Reports, release, retrain},
    },
    error::Result,
    fs, ledger,
    path::RepoPath,
    policy::{Action, Rule},
    release as releases,
    repo::Repo,
};

/// Does what is due up to a day, each kind of action once; what became of it.
pub fn act(
    ctx: &Context<'_>,
    repo: &Repo,
    environment: &str,
    day: &str,
    rules: &[Rule],
    reports: &Reports,
) -> Result<Vec<String>> {
    let mut told = Vec::new();
    for action in [Action::Rollback, Action::Retrain] {
        let events = || ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref());
        if alert::due(rules, environment, day, action, &events()?).is_none() {
            continue;
        }
        // Another look at the same day may be at it.
        let _alone = fs::lock(&repo.shared, &RepoPath::from_text("act.lock")?)?;
        let Some(alert) = alert::due(rules, environment, day, action, &events()?) else { continue };
        let why = format!("alert `{}`: {}", alert.rule, alert.text);
        let done = match action {
            Action::Rollback => roll_back(repo, environment, &alert, reports, &why),
            Action::Retrain => again(ctx, repo, environment, &why),
        };
        // The alert stands, whatever became of its action.
        told.push(done.unwrap_or_else(|error| {
            ctx.progress.warn(&format!("{} could not be done: {}", action.name(), error.full_text()));
            format!("{} failed: {}", action.name(), error.full_text())
        }));
    }
    Ok(told)
}

/// Takes back the version that serves, if it is the one that answered on the alert's day.
fn roll_back(repo: &Repo, environment: &str, alert: &Alert, reports: &Reports, why: &str) -> Result<String> {
    let day = &alert.day;
    let Some(report) = reports.of(day) else {
        return Ok(format!("rollback not done: there is no report of {day} here"));
    };
    let mut models: Vec<&str> = report.versions.keys().filter_map(|it| Some(it.split_once('@')?.0)).collect();
    models.dedup();
    let model = if let [one] = models[..] { Some(one) } else { None };
    let model = release::served_model(repo, model, environment)?;
    let all = releases::releases(&repo.git, Some(&model), environment)?;
    if let Some(serving) = releases::serving(&all).last().map(|it| &it.message.version)
        && !report.versions.contains_key(serving)
    {
        return Ok(format!("rollback not done: {serving} serves and did not answer on {day}"));
    }
    release::rollback(repo, Some(&model), environment, Some(why))
        .map(|it| format!("rolled back: {}", it.version()))
}

fn again(ctx: &Context<'_>, repo: &Repo, environment: &str, why: &str) -> Result<String> {
    let data = RepoPath::from_text("data")?;
    let asked = retrain::Request { environment, model: None, data, why: Some(why) };
    let found = retrain::retrain(ctx, repo, &asked)?;
    let candidate = found.candidate();
    Ok(if found.is_new() {
        format!("retrained: {candidate} is a candidate")
    } else {
        format!("retrained: {candidate} came out again, no new candidate")
    })
}
