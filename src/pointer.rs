//! Pointer files: the small `*.mlx` TOML files in Git that name a tracked file or folder by digest.
//!
//! `data.mlx` is the pointer of `data`. The same content always gives the same bytes:
//!
//! ```text
//! digest = "b3:…"    digest of the file, or of the folder's tree
//! files = 3          files and links in it; 1 for a file
//! format = 1         format version
//! kind = "tree"      file, executable or tree
//! size = 1234        total size of all files, in bytes
//! ```

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    document,
    error::{Error, Kind, Result},
    path::RepoPath,
};

/// Suffix of a pointer file's name.
pub const SUFFIX: &str = ".mlx";
const FORMAT: u64 = 1;
/// Largest size of a pointer file, in bytes, even with both sides of a merge conflict in it.
const MAX_SIZE: usize = 4096;
/// First bytes of a pointer file.
const PREFIX: &[u8] = b"digest = \"b3:";
/// First bytes of a digest value in TOML.
const DIGEST_PREFIX: &[u8] = b"\"b3:";
/// Number of bytes to read of a file to detect whether it is a pointer; a pointer is then read whole.
pub const READ_LIMIT: u64 = MAX_SIZE as u64 + 1;

/// Content of a tracked path: a file's bytes or a folder's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    pub digest: Digest,
    /// Number of files and links in it; 1 for a file.
    pub files: u64,
    pub kind: ContentKind,
    /// Total size of all files, in bytes.
    pub size: u64,
}

/// Kind of a tracked path's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentKind {
    File,
    Executable,
    Tree,
}

/// Tracked path with its content. The path is that of the pointer file without `.mlx`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    pub path: RepoPath,
    pub content: Content,
}

/// The versions of a pointer that Git could not merge; `None` where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sides {
    /// The version that both sides changed.
    pub base: Option<Content>,
    pub ours: Option<Content>,
    pub theirs: Option<Content>,
}

/// TOML fields of a pointer file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PointerToml {
    digest: Digest,
    files: u64,
    format: u64,
    kind: ContentKind,
    size: u64,
}

impl Pointer {
    /// Returns true if the bytes of a `*.mlx` file look like a pointer, even a damaged one. Other programs
    /// use that suffix, too. Any pointer, damaged or of a later format, has a line with its digest; one whose
    /// write was cut off before that line is a prefix of a pointer.
    pub fn looks_like_pointer(bytes: &[u8]) -> bool {
        let is_digest = |line: &[u8]| {
            let rest = line.trim_ascii_start().strip_prefix(b"digest");
            rest.is_some_and(|rest| rest.trim_ascii_start().starts_with(b"="))
        };
        if bytes.len() > MAX_SIZE {
            return false;
        }
        // Zero bytes come from a power cut, or from an editor that saved the file as UTF-16.
        let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
        PREFIX.starts_with(&text)
            || text.split(|byte| *byte == b'\n').any(is_digest)
            || text.windows(DIGEST_PREFIX.len()).any(|window| window == DIGEST_PREFIX)
    }

    /// Returns true if the file has a newer format than this version of mlx supports.
    pub fn is_newer(bytes: &[u8]) -> bool {
        document::format_version(&String::from_utf8_lossy(bytes)).is_some_and(|it| it > FORMAT)
    }

    /// Refuses the pointer file of `path` if a newer mlx wrote it, whatever else it contains.
    pub fn check_format(path: &RepoPath, bytes: &[u8]) -> Result<()> {
        if Self::is_newer(bytes) {
            let file = path.with_suffix(SUFFIX);
            return Err(Error::corrupt(format!("`{file}` was written by a newer mlx")).hint("upgrade mlx"));
        }
        Ok(())
    }

