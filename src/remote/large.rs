//! Sends large files in chunks, and checks the lists of chunks that a remote has of them.

use crate::{
    digest::Digest,
    error::Result,
    remote::uploader::PackUploader,
    repo::Repo,
    store::{
        Kind,
        chunks::{self, Chunk},
    },
};

/// Sends the chunks of a large file of the local store that the remote lacks; returns the encoded list of
/// all. `None` if the file is not here.
pub fn push_chunks(repo: &Repo, uploader: &mut PackUploader<'_>, digest: &Digest) -> Result<Option<Vec<u8>>> {
    let send = |chunk: Chunk, bytes: &[u8]| uploader.put_once(Kind::Content, chunk.digest, bytes);
    Ok(repo.store.cut_large(digest, send)?.map(|list| chunks::encode(&list)))
}

/// Returns the encoded list of the chunks of a large file of the local store; `None` if it is not here.
pub fn list_of(repo: &Repo, digest: &Digest) -> Result<Option<Vec<u8>>> {
    Ok(repo.store.cut_large(digest, |_, _| Ok(()))?.map(|list| chunks::encode(&list)))
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
