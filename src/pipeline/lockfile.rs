//! `mlx.lock`: the inputs and outputs of each stage's last successful run.
//!
//! A TOML document with one table per stage, sorted by name, and one line per fact. The bytes of a stage's
//! table change only when its record does.
//!
//! The head says `format = 2` exactly if a record has something that format 1 does not: a key marked with 2
//! below, or a parameter that an mlx of format 1 would read as another value. So teams that use nothing new
//! can mix versions of mlx, and an older one refuses what it would misread.
//!
//! ```text
//! format = 1 or 2
//!
//! [stage.NAME]
//! always = true            2  the stage runs every time
//! builtin = N                 version number of a command built into mlx
//! cell."VALUES" = { … }    2  one combination of a matrix: dep, git, key, not_run and out, as below
//! cmd = "…"
//! dep."PATH" = { … }          digest, files, kind and size of a dependency
//! each."PATH" = { … }      2  a stage that takes files one by one: `from`, the tree of the files it took,
//!                             and `to`, the tree of what it made of them at PATH
//! edited = true               outputs were edited by hand and recorded
//! env."NAME" = "…"
//! found."PATH" = { … }     2  an input that the run's depfile named
//! git."PATH" = { … }          an output committed to Git
//! glob."PATTERN" = { … }   2  the files that match a pattern, as a tree
//! key = "…"                   digest of the inputs: key in the run cache
//! not_run = true           2  the outputs were recorded without a run
//! out."PATH" = { … }          an output kept in the store
//! param."FILE:KEYS" = …
//! query = "…"              2  the query of an ingestion
//! source = "…"             2  the origin that an ingestion reads
//! watermark = "…"          2  the last row, time or id that an ingestion took
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    digest::Digest,
    document::{self, Value, from_toml, to_toml, toml_quote as quote},
    error::{Error, Result},
    path::RepoPath,
    pipeline::extension::{Cell, Each, Extension, content_line},
    pointer::Content,
};

/// Name of the file.
pub const FILE: &str = crate::workspace::LOCKFILE;
/// Newest format that this version reads.
const FORMAT: u64 = 2;
const HEAD: &str = "# What went into each stage's last run and what came out. Written by mlx; commit it.\n";

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

/// All records, each with the text it was read from.
#[derive(Clone, Debug, Default)]
pub struct Lockfile {
    stages: BTreeMap<String, (StageRecord, String)>,
    /// The outputs of all records by path and stage.
    outputs: BTreeMap<(RepoPath, String), OutputRow>,
}

#[derive(Clone, Copy, Debug)]
struct OutputRow {
    content: Content,
    /// True if it is kept in the store and not in Git.
    is_stored: bool,
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

impl Lockfile {
    /// Returns the error for a lockfile that is in conflict, in Git's index or by the marks in it.
    pub fn conflict_error(path: &RepoPath) -> Error {
        let hint = format!(
            "keep one side (`git checkout --ours {path}`, then `git add {path}`), then run `mlx repro`"
        );
        document::conflict_error(path, &[], hint)
    }

    /// Parses the lockfile read from `path`; empty bytes give a lockfile without records.
    pub fn parse(path: &RepoPath, bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let text = String::from_utf8_lossy(bytes);
        if document::has_conflict_markers(&text) {
            return Err(Self::conflict_error(path));
        }
        let invalid = |why: &str| Error::corrupt(format!("`{path}` is not a valid lockfile: {why}"));
        if Self::is_newer(bytes) {
            return Err(Error::corrupt(format!("`{path}` was written by a newer mlx")).hint("upgrade mlx"));
        }
        let raw_file: RawLockfile =
            toml::from_str(&text).map_err(|error| invalid(error.to_string().trim()))?;
        if !(1..=FORMAT).contains(&raw_file.format) {
            return Err(invalid("unknown format"));
        }
        let (mut tables, mut lock) = (split_tables(&text), Self::default());
        for (name, raw) in raw_file.stage {
            let record = raw.into_record();
            let table = tables.remove(&name).unwrap_or_else(|| print(&name, &record));
            lock.insert(name, record, table);
        }
        Ok(lock)
    }

    /// Returns true if the format is newer than this version of mlx can read.
    pub fn is_newer(bytes: &[u8]) -> bool {
        document::format_version(&String::from_utf8_lossy(bytes)).is_some_and(|it| it > FORMAT)
    }

    /// Returns the record of a stage.
    pub fn get(&self, stage: &str) -> Option<&StageRecord> {
        self.stages.get(stage).map(|(record, _)| record)
    }

    /// Returns the recorded output that is or contains `path`; of several stages, that of the first one.
    pub fn output(&self, path: &RepoPath) -> Option<(&RepoPath, &Content)> {
        path.ancestors().find_map(|top| {
            let ((known, _), row) = self.outputs.range((top.clone(), String::new())..).next()?;
            (*known == top).then_some((known, &row.content))
        })
    }

    /// Returns the recorded outputs below `path` that are kept in the store and not in Git.
    pub fn stored_below(&self, path: &RepoPath) -> impl Iterator<Item = (&RepoPath, &Content)> {
        let prefix = if path.is_root() { path.clone() } else { path.with_suffix("/") };
        let following = self.outputs.range((prefix.clone(), String::new())..);
        let below = following.take_while(move |((output, _), _)| output.bytes().starts_with(prefix.bytes()));
        below.filter(|(_, row)| row.is_stored).map(|((output, _), row)| (output, &row.content))
    }

    /// Returns the names and records of all stages, sorted by name.
    pub fn records(&self) -> impl Iterator<Item = (&str, &StageRecord)> {
        self.stages.iter().map(|(name, (record, _))| (name.as_str(), record))
    }

