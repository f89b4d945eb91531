//! What must be kept: everything that is named by what was [`Seen`], by all history behind it, by records of runs,
//! and by requests that wait in the spool.
//!
//! Blobs are read once, however many commits hold them. Messages of tags and events name packages and reports by
//! their digests: whatever looks like a digest there counts, be it a version, a release or something of a newer mlx.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    rc::Rc,
};

use crate::{
    digest::Digest,
    error::{Doing, Error, Result},
    fs,
    git::{BlobId, Census, Git, Rev},
    ledger::AUDIT,
    lineage::speaks,
    path::RepoPath,
    pipeline::Lockfile,
    pointer::{Content, ENOUGH, Pointer, SUFFIX},
    repo::Repo,
    store::Store,
    traffic::spool,
    upkeep::{clones, seen::Seen},
};

/// Who needs a thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    Worktree(PathBuf),
    Index(PathBuf),
    Commit(Rev),
    /// A tag's message, an event, a record of a run, the spool, another clone.
    Other(String),
}

/// Who needs a thing, and under which path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub holder: Holder,
    pub path: RepoPath,
}

/// A thing that is needed.
#[derive(Clone, Debug, Default)]
pub struct Rooted {
    /// What it is; of what is named by its digest alone that is not known, nor whether it was ever stored.
    pub content: Option<Content>,
    /// Who needs it, where that was asked for.
    pub places: Vec<Place>,
}

/// Everything that is needed, by digest.
#[derive(Debug, Default)]
pub struct Roots {
    pub contents: BTreeMap<Digest, Rooted>,
    /// Runs that a lockfile names.
    pub runs: BTreeSet<Digest>,
    /// Pointers and lockfiles that cannot be understood, with where they stand.
    pub unreadable: Vec<(String, Error)>,
    /// Commits that were read.
    pub commits: u64,
}

/// Whether it matters who needs what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    Digests,
    Places,
}

/// What one file says.
#[derive(Default)]
struct Said {
    /// A pointer's path is that of its file.
    contents: Vec<(Option<RepoPath>, Content)>,
    /// What went into runs; it may never have been stored.
    inputs: Vec<Digest>,
    runs: Vec<Digest>,
}

/// Reads everything behind what was seen.
pub fn roots(repo: &Repo, seen: &Seen, detail: Detail) -> Result<Roots> {
    let mut reader = Reader { git: &repo.git, detail, known: HashMap::new(), roots: Roots::default() };
    for (root, path, bytes) in &seen.files {
        let said = parse(path, bytes).doing(|| format!("in `{}`", root.display()));
        reader.take(&|| Holder::Worktree(root.clone()), path, said);
    }
    for worktree in &seen.worktrees {
        for (path, blob) in &worktree.staged {
            let said = reader.read(path, *blob)?;
            reader.take_shared(&|| Holder::Index(worktree.folder.clone()), path, said);
        }
    }
    reader.history(seen)?;
    let mut roots = reader.roots;
    roots.name(seen.links.iter().copied(), &Holder::Other("a link into the store".into()), detail);
    spooled(repo, &mut roots, detail)?;
    clones::add_others(seen, &mut roots, detail)?;
    Ok(roots)
}

impl Roots {
    /// Takes digests of which nothing else is known.
    fn name(&mut self, digests: impl IntoIterator<Item = Digest>, holder: &Holder, detail: Detail) {
        for digest in digests {
            let rooted = self.contents.entry(digest).or_default();
            if detail == Detail::Places {
                rooted.places.push(Place { holder: holder.clone(), path: RepoPath::root() });
            }
        }
    }

    pub(super) fn need(&mut self, content: Content, place: Option<Place>) {
        let rooted = self.contents.entry(content.digest).or_default();
        // Of two that call it differently the folder counts: a folder needs more.
        if rooted.content.is_none_or(|it| it.kind != crate::pointer::Shape::Tree) {
            rooted.content = Some(content);
        }
        rooted.places.extend(place);
    }

