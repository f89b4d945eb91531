//! What runs made: one small text a key, the newest wins.

use crate::{
    digest::Digest,
    error::Result,
    fs::Sync,
    store::{Store, place},
};

impl Store {
    /// The record of the run with this key, as it was written.
    pub fn run(&self, key: &Digest) -> Result<Option<Vec<u8>>> {
        self.root.read_if_there(&place("runs", &key.hex(), "")?)
    }

    /// Records a run, after everything it names is stored.
    pub fn put_run(&self, key: &Digest, record: &[u8]) -> Result<()> {
        self.root.write(&place("runs", &key.hex(), "")?, record, Sync::Yes)
    }
}
