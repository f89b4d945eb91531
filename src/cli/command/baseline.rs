//! Baseline of a day: the accepted days before it, or else the training data recorded in the package.
//!
//! Also loads the sealed records of days, and fetches them from the default remote if necessary.

use std::collections::BTreeMap;

use crate::{
    cli::{
        Context,
        command::{traffic::fetch_tables, version::fetch_package},
    },
    error::{Error, Result},
    ledger,
    model::{
        inference::{self, LoadedPackage},
        package,
        registry::Version,
    },
    monitor,
    remote::{self, Access, Depth, Remote, Wants},
    repo::Repo,
    time::Day,
    traffic::{self, DayTraffic, Record},
    workspace::Workspace,
};

/// Baseline, with the classes of its version.
pub struct Baseline {
    pub rows: monitor::Reference,
    pub classes: Vec<String>,
}

/// Returns the baseline of a version in an environment on a day: the days accepted last before it, else the
/// training data.
pub fn load(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    version: &Version,
    day: Day,
) -> Result<Baseline> {
    let repo = workspace.repo;
    fetch_package(ctx, repo, version, None)?;
    let missing = || Error::corrupt(format!("the package of `{}` has no model.toml", version.name()));
    let text = inference::read_file(repo, version, "model.toml")?.ok_or_else(missing)?;
    let classes = package::parse("model.toml", &text)?.classes;
    let rows = match accepted(workspace, environment, day)? {
        Some((from, to, who)) => {
            let name = format!("{from} to {to}, accepted by {who}");
            monitor::Reference {
                name,
                rows: accepted_records(ctx, workspace, environment, version, (from, to))?,
            }
        }
        None => monitor::Reference {
            name: format!("training side of {}", version.name()),
            rows: training_records(repo, version)?,
        },
    };
    Ok(Baseline { rows, classes })
}

/// Returns the records of the training images that are stored in a package.
pub fn training_records(repo: &Repo, version: &Version) -> Result<Vec<Record>> {
    let bytes = inference::read_file(repo, version, package::REFERENCE)?;
    bytes.map_or_else(|| Ok(Vec::new()), |it| traffic::read_requests(&it))
}

/// Returns the last accepted range of days that ends before `day`, and who accepted it.
fn accepted(workspace: &Workspace<'_>, environment: &str, day: Day) -> Result<Option<(Day, Day, String)>> {
    let git = &workspace.repo.git;
    let events = ledger::read(git, ledger::tip(git)?.as_ref())?;
    let found = events.iter().rev().find_map(|entry| {
        let event = &entry.event;
        let matches =
            event.kind == ledger::Kind::Accepted && event.environment.as_deref() == Some(environment);
        let fact = |key: &str| event.facts.get(key).and_then(|it| it.as_str()?.parse::<Day>().ok());
        let (from, to) = (fact("from")?, fact("to")?);
        // A day before the accepted range is compared with the baseline of its own time.
        (matches && to < day).then(|| (from, to, event.who.clone()))
    });
    Ok(found)
}

/// Returns the sealed records of a day, including those sealed later.
pub fn sealed_day(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    day: Day,
) -> Result<DayTraffic> {
    Ok(sealed_span(ctx, workspace, environment, (day, day))?.remove(&day).unwrap_or_default())
}

/// Returns the sealed records of some days by day of capture. Late records are in the seal of a later day.
pub fn sealed_span(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    (from, to): (Day, Day),
) -> Result<BTreeMap<Day, DayTraffic>> {
    let repo = workspace.repo;
    let mut seals = traffic::sealed_days(&repo.files, environment)?;
    seals.retain(|it| *it >= from);
    fetch_tables(ctx, repo, environment, &seals)?;
    let mut days: BTreeMap<Day, DayTraffic> = BTreeMap::new();
    let within = |millis: i64| Some(Day::of(millis)).filter(|it| (from..=to).contains(it));
    for seal in seals {
        let found = traffic::read_sealed(repo, environment, seal)?;
        let mut kept = false;
        for record in found.records {
            if let Some(day) = within(record.captured) {
                kept |= record.kept;
                days.entry(day).or_default().records.push(record);
            }
        }
        for sample in found.samples {
            if let Some(day) = within(sample.time) {
                days.entry(day).or_default().samples.push(sample);
            }
        }
        if kept {
            fetch_day(ctx, workspace, environment, seal)?;
        }
    }
    for sealed in days.values_mut() {
        sealed.records.sort_by_key(|it| it.captured);
        sealed.samples.sort_by_key(|it| it.time);
    }
    Ok(days)
}

/// Returns the records of accepted days. Those of another package are recomputed with this version, if their
/// images were kept.
fn accepted_records(
    ctx: &Context<'_>,
    workspace: &Workspace<'_>,
    environment: &str,
    version: &Version,
    (from, to): (Day, Day),
) -> Result<Vec<Record>> {
    let files = &workspace.repo.files;
    let mut rows = Vec::new();
    for (date, sealed) in sealed_span(ctx, workspace, environment, (from, to))? {
        let labels = traffic::read_labels(files, environment, date)?;
        let mut records = sealed.records;
        records.retain(|it| it.status == 200);
        recompute(workspace, environment, version, &mut records)?;
        for record in &mut records {
            if let Some(label) = labels.get(record) {
                record.class.clone_from(label);
            }
        }
        rows.extend(records);
    }
    Ok(rows)
}

/// Replaces the predictions and features of records from other packages by those of this version.
fn recompute(
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
    let mut loaded = LoadedPackage::load(workspace.repo, version)?;
    let (mut kept, mut images) = (Vec::new(), Vec::new());
    for at in others {
        match traffic::read_image(workspace.repo, environment, &records[at])? {
            Some(bytes) => {
                kept.push(at);
                images.push(bytes);
            }
            // Features of another model cannot be compared with this one's.
            None => records[at].features.clear(),
        }
    }
    for (at, prediction) in kept.into_iter().zip(loaded.predict(&images)?) {
        let Ok(prediction) = prediction else { continue };
        let record = &mut records[at];
        record.class.clone_from(&loaded.description.classes[prediction.class]);
        (record.scores, record.features, record.package) =
            (prediction.scores, prediction.features, version.package.digest);
    }
    Ok(())
}

/// Fetches a sealed day from the default remote, unless it is in the store.
fn fetch_day(ctx: &Context<'_>, workspace: &Workspace<'_>, environment: &str, day: Day) -> Result<()> {
    let (repo, store) = (workspace.repo, &workspace.repo.store);
    let mut contents = Vec::new();
    for pointer in traffic::seal_pointers(repo, environment, day)? {
        if !store.is_complete(&pointer.content) {
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
