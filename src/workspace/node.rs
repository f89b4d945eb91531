//! A file or folder of the workspace as a scan found it, small in memory: names, not paths, and digests of folders
//! that were folded from what is in them.

use smallvec::SmallVec;

use crate::{
    digest::Digest,
    error::Result,
    path::RepoPath,
    pointer::Content,
    store::{EntryKind, TreeEntry, Writer, put_folder},
};

/// A name that needs no room elsewhere, as long as it is short.
pub type Name = SmallVec<[u8; 16]>;

/// A file or folder of the workspace with its digest.
pub struct Node {
    pub name: Name,
    pub kind: EntryKind,
    /// Bytes; of a folder, those of all files in it.
    pub size: u64,
    pub digest: Digest,
    /// Of a folder; a million files do without the room for it.
    folder: Option<Box<FolderData>>,
}

struct FolderData {
    files: u64,
    children: Vec<Node>,
}

impl Node {
    pub fn file(name: &[u8], kind: EntryKind, size: u64, digest: Digest) -> Self {
        Self { name: name.into(), kind, size, digest, folder: None }
    }

    /// A folder whose digest and sums are still to be folded.
    pub fn folder(name: &[u8], digest: Digest, children: Vec<Self>) -> Self {
        let folder = Some(Box::new(FolderData { files: 0, children }));
        Self { name: name.into(), kind: EntryKind::Folder, size: 0, digest, folder }
    }

    pub fn children(&self) -> &[Self] {
        self.folder.as_ref().map_or(&[], |it| &it.children)
    }

    pub(super) fn children_mut(&mut self) -> Option<&mut Vec<Self>> {
        self.folder.as_mut().map(|it| &mut it.children)
    }

    /// Files and links; 1 for a file.
    pub fn files(&self) -> u64 {
        self.folder.as_ref().map_or(1, |it| it.files)
    }

    /// Whether it has no content but itself: a file, a link or an empty folder.
    pub fn is_leaf(&self) -> bool {
        self.children().is_empty()
    }

    /// What a pointer to it says.
    pub fn content(&self) -> Content {
        Content { digest: self.digest, files: self.files(), kind: self.kind.shape(), size: self.size }
    }

    /// This node as a row of a tree.
    pub(super) fn entry(&self) -> TreeEntry {
        let Self { kind, size, digest, .. } = *self;
        TreeEntry { name: self.name[..].into(), kind, size, files: self.files(), digest }
    }

    /// Gives the folders their digests; their pages are stored when there is a writer.
    pub(super) fn compute_digests(&mut self, writer: &mut Option<&mut Writer<'_>>) -> Result<()> {
        let Some(folder) = &mut self.folder else { return Ok(()) };
        folder.children.iter_mut().try_for_each(|it| it.compute_digests(writer))?;
        let entries: Vec<TreeEntry> = folder.children.iter().map(Self::entry).collect();
        let content = put_folder(&entries, writer.as_deref_mut())?;
        folder.files = content.files;
        (self.digest, self.size) = (content.digest, content.size);
        Ok(())
    }

    /// Shows all files, links and empty folders, each with the folder it lies in; this node lies in `folder`.
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

    /// All files, links and empty folders with their paths; this node lies at `path`.
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
