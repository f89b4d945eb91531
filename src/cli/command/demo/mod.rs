//! The story of a pet park in Barcelona, played with real commands.

mod month;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use self::month::Told;
use crate::{
    cli::{Context, Report, report::shell_word},
    error::{Doing, Error, Kind, Result},
    fs::{self, Entry, Everything, Form, Listing, Root, Sync},
    path::RepoPath,
    sketch::{Pet, photo},
};

/// Play the whole story: photos in, a registered model out, pushed and pulled elsewhere
///
/// Makes a project from the template in a fresh Git repository and takes it through the whole job. Each
/// command is printed, so that you can run it too. Nothing is downloaded: the photos are drawn.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx demo\n  mlx demo --whole\n  mlx demo park --photos ~/pets --backbone efficientnet-lite0.onnx\n\n\
JSON: {\"project\", \"accuracy\", \"version\", \"month\": [{\"day\", \"raised\": [RULE…], \"resolved\": [RULE…], \"actions\": [text…]}]}"
)]
pub struct Args {
    /// The folder to make
    #[arg(default_value = "pet-park")]
    dir: PathBuf,
    /// Real photos: a folder with one subfolder a class
    #[arg(long, value_name = "DIR")]
    photos: Option<PathBuf>,
    /// A real feature extractor
    #[arg(long, value_name = "FILE.onnx")]
    backbone: Option<PathBuf>,
    /// How many photos to draw
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(40..=100_000))]
    count: u64,
    /// What the drawn photos follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Go on: test, approve, release, and a month in production, with fog, a new camera, many dogs, a broken lens
    #[arg(long, conflicts_with_all = ["photos", "backbone"])]
    whole: bool,
    /// Frames that the camera takes on each day of the month
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(20..=2000))]
    frames: u32,
}

pub struct Story {
    project: PathBuf,
    accuracy: f64,
    version: String,
    month: Vec<Told>,
}

