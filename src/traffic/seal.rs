//! Seals a day of traffic: turns the spooled records of a day into a dataset, and reads sealed traffic back.
//!
//! A sealed day is an ordinary dataset: a folder in the workspace, its objects in the store, and a pointer
//! for Git. The spool is emptied only after the pointer is written, and records that a pointer already
//! contains are skipped when the spool is read again. So a seal that was killed at any point is completed by
//! the next one.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    fs::{self, Sync},
    path::RepoPath,
    pointer::Pointer,
    progress::Progress,
    repo::Repo,
    store,
    time::Day,
    traffic::{
        Record, TelemetrySample,
        paths::{self, IMAGES, REQUESTS, TELEMETRY},
        spool::{self, SpooledDay},
        table,
    },
    workspace::{AddRules, Workspace},
};

/// Summary of a sealed day of one machine.
#[derive(Clone, Debug)]
pub struct SealSummary {
    pub machine: String,
    pub pointer: Pointer,
    /// Number of records.
    pub records: usize,
    /// Number of records of earlier days.
    pub late: usize,
    /// Number of stored images.
    pub images: usize,
    /// True if the day had been sealed before and nothing was done.
    pub already_sealed: bool,
}

/// Sealed records and telemetry samples.
#[derive(Clone, Debug, Default)]
pub struct DayTraffic {
    pub records: Vec<Record>,
    pub samples: Vec<TelemetrySample>,
}

/// Spooled traffic that is in no seal yet.
#[derive(Default)]
struct Unsealed {
    records: Vec<Record>,
    samples: Vec<TelemetrySample>,
    /// Days that were read from the spool; their records and samples have been moved to the lists above.
    days: BTreeMap<Day, SpooledDay>,
    /// Days with records or samples that are in no seal yet.
    open_days: BTreeSet<Day>,
}

/// Identity of a record; the id alone is not unique, because clients may reuse ids.
type Key = (String, i64, i64, Digest);

fn key(record: &Record) -> Key {
    (record.id.clone(), record.captured, record.received, record.input)
}

/// Seals this machine's spooled traffic of a day, and late records of the days before it. The day must be
/// over. If it has been sealed before, only the spool is cleaned up.
pub fn seal(
    workspace: &Workspace<'_>,
    environment: &str,
    day: Day,
    machine: Option<&str>,
    progress: &dyn Progress,
) -> Result<SealSummary> {
    let repo = workspace.repo;
    let machine = paths::machine_name(machine)?;
    let path = paths::day_folder(environment, day)?.join(machine.as_bytes())?;
    if day >= Day::today() {
        let error = Error::usage(format!("{day} is not over (days are UTC)"));
        return Err(error.hint(format!("the last day that can be sealed is {}", Day::today().plus(-1))));
    }
    let warn_of_damage = |unsealed: &Unsealed| {
        for (day, spooled) in unsealed.days.iter().filter(|(_, spooled)| spooled.damaged > 0) {
            progress.warn(&format!(
                "{} damaged records of {day} are not sealed; their segments stay in the spool as \
                `*.log.damaged`",
                spooled.damaged
            ));
        }
    };
    let lock = paths::folder(environment)?.join(b"seal.lock")?;
    let _lock = fs::lock_with_progress(&repo.shared, &lock, progress)?;
    let mut unsealed = collect_unsealed(repo, environment, day)?;
    warn_of_damage(&unsealed);
    if let Some(pointer) = repo.pointer(&path)? {
        workspace.index_pointer(&path);
        workspace.save(progress)?;
        remove_spooled(repo, environment, &unsealed, &unsealed.open_days)?;
        let found = read_one(repo, &pointer)?;
        return Ok(summarize(machine, pointer, &found.records, day, true));
    }
    if unsealed.records.is_empty() {
        remove_spooled(repo, environment, &unsealed, &unsealed.open_days)?;
        let error =
            Error::not_found(format!("this machine has no traffic of {day} in `{environment}` to seal"));
        return Err(error.hint("list the days that are not sealed with `mlx traffic list`"));
    }
    write(repo, &path, &mut unsealed)?;
    let added = workspace.add(&path, AddRules::default(), progress);
    workspace.save(progress)?;
    let seal = summarize(machine, added?, &unsealed.records, day, false);
    remove_spooled(repo, environment, &unsealed, &BTreeSet::new())?;
    Ok(seal)
}

