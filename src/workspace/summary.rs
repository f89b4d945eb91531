//! Summaries in records: the kind, size and number of files beside a digest. A merge by hand may take the
//! digest of one side and the summary of the other. The digest counts, and the store knows the rest.

use crate::{
    error::Result,
    path::RepoPath,
    pointer::{Content, ContentKind, Pointer},
    progress::Progress,
    store::{described, has_other_kind},
    workspace::Workspace,
};

impl Workspace<'_> {
    /// Returns a pointer with the summary of its digest, as far as the store has that.
    pub(super) fn corrected(&self, pointer: Pointer) -> Pointer {
        // A page that cannot be read is reported by those who need what it lists.
        match described(&self.repo.store, &pointer.content) {
            Ok(Some(content)) => Pointer { content, ..pointer },
            _ => pointer,
        }
    }

    /// Corrects a pointer that names the wrong kind of content, which no command could go on with, and
    /// remembers what it says.
    pub(super) fn with_stored_kind(&self, pointer: Pointer) -> Pointer {
        if !has_other_kind(&self.repo.store, &pointer.content) {
            return pointer;
        }
        self.misstated.borrow_mut().insert(pointer.path.clone(), pointer.content);
        self.corrected(pointer)
    }

    /// Tells what the record of a tracked path says about its digest and should not; `real` is true.
    pub(super) fn false_summary(&self, pointer: &Pointer, real: &Content) -> Option<String> {
        let stated = self.stated(pointer);
        let wrong = false_lines(&stated, real)?;
        Some(format!("its record says {wrong} (`mlx commit` corrects it)"))
    }

    /// Returns the content as the pointer file names it.
    fn stated(&self, pointer: &Pointer) -> Content {
        self.misstated.borrow().get(&pointer.path).copied().unwrap_or(pointer.content)
    }

    /// Writes the pointers at `paths`, all if there are none, whose summary is wrong, and returns them.
    pub fn correct_pointers(&self, paths: &[RepoPath], progress: &dyn Progress) -> Result<Vec<Pointer>> {
        let mut written = Vec::new();
        for path in self.pointer_paths()? {
            if !self.is_misstated(&path) || !paths.is_empty() && !paths.iter().any(|it| it.overlaps(&path)) {
                continue;
            }
            let _lock = self.repo.lock_with_progress(progress)?;
            // Another process may have changed it meanwhile.
            if let Some(pointer) = self.pointer(&path)? {
                let pointer = self.corrected(pointer);
                self.write_pointer(&pointer, progress)?;
                self.misstated.borrow_mut().remove(&path);
                written.push(pointer);
            }
        }
        Ok(written)
    }

    /// Returns true if the pointer of a path can be read, and its summary is known to be wrong.
    fn is_misstated(&self, path: &RepoPath) -> bool {
        let Ok(Some(pointer)) = self.pointer(path) else { return false };
        let stated = self.stated(&pointer);
        self.corrected(pointer).content != stated
    }
}

/// Tells which lines of a summary differ from the right ones; `None` if none does. The object of an
/// executable file is that of any file.
pub fn false_lines(stated: &Content, real: &Content) -> Option<String> {
    let is_tree = |content: &Content| content.kind == ContentKind::Tree;
    let lines = |content: &Content| {
        let kind = format!("`kind = \"{}\"`", content.kind.name());
        [kind, format!("`files = {}`", content.files), format!("`size = {}`", content.size)]
    };
    let differs = [is_tree(stated) != is_tree(real), stated.files != real.files, stated.size != real.size];
    let list = |content: &Content| {
        let wrong = lines(content).into_iter().zip(differs).filter(|line| line.1);
        wrong.map(|line| line.0).collect::<Vec<_>>().join(", ")
    };
    differs.contains(&true).then(|| format!("{} instead of {}", list(stated), list(real)))
}
