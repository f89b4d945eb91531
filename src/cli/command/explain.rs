//! `mlx explain`: draws an occlusion map of an image, which shows the parts that decided the prediction.

use std::{
    fmt,
    io::Cursor,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{baseline::training_records, request, version::fetch_package},
    },
    error::{Error, Kind, Result, WithContext},
    fs::{self, Root, Sync},
    model::{
        explain::{Fill, HeatMap, Settings, draw, explain, nearest},
        inference::LoadedPackage,
        preprocess,
        registry::{self, Version},
    },
    path::RepoPath,
    repo::Repo,
};

/// Number of nearest training images in the report.
const NEAREST: usize = 5;

/// Show which parts of an image decided a prediction
///
/// Takes a file, or the id of a request whose image was kept. Hides one square of the image after another;
/// the heat of a square is the drop in log-odds of the predicted class without it. The deletion score shows
/// whether to trust the map: it should be lower than the scores of a random order and of an order from the
/// center. Positions are in pixels of the square that the model gets.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx explain photo.jpg\n  mlx explain photo.jpg --version pets@v0.1.0 --out \
    heat.png\n  mlx explain 019a9c1e6b7c7e1d8f0a2b3c4d5e6f70\n\n\
JSON: {\"picture\", \"version\", \"class\", \"probability\", \"scores\": {CLASS: probability}, \"out\", \
\"side\", \"patch\", \"stride\", \"fill\", \
\"map\": [[drop]], \"decisive\": {\"left\", \"top\", \"side\"}, \"deletion\": {\"heat\", \"random\", \
\"center\"}, \
\"nearest\": [{\"picture\", \"class\", \"distance\"}], \"request\": ID | null}"
)]
pub struct Args {
    /// Image file, or the id of a request
    image: PathBuf,
    /// Version, such as `pets@v0.1.0`, or a model for its newest version (default: the one that answered the
    /// request, else the newest of the only model)
    #[arg(long)]
    version: Option<String>,
    /// PNG file to draw the map to
    #[arg(long, default_value = "heat.png")]
    out: PathBuf,
    /// Side of the hidden square, as a share of the image's side
    #[arg(long, default_value_t = 0.2)]
    patch: f64,
    /// Filling of the hidden square: blur, mean
    #[arg(long, default_value = "blur")]
    fill: Fill,
    /// Seed of the random order that the deletion score is compared with
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Remote to fetch a missing package from, instead of the default one
    #[arg(long)]
    remote: Option<String>,
}

/// Occlusion map of an image, and where it was drawn.
pub struct Explanation {
    image: PathBuf,
    version: String,
    classes: Vec<String>,
    side: usize,
    out: PathBuf,
    heat: HeatMap,
    request: Option<String>,
    nearest: Vec<NearImage>,
}

