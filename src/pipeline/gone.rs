//! Stages that are gone from their `mlx.toml`, or with it, while their records remain in `mlx.lock`.
//!
//! `mlx repro` of the whole pipeline removes the record and retires the outputs: they go with their ignore
//! lines as far as the store holds them. Content that is stored nowhere stays, with its ignore line, so that
//! Git does not take it. `mlx.toml` is read again under the repository's lock, since a stage may have been
//! added and run meanwhile. While any lockfile cannot be read, everything stays, since that lockfile may
//! record the same outputs.

use std::rc::Rc;

use crate::{
    error::{Error, Result},
    fs::Sync,
    path::RepoPath,
    pipeline::{
        Fault, LOCKFILE, Lockfile, MANIFEST, Manifest, Outcome, Pipelines, Records, StageId, StageRecord,
        StageRun, pipelines::read_manifest, records::read_lockfile,
    },
    pointer::Pointer,
    progress::Silent,
    workspace::State,
};

/// Returns the reason why a stage of a pipeline is gone.
fn reason(pipelines: &Pipelines<'_, '_>, folder: &RepoPath) -> Result<String> {
    let file = folder.join(MANIFEST.as_bytes())?;
    Ok(match pipelines.workspace.repo.files.stat(&file)? {
        Some(_) => format!("it is not in `{MANIFEST}` any more"),
        None => format!("its `{MANIFEST}` was deleted"),
    })
}

/// Plans the removal of the records of a pipeline whose stages are gone.
pub fn plan(
    pipelines: &Pipelines<'_, '_>,
    folder: &RepoPath,
    records: &Records<'_>,
) -> Result<Vec<(StageId, Vec<String>)>> {
    let Some(pipeline) = pipelines.iter().find(|pipeline| pipeline.folder == *folder) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let Ok(lock) = records.all().and_then(|()| records.of(folder)) else { return Ok(found) };
    for (name, record) in gone(lock, &pipeline.manifest) {
        let mut reasons = vec![reason(pipelines, folder)?];
        for pointer in own_outputs(pipelines, &pipeline.manifest, record)? {
            let path = &pointer.path;
            if pipelines.is_read(path) {
                reasons.push(format!("its output `{path}` would stay: another stage reads it"));
                continue;
            }
            match pipelines.workspace.compare(&pointer, &Silent)?.state {
                State::Absent => {}
                State::Same if pipelines.workspace.repo.store.is_complete(&pointer.content) => {
                    reasons.push(format!("its output `{path}` would be removed"));
                }
                _ => reasons.push(format!("its output `{path}` would stay if the store does not hold it")),
            }
        }
        found.push((StageId::new(folder, name), reasons));
    }
    Ok(found)
}

/// Returns the errors of a pipeline that no stage tells: of a broken `mlx.toml`, and of a lockfile without
/// stages, since what is gone from it is not known.
pub fn unreadable(pipelines: &Pipelines<'_, '_>, folder: &RepoPath) -> Vec<Error> {
    let repo = pipelines.workspace.repo;
    let broken = pipelines.broken.iter().find(|broken| broken.folder == *folder);
    let mut pipelines = pipelines.iter().filter(|pipeline| pipeline.folder == *folder);
    let has_stages = pipelines.any(|pipeline| !pipeline.manifest.stages.is_empty());
    let lockfile = if has_stages { None } else { read_lockfile(repo, folder).err() };
    broken.map(|broken| Fault::of(&broken.error).error()).into_iter().chain(lockfile).collect()
}

/// Removes the records of a pipeline whose stages are gone. The caller retires their outputs.
pub fn remove(pipelines: &Pipelines<'_, '_>, folder: &RepoPath) -> Result<Vec<StageRun>> {
    let files = &pipelines.workspace.repo.files;
    let has_none = |(manifest, lock): (Manifest, Lockfile)| gone(&lock, &manifest).next().is_none();
    // A lockfile that cannot be read is named elsewhere.
    let found = gone_now(pipelines, folder).unwrap_or_default();
    if found.is_none_or(has_none) || !pipelines.unreadable_lockfiles()?.is_empty() {
        return Ok(Vec::new());
    }
    let _lock = pipelines.workspace.repo.lock()?;
    let Some((manifest, mut lock)) = gone_now(pipelines, folder)? else { return Ok(Vec::new()) };
    let names = gone(&lock, &manifest).map(|(name, _)| StageId::new(folder, name));
    let why = reason(pipelines, folder)?;
    let run = |id| StageRun { id, outcome: Outcome::Removed, reasons: vec![why.clone()] };
    let runs = names.map(run).collect();
    lock.retain(&|stage| manifest.stages.contains_key(stage));
    let path = folder.join(LOCKFILE.as_bytes())?;
    if files.stat(&folder.join(MANIFEST.as_bytes())?)?.is_none() {
        files.remove(&path)?;
    } else {
        files.write(&path, lock.to_toml().as_bytes(), Sync::Now)?;
    }
    Ok(runs)
}

/// Reads the files of a pipeline as they are now; none if its `mlx.toml` is missing or broken.
fn gone_now(pipelines: &Pipelines<'_, '_>, folder: &RepoPath) -> Result<Option<(Manifest, Lockfile)>> {
    let Ok(Some(manifest)) = read_manifest(pipelines.workspace, folder) else { return Ok(None) };
    Ok(Some((manifest, Rc::unwrap_or_clone(read_lockfile(pipelines.workspace.repo, folder)?))))
}

/// Returns the records whose stages a manifest does not have.
fn gone<'l>(lock: &'l Lockfile, manifest: &Manifest) -> impl Iterator<Item = (&'l str, &'l StageRecord)> {
    lock.records().filter(|(name, _)| !manifest.stages.contains_key(*name))
}

/// Returns the outputs of a record that are kept in the store and belong to neither a stage nor a pointer
/// by now.
fn own_outputs(
    pipelines: &Pipelines<'_, '_>,
    manifest: &Manifest,
    record: &StageRecord,
) -> Result<Vec<Pointer>> {
    let mut own = Vec::new();
    for (path, content) in &record.outputs {
        let is_made =
            manifest.outputs().any(|(_, out)| out.path.overlaps(path)) || pipelines.graph().makes(path);
        if !is_made && pipelines.workspace.pointer_of(path)?.is_none() {
            own.push(Pointer { path: path.clone(), content: *content });
        }
    }
    Ok(own)
}