    /// Refuses the pointer file of `path` if it has the marks of a merge conflict.
    pub fn check_unmerged(path: &RepoPath, bytes: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(bytes);
        if !document::has_conflict_markers(&text) {
            return Ok(());
        }
        let file = path.with_suffix(SUFFIX);
        let sides = ["ours", "theirs"].into_iter().zip(marked_digests(&text));
        let sides: Vec<_> = sides.filter_map(|(name, digest)| Some(side(name, digest?))).collect();
        let hint = format!(
            "bring the conflict back with `git checkout -m {file}`, then merge both sides with `mlx add \
             {path}`, or take one of them from its commit (`git checkout COMMIT -- {file}`)"
        );
        Err(document::conflict_error(&file, &sides, hint))
    }

    /// Returns the error for the pointer file of `path` if it is in conflict in Git's index, whatever it
    /// holds.
    pub fn conflict_error(path: &RepoPath, sides: &Sides) -> Error {
        let file = path.with_suffix(SUFFIX);
        let both = [("ours", sides.ours), ("theirs", sides.theirs)];
        let named = both.map(|(name, content)| match content {
            Some(content) => side(name, content.digest),
            None => format!("no pointer ({name})"),
        });
        let choose = format!("choose one (`git checkout --ours {file}`, or `--theirs`)");
        let finish = format!("`git add {file}` and `mlx checkout {path}`");
        let hint = match (sides.ours, sides.theirs) {
            (Some(ours), Some(theirs))
                if ours.kind == ContentKind::Tree && theirs.kind == ContentKind::Tree =>
            {
                format!("merge both, file by file, with `mlx add {path}`, or {choose}; then {finish}")
            }
            (Some(_), Some(theirs)) => format!(
                "{choose}, then {finish}; `mlx restore b3:{} --to PATH` writes theirs beside it",
                theirs.digest.short()
            ),
            _ => format!("keep it with `git add {file}`, or remove it with `git rm {file}`"),
        };
        document::conflict_error(&file, &named, hint)
    }

    /// Refuses the pointer file of `path` if it has the lines of two pointers, as a union merge makes it.
    fn check_single(path: &RepoPath, bytes: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(bytes);
        let digests: Vec<_> = text.lines().filter_map(digest_on).collect();
        let [one, two, ..] = digests[..] else { return Ok(()) };
        let (file, one, two) = (path.with_suffix(SUFFIX), one.short(), two.short());
        let message = format!("`{file}` holds the lines of two pointers, {one} and {two}");
        let hint = format!(
            "take one of them from its commit, such as with `git checkout ORIG_HEAD -- {file}`; to merge \
             both, remove `merge=union` from `.gitattributes`, go back with `git reset --keep ORIG_HEAD`, \
             and merge again"
        );
        Err(Error::new(Kind::Conflict, message).hint(hint))
    }

    /// Returns true for a pointer without its digest, such as one whose write was cut off. Other programs
    /// have such files, too: an empty one, for example.
    pub fn lacks_digest(bytes: &[u8]) -> bool {
        let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
        PREFIX.starts_with(&text)
    }

    /// Refuses to write the pointer of `path` over these bytes of its file: another program's, a pointer that
    /// a newer mlx wrote, or one with the marks of a merge conflict. A pointer that is damaged or was cut off
    /// may be replaced.
    pub fn check_replaceable(path: &RepoPath, bytes: &[u8]) -> Result<()> {
        if !Self::is_own(bytes) {
            return Err(Self::foreign_error(path));
        }
        Self::check_unmerged(path, bytes)?;
        Self::check_format(path, bytes)?;
        Self::check_single(path, bytes)
    }

    /// Returns the error for another program's file that has the name of the pointer of `path`.
    pub fn foreign_error(path: &RepoPath) -> Error {
        let file = path.with_suffix(SUFFIX);
        let message = format!("`{file}` is not a pointer, but the pointer of `{path}` would have that name");
        Error::new(Kind::Conflict, message).hint("rename one of the two files, then try again")
    }

    /// Returns true if mlx wrote these bytes, even if they are damaged now: they are, or begin, a pointer of
    /// this format or of a later one.
    pub fn is_own(bytes: &[u8]) -> bool {
        if !Self::looks_like_pointer(bytes) {
            return false;
        }
        let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
        let names_digest = text.windows(DIGEST_PREFIX.len()).any(|window| window == DIGEST_PREFIX);
        names_digest || PREFIX.starts_with(&text) || Self::is_newer(bytes)
    }

