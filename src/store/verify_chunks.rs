//! Verifies the files that are kept as chunks.

use crate::{
    digest::Digest,
    error::Result,
    store::{Fault, FaultKind, Store, VerifyReport, chunked, chunked::ListState, file_path},
};

impl Store {
    /// Reads every file that is kept as chunks, and every list of a file that is stored whole.
    pub(super) fn verify_chunk_lists(&self, report: &mut VerifyReport) -> Result<()> {
        self.list_chunked()?;
        for list in self.list_files(chunked::FOLDER)? {
            // Its list is compared once the file is intact again.
            if report.faults.iter().any(|fault| fault.kind == FaultKind::LargeFile(list.digest)) {
                continue;
            }
            let (state, is_whole) = (self.list_state(&list.digest), self.large(&list.digest).is_some());
            let why = match state {
                // A gc has removed it meanwhile.
                ListState::Absent => continue,
                ListState::Right => "",
                ListState::Wrong => "it is damaged, or the list of another file",
                ListState::Lacking => "a chunk of its file is damaged or missing",
                ListState::Newer => "a newer mlx wrote it: upgrade mlx",
            };
            if !is_whole {
                report.objects += 1;
                report.bytes += list.size;
            }
            if state != ListState::Right && !(is_whole && state == ListState::Lacking) {
                let file = file_path(chunked::FOLDER, &list.digest.hex(), "")?;
                report.faults.push(Fault { kind: FaultKind::Chunks(list.digest), file, why });
            }
            if !matches!(state, ListState::Right | ListState::Newer) && !is_whole {
                report.lost.insert(list.digest);
            }
        }
        Ok(())
    }

    /// Returns true if a file whose chunks had been damaged can be read from them again.
    pub fn recover_chunked(&self, digest: &Digest) -> Result<bool> {
        self.list_chunked()?;
        if !self.is_chunked(digest) || self.list_state(digest) != ListState::Right {
            return Ok(false);
        }
        self.clear_damaged(digest)?;
        Ok(true)
    }
}
