//! `mlx push`, `mlx fetch` and `mlx pull`: transfer objects between the store and a remote. Also holds the
//! retry that fetches missing trees for commands that only read them.

use std::{fmt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            checkout::{CheckoutReport, checkout_tracked},
            remote::warn_in_work_tree,
        },
        report::{bytes, count},
    },
    error::{Error, Kind, Result},
    git::Rev,
    maintenance,
    path::RepoPath,
    pipeline::{CommitRecords, Pipelines, StageId},
    pointer::{Content, Pointer},
    remote::{self, Access, Depth, Fetched, Pushed, Remote, Wants},
    repo::Repo,
    workspace::{Glob, Workspace, is_tracking_file},
};

/// Number of untracked inputs that a warning names.
const MAX_NAMED: usize = 10;

/// Upload objects that a remote lacks
///
/// Contents are sent before the trees that name them; an interrupted push resumes where it stopped.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx push\n  mlx push --remote backup data/\n  mlx push --all-commits\n\n\
JSON: {\"remote\", \"objects\", \"packs\", \"bytes\"}"
)]
pub struct PushArgs {
    #[command(flatten)]
    selection: Selection,
}

/// Download objects that the store lacks, without changing the workspace
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx fetch\n  mlx fetch --trees\n\nJSON: {\"remote\", \"objects\", \
    \"requests\", \"bytes\"}")]
pub struct FetchArgs {
    #[command(flatten)]
    selection: Selection,
    /// Download trees only, without file contents: enough for status, diff and plans
    #[arg(long)]
    trees: bool,
}

/// Download objects that the store lacks and check them out
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  git pull && mlx pull\n  mlx pull data/cats/1.jpg\n  mlx pull \
    'data/**/*.jpg'\n\n\
JSON: {\"remote\", \"objects\", \"requests\", \"bytes\", \"checked_out\": [{\"path\", \"written\", \
\"removed\", \"folders\"}]}")]
pub struct PullArgs {
    #[command(flatten)]
    selection: Selection,
    /// Overwrite and delete even files that are not stored anywhere
    #[arg(short, long)]
    force: bool,
}

#[derive(clap::Args)]
struct Selection {
    /// Paths to transfer (default: all); `fetch` and `pull` take parts of tracked folders, and patterns
    paths: Vec<PathBuf>,
    /// Remote to use instead of the default
    #[arg(short, long, value_name = "NAME")]
    remote: Option<String>,
    /// Also transfer what every commit of every branch and tag records
    #[arg(long)]
    all_commits: bool,
}

/// Report of `mlx push`: the remote's location, what was sent, and the error that left something out.
pub struct PushReport(String, Pushed, Option<Error>);

/// Report of `mlx fetch`: the remote's location, what was received, and the error that left something out.
pub struct FetchReport(String, Fetched, Option<Error>);

/// Report of `mlx pull`.
pub struct PullReport(FetchReport, CheckoutReport);

impl Selection {
    /// Returns what to transfer, sorted and without duplicates, and the error for what could not be read.
    fn wants(
        &self,
        ctx: &Context<'_>,
        workspace: &Workspace<'_>,
        paths: &[RepoPath],
    ) -> Result<(Wants, Option<Error>)> {
        let (mut wants, mut failure) = ctx.wants(workspace, paths)?;
        if self.all_commits {
            // As it is stored, like what `git push` sends.
            let git = workspace.repo.git.without_replacements();
            let (revs, mut problems) = git.all_commits()?;
            git.prefetch(&revs, is_tracking_file);
            let mut records = CommitRecords::new(&git);
            revs.iter().for_each(|rev| records.add(rev));
            let (contents, runs, errors) = records.finish();
            wants.contents.extend(contents);
            wants.runs.extend(runs);
            problems.extend(errors);
            failure = ctx.failure(failure.into_iter().chain(problems));
        }
        wants.contents.sort_by(|a, b| (&a.0, a.1.digest).cmp(&(&b.0, b.1.digest)));
        wants.contents.dedup();
        wants.runs.sort();
        wants.runs.dedup();
        Ok((wants, failure))
    }

    /// Fetches what is selected, and returns the selected paths, with the files that patterns match, and the
    /// error for what could not be read. Of tracked folders in which only parts are selected, fetches all
    /// trees, which comparing and recording need, and the contents of these parts.
    fn fetch(
        &self,
        ctx: &Context<'_>,
        workspace: &Workspace<'_>,
        remote: &Remote,
        depth: Depth,
    ) -> Result<(Fetched, Vec<RepoPath>, Option<Error>)> {
        let repo = workspace.repo;
        let (mut paths, patterns) = self.patterns(ctx, repo)?;
        if paths.is_empty() && patterns.is_empty() || self.all_commits {
            let (wants, failure) = self.wants(ctx, workspace, &paths)?;
            return Ok((remote::fetch(repo, remote, &wants, depth, ctx.progress)?, paths, failure));
        }
        let starts = patterns.iter().map(|(_, _, glob)| glob.start().clone());
        let chosen: Vec<_> = paths.iter().cloned().chain(starts).collect();
        let (wants, failure) = ctx.wants(workspace, &chosen)?;
        let trees = remote::fetch(repo, remote, &wants, Depth::Trees, ctx.progress)?;
        let pointers = wants.contents.into_iter().map(|(path, content)| Pointer { path, content });
        let parts = select_parts(workspace, &pointers.collect::<Vec<_>>(), &mut paths, &patterns)?;
        let parts = Wants { contents: parts, runs: Vec::new() };
        let files = remote::fetch(repo, remote, &parts, depth, ctx.progress)?;
        let fetched = Fetched {
            objects: trees.objects + files.objects,
            requests: trees.requests + files.requests,
            bytes: trees.bytes + files.bytes,
        };
        Ok((fetched, paths, failure))
    }

