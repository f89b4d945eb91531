//! Result of a scan: a file or folder of the workspace with its digest.
//!
//! Nodes are small in memory: they hold names, not paths. A folder's digest is computed from its children.

use smallvec::SmallVec;

use crate::{
    digest::Digest,
    error::Result,
    path::RepoPath,
    pointer::Content,
    store::{EntryKind, TreeEntry, Writer, put_folder},
};

/// A file name, stored inline while it is short.
pub type Name = SmallVec<[u8; 16]>;

/// A file or folder of the workspace with its digest.
pub struct Node {
    pub name: Name,
    pub kind: EntryKind,
    /// Bytes; for a folder, of all files in it.
    pub size: u64,
    pub digest: Digest,
    /// Present for folders only; boxed, since most nodes are files and do not need the space.
    folder: Option<Box<FolderData>>,
}

struct FolderData {
    files: u64,
    children: Vec<Node>,
}

impl Node {
    /// Creates a file or a link.
    pub fn file(name: &[u8], kind: EntryKind, size: u64, digest: Digest) -> Self {
        Self { name: name.into(), kind, size, digest, folder: None }
    }

    /// Creates a folder whose digest and sums are still to be computed.
    pub fn folder(name: &[u8], digest: Digest, children: Vec<Self>) -> Self {
        let folder = Some(Box::new(FolderData { files: 0, children }));
        Self { name: name.into(), kind: EntryKind::Folder, size: 0, digest, folder }
    }

    /// Returns the nodes of a folder, sorted by name; empty for a file.
    pub fn children(&self) -> &[Self] {
        self.folder.as_ref().map_or(&[], |it| &it.children)
    }

    pub(super) fn children_mut(&mut self) -> Option<&mut Vec<Self>> {
        self.folder.as_mut().map(|it| &mut it.children)
    }

    /// Returns the number of files and links; 1 for a file.
    pub fn files(&self) -> u64 {
        self.folder.as_ref().map_or(1, |it| it.files)
    }

    /// Returns true for a node without children: a file, a link or an empty folder.
    pub fn is_leaf(&self) -> bool {
        self.children().is_empty()
    }

    /// Returns true if there is a node at a path below this one.
    pub fn contains(&self, below: &RepoPath) -> bool {
        let mut here = Some(self);
        for name in below.components() {
            let children = here.map_or(&[][..], Self::children);
            here = children.binary_search_by(|it| it.name[..].cmp(name)).ok().map(|at| &children[at]);
        }
        here.is_some()
    }

    /// Returns the content that a pointer to this node records.
    pub fn content(&self) -> Content {
        Content { digest: self.digest, files: self.files(), kind: self.kind.content_kind(), size: self.size }
    }

    /// Returns this node as an entry of a tree.
    pub(super) fn entry(&self) -> TreeEntry {
        let Self { kind, size, digest, .. } = *self;
        TreeEntry { name: self.name[..].into(), kind, size, files: self.files(), digest }
    }

    /// Computes the digests of folders from their children; with a writer, also stores their pages.
    pub(super) fn compute_digests(&mut self, writer: &mut Option<&mut Writer<'_>>) -> Result<()> {
        let Some(folder) = &mut self.folder else { return Ok(()) };
        folder.children.iter_mut().try_for_each(|it| it.compute_digests(writer))?;
        let entries: Vec<TreeEntry> = folder.children.iter().map(Self::entry).collect();
        let content = put_folder(&entries, writer.as_deref_mut())?;
        folder.files = content.files;
        (self.digest, self.size) = (content.digest, content.size);
        Ok(())
    }

    /// Visits all files, links and empty folders with their parent folders; `folder` contains this node.
    pub(super) fn walk(
        &self,
        folder: &RepoPath,
        visit: &mut dyn FnMut(&RepoPath, &Self) -> Result<()>,
    ) -> Result<()> {
        if self.is_leaf() {
            return visit(folder, self);
        }
        let own = folder.join(&self.name)?;
        self.children().iter().try_for_each(|it| it.walk(&own, visit))
    }

    /// Returns all files, links and empty folders with their paths; `path` is this node's own.
    pub fn leaves<'n>(&'n self, path: &RepoPath) -> Result<Vec<(RepoPath, &'n Self)>> {
        if self.is_leaf() {
            return Ok(vec![(path.clone(), self)]);
        }
        let mut found = Vec::new();
        for child in self.children() {
            found.extend(child.leaves(&path.join(&child.name)?)?);
        }
        Ok(found)
    }
}
