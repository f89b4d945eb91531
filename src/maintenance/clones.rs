//! Clones that share a store: each publishes there which objects it needs, and a gc in any of them keeps
//! those of all.
//!
//! ```text
//! clones/ID.toml     where the clone is, its owner, a digest of its refs, the objects that it needs
//! ```
//!
//! Every command that writes updates its clone's file before it gives up its lease. If the file is older than
//! the clone's refs (someone ran `git pull` and no mlx command since), it may lack something: then nothing is
//! freed.

use std::{collections::BTreeSet, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    fs::{self, Sync},
    git::{Git, GitRef},
    maintenance::{
        roots::{Detail, Reference, Referrer, Roots, roots_since, update_history_cache},
        snapshot::{Snapshot, take_snapshot},
    },
    path::RepoPath,
    pointer::{Content, ContentKind},
    progress::Progress,
    repo::{Repo, clone_id},
    store::LeaseRecord,
};

const FOLDER: &str = "clones";
const FORMAT: u64 = 1;
const HEADER: &str = "# What a clone needs of this cache. Written by mlx; `mlx gc --forget ID` removes it.\n";

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
}

fn file(id: &str) -> Result<RepoPath> {
    RepoPath::from_text(&format!("{FOLDER}/{id}.toml"))
}

/// Returns the digest of all names of a clone, except those in Git's reflogs.
fn refs_digest(names: &[GitRef]) -> Digest {
    let lines: String = names.iter().map(|it| format!("{it}\n")).collect();
    Digest::of(lines.as_bytes())
}

/// Returns the names that a clone's needs must cover: not those in reflogs, whose lines expire.
fn names(git: &Git) -> Result<Vec<GitRef>> {
    git.references(-(1 << 40))
}

/// Publishes what this clone needs. Does nothing if no store is shared, or if this user may only read the
/// store: then this clone added nothing to it.
pub fn publish_needs(repo: &Repo, progress: &dyn Progress) -> Result<()> {
    let Some(id) = repo.clone_id()?.filter(|_| repo.store.root().is_writable()) else { return Ok(()) };
    let context = || "cannot publish which objects this clone needs".to_owned();
    // First without a lock, since it may take long.
    update_history_cache(repo, &names(&repo.git).context(context)?).context(context)?;
    // In turn, so that an older snapshot never replaces a newer one.
    let _lock = fs::lock_with_progress(&repo.shared, &RepoPath::from_text("list.lock")?, progress)?;
    // Before the snapshot: then the snapshot includes everything that ended commands wrote.
    let leases = complete_leases(repo)?;
    let names = names(&repo.git).context(context)?;
    let snapshot = Snapshot { other_clones: Vec::new(), ..take_snapshot(repo, 0).context(context)? };
    let found = roots_since(repo, &snapshot).context(context)?;
    let mut needs = needs(repo, &names, &found);
    let away = snapshot.worktrees.iter().filter_map(|it| it.missing_root.as_ref());
    let describe = |path: &PathBuf| format!("all of the worktree `{}`, which is not here", path.display());
    needs.unreadable.extend(away.map(describe));
    let root = repo.store.root();
    let text = to_toml(&needs);
    if root.read_if_exists(&file(&id)?)?.as_deref() != Some(text.as_bytes()) {
        root.write_mode(&file(&id)?, text.as_bytes(), Sync::Now, 0o644).context(context)?;
    }
    // The published needs include what killed commands of this clone pinned, as far as anything refers to it.
    for lease in leases.iter().filter(|it| !it.alive && it.clone.as_ref() == Some(&id)) {
        repo.store.remove_lease(lease)?;
    }
    repo.store.mark_published();
    Ok(())
}

/// Publishes as [`publish_needs`] does, for commands that only read from the store: if this user may not
/// write to it, the error is ignored, since nothing new was pinned there either.
pub fn publish_needs_if_allowed(repo: &Repo, progress: &dyn Progress) -> Result<()> {
    let ignore_denied = |error: Error| if error.kind() == Kind::Denied { Ok(()) } else { Err(error) };
    publish_needs(repo, progress).or_else(ignore_denied)
}

/// Returns all leases while no pin is being written: a lease that is only half created would look like an
/// ended command's.
fn complete_leases(repo: &Repo) -> Result<Vec<LeaseRecord>> {
    let _gate = repo.store.lock_gate()?;
    repo.store.leases()
}

fn needs(repo: &Repo, names: &[GitRef], found: &Roots) -> CloneNeeds {
    let common = repo.git.common_dir();
    let main = common.parent().filter(|_| common.ends_with(".git"));
    let mut needs = CloneNeeds {
        format: FORMAT,
        host: fs::host_name(),
        path: main.unwrap_or_else(|| repo.root()).display().to_string(),
        uid: fs::user_id(),
        user: fs::user_name(),
        refs: refs_digest(names),
        unreadable: found.unreadable.iter().map(|it| it.0.clone()).collect(),
        trees: BTreeSet::new(),
        objects: BTreeSet::new(),
        runs: found.runs.clone(),
    };
    for (digest, entry) in &found.contents {
        let is_tree = entry.content.is_some_and(|it| it.kind == ContentKind::Tree);
        if is_tree {
            needs.trees.insert(*digest)
        } else {
            needs.objects.insert(*digest)
        };
    }
    needs
}

/// Formats needs as TOML, one digest per line.
fn to_toml(needs: &CloneNeeds) -> String {
    let body = toml::to_string_pretty(needs).expect("needs are plain values");
    format!("{HEADER}{body}")
}

