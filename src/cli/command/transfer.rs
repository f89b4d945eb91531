//! `push`, `fetch` and `pull`: between the store and a remote.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::checkout,
        report::{bytes, count},
    },
    error::{Kind, Result},
    path::RepoPath,
    pipeline::{contents_at, runs_at},
    remote::{self, Access, Depth, Fetched, Pushed, Remote, Wants},
    repo::Repo,
    upkeep,
    workspace::Workspace,
};

/// Send what a remote lacks
///
/// Contents first, then what names them; an interrupted push goes on where it stopped.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx push\n  mlx push --remote backup data/\n  mlx push --all-commits\n\n\
JSON: {\"remote\", \"objects\", \"packs\", \"bytes\"}"
)]
pub struct PushArgs {
    #[command(flatten)]
    which: Which,
}

/// Bring what the store lacks, without touching the workspace
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx fetch\n  mlx fetch --trees\n\nJSON: {\"remote\", \"objects\", \"requests\", \"bytes\"}"
)]
pub struct FetchArgs {
    #[command(flatten)]
    which: Which,
    /// Only the lists of folders: enough for status, diff and plans
    #[arg(long)]
    trees: bool,
}

/// Bring what the store lacks and make the workspace match
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  git pull && mlx pull\n  mlx pull data/\n\n\
JSON: {\"remote\", \"objects\", \"requests\", \"bytes\", \"checked_out\": [{\"path\", \"written\", \"removed\", \"folders\"}]}")]
pub struct PullArgs {
    #[command(flatten)]
    which: Which,
    /// Overwrite and delete even what is stored nowhere
    #[arg(short, long)]
    force: bool,
}

#[derive(clap::Args)]
struct Which {
    /// Only these
    paths: Vec<PathBuf>,
    /// Not the default remote but this one
    #[arg(short, long, value_name = "NAME")]
    remote: Option<String>,
    /// What any commit of any branch or tag names, too
    #[arg(long)]
    all_commits: bool,
}

pub struct Sent(String, Pushed);
pub struct Got(String, Fetched);
pub struct Pulled(Got, checkout::Done);

impl Which {
    fn wants(&self, ctx: &Context<'_>, workspace: &Workspace<'_>) -> Result<(Wants, Vec<RepoPath>)> {
        let paths = ctx.paths(workspace.repo, &self.paths)?;
        let mut wants = ctx.wants(workspace, &paths)?;
        if self.all_commits {
            let git = &workspace.repo.git;
            for commit in git.log(&git.tips()?)? {
                wants.contents.extend(contents_at(git, &commit.rev)?);
                wants.runs.extend(runs_at(git, &commit.rev)?);
            }
        }
        wants.contents.sort_by(|a, b| (&a.0, a.1.digest).cmp(&(&b.0, b.1.digest)));
        wants.contents.dedup();
        wants.runs.sort();
        wants.runs.dedup();
        Ok((wants, paths))
    }

    fn open(&self, repo: &Repo, access: Access) -> Result<Remote> {
        Remote::open(&repo.config.remote(self.remote.as_deref())?, access)
    }
}

pub fn push(ctx: &Context<'_>, args: &PushArgs) -> Result<Sent> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let (wants, _) = args.which.wants(ctx, &workspace)?;
    let remote = args.which.open(&repo, Access::Write)?;
    let sent = remote::push(&repo, &remote, &wants, ctx.progress)?;
    Ok(Sent(remote.location, sent))
}

pub fn fetch(ctx: &Context<'_>, args: &FetchArgs) -> Result<Got> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let (wants, _) = args.which.wants(ctx, &workspace)?;
    let remote = args.which.open(&repo, Access::Read)?;
    let depth = if args.trees { Depth::Trees } else { Depth::Everything };
    let got = remote::fetch(&repo, &remote, &wants, depth, ctx.progress)?;
    upkeep::renew(&repo, ctx.progress)?;
    Ok(Got(remote.location, got))
}

pub fn pull(ctx: &Context<'_>, args: &PullArgs) -> Result<Pulled> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let (wants, paths) = args.which.wants(ctx, &workspace)?;
    let remote = args.which.open(&repo, Access::Read)?;
    let got = remote::fetch(&repo, &remote, &wants, Depth::Everything, ctx.progress)?;
    let placed = checkout::place(ctx, &workspace, &paths, args.force)?;
    Ok(Pulled(Got(remote.location, got), placed))
}

/// Does something that reads trees; where one is missing, it is fetched from the default remote and the
/// thing done again.
pub fn with_trees<T>(ctx: &Context<'_>, workspace: &Workspace<'_>, act: impl Fn() -> Result<T>) -> Result<T> {
    with_trees_of(ctx, workspace, &|| Ok(Wants::default()), act)
}

/// As [`with_trees`], for what `more` names besides the workspace.
pub fn with_trees_of<T>(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    more: &dyn Fn() -> Result<Wants>,
    act: impl Fn() -> Result<T>,
) -> Result<T> {
    match act() {
        Err(error) if error.kind() == Kind::NotFound => {
            let repo = workspace.repo;
            let fetched =
                repo.config.remote(None).and_then(|it| Remote::open(&it, Access::Read)).and_then(|remote| {
                    let mut wants = ctx.wants(workspace, &[])?;
                    wants.runs.clear();
                    wants.contents.extend(more()?.contents);
                    remote::fetch(repo, &remote, &wants, Depth::Trees, ctx.progress)
                });
            // Without a remote the first error says it best.
            if fetched.is_ok_and(|it| it.objects > 0) { act() } else { Err(error) }
        }
        other => other,
    }
}

impl Report for Sent {
    fn json(&self) -> Value {
        json!({"remote": self.0, "objects": self.1.objects, "packs": self.1.packs, "bytes": self.1.bytes})
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(location, sent) = self;
        if sent.objects == 0 {
            return write!(f, "{location} has everything");
        }
        let (objects, packs) = (count(sent.objects, "object"), count(sent.packs, "pack"));
        write!(f, "sent {objects} in {packs}, {}, to {location}", bytes(sent.bytes))
    }
}

impl Report for Got {
    fn json(&self) -> Value {
        json!({"remote": self.0, "objects": self.1.objects, "requests": self.1.requests, "bytes": self.1.bytes})
    }
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(location, got) = self;
        if got.objects == 0 {
            return write!(f, "everything is here");
        }
        write!(f, "brought {}, {}, from {location}", count(got.objects, "object"), bytes(got.bytes))
    }
}

impl Report for Pulled {
    fn json(&self) -> Value {
        let mut value = self.0.json();
        value["checked_out"] = self.1.json()["checked_out"].take();
        value
    }
}

impl fmt::Display for Pulled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.0, self.1)
    }
}
