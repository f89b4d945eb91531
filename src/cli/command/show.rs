use std::{collections::BTreeMap, fmt};

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::{
    cli::{Context, Report, report::table},
    document::leaves,
    error::Result,
    metrics::{At, Documents, Reader, Topic},
};

/// Show metrics or parameters
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  mlx show metrics\n  mlx show params HEAD~1 workspace\n  mlx show metrics --all-commits\n\n\
JSON: {FILE: {nested keys: value}} for the workspace; with revisions {REV: {FILE: …}}, where `workspace` is a name too"
)]
pub struct Args {
    /// What to show
    #[arg(value_enum, default_value = "metrics")]
    topic: Which,
    /// Versions; the workspace without any
    revisions: Vec<String>,
    /// The workspace and every commit that HEAD descends from
    #[arg(long, conflicts_with = "revisions")]
    all_commits: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    Metrics,
    Params,
}

pub struct Shown {
    versions: Vec<(String, Documents)>,
    /// The workspace alone, unnamed.
    plain: bool,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Shown> {
    let repo = ctx.repo()?;
    let topic = match args.topic {
        Which::Metrics => Topic::Metrics,
        Which::Params => Topic::Params,
    };
    let reader = Reader::new(&repo, &ctx.cwd)?;
    let mut versions: Vec<(String, At)> = Vec::new();
    for name in &args.revisions {
        versions.push((name.clone(), parse(&repo.git, name)?));
    }
    if versions.is_empty() {
        versions.push(("workspace".to_owned(), At::Workspace));
    }
    if args.all_commits {
        let commits = repo.git.head().map_or_else(|| Ok(Vec::new()), |it| repo.git.log(&[it]))?;
        versions.extend(commits.into_iter().map(|it| (it.rev.to_string(), At::Commit(it.rev))));
    }
    let read = versions.into_iter().map(|(name, at)| Ok((name, reader.read(topic, &at)?)));
    let plain = args.revisions.is_empty() && !args.all_commits;
    Ok(Shown { versions: read.collect::<Result<_>>()?, plain })
}

/// A revision as typed; `workspace` is one too.
pub fn parse(git: &crate::git::Git, name: &str) -> Result<At> {
    if name == "workspace" { Ok(At::Workspace) } else { git.resolve(name).map(At::Commit) }
}

fn object(documents: &Documents) -> Value {
    Value::Object(documents.iter().map(|(file, it)| (file.to_text(), it.clone())).collect())
}

impl Report for Shown {
    fn json(&self) -> Value {
        if self.plain {
            return object(&self.versions[0].1);
        }
        let rows = self.versions.iter().map(|(name, it)| (name.clone(), object(it)));
        Value::Object(rows.collect::<Map<_, _>>())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: BTreeMap<(String, String), BTreeMap<usize, String>> = BTreeMap::new();
        for (at, (_, documents)) in self.versions.iter().enumerate() {
            for (file, value) in documents {
                for (key, leaf) in leaves(value) {
                    rows.entry((file.to_text(), key)).or_default().insert(at, text(&leaf));
                }
            }
        }
        if rows.is_empty() {
            return f.write_str(
                "nothing to show: no stage in mlx.toml names such files, or they are not there yet",
            );
        }
        // Many versions read downwards, few sideways.
        let names: Vec<_> = self.versions.iter().map(|it| short(&it.0)).collect();
        if names.len() > 4 {
            let head: Vec<String> = rows.keys().map(|it| it.1.clone()).collect();
            let head: Vec<_> = std::iter::once("revision").chain(head.iter().map(String::as_str)).collect();
            let line = |at: usize| rows.values().map(move |it| it.get(&at).cloned().unwrap_or_default());
            let body =
                (0..names.len()).map(|at| std::iter::once(names[at].clone()).chain(line(at)).collect());
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

fn short(name: &str) -> String {
    let hash = name.len() == 40 && name.bytes().all(|it| it.is_ascii_hexdigit());
    if hash { name[..10].to_owned() } else { name.to_owned() }
}

/// A value for people: texts without quotes, fractions with six digits at most.
pub fn text(value: &Value) -> String {
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
