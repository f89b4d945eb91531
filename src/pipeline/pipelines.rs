//! All pipelines of a repository: every `mlx.toml` that Git tracks, and those between the current folder and
//! the top, with the one graph of their stages.
//!
//! Pipelines of submodules and nested repositories belong to those. A pipeline whose `mlx.toml` cannot be
//! read is kept apart: the others work without it, and the outputs that its `mlx.lock` records stay claimed.
//! One that a sparse checkout leaves out is kept apart as well: its outputs are claimed and count by their
//! record, like data whose pointer is left out; its stages neither run nor are planned.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
};

use crate::{
    digest::Digest,
    error::{Error, Result},
    path::RepoPath,
    pipeline::{
        Builtin, Graph, LOCKFILE, Lockfile, MANIFEST, Manifest, Pipeline, Stage, StageRecord,
        graph::{Fault, StageId},
        manifest_folders,
        reads::Reads,
        records::read_lockfile,
    },
    pointer::{Content, Pointer},
    workspace::{Tracked, Unreadable, Workspace, skipped_error},
};

/// All pipelines of the repository, and their graph.
pub struct Pipelines<'w, 'r> {
    pub workspace: &'w Workspace<'r>,
    /// The current folder, from which stages are looked up.
    here: RepoPath,
    by_folder: BTreeMap<RepoPath, Pipeline<'w, 'r>>,
    pub broken: Vec<BrokenPipeline>,
    /// The pipelines that a sparse checkout leaves out, by folder.
    left_out: BTreeMap<RepoPath, Manifest>,
    /// Finds what their stages read.
    pub(super) reads: Rc<Reads<'w, 'r>>,
    /// The stages that read through links, with what these lead to as dependencies.
    linked: OnceCell<BTreeMap<StageId, Stage>>,
    graph: OnceCell<Graph>,
    /// Paths made by broken pipelines, each with the fault of a stage that reads it.
    unavailable: Vec<(RepoPath, Fault)>,
}

/// Stages to plan or run, with all they need.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub stages: Vec<StageId>,
    /// Folders of pipelines that are selected as a whole.
    pub folders: Vec<RepoPath>,
}

/// A pipeline whose `mlx.toml` cannot be read.
#[derive(Debug)]
pub struct BrokenPipeline {
    pub folder: RepoPath,
    pub error: Error,
}

impl<'w, 'r> Pipelines<'w, 'r> {
    /// Opens all pipelines, as seen from `cwd`.
    pub fn open(workspace: &'w Workspace<'r>, cwd: &Path, builtins: &'w [Builtin]) -> Result<Self> {
        let repo = workspace.repo;
        let here = RepoPath::parse(".".as_ref(), cwd, repo.root())?;
        let (mut manifests, mut left_out, mut broken) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for folder in manifest_folders(repo, cwd)? {
            match read_manifest(workspace, &folder) {
                Ok(Some(manifest)) => drop(manifests.insert(folder, manifest)),
                Ok(None) => match read_skipped_manifest(workspace, &folder) {
                    Ok(manifest) => left_out.extend(manifest.map(|manifest| (folder, manifest))),
                    Err(error) => broken.push(BrokenPipeline { folder, error }),
                },
                Err(error) => broken.push(BrokenPipeline { folder, error }),
            }
        }
        let known = manifests.keys().chain(left_out.keys()).chain(broken.iter().map(|it| &it.folder));
        let folders: Rc<BTreeSet<RepoPath>> = Rc::new(known.cloned().collect());
        let unavailable = unavailable_outputs(workspace, &broken);
        let declared = manifests
            .values()
            .chain(left_out.values())
            .flat_map(Manifest::outputs)
            .map(|(_, out)| out.path.clone());
        let outputs: BTreeSet<RepoPath> = declared.chain(unavailable.iter().map(|it| it.0.clone())).collect();
        let reads = Rc::new(Reads::new(workspace, outputs));
        let open = |(folder, manifest): (RepoPath, Manifest)| {
            let (folders, reads) = (folders.clone(), reads.clone());
            (folder.clone(), Pipeline { workspace, folder, manifest, builtins, folders, reads })
        };
        let by_folder = manifests.into_iter().map(open).collect();
        let (linked, graph) = (OnceCell::new(), OnceCell::new());
        Ok(Self { workspace, here, by_folder, broken, left_out, reads, linked, graph, unavailable })
    }

    /// Returns the graph of all stages. Folders that these read are walked for links when it is first needed.
    pub fn graph(&self) -> &Graph {
        self.graph.get_or_init(|| {
            let linked = self.linked().iter().map(|(id, stage)| (id.clone(), stage));
            Graph::new(&self.stages().chain(linked).collect(), &self.unavailable)
        })
    }

