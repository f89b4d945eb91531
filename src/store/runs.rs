//! What runs made: one small JSON text a key, the newest wins.
//!
//! A record holds the question (all that went in), the answer (what came out) and when; its key is the
//! digest of the question, and a check covers the rest, so that a damaged or foreign record is none.

use serde_json::{Value, json};

use crate::{
    digest::Digest,
    document::canonical,
    error::{Error, Result},
    fs::Sync,
    store::{Store, place},
    time::Timestamp,
};

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub question: Value,
    pub answer: Value,
    pub when: Timestamp,
}

impl Run {
    /// The name of everything that went in.
    pub fn key(&self) -> Digest {
        Digest::of(canonical(&self.question).as_bytes())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut record =
            json!({"answer": self.answer, "question": self.question, "time": self.when.seconds()});
        let check = Digest::of(canonical(&record).as_bytes());
        record["check"] = Value::from(check.to_string());
        canonical(&record).into_bytes()
    }

    /// Reads a record, checking that it belongs to the key and is whole.
    pub fn parse(key: &Digest, bytes: &[u8]) -> Result<Self> {
        let broken = || Error::corrupt(format!("the record of the run {} is damaged", key.short()));
        let mut record: Value = serde_json::from_slice(bytes).map_err(|_| broken())?;
        let check = record.as_object_mut().and_then(|it| it.remove("check")).ok_or_else(broken)?;
        let sound = check.as_str() == Some(&Digest::of(canonical(&record).as_bytes()).to_string());
        let when = Timestamp::from_seconds(record["time"].as_i64().ok_or_else(broken)?);
        let run = Self { question: record["question"].take(), answer: record["answer"].take(), when };
        if sound && run.key() == *key { Ok(run) } else { Err(broken()) }
    }
}

impl Store {
    /// The newest run with this key; a damaged record is as good as none.
    pub fn run(&self, key: &Digest) -> Result<Option<Run>> {
        let bytes = self.root.read_if_there(&place("runs", &key.hex(), "")?)?;
        Ok(bytes.and_then(|it| Run::parse(key, &it).ok()))
    }

    /// Records a run, after everything it names is stored; an older one never replaces a newer.
    pub fn put_run(&self, run: &Run) -> Result<()> {
        let key = run.key();
        if self.run(&key)?.is_some_and(|it| it.when > run.when) {
            return Ok(());
        }
        self.root.write(&place("runs", &key.hex(), "")?, &run.to_bytes(), Sync::Yes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_not_whole_or_belongs_elsewhere_is_none() {
        let run =
            Run { question: json!({"a": 1}), answer: json!({"o": "x"}), when: Timestamp::from_seconds(5) };
        let bytes = run.to_bytes();
        assert_eq!(Run::parse(&run.key(), &bytes).unwrap(), run);
        assert!(Run::parse(&Digest::of(b"other"), &bytes).is_err());
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Run::parse(&run.key(), &bad).is_err(), "byte {at}");
        }
    }
}
