//! Which stages would run, and why; making a plan changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    error::Result,
    path::RepoPath,
    pipeline::{Lockfile, Pipeline, Record, Stage, inputs::Inputs, run_cache},
    pointer::{Content, Pointer},
    progress::Silent,
    workspace::State,
};

/// What would become of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forecast {
    Run,
    Restore,
    Unchanged,
}

/// One stage of a plan.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    pub forecast: Forecast,
    pub why: Vec<String>,
}

/// What is known of a stage before it is its turn.
pub(super) struct Finding {
    pub forecast: Forecast,
    pub why: Vec<String>,
    pub inputs: Inputs,
    pub question: Value,
    /// What a restore would bring.
    pub outputs: run_cache::Outputs,
    /// Nothing that goes in differs from the record.
    pub as_recorded: bool,
}

/// Plans these stages and all they need.
pub fn plan(pipeline: &Pipeline<'_, '_>, names: &[String], force: bool) -> Result<Vec<Step>> {
    let lock = pipeline.lock()?;
    let mut made = BTreeMap::new();
    let mut stale: BTreeSet<String> = BTreeSet::new();
    let mut steps = Vec::new();
    for name in pipeline.graph.upstream_of(names)? {
        let stage = &pipeline.manifest.stages[&name];
        let upstream: Vec<_> = pipeline.graph.needs[&name].iter().filter(|it| stale.contains(*it)).collect();
        let step = if upstream.is_empty() {
            let finding = pipeline.examine(&name, stage, &lock, &made, force)?;
            if finding.forecast == Forecast::Restore {
                made.extend(finding.outputs);
            }
            Step { name: name.clone(), forecast: finding.forecast, why: finding.why }
        } else {
            // What it reads will be known when they have run.
            let why =
                upstream.iter().map(|it| format!("it needs the stage `{it}`, which would run")).collect();
            Step { name: name.clone(), forecast: Forecast::Run, why }
        };
        if step.forecast == Forecast::Run {
            stale.insert(name);
        }
        steps.push(step);
    }
    Ok(steps)
}

impl Pipeline<'_, '_> {
    /// Compares what a stage would read and made with its record.
    pub(super) fn examine(
        &self,
        name: &str,
        stage: &Stage,
        lock: &Lockfile,
        made: &BTreeMap<RepoPath, Content>,
        force: bool,
    ) -> Result<Finding> {
        let inputs = self.inputs(name, stage, lock, made)?;
        let question = self.question(stage, &inputs);
        let mut why = match lock.get(name) {
            None => vec!["it has not run yet".to_owned()],
            Some(record) => {
                let mut why = self.differences(stage, record, &inputs);
                let key = crate::digest::Digest::of(crate::document::canonical(&question).as_bytes());
                if why.is_empty() && record.key != key {
                    why.push("the folder or the shell it runs in changed".to_owned());
                }
                why
            }
        };
        if force {
            why.insert(0, "it is forced".to_owned());
            let outputs = BTreeMap::new();
            return Ok(Finding {
                forecast: Forecast::Run,
                why,
                inputs,
                question,
                outputs,
                as_recorded: false,
            });
        }
        let recorded = lock.get(name).filter(|_| why.is_empty());
        let as_recorded = recorded.is_some();
        let (forecast, outputs) = match recorded {
            Some(record) => self.examine_outputs(stage, record, &inputs, &mut why)?,
            None => self.look_up(&question)?,
        };
        Ok(Finding { forecast, why, inputs, question, outputs, as_recorded })
    }

    /// An earlier run with the same inputs, if all it made is still here.
    fn look_up(&self, question: &Value) -> Result<(Forecast, run_cache::Outputs)> {
        let key = crate::digest::Digest::of(crate::document::canonical(question).as_bytes());
        match run_cache::find(&self.repo().store, &key)? {
            Some(outputs) if outputs.values().all(|it| self.is_stored(it)) => {
                Ok((Forecast::Restore, outputs))
            }
            _ => Ok((Forecast::Run, BTreeMap::new())),
        }
    }

    /// Nothing that goes in changed; is what came out still there?
    fn examine_outputs(
        &self,
        stage: &Stage,
        record: &Record,
        inputs: &Inputs,
        why: &mut Vec<String>,
    ) -> Result<(Forecast, run_cache::Outputs)> {
        let outputs: run_cache::Outputs =
            record.outputs.iter().chain(&record.in_git).map(|(path, it)| (path.clone(), *it)).collect();
        for out in &stage.outputs {
            let Some(content) = outputs.get(&out.path) else { continue };
            let pointer = Pointer { path: out.path.clone(), content: *content };
            match self.workspace.compare(&pointer, &Silent)?.state {
                State::Same => {}
                State::Absent => why.push(format!("its output `{}` is missing", out.path)),
                State::Changed | State::Unknown => why.push(format!("its output `{}` was changed", out.path)),
            }
        }
        if why.is_empty() {
            return Ok((Forecast::Unchanged, outputs));
        }
        if outputs.values().all(|it| self.is_stored(it)) {
            return Ok((Forecast::Restore, outputs));
        }
        if inputs.absent.is_empty() {
            return Ok((Forecast::Run, BTreeMap::new()));
        }
        // A clone without its data: nothing changed, it is only not here.
        *why = vec!["nothing changed, but its outputs are not here: `mlx pull` brings them".to_owned()];
        Ok((Forecast::Unchanged, outputs))
    }

