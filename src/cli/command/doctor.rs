//! `mlx doctor`: checks this machine's setup: Git, inference engine, free disk space, and the kinds of links
//! that the file system supports between store and workspace.

use std::fmt;

use serde_json::{Value, json};

use crate::{
    cli::{Context, Report, report::bytes},
    error::Result,
    fs::{self, LinkKind, Mode, Root, Sync, link_into},
    git::Git,
    model::engine,
    path::RepoPath,
    repo::Repo,
};

/// Check this machine's setup
///
/// Reports the inference engine, the Git version, the free disk space and, in a repository, which links its
/// file system supports.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx doctor\n\nJSON: {\"mlx\", \"git\", \"engine\", \"library\", \"links\": \
    [text…], \"free\", \"cache\", \"problems\": [text…]}"
)]
pub struct Args {}

/// Report of `mlx doctor`.
pub struct Findings {
    git: Option<String>,
    engine: String,
    library: Option<String>,
    /// Supported links.
    links: Vec<LinkKind>,
    /// Free bytes on the disk of the cache.
    free: Option<u64>,
    /// Folder of the store; none outside a repository.
    cache: Option<String>,
    problems: Vec<String>,
}

pub fn run(ctx: &Context<'_>, _: &Args) -> Result<Findings> {
    let mut problems = Vec::new();
    let repo = ctx.repo().map_err(|error| problems.push(error.chain_text())).ok();
    let library = engine::locate(repo.as_ref()).unwrap_or_else(|error| {
        problems.push(error.chain_text());
        None
    });
    let engine = library
        .as_ref()
        .map_or_else(|| "rten (built in)".to_owned(), |library| format!("ONNX Runtime {}", library.version));
    let git = Git::git_version();
    if git.is_none() {
        problems.push("`git` is not in PATH".to_owned());
    }
    let links = repo.as_ref().map(links).transpose()?.unwrap_or_default();
    if repo.as_ref().map(can_exchange).transpose()? == Some(false) {
        problems.push(
            "this file system cannot exchange two files in one step: a file that is saved at the moment in \
             which `mlx checkout` replaces it may be lost"
                .to_owned(),
        );
    }
    let cache = repo.as_ref().map(|it| it.store.root().path().to_owned());
    let free = fs::free_space(cache.as_deref().unwrap_or(&ctx.cwd));
    if free.is_some_and(|free| free < 1_000_000_000) {
        problems.push("less than 1 GB is free on the disk of the cache".to_owned());
    }
    let library = library.map(|it| it.path.display().to_string());
    let cache = cache.map(|it| it.display().to_string());
    Ok(Findings { git, engine, library, links, free, cache, problems })
}

/// Returns true if the file system of the workspace can exchange two files in one step, by trying it.
fn can_exchange(repo: &Repo) -> Result<bool> {
    // In the worktree's own Git folder, which is on the same file system but not visible in the workspace.
    Root::open(repo.private.path())?.create_dir(&RepoPath::from_text("tmp")?)?.can_exchange()
}

/// Returns the kinds of links that can place a file from the store in the workspace, by trying each.
fn links(repo: &Repo) -> Result<Vec<LinkKind>> {
    let store = repo.store.root();
    let trial = RepoPath::from_text("tmp/trial")?;
    store.write(&trial, b"trial", Sync::Later)?;
    // The trial files go into the worktree's own Git folder, which is on the workspace's file system but not
    // visible in it.
    let dir = Root::open(repo.private.path())?.create_dir(&RepoPath::from_text("tmp")?)?;
    let mut supported = Vec::new();
    for link in [LinkKind::Reflink, LinkKind::Hardlink, LinkKind::Symlink] {
        if link_into(store, &trial, &dir, b"tried", Mode::Plain, &[link])?.is_some() {
            supported.push(link);
        }
        dir.remove(b"tried")?;
    }
    store.remove(&trial)?;
    supported.push(LinkKind::Copy);
    Ok(supported)
}

impl Report for Findings {
    fn json(&self) -> Value {
        json!({"mlx": env!("CARGO_PKG_VERSION"), "git": self.git, "engine": self.engine,
            "library": self.library,
            "links": self.links, "free": self.free, "cache": self.cache, "problems": self.problems})
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "mlx      {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "git      {}", self.git.as_deref().unwrap_or("not found"))?;
        let library = self.library.as_ref().map(|it| format!(" ({it})")).unwrap_or_default();
        writeln!(f, "engine   {}{library}", self.engine)?;
        if let Some(cache) = &self.cache {
            let links: Vec<_> = self.links.iter().map(ToString::to_string).collect();
            writeln!(f, "links    {}", links.join(", "))?;
            writeln!(f, "cache    {cache}")?;
        }
        writeln!(f, "free     {}", self.free.map_or_else(|| "unknown".to_owned(), bytes))?;
        self.problems.iter().try_for_each(|it| writeln!(f, "problem  {it}"))
    }
}
