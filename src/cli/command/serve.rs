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
            follow::{self, Following},
            version::bring,
        },
        report::count,
    },
    deploy::{GONE, Limits, Options, Served, Service, client, serve},
    error::{Error, Result},
    fs,
    model::registry,
    repo::Repo,
    traffic::{self, Spool, spool},
};

/// Bytes of what cannot be decoded, at most, to be kept for whoever asks why.
const LARGEST_BROKEN: usize = 1 << 20;
/// Bytes of all of them in a day.
const BROKEN_A_DAY: u64 = 64 << 20;
/// How long the last records may take to the disk.
const LAST_WRITES: Duration = Duration::from_secs(3);

/// Answer requests with a registered version
///
/// REST of the Open Inference Protocol V2 with its binary extension for tensors, `POST /classify` for a JPEG or
/// PNG, `/metrics` for Prometheus, `/` for a person. Requests that come together are run together. SIGTERM and
/// Ctrl-C stop it after everything it took is answered; a second one ends that. A bearer token comes from `MLX_TOKEN` or `--token-file`;
/// without one it answers on a loopback address alone. Every request becomes a record that waits on this machine
/// for `mlx traffic seal`; the headers `X-Captured-At` (RFC 3339) and `X-Name` say more of a picture.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx serve pets@v0.1.0 --env test\n  mlx serve pets --port 9000 --batch 16 --wait 5\n  mlx serve --env production --follow\n\n\
JSON: {\"version\", \"environment\", \"address\", \"answers\": {STATUS: count}, \"recorded\", \"dropped\"}"
)]
pub struct Args {
    /// `pets@v0.1.0`; the newest of `pets` without a number; with --follow the model alone, if there are several
    #[arg(required_unless_present = "follow")]
    version: Option<String>,
    /// The environment it serves in
    #[arg(long, default_value = "test")]
    env: String,
    /// Serve what is released in the environment, and go along with every release and rollback
    #[arg(long)]
    follow: bool,
    /// Seconds between two looks at the Git remote
    #[arg(long, default_value_t = 10, requires = "follow", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: u64,
    /// The address to listen at
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port; 0 for any that is free
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A file whose first line is the token to ask for
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Let everybody ask, whatever the address
    #[arg(long)]
    no_auth: bool,
    /// Pictures run at once, at most
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Milliseconds that the first of a batch waits for others
    #[arg(long, default_value_t = 2)]
    wait: u64,
    /// Requests that may wait; more are refused with 503
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    queue: u16,
    /// Seconds until a request is given up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    deadline: u64,
    /// Megabytes of one request
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    largest: u16,
    /// Connections at once; more wait until one ends
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Million pixels of one picture
    #[arg(long, default_value_t = 50)]
    pixels: u64,
    /// Share of the pictures to keep beside the records, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    keep: f64,
    /// Record nothing
    #[arg(long)]
    no_traffic: bool,
    /// Where the package comes from, if it is not here
    #[arg(long)]
    remote: Option<String>,
}

pub struct Ended {
    version: String,
    environment: String,
    address: SocketAddr,
    answers: std::collections::BTreeMap<u32, u64>,
    recorded: u64,
    dropped: u64,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|it| (0.0..=1.0).contains(it));
    share.ok_or_else(|| "it is no number from 0 to 1".to_owned())
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Ended> {
    let repo = ctx.repo()?;
    traffic::check_environment(&args.env)?;
    let token = token(ctx, args)?;
    let limits =
        Limits { batch: args.batch.into(), wait: Duration::from_millis(args.wait), queue: args.queue.into() };
    let following = args.follow.then(|| Following {
        cwd: ctx.cwd.clone(),
        model: args.version.clone(),
        environment: args.env.clone(),
        every: Duration::from_secs(args.every),
        limits,
    });
    let version = match &following {
        Some(following) => follow::current(ctx, &repo, following)?.0,
        None => registry::require(&repo.git, args.version.as_deref().unwrap_or_default())?,
    };
    bring(ctx, &repo, &version, args.remote.as_deref())?;
    let served = Served::load(&repo, &version, limits)?;
    let largest = usize::from(args.largest) << 20;
    let options = Options {
        environment: args.env.clone(),
        address: (args.host, args.port).into(),
        token,
        deadline: Duration::from_secs(args.deadline),
        largest_body: largest,
        bodies: largest.max(256 << 20),
        pixels: args.pixels * 1_000_000,
        connections: args.connections.into(),
    };
    let service = Service::new(served, options);
    if let Some(following) = following {
        follow::follow(Arc::clone(&service), following)?;
    }
    if !args.no_traffic {
        service.record_into(spool(&repo, args)?);
    }
    let mut address = service.options.address;
    serve(&service, |bound| {
        address = bound;
        let (name, engine) = (version.name(), &service.live().engine);
        ctx.progress.note(&format!("serving {name} in {} at http://{bound} with {engine}", args.env));
    })?;
    let (recorded, dropped) = service.spool().map_or((0, 0), |it| written(ctx, it));
    let (environment, answers) = (args.env.clone(), service.counters.answers());
    Ok(Ended { version: service.live().name(), environment, address, answers, recorded, dropped })
}

/// Waits for the last records; what was taken and what of it is lost.
fn written(ctx: &Context<'_>, spool: &Spool) -> (u64, u64) {
    let left = spool.stop_within(LAST_WRITES);
    if left > 0 {
        ctx.progress.warn(&format!(
            "{} of traffic dropped: the disk, or whoever holds the lock, took longer than {} s",
            count(left, "record"),
            LAST_WRITES.as_secs()
        ));
    }
    if let Some(trouble) = spool.trouble() {
        ctx.progress.warn(&format!("some traffic was not recorded: {trouble}"));
    }
    (spool.recorded(), spool.dropped())
}

/// Where requests are recorded.
fn spool(repo: &Repo, args: &Args) -> Result<Spool> {
    let disk = repo.store.root().path().to_owned();
    let options =
        spool::Options { keep: args.keep, largest_broken: LARGEST_BROKEN, broken_a_day: BROKEN_A_DAY, disk };
    Spool::start(fs::Root::open(repo.shared.path())?, &args.env, options)
}

/// The token to ask for; none is fine where only this machine can ask.
fn token(ctx: &Context<'_>, args: &Args) -> Result<Option<String>> {
    let token = client::token(args.token_file.as_ref().map(|it| ctx.cwd.join(it)).as_deref())?;
    if token.is_none() && !args.host.is_loopback() && !args.no_auth {
        let error = Error::usage(format!("at {} anybody could ask", args.host));
        return Err(error.hint("give a token in MLX_TOKEN or --token-file, or say --no-auth"));
    }
    Ok(token)
}

impl Report for Ended {
    fn json(&self) -> Value {
        let answers: serde_json::Map<_, _> =
            self.answers.iter().map(|(code, count)| (code.to_string(), json!(count))).collect();
        json!({"version": self.version, "environment": self.environment,
            "address": self.address.to_string(), "answers": answers, "recorded": self.recorded,
            "dropped": self.dropped})
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever went away was given none.
        let given = self.answers.iter().filter(|it| *it.0 != u32::from(GONE));
        write!(f, "{} gave {}", self.version, count(given.map(|it| it.1).sum(), "answer"))
    }
}
