//! Record of a stage's last successful run, and its table in the lockfile.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    digest::Digest,
    document::{Value, from_toml, to_toml, toml_quote as quote},
    path::RepoPath,
    pipeline::extension::{Cell, Each, Extension, content_line},
    pointer::Content,
};

/// Record of a stage's last successful run.
#[derive(Clone, Debug, PartialEq)]
pub struct StageRecord {
    pub command: String,
    /// Version number of the command, if it is built into mlx.
    pub builtin: Option<u64>,
    /// True if outputs were edited by hand and then recorded with `mlx commit`.
    pub edited: bool,
    /// True if the outputs were recorded without a run.
    pub not_run: bool,
    /// Digest of the inputs: the key of the run in the run cache.
    pub key: Digest,
    pub environment: BTreeMap<String, String>,
    pub dependencies: BTreeMap<RepoPath, Content>,
    /// Parameter, such as `params.toml:train.rate`, → value.
    pub params: BTreeMap<String, Value>,
    pub outputs: BTreeMap<RepoPath, Content>,
    /// Outputs committed to Git.
    pub in_git: BTreeMap<RepoPath, Content>,
    /// Keys of other kinds of stages.
    pub extension: Extension,
}

impl StageRecord {
    /// Returns the contents of all outputs, those in Git last.
    pub fn contents(&self) -> impl Iterator<Item = (&RepoPath, &Content)> {
        self.outputs.iter().chain(&self.in_git).chain(self.extension.outputs())
    }

    /// Returns the contents of all inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &Content> {
        self.dependencies.values().chain(self.extension.inputs())
    }

    /// Returns the keys of all its runs in the run cache.
    pub fn keys(&self) -> impl Iterator<Item = Digest> {
        std::iter::once(self.key).chain(self.extension.keys())
    }

    /// Returns the recorded content of an output.
    pub fn content(&self, output: &RepoPath) -> Option<&Content> {
        self.outputs.get(output).or_else(|| self.in_git.get(output))
    }
}

/// A record as it is written in a lockfile.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRecord {
    cmd: String,
    builtin: Option<u64>,
    #[serde(default)]
    edited: bool,
    #[serde(default)]
    not_run: bool,
    key: Digest,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    dep: BTreeMap<RepoPath, Content>,
    #[serde(default)]
    param: BTreeMap<String, toml::Value>,
    #[serde(default)]
    out: BTreeMap<RepoPath, Content>,
    #[serde(default)]
    git: BTreeMap<RepoPath, Content>,
    #[serde(default)]
    always: bool,
    #[serde(default)]
    cell: BTreeMap<String, Cell>,
    #[serde(default)]
    each: BTreeMap<RepoPath, Each>,
    #[serde(default)]
    found: BTreeMap<RepoPath, Content>,
    #[serde(default)]
    glob: BTreeMap<String, Content>,
    query: Option<String>,
    source: Option<String>,
    watermark: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    stage: BTreeMap<String, RawRecord>,
}

/// Parses the table of one stage; `None` if it says anything else, too.
pub fn parse(name: &str, table: &str) -> Option<StageRecord> {
    let mut raw: RawTable = toml::from_str(table).ok()?;
    let record = raw.stage.remove(name)?.into_record();
    raw.stage.is_empty().then_some(record)
}

/// Prints a stage's table, its lines sorted by key.
pub fn print(name: &str, record: &StageRecord) -> String {
    let mut lines = Vec::new();
    lines.extend(record.builtin.map(|number| format!("builtin = {number}")));
    lines.push(format!("cmd = {}", quote(&record.command)));
    lines.extend(record.dependencies.iter().map(|(path, content)| content_line("dep", path, content)));
    lines.extend(record.edited.then(|| "edited = true".to_owned()));
    lines.extend(
        record.environment.iter().map(|(key, value)| format!("env.{} = {}", quote(key), quote(value))),
    );
    lines.extend(record.in_git.iter().map(|(path, content)| content_line("git", path, content)));
    lines.push(format!("key = \"{}\"", record.key));
    lines.extend(record.not_run.then(|| "not_run = true".to_owned()));
    lines.extend(record.outputs.iter().map(|(path, content)| content_line("out", path, content)));
    lines.extend(
        record.params.iter().map(|(key, value)| format!("param.{} = {}", quote(key), to_toml(value))),
    );
    lines.extend(record.extension.lines());
    // By key alone: within one, the lines are sorted already, by the bytes of paths and names.
    let key = |line: &String| line.split(['.', ' ']).next().unwrap_or_default().to_owned();
    lines.sort_by_key(key);
    format!("[stage.{name}]\n{}\n", lines.join("\n"))
}

/// Returns true if an mlx that knows only format 1 would misread the record.
pub fn needs_format_2(record: &StageRecord) -> bool {
    record.not_run || !record.extension.is_empty() || record.params.values().any(is_beyond_format_1)
}

/// Returns true if an mlx of format 1 would read the line of a parameter as another value: it rounds long
/// numbers, and takes a literal for a table.
fn is_beyond_format_1(value: &Value) -> bool {
    match value {
        Value::Literal(_) => true,
        Value::Number(number) => number.to_json().is_none(),
        Value::List(list) => list.iter().any(is_beyond_format_1),
        Value::Table(table) => table.values().any(is_beyond_format_1),
        Value::Null | Value::Bool(_) | Value::Text(_) => false,
    }
}

impl RawRecord {
    pub fn into_record(self) -> StageRecord {
        StageRecord {
            command: self.cmd,
            builtin: self.builtin,
            edited: self.edited,
            not_run: self.not_run,
            key: self.key,
            environment: self.env,
            dependencies: self.dep,
            params: self.param.into_iter().map(|(key, value)| (key, from_toml(value))).collect(),
            outputs: self.out,
            in_git: self.git,
            extension: Extension {
                always: self.always,
                cell: self.cell,
                each: self.each,
                found: self.found,
                glob: self.glob,
                query: self.query,
                source: self.source,
                watermark: self.watermark,
            },
        }
    }
}
