//! Repository paths: relative, `/`-separated bytes that cannot point outside the repository.
//!
//! This is the lexical half of path safety: no `..`, no absolute path, no name that a file system could read
//! as `.git` or `.mlx`. The other half is `fs::Root`, which opens these paths without following symlinks.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Kind, Result};

/// Longest path below the root, in bytes.
const MAX_LEN: usize = 4096;
/// Largest number of nested folders below the root.
pub const MAX_DEPTH: usize = 1000;

/// Path relative to the root of a repository; the root itself is empty.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoPath(Vec<u8>);

impl RepoPath {
    /// Returns the path of the repository's root.
    pub fn root() -> Self {
        Self::default()
    }

    /// Resolves a path that the user typed in `cwd`. A path outside the repository is a usage error.
    pub fn parse(typed: &OsStr, cwd: &Path, root: &Path) -> Result<Self> {
        let outside = || {
            Error::new(Kind::Usage, format!("`{}` is outside the repository", escape_bytes(typed.as_bytes())))
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

    /// Returns the path of a file in the `.mlx` folder, for use with Git. Every other constructor refuses
    /// such paths.
    pub fn in_mlx_folder(name: &'static str) -> Self {
        Self([b".mlx/", name.as_bytes()].concat())
    }

    /// Validates untrusted bytes, such as an entry of a tree or a path from Git.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::root());
        }
        bytes.split(|&byte| byte == b'/').try_fold(Self::root(), |path, name| path.join(name))
    }

    /// Parses the text form that [`RepoPath::to_text`] returns.
    pub fn from_text(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(Kind::Corrupt, format!("`{text}` has a `%` that is not followed by two hex digits"))
        };
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let [first, tail @ ..] = rest {
            rest = tail;
            if *first != b'%' {
                bytes.push(*first);
                continue;
            }
            let hex = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok()).ok_or_else(wrong)?;
            bytes.push(u8::from_str_radix(hex, 16).map_err(|_| wrong())?);
            rest = &tail[2..];
        }
        Self::from_bytes(&bytes)
    }

    /// Returns the text form for display, TOML and JSON: `%`, control characters and bytes that are not UTF-8
    /// are written as `%XX`.
    pub fn to_text(&self) -> String {
        escape_bytes(&self.0)
    }

    /// Appends one name, which must pass [`check_name`].
    pub fn join(&self, name: &[u8]) -> Result<Self> {
        check_name(name)?;
        // Millions may be kept: without space for more.
        let mut path = Self(Vec::with_capacity(self.0.len() + 1 + name.len()));
        path.0.extend_from_slice(&self.0);
        if !path.0.is_empty() {
            path.0.push(b'/');
        }
        path.0.extend_from_slice(name);
        let too_deep = path.0.iter().filter(|&&byte| byte == b'/').count() > MAX_DEPTH;
        if path.0.len() > MAX_LEN || too_deep {
            let message = format!(
                "`{}…` is too long: more than {MAX_LEN} bytes or {MAX_DEPTH} folders",
                escape_bytes(&path.0[..80])
            );
            return Err(Error::new(Kind::Usage, message));
        }
        Ok(path)
    }

    /// Appends all names of `other`.
    pub fn join_path(&self, other: &Self) -> Result<Self> {
        other.components().try_fold(self.clone(), |path, name| path.join(name))
    }

    /// Appends a suffix to the last name: `data` becomes `data.mlx`.
    pub fn with_suffix(&self, suffix: &str) -> Self {
        Self([&self.0, suffix.as_bytes()].concat())
    }

    /// Removes a suffix from the last name: `data.mlx` becomes `data`. Returns `None` if the name does not
    /// end in it or consists of it alone.
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
        self.0.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// Returns the last name; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    /// Returns the containing folder; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        Some(Self(self.0[..end].to_vec()))
    }

    /// Iterates over this path, its containing folder, and so on up to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self.clone()), Self::parent)
    }

    /// Returns true if this is `other` or a path below it.
    pub fn is_within(&self, other: &Self) -> bool {
        other.is_root() || matches!(self.0.strip_prefix(&other.0[..]), Some([] | [b'/', ..]))
    }

    /// Returns this path relative to `other`; `None` if it is not within `other`.
    pub fn strip_prefix(&self, other: &Self) -> Option<Self> {
        if other.is_root() {
            return Some(self.clone());
        }
        match self.0.strip_prefix(&other.0[..])? {
            [] => Some(Self::root()),
            [b'/', rest @ ..] => Some(Self(rest.to_vec())),
            _ => None,
        }
    }

    /// Returns true if one of the two paths is within the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_within(other) || other.is_within(self)
    }

    /// Returns the first of `others` that is below this path.
    pub fn first_below<'o>(&self, others: &'o BTreeSet<Self>) -> Option<&'o Self> {
        let from = if self.is_root() { self.clone() } else { self.with_suffix("/") };
        others.range(from..).find(|other| *other != self).filter(|other| other.is_within(self))
    }

    /// Returns true if this path overlaps one of `others`.
    pub fn overlaps_any(&self, others: &BTreeSet<Self>) -> bool {
        self.ancestors().any(|path| others.contains(&path)) || self.first_below(others).is_some()
    }

    /// Returns the file system path below `root`.
    pub fn on_disk(&self, root: &Path) -> PathBuf {
        if self.is_root() { root.to_owned() } else { root.join(OsStr::from_bytes(&self.0)) }
    }
}

