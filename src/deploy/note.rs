//! A request on its way to becoming a record, whatever its answer is.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Bytes,
    http::{HeaderMap, StatusCode},
};
use tokio::runtime::Handle;

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
/// Bytes of a body that are hashed where other requests wait, at most.
const HASHED_HERE: usize = 1 << 20;

/// The status of a request whose client went away before the answer.
pub const GONE: u16 = 499;

/// A request until its end, which is dropping it at the latest: the client went away then.
pub(super) struct Note {
    service: Arc<Service>,
    /// The version that answers.
    pub served: Arc<Served>,
    start: Instant,
    pub facts: Facts,
    ended: bool,
}

/// What is known of a request so far.
#[derive(Default)]
pub(super) struct Facts {
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
    pub fn new(service: &Arc<Service>) -> Self {
        let now = time::now_millis();
        Self {
            service: Arc::clone(service),
            served: service.live(),
            start: Instant::now(),
            facts: Facts { received: now, captured: now, id: new_id(), ..Facts::default() },
            ended: false,
        }
    }

    /// Hands the request to the spool, a record a picture.
    pub fn end(mut self, status: StatusCode) {
        self.record(status.as_u16());
    }

    fn record(&mut self, status: u16) {
        self.ended = true;
        let Some(spool) = self.service.spool() else { return };
        spool.waiting(self.served.batcher.waiting());
        let (facts, latency) = (std::mem::take(&mut self.facts), self.start.elapsed().as_secs_f64() * 1000.0);
        let (service, served) = (Arc::clone(&self.service), Arc::clone(&self.served));
        let large = facts.body.as_ref().is_some_and(|it| it.len() > HASHED_HERE);
        let work = move || {
            let Some(spool) = service.spool() else { return };
            for (record, picture) in facts.records(&served, status, latency as f32) {
                spool.record(record, picture);
            }
        };
        match Handle::try_current() {
            Ok(runtime) if large => drop(runtime.spawn_blocking(work)),
            _ => work(),
        }
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if !self.ended {
            self.record(GONE);
        }
    }
}

impl Facts {
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

    /// A record a picture, and the picture; what nobody looked at is one picture.
    fn records(self, served: &Served, status: u16, latency: f32) -> Vec<(Record, Option<Bytes>)> {
        let Self { received, id, name, captured, body, picture, mut seen, answers } = self;
        if seen.is_empty() && answers.is_empty() && !(200..300).contains(&status) {
            seen.push(Seen { input: Digest::of(body.as_deref().unwrap_or_default()), looks: None });
        }
        let picture = body.filter(|it| picture && !it.is_empty());
        let mut answers = answers.into_iter();
        let record = |(at, seen): (usize, Seen)| {
            let answer = answers.next();
            let (class, scores, features) =
                answer.map(|it| (it.class, it.scores, it.features)).unwrap_or_default();
            let record = Record {
                id: if at == 0 { id.clone() } else { format!("{id}#{at}") },
                captured,
                received,
                version: served.name(),
                package: served.package,
                input: seen.input,
                name: name.clone(),
                status,
                latency,
                class,
                scores,
                features,
                looks: seen.looks,
                kept: false,
            };
            (record, picture.clone())
        };
        seen.into_iter().enumerate().map(record).collect()
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
    use std::{thread, time::Duration};

    use super::*;
    use crate::{
        deploy::samples::{Gate, ask, picture, service},
        fs::Root,
        time::Day,
        traffic::{Spool, spool},
    };

    fn read(name: &'static str, value: &str) -> Result<Facts, String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let mut facts = Facts { received: time::now_millis(), ..Facts::default() };
        facts.read(&headers).map(|()| facts).map_err(|it| it.1)
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

    /// Waits until it is so.
    fn until(so: impl Fn() -> bool) {
        for _ in 0..3000 {
            if so() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it never came to be");
    }

    #[test]
    fn whoever_goes_away_is_counted_recorded_and_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let options = spool::Options { keep: 1.0, largest_broken: 9, broken_a_day: 9, disk: "/".into() };
        let gate = Gate::closed();
        let service = service(&gate, Duration::from_mins(1));
        service.record_into(Spool::start(Root::open(temp.path()).unwrap(), "test", options).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let asked: Vec<_> =
            (0..3).map(|it| runtime.spawn(ask(&service, "POST", "/classify", picture(it).into()))).collect();
        let unread = axum::body::Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>());
        let reading = runtime.spawn(ask(&service, "POST", "/classify", unread));
        until(|| service.counters.open.get() == 4 && service.live().batcher.waiting() == 2);
        asked.iter().for_each(tokio::task::JoinHandle::abort);
        reading.abort();
        until(|| service.counters.answers() == [(GONE.into(), 4)].into());
        assert_eq!(service.counters.open.get(), 0);
        gate.open();
        until(|| service.live().batcher.waiting() == 0);
        assert_eq!(runtime.block_on(ask(&service, "POST", "/classify", picture(9).into())).0, 200);
        service.spool().unwrap().stop();
        let root = Root::open(temp.path()).unwrap();
        let days = spool::days(&root, "test").unwrap();
        let records: Vec<_> =
            days.iter().flat_map(|it: &Day| spool::read(&root, "test", *it).unwrap().records).collect();
        let found: Vec<_> =
            records.iter().map(|it| (it.status, it.looks.is_some(), it.kept, it.class.len())).collect();
        let count = |of| found.iter().filter(|it| **it == of).count();
        assert_eq!(count((GONE, true, true, 0)), 3, "{found:?}");
        assert_eq!(count((GONE, false, false, 0)), 1, "{found:?}");
        assert_eq!(count((200, true, true, 3)), 1, "{found:?}");
    }
}
