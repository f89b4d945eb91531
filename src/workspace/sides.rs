//! Pointers in conflict: merges the versions that Git's index has of one, path by path.
//!
//! The trees of the three versions are merged as `merge` says. A path that both sides changed is a conflict,
//! unless the user names it: then ours is taken, so that the workspace's version of it is recorded.

use crate::{
    error::{Error, Kind, Result},
    path::{RepoPath, quoted_list},
    pointer::{Content, Pointer, SUFFIX, Sides},
    store::Writer,
    workspace::{
        Workspace,
        compare::as_entry,
        merge::{Base, Merge, Mine, merge},
        siblings::recorded_entry,
    },
};

impl Workspace<'_> {
    /// Reads the pointer of `path` for a change of it. One in conflict is the merge of both sides; `named`
    /// are the paths that the user names.
    pub(super) fn pointer_to_change(&self, path: &RepoPath, named: &[RepoPath]) -> Result<Option<Pointer>> {
        match self.repo.sides(path)? {
            Some(sides) => self.merge_sides(path, &sides, named).map(Some),
            None => Ok(self.pointer(path)?.map(|pointer| self.corrected(pointer))),
        }
    }

    /// Returns the contents of both sides of all pointers in conflict, and of what both changed.
    pub fn contents_in_conflict(&self) -> Result<Vec<(RepoPath, Content)>> {
        let mut found = Vec::new();
        for file in self.repo.git.unmerged(&|name| name.ends_with(SUFFIX.as_bytes()))? {
            let Some(path) = file.without_suffix(SUFFIX) else { continue };
            let Sides { base, ours, theirs } = self.repo.sides(&path)?.unwrap_or_default();
            let contents = [base, ours, theirs].into_iter().flatten();
            found.extend(contents.map(|content| (path.clone(), content)));
        }
        Ok(found)
    }

    fn merge_sides(&self, path: &RepoPath, sides: &Sides, named: &[RepoPath]) -> Result<Pointer> {
        let (Some(ours), Some(theirs)) = (sides.ours, sides.theirs) else {
            return Err(Pointer::conflict_error(path, sides));
        };
        let (store, root) = (&self.repo.store, RepoPath::root());
        let base = Base { contents: vec![sides.base.as_ref().map(as_entry)], complete: true };
        let mut merged =
            merge(store, &root, &base, &Mine::Stored(as_entry(&ours)), Some(&as_entry(&theirs)))?;
        if merged.conflicts.contains(&root) {
            return Err(Pointer::conflict_error(path, sides));
        }
        self.choose_ours(&Pointer { path: path.clone(), content: ours }, named, &mut merged)?;
        if !merged.conflicts.is_empty() {
            return Err(self.changed_twice(&Pointer { path: path.clone(), content: theirs }, &merged));
        }
        let mut writer = Writer::new(store);
        let content = merged.apply(Some(&mut writer), store, &theirs)?;
        writer.finish()?;
        Ok(Pointer { path: path.clone(), content })
    }

    /// Takes our version of the paths in conflict that are named, or in a folder that is.
    fn choose_ours(&self, ours: &Pointer, named: &[RepoPath], merged: &mut Merge) -> Result<()> {
        let top = &ours.path;
        for below in std::mem::take(&mut merged.conflicts) {
            let path = top.join_path(&below)?;
            if named.iter().any(|name| name != top && path.is_within(name)) {
                let own = recorded_entry(&self.repo.store, ours, &path)?;
                merged.changes.insert(below, own);
            } else {
                merged.conflicts.push(below);
            }
        }
        Ok(())
    }

    /// Returns the error for paths that both sides of a conflict changed.
    fn changed_twice(&self, theirs: &Pointer, merged: &Merge) -> Error {
        let full = |below: &RepoPath| theirs.path.join_path(below).unwrap_or_default();
        let paths: Vec<_> = merged.conflicts.iter().map(full).collect();
        let message = format!("both sides of `{}` changed {}", theirs.file(), quoted_list(&paths));
        let entry = recorded_entry(&self.repo.store, theirs, &paths[0]).ok().flatten();
        let restore = entry.map(|entry| {
            format!(" (`mlx restore b3:{} --to {}` gets theirs)", entry.digest.short(), paths[0])
        });
        let names: Vec<_> = paths.iter().map(RepoPath::to_text).collect();
        Error::new(Kind::Conflict, message).hint(format!(
            "put the version to keep there{}, then run `mlx add {}`; or choose one side of all (`git \
             checkout --ours {file}`, or `--theirs`), then `git add {file}`",
            restore.unwrap_or_default(),
            names.join(" "),
            file = theirs.file()
        ))
    }
}
