use std::{fmt, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, report::count},
    deploy::{
        client::{self, Client},
        stop::Stop,
        watch::{Settings, Tally, watch},
    },
    error::{Error, Result},
    fs::{self, Root},
    path::RepoPath,
};

/// Send what a camera drops into a folder to a served model
///
/// Pictures go in the order of their names, each once: what was sent is remembered, and files stay where they
/// are. Half-written files wait until they are whole. When a picture was taken is read from a name such as
/// `2026-03-09T08-15-00Z.jpg`, else from the file's time. SIGTERM and Ctrl-C end it.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx watch frames --env production\n  mlx watch frames --env production --once --out answers.jsonl\n\n\
JSON: {\"folder\", \"environment\", \"answered\", \"refused\", \"classes\": {CLASS: count}}"
)]
pub struct Args {
    /// The folder that the camera writes to
    folder: PathBuf,
    /// The environment that the model serves in
    #[arg(long)]
    env: String,
    /// Where the model is served
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Pictures a second, at most
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// End when no new picture is left
    #[arg(long)]
    once: bool,
    /// Add each answer to this file, as a line of JSON
    #[arg(long, value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
    /// A file whose first line is the token to send
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Seconds until a request is given up
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    deadline: u64,
}

pub struct Watched {
    folder: PathBuf,
    environment: String,
    tally: Tally,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Watched> {
    let repo = ctx.repo()?;
    if args.rate.is_some_and(|it| !it.is_finite() || it < 1e-3) {
        return Err(Error::usage("`--rate` is a number of pictures a second above 0.001"));
    }
    let missing = || Error::not_found(format!("there is no folder `{}`", args.folder.display()));
    let place = fs::canonical(&ctx.cwd.join(&args.folder)).filter(|it| fs::is_dir(it)).ok_or_else(missing)?;
    let token = client::token(args.token_file.as_ref().map(|it| ctx.cwd.join(it)).as_deref())?;
    let client = Client::new(&args.url, token, Duration::from_secs(args.deadline))?;
    let settings = Settings {
        private: &repo.private,
        environment: &args.env,
        rate: args.rate,
        once: args.once,
        out: args.out.as_ref().map(|it| appended(ctx, it)).transpose()?,
    };
    let tally = watch(&place, &client, settings, ctx.progress, &Stop::on_signals()?)?;
    Ok(Watched { folder: args.folder.clone(), environment: args.env.clone(), tally })
}

/// Opens a file of the user's to add to it.
fn appended(ctx: &Context<'_>, file: &std::path::Path) -> Result<fs::File> {
    let place = ctx.cwd.join(file);
    let wrong = || Error::usage(format!("`{}` is no name of a file", file.display()));
    let name = place.file_name().and_then(|it| it.to_str()).ok_or_else(wrong)?;
    Root::create(place.parent().ok_or_else(wrong)?)?.append(&RepoPath::from_text(name)?)
}

impl Watched {
    fn answered(&self) -> u64 {
        self.tally.classes.values().sum()
    }
}

impl Report for Watched {
    fn json(&self) -> Value {
        json!({"folder": self.folder.display().to_string(), "environment": self.environment,
            "answered": self.answered(), "refused": self.tally.refused, "classes": self.tally.classes})
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered", count(self.answered(), "picture"))?;
        if self.tally.refused > 0 {
            write!(f, ", {} refused", self.tally.refused)?;
        }
        let classes: Vec<_> = self.tally.classes.iter().map(|(class, it)| format!("{it} {class}")).collect();
        if classes.is_empty() { Ok(()) } else { write!(f, ": {}", classes.join(", ")) }
    }
}
