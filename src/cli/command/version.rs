//! `mlx model register|list|show|get`: registers packages as versions, lists them, and writes their files to
//! a folder.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::show::format_value,
        report::{bytes, table},
    },
    digest::Digest,
    document,
    error::{Error, Kind, Result},
    fs::{self, Root, Sync},
    lineage::content_at,
    maintenance,
    model::{
        package::{self, Description},
        registry::{self, Bump, Version, VersionNumber},
    },
    path::RepoPath,
    pointer::{Content, ContentKind},
    remote::{Access, Depth, Remote, Wants, fetch},
    repo::Repo,
    store::{self, EntryKind},
    workspace::Workspace,
};

#[derive(clap::Args)]
pub struct RegisterArgs {
    /// Model to register, as in `[model.NAME]` of mlx.toml
    model: String,
    /// Commit that contains the package
    #[arg(long, default_value = "HEAD")]
    rev: String,
    /// Part of the version number to increment: major, minor or patch (default: minor)
    #[arg(long, value_name = "PART", conflicts_with = "version")]
    bump: Option<String>,
    /// Version number to give, as in 1.2.0
    #[arg(long)]
    version: Option<String>,
}

pub struct VersionList(Vec<Version>);
pub struct ShownVersion(Version);
pub struct Unpacked {
    version: String,
    out: PathBuf,
    files: u64,
}

pub fn register(ctx: &Context<'_>, args: &RegisterArgs) -> Result<ShownVersion> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipelines = ctx.pipelines(&workspace)?;
    let path = pipelines.nearest()?.manifest.models.get(&args.model).ok_or_else(|| {
        Error::not_found(format!("`mlx.toml` has no model `{}`", args.model))
            .hint(format!("add `[model.{}]` with `path = \"FOLDER\"` to it", args.model))
    })?;
    let choice = match (&args.version, args.bump.as_deref()) {
        (Some(version), _) => Ok(version.parse::<VersionNumber>()?),
        (None, None | Some("minor")) => Err(Bump::Minor),
        (None, Some("major")) => Err(Bump::Major),
        (None, Some("patch")) => Err(Bump::Patch),
        (None, Some(other)) => {
            return Err(Error::usage(format!("`{other}` is not a part of a version number"))
                .hint("use major, minor or patch"));
        }
    };
    if repo.git.head().is_none() {
        return Err(not_committed(path));
    }
    let rev = repo.git.resolve(&args.rev)?;
    let content =
        content_at(&repo.git, &repo.store, &rev, path)?.filter(|content| content.kind == ContentKind::Tree);
    let content = content.ok_or_else(|| not_committed(path))?;
    if args.rev == "HEAD" && workspace.content(path, ctx.progress)?.is_some_and(|current| current != content)
    {
        return Err(not_committed(path));
    }
    let description = describe(&repo, path, content)?;
    // The tag may be the first name of a package that only an abandoned commit names.
    if !repo.store.pin_complete(&content)? {
        let error = Error::not_found(format!("the local store does not hold all of the package `{path}`"));
        return Err(error.hint(format!("get the rest with `mlx pull {path}`")));
    }
    let version =
        registry::register(&repo.git, &args.model, &rev, path, content, description.metrics, choice)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    Ok(ShownVersion(version))
}

fn not_committed(path: &RepoPath) -> Error {
    Error::new(Kind::Conflict, format!("the current state of the package `{path}` is not committed"))
        .hint("run `mlx repro`, then `git add` mlx.lock (or the package's pointer) and `git commit`")
}

/// Reads the description of a stored package, `model.toml`.
fn describe(repo: &Repo, path: &RepoPath, content: Content) -> Result<Description> {
    let entry = store::entry_at(&repo.store, &content.digest, &RepoPath::from_text("model.toml")?)?;
    let entry =
        entry.ok_or_else(|| Error::corrupt(format!("`{path}` is not a package: it has no model.toml")))?;
    package::parse(&format!("{path}/model.toml"), &repo.store.read(&entry.digest)?)
}

pub fn list(ctx: &Context<'_>, model: Option<&str>) -> Result<VersionList> {
    registry::versions(&ctx.repo()?.git, model).map(VersionList)
}

pub fn show(ctx: &Context<'_>, version: &str) -> Result<ShownVersion> {
    registry::require(&ctx.repo()?.git, version).map(ShownVersion)
}

