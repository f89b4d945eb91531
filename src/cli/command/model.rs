//! `mlx model`: a head, what it is worth, a package, and its name.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{show::text, version},
        report::table as show_table,
    },
    digest::Digest,
    document,
    error::{Doing, Error, Kind, Result},
    fs::Sync,
    model::{
        evaluate::evaluate as examine,
        package::{self, Description, Parts},
        settings,
        softmax::Head,
        split, table, train,
    },
    path::RepoPath,
    repo::Repo,
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
    Register(version::RegisterArgs),
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

/// Numbers, told as a table of keys and values.
pub struct Numbers(Value);
pub struct Packaged(RepoPath, Description);
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
