//! Checks of the paths that are to be added, before anything is scanned or stored.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Kind, Result},
    fs::FileKind,
    git::IgnoredFile,
    path::RepoPath,
    pointer::{ContentKind, Pointer, SUFFIX},
    workspace::{
        Workspace,
        add::relative_to,
        ignore::{self, Rules},
        pointers::nearest,
        siblings::recorded_entry,
        steering::check_is_data,
    },
};

/// Rules of an addition.
#[derive(Clone, Copy, Default)]
pub struct AddRules<'a> {
    /// Paths that belong to stages, each with the stage's name.
    pub claimed: &'a [(RepoPath, String)],
    /// True if the files are to be staged, so that Git must not ignore them.
    pub git_add: bool,
    /// True if only edits are to be recorded: a path without any is skipped.
    pub only_edits: bool,
}

/// A path that may be added.
pub(super) struct Target<'p> {
    pub path: &'p RepoPath,
    /// The pointer of the tracked folder that contains it.
    pub parent: Option<Pointer>,
    /// Its own pointer, as far as it can be read.
    pub own: Option<Pointer>,
    /// False for data of a pointer in conflict that is not here.
    pub is_here: bool,
}

impl Target<'_> {
    /// Returns the pointer that changes, if there is one.
    pub fn record(&self) -> Option<&Pointer> {
        self.parent.as_ref().or(self.own.as_ref())
    }

    /// Returns the path of the pointer that changes.
    pub fn top(&self) -> &RepoPath {
        self.parent.as_ref().map_or(self.path, |parent| &parent.path)
    }
}