    /// Parses the pointer file of `path` in a work tree: the hint of an error tells how to bring it back.
    pub fn parse_here(path: RepoPath, bytes: &[u8]) -> Result<Self> {
        let hint = format!(
            "bring back the version in Git with `git checkout -- {}`, or remove it and run `mlx add {path}`",
            path.with_suffix(SUFFIX)
        );
        Self::parse(path, bytes).map_err(|error| match error.hint_text() {
            Some(_) => error,
            None => error.hint(hint),
        })
    }

    /// Parses the pointer file of `path`.
    pub fn parse(path: RepoPath, bytes: &[u8]) -> Result<Self> {
        let file = path.with_suffix(SUFFIX);
        let text = String::from_utf8_lossy(bytes);
        let broken = |why: &str| Error::corrupt(format!("`{file}` is not a pointer: {why}"));
        Self::check_unmerged(&path, bytes)?;
        Self::check_format(&path, bytes)?;
        Self::check_single(&path, bytes)?;
        let parsed: PointerToml = toml::from_str(&text).map_err(|it| broken(it.message()))?;
        if parsed.format != FORMAT {
            return Err(broken("its format is unknown"));
        }
        let PointerToml { digest, files, kind, size, .. } = parsed;
        Ok(Self { path, content: Content { digest, files, kind, size } })
    }

    /// Formats the pointer file: one field per line, sorted. The same content gives the same bytes.
    pub fn to_toml(&self) -> String {
        let Content { digest, files, kind, size } = self.content;
        let kind = kind.name();
        format!(
            "digest = \"{digest}\"\nfiles = {files}\nformat = {FORMAT}\nkind = \"{kind}\"\nsize = {size}\n"
        )
    }

    /// Returns the path of the pointer file.
    pub fn file(&self) -> RepoPath {
        self.path.with_suffix(SUFFIX)
    }
}

/// Names a side of a conflict.
fn side(name: &str, digest: Digest) -> String {
    format!("{} ({name})", digest.short())
}

/// Returns the digest that a line of a pointer gives.
fn digest_on(line: &str) -> Option<Digest> {
    let value = line.strip_prefix("digest")?.trim_start().strip_prefix('=')?;
    value.trim().trim_matches('"').parse().ok()
}

/// Returns the digests on our and their side of the first conflict that Git marked, as far as they differ.
fn marked_digests(text: &str) -> [Option<Digest>; 2] {
    let mut found = [None, None];
    let mut at = None;
    for line in text.lines() {
        match line.get(..7) {
            Some("<<<<<<<") => at = Some(0),
            Some("|||||||") => at = None,
            Some("=======") => at = Some(1),
            Some(">>>>>>>") => break,
            _ => {}
        }
        if let (Some(at), Some(digest)) = (at, digest_on(line)) {
            found[at] = Some(digest);
        }
    }
    found
}

impl ContentKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Executable => "executable",
            Self::Tree => "tree",
        }
    }
}

impl Content {
    /// Creates the error that this content of `path` is not in the local store.
    pub fn missing_error(&self, path: &RepoPath) -> Error {
        let digest = self.digest.short();
        Error::new(Kind::NotFound, format!("the content of `{path}` ({digest}) is not in the local store"))
            .hint("get it with `mlx pull`")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_printed_pointer_parses_to_itself(seed: u64, files: u32, size in 0..i64::MAX as u64,
            kind in 0..3_usize) {
            let kind = [ContentKind::File, ContentKind::Executable, ContentKind::Tree][kind];
            let content = Content { digest: Digest::of(&seed.to_le_bytes()), files: files.into(), kind,
                size };
            let pointer = Pointer { path: RepoPath::from_text("a/b").unwrap(), content };
            prop_assert_eq!(Pointer::parse(pointer.path.clone(), pointer.to_toml().as_bytes()).unwrap(),
                pointer);
        }
    }

