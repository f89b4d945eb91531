//! Runs the actions of alerts: rollback and retraining. An action is due while its alert fires and no action
//! of its kind has succeeded since the alert was raised, so that a failed one is retried by a later `mlx
//! monitor run`.

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

/// Runs each kind of action that is due for an alert up to `day`, each at most once, and returns one line per
/// action with its outcome.
pub fn run_due_actions(
    ctx: &Context<'_>,
    repo: &Repo,
    environment: &str,
    day: &str,
    rules: &[Rule],
    reports: &Reports,
) -> Result<Vec<String>> {
    let mut outcomes = Vec::new();
    for action in [Action::Rollback, Action::Retrain] {
        let events = || ledger::read(&repo.git, ledger::tip(&repo.git)?.as_ref());
        if alert::due(rules, environment, day, action, &events()?).is_none() {
            continue;
        }
        // Another `mlx monitor run` may be running the action: check again under the lock.
        let _lock = fs::lock(&repo.shared, &RepoPath::from_text("act.lock")?)?;
        let Some(alert) = alert::due(rules, environment, day, action, &events()?) else { continue };
        let why = format!("alert `{}`: {}", alert.rule, alert.text);
        let outcome = match action {
            Action::Rollback => roll_back(repo, environment, &alert, reports, &why),
            Action::Retrain => retrain_candidate(ctx, repo, environment, &why),
        };
        // A failed action does not fail the command: the alert is published already.
        outcomes.push(outcome.unwrap_or_else(|error| {
            ctx.progress.warn(&format!("the action `{}` failed: {}", action.name(), error.chain_text()));
            format!("{} failed: {}", action.name(), error.chain_text())
        }));
    }
    Ok(outcomes)
}

/// Rolls back the version that serves, provided that it answered on the alert's day.
fn roll_back(repo: &Repo, environment: &str, alert: &Alert, reports: &Reports, why: &str) -> Result<String> {
    let day = &alert.day;
    let Some(report) = reports.of(day) else {
        return Ok(format!("rollback skipped: the report of {day} is missing"));
    };
    let mut models: Vec<&str> =
        report.versions.keys().filter_map(|name| Some(name.split_once('@')?.0)).collect();
    models.dedup();
    let model = if let [one] = models[..] { Some(one) } else { None };
    let model = release::served_model(repo, model, environment)?;
    let all = releases::releases(&repo.git, Some(&model), environment)?;
    if let Some(serving) = releases::active_releases(&all).last().map(|it| &it.message.version)
        && !report.versions.contains_key(serving)
    {
        return Ok(format!("rollback skipped: {serving} serves now, but did not answer on {day}"));
    }
    release::rollback(repo, Some(&model), environment, Some(why))
        .map(|it| format!("rolled back: {}", it.version()))
}

/// Retrains the model of the environment and returns a line about the candidate.
fn retrain_candidate(ctx: &Context<'_>, repo: &Repo, environment: &str, why: &str) -> Result<String> {
    let data = RepoPath::from_text("data")?;
    let request = retrain::Request { environment, model: None, data, why: Some(why) };
    let outcome = retrain::retrain(ctx, repo, &request)?;
    let candidate = outcome.candidate();
    Ok(if outcome.is_new() {
        format!("retrained: {candidate} is a new candidate")
    } else {
        format!("retrained: {candidate} has exactly this package already, no new candidate")
    })
}
