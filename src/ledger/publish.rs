//! Publishes audit events, with their tags, to the Git remote.
//!
//! An event is created on top of the remote's chain and pushed together with its tag; the local refs are
//! updated only after the push. If another writer was first, it syncs and tries again.
//!
//! Without a Git remote an event counts once the local refs name it. A crash leaves unreferenced objects, or
//! a tag whose event is not the tip yet: the next command that syncs completes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;

use crate::{
    error::{Error, Kind as ErrorKind, Result},
    git::{Git, Key, PushOutcome, RefListing, Rev, Signer, Upstream},
    ledger::{
        AUDIT, Event, FORMAT, Kind, LedgerState, append,
        chain::event as event_of,
        contains, is_mlx_tag, read,
        sync::{PENDING, advance_ref, finish_pending, last_seen_ref, sync},
        tip,
    },
    repo::Repo,
    time::Timestamp,
};

/// Tries before giving up when other processes publish first.
const MAX_TRIES: u32 = 5;
/// Consecutive refusals by an unchanged remote that count as a denial.
const MAX_UNMOVED_REFUSALS: u32 = 2;
const RETRY_DELAY: Duration = Duration::from_millis(60);

/// Contents of an event that is to be published.
pub struct Draft {
    pub kind: Kind,
    pub who: String,
    pub subject: String,
    pub environment: Option<String>,
    pub why: Option<String>,
    pub facts: BTreeMap<String, Value>,
    pub tag: Option<TagDraft>,
}

/// A tag to be created on `rev`. `{audit}` in its message is replaced by the event's commit.
pub struct TagDraft {
    pub name: String,
    pub rev: Rev,
    pub message: String,
    pub signed: Option<RequiredSignature>,
}

/// The signature that a tag needs: one that the policy would not accept is not sent.
pub struct RequiredSignature {
    pub signer: Signer,
    pub person: String,
    pub keys: Vec<Key>,
}

/// An event and its tag as Git objects without a ref.
struct PreparedEvent {
    event: Event,
    rev: Rev,
    /// Name and object id of the tag.
    tag: Option<(String, String)>,
}

/// A published event.
#[derive(Clone, Debug)]
pub struct Published {
    pub event: Event,
    pub rev: Rev,
    /// Name of the Git remote it was pushed to.
    pub upstream: Option<String>,
}

/// Creates and publishes an event. `draft` is called again after another process was first, with the new
/// state, and has to check all conditions each time.
pub fn publish(repo: &Repo, draft: &dyn Fn(&LedgerState) -> Result<Draft>) -> Result<Published> {
    match repo.git.upstream()? {
        Some(upstream) => publish_to_remote(repo, &upstream, draft),
        None => publish_local(repo, draft),
    }
}

fn publish_local(repo: &Repo, draft: &dyn Fn(&LedgerState) -> Result<Draft>) -> Result<Published> {
    let git = &repo.git;
    for _ in 0..MAX_TRIES {
        finish_pending(repo)?;
        let view = LedgerState { policy: git.head(), tip: tip(git)? };
        let prepared = prepare(repo, &view, draft(&view)?)?;
        let _lock = repo.lock()?;
        if tip(git)? == view.tip {
            // If killed in between, the next command completes the event, or nothing has happened yet.
            git.update_refs(&[(PENDING.to_owned(), prepared.rev.to_string(), git.resolve_ref(PENDING)?)])?;
            create_tag_ref(git, prepared.tag.as_ref())?;
            git.update_refs(&[(AUDIT.to_owned(), prepared.rev.to_string(), view.tip)])?;
            git.delete_ref(PENDING)?;
            return Ok(Published { event: prepared.event, rev: prepared.rev, upstream: None });
        }
    }
    Err(lost_race("other processes are writing to this repository"))
}

fn publish_to_remote(
    repo: &Repo,
    upstream: &Upstream,
    draft: &dyn Fn(&LedgerState) -> Result<Draft>,
) -> Result<Published> {
    let (git, mut refusal) = (&repo.git, String::new());
    let (mut before, mut unmoved): (Option<RefListing>, u32) = (None, 0);
    let mut sent: Option<PreparedEvent> = None;
    for turn in 0..MAX_TRIES {
        // The process that was first may still be at work.
        std::thread::sleep(RETRY_DELAY * turn);
        let (view, listing) = sync(git, upstream)?;
        let arrived =
            |event: &mut PreparedEvent| contains(git, view.tip.as_ref(), &event.rev).unwrap_or(false);
        if let Some(prepared) = sent.take_if(arrived) {
            // It had arrived, and only the answer was lost.
            let upstream = Some(upstream.0.clone());
            return Ok(Published { event: prepared.event, rev: prepared.rev, upstream });
        }
        unmoved = if before.as_ref() == Some(&listing) { unmoved + 1 } else { 0 };
        if unmoved == MAX_UNMOVED_REFUSALS {
            let error =
                Error::new(ErrorKind::Denied, format!("the Git remote refuses your events: {refusal}"));
            return Err(
                error.hint("nothing was recorded; ask for the right to push `refs/mlx/audit` and tags there")
            );
        }
        let prepared = prepare(repo, &view, draft(&view)?)?;
        match send(repo, upstream, &listing, &prepared)? {
            PushOutcome::Done => {
                let _lock = repo.lock()?;
                // The next sync makes up for what fails here.
                drop(create_tag_ref(git, prepared.tag.as_ref()));
                drop(advance_ref(git, AUDIT, &prepared.rev));
                drop(advance_ref(git, &last_seen_ref(upstream), &prepared.rev));
                let upstream = Some(upstream.0.clone());
                return Ok(Published { event: prepared.event, rev: prepared.rev, upstream });
            }
            PushOutcome::Rejected(reason) => {
                (refusal, before, sent) = (reason, Some(listing), Some(prepared));
            }
        }
    }
    Err(lost_race(&refusal))
}