/// Training image with similar features.
struct NearImage {
    name: String,
    class: String,
    /// Distance of the features.
    distance: f32,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Explanation> {
    let repo = ctx.repo()?;
    let path = ctx.cwd.join(&args.image);
    let id = args.image.to_str().filter(|_| !fs::is_file(&path));
    let found = id.map(|it| request::find(&repo, it)).transpose()?.flatten();
    let answered = found.as_ref().map(|it| it.record.version.as_str());
    let version = choose_version(&repo, args.version.as_deref().or(answered))?;
    let bytes = match &found {
        Some(found) => request::image(&repo, found)?,
        None => fs::read_user_file(&path)?,
    };
    fetch_package(ctx, &repo, &version, args.remote.as_deref())?;
    let mut loaded = LoadedPackage::load(&repo, &version)?;
    let decoded =
        preprocess::decode(&bytes).context(|| format!("cannot explain `{}`", args.image.display()))?;
    let planes = preprocess::planes(&decoded, &loaded.settings());
    let side = loaded.description.input.crop as usize;
    let features = loaded.predict_planes(&planes)?.pop().map(|it| it.features).unwrap_or_default();
    let rows = training_records(&repo, &version)?;
    let near = nearest(&features, &rows, NEAREST).into_iter();
    let near = near.map(|(at, distance)| NearImage {
        name: rows[at].name.clone(),
        class: rows[at].class.clone(),
        distance,
    });
    let near = near.collect();
    let mut run =
        |planes: &[f32]| Ok(loaded.predict_planes(planes)?.into_iter().map(|it| it.scores).collect());
    let settings = Settings { patch: args.patch, fill: args.fill, seed: args.seed };
    let heat = explain(&mut run, &planes, side, &settings)?;
    write(&ctx.cwd.join(&args.out), &draw(&planes, side, &heat))?;
    Ok(Explanation {
        image: args.image.clone(),
        version: version.name(),
        classes: loaded.description.classes.clone(),
        side,
        out: args.out.clone(),
        heat,
        request: found.map(|it| it.record.id),
        nearest: near,
    })
}

/// Returns the named version, else the newest version of the only model.
fn choose_version(repo: &Repo, named: Option<&str>) -> Result<Version> {
    if let Some(name) = named {
        return registry::require(&repo.git, name);
    }
    let mut all = registry::versions(&repo.git, None)?;
    let newest = all.pop().ok_or_else(|| {
        Error::not_found("no version is registered").hint("`mlx model register NAME` registers one")
    })?;
    if all.iter().any(|it| it.model != newest.model) {
        return Err(Error::usage("several models are registered").hint("choose one with --version"));
    }
    Ok(newest)
}

fn write(path: &Path, map: &image::RgbImage) -> Result<()> {
    let invalid = || Error::usage(format!("`{}` is not a file name", path.display()));
    let name = path.file_name().and_then(|it| it.to_str()).ok_or_else(invalid)?;
    let mut bytes = Cursor::new(Vec::new());
    let encoded = map.write_to(&mut bytes, image::ImageFormat::Png);
    encoded.map_err(|it| Error::new(Kind::Internal, "cannot encode the map").with_source(it))?;
    let root = Root::create(path.parent().ok_or_else(invalid)?)?;
    root.write(&RepoPath::from_text(name)?, bytes.get_ref(), Sync::Later)
}

fn near_json(near: &NearImage) -> Value {
    json!({"picture": near.name, "class": near.class, "distance": near.distance})
}

impl Report for Explanation {
    fn json(&self) -> Value {
        let heat = &self.heat;
        let scores: serde_json::Map<String, Value> =
            self.classes.iter().cloned().zip(heat.scores.iter().map(|it| json!(it))).collect();
        json!({"picture": self.image.display().to_string(), "version": self.version,
            "class": self.classes[heat.class], "probability": heat.scores[heat.class], "scores": scores,
            "out": self.out.display().to_string(), "side": self.side, "patch": heat.patch,
            "stride": heat.stride, "fill": heat.fill, "map": heat.map, "decisive": heat.decisive,
            "deletion": heat.deletion, "request": self.request,
            "nearest": self.nearest.iter().map(near_json).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (heat, deletion) = (&self.heat, &self.heat.deletion);
        writeln!(
            f,
            "{}: {} with probability {:.4} by {}",
            self.image.display(),
            self.classes[heat.class],
            heat.scores[heat.class],
            self.version
        )?;
        match heat.decisive {
            Some(square) => writeln!(
                f,
                "most decisive: the {}×{} pixels at {}, {} of {}×{}",
                square.side, square.side, square.left, square.top, self.side, self.side
            )?,
            None => writeln!(f, "no part of the image matters more than others")?,
        }
        writeln!(
            f,
            "deletion score {:.3}; random order {:.3}, from the center {:.3}",
            deletion.heat, deletion.random, deletion.center
        )?;
        if deletion.heat >= deletion.random {
            writeln!(f, "do not trust the map: it explains no more than a random one")?;
        }
        for near in &self.nearest {
            writeln!(
                f,
                "similar training image: {} ({}), distance {:.1}",
                near.name, near.class, near.distance
            )?;
        }
        write!(f, "map: {}", self.out.display())
    }
}
