//! Plans a run: which stages would run or be restored, and why. Planning changes nothing.
//!
//! A stage runs when its inputs or its definition changed, unless the run cache has a run with the same
//! inputs. A plan and a run check the same things: a stage that a run would refuse is blocked in the plan.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    document,
    error::{Error, Result},
    path::RepoPath,
    pipeline::{
        Pipeline, Pipelines, Records, Selection, Stage, StageId, StageRecord, check::Checker, gone,
        inputs::Inputs, run_cache,
    },
    pointer::{Content, Pointer},
    progress::Silent,
    workspace::State,
};

/// Text for a result that was recorded without a run.
pub const NOT_RUN: &str = "recorded, not run";

/// Planned action for a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlannedAction {
    Run,
    Restore,
    Unchanged,
}

/// A stage of a plan, with the reasons for its action.
#[derive(Clone, Debug)]
pub struct Step {
    pub id: StageId,
    /// None if the stage cannot run: a run would refuse it, or a stage that it needs.
    pub action: Option<PlannedAction>,
    pub reasons: Vec<String>,
    /// True if its present result was recorded without a run.
    pub not_run: bool,
}

/// Steps in the order of a run.
#[derive(Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Stages that are gone from their `mlx.toml`: their records would be removed, for these reasons.
    pub gone: Vec<(StageId, Vec<String>)>,
    /// The first reason why a run would refuse a stage; each is in the reasons of its step.
    pub failure: Option<Error>,
    /// Errors of pipelines that no step tells.
    pub problems: Vec<Error>,
}

/// Examination of a stage before it runs.
pub(super) struct Examination {
    pub action: PlannedAction,
    pub reasons: Vec<String>,
    pub inputs: Inputs,
    pub cache_inputs: Value,
    /// Outputs that a restore would bring.
    pub outputs: run_cache::Outputs,
    /// True if the inputs equal those of the stage's record.
    pub matches_record: bool,
}

/// Plans these stages and all they need, and the removal of the records of stages that are gone.
pub fn plan(pipelines: &Pipelines<'_, '_>, wanted: &Selection, force: bool) -> Result<Plan> {
    let graph = pipelines.graph();
    let records = Records::new(pipelines.workspace.repo, pipelines.folders());
    let checker = Checker::new(pipelines, &records)?;
    let mut blocked = graph.downstream_of(graph.faults.keys());
    let mut failure = None;
    let mut restored = BTreeMap::new();
    let mut stale: BTreeSet<StageId> = BTreeSet::new();
    let unfinished = pipelines.unfinished()?;
    let mut steps = Vec::new();
    for id in graph.upstream_of(&wanted.stages) {
        let (action, reasons) = if blocked.contains(&id) && !graph.faults.contains_key(&id) {
            let is_blocked = |need: &&StageId| blocked.contains(*need) || graph.faults.contains_key(*need);
            let needs = graph.needs[&id].iter().filter(is_blocked);
            let reason = |need: &StageId| format!("it needs the stage `{need}`, which cannot run");
            (None, needs.map(reason).collect())
        } else {
            let upstream: Vec<_> = graph.needs[&id].iter().filter(|need| stale.contains(*need)).collect();
            let forecast = checker.check_outputs(&id).and_then(|()| {
                if upstream.is_empty() {
                    return forecast(pipelines.of(&id), &id.name, &records, &mut restored, force);
                }
                after_others(pipelines.of(&id), &id.name, &upstream, &checker.inputs(&id)?, force)
            });
            match forecast {
                Ok(found) => found,
                Err(error) => {
                    let reasons = vec![error.chain_text()];
                    failure.get_or_insert(error);
                    blocked.insert(id.clone());
                    blocked.extend(graph.downstream_of([&id]));
                    (None, reasons)
                }
            }
        };
        if action == Some(PlannedAction::Run) {
            stale.insert(id.clone());
        }
        let mut reasons = reasons;
        if let Some(state) = unfinished.get(&id).filter(|_| action != Some(PlannedAction::Unchanged)) {
            reasons.insert(0, state.reason().to_owned());
        }
        let record = records.of(&id.folder).ok().and_then(|lock| lock.get(&id.name));
        let not_run = action == Some(PlannedAction::Unchanged) && record.is_some_and(|record| record.not_run);
        steps.push(Step { id, action, reasons, not_run });
    }
    let (mut gone, mut problems) = (Vec::new(), Vec::new());
    for folder in &wanted.folders {
        problems.extend(gone::unreadable(pipelines, folder));
        gone.extend(gone::plan(pipelines, folder, &records)?);
    }
    Ok(Plan { steps, gone, failure, problems })
}

