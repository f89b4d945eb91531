//! Settings, in layers: the user's file, the committed one, the local one; the later wins, key by key.

use std::{collections::BTreeMap, path::PathBuf};

use toml_edit::{DocumentMut, Item, Table, value};

use crate::{
    document,
    error::{Error, Kind, Result},
    fs::{Link, Root, Sync},
    path::RepoPath,
    repo::user_dir,
};

/// Where a setting is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// `~/.config/mlx/config.toml`
    User,
    /// `.mlx/config.toml`, committed.
    Repo,
    /// `.mlx/local.toml`, never committed.
    Local,
}

/// Every key there is, with what it is for; `remote.NAME.*` stands beside these.
pub const KEYS: [(&str, &str); 8] = [
    ("alert.command", "a shell command that gets each alert as JSON (user or local settings only)"),
    ("alert.file", "a file that each alert is appended to as a line of JSON (user or local settings only)"),
    ("alert.webhook", "an address that each alert is posted to as JSON (user or local settings only)"),
    ("cache.dir", "folder of the store, for several clones to share (user or local settings only)"),
    ("cache.link", "how files are placed in the workspace: reflink, hardlink, symlink, copy, in order"),
    ("core.remote", "the remote that push, pull and fetch use unless told"),
    ("onnx.library", "the ONNX Runtime library to load (user or local settings only)"),
    ("remote.NAME.KEY", "url and options of a remote, as `mlx remote add` writes them"),
];
/// A stranger's repository must not choose these.
const NEVER_COMMITTED: [&str; 5] =
    ["alert.command", "alert.file", "alert.webhook", "cache.dir", "onnx.library"];
/// Words in the names of options that hold secrets.
const SECRETS: [&str; 7] = ["access_key", "secret", "token", "password", "sas", "credential", "customer_key"];

/// A remote as configured.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    pub name: String,
    pub url: String,
    pub options: BTreeMap<String, String>,
    /// Options that come from the user's or the local settings, not from a commit.
    pub private: bool,
}

/// All layers, read.
#[derive(Default)]
pub struct Config {
    layers: BTreeMap<Layer, BTreeMap<String, String>>,
}

impl Config {
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

    /// The value in force and the layer it comes from.
    pub fn get(&self, key: &str) -> Option<(&str, Layer)> {
        self.layers.iter().rev().find_map(|(layer, it)| Some((it.get(key)?.as_str(), *layer)))
    }

    /// Every setting in force, sorted.
    pub fn all(&self) -> BTreeMap<String, (String, Layer)> {
        let rows = self.layers.iter().flat_map(|(layer, it)| it.iter().map(move |row| (row, *layer)));
        rows.map(|((key, value), layer)| (key.clone(), (value.clone(), layer))).collect()
    }

    /// How files are placed in the workspace.
    pub fn links(&self) -> Result<Vec<Link>> {
        let Some((text, _)) = self.get("cache.link") else { return Ok(vec![Link::Reflink, Link::Copy]) };
        text.split(',').map(|it| it.trim().parse()).collect()
    }

    pub fn cache_dir(&self) -> Result<Option<PathBuf>> {
        let Some((text, _)) = self.get("cache.dir") else { return Ok(None) };
        let path = PathBuf::from(text);
        if path.is_absolute() {
            return Ok(Some(path));
        }
        Err(Error::usage(format!("`cache.dir` is `{text}`, which is no absolute path")))
    }

    /// The names of all remotes.
    pub fn remotes(&self) -> Vec<String> {
        let keys = self.layers.values().flat_map(BTreeMap::keys);
        let name = |key: &String| Some(key.strip_prefix("remote.")?.strip_suffix(".url")?.to_owned());
        let mut names: Vec<_> = keys.filter_map(name).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The remote of this name, or the default one.
    pub fn remote(&self, name: Option<&str>) -> Result<RemoteConfig> {
        let none = || {
            Error::not_found("there is no default remote")
                .hint("add one with `mlx remote add NAME URL --default`, or name one")
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
            let known = self.remotes().join(", ");
            let hint =
                if known.is_empty() { "there are none".to_owned() } else { format!("there are: {known}") };
            Error::not_found(format!("there is no remote `{name}`")).hint(hint)
        })?;
        Ok(RemoteConfig { name: name.to_owned(), url, options, private })
    }
}

/// Writes settings to one layer, leaving everything else in its file as it is.
pub fn write(folder: &Root, layer: Layer, settings: &[(String, Option<String>)]) -> Result<()> {
    for (key, value) in settings {
        check_key(key, layer)?;
        if key.starts_with("remote.")
            && key.rsplit('.').next() == Some("url")
            && value.as_ref().is_some_and(|it| it.contains('@'))
        {
            return Err(Error::new(Kind::Denied, "an address must not hold a user or a password")
                .hint("secrets come from the environment, profile files, or `--local` settings"));
        }
    }
    let (root, path) = layer_file(layer, folder, true)?
        .ok_or_else(|| Error::not_found("there is no home folder for your own settings").hint("set HOME"))?;
    let bytes = root.read_document(&path)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let broken = |why: String| Error::corrupt(format!("cannot read `{path}`: {why}"));
    let mut doc: DocumentMut =
        text.parse().map_err(|it: toml_edit::TomlError| broken(it.message().to_owned()))?;
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
        Sync::Yes,
        if layer == Layer::Repo { 0o666 } else { 0o600 },
    )
}

/// Refuses keys that do not exist and values that must not be committed.
fn check_key(key: &str, layer: Layer) -> Result<()> {
    let remote =
        key.strip_prefix("remote.").is_some_and(|it| it.split('.').filter(|it| !it.is_empty()).count() == 2);
    if !remote && !KEYS.iter().any(|it| it.0 == key && !key.contains("NAME")) {
        let known = KEYS.map(|it| it.0).join(", ");
        return Err(Error::usage(format!("there is no setting `{key}`")).hint(format!("there are: {known}")));
    }
    let secret =
        remote && SECRETS.iter().any(|it| key.rsplit('.').next().is_some_and(|name| name.contains(it)));
    if layer == Layer::Repo && (secret || NEVER_COMMITTED.contains(&key)) {
        let what = if secret { "is a secret" } else { "belongs to one machine" };
        let error = Error::new(Kind::Denied, format!("`{key}` {what} and must not be committed"));
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
    let to_text = |it: serde_json::Value| it.as_str().map_or_else(|| it.to_string(), str::to_owned);
    // An empty document is one leaf without a name.
    let named = document::leaves(&value).into_iter().filter(|it| !it.0.is_empty());
    Ok(named.map(|(key, it)| (key, to_text(it))).collect())
}

impl Layer {
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Repo => "repository",
            Self::Local => "local",
        }
    }
}
