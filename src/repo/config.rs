//! Settings in three layers: user file, committed file, local file; later layers win, key by key.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    error::{Error, Result, WithContext},
    fs::{LinkKind, Root},
    repo::{
        files::Layer,
        keys::{check_key, default_value, is_never_committed},
        settings_text,
    },
};

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
    /// One sentence for each setting that has no effect or should not be where it is.
    pub notes: Vec<String>,
}

impl Config {
    /// Reads all layers of the folder `.mlx`. Keys that must not be committed are dropped from the committed
    /// one; unknown keys are kept, since a newer mlx may know them, and named in the notes.
    pub fn load(folder: &Root) -> Result<Self> {
        Self::load_sparse(Some(folder), None)
    }

    /// Reads all layers as [`Config::load`] does. A sparse checkout may leave out the folder or the committed
    /// settings in it, whose text is then given.
    pub fn load_sparse(folder: Option<&Root>, mut committed: Option<String>) -> Result<Self> {
        let mut config = Self::default();
        for layer in Layer::ALL {
            let given = if layer == Layer::Repo { committed.take() } else { None };
            let Some(text) = given.map_or_else(|| layer.read(folder), |text| Ok(Some(text)))? else {
                continue;
            };
            let file = layer.file();
            let mut settings = settings_text::values(&text).context(|| format!("cannot read `{file}`"))?;
            for error in settings.keys().filter_map(|key| check_key(key, layer).err()) {
                let hint = error.hint_text().unwrap_or_default();
                config.notes.push(format!("in `{file}`: {error}; {hint}"));
            }
            if layer == Layer::Repo {
                settings.retain(|key, _| !is_never_committed(key));
            }
            config.layers.insert(layer, settings);
        }
        Ok(config)
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

    /// Returns the keys that one layer sets, sorted, whether or not a later layer sets them, too.
    pub fn keys_of(&self, layer: Layer) -> impl Iterator<Item = (&str, &str)> {
        self.layers.get(&layer).into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns the ways to place files in the workspace, in order of preference.
    pub fn links(&self) -> Result<Vec<LinkKind>> {
        let set = self.get("cache.link").map(|it| it.0).or_else(|| default_value("cache.link"));
        set.unwrap_or_default().split(',').map(|it| it.trim().parse()).collect()
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
        let none = || Error::not_found("no default remote is configured").hint(self.default_hint());
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
        let missing = || Error::not_found(format!("remote `{name}` not found")).hint(self.remotes_hint());
        let url = options.remove("url").ok_or_else(missing)?;
        Ok(RemoteConfig { name: name.to_owned(), url, options, private })
    }

    /// Tells how to get a default remote.
    fn default_hint(&self) -> String {
        let known = self.remotes();
        let name = match &known[..] {
            [] => return "add one with `mlx remote add NAME URL --default`".to_owned(),
            [name] => name,
            _ => "NAME",
        };
        format!("{}; make one the default with `mlx config set core.remote {name}`", self.remotes_hint())
    }

    /// Lists the configured remotes.
    fn remotes_hint(&self) -> String {
        match self.remotes().join(", ") {
            names if names.is_empty() => {
                "no remote is configured: add one with `mlx remote add NAME URL`".to_owned()
            }
            names => format!("configured remotes: {names}"),
        }
    }
}
