//! A store that several clones share: each keeps a list there of what it needs, and a gc in any of them keeps what
//! all lists name.
//!
//! ```text
//! clones/ID.toml     where the clone lies, whose it is, the state of its refs, what it needs
//! ```
//!
//! Every command that writes renews its clone's list before it gives up its lease. A list that is older than its
//! clone's refs (somebody ran `git pull` and nothing of mlx since) may lack something: then nothing is freed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{Doing, Error, Kind, Result},
    fs::{self, Sync},
    git::{Git, Name},
    path::RepoPath,
    pointer::{Content, Shape},
    progress::Progress,
    repo::{Repo, clone_id},
    store::LeaseRecord,
    upkeep::{
        roots::{Detail, Holder, Place, Roots, catch_up, roots_since},
        seen::{Seen, look},
    },
};

const FOLDER: &str = "clones";
const FORMAT: u64 = 1;
const HEAD: &str = "# What a clone needs of this cache. Written by mlx; `mlx gc --forget ID` removes it.\n";

/// What a clone needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    pub format: u64,
    pub host: String,
    pub path: String,
    pub uid: u32,
    pub user: String,
    /// Digest of all its names and what they stand for.
    pub refs: Digest,
    /// Pointers that could not be read; as long as there are any, nothing is freed.
    #[serde(default)]
    pub unreadable: Vec<String>,
    /// Folders, which need what is below them.
    #[serde(default)]
    pub trees: BTreeSet<Digest>,
    /// Files, and what is named by its digest alone.
    #[serde(default)]
    pub objects: BTreeSet<Digest>,
    #[serde(default)]
    pub runs: BTreeSet<Digest>,
}

fn file(id: &str) -> Result<RepoPath> {
    RepoPath::from_text(&format!("{FOLDER}/{id}.toml"))
}

/// The state of all names of a clone; logs of Git do not count.
fn state(names: &[Name]) -> Digest {
    let lines: String = names.iter().map(|it| format!("{it}\n")).collect();
    Digest::of(lines.as_bytes())
}

/// Names that a list must know of: a log's lines come and go.
fn names(git: &Git) -> Result<Vec<Name>> {
    git.names(-(1 << 40))
}

/// Tells the other clones what this one needs now; nothing to do where no cache is shared, or where it may only be
/// read: nothing was added there, and nobody waits for what it reads.
pub fn renew(repo: &Repo, progress: &dyn Progress) -> Result<()> {
    let Some(id) = repo.clone_id()?.filter(|_| repo.store.root().is_writable()) else { return Ok(()) };
    let doing = || "cannot tell other clones what this one needs".to_owned();
    // What may take long, before anybody waits.
    catch_up(repo, &names(&repo.git).doing(doing)?).doing(doing)?;
    // One after another, so that an older look never takes the place of a newer.
    let _turn = fs::lock_telling(&repo.shared, &RepoPath::from_text("list.lock")?, progress)?;
    // Before anything is looked at: what was written by those who are dead by now is seen.
    let leases = settled_leases(repo)?;
    let names = names(&repo.git).doing(doing)?;
    let seen = Seen { lists: Vec::new(), ..look(repo, 0).doing(doing)? };
    let found = roots_since(repo, &seen).doing(doing)?;
    let mut list = list(repo, &names, &found);
    let away = seen.worktrees.iter().filter_map(|it| it.away.as_ref());
    list.unreadable
        .extend(away.map(|it| format!("all of the worktree `{}`, which is not here", it.display())));
    let root = repo.store.root();
    let text = print(&list);
    if root.read_if_there(&file(&id)?)?.as_deref() != Some(text.as_bytes()) {
        root.write_mode(&file(&id)?, text.as_bytes(), Sync::Yes, 0o644).doing(doing)?;
    }
    // What killed commands of this clone relied on is in the list, if anything names it.
    for leased in leases.iter().filter(|it| !it.alive && it.clone.as_ref() == Some(&id)) {
        repo.store.remove_lease(leased)?;
    }
    repo.store.mark_published();
    Ok(())
}

/// As [`renew`], for whoever only takes from the cache: it may be one that this user may not write to, and then
/// nothing new is relied on there either.
pub fn renew_if_allowed(repo: &Repo, progress: &dyn Progress) -> Result<()> {
    renew(repo, progress).or_else(|it| if it.kind() == Kind::Denied { Ok(()) } else { Err(it) })
}

/// All leases, none of them half begun: that would look like one of a dead command.
fn settled_leases(repo: &Repo) -> Result<Vec<LeaseRecord>> {
    let _gate = repo.store.lock_gate()?;
    repo.store.leases()
}

fn list(repo: &Repo, names: &[Name], found: &Roots) -> List {
    let common = repo.git.common_dir();
    let main = common.parent().filter(|_| common.ends_with(".git"));
    let mut list = List {
        format: FORMAT,
        host: fs::host_name(),
        path: main.unwrap_or_else(|| repo.root()).display().to_string(),
        uid: fs::user_id(),
        user: fs::user_name(),
        refs: state(names),
        unreadable: found.unreadable.iter().map(|it| it.0.clone()).collect(),
        trees: BTreeSet::new(),
        objects: BTreeSet::new(),
        runs: found.runs.clone(),
    };
    for (digest, rooted) in &found.contents {
        let tree = rooted.content.is_some_and(|it| it.kind == Shape::Tree);
        if tree {
            list.trees.insert(*digest)
        } else {
            list.objects.insert(*digest)
        };
    }
    list
}

