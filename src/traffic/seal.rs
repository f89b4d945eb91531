//! A day of traffic becomes a dataset like any other: a folder in the workspace, its objects in the store,
//! and a pointer for Git.
//!
//! What waits in the spool goes only after the pointer is written, and what a pointer already names is left
//! out when the spool is read again: a seal that was killed anywhere is made whole by the next.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    error::{Doing, Error, Kind, Result},
    fs::{self, Sync},
    path::RepoPath,
    pointer::Pointer,
    progress::Progress,
    repo::Repo,
    store,
    time::Day,
    traffic::{
        Record, Sample,
        place::{self, PICTURES, REQUESTS, TELEMETRY},
        spool::{self, Spooled},
        table,
    },
    workspace::Workspace,
};

/// A sealed day of one machine.
#[derive(Clone, Debug)]
pub struct Seal {
    pub machine: String,
    pub pointer: Pointer,
    pub records: usize,
    /// Those of earlier days among them.
    pub late: usize,
    pub pictures: usize,
    /// Nothing was done: the day had been sealed before.
    pub already: bool,
}

/// What was sealed of a day, of all machines.
#[derive(Clone, Debug, Default)]
pub struct Sealed {
    pub records: Vec<Record>,
    pub samples: Vec<Sample>,
}

/// What a seal will hold.
#[derive(Default)]
struct Gathered {
    records: Vec<Record>,
    samples: Vec<Sample>,
    /// The days of the spool that were read, without what is in the lists above.
    days: BTreeMap<Day, Spooled>,
    /// Those of them that had anything in no seal yet.
    fresh: BTreeSet<Day>,
}

/// Tells one record from all others; clients may use an id again.
type Key = (String, i64, i64, Digest);

fn key(record: &Record) -> Key {
    (record.id.clone(), record.captured, record.received, record.input)
}

/// Seals what this machine has of a day and, late, of the days before it.
pub fn seal(
    workspace: &Workspace<'_>,
    environment: &str,
    day: Day,
    machine: Option<&str>,
    progress: &dyn Progress,
) -> Result<Seal> {
    let repo = workspace.repo;
    let machine = place::machine(machine)?;
    let path = place::day_folder(environment, day)?.join(machine.as_bytes())?;
    if day >= Day::today() {
        let error = Error::usage(format!("{day} is not over (days are UTC)"));
        return Err(error.hint(format!("the last day that can be sealed is {}", Day::today().plus(-1))));
    }
    let warn = |it: &Gathered| {
        for (day, spooled) in it.days.iter().filter(|it| it.1.damaged > 0) {
            progress.warn(&format!(
                "{} records of {day} are damaged and not sealed; what is left of them is put aside in the spool",
                spooled.damaged
            ));
        }
    };
    let lock = place::folder(environment)?.join(b"seal.lock")?;
    let _alone = fs::lock_telling(&repo.shared, &lock, progress)?;
    let mut gathered = gather(repo, environment, day)?;
    warn(&gathered);
    if let Some(pointer) = repo.pointer(&path)? {
        workspace.remember(&path);
        workspace.save(progress)?;
        clear(repo, environment, &gathered, &gathered.fresh)?;
        let found = read_one(repo, &pointer)?;
        return Ok(told(machine, pointer, &found.records, day, true));
    }
    if gathered.records.is_empty() {
        clear(repo, environment, &gathered, &gathered.fresh)?;
        let error = Error::not_found(format!("there is no traffic of {day} in `{environment}` to seal here"));
        return Err(error.hint("`mlx traffic list` shows the days that wait"));
    }
    write(repo, &path, &mut gathered)?;
    let added = workspace.add(&path, &[], progress);
    workspace.save(progress)?;
    let seal = told(machine, added?, &gathered.records, day, false);
    clear(repo, environment, &gathered, &BTreeSet::new())?;
    Ok(seal)
}

fn told(machine: String, pointer: Pointer, records: &[Record], day: Day, already: bool) -> Seal {
    let late = records.iter().filter(|it| Day::of(it.captured) < day).count();
    let pictures: BTreeSet<_> = records.iter().filter(|it| it.kept).map(|it| it.input).collect();
    Seal { machine, pointer, records: records.len(), late, pictures: pictures.len(), already }
}