/// Returns the action for a stage that others make inputs of. If these turn out the same, it will not run, so
/// that an input that is absent refuses only a forced run.
fn after_others(
    pipeline: &Pipeline<'_, '_>,
    name: &str,
    upstream: &[&StageId],
    inputs: &Inputs,
    force: bool,
) -> Result<(Option<PlannedAction>, Vec<String>)> {
    if force {
        pipeline.check_present(name, inputs)?;
    }
    let needed = upstream.iter().map(|need| format!("it needs the stage `{need}`, which would run"));
    let absent = inputs.absent.iter().map(|path| {
        format!("it cannot run without `{path}`, which is not here: run `mlx pull {path}` first")
    });
    Ok((Some(PlannedAction::Run), needed.chain(absent).collect()))
}

/// Returns the action for a stage whose inputs are known.
fn forecast(
    pipeline: &Pipeline<'_, '_>,
    name: &str,
    records: &Records<'_>,
    restored: &mut BTreeMap<RepoPath, Content>,
    force: bool,
) -> Result<(Option<PlannedAction>, Vec<String>)> {
    let examination = pipeline.examine(name, &pipeline.manifest.stages[name], records, restored, force)?;
    match examination.action {
        PlannedAction::Run => pipeline.check_present(name, &examination.inputs)?,
        PlannedAction::Restore => restored.extend(examination.outputs),
        PlannedAction::Unchanged => {}
    }
    Ok((Some(examination.action), examination.reasons))
}

impl Pipeline<'_, '_> {
    /// Compares a stage's inputs and outputs with its record. `restored` holds outputs that earlier stages of
    /// the plan would restore.
    pub(super) fn examine(
        &self,
        name: &str,
        stage: &Stage,
        records: &Records<'_>,
        restored: &BTreeMap<RepoPath, Content>,
        force: bool,
    ) -> Result<Examination> {
        let inputs = self.inputs(name, stage, records, restored, &|_| false)?;
        let lock = records.of(&self.folder)?;
        let cache_inputs = self.cache_inputs(stage, &inputs);
        let mut reasons = match lock.get(name) {
            None => vec!["it has not run yet".to_owned()],
            Some(record) => {
                let mut reasons = self.differences(stage, record, &inputs);
                let key = crate::digest::Digest::of(document::canonical(&cache_inputs).as_bytes());
                if reasons.is_empty() && record.key != key {
                    reasons.push("the folder it runs in changed, or how its commands are run".to_owned());
                }
                reasons
            }
        };
        if force {
            reasons.insert(0, "the run is forced".to_owned());
            let outputs = BTreeMap::new();
            return Ok(Examination {
                action: PlannedAction::Run,
                reasons,
                inputs,
                cache_inputs,
                outputs,
                matches_record: false,
            });
        }
        let recorded = lock.get(name).filter(|_| reasons.is_empty());
        let matches_record = recorded.is_some();
        let (action, outputs) = match recorded {
            Some(record) => self.examine_outputs(name, stage, record, &inputs, &mut reasons)?,
            None => self.find_cached(&cache_inputs)?,
        };
        Ok(Examination { action, reasons, inputs, cache_inputs, outputs, matches_record })
    }

    /// Looks for a cached run with the same inputs whose outputs are all in the store.
    fn find_cached(&self, cache_inputs: &Value) -> Result<(PlannedAction, run_cache::Outputs)> {
        let key = crate::digest::Digest::of(document::canonical(cache_inputs).as_bytes());
        match run_cache::find(&self.repo().store, &key)? {
            Some(outputs) if outputs.values().all(|content| self.repo().store.is_complete(content)) => {
                Ok((PlannedAction::Restore, outputs))
            }
            _ => Ok((PlannedAction::Run, BTreeMap::new())),
        }
    }

    /// Compares the outputs in the workspace with the record of a stage whose inputs did not change.
    fn examine_outputs(
        &self,
        name: &str,
        stage: &Stage,
        record: &StageRecord,
        inputs: &Inputs,
        reasons: &mut Vec<String>,
    ) -> Result<(PlannedAction, run_cache::Outputs)> {
        let outputs: run_cache::Outputs =
            record.contents().map(|(path, content)| (path.clone(), *content)).collect();
        for out in &stage.outputs {
            let Some(content) = outputs.get(&out.path) else { continue };
            let pointer = Pointer { path: out.path.clone(), content: *content };
            match self.workspace.compare(&pointer, &Silent)?.state {
                State::Same => {}
                State::Changed if out.role.in_git() && self.is_converted(&out.path, content)? => {}
                State::Absent => reasons.push(format!("its output `{}` is missing", out.path)),
                State::Behind => {
                    reasons.push(format!("its output `{}` is not as it is recorded now", out.path));
                }
                State::Changed if self.has_running_marker(name)? => {
                    reasons.push(format!("its output `{}` may be half written", out.path));
                }
                State::Changed | State::Unknown => {
                    reasons.push(format!("its output `{}` was changed", out.path));
                }
            }
        }
        if reasons.is_empty() {
            return Ok((PlannedAction::Unchanged, outputs));
        }
        if outputs.values().all(|content| self.repo().store.is_complete(content)) {
            return Ok((PlannedAction::Restore, outputs));
        }
        if inputs.absent.is_empty() {
            return Ok((PlannedAction::Run, BTreeMap::new()));
        }
        // In a clone without its data nothing changed; the content was only not fetched yet.
        *reasons = vec![
            "nothing changed, but its outputs are not in this clone: fetch them with `mlx pull`".to_owned(),
        ];
        Ok((PlannedAction::Unchanged, outputs))
    }