fn summarize(machine: String, pointer: Pointer, records: &[Record], day: Day, already: bool) -> SealSummary {
    let late = records.iter().filter(|record| Day::of(record.captured) < day).count();
    let images: BTreeSet<_> =
        records.iter().filter(|record| record.kept).map(|record| record.input).collect();
    SealSummary {
        machine,
        pointer,
        records: records.len(),
        late,
        images: images.len(),
        already_sealed: already,
    }
}

/// Reads the spooled traffic of days up to `day`, without what is already sealed.
fn collect_unsealed(repo: &Repo, environment: &str, day: Day) -> Result<Unsealed> {
    let mut found = Unsealed::default();
    for spooled_day in spool::days(&repo.shared, environment)?.into_iter().filter(|it| *it <= day) {
        found.days.insert(spooled_day, spool::read(&repo.shared, environment, spooled_day)?);
    }
    let (keys, times) = sealed_keys(repo, environment, found.days.keys().next())?;
    for (spooled_day, spooled) in &mut found.days {
        let mut records = std::mem::take(&mut spooled.records);
        let mut samples = std::mem::take(&mut spooled.samples);
        records.retain(|record| !keys.contains(&key(record)));
        samples.retain(|sample| !times.contains(&(sample.time, sample.resident)));
        if !records.is_empty() || !samples.is_empty() {
            found.open_days.insert(*spooled_day);
        }
        found.records.append(&mut records);
        found.samples.append(&mut samples);
    }
    found
        .records
        .sort_by_cached_key(|record| (record.captured, record.received, record.id.clone(), record.input));
    found.samples.sort_by_key(|sample| (sample.time, sample.resident));
    Ok(found)
}

/// Returns the keys of records and samples in the seals from a day on. Records are sealed on their own day or
/// later, so earlier seals cannot contain them. A seal whose tables are not in the store is skipped: it is of
/// another machine, because this one stores its own.
fn sealed_keys(
    repo: &Repo,
    environment: &str,
    from: Option<&Day>,
) -> Result<(BTreeSet<Key>, BTreeSet<(i64, u64)>)> {
    let (mut keys, mut times) = Default::default();
    let Some(from) = from else { return Ok((keys, times)) };
    for day in paths::sealed_days(&repo.files, environment)?.into_iter().filter(|it| it >= from) {
        for pointer in paths::seal_pointers(repo, environment, day)? {
            let found = match read_one(repo, &pointer) {
                Ok(found) => found,
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => return Err(error),
            };
            keys.extend(found.records.iter().map(key));
            times.extend(found.samples.iter().map(|sample| (sample.time, sample.resident)));
        }
    }
    Ok((keys, times))
}

/// Writes the folder of a sealed day, after removing the remains of a killed seal.
fn write(repo: &Repo, path: &RepoPath, unsealed: &mut Unsealed) -> Result<()> {
    clear_target(repo, path)?;
    let files = &repo.files;
    let images = path.join(IMAGES.as_bytes())?;
    let mut written = BTreeSet::new();
    for record in unsealed.records.iter_mut().filter(|record| record.kept) {
        if written.contains(&record.input) {
            continue;
        }
        let spooled = &unsealed.days[&Day::of(record.captured)];
        match spooled.image(&repo.shared, &record.input)? {
            Some(bytes) => {
                let path = images.join(image_name(&record.input, &bytes).as_bytes())?;
                files.write(&path, &bytes, Sync::Later)?;
                written.insert(record.input);
            }
            // The spooled image is missing or incomplete, as after a power failure.
            None => record.kept = false,
        }
    }
    let put = |name: &str, bytes: &[u8]| files.write(&path.join(name.as_bytes())?, bytes, Sync::Later);
    put(REQUESTS, &table::write_requests(&unsealed.records)?)?;
    put(TELEMETRY, &table::write_telemetry(&unsealed.samples)?)
}

/// Removes the folder of a sealed day, if it contains nothing but what a seal writes.
fn clear_target(repo: &Repo, path: &RepoPath) -> Result<()> {
    let files = &repo.files;
    if files.stat(path)?.is_some() {
        let is_ours = |name: &[u8]| {
            [REQUESTS, TELEMETRY, IMAGES].iter().any(|known| known.as_bytes() == name)
                || name.starts_with(fs::TEMP_PREFIX)
        };
        let unknown = files.dir(path)?.names()?.into_iter().find(|(name, _)| !is_ours(name));
        if let Some((name, _)) = unknown {
            let error = Error::new(
                Kind::Conflict,
                format!("`{}` is in a folder that the sealed day would replace", path.join(&name)?),
            );
            return Err(error.hint("move it elsewhere, then seal the day again"));
        }
        files.remove(path)?;
    }
    Ok(())
}