struct Stage<'s, 'c> {
    ctx: &'s Context<'c>,
    project: PathBuf,
    exe: PathBuf,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Story> {
    let project = ctx.cwd.join(&args.dir);
    if fs::is_file(&project) || !fs::names(&project).is_empty() {
        let error = Error::new(Kind::Conflict, format!("`{}` is there already", args.dir.display()));
        return Err(error.hint("name another folder: `mlx demo DIR`"));
    }
    let photos = args.photos.as_ref().map(|it| real(ctx, it, true)).transpose()?;
    let backbone = args.backbone.as_ref().map(|it| real(ctx, it, false)).transpose()?;
    fs::create_dir_all(&project)?;
    let project = fs::canonical(&project).unwrap_or(project);
    let exe = std::env::current_exe().doing(|| "cannot find mlx itself".into())?;
    let stage = Stage { ctx, project, exe };
    stage.play(args, photos.as_deref(), backbone.as_deref())
}

fn real(ctx: &Context<'_>, path: &Path, folder: bool) -> Result<PathBuf> {
    let place =
        fs::canonical(&ctx.cwd.join(path)).filter(|it| if folder { fs::is_dir(it) } else { fs::is_file(it) });
    place.ok_or_else(|| Error::not_found(format!("there is no `{}`", path.display())))
}

/// What real input is going to take on this machine.
fn expected(drawn: u64, photos: Option<&Path>, backbone: bool) -> Result<Option<String>> {
    let count = match photos {
        Some(photos) => Root::open(photos)?.entries(&RepoPath::root(), &Everything)?.iter().map(files).sum(),
        None => drawn,
    };
    if photos.is_none() && !backbone {
        return Ok(None);
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let milliseconds = if backbone { 90 } else { 25 };
    let seconds = (count * milliseconds).div_ceil(1000 * cores) + 10;
    let how = if backbone { "through a backbone (less with ONNX Runtime)" } else { "without a backbone" };
    Ok(Some(format!("Expect about {seconds} seconds: {count} photos {how}, on {cores} cores.")))
}

fn files(entry: Entry<'_>) -> u64 {
    let own = u64::from(entry.stamp.form == Form::File);
    own + entry.children.iter().map(files).sum::<u64>()
}

impl Stage<'_, '_> {
    fn play(&self, args: &Args, photos: Option<&Path>, backbone: Option<&Path>) -> Result<Story> {
        self.tell("A pet park in Barcelona wants its camera to tell cats from dogs.");
        if let Some(expected) = expected(args.count, photos, backbone.is_some())? {
            self.tell(&expected);
        }
        self.tell("\n1. A project: a pipeline, its parameters, a CI file, all in Git.");
        self.git(&["init", "--quiet", "-b", "main"])?;
        self.mlx(&["init", "--template", "pets"])?;

        self.tell(
            "\n2. The photos come under version control: Git keeps a pointer of five lines, mlx the content.",
        );
        self.bring_photos(args, photos)?;
        self.mlx(&["add", "data/"])?;
        if let Some(backbone) = backbone {
            self.bring_backbone(backbone)?;
        }

        self.tell("\n3. The pipeline: split, features, train, evaluate, package.");
        self.mlx(&["repro"])?;
        self.git(&["add", "."])?;
        self.git(&["commit", "--quiet", "-m", "first model"])?;
        self.mlx(&["show", "metrics"])?;

        self.tell("\n4. A name for the model: an annotated Git tag that names the package by its digest.");
        self.mlx(&["model", "register", "pets"])?;

        self.tell("\n5. A remote for the others.");
        let remote = format!("file://{}-remote", self.project.display());
        self.mlx(&["remote", "add", "origin", &remote, "--default"])?;
        self.mlx(&["push"])?;
        self.git(&["add", "."])?;
        self.git(&["commit", "--quiet", "-m", "a remote"])?;

        self.tell("\n6. A parameter changes: only what depends on it runs.");
        self.edit_params("folds = 5", "folds = 4")?;
        self.mlx(&["repro", "--dry-run"])?;
        self.mlx(&["repro"])?;
        self.mlx(&["diff", "params"])?;
        self.mlx(&["diff", "metrics"])?;
        self.git(&["add", "."])?;
        self.git(&["commit", "--quiet", "-m", "four folds"])?;
        self.mlx(&["push"])?;

        self.tell("\n7. A colleague clones, pulls, and has nothing to run.");
        let clone = PathBuf::from(format!("{}-clone", self.project.display()));
        self.shell(
            "git",
            &["clone", "--quiet", &self.project.display().to_string(), &clone.display().to_string()],
            &self.project,
        )?;
        self.mlx_in(&clone, &["pull"])?;
        self.mlx_in(&clone, &["repro"])?;

        self.tell("\n8. Where did the model come from? It is read from Git.");
        self.mlx(&["log", "data/"])?;
        self.mlx(&["lineage", "pets@v0.1.0"])?;
        let month = if args.whole { self.month(args.seed, args.frames)? } else { Vec::new() };
        self.end(month)
    }

    fn end(&self, month: Vec<Told>) -> Result<Story> {
        let files = Root::open(&self.project)?;
        let metrics = RepoPath::from_text("metrics/test.json")?;
        let value = crate::document::parse(&metrics, &files.read(&metrics)?)?;
        let accuracy = value["accuracy"].as_f64().unwrap_or(f64::NAN);
        Ok(Story { project: self.project.clone(), accuracy, version: "pets@v0.1.0".to_owned(), month })
    }

    fn tell(&self, text: &str) {
        self.ctx.progress.note(text);
    }

    /// Runs mlx and shows what it says.
    fn mlx(&self, args: &[&str]) -> Result<()> {
        self.mlx_in(&self.project, args)
    }

    fn mlx_in(&self, folder: &Path, args: &[&str]) -> Result<()> {
        let place = if folder == self.project { String::new() } else { format!(" -C {}", folder.display()) };
        self.tell(&format!("$ mlx{place} {}", args.join(" ")));
        self.program(self.exe.as_os_str().to_owned(), args, folder)
    }

    fn git(&self, args: &[&str]) -> Result<()> {
        self.shell("git", args, &self.project)
    }

    fn shell(&self, program: &str, args: &[&str], folder: &Path) -> Result<()> {
        let quoted: Vec<_> = args.iter().map(|it| shell_word(it)).collect();
        self.tell(&format!("$ {program} {}", quoted.join(" ")));
        self.program(program.into(), args, folder)
    }

    fn program(&self, program: OsString, args: &[&str], folder: &Path) -> Result<()> {
        let mut command = Command::new(&program);
        command.args(args).current_dir(folder);
        self.lend_name(&mut command);
        let output = command.output().doing(|| format!("cannot run `{}`", program.display()))?;
        let said = [output.stderr, output.stdout].concat();
        self.ctx.progress.event(crate::progress::Event::Output { bytes: &said });
        if output.status.success() {
            return Ok(());
        }
        let error = Error::new(Kind::Stage, format!("`{} {}` failed", program.display(), args.join(" ")));
        Err(error.hint(String::from_utf8_lossy(&said).lines().last().unwrap_or("it said nothing").to_owned()))
    }

    /// On a fresh machine Git has no user yet; the demo lends one for its own commits.
    fn lend_name(&self, command: &mut Command) {
        if self.knows_a_name() {
            return;
        }
        for role in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{role}_NAME"), "mlx demo")
                .env(format!("GIT_{role}_EMAIL"), "demo@park.example");
        }
    }

    fn knows_a_name(&self) -> bool {
        let asked = Command::new("git").args(["config", "user.email"]).current_dir(&self.project).output();
        asked.is_ok_and(|it| it.status.success())
    }

    fn bring_photos(&self, args: &Args, photos: Option<&Path>) -> Result<()> {
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
        copy(&from, &from.entries(&RepoPath::root(), &Everything)?, &RepoPath::root(), &files)
    }

    fn bring_backbone(&self, backbone: &Path) -> Result<()> {
        let files = Root::open(&self.project)?;
        self.tell(&format!("$ cp {} models/backbone.onnx", backbone.display()));
        files.write(
            &RepoPath::from_text("models/backbone.onnx")?,
            &fs::read_outside(backbone)?,
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

/// Copies files below `from` to `data/` of `to`.
fn copy(from: &Root, entries: &Listing, at: &RepoPath, to: &Root) -> Result<()> {
    for entry in entries.iter() {
        let path = at.join(entry.name)?;
        match entry.stamp.form {
            Form::Folder => copy(from, entry.children, &path, to)?,
            Form::File => {
                let target = RepoPath::from_text("data")?.join_path(&path)?;
                to.write(&target, &from.read(&path)?, Sync::Later)?;
            }
            _ => {}
        }
    }
    Ok(())
}

impl Report for Story {
    fn json(&self) -> Value {
        let day = |it: &Told| json!({"day": it.day, "raised": it.raised, "resolved": it.resolved, "actions": it.actions});
        let month: Vec<Value> = self.month.iter().map(day).collect();
        json!({"project": self.project.display().to_string(), "accuracy": self.accuracy, "version": self.version, "month": month})
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.project.display();
        writeln!(
            f,
            "\nDone: {} tells the test photos apart with {:.1} % accuracy.",
            self.version,
            100.0 * self.accuracy
        )?;
        write!(
            f,
            "The project is in {place}, its remote in {place}-remote, a clone in {place}-clone. Look around: mlx -C {place} status"
        )
    }
}