    /// Separates paths from patterns: names with a wildcard that do not exist here.
    fn patterns(&self, ctx: &Context<'_>, repo: &Repo) -> Result<(Vec<RepoPath>, Vec<Pattern>)> {
        let here = RepoPath::parse(".".as_ref(), &ctx.cwd, repo.root())?;
        let (mut plain, mut patterns) = (Vec::new(), Vec::new());
        for typed in &self.paths {
            let (path, text) = (ctx.path(repo, typed)?, typed.to_string_lossy());
            if text.contains(['*', '?', '[']) && repo.files.stat(&path)?.is_none() {
                patterns.push((text.clone().into_owned(), path, Glob::new(&text, &here)?));
            } else {
                plain.push(typed.clone());
            }
        }
        Ok((ctx.paths(repo, &plain)?, patterns))
    }

    fn open(&self, repo: &Repo, access: Access) -> Result<Remote> {
        Remote::open(&repo.config.remote(self.remote.as_deref())?, access)
    }
}

/// A pattern as typed, the path of that very name, and what the pattern matches.
type Pattern = (String, RepoPath, Glob);

/// Returns the contents of the selected parts of tracked paths, and adds the files that patterns match to
/// `paths`. A pattern that matches nothing is an error.
fn select_parts(
    workspace: &Workspace<'_>,
    pointers: &[Pointer],
    paths: &mut Vec<RepoPath>,
    patterns: &[Pattern],
) -> Result<Vec<(RepoPath, Content)>> {
    let mut parts = Vec::new();
    for pointer in pointers {
        if paths.iter().any(|path| pointer.path.is_within(path)) {
            parts.push((pointer.path.clone(), pointer.content));
            continue;
        }
        let inside = paths.iter().filter(|path| path.is_within(&pointer.path)).map(|path| (pointer, path));
        let inside: Vec<_> = inside.collect();
        workspace.check_parts(&inside)?;
        parts.extend(workspace.part_contents(&inside)?);
    }
    for (text, path, glob) in patterns {
        let wanted = |file: &RepoPath| glob.matches(file) || file == path;
        let mut matched = Vec::new();
        for pointer in pointers.iter().filter(|pointer| pointer.path.overlaps(glob.start())) {
            matched.extend(workspace.recorded_files(pointer, &wanted)?);
        }
        if matched.is_empty() {
            let error = Error::not_found(format!("no recorded file matches `{text}`"));
            return Err(error.hint("`mlx status` lists what is tracked; `**` crosses folders"));
        }
        paths.extend(matched.iter().map(|file| file.0.clone()));
        parts.extend(matched);
    }
    Ok(parts)
}

pub fn push(ctx: &Context<'_>, args: &PushArgs) -> Result<PushReport> {
    let repo = ctx.repo()?;
    let config = repo.config.remote(args.selection.remote.as_deref())?;
    warn_in_work_tree(ctx, &repo, &config.url)?;
    let (wants, failure) = wants_to_push(ctx, &repo, &args.selection)?;
    let remote = Remote::open(&config, Access::Write)?;
    let (sent, left_out) = remote::push(&repo, &remote, &wants, ctx.progress)?;
    let failure = ctx.failure(failure.into_iter().chain(left_out));
    Ok(PushReport(remote.location, sent, failure))
}

/// Returns what to push, and the error for what could not be read. The workspace, whose index may be large,
/// is not in memory any more afterwards.
fn wants_to_push(ctx: &Context<'_>, repo: &Repo, selection: &Selection) -> Result<(Wants, Option<Error>)> {
    let workspace = Workspace::open(repo)?;
    let paths = ctx.paths(repo, &selection.paths)?;
    let wants = selection.wants(ctx, &workspace, &paths)?;
    let pipelines = ctx.all_pipelines(&workspace)?;
    let stages: Vec<_> = pipelines.stages().map(|it| it.0).collect();
    warn_untracked(ctx, &pipelines, &stages)?;
    workspace.save_if_free();
    Ok(wants)
}

/// Names the inputs of stages that neither Git nor mlx tracks.
pub fn warn_untracked<'i>(
    ctx: &Context<'_>,
    pipelines: &Pipelines<'_, '_>,
    stages: impl IntoIterator<Item = &'i StageId>,
) -> Result<()> {
    let found = pipelines.untracked_inputs(stages)?;
    if found.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = found.iter().take(MAX_NAMED).map(|path| format!("`{path}`")).collect();
    let more = found.len() - named.len();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    ctx.progress.warn(&format!(
        "stages read what neither Git nor mlx tracks: {}{more}; other clones will lack it (`git add` or \
         `mlx add` it)",
        named.join(", ")
    ));
    Ok(())
}

