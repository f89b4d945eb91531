//! What must be kept: everything that is named by what was [`Seen`], by all history behind it, by records of runs,
//! and by requests that wait in the spool.
//!
//! Blobs are read once, however many commits hold them. Where a pointer or lockfile cannot be understood, in a worktree
//! what it needs is not known: somebody can mend it there. In a commit nobody can, and Git holds it as it was made: it
//! needs what is written in it as a digest, both sides of a conflict, and can need nothing else, unless a newer mlx
//! wrote it. A file that only is called like a pointer needs nothing. Messages of tags and events name packages and reports by
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
    git::{BlobId, Census, Git, Name, Rev},
    ledger::AUDIT,
    lineage::speaks,
    path::RepoPath,
    pipeline::Lockfile,
    pointer::{Content, ENOUGH, Pointer, SUFFIX, Shape},
    repo::Repo,
    store::Store,
    traffic::spool,
    upkeep::{
        clones,
        memory::{Memory, Tips},
        seen::Seen,
    },
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
    /// Pointers and lockfiles of which it is not known what they need, with where they stand.
    pub unreadable: Vec<(String, Error)>,
    /// Those that cannot be understood, and need no more than the digests that are written in them.
    pub guessed: Vec<(String, Error)>,
    /// Files that are called like pointers and are none.
    pub foreign: BTreeSet<RepoPath>,
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
    /// Why the digests are all that is known.
    guessed: Option<String>,
    foreign: bool,
}

/// Reads everything behind what was seen.
pub fn roots(repo: &Repo, seen: &Seen, detail: Detail) -> Result<Roots> {
    let mut reader = Reader::new(repo, detail);
    let tips = reader.tips(&seen.names)?;
    reader.commits(&tips.all)?;
    reader.events(if tips.events.is_empty() {
        Vec::new()
    } else {
        repo.git.ancestors(&listed(&tips.events))?
    })?;
    reader.rest(repo, seen)
}

/// As [`roots`], by digest alone; what was read of history before is not read again.
pub fn roots_since(repo: &Repo, seen: &Seen) -> Result<Roots> {
    let mut reader = Reader::new(repo, Detail::Digests);
    reader.catch_up(repo, &seen.names)?;
    reader.rest(repo, seen)
}

/// Reads what came into history, so that [`roots_since`] has little left to do.
pub fn catch_up(repo: &Repo, names: &[Name]) -> Result<()> {
    Reader::new(repo, Detail::Digests).catch_up(repo, names)
}

impl Reader<'_> {
    fn rest(mut self, repo: &Repo, seen: &Seen) -> Result<Roots> {
        self.files(seen)?;
        let detail = self.detail;
        let mut roots = self.roots;
        roots.name(seen.links.iter().copied(), &Holder::Other("a link into the store".into()), detail);
        spooled(repo, &mut roots, detail)?;
        clones::add_others(seen, &mut roots, detail)?;
        Ok(roots)
    }
}

impl Rooted {
    pub(super) fn is_tree(&self) -> bool {
        self.content.is_some_and(|it| it.kind == Shape::Tree)
    }
}

impl Roots {
    /// Takes what was read before.
    pub(super) fn remember(&mut self, digest: Digest, tree: bool) {
        if tree {
            self.need(Content { digest, files: 0, kind: Shape::Tree, size: 0 }, None);
        } else {
            self.contents.entry(digest).or_default();
        }
    }

    /// Takes digests of which nothing else is known.
    fn name(&mut self, digests: impl IntoIterator<Item = Digest>, holder: &Holder, detail: Detail) {
        for digest in digests {
            let rooted = self.contents.entry(digest).or_default();
            if detail == Detail::Places {
                rooted.places.push(Place { holder: holder.clone(), path: RepoPath::root() });
            }
        }
    }

    /// Takes all of another reading, by digest.
    fn join(&mut self, other: Self) {
        for (digest, rooted) in other.contents {
            self.remember(digest, rooted.is_tree());
        }
        self.runs.extend(other.runs);
        self.unreadable.extend(other.unreadable);
        self.guessed.extend(other.guessed);
        self.foreign.extend(other.foreign);
        self.commits += other.commits;
    }

