use std::{
    fmt,
    io::Cursor,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{reference::training, request, version::bring},
    },
    error::{Doing, Error, Kind, Result},
    fs::{self, Root, Sync},
    model::{
        explain::{Fill, Heat, Settings, draw, explain, nearest},
        offline::Offline,
        picture,
        registry::{self, Version},
    },
    path::RepoPath,
    repo::Repo,
};

/// Training pictures that are named.
const NEAREST: usize = 5;

/// Show which parts of a picture decided what a model says of it
///
/// A file, or the id of a request whose picture was kept. Hides one square of the picture after another; the heat of
/// a place is how much the log-odds of the decided class drop without it. The deletion score says whether to trust
/// the map: it should be lower than those of a random order and of an order from the middle. Places are pixels of
/// the square that the network sees.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx explain photo.jpg\n  mlx explain photo.jpg --version pets@v0.1.0 --out heat.png\n  mlx explain 019a9c1e6b7c7e1d8f0a2b3c4d5e6f70\n\n\
JSON: {\"picture\", \"version\", \"class\", \"probability\", \"scores\": {CLASS: probability}, \"out\", \"side\", \"patch\", \"stride\", \"fill\", \
\"map\": [[drop]], \"decisive\": {\"left\", \"top\", \"side\"}, \"deletion\": {\"heat\", \"random\", \"center\"}, \
\"nearest\": [{\"picture\", \"class\", \"distance\"}], \"request\": ID | null}"
)]
pub struct Args {
    /// The picture, or the id of a request
    picture: PathBuf,
    /// `pets@v0.1.0`; the newest of `pets` without a number; without either the one that answered the request, else
    /// the newest of the only model
    #[arg(long)]
    version: Option<String>,
    /// Where to draw the map, as PNG
    #[arg(long, default_value = "heat.png")]
    out: PathBuf,
    /// The hidden square's side, as a share of the picture's
    #[arg(long, default_value_t = 0.2)]
    patch: f64,
    /// What stands in the place of what is hidden: blur, mean
    #[arg(long, default_value = "blur")]
    fill: Fill,
    /// What the random order of the deletion score follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the package comes from, if it is not here
    #[arg(long)]
    remote: Option<String>,
}

pub struct Explained {
    picture: PathBuf,
    version: String,
    classes: Vec<String>,
    side: usize,
    out: PathBuf,
    heat: Heat,
    request: Option<String>,
    nearest: Vec<Near>,
}

/// A training picture that the model sees much as it sees this one.
struct Near {
    picture: String,
    class: String,
    distance: f32,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Explained> {
    let repo = ctx.repo()?;
    let place = ctx.cwd.join(&args.picture);
    let asked = args.picture.to_str().filter(|_| !fs::is_file(&place));
    let found = asked.map(|it| request::find(&repo, it)).transpose()?.flatten();
    let answered = found.as_ref().map(|it| it.record.version.as_str());
    let version = chosen(&repo, args.version.as_deref().or(answered))?;
    let bytes = match &found {
        Some(found) => request::picture(&repo, found)?,
        None => fs::read_outside(&place)?,
    };
    bring(ctx, &repo, &version, args.remote.as_deref())?;
    let mut offline = Offline::load(&repo, &version)?;
    let decoded = picture::decode(&bytes).doing(|| format!("cannot explain `{}`", args.picture.display()))?;
    let planes = picture::planes(&decoded, &offline.settings());
    let side = offline.description.input.crop as usize;
    let features = offline.run(&planes)?.pop().map(|it| it.features).unwrap_or_default();
    let rows = training(&repo, &version)?;
    let near = nearest(&features, &rows, NEAREST).into_iter();
    let near = near.map(|(at, distance)| Near {
        picture: rows[at].name.clone(),
        class: rows[at].class.clone(),
        distance,
    });
    let near = near.collect();
    let mut run = |planes: &[f32]| Ok(offline.run(planes)?.into_iter().map(|it| it.scores).collect());
    let settings = Settings { patch: args.patch, fill: args.fill, seed: args.seed };
    let heat = explain(&mut run, &planes, side, &settings)?;
    write(&ctx.cwd.join(&args.out), &draw(&planes, side, &heat))?;
    Ok(Explained {
        picture: args.picture.clone(),
        version: version.name(),
        classes: offline.description.classes.clone(),
        side,
        out: args.out.clone(),
        heat,
        request: found.map(|it| it.record.id),
        nearest: near,
    })
}

/// The version named, else the newest of the only model there is.
fn chosen(repo: &Repo, named: Option<&str>) -> Result<Version> {
    if let Some(name) = named {
        return registry::require(&repo.git, name);
    }
    let mut all = registry::versions(&repo.git, None)?;
    let newest = all.pop().ok_or_else(|| {
        Error::not_found("no version is registered").hint("`mlx model register NAME` makes one")
    })?;
    if all.iter().any(|it| it.model != newest.model) {
        return Err(Error::usage("there are several models").hint("name one with --version"));
    }
    Ok(newest)
}

fn write(place: &Path, picture: &image::RgbImage) -> Result<()> {
    let wrong = || Error::usage(format!("`{}` is no name of a file", place.display()));
    let name = place.file_name().and_then(|it| it.to_str()).ok_or_else(wrong)?;
    let mut bytes = Cursor::new(Vec::new());
    let drawn = picture.write_to(&mut bytes, image::ImageFormat::Png);
    drawn.map_err(|it| Error::new(Kind::Internal, "cannot draw the map").because(it))?;
    let root = Root::create(place.parent().ok_or_else(wrong)?)?;
    root.write(&RepoPath::from_text(name)?, bytes.get_ref(), Sync::Later)
}

fn near(it: &Near) -> Value {
    json!({"picture": it.picture, "class": it.class, "distance": it.distance})
}

impl Report for Explained {
    fn json(&self) -> Value {
        let heat = &self.heat;
        let scores: serde_json::Map<String, Value> =
            self.classes.iter().cloned().zip(heat.scores.iter().map(|it| json!(it))).collect();
        json!({"picture": self.picture.display().to_string(), "version": self.version,
            "class": self.classes[heat.class], "probability": heat.scores[heat.class], "scores": scores,
            "out": self.out.display().to_string(), "side": self.side, "patch": heat.patch,
            "stride": heat.stride, "fill": heat.fill, "map": heat.map, "decisive": heat.decisive,
            "deletion": heat.deletion, "request": self.request, "nearest": self.nearest.iter().map(near).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (heat, deletion) = (&self.heat, &self.heat.deletion);
        writeln!(
            f,
            "{}: {} with {:.4} by {}",
            self.picture.display(),
            self.classes[heat.class],
            heat.scores[heat.class],
            self.version
        )?;
        match heat.decisive {
            Some(it) => writeln!(
                f,
                "most decisive: the {}×{} pixels at {}, {} of {}×{}",
                it.side, it.side, it.left, it.top, self.side, self.side
            )?,
            None => writeln!(f, "no part of it matters more than others")?,
        }
        writeln!(
            f,
            "deletion {:.3}; in a random order {:.3}, from the middle {:.3}",
            deletion.heat, deletion.random, deletion.center
        )?;
        if deletion.heat >= deletion.random {
            writeln!(f, "the map explains no more than chance does")?;
        }
        for it in &self.nearest {
            writeln!(f, "like {} in training ({}), {:.1} away", it.picture, it.class, it.distance)?;
        }
        write!(f, "drawn in {}", self.out.display())
    }
}
