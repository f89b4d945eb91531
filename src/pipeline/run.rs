//! Runs stages in order: a stage with changed inputs runs, one with a cached run is restored, others are
//! unchanged.
//!
//! Content that no run recorded is kept before an output is replaced. A failed run leaves no record: its
//! partial outputs are quarantined and the recorded ones are restored.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result},
    fs::{FileKind, Lock, Sync, lock_patiently, try_lock},
    git::IgnoreTarget,
    path::RepoPath,
    pipeline::{
        Pipeline, Pipelines, Records, Selection, Stage, StageId, StageRecord,
        check::Checker,
        ended::Ended,
        extension::Extension,
        failures::Failures,
        glance::{Glance, Glanced},
        gone,
        inputs::link_error,
        leftovers::{self, LOGS},
        plan::{Examination, PlannedAction},
        records::update_lockfile,
        recovery::Stamps,
        run_cache, runner, script,
    },
    pointer::Pointer,
    progress::Progress,
};

/// Time between two saves of the stat cache and the bases: each writes them whole.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// Options of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Run stages even if nothing changed.
    pub force: bool,
    /// After a failure, continue with stages that do not need the failed one.
    pub keep_going: bool,
    pub mode: Mode,
}

/// Way in which a stale stage gets its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Run,
    /// Its command does not run: its present outputs are recorded as its result.
    Accept,
}

/// Outcome of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ran,
    Restored,
    Unchanged,
    Failed,
    Skipped,
    /// The result that was there was recorded; nothing ran.
    Recorded,
    /// The stage is gone from its `mlx.toml`, and its record was removed.
    Removed,
}

impl Outcome {
    /// Returns the name of this outcome in `--json` output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ran => "ran",
            Self::Restored => "restored",
            Self::Unchanged => "unchanged",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Recorded => "recorded",
            Self::Removed => "removed",
        }
    }
}

/// A stage of a run, with its outcome and the reasons for it.
#[derive(Debug)]
pub struct StageRun {
    pub id: StageId,
    pub outcome: Outcome,
    pub reasons: Vec<String>,
}

/// Runs these stages and all they need. Returns every stage's outcome, and the error if anything failed; if
/// that tells of several failures, they were reported.
///
/// A fault of the graph stops only the stages it is about and those that need them. Any other problem that a
/// check finds is an error before the first stage runs, unless the run is to continue after failures.
pub fn repro(
    pipelines: &Pipelines<'_, '_>,
    wanted: &Selection,
    options: Options,
    progress: &dyn Progress,
) -> Result<(Vec<StageRun>, Option<Error>)> {
    let graph = pipelines.graph();
    let order = graph.upstream_of(&wanted.stages);
    let refused = refused(pipelines, &order, options)?;
    let blocked = graph.downstream_of(refused.iter().map(|it| &it.0));
    let mut faulty: BTreeSet<StageId> = refused.iter().map(|it| it.0.clone()).collect();
    faulty.extend(blocked);
    let mut refused: BTreeMap<StageId, Error> = refused.into_iter().collect();
    let undeclared = pipelines.undeclared_outputs()?.unwrap_or_default();
    let mut failures = Failures::new(progress, options.keep_going);
    if options.mode == Mode::Run {
        pipelines.ignore_new_outputs(order.iter().filter(|id| !faulty.contains(id)), progress)?;
    }
    let (mut runs, mut has_stopped, mut saved) = (Vec::new(), false, Instant::now());
    let mut glance = Glance::new(pipelines)?;
    for id in order {
        if let Some(error) = refused.remove(&id) {
            runs.push(failures.add(id, error));
            continue;
        }
        let is_blocked = faulty.contains(&id) || graph.needs[&id].iter().any(|need| faulty.contains(need));
        if is_blocked || has_stopped {
            let reasons = vec!["an earlier stage failed".to_owned()];
            faulty.insert(id.clone());
            runs.push(StageRun { id, outcome: Outcome::Skipped, reasons });
            continue;
        }
        let done = pipelines.of(&id).repro_stage(&id.name, options, &glance, progress);
        if !matches!(done, Ok((Outcome::Unchanged, _))) {
            glance = Glance::new(pipelines)?;
        }
        match done {
            Ok((outcome, reasons)) => runs.push(StageRun { id, outcome, reasons }),
            Err(error) => {
                faulty.insert(id.clone());
                has_stopped = !options.keep_going;
                runs.push(failures.add(id, error));
            }
        }
        if saved.elapsed() >= SAVE_INTERVAL {
            pipelines.workspace.save(progress)?;
            saved = Instant::now();
        }
    }
    pipelines.workspace.save(progress)?;
    for folder in &wanted.folders {
        let unreadable = gone::unreadable(pipelines, folder);
        unreadable.into_iter().for_each(|error| failures.add_problem(error));
        runs.extend(gone::remove(pipelines, folder)?);
    }
    pipelines.retire(undeclared, progress)?;
    Ok((runs, failures.end()))
}