/// What waits of days up to `day` and is in no seal.
fn gather(repo: &Repo, environment: &str, day: Day) -> Result<Gathered> {
    let mut found = Gathered::default();
    for waiting in spool::days(&repo.shared, environment)?.into_iter().filter(|it| *it <= day) {
        found.days.insert(waiting, spool::read(&repo.shared, environment, waiting)?);
    }
    let (keys, times) = sealed_keys(repo, environment, found.days.keys().next())?;
    for (waiting, spooled) in &mut found.days {
        let mut records = std::mem::take(&mut spooled.records);
        let mut samples = std::mem::take(&mut spooled.samples);
        records.retain(|it| !keys.contains(&key(it)));
        samples.retain(|it| !times.contains(&(it.time, it.resident)));
        if !records.is_empty() || !samples.is_empty() {
            found.fresh.insert(*waiting);
        }
        found.records.append(&mut records);
        found.samples.append(&mut samples);
    }
    found.records.sort_by_cached_key(|it| (it.captured, it.received, it.id.clone(), it.input));
    found.samples.sort_by_key(|it| (it.time, it.resident));
    Ok(found)
}

/// Records and samples that the seals here hold from a day on. Records are sealed on their own day or later, so
/// what waits can be in no other. A seal whose tables are not here is another machine's: this one stores its own.
fn sealed_keys(
    repo: &Repo,
    environment: &str,
    from: Option<&Day>,
) -> Result<(BTreeSet<Key>, BTreeSet<(i64, u64)>)> {
    let (mut keys, mut times) = Default::default();
    let Some(from) = from else { return Ok((keys, times)) };
    for day in place::sealed_days(&repo.files, environment)?.into_iter().filter(|it| it >= from) {
        for pointer in place::seals(repo, environment, day)? {
            let found = match read_one(repo, &pointer) {
                Ok(found) => found,
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => return Err(error),
            };
            keys.extend(found.records.iter().map(key));
            times.extend(found.samples.iter().map(|it| (it.time, it.resident)));
        }
    }
    Ok((keys, times))
}

/// Writes the folder that is going to be added; what a killed seal left of it goes first.
fn write(repo: &Repo, path: &RepoPath, gathered: &mut Gathered) -> Result<()> {
    make_room(repo, path)?;
    let files = &repo.files;
    let pictures = path.join(PICTURES.as_bytes())?;
    let mut kept = BTreeSet::new();
    for record in gathered.records.iter_mut().filter(|it| it.kept) {
        if kept.contains(&record.input) {
            continue;
        }
        let spooled = &gathered.days[&Day::of(record.captured)];
        match spooled.picture(&repo.shared, &record.input)? {
            Some(bytes) => {
                let place = pictures.join(picture_name(&record.input, &bytes).as_bytes())?;
                files.write(&place, &bytes, Sync::Later)?;
                kept.insert(record.input);
            }
            // It was to be kept, and is not there whole: the power went away.
            None => record.kept = false,
        }
    }
    let put = |name: &str, bytes: &[u8]| files.write(&path.join(name.as_bytes())?, bytes, Sync::Later);
    put(REQUESTS, &table::write_requests(&gathered.records)?)?;
    put(TELEMETRY, &table::write_telemetry(&gathered.samples)?)
}

/// Sees to it that there is nothing where the folder is going to be.
fn make_room(repo: &Repo, path: &RepoPath) -> Result<()> {
    let files = &repo.files;
    if files.stamp(path)?.is_some() {
        let ours = |it: &[u8]| [REQUESTS, TELEMETRY, PICTURES].iter().any(|name| name.as_bytes() == it);
        let strange =
            files.dir(path)?.names()?.into_iter().find(|it| !ours(&it.0) && !it.0.starts_with(fs::TEMPORARY));
        if let Some((name, _)) = strange {
            let error = Error::new(Kind::Conflict, format!("`{}` is in the way", path.join(&name)?));
            return Err(error.hint("move it elsewhere: a sealed day takes its place"));
        }
        files.remove(path)?;
    }
    Ok(())
}

