//! `mlx.lock`: the inputs and outputs of each stage's last successful run.
//!
//! A TOML document with one table per stage, sorted by name, and one line per fact. The bytes of a stage's
//! table change only when its record does.
//!
//! ```text
//! format = 1
//!
//! [stage.NAME]
//! builtin = N                 version number of a command built into mlx
//! cmd = "…"
//! dep."PATH" = { … }          digest, files, kind and size of a dependency
//! edited = true               outputs were edited by hand and recorded
//! env."NAME" = "…"
//! git."PATH" = { … }          an output committed to Git
//! key = "…"                   digest of the inputs: key in the run cache
//! out."PATH" = { … }          an output kept in the store
//! param."FILE:KEYS" = …
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    digest::Digest,
    document::{self, Value, from_toml, to_toml, toml_quote as quote},
    error::{Error, Result},
    path::RepoPath,
    pointer::Content,
};

/// Name of the file.
pub const FILE: &str = crate::workspace::LOCKFILE;
const FORMAT: u64 = 1;
const HEAD: &str =
    "# What went into each stage's last run and what came out. Written by mlx; commit it.\nformat = 1\n";

/// Record of a stage's last successful run.
#[derive(Clone, Debug, PartialEq)]
pub struct StageRecord {
    pub command: String,
    /// Version number of the command, if it is built into mlx.
    pub builtin: Option<u64>,
    /// True if outputs were edited by hand and then recorded with `mlx commit`.
    pub edited: bool,
    /// Digest of the inputs: the key of the run in the run cache.
    pub key: Digest,
    pub environment: BTreeMap<String, String>,
    pub dependencies: BTreeMap<RepoPath, Content>,
    /// Parameter, such as `params.toml:train.rate`, → value.
    pub params: BTreeMap<String, Value>,
    pub outputs: BTreeMap<RepoPath, Content>,
    /// Outputs committed to Git.
    pub in_git: BTreeMap<RepoPath, Content>,
}

impl StageRecord {
    /// Returns the contents of all outputs, those in Git last.
    pub fn contents(&self) -> impl Iterator<Item = (&RepoPath, &Content)> {
        self.outputs.iter().chain(&self.in_git)
    }

    /// Returns the recorded content of an output.
    pub fn content(&self, output: &RepoPath) -> Option<&Content> {
        self.outputs.get(output).or_else(|| self.in_git.get(output))
    }
}