/// Accepts the present outputs of these stages as their results, without the stages they need.
pub fn accept(
    pipelines: &Pipelines<'_, '_>,
    ids: &[StageId],
    progress: &dyn Progress,
) -> Result<Vec<StageRun>> {
    let order: Vec<_> = pipelines.graph().order.iter().filter(|id| ids.contains(id)).cloned().collect();
    let options = Options { mode: Mode::Accept, ..Options::default() };
    let refused = refused(pipelines, &order, options)?;
    if let Some((_, error)) = refused.into_iter().next() {
        return Err(error);
    }
    let (mut runs, glance) = (Vec::new(), Glance::new(pipelines)?);
    for id in order {
        let (outcome, reasons) = pipelines.of(&id).repro_stage(&id.name, options, &glance, progress)?;
        runs.push(StageRun { id, outcome, reasons });
    }
    Ok(runs)
}

/// Returns the stages that cannot run, with the reason of each: those with a fault in the graph or without a
/// readable lockfile, and with `keep_going` those that a check refuses.
fn refused(
    pipelines: &Pipelines<'_, '_>,
    order: &[StageId],
    options: Options,
) -> Result<Vec<(StageId, Error)>> {
    let records = Records::new(pipelines.workspace.repo, pipelines.folders());
    let is_unreadable = |id: &&StageId| records.of(&id.folder).is_err();
    let faults: BTreeSet<&StageId> =
        pipelines.graph().faults.keys().chain(order.iter().filter(is_unreadable)).collect();
    let blocked = pipelines.graph().downstream_of(faults.iter().copied());
    let checker = Checker::new(pipelines, &records)?;
    let mut refused = Vec::new();
    for id in order.iter().filter(|id| !blocked.contains(id)) {
        match checker.check(id) {
            Err(error) if faults.contains(id) || options.keep_going => refused.push((id.clone(), error)),
            checked => checked?,
        }
    }
    Ok(refused)
}

impl Pipelines<'_, '_> {
    /// Adds the outputs of stages that have no record yet to the `.gitignore` files of folders that exist,
    /// each of which is written once and not for each of the stages.
    fn ignore_new_outputs<'i>(
        &self,
        ids: impl Iterator<Item = &'i StageId>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (repo, mut outputs) = (self.workspace.repo, Vec::new());
        for id in ids {
            let pipeline = self.of(id);
            if pipeline.read_lockfile()?.get(&id.name).is_none() {
                let stage = &pipeline.manifest.stages[&id.name];
                outputs.extend(stage.outputs.iter().filter(|out| !out.role.in_git()).map(|out| &out.path));
            }
        }
        let mut folders: BTreeSet<_> = outputs.iter().filter_map(|path| path.parent()).collect();
        folders.retain(|folder| repo.files.dir(folder).is_ok());
        outputs.retain(|path| path.parent().is_some_and(|folder| folders.contains(&folder)));
        if outputs.is_empty() {
            return Ok(());
        }
        let _lock = repo.lock()?;
        folders.iter().try_for_each(|folder| self.workspace.clean_folder(folder, progress))?;
        let targets: Vec<_> = outputs.into_iter().map(|path| IgnoreTarget::at(&repo.files, path)).collect();
        repo.git.ignore(&repo.files, &targets).map(drop)
    }
}

impl Pipeline<'_, '_> {
    /// Examines a stage, then runs it, restores it or leaves it as it is.
    fn repro_stage(
        &self,
        name: &str,
        options: Options,
        glance: &Glance<'_>,
        progress: &dyn Progress,
    ) -> Result<(Outcome, Vec<String>)> {
        let stage = &self.manifest.stages[name];
        let is_plain = options.mode == Mode::Run && !options.force;
        // An error is that of the second look.
        let glanced = is_plain.then(|| self.glance(name, stage, glance, progress).ok()).flatten();
        if let Some(Glanced::Unchanged(reasons)) = glanced {
            return Ok((Outcome::Unchanged, reasons));
        }
        // Held from the examination to the record, so that two runs of one stage wait for each other.
        let _turn = self.take_turn(name, progress)?;
        if options.mode == Mode::Accept {
            return self.accept(name, stage, progress);
        }
        self.recover_killed_run(name, stage, progress)?;
        self.reads.start();
        let examine = || {
            self.record_inputs(name, stage, progress)?;
            self.examine(name, stage, &self.records(), &Default::default(), options.force)
        };
        let mut examination = examine()?;
        let is_shared = !matches!(glanced, Some(Glanced::Stale)) && self.reads.was_shared();
        if examination.action != PlannedAction::Unchanged && is_shared {
            // A result is recorded with what its inputs are now.
            self.reads.forget_scans();
            examination = examine()?;
        }
        if examination.action == PlannedAction::Restore && !self.pin_outputs(&examination)? {
            // A gc has freed some of them since they were looked up.
            examination.action = PlannedAction::Run;
        }
        let reasons = examination.reasons.clone();
        match examination.action {
            PlannedAction::Unchanged => Ok((Outcome::Unchanged, reasons)),
            PlannedAction::Restore => {
                self.restore(name, stage, examination, progress).map(|()| (Outcome::Restored, reasons))
            }
            PlannedAction::Run => {
                self.run(name, stage, examination, progress).map(|()| (Outcome::Ran, reasons))
            }
        }
    }

