//! The keys of a stage record that format 2 added for kinds of stages beyond a plain command: matrix cells,
//! stages that work on each file of a folder, globs, inputs that a depfile names, stages that always run, and
//! ingestion.
//!
//! This version of mlx declares no such stages. It reads these keys, keeps what they name in the store, and
//! prints them back without loss; the table is in the head of `lockfile`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{digest::Digest, document, path::RepoPath, pointer::Content};

/// The keys of a record that a plain command does not have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extension {
    /// The stage runs every time.
    pub always: bool,
    /// Combination of a matrix's values, such as `rate=0.1 seed=2`, → its run.
    pub cell: BTreeMap<String, Cell>,
    /// Output folder of a stage that works on each file → the two trees of its items.
    pub each: BTreeMap<RepoPath, Each>,
    /// Inputs that the run's depfile named.
    pub found: BTreeMap<RepoPath, Content>,
    /// Pattern → the tree of the files that match it.
    pub glob: BTreeMap<String, Content>,
    /// Query of an ingestion.
    pub query: Option<String>,
    /// Origin that an ingestion reads.
    pub source: Option<String>,
    /// Last row, time or id that an ingestion took.
    pub watermark: Option<String>,
}

/// The run of one combination of a matrix, with what differs from the stage's other cells.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    #[serde(default)]
    pub dep: BTreeMap<RepoPath, Content>,
    #[serde(default)]
    pub git: BTreeMap<RepoPath, Content>,
    pub key: Digest,
    #[serde(default)]
    pub not_run: bool,
    #[serde(default)]
    pub out: BTreeMap<RepoPath, Content>,
}

/// The files that a stage took one by one, and what it made of them: two trees with the same names.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Each {
    pub from: Content,
    pub to: Content,
}

impl Extension {
    /// Returns true if the record has none of these keys.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the outputs of all cells and items.
    pub fn outputs(&self) -> impl Iterator<Item = (&RepoPath, &Content)> {
        let cells = self.cell.values().flat_map(|cell| cell.out.iter().chain(&cell.git));
        cells.chain(self.each.iter().map(|(path, each)| (path, &each.to)))
    }

    /// Returns the contents of all inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &Content> {
        let cells = self.cell.values().flat_map(|cell| cell.dep.values());
        let each = self.each.values().map(|each| &each.from);
        cells.chain(each).chain(self.found.values()).chain(self.glob.values())
    }

    /// Returns the run-cache keys of all cells.
    pub fn keys(&self) -> impl Iterator<Item = Digest> {
        self.cell.values().map(|cell| cell.key)
    }

    /// Prints one line for each fact.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.always.then(|| "always = true".to_owned()).into_iter().collect();
        lines.extend(
            self.cell.iter().map(|(name, cell)| format!("cell.{} = {}", quote(name), cell.to_toml())),
        );
        lines.extend(self.each.iter().map(|(path, each)| {
            let (from, to) = (content_table(&each.from), content_table(&each.to));
            format!("each.{} = {{ from = {from}, to = {to} }}", quote(&path.to_text()))
        }));
        lines.extend(self.found.iter().map(|(path, content)| content_line("found", path, content)));
        lines.extend(
            self.glob
                .iter()
                .map(|(pattern, content)| format!("glob.{} = {}", quote(pattern), content_table(content))),
        );
        for (key, value) in [("query", &self.query), ("source", &self.source), ("watermark", &self.watermark)]
        {
            lines.extend(value.iter().map(|text| format!("{key} = {}", quote(text))));
        }
        lines
    }
}

impl Cell {
    fn to_toml(&self) -> String {
        let map = |field: &str, contents: &BTreeMap<RepoPath, Content>| {
            let pair = |(path, content): (&RepoPath, &Content)| {
                format!("{} = {}", quote(&path.to_text()), content_table(content))
            };
            let pairs: Vec<_> = contents.iter().map(pair).collect();
            (!pairs.is_empty()).then(|| format!("{field} = {{ {} }}", pairs.join(", ")))
        };
        let mut fields: Vec<_> = map("dep", &self.dep).into_iter().chain(map("git", &self.git)).collect();
        fields.push(format!("key = \"{}\"", self.key));
        fields.extend(self.not_run.then(|| "not_run = true".to_owned()));
        fields.extend(map("out", &self.out));
        format!("{{ {} }}", fields.join(", "))
    }
}

/// Prints the line of a path with its content.
pub fn content_line(field: &str, path: &RepoPath, content: &Content) -> String {
    format!("{field}.{} = {}", quote(&path.to_text()), content_table(content))
}

fn content_table(content: &Content) -> String {
    let Content { digest, files, kind, size } = content;
    format!("{{ digest = \"{digest}\", files = {files}, kind = \"{}\", size = {size} }}", kind.name())
}

fn quote(text: &str) -> String {
    document::toml_quote(text)
}
