//! `mlx model`: trains, evaluates and packages an image classifier, and declares the subcommands for
//! registered versions.
//!
//! A model is a frozen feature extractor (the backbone) and a linear classifier on its features (the head).

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{show::format_value, version},
        report::table as show_table,
    },
    digest::Digest,
    document,
    error::{Error, Kind, Result, WithContext},
    fs::Sync,
    model::{
        evaluate::evaluate as evaluate_head,
        package::{self, Description, PackageInputs},
        settings,
        softmax::Head,
        split, table, train,
    },
    path::RepoPath,
    repo::Repo,
};

/// Train, evaluate, package and register models
#[derive(clap::Subcommand)]
pub enum Command {
    /// Train a linear head on features; cross-validation chooses the regularization
    ///
    /// Reads the table `train` of the parameter file.
    #[command(
        after_help = "Examples:\n  mlx model train --features features --out models/head.json\n\nJSON: the \
        content of the --metrics file"
    )]
    Train(TrainArgs),
    /// Evaluate a head on the test set: accuracy, precision, recall, F1, confusion
    #[command(
        after_help = "Examples:\n  mlx model evaluate --head models/head.json\n\nJSON: the content of the \
        --metrics file"
    )]
    Evaluate(EvaluateArgs),
    /// Package backbone and head as one ONNX file, with everything that serving needs
    #[command(after_help = "Examples:\n  mlx model package --head models/head.json --out models/pets\n\n\
JSON: the content of model.toml")]
    Package(PackageArgs),
    /// Register a committed package as a version, as an annotated Git tag
    #[command(
        after_help = "Examples:\n  mlx model register pets\n  mlx model register pets --bump major\n\n\
JSON: {\"version\", \"package\", \"path\", \"commit\", \"metrics\"}"
    )]
    Register(version::RegisterArgs),
    /// List registered versions
    #[command(after_help = "Examples:\n  mlx model list\n  mlx model list pets\n\n\
JSON: {\"versions\": [{\"version\", \"package\", \"path\", \"commit\", \"when\", \"who\", \"metrics\"}]}")]
    List {
        /// Model to list (default: all)
        model: Option<String>,
    },
    /// Show a registered version
    #[command(
        after_help = "Examples:\n  mlx model show pets@v0.1.0\n\nJSON: one element of `mlx model list --json`"
    )]
    Show {
        /// Version, such as `pets@v0.1.0`, or a model for its newest version
        version: String,
    },
    /// Write a registered package to a folder, from the store or a remote
    #[command(after_help = "Examples:\n  mlx model get pets@v0.1.0 --out build/pets\n\nJSON: {\"version\", \
        \"out\", \"files\"}")]
    Get {
        /// Version, such as `pets@v0.1.0`, or a model for its newest version
        version: String,
        /// Folder to create (default: the version's name)
        #[arg(long)]
        out: Option<PathBuf>,
        /// Remote to use instead of the default
        #[arg(long)]
        remote: Option<String>,
    },
}

#[derive(clap::Args)]
struct Inputs {
    /// Folder of the features
    #[arg(long, default_value = "features")]
    features: PathBuf,
    /// Split file
    #[arg(long, default_value = "split.tsv")]
    split: PathBuf,
}

