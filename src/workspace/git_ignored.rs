//! `.gitignore` in dependencies: files that no clone has do not belong to a stage's inputs.
//!
//! A dependency of source code collects files that programs write on the way, such as `__pycache__`. In a
//! folder that mlx does not keep, the files that the repository's own `.gitignore` files name are left out;
//! `.git/info/exclude` and `core.excludesFile` differ between machines and are not read, and neither is Git's
//! index, so that `git add` changes no digest. Always counted: paths that have a pointer or are outputs, for
//! which mlx wrote the ignore line, the dependency itself, and everything in a folder that is ignored as a
//! whole. Git has no empty folders, so that these are left out as well. In a nested repository its own rules
//! apply, as in Git.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::{
    error::Result,
    fs::{Dir, FileType, Root},
    path::RepoPath,
    workspace::levels::{InvalidLine, Level, Levels, read_rules},
};

const FILE: &str = ".gitignore";
const GIT_FOLDER: &[u8] = b".git";

/// The rules for one dependency.
pub struct GitIgnored<'v> {
    files: &'v Root,
    /// Paths that mlx keeps: those with a pointer, and outputs.
    kept: &'v BTreeSet<RepoPath>,
    levels: Levels,
}

impl<'v> GitIgnored<'v> {
    /// Reads the rules above the folder `path`; `None` if they leave out nothing in it.
    pub fn open(files: &'v Root, path: &RepoPath, kept: &'v BTreeSet<RepoPath>) -> Result<Option<Self>> {
        let rules = Self { files, kept, levels: Levels::default() };
        if rules.is_kept(path) {
            return Ok(None);
        }
        let mut folder = RepoPath::root();
        for name in path.components() {
            let is_repository = files.dir(&folder)?.stat(GIT_FOLDER)?.is_some();
            let level = rules.enter(&folder, is_repository)?;
            if level.is_some_and(|level| level.ignores(&folder, name, true)) {
                return Ok(None);
            }
            folder = folder.join(name)?;
        }
        Ok(Some(rules))
    }

    /// Returns true if the path or a folder above it is one that mlx keeps.
    pub fn is_kept(&self, path: &RepoPath) -> bool {
        path.ancestors().any(|path| self.kept.contains(&path))
    }

    fn has_kept_below(&self, folder: &RepoPath) -> bool {
        let following = self.kept.range(folder..);
        following
            .take_while(|path| path.bytes().starts_with(folder.bytes()))
            .any(|path| path.is_within(folder))
    }

    /// Removes ignored names from the listing of a folder.
    pub fn filter(&self, dir: &Dir, names: &mut Vec<(Vec<u8>, FileType)>) -> Result<()> {
        let folder = dir.path();
        if self.is_kept(folder) {
            return Ok(());
        }
        let is_repository = names.iter().any(|it| it.0 == GIT_FOLDER);
        let Some(level) = self.enter(folder, is_repository)? else { return Ok(()) };
        names.retain(|(name, kind)| {
            if !level.ignores(folder, name, kind.is_dir()) {
                return true;
            }
            let Ok(path) = folder.join(name) else { return false };
            if self.kept.contains(&path) {
                return true;
            }
            let counts_in_part = kind.is_dir() && self.has_kept_below(&path);
            if counts_in_part {
                self.levels.add(&path, None, true);
            }
            counts_in_part
        });
        Ok(())
    }

    /// Returns the rules that apply in a folder, its own included.
    fn enter(&self, folder: &RepoPath, is_repository: bool) -> Result<Option<Arc<Level>>> {
        let above = self.levels.at(folder);
        if above.as_ref().is_some_and(|level| level.ignore_all || level.folder == *folder) {
            return Ok(above);
        }
        let own = read_rules(self.files, folder, FILE, InvalidLine::Skip)?;
        if is_repository && !folder.is_root() {
            return Ok(Some(self.levels.add_top(folder, own)));
        }
        match own {
            Some(own) => Ok(Some(self.levels.add(folder, Some(own), false))),
            None => Ok(above),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Listing, Sync, WalkFilter};

    struct Filter<'v>(Option<GitIgnored<'v>>);

