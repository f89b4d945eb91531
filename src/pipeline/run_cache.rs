//! The run cache: outputs of earlier runs by a digest of their inputs, so that a run is never repeated.
//!
//! The key is BLAKE3 over the canonical JSON of command, shell, folder, declared environment variables,
//! digests of dependencies, typed parameters, paths and Git flags of outputs, and the version number of a
//! built-in command. The stage's name and the machine are not part of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    digest::Digest,
    document,
    error::Result,
    path::RepoPath,
    pipeline::{
        Pipeline, Stage,
        inputs::Inputs,
        script::{SHELL, may_hide},
    },
    pointer::Content,
    store::{CachedRun, Store},
    time::Timestamp,
};

/// Outputs of a cached run.
pub type Outputs = BTreeMap<RepoPath, Content>;

impl Pipeline<'_, '_> {
    /// Returns the inputs of a run as JSON; the digest of their canonical form is the run's key.
    pub(super) fn cache_inputs(&self, stage: &Stage, inputs: &Inputs) -> Value {
        let dependencies: BTreeMap<_, _> = inputs
            .dependencies
            .iter()
            .map(|(path, content)| (path.to_text(), format!("{} {}", content.kind.name(), content.digest)))
            .collect();
        let outputs: Vec<_> = stage
            .outputs
            .iter()
            .map(|out| json!({"path": out.path.to_text(), "git": out.role.in_git()}))
            .collect();
        let params: BTreeMap<_, _> =
            inputs.params.iter().map(|(key, value)| (key, document::to_json(value))).collect();
        json!({
            "builtin": self.builtin(stage),
            "command": stage.command,
            "dependencies": dependencies,
            "environment": stage.environment,
            "folder": self.folder.to_text(),
            "outputs": outputs,
            "params": params,
            "shell": shell(stage),
        })
    }
}

/// Describes how a stage's command is run. A list that may have hidden something differs from the same lines
/// in one script, which may have gone on after a failure or ended early; other lists have the key of those.
fn shell(stage: &Stage) -> String {
    let shell = SHELL.join(" ");
    if may_hide(&stage.commands) { format!("{shell}, one by one") } else { shell }
}

/// Returns the outputs of the newest run with this key. An entry that cannot be parsed counts as missing.
pub fn find(store: &Store, key: &Digest) -> Result<Option<Outputs>> {
    Ok(store.cached_run(key)?.and_then(|run| serde_json::from_value(run.outputs).ok()))
}

/// Returns true if a run with any inputs made this content at this path.
pub fn has_output(store: &Store, path: &RepoPath, content: &Content) -> Result<bool> {
    for key in store.run_keys()? {
        if find(store, &key)?.is_some_and(|outputs| outputs.get(path) == Some(content)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Adds a run; its outputs have to be in the store already.
pub fn put(store: &Store, inputs: Value, outputs: &Outputs) -> Result<()> {
    store.put_cached_run(&CachedRun { inputs, outputs: json!(outputs), when: Timestamp::now() })
}
