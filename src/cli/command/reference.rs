//! What a day is held against: the training side as the package keeps it, or days that somebody accepted.

use std::collections::BTreeMap;

use crate::{
    cli::{
        Context,
        command::{traffic::bring_tables, version::bring},
    },
    error::{Error, Result},
    ledger,
    model::{
        offline::{self, Offline},
        package,
        registry::Version,
    },
    monitor,
    remote::{self, Access, Depth, Remote, Wants},
    repo::Repo,
    time::Day,
    traffic::{self, Record, Sealed},
    workspace::Workspace,
};

/// A reference with the classes that its numbers are about.
pub struct Held {
    pub rows: monitor::Reference,
    pub classes: Vec<String>,
}

/// The reference of a version in an environment on a day: the days accepted last before it, else the training side.
pub fn of(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    version: &Version,
    day: Day,
) -> Result<Held> {
    let repo = workspace.repo;
    bring(ctx, repo, version, None)?;
    let missing = || Error::corrupt(format!("the package of `{}` has no model.toml", version.name()));
    let text = offline::read(repo, version, "model.toml")?.ok_or_else(missing)?;
    let classes = package::parse("model.toml", &text)?.classes;
    let rows = match accepted(workspace, environment, day)? {
        Some((from, to, who)) => {
            let name = format!("{from} to {to}, accepted by {who}");
            monitor::Reference { name, rows: days(ctx, workspace, environment, version, (from, to))? }
        }
        None => monitor::Reference {
            name: format!("training side of {}", version.name()),
            rows: training(repo, version)?,
        },
    };
    Ok(Held { rows, classes })
}

/// The training pictures that a package keeps.
pub fn training(repo: &Repo, version: &Version) -> Result<Vec<Record>> {
    let bytes = offline::read(repo, version, package::REFERENCE)?;
    bytes.map_or_else(|| Ok(Vec::new()), |it| traffic::read_requests(&it))
}

/// The days accepted last that lie before `day` is over, and who accepted them.
fn accepted(workspace: &Workspace<'_>, environment: &str, day: Day) -> Result<Option<(Day, Day, String)>> {
    let git = &workspace.repo.git;
    let events = ledger::read(git, ledger::tip(git)?.as_ref())?;
    let found = events.iter().rev().find_map(|it| {
        let event = &it.event;
        let own = event.kind == ledger::Kind::Accepted && event.environment.as_deref() == Some(environment);
        let fact = |key: &str| event.facts.get(key).and_then(|it| it.as_str()?.parse::<Day>().ok());
        let (from, to) = (fact("from")?, fact("to")?);
        // A day before the accepted ones is held against what counted then.
        (own && to < day).then(|| (from, to, event.who.clone()))
    });
    Ok(found)
}

/// What was sealed of a day, late records too.
pub fn day(ctx: &Context<'_>, workspace: &Workspace<'_>, environment: &str, day: Day) -> Result<Sealed> {
    Ok(span(ctx, workspace, environment, (day, day))?.remove(&day).unwrap_or_default())
}

/// What was sealed of some days, by the day it was captured: a record that came late lies in any later seal.
pub fn span(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    (from, to): (Day, Day),
) -> Result<BTreeMap<Day, Sealed>> {
    let repo = workspace.repo;
    let mut seals = traffic::sealed_days(&repo.files, environment)?;
    seals.retain(|it| *it >= from);
    bring_tables(ctx, repo, environment, &seals)?;
    let mut whole: BTreeMap<Day, Sealed> = BTreeMap::new();
    let within = |millis: i64| Some(Day::of(millis)).filter(|it| (from..=to).contains(it));
    for seal in seals {
        let found = traffic::sealed(repo, environment, seal)?;
        let mut kept = false;
        for record in found.records {
            if let Some(day) = within(record.captured) {
                kept |= record.kept;
                whole.entry(day).or_default().records.push(record);
            }
        }
        for sample in found.samples {
            if let Some(day) = within(sample.time) {
                whole.entry(day).or_default().samples.push(sample);
            }
        }
        if kept {
            bring_day(ctx, workspace, environment, seal)?;
        }
    }
    for sealed in whole.values_mut() {
        sealed.records.sort_by_key(|it| it.captured);
        sealed.samples.sort_by_key(|it| it.time);
    }
    Ok(whole)
}

/// Accepted days as a reference. What another network saw is looked at again with this version's, where the
/// pictures were kept.
fn days(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    version: &Version,
    (from, to): (Day, Day),
) -> Result<Vec<Record>> {
    let files = &workspace.repo.files;
    let mut rows = Vec::new();
    for (date, sealed) in span(ctx, workspace, environment, (from, to))? {
        let labels = traffic::labels(files, environment, date)?;
        let mut records = sealed.records;
        records.retain(|it| it.status == 200);
        see_again(workspace, environment, version, &mut records)?;
        for record in &mut records {
            if let Some(label) = labels.of(record) {
                record.class.clone_from(label);
            }
        }
        rows.extend(records);
    }
    Ok(rows)
}

fn see_again(
    workspace: &Workspace<'_>,
    environment: &str,
    version: &Version,
    records: &mut [Record],
) -> Result<()> {
    let others: Vec<usize> =
        (0..records.len()).filter(|it| records[*it].package != version.package.digest).collect();
    if others.is_empty() {
        return Ok(());
    }
    let mut offline = Offline::load(workspace.repo, version)?;
    let (mut found, mut files) = (Vec::new(), Vec::new());
    for at in others {
        match traffic::picture(workspace.repo, environment, &records[at])? {
            Some(bytes) => {
                found.push(at);
                files.push(bytes);
            }
            // What was not kept says nothing of this network.
            None => records[at].features.clear(),
        }
    }
    for (at, seen) in found.into_iter().zip(offline.see(&files)?) {
        let Ok(seen) = seen else { continue };
        let record = &mut records[at];
        record.class.clone_from(&offline.description.classes[seen.class]);
        (record.scores, record.features, record.package) =
            (seen.scores, seen.features, version.package.digest);
    }
    Ok(())
}

/// Brings a sealed day that is not here from the default remote.
fn bring_day(ctx: &Context<'_>, workspace: &Workspace<'_>, environment: &str, day: Day) -> Result<()> {
    let (repo, store) = (workspace.repo, &workspace.repo.store);
    let mut contents = Vec::new();
    for pointer in traffic::seals(repo, environment, day)? {
        let (mut pages, mut below) = Default::default();
        let whole = crate::store::reachable(store, &pointer.content.digest, &mut pages, &mut below)
            .is_ok_and(|()| below.keys().all(|it| store.contains(it)));
        if !whole {
            contents.push((pointer.path, pointer.content));
        }
    }
    if contents.is_empty() {
        return Ok(());
    }
    let remote = Remote::open(&repo.config.remote(None)?, Access::Read)?;
    let wants = Wants { contents, runs: Vec::new() };
    remote::fetch(repo, &remote, &wants, Depth::Everything, ctx.progress).map(drop)
}
