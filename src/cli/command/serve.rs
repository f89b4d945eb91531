//! `mlx serve`: serves a registered version over HTTP and records its traffic.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            follow::{self, FollowOptions},
            version::fetch_package,
        },
        report::count,
    },
    deploy::{BatchLimits, CLIENT_CLOSED, Options, ServedModel, Service, client, serve},
    error::{Error, Result},
    fs,
    model::registry,
    repo::Repo,
    traffic::{self, Spool, spool},
};

/// Largest undecodable file in bytes that is kept for diagnosis.
const MAX_DAMAGED_SIZE: usize = 1 << 20;
/// Total size in bytes of undecodable files kept per day.
const MAX_DAMAGED_PER_DAY: u64 = 64 << 20;
/// Time limit for writing the last records at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Serve a registered version over HTTP
///
/// The service implements the Open Inference Protocol V2 (REST) with its binary tensor extension, `POST
/// /classify` for a JPEG or PNG, `/metrics` for Prometheus, and a status page at `/`. Concurrent requests are
/// batched. SIGTERM and Ctrl-C stop it after all accepted requests are answered; a second signal ends that
/// wait. The bearer token that clients must send comes from `MLX_TOKEN` or `--token-file`; without one, the
/// service listens on loopback addresses only. Every request is recorded on this machine until `mlx traffic
/// seal` seals its day; the headers `X-Captured-At` (RFC 3339) and `X-Name` add the capture time and a name
/// to the record of an image.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx serve pets@v0.1.0 --env test\n  mlx serve pets --port 9000 --batch 16 \
    --batch-wait 5\n  mlx serve --env production --follow\n\n\
JSON: {\"version\", \"environment\", \"address\", \"answers\": {STATUS: count}, \"recorded\", \"dropped\"}"
)]
pub struct Args {
    /// Version, such as `pets@v0.1.0`, or a model for its newest version; with --follow, the model to follow
    #[arg(required_unless_present = "follow")]
    version: Option<String>,
    /// Environment to serve in
    #[arg(long, default_value = "test")]
    env: String,
    /// Serve the version released in the environment, and switch with every release and rollback
    #[arg(long)]
    follow: bool,
    /// Interval between checks of the Git remote, in seconds
    #[arg(long, alias = "every", default_value_t = 10, requires = "follow",
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    poll: u64,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// File whose first line is the bearer token that clients must send
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Accept requests without a token on any address
    #[arg(long)]
    no_auth: bool,
    /// Largest number of images in one batch
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Longest time that a request waits for others of its batch, in milliseconds
    #[arg(long, alias = "wait", default_value_t = 2)]
    batch_wait: u64,
    /// Largest number of waiting requests; more are rejected with 503
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    queue: u16,
    /// Request timeout, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    deadline: u64,
    /// Largest request body, in MiB
    #[arg(long, alias = "largest", default_value_t = 64,
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_body: u16,
    /// Largest number of connections; more wait until one closes
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Largest image, in megapixels
    #[arg(long, alias = "pixels", default_value_t = 50)]
    max_megapixels: u64,
    /// Share of images to keep with the records, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    keep: f64,
    /// Do not record requests
    #[arg(long)]
    no_traffic: bool,
    /// Remote to fetch a missing package from, instead of the default one
    #[arg(long)]
    remote: Option<String>,
}

/// Counts of a service that has ended.
pub struct ServeReport {
    version: String,
    environment: String,
    address: SocketAddr,
    /// Number of responses by status.
    answers: std::collections::BTreeMap<u32, u64>,
    recorded: u64,
    dropped: u64,
}

