//! `mlx model`: a head, what it is worth, a package, and its name.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::show::text,
        context::BUILTINS,
        report::{bytes, table as show_table},
    },
    digest::Digest,
    document,
    error::{Doing, Error, Kind, Result},
    fs::Sync,
    lineage::content_at,
    model::{
        evaluate::evaluate as examine,
        package::{self, Description, Parts},
        registry::{self, Bump, Number, Version},
        settings,
        softmax::Head,
        split, table, train,
    },
    path::RepoPath,
    pipeline::Pipeline,
    pointer::{Content, Shape},
    remote::{Access, Depth, Remote, Wants, fetch},
    repo::Repo,
    store::{self, EntryKind},
    workspace::Workspace,
};

/// Train, examine, package and register models
#[derive(clap::Subcommand)]
pub enum Command {
    /// Fit a linear head to features, its strength chosen by cross-validation
    ///
    /// Reads the table `train` of the parameters.
    #[command(
        after_help = "Examples:\n  mlx model train --features features --out models/head.json\n\nJSON: what --metrics writes"
    )]
    Train(TrainArgs),
    /// Show the test side to a head: accuracy, precision, recall, F1, confusion
    #[command(
        after_help = "Examples:\n  mlx model evaluate --head models/head.json\n\nJSON: what --metrics writes"
    )]
    Evaluate(EvaluateArgs),
    /// Put backbone and head into one ONNX file, with what serving needs
    #[command(after_help = "Examples:\n  mlx model package --head models/head.json --out models/pets\n\n\
JSON: what model.toml holds")]
    Package(PackageArgs),
    /// Give a committed package a name and a number: an annotated Git tag
    #[command(
        after_help = "Examples:\n  mlx model register pets\n  mlx model register pets --bump major\n\n\
JSON: {\"version\", \"package\", \"path\", \"commit\", \"metrics\"}"
    )]
    Register(RegisterArgs),
    /// List registered versions
    #[command(after_help = "Examples:\n  mlx model list\n  mlx model list pets\n\n\
JSON: {\"versions\": [{\"version\", \"package\", \"path\", \"commit\", \"when\", \"who\", \"metrics\"}]}")]
    List {
        /// Only of this model
        model: Option<String>,
    },
    /// Show a registered version
    #[command(
        after_help = "Examples:\n  mlx model show pets@v0.1.0\n\nJSON: one element of `mlx model list --json`"
    )]
    Show {
        /// `pets@v0.1.0`; the newest of `pets` without a number
        version: String,
    },
    /// Write a registered package into a folder, from the cache or a remote
    #[command(
        after_help = "Examples:\n  mlx model get pets@v0.1.0 --out /tmp/pets\n\nJSON: {\"version\", \"out\", \"files\"}"
    )]
    Get {
        /// `pets@v0.1.0`; the newest of `pets` without a number
        version: String,
        /// The folder to make
        #[arg(long)]
        out: Option<PathBuf>,
        /// Not the default remote but this one
        #[arg(long)]
        remote: Option<String>,
    },
}

#[derive(clap::Args)]
struct Inputs {
    /// The feature table
    #[arg(long, default_value = "features")]
    features: PathBuf,
    /// The list of sides
    #[arg(long, default_value = "split.tsv")]
    split: PathBuf,
}

