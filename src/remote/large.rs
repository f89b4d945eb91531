//! Sends large files in chunks, and checks the lists of chunks that a remote has of them.

use std::io::Write as _;

use crate::{
    digest::{Digest, Hasher},
    error::{Result, WithContext},
    remote::uploader::PackUploader,
    repo::Repo,
    store::{Kind, chunks},
};

/// Sends the chunks of a large file of the local store that the remote lacks; returns the encoded list of
/// all. `None` if the file is not here.
pub fn push_chunks(repo: &Repo, uploader: &mut PackUploader<'_>, digest: &Digest) -> Result<Option<Vec<u8>>> {
    cut_stored(repo, digest, |chunk, bytes| uploader.put_once(Kind::Content, chunk.digest, bytes))
}

/// Returns the encoded list of the chunks of a large file of the local store; `None` if it is not here.
pub fn list_of(repo: &Repo, digest: &Digest) -> Result<Option<Vec<u8>>> {
    cut_stored(repo, digest, |_, _| Ok(()))
}

fn cut_stored(
    repo: &Repo,
    digest: &Digest,
    mut each: impl FnMut(chunks::Chunk, &[u8]) -> Result<()>,
) -> Result<Option<Vec<u8>>> {
    let Some(large) = repo.store.open_large(digest)? else { return Ok(None) };
    let (mut list, mut whole) = (Vec::new(), Hasher::default());
    chunks::cut(large, |chunk, bytes| {
        list.push(chunk);
        whole.write_all(bytes).context(|| "cannot digest".into())?;
        each(chunk, bytes)
    })?;
    if whole.finish() == *digest {
        Ok(Some(chunks::encode(&list)))
    } else {
        Err(repo.store.report_damage(digest))
    }
}

/// Returns true if the stored bytes of a list of chunks are not such a list, or the list of another file, as
/// far as the local store has the file.
pub fn is_wrong_list(repo: &Repo, digest: &Digest, list: &[u8]) -> Result<bool> {
    if repo.store.contains_packed(digest) || !repo.store.contains(digest) || !repo.store.is_intact(digest) {
        return Ok(false);
    }
    let Some(large) = repo.store.open_large(digest)? else { return Ok(false) };
    match chunks::decode(list) {
        Ok(list) => chunks::is_list_of(&list, large).map(|is_right| !is_right),
        Err(_) => Ok(!chunks::is_newer(list)),
    }
}
