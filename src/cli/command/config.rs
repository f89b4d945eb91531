//! `mlx config`: reads and writes settings in three layers: user, repository (committed) and local (this
//! clone).

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report},
    error::{Error, Result},
    repo::{KEYS, Layer, write_config},
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
        /// Write to `.mlx/local.toml`, for this clone only
        #[arg(long, conflicts_with = "user")]
        local: bool,
        /// Write to `~/.config/mlx/config.toml`, for all your repositories
        #[arg(long)]
        user: bool,
    },
    /// Print all effective settings and where each comes from
    #[command(after_help = "Examples:\n  mlx config list\n\nJSON: {KEY: {\"value\", \"from\"}}")]
    List,
}

fn help() -> String {
    let rows: Vec<_> = KEYS.iter().map(|(key, about)| format!("  {key:16} {about}")).collect();
    format!("Settings:\n{}", rows.join("\n"))
}

/// Report of `mlx config`: settings with their values and layers. Secrets are not printed.
pub struct Settings(BTreeMap<String, (String, Layer)>);

pub fn run(ctx: &Context<'_>, command: &Command) -> Result<Settings> {
    let repo = ctx.repo()?;
    match command {
        Command::List => Ok(Settings(repo.config.all())),
        Command::Get { key } => {
            let found = repo.config.all().remove(key);
            let value = found.ok_or_else(|| {
                Error::not_found(format!("`{key}` is not set")).hint("see `mlx config list`")
            })?;
            Ok(Settings(BTreeMap::from([(key.clone(), value)])))
        }
        Command::Set { key, value, local, user } => {
            let layer = match (local, user) {
                (true, _) => Layer::Local,
                (_, true) => Layer::User,
                _ => Layer::Repo,
            };
            check(key, value)?;
            write_config(&repo.folder()?, layer, &[(key.clone(), Some(value.clone()))])?;
            Ok(Settings(BTreeMap::from([(key.clone(), (value.clone(), layer))])))
        }
    }
}

/// Refuses values that would make every later command fail.
fn check(key: &str, value: &str) -> Result<()> {
    match key {
        "cache.link" => {
            value.split(',').try_for_each(|link| link.trim().parse::<crate::fs::LinkKind>().map(drop))
        }
        "cache.dir" if !value.starts_with('/') => {
            Err(Error::usage(format!("`{value}` is not an absolute path")))
        }
        _ => Ok(()),
    }
}

impl Report for Settings {
    fn json(&self) -> Value {
        let rows = self.0.iter().map(|(key, (value, layer))| {
            let value = if is_secret(key) { "…" } else { value };
            (key.clone(), json!({"value": value, "from": layer.name()}))
        });
        Value::Object(rows.collect())
    }
}

fn is_secret(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or_default();
    ["access_key", "secret", "token", "password"].iter().any(|word| name.contains(word))
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, (value, layer)) in &self.0 {
            let value = if is_secret(key) { "…" } else { value };
            writeln!(f, "{key} = {value}  ({})", layer.name())?;
        }
        Ok(())
    }
}
