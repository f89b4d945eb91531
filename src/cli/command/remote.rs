//! `mlx remote`: adds, lists, removes and trusts remotes, which store objects in a folder or a bucket.

use std::{fmt, os::unix::ffi::OsStrExt as _, path::Path};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, command::remote_gc},
    error::{Error, Kind, Result},
    fs,
    git::IgnoreTarget,
    path::RepoPath,
    pointer::Pointer,
    remote::check_setting,
    repo::{Change, Config, Layer, RemoteConfig, Repo},
};

/// Manage remotes, the folders or buckets that store objects for sharing
#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a folder or a bucket as a remote
    #[command(after_help = "Examples:\n  mlx remote add origin file:///srv/pets --default\n  \
mlx remote add s3 s3://bucket/pets --set region=eu-south-2 --set endpoint=https://s3.example\n\n\
Secrets come from the environment, the cloud's own profile files, or `--local` settings.\n\
JSON: {\"remotes\": [{\"name\", \"url\", \"default\", \"trusted\"}]}")]
    Add {
        /// Name of the remote
        name: String,
        /// URL: `file:///folder` or `s3://bucket/prefix`
        url: String,
        /// Use it for push, pull and fetch by default
        #[arg(long)]
        default: bool,
        /// Backend option, such as endpoint or region; may be repeated
        #[arg(long = "set", value_name = "KEY=VALUE")]
        options: Vec<String>,
        /// Write to `.mlx/local.toml`, for this clone only, which is never committed
        #[arg(long)]
        local: bool,
    },
    /// List the remotes
    #[command(after_help = "Examples:\n  mlx remote list\n\nJSON: {\"remotes\": [{\"name\", \"url\", \
        \"default\", \"trusted\"}]}")]
    List,
    Gc(remote_gc::Args),
    /// Remove a remote from the settings; its objects are kept
    #[command(after_help = "Examples:\n  mlx remote remove origin\n\nJSON: {\"remotes\": […]}")]
    Remove {
        /// Name of the remote
        name: String,
    },
    /// Allow your credentials to be sent to a remote from the committed settings
    #[command(after_help = "Examples:\n  mlx remote trust s3\n\nJSON: {\"remotes\": […]}")]
    Trust {
        /// Name of the remote
        name: String,
    },
}

/// Report of `mlx remote`: the configured remotes.
pub struct Remotes {
    rows: Vec<Row>,
    /// True if the committed settings changed.
    committed: bool,
    at_top: bool,
}

struct Row {
    remote: RemoteConfig,
    is_default: bool,
    is_trusted: bool,
}

pub fn run(ctx: &Context<'_>, command: &Command) -> Result<Remotes> {
    let repo = ctx.repo()?;
    let read = || repo.folder()?.read_document(&Layer::Repo.path()?);
    let before = read()?;
    match command {
        Command::List | Command::Gc(_) => {}
        Command::Add { name, url, default, options, local } => {
            let layer = if *local { Layer::Local } else { Layer::Repo };
            add(&repo, name, url, options, *default, layer)?;
            warn_in_work_tree(ctx, &repo, url)?;
        }
        Command::Remove { name } => remove(&repo, name)?,
        Command::Trust { name } => repo.config.remote(Some(name))?.trust()?,
    }
    let config = Config::load(&repo.folder()?)?;
    let default = config.get("core.remote").map(|it| it.0.to_owned());
    let rows = config.remotes().into_iter().map(|name| {
        let remote = config.remote(Some(&name))?;
        let is_trusted = remote.is_trusted()?;
        let is_default = default.as_deref() == Some(&name);
        Ok(Row { remote, is_default, is_trusted })
    });
    let at_top = RepoPath::parse(".".as_ref(), &ctx.cwd, repo.root())?.is_root();
    Ok(Remotes { rows: rows.collect::<Result<_>>()?, committed: before != read()?, at_top })
}

fn add(repo: &Repo, name: &str, url: &str, options: &[String], default: bool, layer: Layer) -> Result<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(is_allowed) {
        let error = Error::usage(format!("`{name}` is not a valid remote name"));
        return Err(error.hint("use letters, digits, `-` and `_`"));
    }
    check_setting("url", url)?;
    let mut settings = vec![(format!("remote.{name}.url"), url)];
    for option in options {
        let (key, value) = option.split_once('=').ok_or_else(|| {
            Error::usage(format!("`{option}` is not KEY=VALUE")).hint("for example `--set region=eu-south-2`")
        })?;
        check_setting(key, value)?;
        settings.push((format!("remote.{name}.{key}"), value));
    }
    if default {
        settings.push(("core.remote".to_owned(), name));
    }
    repo.change_settings(layer, |file| {
        check_unused(&file.config, name)?;
        settings.iter().try_for_each(|(key, value)| file.set(key, value))
    })?;
    let added = Config::load(&repo.folder()?)?.remote(Some(name))?;
    // A user who types the options here, such as an endpoint, trusts them. Those of a private remote are
    // trusted without an entry.
    if added.options.is_empty() || added.private { Ok(()) } else { added.trust() }
}

