//! `mlx show`: shows metrics or parameters of one or more versions.

use std::{collections::BTreeMap, fmt};

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::{
    cli::{Context, Report, report::table},
    document::leaves,
    error::Result,
    metrics::{Documents, Reader, Revision, Topic},
};

/// Show metrics or parameters
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx show metrics\n  mlx show params HEAD~1 workspace\n  mlx show metrics \
    --all-commits\n\n\
JSON: {FILE: {nested keys: value}} for the workspace; with revisions {REV: {FILE: …}}, where `workspace` \
is a name too"
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
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Output> {
    let repo = ctx.repo()?;
    let topic = match args.topic {
        TopicArg::Metrics => Topic::Metrics,
        TopicArg::Params => Topic::Params,
    };
    let reader = Reader::new(&repo, &ctx.cwd)?;
    let mut versions: Vec<(String, Revision)> = Vec::new();
    for name in &args.revisions {
        versions.push((name.clone(), parse_revision(&repo.git, name)?));
    }
    if versions.is_empty() {
        versions.push(("workspace".to_owned(), Revision::Workspace));
    }
    if args.all_commits {
        let commits = repo.git.head().map_or_else(|| Ok(Vec::new()), |head| repo.git.log(&[head]))?;
        let revisions = commits.into_iter().map(|commit| commit.rev);
        versions.extend(revisions.map(|rev| (rev.to_string(), Revision::Commit(rev))));
    }
    let read = versions.into_iter().map(|(name, revision)| Ok((name, reader.read(topic, &revision)?)));
    let workspace_only = args.revisions.is_empty() && !args.all_commits;
    Ok(Output { versions: read.collect::<Result<_>>()?, workspace_only })
}

/// Parses a revision; `workspace` names the workspace.
pub fn parse_revision(git: &crate::git::Git, name: &str) -> Result<Revision> {
    if name == "workspace" { Ok(Revision::Workspace) } else { git.resolve(name).map(Revision::Commit) }
}

fn object(documents: &Documents) -> Value {
    Value::Object(documents.iter().map(|(file, document)| (file.to_text(), document.clone())).collect())
}

impl Report for Output {
    fn json(&self) -> Value {
        if self.workspace_only {
            return object(&self.versions[0].1);
        }
        let rows = self.versions.iter().map(|(name, documents)| (name.clone(), object(documents)));
        Value::Object(rows.collect::<Map<_, _>>())
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: BTreeMap<(String, String), BTreeMap<usize, String>> = BTreeMap::new();
        for (at, (_, documents)) in self.versions.iter().enumerate() {
            for (file, value) in documents {
                for (key, leaf) in leaves(value) {
                    rows.entry((file.to_text(), key)).or_default().insert(at, format_value(&leaf));
                }
            }
        }
        if rows.is_empty() {
            return f.write_str(
                "nothing to show: no stage in `mlx.toml` declares such files, or they do not exist yet",
            );
        }
        // One row per version if there are many, one column per version if there are few.
        let names: Vec<_> = self.versions.iter().map(|(name, _)| short(name)).collect();
        if names.len() > 4 {
            let head: Vec<String> = rows.keys().map(|(_, key)| key.clone()).collect();
            let head: Vec<_> = std::iter::once("revision").chain(head.iter().map(String::as_str)).collect();
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

/// Shortens a full commit id; other names stay.
fn short(name: &str) -> String {
    let is_commit_id = name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_commit_id { name[..10].to_owned() } else { name.to_owned() }
}

/// Formats a value for a table: strings without quotes, fractions with at most six digits.
pub fn format_value(value: &Value) -> String {
    match value {
        Value::String(it) => it.clone(),
        Value::Null => String::new(),
        Value::Number(it) if it.is_f64() => {
            let number = it.as_f64().unwrap_or_default();
            if number != 0.0 && (number.abs() < 1e-4 || number.abs() >= 1e9) {
                return format!("{number:.4e}");
            }
            let fixed = format!("{number:.6}");
            let short = fixed.trim_end_matches('0');
            if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
        }
        other => other.to_string(),
    }
}
