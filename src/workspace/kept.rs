//! Kept versions: content that a command replaced and that no run recorded, kept for 30 days.
//!
//! The bytes are in the store. One small file for each version, in the folder that all worktrees share, tells
//! a gc that they are needed and the user where they came from:
//!
//! ```text
//! kept/HEX     digest of path and content: JSON with `format`, `path`, `content`, `when` (seconds) and `why`
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    document::canonical,
    error::{Error, Kind, Result},
    fs::Sync,
    path::RepoPath,
    pointer::{Content, Pointer},
    repo::Repo,
    store::content_of,
    time::Timestamp,
    workspace::{Workspace, named_paths::MAX_NAMED},
};

/// Number of days for which a version is kept.
pub const KEPT_DAYS: i64 = 30;
const FOLDER: &str = "kept";
const FORMAT: u64 = 1;
/// Shortest prefix of a digest that names a kept version, in hex digits.
const MIN_PREFIX: usize = 4;

/// A version that a command replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptVersion {
    /// Its path then.
    pub path: RepoPath,
    pub content: Content,
    /// Time at which it was replaced.
    pub when: Timestamp,
    /// Reason, such as "the stage `train` ran".
    pub why: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    format: u64,
    path: RepoPath,
    content: Content,
    when: i64,
    why: String,
}

impl KeptVersion {
    /// Parses a record; `None` if it is damaged or a newer mlx wrote it.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let Record { format: FORMAT, path, content, when, why } = serde_json::from_slice(bytes).ok()? else {
            return None;
        };
        Some(Self { path, content, when: Timestamp::from_seconds(when), why })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Self { path, content, when, why } = self.clone();
        let record = Record { format: FORMAT, path, content, when: when.seconds(), why };
        canonical(&serde_json::to_value(&record).expect("a record is plain values")).into_bytes()
    }

    /// Returns the first moment at which a gc may remove it.
    pub fn until(&self) -> Timestamp {
        Timestamp::from_seconds(self.when.seconds().saturating_add(KEPT_DAYS * 86_400))
    }

    /// Returns the command that brings it back.
    pub fn command(&self) -> String {
        format!("mlx restore b3:{}", self.content.digest.short())
    }

    fn file(&self) -> Result<RepoPath> {
        let key = [self.path.bytes(), b"\0", self.content.digest.bytes()].concat();
        RepoPath::from_text(&format!("{FOLDER}/{}", Digest::of(&key).hex()))
    }
}

impl Workspace<'_> {
    /// Records that the content at a path, which this process has stored, is about to be replaced.
    pub fn keep(&self, replaced: Pointer, why: &str) -> Result<KeptVersion> {
        let Pointer { path, content } = replaced;
        let version = KeptVersion { path, content, when: Timestamp::now(), why: why.to_owned() };
        // A gc may be about to forget an older record of the same version.
        let _gate = self.repo.store.enter_gate()?;
        self.repo.shared.write(&version.file()?, &version.to_bytes(), Sync::Now)?;
        Ok(version)
    }
}

/// Returns the records of all kept versions, unparsed, with their files, sorted.
pub fn read_kept(repo: &Repo) -> Result<Vec<(RepoPath, Vec<u8>)>> {
    let folder = RepoPath::from_text(FOLDER)?;
    if repo.shared.stat(&folder)?.is_none() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (name, kind) in repo.shared.dir(&folder)?.names()? {
        let is_record = std::str::from_utf8(&name).is_ok_and(|name| Digest::from_hex(name).is_ok());
        if kind.is_file() && is_record {
            let file = folder.join(&name)?;
            // A gc removes those that are too old.
            found.extend(repo.shared.read_if_exists(&file)?.map(|bytes| (file, bytes)));
        }
    }
    found.sort();
    Ok(found)
}

/// Returns all kept versions, newest first.
pub fn kept_versions(repo: &Repo) -> Result<Vec<KeptVersion>> {
    let mut found: Vec<_> =
        read_kept(repo)?.iter().filter_map(|(_, bytes)| KeptVersion::parse(bytes)).collect();
    found.sort_by(|one, two| (two.when, &one.path).cmp(&(one.when, &two.path)));
    Ok(found)
}

/// Finds the content whose digest starts with `name`, such as `b3:1f2e3d4c5b`: that of a kept version, with
/// the path where the newest one was, or any other that is stored, of which at least as many digits must be
/// given as are displayed.
pub fn find_version(repo: &Repo, name: &str) -> Result<(Content, Option<RepoPath>)> {
    let prefix = parse_prefix(name)?;
    let mut kept = kept_versions(repo)?;
    kept.retain(|version| version.content.digest.hex().starts_with(prefix));
    let mut found: BTreeSet<_> = kept.iter().map(|version| version.content.digest).collect();
    if prefix.len() >= Digest::SHORT {
        found.extend(repo.store.starting_with(prefix)?);
    }
    if found.len() > 1 {
        let named: Vec<_> = found.iter().take(MAX_NAMED).map(|digest| format!("`{digest}`")).collect();
        let more = if found.len() > MAX_NAMED { ", …" } else { "" };
        let message = format!("`{name}` is the beginning of several versions: {}{more}", named.join(", "));
        return Err(Error::usage(message).hint("write more digits of the one that you mean"));
    }
    if let Some(KeptVersion { path, content, .. }) = kept.into_iter().next() {
        return Ok((content, Some(path)));
    }
    let stored = found.first().map(|digest| content_of(&repo.store, digest)).transpose()?.flatten();
    stored.map(|content| (content, None)).ok_or_else(|| unknown_version(name))
}

