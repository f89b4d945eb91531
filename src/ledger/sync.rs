//! Syncs the ledger with the Git remote: fetches mlx's tags and the audit chain, and validates both.
//!
//! Moved tags and a truncated, diverged or invalid chain are errors.

use crate::{
    error::{Error, Kind as ErrorKind, Result},
    git::{Git, RefListing, RefToFetch, Rev, Upstream},
    ledger::{AUDIT, audit_commit, chain::event as event_of, contains, is_mlx_tag, read, tip},
    repo::Repo,
};

/// The ref of an event that is being published without a Git remote.
pub(super) const PENDING: &str = "refs/mlx/pending";

/// Tries before giving up when other processes move the same ref first.
const MAX_ADVANCE_TRIES: u32 = 5;

/// The state that a new event builds on.
pub struct LedgerState {
    /// The commit whose policy applies: the tip of the Git remote's default branch, or HEAD without a remote.
    pub policy: Option<Rev>,
    /// The tip of the chain.
    pub tip: Option<Rev>,
}

/// Fetches tags, the audit chain and the default branch from the Git remote, and returns the state. Without a
/// Git remote, completes what a killed command left.
pub fn refresh(repo: &Repo) -> Result<LedgerState> {
    let git = &repo.git;
    match git.upstream()? {
        Some(upstream) => sync(git, &upstream).map(|synced| synced.0),
        None => {
            finish_pending(repo)?;
            Ok(LedgerState { policy: git.head(), tip: tip(git)? })
        }
    }
}

/// Returns the ref that records the tip of the remote's chain when it was last fetched.
pub(super) fn last_seen_ref(upstream: &Upstream) -> String {
    format!("refs/mlx/remotes/{}/audit", upstream.0)
}

/// Moves a ref of the chain forward to `rev`, never back. Other processes may move it at the same time.
pub(super) fn advance_ref(git: &Git, name: &str, rev: &Rev) -> Result<()> {
    for turn in 0.. {
        let own = git.resolve_ref(name)?;
        if own.is_some() && contains(git, own.as_ref(), rev)? {
            return Ok(());
        }
        match git.update_refs(&[(name.to_owned(), rev.to_string(), own)]) {
            Err(error) if turn < MAX_ADVANCE_TRIES && error.kind() == ErrorKind::Conflict => {}
            done => return done,
        }
    }
    unreachable!("the loop ends by returning")
}

/// Returns the tip of the remote's chain when it was last fetched.
pub fn last_seen_tip(git: &Git, upstream: &Upstream) -> Result<Option<Rev>> {
    git.resolve_ref(&last_seen_ref(upstream))
}

/// Fetches what the repository lacks, and checks that no tag was moved and no event removed remotely.
pub(super) fn sync(git: &Git, upstream: &Upstream) -> Result<(LedgerState, RefListing)> {
    let listing = git.list_refs(upstream, &["HEAD", AUDIT, "refs/tags/*"])?;
    let mut wanted = Vec::new();
    for (name, id) in &listing.0 {
        let to_fetch =
            |local: String, may_move| RefToFetch { name: name.clone(), id: id.clone(), local, may_move };
        let tracked = |local: &str| to_fetch(format!("refs/mlx/remotes/{}/{local}", upstream.0), true);
        match name.as_str() {
            "HEAD" if !git.has_object(id) => wanted.push(tracked("head")),
            // Kept apart from the local chain until it is checked.
            AUDIT if !git.has_object(id) => wanted.push(tracked("incoming")),
            _ if is_new_tag(git, upstream, name, id)? => wanted.push(to_fetch(name.clone(), false)),
            _ => {}
        }
    }
    git.fetch(upstream, &wanted)?;
    let theirs = listing.0.get(AUDIT).map(|id| git.resolve(id)).transpose()?;
    let known = git.resolve_ref(&last_seen_ref(upstream))?;
    if let Some(known) = &known
        && !contains(git, theirs.as_ref(), known)?
    {
        return Err(truncated(upstream));
    }
    fast_forward(git, upstream, theirs.as_ref())?;
    if let Some(theirs) = &theirs {
        advance_ref(git, &last_seen_ref(upstream), theirs)?;
    }
    let policy = listing.0.get("HEAD").map(|id| git.resolve(id)).transpose()?;
    Ok((LedgerState { policy, tip: tip(git)? }, listing))
}

