//! How an event comes into force: made on top of what the Git remote holds, sent together with its tag, and named
//! here only when it is there. Who comes second is told, looks again, and tries again.
//!
//! Without a Git remote it is in force when it is named here. A crash leaves objects that nothing names, or a tag
//! whose event is not the chain's end yet: the next command that looks completes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;

use crate::{
    error::{Error, Kind as ErrorKind, Result},
    git::{Git, Key, Listing, Pushed, Rev, Signer, Upstream},
    ledger::{
        AUDIT, Event, FORMAT, Kind, View, append,
        chain::event as event_of,
        holds, is_mlx_tag, read,
        sync::{PENDING, advance_ref, finish_pending, last_seen_ref, sync},
        tip,
    },
    repo::Repo,
    time::Timestamp,
};

/// How often somebody else may be first.
const MAX_TRIES: u32 = 5;
/// Refused so often in a row while nothing moves there, it is the other side's will.
const MAX_UNMOVED_REFUSALS: u32 = 2;
const RETRY_DELAY: Duration = Duration::from_millis(60);

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
    pub signed: Option<Signed>,
}

/// Who has to have signed: a signature that would not count is not sent.
pub struct Signed {
    pub signer: Signer,
    pub person: String,
    pub keys: Vec<Key>,
}

/// An event and its tag as objects that nothing names yet.
struct PreparedEvent {
    event: Event,
    rev: Rev,
    /// Name and object.
    tag: Option<(String, String)>,
}

/// What came into force.
#[derive(Clone, Debug)]
pub struct Published {
    pub event: Event,
    pub rev: Rev,
    /// The Git remote it was sent to.
    pub upstream: Option<String>,
}

/// Makes an event and sees to it that it is in force. `make` is asked again after somebody else was first, with
/// what is known then: it checks everything that has to hold.
pub fn publish(repo: &Repo, draft: &dyn Fn(&View) -> Result<Draft>) -> Result<Published> {
    match repo.git.upstream()? {
        Some(upstream) => publish_to_remote(repo, &upstream, draft),
        None => publish_local(repo, draft),
    }
}

fn publish_local(repo: &Repo, draft: &dyn Fn(&View) -> Result<Draft>) -> Result<Published> {
    let git = &repo.git;
    for _ in 0..MAX_TRIES {
        finish_pending(repo)?;
        let view = View { policy: git.head(), tip: tip(git)? };
        let prepared = prepare(repo, &view, draft(&view)?)?;
        let _lock = repo.lock()?;
        if tip(git)? == view.tip {
            // What is killed in between is completed by the next command, or was nothing yet.
            git.name_objects(&[(PENDING.to_owned(), prepared.rev.to_string(), git.tip(PENDING)?)])?;
            create_tag_ref(git, prepared.tag.as_ref())?;
            git.name_objects(&[(AUDIT.to_owned(), prepared.rev.to_string(), view.tip)])?;
            git.forget(PENDING)?;
            return Ok(Published { event: prepared.event, rev: prepared.rev, upstream: None });
        }
    }
    Err(lost_race("others write here, too"))
}

fn publish_to_remote(
    repo: &Repo,
    upstream: &Upstream,
    draft: &dyn Fn(&View) -> Result<Draft>,
) -> Result<Published> {
    let (git, mut refusal) = (&repo.git, String::new());
    let (mut before, mut unmoved): (Option<Listing>, u32) = (None, 0);
    let mut sent: Option<PreparedEvent> = None;
    for turn in 0..MAX_TRIES {
        // Who was first may be at it still.
        std::thread::sleep(RETRY_DELAY * turn);
        let (view, listing) = sync(git, upstream)?;
        if let Some(it) = sent.take_if(|it| holds(git, view.tip.as_ref(), &it.rev).unwrap_or(false)) {
            // It had arrived, and only the answer was lost.
            return Ok(Published { event: it.event, rev: it.rev, upstream: Some(upstream.0.clone()) });
        }
        unmoved = if before.as_ref() == Some(&listing) { unmoved + 1 } else { 0 };
        if unmoved == MAX_UNMOVED_REFUSALS {
            let error =
                Error::new(ErrorKind::Denied, format!("the Git remote takes no events from you: {refusal}"));
            return Err(
                error.hint("nothing is in force; ask for the right to push `refs/mlx/audit` and tags there")
            );
        }
        let prepared = prepare(repo, &view, draft(&view)?)?;
        match send(repo, upstream, &listing, &prepared)? {
            Pushed::Done => {
                let _lock = repo.lock()?;
                // What fails here the next look brings.
                drop(create_tag_ref(git, prepared.tag.as_ref()));
                drop(advance_ref(git, AUDIT, &prepared.rev));
                drop(advance_ref(git, &last_seen_ref(upstream), &prepared.rev));
                let upstream = Some(upstream.0.clone());
                return Ok(Published { event: prepared.event, rev: prepared.rev, upstream });
            }
            Pushed::Refused(said) => (refusal, before, sent) = (said, Some(listing), Some(prepared)),
        }
    }
    Err(lost_race(&refusal))
}

