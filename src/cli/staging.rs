//! Files for Git: which of them a command leaves to be staged, and the `next: git add …` line.
//!
//! The line can be pasted into a shell whatever the names are. Many names are shortened to patterns.

use std::{collections::BTreeSet, fmt};

use crate::{
    cli::{Context, report::shell_quote_bytes},
    error::Result,
    fs::FileKind,
    git::IgnoredFile,
    path::RepoPath,
    repo::Repo,
};

/// Largest number of files that are named one by one.
const MAX_NAMES: usize = 8;

/// Files to `git add`.
pub struct Staging {
    pub files: Vec<RepoPath>,
    /// True if the working directory is the top of the repository.
    at_top: bool,
}

impl Staging {
    pub fn new(ctx: &Context<'_>, repo: &Repo, files: Vec<RepoPath>) -> Result<Self> {
        let cwd = RepoPath::parse(".".as_ref(), &ctx.cwd, repo.root())?;
        Ok(Self { files, at_top: cwd.is_root() })
    }

    /// Creates the list of those of `candidates` that differ from what Git has staged. A deletion counts for
    /// a `.gitignore`, which mlx deletes once it is empty.
    pub fn changed(
        ctx: &Context<'_>,
        repo: &Repo,
        candidates: impl IntoIterator<Item = RepoPath>,
    ) -> Result<Self> {
        let mut files = Vec::new();
        for file in candidates.into_iter().collect::<BTreeSet<_>>() {
            let is_changed = match repo.files.stat(&file)?.map(|stat| stat.kind) {
                Some(FileKind::Folder) => false,
                Some(_) => repo.files.read_document(&file).ok().flatten() != repo.git.staged(&file)?,
                None if file.name() == b".gitignore" => {
                    repo.git.staged(&file)?.is_some() && repo.git.read_skipped(&file)?.is_none()
                }
                None => false,
            };
            if is_changed {
                files.push(file);
            }
        }
        Self::new(ctx, repo, files)
    }
}

/// Returns the files to `git add`: these pointer files and the `.gitignore` beside each, if they exist, or if
/// Git tracks them and has to record their deletion.
pub fn files_to_stage(repo: &Repo, pointers: impl Iterator<Item = RepoPath>) -> Result<Vec<RepoPath>> {
    let mut files = BTreeSet::new();
    for pointer in pointers {
        files.insert(pointer.parent().unwrap_or_default().join(b".gitignore")?);
        files.insert(pointer);
    }
    let mut known = Vec::new();
    for file in files {
        if repo.files.stat(&file)?.is_some() || repo.git.tracked_within(&file)?.is_some() {
            known.push(file);
        }
    }
    Ok(known)
}

/// Warns of files that Git ignores: they would not be committed, so no other clone would get them.
pub fn warn_ignored(ctx: &Context<'_>, repo: &Repo, files: &[RepoPath]) -> Result<()> {
    for hidden in repo.git.ignored_files(files)? {
        ctx.progress.warn(&format!("Git ignores `{}`, {}", hidden.file, ignored_why(&hidden)));
    }
    Ok(())
}

/// Returns which rule hides a file from Git, and what follows.
pub fn ignored_why(hidden: &IgnoredFile) -> String {
    let IgnoredFile { pattern, line, source, .. } = hidden;
    format!("by `{pattern}` in line {line} of `{source}`: other clones will not get it")
}

impl fmt::Display for Staging {
    /// Writes the line; nothing if there are no files to stage.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.files.is_empty() {
            return Ok(());
        }
        let words = if self.files.len() <= MAX_NAMES {
            self.files.iter().map(|file| literal_pathspec(file, self.at_top)).collect()
        } else {
            patterns(&self.files, self.at_top)
        };
        let words: Vec<String> = words.iter().map(|word| shell_quote_bytes(word)).collect();
        writeln!(f, "next: git add {}", words.join(" "))
    }
}

/// Returns true if Git takes a path for itself and nothing else, also behind `:/`.
fn is_plain(path: &RepoPath) -> bool {
    let first = path.bytes().first().is_some_and(|byte| byte.is_ascii_alphanumeric() || b"._".contains(byte));
    first && !path.bytes().iter().any(|byte| b"*?[\\".contains(byte))
}

