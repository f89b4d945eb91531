//! Run cache: records which outputs a pipeline stage produced from which inputs, one small JSON file per run.
//!
//! A record holds the inputs (`question`), the outputs (`answer`) and the time of the run; of two records
//! with the same inputs, the newest is kept. The file name is the digest of the inputs, and a checksum covers
//! the rest, so that a damaged or foreign record is ignored.

use serde_json::{Value, json};

use crate::{
    digest::Digest,
    document::canonical,
    error::{Error, Result},
    fs::Sync,
    store::{Store, StoredFile, file_path},
    time::Timestamp,
};

/// A cached run.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedRun {
    pub inputs: Value,
    pub outputs: Value,
    pub when: Timestamp,
}

impl CachedRun {
    /// Returns the digest of the inputs, under which the run is stored.
    pub fn key(&self) -> Digest {
        Digest::of(canonical(&self.inputs).as_bytes())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut record =
            json!({"answer": self.outputs, "question": self.inputs, "time": self.when.seconds()});
        let check = Digest::of(canonical(&record).as_bytes());
        record["check"] = Value::from(check.to_string());
        canonical(&record).into_bytes()
    }

    /// Reads a record and checks its checksum and that it belongs to the key.
    pub fn parse(key: &Digest, bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::corrupt(format!("the record of the run {} is damaged", key.short()));
        let mut record: Value = serde_json::from_slice(bytes).map_err(|_| damaged())?;
        let check = record.as_object_mut().and_then(|it| it.remove("check")).ok_or_else(damaged)?;
        let intact = check.as_str() == Some(&Digest::of(canonical(&record).as_bytes()).to_string());
        let when = Timestamp::from_seconds(record["time"].as_i64().ok_or_else(damaged)?);
        let run = Self { inputs: record["question"].take(), outputs: record["answer"].take(), when };
        if intact && run.key() == *key { Ok(run) } else { Err(damaged()) }
    }
}

impl Store {
    /// Returns the run with this key; a damaged record counts as absent.
    pub fn cached_run(&self, key: &Digest) -> Result<Option<CachedRun>> {
        let bytes = self.root.read_if_exists(&file_path("runs", &key.hex(), "")?)?;
        Ok(bytes.and_then(|it| CachedRun::parse(key, &it).ok()))
    }

    /// Returns the keys of all recorded runs.
    pub fn run_keys(&self) -> Result<Vec<Digest>> {
        let names = self.file_names("runs")?;
        let keys = names.iter().filter_map(|name| std::str::from_utf8(name).ok());
        Ok(keys.filter_map(|hex| Digest::from_hex(hex).ok()).collect())
    }

    /// Records a run, whose outputs must be stored already. An older run never replaces a newer one.
    pub fn put_cached_run(&self, run: &CachedRun) -> Result<()> {
        let key = run.key();
        if self.cached_run(&key)?.is_some_and(|it| it.when > run.when) {
            return Ok(());
        }
        // A gc may be about to remove an older record of the same run.
        let _gate = self.enter_gate()?;
        self.root.write(&file_path("runs", &key.hex(), "")?, &run.to_bytes(), Sync::Now)
    }

    /// Removes a run's record, unless the run was recorded again since the inventory was taken: then it is
    /// young. The gate must be locked. Returns true if it was removed.
    pub(super) fn remove_run(&self, listed: &StoredFile) -> Result<bool> {
        let path = file_path("runs", &listed.digest.hex(), "")?;
        let unchanged = self.root.stat(&path)?.is_some_and(|stat| stat.mtime == listed.mtime);
        if unchanged {
            self.root.remove(&path)?;
        }
        Ok(unchanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_recorded_again_is_not_removed() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(crate::fs::Root::open(temp.path()).unwrap()).unwrap();
        let run = CachedRun { inputs: json!(1), outputs: json!(2), when: Timestamp::from_seconds(5) };
        store.put_cached_run(&run).unwrap();
        let listed = store.inventory().unwrap().runs[0];
        let older = StoredFile { mtime: listed.mtime - 1, ..listed };
        assert!(!store.remove_run(&older).unwrap());
        assert_eq!(store.cached_run(&run.key()).unwrap(), Some(run.clone()));
        assert_eq!(store.run_keys().unwrap(), [run.key()]);
        assert!(store.remove_run(&listed).unwrap());
        assert_eq!(store.cached_run(&run.key()).unwrap(), None);
    }

    #[test]
    fn a_damaged_or_foreign_record_is_rejected() {
        let run = CachedRun {
            inputs: json!({"a": 1}),
            outputs: json!({"o": "x"}),
            when: Timestamp::from_seconds(5),
        };
        let bytes = run.to_bytes();
        assert_eq!(CachedRun::parse(&run.key(), &bytes).unwrap(), run);
        assert!(CachedRun::parse(&Digest::of(b"other"), &bytes).is_err());
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(CachedRun::parse(&run.key(), &bad).is_err(), "byte {at}");
        }
    }
}
