//! Stages, run in order: what changed runs, what was made before is restored, the rest is left alone.

use std::collections::BTreeSet;

use crate::{
    digest::Digest,
    error::{Doing, Error, Kind, Result},
    fs::{Form, Sync, lock},
    path::RepoPath,
    pipeline::{
        Pipeline, Record, Stage,
        check::check,
        inputs::{Inputs, linked},
        plan::{Finding, Forecast},
        run_cache, runner,
    },
    pointer::Pointer,
    progress::Progress,
    time::Timestamp,
    workspace::checkout,
};

/// How a run is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Run even what did not change.
    pub force: bool,
    /// After a failure go on with stages that do not need the failed one.
    pub keep_going: bool,
}

/// What became of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ran,
    Restored,
    Unchanged,
    Failed,
    Skipped,
}

/// One stage of a run.
#[derive(Debug)]
pub struct Ran {
    pub name: String,
    pub outcome: Outcome,
    pub why: Vec<String>,
}

/// Runs these stages and all they need. The first failure comes beside what was done.
pub fn repro(
    pipeline: &Pipeline<'_, '_>,
    names: &[String],
    options: Options,
    progress: &dyn Progress,
) -> Result<(Vec<Ran>, Option<Error>)> {
    let order = pipeline.graph.upstream_of(names)?;
    check(pipeline, &order)?;
    let mut done = Vec::new();
    let mut failure = None;
    let mut broken: BTreeSet<String> = BTreeSet::new();
    for name in order {
        let blocked = pipeline.graph.needs[&name].iter().any(|it| broken.contains(it));
        if blocked || failure.is_some() && !options.keep_going {
            let why = vec!["an earlier stage failed".to_owned()];
            broken.insert(name.clone());
            done.push(Ran { name, outcome: Outcome::Skipped, why });
            continue;
        }
        match pipeline.turn(&name, options.force, progress) {
            Ok((outcome, why)) => done.push(Ran { name, outcome, why }),
            Err(error) => {
                broken.insert(name.clone());
                done.push(Ran { name, outcome: Outcome::Failed, why: vec![error.full_text()] });
                failure.get_or_insert(error);
            }
        }
        pipeline.workspace.save(progress)?;
    }
    Ok((done, failure))
}

impl Pipeline<'_, '_> {
    fn turn(&self, name: &str, force: bool, progress: &dyn Progress) -> Result<(Outcome, Vec<String>)> {
        let stage = &self.manifest.stages[name];
        // Held from the first look to the record: two runs of one stage take turns.
        let turn = self.running(name, ".turn")?;
        let _turn = lock(&self.repo().private, &turn).doing(|| format!("the stage `{name}` is running"))?;
        self.clear_leavings(name, stage, progress)?;
        let lock = self.lock()?;
        let finding = self.examine(name, stage, &lock, &Default::default(), force)?;
        let why = finding.why.clone();
        match finding.forecast {
            Forecast::Unchanged => Ok((Outcome::Unchanged, why)),
            Forecast::Restore => {
                self.restore(name, stage, finding, progress).map(|()| (Outcome::Restored, why))
            }
            Forecast::Run => self.run(name, stage, finding, progress).map(|()| (Outcome::Ran, why)),
        }
    }

    fn restore(&self, name: &str, stage: &Stage, finding: Finding, progress: &dyn Progress) -> Result<()> {
        self.save_edits(name, stage, progress)?;
        for out in &stage.outputs {
            let content = finding.outputs.get(&out.path).ok_or_else(|| {
                Error::corrupt(format!("the recorded run of `{name}` lacks `{}`", out.path))
            })?;
            let pointer = Pointer { path: out.path.clone(), content: *content };
            checkout(self.workspace, &pointer, false, progress)?;
        }
        if finding.as_recorded {
            return Ok(());
        }
        self.record(name, stage, finding.inputs, &finding.question, &finding.outputs)
    }

    fn run(&self, name: &str, stage: &Stage, finding: Finding, progress: &dyn Progress) -> Result<()> {
        if let Some(path) = finding.inputs.absent.first() {
            return Err(finding.inputs.dependencies[path].absent(path))
                .doing(|| format!("cannot run the stage `{name}`"));
        }
        self.save_edits(name, stage, progress)?;
        let private = &self.repo().private;
        private.write(&self.mark(name)?, stage.command.as_bytes(), Sync::Yes)?;
        let made = self
            .execute(name, stage, progress)
            .and_then(|()| self.collect(name, stage, &finding.inputs, progress));
        match made {
            Ok(outputs) => {
                run_cache::put(&self.repo().store, finding.question.clone(), &outputs)?;
                self.record(name, stage, finding.inputs, &finding.question, &outputs)?;
                private.remove(&self.mark(name)?)
            }
            Err(error) => {
                // The stage's own error is what matters; the next run clears up what this one cannot.
                match self.set_aside(name, stage, progress) {
                    Ok(()) => {
                        self.bring_back(name, stage, progress);
                        private.remove(&self.mark(name)?)?;
                    }
                    Err(second) => progress.warn(&second.full_text()),
                }
                Err(error)
            }
        }
    }