    /// Returns the stages that read through links. A link that stops its stage is reported where the stage is
    /// checked.
    fn linked(&self) -> &BTreeMap<StageId, Stage> {
        self.linked.get_or_init(|| {
            let linked = self.stages().filter_map(|(id, stage)| {
                let targets = self.reads.outside(&id.name, stage).unwrap_or_default();
                let dependencies = [&stage.dependencies[..], &targets].concat();
                (!targets.is_empty()).then(|| (id, Stage { dependencies, ..stage.clone() }))
            });
            linked.collect()
        })
    }

    /// Returns all stages, sorted by id.
    pub fn stages(&self) -> impl Iterator<Item = (StageId, &Stage)> {
        self.iter().flat_map(|pipeline| {
            let stages = pipeline.manifest.stages.iter();
            stages.map(|(name, stage)| (pipeline.id(name), stage))
        })
    }

    /// Returns a stage; `None` for one that is gone from its `mlx.toml`.
    pub fn declared(&self, id: &StageId) -> Option<&Stage> {
        self.by_folder.get(&id.folder)?.manifest.stages.get(&id.name)
    }

    /// Returns the pipelines that can be read, sorted by folder.
    pub fn iter(&self) -> impl Iterator<Item = &Pipeline<'w, 'r>> {
        self.by_folder.values()
    }

    /// Returns the pipeline of a stage.
    pub fn of(&self, id: &StageId) -> &Pipeline<'w, 'r> {
        &self.by_folder[&id.folder]
    }

    /// Returns the folders of all pipelines, also of those that are broken or left out.
    pub fn folders(&self) -> impl Iterator<Item = &RepoPath> {
        self.by_folder.keys().chain(self.left_out.keys()).chain(self.broken.iter().map(|it| &it.folder))
    }

    /// Returns the pipeline of the nearest `mlx.toml`, from the current folder up to the top.
    pub fn nearest(&self) -> Result<&Pipeline<'w, 'r>> {
        Ok(&self.by_folder[self.nearest_folder()?])
    }

    fn nearest_folder(&self) -> Result<&RepoPath> {
        for folder in self.here.ancestors() {
            if let Some(broken) = self.broken.iter().find(|it| it.folder == folder) {
                return Err(Fault::of(&broken.error).error());
            }
            self.check_here(&folder)?;
            if let Some((folder, _)) = self.by_folder.get_key_value(&folder) {
                return Ok(folder);
            }
        }
        let error = Error::not_found(format!("`{MANIFEST}` not found"));
        Err(error.hint(if self.by_folder.is_empty() {
            "write one, or start from a template with `mlx init --template pets`"
        } else {
            "`mlx repro --all` runs the pipelines of all folders"
        }))
    }

    /// Refuses the folder of a pipeline that a sparse checkout leaves out.
    fn check_here(&self, folder: &RepoPath) -> Result<()> {
        if !self.left_out.contains_key(folder) {
            return Ok(());
        }
        let file = folder.join(MANIFEST.as_bytes())?;
        Err(skipped_error(&file))
    }

    /// Selects all pipelines, also those that are broken.
    pub fn select_all(&self) -> Selection {
        let broken = self.broken.iter().map(|it| &it.folder);
        let folders = self.by_folder.keys().chain(broken).cloned().collect();
        Selection { stages: self.graph().order.clone(), folders }
    }

    /// Selects the pipeline of the nearest `mlx.toml`.
    pub fn select_nearest(&self) -> Result<Selection> {
        let folder = self.nearest_folder()?;
        let stages = self.graph().order.iter().filter(|id| id.folder == *folder).cloned().collect();
        Ok(Selection { stages, folders: vec![folder.clone()] })
    }

    /// Selects the stages that these texts name.
    pub fn select(&self, names: &[String]) -> Result<Selection> {
        let stages = names.iter().map(|name| self.stage(name)).collect::<Result<_>>()?;
        Ok(Selection { stages, folders: Vec::new() })
    }

    /// Returns true if a stage reads `path`, something in it, or a folder around it.
    pub(super) fn is_read(&self, path: &RepoPath) -> bool {
        let manifests = self.iter().map(|pipeline| &pipeline.manifest).chain(self.left_out.values());
        let mut stages =
            manifests.flat_map(|manifest| manifest.stages.values()).chain(self.linked().values());
        stages.any(|stage| {
            let params = stage.params.iter().map(|param| &param.0);
            stage.dependencies.iter().chain(params).any(|read| read.overlaps(path))
        })
    }

