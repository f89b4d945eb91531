//! `mlx add --glob`: stores the files that match a pattern, each in the tracked folder that contains it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::{
    error::{Error, Kind, Result},
    fs::{FileKind, Listing},
    path::RepoPath,
    pointer::{ContentKind, Pointer, SUFFIX},
    progress::Progress,
    store::{EntryKind, Writer},
    workspace::{AddRules, Workspace, filter::ScanFilter, scan, steering::belongs_in_git},
};

/// A pattern of files below a folder: `*` matches within a name, `**` across folders.
pub struct Glob {
    base: RepoPath,
    pattern: Gitignore,
    /// The folder named by the pattern before its first wildcard.
    start: RepoPath,
}

impl Glob {
    /// Parses a pattern that is relative to the folder `base`.
    pub fn new(pattern: &str, base: &RepoPath) -> Result<Self> {
        let invalid = |why: &str| Error::usage(format!("`{pattern}` is not a valid file pattern: {why}"));
        let hint = "write it relative to the current folder and in quotes, such as `'data/**/*.jpg'`";
        if pattern.starts_with('/') || pattern.split('/').any(|it| it == "..") {
            return Err(invalid("it leads out of the current folder").hint(hint));
        }
        let trimmed = pattern.trim_start_matches("./");
        let mut builder = GitignoreBuilder::new(".");
        builder
            .add_line(None, &format!("/{trimmed}"))
            .map_err(|error| invalid(&error.to_string()).hint(hint))?;
        let matcher = builder.build().map_err(|error| invalid(&error.to_string()).hint(hint))?;
        if trimmed.ends_with('/') || matcher.num_ignores() == 0 {
            return Err(invalid("it matches no file").hint(hint));
        }
        let mut start = base.clone();
        let names: Vec<&str> = trimmed.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        for name in names.iter().take(names.len() - 1) {
            if name.contains(['*', '?', '[', '\\']) {
                break;
            }
            start = start.join(name.as_bytes())?;
        }
        Ok(Self { base: base.clone(), pattern: matcher, start })
    }

    /// Returns the folder that contains everything the pattern can match.
    pub fn start(&self) -> &RepoPath {
        &self.start
    }

    /// Returns true if the pattern matches a file.
    pub fn matches(&self, file: &RepoPath) -> bool {
        let below = file.strip_prefix(&self.base).filter(|it| !it.is_root());
        below.is_some_and(|path| {
            self.pattern.matched(Path::new(OsStr::from_bytes(path.bytes())), false).is_ignore()
        })
    }
}