/// `HEX.jpg`, by what the bytes are.
fn picture_name(digest: &Digest, bytes: &[u8]) -> String {
    let ending = image::guess_format(bytes).ok().and_then(|it| it.extensions_str().first());
    format!("{}.{}", digest.hex(), ending.unwrap_or(&"bin"))
}

/// Removes the days that waited, but for some; one that grew meanwhile waits on as a whole.
fn clear(repo: &Repo, environment: &str, gathered: &Gathered, but: &BTreeSet<Day>) -> Result<()> {
    for (day, spooled) in gathered.days.iter().filter(|it| !but.contains(it.0)) {
        spool::remove(&repo.shared, environment, *day, spooled)?;
    }
    Ok(())
}

fn read_one(repo: &Repo, pointer: &Pointer) -> Result<Sealed> {
    let read = |name: &str| -> Result<Vec<u8>> {
        let entry = store::file_at(&repo.store, &pointer.content.digest, &RepoPath::from_text(name)?)?;
        let missing = || Error::corrupt(format!("`{}` is no sealed day: it has no {name}", pointer.path));
        repo.store.read(&entry.ok_or_else(missing)?.digest)
    };
    let doing = || format!("cannot read the sealed day `{}`", pointer.path);
    let records = read(REQUESTS).and_then(|it| table::read_requests(&it)).doing(doing)?;
    let samples = read(TELEMETRY).and_then(|it| table::read_telemetry(&it)).doing(doing)?;
    Ok(Sealed { records, samples })
}

/// What was sealed of a day, by order of time; nothing where nothing was. The tables must be in the store.
pub fn sealed(repo: &Repo, environment: &str, day: Day) -> Result<Sealed> {
    let mut whole = Sealed::default();
    for pointer in place::seals(repo, environment, day)? {
        let one = read_one(repo, &pointer)?;
        whole.records.extend(one.records);
        whole.samples.extend(one.samples);
    }
    whole.records.sort_by_key(|it| it.captured);
    whole.samples.sort_by_key(|it| it.time);
    Ok(whole)
}

/// Shows every record of an environment: sealed ones, then those that wait here.
pub fn each(repo: &Repo, environment: &str, see: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
    let waiting = spool::days(&repo.shared, environment)?;
    let mut seen = BTreeSet::new();
    for day in place::sealed_days(&repo.files, environment)? {
        for record in sealed(repo, environment, day)?.records {
            // What waits may be what a killed seal had sealed.
            if waiting.contains(&Day::of(record.captured)) {
                seen.insert(key(&record));
            }
            see(record)?;
        }
    }
    for day in waiting {
        let fresh = spool::read(&repo.shared, environment, day)?.records;
        fresh.into_iter().filter(|it| !seen.contains(&key(it))).try_for_each(&mut *see)?;
    }
    Ok(())
}

/// The picture of a record, if it was kept and is here: sealed, or waiting.
pub fn picture(repo: &Repo, environment: &str, record: &Record) -> Result<Option<Vec<u8>>> {
    let own = Day::of(record.captured);
    let spooled = spool::read(&repo.shared, environment, own)?;
    if let Some(bytes) = spooled.picture(&repo.shared, &record.input)? {
        return Ok(Some(bytes));
    }
    let hex = record.input.hex();
    for day in place::sealed_days(&repo.files, environment)?.into_iter().filter(|it| *it >= own) {
        for pointer in place::seals(repo, environment, day)? {
            let tree = &pointer.content.digest;
            let Some(folder) = store::file_at(&repo.store, tree, &RepoPath::from_text(PICTURES)?)? else {
                continue;
            };
            let entries = store::entries(&repo.store, &folder.digest)?;
            if let Some(entry) = entries.iter().find(|it| it.name.starts_with(hex.as_bytes())) {
                return repo.store.read(&entry.digest).map(Some);
            }
        }
    }
    Ok(None)
}
