//! `mlx apptest`: tests a running service against its registered version and writes `report.json` and
//! `report.html`.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde_json::Value;

use crate::{
    cli::{
        Context, Report as CommandReport,
        command::version::fetch_package,
        report::{count, table},
    },
    deploy::{
        Client,
        apptest::{
            self, Report,
            data::{self, Data, Source},
        },
        client,
    },
    error::{Error, Kind, Result},
    fs::{self, Root, Sync},
    lineage::content_at,
    model::registry::Version,
    path::RepoPath,
    pointer::Content,
    remote::{Access, Depth, Remote, Wants, fetch},
    repo::Repo,
};

/// Test a served version like an application, and write a report
///
/// Sends every image of the test set of the version's own split (`--data test`), or of a folder with one
/// subfolder per class: sequentially, concurrently, in a steady stream and as tensors. Every response is
/// compared with the package run locally. Then come invalid requests and a burst. Exit code 10 if a check
/// fails. `mlx approve --report` takes the `report.json`; `report.html` is for people. A bearer token comes
/// from `MLX_TOKEN` or `--token-file`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx apptest http://127.0.0.1:8080 --data test\n  mlx apptest \
    https://pets.example --data test --version pets@v0.1.0 --out apptest\n\n\
JSON: {\"format\", \"version\", \"package\", \"when\", \"engine\", \"cores\", \"data\": {\"name\", \
\"digest\", \"pictures\", \"damaged\"},\n\
  \"checks\": [{\"name\", \"passed\", \"found\"}], \"accuracy\", \"precision\": {CLASS: number}, \
  \"recall\", \"f1\",\n\
  \"confusion\": {CLASS: {CLASS: count}}, \"groups\": {\"class\": {CLASS: {\"accuracy\", \"pictures\"}}, \
  \"folder\", \"largest_difference\"},\n\
  \"latency\": {\"mean\", \"p50\", \"p95\", \"p99\"}, \"throughput\", \"loop_throughput\", \"errors\", \
  \"same_answers\": {\"compared\", \"different_classes\",\n\
  \"largest_difference\"}, \"wrong_requests\": [{\"name\", \"status\"}], \"burst\": {STATUS: count},\n\
  \"worst\": [{\"digest\", \"label\", \"class\", \"probability\"}]}")]
pub struct Args {
    /// URL of the service, such as `http://127.0.0.1:8080`
    url: String,
    /// Images to send: `test` for the test set of the version's split, or a folder with a subfolder per class
    #[arg(long, value_name = "test|FOLDER")]
    data: String,
    /// Version that the service must serve (default: any registered version)
    #[arg(long)]
    version: Option<String>,
    /// Folder to write report.json and report.html to
    #[arg(long, default_value = "apptest")]
    out: PathBuf,
    /// File whose first line is the bearer token to send
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Request timeout, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Remote to fetch a missing package and missing images from, instead of the default one
    #[arg(long)]
    remote: Option<String>,
}

/// Report of the test, and the folder it was written to.
pub struct Tested {
    report: Report,
    out: PathBuf,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Tested> {
    let repo = ctx.repo()?;
    let token = client::token(args.token_file.as_ref().map(|it| ctx.cwd.join(it)).as_deref())?;
    let client = Client::new(&args.url, token, Duration::from_secs(args.timeout))?;
    let version = apptest::served_version(&repo, &client, args.version.as_deref())?;
    fetch_package(ctx, &repo, &version, args.remote.as_deref())?;
    let data = if args.data == "test" {
        let data = data::test_set(&repo.git, &version)?;
        fetch_images(ctx, &repo, &version, &data, args.remote.as_deref())?;
        data
    } else {
        data::folder(&args.data, &ctx.cwd.join(&args.data))?
    };
    let dir = ctx.cwd.join(&args.out);
    if fs::is_file(&dir) {
        let message = format!("`{}` is a file, but the report needs a folder there", args.out.display());
        return Err(Error::new(Kind::Conflict, message).hint("choose another folder with --out"));
    }
    let result = apptest::run(&repo, &client, &version, &data, ctx.progress)?;
    fs::create_dir_all(&dir)?;
    let root = Root::open(&dir)?;
    let json = serde_json::to_string_pretty(&result.report)
        .map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
    root.write(&RepoPath::from_text("report.json")?, format!("{json}\n").as_bytes(), Sync::Now)?;
    root.write(&RepoPath::from_text("report.html")?, result.html.as_bytes(), Sync::Now)?;
    Ok(Tested { report: result.report, out: args.out.clone() })
}

/// Fetches the images that are not in the store. A missing image is fetched with everything tracked by the
/// same pointer.
fn fetch_images(
    ctx: &Context<'_>,
    repo: &Repo,
    version: &Version,
    data: &Data,
    remote: Option<&str>,
) -> Result<()> {
    let mut contents: BTreeMap<RepoPath, Content> = BTreeMap::new();
    for case in data.cases.iter().filter(|it| !repo.store.contains(&it.digest)) {
        let Source::Store(path) = &case.source else { continue };
        if contents.keys().any(|it| path.is_within(it)) {
            continue;
        }
        let (top, content) = tracked_parent(repo, version, path)?;
        contents.insert(top, content);
    }
    if contents.is_empty() {
        return Ok(());
    }
    let wants = Wants { contents: contents.into_iter().collect(), runs: Vec::new() };
    let remote = Remote::open(&repo.config.remote(remote)?, Access::Read)?;
    fetch(repo, &remote, &wants, Depth::Everything, ctx.progress).map(drop)
}

/// Returns the tracked path that contains an image in the version's commit, and its content.
fn tracked_parent(repo: &Repo, version: &Version, path: &RepoPath) -> Result<(RepoPath, Content)> {
    let mut ancestor = RepoPath::root();
    for name in path.components() {
        ancestor = ancestor.join(name)?;
        if let Some(content) = content_at(&repo.git, &repo.store, &version.tag.rev, &ancestor)? {
            return Ok((ancestor, content));
        }
    }
    let error = Error::not_found(format!("`{path}` is not tracked in the commit of `{}`", version.name()));
    Err(error.hint("`mlx add` the data and commit its pointer, or pass a folder: `--data FOLDER`"))
}

impl CommandReport for Tested {
    fn json(&self) -> Value {
        serde_json::to_value(&self.report).unwrap_or_default()
    }

    fn has_findings(&self) -> bool {
        !self.report.passed()
    }
}

impl fmt::Display for Tested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        let status = |passed: bool| if passed { "passed" } else { "FAILED" }.to_owned();
        let (version, outcome) = (&report.version, status(report.passed()));
        writeln!(f, "{version} {outcome} with {}", count(report.data.images, "image"))?;
        let row =
            |check: &apptest::Check| vec![status(check.passed), check.name.clone(), check.found.clone()];
        writeln!(f, "{}", table(&["", "check", "found"], report.checks.iter().map(row).collect()))?;
        let latency = &report.latency;
        writeln!(
            f,
            "accuracy {:.4}; latency p50 {:.1} ms, p99 {:.1} ms; {:.0} images per second, {:.0} in a local \
            loop",
            report.accuracy, latency.p50, latency.p99, report.throughput, report.loop_throughput
        )?;
        write!(f, "report: {}", self.out.join("report.html").display())
    }
}
