//! How an event comes into force: made on top of what the Git remote holds, sent together with its tag, and named
//! here only when it is there. Who comes second is told, looks again, and tries again.
//!
//! Without a Git remote it is in force when it is named here. A crash leaves objects that nothing names, or a tag
//! whose event is not the chain's end yet: the next command that looks completes it.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use crate::{
    error::{Error, Kind as ErrorKind, Result},
    git::{Git, Listing, Pushed, Rev, Signer, Upstream},
    ledger::{AUDIT, Event, FORMAT, Kind, append, holds, tip},
    repo::Repo,
    time::Timestamp,
};

/// How often somebody else may be first.
const TRIES: u32 = 5;
/// Refused so often in a row while nothing moves there, it is the other side's will.
const UNMOVED: u32 = 2;
const PAUSE: Duration = Duration::from_millis(60);

/// What is known when an event is made.
pub struct View {
    /// The commit whose policy counts: the tip of the Git remote's default branch, or HEAD without a remote.
    pub policy: Option<Rev>,
    /// The chain's end.
    pub tip: Option<Rev>,
}

/// An event to be.
pub struct Draft {
    pub kind: Kind,
    pub who: String,
    pub subject: String,
    pub environment: Option<String>,
    pub why: Option<String>,
    pub facts: BTreeMap<String, Value>,
    pub tag: Option<TagDraft>,
}

/// A tag to be, on `rev`. `{audit}` in its message stands for the event's commit.
pub struct TagDraft {
    pub name: String,
    pub rev: Rev,
    pub message: String,
    pub signer: Option<Signer>,
}

/// What came into force.
#[derive(Clone, Debug)]
pub struct Published {
    pub event: Event,
    pub rev: Rev,
    /// The Git remote it was sent to.
    pub upstream: Option<String>,
}

/// Looks at the Git remote and brings what it holds of ours: tags, the audit chain, the default branch.
pub fn refresh(repo: &Repo) -> Result<View> {
    let git = &repo.git;
    match git.upstream() {
        Some(upstream) => look(git, &upstream).map(|it| it.0),
        None => Ok(View { policy: git.head(), tip: tip(git)? }),
    }
}

/// Makes an event and sees to it that it is in force. `make` is asked again after somebody else was first, with
/// what is known then: it checks everything that has to hold.
pub fn publish(repo: &Repo, make: &dyn Fn(&View) -> Result<Draft>) -> Result<Published> {
    let (git, mut refusal) = (&repo.git, String::new());
    let upstream = git.upstream();
    if upstream.is_none() {
        complete(repo)?;
    }
    let (mut before, mut unmoved): (Option<Listing>, u32) = (None, 0);
    for turn in 0..TRIES {
        // Who was first may be at it still.
        std::thread::sleep(PAUSE * turn);
        let (view, listing) = match &upstream {
            Some(upstream) => look(git, upstream)?,
            None => (refresh(repo)?, Listing::default()),
        };
        unmoved = if before.as_ref() == Some(&listing) { unmoved + 1 } else { 0 };
        if unmoved == UNMOVED {
            let error =
                Error::new(ErrorKind::Denied, format!("the Git remote takes no events from you: {refusal}"));
            return Err(
                error.hint("nothing is in force; ask for the right to push `refs/mlx/audit` and tags there")
            );
        }
        let draft = make(&view)?;
        let (event, rev, tag) = write(git, &view, draft)?;
        let Some(upstream) = &upstream else {
            let _lock = repo.lock()?;
            if tip(git)? != view.tip {
                continue;
            }
            name_here(git, &view, &rev, tag.as_ref())?;
            return Ok(Published { event, rev, upstream: None });
        };
        let mut what = vec![(rev.to_string(), AUDIT.to_owned())];
        what.extend(tag.iter().map(|it| (it.1.clone(), format!("refs/tags/{}", it.0))));
        what.extend(unsent(git, &listing)?);
        match git.push(upstream, &what)? {
            Pushed::Done => {
                let _lock = repo.lock()?;
                // If this fails the next look brings it.
                drop(name_here(git, &View { tip: tip(git)?, ..view }, &rev, tag.as_ref()));
                return Ok(Published { event, rev, upstream: Some(upstream.0.clone()) });
            }
            Pushed::Refused(said) => (refusal, before) = (said, Some(listing)),
        }
    }
    let error = Error::new(ErrorKind::Conflict, format!("others were first {TRIES} times: {refusal}"));
    Err(error.hint("nothing is in force; run the same command again"))
}

/// The event's commit and, where there is one, its tag: name and object.
fn write(git: &Git, view: &View, draft: Draft) -> Result<(Event, Rev, Option<(String, String)>)> {
    let number = view.tip.as_ref().map_or(Ok(0), |it| number_of(git, it))? + 1;
    let event = Event {
        format: FORMAT,
        number,
        kind: draft.kind,
        when: Timestamp::now().to_text(),
        who: draft.who,
        subject: draft.subject,
        environment: draft.environment,
        why: draft.why,
        tag: draft.tag.as_ref().map(|it| it.name.clone()),
        facts: draft.facts,
    };
    let rev = append(git, view.tip.as_ref(), &event)?;
    let tag = match draft.tag {
        None => None,
        Some(it) => {
            let message = it.message.replace("{audit}", &rev.to_string());
            Some((it.name.clone(), git.write_tag(&it.name, &it.rev, &message, it.signer.as_ref())?))
        }
    };
    Ok((event, rev, tag))
}

