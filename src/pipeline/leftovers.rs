//! Leftovers of runs in a worktree's private folder: partial outputs of failed runs, and logs.
//!
//! ```text
//! failed/STAGE-TIME-PID/     what a failed or killed run left at its outputs
//! logs/STAGE-TIME-PID.log    what a run printed
//! ```
//!
//! A gc removes them after 30 days; the newest log of each stage stays. Other files in these folders are not
//! ours and stay, too.

use std::collections::BTreeMap;

use crate::{
    error::Result,
    fs::{FileKind, Root},
    path::RepoPath,
    time::Timestamp,
    workspace::KEPT_DAYS,
};

/// Folder with the outputs of failed runs.
pub const FAILED: &str = "failed";
/// Folder with the logs of runs.
pub const LOGS: &str = "logs";

/// Kind of a leftover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftoverKind {
    Failed,
    Log,
}

/// A leftover of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub kind: LeftoverKind,
    /// Path in the private folder.
    pub path: RepoPath,
    pub stage: String,
    pub when: Timestamp,
}

/// Number of files and their total size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub files: u64,
    pub bytes: u64,
}

/// Returns the name of a new leftover of a stage, without an ending.
pub fn name(stage: &str) -> String {
    format!("{stage}-{}-{}", Timestamp::now().compact(), std::process::id())
}

/// Splits a name into stage and time.
fn parse(name: &str) -> Option<(String, Timestamp)> {
    let (rest, pid) = name.rsplit_once('-')?;
    let (stage, time) = rest.rsplit_once('-')?;
    pid.parse::<u32>().ok()?;
    Some((stage.to_owned(), Timestamp::parse_compact(time)?))
}

/// Lists the leftovers in a private folder, sorted.
pub fn leftovers(private: &Root) -> Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for (kind, folder) in [(LeftoverKind::Failed, FAILED), (LeftoverKind::Log, LOGS)] {
        let folder = RepoPath::from_text(folder)?;
        if private.stat(&folder)?.is_none() {
            continue;
        }
        for (name, _) in private.dir(&folder)?.names()? {
            let text = std::str::from_utf8(&name).unwrap_or_default();
            let text = if kind == LeftoverKind::Log { text.strip_suffix(".log") } else { Some(text) };
            if let Some((stage, when)) = text.and_then(parse) {
                found.push(Leftover { kind, path: folder.join(&name)?, stage, when });
            }
        }
    }
    found.sort_by(|one, two| one.path.cmp(&two.path));
    Ok(found)
}

/// Returns the leftovers that a gc may remove.
pub fn expired(all: &[Leftover], now: Timestamp) -> Vec<&Leftover> {
    let mut newest: BTreeMap<&str, Timestamp> = BTreeMap::new();
    for log in all.iter().filter(|leftover| leftover.kind == LeftoverKind::Log) {
        let time = newest.entry(&log.stage).or_insert(log.when);
        *time = log.when.max(*time);
    }
    let limit = now.seconds().saturating_sub(KEPT_DAYS * 86_400);
    let is_newest_log = |leftover: &Leftover| {
        leftover.kind == LeftoverKind::Log && newest.get(leftover.stage.as_str()) == Some(&leftover.when)
    };
    all.iter().filter(|leftover| leftover.when.seconds() <= limit && !is_newest_log(leftover)).collect()
}

/// Adds up the files at and below a path. One that vanishes or cannot be read meanwhile is left out.
pub fn extent(root: &Root, path: &RepoPath) -> Extent {
    let Ok(Some(stat)) = root.stat(path) else { return Extent::default() };
    if stat.kind != FileKind::Folder {
        return Extent { files: 1, bytes: stat.size };
    }
    let names = root.dir(path).and_then(|dir| dir.names()).unwrap_or_default();
    let below = names.iter().filter_map(|(name, _)| path.join(name).ok());
    below.map(|path| extent(root, &path)).fold(Extent::default(), |sum, inner| Extent {
        files: sum.files + inner.files,
        bytes: sum.bytes + inner.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leftover(kind: LeftoverKind, name: &str) -> Leftover {
        let (stage, when) = parse(name).unwrap();
        Leftover { kind, path: RepoPath::from_text(name).unwrap(), stage, when }
    }

    #[test]
    fn a_name_tells_stage_and_time() {
        assert_eq!(
            parse("train-fast-20231114T221320Z-77"),
            Some(("train-fast".to_owned(), Timestamp::from_seconds(1_700_000_000)))
        );
        for foreign in ["", "notes.txt", "train-77", "train-20231114-77", "train-20231114T221320Z-x"] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
        assert!(parse(&name("a")).is_some());
    }

    #[test]
    fn old_leftovers_expire_except_for_the_newest_log_of_each_stage() {
        let all = [
            leftover(LeftoverKind::Failed, "a-20231001T000000Z-1"),
            leftover(LeftoverKind::Failed, "a-20231114T000000Z-2"),
            leftover(LeftoverKind::Log, "a-20231001T000000Z-1"),
            leftover(LeftoverKind::Log, "a-20231002T000000Z-1"),
            leftover(LeftoverKind::Log, "b-20231001T000000Z-1"),
        ];
        let paths = |now: &str| -> Vec<String> {
            let now = Timestamp::parse_compact(now).unwrap();
            expired(&all, now).iter().map(|leftover| leftover.path.to_text()).collect()
        };
        assert_eq!(paths("20231030T235959Z"), Vec::<String>::new());
        assert_eq!(paths("20231114T221320Z"), ["a-20231001T000000Z-1", "a-20231001T000000Z-1"]);
        assert_eq!(paths("20240101T000000Z").len(), 3);
    }

    #[test]
    fn an_extent_counts_the_files_below_a_folder() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let extent_of = |path: &str| extent(&root, &RepoPath::from_text(path).unwrap());
        assert_eq!(extent_of("absent"), Extent::default());
        let write = |path: &str, bytes: &[u8]| {
            root.write(&RepoPath::from_text(path).unwrap(), bytes, crate::fs::Sync::Later).unwrap();
        };
        write("d/a", b"123");
        write("d/e/b", b"4567");
        assert_eq!(extent_of("d"), Extent { files: 2, bytes: 7 });
        assert_eq!(extent_of("d/a"), Extent { files: 1, bytes: 3 });
    }
}