/// TOML, one digest a line.
fn print(list: &List) -> String {
    let body = toml::to_string_pretty(list).expect("a list is plain values");
    format!("{HEAD}{body}")
}

/// The lists of all other clones, as they are written.
pub fn others(repo: &Repo) -> Result<Vec<(String, Vec<u8>)>> {
    let Some(own) = repo.clone_id()? else { return Ok(Vec::new()) };
    let root = repo.store.root();
    let folder = RepoPath::from_text(FOLDER)?;
    if root.stamp(&folder)?.is_none() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (name, _) in root.dir(&folder)?.names()? {
        let id = std::str::from_utf8(&name).ok().and_then(|it| it.strip_suffix(".toml"));
        let Some(id) = id.filter(|it| *it != own && !it.starts_with('.')) else { continue };
        if let Some(bytes) = root.read_if_there(&folder.join(&name)?)? {
            found.push((id.to_owned(), bytes));
        }
    }
    Ok(found)
}

/// Adds what other clones need.
pub fn add_others(seen: &Seen, roots: &mut Roots, detail: Detail) -> Result<()> {
    for (id, bytes) in &seen.lists {
        let list = parse(id, bytes)?;
        let holder = || Holder::Other(format!("the clone `{}`", list.path));
        let place = || (detail == Detail::Places).then(|| Place { holder: holder(), path: RepoPath::root() });
        for digest in &list.trees {
            roots.need(Content { digest: *digest, files: 0, kind: Shape::Tree, size: 0 }, place());
        }
        for digest in &list.objects {
            roots.contents.entry(*digest).or_default().places.extend(place());
        }
        roots.runs.extend(&list.runs);
    }
    Ok(())
}

fn parse(id: &str, bytes: &[u8]) -> Result<List> {
    let broken = |why: &str| {
        Error::corrupt(format!("the list of the clone {id} cannot be understood: {why}"))
            .hint(format!("run `mlx gc` in that clone, or `mlx gc --forget {id}` if it is gone for good"))
    };
    let text = std::str::from_utf8(bytes).map_err(|it| broken(&it.to_string()))?;
    let list: List = toml::from_str(text).map_err(|it| broken(it.message()))?;
    if list.format == FORMAT { Ok(list) } else { Err(broken("it was written by a newer mlx")) }
}

/// Refuses to go on unless every other clone is there and its list knows all its refs.
pub fn check_others(seen: &Seen) -> Result<()> {
    for (id, bytes) in &seen.lists {
        let list = parse(id, bytes)?;
        let refuse = |why: String| {
            let message = format!("the clone `{}` of {} shares this cache, and {why}", list.path, list.user);
            Error::new(Kind::Conflict, message)
        };
        let gone = || format!("`mlx gc --forget {id}` if it is gone for good; until then nothing is freed");
        if list.host != fs::host_name() {
            let error = refuse(format!("lies on another machine, {}", list.host));
            return Err(error.hint(format!("run `mlx gc` there; {}", gone())));
        }
        let git = Git::discover(std::path::Path::new(&list.path)).ok().filter(|it| clone_id(it) == *id);
        let Some(git) = git else {
            return Err(refuse("cannot be read".into()).hint(gone()));
        };
        let names =
            names(&git).map_err(|it| refuse(format!("its refs cannot be read: {it}")).hint(gone()))?;
        if state(&names) != list.refs {
            let error = refuse("its list is older than its refs".into());
            return Err(error.hint(format!("run `mlx gc` there (without `--yes` it only looks); {}", gone())));
        }
        if let Some(file) = list.unreadable.first() {
            let error = refuse(format!("has a pointer that cannot be read: {file}"));
            return Err(error.hint(format!("mend it there and run `mlx gc`; {}", gone())));
        }
    }
    Ok(())
}

/// Removes the list of a clone, named by its id or its path, with what its killed commands relied on.
pub fn forget(repo: &Repo, clone: &str) -> Result<List> {
    let lists = others(repo)?;
    let matches = |id: &str, bytes: &[u8]| {
        id == clone
            || parse(id, bytes).is_ok_and(|it| std::path::Path::new(&it.path) == std::path::Path::new(clone))
    };
    let Some((id, bytes)) = lists.iter().find(|it| matches(&it.0, &it.1)) else {
        let known: Vec<_> = lists.iter().map(|it| it.0.as_str()).collect();
        let error = Error::not_found(format!("no other clone `{clone}` shares this cache"));
        return Err(error.hint(format!(
            "there are: {}",
            if known.is_empty() { "none".into() } else { known.join(", ") }
        )));
    };
    let list = parse(id, bytes).unwrap_or_else(|_| List {
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
    for leased in settled_leases(repo)?.iter().filter(|it| !it.alive && it.clone.as_ref() == Some(id)) {
        repo.store.remove_lease(leased)?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_as_it_was_written() {
        let list = List {
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
        let text = print(&list);
        assert_eq!(parse("x", text.as_bytes()).unwrap(), list);
        assert!(text.lines().any(|it| it.trim() == format!("\"{}\",", Digest::of(b"1"))), "{text}");
        assert!(parse("x", b"format = 2\n").is_err());
    }
}
