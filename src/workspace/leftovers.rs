//! Leftovers of killed commands in the folders of the workspace: temporary files, and files of the user that
//! were being replaced or removed.
//!
//! A user may have saved such a file in the moment before, so that it is the only copy of its bytes: it is
//! removed only if the store has them. Otherwise it gets a name beside its own that the user sees.

use crate::{
    digest::Digest,
    error::{Error, Result},
    fs::{self, Dir, FileKind, FileType, WalkFilter},
    path::{RepoPath, escape_bytes},
    pointer::Pointer,
    progress::Progress,
    repo::Repo,
    store::{Store, digest_file},
    workspace::Workspace,
};

/// Filter of a walk that cleans the folders and leaves out nothing.
pub struct Cleaning<'c> {
    pub store: &'c Store,
    pub progress: &'c dyn Progress,
}

/// As [`Cleaning`], for a walk of folders only that goes on after those that cannot be read.
struct CleaningFolders<'c>(Cleaning<'c>);

impl WalkFilter for CleaningFolders<'_> {
    fn filter(&self, _: &Dir, names: &mut Vec<(Vec<u8>, FileType)>) -> Result<()> {
        names.retain(|(_, kind)| kind.is_dir());
        Ok(())
    }

    fn on_own_files(&self, dir: &Dir) {
        self.0.on_own_files(dir);
    }

    fn on_error(&self, _: &RepoPath, _: Error) -> Result<()> {
        Ok(())
    }
}

impl WalkFilter for Cleaning<'_> {
    fn on_own_files(&self, dir: &Dir) {
        // They are only in the way: those that cannot be removed stay.
        let _kept = clean(dir, self.store, self.progress);
    }
}

/// Removes from a folder what dead processes left in it, and keeps what is stored nowhere, with a warning.
pub fn clean(dir: &Dir, store: &Store, progress: &dyn Progress) -> Result<()> {
    dir.clean(|aside| {
        if is_stored(dir, aside, store).unwrap_or(false) {
            return dir.remove(aside);
        }
        let Some(kept) = dir.keep_aside(aside)? else { return Ok(()) };
        let path = dir.path().join(&kept).map_or_else(|_| escape_bytes(&kept), |path| path.to_text());
        progress.warn(&format!(
            "a command that was killed had replaced or removed a file that is stored nowhere: it is kept as \
             `{path}`"
        ));
        Ok(())
    })
}

/// Cleans all folders of the work tree: a command may have been killed while it wrote to a folder that is not
/// tracked.
pub fn clean_work_tree(repo: &Repo, progress: &dyn Progress) -> Result<()> {
    let (files, filter) = (&repo.files, CleaningFolders(Cleaning { store: &repo.store, progress }));
    fs::on_io_threads(|| files.entries(&RepoPath::root(), &filter)).map(drop)
}

impl Workspace<'_> {
    /// Cleans a folder, once in this workspace: many paths in one folder cost as much as one.
    pub fn clean_folder(&self, folder: &RepoPath, progress: &dyn Progress) -> Result<()> {
        if !self.cleaned.borrow().contains(folder) {
            clean(&self.repo.files.dir(folder)?, &self.repo.store, progress)?;
            self.cleaned.borrow_mut().insert(folder.clone());
        }
        Ok(())
    }

    /// Cleans the folders that contain these paths.
    pub(super) fn clean_beside<'p>(
        &self,
        paths: impl Iterator<Item = &'p RepoPath>,
        progress: &dyn Progress,
    ) {
        for folder in paths.filter_map(RepoPath::parent) {
            // They are only in the way: a folder that cannot be read is reported where it matters.
            let _kept = self.clean_folder(&folder, progress);
        }
    }

    /// Writes a pointer as [`Repo::write_pointer`] does. Also cleans its folder.
    pub(super) fn write_pointer(&self, pointer: &Pointer, progress: &dyn Progress) -> Result<bool> {
        self.clean_beside(std::iter::once(&pointer.path), progress);
        self.repo.write_pointer(pointer)
    }
}

/// Returns true if the store has the content of a file or link; a missing one has none.
fn is_stored(dir: &Dir, name: &[u8], store: &Store) -> Result<bool> {
    let Some(stat) = dir.stat(name)? else { return Ok(true) };
    Ok(match stat.kind {
        FileKind::File => store.is_intact(&digest_file(&dir.open(name)?)?.0),
        FileKind::Symlink => {
            let target = dir.read_link(name)?;
            // A link into the store has no bytes of its own.
            store.large_from_link(&target).is_some() || store.is_intact(&Digest::of(&target))
        }
        FileKind::Folder | FileKind::Other => false,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        fs::{Root, Sync, names},
        progress::Event,
        store::Writer,
    };

    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);

    impl Progress for Warnings {
        fn event(&self, event: Event<'_>) {
            if let Event::Warning { message } = event {
                self.0.lock().unwrap().push(message.to_owned());
            }
        }
    }

    #[test]
    fn only_what_is_stored_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let store = Store::open(Root::create(&temp.path().join("store")).unwrap()).unwrap();
        let mut writer = Writer::new(&store);
        writer.put_bytes(b"stored").unwrap();
        writer.finish().unwrap();
        let aside = |name: &str| format!(".mlx-old-{name}-4194999-0-0");
        for (file, bytes) in [("a", &b"stored"[..]), ("b", b"precious"), ("c", b"stored")] {
            let inner = if file == "c" { "/inner" } else { "" };
            let path = RepoPath::from_text(&format!("d/{}{inner}", aside(file))).unwrap();
            root.write(&path, bytes, Sync::Later).unwrap();
        }
        let dir = root.dir(&RepoPath::from_text("d").unwrap()).unwrap();
        for (target, name) in [(&b"stored"[..], "l"), (b"elsewhere", "m")] {
            dir.symlink(target, aside(name).as_bytes()).unwrap();
        }
        let warnings = Warnings::default();
        clean(&dir, &store, &warnings).unwrap();
        assert_eq!(names(&temp.path().join("d")), ["b.kept-1", "c.kept-1", "m.kept-1"]);
        let warnings = warnings.0.into_inner().unwrap();
        assert_eq!(warnings.len(), 3);
        assert!(warnings[0].ends_with("it is kept as `d/b.kept-1`"), "{warnings:?}");
    }
}