/// Returns the file name of an image, such as `HEX.jpg`; the extension follows from its content.
fn image_name(digest: &Digest, bytes: &[u8]) -> String {
    let extension = image::guess_format(bytes).ok().and_then(|format| format.extensions_str().first());
    format!("{}.{}", digest.hex(), extension.unwrap_or(&"bin"))
}

/// Removes days from the spool, except for some. A day to which records were added in the meantime is kept
/// whole.
fn remove_spooled(repo: &Repo, environment: &str, unsealed: &Unsealed, except: &BTreeSet<Day>) -> Result<()> {
    for (day, spooled) in unsealed.days.iter().filter(|(day, _)| !except.contains(*day)) {
        spool::remove(&repo.shared, environment, *day, spooled)?;
    }
    Ok(())
}

fn read_one(repo: &Repo, pointer: &Pointer) -> Result<DayTraffic> {
    let read = |name: &str| -> Result<Vec<u8>> {
        let entry = store::entry_at(&repo.store, &pointer.content.digest, &RepoPath::from_text(name)?)?;
        let missing =
            || Error::corrupt(format!("`{}` is not a sealed day: it has no `{name}`", pointer.path));
        repo.store.read(&entry.ok_or_else(missing)?.digest)
    };
    let context = || format!("cannot read the sealed day `{}`", pointer.path);
    let records = read(REQUESTS).and_then(|bytes| table::read_requests(&bytes)).context(context)?;
    let samples = read(TELEMETRY).and_then(|bytes| table::read_telemetry(&bytes)).context(context)?;
    Ok(DayTraffic { records, samples })
}

/// Reads the sealed traffic of a day, of all machines, in order of time; empty if nothing was sealed. The
/// tables must be in the store.
pub fn read_sealed(repo: &Repo, environment: &str, day: Day) -> Result<DayTraffic> {
    let mut all = DayTraffic::default();
    for pointer in paths::seal_pointers(repo, environment, day)? {
        let seal = read_one(repo, &pointer)?;
        all.records.extend(seal.records);
        all.samples.extend(seal.samples);
    }
    all.records.sort_by_key(|record| record.captured);
    all.samples.sort_by_key(|sample| sample.time);
    Ok(all)
}

/// Calls `visit` for every record of an environment: those of sealed days, then the spooled ones of this
/// machine.
pub fn for_each_record(
    repo: &Repo,
    environment: &str,
    visit: &mut dyn FnMut(Record) -> Result<()>,
) -> Result<()> {
    let spooled_days = spool::days(&repo.shared, environment)?;
    let mut visited = BTreeSet::new();
    for day in paths::sealed_days(&repo.files, environment)? {
        for record in read_sealed(repo, environment, day)?.records {
            // A killed seal leaves sealed records in the spool.
            if spooled_days.contains(&Day::of(record.captured)) {
                visited.insert(key(&record));
            }
            visit(record)?;
        }
    }
    for day in spooled_days {
        let records = spool::read(&repo.shared, environment, day)?.records;
        let mut unsealed = records.into_iter().filter(|record| !visited.contains(&key(record)));
        unsealed.try_for_each(&mut *visit)?;
    }
    Ok(())
}

/// Reads the image of a record from the spool or from a sealed day; None if it was not stored or is not here.
pub fn read_image(repo: &Repo, environment: &str, record: &Record) -> Result<Option<Vec<u8>>> {
    let captured = Day::of(record.captured);
    let spooled = spool::read(&repo.shared, environment, captured)?;
    if let Some(bytes) = spooled.image(&repo.shared, &record.input)? {
        return Ok(Some(bytes));
    }
    let hex = record.input.hex();
    for day in paths::sealed_days(&repo.files, environment)?.into_iter().filter(|it| *it >= captured) {
        for pointer in paths::seal_pointers(repo, environment, day)? {
            let tree = &pointer.content.digest;
            let Some(folder) = store::entry_at(&repo.store, tree, &RepoPath::from_text(IMAGES)?)? else {
                continue;
            };
            let entries = store::entries(&repo.store, &folder.digest)?;
            if let Some(entry) = entries.iter().find(|entry| entry.name.starts_with(hex.as_bytes())) {
                return repo.store.read(&entry.digest).map(Some);
            }
        }
    }
    Ok(None)
}