    /// Waits until no other command runs, restores or records the stage in this worktree.
    pub(super) fn take_turn(&self, name: &str, progress: &dyn Progress) -> Result<Lock> {
        let (private, turn) = (&self.repo().private, self.turn_file(name)?);
        if let Some(free) = try_lock(private, &turn)? {
            return Ok(free);
        }
        let lock = lock_patiently(private, &turn, progress)?;
        self.reads.forget();
        Ok(lock)
    }

    /// Pins the outputs that a restore would bring, before the lockfile names them; returns false if some of
    /// them are not stored any more.
    fn pin_outputs(&self, examination: &Examination) -> Result<bool> {
        let store = &self.repo().store;
        examination.outputs.values().try_fold(true, |all, content| Ok(all && store.pin_complete(content)?))
    }

    /// Checks out the outputs of a cached or recorded run.
    fn restore(
        &self,
        name: &str,
        stage: &Stage,
        examination: Examination,
        progress: &dyn Progress,
    ) -> Result<()> {
        self.keep_unrecorded(name, stage, &examination.outputs, progress)?;
        for out in &stage.outputs {
            let content = examination.outputs.get(&out.path).ok_or_else(|| {
                Error::corrupt(format!("the recorded run of the stage `{name}` has no output `{}`", out.path))
            })?;
            let pointer = Pointer { path: out.path.clone(), content: *content };
            self.restore_output(&pointer, progress)?;
        }
        self.reads.forget();
        if examination.matches_record {
            return Ok(());
        }
        let outputs = examination.outputs.clone();
        self.record_run(name, stage, Mode::Run, examination, &outputs, progress)
    }

    /// Runs a stage's command and records the run; on a failure recovers the outputs.
    fn run(
        &self,
        name: &str,
        stage: &Stage,
        examination: Examination,
        progress: &dyn Progress,
    ) -> Result<()> {
        self.check_present(name, &examination.inputs)?;
        for out in &stage.outputs {
            self.move_git_folders(name, &out.path, progress)?;
        }
        let stamps = self.keep_unrecorded(name, stage, &run_cache::Outputs::new(), progress)?;
        let private = &self.repo().private;
        let moved_before = self.take_moved(name)?;
        // Only the name says something, and that is synced with the folder.
        private.write(&self.running_marker(name)?, b"", Sync::Later)?;
        private.sync_folder_of(&self.running_marker(name)?)?;
        let outputs = self
            .execute(name, stage, &stamps, progress)
            .and_then(|()| self.moved_input(name, stage, &examination.inputs))
            .and_then(|moved| match moved {
                Some(moved) => Ok(Err(moved)),
                None => self.store_outputs(name, stage, progress).map(Ok),
            });
        match outputs {
            Ok(Ok(outputs)) => {
                run_cache::put(&self.repo().store, examination.cache_inputs.clone(), &outputs)?;
                self.record_run(name, stage, Mode::Run, examination, &outputs, progress)?;
                private.remove(&self.running_marker(name)?)
            }
            Ok(Err(moved)) => {
                let place = self.take_back_outputs(name, stage, progress)?;
                self.note_moved(name, &moved)?;
                Err(moved.error(name, place.as_deref(), moved_before.as_ref()))
            }
            Err(error) => {
                self.take_back_outputs(name, stage, progress)?;
                Err(error)
            }
        }
    }

    /// Quarantines the outputs of a run that is not recorded, restores the recorded ones, and returns where
    /// the others are. If that fails it is a warning, since the run's own error is the one to return: the
    /// next run repeats it.
    fn take_back_outputs(
        &self,
        name: &str,
        stage: &Stage,
        progress: &dyn Progress,
    ) -> Result<Option<PathBuf>> {
        match self.quarantine_outputs(name, stage, progress) {
            Ok(place) => {
                self.restore_outputs(name, stage, progress);
                self.repo().private.remove(&self.running_marker(name)?)?;
                Ok(place)
            }
            Err(error) => {
                progress.warn(&error.chain_text());
                Ok(None)
            }
        }
    }