impl Workspace<'_> {
    /// Stores the matching files: those in a tracked folder update its pointer, others get their own. Outputs
    /// of stages and files tracked by Git are skipped.
    pub fn add_matching(
        &self,
        glob: &Glob,
        rules: AddRules<'_>,
        progress: &dyn Progress,
    ) -> Result<Vec<Pointer>> {
        let tracked = self.pointer_paths()?;
        let (mut folders, mut single) = (BTreeSet::new(), Vec::new());
        for file in self.matching(glob)? {
            if rules.claimed.iter().any(|output| file.overlaps(&output.0)) {
                continue;
            }
            match tracked_ancestor(&file, &tracked) {
                Some(top) if top != file => drop(folders.insert(top)),
                None if belongs_in_git(&file) || self.repo.git.tracked_within(&file)?.is_some() => {}
                _ => single.push(file),
            }
        }
        if folders.is_empty() && single.is_empty() {
            return Err(Error::not_found("no file matches").hint("`mlx add --help` has an example"));
        }
        self.check_unfiltered(&folders.iter().chain(&single).cloned().collect::<Vec<_>>())?;
        self.check_git_rules(folders.iter().chain(&single), rules)?;
        let mut pointers = Vec::new();
        for top in folders {
            pointers.extend(self.add_to_folder(&top, glob, progress)?);
        }
        pointers.extend(self.add_all(&single, rules, progress)?);
        Ok(pointers)
    }

    /// Returns the matching files that are neither ignored nor pointers.
    fn matching(&self, glob: &Glob) -> Result<Vec<RepoPath>> {
        let mut found = Vec::new();
        if self.repo.files.stat(&glob.start)?.is_none_or(|stat| stat.kind != FileKind::Folder) {
            return Ok(found);
        }
        let record = self.pointer_of(&glob.start)?;
        let filter = ScanFilter::new(self, &glob.start, record.as_ref())?.matching(glob);
        collect_files(&glob.start, &self.repo.files.entries(&glob.start, &filter)?, &mut found)?;
        found.retain(|file| !(file.bytes().ends_with(SUFFIX.as_bytes()) && self.is_pointer(file)));
        Ok(found)
    }

    /// Records the matching files of a tracked folder in one update.
    fn add_to_folder(&self, top: &RepoPath, glob: &Glob, progress: &dyn Progress) -> Result<Option<Pointer>> {
        let Some(parent) = self.pointer(top)?.filter(|pointer| pointer.content.kind == ContentKind::Tree)
        else {
            let error = Error::new(Kind::Conflict, format!("`{top}` is tracked as a file, but is a folder"));
            return Err(error.hint(format!("run `mlx remove {top}` first")));
        };
        let start = if glob.start.is_within(top) { &glob.start } else { top };
        let filter = ScanFilter::new(self, start, Some(&parent))?.matching(glob);
        let read = |writer: Option<&mut Writer<'_>>| -> Result<Option<BTreeMap<_, _>>> {
            let Some(node) = scan::scan_filtered(self, start, &filter, writer, progress)? else {
                return Ok(None);
            };
            scan::check_links(self, &node, start, top)?;
            let leaves = node.leaves(start)?.into_iter();
            let files = leaves.filter(|(_, leaf)| leaf.kind != EntryKind::Folder);
            let below = |path: RepoPath| path.strip_prefix(top).expect("the scan starts in the folder");
            Ok(Some(files.map(|(path, leaf)| (below(path), Some(leaf.entry()))).collect()))
        };
        if self.may_conflict(&parent)?
            && let Some(entries) = read(None)?
        {
            // A checkout takes what is stored for saved.
            self.merge_entries(&parent, &entries)?;
        }
        let mut writer = Writer::new(&self.repo.store);
        let Some(entries) = read(Some(&mut writer))? else { return Ok(None) };
        writer.finish()?;
        self.record_entries(parent, entries, progress).map(Some)
    }
}

/// Returns the tracked path that is `file` or contains it.
fn tracked_ancestor(file: &RepoPath, tracked: &BTreeSet<RepoPath>) -> Option<RepoPath> {
    let mut here = Some(file.clone());
    while let Some(path) = here {
        if tracked.contains(&path) {
            return Some(path);
        }
        here = path.parent();
    }
    None
}

fn collect_files(folder: &RepoPath, entries: &Listing, found: &mut Vec<RepoPath>) -> Result<()> {
    for entry in entries.iter() {
        let path = folder.join(entry.name)?;
        if entry.stat.kind == FileKind::Folder {
            collect_files(&path, entry.children, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_relative_to_the_current_folder() {
        let path = |text: &str| RepoPath::from_text(text).unwrap();
        let glob = Glob::new("data/**/*.jpg", &path("sub")).unwrap();
        assert_eq!(glob.start, path("sub/data"));
        assert!(glob.matches(&path("sub/data/a.jpg")) && glob.matches(&path("sub/data/x/y/a.jpg")));
        assert!(!glob.matches(&path("data/a.jpg")) && !glob.matches(&path("sub/data/a.png")));
        let here = Glob::new("*.jpg", &RepoPath::root()).unwrap();
        assert!(here.matches(&path("a.jpg")) && !here.matches(&path("d/a.jpg")));
        for wrong in ["/etc/*", "../*.jpg", "data/", ""] {
            assert_eq!(Glob::new(wrong, &RepoPath::root()).err().unwrap().kind(), Kind::Usage, "{wrong}");
        }
    }
}
