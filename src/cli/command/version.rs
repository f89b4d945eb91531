//! `mlx model register|list|show|get`: packages with a name and a number.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::show::text,
        context::BUILTINS,
        report::{bytes, table},
    },
    digest::Digest,
    document,
    error::{Error, Kind, Result},
    fs::{self, Root, Sync},
    lineage::content_at,
    model::{
        package::{self, Description},
        registry::{self, Bump, Number, Version},
    },
    path::RepoPath,
    pipeline::Pipeline,
    pointer::{Content, Shape},
    remote::{Access, Depth, Remote, Wants, fetch},
    repo::Repo,
    store::{self, EntryKind},
    upkeep,
    workspace::Workspace,
};

#[derive(clap::Args)]
pub struct RegisterArgs {
    /// The model, as `[model.NAME]` in mlx.toml
    model: String,
    /// The commit that holds the package
    #[arg(long, default_value = "HEAD")]
    rev: String,
    /// The part of the number to raise: major, minor, patch
    #[arg(long, value_name = "PART", conflicts_with = "version")]
    bump: Option<String>,
    /// The number to give
    #[arg(long)]
    version: Option<String>,
}

pub struct Versions(Vec<Version>);
pub struct One(Version);
pub struct Got {
    version: String,
    out: PathBuf,
    files: u64,
}

pub fn register(ctx: &Context<'_>, args: &RegisterArgs) -> Result<One> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let pipeline = Pipeline::require(&workspace, &ctx.cwd, &BUILTINS)?;
    let path = pipeline.manifest.models.get(&args.model).ok_or_else(|| {
        Error::not_found(format!("mlx.toml has no model `{}`", args.model))
            .hint(format!("add [model.{}] with path = \"FOLDER\" to it", args.model))
    })?;
    let choice = match (&args.version, args.bump.as_deref()) {
        (Some(version), _) => Ok(version.parse::<Number>()?),
        (None, None | Some("minor")) => Err(Bump::Minor),
        (None, Some("major")) => Err(Bump::Major),
        (None, Some("patch")) => Err(Bump::Patch),
        (None, Some(other)) => {
            return Err(
                Error::usage(format!("`{other}` is no part of a number")).hint("major, minor or patch")
            );
        }
    };
    if repo.git.head().is_none() {
        return Err(not_committed(path));
    }
    let rev = repo.git.resolve(&args.rev)?;
    let content = content_at(&repo.git, &repo.store, &rev, path)?.filter(|it| it.kind == Shape::Tree);
    let content = content.ok_or_else(|| not_committed(path))?;
    if args.rev == "HEAD" && workspace.content(path, ctx.progress)?.is_some_and(|it| it != content) {
        return Err(not_committed(path));
    }
    let description = describe(&repo, path, content)?;
    let version =
        registry::register(&repo.git, &args.model, &rev, path, content, description.metrics, choice)?;
    upkeep::renew(&repo, ctx.progress)?;
    Ok(One(version))
}

fn not_committed(path: &RepoPath) -> Error {
    Error::new(Kind::Conflict, format!("the package `{path}` as it is now is not committed"))
        .hint("`mlx repro`, then `git add` mlx.lock (or its pointer) and `git commit`")
}

/// The description inside a stored package.
fn describe(repo: &Repo, path: &RepoPath, content: Content) -> Result<Description> {
    let entry = store::file_at(&repo.store, &content.digest, &RepoPath::from_text("model.toml")?)?;
    let entry =
        entry.ok_or_else(|| Error::corrupt(format!("`{path}` is not a package: it has no model.toml")))?;
    package::parse(&format!("{path}/model.toml"), &repo.store.read(&entry.digest)?)
}

pub fn list(ctx: &Context<'_>, model: Option<&str>) -> Result<Versions> {
    registry::versions(&ctx.repo()?.git, model).map(Versions)
}

pub fn show(ctx: &Context<'_>, version: &str) -> Result<One> {
    registry::require(&ctx.repo()?.git, version).map(One)
}