    /// Adds what records of runs say came out; these are the runs that lockfiles name, and `more`.
    pub fn with_runs(&mut self, store: &Store, more: &[Digest]) -> Result<()> {
        self.runs.extend(more);
        let mut made = Vec::new();
        for key in &self.runs {
            let answer = store.run(key)?.map(|it| it.answer);
            let outputs =
                answer.and_then(|it| serde_json::from_value::<BTreeMap<RepoPath, Content>>(it).ok());
            made.extend(outputs.into_iter().flatten().map(|it| it.1.digest));
        }
        self.name(made, &Holder::Other("a run".into()), Detail::Digests);
        Ok(())
    }
}

struct Reader<'g> {
    git: &'g Git,
    detail: Detail,
    known: HashMap<(BlobId, bool), Rc<Result<Said, String>>>,
    roots: Roots,
}

impl Reader<'_> {
    fn read(&mut self, path: &RepoPath, blob: BlobId) -> Result<Rc<Result<Said, String>>> {
        let key = (blob, path.without_suffix(SUFFIX).is_some());
        if let Some(said) = self.known.get(&key) {
            return Ok(Rc::clone(said));
        }
        let said = Rc::new(self.read_anew(path, blob)?.map_err(|it| it.full_text()));
        self.known.insert(key, Rc::clone(&said));
        Ok(said)
    }

    /// The outer result is Git's; the inner one is what its file says.
    fn read_anew(&self, path: &RepoPath, blob: BlobId) -> Result<Result<Said>> {
        let pointer = path.without_suffix(SUFFIX).is_some();
        let most = if pointer { ENOUGH } else { fs::DOCUMENT };
        Ok(match self.git.read_small_blob(blob, most)? {
            Some(bytes) => parse(path, &bytes),
            None if pointer => Ok(Said::default()),
            None => Err(too_large(path)),
        })
    }

    fn take_shared(&mut self, holder: &dyn Fn() -> Holder, path: &RepoPath, said: Rc<Result<Said, String>>) {
        match &*said {
            Ok(said) => self.add(holder, path, said),
            Err(why) => self.roots.unreadable.push((shown(&holder(), path), Error::corrupt(why.clone()))),
        }
    }

    fn take(&mut self, holder: &dyn Fn() -> Holder, path: &RepoPath, said: Result<Said>) {
        match said {
            Ok(said) => self.add(holder, path, &said),
            Err(error) => self.roots.unreadable.push((shown(&holder(), path), error)),
        }
    }

    fn add(&mut self, holder: &dyn Fn() -> Holder, file: &RepoPath, said: &Said) {
        for (path, content) in &said.contents {
            let path = || path.clone().or_else(|| file.without_suffix(SUFFIX)).unwrap_or_default();
            let place = || Place { holder: holder(), path: path() };
            self.roots.need(*content, (self.detail == Detail::Places).then(place));
        }
        self.roots.name(said.inputs.iter().copied(), &Holder::Other(String::new()), Detail::Digests);
        self.roots.runs.extend(&said.runs);
    }

    fn history(&mut self, seen: &Seen) -> Result<()> {
        let (mut tips, mut events) = (BTreeSet::new(), BTreeSet::new());
        for name in &seen.names {
            let target = self.git.target(name)?;
            let holder = Holder::Other(name.name.clone());
            for message in &target.messages {
                self.roots.name(digests_in(message), &holder, self.detail);
            }
            if name.name.starts_with(AUDIT) {
                events.extend(target.commit.clone());
            }
            tips.extend(target.commit);
        }
        let tips: Vec<Rev> = tips.into_iter().collect();
        let mut census = Census::new(self.git, speaks);
        let commits = match self.detail {
            Detail::Digests => self.git.ancestors(&tips)?,
            Detail::Places => self.git.log(&tips)?.into_iter().map(|it| it.rev).collect(),
        };
        let mut read = BTreeSet::new();
        for rev in commits {
            self.roots.commits += 1;
            for (path, blob) in census.files(&rev)?.iter() {
                if self.detail == Detail::Places || read.insert((*blob, path.name().to_vec())) {
                    let said = self.read(path, *blob)?;
                    self.take_shared(&|| Holder::Commit(rev.clone()), path, said);
                }
            }
        }
        self.events(&events.into_iter().collect::<Vec<_>>())
    }

    fn events(&mut self, tips: &[Rev]) -> Result<()> {
        let mut census = Census::new(self.git, |it| it == b"event.json");
        for rev in if tips.is_empty() { Vec::new() } else { self.git.ancestors(tips)? } {
            for (_, blob) in census.files(&rev)?.iter() {
                let bytes = self.git.read_blob(*blob)?;
                let found = digests_in(&String::from_utf8_lossy(&bytes));
                self.roots.name(found, &Holder::Other(format!("the event {}", rev.short())), self.detail);
            }
        }
        Ok(())
    }
}