    /// Clears the outputs away, makes their folders, and runs the command.
    fn execute(&self, name: &str, stage: &Stage, progress: &dyn Progress) -> Result<()> {
        let repo = self.repo();
        for out in &stage.outputs {
            repo.files.remove(&out.path)?;
            repo.files.make_dir(&out.path.parent().unwrap_or_default())?;
        }
        let log = RepoPath::from_text(&format!(
            "logs/{name}-{}-{}.log",
            Timestamp::now().compact(),
            std::process::id()
        ))?;
        progress.note(&format!("running stage `{name}`: {}", stage.command.replace('\n', "; ")));
        let job = runner::Job {
            private: &repo.private,
            lock: &self.running(name, ".lock")?,
            command: &stage.command,
            folder: &self.folder.on_disk(repo.root()),
            environment: &stage.environment,
            log: &log,
        };
        let status = runner::run(&job, progress)?;
        if status.success() {
            return Ok(());
        }
        let place = log.on_disk(repo.private.path());
        let message =
            format!("the stage `{name}` failed ({status}): `{}`", stage.command.replace('\n', "; "));
        Err(Error::new(Kind::Stage, message).hint(format!("its output is in {}", place.display())))
    }

    /// Looks at the inputs again, then stores the outputs: a record is never false.
    fn collect(
        &self,
        name: &str,
        stage: &Stage,
        before: &Inputs,
        progress: &dyn Progress,
    ) -> Result<run_cache::Outputs> {
        let after = self.inputs(name, stage, &self.lock()?, &Default::default())?;
        let changed = before.dependencies.iter().find(|(path, it)| after.dependencies.get(*path) != Some(it));
        let changed = changed
            .map(|it| it.0.to_text())
            .or_else(|| after.absent.first().map(RepoPath::to_text))
            .or_else(|| {
                before
                    .params
                    .iter()
                    .find(|(key, it)| after.params.get(*key) != Some(it))
                    .map(|it| it.0.clone())
            });
        if let Some(what) = changed {
            let message =
                format!("`{what}` changed while the stage `{name}` ran, so the run is not recorded");
            return Err(Error::new(Kind::Conflict, message).hint("run `mlx repro` again"));
        }
        let mut outputs = run_cache::Outputs::new();
        for out in &stage.outputs {
            if self.workspace.repo.files.stamp(&out.path)?.is_some_and(|it| it.form == Form::Link) {
                return Err(linked(name, &out.path));
            }
            let stored = self.workspace.store_output(&out.path, progress)?.ok_or_else(|| {
                let message =
                    format!("the stage `{name}` succeeded without making its output `{}`", out.path);
                Error::new(Kind::Stage, message).hint("correct its command, or its outs in `mlx.toml`")
            })?;
            outputs.insert(out.path.clone(), stored);
        }
        Ok(outputs)
    }

    /// Writes the stage's block of the lockfile, and keeps its outputs out of Git.
    pub(super) fn record(
        &self,
        name: &str,
        stage: &Stage,
        inputs: Inputs,
        question: &serde_json::Value,
        outputs: &run_cache::Outputs,
    ) -> Result<()> {
        let kept = |in_git: bool| {
            let wanted = stage.outputs.iter().filter(move |it| it.role.in_git() == in_git);
            wanted.filter_map(|it| Some((it.path.clone(), *outputs.get(&it.path)?))).collect()
        };
        let record = Record {
            command: stage.command.clone(),
            builtin: self.builtin(stage),
            edited: false,
            key: Digest::of(crate::document::canonical(question).as_bytes()),
            environment: stage.environment.clone(),
            dependencies: inputs.dependencies,
            params: inputs.params,
            outputs: kept(false),
            in_git: kept(true),
        };
        for out in &stage.outputs {
            let _lock = self.repo().lock()?;
            let (git, files) = (&self.repo().git, &self.repo().files);
            files.dir(&out.path.parent().unwrap_or_default())?.sweep()?;
            if out.role.in_git() {
                git.unignore(files, &out.path)?;
            } else {
                git.ignore(files, &out.path)?;
            }
        }
        self.write_record(name, record)
    }

    /// Replaces one block of the lockfile under a short lock; the bytes of the others stay.
    pub(super) fn write_record(&self, name: &str, record: Record) -> Result<()> {
        let _lock = self.repo().lock()?;
        self.repo().files.dir(&self.folder)?.sweep()?;
        let mut lock = self.lock()?;
        let before = lock.to_toml();
        lock.set(name, record);
        lock.keep(&|it| self.manifest.stages.contains_key(it));
        let path = self.lockfile()?;
        let text = lock.to_toml();
        if text == before && self.repo().files.stamp(&path)?.is_some() {
            return Ok(());
        }
        self.repo().files.write(&path, text.as_bytes(), Sync::Yes)
    }
}
