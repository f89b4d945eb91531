//! Everything that any name of Git leads to: branches, tags, stashes, other worktrees, what lies in indexes.
//!
//! For whoever decides what nobody needs any more: what cannot be read is an error, never left out.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::PathBuf,
    rc::Rc,
};

use gix::{bstr::ByteSlice as _, objs::Kind as ObjectKind};

use crate::{
    error::Result,
    fs,
    git::{BlobId, Git, Rev, ours},
    path::{DEEPEST, RepoPath},
};

/// What may lead to objects that nothing else leads to, beside HEAD.
const PSEUDO: [&str; 9] = [
    "HEAD",
    "ORIG_HEAD",
    "MERGE_HEAD",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "REBASE_HEAD",
    "BISECT_HEAD",
    "AUTO_MERGE",
    "MERGE_AUTOSTASH",
];

/// Where a rebase or a row of cherry-picks that is not done yet keeps what it sets aside and what is to come.
const HALF_DONE: [&str; 8] = [
    "rebase-merge/autostash",
    "rebase-merge/orig-head",
    "rebase-merge/git-rebase-todo",
    "rebase-apply/autostash",
    "rebase-apply/orig-head",
    "rebase-apply/abort-safety",
    "sequencer/head",
    "sequencer/todo",
];

/// Git writes no shorter ids.
const SHORTEST: usize = 7;

/// References that belong to one worktree.
const PRIVATE: [&[u8]; 3] = [b"refs/bisect/", b"refs/worktree/", b"refs/rewritten/"];

/// A name and the object it stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// `refs/heads/main`; of another worktree, its folder and a colon before.
    pub name: String,
    id: gix::ObjectId,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub struct Target {
    pub commit: Option<Rev>,
    /// Messages of the tags on the way.
    pub messages: Vec<String>,
}

/// A worktree of this clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worktree {
    /// Its files; none when they are gone or away.
    pub root: Option<PathBuf>,
    /// Where they lay, when they are gone or away.
    pub away: Option<PathBuf>,
    /// Its own Git folder.
    pub folder: PathBuf,
    /// Files that its index holds, as `wanted`; of a conflict, all sides.
    pub staged: Vec<(RepoPath, BlobId)>,
}

/// Files of some kind in commits, read tree by tree: what two commits share is read once.
pub struct Census<'g> {
    git: &'g Git,
    wanted: fn(&[u8]) -> bool,
    known: HashMap<gix::ObjectId, Rc<[(RepoPath, BlobId)]>>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.id)
    }
}

