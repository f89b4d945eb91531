use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde_json::Value;

use crate::{
    cli::{
        Context, Report as Shown,
        command::version::bring,
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

/// Drive a served version as an application does, and write a report
///
/// Asks about every picture of the test segment of the version's own split (`--data test`), or of a folder with one
/// subfolder a class: one at a time, several at once, in a steady stream and as tensors. Every answer is compared
/// with what the package says when it is run here. Then come requests that are wrong, and a burst. Exit 10 if a
/// check fails. `report.json` is what `mlx approve --report` takes, `report.html` is for people. A bearer token
/// comes from `MLX_TOKEN` or `--token-file`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx apptest http://127.0.0.1:8080 --data test\n  mlx apptest https://pets.example --data test --version pets@v0.1.0 --out apptest\n\n\
JSON: {\"format\", \"version\", \"package\", \"when\", \"engine\", \"cores\", \"data\": {\"name\", \"digest\", \"pictures\", \"damaged\"},\n\
  \"checks\": [{\"name\", \"passed\", \"found\"}], \"accuracy\", \"precision\": {CLASS: number}, \"recall\", \"f1\",\n\
  \"confusion\": {CLASS: {CLASS: count}}, \"groups\": {\"class\": {CLASS: {\"accuracy\", \"pictures\"}}, \"folder\", \"largest_difference\"},\n\
  \"latency\": {\"mean\", \"p50\", \"p95\", \"p99\"}, \"throughput\", \"loop_throughput\", \"errors\", \"same_answers\": {\"compared\", \"different_classes\",\n\
  \"largest_difference\"}, \"wrong_requests\": [{\"name\", \"status\"}], \"burst\": {STATUS: count},\n\
  \"worst\": [{\"digest\", \"label\", \"class\", \"probability\"}]}"
)]
pub struct Args {
    /// Where the service answers: `http://127.0.0.1:8080`
    url: String,
    /// `test`, the test segment of the version's split, or a folder with one subfolder a class
    #[arg(long, value_name = "test|FOLDER")]
    data: String,
    /// The version that must be served; without, the one that is
    #[arg(long)]
    version: Option<String>,
    /// The folder to write report.json and report.html to
    #[arg(long, default_value = "apptest")]
    out: PathBuf,
    /// A file whose first line is the service's token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Seconds until a request counts as lost
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Where package and pictures come from, if they are not here
    #[arg(long)]
    remote: Option<String>,
}

pub struct Tested {
    report: Report,
    out: PathBuf,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Tested> {
    let repo = ctx.repo()?;
    let token = client::token(args.token_file.as_ref().map(|it| ctx.cwd.join(it)).as_deref())?;
    let client = Client::new(&args.url, token, Duration::from_secs(args.timeout))?;
    let version = apptest::served(&repo, &client, args.version.as_deref())?;
    bring(ctx, &repo, &version, args.remote.as_deref())?;
    let data = if args.data == "test" {
        let data = data::segment(&repo.git, &version)?;
        bring_pictures(ctx, &repo, &version, &data, args.remote.as_deref())?;
        data
    } else {
        data::folder(&args.data, &ctx.cwd.join(&args.data))?
    };
    let place = ctx.cwd.join(&args.out);
    if fs::is_file(&place) {
        let message = format!("`{}` is a file, and the report needs a folder", args.out.display());
        return Err(Error::new(Kind::Conflict, message).hint("name another with --out"));
    }
    let tested = apptest::test(&repo, &client, &version, &data, ctx.progress)?;
    fs::create_dir_all(&place)?;
    let root = Root::open(&place)?;
    let json = serde_json::to_string_pretty(&tested.report)
        .map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
    root.write(&RepoPath::from_text("report.json")?, format!("{json}\n").as_bytes(), Sync::Yes)?;
    root.write(&RepoPath::from_text("report.html")?, tested.html.as_bytes(), Sync::Yes)?;
    Ok(Tested { report: tested.report, out: args.out.clone() })
}

/// Sees to it that the pictures are in the store: what is not comes with all that was tracked together with it.
fn bring_pictures(
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
        let (top, content) = tracked(repo, version, path)?;
        contents.insert(top, content);
    }
    if contents.is_empty() {
        return Ok(());
    }
    let wants = Wants { contents: contents.into_iter().collect(), runs: Vec::new() };
    let remote = Remote::open(&repo.config.remote(remote)?, Access::Read)?;
    fetch(repo, &remote, &wants, Depth::Everything, ctx.progress).map(drop)
}

/// The tracked path that a picture lies in, as the version's commit has it.
fn tracked(repo: &Repo, version: &Version, path: &RepoPath) -> Result<(RepoPath, Content)> {
    let mut here = RepoPath::root();
    for name in path.components() {
        here = here.join(name)?;
        if let Some(content) = content_at(&repo.git, &repo.store, &version.tag.rev, &here)? {
            return Ok((here, content));
        }
    }
    let error = Error::not_found(format!("`{path}` is not tracked in the commit of `{}`", version.name()));
    Err(error.hint("`mlx add` the data and commit its pointer, or name a folder: `--data FOLDER`"))
}

impl Shown for Tested {
    fn json(&self) -> Value {
        serde_json::to_value(&self.report).unwrap_or_default()
    }

    fn found(&self) -> bool {
        !self.report.passed()
    }
}

impl fmt::Display for Tested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = &self.report;
        let word = if it.passed() { "passed" } else { "FAILED" };
        writeln!(f, "{} {word}, asked about {}", it.version, count(it.data.pictures, "picture"))?;
        let mark = |passed: bool| if passed { "holds" } else { "FAILS" }.to_owned();
        let row = |it: &apptest::Check| vec![mark(it.passed), it.name.clone(), it.found.clone()];
        writeln!(f, "{}", table(&["", "check", "found"], it.checks.iter().map(row).collect()))?;
        let latency = &it.latency;
        writeln!(
            f,
            "accuracy {:.4}; {:.1} ms each (99 of 100 within {:.1} ms); {:.0} pictures a second, {:.0} in a loop here",
            it.accuracy, latency.p50, latency.p99, it.throughput, it.loop_throughput
        )?;
        write!(f, "the report is in {}", self.out.join("report.html").display())
    }
}