    #[test]
    fn parse_errors_name_the_problem() {
        let parse =
            |text: &str| Pointer::parse(RepoPath::from_text("data").unwrap(), text.as_bytes()).unwrap_err();
        let conflict = parse("<<<<<<< HEAD\nformat = 1\n=======\n>>>>>>> x\n");
        let two = "`data.mlx` is in conflict, since Git merged two versions of it";
        assert_eq!((conflict.kind(), conflict.to_string()), (Kind::Conflict, two.to_owned()));
        let line = |text: &str| format!("digest = \"{}\"\n", Digest::of(text.as_bytes()));
        let [ours, base, theirs] = ["ours", "base", "theirs"].map(line);
        for base in [String::new(), format!("||||||| base\n{base}")] {
            let conflict =
                parse(&format!("<<<<<<< HEAD\n{ours}{base}=======\n{theirs}>>>>>>> x\nfiles = 1\n"));
            let [ours, theirs] = ["ours", "theirs"].map(|text| Digest::of(text.as_bytes()).short());
            assert_eq!(conflict.to_string(), format!("{two}: {ours} (ours) and {theirs} (theirs)"));
        }
        let union = parse(&format!("{ours}{theirs}files = 1\nformat = 1\n"));
        assert_eq!(union.kind(), Kind::Conflict, "{union}");
        assert_eq!(parse("format = 2\n").to_string(), "`data.mlx` was written by a newer mlx");
        assert!(parse("format = 1\n").to_string().starts_with("`data.mlx` is not a pointer: "));
    }

    #[test]
    fn mlx_files_of_other_programs_are_not_pointers() {
        assert!(Pointer::looks_like_pointer(include_bytes!("../fixtures/formats/pointer-1.mlx")));
        let conflict = b"<<<<<<< HEAD\ndigest = \"b3:0\"\n=======\ndigest = \"b3:1\"\n>>>>>>> x\nsize = 1\n";
        assert!(
            Pointer::looks_like_pointer(conflict) && Pointer::looks_like_pointer(b"  digest=1\nformat = 2\n")
        );
        assert!(Pointer::looks_like_pointer(b"") && Pointer::looks_like_pointer(b"digest = \"b"), "cut off");
        assert!(
            Pointer::looks_like_pointer(&[0; 200]) && Pointer::looks_like_pointer(b"\xff\xfe\"\0b\x003\0:\0")
        );
        assert!(
            !Pointer::looks_like_pointer(b"let view = <div digest=\"x\" />\n")
                && !Pointer::looks_like_pointer(b"<!DOCTYPE>")
        );
        assert!(
            !Pointer::looks_like_pointer(b"<<<<<<< HEAD\n=======\n>>>>>>> x\n"),
            "conflict in another file"
        );
        assert!(!Pointer::looks_like_pointer(b"PK\x03\x04\x00 a live script"));
        assert!(!Pointer::looks_like_pointer(&[b"format = 1\n", &[b' '; 5000][..]].concat()));
    }

    #[test]
    fn only_a_pointer_may_be_replaced() {
        let path = RepoPath::from_text("data").unwrap();
        let refused = |bytes: &[u8]| Pointer::check_replaceable(&path, bytes).err().map(|error| error.kind());
        let golden = include_bytes!("../fixtures/formats/pointer-1.mlx");
        for own in [&golden[..], &golden[..30], b"", &[0; 200], b"\xff\xfe\"\0b\x003\0:\0"] {
            assert_eq!(refused(own), None, "{own:?}");
        }
        for foreign in [&b"PK\x03\x04 live script"[..], b"digest = \"sha256:0\"\n", b"x = 1\n"] {
            assert_eq!(refused(foreign), Some(Kind::Conflict), "{foreign:?}");
        }
        assert_eq!(refused(b"digest = 1\nformat = 2\n"), Some(Kind::Corrupt), "a newer mlx wrote it");
    }

    #[test]
    fn format_1_stays_readable() {
        let golden = include_bytes!("../fixtures/formats/pointer-1.mlx");
        let pointer = Pointer::parse(RepoPath::from_text("data").unwrap(), golden).unwrap();
        assert_eq!(pointer.to_toml().as_bytes(), golden);
    }
}