    /// Describes the differences between a record and the current state, one text each.
    fn differences(&self, stage: &Stage, record: &StageRecord, inputs: &Inputs) -> Vec<String> {
        let mut reasons = Vec::new();
        if record.command != stage.command {
            reasons.push(format!(
                "its command changed: `{}` → `{}`",
                one_line(&record.command),
                one_line(&stage.command)
            ));
        } else if record.builtin != self.builtin(stage) {
            reasons.push("this version of mlx gives other results for it".to_owned());
        }
        if record.environment != stage.environment {
            reasons.push("its environment changed".to_owned());
        }
        for path in keys(&record.dependencies, &inputs.dependencies) {
            match (record.dependencies.get(path), inputs.dependencies.get(path)) {
                (Some(old), Some(new)) if old == new => {}
                (Some(_), Some(_)) => reasons.push(format!("`{path}` changed")),
                (None, _) => reasons.push(format!("`{path}` is a new dependency")),
                (_, None) => reasons.push(format!("`{path}` is no longer a dependency")),
            }
        }
        for key in keys(&record.params, &inputs.params) {
            let (old, new) = (record.params.get(key), inputs.params.get(key));
            if old != new {
                reasons.extend(param_changes(key, old, new));
            }
        }
        let declared: BTreeMap<_, _> =
            stage.outputs.iter().map(|out| (&out.path, out.role.in_git())).collect();
        let stored = record.outputs.keys().map(|path| (path, false));
        let recorded: BTreeMap<_, _> = stored.chain(record.in_git.keys().map(|path| (path, true))).collect();
        for path in keys(&recorded, &declared) {
            match (recorded.get(path), declared.get(path)) {
                (Some(old), Some(new)) if old == new => {}
                (None, _) => reasons.push(format!("`{path}` is a new output")),
                (_, None) => reasons.push(format!("`{path}` is no longer an output")),
                _ => reasons.push(format!("`{path}` moved into or out of Git")),
            }
        }
        reasons
    }
}

/// Describes a changed parameter, one text per difference: `params.toml: train.rate 0.1 → 0.2`.
fn param_changes(key: &str, old: Option<&document::Value>, new: Option<&document::Value>) -> Vec<String> {
    let (file, top) = key.split_once(':').unwrap_or((key, ""));
    let name = |below: &str| match (top, below) {
        ("", "") => "the document".to_owned(),
        (top, "") => top.to_owned(),
        ("", below) => below.to_owned(),
        (top, below) => format!("{top}.{below}"),
    };
    let show = |side: Option<&document::Value>| side.map_or("none".to_owned(), document::Value::canonical);
    let changes = document::differences(old, new).into_iter();
    let text = |change: document::Difference| {
        let (old, new) = (show(change.old.as_ref()), show(change.new.as_ref()));
        format!("{file}: {} {old} → {new}", name(&change.key))
    };
    changes.map(text).collect()
}

/// Returns the keys of both maps, sorted, each once.
fn keys<'k, K: Ord, A, B>(one: &'k BTreeMap<K, A>, two: &'k BTreeMap<K, B>) -> Vec<&'k K> {
    let found: BTreeSet<&K> = one.keys().chain(two.keys()).collect();
    found.into_iter().collect()
}

fn one_line(command: &str) -> String {
    command.replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    #[test]
    fn a_changed_param_is_described_by_its_differences() {
        let changes = |key: &str, old: Json, new: Json| {
            param_changes(key, Some(&document::Value::from(&old)), Some(&document::Value::from(&new)))
        };
        assert_eq!(
            changes(
                "p.toml:train",
                json!({"rate": 0.1, "k": [1]}),
                json!({"rate": 0.2, "k": [1], "new": "x"})
            ),
            ["p.toml: train.new none → \"x\"", "p.toml: train.rate 0.1 → 0.2"]
        );
        assert_eq!(changes("p.toml:a", json!(1), json!(1.0)), ["p.toml: a 1 → 1.0"]);
        assert_eq!(changes("p.toml:a", json!(1), json!("1")), ["p.toml: a 1 → \"1\""]);
        assert_eq!(changes("p.toml", json!({"a": 1}), json!({"a": true})), ["p.toml: a 1 → true"]);
        assert_eq!(changes("p.json", json!({"a": 0.0}), json!({"a": -0.0})), ["p.json: a 0.0 → -0.0"]);
        assert_eq!(changes("p.json", json!([]), json!({})), ["p.json: the document [] → {}"]);
        assert_eq!(param_changes("p.json:a", None, Some(&document::Value::Null)), ["p.json: a none → null"]);
    }
}
