//! The inputs of a stage: digests of its dependencies and values of its parameters.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    document::{self, Value},
    error::{Error, Result},
    path::RepoPath,
    pipeline::{Pipeline, Records, Stage},
    pointer::Content,
    progress::Silent,
    store::{EntryKind, entry_at},
};

/// Everything a stage's result may depend on, apart from its own definition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    pub dependencies: BTreeMap<RepoPath, Content>,
    pub params: BTreeMap<String, Value>,
    /// Dependencies, and tracked paths in them, that are missing from the workspace or not whole.
    pub absent: BTreeSet<RepoPath>,
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
        let mut inputs = Inputs { params: self.params(stage)?, ..Inputs::default() };
        for path in &stage.dependencies {
            if let Some((top, content)) = path.ancestors().find_map(|it| restored.get_key_value(&it)) {
                let inner = self.content_within(path, top, *content)?;
                let inner = inner.ok_or_else(|| missing_dependency(name, path))?;
                inputs.dependencies.insert(path.clone(), inner);
                continue;
            }
            let content = match self.workspace.scan(path, &Silent)? {
                Some(node) if node.kind == EntryKind::Link => return Err(link_error(name, path)),
                Some(node) => self.present_content(path, &node, &mut inputs.absent)?,
                None => {
                    inputs.absent.insert(path.clone());
                    self.recorded(path, records)?.ok_or_else(|| missing_dependency(name, path))?
                }
            };
            inputs.dependencies.insert(path.clone(), content);
        }
        Ok(inputs)
    }

    /// Returns the content of a path missing from the workspace, by the record of its stage or its pointer.
    fn recorded(&self, path: &RepoPath, records: &Records<'_>) -> Result<Option<Content>> {
        let found = match records.output(path)? {
            Some(output) => Some(output),
            None => self.workspace.pointer_of(path)?.map(|pointer| (pointer.path, pointer.content)),
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
