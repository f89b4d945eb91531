//! `mlx data`: prepares images for training: splits them into training and test sets and computes their
//! features.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{count, table},
    },
    error::{Error, Result},
    fs::Sync,
    model::{
        features::{FeaturePaths, FeatureSummary, compute},
        settings::{self, Backbone, FilterSettings, SplitSettings},
        split::{self, LabeledImage},
    },
    path::RepoPath,
    workspace::Workspace,
};

/// Split images into training and test sets and compute their features
#[derive(clap::Subcommand)]
pub enum Command {
    /// Split images into a training and a test set
    ///
    /// Each subfolder is a class. The set of an image depends only on the seed and its content. Reads the
    /// table `split` of the parameter file.
    #[command(after_help = "Examples:\n  mlx data split data --out split.tsv\n\n\
JSON: {\"out\", \"others\", \"classes\": {CLASS: {\"train\", \"test\"}}}")]
    Split(SplitArgs),
    /// Compute the features of all images
    ///
    /// Uses the frozen backbone model that `backbone.file` of the parameter file names or, without one,
    /// filters learned from the training images. Features that were computed before come from the cache.
    #[command(after_help = "Examples:\n  mlx data features data --split split.tsv --out features\n\n\
JSON: {\"pictures\", \"computed\", \"width\", \"engine\", \"damaged\": [PATH…]}")]
    Features(FeatureArgs),
}

#[derive(clap::Args)]
pub struct SplitArgs {
    /// Folder with the images, one subfolder per class
    data: PathBuf,
    /// Split file to write
    #[arg(long, default_value = "split.tsv")]
    out: PathBuf,
    /// Parameter file
    #[arg(long, default_value = "params.toml")]
    params: PathBuf,
}

#[derive(clap::Args)]
pub struct FeatureArgs {
    /// Folder with the images, one subfolder per class
    data: PathBuf,
    /// Split file to read
    #[arg(long, default_value = "split.tsv")]
    split: PathBuf,
    /// Folder to write the features to
    #[arg(long, default_value = "features")]
    out: PathBuf,
    /// Parameter file
    #[arg(long, default_value = "params.toml")]
    params: PathBuf,
}

pub struct Split {
    out: RepoPath,
    others: u64,
    images: Vec<LabeledImage>,
}

pub struct Features(FeatureSummary);

pub fn split(ctx: &Context<'_>, args: &SplitArgs) -> Result<Split> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let settings: SplitSettings = settings::read(&repo.files, &ctx.path(&repo, &args.params)?, "split")?;
    settings.check()?;
    let data = ctx.path(&repo, &args.data)?;
    let node = workspace.scan(&data, ctx.progress)?.ok_or_else(|| {
        Error::not_found(format!("the folder `{data}` does not exist"))
            .hint("create it with one subfolder of images per class")
    })?;
    workspace.save(ctx.progress)?;
    let images = split::list_images(&node, &data)?;
    let others = images.other_files;
    let images = split::split(images, &settings)?;
    let out = ctx.path(&repo, &args.out)?;
    repo.files.write(&out, split::print(&images).as_bytes(), Sync::Later)?;
    Ok(Split { out, others, images })
}

pub fn features(ctx: &Context<'_>, args: &FeatureArgs) -> Result<Features> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let params = ctx.path(&repo, &args.params)?;
    let backbone: Backbone = settings::read(&repo.files, &params, "backbone")?;
    let filters: Option<FilterSettings> =
        if backbone.file.is_empty() { Some(settings::read(&repo.files, &params, "filters")?) } else { None };
    let data = ctx.path(&repo, &args.data)?;
    let content = workspace.content(&data, ctx.progress)?;
    let content = content.ok_or_else(|| Error::not_found(format!("the folder `{data}` does not exist")))?;
    workspace.save(ctx.progress)?;
    let folder = params.parent().unwrap_or_default();
    let places = FeaturePaths {
        data: &data,
        split: &ctx.path(&repo, &args.split)?,
        out: &ctx.path(&repo, &args.out)?,
        folder: &folder,
    };
    compute(&repo, &places, &backbone, filters.as_ref(), content.digest, ctx.progress).map(Features)
}

impl Report for Split {
    fn json(&self) -> Value {
        let counts = split::count_by_class(&self.images);
        let classes: serde_json::Map<_, _> = counts
            .into_iter()
            .map(|(class, (train, test))| (class, json!({"train": train, "test": test})))
            .collect();
        json!({"out": self.out, "others": self.others, "classes": classes})
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |(class, (train, test)): (String, (u64, u64))| {
            let share = format!("{:.1} %", 100.0 * test as f64 / (train + test) as f64);
            vec![class, train.to_string(), test.to_string(), share]
        };
        let rows = split::count_by_class(&self.images).into_iter().map(row).collect();
        writeln!(f, "{}", table(&["class", "train", "test", "test share"], rows))?;
        if self.others > 0 {
            writeln!(f, "skipped {} without an image extension", count(self.others, "file"))?;
        }
        Ok(())
    }
}

impl Report for Features {
    fn json(&self) -> Value {
        let FeatureSummary { images, computed, width, engine, damaged } = &self.0;
        json!({"pictures": images, "computed": computed, "width": width, "engine": engine,
            "damaged": damaged})
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FeatureSummary { images, computed, width, engine, damaged } = &self.0;
        let cached = images.saturating_sub(*computed);
        writeln!(
            f,
            "{}, {width} features each, by {engine}; {cached} from the cache",
            count(*images, "image")
        )?;
        if !damaged.is_empty() {
            writeln!(f, "skipped {} that cannot be decoded:", count(damaged.len() as u64, "image"))?;
            damaged.iter().try_for_each(|path| writeln!(f, "  {path}"))?;
        }
        Ok(())
    }
}
