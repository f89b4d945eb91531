//! What goes into a stage: digests of its dependencies, values of its parameters.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    document,
    error::{Error, Result},
    path::RepoPath,
    pipeline::{Lockfile, Pipeline, Stage},
    pointer::Content,
    progress::Silent,
    store::{EntryKind, entries, file_at},
};

/// Everything that a stage's result may depend on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    pub dependencies: BTreeMap<RepoPath, Content>,
    pub params: BTreeMap<String, Value>,
    /// Dependencies whose content is known but not in the workspace.
    pub absent: BTreeSet<RepoPath>,
}

impl Pipeline<'_, '_> {
    /// Digests what a stage reads. `made` are outputs that a restored stage would bring.
    pub(super) fn inputs(
        &self,
        name: &str,
        stage: &Stage,
        lock: &Lockfile,
        made: &BTreeMap<RepoPath, Content>,
    ) -> Result<Inputs> {
        let mut inputs = Inputs { params: self.params(stage)?, ..Inputs::default() };
        for path in &stage.dependencies {
            if let Some((top, content)) = path.ancestors().find_map(|it| made.get_key_value(&it)) {
                let inner = self.within(path, top, *content)?.ok_or_else(|| missing(name, path))?;
                inputs.dependencies.insert(path.clone(), inner);
                continue;
            }
            let content = match self.workspace.look(path, &Silent)? {
                Some(node) if node.kind == EntryKind::Link => return Err(linked(name, path)),
                Some(node) => node.content(),
                None => {
                    inputs.absent.insert(path.clone());
                    self.recorded(path, lock)?.ok_or_else(|| missing(name, path))?
                }
            };
            inputs.dependencies.insert(path.clone(), content);
        }
        Ok(inputs)
    }

    /// The content of something that is not in the workspace, by its pointer or the record of its stage.
    fn recorded(&self, path: &RepoPath, lock: &Lockfile) -> Result<Option<Content>> {
        let outputs = lock.records().flat_map(|it| it.1.outputs.iter().chain(&it.1.in_git));
        let made = outputs.into_iter().find(|it| path.is_within(it.0)).map(|it| (it.0.clone(), *it.1));
        let found = match made {
            Some(found) => Some(found),
            None => self.workspace.pointer_of(path)?.map(|it| (it.path, it.content)),
        };
        let Some((top, content)) = found else { return Ok(None) };
        self.within(path, &top, content)
    }

    /// The content at `path` inside that of `top`.
    fn within(&self, path: &RepoPath, top: &RepoPath, content: Content) -> Result<Option<Content>> {
        let below = path.below(top).expect("it was found as lying within");
        if below.is_root() {
            return Ok(Some(content));
        }
        let store = &self.repo().store;
        let Some(entry) = file_at(store, &content.digest, &below)? else { return Ok(None) };
        Ok(Some(Content {
            digest: entry.digest,
            files: entry.files,
            kind: entry.kind.shape(),
            size: entry.size,
        }))
    }

    /// Values of the parameters a stage names.
    pub(super) fn params(&self, stage: &Stage) -> Result<BTreeMap<String, Value>> {
        let mut documents: BTreeMap<&RepoPath, Value> = BTreeMap::new();
        let mut params = BTreeMap::new();
        for (file, keys) in &stage.params {
            if !documents.contains_key(file) {
                let bytes = self.repo().files.read_document(file)?.ok_or_else(|| {
                    Error::not_found(format!("the parameter file `{file}` is not there"))
                        .hint("write it, or take its parameters out of `mlx.toml`")
                })?;
                documents.insert(file, document::parse(file, &bytes)?);
            }
            let value = document::find(&documents[file], keys).ok_or_else(|| {
                Error::not_found(format!("`{file}` has no parameter `{keys}`"))
                    .hint(format!("add it to `{file}`"))
            })?;
            let name = if keys.is_empty() { file.to_text() } else { format!("{}:{keys}", file.to_text()) };
            params.insert(name, value.clone());
        }
        Ok(params)
    }

    /// Whether everything in this content can be restored from the store at hand.
    pub(super) fn is_stored(&self, content: &Content) -> bool {
        let store = &self.repo().store;
        if content.kind != crate::pointer::Shape::Tree {
            return store.contains(&content.digest);
        }
        let Ok(rows) = entries(store, &content.digest) else { return false };
        rows.iter().all(|it| {
            let kind = it.kind.shape();
            let inner = Content { digest: it.digest, files: it.files, kind, size: it.size };
            self.is_stored(&inner)
        })
    }
}

/// A link would be digested by where it points, not by what is there.
pub(super) fn linked(stage: &str, path: &RepoPath) -> Error {
    Error::usage(format!("`{path}` of the stage `{stage}` is a link")).hint("name what it points to")
}

fn missing(stage: &str, path: &RepoPath) -> Error {
    Error::not_found(format!("the stage `{stage}` needs `{path}`, which is not there"))
        .hint("make it, track it with `mlx add`, or name the stage that makes it")
}
