//! Reader for sparse files that does not read their holes.
//!
//! A hole is returned as zeros without asking the kernel, which would fill a page of memory for each page of
//! it.

use std::{
    io::{self, Read},
    os::unix::fs::FileExt as _,
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::fs::{File, fault};

/// Reads a file from start to end; a hole reads as zeros.
pub struct SparseReader<'f> {
    file: &'f File,
    position: u64,
    /// Start of the next data, if `position` is in a hole.
    data_start: u64,
    /// End of that data: the start of the next hole.
    data_end: u64,
}

impl<'f> SparseReader<'f> {
    pub fn new(file: &'f File) -> Self {
        Self { file, position: 0, data_start: 0, data_end: 0 }
    }

    /// Finds the next run of data. On a file system without support for holes the rest of the file is one
    /// run.
    fn find_data(&mut self) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        self.data_start = match seek(self.file, SeekFrom::Data(self.position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => end.max(self.position),
            Err(_) => self.position,
        };
        self.data_end = seek(self.file, SeekFrom::Hole(self.data_start)).unwrap_or(u64::MAX);
        Ok(())
    }
}

impl Read for SparseReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count_until =
            |end: u64, position: u64| usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
        if self.position >= self.data_end {
            self.find_data()?;
        }
        let count = if self.position < self.data_start {
            let zeros = count_until(self.data_start, self.position);
            buffer[..zeros].fill(0);
            zeros
        } else {
            let end = if self.data_end > self.position { self.data_end } else { u64::MAX };
            let wanted = count_until(end, self.position);
            fault::point("read")?;
            let wanted = fault::transfer_size(wanted)?;
            self.file.read_at(&mut buffer[..wanted], self.position)?
        };
        self.position += count as u64;
        Ok(count)
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
    fn the_bytes_are_those_of_a_plain_read() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let path = RepoPath::from_text("x").unwrap();
        for islands in [&[][..], &[0], &[300_000], &[0, 70_000, 900_000], &[999_999]] {
            for length in [0, 1, 1_000_000] {
                root.write(&path, b"", Sync::Later).unwrap();
                let writer = std::fs::OpenOptions::new().write(true).open(temp.path().join("x")).unwrap();
                writer.set_len(length).unwrap();
                for &at in islands.iter().filter(|it| **it < length) {
                    writer.write_at(b"i", at).unwrap();
                }
                let file = root.open_file(&path).unwrap();
                let mut found = Vec::new();
                SparseReader::new(&file).read_to_end(&mut found).unwrap();
                assert!(found == root.read(&path).unwrap(), "{islands:?} of {length}");
            }
        }
    }
}
