//! The `.mlx` file: five lines of TOML that stand in Git for bytes that do not.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    document,
    error::{Error, Kind, Result},
    path::RepoPath,
};

/// The ending of a pointer file's name.
pub const SUFFIX: &str = ".mlx";
const FORMAT: u64 = 1;
/// A pointer is never larger, not even with both sides of a merge in it.
const LARGEST: usize = 4096;
/// How a pointer begins.
const START: &[u8] = b"digest = \"b3:";
/// How a digest begins.
const WRITTEN: &[u8] = b"\"b3:";
/// So much of a file tells whether it is a pointer, and all of it if it is one.
pub const ENOUGH: u64 = LARGEST as u64 + 1;

/// What a tracked path holds: a file's bytes or a folder's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    pub digest: Digest,
    /// Files and links in it; 1 for a file.
    pub files: u64,
    pub kind: Shape,
    /// Bytes of all files.
    pub size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    File,
    Executable,
    Tree,
}

/// A tracked path with its content; the path is the pointer file's own, less `.mlx`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    pub path: RepoPath,
    pub content: Content,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    digest: Digest,
    files: u64,
    format: u64,
    kind: Shape,
    size: u64,
}

impl Pointer {
    /// Whether a file that ends in `.mlx` is a pointer, be it a broken one: other programs keep files under that
    /// name, too. Whatever else a pointer of ours has lost, and whatever later formats add, it has a line for its
    /// digest; where a write was cut off before that, the file is the beginning of one.
    pub fn resembles(bytes: &[u8]) -> bool {
        let is_digest = |line: &[u8]| {
            let rest = line.trim_ascii_start().strip_prefix(b"digest");
            rest.is_some_and(|it| it.trim_ascii_start().starts_with(b"="))
        };
        if bytes.len() > LARGEST {
            return false;
        }
        // Zeros are what a power cut leaves, or what an editor put between the letters.
        let text: Vec<u8> = bytes.iter().copied().filter(|it| *it != 0).collect();
        START.starts_with(&text)
            || text.split(|it| *it == b'\n').any(is_digest)
            || text.windows(WRITTEN.len()).any(|it| it == WRITTEN)
    }

    /// Whether it was written in a format that this mlx does not know.
    pub fn is_newer(bytes: &[u8]) -> bool {
        document::format_of(&String::from_utf8_lossy(bytes)).is_some_and(|it| it > FORMAT)
    }

    /// Refuses the pointer file of `path` if a newer mlx wrote it, whatever else there is in it.
    pub fn check_format(path: &RepoPath, bytes: &[u8]) -> Result<()> {
        if Self::is_newer(bytes) {
            let file = path.with_suffix(SUFFIX);
            return Err(Error::corrupt(format!("`{file}` was written by a newer mlx")).hint("upgrade mlx"));
        }
        Ok(())
    }

    /// Reads the pointer file of `path`.
    pub fn parse(path: RepoPath, bytes: &[u8]) -> Result<Self> {
        let file = path.with_suffix(SUFFIX);
        let text = String::from_utf8_lossy(bytes);
        if document::has_conflict_marks(&text) {
            let error = Error::corrupt(format!("`{file}` has merge-conflict marks"));
            return Err(
                error.hint(format!("choose one side (`git checkout --ours {file}`), then `mlx checkout`"))
            );
        }
        let broken = |why: &str| Error::corrupt(format!("`{file}` is not a pointer: {why}"));
        Self::check_format(&path, bytes)?;
        let written: Written = toml::from_str(&text).map_err(|it| broken(it.message()))?;
        if written.format != FORMAT {
            return Err(broken("its format is unknown"));
        }
        let Written { digest, files, kind, size, .. } = written;
        Ok(Self { path, content: Content { digest, files, kind, size } })
    }

    /// One fact a line, sorted; the same content gives the same bytes.
    pub fn to_toml(&self) -> String {
        let Content { digest, files, kind, size } = self.content;
        let kind = kind.name();
        format!(
            "digest = \"{digest}\"\nfiles = {files}\nformat = {FORMAT}\nkind = \"{kind}\"\nsize = {size}\n"
        )
    }

    /// Where the pointer file lies.
    pub fn file(&self) -> RepoPath {
        self.path.with_suffix(SUFFIX)
    }
}

impl Shape {
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Executable => "executable",
            Self::Tree => "tree",
        }
    }
}

impl Content {
    /// The refusal to go on without bytes that are in no store at hand.
    pub fn absent(&self, path: &RepoPath) -> Error {
        Error::new(Kind::NotFound, format!("the content of `{path}` ({}) is not here", self.digest.short()))
            .hint("bring it with `mlx pull`")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_reads_what_it_prints(seed: u64, files: u32, size in 0..i64::MAX as u64, kind in 0..3_usize) {
            let kind = [Shape::File, Shape::Executable, Shape::Tree][kind];
            let content = Content { digest: Digest::of(&seed.to_le_bytes()), files: files.into(), kind, size };
            let pointer = Pointer { path: RepoPath::from_text("a/b").unwrap(), content };
            prop_assert_eq!(Pointer::parse(pointer.path.clone(), pointer.to_toml().as_bytes()).unwrap(), pointer);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let parse =
            |text: &str| Pointer::parse(RepoPath::from_text("data").unwrap(), text.as_bytes()).unwrap_err();
        let conflict = parse("<<<<<<< HEAD\nformat = 1\n=======\n>>>>>>> x\n");
        assert_eq!(conflict.to_string(), "`data.mlx` has merge-conflict marks");
        assert_eq!(parse("format = 2\n").to_string(), "`data.mlx` was written by a newer mlx");
        assert!(parse("format = 1\n").to_string().starts_with("`data.mlx` is not a pointer: "));
    }

    #[test]
    fn files_that_others_call_so_are_none() {
        assert!(Pointer::resembles(include_bytes!("../fixtures/formats/pointer-1.mlx")));
        let conflict = b"<<<<<<< HEAD\ndigest = \"b3:0\"\n=======\ndigest = \"b3:1\"\n>>>>>>> x\nsize = 1\n";
        assert!(Pointer::resembles(conflict) && Pointer::resembles(b"  digest=1\nformat = 2\n"));
        assert!(Pointer::resembles(b"") && Pointer::resembles(b"digest = \"b"), "cut off");
        assert!(Pointer::resembles(&[0; 200]) && Pointer::resembles(b"\xff\xfe\"\0b\x003\0:\0"));
        assert!(
            !Pointer::resembles(b"let view = <div digest=\"x\" />\n") && !Pointer::resembles(b"<!DOCTYPE>")
        );
        assert!(!Pointer::resembles(b"<<<<<<< HEAD\n=======\n>>>>>>> x\n"), "of a file that was none");
        assert!(!Pointer::resembles(b"PK\x03\x04\x00 a live script"));
        assert!(!Pointer::resembles(&[b"format = 1\n", &[b' '; 5000][..]].concat()));
    }

    #[test]
    fn the_first_format_is_read_for_ever() {
        let golden = include_bytes!("../fixtures/formats/pointer-1.mlx");
        let pointer = Pointer::parse(RepoPath::from_text("data").unwrap(), golden).unwrap();
        assert_eq!(pointer.to_toml().as_bytes(), golden);
    }
}
