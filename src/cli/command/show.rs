//! `mlx show`: shows metrics or parameters of one or more versions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use clap::ValueEnum;
use serde_json::{Map, Value as Json};

use crate::{
    cli::{Context, Report, report::table},
    document::{Names, Path, Value, leaf_paths},
    error::{Error, Result, WithContext},
    metrics::{Documents, Reader, Reading, Revision, Topic},
    path::RepoPath,
};

/// Show metrics or parameters
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx show metrics\n  mlx show params HEAD~1 workspace\n  mlx show metrics \
    --all-commits\n\n\
JSON: {FILE: {nested keys: value}} for the workspace; with revisions {REV: {FILE: …}}, where `workspace` \
is a name too. A number that most readers of JSON would round, such as an integer beyond 64 bits, is a \
text. A file that cannot be read is left out, and named by `error`, {\"kind\", \"message\", \"hint\"}"
)]
pub struct Args {
    /// Values to show
    #[arg(value_enum, default_value = "metrics")]
    topic: TopicArg,
    /// Revisions to show (default: the workspace)
    revisions: Vec<String>,
    /// Show the workspace, HEAD and all its ancestors
    #[arg(long, conflicts_with = "revisions")]
    all_commits: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TopicArg {
    Metrics,
    Params,
}

pub struct Output {
    versions: Vec<(String, Documents)>,
    /// True if no revision was requested: the workspace alone, without its name.
    workspace_only: bool,
    failure: Option<Error>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Output> {
    let repo = ctx.repo()?;
    let topic = match args.topic {
        TopicArg::Metrics => Topic::Metrics,
        TopicArg::Params => Topic::Params,
    };
    let reader = Reader::new(&repo, &ctx.cwd)?;
    let mut revisions: Vec<(String, Revision)> = Vec::new();
    for name in &args.revisions {
        revisions.push((name.clone(), parse_revision(&repo.git, name)?));
    }
    if revisions.is_empty() {
        revisions.push(("workspace".to_owned(), Revision::Workspace));
    }
    let mut versions = Vec::new();
    let mut faults = Vec::new();
    for (name, revision) in revisions {
        let reading = reader.read(topic, &revision)?;
        versions.push((name.clone(), reading.documents));
        faults.extend(reading.faults.into_values().map(|error| in_revision(error, &name, &revision)));
    }
    if args.all_commits {
        let commits = repo.git.head().map_or_else(|| Ok(Vec::new()), |head| repo.git.log(&[head]))?;
        let mut told = BTreeSet::new();
        for commit in commits {
            let name = commit.rev.to_string();
            let Reading { documents, faults, .. } = reader.read(topic, &Revision::Commit(commit.rev))?;
            // A past version can no longer be corrected: it is named once, and is not a failure.
            for error in faults.into_values().filter(|error| told.insert(error.chain_text())) {
                ctx.progress.warn(&format!("{} (in {})", error.chain_text(), short(&name)));
            }
            versions.push((name, documents));
        }
    }
    let workspace_only = args.revisions.is_empty() && !args.all_commits;
    Ok(Output { versions, workspace_only, failure: combine(faults) })
}

/// Names the revision in which a file cannot be read.
pub fn in_revision(error: Error, name: &str, revision: &Revision) -> Error {
    match revision {
        Revision::Workspace => error,
        Revision::Commit(_) => {
            Err::<(), _>(error).context(|| format!("in `{name}`")).expect_err("it is an error")
        }
    }
}

/// Makes one error of several, with the kind and the hint of the first.
pub fn combine(errors: Vec<Error>) -> Option<Error> {
    let first = errors.first()?;
    let texts: BTreeSet<_> = errors.iter().map(Error::chain_text).collect();
    let error = Error::new(first.kind(), texts.into_iter().collect::<Vec<_>>().join("; "));
    Some(match first.hint_text() {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

/// Parses a revision; `workspace` names the workspace.
pub fn parse_revision(git: &crate::git::Git, name: &str) -> Result<Revision> {
    if name == "workspace" { Ok(Revision::Workspace) } else { git.resolve(name).map(Revision::Commit) }
}

fn object(documents: &Documents) -> Json {
    Json::Object(documents.iter().map(|(file, document)| (file.to_text(), document.to_json())).collect())
}

impl Report for Output {
    fn json(&self) -> Json {
        if self.workspace_only {
            return object(&self.versions[0].1);
        }
        let rows = self.versions.iter().map(|(name, documents)| (name.clone(), object(documents)));
        Json::Object(rows.collect::<Map<_, _>>())
    }

    fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }
}

/// Values of all versions: file and name of a value → number of the version → text.
type Rows = BTreeMap<(String, String), BTreeMap<usize, String>>;

impl Output {
    fn rows(&self) -> Rows {
        let mut leaves: BTreeMap<&RepoPath, Vec<(usize, Path, &Value)>> = BTreeMap::new();
        for (at, (_, documents)) in self.versions.iter().enumerate() {
            for (file, value) in documents {
                let found = leaf_paths(value).into_iter().map(|(path, leaf)| (at, path, leaf));
                leaves.entry(file).or_default().extend(found);
            }
        }
        let mut rows = Rows::new();
        for (file, leaves) in leaves {
            let names = Names::of(leaves.iter().map(|(_, path, _)| path));
            for (at, path, leaf) in &leaves {
                let row = rows.entry((file.to_text(), names.name(path))).or_default();
                row.insert(*at, format_value(leaf));
            }
        }
        rows
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows();
        if rows.is_empty() && self.failure.is_some() {
            return Ok(());
        }
        if rows.is_empty() {
            return f.write_str(
                "nothing to show: no stage in `mlx.toml` declares such files, or they do not exist yet",
            );
        }
        // One row per version if there are many, one column per version if there are few.
        let names: Vec<_> = self.versions.iter().map(|(name, _)| short(name)).collect();
        if names.len() > 4 {
            let heads = headings(&rows);
            let head: Vec<_> = std::iter::once("revision").chain(heads.iter().map(String::as_str)).collect();
            let cells = |at: usize| rows.values().map(move |row| row.get(&at).cloned().unwrap_or_default());
            let body =
                (0..names.len()).map(|at| std::iter::once(names[at].clone()).chain(cells(at)).collect());
            return write!(f, "{}", table(&head, body.collect()));
        }
        let head: Vec<_> = ["file", "key"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let body = rows.iter().map(|((file, key), values)| {
            let cells = (0..names.len()).map(|at| values.get(&at).cloned().unwrap_or_default());
            [file.clone(), key.clone()].into_iter().chain(cells).collect()
        });
        write!(f, "{}", table(&head, body.collect()))
    }
}

/// Returns a heading for each row that becomes a column: its key, with the file if another file has that key.
fn headings(rows: &Rows) -> Vec<String> {
    let mut count: BTreeMap<&str, usize> = BTreeMap::from([("revision", 1)]);
    for (_, key) in rows.keys() {
        *count.entry(key).or_default() += 1;
    }
    let heading = |(file, key): &(String, String)| {
        if count[key.as_str()] > 1 { format!("{file}:{key}") } else { key.clone() }
    };
    rows.keys().map(heading).collect()
}

/// Shortens a full commit id; other names stay.
fn short(name: &str) -> String {
    let is_commit_id = name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_commit_id { name[..10].to_owned() } else { name.to_owned() }
}

/// Formats a value for a table: text without quotes, fractions with at most six digits.
pub fn format_value(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Number(number) if !number.is_integer() => match number.as_f64() {
            Some(double) => format_double(double),
            None => number.to_string(),
        },
        other => other.canonical(),
    }
}

fn format_double(double: f64) -> String {
    if double != 0.0 && (double.abs() < 1e-4 || double.abs() >= 1e9) {
        return format!("{double:.4e}");
    }
    let fixed = format!("{double:.6}");
    let short = fixed.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}
