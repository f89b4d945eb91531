//! Sparse files read without their holes: for each page of nothing the kernel would fill a page of memory.

use std::{
    io::{self, Read},
    os::unix::fs::FileExt as _,
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::fs::{File, fault};

/// A file from its start to its end; a hole reads as the zeros it stands for.
pub struct Sparse<'f> {
    file: &'f File,
    at: u64,
    /// Where the hole that `at` is in ends, if it is in one.
    data: u64,
    /// Where the data after it end.
    hole: u64,
}

impl<'f> Sparse<'f> {
    pub fn new(file: &'f File) -> Self {
        Self { file, at: 0, data: 0, hole: 0 }
    }

    /// Asks for the next run of data; a file system that knows no holes has one long one.
    fn look(&mut self) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        self.data = match seek(self.file, SeekFrom::Data(self.at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => end.max(self.at),
            Err(_) => self.at,
        };
        self.hole = seek(self.file, SeekFrom::Hole(self.data)).unwrap_or(u64::MAX);
        Ok(())
    }
}

impl Read for Sparse<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = |until: u64, at: u64| usize::try_from(until - at).unwrap_or(usize::MAX).min(buffer.len());
        if self.at >= self.hole {
            self.look()?;
        }
        let taken = if self.at < self.data {
            let zeros = room(self.data, self.at);
            buffer[..zeros].fill(0);
            zeros
        } else {
            let until = if self.hole > self.at { self.hole } else { u64::MAX };
            let wanted = room(until, self.at);
            fault::point("read")?;
            let wanted = fault::piece(wanted)?;
            self.file.read_at(&mut buffer[..wanted], self.at)?
        };
        self.at += taken as u64;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fs::{Root, Sync},
        path::RepoPath,
    };

    #[test]
    fn it_reads_what_a_plain_read_does() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = RepoPath::from_text("x").unwrap();
        for islands in [&[][..], &[0], &[300_000], &[0, 70_000, 900_000], &[999_999]] {
            for length in [0, 1, 1_000_000] {
                root.write(&path, b"", Sync::Later).unwrap();
                let whole = std::fs::OpenOptions::new().write(true).open(temp.path().join("x")).unwrap();
                whole.set_len(length).unwrap();
                for &at in islands.iter().filter(|it| **it < length) {
                    whole.write_at(b"i", at).unwrap();
                }
                let file = root.open_file(&path).unwrap();
                let mut found = Vec::new();
                Sparse::new(&file).read_to_end(&mut found).unwrap();
                assert!(found == root.read(&path).unwrap(), "{islands:?} of {length}");
            }
        }
    }
}
