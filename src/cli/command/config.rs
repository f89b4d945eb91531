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
    /// Print the value in force
    #[command(after_help = "Examples:\n  mlx config get core.remote\n\nJSON: {KEY: {\"value\", \"from\"}}")]
    Get {
        /// The setting
        key: String,
    },
    /// Write a setting: into `.mlx/config.toml`, which is committed, unless told otherwise
    #[command(
        after_help = "Examples:\n  mlx config set cache.link hardlink,copy\n  mlx config set --local cache.dir /srv/cache\n\n\
JSON: {KEY: {\"value\", \"from\"}}"
    )]
    Set {
        /// The setting
        key: String,
        /// Its value
        value: String,
        /// For this clone alone: `.mlx/local.toml`
        #[arg(long, conflicts_with = "user")]
        local: bool,
        /// For all your repositories: `~/.config/mlx/config.toml`
        #[arg(long)]
        user: bool,
    },
    /// Print all settings in force and where each comes from
    #[command(after_help = "Examples:\n  mlx config list\n\nJSON: {KEY: {\"value\", \"from\"}}")]
    List,
}

fn help() -> String {
    let rows: Vec<_> = KEYS.iter().map(|(key, about)| format!("  {key:16} {about}")).collect();
    format!("Settings:\n{}", rows.join("\n"))
}

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

/// Values that would make every later command fail are refused now.
fn check(key: &str, value: &str) -> Result<()> {
    match key {
        "cache.link" => value.split(',').try_for_each(|it| it.trim().parse::<crate::fs::Link>().map(drop)),
        "cache.dir" if !value.starts_with('/') => Err(Error::usage(format!("`{value}` is no absolute path"))),
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
    ["access_key", "secret", "token", "password"].iter().any(|it| name.contains(it))
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
