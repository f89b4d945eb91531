//! `mlx.toml`: the stages and models that a user declares.
//!
//! ```toml
//! [stage.train]
//! cmd = "mlx model train"              # or a list of commands
//! deps = ["features"]
//! params = ["params.toml:train.rate"]  # FILE or FILE:KEYS
//! outs = ["model", { path = "notes.txt", git = true }]
//! metrics = ["metrics.json"]
//! plots = ["history.csv"]
//! env = { SEED = "7" }
//! desc = "for readers only"
//!
//! [model.pets]
//! path = "models/pets"
//! ```
//!
//! Paths are relative to the file's folder. Unknown keys are errors, since they may be misspelled.

use std::{collections::BTreeMap, ffi::OsStr, path::Path};

use serde::Deserialize;

use crate::{
    document,
    error::{Error, Result, WithContext},
    path::RepoPath,
    pointer::SUFFIX,
    workspace::belongs_in_git,
};

/// Name of the file.
pub const FILE: &str = crate::workspace::PIPELINE_FILE;

/// Declared stages and models, by name.
#[derive(Debug, Default)]
pub struct Manifest {
    pub stages: BTreeMap<String, Stage>,
    /// Path of each model's package.
    pub models: BTreeMap<String, RepoPath>,
}

/// One step of a pipeline: a command, its inputs and its outputs. Paths are relative to the repository's
/// root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// Shell command; several commands are joined by newlines.
    pub command: String,
    /// The commands of a list; otherwise the one command.
    pub commands: Vec<String>,
    pub dependencies: Vec<RepoPath>,
    pub outputs: Vec<Output>,
    /// Parameters such as `params.toml:train.rate`: a file, and dotted keys in it (empty for the whole file).
    pub params: Vec<(RepoPath, String)>,
    pub environment: BTreeMap<String, String>,
}

/// A file or folder that a stage makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub path: RepoPath,
    pub role: Role,
}

/// Purpose of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Kept in the store, ignored by Git.
    Data,
    /// Committed to Git, and stored so that a restored run brings it back.
    InGit,
    /// Numbers of a run; committed to Git.
    Metrics,
    /// Data series for plots; committed to Git.
    Plots,
}

impl Role {
    /// Returns true if outputs of this role are committed to Git.
    pub fn in_git(self) -> bool {
        self != Self::Data
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    #[serde(default)]
    stage: BTreeMap<String, RawStage>,
    #[serde(default)]
    model: BTreeMap<String, RawModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStage {
    cmd: Commands,
    #[serde(default)]
    deps: Vec<String>,
    #[serde(default)]
    outs: Vec<RawOutput>,
    #[serde(default)]
    params: Vec<String>,
    #[serde(default)]
    metrics: Vec<String>,
    #[serde(default)]
    plots: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Description for readers; not used.
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
enum RawOutput {
    Plain(String),
    Flagged { path: String, git: bool },
}

impl Manifest {
    /// Parses the bytes of the file at `path` in the repository at `root`.
    pub fn parse(path: &RepoPath, bytes: &[u8], root: &Path) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        if document::has_conflict_markers(&text) {
            return Err(Error::corrupt(format!("`{path}` has merge conflict markers"))
                .hint("resolve the conflict in it"));
        }
        let raw: RawManifest = toml::from_str(&text).map_err(|error| {
            Error::usage(format!("cannot read `{path}`: {}", error.to_string().trim()))
                .hint("a stage has cmd, deps, outs, params, metrics, plots, env and desc; a model has path")
        })?;
        let folder = path.parent().unwrap_or_default().on_disk(root);
        let resolve = |typed: &str| RepoPath::parse(OsStr::new(typed), &folder, root);
        let mut manifest = Self::default();
        for (name, stage) in raw.stage {
            check_name(&name)?;
            let stage =
                stage.resolve(&resolve).context(|| format!("cannot read the stage `{name}` in `{path}`"))?;
            manifest.stages.insert(name, stage);
        }
        for (name, model) in raw.model {
            check_name(&name)?;
            manifest.models.insert(name, resolve(&model.path)?);
        }
        Ok(manifest)
    }

    /// Returns the stage and the output that `path` is or is inside of.
    pub fn producer(&self, path: &RepoPath) -> Option<(&str, &Output)> {
        self.outputs().find(|(_, out)| path.is_within(&out.path))
    }

    /// Returns every output with the name of its stage.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &Output)> {
        self.stages.iter().flat_map(|(name, stage)| stage.outputs.iter().map(move |out| (name.as_str(), out)))
    }

    /// Returns the paths of all outputs with this role, sorted.
    pub fn files_of(&self, role: Role) -> Vec<RepoPath> {
        let mut files: Vec<_> =
            self.outputs().filter(|(_, out)| out.role == role).map(|(_, out)| out.path.clone()).collect();
        files.sort();
        files
    }

    /// Returns the paths of all parameter files, sorted, each once.
    pub fn params_files(&self) -> Vec<RepoPath> {
        let params = self.stages.values().flat_map(|stage| &stage.params);
        let mut files: Vec<_> = params.map(|(file, _)| file.clone()).collect();
        files.sort();
        files.dedup();
        files
    }
}

/// Checks the name of a stage or model.
fn check_name(name: &str) -> Result<()> {
    let is_allowed = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
    if !name.is_empty() && name.chars().all(is_allowed) {
        return Ok(());
    }
    Err(Error::usage(format!("`{name}` is not a valid name")).hint("use letters, digits, `-` and `_`"))
}

/// Resolves the path of an output; the repository's root and files that steer Git or mlx are not allowed.
fn resolve_output(resolve: &dyn Fn(&str) -> Result<RepoPath>, typed: &str) -> Result<RepoPath> {
    let path = resolve(typed)?;
    if path.is_root() {
        return Err(Error::usage(format!("its output `{typed}` is the whole repository"))
            .hint("name a file or folder in it"));
    }
    if belongs_in_git(&path) || path.bytes().ends_with(SUFFIX.as_bytes()) {
        let error = Error::usage(format!("its output `{path}` steers Git or mlx by its name"));
        return Err(error.hint("choose another name"));
    }
    Ok(path)
}

/// Refuses variables that no process can have.
fn check_environment(variables: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) {
            let message = format!("`{}` cannot be the name of a variable in `env`", name.escape_debug());
            return Err(Error::usage(message).hint("write `NAME = \"value\"`, with a name without `=`"));
        }
        if value.contains('\0') {
            return Err(Error::usage(format!("the value of `{name}` in `env` holds a zero byte")));
        }
    }
    Ok(())
}

