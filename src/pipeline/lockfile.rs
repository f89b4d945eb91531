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

use std::{collections::BTreeMap, rc::Rc};

use serde::Deserialize;

use crate::{
    document,
    error::{Error, Result},
    path::RepoPath,
    pipeline::{
        lock_tables,
        stage_record::{RawRecord, StageRecord, needs_format_2, parse as parse_table, print},
    },
    pointer::Content,
};

/// Name of the file.
pub const FILE: &str = crate::workspace::LOCKFILE;
/// Newest format that this version reads.
const FORMAT: u64 = 2;
const HEAD: &str = "# What went into each stage's last run and what came out. Written by mlx; commit it.\n";

/// All records, each with the text it was read from.
#[derive(Clone, Debug, Default)]
pub struct Lockfile {
    stages: BTreeMap<String, (Rc<StageRecord>, String)>,
    /// The outputs of all records by path and stage.
    outputs: BTreeMap<(RepoPath, String), OutputRow>,
    /// True if it was parsed as a whole: the text of a stage may not stand for its record alone.
    is_whole: bool,
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
struct RawHead {
    format: u64,
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
        Self::parse_after(path, bytes, &Self::default())
    }

    /// Does the same. Tables that are the same in `known`, another version of the file, are not parsed again.
    pub fn parse_after(path: &RepoPath, bytes: &[u8], known: &Self) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let text = String::from_utf8_lossy(bytes);
        if document::has_conflict_markers(&text) {
            return Err(Self::conflict_error(path));
        }
        if Self::is_newer(bytes) {
            return Err(Error::corrupt(format!("`{path}` was written by a newer mlx")).hint("upgrade mlx"));
        }
        Self::parse_tables(&text, known).map_or_else(|| Self::parse_whole(path, &text), Ok)
    }

    /// Parses each table on its own, unless it is known; returns none if that may not say the same as the
    /// whole text, or something is wrong with it.
    fn parse_tables(text: &str, known: &Self) -> Option<Self> {
        let (parts, mut lock) = (lock_tables::split(text)?, Self::default());
        let head: RawHead = toml::from_str(parts.head).ok()?;
        if !(1..=FORMAT).contains(&head.format) {
            return None;
        }
        let known = |name| if known.is_whole { None } else { known.stages.get(name) };
        for (name, table) in parts.tables {
            let record = match known(name).filter(|known| lock_tables::is_same(&known.1, table)) {
                Some((record, _)) => Rc::clone(record),
                None => Rc::new(parse_table(name, table)?),
            };
            if lock.stages.contains_key(name) {
                return None;
            }
            lock.insert(name.to_owned(), record, table.to_owned());
        }
        Some(lock)
    }

    fn parse_whole(path: &RepoPath, text: &str) -> Result<Self> {
        let invalid = |why: &str| Error::corrupt(format!("`{path}` is not a valid lockfile: {why}"));
        let raw_file: RawLockfile =
            toml::from_str(text).map_err(|error| invalid(error.to_string().trim()))?;
        if !(1..=FORMAT).contains(&raw_file.format) {
            return Err(invalid("unknown format"));
        }
        let (mut tables, mut lock) = (split_tables(text), Self { is_whole: true, ..Self::default() });
        for (name, raw) in raw_file.stage {
            let record = raw.into_record();
            let table = tables.remove(&name).unwrap_or_else(|| print(&name, &record));
            lock.insert(name, Rc::new(record), table);
        }
        Ok(lock)
    }

    /// Returns true if the format is newer than this version of mlx can read.
    pub fn is_newer(bytes: &[u8]) -> bool {
        document::format_version(&String::from_utf8_lossy(bytes)).is_some_and(|it| it > FORMAT)
    }

    /// Returns the record of a stage.
    pub fn get(&self, stage: &str) -> Option<&StageRecord> {
        self.stages.get(stage).map(|(record, _)| &**record)
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
        self.stages.iter().map(|(name, (record, _))| (name.as_str(), &**record))
    }

    /// Replaces a stage's record; its text changes only if the record does.
    pub fn set(&mut self, stage: &str, record: StageRecord) {
        if self.get(stage) != Some(&record) {
            self.remove(stage);
            let text = print(stage, &record);
            self.insert(stage.to_owned(), Rc::new(record), text);
        }
    }

    /// Removes the records of stages for which `is_declared` returns false.
    pub fn retain(&mut self, is_declared: &dyn Fn(&str) -> bool) {
        let gone: Vec<_> = self.stages.keys().filter(|name| !is_declared(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove(name));
    }

    fn insert(&mut self, name: String, record: Rc<StageRecord>, text: String) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{
        digest::Digest,
        document::Value,
        error::Kind,
        pipeline::{extension::Extension, extension_samples::any_extension},
        pointer::ContentKind,
    };

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

    /// Lines of lockfiles. Some are not valid, or not in each place.
    const LINES: &str = r#"[stage.a]
[stage.b]
[stage."a"]
[stage]
[stage.a.env]
[other]
 [stage.b]
cmd = "y"
cmd = """
"""
builtin = 1 # note
edited = true
env."A" = "b"
param.p = [
[1]]
]

