//! Encoding of the binary records in trees, pack indexes and the workspace index.
//!
//! Every value has exactly one valid encoding, so that equal values give equal bytes; all others are errors.
//!
//! ```text
//! number  LEB128 varint of up to 64 bits, in its shortest form, 1–10 bytes
//! bytes   length as a number │ the bytes
//! digest  32 bytes
//! ```

use crate::{
    digest::Digest,
    error::{Error, Result},
};

/// Appends `number` as a LEB128 varint.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends the length of `bytes`, then the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Decoder that reads values from the front of a byte slice. Malformed input is an error, never a panic.
pub struct Reader<'a> {
    rest: &'a [u8],
    /// Name of the data, for error messages.
    source: &'a str,
}

impl<'a> Reader<'a> {
    /// Creates a reader; `source` names the data in error messages, such as "a pack index".
    pub fn new(bytes: &'a [u8], source: &'a str) -> Self {
        Self { rest: bytes, source }
    }

    /// Returns the number of bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Reads `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.corrupt("is truncated"))?;
        self.rest = rest;
        Ok(head)
    }

    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// Reads a number written by [`put_varint`].
    pub fn varint(&mut self) -> Result<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(self.corrupt("has a non-canonical varint"));
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.corrupt("has an oversized varint"))
    }

    /// Reads bytes written by [`put_bytes`].
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.varint()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    pub fn digest(&mut self) -> Result<Digest> {
        let bytes = self.take(32)?;
        Ok(Digest::from_bytes(bytes.try_into().expect("we took 32 bytes")))
    }

    /// Reads the magic bytes of a format's header, which include its version.
    pub fn expect_magic(&mut self, magic: &[u8]) -> Result<()> {
        let found = self.rest.get(..magic.len());
        if found != Some(magic) {
            return Err(self.corrupt("has an unknown header, or was written by a newer mlx"));
        }
        self.rest = &self.rest[magic.len()..];
        Ok(())
    }

    /// Checks that all bytes were read.
    pub fn expect_end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt("has trailing bytes")) }
    }

    /// Creates the error that the data is corrupt: its name, then `problem`.
    pub fn corrupt(&self, problem: &str) -> Error {
        Error::corrupt(format!("{} {problem}", self.source))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn encoded_values_decode_to_themselves(numbers: Vec<u64>, bytes: Vec<u8>) {
            let mut out = Vec::new();
            numbers.iter().for_each(|&number| put_varint(&mut out, number));
            put_bytes(&mut out, &bytes);
            let mut reader = Reader::new(&out, "it");
            for number in numbers {
                prop_assert_eq!(reader.varint().unwrap(), number);
            }
            prop_assert_eq!(reader.bytes().unwrap(), &bytes[..]);
            prop_assert!(reader.expect_end().is_ok());
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes, "it");
            while !reader.is_empty() && reader.bytes().is_ok() {}
        }
    }

    #[test]
    fn a_number_has_one_encoding() {
        assert!(Reader::new(&[0x80, 0x00], "it").varint().is_err());
        assert!(Reader::new(&[0xff; 11], "it").varint().is_err());
        assert_eq!(Reader::new(&[0x80, 0x01], "it").varint().unwrap(), 128);
    }
}
