use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report},
    error::{Error, Kind, Result},
    remote::OPTIONS,
    repo::{Config, Layer, RemoteConfig, Repo, write_config},
};

/// Name the places that keep objects for others
#[derive(clap::Subcommand)]
pub enum Command {
    /// Name a folder or a bucket
    #[command(after_help = "Examples:\n  mlx remote add origin file:///srv/pets --default\n  \
mlx remote add s3 s3://bucket/pets --set region=eu-south-2 --set endpoint=https://s3.example\n\n\
Secrets come from the environment or the cloud's own profile files, or from `--local` settings.\n\
JSON: {\"remotes\": [{\"name\", \"url\", \"default\", \"trusted\"}]}")]
    Add {
        /// What to call it
        name: String,
        /// `file:///folder` or `s3://bucket/prefix`
        url: String,
        /// Make it the one that push, pull and fetch use
        #[arg(long)]
        default: bool,
        /// An option of the place, such as endpoint or region
        #[arg(long = "set", value_name = "KEY=VALUE")]
        options: Vec<String>,
        /// For this clone alone: nothing of it is committed
        #[arg(long)]
        local: bool,
    },
    /// List the remotes
    #[command(
        after_help = "Examples:\n  mlx remote list\n\nJSON: {\"remotes\": [{\"name\", \"url\", \"default\", \"trusted\"}]}"
    )]
    List,
    /// Forget a remote; what it keeps stays there
    #[command(after_help = "Examples:\n  mlx remote remove origin\n\nJSON: {\"remotes\": […]}")]
    Remove {
        /// Its name
        name: String,
    },
    /// Allow your credentials to be sent to a remote that the repository names
    #[command(after_help = "Examples:\n  mlx remote trust s3\n\nJSON: {\"remotes\": […]}")]
    Trust {
        /// Its name
        name: String,
    },
}

pub struct Remotes(Vec<(RemoteConfig, bool, bool)>);

pub fn run(ctx: &Context<'_>, command: &Command) -> Result<Remotes> {
    let repo = ctx.repo()?;
    match command {
        Command::List => {}
        Command::Add { name, url, default, options, local } => {
            let layer = if *local { Layer::Local } else { Layer::Repo };
            add(&repo, name, url, options, *default, layer)?;
        }
        Command::Remove { name } => remove(&repo, name)?,
        Command::Trust { name } => repo.config.remote(Some(name))?.trust()?,
    }
    let config = Config::load(&repo.folder()?)?;
    let default = config.get("core.remote").map(|it| it.0.to_owned());
    let rows = config.remotes().into_iter().map(|name| {
        let remote = config.remote(Some(&name))?;
        let trusted = remote.is_trusted()?;
        let is_default = default.as_deref() == Some(&name);
        Ok((remote, is_default, trusted))
    });
    Ok(Remotes(rows.collect::<Result<_>>()?))
}

fn add(repo: &Repo, name: &str, url: &str, options: &[String], default: bool, layer: Layer) -> Result<()> {
    let plain = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(
            Error::usage(format!("`{name}` cannot be a name")).hint("use letters, digits, `-` and `_`")
        );
    }
    if repo.config.remotes().iter().any(|it| it == name) {
        let error = Error::new(Kind::Conflict, format!("there is a remote `{name}` already"));
        return Err(error.hint(format!("choose another name, or `mlx remote remove {name}` first")));
    }
    let file = url.strip_prefix("file://").is_some_and(|it| it.starts_with('/')) || url.starts_with('/');
    if !file && url.strip_prefix("s3://").is_none_or(|it| it.split('/').next().is_none_or(str::is_empty)) {
        let error = Error::usage(format!("`{url}` is no address of a remote"));
        return Err(error.hint("use file:///folder or s3://bucket/prefix"));
    }
    let mut settings = vec![(format!("remote.{name}.url"), Some(url.to_owned()))];
    for option in options {
        let (key, value) = option.split_once('=').ok_or_else(|| {
            Error::usage(format!("`{option}` is not KEY=VALUE")).hint("for example --set region=eu-south-2")
        })?;
        if !OPTIONS.contains(&key) {
            let error = Error::usage(format!("there is no remote option `{key}`"));
            return Err(error.hint(format!("there are: {}", OPTIONS.join(", "))));
        }
        settings.push((format!("remote.{name}.{key}"), Some(value.to_owned())));
    }
    if default {
        settings.push(("core.remote".to_owned(), Some(name.to_owned())));
    }
    let folder = repo.folder()?;
    write_config(&folder, layer, &settings)?;
    let added = Config::load(&folder)?.remote(Some(name))?;
    // Whoever types an endpoint here vouches for it here.
    if added.options.is_empty() { Ok(()) } else { added.trust() }
}

fn remove(repo: &Repo, name: &str) -> Result<()> {
    repo.config.remote(Some(name))?;
    let prefix = format!("remote.{name}.");
    for layer in [Layer::User, Layer::Repo, Layer::Local] {
        let all = repo.config.all();
        let ours = all.iter().filter(|(_, it)| it.1 == layer);
        let mut gone: Vec<_> =
            ours.filter(|it| it.0.starts_with(&prefix)).map(|it| (it.0.clone(), None)).collect();
        if repo.config.get("core.remote").is_some_and(|it| it == (name, layer)) {
            gone.push(("core.remote".to_owned(), None));
        }
        if !gone.is_empty() {
            write_config(&repo.folder()?, layer, &gone)?;
        }
    }
    Ok(())
}

impl Report for Remotes {
    fn json(&self) -> Value {
        let row = |(it, default, trusted): &(RemoteConfig, bool, bool)| json!({"name": it.name, "url": it.url, "default": default, "trusted": trusted});
        json!({"remotes": self.0.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Remotes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (remote, default, trusted) in &self.0 {
            let mark = if *default { "  (default)" } else { "" };
            let trust = if *trusted { "" } else { "  (not trusted with credentials)" };
            writeln!(f, "{}  {}{mark}{trust}", remote.name, remote.url)?;
        }
        f.write_str(if self.0.is_empty() {
            "no remotes: `mlx remote add NAME URL --default` names one"
        } else {
            ""
        })
    }
}
