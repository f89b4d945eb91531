//! `mlx demo`: runs the complete workflow on a generated pet-classification project with real commands, from
//! the first photos to a registered model and, with `--full`, a month in production.
//!
//! The commands are printed, so that they can be repeated by hand; those of each day of the month are not.
//! Nothing is downloaded: the photos are drawn from a seed.

mod month;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use self::month::DayEvents;
use crate::{
    cli::{Context, Report, report::shell_quote},
    demo_data::{Pet, photo},
    document,
    error::{Error, Kind, Result, WithContext},
    fs::{self, Entry, FileKind, Listing, NoFilter, Root, Sync},
    path::RepoPath,
};

/// Run the complete workflow on an example project, from photos to a registered model
///
/// Creates a project from the template in a new Git repository, trains and registers a model, pushes it, and
/// pulls it in a clone. Each command is printed, so that you can run it too. Nothing is downloaded: the
/// photos are drawn.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx demo\n  mlx demo --full\n  mlx demo park --photos ~/pets --backbone \
    efficientnet-lite0.onnx\n\n\
JSON: {\"project\", \"accuracy\", \"version\", \"month\": [{\"day\", \"raised\": [RULE…], \"resolved\": \
[RULE…], \"actions\": [text…]}]}"
)]
pub struct Args {
    /// Folder to create
    #[arg(default_value = "pet-park")]
    dir: PathBuf,
    /// Folder with real photos to use, one subfolder per class
    #[arg(long, value_name = "DIR")]
    photos: Option<PathBuf>,
    /// Pretrained feature extractor to use
    #[arg(long, value_name = "FILE.onnx")]
    backbone: Option<PathBuf>,
    /// Number of photos to draw
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(40..=100_000))]
    count: u64,
    /// Random seed of the drawn photos
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Continue with test, approval, release and a month in production: fog, a new camera, many dogs, a
    /// broken lens
    #[arg(long, alias = "whole", conflicts_with_all = ["photos", "backbone"])]
    full: bool,
    /// Number of frames that the camera takes per day of the month
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(20..=2000))]
    frames: u32,
}

pub struct Outcome {
    project: PathBuf,
    accuracy: f64,
    version: String,
    month: Vec<DayEvents>,
}

