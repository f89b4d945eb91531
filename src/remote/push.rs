//! Pushes the objects that the remote lacks, each after all that it names.
//!
//! Packs become visible in the order in which they are filled, so that a push that stops at any moment leaves
//! no tree or record at the remote without what it names.

use std::collections::{BTreeSet, HashSet};

use crate::{
    digest::Digest,
    error::{Error, Result},
    progress::{Event, Progress},
    remote::{
        Access, Remote, Wants,
        catalog::{Catalog, pack_path, roots_path},
        large::push_chunks,
        leftovers, lists,
        merge::merge_small_packs,
        plan::Plan,
        repair::{PackState, repair_pack},
        uploader::{PackUploader, Pushed},
    },
    repo::Repo,
    store::Kind,
};

/// Sends the objects that `wants` names and the remote lacks. Also returns the error that names what neither
/// side has; all else is sent.
pub fn push(
    repo: &Repo,
    remote: &Remote,
    wants: &Wants,
    progress: &dyn Progress,
) -> Result<(Pushed, Option<Error>)> {
    let mut catalog = Catalog::load(repo, remote, Access::Write)?;
    warn_of_lost_packs(remote, &catalog, progress);
    repair_noted(repo, remote, &mut catalog, progress);
    let mut plan = Plan::new(&repo.store, &catalog, wants)?;
    let (mut catalog, again) = lists::incomplete(repo, remote, catalog, &plan.listed, progress)?;
    plan.send_again(&again);
    let total = plan.contents.iter().fold(0_u64, |sum, content| sum.saturating_add(content.1));
    progress.event(Event::Started { task: "pushing", total: Some(total) });
    let mut uploader = PackUploader::new(repo, remote, &mut catalog, progress);
    let lists = put_contents(repo, &mut uploader, &plan, &again)?;
    for page in plan.pages.iter().filter(|page| !plan.has_content(page)) {
        uploader.put_encoded(Kind::Tree, *page, &repo.store.read_encoded(page)?)?;
    }
    for key in &wants.runs {
        if let Some(run) = repo.store.cached_run(key)? {
            uploader.put_once(Kind::Run, *key, &run.to_bytes())?;
        }
    }
    uploader.flush()?;
    lists.iter().try_for_each(|(file, list)| lists::remember(repo, remote, file, list))?;
    progress.event(Event::Finished);
    let sent = uploader.sent;
    write_roots(remote, &catalog, &plan)?;
    let tidied = merge_small_packs(repo, remote, &mut catalog, progress)
        .and_then(|()| leftovers::clear(repo, remote, &catalog));
    if let Err(error) = tidied {
        // All is pushed, and the next push tries again.
        progress.warn(&error.chain_text());
    }
    Ok((sent, plan.failure(&remote.name)))
}

/// Works like [`push`], but it is an error if the remote then lacks a part of what `wants` names.
pub fn push_all(repo: &Repo, remote: &Remote, wants: &Wants, progress: &dyn Progress) -> Result<Pushed> {
    let (sent, left_out) = push(repo, remote, wants, progress)?;
    left_out.map_or(Ok(sent), Err)
}

/// Repairs the packs in which readers found damage.
fn repair_noted(repo: &Repo, remote: &Remote, catalog: &mut Catalog, progress: &dyn Progress) {
    for pack in catalog.damaged_packs.clone() {
        let text = match repair_pack(repo, remote, catalog, &pack, progress) {
            // It stays noted.
            Err(error) => error.chain_text(),
            Ok(PackState::Intact) => continue,
            Ok(PackState::Repaired) => format!("{} was damaged, and is repaired", pack_path(&pack)),
            Ok(PackState::Unreadable) => {
                format!("{} and its index are damaged; push from the clone that sent it", pack_path(&pack))
            }
            Ok(PackState::Damaged(lost)) => format!(
                "{} is damaged, and this clone lacks {} of its objects; push from one that has them",
                pack_path(&pack),
                lost.len()
            ),
        };
        progress.warn(&format!("{}: {text}", remote.location));
    }
}

fn warn_of_lost_packs(remote: &Remote, catalog: &Catalog, progress: &dyn Progress) {
    let Some(first) = catalog.lost_packs.first() else { return };
    let lost = match catalog.lost_packs.len() {
        1 => "a pack".to_owned(),
        many => format!("{many} packs"),
    };
    progress.warn(&format!(
        "{} has lost {lost} (the first: {}); their objects are sent again if they are stored here",
        remote.location,
        pack_path(first)
    ));
}

/// Sends contents, large files first: one of their chunks may be the content of a small file. The lists at
/// the remote of the files in `again` may be wrong. Returns the lists of the chunks of large files.
fn put_contents(
    repo: &Repo,
    uploader: &mut PackUploader<'_>,
    plan: &Plan,
    again: &HashSet<Digest>,
) -> Result<Vec<(Digest, Vec<u8>)>> {
    let mut lists = Vec::new();
    let is_packed = |digest: &Digest| repo.store.contains_packed(digest);
    for (digest, _) in plan.contents.iter().filter(|content| !is_packed(&content.0)) {
        if let Some(list) = push_chunks(repo, uploader, digest)? {
            uploader.put_list(digest, &list, again.contains(digest))?;
            lists.push((*digest, list));
        }
    }
    for (digest, _) in &plan.contents {
        if !uploader.has_content(digest) {
            uploader.put_encoded(Kind::Content, *digest, &repo.store.read_encoded(digest)?)?;
        }
    }
    Ok(lists)
}

/// Writes the list of the roots that are complete at the remote, for a later garbage collection there.
fn write_roots(remote: &Remote, catalog: &Catalog, plan: &Plan) -> Result<()> {
    let roots: BTreeSet<String> = plan.complete.iter().map(|digest| format!("{digest}\n")).collect();
    let text: String = roots.into_iter().collect();
    let name = Digest::of(text.as_bytes());
    if text.is_empty() || catalog.root_lists.contains_key(&name) {
        return Ok(());
    }
    remote.write(&roots_path(&name), text.into_bytes())
}
