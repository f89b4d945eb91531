//! `mlx watch`: sends the images that appear in a folder to a served model.

use std::{fmt, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, report::count},
    deploy::{
        client::{self, Client},
        stop::StopFlag,
        watch::{Settings, Summary, watch},
    },
    error::{Error, Result},
    fs::{self, Root},
    path::RepoPath,
};

/// Send new images in a folder to a served model
///
/// Images are sent in the order of their names, each once, even across restarts; the files are left in place.
/// A file that is still being written is sent once it is complete. The capture time comes from a name such as
/// `2026-03-09T08-15-00Z.jpg`, else from the file's modification time. SIGTERM and Ctrl-C end the watch.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx watch frames --env production\n  mlx watch frames --env production \
    --once --out answers.jsonl\n\n\
JSON: {\"folder\", \"environment\", \"answered\", \"refused\", \"classes\": {CLASS: count}}"
)]
pub struct Args {
    /// Folder that the camera writes to
    folder: PathBuf,
    /// Environment that the model serves in
    #[arg(long)]
    env: String,
    /// URL of the service
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Largest number of images per second (default: no limit)
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// End once no new image is left
    #[arg(long)]
    once: bool,
    /// File to append each response to, as a line of JSON
    #[arg(long, value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
    /// File whose first line is the bearer token to send
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Request timeout, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    deadline: u64,
}

/// Summary of a watch that has ended.
pub struct Watched {
    folder: PathBuf,
    environment: String,
    summary: Summary,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Watched> {
    let repo = ctx.repo()?;
    if args.rate.is_some_and(|it| !it.is_finite() || it < 1e-3) {
        return Err(Error::usage("`--rate` must be at least 0.001 images per second"));
    }
    let missing = || Error::not_found(format!("folder `{}` not found", args.folder.display()));
    let folder =
        fs::canonicalize(&ctx.cwd.join(&args.folder)).filter(|it| fs::is_dir(it)).ok_or_else(missing)?;
    let token = client::token(args.token_file.as_ref().map(|it| ctx.cwd.join(it)).as_deref())?;
    let client = Client::new(&args.url, token, Duration::from_secs(args.deadline))?;
    let settings = Settings {
        private: &repo.private,
        environment: &args.env,
        rate: args.rate,
        once: args.once,
        out: args.out.as_ref().map(|it| open_for_append(ctx, it)).transpose()?,
    };
    let summary = watch(&folder, &client, settings, ctx.progress, &StopFlag::on_signals()?)?;
    Ok(Watched { folder: args.folder.clone(), environment: args.env.clone(), summary })
}

/// Opens the output file to append to it.
fn open_for_append(ctx: &Context<'_>, file: &std::path::Path) -> Result<fs::File> {
    let path = ctx.cwd.join(file);
    let invalid = || Error::usage(format!("`{}` is not a file name", file.display()));
    let name = path.file_name().and_then(|it| it.to_str()).ok_or_else(invalid)?;
    Root::create(path.parent().ok_or_else(invalid)?)?.open_append(&RepoPath::from_text(name)?)
}

impl Watched {
    /// Returns the number of classified images.
    fn answered(&self) -> u64 {
        self.summary.classes.values().sum()
    }
}

impl Report for Watched {
    fn json(&self) -> Value {
        json!({"folder": self.folder.display().to_string(), "environment": self.environment,
            "answered": self.answered(), "refused": self.summary.rejected, "classes": self.summary.classes})
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} classified", count(self.answered(), "image"))?;
        if self.summary.rejected > 0 {
            write!(f, ", {} rejected", self.summary.rejected)?;
        }
        let classes = self.summary.classes.iter().map(|(class, count)| format!("{count} {class}"));
        let classes: Vec<_> = classes.collect();
        if classes.is_empty() { Ok(()) } else { write!(f, ": {}", classes.join(", ")) }
    }
}