/// Returns the argument of `git add` that means this file alone.
fn literal_pathspec(file: &RepoPath, at_top: bool) -> Vec<u8> {
    let prefix = match (is_plain(file), at_top) {
        (true, true) => "",
        (true, false) => ":/",
        (false, true) => ":(literal)",
        (false, false) => ":(top,literal)",
    };
    [prefix.as_bytes(), file.bytes()].concat()
}

/// Returns one pattern for each kind of file, below the folder that all of them are in.
fn patterns(files: &[RepoPath], at_top: bool) -> Vec<Vec<u8>> {
    let mut folder = files[0].parent().unwrap_or_default();
    while !files.iter().all(|file| file.is_within(&folder)) || !(folder.is_root() || is_plain(&folder)) {
        folder = folder.parent().unwrap_or_default();
    }
    let mut prefix = if at_top { Vec::new() } else { b":/".to_vec() };
    prefix.extend_from_slice(folder.bytes());
    if !folder.is_root() {
        prefix.push(b'/');
    }
    let ending = |file: &RepoPath| -> Vec<u8> {
        let name = file.name();
        let dot = name.iter().rposition(|byte| *byte == b'.').unwrap_or(0);
        let special = name[dot..].iter().any(|byte| b"*?[\\".contains(byte));
        if special { Vec::new() } else { name[dot..].to_vec() }
    };
    let endings: BTreeSet<Vec<u8>> = files.iter().map(ending).collect();
    if endings.contains(&Vec::new()) || endings.len() > MAX_NAMES {
        return vec![[&prefix[..], b"*"].concat()];
    }
    endings.iter().map(|ending| [&prefix[..], b"*", ending].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(files: &[&[u8]], at_top: bool) -> String {
        let files = files.iter().map(|file| RepoPath::from_bytes(file).unwrap()).collect();
        Staging { files, at_top }.to_string()
    }

    #[test]
    fn every_name_is_one_literal_word() {
        let names: [&[u8]; 4] = [b".gitignore", b"my data.mlx", b"a/-b.mlx", "fé.mlx".as_bytes()];
        assert_eq!(line(&names, true), "next: git add .gitignore 'my data.mlx' a/-b.mlx 'fé.mlx'\n");
        assert_eq!(line(&names[..2], false), "next: git add :/.gitignore ':/my data.mlx'\n");
        let odd: [&[u8]; 4] = [b"-dash.mlx", b":colon.mlx", b"n[12].mlx", b"two\nlines.mlx"];
        assert_eq!(
            line(&odd, true),
            "next: git add ':(literal)-dash.mlx' ':(literal):colon.mlx' ':(literal)n[12].mlx' \
             $'two\\nlines.mlx'\n"
        );
        assert_eq!(line(&odd[1..2], false), "next: git add ':(top,literal):colon.mlx'\n");
        assert_eq!(line(&[b"\xff%41.mlx"], true), "next: git add $':(literal)\\xff%41.mlx'\n");
        assert_eq!(line(&[], true), "");
    }

    #[test]
    fn many_names_become_patterns_of_their_folder() {
        let names: Vec<String> = (0..20).map(|n| format!("data/{n}/x.mlx")).collect();
        let mut files: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
        assert_eq!(line(&files, true), "next: git add 'data/*.mlx'\n");
        files.push(b"data/1/.gitignore");
        assert_eq!(line(&files, false), "next: git add ':/data/*.gitignore' ':/data/*.mlx'\n");
        files.push(b"mlx.lock");
        assert_eq!(line(&files, true), "next: git add '*.gitignore' '*.lock' '*.mlx'\n");
        let odd: Vec<String> = (0..9).map(|n| format!("[x]/{n}.mlx")).collect();
        let odd: Vec<&[u8]> = odd.iter().map(String::as_bytes).collect();
        assert_eq!(line(&odd, true), "next: git add '*.mlx'\n");
    }
}
