//! A file or folder of the workspace as a scan found it, small in memory: names, not paths, and digests of folders
//! that were folded from what is in them.

use crate::{
    digest::Digest,
    error::Result,
    path::RepoPath,
    pointer::Content,
    store::{EntryKind, TreeEntry, Writer, put_folder},
};

/// A file or folder of the workspace with its digest.
pub struct Node {
    pub name: Box<[u8]>,
    pub kind: EntryKind,
    /// Bytes; of a folder, those of all files in it.
    pub size: u64,
    /// Files and links; 1 for a file.
    pub files: u64,
    pub digest: Digest,
    pub children: Vec<Node>,
}

impl Node {
    /// Whether it has no content but itself: a file, a link or an empty folder.
    pub fn is_leaf(&self) -> bool {
        self.kind != EntryKind::Folder || self.children.is_empty()
    }

    /// What a pointer to it says.
    pub fn content(&self) -> Content {
        Content { digest: self.digest, files: self.files, kind: self.kind.shape(), size: self.size }
    }

    /// This node as a row of a tree.
    pub(super) fn entry(&self) -> TreeEntry {
        let Self { kind, size, files, digest, .. } = *self;
        TreeEntry { name: self.name.clone(), kind, size, files, digest }
    }

    /// Gives the folders their digests; their pages are stored when there is a writer.
    pub(super) fn fold(&mut self, writer: &mut Option<&mut Writer<'_>>) -> Result<()> {
        if self.kind != EntryKind::Folder {
            return Ok(());
        }
        self.children.iter_mut().try_for_each(|it| it.fold(writer))?;
        let entries: Vec<TreeEntry> = self.children.iter().map(Self::entry).collect();
        let Content { digest, files, size, .. } = put_folder(&entries, writer.as_deref_mut())?;
        (self.digest, self.files, self.size) = (digest, files, size);
        Ok(())
    }

    /// Shows all files, links and empty folders, each with the folder it lies in; this node lies in `folder`.
    pub(super) fn walk(
        &self,
        folder: &RepoPath,
        see: &mut dyn FnMut(&RepoPath, &Self) -> Result<()>,
    ) -> Result<()> {
        if self.is_leaf() {
            return see(folder, self);
        }
        let own = folder.join(&self.name)?;
        self.children.iter().try_for_each(|it| it.walk(&own, see))
    }

    /// All files, links and empty folders with their paths; this node lies at `path`.
    pub fn leaves<'n>(&'n self, path: &RepoPath) -> Result<Vec<(RepoPath, &'n Self)>> {
        if self.is_leaf() {
            return Ok(vec![(path.clone(), self)]);
        }
        let mut found = Vec::new();
        for child in &self.children {
            found.extend(child.leaves(&path.join(&child.name)?)?);
        }
        Ok(found)
    }
}