    /// Removes the outputs, creates their parent folders and runs the command.
    fn execute(&self, name: &str, stage: &Stage, stamps: &Stamps, progress: &dyn Progress) -> Result<()> {
        let repo = self.repo();
        for out in &stage.outputs {
            let safe = stamps.get(&out.path).and_then(Option::as_ref);
            self.clear_output(name, &out.path, safe, progress)?;
            repo.files.create_dir(&out.path.parent().unwrap_or_default())?;
        }
        let log = RepoPath::from_text(&format!("{LOGS}/{}.log", leftovers::name(name)))?;
        let reached = self.running_file(name, ".reached")?;
        repo.private.remove(&reached)?;
        progress.note(&format!("running stage `{name}`: {}", stage.command.trim().replace('\n', "; ")));
        let job = runner::Job {
            private: &repo.private,
            lock: &self.running_file(name, ".lock")?,
            script: &script::script(&stage.commands, &reached.on_disk(repo.private.path())),
            folder: &self.folder.on_disk(repo.root()),
            environment: &stage.environment,
            log: &log,
        };
        let ended = runner::run(&job, progress);
        self.reads.forget();
        let ended = ended?;
        let lines = repo.private.read_if_exists(&reached)?.unwrap_or_default();
        repo.private.remove(&reached)?;
        if ended == Ended::Code(0) {
            return script::check_reached(name, &stage.commands, &lines);
        }
        Err(script::failure(name, &stage.commands, &lines, ended, &log.on_disk(repo.private.path())))
    }

    /// Stores the outputs of a run.
    fn store_outputs(
        &self,
        name: &str,
        stage: &Stage,
        progress: &dyn Progress,
    ) -> Result<run_cache::Outputs> {
        let mut outputs = run_cache::Outputs::new();
        for out in &stage.outputs {
            if self.workspace.repo.files.stat(&out.path)?.is_some_and(|stat| stat.kind == FileKind::Symlink) {
                return Err(link_error(name, &out.path));
            }
            let stored = self.workspace.store_output(&out.path, progress)?.ok_or_else(|| {
                let message =
                    format!("the stage `{name}` succeeded, but did not create its output `{}`", out.path);
                Error::new(Kind::Stage, message).hint("correct its `cmd` or its outputs in `mlx.toml`")
            })?;
            outputs.insert(out.path.clone(), stored);
        }
        Ok(outputs)
    }

    /// Records a run in the lockfile, and adds the outputs to or removes them from `.gitignore` by their
    /// role.
    pub(super) fn record_run(
        &self,
        name: &str,
        stage: &Stage,
        mode: Mode,
        Examination { inputs, cache_inputs, .. }: Examination,
        outputs: &run_cache::Outputs,
        progress: &dyn Progress,
    ) -> Result<()> {
        let contents = |in_git: bool| {
            let wanted = stage.outputs.iter().filter(move |out| out.role.in_git() == in_git);
            wanted.filter_map(|out| Some((out.path.clone(), *outputs.get(&out.path)?))).collect()
        };
        let record = StageRecord {
            command: stage.command.clone(),
            builtin: self.builtin(stage),
            edited: false,
            not_run: mode == Mode::Accept,
            extension: Extension::default(),
            key: Digest::of(crate::document::canonical(&cache_inputs).as_bytes()),
            environment: stage.environment.clone(),
            dependencies: inputs.dependencies,
            params: inputs.params,
            outputs: contents(false),
            in_git: contents(true),
        };
        for out in &stage.outputs {
            let _lock = self.repo().lock()?;
            let (git, files) = (&self.repo().git, &self.repo().files);
            self.workspace.clean_folder(&out.path.parent().unwrap_or_default(), progress)?;
            if out.role.in_git() {
                git.unignore(files, &out.path)?;
            } else {
                git.ignore(files, &[IgnoreTarget::at(files, &out.path)])?;
            }
        }
        for (path, content) in &record.outputs {
            self.workspace.note_base(path, *content)?;
        }
        self.write_record(name, record, progress)
    }

    /// Replaces a stage's record in the lockfile, holding the repository's lock for this write only. The text
    /// of other stages does not change.
    pub(super) fn write_record(
        &self,
        name: &str,
        record: StageRecord,
        progress: &dyn Progress,
    ) -> Result<()> {
        let _lock = self.repo().lock()?;
        self.workspace.clean_folder(&self.folder, progress)?;
        let is_written = self.repo().files.stat(&self.lockfile_path()?)?.is_some();
        if is_written && self.read_lockfile()?.get(name) == Some(&record) {
            return Ok(());
        }
        update_lockfile(self.repo(), &self.folder, |lock| lock.set(name, record))
    }
}
