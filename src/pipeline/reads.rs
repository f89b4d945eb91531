//! Paths that a stage reads: its dependencies, and the targets of links inside them.
//!
//! A command reads through links. So a target counts wherever a declared dependency does: in the graph, among
//! the inputs of a run, and for edits that are recorded before it.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    error::{Error, Result},
    fs::FileKind,
    path::RepoPath,
    pipeline::{Pipeline, Stage},
    workspace::Workspace,
};

/// Finds what stages read. Each folder is searched for links once, when it is first asked for.
pub struct Reads<'p, 'r> {
    workspace: &'p Workspace<'r>,
    /// The outputs of all stages.
    outputs: &'p BTreeSet<RepoPath>,
    kept: OnceCell<BTreeSet<RepoPath>>,
    targets: RefCell<BTreeMap<RepoPath, Vec<RepoPath>>>,
}

impl<'p, 'r> Reads<'p, 'r> {
    pub fn new(workspace: &'p Workspace<'r>, outputs: &'p BTreeSet<RepoPath>) -> Self {
        Self { workspace, outputs, kept: OnceCell::new(), targets: RefCell::default() }
    }

    /// Returns the paths whose content mlx keeps: those with a pointer, and outputs of stages.
    pub fn kept(&self) -> Result<&BTreeSet<RepoPath>> {
        if let Some(known) = self.kept.get() {
            return Ok(known);
        }
        let mut kept = self.workspace.pointer_paths()?;
        kept.extend(self.outputs.iter().cloned());
        Ok(self.kept.get_or_init(|| kept))
    }

    /// Returns the dependencies of a stage, then the targets of links in them that no dependency covers.
    pub fn of(&self, name: &str, stage: &Stage) -> Result<Vec<RepoPath>> {
        let mut found = stage.dependencies.clone();
        let mut known = BTreeSet::new();
        let mut at = 0;
        while let Some(path) = found.get(at).cloned() {
            for target in self.targets(&path)? {
                if !covered(&target, stage) && known.insert(target.clone()) {
                    check_target(name, stage, &path, &target)?;
                    found.push(target);
                }
            }
            at += 1;
        }
        Ok(found)
    }

    /// Returns the targets that may be outputs of other stages: links in what mlx keeps lead to nothing else.
    pub fn outside(&self, name: &str, stage: &Stage) -> Result<Vec<RepoPath>> {
        let mut dependencies = Vec::new();
        for path in &stage.dependencies {
            if self.is_folder(path)? && !self.is_kept(path)? {
                dependencies.push(path.clone());
            }
        }
        let count = dependencies.len();
        Ok(self.of(name, &Stage { dependencies, ..stage.clone() })?.split_off(count))
    }

    fn is_kept(&self, path: &RepoPath) -> Result<bool> {
        let kept = self.kept()?;
        Ok(path.ancestors().any(|above| kept.contains(&above)))
    }

    fn targets(&self, path: &RepoPath) -> Result<Vec<RepoPath>> {
        if let Some(known) = self.targets.borrow().get(path) {
            return Ok(known.clone());
        }
        let found =
            if self.is_folder(path)? { self.workspace.link_targets(path, self.kept()?)? } else { Vec::new() };
        self.targets.borrow_mut().insert(path.clone(), found.clone());
        Ok(found)
    }

    fn is_folder(&self, path: &RepoPath) -> Result<bool> {
        Ok(self.workspace.repo.files.stat(path)?.is_some_and(|stat| stat.kind == FileKind::Folder))
    }
}

impl Pipeline<'_, '_> {
    /// Returns what stages read, as of the time each path is first asked for.
    pub(super) fn reads(&self) -> Reads<'_, '_> {
        Reads::new(self.workspace, &self.outputs)
    }
}

/// Returns true if a path is, or is in, a dependency that the stage declares.
fn covered(path: &RepoPath, stage: &Stage) -> bool {
    stage.dependencies.iter().any(|dependency| path.is_within(dependency))
}

/// Refuses a link whose target the stage itself writes.
fn check_target(name: &str, stage: &Stage, dependency: &RepoPath, target: &RepoPath) -> Result<()> {
    let Some(out) = stage.outputs.iter().find(|out| out.path.overlaps(target)) else { return Ok(()) };
    let message = format!(
        "a link in `{dependency}`, which the stage `{name}` needs, leads to its own output `{}`",
        out.path
    );
    Err(Error::usage(message).hint("remove the link, or name the files that the stage reads one by one"))
}