/// Runs the commands of the demo in its project and prints them.
struct Player<'s, 'c> {
    ctx: &'s Context<'c>,
    project: PathBuf,
    exe: PathBuf,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Outcome> {
    let project = ctx.cwd.join(&args.dir);
    if fs::is_file(&project) || !fs::names(&project).is_empty() {
        let error = Error::new(Kind::Conflict, format!("`{}` already exists", args.dir.display()));
        return Err(error.hint("name another folder: `mlx demo DIR`"));
    }
    let photos = args.photos.as_ref().map(|path| input(ctx, path, true)).transpose()?;
    let backbone = args.backbone.as_ref().map(|path| input(ctx, path, false)).transpose()?;
    fs::create_dir_all(&project)?;
    let project = fs::canonicalize(&project).unwrap_or(project);
    let exe = std::env::current_exe().context(|| "cannot find the mlx executable".into())?;
    let player = Player { ctx, project, exe };
    player.play(args, photos.as_deref(), backbone.as_deref())
}

/// Resolves the path of an input file or folder.
fn input(ctx: &Context<'_>, path: &Path, folder: bool) -> Result<PathBuf> {
    let matches = |found: &PathBuf| if folder { fs::is_dir(found) } else { fs::is_file(found) };
    let found = fs::canonicalize(&ctx.cwd.join(path)).filter(matches);
    found.ok_or_else(|| Error::not_found(format!("`{}` not found", path.display())))
}

/// Estimates the run time on this machine; `None` for drawn photos without a backbone, which are quick.
fn expected_time(drawn: u64, photos: Option<&Path>, backbone: bool) -> Result<Option<String>> {
    let count = match photos {
        Some(photos) => {
            Root::open(photos)?.entries(&RepoPath::root(), &NoFilter)?.iter().map(count_files).sum()
        }
        None => drawn,
    };
    if photos.is_none() && !backbone {
        return Ok(None);
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let milliseconds = if backbone { 90 } else { 25 };
    let seconds = (count * milliseconds).div_ceil(1000 * cores) + 10;
    let how = if backbone { "through a backbone (less with ONNX Runtime)" } else { "without a backbone" };
    Ok(Some(format!("This takes about {seconds} seconds: {count} photos {how}, on {cores} cores.")))
}

fn count_files(entry: Entry<'_>) -> u64 {
    let own = u64::from(entry.stat.kind == FileKind::File);
    own + entry.children.iter().map(count_files).sum::<u64>()
}

impl Player<'_, '_> {
    fn play(&self, args: &Args, photos: Option<&Path>, backbone: Option<&Path>) -> Result<Outcome> {
        self.tell("A pet park in Barcelona wants its camera to tell cats from dogs.");
        if let Some(expected) = expected_time(args.count, photos, backbone.is_some())? {
            self.tell(&expected);
        }
        self.tell("\n1. Create a project: a pipeline, its parameters, a CI file, all in Git.");
        self.git(&["init", "--quiet", "-b", "main"])?;
        self.mlx(&["init", "--template", "pets"])?;

        self.tell("\n2. Add the photos: Git tracks a pointer of five lines, mlx stores the content.");
        self.add_photos(args, photos)?;
        self.mlx(&["add", "data/"])?;
        if let Some(backbone) = backbone {
            self.add_backbone(backbone)?;
        }

        self.tell("\n3. Run the pipeline: split, features, train, evaluate, package.");
        self.mlx(&["repro"])?;
        self.git(&["add", "."])?;
        self.git(&["commit", "--quiet", "-m", "first model"])?;
        self.mlx(&["show", "metrics"])?;

        self.tell("\n4. Register the model: an annotated Git tag that names the package by its digest.");
        self.mlx(&["model", "register", "pets"])?;

        self.tell("\n5. Push to a remote, for others to pull from.");
        let remote = format!("file://{}-remote", self.project.display());
        self.mlx(&["remote", "add", "origin", &remote, "--default"])?;
        self.mlx(&["push"])?;
        self.git(&["add", "."])?;
        self.git(&["commit", "--quiet", "-m", "a remote"])?;

        self.tell("\n6. Change a parameter: only the stages that depend on it run.");
        self.edit_params("folds = 5", "folds = 4")?;
        self.mlx(&["repro", "--dry-run"])?;
        self.mlx(&["repro"])?;
        self.mlx(&["diff", "params"])?;
        self.mlx(&["diff", "metrics"])?;
        self.git(&["add", "."])?;
        self.git(&["commit", "--quiet", "-m", "four folds"])?;
        self.mlx(&["push"])?;

        self.tell("\n7. A colleague clones and pulls, and has nothing to run.");
        let clone = PathBuf::from(format!("{}-clone", self.project.display()));
        self.shell(
            "git",
            &["clone", "--quiet", &self.project.display().to_string(), &clone.display().to_string()],
            &self.project,
        )?;
        self.mlx_in(&clone, &["pull"])?;
        self.mlx_in(&clone, &["repro"])?;

        self.tell("\n8. Show where the model came from: its lineage is read from Git.");
        self.mlx(&["log", "data/"])?;
        self.mlx(&["lineage", "pets@v0.1.0"])?;
        let month = if args.full { self.month(args.seed, args.frames)? } else { Vec::new() };
        self.outcome(month)
    }

    fn outcome(&self, month: Vec<DayEvents>) -> Result<Outcome> {
        let files = Root::open(&self.project)?;
        let metrics = RepoPath::from_text("metrics/test.json")?;
        let value = document::parse(&metrics, &files.read(&metrics)?)?;
        let accuracy = value.get("accuracy").and_then(document::Value::as_f64).unwrap_or(f64::NAN);
        Ok(Outcome { project: self.project.clone(), accuracy, version: "pets@v0.1.0".to_owned(), month })
    }

    fn tell(&self, text: &str) {
        self.ctx.progress.note(text);
    }

    /// Runs mlx in the project and shows its output.
    fn mlx(&self, args: &[&str]) -> Result<()> {
        self.mlx_in(&self.project, args)
    }

    fn mlx_in(&self, folder: &Path, args: &[&str]) -> Result<()> {
        let option = if folder == self.project { String::new() } else { format!(" -C {}", folder.display()) };
        self.tell(&format!("$ mlx{option} {}", args.join(" ")));
        self.program(self.exe.as_os_str().to_owned(), args, folder)
    }

    fn git(&self, args: &[&str]) -> Result<()> {
        self.shell("git", args, &self.project)
    }

    fn shell(&self, program: &str, args: &[&str], folder: &Path) -> Result<()> {
        let quoted: Vec<_> = args.iter().map(|it| shell_quote(it)).collect();
        self.tell(&format!("$ {program} {}", quoted.join(" ")));
        self.program(program.into(), args, folder)
    }

    fn program(&self, program: OsString, args: &[&str], folder: &Path) -> Result<()> {
        let mut command = Command::new(&program);
        command.args(args).current_dir(folder);
        self.set_default_identity(&mut command);
        let output = command.output().context(|| format!("cannot run `{}`", program.display()))?;
        let text = [output.stderr, output.stdout].concat();
        self.ctx.progress.event(crate::progress::Event::Output { bytes: &text });
        if output.status.success() {
            return Ok(());
        }
        let error = Error::new(Kind::Stage, format!("`{} {}` failed", program.display(), args.join(" ")));
        Err(error
            .hint(String::from_utf8_lossy(&text).lines().last().unwrap_or("it printed nothing").to_owned()))
    }

    /// Sets an author for the demo's commits if Git has none configured, as on a new machine.
    fn set_default_identity(&self, command: &mut Command) {
        if self.has_identity() {
            return;
        }
        for role in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{role}_NAME"), "mlx demo")
                .env(format!("GIT_{role}_EMAIL"), "demo@park.example");
        }
    }

    fn has_identity(&self) -> bool {
        let output = Command::new("git").args(["config", "user.email"]).current_dir(&self.project).output();
        output.is_ok_and(|it| it.status.success())
    }

    fn add_photos(&self, args: &Args, photos: Option<&Path>) -> Result<()> {
        let files = Root::open(&self.project)?;
        let Some(photos) = photos else {
            self.tell(&format!("(drawing {} photos from seed {})", args.count, args.seed));
            for number in 0..args.count {
                let pet = if number % 2 == 0 { Pet::Cat } else { Pet::Dog };
                let path = RepoPath::from_text(&format!("data/{0}/{0}-{1:05}.jpg", pet.name(), number / 2))?;
                files.write(&path, &photo(args.seed, pet, number / 2)?, Sync::Later)?;
            }
            return Ok(());
        };
        self.tell(&format!("$ cp -r {} data", photos.display()));
        let from = Root::open(photos)?;
        copy(&from, &from.entries(&RepoPath::root(), &NoFilter)?, &RepoPath::root(), &files)
    }

    fn add_backbone(&self, backbone: &Path) -> Result<()> {
        let files = Root::open(&self.project)?;
        self.tell(&format!("$ cp {} models/backbone.onnx", backbone.display()));
        files.write(
            &RepoPath::from_text("models/backbone.onnx")?,
            &fs::read_user_file(backbone)?,
            Sync::Later,
        )?;
        self.mlx(&["add", "models/backbone.onnx"])?;
        self.edit_params("file = \"\"", "file = \"models/backbone.onnx\"")?;
        self.edit(
            "mlx.toml",
            "deps = [\"data\", \"split.tsv\"]",
            "deps = [\"data\", \"split.tsv\", \"models/backbone.onnx\"]",
        )?;
        self.edit(
            "mlx.toml",
            "\"metrics/test.json\"]\nouts",
            "\"metrics/test.json\", \"models/backbone.onnx\"]\nouts",
        )
    }

    fn edit_params(&self, old: &str, new: &str) -> Result<()> {
        self.edit("params.toml", old, new)
    }

    fn edit(&self, name: &str, old: &str, new: &str) -> Result<()> {
        self.tell(&format!("(edit {name}: {} → {})", old.replace('\n', " "), new.replace('\n', " ")));
        let (files, path) = (Root::open(&self.project)?, RepoPath::from_text(name)?);
        let text = String::from_utf8_lossy(&files.read(&path)?).replace(old, new);
        files.write(&path, text.as_bytes(), Sync::Later)
    }
}

/// Copies the files of a folder in `from` to the same path below `data/` in `to`.
fn copy(from: &Root, entries: &Listing, folder: &RepoPath, to: &Root) -> Result<()> {
    for entry in entries.iter() {
        let path = folder.join(entry.name)?;
        match entry.stat.kind {
            FileKind::Folder => copy(from, entry.children, &path, to)?,
            FileKind::File => {
                let target = RepoPath::from_text("data")?.join_path(&path)?;
                to.write(&target, &from.read(&path)?, Sync::Later)?;
            }
            _ => {}
        }
    }
    Ok(())
}

impl Report for Outcome {
    fn json(&self) -> Value {
        let day = |events: &DayEvents| {
            json!({"day": events.day, "raised": events.raised, "resolved": events.resolved,
                "actions": events.actions})
        };
        let month: Vec<Value> = self.month.iter().map(day).collect();
        json!({"project": self.project.display().to_string(), "accuracy": self.accuracy,
            "version": self.version, "month": month})
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.project.display();
        writeln!(
            f,
            "\nDone: {} classifies the test photos with {:.1} % accuracy.",
            self.version,
            100.0 * self.accuracy
        )?;
        write!(
            f,
            "The project is in {path}, its remote in {path}-remote, a clone in {path}-clone. Next: `mlx -C \
            {path} status`"
        )
    }
}