pub fn fetch(ctx: &Context<'_>, args: &FetchArgs) -> Result<FetchReport> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let remote = args.selection.open(&repo, Access::Read)?;
    let depth = if args.trees { Depth::Trees } else { Depth::Everything };
    let (fetched, _, failure) = args.selection.fetch(ctx, &workspace, &remote, depth)?;
    maintenance::publish_needs(&repo, ctx.progress)?;
    Ok(FetchReport(remote.location, fetched, failure))
}

pub fn pull(ctx: &Context<'_>, args: &PullArgs) -> Result<PullReport> {
    let repo = ctx.repo()?;
    let workspace = Workspace::open(&repo)?;
    let remote = args.selection.open(&repo, Access::Read)?;
    let (fetched, paths, failure) = args.selection.fetch(ctx, &workspace, &remote, Depth::Everything)?;
    let checked_out = checkout_tracked(ctx, &workspace, &paths, args.force)?;
    Ok(PullReport(FetchReport(remote.location, fetched, failure), checked_out))
}

/// Runs an action that reads trees. If one is missing, fetches the workspace's trees from the default remote
/// and runs the action again.
pub fn with_trees<T>(ctx: &Context<'_>, workspace: &Workspace<'_>, act: impl Fn() -> Result<T>) -> Result<T> {
    with_trees_of(ctx, workspace, &|| Ok(Wants::default()), act)
}

/// Works like [`with_trees`], but also fetches the trees of `more`.
pub fn with_trees_of<T>(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    more: &dyn Fn() -> Result<Wants>,
    act: impl Fn() -> Result<T>,
) -> Result<T> {
    let before = workspace.repo.store.absent_reads();
    match act() {
        Err(error) if error.kind() == Kind::NotFound && workspace.repo.store.absent_reads() > before => {
            let repo = workspace.repo;
            let remote = repo.config.remote(None).and_then(|config| Remote::open(&config, Access::Read));
            let fetched = remote.and_then(|remote| {
                let (mut wants, _) = ctx.wants(workspace, &[])?;
                wants.runs.clear();
                wants.contents.extend(more()?.contents);
                wants.contents.extend(workspace.contents_in_conflict()?);
                remote::fetch(repo, &remote, &wants, Depth::Trees, ctx.progress)
            });
            // If nothing could be fetched, the first error is the most helpful one.
            if fetched.is_ok_and(|it| it.objects > 0) { act() } else { Err(error) }
        }
        other => other,
    }
}

/// Returns the content that a commit and its ancestors track. Files that cannot be read are left out.
pub fn wants_of_history(repo: &Repo, from: &Rev) -> Result<Wants> {
    let mut records = CommitRecords::new(&repo.git);
    repo.git.log(std::slice::from_ref(from))?.iter().for_each(|commit| records.add(&commit.rev));
    let (contents, _, errors) = records.finish();
    let other = errors.into_iter().find(|error| error.kind() != Kind::Corrupt);
    other.map_or(Ok(Wants { contents: contents.into_iter().collect(), runs: Vec::new() }), Err)
}

impl Report for PushReport {
    fn json(&self) -> Value {
        json!({"remote": self.0, "objects": self.1.objects, "packs": self.1.packs, "bytes": self.1.bytes})
    }

    fn failure(&self) -> Option<&Error> {
        self.2.as_ref()
    }
}

impl fmt::Display for PushReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(location, sent, failure) = self;
        if sent.objects == 0 && failure.is_some() {
            return Ok(());
        }
        if sent.objects == 0 {
            return write!(f, "nothing to push: {location} has every object");
        }
        let (objects, packs) = (count(sent.objects, "object"), count(sent.packs, "pack"));
        write!(f, "pushed {objects} in {packs}, {}, to {location}", bytes(sent.bytes))
    }
}

impl Report for FetchReport {
    fn json(&self) -> Value {
        json!({"remote": self.0, "objects": self.1.objects, "requests": self.1.requests,
            "bytes": self.1.bytes})
    }

    fn failure(&self) -> Option<&Error> {
        self.2.as_ref()
    }
}

impl fmt::Display for FetchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(location, fetched, failure) = self;
        if fetched.objects == 0 && failure.is_some() {
            return Ok(());
        }
        if fetched.objects == 0 {
            return write!(f, "nothing to fetch: the store has every object");
        }
        write!(f, "fetched {}, {}, from {location}", count(fetched.objects, "object"), bytes(fetched.bytes))
    }
}

impl Report for PullReport {
    fn json(&self) -> Value {
        let mut value = self.0.json();
        value["checked_out"] = self.1.json()["checked_out"].take();
        value
    }

    fn failure(&self) -> Option<&Error> {
        self.1.failure.as_ref().or(self.0.failure())
    }
}

impl fmt::Display for PullReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.0, self.1)
    }
}
