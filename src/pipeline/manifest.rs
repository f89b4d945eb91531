//! `mlx.toml`: what the user wrote.

use std::{collections::BTreeMap, ffi::OsStr, path::Path};

use serde::Deserialize;

use crate::{
    document,
    error::{Doing, Error, Result},
    path::RepoPath,
};

/// The name of the file.
pub const FILE: &str = "mlx.toml";

/// Stages and models by name.
#[derive(Debug, Default)]
pub struct Manifest {
    pub stages: BTreeMap<String, Stage>,
    /// Where each model's package lies.
    pub models: BTreeMap<String, RepoPath>,
}

/// One step: a command, what it reads and what it makes. Paths are those of the repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// Several commands are joined by newlines.
    pub command: String,
    pub dependencies: Vec<RepoPath>,
    pub outputs: Vec<Output>,
    /// `params.toml:train.rate`: a file, and keys in it (all of it without).
    pub params: Vec<(RepoPath, String)>,
    pub environment: BTreeMap<String, String>,
}

/// Something a stage makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub path: RepoPath,
    pub role: Role,
}

/// What an output is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Kept in the store, ignored by Git.
    Data,
    /// Committed to Git, and stored so that a restored run brings it back.
    InGit,
    /// Numbers; committed to Git.
    Metrics,
    /// Series; committed to Git.
    Plots,
}

