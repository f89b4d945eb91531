//! The chain itself: read from its end to its start, each link looked at.

use crate::{
    document::canonical,
    error::{Doing, Error, Kind, Result},
    git::{Git, Rev, Single},
    ledger::{Event, FORMAT},
    path::RepoPath,
};

/// The name of the chain's end.
pub const AUDIT: &str = "refs/mlx/audit";
const FILE: &str = "event.json";

/// An event with its commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub rev: Rev,
    pub event: Event,
}

/// The chain's end here.
pub fn tip(git: &Git) -> Result<Option<Rev>> {
    git.tip(AUDIT)
}

/// All events up to `tip`, oldest first. An edit, a gap or a reordering is an error that names the event.
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
                &format!("it says {}, and it is number {}", entry.event.number, at + 1),
            ));
        }
    }
    Ok(found)
}

/// The event of a commit.
pub(super) fn event(git: &Git, rev: &Rev) -> Result<Event> {
    let names = git.files(rev, &|_| true)?;
    let file = RepoPath::from_text(FILE)?;
    let bytes = git.read(rev, &file)?.ok_or_else(|| broken(rev, "it holds no event"))?;
    let event: Event = serde_json::from_slice(&bytes).map_err(|it| broken(rev, &it.to_string()))?;
    if event.format != FORMAT {
        return Err(broken(rev, "it was written by a newer mlx"));
    }
    // One content, one spelling, nothing beside it.
    if names.len() != 1 || text(&event)?.as_bytes() != bytes {
        return Err(broken(rev, "it was written by something else than mlx"));
    }
    Ok(event)
}

fn broken(rev: &Rev, why: &str) -> Error {
    Error::corrupt(format!("the audit chain is broken at {}: {why}", rev.short()))
        .hint("compare it with the Git remote's: `git fetch REMOTE refs/mlx/audit`")
}

fn text(event: &Event) -> Result<String> {
    let value = serde_json::to_value(event).map_err(|it| Error::new(Kind::Internal, it.to_string()))?;
    Ok(format!("{}\n", canonical(&value)))
}

/// A commit of this event on top of the chain's end; the chain does not end there before it is named so.
pub fn append(git: &Git, tip: Option<&Rev>, event: &Event) -> Result<Rev> {
    let message = format!("{} {}\n", event.kind.name(), event.subject);
    let text = text(event)?;
    let single = Single { name: FILE, bytes: text.as_bytes(), message: &message };
    git.commit_single(&single, tip).doing(|| "cannot write an event".into())
}

/// Whether the chain that ends at `tip` holds `wanted`.
pub fn holds(git: &Git, tip: Option<&Rev>, wanted: &Rev) -> Result<bool> {
    let mut here = tip.cloned();
    while let Some(rev) = here {
        if rev == *wanted {
            return Ok(true);
        }
        here = git.commit(&rev)?.parents.into_iter().next();
    }
    Ok(false)
}