stage.b.cmd = "x"
stage = {}
format = 2
unknown = 1"#;

    /// Texts of lockfiles, many of which are valid.
    fn any_text() -> impl Strategy<Value = String> {
        let lines = LINES.lines().chain(["# \u{1}", "\u{b}"]).map(str::to_owned).collect::<Vec<_>>();
        let table = |name: String| format!("[stage.{name}]\ncmd = \"x\"\nkey = \"{}\"", Digest::of(b"x"));
        let part = prop_oneof![3 => "[abc]".prop_map(table), 1 => prop::sample::select(lines)];
        let head =
            prop::sample::select(vec!["format = 1", "# x\nformat = 2", "format = 0", "stage = {}", ""]);
        let end = prop::sample::select(vec!["\n", "\n\n", "\r\n"]);
        (head, prop::collection::vec(part, 0..5), end)
            .prop_map(|(head, parts, end)| format!("{head}{end}{}{end}", parts.join(end)))
    }

    proptest! {
        #[test]
        fn tables_alone_say_the_same_as_the_whole_text(first in any_text(), second in any_text()) {
            let file = RepoPath::from_text("mlx.lock").unwrap();
            let facts = |lock: &Lockfile| {
                (lock.stages.clone(), lock.outputs.keys().cloned().collect::<Vec<_>>())
            };
            let known = parse(&first).unwrap_or_default();
            if let Some(lock) = Lockfile::parse_tables(&second, &known) {
                prop_assert_eq!(facts(&lock), facts(&Lockfile::parse_whole(&file, &second).unwrap()));
            }
        }
    }

    #[test]
    fn only_tables_that_differ_are_parsed_again() {
        let mut lock = Lockfile::default();
        ["a", "b", "c"].into_iter().for_each(|name| lock.set(name, record(name, &[])));
        let parse_after = |text: &str, known: &Lockfile| {
            Lockfile::parse_after(&RepoPath::from_text("mlx.lock").unwrap(), text.as_bytes(), known).unwrap()
        };
        let shared = |one: &Lockfile, other: &Lockfile| {
            let same = one.stages.iter().filter(|(name, stage)| {
                other.stages.get(*name).is_some_and(|other| Rc::ptr_eq(&stage.0, &other.0))
            });
            same.map(|stage| stage.0.clone()).collect::<String>()
        };
        let read = parse_after(&lock.to_toml(), &lock);
        assert_eq!(shared(&read, &lock), "abc");
        let changed = parse_after(&lock.to_toml().replace("cmd = \"b\"", "cmd = \"new\""), &read);
        assert_eq!((shared(&changed, &read), &changed.get("b").unwrap().command[..]), ("ac".into(), "new"));
        // The text of the last table does not stand for itself.
        lock.set("d", StageRecord { environment: BTreeMap::new(), ..record("d", &[]) });
        let joined = parse_after(&format!("{}[stage.d.env]\n", lock.to_toml()), &read);
        assert_eq!((joined.records().count(), shared(&joined, &read)), (4, String::new()));
        assert_eq!(shared(&parse_after(&lock.to_toml(), &joined), &joined), "");
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
