//! Rows of bytes: the few shapes that our machine-read formats (trees, pack indexes, the workspace
//! index) are made of. One value has one spelling.

use crate::{
    digest::Digest,
    error::{Error, Result},
};

/// Appends `number` as a LEB128 varint.
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends the length of `bytes`, then the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Takes values off the front of some bytes; every way they can be wrong is an error.
pub struct Reader<'a> {
    rest: &'a [u8],
    /// What is being read, for the error.
    what: &'a str,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8], what: &'a str) -> Self {
        Self { rest: bytes, what }
    }

    /// Bytes that are still to be read.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.broken("ends too early"))?;
        self.rest = rest;
        Ok(head)
    }

    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub fn number(&mut self) -> Result<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(self.broken("holds a misspelt number"));
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.broken("holds an endless number"))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    pub fn digest(&mut self) -> Result<Digest> {
        let bytes = self.take(32)?;
        Ok(Digest::from_bytes(bytes.try_into().expect("we took 32 bytes")))
    }

    pub fn expect(&mut self, magic: &[u8]) -> Result<()> {
        let found = self.rest.get(..magic.len());
        if found != Some(magic) {
            return Err(self.broken("does not start as it should, or is of a newer version"));
        }
        self.rest = &self.rest[magic.len()..];
        Ok(())
    }

    pub fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.broken("goes on after its end")) }
    }

    pub fn broken(&self, how: &str) -> Error {
        Error::corrupt(format!("{} {how}", self.what))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_put_is_read(numbers: Vec<u64>, bytes: Vec<u8>) {
            let mut out = Vec::new();
            numbers.iter().for_each(|&it| put_number(&mut out, it));
            put_bytes(&mut out, &bytes);
            let mut reader = Reader::new(&out, "it");
            for number in numbers {
                prop_assert_eq!(reader.number().unwrap(), number);
            }
            prop_assert_eq!(reader.bytes().unwrap(), &bytes[..]);
            prop_assert!(reader.end().is_ok());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes, "it");
            while !reader.is_empty() && reader.bytes().is_ok() {}
        }
    }

    #[test]
    fn a_number_has_one_spelling() {
        assert!(Reader::new(&[0x80, 0x00], "it").number().is_err());
        assert!(Reader::new(&[0xff; 11], "it").number().is_err());
        assert_eq!(Reader::new(&[0x80, 0x01], "it").number().unwrap(), 128);
    }
}
