//! A request on its way to becoming a record, whatever its answer is.

use std::time::Instant;

use axum::{
    body::Bytes,
    http::{HeaderMap, StatusCode},
};

use crate::{
    deploy::{Answer, Served, Service, service::Refusal},
    digest::Digest,
    model::looks::looks,
    time,
    traffic::{Looks, Record},
};

const CAPTURED: &str = "x-captured-at";
const NAME: &str = "x-name";
pub(super) const LONGEST_NAME: usize = 200;
/// Milliseconds that a client's clock may be ahead.
pub(super) const AHEAD: i64 = 5 * 60 * 1000;

/// What is known of a request so far.
pub(super) struct Note {
    start: Instant,
    received: i64,
    pub id: String,
    name: String,
    captured: i64,
    /// The body, once it is read.
    pub body: Option<Bytes>,
    /// Whether the body is a picture.
    pub picture: bool,
    /// What was asked about, a row a picture.
    pub seen: Vec<Seen>,
    pub answers: Vec<Answer>,
}

/// One picture of a request.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub input: Digest,
    pub looks: Option<Looks>,
}

impl Note {
    pub fn new() -> Self {
        let now = time::now_millis();
        Self {
            start: Instant::now(),
            received: now,
            id: new_id(),
            name: String::new(),
            captured: now,
            body: None,
            picture: false,
            seen: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Takes what the client says of the picture.
    pub fn read(&mut self, headers: &HeaderMap) -> Result<(), Refusal> {
        let wrong = |why: String| Refusal(StatusCode::BAD_REQUEST, why);
        if let Some(said) = headers.get(CAPTURED) {
            let moment = said.to_str().ok().and_then(time::parse_millis);
            let moment =
                moment.ok_or_else(|| wrong(format!("`{CAPTURED}` is no time as RFC 3339 writes it")))?;
            if moment > self.received + AHEAD {
                return Err(wrong(format!("`{CAPTURED}` is in the future")));
            }
            if moment < 0 {
                return Err(wrong(format!("`{CAPTURED}` is before 1970")));
            }
            self.captured = moment;
        }
        if let Some(said) = headers.get(NAME) {
            let plain = |it: &u8| (b' '..=b'~').contains(it);
            let bytes = said.as_bytes();
            if bytes.len() > LONGEST_NAME || !bytes.iter().all(plain) {
                return Err(wrong(format!("`{NAME}` is more than {LONGEST_NAME} bytes, or not plain ASCII")));
            }
            self.name = String::from_utf8_lossy(bytes).into_owned();
        }
        Ok(())
    }

    /// Hands the request to the spool, a record a picture.
    pub fn end(self, service: &Service, served: &Served, status: StatusCode) {
        let Some(spool) = service.spool() else { return };
        let seen = if self.seen.is_empty() && self.answers.is_empty() && !status.is_success() {
            let input = Digest::of(self.body.as_deref().unwrap_or_default());
            vec![Seen { input, looks: None }]
        } else {
            self.seen
        };
        spool.waiting(served.batcher.waiting());
        let latency = self.start.elapsed().as_secs_f64() * 1000.0;
        let mut answers = self.answers.into_iter();
        for (at, seen) in seen.into_iter().enumerate() {
            let answer = answers.next();
            let (class, scores, features) =
                answer.map(|it| (it.class, it.scores, it.features)).unwrap_or_default();
            let record = Record {
                id: if at == 0 { self.id.clone() } else { format!("{}#{at}", self.id) },
                captured: self.captured,
                received: self.received,
                version: format!("{}@{}", served.model, served.number),
                package: served.package,
                input: seen.input,
                name: self.name.clone(),
                status: status.as_u16(),
                latency: latency as f32,
                class,
                scores,
                features,
                looks: seen.looks,
                kept: false,
            };
            let picture = self.body.clone().filter(|it| self.picture && !it.is_empty());
            spool.record(record, picture);
        }
    }
}

/// What the rows of a tensor look like.
pub(super) fn seen(planes: &[f32], rows: usize, side: usize) -> Vec<Seen> {
    if rows == 0 {
        return Vec::new();
    }
    let row = |row: &[f32]| {
        let bytes: Vec<u8> = row.iter().flat_map(|it| it.to_le_bytes()).collect();
        Seen { input: Digest::of(&bytes), looks: Some(looks(row, side)) }
    };
    planes.chunks(planes.len() / rows).map(row).collect()
}

/// An id that no other request has.
fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &'static str, value: &str) -> Result<Note, String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let mut note = Note::new();
        note.read(&headers).map(|()| note).map_err(|it| it.1)
    }

    #[test]
    fn what_the_client_says_is_taken_or_refused() {
        assert_eq!(read(CAPTURED, "2023-11-14T22:13:20Z").ok().unwrap().captured, 1_700_000_000_000);
        assert_eq!(read(NAME, "cam 1/a.jpg").ok().unwrap().name, "cam 1/a.jpg");
        for (header, value) in [
            (CAPTURED, "yesterday"),
            (CAPTURED, "1969-12-31T23:59:59Z"),
            (CAPTURED, "9000-01-01T00:00:00Z"),
            (NAME, "a\tb"),
            (NAME, &"x".repeat(201)),
        ] {
            let refusal = read(header, value).err().unwrap();
            assert!(refusal.contains(header), "{refusal}");
        }
    }
}