/// Parses a number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|it| (0.0..=1.0).contains(it));
    share.ok_or_else(|| "it must be a number from 0 to 1".to_owned())
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<ServeReport> {
    let repo = ctx.repo()?;
    traffic::check_environment(&args.env)?;
    let token = token(ctx, args)?;
    let limits = BatchLimits {
        max_batch: args.batch.into(),
        max_wait: Duration::from_millis(args.batch_wait),
        queue: args.queue.into(),
    };
    let follow_options = args.follow.then(|| FollowOptions {
        cwd: ctx.cwd.clone(),
        model: args.version.clone(),
        environment: args.env.clone(),
        poll: Duration::from_secs(args.poll),
        limits,
    });
    let version = match &follow_options {
        Some(options) => follow::released_version(ctx, &repo, options)?.0,
        None => registry::require(&repo.git, args.version.as_deref().unwrap_or_default())?,
    };
    fetch_package(ctx, &repo, &version, args.remote.as_deref())?;
    let served = ServedModel::load(&repo, &version, limits)?;
    let max_body = usize::from(args.max_body) << 20;
    let options = Options {
        environment: args.env.clone(),
        address: (args.host, args.port).into(),
        token,
        deadline: Duration::from_secs(args.deadline),
        max_body,
        body_memory: max_body.max(256 << 20),
        max_pixels: args.max_megapixels * 1_000_000,
        max_connections: args.connections.into(),
    };
    let service = Service::new(served, options);
    if let Some(options) = follow_options {
        follow::follow(Arc::clone(&service), options)?;
    }
    if !args.no_traffic {
        service.record_into(spool(&repo, args)?);
    }
    let mut address = service.options.address;
    serve(&service, |bound| {
        address = bound;
        let (name, engine) = (version.name(), &service.current().engine);
        ctx.progress.note(&format!("serving {name} in {} at http://{bound} with {engine}", args.env));
    })?;
    let (recorded, dropped) = service.spool().map_or((0, 0), |it| finish_recording(ctx, it));
    let (environment, answers) = (args.env.clone(), service.counters.responses());
    Ok(ServeReport { version: service.current().name(), environment, address, answers, recorded, dropped })
}

/// Waits for the last records to be written. Returns the numbers of recorded and dropped requests.
fn finish_recording(ctx: &Context<'_>, spool: &Spool) -> (u64, u64) {
    let left = spool.stop_within(FLUSH_TIMEOUT);
    if left > 0 {
        ctx.progress.warn(&format!(
            "dropped {}: the disk or the holder of the traffic lock took longer than {} s",
            count(left, "traffic record"),
            FLUSH_TIMEOUT.as_secs()
        ));
    }
    if let Some(trouble) = spool.last_error() {
        ctx.progress.warn(&format!("some traffic was not recorded: {trouble}"));
    }
    (spool.recorded(), spool.dropped())
}

/// Starts the spool that requests are recorded into.
fn spool(repo: &Repo, args: &Args) -> Result<Spool> {
    let disk = repo.store.root().path().to_owned();
    let options = spool::Options {
        keep_share: args.keep,
        max_undecodable_size: MAX_DAMAGED_SIZE,
        max_undecodable_per_day: MAX_DAMAGED_PER_DAY,
        disk,
    };
    Spool::start(fs::Root::open(repo.shared.path())?, &args.env, options)
}

/// Returns the token that clients must send. Without one, the address must be a loopback address.
fn token(ctx: &Context<'_>, args: &Args) -> Result<Option<String>> {
    let token = client::token(args.token_file.as_ref().map(|it| ctx.cwd.join(it)).as_deref())?;
    if token.is_none() && !args.host.is_loopback() && !args.no_auth {
        let error = Error::usage(format!("a token is required to listen on `{}`", args.host));
        return Err(error.hint(
            "pass a token in `MLX_TOKEN` or with --token-file, or accept all requests with --no-auth",
        ));
    }
    Ok(token)
}

impl Report for ServeReport {
    fn json(&self) -> Value {
        let answers: serde_json::Map<_, _> =
            self.answers.iter().map(|(code, count)| (code.to_string(), json!(count))).collect();
        json!({"version": self.version, "environment": self.environment,
            "address": self.address.to_string(), "answers": answers, "recorded": self.recorded,
            "dropped": self.dropped})
    }
}

impl fmt::Display for ServeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Requests whose client disconnected were not answered.
        let answered = self.answers.iter().filter(|(code, _)| **code != u32::from(CLIENT_CLOSED));
        write!(f, "{} answered {}", self.version, count(answered.map(|it| it.1).sum(), "request"))
    }
}