    pub(super) fn need(&mut self, content: Content, place: Option<Place>) {
        let rooted = self.contents.entry(content.digest).or_default();
        // Of two that call it differently the folder counts: a folder needs more.
        if !rooted.is_tree() {
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
            Some(bytes) => parse(path, &bytes).or_else(|it| guess(path, &bytes, it)),
            None if pointer => Ok(Said::default()),
            None => Err(too_large(path)),
        })
    }

    fn take_shared(&mut self, holder: &dyn Fn() -> Holder, path: &RepoPath, said: Rc<Result<Said, String>>) {
        match &*said {
            Ok(said) => self.add(holder, path, said),
            // In Git nothing else cannot be read than what a newer mlx wrote.
            Err(why) => {
                let error = Error::corrupt(why.clone()).hint("upgrade mlx");
                self.roots.unreadable.push((shown(&holder(), path), error));
            }
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
        if let Some(why) = &said.guessed {
            self.roots.guessed.push((shown(&holder(), file), Error::corrupt(why.clone())));
        }
        if said.foreign {
            self.roots.foreign.insert(file.clone());
        }
    }

    fn new(repo: &Repo, detail: Detail) -> Reader<'_> {
        Reader { git: &repo.git, detail, known: HashMap::new(), roots: Roots::default() }
    }

    /// What lies in worktrees and indexes.
    fn files(&mut self, seen: &Seen) -> Result<()> {
        for (root, path, bytes) in &seen.files {
            let said = parse(path, bytes).doing(|| format!("in `{}`", root.display()));
            self.take(&|| Holder::Worktree(root.clone()), path, said);
        }
        for worktree in &seen.worktrees {
            for (path, blob) in &worktree.staged {
                let said = self.read(path, *blob)?;
                self.take_shared(&|| Holder::Index(worktree.folder.clone()), path, said);
            }
        }
        Ok(())
    }

    /// Where all names lead; what the messages of tags on the way say is taken.
    fn tips(&mut self, names: &[Name]) -> Result<Tips> {
        let mut tips = Tips::default();
        for name in names {
            let target = self.git.target(name)?;
            let holder = Holder::Other(name.name.clone());
            for message in &target.messages {
                self.roots.name(digests_in(message), &holder, self.detail);
            }
            if name.name.starts_with(AUDIT) {
                tips.events.extend(target.commit.clone());
            }
            tips.all.extend(target.commit);
        }
        Ok(tips)
    }

    fn catch_up(&mut self, repo: &Repo, names: &[Name]) -> Result<()> {
        // Tags may go, and what they said with them: it is not remembered.
        let tips = self.tips(names)?;
        let mut past = Reader::new(repo, self.detail);
        let mut memory = Memory::load(repo)?;
        let unread = memory.unread(self.git, &tips)?;
        past.commit_files(unread.commits)?;
        past.events(unread.events)?;
        memory.join(repo, tips, &mut past.roots)?;
        self.roots.join(past.roots);
        Ok(())
    }

    fn commits(&mut self, tips: &BTreeSet<Rev>) -> Result<()> {
        let tips = listed(tips);
        let commits = match self.detail {
            Detail::Digests => self.git.ancestors(&tips)?,
            Detail::Places => self.git.log(&tips)?.into_iter().map(|it| it.rev).collect(),
        };
        self.commit_files(commits)
    }

    fn commit_files(&mut self, commits: Vec<Rev>) -> Result<()> {
        let mut census = Census::new(self.git, speaks);
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
        Ok(())
    }

    fn events(&mut self, commits: Vec<Rev>) -> Result<()> {
        let mut census = Census::new(self.git, |it| it == b"event.json");
        for rev in commits {
            for (_, blob) in census.files(&rev)?.iter() {
                let bytes = self.git.read_blob(*blob)?;
                let found = digests_in(&String::from_utf8_lossy(&bytes));
                self.roots.name(found, &Holder::Other(format!("the event {}", rev.short())), self.detail);
            }
        }
        Ok(())
    }
}

fn listed(tips: &BTreeSet<Rev>) -> Vec<Rev> {
    tips.iter().cloned().collect()
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
        said.foreign = !Pointer::resembles(bytes);
        if !said.foreign {
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

/// What a file in Git needs at most that cannot be understood.
fn guess(path: &RepoPath, bytes: &[u8], error: Error) -> Result<Said> {
    let pointer = path.without_suffix(SUFFIX).is_some();
    if if pointer { Pointer::is_newer(bytes) } else { Lockfile::is_newer(bytes) } {
        return Err(error);
    }
    // An editor may have put zeros between the letters.
    let digests = digests_in(&String::from_utf8_lossy(bytes).replace('\0', ""));
    let runs = if pointer { Vec::new() } else { digests.clone() };
    Ok(Said { inputs: digests, runs, guessed: Some(error.full_text()), ..Said::default() })
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
        for bytes in [&b"PK\x03\x04\x00"[..], b"<!DOCTYPE FilterScript>\n", b"<<<<<<< HEAD\n"] {
            let said = parse(&path, bytes).unwrap();
            assert!(said.foreign && said.contents.is_empty());
        }
        assert!(parse(&path, b"").is_err() && parse(&path, b"digest = ").is_err());
    }

    #[test]
    fn what_nobody_can_mend_needs_what_is_written_in_it() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let text =
            format!("<<<<<<< a\ndigest = \"{one}\"\n=======\ndigest = \"{two}\"\n>>>>>>> b\nsize = 3\n");
        let guessed = |path: &str, text: &str| {
            let path = RepoPath::from_text(path).unwrap();
            guess(&path, text.as_bytes(), parse(&path, text.as_bytes()).err().unwrap())
        };
        let said = guessed("a.mlx", &text).unwrap();
        assert_eq!((&said.inputs[..], &said.runs[..]), (&[one, two][..], &[][..]));
        assert_eq!(guessed("mlx.lock", &text).unwrap().runs, [one, two]);
        assert!(guessed("a.mlx", &format!("digest = \"{one}\"\nformat = 2\n")).is_err(), "of a newer mlx");
    }

    #[test]
    fn packages_that_answered_what_waits_to_be_sealed_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let mut init = std::process::Command::new("git");
        assert!(init.args(["init", "-q"]).arg(temp.path()).status().unwrap().success());
        let repo = Repo::init(temp.path()).unwrap();
        let options = spool::Options { keep: 0.0, largest_broken: 0, broken_a_day: 0, disk: "/".into() };
        let root = fs::Root::open(repo.shared.path()).unwrap();
        let spool = spool::Spool::start(root, "test", options).unwrap();
        assert!(spool.record(crate::traffic::samples::record("r", 0, b"x"), None));
        spool.stop();
        let seen = crate::upkeep::seen::look(&repo, 0).unwrap();
        let found = roots(&repo, &seen, Detail::Digests).unwrap();
        assert!(found.contents.contains_key(&Digest::of(b"package")));
    }
}
