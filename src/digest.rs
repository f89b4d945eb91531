//! The name of some bytes: plain BLAKE3, so that anyone can check it with `b3sum`.

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Kind, Result};

/// A 256-bit BLAKE3 digest, written as `b3:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Digests what is written into it.
#[derive(Default)]
pub struct Hasher(blake3::Hasher);

impl Digest {
    /// The digest of a few bytes; large ones use all cores.
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

    /// 64 hex digits without the prefix: the name of a file that holds these bytes.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// The first ten hex digits, for people.
    pub fn short(&self) -> String {
        self.hex()[..10].to_owned()
    }

    /// Parses 64 hex digits without the prefix.
    pub fn from_hex(hex: &str) -> Result<Self> {
        let lower = hex.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it));
        match blake3::Hash::from_hex(hex) {
            Ok(hash) if lower => Ok(Self(*hash.as_bytes())),
            _ => Err(Error::new(Kind::Corrupt, format!("`{hex}` is not a digest: 64 lower-case hex digits"))),
        }
    }
}

impl Hasher {
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }

    /// Takes a large piece with all cores.
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
    fn it_is_plain_blake3() {
        let empty = "b3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn pieces_and_cores_do_not_matter() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|it| it as u8).collect();
        let mut hasher = Hasher::default();
        bytes.chunks(7777).for_each(|it| hasher.write_all(it).unwrap());
        assert_eq!(hasher.finish(), Digest::of(&bytes));
    }

    #[test]
    fn only_one_spelling_is_read() {
        let upper = Digest::of(b"x").to_string().to_uppercase();
        for bad in ["", "b3:", "b3:00", &upper, &Digest::of(b"x").hex()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