impl Git {
    /// Every name there is, sorted: references, those of each worktree, stashes, and what logs of the last
    /// `recent` seconds name.
    pub fn names(&self, recent: i64) -> Result<Vec<Name>> {
        let mut found = BTreeSet::new();
        let since = fs::tick() / 1_000_000_000 - recent;
        for repo in self.repositories()? {
            let place = if repo.git_dir() == repo.common_dir() {
                String::new()
            } else {
                format!("{}:", repo.git_dir().file_name().unwrap_or_default().display())
            };
            for pseudo in PSEUDO {
                let reference = ours(repo.try_find_reference(pseudo), || format!("cannot read `{pseudo}`"));
                // AUTO_MERGE is a tree, and some tools leave other things under such names.
                let reference = if pseudo == "HEAD" { reference? } else { reference.ok().flatten() };
                // What a hint of an old merge stands for may be gone by now.
                let reference = reference
                    .filter(|it| pseudo == "HEAD" || it.try_id().is_some_and(|it| repo.has_object(it)));
                if let Some(reference) = reference {
                    collect(&repo, &place, &reference, since, &mut found)?;
                }
            }
            for file in HALF_DONE {
                let text = fs::read_outside(&repo.git_dir().join(file)).unwrap_or_default();
                let words = text.split(u8::is_ascii_whitespace);
                // The list of cherry-picks has short ids.
                let ids = words.filter(|it| it.len() >= SHORTEST && it.iter().all(u8::is_ascii_hexdigit));
                let ids = ids.filter_map(|it| Some(repo.rev_parse_single(it.as_bstr()).ok()?.detach()));
                found.extend(ids.map(|id| Name { name: format!("{place}{file}"), id }));
            }
            let doing = || "cannot read Git's references".into();
            for reference in ours(ours(repo.references(), doing)?.all(), doing)? {
                let reference = ours(reference, doing)?;
                // What all worktrees share is the main one's.
                let name = reference.name().as_bstr();
                if place.is_empty() || PRIVATE.iter().any(|it| name.starts_with(it)) {
                    collect(&repo, &place, &reference, since, &mut found)?;
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// This worktree's repository and those of all others.
    fn repositories(&self) -> Result<Vec<gix::Repository>> {
        let doing = || "cannot read Git's worktrees".into();
        let mut found = vec![ours(self.repo.main_repo(), doing)?];
        for proxy in ours(self.repo.worktrees(), doing)? {
            found.push(ours(proxy.into_repo_with_possibly_inaccessible_worktree(), doing)?);
        }
        Ok(found)
    }

    /// All worktrees, with what their indexes hold of the `wanted`.
    pub fn worktrees(&self, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Vec<Worktree>> {
        let mut found = Vec::new();
        for repo in self.repositories()? {
            let root = repo.workdir().map(std::path::Path::to_owned);
            let there = root.as_ref().is_none_or(|it| fs::is_dir(it));
            let index = ours(repo.index_or_empty(), || "cannot read Git's index".into())?;
            let entries = index.entries().iter().filter(|it| it.mode != gix::index::entry::Mode::COMMIT);
            let entries = entries.filter(|it| wanted(it.path(&index).as_bytes()));
            let staged = entries.filter_map(|it| {
                Some((RepoPath::from_bytes(it.path(&index).as_bytes()).ok()?, BlobId::of(it.id)))
            });
            let folder = fs::canonical(repo.git_dir()).unwrap_or_else(|| repo.git_dir().to_owned());
            let (root, away) = if there { (root, None) } else { (None, root) };
            found.push(Worktree { staged: staged.collect(), root, away, folder });
        }
        Ok(found)
    }

    /// What a name stands for; a name of an object that is not here is an error.
    pub fn target(&self, name: &Name) -> Result<Target> {
        let doing = || format!("cannot read what `{}` stands for", name.name);
        let (mut id, mut messages) = (name.id, Vec::new());
        loop {
            let object = ours(self.repo.find_object(id), doing)?;
            match object.kind {
                ObjectKind::Commit => return Ok(Target { commit: Some(Rev(id)), messages }),
                ObjectKind::Tag => {
                    let tag = ours(object.try_into_tag(), doing)?;
                    messages.push(ours(tag.decode(), doing)?.message.to_string());
                    id = ours(tag.target_id(), doing)?.detach();
                }
                // Somebody's name for a file or a folder: no commit, nothing of ours.
                ObjectKind::Tree | ObjectKind::Blob => return Ok(Target { commit: None, messages }),
            }
        }
    }

    /// All commits that these descend from and themselves, in no order that matters.
    pub fn ancestors(&self, from: &[Rev]) -> Result<Vec<Rev>> {
        let doing = || "cannot read Git's history".into();
        let walk = ours(self.repo.rev_walk(from.iter().map(|it| it.0)).all(), doing)?;
        walk.map(|it| Ok(Rev(ours(it, doing)?.id))).collect()
    }
}

/// A name, and what its log says: of stashes all of it, since they have no other place.
fn collect(
    repo: &gix::Repository,
    place: &str,
    reference: &gix::Reference<'_>,
    since: i64,
    found: &mut BTreeSet<Name>,
) -> Result<()> {
    let full = reference.name().as_bstr().to_string();
    if let Some(id) = reference.try_id() {
        found.insert(Name { name: format!("{place}{full}"), id: id.detach() });
    } else if full == "HEAD"
        && let Ok(id) = repo.head_id()
    {
        found.insert(Name { name: format!("{place}{full}"), id: id.detach() });
    }
    let doing = || format!("cannot read the log of `{full}`");
    let mut log = reference.log_iter();
    let Some(lines) = ours(log.all(), doing)? else { return Ok(()) };
    for (at, line) in lines.enumerate() {
        let line = ours(line, doing)?;
        let recent = line.signature.time().is_ok_and(|it| it.seconds > since);
        let id = line.new_oid();
        if (recent || full == "refs/stash") && !id.is_null() && repo.has_object(id) {
            found.insert(Name { name: format!("{place}{full}@{{{at}}}"), id });
        }
    }
    Ok(())
}

impl<'g> Census<'g> {
    /// Looks for files whose whole path `wanted` accepts by its last name.
    pub fn new(git: &'g Git, wanted: fn(&[u8]) -> bool) -> Self {
        Self { git, wanted, known: HashMap::new() }
    }

    /// Those that a commit holds.
    pub fn files(&mut self, rev: &Rev) -> Result<Rc<[(RepoPath, BlobId)]>> {
        let doing = || format!("cannot list the files of {}", rev.short());
        let commit = ours(self.git.repo.find_commit(rev.0), doing)?;
        let tree = ours(commit.tree_id(), doing)?.detach();
        self.below(tree, 0)
    }

    fn below(&mut self, tree: gix::ObjectId, depth: usize) -> Result<Rc<[(RepoPath, BlobId)]>> {
        if let Some(found) = self.known.get(&tree) {
            return Ok(Rc::clone(found));
        }
        let doing = || "cannot read a folder from Git".to_owned();
        let object = ours(self.git.repo.find_tree(tree), doing)?;
        let (mut found, mut folders) = (Vec::new(), Vec::new());
        for entry in object.iter() {
            let entry = ours(entry, doing)?;
            // A name that no path may have holds nothing of ours.
            let Ok(name) = RepoPath::from_bytes(entry.filename()) else { continue };
            if entry.mode().is_blob() && (self.wanted)(entry.filename()) {
                found.push((name, BlobId::of(entry.object_id())));
            } else if entry.mode().is_tree() && depth < DEEPEST {
                folders.push((name, entry.object_id()));
            }
        }
        for (folder, id) in folders {
            for (path, blob) in self.below(id, depth + 1)?.iter() {
                if let Ok(path) = folder.join_path(path) {
                    found.push((path, *blob));
                }
            }
        }
        let found: Rc<[_]> = found.into();
        self.known.insert(tree, Rc::clone(&found));
        Ok(found)
    }
}
