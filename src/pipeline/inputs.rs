//! The inputs of a stage: digests of its dependencies and values of its parameters.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    document::{self, Value},
    error::{Error, Result, WithContext},
    path::RepoPath,
    pipeline::{Pipeline, Records, Stage},
    pointer::Content,
    store::{EntryKind, entry_at},
    workspace::{Stamps, stats_above},
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
    /// Digests what a stage reads and reads its parameters. `restored` holds outputs that an earlier stage of
    /// the plan would restore: they count as if they were in the workspace. Left out are the paths that
    /// `is_made` names: they may not exist yet.
    pub(super) fn inputs(
        &self,
        name: &str,
        stage: &Stage,
        records: &Records<'_>,
        restored: &BTreeMap<RepoPath, Content>,
        is_made: &dyn Fn(&RepoPath) -> bool,
    ) -> Result<Inputs> {
        // Taken before the values are read: a later change moves them.
        let stamps = self.param_stamps(stage)?;
        let mut inputs = Inputs { params: self.params(stage)?, stamps, ..Inputs::default() };
        for path in self.reads.follow(name, stage) {
            let path = path?;
            if is_made(&path) {
                continue;
            }
            let content =
                if let Some((top, content)) = path.ancestors().find_map(|it| restored.get_key_value(&it)) {
                    self.content_within(&path, top, *content)?
                } else if let Some(scan) = self.reads.scan(&path)? {
                    inputs.stamps.insert(path.clone(), scan.stamps.clone());
                    if scan.node.kind == EntryKind::Link {
                        return Err(link_error(name, &path));
                    }
                    Some(self.present_content(&path, &scan.node, records, &mut inputs.absent)?)
                } else {
                    let recorded = self.recorded(&path, records)?;
                    inputs.absent.extend(recorded.is_some().then(|| path.clone()));
                    recorded
                };
            match content {
                Some(content) => drop(inputs.dependencies.insert(path, content)),
                None if stage.dependencies.contains(&path) => return Err(missing_dependency(name, &path)),
                // A link to what its stage did not make is dangling, whatever is pulled.
                None => {}
            }
        }
        inputs.absent.retain(|path| !restored.contains_key(path));
        Ok(inputs)
    }

    /// Refuses to run a stage on an input that is not here, or not all of it.
    pub(super) fn check_present(&self, name: &str, inputs: &Inputs) -> Result<()> {
        let Some(path) = inputs.absent.first() else { return Ok(()) };
        Err(self.absent_input(path, inputs.dependencies.get(path)))
            .context(|| format!("cannot run the stage `{}`", self.id(name)))
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
            let files = &self.repo().files;
            if let Some(stat) = files.stat(file)? {
                let stamp = Stamps::of_file(file.clone(), stat).with_above(stats_above(files, file)?);
                stamps.insert(file.clone(), stamp);
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
                let bytes = self.repo().files.read_document(file)?;
                let bytes = bytes.ok_or_else(|| self.missing_params(file))?;
                documents.insert(file, document::parse(file, &bytes)?);
            }
            let value = parameter(file, &documents[file], keys)?;
            let name = if keys.is_empty() { file.to_text() } else { format!("{}:{keys}", file.to_text()) };
            params.insert(name, value.clone());
        }
        Ok(params)
    }

    /// Returns the error for a parameter file that does not exist here.
    fn missing_params(&self, file: &RepoPath) -> Error {
        let error = Error::not_found(format!("the parameter file `{file}` was not found"));
        error.hint(match self.workspace.pointer_of(file) {
            Ok(Some(_)) => format!("get it with `mlx pull {file}`"),
            _ => "create it, or remove its parameters from `mlx.toml`".to_owned(),
        })
    }
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
