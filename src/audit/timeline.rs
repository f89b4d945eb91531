//! What Git tells already (commits, versions) and what the audit chain adds, in one list.
//!
//! Each source has an order of its own that no clock decides; between the sources the written times do, for want
//! of anything better.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use crate::{
    digest::Digest,
    error::Result,
    git::{Commit, Git},
    ledger::{self, Entry},
    model::registry::{self, Version},
    path::RepoPath,
    pipeline::{LOCKFILE, Lockfile, StageRecord},
    pointer::{Pointer, SUFFIX},
    repo::Repo,
};

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Ingested,
    Trained,
    Tested,
    Registered,
    Event(ledger::Kind),
}

/// One line of the timeline.
#[derive(Clone, Debug)]
pub struct Row {
    /// As the clock of whoever wrote it said: RFC 3339, UTC.
    pub when: String,
    pub what: What,
    pub who: String,
    pub subject: String,
    pub environment: Option<String>,
    pub why: Option<String>,
    pub digest: Option<Digest>,
    /// The commit, or the event's commit.
    pub rev: String,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingested => "ingested",
            Self::Trained => "trained",
            Self::Tested => "tested",
            Self::Registered => "registered",
            Self::Event(kind) => kind.name(),
        }
    }
}

/// The whole timeline, oldest first.
pub fn timeline(repo: &Repo) -> Result<Vec<Row>> {
    let git = &repo.git;
    let versions = registry::versions(git, None)?;
    let commits = from_commits(git, &versions)?;
    let events = ledger::read(git, ledger::tip(git)?.as_ref())?;
    let mut named: Vec<Row> = versions.iter().map(from_version).collect();
    named.sort_by(|a, b| a.when.cmp(&b.when));
    Ok(merge(vec![commits, named, events.iter().flat_map(from_event).collect()]))
}

fn from_version(version: &Version) -> Row {
    Row {
        when: version.tag.when.to_text(),
        what: What::Registered,
        who: version.tag.tagger.clone(),
        subject: version.name(),
        environment: None,
        why: None,
        digest: Some(version.package.digest),
        rev: version.tag.rev.to_string(),
    }
}

/// An event; an approval says also that there was a test.
fn from_event(entry: &Entry) -> Vec<Row> {
    let event = &entry.event;
    let digest = |key: &str| event.facts.get(key).and_then(|it| it.as_str()?.parse::<Digest>().ok());
    let row = |what, digest, why| Row {
        when: event.when.clone(),
        what,
        who: event.who.clone(),
        subject: event.subject.clone(),
        environment: event.environment.clone(),
        why,
        digest,
        rev: entry.rev.to_string(),
    };
    let tested = digest("report")
        .map(|it| row(What::Tested, Some(it), Some("the report an approval rests on".into())));
    let package = digest("package").or_else(|| digest("report"));
    tested.into_iter().chain([row(What::Event(event.kind), package, event.why.clone())]).collect()
}

/// What the commits say: data that came or changed, packages and numbers that stages made.
fn from_commits(git: &Git, versions: &[Version]) -> Result<Vec<Row>> {
    let packages: BTreeSet<&RepoPath> = versions.iter().map(|it| &it.path).collect();
    let mut commits = git.log(&git.tips()?)?;
    commits.reverse();
    let (mut rows, mut known) = (Vec::new(), BTreeMap::new());
    for commit in commits {
        let here = read(git, &commit)?;
        let empty = Vec::new();
        let before: &Vec<Fact> = commit.parents.first().and_then(|it| known.get(it)).unwrap_or(&empty);
        // A merge makes nothing new.
        if commit.parents.len() < 2 {
            rows.extend(
                here.iter().filter(|it| !before.contains(it)).filter_map(|it| row(&commit, it, &packages)),
            );
        }
        known.insert(commit.rev.clone(), here);
    }
    Ok(rows)
}

/// Something a commit records.
#[derive(Clone, PartialEq)]
enum Fact {
    Pointer(Pointer),
    Stage(String, StageRecord),
}

fn read(git: &Git, commit: &Commit) -> Result<Vec<Fact>> {
    let is_lock = |it: &[u8]| it == LOCKFILE.as_bytes() || it.ends_with(format!("/{LOCKFILE}").as_bytes());
    let mut found = Vec::new();
    for file in git.files(&commit.rev, &|it| it.ends_with(SUFFIX.as_bytes()) || is_lock(it))? {
        let bytes = git.read(&commit.rev, &file)?.unwrap_or_default();
        // What cannot be read says nothing; `mlx status` names it.
        if let Some(path) = file.without_suffix(SUFFIX) {
            found.extend(Pointer::parse(path, &bytes).ok().map(Fact::Pointer));
        } else if let Ok(lock) = Lockfile::parse(&file, &bytes) {
            found.extend(lock.records().map(|(name, record)| Fact::Stage(name.to_owned(), record.clone())));
        }
    }
    Ok(found)
}

fn row(commit: &Commit, fact: &Fact, packages: &BTreeSet<&RepoPath>) -> Option<Row> {
    let (what, subject, digest) = match fact {
        Fact::Pointer(pointer) => (What::Ingested, pointer.path.to_text(), pointer.content.digest),
        Fact::Stage(name, record) => {
            let package = record.outputs.iter().find(|it| packages.contains(it.0));
            let numbers = record.in_git.iter().next().filter(|_| record.outputs.is_empty());
            match (package, numbers) {
                (Some((path, content)), _) => (What::Trained, path.to_text(), content.digest),
                (None, Some((path, content))) if path.bytes().ends_with(b".json") => {
                    (What::Tested, format!("{path} by {name}"), content.digest)
                }
                _ => return None,
            }
        }
    };
    Some(Row {
        when: commit.when.to_text(),
        what,
        who: commit.author.clone(),
        subject,
        environment: None,
        why: Some(commit.summary.clone()),
        digest: Some(digest),
        rev: commit.rev.to_string(),
    })
}

/// Lists that are in order each, as one; at equal times earlier lists come first.
fn merge(lists: Vec<Vec<Row>>) -> Vec<Row> {
    let mut lists: Vec<VecDeque<Row>> = lists.into_iter().map(Into::into).collect();
    let mut merged = Vec::new();
    loop {
        let heads = lists.iter().enumerate().filter_map(|(at, it)| Some((at, it.front()?)));
        let first = heads.min_by(|a, b| match a.1.when.cmp(&b.1.when) {
            Ordering::Equal => a.0.cmp(&b.0),
            other => other,
        });
        let Some(at) = first.map(|it| it.0) else { return merged };
        merged.extend(lists[at].pop_front());
    }
}
