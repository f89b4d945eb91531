//! Paths inside a repository: relative, `/`-separated bytes, that never leave it.
//!
//! The lexical half of the safety of paths; the other half is `fs::Root`, which walks them without
//! following links.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Kind, Result};

/// Bytes of a path below the root.
const LONGEST: usize = 4096;
/// Folders below the root.
pub const DEEPEST: usize = 1000;

/// A place below the root of a repository (the root itself is empty).
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoPath(Vec<u8>);

impl RepoPath {
    pub fn root() -> Self {
        Self::default()
    }

    /// Turns what the user typed in `cwd` into a repository path, or says why it cannot be one.
    pub fn parse(typed: &OsStr, cwd: &Path, root: &Path) -> Result<Self> {
        let outside = || {
            Error::new(Kind::Usage, format!("`{}` is outside the repository", show(typed.as_bytes())))
                .hint(format!("the repository is `{}`", root.display()))
        };
        let mut parts: Vec<&OsStr> = Vec::new();
        let absolute = cwd.join(typed);
        for component in absolute.components() {
            match component {
                Component::Normal(name) => parts.push(name),
                Component::ParentDir => drop(parts.pop()),
                _ => {}
            }
        }
        let mut rest = parts.into_iter();
        for component in root.components() {
            if let Component::Normal(name) = component
                && rest.next() != Some(name)
            {
                return Err(outside());
            }
        }
        rest.try_fold(Self::root(), |path, name| path.join(name.as_bytes()))
    }

    /// A file in mlx's own folder, as Git knows it; below the root of files no path leads there.
    pub fn of_mlx(name: &'static str) -> Self {
        Self([b".mlx/", name.as_bytes()].concat())
    }

    /// Checks bytes that somebody else wrote: a tree, a Git path.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::root());
        }
        bytes.split(|&it| it == b'/').try_fold(Self::root(), |path, name| path.join(name))
    }

    /// Reads what [`RepoPath::to_text`] wrote.
    pub fn from_text(text: &str) -> Result<Self> {
        let wrong =
            || Error::new(Kind::Corrupt, format!("`{text}` holds a `%` that two hex digits do not follow"));
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let [first, tail @ ..] = rest {
            rest = tail;
            if *first != b'%' {
                bytes.push(*first);
                continue;
            }
            let hex = tail.get(..2).and_then(|it| std::str::from_utf8(it).ok()).ok_or_else(wrong)?;
            bytes.push(u8::from_str_radix(hex, 16).map_err(|_| wrong())?);
            rest = &tail[2..];
        }
        Self::from_bytes(&bytes)
    }

    /// For people, TOML and JSON: `%`, control characters and what is not UTF-8 are written `%XX`.
    pub fn to_text(&self) -> String {
        show(&self.0)
    }

    /// This path with one more name, which must be a plain one.
    pub fn join(&self, name: &[u8]) -> Result<Self> {
        check_name(name)?;
        let mut path = self.clone();
        if !path.0.is_empty() {
            path.0.push(b'/');
        }
        path.0.extend_from_slice(name);
        let deep = path.0.iter().filter(|&&it| it == b'/').count() > DEEPEST;
        if path.0.len() > LONGEST || deep {
            let message = format!(
                "`{}…` is too long: more than {LONGEST} bytes or {DEEPEST} folders",
                show(&path.0[..80])
            );
            return Err(Error::new(Kind::Usage, message));
        }
        Ok(path)
    }

    /// This path, and below it `other`.
    pub fn join_path(&self, other: &Self) -> Result<Self> {
        other.components().try_fold(self.clone(), |path, name| path.join(name))
    }

    /// `data` becomes `data.mlx`.
    pub fn with_suffix(&self, suffix: &str) -> Self {
        Self([&self.0, suffix.as_bytes()].concat())
    }

    /// `data.mlx` becomes `data`; something else nothing.
    pub fn without_suffix(&self, suffix: &str) -> Option<Self> {
        let rest = self.0.strip_suffix(suffix.as_bytes())?;
        (!rest.is_empty() && !rest.ends_with(b"/")).then(|| Self(rest.to_vec()))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&it| it == b'/').filter(|it| !it.is_empty())
    }

    /// The last name; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|&it| it == b'/').next().unwrap_or_default()
    }

    /// The folder this lies in; the root lies in nothing.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|&it| it == b'/').unwrap_or(0);
        Some(Self(self.0[..end].to_vec()))
    }

    /// This path, the folder it lies in, and so on up to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self.clone()), Self::parent)
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.below(other).is_some()
    }

    /// The rest of this path below `other`.
    pub fn below(&self, other: &Self) -> Option<Self> {
        if other.is_root() {
            return Some(self.clone());
        }
        match self.0.strip_prefix(&other.0[..])? {
            [] => Some(Self::root()),
            [b'/', rest @ ..] => Some(Self(rest.to_vec())),
            _ => None,
        }
    }

    /// Whether one of the two lies in the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_within(other) || other.is_within(self)
    }

    pub fn on_disk(&self, root: &Path) -> PathBuf {
        if self.is_root() { root.to_owned() } else { root.join(OsStr::from_bytes(&self.0)) }
    }
}

