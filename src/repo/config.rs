//! Settings in three layers: user file, committed file, local file; later layers win, key by key.

use std::{collections::BTreeMap, path::PathBuf};

use toml_edit::{DocumentMut, Item, Table, value};

use crate::{
    document,
    error::{Error, Kind, Result},
    fs::{LinkKind, Root, Sync},
    path::RepoPath,
    repo::user_dir,
};

/// The file that a setting is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// `~/.config/mlx/config.toml`
    User,
    /// `.mlx/config.toml`, committed.
    Repo,
    /// `.mlx/local.toml`, never committed.
    Local,
}

/// All keys with their descriptions; `remote.NAME.KEY` stands for any option of a remote.
pub const KEYS: [(&str, &str); 8] = [
    ("alert.command", "a shell command that gets each alert as JSON (user or local settings only)"),
    ("alert.file", "a file that each alert is appended to as a line of JSON (user or local settings only)"),
    ("alert.webhook", "an address that each alert is posted to as JSON (user or local settings only)"),
    ("cache.dir", "folder of the store, for several clones to share (user or local settings only)"),
    ("cache.link", "how files are placed in the workspace: reflink, hardlink, symlink, copy, in order"),
    ("core.remote", "the default remote of push, pull and fetch"),
    ("onnx.library", "the ONNX Runtime library to load (user or local settings only)"),
    ("remote.NAME.KEY", "url and options of a remote, as `mlx remote add` writes them"),
];
/// Keys that a commit must not set, since the repository may be untrusted.
const NEVER_COMMITTED: [&str; 5] =
    ["alert.command", "alert.file", "alert.webhook", "cache.dir", "onnx.library"];
/// Parts of option names that mark secrets.
const SECRETS: [&str; 7] = ["access_key", "secret", "token", "password", "sas", "credential", "customer_key"];

/// The configuration of a remote.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    pub name: String,
    pub url: String,
    pub options: BTreeMap<String, String>,
    /// True if no setting of the remote comes from a commit.
    pub private: bool,
}

/// The settings of all layers.
#[derive(Default)]
pub struct Config {
    layers: BTreeMap<Layer, BTreeMap<String, String>>,
}

impl Config {
    /// Reads all layers; keys that must not be committed are dropped from the committed one.
    pub fn load(folder: &Root) -> Result<Self> {
        let mut layers = BTreeMap::new();
        for layer in [Layer::User, Layer::Repo, Layer::Local] {
            let Some((root, path)) = layer_file(layer, folder, false)? else { continue };
            if let Some(bytes) = root.read_document(&path)? {
                let mut settings = flatten(&path, &bytes)?;
                if layer == Layer::Repo {
                    settings.retain(|key, _| !NEVER_COMMITTED.contains(&key.as_str()));
                }
                layers.insert(layer, settings);
            }
        }
        Ok(Self { layers })
    }

    /// Returns the value in effect and the layer it comes from.
    pub fn get(&self, key: &str) -> Option<(&str, Layer)> {
        self.layers.iter().rev().find_map(|(layer, it)| Some((it.get(key)?.as_str(), *layer)))
    }

    /// Returns all settings in effect, sorted by key.
    pub fn all(&self) -> BTreeMap<String, (String, Layer)> {
        let rows = self.layers.iter().flat_map(|(layer, it)| it.iter().map(move |row| (row, *layer)));
        rows.map(|((key, value), layer)| (key.clone(), (value.clone(), layer))).collect()
    }

    /// Returns the ways to place files in the workspace, in order of preference.
    pub fn links(&self) -> Result<Vec<LinkKind>> {
        let Some((text, _)) = self.get("cache.link") else {
            return Ok(vec![LinkKind::Reflink, LinkKind::Copy]);
        };
        text.split(',').map(|it| it.trim().parse()).collect()
    }

    /// Returns the folder of a shared store, if one is configured.
    pub fn cache_dir(&self) -> Result<Option<PathBuf>> {
        let Some((text, _)) = self.get("cache.dir") else { return Ok(None) };
        let path = PathBuf::from(text);
        if path.is_absolute() {
            return Ok(Some(path));
        }
        Err(Error::usage(format!("`cache.dir` is `{text}`, which is not an absolute path")))
    }