/// Escapes bytes as text that is safe in files, terminals and parsers; [`RepoPath::from_text`] reverses it.
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '%' || character.is_control() {
                let mut buffer = [0; 4];
                character.encode_utf8(&mut buffer).bytes().for_each(|byte| push_escaped(&mut text, byte));
            } else {
                text.push(character);
            }
        }
        chunk.invalid().iter().for_each(|&byte| push_escaped(&mut text, byte));
    }
    text
}

fn push_escaped(text: &mut String, byte: u8) {
    text.push_str(&format!("%{byte:02X}"));
}

/// Formats paths or other names for a message, each in backticks; of many, the first twenty.
pub fn quoted_list(list: &[impl fmt::Display]) -> String {
    const MAX_NAMED: usize = 20;
    let names: Vec<_> = list.iter().take(MAX_NAMED).map(|name| format!("`{name}`")).collect();
    let more = list.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

/// Refuses names that are invalid (empty, `.`, `..`, over 255 bytes, with a slash or NUL byte), and names
/// that any file system could read as Git's or mlx's own folder.
pub fn check_name(name: &[u8]) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::new(Kind::Denied, format!("`{}` cannot be in a path: {why}", escape_bytes(name))))
    };
    if name.is_empty() || name == b"." || name == b".." {
        return refuse("it is not a name");
    }
    if name.contains(&b'/') || name.contains(&0) {
        return refuse("it contains a slash or a NUL byte");
    }
    if name.len() > 255 {
        return refuse("it is longer than 255 bytes");
    }
    // Folding is slow. Names that start with none of these letters need it only if they have Unicode
    // characters, some of which are ignored, or a backslash, which is a slash on other systems.
    if name.is_ascii() && !b".gGmM".contains(&name[0]) && !name.contains(&b'\\') {
        return Ok(());
    }
    let reserved = |part: &[u8]| matches!(&fold(part)[..], ".git" | ".mlx" | "git~1" | "mlx~1");
    if name.split(|&byte| byte == b'\\').any(reserved) {
        return refuse("it could be read as Git's or mlx's own folder");
    }
    Ok(())
}

/// Normalizes a name as the most lenient file system would: lower case, without trailing dots or spaces,
/// without an NTFS stream suffix, and without the code points that HFS+ ignores.
fn fold(name: &[u8]) -> String {
    let kept = |character: &char| {
        !matches!(character,
        '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
    };
    let text: String = String::from_utf8_lossy(name).to_lowercase().chars().filter(kept).collect();
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
        // No format stores the path of the root itself.
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
    fn a_typed_path_is_relative_to_the_current_folder() {
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
    fn names_that_could_be_read_as_git_or_mlx_are_refused() {
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
    fn prefixes_match_whole_names_only() {
        assert!(path("data/x").is_within(&path("data")));
        assert!(!path("data2").is_within(&path("data")));
        assert_eq!(path("data/x/y").strip_prefix(&path("data")), Some(path("x/y")));
        assert_eq!(path("a").parent(), Some(RepoPath::root()));
        assert_eq!(path("a.mlx").without_suffix(".mlx"), Some(path("a")));
    }

    #[test]
    fn a_set_of_paths_is_searched_by_folder() {
        let set = BTreeSet::from(["a-b", "a/c", "a/d", "a.x"].map(path));
        assert_eq!(path("a").first_below(&set), Some(&path("a/c")));
        assert_eq!(RepoPath::root().first_below(&set), Some(&path("a-b")));
        for (text, overlaps) in [
            ("a", true),
            ("a/c", true),
            ("a/d/e", true),
            ("", true),
            ("a/b", false),
            ("a-", false),
            ("b", false),
        ] {
            assert_eq!(path(text).overlaps_any(&set), overlaps, "{text}");
            assert_eq!(set.iter().any(|other| other.overlaps(&path(text))), overlaps, "{text}");
        }
        for text in ["a/c", "a/b", "a-", "a-b"] {
            assert_eq!(path(text).first_below(&set), None, "{text}");
        }
        assert_eq!(RepoPath::root().first_below(&BTreeSet::from([RepoPath::root()])), None);
    }

    #[test]
    fn a_path_that_is_too_deep_is_refused() {
        assert!(RepoPath::from_bytes("a/".repeat(1000).trim_end_matches('/').as_bytes()).is_ok());
        assert!(RepoPath::from_bytes("a/".repeat(1002).trim_end_matches('/').as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn the_text_form_round_trips(bytes: Vec<u8>) {
            if let Ok(path) = RepoPath::from_bytes(&bytes) {
                let text = path.to_text();
                prop_assert!(!text.contains('\n') && !text.contains('\t'));
                prop_assert_eq!(RepoPath::from_text(&text).unwrap(), path);
            }
        }
    }
}
