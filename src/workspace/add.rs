//! Files and folders under mlx's care: bytes into the store, a pointer beside them.

use crate::{
    error::{Error, Kind, Result},
    fs::Form,
    path::RepoPath,
    pointer::{Pointer, SUFFIX, Shape},
    progress::Progress,
    store::{TreeEntry, Writer, replace},
    workspace::{
        Node, Workspace,
        ignore::{self, Rules},
        scan,
    },
};

impl Workspace<'_> {
    /// Stores what lies at `path` and writes its pointer; inside a tracked folder, that folder's.
    /// `claimed` are paths that belong to stages, with the stage's name.
    pub fn add(
        &self,
        path: &RepoPath,
        claimed: &[(RepoPath, String)],
        progress: &dyn Progress,
    ) -> Result<Pointer> {
        check_claims(path, claimed)?;
        self.check_place(path)?;
        let parent = path.parent().map(|it| self.pointer_of(&it)).transpose()?.flatten();
        self.check_rules(path, parent.as_ref())?;
        let pointer = match parent {
            Some(parent) if parent.content.kind == Shape::Tree => self.add_within(&parent, path, progress)?,
            Some(parent) => {
                let error = Error::new(
                    Kind::Conflict,
                    format!("`{}` is tracked as a file, and `{path}` lies in it", parent.path),
                );
                return Err(error.hint(format!("remove `{}` first", parent.file())));
            }
            None => self.add_whole(path, progress)?,
        };
        self.index.borrow_mut().add_pointer(pointer.path.clone());
        Ok(pointer)
    }

    fn check_rules(&self, path: &RepoPath, parent: Option<&Pointer>) -> Result<()> {
        let is_dir = self.repo.files.stamp(path)?.is_some_and(|it| it.form == Form::Folder);
        let own = self.repo.pointer(path).ok().flatten();
        if Rules::open(self.repo, path, own.as_ref().or(parent))?.leave_out(path, is_dir)? {
            let error = Error::usage(format!("`{path}` is ignored by a `{}`", ignore::FILE));
            return Err(error.hint("take the line out, or add a line that begins with `!`"));
        }
        Ok(())
    }

    /// Remembers that `path` has a pointer, though whoever wrote it may have been killed before it could.
    pub fn remember(&self, path: &RepoPath) {
        self.index.borrow_mut().add_pointer(path.clone());
    }

    fn check_place(&self, path: &RepoPath) -> Result<()> {
        if path.is_root() {
            return Err(Error::usage("the whole repository cannot be tracked").hint("name a folder in it"));
        }
        let Some(stamp) = self.repo.files.stamp(path)? else {
            return Err(Error::not_found(format!("there is no `{path}`")));
        };
        let ours = || self.repo.files.read_link(path).is_ok_and(|it| self.repo.store.linked(&it).is_some());
        if stamp.form == Form::Link && !ours() {
            let error = Error::usage(format!("`{path}` is a link"))
                .hint("add what it points to, or the folder it is in");
            return Err(error);
        }
        if self.is_pointer(path) {
            return Err(
                Error::usage(format!("`{path}` is a pointer")).hint("pointers belong into Git: `git add` it")
            );
        }
        self.repo.check_replaceable(path)?;
        if let Some(file) = self.repo.git.tracked_within(path)? {
            let error = Error::new(Kind::Conflict, format!("Git already tracks `{file}`"));
            return Err(error.hint(format!("take it out of Git first: `git rm -r --cached {path}`")));
        }
        Ok(())
    }

    pub(super) fn is_pointer(&self, path: &RepoPath) -> bool {
        path.without_suffix(SUFFIX).is_some_and(|it| matches!(self.repo.pointer(&it), Ok(Some(_))))
    }

    /// Scans, refusing what may not be tracked, and stores.
    fn take(
        &self,
        path: &RepoPath,
        top: &RepoPath,
        writer: &mut Writer<'_>,
        progress: &dyn Progress,
    ) -> Result<Node> {
        // Nothing is stored before everything is known to be acceptable.
        let pointers = self.pointed()?;
        if let Some(inner) = pointers.iter().find(|it| *it != path && it.is_within(path)) {
            let error = Error::new(
                Kind::Conflict,
                format!("`{path}` contains `{inner}`, which has a pointer of its own"),
            );
            return Err(error.hint("add its other parts one by one, or remove that pointer first"));
        }
        let gone = || Error::not_found(format!("there is no `{path}`"));
        let node = scan::scan(self, path, Some(writer), progress)?.ok_or_else(gone)?;
        node.walk(&path.parent().unwrap_or_default(), &mut |folder, leaf| {
            let named = leaf.name.ends_with(SUFFIX.as_bytes());
            let Some(inner) =
                named.then(|| folder.join(&leaf.name)).transpose()?.filter(|it| self.is_pointer(it))
            else {
                return Ok(());
            };
            let error = Error::new(Kind::Conflict, format!("`{path}` contains the pointer `{inner}`"));
            Err(error.hint("a folder is tracked as a whole or in parts: move that pointer out of it"))
        })?;
        scan::check_links(self, &node, path, top)?;
        Ok(node)
    }

    fn add_whole(&self, path: &RepoPath, progress: &dyn Progress) -> Result<Pointer> {
        let mut writer = Writer::new(&self.repo.store);
        let node = self.take(path, path, &mut writer, progress)?;
        let content = node.content();
        writer.finish()?;
        let pointer = Pointer { path: path.clone(), content };
        let _lock = self.repo.lock_telling(progress)?;
        self.repo.git.ignore(&self.repo.files, path)?;
        self.repo.write_pointer(&pointer)?;
        Ok(pointer)
    }

    fn add_within(&self, parent: &Pointer, path: &RepoPath, progress: &dyn Progress) -> Result<Pointer> {
        let mut writer = Writer::new(&self.repo.store);
        let node = self.take(path, &parent.path, &mut writer, progress)?;
        let entry = node.entry();
        writer.finish()?;
        self.record_within(parent, path, Some(entry), progress)
    }

    /// Takes a path that is gone out of the record of the folder it lay in.
    pub fn record_deletion(
        &self,
        parent: &Pointer,
        path: &RepoPath,
        progress: &dyn Progress,
    ) -> Result<Pointer> {
        self.record_within(parent, path, None, progress)
    }

    fn record_within(
        &self,
        parent: &Pointer,
        path: &RepoPath,
        entry: Option<TreeEntry>,
        progress: &dyn Progress,
    ) -> Result<Pointer> {
        // Others may have added to the folder meanwhile: their pointer is the one to change.
        let _lock = self.repo.lock_telling(progress)?;
        let parent = self.repo.pointer(&parent.path)?.unwrap_or_else(|| parent.clone());
        let mut writer = Writer::new(&self.repo.store);
        let below = path.below(&parent.path).expect("the path lies in the folder of its pointer");
        let tree = &parent.content.digest;
        let content = replace(&mut writer, &self.repo.store, Some(tree), &below, entry)?;
        writer.finish()?;
        let pointer = Pointer { path: parent.path, content };
        self.repo.write_pointer(&pointer)?;
        Ok(pointer)
    }
}

/// Refuses what stages make.
fn check_claims(path: &RepoPath, claimed: &[(RepoPath, String)]) -> Result<()> {
    let Some((output, stage)) = claimed.iter().find(|it| path.overlaps(&it.0)) else { return Ok(()) };
    let error = Error::new(Kind::Conflict, format!("`{path}` belongs to the stage `{stage}`"));
    Err(error.hint(format!("its output `{output}` is recorded by `mlx repro` and `mlx commit`")))
}