    /// Returns the stage that `text` names; a missing one is an error.
    pub fn stage(&self, text: &str) -> Result<StageId> {
        if let Some(id) = self.find_stage(text)? {
            return Ok(id);
        }
        match text.rsplit_once(':') {
            None => drop(self.nearest_folder()?),
            Some((folder, _)) => {
                RepoPath::from_text(folder).map_or(Ok(()), |folder| self.check_here(&folder))?;
            }
        }
        Err(Error::not_found(format!("stage `{text}` not found")).hint(self.known_stages()))
    }

    /// Finds the stage that `text` names: `folder:stage`, `:stage` at the top, a stage of the nearest
    /// `mlx.toml`, or else the only one of that name. Several are an error.
    pub fn find_stage(&self, text: &str) -> Result<Option<StageId>> {
        let known = |id: &StageId| self.declared(id).is_some();
        if let Some((folder, name)) = text.rsplit_once(':') {
            let folder = if folder.is_empty() { Ok(RepoPath::root()) } else { RepoPath::from_text(folder) };
            return Ok(folder.ok().map(|folder| StageId { folder, name: name.to_owned() }).filter(known));
        }
        let nearest = self.nearest_folder().map(|folder| StageId::new(folder, text));
        if let Some(id) = nearest.ok().filter(known) {
            return Ok(Some(id));
        }
        let named: Vec<_> = self.stages().map(|it| it.0).filter(|id| id.name == text).collect();
        if named.len() < 2 {
            return Ok(named.into_iter().next());
        }
        let names: Vec<_> = named.iter().map(|id| format!("`{}`", as_typed(id))).collect();
        let message = format!("several pipelines have a stage `{text}`: {}", names.join(", "));
        Err(Error::usage(message).hint("name one of them as listed"))
    }

    fn known_stages(&self) -> String {
        let names: Vec<_> = self.stages().map(|(id, _)| id.to_string()).collect();
        if names.is_empty() {
            "`mlx.toml` has no stages".into()
        } else {
            format!("known stages: {}", names.join(", "))
        }
    }

    /// Returns the shortest text that names a stage: its plain name where that is unique.
    pub fn label(&self, id: &StageId) -> String {
        let named = self.iter().filter(|pipeline| pipeline.manifest.stages.contains_key(&id.name));
        if named.count() < 2 { id.name.clone() } else { id.to_string() }
    }

    /// Returns all paths that belong to stages, each with the stage: declared outputs, and the recorded ones
    /// of broken pipelines. What an unreadable lockfile records is not known.
    pub fn claims(&self) -> Vec<(RepoPath, String)> {
        let mut claims: Vec<_> = self.iter().flat_map(Pipeline::declared_outputs).collect();
        for (folder, manifest) in &self.left_out {
            let outputs = manifest.outputs();
            claims.extend(
                outputs.map(|(stage, out)| (out.path.clone(), StageId::new(folder, stage).to_string())),
            );
        }
        for (folder, lock) in self.broken_lockfiles() {
            let Ok(lock) = lock else { continue };
            for (name, record) in lock.records() {
                let stage = StageId::new(folder, name).to_string();
                claims.extend(record.contents().map(|(path, _)| (path.clone(), stage.clone())));
            }
        }
        claims
    }

    /// Returns the recorded outputs that are kept in the store and not in Git, and the lockfiles that cannot
    /// be read. Outputs that a readable `mlx.toml` does not declare are left out.
    pub fn recorded_outputs(&self) -> Result<Tracked> {
        let mut found = Tracked::default();
        for (folder, manifest) in &self.left_out {
            let file = folder.join(MANIFEST.as_bytes())?;
            found.skipped.extend(manifest.outputs().map(|(_, out)| (out.path.clone(), file.clone())));
        }
        for pipeline in self.iter() {
            match pipeline.read_lockfile() {
                Ok(lock) => found.pointers.extend(pipeline.recorded_outputs(&lock)),
                Err(error) => found.unreadable.push(pipeline.unreadable(error)?),
            }
        }
        for folder in self.left_out.keys() {
            if let Err(error) = read_lockfile(self.workspace.repo, folder) {
                found.unreadable.push(unreadable(folder, Vec::new(), error)?);
            }
        }
        for (folder, lock) in self.broken_lockfiles() {
            match lock {
                Ok(lock) => {
                    let outputs = lock.records().flat_map(|(_, record)| &record.outputs);
                    found.pointers.extend(outputs.map(pointer));
                }
                Err(error) => found.unreadable.push(unreadable(folder, Vec::new(), error)?),
            }
        }
        Ok(found)
    }

