//! `mlx feedback`: records true labels for requests that a served model answered.

use std::{cell::RefCell, collections::BTreeMap, fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{traffic::fetch_tables, version::fetch_package},
        report::count,
    },
    digest::Digest,
    error::{Error, Result, WithContext},
    fs,
    model::{package, registry},
    path::RepoPath,
    repo::Repo,
    store,
    traffic::{self, FeedbackSummary, Record},
};

/// Record true labels of requests or images
///
/// The file names each by request id or image digest: CSV with the header `id,class` or `digest,class`, or
/// one JSON object per line with these keys. The labels are written to traffic/ENV/DAY/labels.tsv, to be
/// committed to Git. An existing label is replaced. If any line matches no request, nothing is changed.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx feedback truth.csv\n  mlx feedback checked.jsonl --env test\n\n\
JSON: {\"new\", \"changed\", \"same\", \"files\": [PATH…]}")]
pub struct Args {
    /// File with the labels, as CSV or JSON lines
    file: PathBuf,
    /// Environment that served the requests
    #[arg(long, default_value = "production")]
    env: String,
}

/// Counts of the recorded labels, and the files that hold them.
pub struct FeedbackReport {
    summary: FeedbackSummary,
    files: Vec<RepoPath>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<FeedbackReport> {
    let repo = ctx.repo()?;
    traffic::check_environment(&args.env)?;
    let name = crate::path::escape_bytes(args.file.as_os_str().as_encoded_bytes());
    let labels = traffic::parse_labels(&name, &fs::read_user_file(&ctx.cwd.join(&args.file))?)?;
    fetch_tables(ctx, &repo, &args.env, &traffic::sealed_days(&repo.files, &args.env)?)?;
    let cache: RefCell<BTreeMap<Digest, Vec<String>>> = RefCell::default();
    let summary = traffic::record_labels(&repo, &args.env, &labels, &|record| {
        if let Some(classes) = cache.borrow().get(&record.package) {
            return Ok(classes.clone());
        }
        let classes = classes(ctx, &repo, record)?;
        cache.borrow_mut().insert(record.package, classes.clone());
        Ok(classes)
    })?;
    let files = summary.days.iter().map(|it| traffic::labels_file(&args.env, *it)).collect::<Result<_>>()?;
    Ok(FeedbackReport { summary, files })
}

/// Returns the classes of the package that answered a request; fetches the package if necessary.
fn classes(ctx: &Context<'_>, repo: &Repo, record: &Record) -> Result<Vec<String>> {
    let path = RepoPath::from_text("model.toml")?;
    let read = || -> Result<Vec<String>> {
        let entry = store::entry_at(&repo.store, &record.package, &path)?;
        let missing = || Error::corrupt(format!("the package of `{}` has no model.toml", record.version));
        let bytes = repo.store.read(&entry.ok_or_else(missing)?.digest)?;
        Ok(package::parse(&format!("{}/model.toml", record.version), &bytes)?.classes)
    };
    read().or_else(|_| {
        fetch_package(ctx, repo, &registry::require(&repo.git, &record.version)?, None)?;
        read().context(|| format!("cannot read the classes of `{}`", record.version))
    })
}

impl Report for FeedbackReport {
    fn json(&self) -> Value {
        let FeedbackSummary { new, changed, same, .. } = self.summary;
        json!({"new": new, "changed": changed, "same": same, "files": self.files})
    }
}

impl fmt::Display for FeedbackReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FeedbackSummary { new, changed, same, .. } = self.summary;
        let all = (new + changed + same) as u64;
        write!(f, "{}: {new} new, {changed} changed, {same} unchanged", count(all, "label"))?;
        let files: Vec<_> = self.files.iter().map(ToString::to_string).collect();
        write!(f, "\nnext: git add {}", files.join(" "))
    }
}
