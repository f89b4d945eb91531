//! `mlx traffic`: seals recorded requests into one dataset per day, and lists the days.
//!
//! Also fetches the tables of sealed days for other commands.

use std::{collections::BTreeSet, fmt};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count, table},
    },
    error::{Error, Result},
    maintenance,
    path::RepoPath,
    pointer::{Content, ContentKind},
    remote::{self, Access, Depth, Pushed, Remote, Wants},
    repo::Repo,
    store,
    time::Day,
    traffic::{self, SealSummary, spool},
    workspace::Workspace,
};

/// Seal and list the recorded requests of served models
#[derive(clap::Subcommand)]
pub enum Command {
    /// Seal a day of traffic into a dataset
    ///
    /// Writes traffic/ENV/DAY/MACHINE/ (requests.parquet, telemetry.parquet, pictures/) and its pointer, and
    /// pushes it to the default remote if one is configured. Days are UTC. Late records of earlier days are
    /// included. A day can be sealed only once per machine.
    #[command(
        after_help = "Examples:\n  mlx traffic seal --day 2026-11-24\n  mlx traffic seal --day 2026-11-24 \
        --env test --machine gate\n\n\
JSON: {\"day\", \"environment\", \"machine\", \"pointer\", \"digest\", \"records\", \"late\", \
\"pictures\", \"size\", \"already\", \"pushed\"}"
    )]
    Seal(SealArgs),
    /// List the days with traffic in an environment, sealed or not yet sealed
    #[command(after_help = "Examples:\n  mlx traffic list\n  mlx traffic list --env test\n\n\
JSON: {\"environment\", \"days\": [{\"day\", \"machines\": [NAME…], \"records\", \"waiting\", \
\"labels\"}]}; records is null if \
the sealed tables are not in the store")]
    List(ListArgs),
}

#[derive(clap::Args)]
pub struct SealArgs {
    /// Last day to seal, such as 2026-11-24; unsealed records of earlier days are included
    #[arg(long)]
    day: String,
    /// Environment that served the requests
    #[arg(long, default_value = "production")]
    env: String,
    /// Name of this machine in the dataset (default: its host name)
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// Environment that served the requests
    #[arg(long, default_value = "production")]
    env: String,
}

/// Result of a seal.
pub struct SealReport {
    day: Day,
    environment: String,
    seal: SealSummary,
    /// Location of the remote and what was sent to it; `None` if no remote is configured.
    pushed: Option<(String, Pushed)>,
}

/// Days of an environment.
pub struct DayList {
    environment: String,
    rows: Vec<Row>,
}

struct Row {
    day: Day,
    machines: Vec<String>,
    /// Number of sealed records; `None` if the sealed tables are not in the store.
    records: Option<usize>,
    /// Number of records not yet sealed.
    waiting: usize,
    labels: usize,
}

pub fn seal(ctx: &Context<'_>, args: &SealArgs) -> Result<SealReport> {
    let day: Day = args.day.parse()?;
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let seal = traffic::seal(&workspace, &args.env, day, args.machine.as_deref(), ctx.progress)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    let pushed = push(ctx, &repo, &seal)
        .map_err(|cause| {
            Error::new(cause.kind(), format!("{day} is sealed, but not pushed")).with_source(cause)
        })
        .map_err(|it| it.hint("the seal is stored on this machine: `mlx push` uploads it"))?;
    Ok(SealReport { day, environment: args.env.clone(), seal, pushed })
}

/// Pushes a seal to the default remote, if one is configured.
fn push(ctx: &Context<'_>, repo: &Repo, seal: &SealSummary) -> Result<Option<(String, Pushed)>> {
    if repo.config.get("core.remote").is_none() {
        return Ok(None);
    }
    let remote = Remote::open(&repo.config.remote(None)?, Access::Write)?;
    let pointer = &seal.pointer;
    let wants = Wants { contents: vec![(pointer.path.clone(), pointer.content)], runs: Vec::new() };
    let pushed = remote::push_all(repo, &remote, &wants, ctx.progress)?;
    Ok(Some((remote.location, pushed)))
}