impl RawStage {
    fn resolve(self, resolve: &dyn Fn(&str) -> Result<RepoPath>) -> Result<Stage> {
        let commands = match self.cmd {
            Commands::One(it) => vec![it],
            Commands::Many(it) => it,
        };
        let command = commands.join("\n");
        if command.trim().is_empty() {
            return Err(Error::usage("its command is empty"));
        }
        check_environment(&self.env)?;
        let mut outputs = Vec::new();
        for out in &self.outs {
            let (path, role) = match out {
                RawOutput::Plain(path) | RawOutput::Flagged { path, git: false } => (path, Role::Data),
                RawOutput::Flagged { path, git: true } => (path, Role::InGit),
            };
            outputs.push(Output { path: resolve_output(resolve, path)?, role });
        }
        for (list, role) in [(&self.metrics, Role::Metrics), (&self.plots, Role::Plots)] {
            for path in list {
                outputs.push(Output { path: resolve_output(resolve, path)?, role });
            }
        }
        outputs.sort_by(|a, b| a.path.cmp(&b.path));
        let param = |typed: &String| {
            let (file, keys) = typed.split_once(':').unwrap_or((typed, ""));
            Ok((resolve(file)?, keys.to_owned()))
        };
        let mut dependencies = self.deps.iter().map(|path| resolve(path)).collect::<Result<Vec<_>>>()?;
        dependencies.sort();
        dependencies.dedup();
        let mut params = self.params.iter().map(param).collect::<Result<Vec<_>>>()?;
        params.sort();
        params.dedup();
        Ok(Stage { command, commands, dependencies, outputs, params, environment: self.env })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Manifest> {
        Manifest::parse(&RepoPath::from_text("sub/mlx.toml").unwrap(), text.as_bytes(), Path::new("/r"))
    }

    #[test]
    fn paths_are_relative_to_the_folder_of_the_file() {
        let manifest = parse(
            "[stage.a]\ncmd = ['x', 'y']\ndeps = ['data/', '../top']\nouts = ['o', {path \
        = 'g', git = true}]\nparams = ['p.toml:a.b']\nmetrics = ['m.json']\n",
        )
        .unwrap();
        let stage = &manifest.stages["a"];
        assert_eq!(stage.command, "x\ny");
        let texts: Vec<_> = stage.dependencies.iter().map(RepoPath::to_text).collect();
        assert_eq!(texts, ["sub/data", "top"]);
        let outputs: Vec<_> = stage.outputs.iter().map(|out| (out.path.to_text(), out.role)).collect();
        let expected = [("sub/g", Role::InGit), ("sub/m.json", Role::Metrics), ("sub/o", Role::Data)];
        assert_eq!(outputs, expected.map(|(path, role)| (path.to_owned(), role)));
        assert_eq!(stage.params, [(RepoPath::from_text("sub/p.toml").unwrap(), "a.b".to_owned())]);
    }

    #[test]
    fn an_environment_variable_has_a_name_and_a_value_that_processes_can_have() {
        for (bad, part) in [
            ("'A=B' = 'x'", "`A=B` cannot be the name"),
            ("'' = 'x'", "`` cannot be the name"),
            ("\"a\\u0000\" = 'x'", "`a\\0` cannot be the name"),
            ("A = \"x\\u0000\"", "the value of `A` in `env` holds a zero byte"),
        ] {
            let error = parse(&format!("[stage.a]\ncmd = 'x'\n[stage.a.env]\n{bad}")).unwrap_err();
            assert!(error.chain_text().contains(part), "{bad}: {}", error.chain_text());
        }
        let stage = parse("[stage.a]\ncmd = 'x'\n[stage.a.env]\n'a.b-c d' = 'x=y'").unwrap();
        assert_eq!(stage.stages["a"].environment["a.b-c d"], "x=y");
    }

    #[test]
    fn unknown_keys_and_outside_paths_are_errors() {
        for bad in [
            "[stage.a]\ncmd = ''",
            "[stage.a]\ncmd = 'x'\ntypo = 1",
            "[stage.a]\ncmd = 'x'\nouts = ['../../x']",
            "[stage.a]\ncmd = 'x'\nouts = ['.git/hooks/x']",
            "[stage.a]\ncmd = 'x'\nouts = ['..']",
            "[stage.a]\ncmd = 'x'\nmetrics = ['../']",
            "[stage.a]\ncmd = 'x'\nouts = ['mlx.lock']",
            "[stage.a]\ncmd = 'x'\nouts = ['o/.gitattributes']",
            "[stage.a]\ncmd = 'x'\nouts = [{path = '.gitmodules', git = true}]",
            "[stage.a]\ncmd = 'x'\nplots = ['o.mlx']",
            "[stage.'a b']\ncmd = 'x'",
            "[stage.a]",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