fn truncated(upstream: &Upstream) -> Error {
    let error = Error::corrupt(format!(
        "the audit chain at `{}` no longer holds events that it held before",
        upstream.0
    ));
    error.hint(format!(
        "it was rewritten, and no event counts until it is restored: push `{}` back to `{AUDIT}` there",
        last_seen_ref(upstream)
    ))
}

/// Returns true if this ref of the remote is a tag of mlx that is not here. One that differs is an error.
fn is_new_tag(git: &Git, upstream: &Upstream, name: &str, id: &str) -> Result<bool> {
    let Some(short) = name.strip_prefix("refs/tags/").filter(|it| is_mlx_tag(it)) else { return Ok(false) };
    match git.tag_id(short)? {
        None => Ok(true),
        Some(own) if own == id => Ok(false),
        Some(_) => {
            let error =
                Error::corrupt(format!("the tag `{short}` here differs from the one at `{}`", upstream.0));
            Err(error.hint(format!(
                "tags are never moved: if yours is wrong, delete it with `git tag -d {short}`"
            )))
        }
    }
}

/// Moves the local tip to the remote's if the remote's chain is a valid continuation of the local one.
fn fast_forward(git: &Git, upstream: &Upstream, theirs: Option<&Rev>) -> Result<()> {
    let own = tip(git)?;
    let Some(theirs) = theirs.filter(|it| Some(*it) != own.as_ref()) else { return Ok(()) };
    let ahead = match &own {
        None => true,
        Some(own) => contains(git, Some(theirs), own)?,
    };
    if ahead {
        read(git, Some(theirs)).map_err(|error| rejected_continuation(upstream, error))?;
        return advance_ref(git, AUDIT, theirs);
    }
    if contains(git, own.as_ref(), theirs)? {
        return Ok(());
    }
    let error = Error::new(
        ErrorKind::Conflict,
        format!("the audit chains here and at `{}` have diverged", upstream.0),
    );
    Err(error.hint(
        "events recorded here before there was a Git remote conflict: `mlx audit --offline` lists them",
    ))
}

fn rejected_continuation(upstream: &Upstream, error: Error) -> Error {
    let message = format!("the new part of the audit chain at `{}` is invalid", upstream.0);
    Error::new(error.kind(), message)
        .with_source(error)
        .hint(format!("ask someone with push rights to push the last valid tip of the chain to `{AUDIT}`"))
}

/// Completes the publication that a killed command had begun without a Git remote. Only the pending event
/// itself is completed, so that a truncated chain is not taken for an unfinished one.
pub(super) fn finish_pending(repo: &Repo) -> Result<()> {
    let git = &repo.git;
    if git.resolve_ref(PENDING)?.is_none() {
        return Ok(());
    }
    let _lock = repo.lock()?;
    let Some(rev) = git.resolve_ref(PENDING)? else { return Ok(()) };
    let (own, event) = (tip(git)?, event_of(git, &rev)?);
    let tag = event.tag.as_deref();
    let tagged =
        |name: &str| Ok::<_, Error>(git.tags(name)?.iter().any(|tag| names_event(&tag.message, &rev)));
    if git.commit(&rev)?.parents.first() == own.as_ref()
        && tag.is_none_or(|name| tagged(name).unwrap_or(false))
    {
        git.update_refs(&[(AUDIT.to_owned(), rev.to_string(), own)])?;
    }
    git.delete_ref(PENDING)
}

fn names_event(message: &str, rev: &Rev) -> bool {
    audit_commit(message) == Some(rev.to_string())
}
