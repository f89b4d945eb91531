//! BLAKE3 digests, the identity of every stored object.
//!
//! Written as `b3:` and 64 lower-case hex digits. The hash is unkeyed, so that `b3sum` can verify it.

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Kind, Result};

/// A 256-bit BLAKE3 digest, written as `b3:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Computes the digest of everything written to it.
#[derive(Default)]
pub struct Hasher(blake3::Hasher);

impl Digest {
    /// Number of hex digits that are displayed.
    pub const SHORT: usize = 10;

    /// Computes the digest of `bytes`; from 1 MiB on all cores are used.
    pub fn of(bytes: &[u8]) -> Self {
        const LARGE: usize = 1 << 20;
        if bytes.len() < LARGE {
            return Self(*blake3::hash(bytes).as_bytes());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(bytes);
        Self(*hasher.finalize().as_bytes())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 hex digits without the prefix, as in the names of stored files.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// Returns the first ten hex digits, for display.
    pub fn short(&self) -> String {
        self.hex()[..Self::SHORT].to_owned()
    }

    /// Parses 64 hex digits without the prefix.
    pub fn from_hex(hex: &str) -> Result<Self> {
        let lower = hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        match blake3::Hash::from_hex(hex) {
            Ok(hash) if lower => Ok(Self(*hash.as_bytes())),
            _ => Err(Error::new(
                Kind::Corrupt,
                format!("`{hex}` is not a digest: expected 64 lower-case hex digits"),
            )),
        }
    }
}

impl Hasher {
    /// Returns the digest of everything written so far.
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }

    /// Adds a large piece of input, using all cores.
    pub fn write_parallel(&mut self, bytes: &[u8]) {
        self.0.update_rayon(bytes);
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hex = text.strip_prefix("b3:").ok_or_else(|| {
            Error::new(Kind::Corrupt, format!("`{text}` is not a digest: it does not start with `b3:`"))
        })?;
        Self::from_hex(hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_digest_is_unkeyed_blake3() {
        let empty = "b3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn the_digest_does_not_depend_on_pieces_or_cores() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|it| it as u8).collect();
        let mut hasher = Hasher::default();
        bytes.chunks(7777).for_each(|chunk| hasher.write_all(chunk).unwrap());
        assert_eq!(hasher.finish(), Digest::of(&bytes));
    }

    #[test]
    fn only_the_canonical_spelling_is_parsed() {
        let upper = Digest::of(b"x").to_string().to_uppercase();
        for bad in ["", "b3:", "b3:00", &upper, &Digest::of(b"x").hex()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
