//! `mlx data`: pictures before they teach.

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
        features::{Computed, Places, compute},
        settings::{self, Backbone, FilterSettings, SplitSettings},
        split::{self, Picture},
    },
    path::RepoPath,
    workspace::Workspace,
};

/// Prepare pictures: sides and features
#[derive(clap::Subcommand)]
pub enum Command {
    /// Put pictures on the training and the test side
    ///
    /// One subfolder a class. A picture's side follows from the seed and its content alone. Reads the table
    /// `split` of the parameters.
    #[command(after_help = "Examples:\n  mlx data split data --out split.tsv\n\n\
JSON: {\"out\", \"others\", \"classes\": {CLASS: {\"train\", \"test\"}}}")]
    Split(SplitArgs),
    /// Compute the features of all pictures
    ///
    /// Through the frozen network that `backbone.file` of the parameters names, or, without one, through filters
    /// learnt from the training pictures. What was computed before is taken from the cache.
    #[command(after_help = "Examples:\n  mlx data features data --split split.tsv --out features\n\n\
JSON: {\"pictures\", \"computed\", \"width\", \"engine\", \"damaged\": [PATH…]}")]
    Features(FeatureArgs),
}

#[derive(clap::Args)]
pub struct SplitArgs {
    /// The folder, with one subfolder a class
    data: PathBuf,
    /// Where to write the list
    #[arg(long, default_value = "split.tsv")]
    out: PathBuf,
    /// The parameter file
    #[arg(long, default_value = "params.toml")]
    params: PathBuf,
}

#[derive(clap::Args)]
pub struct FeatureArgs {
    /// The folder, with one subfolder a class
    data: PathBuf,
    /// The list of sides
    #[arg(long, default_value = "split.tsv")]
    split: PathBuf,
    /// The folder to write
    #[arg(long, default_value = "features")]
    out: PathBuf,
    /// The parameter file
    #[arg(long, default_value = "params.toml")]
    params: PathBuf,
}

pub struct Split {
    out: RepoPath,
    others: u64,
    pictures: Vec<Picture>,
}

pub struct Features(Computed);

pub fn split(ctx: &Context<'_>, args: &SplitArgs) -> Result<Split> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let settings: SplitSettings = settings::read(&repo.files, &ctx.path(&repo, &args.params)?, "split")?;
    settings.check()?;
    let data = ctx.path(&repo, &args.data)?;
    let node = workspace.look(&data, ctx.progress)?.ok_or_else(|| {
        Error::not_found(format!("there is no folder `{data}`"))
            .hint("one subfolder a class, with photos in it")
    })?;
    workspace.save(ctx.progress)?;
    let found = split::gather(&node, &data)?;
    let others = found.others;
    let pictures = split::split(found, &settings)?;
    let out = ctx.path(&repo, &args.out)?;
    repo.files.write(&out, split::print(&pictures).as_bytes(), Sync::Later)?;
    Ok(Split { out, others, pictures })
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
    let content = content.ok_or_else(|| Error::not_found(format!("there is no folder `{data}`")))?;
    workspace.save(ctx.progress)?;
    let folder = params.parent().unwrap_or_default();
    let places = Places {
        data: &data,
        split: &ctx.path(&repo, &args.split)?,
        out: &ctx.path(&repo, &args.out)?,
        folder: &folder,
    };
    compute(&repo, &places, &backbone, filters.as_ref(), content.digest, ctx.progress).map(Features)
}

impl Report for Split {
    fn json(&self) -> Value {
        let counts = split::counts(&self.pictures);
        let classes: serde_json::Map<_, _> =
            counts.into_iter().map(|(class, it)| (class, json!({"train": it.0, "test": it.1}))).collect();
        json!({"out": self.out, "others": self.others, "classes": classes})
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |it: (u64, u64)| format!("{:.1} %", 100.0 * it.1 as f64 / (it.0 + it.1) as f64);
        let rows = split::counts(&self.pictures).into_iter();
        let rows =
            rows.map(|(class, it)| vec![class, it.0.to_string(), it.1.to_string(), share(it)]).collect();
        writeln!(f, "{}", table(&["class", "train", "test", "share"], rows))?;
        if self.others > 0 {
            writeln!(f, "{} that are no pictures by their names were left out", count(self.others, "file"))?;
        }
        Ok(())
    }
}

impl Report for Features {
    fn json(&self) -> Value {
        let Computed { pictures, computed, width, engine, damaged } = &self.0;
        json!({"pictures": pictures, "computed": computed, "width": width, "engine": engine, "damaged": damaged})
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Computed { pictures, computed, width, engine, damaged } = &self.0;
        let cached = pictures.saturating_sub(*computed);
        writeln!(
            f,
            "{}, {width} features each, by {engine}; {cached} from the cache",
            count(*pictures, "picture")
        )?;
        if !damaged.is_empty() {
            writeln!(f, "{} set aside as damaged:", count(damaged.len() as u64, "picture"))?;
            damaged.iter().try_for_each(|it| writeln!(f, "  {it}"))?;
        }
        Ok(())
    }
}