impl Workspace<'_> {
    /// Checks paths that are to be added, none of which contains another.
    pub(super) fn add_targets<'p>(
        &self,
        paths: &'p [RepoPath],
        rules: AddRules<'_>,
    ) -> Result<Vec<Target<'p>>> {
        let targets = paths.iter().map(|path| self.target(path, paths, rules)).collect::<Result<Vec<_>>>()?;
        self.check_git_rules(targets.iter().map(Target::top), rules)?;
        Ok(targets)
    }

    fn target<'p>(&self, path: &'p RepoPath, all: &[RepoPath], rules: AddRules<'_>) -> Result<Target<'p>> {
        check_claims(path, rules.claimed)?;
        if self.repo.files.stat(path)?.is_none() && self.repo.sides(path)?.is_some() {
            let own = self.pointer_to_change(path, all)?;
            return Ok(Target { path, parent: None, own, is_here: false });
        }
        self.check_addable(path)?;
        let parent = self.tracked_parent(path, all)?;
        let mut own = None;
        if parent.is_none() {
            check_is_data(path)?;
            self.check_replaceable(path)?;
            own = self.own_pointer(path, all)?;
        }
        self.check_ignore_rules(path, parent.as_ref())?;
        Ok(Target { path, parent, own, is_here: true })
    }

    /// Returns the pointer of a path that is to be added, if there is one that can be read. One in conflict
    /// that cannot be merged is an error.
    fn own_pointer(&self, path: &RepoPath, named: &[RepoPath]) -> Result<Option<Pointer>> {
        let found = self.pointer_to_change(path, named);
        if self.repo.sides(path)?.is_some() { found } else { Ok(found.ok().flatten()) }
    }

    /// Refuses pointers whose `.gitignore` cannot be changed, and those that are to be staged and that Git
    /// ignores.
    pub(super) fn check_git_rules<'t>(
        &self,
        tops: impl Iterator<Item = &'t RepoPath>,
        rules: AddRules<'_>,
    ) -> Result<()> {
        let (git, mut files) = (&self.repo.git, BTreeSet::new());
        for top in tops {
            if files.insert(top.parent().unwrap_or_default().join(b".gitignore")?) {
                git.check_ignorable(&self.repo.files, top)?;
            }
            files.insert(top.with_suffix(SUFFIX));
        }
        let files: Vec<_> = files.into_iter().filter(|_| rules.git_add).collect();
        let Some(ignored) = git.ignored_files(&files)?.into_iter().next() else { return Ok(()) };
        let IgnoredFile { file, pattern, line, source } = ignored;
        let message = format!("Git ignores `{file}`, by `{pattern}` in line {line} of `{source}`");
        Err(Error::usage(message)
            .hint("remove that rule, or leave out `--git-add`: then no other clone gets the file"))
    }

    /// Refuses paths whose pointers would pass a Git filter.
    pub(super) fn check_unfiltered(&self, paths: &[RepoPath]) -> Result<()> {
        let paths = paths.iter().filter(|path| !path.is_root());
        let tracked = |path: &RepoPath| self.record_of(path).map(|pointer| pointer.path);
        let files = paths.map(|path| tracked(path).unwrap_or_else(|| path.clone()).with_suffix(SUFFIX));
        self.repo.git.check_unfiltered(&files.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>())
    }

    /// Returns the pointer that Git has of a path whose file is missing or damaged here, unless mlx or Git's
    /// index does not track it any more: then it was removed on purpose.
    pub(super) fn lost_pointer(&self, path: &RepoPath) -> Result<Option<Pointer>> {
        if path.is_root() {
            return Ok(None);
        }
        let file = path.with_suffix(SUFFIX);
        let is_here = self.repo.files.stat(&file)?.is_some();
        if !is_here && !self.may_have_base(path) || self.repo.git.tracked_within(&file)?.is_none() {
            return Ok(None);
        }
        self.repo.pointer_in_git(path)
    }

    /// Returns the lost pointer of the nearest folder from `above` on.
    fn lost_parent(&self, above: &RepoPath) -> Result<Option<Pointer>> {
        for folder in above.ancestors() {
            if let Some(pointer) = self.lost_pointer(&folder)? {
                return Ok(Some(pointer));
            }
        }
        Ok(None)
    }

    /// Refuses to replace a file that is not the pointer of `path`, or one in conflict.
    pub(super) fn check_replaceable(&self, path: &RepoPath) -> Result<()> {
        self.repo.check_replaceable(path, &self.index.borrow().pointers)
    }

    /// Returns the pointer of the tracked folder that contains `path`; a tracked file there is an error.
    fn tracked_parent(&self, path: &RepoPath, named: &[RepoPath]) -> Result<Option<Pointer>> {
        let Some(above) = path.parent() else { return Ok(None) };
        let parent = nearest(&above, |path| match self.pointer_to_change(path, named)? {
            None => self.repo.skipped_pointer(path),
            pointer => Ok(pointer),
        })?;
        match parent.map_or_else(|| self.lost_parent(&above), |parent| Ok(Some(parent)))? {
            Some(parent) if parent.content.kind != ContentKind::Tree => {
                let error = Error::new(
                    Kind::Conflict,
                    format!("`{}` is tracked as a file, so `{path}` cannot be added below it", parent.path),
                );
                Err(error.hint(format!("remove `{}` first", parent.file())))
            }
            parent => Ok(parent),
        }
    }

    fn check_ignore_rules(&self, path: &RepoPath, parent: Option<&Pointer>) -> Result<()> {
        let is_dir = self.repo.files.stat(path)?.is_some_and(|it| it.kind == FileKind::Folder);
        let own = if parent.is_none() { self.record_of(path) } else { None };
        if Rules::open(self, path, own.as_ref().or(parent))?.excludes(path, is_dir)? {
            let error = Error::usage(format!("`{path}` is ignored by a `{}`", ignore::FILE));
            return Err(error.hint("remove the rule, or add one that begins with `!`"));
        }
        Ok(())
    }

    fn check_addable(&self, path: &RepoPath) -> Result<()> {
        if path.is_root() {
            return Err(Error::usage("the whole repository cannot be tracked").hint("name a folder in it"));
        }
        let Some(stat) = self.repo.files.stat(path)? else {
            return Err(self.missing_error(path));
        };
        let is_store_link = || {
            self.repo
                .files
                .read_link(path)
                .is_ok_and(|target| self.repo.store.large_from_link(&target).is_some())
        };
        if stat.kind == FileKind::Symlink && !is_store_link() {
            let error = Error::usage(format!("`{path}` is a symlink"))
                .hint("add what it points to, or the folder it is in");
            return Err(error);
        }
        if self.is_pointer(path) {
            return Err(
                Error::usage(format!("`{path}` is a pointer")).hint("pointers belong in Git: `git add` it")
            );
        }
        if let Some(file) = self.repo.git.tracked_within(path)? {
            let error = Error::new(Kind::Conflict, format!("Git already tracks `{file}`"));
            return Err(error.hint(format!("remove it from Git's index first: `git rm -r --cached {path}`")));
        }
        Ok(())
    }

    /// Returns the error for a path that is not here, with what its record says.
    fn missing_error(&self, path: &RepoPath) -> Error {
        let error = Error::not_found(format!("`{path}` not found"));
        let Some(tracked) = self.record_of(path) else { return error };
        let (top, store, below) = (&tracked.path, &self.repo.store, relative_to(path, &tracked));
        if below.is_root() {
            return error
                .hint(format!("get it with `mlx pull {top}`, or stop tracking it with `mlx remove {top}`"));
        }
        if !matches!(recorded_entry(store, &tracked, path), Ok(None)) {
            return error.hint(format!(
                "get it with `mlx pull {path}`, or record its deletion with `mlx commit {path}`"
            ));
        }
        let base = self.base_at(top, &below);
        if base.is_ok_and(|base| base.contents.iter().any(Option::is_some)) {
            let message =
                format!("`{path}` is not here, and others removed it from `{top}`: there is nothing to add");
            return Error::not_found(message).hint(format!(
                "`mlx log {path}` lists the commits that had it; `mlx checkout --rev COMMIT {path}` brings \
                 it back"
            ));
        }
        error
    }

    pub(super) fn is_pointer(&self, path: &RepoPath) -> bool {
        path.without_suffix(SUFFIX).is_some_and(|tracked| matches!(self.repo.pointer(&tracked), Ok(Some(_))))
    }
}

/// Refuses paths that overlap an output of a stage.
fn check_claims(path: &RepoPath, claimed: &[(RepoPath, String)]) -> Result<()> {
    let Some((output, stage)) = claimed.iter().find(|it| path.overlaps(&it.0)) else { return Ok(()) };
    let error = Error::new(Kind::Conflict, format!("`{path}` belongs to the stage `{stage}`"));
    Err(error.hint(format!("its output `{output}` is recorded by `mlx repro` and `mlx commit`")))
}