/// Returns the hex digits of a name; `b3:` may be left out, as in the output of most commands.
fn parse_prefix(name: &str) -> Result<&str> {
    let is_prefix = |hex: &&str| {
        (MIN_PREFIX..=64).contains(&hex.len()) && hex.bytes().all(|byte| b"0123456789abcdef".contains(&byte))
    };
    let bare = Some(name).filter(|name| name.len() >= Digest::SHORT);
    name.strip_prefix("b3:").or(bare).filter(is_prefix).ok_or_else(|| {
        Error::usage(format!("`{name}` is not a version"))
            .hint("write it as `mlx du` lists it: `b3:` and at least four hex digits")
    })
}

/// Removes the records of versions that were kept long enough; the store's gate must be locked.
pub fn forget_expired(repo: &Repo, now: Timestamp) -> Result<()> {
    for (file, bytes) in read_kept(repo)? {
        if KeptVersion::parse(&bytes).is_some_and(|version| version.until() <= now) {
            repo.shared.remove(&file)?;
        }
    }
    Ok(())
}

/// Returns the error for a version that nothing here knows.
pub fn unknown_version(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("`{name}` is not in the local store")).hint(format!(
        "`mlx du` lists the versions that are kept, {KEPT_DAYS} days each; name other content by {} digits \
         of its digest or more",
        Digest::SHORT
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fs::Sync, pointer::ContentKind};

    fn version(path: &str, text: &str, when: i64) -> KeptVersion {
        let digest = Digest::of(text.as_bytes());
        let content = Content { digest, files: 1, kind: ContentKind::File, size: text.len() as u64 };
        let path = RepoPath::from_text(path).unwrap();
        KeptVersion { path, content, when: Timestamp::from_seconds(when), why: "a test".to_owned() }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let version = version("a/100%25", "text", 5);
        assert_eq!(KeptVersion::parse(&version.to_bytes()), Some(version.clone()));
        let newer = String::from_utf8(version.to_bytes()).unwrap().replace("\"format\":1", "\"format\":2");
        assert_eq!(KeptVersion::parse(newer.as_bytes()), None);
        assert_eq!(KeptVersion::parse(b"{"), None);
        assert_eq!(version.until().seconds(), 5 + 30 * 86_400);
    }

    #[test]
    fn a_version_is_named_by_a_prefix_of_its_digest() {
        assert_eq!(parse_prefix("b3:0123").unwrap(), "0123");
        assert_eq!(parse_prefix("0123456789").unwrap(), "0123456789");
        for bad in
            ["0123", "012345678", "b3:", "b3:012", "b3:012G", "b3:ABCD", &format!("b3:{}", "0".repeat(65))]
        {
            assert!(parse_prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_newest_version_is_found_unless_the_name_stands_for_several() {
        let temp = tempfile::tempdir().unwrap();
        let mut init = std::process::Command::new("git");
        assert!(init.args(["init", "-q"]).arg(temp.path()).status().unwrap().success());
        let repo = Repo::init(temp.path()).unwrap();
        let with_digest = |path: &str, hex: &str, when: i64| {
            let mut version = version(path, "text", when);
            version.content.digest = Digest::from_hex(hex).unwrap();
            version
        };
        let (one, two) = ("0".repeat(64), format!("{}1", "0".repeat(63)));
        let write = |at: usize, version: &KeptVersion| {
            let file = RepoPath::from_text(&format!("{FOLDER}/{at:064x}")).unwrap();
            repo.shared.write(&file, &version.to_bytes(), Sync::Later).unwrap();
        };
        write(1, &with_digest("older", &one, 5));
        write(2, &with_digest("newer", &one, 6));
        let found = |hex: &str| find_version(&repo, &format!("b3:{hex}")).map(|found| found.1);
        assert_eq!(found(&one).unwrap(), Some(RepoPath::from_text("newer").unwrap()));
        assert_eq!(found("0000").unwrap(), Some(RepoPath::from_text("newer").unwrap()));
        assert_eq!(found("1111").unwrap_err().kind(), Kind::NotFound);
        write(3, &with_digest("other", &two, 7));
        let error = found("0000").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains(&one) && error.to_string().contains(&two), "{error}");
        assert_eq!(found(&one).unwrap(), Some(RepoPath::from_text("newer").unwrap()));
    }
}