/// Sees to it that a version's package is in the store.
pub fn bring(ctx: &Context<'_>, repo: &Repo, version: &Version, remote: Option<&str>) -> Result<()> {
    let (mut pages, mut contents) = Default::default();
    let read = store::reachable(&repo.store, &version.package.digest, &mut pages, &mut contents);
    if read.is_ok() && contents.keys().all(|it| repo.store.contains(it)) {
        return Ok(());
    }
    let wants = Wants { contents: vec![(version.path.clone(), version.package)], runs: Vec::new() };
    let remote = Remote::open(&repo.config.remote(remote)?, Access::Read)?;
    fetch(repo, &remote, &wants, Depth::Everything, ctx.progress).map(drop)
}

pub fn get(ctx: &Context<'_>, version: &str, out: Option<&PathBuf>, remote: Option<&str>) -> Result<Got> {
    let repo = ctx.repo()?;
    let version = registry::require(&repo.git, version)?;
    bring(ctx, &repo, &version, remote)?;
    let out = out.cloned().unwrap_or_else(|| PathBuf::from(version.name()));
    let place = ctx.cwd.join(&out);
    if fs::is_file(&place) || !fs::names(&place).is_empty() {
        return Err(Error::new(Kind::Conflict, format!("`{}` is there already", out.display()))
            .hint("name another with --out"));
    }
    fs::create_dir_all(&place)?;
    let root = Root::open(&place)?;
    let written = unpack(&repo, &version.package.digest, &RepoPath::root(), &root);
    if written.is_err() {
        // Half a package is none.
        let names = root.dir(&RepoPath::root())?;
        names.names()?.iter().try_for_each(|it| names.remove(&it.0))?;
    }
    written?;
    Ok(Got { version: version.name(), out, files: version.package.files })
}

/// Writes a stored folder below `at`, with exec bits and links.
fn unpack(repo: &Repo, tree: &Digest, at: &RepoPath, root: &Root) -> Result<()> {
    let dir = root.make_dir(at)?;
    for entry in store::entries(&repo.store, tree)? {
        let path = at.join(&entry.name)?;
        match entry.kind {
            EntryKind::Folder => unpack(repo, &entry.digest, &path, root)?,
            EntryKind::Link => dir.symlink(&repo.store.read(&entry.digest)?, &entry.name)?,
            EntryKind::File => root.write(&path, &repo.store.read(&entry.digest)?, Sync::Yes)?,
            EntryKind::Executable => {
                root.write_mode(&path, &repo.store.read(&entry.digest)?, Sync::Yes, 0o777)?;
            }
        }
    }
    Ok(())
}

fn row(it: &Version) -> Value {
    json!({"version": it.name(), "package": it.package.digest, "path": it.path, "commit": it.tag.rev.to_string(),
        "when": it.tag.when.to_text(), "who": it.tag.tagger, "metrics": it.metrics})
}

impl Report for Versions {
    fn json(&self) -> Value {
        json!({"versions": self.0.iter().map(row).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no versions: `mlx model register NAME` makes one");
        }
        let accuracy =
            |it: &Version| it.metrics.get("accuracy").map(|it| format!("{it:.4}")).unwrap_or_default();
        let row = |it: &Version| {
            let size = bytes(it.package.size);
            vec![
                it.name(),
                it.tag.when.day(),
                it.package.digest.short(),
                size,
                accuracy(it),
                it.tag.rev.short(),
            ]
        };
        let head = ["version", "date", "package", "size", "accuracy", "commit"];
        write!(f, "{}", table(&head, self.0.iter().map(row).collect()))
    }
}

impl Report for One {
    fn json(&self) -> Value {
        row(&self.0)
    }
}

impl fmt::Display for One {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = &self.0;
        writeln!(f, "{}  {}", it.name(), it.package.digest)?;
        writeln!(f, "  package {} ({}), commit {}", it.path, bytes(it.package.size), it.tag.rev.short())?;
        writeln!(f, "  registered {} by {}", it.tag.when.to_text(), it.tag.tagger)?;
        let told = it.metrics.iter().filter(|it| !it.0.starts_with("confusion"));
        told.into_iter()
            .try_for_each(|(key, value)| writeln!(f, "  {key} = {}", text(&document::number(*value))))
    }
}

impl Report for Got {
    fn json(&self) -> Value {
        json!({"version": self.version, "out": self.out.display().to_string(), "files": self.files})
    }
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is in {}", self.version, self.out.display())
    }
}
