//! Content-defined chunks of large files, so that a small edit of a large file transfers little, and old
//! versions take little space.
//!
//! The chunker is FastCDC (Xia et al., USENIX ATC 2016).
//!
//! ```text
//! list   "mlxchnk" 1 │ rows: length, digest, 32
//! ```

use std::io::{self, Read};

use fastcdc::v2020::{ChunkData, StreamCDC};

use crate::{
    digest::{Digest, Hasher},
    error::{Error, Result, WithContext},
    wire::{Reader, put_varint},
};

const MAGIC: &[u8; 8] = b"mlxchnk\x01";
const MIN_SIZE: usize = 256 << 10;
const AVERAGE_SIZE: usize = 1 << 20;
/// Largest size of a chunk in bytes.
const MAX_SIZE: usize = 4 << 20;

/// A chunk of a large file: its length in bytes and its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub length: u64,
    pub digest: Digest,
}

/// Splits a file into chunks and passes each to `each` with its bytes. Returns the digest of the file and the
/// list of its chunks. Memory use is constant, but for the list.
pub fn cut(
    file: impl Read,
    mut each: impl FnMut(Chunk, &[u8]) -> Result<()>,
) -> Result<(Digest, Vec<Chunk>)> {
    let (mut whole, mut list) = (Hasher::default(), Vec::new());
    for chunk in StreamCDC::new(file, MIN_SIZE, AVERAGE_SIZE, MAX_SIZE) {
        let data = bytes_of(chunk)?;
        let chunk = Chunk { length: data.len() as u64, digest: Digest::of(&data) };
        whole.write_parallel(&data);
        list.push(chunk);
        each(chunk, &data)?;
    }
    Ok((whole.finish(), list))
}

/// Returns the bytes of a chunk. The error is of the kind `Corrupt` if the file cannot be read since it is
/// damaged.
fn bytes_of(chunk: std::result::Result<ChunkData, fastcdc::v2020::Error>) -> Result<Vec<u8>> {
    let read = chunk.map(|chunk| chunk.data).map_err(|error| match error {
        fastcdc::v2020::Error::IoError(error) => error,
        error => io::Error::other(error.to_string()),
    });
    match read {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(Error::corrupt("a large object is damaged").with_source(error))
        }
        read => read.context(|| "cannot read a large object".into()),
    }
}

/// Encodes a list of chunks.
pub fn encode(chunks: &[Chunk]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for chunk in chunks {
        put_varint(&mut out, chunk.length);
        out.extend_from_slice(chunk.digest.bytes());
    }
    out
}

/// Returns true if these are the chunks of the file, one after another.
pub fn is_list_of(list: &[Chunk], mut file: impl Read) -> Result<bool> {
    let mut bytes = Vec::new();
    for chunk in list {
        bytes.clear();
        (&mut file)
            .take(chunk.length)
            .read_to_end(&mut bytes)
            .context(|| "cannot read a large object".into())?;
        if bytes.len() as u64 != chunk.length || Digest::of(&bytes) != chunk.digest {
            return Ok(false);
        }
    }
    Ok(file.read(&mut [0]).context(|| "cannot read a large object".into())? == 0)
}

/// Returns true if a newer mlx wrote a list of chunks.
pub fn is_newer(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC[..7]) && bytes.get(7).is_some_and(|version| *version > MAGIC[7])
}

/// Decodes a list of chunks; a chunk beyond the largest size is an error.
pub fn decode(bytes: &[u8]) -> Result<Vec<Chunk>> {
    let mut reader = Reader::new(bytes, "a list of chunks");
    reader.expect_magic(MAGIC)?;
    let mut chunks = Vec::new();
    while !reader.is_empty() {
        let chunk = Chunk { length: reader.varint()?, digest: reader.digest()? };
        if chunk.length > MAX_SIZE as u64 {
            return Err(Error::corrupt("a list of chunks contains a chunk that is too large"));
        }
        chunks.push(chunk);
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(bytes: &[u8]) -> Vec<Chunk> {
        let mut found = Vec::new();
        let mut whole = Vec::new();
        cut(bytes, |chunk, data| {
            found.push(chunk);
            whole.extend_from_slice(data);
            Ok(())
        })
        .unwrap();
        assert_eq!(whole, bytes);
        found
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn an_insertion_changes_few_chunks() {
        let bytes = noise(20 << 20);
        let before = chunks(&bytes);
        let mut edited = bytes.clone();
        edited.splice(7_000_000..7_000_000, *b"an insertion");
        let new = chunks(&edited).iter().filter(|it| !before.contains(it)).count();
        assert!(before.len() > 10 && new <= 2, "{new} of {}", before.len());
        assert_eq!(decode(&encode(&before)).unwrap(), before);
    }

    #[test]
    fn a_list_is_of_one_file_only() {
        let bytes = noise(3_000_000);
        let list = chunks(&bytes);
        assert!(list.len() > 1 && is_list_of(&list, &bytes[..]).unwrap());
        let other = [&bytes[..2_999_999], b"x"].concat();
        for wrong in [&other[..], &bytes[..2_999_999], &[&bytes[..], b"x"].concat()] {
            assert!(!is_list_of(&list, wrong).unwrap());
        }
        assert!(!is_list_of(&list[1..], &bytes[..]).unwrap());
    }

    #[test]
    fn a_chunk_has_a_largest_size() {
        let of_length = |length: usize| [Chunk { length: length as u64, digest: Digest::of(b"") }];
        assert_eq!(decode(&encode(&of_length(MAX_SIZE))).unwrap(), of_length(MAX_SIZE));
        for length in [MAX_SIZE + 1, usize::MAX] {
            assert!(decode(&encode(&of_length(length))).is_err(), "{length}");
        }
    }
}