#[derive(clap::Args)]
pub struct TrainArgs {
    #[command(flatten)]
    inputs: Inputs,
    /// Parameter file
    #[arg(long, default_value = "params.toml")]
    params: PathBuf,
    /// File to write the head to
    #[arg(long, default_value = "models/head.json")]
    out: PathBuf,
    /// File to write the training metrics to, as JSON
    #[arg(long)]
    metrics: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct EvaluateArgs {
    #[command(flatten)]
    inputs: Inputs,
    /// Head to evaluate
    #[arg(long, default_value = "models/head.json")]
    head: PathBuf,
    /// File to write the metrics to, as JSON
    #[arg(long)]
    metrics: Option<PathBuf>,
    /// File to write the confusion matrix to, as CSV
    #[arg(long)]
    plot: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct PackageArgs {
    #[command(flatten)]
    inputs: Inputs,
    /// Head to package
    #[arg(long, default_value = "models/head.json")]
    head: PathBuf,
    /// Metrics to include in the package
    #[arg(long, default_value = "metrics/test.json")]
    metrics: PathBuf,
    /// Folder to write the package to
    #[arg(long)]
    out: PathBuf,
}

/// Metrics, shown as a table of keys and values.
pub struct Metrics(Value);
pub struct Packaged(RepoPath, Description);

/// Reads a head and checks its shapes; returns it with the digest of its file.
fn read_head(repo: &Repo, path: &RepoPath) -> Result<(Head, Digest)> {
    let bytes = repo.files.read(path).context(|| format!("cannot read the head `{path}`"))?;
    let head: Head = serde_json::from_slice(&bytes).map_err(|error| {
        Error::corrupt(format!("`{path}` is not a head: {error}")).hint("`mlx model train` writes one")
    })?;
    let fits =
        head.weights.len() == head.classes.len() * head.mean.len() && head.bias.len() == head.classes.len();
    if !fits || head.scale.len() != head.mean.len() || head.classes.is_empty() {
        return Err(Error::corrupt(format!("`{path}` is not a head: the sizes of its arrays do not match")));
    }
    Ok((head, Digest::of(&bytes)))
}

/// Reads the features and the split file, and checks that they belong together.
fn read_inputs(
    ctx: &Context<'_>,
    repo: &Repo,
    args: &Inputs,
) -> Result<(table::Table, table::Metadata, Vec<split::LabeledImage>)> {
    let (table, about) = table::read(&repo.files, &ctx.path(repo, &args.features)?)?;
    let path = ctx.path(repo, &args.split)?;
    let bytes = repo.files.read(&path).context(|| format!("cannot read the split file `{path}`"))?;
    if Digest::of(&bytes) != about.split_digest {
        let error = Error::new(
            Kind::Conflict,
            format!("the features were computed for a different split file than `{path}`"),
        );
        return Err(error.hint("recompute them with `mlx repro` or `mlx data features`"));
    }
    let images = split::parse(&path, &bytes)?;
    Ok((table, about, images))
}

fn write_json(ctx: &Context<'_>, repo: &Repo, path: Option<&PathBuf>, value: &Value) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = format!("{value:#}\n");
    repo.files.write(&ctx.path(repo, path)?, text.as_bytes(), Sync::Later)
}

pub fn train(ctx: &Context<'_>, args: &TrainArgs) -> Result<Metrics> {
    let repo = ctx.repo()?;
    let settings: settings::TrainSettings =
        settings::read(&repo.files, &ctx.path(&repo, &args.params)?, "train")?;
    let (table, _, images) = read_inputs(ctx, &repo, &args.inputs)?;
    let trained = train::train(&table, &images, &settings, ctx.progress)?;
    let text = serde_json::to_string(&trained.head)
        .map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
    repo.files.write(&ctx.path(&repo, &args.out)?, format!("{text}\n").as_bytes(), Sync::Later)?;
    let metrics = trained.metrics();
    write_json(ctx, &repo, args.metrics.as_ref(), &metrics)?;
    Ok(Metrics(metrics))
}

pub fn evaluate(ctx: &Context<'_>, args: &EvaluateArgs) -> Result<Metrics> {
    let repo = ctx.repo()?;
    let (table, about, images) = read_inputs(ctx, &repo, &args.inputs)?;
    let (head, _) = read_head(&repo, &ctx.path(&repo, &args.head)?)?;
    let confusion = evaluate_head(&head, &table, &images)?;
    let metrics = confusion.metrics(about.damaged.len() as u64);
    write_json(ctx, &repo, args.metrics.as_ref(), &metrics)?;
    if let Some(path) = &args.plot {
        repo.files.write(&ctx.path(&repo, path)?, confusion.to_csv().as_bytes(), Sync::Later)?;
    }
    Ok(Metrics(metrics))
}

pub fn package(ctx: &Context<'_>, args: &PackageArgs) -> Result<Packaged> {
    let repo = ctx.repo()?;
    let (table, about, images) = read_inputs(ctx, &repo, &args.inputs)?;
    let (head, head_digest) = read_head(&repo, &ctx.path(&repo, &args.head)?)?;
    let metrics = ctx.path(&repo, &args.metrics)?;
    let metrics = document::parse(&metrics, &repo.files.read(&metrics)?)?;
    let features = ctx.path(&repo, &args.inputs.features)?;
    let folder = features.parent().unwrap_or_default();
    let parts = PackageInputs {
        features: &features,
        table: &table,
        metadata: &about,
        head: &head,
        head_digest,
        metrics: &metrics,
        images: &images,
        folder: &folder,
    };
    let out = ctx.path(&repo, &args.out)?;
    let description = package::build(&repo, &parts, &out)?;
    Ok(Packaged(out, description))
}

impl Report for Metrics {
    fn json(&self) -> Value {
        self.0.clone()
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metrics = document::Value::from(&self.0);
        let rows = document::leaves(&metrics).into_iter().map(|(key, value)| vec![key, format_value(value)]);
        let rows = rows.collect();
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
        let Self(path, description) = self;
        let side = description.input.crop;
        writeln!(
            f,
            "{path}: model.onnx has the input `{}` (N×3×{side}×{side}) and the output `{}` for {}",
            description.input.name,
            description.output,
            description.classes.join(", ")
        )
    }
}