fn lost_race(why: &str) -> Error {
    let error = Error::new(ErrorKind::Conflict, format!("others were first {MAX_TRIES} times: {why}"));
    error.hint("nothing is in force; run the same command again")
}

/// Pushes an event; where the answer is lost, a second look says whether it arrived.
fn send(repo: &Repo, upstream: &Upstream, listing: &Listing, prepared: &PreparedEvent) -> Result<Pushed> {
    let git = &repo.git;
    let mut what = vec![(prepared.rev.to_string(), AUDIT.to_owned())];
    what.extend(prepared.tag.iter().map(|it| (it.1.clone(), format!("refs/tags/{}", it.0))));
    what.extend(missing_tags(git, listing, &prepared.rev)?);
    let error = match git.push(upstream, &what) {
        Err(error) if error.kind() == ErrorKind::Unavailable => error,
        other => return other,
    };
    match sync(git, upstream) {
        Ok((view, _)) if holds(git, view.tip.as_ref(), &prepared.rev)? => Ok(Pushed::Done),
        Ok(_) => Err(error),
        Err(_) => Err(error.hint(
            "nobody knows whether it arrived: when the remote is there, look with `mlx audit` before you repeat it",
        )),
    }
}

/// The event's commit and, where there is one, its tag.
fn prepare(repo: &Repo, view: &View, draft: Draft) -> Result<PreparedEvent> {
    let git = &repo.git;
    if let Some(tag) = &draft.tag
        && git.tag_id(&tag.name)?.is_some()
    {
        let error = Error::new(
            ErrorKind::Conflict,
            format!("the tag `{}` is there already, and not on the record", tag.name),
        );
        return Err(error.hint(format!(
            "it is none of mlx's making: remove it here (`git tag -d {0}`) and at the Git remote (`git push REMOTE :refs/tags/{0}`)",
            tag.name
        )));
    }
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
    let tag = draft.tag.map(|it| write_tag(repo, &it, &rev)).transpose()?;
    Ok(PreparedEvent { event, rev, tag })
}

fn write_tag(repo: &Repo, draft: &TagDraft, event: &Rev) -> Result<(String, String)> {
    let git = &repo.git;
    let message = draft.message.replacen("audit = \"{audit}\"", &format!("audit = \"{event}\""), 1);
    let signer = draft.signed.as_ref().map(|it| &it.signer);
    let id = git.write_tag(&draft.name, &draft.rev, &message, signer)?;
    if let Some(Signed { person, keys, .. }) = &draft.signed
        && !git.is_signed_by(&repo.private, &git.tag_bytes(&id)?, person, keys)?
    {
        let message = format!("what you signed is not signed by a key that the policy lists for `{person}`");
        return Err(Error::new(ErrorKind::Denied, message).hint(
            "`git config user.signingKey` names your key; the policy's [people] lists those that count",
        ));
    }
    Ok((draft.name.clone(), id))
}

fn number_of(git: &Git, tip: &Rev) -> Result<u64> {
    Ok(event_of(git, tip)?.number)
}

fn create_tag_ref(git: &Git, tag: Option<&(String, String)>) -> Result<()> {
    let Some((name, id)) = tag else { return Ok(()) };
    git.name_objects(&[(format!("refs/tags/{name}"), id.clone(), None)])
}

/// What the chain names and the remote lacks: tags of events, and versions they speak of. Nothing else of the
/// user's goes anywhere.
fn missing_tags(git: &Git, listing: &Listing, rev: &Rev) -> Result<Vec<(String, String)>> {
    let events = read(git, Some(rev))?.into_iter().map(|it| it.event);
    let named: BTreeSet<String> = events.flat_map(|it| [it.tag, Some(it.subject)]).flatten().collect();
    let all = git.tags("")?.into_iter().filter(|it| is_mlx_tag(&it.name) && named.contains(&it.name));
    let rows = all.map(|it| (it.id, format!("refs/tags/{}", it.name)));
    Ok(rows.filter(|it| !listing.0.contains_key(&it.1)).collect())
}
