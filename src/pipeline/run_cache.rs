//! A run made once is never made twice: what went in names what came out.
//!
//! The key is BLAKE3 over the canonical JSON of command, shell, folder, declared environment, digests of
//! dependencies, typed parameters, names and flags of outputs, and the number of mlx's own command. Not
//! the stage's name, nor anything of the machine.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    digest::Digest,
    error::Result,
    path::RepoPath,
    pipeline::{Pipeline, Stage, inputs::Inputs},
    pointer::Content,
    store::{Run, Store},
    time::Timestamp,
};

/// The shell that runs every command, whoever's machine it is.
pub const SHELL: [&str; 2] = ["sh", "-ec"];

/// Outputs of an earlier run.
pub type Outputs = BTreeMap<RepoPath, Content>;

impl Pipeline<'_, '_> {
    /// What names a run, as JSON.
    pub(super) fn question(&self, stage: &Stage, inputs: &Inputs) -> Value {
        let dependencies: BTreeMap<_, _> = inputs
            .dependencies
            .iter()
            .map(|(path, it)| (path.to_text(), format!("{} {}", it.kind.name(), it.digest)))
            .collect();
        let outputs: Vec<_> = stage
            .outputs
            .iter()
            .map(|it| json!({"path": it.path.to_text(), "git": it.role.in_git()}))
            .collect();
        json!({
            "builtin": self.builtin(stage),
            "command": stage.command,
            "dependencies": dependencies,
            "environment": stage.environment,
            "folder": self.folder.to_text(),
            "outputs": outputs,
            "params": inputs.params,
            "shell": SHELL.join(" "),
        })
    }
}

/// Outputs of the newest run with this key; a record that is not what it should be is none.
pub fn find(store: &Store, key: &Digest) -> Result<Option<Outputs>> {
    Ok(store.run(key)?.and_then(|it| serde_json::from_value(it.answer).ok()))
}

/// Records a run whose outputs are stored.
pub fn put(store: &Store, question: Value, outputs: &Outputs) -> Result<()> {
    store.put_run(&Run { question, answer: json!(outputs), when: Timestamp::now() })
}
