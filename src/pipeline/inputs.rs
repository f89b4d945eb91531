//! The inputs of a stage: digests of its dependencies and values of its parameters.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    document::{self, Value},
    error::{Error, Result},
    fs::FileKind,
    path::RepoPath,
    pipeline::{Pipeline, Records, Stage},
    pointer::Content,
    store::{EntryKind, entry_at},
    workspace::Stamps,
};

/// Everything a stage's result may depend on, apart from its own definition.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    pub dependencies: BTreeMap<RepoPath, Content>,
    pub params: BTreeMap<String, Value>,
    /// Dependencies, and tracked paths in them, that are missing from the workspace or not whole.
    pub absent: BTreeSet<RepoPath>,
    /// Stats of the dependencies in the workspace and of the parameter files.
    pub stamps: BTreeMap<RepoPath, Stamps>,
}

impl Pipeline<'_, '_> {
    /// Digests the dependencies of a stage and reads its parameters. `restored` holds outputs that an earlier
    /// stage of the plan would restore: they count as if they were in the workspace.
    pub(super) fn inputs(
        &self,
        name: &str,
        stage: &Stage,
        records: &Records<'_>,
        restored: &BTreeMap<RepoPath, Content>,
    ) -> Result<Inputs> {
        // Taken before the values are read: a later change moves them.
        let stamps = self.param_stamps(stage)?;
        let mut inputs = Inputs { params: self.params(stage)?, stamps, ..Inputs::default() };
        // Only folders have files that can be left out, and links.
        let stats = stage.dependencies.iter().map(|path| self.repo().files.stat(path));
        let stats = stats.collect::<Result<Vec<_>>>()?;
        let has_folder = stats.iter().flatten().any(|stat| stat.kind == FileKind::Folder);
        let kept = if has_folder { self.kept_paths()? } else { BTreeSet::new() };
        let mut pending: Vec<RepoPath> = stage.dependencies.iter().rev().cloned().collect();
        while let Some(path) = pending.pop() {
            let path = &path;
            if let Some((top, content)) = path.ancestors().find_map(|it| restored.get_key_value(&it)) {
                let inner = self.content_within(path, top, *content)?;
                let inner = inner.ok_or_else(|| missing_dependency(name, path))?;
                inputs.dependencies.insert(path.clone(), inner);
                continue;
            }
            let content = match self.workspace.scan_dependency(path, &kept)? {
                Some((node, _)) if node.kind == EntryKind::Link => return Err(link_error(name, path)),
                Some((node, stamps)) => {
                    inputs.stamps.insert(path.clone(), stamps);
                    let targets = self.workspace.link_targets(path, &node)?;
                    let is_new =
                        |path: &RepoPath| !covered(path, stage) && !inputs.dependencies.contains_key(path);
                    let targets: Vec<_> = targets.into_iter().filter(is_new).collect();
                    targets.iter().try_for_each(|target| check_target(name, stage, path, target))?;
                    pending.extend(targets);
                    self.present_content(path, &node, records, &mut inputs.absent)?
                }
                None => {
                    inputs.absent.insert(path.clone());
                    self.recorded(path, records)?.ok_or_else(|| missing_dependency(name, path))?
                }
            };
            inputs.dependencies.insert(path.clone(), content);
        }
        Ok(inputs)
    }

    /// Returns the paths whose content mlx keeps: those with a pointer, and outputs of stages.
    pub(super) fn kept_paths(&self) -> Result<BTreeSet<RepoPath>> {
        let mut kept = self.workspace.pointer_paths()?;
        kept.extend(self.outputs.iter().cloned());
        Ok(kept)
    }

    /// Returns the content of a path missing from the workspace, by the record of its stage or its pointer.
    fn recorded(&self, path: &RepoPath, records: &Records<'_>) -> Result<Option<Content>> {
        let found = match records.output(path) {
            Ok(Some(output)) => Some(output),
            // A lockfile that cannot be read is of no concern if the path has a pointer.
            other => match self.workspace.pointer_of(path)? {
                Some(pointer) => Some((pointer.path, pointer.content)),
                None => other?,
            },
        };
        let Some((top, content)) = found else { return Ok(None) };
        self.content_within(path, &top, content)
    }

    /// Returns the content of `path` within `content`, which belongs to its ancestor `top`.
    fn content_within(&self, path: &RepoPath, top: &RepoPath, content: Content) -> Result<Option<Content>> {
        let below = path.strip_prefix(top).expect("`top` is an ancestor of `path` or the path itself");
        if below.is_root() {
            return Ok(Some(content));
        }
        let store = &self.repo().store;
        let Some(entry) = entry_at(store, &content.digest, &below)? else { return Ok(None) };
        Ok(Some(Content {
            digest: entry.digest,
            files: entry.files,
            kind: entry.kind.content_kind(),
            size: entry.size,
        }))
    }

    /// Returns the stats of a stage's parameter files.
    fn param_stamps(&self, stage: &Stage) -> Result<BTreeMap<RepoPath, Stamps>> {
        let mut stamps = BTreeMap::new();
        for (file, _) in &stage.params {
            if let Some(stat) = self.repo().files.stat(file)? {
                stamps.insert(file.clone(), Stamps::of_file(file.clone(), stat));
            }
        }
        Ok(stamps)
    }

    /// Reads the values of a stage's parameters.
    pub(super) fn params(&self, stage: &Stage) -> Result<BTreeMap<String, Value>> {
        let mut documents: BTreeMap<&RepoPath, Value> = BTreeMap::new();
        let mut params = BTreeMap::new();
        for (file, keys) in &stage.params {
            if !documents.contains_key(file) {
                let bytes = self.repo().files.read_document(file)?.ok_or_else(|| {
                    Error::not_found(format!("the parameter file `{file}` was not found"))
                        .hint("create it, or remove its parameters from `mlx.toml`")
                })?;
                documents.insert(file, document::parse(file, &bytes)?);
            }
            let value = parameter(file, &documents[file], keys)?;
            let name = if keys.is_empty() { file.to_text() } else { format!("{}:{keys}", file.to_text()) };
            params.insert(name, value.clone());
        }
        Ok(params)
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

/// Reports a dependency or output that is a symbolic link: its digest would cover the target's path instead
/// of the target's content.
pub(super) fn link_error(stage: &str, path: &RepoPath) -> Error {
    Error::usage(format!("`{path}` of the stage `{stage}` is a symbolic link"))
        .hint("name the file or folder it points to")
}

/// Returns the only value that the dotted keys of a parameter name.
fn parameter<'d>(file: &RepoPath, document: &'d Value, keys: &str) -> Result<&'d Value> {
    match document.find(keys)[..] {
        [value] => Ok(value),
        [] => Err(Error::not_found(format!("`{file}` has no parameter `{keys}`"))
            .hint(format!("add it to `{file}`"))),
        _ => {
            Err(Error::usage(format!("`{keys}` names two values of `{file}`: a key there holds dots itself"))
                .hint("rename one of them, or name the table that holds both"))
        }
    }
}

fn missing_dependency(stage: &str, path: &RepoPath) -> Error {
    Error::not_found(format!("the stage `{stage}` needs `{path}`, which was not found"))
        .hint("create it, track it with `mlx add`, or declare the stage that makes it")
}
