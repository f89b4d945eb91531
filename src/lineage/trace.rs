//! The chain behind a thing, walked backwards through lockfiles and pointers.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    digest::Digest,
    error::{Error, Result},
    git::{Commit, Git, Rev},
    lineage::versions::{content_at, introduced},
    path::RepoPath,
    pipeline::{LOCKFILE, Lockfile, StageRecord},
    pointer::{Content, Pointer, SUFFIX},
    store::Store,
};

/// How a thing came to be.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A stage made it.
    Stage { name: String, command: String, params: BTreeMap<String, Value>, edited: bool },
    /// Somebody added it.
    Added,
    /// It is a plain file of Git, or lay around.
    Plain,
}

/// A thing and how it came to be.
#[derive(Clone, Debug)]
pub struct Node {
    pub path: RepoPath,
    pub content: Content,
    pub origin: Origin,
    /// The commit that brought this content; none while it is not committed.
    pub commit: Option<Commit>,
    pub inputs: Vec<Node>,
}

/// A thing at the end of its chain.
#[derive(Clone, Debug)]
pub struct Lineage {
    pub root: Node,
}

/// What speaks at one version: the lockfiles and pointers of the workspace, or of a commit.
struct Sources<'s> {
    git: &'s Git,
    store: &'s Store,
    /// From where commits are looked for.
    from: Option<Rev>,
    locks: Vec<Lockfile>,
    pointers: BTreeMap<RepoPath, Content>,
}

/// Walks back from `path` as `rev` has it; without one, as the workspace has it: `workspace` reads a
/// file of it.
pub fn trace(
    git: &Git,
    store: &Store,
    rev: Option<&Rev>,
    path: &RepoPath,
    workspace: &dyn Fn(&RepoPath) -> Result<Option<Vec<u8>>>,
    tracked: &[RepoPath],
) -> Result<Lineage> {
    let read = |file: &RepoPath| match rev {
        Some(rev) => git.read(rev, file),
        None => workspace(file),
    };
    let files = match rev {
        Some(rev) => git.files(rev, &|it| speaks(it))?,
        None => tracked.to_vec(),
    };
    let mut sources = Sources {
        git,
        store,
        from: rev.cloned().or_else(|| git.head()),
        locks: Vec::new(),
        pointers: BTreeMap::new(),
    };
    for file in files {
        let Some(bytes) = read(&file)? else { continue };
        if let Some(of) = file.without_suffix(SUFFIX) {
            sources.pointers.insert(of.clone(), Pointer::parse(of, &bytes)?.content);
        } else {
            sources.locks.push(Lockfile::parse(&file, &bytes)?);
        }
    }
    let none = || {
        Error::not_found(format!("nothing is recorded of `{path}`"))
            .hint("name an output of a stage, a tracked file or folder, or a registered version such as `pets@v0.1.0`")
    };
    let (stage, content) = sources.find(path)?.ok_or_else(none)?;
    let root = sources.node(path, content, stage)?;
    Ok(Lineage { root })
}

/// Whether a file of Git says something of what is tracked.
pub fn speaks(file: &[u8]) -> bool {
    file.ends_with(SUFFIX.as_bytes())
        || file == LOCKFILE.as_bytes()
        || file.ends_with(format!("/{LOCKFILE}").as_bytes())
}

type Maker<'l> = Option<(&'l str, &'l StageRecord)>;

impl Sources<'_> {
    /// The content of a path with the stage that made it.
    fn find(&self, path: &RepoPath) -> Result<Option<(Maker<'_>, Content)>> {
        for (name, record) in self.locks.iter().flat_map(Lockfile::records) {
            let mut outputs = record.outputs.iter().chain(&record.in_git);
            if let Some((top, content)) = outputs.find(|it| path.is_within(it.0)) {
                return Ok(self.below(path, top, content)?.map(|it| (Some((name, record)), it)));
            }
        }
        for (top, content) in &self.pointers {
            if path.is_within(top) {
                return Ok(self.below(path, top, content)?.map(|it| (None, it)));
            }
        }
        Ok(None)
    }

    fn below(&self, path: &RepoPath, top: &RepoPath, content: &Content) -> Result<Option<Content>> {
        let below = path.below(top).unwrap_or_default();
        if below.is_root() {
            return Ok(Some(*content));
        }
        let entry = crate::store::file_at(self.store, &content.digest, &below)?;
        Ok(entry.map(|it| Content {
            digest: it.digest,
            files: it.files,
            kind: it.kind.shape(),
            size: it.size,
        }))
    }

    fn node(&self, path: &RepoPath, content: Content, maker: Maker<'_>) -> Result<Node> {
        let (origin, inputs) = match maker {
            Some((name, record)) => {
                let inputs = record.dependencies.iter().map(|(path, content)| self.input(path, *content));
                let origin = Origin::Stage {
                    name: name.to_owned(),
                    command: record.command.clone(),
                    params: record.params.clone(),
                    edited: record.edited,
                };
                (origin, inputs.collect::<Result<Vec<_>>>()?)
            }
            None if self.pointers.keys().any(|it| path.is_within(it)) => (Origin::Added, Vec::new()),
            None => (Origin::Plain, Vec::new()),
        };
        let commit = self.commit(path, &content)?;
        Ok(Node { path: path.clone(), content, origin, commit, inputs })
    }

    /// An input as it went in: only if what made the present version made that one is its chain followed.
    fn input(&self, path: &RepoPath, content: Content) -> Result<Node> {
        let maker = match self.find(path)? {
            Some((maker, now)) if now.digest == content.digest => maker,
            _ => None,
        };
        self.node(path, content, maker)
    }

    fn commit(&self, path: &RepoPath, content: &Content) -> Result<Option<Commit>> {
        let Some(from) = &self.from else { return Ok(None) };
        let tracked = content_at(self.git, self.store, from, path)?.is_some();
        if tracked {
            return introduced(self.git, self.store, from, path, &content.digest);
        }
        self.plain_commit(from, path, content)
    }

    /// The newest commit that gave a plain file of Git this content.
    fn plain_commit(&self, from: &Rev, path: &RepoPath, content: &Content) -> Result<Option<Commit>> {
        for commit in self.git.log(std::slice::from_ref(from))? {
            let Some(blob) = self.git.blob(&commit.rev, path)? else { continue };
            let mut kept = false;
            for parent in &commit.parents {
                kept |= self.git.blob(parent, path)? == Some(blob);
            }
            if !kept && Digest::of(&self.git.read_blob(blob)?) == content.digest {
                return Ok(Some(commit));
            }
        }
        Ok(None)
    }
}
