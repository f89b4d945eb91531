//! `mlx.lock`: what went into each stage's last run and what came out. One table a stage, sorted; one
//! line a fact; a stage that did not run keeps its bytes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    digest::Digest,
    document,
    error::{Error, Result},
    path::RepoPath,
    pointer::Content,
};

/// The name of the file.
pub const FILE: &str = "mlx.lock";
const FORMAT: u64 = 1;
const HEAD: &str =
    "# What went into each stage's last run and what came out. Written by mlx; commit it.\nformat = 1\n";

/// What was true when a stage last succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub command: String,
    /// The number of mlx's own command.
    pub builtin: Option<u64>,
    /// Somebody changed outputs by hand and recorded that with `mlx commit`.
    pub edited: bool,
    pub key: Digest,
    pub environment: BTreeMap<String, String>,
    pub dependencies: BTreeMap<RepoPath, Content>,
    /// `params.toml:train.rate` → value.
    pub params: BTreeMap<String, Value>,
    pub outputs: BTreeMap<RepoPath, Content>,
    /// Outputs that Git keeps.
    pub in_git: BTreeMap<RepoPath, Content>,
}

/// All records, with the bytes they were read from.
#[derive(Clone, Debug, Default)]
pub struct Lockfile {
    stages: BTreeMap<String, (Record, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u64,
    #[serde(default)]
    stage: BTreeMap<String, WrittenRecord>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRecord {
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
    /// Reads the lockfile at `path`; an empty one is no record of anything.
    pub fn parse(path: &RepoPath, bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let text = String::from_utf8_lossy(bytes);
        if document::has_conflict_marks(&text) {
            let error = Error::corrupt(format!("`{path}` has merge-conflict marks"));
            return Err(error.hint(format!("take one side (`git checkout --ours {path}`), then `mlx repro`")));
        }
        let broken = |why: &str| Error::corrupt(format!("`{path}` cannot be understood: {why}"));
        if Self::is_newer(bytes) {
            return Err(Error::corrupt(format!("`{path}` was written by a newer mlx")).hint("upgrade mlx"));
        }
        let written: Written = toml::from_str(&text).map_err(|it| broken(it.to_string().trim()))?;
        if written.format != FORMAT {
            return Err(broken("its format is unknown"));
        }
        let mut blocks = blocks(&text);
        let mut stages = BTreeMap::new();
        for (name, it) in written.stage {
            let record = it.read();
            let bytes = blocks.remove(&name).unwrap_or_else(|| print(&name, &record));
            stages.insert(name, (record, bytes));
        }
        Ok(Self { stages })
    }

    /// Whether it was written in a format that this mlx does not know.
    pub fn is_newer(bytes: &[u8]) -> bool {
        document::format_of(&String::from_utf8_lossy(bytes)).is_some_and(|it| it > FORMAT)
    }

    pub fn get(&self, stage: &str) -> Option<&Record> {
        self.stages.get(stage).map(|it| &it.0)
    }

    pub fn records(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.stages.iter().map(|(name, it)| (name.as_str(), &it.0))
    }

    /// Replaces one stage's record; its bytes change only if the record does.
    pub fn set(&mut self, stage: &str, record: Record) {
        if self.get(stage) != Some(&record) {
            let text = print(stage, &record);
            self.stages.insert(stage.to_owned(), (record, text));
        }
    }

    /// Drops records of stages that are no more.
    pub fn keep(&mut self, known: &dyn Fn(&str) -> bool) {
        self.stages.retain(|name, _| known(name));
    }

    pub fn to_toml(&self) -> String {
        let mut text = HEAD.to_owned();
        self.stages.values().for_each(|it| text.push_str(&format!("\n{}\n", it.1.trim_end())));
        text
    }
}

/// The text of each table, as it stands.
fn blocks(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut name = None;
    for line in text.split_inclusive('\n') {
        if let Some(rest) = line.strip_prefix("[stage.") {
            name = rest.trim_end().strip_suffix(']').map(str::to_owned);
        }
        if let Some(name) = &name {
            let block: &mut String = found.entry(name.clone()).or_default();
            block.push_str(line);
        }
    }
    found
}

fn print(name: &str, record: &Record) -> String {
    let mut lines = Vec::new();
    lines.extend(record.builtin.map(|it| format!("builtin = {it}")));
    lines.push(format!("cmd = {}", quote(&record.command)));
    lines.extend(record.dependencies.iter().map(|(path, it)| row("dep", path, it)));
    lines.extend(record.edited.then(|| "edited = true".to_owned()));
    lines.extend(record.environment.iter().map(|(key, it)| format!("env.{} = {}", quote(key), quote(it))));
    lines.extend(record.in_git.iter().map(|(path, it)| row("git", path, it)));
    lines.push(format!("key = \"{}\"", record.key));
    lines.extend(record.outputs.iter().map(|(path, it)| row("out", path, it)));
    lines.extend(record.params.iter().map(|(key, it)| format!("param.{} = {}", quote(key), to_toml(it))));
    format!("[stage.{name}]\n{}\n", lines.join("\n"))
}

fn row(what: &str, path: &RepoPath, content: &Content) -> String {
    let Content { digest, files, kind, size } = content;
    let path = quote(&path.to_text());
    format!(
        "{what}.{path} = {{ digest = \"{digest}\", files = {files}, kind = \"{}\", size = {size} }}",
        kind.name()
    )
}

fn quote(text: &str) -> String {
    // JSON's escapes are TOML's, but for one character that JSON leaves as it is.
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// What TOML has no words for (null, numbers above its own) is written as the text of its JSON, in a table
/// with the one key `json`; so are tables that look like that.
fn to_toml(value: &Value) -> String {
    match value {
        Value::Null => in_json(value),
        Value::Bool(it) => it.to_string(),
        Value::Number(it) if it.is_u64() && !it.is_i64() => in_json(value),
        Value::Number(it) => it.to_string(),
        Value::String(it) => quote(it),
        Value::Array(it) => format!("[{}]", it.iter().map(to_toml).collect::<Vec<_>>().join(", ")),
        Value::Object(it) if it.len() == 1 && it.contains_key("json") => in_json(value),
        Value::Object(it) if it.is_empty() => "{}".to_owned(),
        Value::Object(it) => {
            let mut rows: Vec<_> =
                it.iter().map(|(key, it)| format!("{} = {}", quote(key), to_toml(it))).collect();
            rows.sort();
            format!("{{ {} }}", rows.join(", "))
        }
    }
}

fn in_json(value: &Value) -> String {
    format!("{{ json = {} }}", quote(&value.to_string()))
}

fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(it) => Value::String(it),
        toml::Value::Integer(it) => Value::from(it),
        toml::Value::Float(it) => document::number(it),
        toml::Value::Boolean(it) => Value::Bool(it),
        toml::Value::Datetime(it) => Value::String(it.to_string()),
        toml::Value::Array(it) => it.into_iter().map(from_toml).collect(),
        toml::Value::Table(it) if it.len() == 1 && it.get("json").is_some_and(toml::Value::is_str) => {
            serde_json::from_str(it["json"].as_str().unwrap_or_default()).unwrap_or_default()
        }
        toml::Value::Table(it) => {
            Value::Object(it.into_iter().map(|(key, it)| (key, from_toml(it))).collect())
        }
    }
}

impl WrittenRecord {
    fn read(self) -> Record {
        Record {
            command: self.cmd,
            builtin: self.builtin,
            edited: self.edited,
            key: self.key,
            environment: self.env,
            dependencies: self.dep,
            params: self.param.into_iter().map(|(key, it)| (key, from_toml(it))).collect(),
            outputs: self.out,
            in_git: self.git,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::pointer::Shape;

    fn record(command: &str, params: &[(&str, Value)]) -> Record {
        let content = Content { digest: Digest::of(b"x"), files: 2, kind: Shape::Tree, size: 9 };
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        Record {
            command: command.to_owned(),
            builtin: Some(3),
            edited: false,
            key: Digest::of(b"key"),
            environment: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            dependencies: BTreeMap::from([(path("data"), content), (path("a \"b\""), content)]),
            params: params.iter().map(|(key, it)| ((*key).to_owned(), it.clone())).collect(),
            outputs: BTreeMap::from([(path("out"), content)]),
            in_git: BTreeMap::from([(path("m.json"), content)]),
        }
    }

    fn parse(text: &str) -> Result<Lockfile> {
        Lockfile::parse(&RepoPath::from_text("mlx.lock").unwrap(), text.as_bytes())
    }

    proptest! {
        #[test]
        fn it_reads_what_it_prints(command: String, number: i64, float: f64, text: String) {
            let values = [("p.toml:a", json!(number)), ("p.toml:b", document::number(float)), ("p.toml:c", json!(text)),
                ("p.toml:d", Value::Null), ("p.toml:e", json!({"k": [1, 1.0, "x", null], "z": {}})), ("p.toml:f", json!(1.0)), ("p.toml:g", json!(u64::MAX)), ("p.toml:h", json!({"json": "1"})), ("p.toml:i", json!({"null": true}))];
            let mut lock = Lockfile::default();
            lock.set("train", record(&command, &values));
            let read = parse(&lock.to_toml()).unwrap();
            prop_assert_eq!(read.get("train"), lock.get("train"));
            prop_assert_eq!(read.to_toml(), lock.to_toml());
        }
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
    fn another_stage_keeps_its_bytes() {
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
    fn what_is_wrong_is_named() {
        let newer = parse("format = 2\n").unwrap_err();
        assert_eq!(newer.to_string(), "`mlx.lock` was written by a newer mlx");
        let marks = parse("format = 1\n<<<<<<< HEAD\n=======\n>>>>>>> x\n").unwrap_err();
        assert_eq!(marks.to_string(), "`mlx.lock` has merge-conflict marks");
    }

    #[test]
    fn the_first_format_is_read_for_ever() {
        let golden = include_str!("../../fixtures/formats/lockfile-1.lock");
        let lock = parse(golden).unwrap();
        assert_eq!(
            lock.get("train"),
            Some(&record("first\nsecond", &[("p.toml:x", json!(0.1)), ("p.toml:y", Value::Null)]))
        );
        let mut again = Lockfile::default();
        again.set("train", lock.get("train").unwrap().clone());
        assert_eq!(again.to_toml(), golden);
    }
}