/// Bytes as text that any file, terminal and parser takes; [`RepoPath::from_text`] reads it back.
pub fn show(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for it in chunk.valid().chars() {
            if it == '%' || it.is_control() {
                let mut buffer = [0; 4];
                it.encode_utf8(&mut buffer).bytes().for_each(|byte| escape(&mut text, byte));
            } else {
                text.push(it);
            }
        }
        chunk.invalid().iter().for_each(|&byte| escape(&mut text, byte));
    }
    text
}

fn escape(text: &mut String, byte: u8) {
    text.push_str(&format!("%{byte:02X}"));
}

/// Refuses names that are no plain name, or that any file system could take for Git's or our own folder.
pub fn check_name(name: &[u8]) -> Result<()> {
    let refuse =
        |why: &str| Err(Error::new(Kind::Denied, format!("`{}` cannot be in a path: {why}", show(name))));
    if name.is_empty() || name == b"." || name == b".." {
        return refuse("it is no name");
    }
    if name.contains(&b'/') || name.contains(&0) {
        return refuse("it holds a slash or a zero byte");
    }
    if name.len() > 255 {
        return refuse("it is longer than 255 bytes");
    }
    // Folding is slow; names that start like none of those need it only for what Unicode hides, and for what
    // stands behind a backslash, which is a slash elsewhere.
    if name.is_ascii() && !b".gGmM".contains(&name[0]) && !name.contains(&b'\\') {
        return Ok(());
    }
    if name.split(|&it| it == b'\\').any(|it| matches!(&fold(it)[..], ".git" | ".mlx" | "git~1" | "mlx~1")) {
        return refuse("it could stand for Git's or mlx's own folder");
    }
    Ok(())
}

/// A name as the most forgiving file system reads it: no case, no trailing dots or spaces, no
/// stream suffix, none of the code points that HFS+ ignores.
fn fold(name: &[u8]) -> String {
    let ignored = |it: &char| !matches!(it, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let text: String = String::from_utf8_lossy(name).to_lowercase().chars().filter(ignored).collect();
    text.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']).to_owned()
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_root() { "." } else { "" })?;
        f.write_str(&self.to_text())
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RepoPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for RepoPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = Self::from_text(&String::deserialize(deserializer)?).map_err(de::Error::custom)?;
        // Nobody writes down the repository itself.
        if path.is_root() { Err(de::Error::custom("an empty path")) } else { Ok(path) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::from_text(text).unwrap()
    }

    #[test]
    fn what_is_typed_is_taken_from_the_current_folder() {
        let parse = |typed: &str| RepoPath::parse(OsStr::new(typed), Path::new("/r/sub"), Path::new("/r"));
        assert_eq!(parse("data/").unwrap(), path("sub/data"));
        assert_eq!(parse("../a//b/./c").unwrap(), path("a/b/c"));
        assert_eq!(parse("/r/x").unwrap(), path("x"));
        assert!(parse("..").unwrap().is_root());
        for outside in ["../..", "/", "/rx", "../../r2"] {
            assert_eq!(parse(outside).unwrap_err().kind(), Kind::Usage, "{outside}");
        }
    }

    #[test]
    fn names_that_could_be_git_are_refused() {
        let bad = [
            "a/../b",
            "/a",
            "a//b",
            ".git",
            "x/.GIT/y",
            "git~1",
            ".git.",
            ".git ",
            ".git::$INDEX",
            ".g\u{200c}it",
            ".mlx/x",
            ".git\\hooks",
            "a\\.GIT. \\x",
        ];
        for text in bad {
            assert_eq!(RepoPath::from_bytes(text.as_bytes()).unwrap_err().kind(), Kind::Denied, "{text}");
        }
        for text in [".gitignore", "a.mlx", "git", "12:30.jpg", "a b", ".github", "a\\b", "C:\\x"] {
            assert!(RepoPath::from_bytes(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn below_goes_by_whole_names() {
        assert!(path("data/x").is_within(&path("data")));
        assert!(!path("data2").is_within(&path("data")));
        assert_eq!(path("data/x/y").below(&path("data")), Some(path("x/y")));
        assert_eq!(path("a").parent(), Some(RepoPath::root()));
        assert_eq!(path("a.mlx").without_suffix(".mlx"), Some(path("a")));
    }

    #[test]
    fn too_deep_is_refused() {
        assert!(RepoPath::from_bytes("a/".repeat(1000).trim_end_matches('/').as_bytes()).is_ok());
        assert!(RepoPath::from_bytes("a/".repeat(1002).trim_end_matches('/').as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn text_brings_back_every_byte(bytes: Vec<u8>) {
            if let Ok(path) = RepoPath::from_bytes(&bytes) {
                let text = path.to_text();
                prop_assert!(!text.contains('\n') && !text.contains('\t'));
                prop_assert_eq!(RepoPath::from_text(&text).unwrap(), path);
            }
        }
    }
}