pub fn list(ctx: &Context<'_>, args: &ListArgs) -> Result<DayList> {
    let repo = ctx.repo()?;
    let mut days: BTreeSet<Day> = spool::days(&repo.shared, &args.env)?.into_iter().collect();
    days.extend(traffic::sealed_days(&repo.files, &args.env)?);
    let row = |day: Day| -> Result<Row> {
        let seals = traffic::seal_pointers(&repo, &args.env, day)?;
        let name = |path: &RepoPath| crate::path::escape_bytes(path.name());
        Ok(Row {
            day,
            machines: seals.iter().map(|it| name(&it.path)).collect(),
            records: traffic::read_sealed(&repo, &args.env, day).ok().map(|it| it.records.len()),
            waiting: spool::read(&repo.shared, &args.env, day)?.records.len(),
            labels: traffic::read_labels(&repo.files, &args.env, day)?.len(),
        })
    };
    Ok(DayList { environment: args.env.clone(), rows: days.into_iter().map(row).collect::<Result<_>>()? })
}

/// Fetches the tables of sealed days that are not in the store. Images are not fetched.
pub fn fetch_tables(ctx: &Context<'_>, repo: &Repo, environment: &str, days: &[Day]) -> Result<()> {
    let mut missing = Wants::default();
    for day in days {
        if traffic::read_sealed(repo, environment, *day).is_err() {
            let seals = traffic::seal_pointers(repo, environment, *day)?;
            missing.contents.extend(seals.into_iter().map(|it| (it.path, it.content)));
        }
    }
    if missing.contents.is_empty() {
        return Ok(());
    }
    let remote = Remote::open(&repo.config.remote(None)?, Access::Read)?;
    remote::fetch(repo, &remote, &missing, Depth::Trees, ctx.progress)?;
    let mut tables = Wants::default();
    for (path, content) in &missing.contents {
        for entry in store::entries(&repo.store, &content.digest)?.into_iter().filter(|it| it.files == 1) {
            let content =
                Content { digest: entry.digest, files: 1, kind: ContentKind::File, size: entry.size };
            if entry.name.ends_with(b".parquet") {
                tables.contents.push((path.join(&entry.name)?, content));
            }
        }
    }
    remote::fetch(repo, &remote, &tables, Depth::Everything, ctx.progress).map(drop)
}

impl Report for SealReport {
    fn json(&self) -> Value {
        let Self { day, environment, seal, pushed } = self;
        let content = seal.pointer.content;
        json!({"day": day.to_string(), "environment": environment, "machine": seal.machine,
            "pointer": seal.pointer.file(), "digest": content.digest, "records": seal.records,
            "late": seal.late,
            "pictures": seal.images, "size": content.size, "already": seal.already_sealed,
            "pushed": pushed.as_ref().map(|it| &it.0)})
    }
}

impl fmt::Display for SealReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { day, seal, pushed, .. } = self;
        if seal.already_sealed {
            write!(f, "{day} is already sealed: {}", seal.pointer.file())?;
        } else {
            let late = if seal.late > 0 { format!(" ({} late)", seal.late) } else { String::new() };
            let (records, images) =
                (count(seal.records as u64, "record"), count(seal.images as u64, "image"));
            let size = bytes(seal.pointer.content.size);
            write!(f, "{day}: {records}{late}, {images}, {size}, {}", seal.pointer.content.digest.short())?;
        }
        if let Some((location, pushed)) = pushed.as_ref().filter(|it| it.1.objects > 0) {
            write!(f, "\npushed {} to {location}", bytes(pushed.bytes))?;
        }
        let folder = seal.pointer.path.parent().unwrap_or_default();
        if seal.already_sealed { Ok(()) } else { write!(f, "\nnext: git add {folder}") }
    }
}

impl Report for DayList {
    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({"day": row.day.to_string(), "machines": row.machines, "records": row.records,
                "waiting": row.waiting, "labels": row.labels})
        });
        json!({"environment": self.environment, "days": rows.collect::<Vec<_>>()})
    }
}

impl fmt::Display for DayList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return write!(f, "no traffic in `{}`", self.environment);
        }
        let row = |row: &Row| {
            let sealed = if row.machines.is_empty() { "-".to_owned() } else { row.machines.join(", ") };
            let records = row.records.map_or_else(|| "not fetched".to_owned(), |it| it.to_string());
            vec![row.day.to_string(), sealed, records, row.waiting.to_string(), row.labels.to_string()]
        };
        let head = ["day", "sealed by", "records", "unsealed", "labels"];
        write!(f, "{}", table(&head, self.rows.iter().map(row).collect()))
    }
}