/// Warns of a remote in a work tree of this clone, where Git or mlx would take its objects.
pub fn warn_in_work_tree(ctx: &Context<'_>, repo: &Repo, url: &str) -> Result<()> {
    let typed = Path::new(url.strip_prefix("file://").unwrap_or(url));
    let real = |above: &Path| Some(fs::canonicalize(above)?.join(typed.strip_prefix(above).ok()?));
    let Some(folder) = typed.ancestors().find_map(real).filter(|_| typed.is_absolute()) else {
        return Ok(());
    };
    let others = repo.git.worktrees(&|_| false)?.into_iter().filter_map(|worktree| worktree.root);
    let roots = others.filter_map(|root| fs::canonicalize(&root)).filter(|root| root != repo.root());
    let mut problem = match folder.strip_prefix(repo.root()) {
        Ok(below) => problem_within(repo, below, "the work tree")?,
        Err(_) => None,
    };
    for root in roots.filter(|root| folder.starts_with(root)) {
        let place = format!("the worktree `{}`", root.display());
        let below = folder.strip_prefix(&root).unwrap_or(&root);
        // One that cannot be opened is reported where it matters.
        let found = Repo::open_worktree(&root).and_then(|other| problem_within(&other, below, &place));
        problem = found.ok().flatten().or(problem);
    }
    if let Some(problem) = problem {
        let typed = typed.display();
        ctx.progress.warn(&format!("the remote `{typed}` is in {problem}choose a folder elsewhere"));
    }
    Ok(())
}

/// Returns the text about a remote at `below` in a work tree, if Git or mlx would take its objects.
fn problem_within(repo: &Repo, below: &Path, place: &str) -> Result<Option<String>> {
    if below.starts_with(".mlx") {
        return Ok(Some(format!("mlx's own folder `.mlx` of {place}, and Git would add its objects: ")));
    }
    let Ok(path) = RepoPath::from_bytes(below.as_os_str().as_bytes()) else { return Ok(None) };
    for above in path.ancestors() {
        if let Some(Pointer { path, .. }) = repo.pointer(&above)? {
            let text = format!("the tracked data `{path}`, and `mlx add {path}` would store its objects: ");
            return Ok(Some(text));
        }
    }
    let ignore = if path.is_root() { String::new() } else { format!("ignore `{path}` in `.gitignore`, or ") };
    let is_exposed = path.is_root() || !repo.git.exposed(&[IgnoreTarget::Folder(&path)])?.is_empty();
    Ok(is_exposed.then(|| format!("{place}, and Git would add its objects: {ignore}")))
}

/// Refuses a name that a remote has, in whichever file. A setting of the name alone, without an address,
/// counts, too: it would become part of the new remote.
fn check_unused(config: &Config, name: &str) -> Result<()> {
    let prefix = format!("remote.{name}.");
    if config.all().keys().all(|key| !key.starts_with(&prefix)) {
        return Ok(());
    }
    let error = Error::new(Kind::Conflict, format!("remote `{name}` already exists"));
    Err(error.hint(format!("choose another name, or run `mlx remote remove {name}` first")))
}

/// Removes the settings of a remote from every file, the user's own last: others of their repositories may
/// use those.
fn remove(repo: &Repo, name: &str) -> Result<()> {
    let prefix = format!("remote.{name}.");
    if repo.config.all().keys().all(|key| !key.starts_with(&prefix)) {
        repo.config.remote(Some(name))?;
    }
    if let Ok(remote) = repo.config.remote(Some(name)) {
        remote.forget_secrets()?;
    }
    for layer in [Layer::Local, Layer::Repo, Layer::User] {
        let is_part = |(key, value): (&str, &str)| {
            let part = key.starts_with(&prefix) || (key, value) == ("core.remote", name);
            part.then(|| key.to_owned())
        };
        if repo.config.keys_of(layer).any(|row| is_part(row).is_some()) {
            repo.change_settings(layer, |file: &mut Change<'_>| {
                let parts: Vec<String> = file.config.keys_of(layer).filter_map(is_part).collect();
                parts.iter().try_for_each(|key| file.unset(key))
            })?;
        }
    }
    Ok(())
}

impl Report for Remotes {
    fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({"name": row.remote.name, "url": row.remote.url, "default": row.is_default,
                "trusted": row.is_trusted})
        };
        json!({"remotes": self.rows.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Remotes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { remote, is_default, is_trusted } in &self.rows {
            let mark = if *is_default { "  (default)" } else { "" };
            let trust = if *is_trusted { "" } else { "  (not trusted with credentials)" };
            writeln!(f, "{}  {}{mark}{trust}", remote.name, remote.url)?;
        }
        if self.rows.is_empty() {
            writeln!(f, "no remote is configured; add one with `mlx remote add NAME URL --default`")?;
        }
        match (self.committed, self.at_top) {
            (false, _) => Ok(()),
            (true, true) => f.write_str("next: git add .mlx"),
            (true, false) => f.write_str("next: git add :/.mlx"),
        }
    }
}
