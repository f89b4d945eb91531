//! Lists of what the clones that share a store need, one for each clone.
//!
//! ```text
//! clones/ID.toml     where the clone is, its owner, a digest of its refs, the objects that it needs, and
//!                    those that earlier lists of it named within the last 30 days
//! clones/ID.lock     locked while the list is being replaced
//! ```

use std::{collections::BTreeSet, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{Error, Result},
    fs,
    git::{Git, GitRef},
    path::RepoPath,
    repo::{Repo, clone_id},
};

const FOLDER: &str = "clones";
/// Lists of format 1 remember nothing of earlier ones.
const FORMAT: u64 = 2;
const HEADER: &str = "# What a clone needs of this cache. Written by mlx; `mlx gc --forget ID` removes it.\n";
/// Days for which a list remembers what earlier ones named, and after which one that cannot be renewed
/// stops a gc.
pub const DAYS: i64 = 30;

/// Published needs of a clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneNeeds {
    pub format: u64,
    pub host: String,
    pub path: String,
    pub uid: u32,
    pub user: String,
    /// Digest of all names in Git and their targets.
    pub refs: Digest,
    /// Pointers that could not be read; while there are any, nothing is freed.
    #[serde(default)]
    pub unreadable: Vec<String>,
    /// Folders, which stand for everything below them.
    #[serde(default)]
    pub trees: BTreeSet<Digest>,
    /// Files, and objects that are known by their digest alone.
    #[serde(default)]
    pub objects: BTreeSet<Digest>,
    #[serde(default)]
    pub runs: BTreeSet<Digest>,
    /// Named by earlier lists and not by this one, newest first.
    #[serde(default)]
    pub dropped: Vec<Dropped>,
}

/// Needs that a list named last on one day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Number of days since 1970.
    pub day: i64,
    #[serde(default)]
    pub trees: BTreeSet<Digest>,
    #[serde(default)]
    pub objects: BTreeSet<Digest>,
    #[serde(default)]
    pub runs: BTreeSet<Digest>,
}

/// The list of another clone, as it is in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct CloneList {
    pub id: String,
    pub bytes: Vec<u8>,
    /// Time at which it was written, in nanoseconds since 1970.
    pub written: i64,
    /// Digest of the refs that the clone has now; `None` if its Git folder cannot be read here.
    pub refs: Option<Digest>,
}

impl CloneNeeds {
    /// Returns needs of nothing.
    pub fn new(path: String) -> Self {
        Self {
            format: FORMAT,
            host: fs::host_name(),
            path,
            uid: fs::user_id(),
            user: fs::user_name(),
            refs: Digest::of(b""),
            unreadable: Vec::new(),
            trees: BTreeSet::new(),
            objects: BTreeSet::new(),
            runs: BTreeSet::new(),
            dropped: Vec::new(),
        }
    }

    pub fn parse(id: &str, bytes: &[u8]) -> Result<Self> {
        let invalid = |why: &str| {
            Error::corrupt(format!("the needs of the clone {id} cannot be read: {why}"))
                .hint(format!("run `mlx gc` in that clone, or `mlx gc --forget {id}` if it is gone for good"))
        };
        let text = std::str::from_utf8(bytes).map_err(|it| invalid(&it.to_string()))?;
        let table: toml::Table = text.parse().map_err(|it: toml::de::Error| invalid(it.message()))?;
        let format = table.get("format").and_then(toml::Value::as_integer);
        if format.is_some_and(|format| !(1..=FORMAT.cast_signed()).contains(&format)) {
            return Err(invalid("they were written by a newer mlx").hint("upgrade mlx"));
        }
        toml::from_str(text).map_err(|it| invalid(it.message()))
    }

    /// Formats needs as TOML, one digest per line.
    pub fn to_toml(&self) -> String {
        let body = toml::to_string_pretty(self).expect("needs are plain values");
        format!("{HEADER}{body}")
    }

    /// Remembers what an earlier list of the clone names, or remembers, and this one does not.
    pub fn remember(&mut self, earlier: Self, today: i64) {
        let Self { trees, objects, runs, dropped, .. } = earlier;
        let mut seen = [self.trees.clone(), self.objects.clone(), self.runs.clone()];
        for mut group in std::iter::once(Dropped { day: today, trees, objects, runs }).chain(dropped) {
            for (named, seen) in
                [&mut group.trees, &mut group.objects, &mut group.runs].into_iter().zip(&mut seen)
            {
                named.retain(|digest| seen.insert(*digest));
            }
            let is_empty = group.trees.is_empty() && group.objects.is_empty() && group.runs.is_empty();
            if is_empty || group.day + DAYS < today {
                continue;
            }
            match self.dropped.last_mut().filter(|last| last.day == group.day) {
                Some(last) => {
                    last.trees.append(&mut group.trees);
                    last.objects.append(&mut group.objects);
                    last.runs.append(&mut group.runs);
                }
                None => self.dropped.push(group),
            }
        }
    }

    /// Opens the Git repository of a clone on this machine; `None` if it cannot be read, or is another one.
    fn git(&self, id: &str) -> Option<Git> {
        let git = (self.host == fs::host_name()).then(|| Git::discover(Path::new(&self.path)).ok())?;
        git.filter(|git| clone_id(git) == *id)
    }
}