/// All records, each with the text it was read from.
#[derive(Clone, Debug, Default)]
pub struct Lockfile {
    stages: BTreeMap<String, (StageRecord, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLockfile {
    format: u64,
    #[serde(default)]
    stage: BTreeMap<String, RawRecord>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecord {
    cmd: String,
    builtin: Option<u64>,
    #[serde(default)]
    edited: bool,
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
}

impl Lockfile {
    /// Parses the lockfile read from `path`; empty bytes give a lockfile without records.
    pub fn parse(path: &RepoPath, bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let text = String::from_utf8_lossy(bytes);
        if document::has_conflict_markers(&text) {
            let error = Error::corrupt(format!("`{path}` has merge conflict markers"));
            return Err(
                error.hint(format!("keep one side with `git checkout --ours {path}`, then run `mlx repro`"))
            );
        }
        let invalid = |why: &str| Error::corrupt(format!("`{path}` is not a valid lockfile: {why}"));
        if Self::is_newer(bytes) {
            return Err(Error::corrupt(format!("`{path}` was written by a newer mlx")).hint("upgrade mlx"));
        }
        let raw_file: RawLockfile =
            toml::from_str(&text).map_err(|error| invalid(error.to_string().trim()))?;
        if raw_file.format != FORMAT {
            return Err(invalid("unknown format"));
        }
        let mut tables = split_tables(&text);
        let mut stages = BTreeMap::new();
        for (name, raw) in raw_file.stage {
            let record = raw.into_record();
            let table = tables.remove(&name).unwrap_or_else(|| print(&name, &record));
            stages.insert(name, (record, table));
        }
        Ok(Self { stages })
    }

    /// Returns true if the format is newer than this version of mlx can read.
    pub fn is_newer(bytes: &[u8]) -> bool {
        document::format_version(&String::from_utf8_lossy(bytes)).is_some_and(|it| it > FORMAT)
    }

    /// Returns the record of a stage.
    pub fn get(&self, stage: &str) -> Option<&StageRecord> {
        self.stages.get(stage).map(|(record, _)| record)
    }

    /// Returns the recorded output that is or contains `path`.
    pub fn output(&self, path: &RepoPath) -> Option<(&RepoPath, &Content)> {
        self.records().flat_map(|(_, record)| record.contents()).find(|(top, _)| path.is_within(top))
    }

    /// Returns the names and records of all stages, sorted by name.
    pub fn records(&self) -> impl Iterator<Item = (&str, &StageRecord)> {
        self.stages.iter().map(|(name, (record, _))| (name.as_str(), record))
    }

    /// Replaces a stage's record; its text changes only if the record does.
    pub fn set(&mut self, stage: &str, record: StageRecord) {
        if self.get(stage) != Some(&record) {
            let text = print(stage, &record);
            self.stages.insert(stage.to_owned(), (record, text));
        }
    }

    /// Removes the records of stages for which `is_declared` returns false.
    pub fn retain(&mut self, is_declared: &dyn Fn(&str) -> bool) {
        self.stages.retain(|name, _| is_declared(name));
    }

    /// Returns the whole document.
    pub fn to_toml(&self) -> String {
        let mut text = HEAD.to_owned();
        self.stages.values().for_each(|(_, table)| text.push_str(&format!("\n{}\n", table.trim_end())));
        text
    }
}

/// Splits a document into the unchanged text of each stage's table.
fn split_tables(text: &str) -> BTreeMap<String, String> {
    let mut tables = BTreeMap::new();
    let mut name = None;
    for line in text.split_inclusive('\n') {
        if let Some(rest) = line.strip_prefix("[stage.") {
            name = rest.trim_end().strip_suffix(']').map(str::to_owned);
        }
        if let Some(name) = &name {
            let table: &mut String = tables.entry(name.clone()).or_default();
            table.push_str(line);
        }
    }
    tables
}

/// Prints a stage's table, its lines sorted by key.
fn print(name: &str, record: &StageRecord) -> String {
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
    lines.extend(record.outputs.iter().map(|(path, content)| content_line("out", path, content)));
    lines.extend(
        record.params.iter().map(|(key, value)| format!("param.{} = {}", quote(key), to_toml(value))),
    );
    format!("[stage.{name}]\n{}\n", lines.join("\n"))
}

fn content_line(field: &str, path: &RepoPath, content: &Content) -> String {
    let Content { digest, files, kind, size } = content;
    let path = quote(&path.to_text());
    format!(
        "{field}.{path} = {{ digest = \"{digest}\", files = {files}, kind = \"{}\", size = {size} }}",
        kind.name()
    )
}

impl RawRecord {
    fn into_record(self) -> StageRecord {
        StageRecord {
            command: self.cmd,
            builtin: self.builtin,
            edited: self.edited,
            key: self.key,
            environment: self.env,
            dependencies: self.dep,
            params: self.param.into_iter().map(|(key, value)| (key, from_toml(value))).collect(),
            outputs: self.out,
            in_git: self.git,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::pointer::ContentKind;

    fn record(command: &str, params: &[(&str, Json)]) -> StageRecord {
        let content = Content { digest: Digest::of(b"x"), files: 2, kind: ContentKind::Tree, size: 9 };
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        StageRecord {
            command: command.to_owned(),
            builtin: Some(3),
            edited: false,
            key: Digest::of(b"key"),
            environment: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            dependencies: BTreeMap::from([(path("data"), content), (path("a \"b\""), content)]),
            params: params.iter().map(|(key, value)| ((*key).to_owned(), Value::from(value))).collect(),
            outputs: BTreeMap::from([(path("out"), content)]),
            in_git: BTreeMap::from([(path("m.json"), content)]),
        }
    }

    fn parse(text: &str) -> Result<Lockfile> {
        Lockfile::parse(&RepoPath::from_text("mlx.lock").unwrap(), text.as_bytes())
    }

    proptest! {
        #[test]
        fn a_printed_lockfile_parses_back(command: String, number: i64, float: f64, text: String) {
            let values = [("p.toml:a", json!(number)), ("p.toml:b", json!(float)), ("p.toml:c", json!(text)),
                ("p.toml:d", Json::Null), ("p.toml:e", json!({"k": [1, 1.0, "x", null], "z": {}})),
                ("p.toml:f", json!(1.0)), ("p.toml:g", json!(u64::MAX)), ("p.toml:h", json!({"json": "1"}))];
            let mut lock = Lockfile::default();
            lock.set("train", record(&command, &values));
            let read = parse(&lock.to_toml()).unwrap();
            prop_assert_eq!(read.get("train"), lock.get("train"));
            prop_assert_eq!(read.to_toml(), lock.to_toml());
        }
    }

    #[test]
    fn the_deepest_parameter_parses_back() {
        let text = format!("{}1{}", "{\"a\": [".repeat(32), "]}".repeat(32));
        let value = document::parse(&RepoPath::from_text("p.json").unwrap(), text.as_bytes()).unwrap();
        let mut lock = Lockfile::default();
        lock.set("train", StageRecord { params: [("p.json".to_owned(), value)].into(), ..record("x", &[]) });
        assert_eq!(parse(&lock.to_toml()).unwrap().get("train"), lock.get("train"));
    }

    #[test]
    fn one_fact_is_one_line_and_stages_are_sorted() {
        let mut lock = Lockfile::default();
        lock.set("b", record("first\nsecond", &[("p.toml:x", json!(0.1))]));
        lock.set("a", record("x", &[]));
        let text = lock.to_toml();
        assert!(text.find("[stage.a]") < text.find("[stage.b]"));
        assert!(text.contains("cmd = \"first\\nsecond\"\n"), "{text}");
        assert!(text.contains("param.\"p.toml:x\" = 0.1\n"), "{text}");
    }

    #[test]
    fn setting_one_stage_keeps_the_text_of_others() {
        let mut lock = Lockfile::default();
        lock.set("a", record("x", &[]));
        let by_hand = lock.to_toml().replace("builtin = 3", "builtin = 3 # kept");
        let mut lock = parse(&by_hand).unwrap();
        lock.set("b", record("y", &[]));
        assert!(lock.to_toml().contains("builtin = 3 # kept"));
        lock.set("a", record("x", &[]));
        assert!(lock.to_toml().contains("builtin = 3 # kept"), "an equal record changes nothing");
    }

    #[test]
    fn a_newer_format_and_conflict_marks_are_errors() {
        let newer = parse("format = 2\n").unwrap_err();
        assert_eq!(newer.to_string(), "`mlx.lock` was written by a newer mlx");
        let marks = parse("format = 1\n<<<<<<< HEAD\n=======\n>>>>>>> x\n").unwrap_err();
        assert_eq!(marks.to_string(), "`mlx.lock` has merge conflict markers");
    }

    #[test]
    fn format_1_can_still_be_read() {
        let golden = include_str!("../../fixtures/formats/lockfile-1.lock");
        let lock = parse(golden).unwrap();
        assert_eq!(
            lock.get("train"),
            Some(&record("first\nsecond", &[("p.toml:x", json!(0.1)), ("p.toml:y", Json::Null)]))
        );
        let mut reprinted = Lockfile::default();
        reprinted.set("train", lock.get("train").unwrap().clone());
        assert_eq!(reprinted.to_toml(), golden);
    }
}