    /// In words, what differs between a record and now.
    fn differences(&self, stage: &Stage, record: &Record, inputs: &Inputs) -> Vec<String> {
        let mut why = Vec::new();
        if record.command != stage.command {
            why.push(format!(
                "its command changed: `{}` → `{}`",
                one_line(&record.command),
                one_line(&stage.command)
            ));
        } else if record.builtin != self.builtin(stage) {
            why.push("this version of mlx computes it anew".to_owned());
        }
        if record.environment != stage.environment {
            why.push("its environment changed".to_owned());
        }
        for path in keys(&record.dependencies, &inputs.dependencies) {
            match (record.dependencies.get(path), inputs.dependencies.get(path)) {
                (Some(old), Some(new)) if old == new => {}
                (Some(_), Some(_)) => why.push(format!("`{path}` changed")),
                (None, _) => why.push(format!("`{path}` is a new dependency")),
                (_, None) => why.push(format!("`{path}` is no dependency any more")),
            }
        }
        for key in keys(&record.params, &inputs.params) {
            let (old, new) = (record.params.get(key), inputs.params.get(key));
            if old != new {
                why.extend(param_changes(key, old, new));
            }
        }
        let declared: BTreeMap<_, _> = stage.outputs.iter().map(|it| (&it.path, it.role.in_git())).collect();
        let made: BTreeMap<_, _> = record
            .outputs
            .keys()
            .map(|it| (it, false))
            .chain(record.in_git.keys().map(|it| (it, true)))
            .collect();
        for path in keys(&made, &declared) {
            match (made.get(path), declared.get(path)) {
                (Some(old), Some(new)) if old == new => {}
                (None, _) => why.push(format!("`{path}` is a new output")),
                (_, None) => why.push(format!("`{path}` is no output any more")),
                _ => why.push(format!("`{path}` moved into or out of Git")),
            }
        }
        why
    }
}

/// `params.toml: train.rate 0.1 → 0.2`, a line for each leaf that differs.
fn param_changes(key: &str, old: Option<&Value>, new: Option<&Value>) -> Vec<String> {
    let (file, top) = key.split_once(':').unwrap_or((key, ""));
    let leaves = |it: Option<&Value>| -> BTreeMap<String, String> {
        let found = it.map(crate::document::leaves).unwrap_or_default();
        let name = |below: String| match (top, below.as_str()) {
            (top, "") => top.to_owned(),
            ("", below) => below.to_owned(),
            (top, below) => format!("{top}.{below}"),
        };
        found.into_iter().map(|(below, it)| (name(below), it.to_string())).collect()
    };
    let (old, new) = (leaves(old), leaves(new));
    let show = |it: Option<&String>| it.map_or("none", String::as_str).to_owned();
    let changed = keys(&old, &new).into_iter().filter(|it| old.get(*it) != new.get(*it));
    let told: Vec<_> =
        changed.map(|it| format!("{file}: {it} {} → {}", show(old.get(it)), show(new.get(it)))).collect();
    // The same leaves in another shape: a list that became a table.
    if told.is_empty() {
        vec![format!("{file}: {} has another shape", if top.is_empty() { "it" } else { top })]
    } else {
        told
    }
}

/// All keys of two maps, sorted, each once.
fn keys<'k, K: Ord, A, B>(one: &'k BTreeMap<K, A>, two: &'k BTreeMap<K, B>) -> Vec<&'k K> {
    let found: BTreeSet<&K> = one.keys().chain(two.keys()).collect();
    found.into_iter().collect()
}

fn one_line(command: &str) -> String {
    command.replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_changed_param_is_told_by_its_leaves() {
        let (old, new) = (json!({"rate": 0.1, "k": [1]}), json!({"rate": 0.2, "k": [1], "new": "x"}));
        let told = param_changes("params.toml:train", Some(&old), Some(&new));
        assert_eq!(told, ["params.toml: train.new none → \"x\"", "params.toml: train.rate 0.1 → 0.2"]);
        assert_eq!(param_changes("p.toml:a", Some(&json!(1)), Some(&json!(1.0))), ["p.toml: a 1 → 1.0"]);
        assert_eq!(
            param_changes("p.toml", Some(&json!({"a": 1})), Some(&json!({"a": true}))),
            ["p.toml: a 1 → true"]
        );
    }
}