/// Fetches a version's package from a remote (`None`: the default) unless the store has all of it.
pub fn fetch_package(ctx: &Context<'_>, repo: &Repo, version: &Version, remote: Option<&str>) -> Result<()> {
    if repo.store.is_complete(&version.package) {
        return Ok(());
    }
    let wants = Wants { contents: vec![(version.path.clone(), version.package)], runs: Vec::new() };
    let remote = Remote::open(&repo.config.remote(remote)?, Access::Read)?;
    fetch(repo, &remote, &wants, Depth::Everything, ctx.progress).map(drop)
}

pub fn get(
    ctx: &Context<'_>,
    version: &str,
    out: Option<&PathBuf>,
    remote: Option<&str>,
) -> Result<Unpacked> {
    let repo = ctx.repo()?;
    let version = registry::require(&repo.git, version)?;
    fetch_package(ctx, &repo, &version, remote)?;
    let out = out.cloned().unwrap_or_else(|| PathBuf::from(version.name()));
    let target = ctx.cwd.join(&out);
    if fs::is_file(&target) || !fs::names(&target).is_empty() {
        return Err(Error::new(Kind::Conflict, format!("`{}` already exists", out.display()))
            .hint("name another folder with `--out`"));
    }
    fs::create_dir_all(&target)?;
    let root = Root::open(&target)?;
    let written = unpack(&repo, &version.package.digest, &RepoPath::root(), &root);
    if written.is_err() {
        // Removes the incomplete package.
        let dir = root.dir(&RepoPath::root())?;
        dir.names()?.iter().try_for_each(|(name, _)| dir.remove(name))?;
    }
    written?;
    Ok(Unpacked { version: version.name(), out, files: version.package.files })
}

/// Writes a stored folder to `path` below `root`, with executable bits and symbolic links.
fn unpack(repo: &Repo, tree: &Digest, path: &RepoPath, root: &Root) -> Result<()> {
    let dir = root.create_dir(path)?;
    for entry in store::entries(&repo.store, tree)? {
        let path = path.join(&entry.name)?;
        match entry.kind {
            EntryKind::Folder => unpack(repo, &entry.digest, &path, root)?,
            EntryKind::Link => dir.symlink(&repo.store.read(&entry.digest)?, &entry.name)?,
            EntryKind::File => root.write(&path, &repo.store.read(&entry.digest)?, Sync::Now)?,
            EntryKind::Executable => {
                root.write_mode(&path, &repo.store.read(&entry.digest)?, Sync::Now, 0o777)?;
            }
        }
    }
    Ok(())
}

fn row(version: &Version) -> Value {
    json!({"version": version.name(), "package": version.package.digest, "path": version.path,
        "commit": version.tag.rev.to_string(), "when": version.tag.when.to_text(), "who": version.tag.tagger,
        "metrics": version.metrics})
}

impl Report for VersionList {
    fn json(&self) -> Value {
        json!({"versions": self.0.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for VersionList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no versions; `mlx model register NAME` registers one");
        }
        let row = |version: &Version| {
            let accuracy = version.metrics.get("accuracy").map(|value| format!("{value:.4}"));
            vec![
                version.name(),
                version.tag.when.day(),
                version.package.digest.short(),
                bytes(version.package.size),
                accuracy.unwrap_or_default(),
                version.tag.rev.short(),
            ]
        };
        let head = ["version", "date", "package", "size", "accuracy", "commit"];
        write!(f, "{}", table(&head, self.0.iter().map(row).collect()))
    }
}

impl Report for ShownVersion {
    fn json(&self) -> Value {
        row(&self.0)
    }
}

impl fmt::Display for ShownVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { package, path, tag, metrics, .. } = &self.0;
        writeln!(f, "{}  {}", self.0.name(), package.digest)?;
        writeln!(f, "  package {path} ({}), commit {}", bytes(package.size), tag.rev.short())?;
        writeln!(f, "  registered {} by {}", tag.when.to_text(), tag.tagger)?;
        let shown = metrics.iter().filter(|(key, _)| !key.starts_with("confusion"));
        shown.into_iter().try_for_each(|(key, value)| {
            writeln!(f, "  {key} = {}", format_value(&document::Value::from(*value)))
        })
    }
}

impl Report for Unpacked {
    fn json(&self) -> Value {
        json!({"version": self.version, "out": self.out.display().to_string(), "files": self.files})
    }
}

impl fmt::Display for Unpacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is in {}", self.version, self.out.display())
    }
}