fn lost_race(why: &str) -> Error {
    let error = Error::new(ErrorKind::Conflict, format!("other writers were first {MAX_TRIES} times: {why}"));
    error.hint("nothing was recorded; run the same command again")
}

/// Pushes an event; if the answer is lost, syncs to find out whether it arrived.
fn send(
    repo: &Repo,
    upstream: &Upstream,
    listing: &RefListing,
    prepared: &PreparedEvent,
) -> Result<PushOutcome> {
    let git = &repo.git;
    let mut refs = vec![(prepared.rev.to_string(), AUDIT.to_owned())];
    refs.extend(prepared.tag.iter().map(|(name, id)| (id.clone(), format!("refs/tags/{name}"))));
    refs.extend(missing_tags(git, listing, &prepared.rev)?);
    let error = match git.push(upstream, &refs) {
        Err(error) if error.kind() == ErrorKind::Unavailable => error,
        other => return other,
    };
    match sync(git, upstream) {
        Ok((view, _)) if contains(git, view.tip.as_ref(), &prepared.rev)? => Ok(PushOutcome::Done),
        Ok(_) => Err(error),
        Err(_) => Err(error.hint(
"it may or may not have arrived: check with `mlx audit` when the remote is available, before you repeat it",
        )),
    }
}

/// Writes the event's commit and its tag, if any, as objects without a ref.
fn prepare(repo: &Repo, view: &LedgerState, draft: Draft) -> Result<PreparedEvent> {
    let git = &repo.git;
    if let Some(tag) = &draft.tag
        && git.tag_id(&tag.name)?.is_some()
    {
        let error = Error::new(
            ErrorKind::Conflict,
            format!("the tag `{}` already exists, but no audit event names it", tag.name),
        );
        return Err(error.hint(format!(
            "mlx did not create it: remove it here (`git tag -d {0}`) and at the Git remote (`git push \
            REMOTE :refs/tags/{0}`)",
            tag.name
        )));
    }
    let number = view.tip.as_ref().map_or(Ok(0), |tip| number_of(git, tip))? + 1;
    let event = Event {
        format: FORMAT,
        number,
        kind: draft.kind,
        when: Timestamp::now().to_text(),
        who: draft.who,
        subject: draft.subject,
        environment: draft.environment,
        why: draft.why,
        tag: draft.tag.as_ref().map(|tag| tag.name.clone()),
        facts: draft.facts,
    };
    let rev = append(git, view.tip.as_ref(), &event)?;
    let tag = draft.tag.map(|tag| write_tag(repo, &tag, &rev)).transpose()?;
    Ok(PreparedEvent { event, rev, tag })
}

fn write_tag(repo: &Repo, draft: &TagDraft, event: &Rev) -> Result<(String, String)> {
    let git = &repo.git;
    let message = draft.message.replacen("audit = \"{audit}\"", &format!("audit = \"{event}\""), 1);
    let signer = draft.signed.as_ref().map(|signed| &signed.signer);
    let id = git.write_tag(&draft.name, &draft.rev, &message, signer)?;
    if let Some(RequiredSignature { person, keys, .. }) = &draft.signed
        && !git.is_signed_by(&repo.private, &git.tag_bytes(&id)?, person, keys)?
    {
        let message = format!("the tag is not signed by a key that the policy lists for `{person}`");
        return Err(Error::new(ErrorKind::Denied, message).hint(
            "`git config user.signingKey` names your key; [people] in the policy lists the accepted ones",
        ));
    }
    Ok((draft.name.clone(), id))
}

fn number_of(git: &Git, tip: &Rev) -> Result<u64> {
    Ok(event_of(git, tip)?.number)
}

fn create_tag_ref(git: &Git, tag: Option<&(String, String)>) -> Result<()> {
    let Some((name, id)) = tag else { return Ok(()) };
    git.update_refs(&[(format!("refs/tags/{name}"), id.clone(), None)])
}

/// Returns the tags that the chain names and the remote lacks: tags of events, and versions they concern. No
/// other tag is ever pushed.
fn missing_tags(git: &Git, listing: &RefListing, rev: &Rev) -> Result<Vec<(String, String)>> {
    let events = read(git, Some(rev))?.into_iter().map(|entry| entry.event);
    let named: BTreeSet<String> =
        events.flat_map(|event| [event.tag, Some(event.subject)]).flatten().collect();
    let tags = git.tags("")?.into_iter().filter(|tag| is_mlx_tag(&tag.name) && named.contains(&tag.name));
    let refs = tags.map(|tag| (tag.id, format!("refs/tags/{}", tag.name)));
    Ok(refs.filter(|(_, name)| !listing.0.contains_key(name)).collect())
}