/// Where a file stands, for people.
fn shown(holder: &Holder, path: &RepoPath) -> String {
    match holder {
        Holder::Worktree(root) => format!("`{}`", path.on_disk(root).display()),
        Holder::Index(_) => format!("`{path}` in Git's index"),
        Holder::Commit(rev) => format!("`{path}` at {}", rev.short()),
        Holder::Other(name) => format!("`{path}` in {name}"),
    }
}

fn parse(path: &RepoPath, bytes: &[u8]) -> Result<Said> {
    let mut said = Said::default();
    if let Some(of) = path.without_suffix(SUFFIX) {
        // Other programs keep files under that name, too.
        if Pointer::resembles(bytes) {
            said.contents.push((None, Pointer::parse(of, bytes)?.content));
        }
        return Ok(said);
    }
    if bytes.len() as u64 > fs::DOCUMENT {
        return Err(too_large(path));
    }
    for (_, record) in Lockfile::parse(path, bytes)?.records() {
        let outputs = record.outputs.iter().chain(&record.in_git);
        said.contents.extend(outputs.map(|(path, it)| (Some(path.clone()), *it)));
        said.inputs.extend(record.dependencies.values().map(|it| it.digest));
        said.runs.push(record.key);
    }
    Ok(said)
}

fn too_large(path: &RepoPath) -> Error {
    Error::corrupt(format!("`{path}` is larger than {} MiB", fs::DOCUMENT >> 20))
}

/// Everything that is written as a digest.
pub fn digests_in(text: &str) -> Vec<Digest> {
    let starts = text.match_indices("b3:").map(|it| it.0);
    starts.filter_map(|at| text.get(at..at + 67)?.parse().ok()).collect()
}

/// Packages that answered what waits in the spool, and what was asked.
fn spooled(repo: &Repo, roots: &mut Roots, detail: Detail) -> Result<()> {
    let folder = RepoPath::from_text("traffic")?;
    if repo.shared.stamp(&folder)?.is_none() {
        return Ok(());
    }
    for (name, kind) in repo.shared.dir(&folder)?.names()? {
        let Ok(environment) = std::str::from_utf8(&name) else { continue };
        if !kind.is_dir() {
            continue;
        }
        let holder = Holder::Other(format!("traffic of `{environment}`"));
        for day in spool::days(&repo.shared, environment)? {
            let records = spool::read(&repo.shared, environment, day)?.records;
            roots.name(records.iter().flat_map(|it| [it.package, it.input]), &holder, detail);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_in_any_text() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let text = format!("package = \"{one}\"\n{{\"report\":\"{two}\"}} b3:tooshort é b3:");
        assert_eq!(digests_in(&text), [one, two]);
    }

    #[test]
    fn a_file_of_another_program_says_nothing_and_a_broken_pointer_is_an_error() {
        let path = RepoPath::from_text("a.mlx").unwrap();
        assert!(parse(&path, b"PK\x03\x04\x00").unwrap().contents.is_empty());
        assert!(parse(&path, b"<<<<<<< HEAD\n").is_err());
    }
}
