//! `mlx traffic`: what a served model was asked, day by day.

use std::{collections::BTreeSet, fmt};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        report::{bytes, count, table},
    },
    error::{Error, Result},
    path::RepoPath,
    pointer::{Content, Shape},
    remote::{self, Access, Depth, Pushed, Remote, Wants},
    repo::Repo,
    store,
    time::Day,
    traffic::{self, Seal, spool},
    upkeep,
    workspace::Workspace,
};

/// Seal and list what served models were asked
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a day of traffic a dataset
    ///
    /// Writes traffic/ENV/DAY/MACHINE/ (requests.parquet, telemetry.parquet, pictures) and its pointer, and
    /// pushes it to the default remote if there is one. Days are UTC. Records that came late, of days before,
    /// go into the next seal. A day is sealed once.
    #[command(
        after_help = "Examples:\n  mlx traffic seal --day 2026-11-24\n  mlx traffic seal --day 2026-11-24 --env test --machine gate\n\n\
JSON: {\"day\", \"environment\", \"machine\", \"pointer\", \"digest\", \"records\", \"late\", \"pictures\", \"size\", \"already\", \"pushed\"}"
    )]
    Seal(SealArgs),
    /// List the days of an environment, sealed or waiting
    #[command(after_help = "Examples:\n  mlx traffic list\n  mlx traffic list --env test\n\n\
JSON: {\"environment\", \"days\": [{\"day\", \"machines\": [NAME…], \"records\", \"waiting\", \"labels\"}]}; records is null where \
they are not here")]
    List(ListArgs),
}

#[derive(clap::Args)]
pub struct SealArgs {
    /// The last day to seal
    #[arg(long)]
    day: String,
    /// The environment that served
    #[arg(long, default_value = "production")]
    env: String,
    /// What to call this machine; its host name without
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// The environment that served
    #[arg(long, default_value = "production")]
    env: String,
}

pub struct Done {
    day: Day,
    environment: String,
    seal: Seal,
    /// Where it went and what was sent, where there is a remote.
    pushed: Option<(String, Pushed)>,
}

pub struct Days {
    environment: String,
    rows: Vec<Row>,
}

struct Row {
    day: Day,
    machines: Vec<String>,
    /// None where the sealed tables are not here.
    records: Option<usize>,
    waiting: usize,
    labels: usize,
}

pub fn seal(ctx: &Context<'_>, args: &SealArgs) -> Result<Done> {
    let day: Day = args.day.parse()?;
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let seal = traffic::seal(&workspace, &args.env, day, args.machine.as_deref(), ctx.progress)?;
    upkeep::renew(&repo, ctx.progress)?;
    let pushed = push(ctx, &repo, &seal)
        .map_err(|it| Error::new(it.kind(), format!("{day} is sealed, but could not be pushed")).because(it))
        .map_err(|it| it.hint("the seal is kept: `mlx push` sends it"))?;
    Ok(Done { day, environment: args.env.clone(), seal, pushed })
}

/// Sends a seal to the default remote, if there is one.
fn push(ctx: &Context<'_>, repo: &Repo, seal: &Seal) -> Result<Option<(String, Pushed)>> {
    if repo.config.get("core.remote").is_none() {
        return Ok(None);
    }
    let remote = Remote::open(&repo.config.remote(None)?, Access::Write)?;
    let pointer = &seal.pointer;
    let wants = Wants { contents: vec![(pointer.path.clone(), pointer.content)], runs: Vec::new() };
    let pushed = remote::push(repo, &remote, &wants, ctx.progress)?;
    Ok(Some((remote.location, pushed)))
}

pub fn list(ctx: &Context<'_>, args: &ListArgs) -> Result<Days> {
    let repo = ctx.repo()?;
    let mut days: BTreeSet<Day> = spool::days(&repo.shared, &args.env)?.into_iter().collect();
    days.extend(traffic::sealed_days(&repo.files, &args.env)?);
    let row = |day: Day| -> Result<Row> {
        let seals = traffic::seals(&repo, &args.env, day)?;
        let name = |path: &RepoPath| crate::path::show(path.name());
        Ok(Row {
            day,
            machines: seals.iter().map(|it| name(&it.path)).collect(),
            records: traffic::sealed(&repo, &args.env, day).ok().map(|it| it.records.len()),
            waiting: spool::read(&repo.shared, &args.env, day)?.records.len(),
            labels: traffic::labels(&repo.files, &args.env, day)?.len(),
        })
    };
    Ok(Days { environment: args.env.clone(), rows: days.into_iter().map(row).collect::<Result<_>>()? })
}

/// Sees to it that the tables of sealed days are in the store; pictures are left where they are.
pub fn bring_tables(ctx: &Context<'_>, repo: &Repo, environment: &str, days: &[Day]) -> Result<()> {
    let mut missing = Wants::default();
    for day in days {
        if traffic::sealed(repo, environment, *day).is_err() {
            let seals = traffic::seals(repo, environment, *day)?;
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
            let content = Content { digest: entry.digest, files: 1, kind: Shape::File, size: entry.size };
            if entry.name.ends_with(b".parquet") {
                tables.contents.push((path.join(&entry.name)?, content));
            }
        }
    }
    remote::fetch(repo, &remote, &tables, Depth::Everything, ctx.progress).map(drop)
}

impl Report for Done {
    fn json(&self) -> Value {
        let Self { day, environment, seal, pushed } = self;
        let content = seal.pointer.content;
        json!({"day": day.to_string(), "environment": environment, "machine": seal.machine,
            "pointer": seal.pointer.file(), "digest": content.digest, "records": seal.records, "late": seal.late,
            "pictures": seal.pictures, "size": content.size, "already": seal.already,
            "pushed": pushed.as_ref().map(|it| &it.0)})
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { day, seal, pushed, .. } = self;
        if seal.already {
            write!(f, "{day} is sealed already: {}", seal.pointer.file())?;
        } else {
            let late = if seal.late > 0 { format!(" ({} late)", seal.late) } else { String::new() };
            let (records, pictures) =
                (count(seal.records as u64, "record"), count(seal.pictures as u64, "picture"));
            let size = bytes(seal.pointer.content.size);
            write!(f, "{day}: {records}{late}, {pictures}, {size}, {}", seal.pointer.content.digest.short())?;
        }
        if let Some((location, pushed)) = pushed.as_ref().filter(|it| it.1.objects > 0) {
            write!(f, "\nsent {} to {location}", bytes(pushed.bytes))?;
        }
        let folder = seal.pointer.path.parent().unwrap_or_default();
        if seal.already { Ok(()) } else { write!(f, "\nnext: git add {folder}") }
    }
}

impl Report for Days {
    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|it| {
            json!({"day": it.day.to_string(), "machines": it.machines, "records": it.records,
                "waiting": it.waiting, "labels": it.labels})
        });
        json!({"environment": self.environment, "days": rows.collect::<Vec<_>>()})
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return write!(f, "no traffic in `{}`", self.environment);
        }
        let row = |it: &Row| {
            let sealed = if it.machines.is_empty() { "no".to_owned() } else { it.machines.join(", ") };
            let records = it.records.map_or_else(|| "not here".to_owned(), |it| it.to_string());
            vec![it.day.to_string(), sealed, records, it.waiting.to_string(), it.labels.to_string()]
        };
        let head = ["day", "sealed", "records", "waiting", "labels"];
        write!(f, "{}", table(&head, self.rows.iter().map(row).collect()))
    }
}