#[derive(clap::Args)]
pub struct TrainArgs {
    #[command(flatten)]
    inputs: Inputs,
    /// The parameter file
    #[arg(long, default_value = "params.toml")]
    params: PathBuf,
    /// Where to write the head
    #[arg(long, default_value = "models/head.json")]
    out: PathBuf,
    /// Where to write numbers of the training
    #[arg(long)]
    metrics: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct EvaluateArgs {
    #[command(flatten)]
    inputs: Inputs,
    /// The head
    #[arg(long, default_value = "models/head.json")]
    head: PathBuf,
    /// Where to write the numbers
    #[arg(long)]
    metrics: Option<PathBuf>,
    /// Where to write the confusion matrix, as CSV
    #[arg(long)]
    plot: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct PackageArgs {
    #[command(flatten)]
    inputs: Inputs,
    /// The head
    #[arg(long, default_value = "models/head.json")]
    head: PathBuf,
    /// Numbers to put into the package
    #[arg(long, default_value = "metrics/test.json")]
    metrics: PathBuf,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
}

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

/// Numbers, told as a table of keys and values.
pub struct Numbers(Value);
pub struct Packaged(RepoPath, Description);
pub struct Versions(Vec<Version>);
pub struct One(Version);
pub struct Got {
    version: String,
    out: PathBuf,
    files: u64,
}

fn read_head(repo: &Repo, path: &RepoPath) -> Result<(Head, Digest)> {
    let bytes = repo.files.read(path).doing(|| format!("cannot read the head `{path}`"))?;
    let head: Head = serde_json::from_slice(&bytes).map_err(|it| {
        Error::corrupt(format!("`{path}` is not a head: {it}")).hint("`mlx model train` makes one")
    })?;
    let sound =
        head.weights.len() == head.classes.len() * head.mean.len() && head.bias.len() == head.classes.len();
    if !sound || head.scale.len() != head.mean.len() || head.classes.is_empty() {
        return Err(Error::corrupt(format!("`{path}` is not a head: its parts do not fit")));
    }
    Ok((head, Digest::of(&bytes)))
}

fn read_inputs(
    ctx: &Context<'_>,
    repo: &Repo,
    args: &Inputs,
) -> Result<(table::Table, table::About, Vec<split::Picture>)> {
    let (table, about) = table::read(&repo.files, &ctx.path(repo, &args.features)?)?;
    let path = ctx.path(repo, &args.split)?;
    let bytes = repo.files.read(&path).doing(|| format!("cannot read the list of sides `{path}`"))?;
    if Digest::of(&bytes) != about.split_digest {
        let error =
            Error::new(Kind::Conflict, format!("the features were computed for another list than `{path}`"));
        return Err(error.hint("compute them anew: `mlx repro` or `mlx data features`"));
    }
    let pictures = split::parse(&path, &bytes)?;
    Ok((table, about, pictures))
}

fn write_json(ctx: &Context<'_>, repo: &Repo, path: Option<&PathBuf>, value: &Value) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = format!("{value:#}\n");
    repo.files.write(&ctx.path(repo, path)?, text.as_bytes(), Sync::Later)
}

pub fn train(ctx: &Context<'_>, args: &TrainArgs) -> Result<Numbers> {
    let repo = ctx.repo()?;
    let settings: settings::TrainSettings =
        settings::read(&repo.files, &ctx.path(&repo, &args.params)?, "train")?;
    let (table, _, pictures) = read_inputs(ctx, &repo, &args.inputs)?;
    let trained = train::train(&table, &pictures, &settings, ctx.progress)?;
    let text =
        serde_json::to_string(&trained.head).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
    repo.files.write(&ctx.path(&repo, &args.out)?, format!("{text}\n").as_bytes(), Sync::Later)?;
    let metrics = trained.metrics();
    write_json(ctx, &repo, args.metrics.as_ref(), &metrics)?;
    Ok(Numbers(metrics))
}

pub fn evaluate(ctx: &Context<'_>, args: &EvaluateArgs) -> Result<Numbers> {
    let repo = ctx.repo()?;
    let (table, about, pictures) = read_inputs(ctx, &repo, &args.inputs)?;
    let (head, _) = read_head(&repo, &ctx.path(&repo, &args.head)?)?;
    let found = examine(&head, &table, &pictures)?;
    let metrics = found.metrics(about.damaged.len() as u64);
    write_json(ctx, &repo, args.metrics.as_ref(), &metrics)?;
    if let Some(path) = &args.plot {
        repo.files.write(&ctx.path(&repo, path)?, found.csv().as_bytes(), Sync::Later)?;
    }
    Ok(Numbers(metrics))
}

pub fn package(ctx: &Context<'_>, args: &PackageArgs) -> Result<Packaged> {
    let repo = ctx.repo()?;
    let (table, about, pictures) = read_inputs(ctx, &repo, &args.inputs)?;
    let (head, head_digest) = read_head(&repo, &ctx.path(&repo, &args.head)?)?;
    let metrics = ctx.path(&repo, &args.metrics)?;
    let metrics = document::parse(&metrics, &repo.files.read(&metrics)?)?;
    let features = ctx.path(&repo, &args.inputs.features)?;
    let folder = features.parent().unwrap_or_default();
    let parts = Parts {
        features: &features,
        table: &table,
        about: &about,
        head: &head,
        head_digest,
        metrics: &metrics,
        pictures: &pictures,
        folder: &folder,
    };
    let out = ctx.path(&repo, &args.out)?;
    let description = package::package(&repo, &parts, &out)?;
    Ok(Packaged(out, description))
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
    registry::register(&repo.git, &args.model, &rev, path, content, description.metrics, choice).map(One)
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

pub fn get(ctx: &Context<'_>, version: &str, out: Option<&PathBuf>, remote: Option<&str>) -> Result<Got> {
    let repo = ctx.repo()?;
    let version = registry::require(&repo.git, version)?;
    let wants = Wants { contents: vec![(version.path.clone(), version.package)], runs: Vec::new() };
    let (mut pages, mut contents) = Default::default();
    let read = store::reachable(&repo.store, &version.package.digest, &mut pages, &mut contents);
    if read.is_err() || !contents.keys().all(|it| repo.store.contains(it)) {
        let remote = Remote::open(&repo.config.remote(remote)?, Access::Read)?;
        fetch(&repo, &remote, &wants, Depth::Everything, ctx.progress)?;
    }
    let out = out.cloned().unwrap_or_else(|| PathBuf::from(version.name()));
    let place = ctx.cwd.join(&out);
    if crate::fs::is_file(&place) || !crate::fs::names(&place).is_empty() {
        return Err(Error::new(Kind::Conflict, format!("`{}` is there already", out.display()))
            .hint("name another with --out"));
    }
    crate::fs::create_dir_all(&place)?;
    let root = crate::fs::Root::open(&place)?;
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
fn unpack(repo: &Repo, tree: &Digest, at: &RepoPath, root: &crate::fs::Root) -> Result<()> {
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

impl Report for Numbers {
    fn json(&self) -> Value {
        self.0.clone()
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = document::leaves(&self.0).into_iter().map(|(key, it)| vec![key, text(&it)]).collect();
        write!(f, "{}", show_table(&["metric", "value"], rows))
    }
}

impl Report for Packaged {
    fn json(&self) -> Value {
        json!(self.1)
    }
}

impl fmt::Display for Packaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, it) = (&self.0, &self.1);
        let side = it.input.crop;
        writeln!(
            f,
            "{path}: model.onnx takes `{}` N×3×{side}×{side} and gives `{}` of {}",
            it.input.name,
            it.output,
            it.classes.join(", ")
        )
    }
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
        write!(f, "{}", show_table(&head, self.0.iter().map(row).collect()))
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
