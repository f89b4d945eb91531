//! Sends the missing, and only the missing: contents, then what names them.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    error::{Doing, Result},
    pointer::Shape,
    progress::{Event, Progress},
    remote::{
        Remote, Wants,
        catalog::{Catalog, pack_path, roots_path},
        chunks,
        outbox::{Outbox, Pushed},
    },
    repo::Repo,
    store::{Kind, reachable},
};

/// Everything below what is wanted.
#[derive(Default)]
struct Needs {
    pages: BTreeSet<Digest>,
    contents: BTreeMap<Digest, u64>,
}

/// Sends what `wants` names and the remote lacks.
pub fn push(repo: &Repo, remote: &Remote, wants: &Wants, progress: &dyn Progress) -> Result<Pushed> {
    let mut catalog = Catalog::load(repo, remote)?;
    if let Some(first) = catalog.lost.first() {
        progress.warn(&format!(
            "{} has lost {} (the first: {}); what is here of their content is sent again",
            remote.location,
            if catalog.lost.len() == 1 { "a pack".into() } else { format!("{} packs", catalog.lost.len()) },
            pack_path(first)
        ));
    }
    let needs = needs(repo, wants, &catalog)?;
    // Where packs were lost, a list of pieces is no proof of the pieces.
    let is_there = |it: &Digest| {
        let proofs: &[Kind] = if catalog.lost.is_empty() {
            &[Kind::Content, Kind::Tree, Kind::Chunks]
        } else {
            &[Kind::Content, Kind::Tree]
        };
        catalog.find(it, proofs).is_some()
    };
    let missing: Vec<_> = needs.contents.iter().filter(|it| !is_there(it.0)).collect();
    let total = missing.iter().fold(0_u64, |sum, it| sum.saturating_add(*it.1));
    progress.event(Event::Started { task: "pushing", total: Some(total) });
    let mut outbox = Outbox::new(remote, &mut catalog, progress);
    let mut lists = Vec::new();
    for (digest, _) in missing {
        match repo.store.large(digest) {
            Some(large) => lists.push((*digest, large_in_pieces(&mut outbox, large.open()?)?)),
            None if outbox.has_content(digest) => {}
            None => outbox.put(Kind::Content, *digest, &repo.store.read(digest)?)?,
        }
    }
    // What names others comes when the others are at rest.
    outbox.flush()?;
    for (digest, (list, found)) in lists {
        if found != digest {
            return Err(repo.store.damage(&digest));
        }
        if !outbox.has(&digest, Kind::Chunks) {
            outbox.put(Kind::Chunks, digest, &list)?;
        }
    }
    for page in &needs.pages {
        if !outbox.has(page, Kind::Tree) && !outbox.has_content(page) {
            outbox.put(Kind::Tree, *page, &repo.store.read(page)?)?;
        }
    }
    outbox.flush()?;
    for key in &wants.runs {
        if let Some(run) = repo.store.run(key)?.filter(|_| !outbox.has(key, Kind::Run)) {
            outbox.put(Kind::Run, *key, &run.to_bytes())?;
        }
    }
    outbox.flush()?;
    progress.event(Event::Finished);
    let sent = outbox.sent;
    write_roots(remote, wants)?;
    Ok(sent)
}

fn needs(repo: &Repo, wants: &Wants, catalog: &Catalog) -> Result<Needs> {
    let mut needs = Needs::default();
    for (path, content) in &wants.contents {
        // A tree is published last: where it is, all below it is, unless packs were lost.
        if catalog.lost.is_empty() && catalog.find(&content.digest, &[Kind::Tree]).is_some() {
            continue;
        }
        if content.kind == Shape::Tree {
            reachable(&repo.store, &content.digest, &mut needs.pages, &mut needs.contents)
                .doing(|| format!("cannot push `{path}`"))?;
        } else {
            needs.contents.insert(content.digest, content.size);
        }
    }
    Ok(needs)
}

/// Sends the pieces of a large file that the remote lacks; the list of all of them, and the digest of
/// what was read.
fn large_in_pieces(outbox: &mut Outbox<'_>, file: crate::fs::File) -> Result<(Vec<u8>, Digest)> {
    use std::io::Write as _;

    let mut list = Vec::new();
    let mut whole = crate::digest::Hasher::default();
    chunks::cut(file, |chunk, data| {
        list.push(chunk);
        whole.write_all(data).doing(|| "cannot digest".into())?;
        if outbox.has(&chunk.digest, Kind::Content) {
            Ok(())
        } else {
            outbox.put(Kind::Content, chunk.digest, data)
        }
    })?;
    Ok((chunks::encode(&list), whole.finish()))
}

/// Leaves word of what this push wants kept, for whoever clears up there.
fn write_roots(remote: &Remote, wants: &Wants) -> Result<()> {
    let roots: BTreeSet<String> = wants.contents.iter().map(|it| format!("{}\n", it.1.digest)).collect();
    let text: String = roots.into_iter().collect();
    let path = roots_path(&Digest::of(text.as_bytes()));
    if text.is_empty() || remote.read_if_there(&path)?.is_some() {
        return Ok(());
    }
    remote.write(&path, text.into_bytes())
}
