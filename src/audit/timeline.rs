//! One timeline of all activity: commits and registered versions from Git, other events from the audit chain.
//!
//! Each source has its own order that does not depend on clocks. Rows of different sources are merged by
//! their recorded times, the only order there is between them.

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
    pipeline::{Lockfile, StageId, StageRecord},
    pointer::{Pointer, SUFFIX},
    repo::Repo,
    workspace::is_tracking_file,
};

/// Kind of activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    Ingested,
    Trained,
    Tested,
    Registered,
    Event(ledger::Kind),
}

/// A row of the timeline.
#[derive(Clone, Debug)]
pub struct Row {
    /// Time by the writer's clock: RFC 3339, UTC.
    pub when: String,
    pub activity: Activity,
    pub who: String,
    pub subject: String,
    pub environment: Option<String>,
    pub why: Option<String>,
    pub digest: Option<Digest>,
    /// Commit of the row, or the commit of its event.
    pub rev: String,
}

impl Activity {
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

/// Returns the whole timeline, oldest first.
pub fn timeline(repo: &Repo) -> Result<Vec<Row>> {
    let git = &repo.git;
    let versions = registry::versions(git, None)?;
    let commits = commit_rows(git, &versions)?;
    let events = ledger::read(git, ledger::tip(git)?.as_ref())?;
    let mut registrations: Vec<Row> = versions.iter().map(version_row).collect();
    registrations.sort_by(|a, b| a.when.cmp(&b.when));
    Ok(merge(vec![commits, registrations, events.iter().flat_map(event_rows).collect()]))
}

fn version_row(version: &Version) -> Row {
    Row {
        when: version.tag.when.to_text(),
        activity: Activity::Registered,
        who: version.tag.tagger.clone(),
        subject: version.name(),
        environment: None,
        why: None,
        digest: Some(version.package.digest),
        rev: version.tag.rev.to_string(),
    }
}

/// Returns the row of an event; an approval gives a second row for its test report.
fn event_rows(entry: &Entry) -> Vec<Row> {
    let event = &entry.event;
    let digest = |key: &str| event.facts.get(key).and_then(|value| value.as_str()?.parse::<Digest>().ok());
    let row = |activity, digest, why| Row {
        when: event.when.clone(),
        activity,
        who: event.who.clone(),
        subject: event.subject.clone(),
        environment: event.environment.clone(),
        why,
        digest,
        rev: entry.rev.to_string(),
    };
    let reason = Some("report that an approval is based on".into());
    let tested = digest("report").map(|report| row(Activity::Tested, Some(report), reason));
    let package = digest("package").or_else(|| digest("report"));
    tested.into_iter().chain([row(Activity::Event(event.kind), package, event.why.clone())]).collect()
}

/// Returns the rows of commits: data added or changed, and packages and reports that stages produced.
fn commit_rows(git: &Git, versions: &[Version]) -> Result<Vec<Row>> {
    let packages: BTreeSet<&RepoPath> = versions.iter().map(|it| &it.path).collect();
    let mut commits = git.log(&git.tips()?)?;
    commits.reverse();
    let (mut rows, mut known) = (Vec::new(), BTreeMap::new());
    for commit in commits {
        let here = read_facts(git, &commit)?;
        let empty = Vec::new();
        let before: &Vec<Fact> =
            commit.parents.first().and_then(|parent| known.get(parent)).unwrap_or(&empty);
        // A merge adds no content of its own.
        if commit.parents.len() < 2 {
            let added = here.iter().filter(|fact| !before.contains(fact));
            rows.extend(added.filter_map(|fact| commit_row(&commit, fact, &packages)));
        }
        known.insert(commit.rev.clone(), here);
    }
    Ok(rows)
}

/// A tracked path or stage record in a commit.
#[derive(Clone, PartialEq)]
enum Fact {
    Pointer(Pointer),
    Stage(StageId, Box<StageRecord>),
}

/// Reads the pointers and stage records of a commit.
fn read_facts(git: &Git, commit: &Commit) -> Result<Vec<Fact>> {
    let mut facts = Vec::new();
    for file in git.files(&commit.rev, &is_tracking_file)? {
        let bytes = git.read(&commit.rev, &file)?.unwrap_or_default();
        // Unreadable files are skipped here; `mlx status` reports them.
        if let Some(path) = file.without_suffix(SUFFIX) {
            facts.extend(Pointer::parse(path, &bytes).ok().map(Fact::Pointer));
        } else if let Ok(lock) = Lockfile::parse(&file, &bytes) {
            let folder = file.parent().unwrap_or_default();
            let id = |name: &str| StageId::new(&folder, name);
            facts
                .extend(lock.records().map(|(name, record)| Fact::Stage(id(name), Box::new(record.clone()))));
        }
    }
    Ok(facts)
}

/// Returns the row of a fact that a commit added; none if it is of no interest to the timeline.
fn commit_row(commit: &Commit, fact: &Fact, packages: &BTreeSet<&RepoPath>) -> Option<Row> {
    let (activity, subject, digest) = match fact {
        Fact::Pointer(pointer) => (Activity::Ingested, pointer.path.to_text(), pointer.content.digest),
        Fact::Stage(id, record) => {
            let package = record.outputs.iter().find(|(path, _)| packages.contains(path));
            let metrics = record.in_git.iter().next().filter(|_| record.outputs.is_empty());
            match (package, metrics) {
                (Some((path, content)), _) => (Activity::Trained, path.to_text(), content.digest),
                (None, Some((path, content))) if path.bytes().ends_with(b".json") => {
                    (Activity::Tested, format!("{path} by {id}"), content.digest)
                }
                _ => return None,
            }
        }
    };
    Some(Row {
        when: commit.when.to_text(),
        activity,
        who: commit.author.clone(),
        subject,
        environment: None,
        why: Some(commit.summary.clone()),
        digest: Some(digest),
        rev: commit.rev.to_string(),
    })
}

/// Merges lists that each keep their own order, by the time of their first rows; at equal times rows of
/// earlier lists come first.
fn merge(lists: Vec<Vec<Row>>) -> Vec<Row> {
    let mut lists: Vec<VecDeque<Row>> = lists.into_iter().map(Into::into).collect();
    let mut merged = Vec::new();
    loop {
        let heads = lists.iter().enumerate().filter_map(|(at, list)| Some((at, list.front()?)));
        let first = heads.min_by(|a, b| match a.1.when.cmp(&b.1.when) {
            Ordering::Equal => a.0.cmp(&b.0),
            other => other,
        });
        let Some(at) = first.map(|it| it.0) else { return merged };
        merged.extend(lists[at].pop_front());
    }
}