    impl WalkFilter for Filter<'_> {
        fn filter(&self, dir: &Dir, names: &mut Vec<(Vec<u8>, FileType)>) -> Result<()> {
            self.0.as_ref().map_or(Ok(()), |git| git.filter(dir, names))
        }
    }

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    /// Returns the files of a dependency that count, among `files` with the content that each has.
    fn counted(files: &[(&str, &str)], kept: &[&str], dependency: &str) -> Vec<String> {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        for (file, text) in files {
            if let Some(folder) = file.strip_suffix("/.git") {
                crate::fs::create_dir_all(&path(folder).on_disk(temp.path()).join(".git")).unwrap();
            } else {
                root.write(&path(file), text.as_bytes(), Sync::Later).unwrap();
            }
        }
        let kept = kept.iter().map(|it| path(it)).collect();
        let git = GitIgnored::open(&root, &path(dependency), &kept).unwrap();
        let listing = root.entries(&path(dependency), &Filter(git)).unwrap();
        let mut found = Vec::new();
        collect(dependency, &listing, &mut found);
        found
    }

    fn collect(folder: &str, listing: &Listing, found: &mut Vec<String>) {
        for entry in listing.iter() {
            let path = format!("{folder}/{}", String::from_utf8_lossy(entry.name));
            collect(&path, entry.children, found);
            if entry.children.is_empty() {
                found.push(path);
            }
        }
    }

    #[test]
    fn ignored_files_are_left_out_by_the_rules_of_all_folders() {
        let files = [
            (".gitignore", "__pycache__/\n*.o\n/src/only\n"),
            ("src/.gitignore", "!keep.o\nlocal\n"),
            ("src/a", ""),
            ("src/a.o", ""),
            ("src/keep.o", ""),
            ("src/only", ""),
            ("src/s/only", ""),
            ("src/s/local", ""),
            ("src/s/__pycache__/x", ""),
        ];
        assert_eq!(counted(&files, &[], "src"), ["src/.gitignore", "src/a", "src/keep.o", "src/s/only"]);
    }

    #[test]
    fn paths_that_mlx_keeps_are_counted_with_all_they_hold() {
        let files = [
            (".gitignore", "/src/build/\n*.tmp\n"),
            ("src/.gitignore", "/data\n"),
            ("src/data/x.tmp", ""),
            ("src/data/.gitignore", "*\n"),
            ("src/build/out/x.tmp", ""),
            ("src/build/other", ""),
            ("src/build/.gitignore", "!other\n"),
            ("src/x.tmp", ""),
        ];
        let expected = ["src/.gitignore", "src/build/out/x.tmp", "src/data/.gitignore", "src/data/x.tmp"];
        assert_eq!(counted(&files, &["src/build/out", "src/data"], "src"), expected);
        assert_eq!(counted(&files, &["src/data"], "src/data"), ["src/data/.gitignore", "src/data/x.tmp"]);
    }

    #[test]
    fn everything_counts_in_a_folder_that_is_ignored_as_a_whole() {
        let files = [(".gitignore", "/gen/\n*.o\n"), ("gen/x.o", ""), ("gen/s/y.o", "")];
        assert_eq!(counted(&files, &[], "gen"), ["gen/s/y.o", "gen/x.o"]);
        assert_eq!(counted(&files, &[], "gen/s"), ["gen/s/y.o"]);
    }

    #[test]
    fn a_nested_repository_has_rules_of_its_own() {
        let files = [
            (".gitignore", "*.o\n"),
            ("src/lib/.git", ""),
            ("src/lib/.gitignore", "*.tmp\n"),
            ("src/lib/x.o", ""),
            ("src/lib/x.tmp", ""),
            ("src/y.o", ""),
        ];
        assert_eq!(counted(&files, &[], "src"), ["src/lib/.gitignore", "src/lib/x.o"]);
        assert_eq!(counted(&files, &[], "src/lib"), ["src/lib/.gitignore", "src/lib/x.o"]);
    }

    #[test]
    fn a_line_that_is_not_valid_is_skipped_as_git_does() {
        let files = [(".gitignore", "[z-a]\nx\n"), ("src/x", ""), ("src/y", "")];
        assert_eq!(counted(&files, &[], "src"), ["src/y"]);
    }
}
