//! Removal of a stage's outputs before it runs. Each is moved away first and then compared with what was made
//! safe, so that a file that the user saves in that moment is not lost.

use std::collections::BTreeMap;

use crate::{
    error::{Error, Kind, Result},
    fs::{Dir, FileKind, Root},
    path::RepoPath,
    pipeline::{
        Pipeline,
        leftovers::{self, FAILED},
    },
    progress::Progress,
};

/// Metadata of an output and of everything below it, by path. Times of change are left out, since a rename
/// changes them, and so are other times of folders.
#[derive(Debug, PartialEq)]
pub struct Stamp(BTreeMap<Vec<u8>, (FileKind, u64, i64, u64)>);

impl Stamp {
    /// Reads the metadata; `None` if nothing exists at the path.
    pub fn of(root: &Root, path: &RepoPath) -> Result<Option<Self>> {
        if root.stat(path)?.is_none() {
            return Ok(None);
        }
        let mut found = BTreeMap::new();
        let dir = root.dir(&path.parent().unwrap_or_default())?;
        collect(&dir, path.name(), b"", &mut found)?;
        Ok(Some(Self(found)))
    }

    /// Returns the metadata of a path below this one; `None` if nothing existed there.
    fn part(&self, below: &RepoPath) -> Option<Self> {
        let prefix = if below.is_root() { Vec::new() } else { [b"/", below.bytes()].concat() };
        let rows = self.0.iter().filter_map(|(path, row)| {
            let rest = path.strip_prefix(&prefix[..])?;
            (rest.is_empty() || rest.starts_with(b"/")).then(|| (rest.to_vec(), *row))
        });
        let found: BTreeMap<_, _> = rows.collect();
        (!found.is_empty()).then_some(Self(found))
    }
}

/// Returns the folder for what a run of the stage left, or made way for, that no run recorded.
pub(super) fn quarantine_folder(stage: &str) -> Result<RepoPath> {
    RepoPath::from_text(&format!("{FAILED}/{}", leftovers::name(stage)))
}

fn collect(
    dir: &Dir,
    name: &[u8],
    below: &[u8],
    found: &mut BTreeMap<Vec<u8>, (FileKind, u64, i64, u64)>,
) -> Result<()> {
    let Some(stat) = dir.stat(name)? else { return Ok(()) };
    if stat.kind != FileKind::Folder {
        found.insert(below.to_vec(), (stat.kind, stat.size, stat.mtime, stat.inode));
        return Ok(());
    }
    found.insert(below.to_vec(), (stat.kind, 0, 0, stat.inode));
    // A folder that cannot be opened, such as `.git`, does not stop the run here: its removal will fail.
    let Ok(inner) = dir.open_dir(name) else { return Ok(()) };
    for (name, _) in inner.names()? {
        collect(&inner, &name, &[below, b"/", &name].concat(), found)?;
    }
    Ok(())
}

impl Pipeline<'_, '_> {
    /// Removes an output whose content was safe when it had this stamp. Files that `.mlxignore` names stay
    /// in place. Anything else that is there is moved to mlx's private folder and named.
    pub(super) fn clear_output(
        &self,
        stage: &str,
        path: &RepoPath,
        safe: Option<&Stamp>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let parts = self.workspace.included_parts(path)?;
        for part in &parts {
            let below = part.strip_prefix(path).expect("a part is in its output");
            let safe = safe.and_then(|stamp| stamp.part(&below));
            self.clear_part(stage, part, safe.as_ref(), progress)?;
        }
        self.workspace.remove_empty_folders(&parts, path)
    }

    /// Moves the Git folders that an earlier run left in an output to mlx's private folder: they are stored
    /// nowhere, and a command that clones there again needs the place.
    pub(super) fn move_git_folders(
        &self,
        stage: &str,
        out: &RepoPath,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (private, folder) = (&self.repo().private, quarantine_folder(stage)?);
        let moved = self.workspace.move_git_folders(out, private, &folder)?;
        if !moved.is_empty() {
            let folder = folder.on_disk(private.path());
            progress.note(&format!("moved to {}: `{}`", folder.display(), moved.join("`, `")));
        }
        Ok(())
    }

