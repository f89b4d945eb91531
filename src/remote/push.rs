//! Pushes the objects that the remote lacks: contents first, then the trees and records that name them.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Digest,
    error::{Result, WithContext},
    pointer::ContentKind,
    progress::{Event, Progress},
    remote::{
        Remote, Wants,
        catalog::{Catalog, pack_path, roots_path},
        chunks,
        uploader::{PackUploader, Pushed},
    },
    repo::Repo,
    store::{Kind, collect_reachable},
};

/// Pages and contents that the wanted trees consist of; contents with their sizes.
#[derive(Default)]
struct Reachable {
    pages: BTreeSet<Digest>,
    contents: BTreeMap<Digest, u64>,
}

/// Sends the objects that `wants` names and the remote lacks.
pub fn push(repo: &Repo, remote: &Remote, wants: &Wants, progress: &dyn Progress) -> Result<Pushed> {
    let mut catalog = Catalog::load(repo, remote)?;
    if let Some(first) = catalog.lost_packs.first() {
        progress.warn(&format!(
            "{} has lost {} (the first: {}); their objects are sent again if they are stored here",
            remote.location,
            if catalog.lost_packs.len() == 1 {
                "a pack".into()
            } else {
                format!("{} packs", catalog.lost_packs.len())
            },
            pack_path(first)
        ));
    }
    let needed = find_reachable(repo, wants, &catalog)?;
    // If packs were lost, a list of chunks does not prove that the chunks exist.
    let is_present = |digest: &Digest| {
        let proofs: &[Kind] = if catalog.lost_packs.is_empty() {
            &[Kind::Content, Kind::Tree, Kind::Chunks]
        } else {
            &[Kind::Content, Kind::Tree]
        };
        catalog.find(digest, proofs).is_some()
    };
    let missing: Vec<_> = needed.contents.iter().filter(|(digest, _)| !is_present(digest)).collect();
    let total = missing.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(**size));
    progress.event(Event::Started { task: "pushing", total: Some(total) });
    let mut uploader = PackUploader::new(remote, &mut catalog, progress);
    let mut lists = Vec::new();
    for (digest, _) in missing {
        match repo.store.large(digest) {
            Some(large) => lists.push((*digest, push_chunks(&mut uploader, large.open()?)?)),
            None if uploader.has_content(digest) => {}
            None => uploader.put(Kind::Content, *digest, &repo.store.read(digest)?)?,
        }
    }
    // Objects that name others are sent once the others are durable.
    uploader.flush()?;
    for (digest, (list, found)) in lists {
        if found != digest {
            return Err(repo.store.report_damage(&digest));
        }
        if !uploader.has(&digest, Kind::Chunks) {
            uploader.put(Kind::Chunks, digest, &list)?;
        }
    }
    for page in &needed.pages {
        if !uploader.has(page, Kind::Tree) && !uploader.has_content(page) {
            uploader.put(Kind::Tree, *page, &repo.store.read(page)?)?;
        }
    }
    uploader.flush()?;
    for key in &wants.runs {
        if let Some(run) = repo.store.cached_run(key)?.filter(|_| !uploader.has(key, Kind::Run)) {
            uploader.put(Kind::Run, *key, &run.to_bytes())?;
        }
    }
    uploader.flush()?;
    progress.event(Event::Finished);
    let sent = uploader.sent;
    write_roots(remote, wants)?;
    Ok(sent)
}

fn find_reachable(repo: &Repo, wants: &Wants, catalog: &Catalog) -> Result<Reachable> {
    let mut needed = Reachable::default();
    for (path, content) in &wants.contents {
        // A tree is sent last: if the remote has it, it has everything below it, unless packs were lost.
        if catalog.lost_packs.is_empty() && catalog.find(&content.digest, &[Kind::Tree]).is_some() {
            continue;
        }
        if content.kind == ContentKind::Tree {
            collect_reachable(&repo.store, &content.digest, &mut needed.pages, &mut needed.contents)
                .context(|| format!("cannot push `{path}`"))?;
        } else {
            needed.contents.insert(content.digest, content.size);
        }
    }
    Ok(needed)
}

/// Sends the chunks of a large file that the remote lacks; returns the encoded list of all chunks and the
/// digest of the bytes that were read.
fn push_chunks(uploader: &mut PackUploader<'_>, file: crate::fs::File) -> Result<(Vec<u8>, Digest)> {
    use std::io::Write as _;

    let mut list = Vec::new();
    let mut whole = crate::digest::Hasher::default();
    chunks::cut(file, |chunk, data| {
        list.push(chunk);
        whole.write_all(data).context(|| "cannot digest".into())?;
        if uploader.has(&chunk.digest, Kind::Content) {
            Ok(())
        } else {
            uploader.put(Kind::Content, chunk.digest, data)
        }
    })?;
    Ok((chunks::encode(&list), whole.finish()))
}

/// Writes the list of roots that this push wants kept, for a later garbage collection at the remote.
fn write_roots(remote: &Remote, wants: &Wants) -> Result<()> {
    let roots: BTreeSet<String> =
        wants.contents.iter().map(|(_, content)| format!("{}\n", content.digest)).collect();
    let text: String = roots.into_iter().collect();
    let path = roots_path(&Digest::of(text.as_bytes()));
    if text.is_empty() || remote.read_if_there(&path)?.is_some() {
        return Ok(());
    }
    remote.write(&path, text.into_bytes())
}