    /// Returns the names of all remotes, sorted.
    pub fn remotes(&self) -> Vec<String> {
        let keys = self.layers.values().flat_map(BTreeMap::keys);
        let name = |key: &String| Some(key.strip_prefix("remote.")?.strip_suffix(".url")?.to_owned());
        let mut names: Vec<_> = keys.filter_map(name).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Returns the remote of this name, or the default one.
    pub fn remote(&self, name: Option<&str>) -> Result<RemoteConfig> {
        let none = || {
            Error::not_found("no default remote is configured")
                .hint("add one with `mlx remote add NAME URL --default`, or name a remote")
        };
        let name = name.or_else(|| self.get("core.remote").map(|it| it.0)).ok_or_else(none)?;
        let prefix = format!("remote.{name}.");
        let settings = self.all();
        let found = settings.iter().filter_map(|(key, it)| Some((key.strip_prefix(&prefix)?.to_owned(), it)));
        let mut options: BTreeMap<String, String> = BTreeMap::new();
        let mut private = true;
        for (key, (text, layer)) in found {
            private &= *layer != Layer::Repo;
            options.insert(key, text.clone());
        }
        let url = options.remove("url").ok_or_else(|| {
            let names = self.remotes().join(", ");
            let hint = if names.is_empty() {
                "no remote is configured: add one with `mlx remote add NAME URL`".to_owned()
            } else {
                format!("configured remotes: {names}")
            };
            Error::not_found(format!("remote `{name}` not found")).hint(hint)
        })?;
        Ok(RemoteConfig { name: name.to_owned(), url, options, private })
    }
}

/// Writes settings to one layer and leaves everything else in its file unchanged.
pub fn write(folder: &Root, layer: Layer, settings: &[(String, Option<String>)]) -> Result<()> {
    for (key, value) in settings {
        check_key(key, layer)?;
        if key.starts_with("remote.")
            && key.rsplit('.').next() == Some("url")
            && value.as_ref().is_some_and(|it| it.contains('@'))
        {
            return Err(Error::new(Kind::Denied, "a remote URL must not contain a user name or a password")
                .hint("put secrets into the environment, the cloud's profile files, or `--local` settings"));
        }
    }
    let (root, path) = layer_file(layer, folder, true)?
        .ok_or_else(|| Error::not_found("your home folder is unknown").hint("set HOME"))?;
    let bytes = root.read_document(&path)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let broken = |why: String| Error::corrupt(format!("cannot read `{path}`: {why}"));
    let mut doc: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| broken(error.message().to_owned()))?;
    for (key, text) in settings {
        let names: Vec<&str> = key.split('.').collect();
        let (last, folders) = names.split_last().expect("a key has a name");
        let mut table: &mut Table = doc.as_table_mut();
        for name in folders {
            let item = table.entry(name).or_insert_with(|| {
                let mut table = Table::new();
                table.set_implicit(true);
                Item::Table(table)
            });
            table = item.as_table_mut().ok_or_else(|| broken(format!("`{name}` is not a table")))?;
        }
        match text {
            Some(text) => drop(table.insert(last, value(text.as_str()))),
            None => drop(table.remove(last)),
        }
    }
    root.write_mode(
        &path,
        doc.to_string().as_bytes(),
        Sync::Now,
        if layer == Layer::Repo { 0o666 } else { 0o600 },
    )
}

/// Refuses unknown keys, and keys that must not be committed.
fn check_key(key: &str, layer: Layer) -> Result<()> {
    let remote = key
        .strip_prefix("remote.")
        .is_some_and(|rest| rest.split('.').filter(|it| !it.is_empty()).count() == 2);
    if !remote && !KEYS.iter().any(|(known, _)| *known == key && !key.contains("NAME")) {
        let known = KEYS.map(|it| it.0).join(", ");
        return Err(
            Error::usage(format!("setting `{key}` not found")).hint(format!("known settings: {known}"))
        );
    }
    let secret =
        remote && SECRETS.iter().any(|word| key.rsplit('.').next().is_some_and(|name| name.contains(word)));
    if layer == Layer::Repo && (secret || NEVER_COMMITTED.contains(&key)) {
        let reason = if secret { "is a secret" } else { "is specific to one machine" };
        let error = Error::new(Kind::Denied, format!("`{key}` {reason} and must not be committed"));
        return Err(error.hint("add `--local`, or use the environment or the cloud's own profile files"));
    }
    Ok(())
}

fn layer_file(layer: Layer, folder: &Root, create: bool) -> Result<Option<(Root, RepoPath)>> {
    let path = RepoPath::from_text(if layer == Layer::Local { "local.toml" } else { "config.toml" })?;
    if layer != Layer::User {
        return Ok(Some((Root::open(folder.path())?, path)));
    }
    match user_dir() {
        Some(dir) if create => Ok(Some((Root::create(&dir)?, path))),
        Some(dir) if crate::fs::is_dir(&dir) => Ok(Some((Root::open(&dir)?, path))),
        _ => Ok(None),
    }
}

fn flatten(path: &RepoPath, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let value = document::parse(path, bytes)?;
    let to_text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    // An empty document is one leaf without a name.
    let named = document::leaves(&value).into_iter().filter(|it| !it.0.is_empty());
    Ok(named.map(|(key, it)| (key, to_text(it))).collect())
}

impl Layer {
    /// Returns the name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Repo => "repository",
            Self::Local => "local",
        }
    }
}