    /// Returns the outputs of all recorded runs, those in Git included, with the lockfiles that cannot be
    /// read, and the run-cache keys of these runs.
    pub fn recorded_runs(&self) -> Result<(Tracked, Vec<Digest>)> {
        let (mut found, mut keys) = (Tracked::default(), Vec::new());
        let mut add = |found: &mut Tracked, record: &StageRecord| {
            found.pointers.extend(record.contents().map(pointer));
            keys.extend(record.keys());
        };
        for pipeline in self.iter() {
            match pipeline.read_lockfile() {
                Ok(lock) => {
                    let stages = &pipeline.manifest.stages;
                    let declared = lock.records().filter(|(name, _)| stages.contains_key(*name));
                    declared.for_each(|(_, record)| add(&mut found, record));
                }
                Err(error) => found.unreadable.push(pipeline.unreadable(error)?),
            }
        }
        for (folder, lock) in self.broken_lockfiles() {
            match lock {
                Ok(lock) => lock.records().for_each(|(_, record)| add(&mut found, record)),
                Err(error) => found.unreadable.push(unreadable(folder, Vec::new(), error)?),
            }
        }
        Ok((found, keys))
    }

    /// Returns the lockfiles that cannot be read.
    pub fn unreadable_lockfiles(&self) -> Result<Vec<Unreadable>> {
        Ok(self.recorded_outputs()?.unreadable)
    }

    fn broken_lockfiles(&self) -> impl Iterator<Item = (&RepoPath, Result<Rc<Lockfile>>)> {
        let repo = self.workspace.repo;
        self.broken.iter().map(move |broken| (&broken.folder, read_lockfile(repo, &broken.folder)))
    }
}

impl Pipeline<'_, '_> {
    /// Describes the lockfile, which cannot be read: it tracks the declared outputs that Git does not keep.
    fn unreadable(&self, error: Error) -> Result<Unreadable> {
        let outputs = self.manifest.outputs().map(|(_, out)| out).filter(|out| !out.role.in_git());
        unreadable(&self.folder, outputs.map(|out| out.path.clone()).collect(), error)
    }
}

fn unreadable(folder: &RepoPath, paths: Vec<RepoPath>, error: Error) -> Result<Unreadable> {
    Ok(Unreadable { file: folder.join(LOCKFILE.as_bytes())?, paths, error })
}

fn pointer((path, content): (&RepoPath, &Content)) -> Pointer {
    Pointer { path: path.clone(), content: *content }
}

/// Returns the text that names a stage from any folder.
fn as_typed(id: &StageId) -> String {
    if id.folder.is_root() { format!(":{}", id.name) } else { id.to_string() }
}

/// Reads the `mlx.toml` of a folder; `None` without a pipeline. Beside a lockfile with records, one that
/// was deleted is read as empty: all its stages are gone.
pub(super) fn read_manifest(workspace: &Workspace<'_>, folder: &RepoPath) -> Result<Option<Manifest>> {
    let file = folder.join(MANIFEST.as_bytes())?;
    let repo = workspace.repo;
    if let Some(bytes) = repo.files.read_document(&file)? {
        return Manifest::parse(&file, &bytes, repo.root()).map(Some);
    }
    let has_no_record = || read_lockfile(repo, folder).is_ok_and(|lock| lock.records().next().is_none());
    let is_deleted =
        repo.files.stat(&file)?.is_none() && !has_no_record() && repo.git.read_skipped(&file)?.is_none();
    Ok(is_deleted.then(Manifest::default))
}

/// Reads the `mlx.toml` of a folder that a sparse checkout leaves out.
fn read_skipped_manifest(workspace: &Workspace<'_>, folder: &RepoPath) -> Result<Option<Manifest>> {
    let file = folder.join(MANIFEST.as_bytes())?;
    let bytes = workspace.repo.git.read_skipped(&file)?;
    bytes.map(|bytes| Manifest::parse(&file, &bytes, workspace.repo.root())).transpose()
}

/// Returns the outputs that the lockfiles of broken pipelines record, each with the fault of a stage that
/// reads it.
fn unavailable_outputs(workspace: &Workspace<'_>, broken: &[BrokenPipeline]) -> Vec<(RepoPath, Fault)> {
    let mut found = Vec::new();
    for pipeline in broken {
        let Ok(lock) = read_lockfile(workspace.repo, &pipeline.folder) else { continue };
        let fault = Fault::of(&pipeline.error);
        let outputs = lock.records().flat_map(|(_, record)| record.contents());
        found.extend(outputs.map(|(path, _)| (path.clone(), fault.clone())));
    }
    found
}
