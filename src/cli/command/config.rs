//! `mlx config`: reads and writes settings in three layers: user, repository (committed) and local (this
//! clone).

use std::{collections::BTreeMap, fmt, path::Path};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report},
    error::{Error, Result},
    remote::check_setting,
    repo::{Change, Config, KEYS, Layer, Repo, default_value, is_secret, open_cache},
};

/// Read and write settings
#[derive(clap::Subcommand)]
#[command(after_help = help())]
pub enum Command {
    /// Print the effective value of a setting
    #[command(after_help = "Examples:\n  mlx config get core.remote\n\nJSON: {KEY: {\"value\", \"from\"}}")]
    Get {
        /// Name of the setting, such as `core.remote`
        key: String,
    },
    /// Write a setting, by default to `.mlx/config.toml`, which is committed
    #[command(after_help = "Examples:\n  mlx config set cache.link hardlink,copy\n  mlx config set --local \
        cache.dir /srv/cache\n\n\
JSON: {KEY: {\"value\", \"from\"}}")]
    Set {
        /// Name of the setting, such as `cache.link`
        key: String,
        /// Value to write
        value: String,
        #[command(flatten)]
        file: File,
    },
    /// Remove a setting, by default from `.mlx/config.toml`, which is committed
    #[command(after_help = "Examples:\n  mlx config unset cache.link\n  mlx config unset --local \
        cache.dir\n\n\
JSON: {KEY: {\"value\", \"from\"}}, the value in effect then, if there is one")]
    Unset {
        /// Name of the setting, such as `cache.link`
        key: String,
        #[command(flatten)]
        file: File,
    },
    /// Print all effective settings, defaults included, and where each comes from
    #[command(after_help = "Examples:\n  mlx config list\n\nJSON: {KEY: {\"value\", \"from\"}}")]
    List,
}

/// The file that a setting is written to.
#[derive(clap::Args)]
pub struct File {
    /// Use `.mlx/local.toml`, for this clone only
    #[arg(long, conflicts_with = "user")]
    local: bool,
    /// Use `~/.config/mlx/config.toml`, for all your repositories
    #[arg(long)]
    user: bool,
}

fn help() -> String {
    let rows = KEYS.iter().map(|key| {
        let default = key.default.map(|value| format!(" (default: {value})")).unwrap_or_default();
        format!("  {:16} {}{default}", key.name, key.about)
    });
    format!("Settings:\n{}", rows.collect::<Vec<_>>().join("\n"))
}

/// Report of `mlx config`: settings with their values and where each comes from. Secrets are not printed.
pub struct Settings {
    rows: BTreeMap<String, (String, &'static str)>,
    /// A sentence on the change, if the rows do not show it.
    done: Option<String>,
}

pub fn run(ctx: &Context<'_>, command: &Command) -> Result<Settings> {
    let repo = ctx.repo_for_settings()?;
    match command {
        Command::List => Ok(Settings { rows: effective(&repo.config), done: None }),
        Command::Get { key } => {
            let rows = only(key, effective(&repo.config));
            if rows.is_empty() {
                let error = Error::not_found(format!("`{key}` is not set"));
                return Err(error.hint("see `mlx config list`, and `mlx config --help` for all settings"));
            }
            Ok(Settings { rows, done: None })
        }
        Command::Set { key, value, file } => {
            if let Some((_, option)) = key.strip_prefix("remote.").and_then(|rest| rest.split_once('.')) {
                check_setting(option, value)?;
            }
            if key == "cache.dir" && value.starts_with('/') && file.layer() != Layer::Repo {
                open_cache(Path::new(value))?;
            }
            repo.change_settings(file.layer(), |settings| settings.set(key, value))?;
            let row = (key.clone(), (value.clone(), file.layer().name()));
            Ok(Settings { rows: BTreeMap::from([row]), done: None })
        }
        Command::Unset { key, file } => unset(&repo, key, file.layer()),
    }
}

fn unset(repo: &Repo, key: &str, layer: Layer) -> Result<Settings> {
    let elsewhere = |settings: &Change<'_>| match settings.config.get(key).map(|it| it.1) {
        Some(Layer::Repo) => Some("without `--local` and `--user`"),
        Some(Layer::Local) => Some("with `--local`"),
        Some(Layer::User) => Some("with `--user`"),
        None => None,
    };
    repo.change_settings(layer, |settings| {
        settings.unset(key).map_err(|error| match elsewhere(settings) {
            Some(how) => error.hint(format!("it is set elsewhere: run `mlx config unset {key}` {how}")),
            None => error.hint("see `mlx config list`"),
        })
    })?;
    let done = Some(format!("removed `{key}` from `{}`", layer.file()));
    let config = Config::load(&repo.folder()?)?;
    Ok(Settings { rows: only(key, effective(&config)), done })
}

/// Returns every setting in effect, defaults included.
fn effective(config: &Config) -> BTreeMap<String, (String, &'static str)> {
    let defaults = KEYS.iter().filter_map(|key| {
        let value = default_value(key.name)?;
        Some((key.name.to_owned(), (value.to_owned(), "default")))
    });
    let set = config.all().into_iter().map(|(key, (value, layer))| (key, (value, layer.name())));
    defaults.chain(set).collect()
}

fn only(
    key: &str,
    mut rows: BTreeMap<String, (String, &'static str)>,
) -> BTreeMap<String, (String, &'static str)> {
    rows.retain(|name, _| name == key);
    rows
}

impl File {
    fn layer(&self) -> Layer {
        match (self.local, self.user) {
            (true, _) => Layer::Local,
            (_, true) => Layer::User,
            _ => Layer::Repo,
        }
    }
}

impl Settings {
    fn shown(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.rows.iter().map(|(key, (value, from))| {
            (key.as_str(), if is_secret(key) { "…" } else { value.as_str() }, *from)
        })
    }
}

impl Report for Settings {
    fn json(&self) -> Value {
        let rows =
            self.shown().map(|(key, value, from)| (key.to_owned(), json!({"value": value, "from": from})));
        Value::Object(rows.collect())
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(done) = &self.done {
            writeln!(f, "{done}")?;
        }
        for (key, value, from) in self.shown() {
            writeln!(f, "{key} = {value}  ({from})")?;
        }
        Ok(())
    }
}
