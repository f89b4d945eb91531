//! `mlx diff`: compares data, metrics and parameters of two versions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use clap::ValueEnum;
use serde_json::{Value as Json, json};

use crate::{
    cli::{
        Context, Report,
        command::{
            show::{combine, format_value, in_revision, parse_revision},
            status::change_name,
            transfer::with_trees_of,
        },
        report::{count, table},
    },
    document::Value,
    error::{Error, Result},
    metrics::{self, Delta, DeltaKind, Reader, Reading, Revision, Topic},
    path::RepoPath,
    pipeline::{contents_at, outputs_at, skipped_contents},
    pointer::Content,
    remote::Wants,
    workspace::{Change, Tracked, Version, Workspace, diff_versions},
};

/// Show differences between two versions
///
/// Compares HEAD with the workspace, unless one or two revisions are given.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  mlx diff metrics\n  mlx diff data HEAD~1 HEAD\n  mlx diff\n\n\
JSON: `diff metrics` and `diff params` give [{\"file\", \"metric\", \"old\", \"new\", \"change\", \
\"kind\"}]:\n\
`kind` is added, removed, changed or retyped (`1` and `1.0`, or `1` and `\"1\"`), a side is null where the\n\
value is missing, and `change` is null unless both are finite numbers; `diff data` gives\n\
[{\"path\", \"change\"}]; `diff` alone {\"data\": […], \"metrics\": […], \"params\": […]}, \
with\n\
`error` if a file cannot be read")]
pub struct Args {
    /// Topic to compare (default: everything)
    #[arg(value_name = "data|metrics|params")]
    what: Option<String>,
    /// Old revision (default: HEAD)
    old: Option<String>,
    /// New revision (default: the workspace)
    new: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    Data,
    Metrics,
    Params,
}

#[derive(Default)]
pub struct Differences {
    section: Option<Section>,
    data: Vec<(RepoPath, Change)>,
    metrics: Vec<Delta>,
    params: Vec<Delta>,
    failure: Option<Error>,
}

pub fn run(ctx: &Context<'_>, args: &Args) -> Result<Differences> {
    let repo = ctx.repo()?;
    // The first argument may be a revision instead of a section: `mlx diff HEAD~1`.
    let section = args.what.as_deref().and_then(|name| Section::from_str(name, false).ok());
    let mut revisions: Vec<&String> = [&args.what, &args.old, &args.new].into_iter().flatten().collect();
    if section.is_some() {
        revisions.remove(0);
    }
    if revisions.len() > 2 {
        return Err(Error::usage(format!(
            "unexpected argument `{}`: at most two revisions can be compared",
            revisions[2]
        )));
    }
    let old = match revisions.first() {
        Some(name) => Some(parse_revision(&repo.git, name)?),
        None => repo.git.head().map(Revision::Commit),
    };
    let new = revisions.get(1).map_or(Ok(Revision::Workspace), |it| parse_revision(&repo.git, it))?;
    let reader = Reader::new(&repo, &ctx.cwd)?;
    let mut faults = Vec::new();
    let mut delta = |topic| -> Result<Vec<Delta>> {
        let read = |side| reader.read(topic, side);
        let (before, after) = (old.as_ref().map_or_else(|| Ok(Reading::default()), read)?, read(&new)?);
        let deltas = metrics::diff(&before, &after);
        for (name, side, reading) in
            [(revisions.first(), old.as_ref(), before), (revisions.get(1), Some(&new), after)]
        {
            let (name, side) =
                (name.map_or("HEAD", |name| name.as_str()), side.unwrap_or(&Revision::Workspace));
            faults.extend(reading.faults.into_values().map(|error| in_revision(error, name, side)));
        }
        Ok(deltas)
    };
    let wanted = |candidate| section.is_none() || section == Some(candidate);
    let mut differences = Differences { section, ..Default::default() };
    if wanted(Section::Metrics) {
        differences.metrics = delta(Topic::Metrics)?;
    }
    if wanted(Section::Params) {
        differences.params = delta(Topic::Params)?;
    }
    differences.failure = combine(faults);
    if wanted(Section::Data) {
        let workspace = Workspace::open(&repo)?;
        let more = || wants(&workspace, [old.as_ref(), Some(&new)]);
        let (data, failure) =
            with_trees_of(ctx, &workspace, &more, || data(ctx, &workspace, old.as_ref(), &new))?;
        differences.data = data;
        differences.failure = ctx.failure(differences.failure.into_iter().chain(failure));
        workspace.save_if_free();
    }
    Ok(differences)
}

/// Returns the content that the compared commits track, to be fetched if a stored tree is missing.
fn wants(workspace: &Workspace<'_>, sides: [Option<&Revision>; 2]) -> Result<Wants> {
    let mut wants = Wants::default();
    for side in sides.into_iter().flatten() {
        if let Revision::Commit(rev) = side {
            wants.contents.extend(contents_at(&workspace.repo.git, rev)?);
        }
    }
    Ok(wants)
}