/// Reads the published needs of all other clones, unparsed, with the ids of the clones.
pub fn read_other_needs(repo: &Repo) -> Result<Vec<(String, Vec<u8>)>> {
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
        if let Some(bytes) = root.read_if_exists(&folder.join(&name)?)? {
            found.push((id.to_owned(), bytes));
        }
    }
    Ok(found)
}

/// Adds everything that other clones need to the roots.
pub fn add_other_needs(snapshot: &Snapshot, roots: &mut Roots, detail: Detail) -> Result<()> {
    for (id, bytes) in &snapshot.other_clones {
        let needs = parse(id, bytes)?;
        let referrer = || Referrer::Other(format!("the clone `{}`", needs.path));
        let reference = || {
            (detail == Detail::References).then(|| Reference { referrer: referrer(), path: RepoPath::root() })
        };
        for digest in &needs.trees {
            roots.add_content(
                Content { digest: *digest, files: 0, kind: ContentKind::Tree, size: 0 },
                reference(),
            );
        }
        for digest in &needs.objects {
            roots.contents.entry(*digest).or_default().references.extend(reference());
        }
        roots.runs.extend(&needs.runs);
    }
    Ok(())
}

fn parse(id: &str, bytes: &[u8]) -> Result<CloneNeeds> {
    let invalid = |why: &str| {
        Error::corrupt(format!("the needs of the clone {id} cannot be read: {why}"))
            .hint(format!("run `mlx gc` in that clone, or `mlx gc --forget {id}` if it is gone for good"))
    };
    let text = std::str::from_utf8(bytes).map_err(|it| invalid(&it.to_string()))?;
    let needs: CloneNeeds = toml::from_str(text).map_err(|it| invalid(it.message()))?;
    if needs.format == FORMAT { Ok(needs) } else { Err(invalid("they were written by a newer mlx")) }
}

/// Fails unless every other clone exists, its needs cover all its refs, and all its pointers could be read.
pub fn check_other_clones(snapshot: &Snapshot) -> Result<()> {
    for (id, bytes) in &snapshot.other_clones {
        let needs = parse(id, bytes)?;
        let refuse = |why: String| {
            let (path, user) = (&needs.path, &needs.user);
            Error::new(Kind::Conflict, format!("the clone `{path}` of {user} shares this cache, and {why}"))
        };
        let forget = || format!("`mlx gc --forget {id}` if it is gone for good; until then nothing is freed");
        if needs.host != fs::host_name() {
            let error = refuse(format!("is on another machine, {}", needs.host));
            return Err(error.hint(format!("run `mlx gc` there; {}", forget())));
        }
        let git = Git::discover(std::path::Path::new(&needs.path)).ok().filter(|it| clone_id(it) == *id);
        let Some(git) = git else {
            return Err(refuse("cannot be read".into()).hint(forget()));
        };
        let names =
            names(&git).map_err(|it| refuse(format!("its refs cannot be read: {it}")).hint(forget()))?;
        if refs_digest(&names) != needs.refs {
            let error = refuse("its published needs are older than its refs".into());
            let hint = format!("run `mlx gc` there (without `--yes` it only reports); {}", forget());
            return Err(error.hint(hint));
        }
        if let Some(file) = needs.unreadable.first() {
            let error = refuse(format!("has a pointer that cannot be read: {file}"));
            return Err(error.hint(format!("fix it there and run `mlx gc`; {}", forget())));
        }
    }
    Ok(())
}

/// Removes the published needs of a clone, named by its id or its path, and the leases of its killed
/// commands.
pub fn forget_clone(repo: &Repo, clone: &str) -> Result<CloneNeeds> {
    let others = read_other_needs(repo)?;
    let has_path = |needs: CloneNeeds| std::path::Path::new(&needs.path) == std::path::Path::new(clone);
    let matches = |id: &str, bytes: &[u8]| id == clone || parse(id, bytes).is_ok_and(has_path);
    let Some((id, bytes)) = others.iter().find(|it| matches(&it.0, &it.1)) else {
        let known: Vec<_> = others.iter().map(|it| it.0.as_str()).collect();
        let error = Error::not_found(format!("no other clone `{clone}` shares this cache"));
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(error.hint(format!("known clones: {known}")));
    };
    let needs = parse(id, bytes).unwrap_or_else(|_| CloneNeeds {
        format: FORMAT,
        host: String::new(),
        path: clone.to_owned(),
        uid: 0,
        user: String::new(),
        refs: Digest::of(b""),
        unreadable: Vec::new(),
        trees: BTreeSet::new(),
        objects: BTreeSet::new(),
        runs: BTreeSet::new(),
    });
    repo.store.root().remove(&file(id)?)?;
    for lease in complete_leases(repo)?.iter().filter(|it| !it.alive && it.clone.as_ref() == Some(id)) {
        repo.store.remove_lease(lease)?;
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_needs_equal_the_published_ones() {
        let needs = CloneNeeds {
            format: FORMAT,
            host: "park".into(),
            path: "/home/ada/pets".into(),
            uid: 1000,
            user: "ada".into(),
            refs: Digest::of(b"refs"),
            unreadable: vec!["`data.mlx` at 0123456789".into()],
            trees: BTreeSet::from([Digest::of(b"1"), Digest::of(b"2")]),
            objects: BTreeSet::from([Digest::of(b"3")]),
            runs: BTreeSet::new(),
        };
        let text = to_toml(&needs);
        assert_eq!(parse("x", text.as_bytes()).unwrap(), needs);
        assert!(text.lines().any(|it| it.trim() == format!("\"{}\",", Digest::of(b"1"))), "{text}");
        assert!(parse("x", b"format = 2\n").is_err());
    }
}
