//! What the Git remote holds of ours: brought here, and refused where something was moved, cut off or broken.

use crate::{
    error::{Error, Kind as ErrorKind, Result},
    git::{Git, Listing, Rev, Upstream},
    ledger::{AUDIT, audit_commit, chain::event as event_of, holds, is_mlx_tag, read, tip},
    repo::Repo,
};

/// An event that is being named here.
pub(super) const PENDING: &str = "refs/mlx/pending";

/// How often somebody else may move the same name first.
const MAX_ADVANCE_TRIES: u32 = 5;

/// What is known when an event is made.
pub struct View {
    /// The commit whose policy counts: the tip of the Git remote's default branch, or HEAD without a remote.
    pub policy: Option<Rev>,
    /// The chain's end.
    pub tip: Option<Rev>,
}

/// Looks at the Git remote and brings what it holds of ours: tags, the audit chain, the default branch. Without a
/// Git remote it mends what a killed command left.
pub fn refresh(repo: &Repo) -> Result<View> {
    let git = &repo.git;
    match git.upstream()? {
        Some(upstream) => sync(git, &upstream).map(|it| it.0),
        None => {
            finish_pending(repo)?;
            Ok(View { policy: git.head(), tip: tip(git)? })
        }
    }
}

/// Where it is remembered how far the remote's chain went when it was last seen.
pub(super) fn last_seen_ref(upstream: &Upstream) -> String {
    format!("refs/mlx/remotes/{}/audit", upstream.0)
}

/// Lets a name of the chain's end move on to `rev`; never back. Others here may move it at the same time.
pub(super) fn advance_ref(git: &Git, name: &str, rev: &Rev) -> Result<()> {
    for turn in 0.. {
        let own = git.tip(name)?;
        if own.is_some() && holds(git, own.as_ref(), rev)? {
            return Ok(());
        }
        match git.name_objects(&[(name.to_owned(), rev.to_string(), own)]) {
            Err(error) if turn < MAX_ADVANCE_TRIES && error.kind() == ErrorKind::Conflict => {}
            done => return done,
        }
    }
    unreachable!("the loop ends by returning")
}

/// The end of the remote's chain when it was last seen.
pub fn last_seen(git: &Git, upstream: &Upstream) -> Result<Option<Rev>> {
    git.tip(&last_seen_ref(upstream))
}

/// Brings what the remote holds and we lack, and checks that nothing of ours was moved or cut off there.
pub(super) fn sync(git: &Git, upstream: &Upstream) -> Result<(View, Listing)> {
    let listing = git.listing(upstream, &["HEAD", AUDIT, "refs/tags/*"])?;
    let place = |name: &str| format!("refs/mlx/remotes/{}/{name}", upstream.0);
    let mut wanted = Vec::new();
    for (name, id) in &listing.0 {
        match name.as_str() {
            "HEAD" if !git.has(id) => wanted.push(format!("+HEAD:{}", place("head"))),
            // Nothing is believed of it before it was looked at.
            AUDIT if !git.has(id) => wanted.push(format!("+{AUDIT}:{}", place("incoming"))),
            _ => wanted.extend(wanted_tag(git, upstream, name, id)?),
        }
    }
    git.fetch(upstream, &wanted)?;
    let theirs = listing.0.get(AUDIT).map(|id| git.resolve(id)).transpose()?;
    let known = git.tip(&last_seen_ref(upstream))?;
    if let Some(known) = &known
        && !holds(git, theirs.as_ref(), known)?
    {
        return Err(truncated(upstream));
    }
    fast_forward(git, upstream, theirs.as_ref())?;
    if let Some(theirs) = &theirs {
        advance_ref(git, &last_seen_ref(upstream), theirs)?;
    }
    let policy = listing.0.get("HEAD").map(|id| git.resolve(id)).transpose()?;
    Ok((View { policy, tip: tip(git)? }, listing))
}

fn truncated(upstream: &Upstream) -> Error {
    let error = Error::corrupt(format!(
        "the audit chain at `{}` no longer holds events that it held before",
        upstream.0
    ));
    error.hint(format!(
        "somebody rewrote it, and no event counts until it is whole again: push `{}` back to `{AUDIT}` there",
        last_seen_ref(upstream)
    ))
}

fn wanted_tag(git: &Git, upstream: &Upstream, name: &str, id: &str) -> Result<Option<String>> {
    let Some(short) = name.strip_prefix("refs/tags/").filter(|it| is_mlx_tag(it)) else { return Ok(None) };
    match git.tag_id(short)? {
        None => Ok(Some(format!("{name}:{name}"))),
        Some(own) if own == id => Ok(None),
        Some(_) => {
            let error =
                Error::corrupt(format!("the tag `{short}` here and at `{}` are different", upstream.0));
            Err(error.hint(format!("tags are never moved: if yours is the wrong one, `git tag -d {short}`")))
        }
    }
}

/// Lets the chain here end where the remote's does, if that is a sound continuation.
fn fast_forward(git: &Git, upstream: &Upstream, theirs: Option<&Rev>) -> Result<()> {
    let own = tip(git)?;
    let Some(theirs) = theirs.filter(|it| Some(*it) != own.as_ref()) else { return Ok(()) };
    let ahead = match &own {
        None => true,
        Some(own) => holds(git, Some(theirs), own)?,
    };
    if ahead {
        read(git, Some(theirs)).map_err(|it| rejected_continuation(upstream, it))?;
        return advance_ref(git, AUDIT, theirs);
    }
    if holds(git, own.as_ref(), theirs)? {
        return Ok(());
    }
    let error = Error::new(
        ErrorKind::Conflict,
        format!("the audit chains here and at `{}` went different ways", upstream.0),
    );
    Err(error
        .hint("events made before there was a Git remote stand in the way: `mlx audit --offline` shows them"))
}

fn rejected_continuation(upstream: &Upstream, error: Error) -> Error {
    let message = format!("what `{}` has added to the audit chain is not taken over", upstream.0);
    Error::new(error.kind(), message)
        .because(error)
        .hint(format!("whoever may write there pushes the chain's last sound end to `{AUDIT}`"))
}

/// Finishes what a killed command had begun to name where there is no Git remote. Only what it said it would name
/// is completed, so that a tail which somebody cut off is not taken for that.
pub(super) fn finish_pending(repo: &Repo) -> Result<()> {
    let git = &repo.git;
    if git.tip(PENDING)?.is_none() {
        return Ok(());
    }
    let _lock = repo.lock()?;
    let Some(rev) = git.tip(PENDING)? else { return Ok(()) };
    let (own, event) = (tip(git)?, event_of(git, &rev)?);
    let tag = event.tag.as_deref();
    let tagged = |name: &str| Ok::<_, Error>(git.tags(name)?.iter().any(|it| names_event(&it.message, &rev)));
    if git.commit(&rev)?.parents.first() == own.as_ref() && tag.is_none_or(|it| tagged(it).unwrap_or(false)) {
        git.name_objects(&[(AUDIT.to_owned(), rev.to_string(), own)])?;
    }
    git.forget(PENDING)
}

fn names_event(message: &str, rev: &Rev) -> bool {
    audit_commit(message) == Some(rev.to_string())
}
