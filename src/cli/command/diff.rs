use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            show::{parse, text},
            status::word,
            transfer::with_trees_of,
        },
        report::table,
    },
    error::Result,
    metrics::{self, At, Delta, Reader, Topic},
    path::RepoPath,
    pipeline::contents_at,
    pointer::Content,
    remote::Wants,
    workspace::{Change, Version, Workspace, between},
};

/// Show what differs between two versions
///
/// HEAD against the workspace, unless one or two revisions are named.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx diff metrics\n  mlx diff data HEAD~1 HEAD\n  mlx diff\n\n\
JSON: `diff metrics` and `diff params` give [{\"file\", \"metric\", \"old\", \"new\", \"change\"}], null for a side without\n\
it, `change` null unless both are finite numbers; `diff data` gives [{\"path\", \"change\"}];\n\
`diff` alone {\"data\": […], \"metrics\": […], \"params\": […]}")]
pub struct Args {
    /// What to compare; everything without
    #[arg(value_name = "data|metrics|params")]
    what: Option<String>,
    /// The old version
    old: Option<String>,
    /// The new version
    new: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Data,
    Metrics,
    Params,
}

#[derive(Default)]
pub struct Differences {
    what: Option<What>,
    data: Vec<(RepoPath, Change)>,
    metrics: Vec<Delta>,
    params: Vec<Delta>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Differences> {
    let repo = ctx.repo()?;
    // `mlx diff HEAD~1` names a revision where a topic could stand.
    let what = args.what.as_deref().and_then(|it| What::from_str(it, false).ok());
    let mut revisions: Vec<&String> = [&args.what, &args.old, &args.new].into_iter().flatten().collect();
    if what.is_some() {
        revisions.remove(0);
    }
    if revisions.len() > 2 {
        return Err(crate::error::Error::usage(format!("`{}` is one revision too many", revisions[2])));
    }
    let old = match revisions.first() {
        Some(name) => Some(parse(&repo.git, name)?),
        None => repo.git.head().map(At::Commit),
    };
    let new = revisions.get(1).map_or(Ok(At::Workspace), |it| parse(&repo.git, it))?;
    let reader = Reader::new(&repo, &ctx.cwd)?;
    let delta = |topic| -> Result<Vec<Delta>> {
        let before = old.as_ref().map_or_else(|| Ok(Default::default()), |it| reader.read(topic, it))?;
        Ok(metrics::diff(&before, &reader.read(topic, &new)?))
    };
    let wanted = |it| what.is_none() || what == Some(it);
    let mut found = Differences { what, ..Default::default() };
    if wanted(What::Metrics) {
        found.metrics = delta(Topic::Metrics)?;
    }
    if wanted(What::Params) {
        found.params = delta(Topic::Params)?;
    }
    if wanted(What::Data) {
        let workspace = Workspace::open(&repo)?;
        let more = || wants(&workspace, [old.as_ref(), Some(&new)]);
        found.data = with_trees_of(ctx, &workspace, &more, || data(ctx, &workspace, old.as_ref(), &new))?;
        workspace.save_if_free();
    }
    Ok(found)
}

/// What the compared commits track, in case a tree is missing.
fn wants(workspace: &Workspace<'_>, sides: [Option<&At>; 2]) -> Result<Wants> {
    let mut wants = Wants::default();
    for side in sides.into_iter().flatten() {
        if let At::Commit(rev) = side {
            wants.contents.extend(contents_at(&workspace.repo.git, rev)?);
        }
    }
    Ok(wants)
}

fn data(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    old: Option<&At>,
    new: &At,
) -> Result<Vec<(RepoPath, Change)>> {
    let tracked = ctx.tracked(workspace)?.whole()?;
    let side = |at: &At| -> Result<BTreeMap<RepoPath, Content>> {
        match at {
            At::Commit(rev) => contents_at(&workspace.repo.git, rev),
            At::Workspace => Ok(tracked.iter().map(|it| (it.path.clone(), it.content)).collect()),
        }
    };
    let before = old.map_or_else(|| Ok(BTreeMap::new()), side)?;
    let after = side(new)?;
    let data: BTreeSet<_> = tracked.iter().map(|it| &it.path).collect();
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut found = Vec::new();
    for path in paths {
        // What Git itself keeps, Git compares.
        let in_git = !data.contains(path) && workspace.repo.git.tracked_within(path)?.is_some();
        if in_git {
            continue;
        }
        let version = |at: Option<&At>, side: &BTreeMap<RepoPath, Content>| {
            let recorded = side.get(path).copied();
            match at {
                Some(At::Workspace) => workspace.version(path, recorded, ctx.progress),
                _ => Ok(recorded.map(Version::Recorded)),
            }
        };
        let (old, new) = (version(old, &before)?, version(Some(new), &after)?);
        found.extend(between(&workspace.repo.store, path, old.as_ref(), new.as_ref())?);
    }
    Ok(found)
}

impl Report for Differences {
    fn json(&self) -> Value {
        let data =
            || self.data.iter().map(|(path, it)| json!({"path": path, "change": it})).collect::<Vec<_>>();
        match self.what {
            Some(What::Data) => json!(data()),
            Some(What::Metrics) => json!(self.metrics),
            Some(What::Params) => json!(self.params),
            None => json!({"data": data(), "metrics": self.metrics, "params": self.params}),
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.data.is_empty() && self.metrics.is_empty() && self.params.is_empty() {
            return f.write_str("no differences");
        }
        for (path, change) in &self.data {
            writeln!(f, "{:9} {path}", word(*change))?;
        }
        for (name, rows) in [("metric", &self.metrics), ("param", &self.params)] {
            if !rows.is_empty() {
                let cells = rows.iter().map(|it| {
                    vec![
                        it.file.to_text(),
                        it.metric.clone(),
                        text(&it.old),
                        text(&it.new),
                        signed(&it.change),
                    ]
                });
                writeln!(f, "{}", table(&["file", name, "old", "new", "change"], cells.collect()))?;
            }
        }
        Ok(())
    }
}

fn signed(change: &Value) -> String {
    let sign = if change.as_f64().is_some_and(|it| it > 0.0) { "+" } else { "" };
    format!("{sign}{}", text(change))
}