    fn clear_part(
        &self,
        stage: &str,
        path: &RepoPath,
        safe: Option<&Stamp>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let repo = self.repo();
        if repo.files.stat(path)?.is_none() {
            return Ok(());
        }
        let folder = quarantine_folder(&format!("{stage}-saved"))?;
        let target = folder.join_path(path)?;
        if repo.files.rename_to(path, &repo.private, &target).is_err() {
            // The private folder is on another file system.
            remove_empty_folders(&repo.private, &target);
            return self.remove_in_place(path, safe);
        }
        if Stamp::of(&repo.private, &target)?.as_ref() == safe {
            repo.private.remove(&target)?;
            remove_empty_folders(&repo.private, &target);
        } else {
            progress.note(&format!(
                "`{path}` was saved just before the stage `{stage}` ran; that version was moved to {}",
                target.on_disk(repo.private.path()).display()
            ));
        }
        Ok(())
    }

    fn remove_in_place(&self, path: &RepoPath, safe: Option<&Stamp>) -> Result<()> {
        let files = &self.repo().files;
        if Stamp::of(files, path)?.as_ref() == safe {
            return files.remove(path);
        }
        let error =
            Error::new(Kind::Conflict, format!("`{path}` was saved just before it was to be replaced"));
        Err(error.hint("run `mlx repro` again"))
    }
}

/// Removes the folders above a path of the private folder that are empty now, up to that of failed runs.
fn remove_empty_folders(private: &Root, path: &RepoPath) {
    let mut here = path.parent();
    while let Some((folder, parent)) = here.and_then(|folder| Some((folder.clone(), folder.parent()?))) {
        if parent.is_root() || !private.dir(&parent).is_ok_and(|dir| dir.remove_empty(folder.name())) {
            return;
        }
        here = Some(parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Sync;

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    #[test]
    fn a_stamp_survives_a_rename_and_shows_every_change() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let write = |name: &str, text: &str| root.write(&path(name), text.as_bytes(), Sync::Later).unwrap();
        write("o/a", "one");
        write("o/d/b", "two");
        let stamp = || Stamp::of(&root, &path("o")).unwrap();
        let before = stamp();
        assert_eq!(Stamp::of(&root, &path("nothing")).unwrap(), None);
        root.rename(&path("o"), &path("moved")).unwrap();
        assert_eq!(Stamp::of(&root, &path("moved")).unwrap(), before);
        root.rename(&path("moved"), &path("o")).unwrap();
        write("o/d/b", "new");
        assert_ne!(stamp(), before, "another inode");
        let before = stamp();
        write("o/d/c", "more");
        assert_ne!(stamp(), before);
        root.remove(&path("o/d/c")).unwrap();
        assert_eq!(stamp(), before);
        root.remove(&path("o/a")).unwrap();
        assert_ne!(stamp(), before);
    }

    #[test]
    fn a_part_of_a_stamp_is_the_stamp_of_the_part() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        for file in ["o/d/a", "o/d/e/b", "o/dd"] {
            root.write(&path(file), b"", Sync::Later).unwrap();
        }
        let stamp = |text: &str| Stamp::of(&root, &path(text)).unwrap();
        let whole = stamp("o").unwrap();
        assert_eq!(whole.part(&RepoPath::root()), stamp("o"));
        for part in ["d", "d/a", "d/e", "dd"] {
            assert_eq!(whole.part(&path(part)), stamp(&format!("o/{part}")), "{part}");
        }
        assert_eq!(whole.part(&path("d/x")), None);
    }

    #[test]
    fn only_empty_folders_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        root.write(&path("failed/one/x"), b"", Sync::Later).unwrap();
        root.create_dir(&path("failed/two/a/b")).unwrap();
        remove_empty_folders(&root, &path("failed/two/a/b/c"));
        remove_empty_folders(&root, &path("failed/one/y"));
        let names = root.dir(&path("failed")).unwrap().names().unwrap();
        assert_eq!(names.len(), 1);
    }
}