fn number_of(git: &Git, tip: &Rev) -> Result<u64> {
    Ok(crate::ledger::read(git, Some(tip))?.len() as u64)
}

/// Names the tag and the chain's new end at once; a crash in the middle of that is mended by [`complete`].
fn name_here(git: &Git, view: &View, rev: &Rev, tag: Option<&(String, String)>) -> Result<()> {
    let tag = tag.map(|(name, id)| (format!("refs/tags/{name}"), id.clone()));
    let mut names = vec![(AUDIT.to_owned(), rev.to_string(), view.tip.clone())];
    names.extend(tag.map(|(name, id)| (name, id, None)));
    git.name_objects(&names)
}

/// Tags of ours that the remote lacks.
fn unsent(git: &Git, listing: &Listing) -> Result<Vec<(String, String)>> {
    let all = git.tags("")?.into_iter().filter(|it| is_ours(&it.name));
    let rows = all.map(|it| (it.id, format!("refs/tags/{}", it.name)));
    Ok(rows.filter(|it| !listing.0.contains_key(&it.1)).collect())
}

/// Whether a tag has the shape of a version, a release or an approval.
pub fn is_ours(name: &str) -> bool {
    name.contains("@v") || name.contains('#') || name.starts_with("mlx/")
}

/// Brings what the remote holds and we lack, and checks that nothing of ours was moved or cut off there.
fn look(git: &Git, upstream: &Upstream) -> Result<(View, Listing)> {
    let listing = git.listing(upstream, &["HEAD", AUDIT, "refs/tags/*"])?;
    let place = |name: &str| format!("refs/mlx/remotes/{}/{name}", upstream.0);
    let mut wanted = Vec::new();
    for (name, id) in &listing.0 {
        match name.as_str() {
            "HEAD" if !git.has(id) => wanted.push(format!("+HEAD:{}", place("head"))),
            AUDIT if git.tip(&place("audit"))?.is_none_or(|it| it.to_string() != *id) => {
                wanted.push(format!("{AUDIT}:{}", place("audit")));
            }
            _ => wanted.extend(wanted_tag(git, upstream, name, id)?),
        }
    }
    bring(git, upstream, &wanted)?;
    let theirs = listing.0.get(AUDIT).map(|id| git.resolve(id)).transpose()?;
    if theirs.is_none() && git.tip(&place("audit"))?.is_some() {
        return Err(cut_off(upstream));
    }
    catch_up(git, upstream, theirs.as_ref())?;
    let policy = listing.0.get("HEAD").map(|id| git.resolve(id)).transpose()?;
    Ok((View { policy, tip: tip(git)? }, listing))
}

fn bring(git: &Git, upstream: &Upstream, wanted: &[String]) -> Result<()> {
    git.fetch(upstream, wanted).map_err(|error| {
        // The chain's own name is fetched without force: what was there before has to be in it still.
        let moved = error.full_text().contains("non-fast-forward") || error.full_text().contains("rejected");
        if moved { cut_off(upstream) } else { error }
    })
}

fn cut_off(upstream: &Upstream) -> Error {
    let error = Error::corrupt(format!(
        "the audit chain at `{}` no longer holds events that it held before",
        upstream.0
    ));
    error.hint("somebody rewrote it: `mlx audit --verify` says what is missing")
}

fn wanted_tag(git: &Git, upstream: &Upstream, name: &str, id: &str) -> Result<Option<String>> {
    let Some(short) = name.strip_prefix("refs/tags/").filter(|it| is_ours(it)) else { return Ok(None) };
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

/// Lets the chain here end where the remote's does, if that is a continuation.
fn catch_up(git: &Git, upstream: &Upstream, theirs: Option<&Rev>) -> Result<()> {
    let own = tip(git)?;
    let Some(theirs) = theirs.filter(|it| Some(*it) != own.as_ref()) else { return Ok(()) };
    let ahead = match &own {
        None => true,
        Some(own) => holds(git, Some(theirs), own)?,
    };
    if ahead {
        return git.name_objects(&[(AUDIT.to_owned(), theirs.to_string(), own)]);
    }
    if holds(git, own.as_ref(), theirs)? {
        return Ok(());
    }
    let error = Error::new(
        ErrorKind::Conflict,
        format!("the audit chains here and at `{}` went different ways", upstream.0),
    );
    Err(error.hint("events made before there was a Git remote stand in the way: `mlx audit` shows them"))
}

/// Mends what a killed command left where there is no Git remote: a tag that names an event which continues the
/// chain.
fn complete(repo: &Repo) -> Result<()> {
    let git = &repo.git;
    let _lock = repo.lock()?;
    let own = tip(git)?;
    for tag in git.tags("")?.into_iter().filter(|it| is_ours(&it.name)) {
        let Some(rev) = audit_of(&tag.message).and_then(|it| git.resolve(&it).ok()) else { continue };
        if git.commit(&rev)?.parents.first() == own.as_ref() && own.as_ref() != Some(&rev) {
            return git.name_objects(&[(AUDIT.to_owned(), rev.to_string(), own)]);
        }
    }
    Ok(())
}

/// The event's commit that a tag's message names.
pub fn audit_of(message: &str) -> Option<String> {
    let line = message.lines().find_map(|it| it.strip_prefix("audit = \""))?;
    line.strip_suffix('"').map(str::to_owned)
}
