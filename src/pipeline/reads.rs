//! Paths that a stage reads: its dependencies, and the targets of links inside them.
//!
//! A command reads through links. So a target counts wherever a declared dependency does: in the graph, among
//! the inputs of a run, and for edits that are recorded before it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use crate::{
    error::{Error, Result},
    fs::FileKind,
    path::RepoPath,
    pipeline::Stage,
    workspace::{Links, Node, Stamps, Workspace},
};

/// Files whose scans are kept for further stages.
const MAX_SHARED_FILES: u64 = 1 << 17;

/// Finds what stages read, for all pipelines of a command. Each path is scanned, and each folder walked for
/// links, once, when it is first asked for, until [`Reads::forget`]; a scan of it tells its links as well.
pub struct Reads<'w, 'r> {
    workspace: &'w Workspace<'r>,
    /// The outputs of all stages.
    pub outputs: BTreeSet<RepoPath>,
    kept: RefCell<Option<Rc<BTreeSet<RepoPath>>>>,
    links: RefCell<BTreeMap<RepoPath, Rc<Links>>>,
    scans: RefCell<BTreeMap<RepoPath, Rc<Scan>>>,
    shared_files: Cell<u64>,
    /// Paths whose edits are recorded.
    recorded: RefCell<BTreeSet<RepoPath>>,
    /// True if something was taken from an earlier scan since [`Reads::start`].
    was_shared: Cell<bool>,
}

/// A dependency as it was scanned.
pub struct Scan {
    pub node: Node,
    pub stamps: Stamps,
}

/// The dependencies of a stage, then the targets of links in them that no dependency covers. The links in a
/// path are followed when the next one is asked for, so that a scan of it can be noted until then.
pub struct Followed<'s, 'w, 'r> {
    reads: &'s Reads<'w, 'r>,
    name: &'s str,
    stage: &'s Stage,
    last: Option<RepoPath>,
    pending: VecDeque<RepoPath>,
    known: BTreeSet<RepoPath>,
}

impl<'w, 'r> Reads<'w, 'r> {
    pub fn new(workspace: &'w Workspace<'r>, outputs: BTreeSet<RepoPath>) -> Self {
        Self {
            workspace,
            outputs,
            kept: RefCell::default(),
            links: RefCell::default(),
            scans: RefCell::default(),
            shared_files: Cell::default(),
            recorded: RefCell::default(),
            was_shared: Cell::default(),
        }
    }

    /// Starts the examination of a stage.
    pub fn start(&self) {
        self.was_shared.set(false);
    }

    /// Returns true if something was taken from a scan before the last [`Reads::start`].
    pub fn was_shared(&self) -> bool {
        self.was_shared.get()
    }

    /// Forgets what is known: a command that ran since may have changed it.
    pub fn forget(&self) {
        self.kept.take();
        self.links.take();
        self.forget_scans();
    }

    /// Forgets how dependencies were scanned, so that the next stage finds them as they are now.
    pub fn forget_scans(&self) {
        self.scans.take();
        self.shared_files.take();
        self.recorded.take();
    }

    /// Scans a dependency, and notes its links; `None` if nothing exists there.
    pub fn scan(&self, path: &RepoPath) -> Result<Option<Rc<Scan>>> {
        if let Some(known) = self.scans.borrow().get(path) {
            self.was_shared.set(true);
            return Ok(Some(Rc::clone(known)));
        }
        // Only folders have files that can be left out.
        let kept = if self.is_folder(path)? { self.kept()? } else { Rc::default() };
        let Some((node, stamps, links)) = self.workspace.scan_dependency(path, &kept)? else {
            return Ok(None);
        };
        self.note(path, links);
        let (files, scan) = (self.shared_files.get() + node.files(), Rc::new(Scan { node, stamps }));
        if files <= MAX_SHARED_FILES {
            self.shared_files.set(files);
            self.scans.borrow_mut().insert(path.clone(), Rc::clone(&scan));
        }
        Ok(Some(scan))
    }

    /// Calls `record` unless the edits of a path are recorded.
    pub fn record_once(&self, path: &RepoPath, record: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.recorded.borrow().contains(path) {
            self.was_shared.set(true);
            return Ok(());
        }
        record()?;
        self.recorded.borrow_mut().insert(path.clone());
        Ok(())
    }

    /// Notes the links that a scan of `path` found.
    fn note(&self, path: &RepoPath, links: Links) {
        self.links.borrow_mut().insert(path.clone(), Rc::new(links));
    }

    /// Returns the paths whose content mlx keeps: those with a pointer, and outputs of stages.
    pub fn kept(&self) -> Result<Rc<BTreeSet<RepoPath>>> {
        if let Some(known) = &*self.kept.borrow() {
            return Ok(Rc::clone(known));
        }
        let mut kept = self.workspace.pointer_paths()?;
        kept.extend(self.outputs.iter().cloned());
        Ok(Rc::clone(self.kept.borrow_mut().insert(Rc::new(kept))))
    }

    /// Returns the dependencies of a stage, then the targets of links in them that no dependency covers.
    pub fn of(&self, name: &str, stage: &Stage) -> Result<Vec<RepoPath>> {
        self.follow(name, stage).collect()
    }

    /// Iterates over the same.
    pub fn follow<'s>(&'s self, name: &'s str, stage: &'s Stage) -> Followed<'s, 'w, 'r> {
        let pending = stage.dependencies.iter().cloned().collect();
        Followed { reads: self, name, stage, last: None, pending, known: BTreeSet::new() }
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

    /// Returns the targets of the links in `path`, as they lead now.
    fn targets(&self, path: &RepoPath) -> Result<Vec<RepoPath>> {
        if !self.is_folder(path)? {
            return Ok(Vec::new());
        }
        let (kept, known) = (self.kept()?, self.links.borrow().get(path).cloned());
        if let Some(links) = known {
            return self.workspace.link_targets(path, &links, &kept);
        }
        let links = self.workspace.find_links(path, &kept)?;
        let targets = self.workspace.link_targets(path, &links, &kept);
        self.note(path, links);
        targets
    }

    fn is_folder(&self, path: &RepoPath) -> Result<bool> {
        Ok(self.workspace.repo.files.stat(path)?.is_some_and(|stat| stat.kind == FileKind::Folder))
    }
}

impl Followed<'_, '_, '_> {
    /// Adds the targets of the links in a path.
    fn follow_links(&mut self, path: &RepoPath) -> Result<()> {
        for target in self.reads.targets(path)? {
            if !covered(&target, self.stage) && self.known.insert(target.clone()) {
                check_target(self.name, self.stage, path, &target)?;
                self.pending.push_back(target);
            }
        }
        Ok(())
    }
}

impl Iterator for Followed<'_, '_, '_> {
    type Item = Result<RepoPath>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(last) = self.last.take()
            && let Err(error) = self.follow_links(&last)
        {
            return Some(Err(error));
        }
        let next = self.pending.pop_front()?;
        self.last = Some(next.clone());
        Some(Ok(next))
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