    /// Replaces a stage's record; its text changes only if the record does.
    pub fn set(&mut self, stage: &str, record: StageRecord) {
        if self.get(stage) != Some(&record) {
            self.remove(stage);
            let text = print(stage, &record);
            self.insert(stage.to_owned(), record, text);
        }
    }

    /// Removes the records of stages for which `is_declared` returns false.
    pub fn retain(&mut self, is_declared: &dyn Fn(&str) -> bool) {
        let gone: Vec<_> = self.stages.keys().filter(|name| !is_declared(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove(name));
    }

    fn insert(&mut self, name: String, record: StageRecord, text: String) {
        for (output, content) in record.contents() {
            let row = OutputRow { content: *content, is_stored: record.outputs.contains_key(output) };
            self.outputs.insert((output.clone(), name.clone()), row);
        }
        self.stages.insert(name, (record, text));
    }

    fn remove(&mut self, name: &str) {
        let Some((record, _)) = self.stages.remove(name) else { return };
        for (output, _) in record.contents() {
            self.outputs.remove(&(output.clone(), name.to_owned()));
        }
    }

    /// Returns the whole document.
    pub fn to_toml(&self) -> String {
        let needs_format_2 = self.stages.values().any(|(record, _)| needs_format_2(record));
        let mut text = format!("{HEAD}format = {}\n", if needs_format_2 { 2 } else { 1 });
        self.stages.values().for_each(|(_, table)| text.push_str(&format!("\n{}\n", table.trim_end())));
        text
    }
}

/// Returns true if an mlx that knows only format 1 would misread the record.
fn needs_format_2(record: &StageRecord) -> bool {
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

impl RawRecord {
    fn into_record(self) -> StageRecord {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{error::Kind, pipeline::extension_samples::any_extension, pointer::ContentKind};

    fn record(command: &str, params: &[(&str, Json)]) -> StageRecord {
        let content = Content { digest: Digest::of(b"x"), files: 2, kind: ContentKind::Tree, size: 9 };
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        StageRecord {
            command: command.to_owned(),
            builtin: Some(3),
            edited: false,
            not_run: false,
            key: Digest::of(b"key"),
            environment: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            dependencies: BTreeMap::from([(path("data"), content), (path("a \"b\""), content)]),
            params: params.iter().map(|(key, value)| ((*key).to_owned(), Value::from(value))).collect(),
            outputs: BTreeMap::from([(path("out"), content)]),
            in_git: BTreeMap::from([(path("m.json"), content)]),
            extension: Extension::default(),
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

        #[test]
        fn a_printed_record_of_any_kind_of_stage_parses_back(extension in any_extension(), not_run: bool) {
            let mut lock = Lockfile::default();
            let before = record("x", &[]);
            lock.set("plain", before.clone());
            lock.set("train", StageRecord { not_run, extension, ..before });
            let text = lock.to_toml();
            let mut read = parse(&text).unwrap();
            prop_assert_eq!(read.get("train"), lock.get("train"));
            prop_assert_eq!(read.to_toml(), text.clone());
            prop_assert_eq!(text.lines().filter(|line| line.starts_with("cell.")).count(),
                lock.get("train").unwrap().extension.cell.len());
            // Without the new keys, the head is that of format 1 again.
            read.set("train", record("x", &[]));
            prop_assert!(read.to_toml().contains("\nformat = 1\n"));
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
        let newer = parse("format = 3\n").unwrap_err();
        assert_eq!(newer.to_string(), "`mlx.lock` was written by a newer mlx");
        let marks = parse("format = 1\n<<<<<<< HEAD\n=======\n>>>>>>> x\n").unwrap_err();
        assert_eq!(marks.kind(), Kind::Conflict);
        assert_eq!(marks.to_string(), "`mlx.lock` is in conflict, since Git merged two versions of it");
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

    #[test]
    fn format_2_can_still_be_read() {
        let golden = include_str!("../../fixtures/formats/lockfile-2.lock");
        let lock = parse(golden).unwrap();
        let train = lock.get("train").unwrap();
        assert!(train.not_run && !train.extension.is_empty());
        let outputs: Vec<_> = train.contents().map(|(path, _)| path.to_text()).collect();
        assert_eq!(outputs, ["models/0.1", "metrics/0.1.json", "thumbs"]);
        assert_eq!((train.inputs().count(), train.keys().count()), (4, 2));
        let mut reprinted = Lockfile::default();
        lock.records().for_each(|(name, record)| reprinted.set(name, record.clone()));
        assert_eq!(reprinted.to_toml(), golden);
    }

    #[test]
    fn an_older_mlx_refuses_a_result_that_was_not_run() {
        let mut lock = Lockfile::default();
        lock.set("a", record("x", &[]));
        assert!(lock.to_toml().contains("\nformat = 1\n"), "nothing new, so older versions can read it");
        lock.set("b", StageRecord { not_run: true, ..record("x", &[]) });
        let text = lock.to_toml();
        assert!(text.contains("\nformat = 2\n") && text.contains("\nnot_run = true\n"), "{text}");
        for (number, format) in [("18446744073709551615", 1), ("18446744073709551616", 2)] {
            let file = RepoPath::from_text("p.json").unwrap();
            let value = document::parse(&file, format!("[{number}]").as_bytes()).unwrap();
            let mut lock = Lockfile::default();
            lock.set("a", StageRecord { params: [("p.json".into(), value)].into(), ..record("x", &[]) });
            let text = lock.to_toml();
            assert!(text.contains(&format!("\nformat = {format}\n")), "{text}");
            assert_eq!(parse(&text).unwrap().get("a"), lock.get("a"));
        }
    }
}
