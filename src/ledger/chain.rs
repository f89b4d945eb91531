//! The chain of event commits: reads and checks it from its tip to its start, and writes new events.

use crate::{
    document::canonical,
    error::{Error, Kind, Result, WithContext},
    git::{Git, Rev, SingleFile},
    ledger::{Event, FORMAT},
    path::RepoPath,
};

/// The ref of the chain's tip.
pub const AUDIT: &str = "refs/mlx/audit";
const FILE: &str = "event.json";

/// An event with its commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub rev: Rev,
    pub event: Event,
}

/// Returns the tip of the local chain.
pub fn tip(git: &Git) -> Result<Option<Rev>> {
    git.resolve_ref(AUDIT)
}

/// Reads all events up to `tip`, oldest first. An edit, a gap or a reordering is an error.
pub fn read(git: &Git, tip: Option<&Rev>) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut here = tip.cloned();
    while let Some(rev) = here {
        let commit = git.commit(&rev)?;
        if commit.parents.len() > 1 {
            return Err(broken(&rev, "it has two parents"));
        }
        found.push(Entry { event: event(git, &rev)?, rev });
        here = commit.parents.into_iter().next();
    }
    found.reverse();
    for (at, entry) in found.iter().enumerate() {
        if entry.event.number != at as u64 + 1 {
            return Err(broken(
                &entry.rev,
                &format!("its number is {}, but it is event {} of the chain", entry.event.number, at + 1),
            ));
        }
    }
    Ok(found)
}

/// Reads and checks the event of a commit.
pub(super) fn event(git: &Git, rev: &Rev) -> Result<Event> {
    let names = git.files(rev, &|_| true)?;
    let file = RepoPath::from_text(FILE)?;
    let bytes = git.read(rev, &file)?.ok_or_else(|| broken(rev, "it contains no event"))?;
    let event: Event = serde_json::from_slice(&bytes).map_err(|error| broken(rev, &error.to_string()))?;
    if event.format != FORMAT {
        return Err(broken(rev, "it was written by a newer mlx"));
    }
    // The canonical text is the only file, so that an event has exactly one encoding.
    if names.len() != 1 || text(&event)?.as_bytes() != bytes {
        return Err(broken(rev, "it was not written by mlx"));
    }
    Ok(event)
}

fn broken(rev: &Rev, why: &str) -> Error {
    Error::corrupt(format!("the audit chain is broken at {}: {why}", rev.short()))
        .hint("compare it with the Git remote's: `git fetch REMOTE refs/mlx/audit`")
}

fn text(event: &Event) -> Result<String> {
    let value = serde_json::to_value(event).map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
    Ok(format!("{}\n", canonical(&value)))
}

/// Creates a commit of this event on top of `tip`; it is not part of the chain until the ref is moved to it.
pub fn append(git: &Git, tip: Option<&Rev>, event: &Event) -> Result<Rev> {
    let message = format!("{} {}\n", event.kind.name(), event.subject);
    let text = text(event)?;
    let single = SingleFile { name: FILE, bytes: text.as_bytes(), message: &message };
    git.commit_single(&single, tip).context(|| "cannot write an event".into())
}

/// Returns true if the chain that ends at `tip` contains the commit `wanted`.
pub fn contains(git: &Git, tip: Option<&Rev>, wanted: &Rev) -> Result<bool> {
    let mut here = tip.cloned();
    while let Some(rev) = here {
        if rev == *wanted {
            return Ok(true);
        }
        here = git.commit(&rev)?.parents.into_iter().next();
    }
    Ok(false)
}