/// Returns the changes of tracked data between two versions, and the error for a file that cannot be read and
/// tracks more.
fn data(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    old: Option<&Revision>,
    new: &Revision,
) -> Result<(Vec<(RepoPath, Change)>, Option<Error>)> {
    let mut tracked = ctx.tracked(workspace)?;
    if ![old, Some(new)].into_iter().flatten().any(|side| matches!(side, Revision::Workspace)) {
        tracked.others = std::mem::take(&mut tracked.unreadable);
    }
    let unknown = unknown_paths(workspace, &tracked, [old, Some(new)])?;
    let (tracked, failure) = ctx.unreadable(tracked);
    // Not deleted, but left out: what Git's index says of it stands.
    let skipped = skipped_contents(&workspace.repo.git)?;
    let side = |at: &Revision| -> Result<BTreeMap<RepoPath, Content>> {
        match at {
            Revision::Commit(rev) => contents_at(&workspace.repo.git, rev),
            Revision::Workspace => {
                Ok(tracked.iter().map(|pointer| (pointer.path.clone(), pointer.content)).collect())
            }
        }
    };
    let before = old.map_or_else(|| Ok(BTreeMap::new()), side)?;
    let after = side(new)?;
    let data: BTreeSet<_> = tracked.iter().map(|pointer| &pointer.path).collect();
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut changes = Vec::new();
    for path in paths {
        // Outputs committed to Git are left to `git diff`.
        let in_git = !data.contains(path) && workspace.repo.git.tracked_within(path)?.is_some();
        if in_git || unknown.iter().any(|other| other.overlaps(path)) {
            continue;
        }
        let version = |at: Option<&Revision>, side: &BTreeMap<RepoPath, Content>| {
            let recorded = side.get(path).copied();
            match (at, skipped.get(path)) {
                (Some(Revision::Workspace), Some(content)) if recorded.is_none() => {
                    Ok(Some(Version::Recorded(*content)))
                }
                (Some(Revision::Workspace), _) => workspace.version(path, recorded, ctx.progress),
                _ => Ok(recorded.map(Version::Recorded)),
            }
        };
        let (old, new) = (version(old, &before)?, version(Some(new), &after)?);
        changes.extend(diff_versions(&workspace.repo.store, path, old.as_ref(), new.as_ref())?);
    }
    Ok((changes, failure))
}

/// Returns the paths about which unreadable files leave open what the workspace records. A lockfile whose
/// `mlx.toml` does not tell its outputs may record any that a compared commit does.
fn unknown_paths(
    workspace: &Workspace<'_>,
    tracked: &Tracked,
    sides: [Option<&Revision>; 2],
) -> Result<BTreeSet<RepoPath>> {
    let mut unknown: BTreeSet<_> =
        tracked.unreadable.iter().flat_map(|file| file.paths.iter().cloned()).collect();
    if tracked.unreadable.iter().any(|file| file.is_lockfile() && file.paths.is_empty()) {
        for side in sides.into_iter().flatten() {
            if let Revision::Commit(rev) = side {
                unknown.extend(outputs_at(&workspace.repo.git, rev)?.into_keys());
            }
        }
        unknown.retain(|path| !tracked.pointers.iter().any(|pointer| pointer.path == *path));
    }
    Ok(unknown)
}

impl Report for Differences {
    fn json(&self) -> Json {
        let row = |(path, change): &(RepoPath, Change)| json!({"path": path, "change": change});
        let data = || self.data.iter().map(row).collect::<Vec<_>>();
        match self.section {
            Some(Section::Data) => json!(data()),
            Some(Section::Metrics) => json!(self.metrics),
            Some(Section::Params) => json!(self.params),
            None => json!({"data": data(), "metrics": self.metrics, "params": self.params}),
        }
    }

    fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.data.is_empty() && self.metrics.is_empty() && self.params.is_empty() {
            // Of files that cannot be read, nothing is known.
            return if self.failure.is_none() { f.write_str("no differences") } else { Ok(()) };
        }
        for (path, change) in &self.data {
            writeln!(f, "{:9} {path}", change_name(*change))?;
        }
        for (name, rows) in [("metric", &self.metrics), ("param", &self.params)] {
            if !rows.is_empty() {
                let cells = rows.iter().map(|delta| {
                    let (old, new) = sides(delta);
                    let change = delta.change.as_ref().map(signed).unwrap_or_default();
                    vec![delta.file.to_text(), delta.metric.clone(), old, new, change]
                });
                writeln!(f, "{}", table(&["file", name, "old", "new", "change"], cells.collect()))?;
            }
        }
        Ok(())
    }
}

/// Formats both sides so that they never look alike: in full where the short form is the same, and text in
/// quotes where the type changed. A missing side is empty.
fn sides(delta: &Delta) -> (String, String) {
    let with = |format: &dyn Fn(&Value) -> String| {
        (
            delta.old.as_ref().map(format).unwrap_or_default(),
            delta.new.as_ref().map(format).unwrap_or_default(),
        )
    };
    let (old, new) = with(&format_value);
    let exact = delta.kind == DeltaKind::Retyped || old == new && delta.kind == DeltaKind::Changed;
    if exact { with(&shortened) } else { (old, new) }
}

/// Formats a value exactly; of a long table or list, only the number of items.
fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    match (value, value.canonical()) {
        (Value::Table(table), text) if text.len() > LONGEST => {
            format!("a table of {}", count(table.len() as u64, "key"))
        }
        (Value::List(list), text) if text.len() > LONGEST => {
            format!("a list of {}", count(list.len() as u64, "item"))
        }
        (_, text) => text,
    }
}

/// Formats a change with its sign.
fn signed(change: &Value) -> String {
    let sign = if change.as_f64().is_some_and(|it| it > 0.0) { "+" } else { "" };
    format!("{sign}{}", format_value(change))
}