impl CloneList {
    pub fn parse(&self) -> Result<CloneNeeds> {
        CloneNeeds::parse(&self.id, &self.bytes)
    }
}

/// Returns the path of a clone's list in the store.
pub fn list_path(id: &str) -> Result<RepoPath> {
    RepoPath::from_text(&format!("{FOLDER}/{id}.toml"))
}

/// Returns the path of the lock of a clone's list in the store.
pub fn lock_path(id: &str) -> Result<RepoPath> {
    RepoPath::from_text(&format!("{FOLDER}/{id}.lock"))
}

/// Returns the names that a clone's needs must cover: not those in reflogs, whose lines expire.
pub fn names(git: &Git) -> Result<Vec<GitRef>> {
    git.references(-(1 << 40))
}

/// Returns the digest of all names of a clone, except those in Git's reflogs.
pub fn refs_digest(names: &[GitRef]) -> Digest {
    let lines: String = names.iter().map(|it| format!("{it}\n")).collect();
    Digest::of(lines.as_bytes())
}

/// Reads the lists of all other clones.
pub fn other_lists(repo: &Repo) -> Result<Vec<CloneList>> {
    let Some(own) = repo.clone_id()? else { return Ok(Vec::new()) };
    let root = repo.store.root();
    let folder = RepoPath::from_text(FOLDER)?;
    if root.stat(&folder)?.is_none() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (name, _) in root.dir(&folder)?.names()? {
        let id = std::str::from_utf8(&name).ok().and_then(|it| it.strip_suffix(".toml"));
        let Some(id) = id.filter(|it| *it != own && !it.starts_with('.')) else { continue };
        let path = folder.join(&name)?;
        // Before the bytes: a list that is replaced meanwhile counts as older than it is.
        let (stat, bytes) = (root.stat(&path)?, root.read_if_exists(&path)?);
        let (Some(stat), Some(bytes)) = (stat, bytes) else { continue };
        let git = CloneNeeds::parse(id, &bytes).ok().and_then(|needs| needs.git(id));
        let refs = git.and_then(|git| names(&git).ok()).map(|names| refs_digest(&names));
        found.push(CloneList { id: id.to_owned(), bytes, written: stat.mtime, refs });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &[&str]) -> BTreeSet<Digest> {
        text.iter().map(|text| Digest::of(text.as_bytes())).collect()
    }

    #[test]
    fn parsed_needs_equal_the_published_ones() {
        let dropped = Dropped { day: 20_000, trees: named(&["4"]), objects: named(&[]), runs: named(&["5"]) };
        let needs = CloneNeeds {
            host: "park".into(),
            uid: 1000,
            user: "ada".into(),
            refs: Digest::of(b"refs"),
            unreadable: vec!["`data.mlx` at 0123456789".into()],
            trees: named(&["1", "2"]),
            objects: named(&["3"]),
            dropped: vec![dropped],
            ..CloneNeeds::new("/home/ada/pets".into())
        };
        let text = needs.to_toml();
        assert_eq!(CloneNeeds::parse("x", text.as_bytes()).unwrap(), needs);
        assert!(text.lines().any(|it| it.trim() == format!("\"{}\",", Digest::of(b"1"))), "{text}");
        let first = CloneNeeds { format: 1, dropped: Vec::new(), ..needs };
        assert_eq!(CloneNeeds::parse("x", first.to_toml().as_bytes()).unwrap(), first);
        let newer = CloneNeeds::parse("x", b"format = 3\n").unwrap_err();
        assert!(newer.to_string().contains("newer mlx") && newer.hint_text() == Some("upgrade mlx"));
    }

    #[test]
    fn a_list_remembers_for_thirty_days_what_earlier_ones_named() {
        let list = |objects: &[&str]| CloneNeeds { objects: named(objects), ..CloneNeeds::new("x".into()) };
        let after = |earlier: &CloneNeeds, objects: &[&str], day| {
            let mut next = list(objects);
            next.remember(earlier.clone(), day);
            next
        };
        let remembered = |needs: &CloneNeeds| {
            needs.dropped.iter().map(|group| (group.day, group.objects.clone())).collect::<Vec<_>>()
        };
        let first = after(&list(&["a", "b"]), &["b", "c"], 100);
        assert_eq!(remembered(&first), [(100, named(&["a"]))]);
        let second = after(&after(&first, &["c"], 110), &["d"], 110);
        assert_eq!(remembered(&second), [(110, named(&["b", "c"])), (100, named(&["a"]))]);
        // One that is needed again is not remembered, and counts from the day on which it is dropped again.
        let third = after(&second, &["a"], 120);
        assert_eq!(remembered(&third), [(120, named(&["d"])), (110, named(&["b", "c"]))]);
        let fourth = after(&third, &[], 140);
        assert_eq!(
            remembered(&fourth),
            [(140, named(&["a"])), (120, named(&["d"])), (110, named(&["b", "c"]))]
        );
        assert_eq!(remembered(&after(&fourth, &[], 141)), [(140, named(&["a"])), (120, named(&["d"]))]);
    }
}