impl Role {
    pub fn in_git(self) -> bool {
        self != Self::Data
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    stage: BTreeMap<String, WrittenStage>,
    #[serde(default)]
    model: BTreeMap<String, WrittenModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenModel {
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStage {
    cmd: Commands,
    #[serde(default)]
    deps: Vec<String>,
    #[serde(default)]
    outs: Vec<WrittenOutput>,
    #[serde(default)]
    params: Vec<String>,
    #[serde(default)]
    metrics: Vec<String>,
    #[serde(default)]
    plots: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// For people; changes nothing.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted so that people can write it")]
    desc: String,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a command, or a list of commands")]
enum Commands {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a path, or { path = …, git = true }")]
enum WrittenOutput {
    Plain(String),
    Flagged { path: String, git: bool },
}

impl Manifest {
    /// Reads the file at `path` of the repository at `root`.
    pub fn parse(path: &RepoPath, bytes: &[u8], root: &Path) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        if document::has_conflict_marks(&text) {
            return Err(Error::corrupt(format!("`{path}` has merge-conflict marks"))
                .hint("resolve the conflict first"));
        }
        let written: Written = toml::from_str(&text).map_err(|it| {
            Error::usage(format!("cannot read `{path}`: {}", it.to_string().trim()))
                .hint("a stage has cmd, deps, outs, params, metrics, plots, env and desc; a model has path")
        })?;
        let folder = path.parent().unwrap_or_default().on_disk(root);
        let place = |typed: &str| RepoPath::parse(OsStr::new(typed), &folder, root);
        let mut manifest = Self::default();
        for (name, stage) in written.stage {
            check_name(&name)?;
            let read = stage.read(&place).doing(|| format!("cannot read the stage `{name}` in `{path}`"))?;
            manifest.stages.insert(name, read);
        }
        for (name, model) in written.model {
            check_name(&name)?;
            manifest.models.insert(name, place(&model.path)?);
        }
        Ok(manifest)
    }

    /// The stage that makes `path`, or something that `path` is in.
    pub fn maker(&self, path: &RepoPath) -> Option<(&str, &Output)> {
        let outputs =
            self.stages.iter().flat_map(|(name, it)| it.outputs.iter().map(move |out| (name.as_str(), out)));
        outputs.into_iter().find(|it| path.is_within(&it.1.path))
    }

    /// Every output with its stage.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &Output)> {
        self.stages.iter().flat_map(|(name, it)| it.outputs.iter().map(move |out| (name.as_str(), out)))
    }

    /// Files with metrics, sorted.
    pub fn files_of(&self, role: Role) -> Vec<RepoPath> {
        let mut files: Vec<_> =
            self.outputs().filter(|it| it.1.role == role).map(|it| it.1.path.clone()).collect();
        files.sort();
        files
    }

    /// Files with parameters, sorted.
    pub fn params_files(&self) -> Vec<RepoPath> {
        let mut files: Vec<_> =
            self.stages.values().flat_map(|it| it.params.iter().map(|it| it.0.clone())).collect();
        files.sort();
        files.dedup();
        files
    }
}

fn check_name(name: &str) -> Result<()> {
    let plain = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '_';
    if !name.is_empty() && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::usage(format!("`{name}` cannot be a name")).hint("use letters, digits, `-` and `_`"))
}

/// A place that a stage may fill: never the repository itself.
fn made_at(place: &dyn Fn(&str) -> Result<RepoPath>, typed: &str) -> Result<RepoPath> {
    let path = place(typed)?;
    if path.is_root() {
        return Err(Error::usage(format!("its output `{typed}` is the whole repository"))
            .hint("name a file or a folder in it"));
    }
    Ok(path)
}

impl WrittenStage {
    fn read(self, place: &dyn Fn(&str) -> Result<RepoPath>) -> Result<Stage> {
        let command = match self.cmd {
            Commands::One(it) => it,
            Commands::Many(it) => it.join("\n"),
        };
        if command.trim().is_empty() {
            return Err(Error::usage("its command is empty"));
        }
        let mut outputs = Vec::new();
        for out in &self.outs {
            let (path, role) = match out {
                WrittenOutput::Plain(path) | WrittenOutput::Flagged { path, git: false } => {
                    (path, Role::Data)
                }
                WrittenOutput::Flagged { path, git: true } => (path, Role::InGit),
            };
            outputs.push(Output { path: made_at(place, path)?, role });
        }
        for (list, role) in [(&self.metrics, Role::Metrics), (&self.plots, Role::Plots)] {
            for path in list {
                outputs.push(Output { path: made_at(place, path)?, role });
            }
        }
        outputs.sort_by(|a, b| a.path.cmp(&b.path));
        let param = |it: &String| {
            let (file, keys) = it.split_once(':').unwrap_or((it, ""));
            Ok((place(file)?, keys.to_owned()))
        };
        let mut dependencies = self.deps.iter().map(|it| place(it)).collect::<Result<Vec<_>>>()?;
        dependencies.sort();
        dependencies.dedup();
        let mut params = self.params.iter().map(param).collect::<Result<Vec<_>>>()?;
        params.sort();
        params.dedup();
        Ok(Stage { command, dependencies, outputs, params, environment: self.env })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Manifest> {
        Manifest::parse(&RepoPath::from_text("sub/mlx.toml").unwrap(), text.as_bytes(), Path::new("/r"))
    }

    #[test]
    fn paths_are_taken_from_the_folder_of_the_file() {
        let manifest = parse("[stage.a]\ncmd = ['x', 'y']\ndeps = ['data/', '../top']\nouts = ['o', {path = 'g', git = true}]\nparams = ['p.toml:a.b']\nmetrics = ['m.json']\n").unwrap();
        let stage = &manifest.stages["a"];
        assert_eq!(stage.command, "x\ny");
        let texts: Vec<_> = stage.dependencies.iter().map(RepoPath::to_text).collect();
        assert_eq!(texts, ["sub/data", "top"]);
        let outputs: Vec<_> = stage.outputs.iter().map(|it| (it.path.to_text(), it.role)).collect();
        let expected = [("sub/g", Role::InGit), ("sub/m.json", Role::Metrics), ("sub/o", Role::Data)];
        assert_eq!(outputs, expected.map(|it| (it.0.to_owned(), it.1)));
        assert_eq!(stage.params, [(RepoPath::from_text("sub/p.toml").unwrap(), "a.b".to_owned())]);
    }

    #[test]
    fn what_is_unknown_or_outside_is_refused() {
        for bad in [
            "[stage.a]\ncmd = ''",
            "[stage.a]\ncmd = 'x'\ntypo = 1",
            "[stage.a]\ncmd = 'x'\nouts = ['../../x']",
            "[stage.a]\ncmd = 'x'\nouts = ['.git/hooks/x']",
            "[stage.a]\ncmd = 'x'\nouts = ['..']",
            "[stage.a]\ncmd = 'x'\nmetrics = ['../']",
            "[stage.'a b']\ncmd = 'x'",
            "[stage.a]",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
