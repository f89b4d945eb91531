//! Request log: collects the facts of one inference request and writes its traffic records, whatever its
//! outcome.
//!
//! A request yields one record per image. A client that disconnects early is recorded with status 499.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Bytes,
    http::{HeaderMap, StatusCode},
};
use tokio::runtime::Handle;

use crate::{
    deploy::{Prediction, ServedModel, Service, service::HttpError},
    digest::Digest,
    model::image_stats::measure_image,
    time,
    traffic::{ImageStats, Record},
};

/// Header with the time of capture, as RFC 3339.
const CAPTURED_HEADER: &str = "x-captured-at";
/// Header with a name for the image.
const NAME_HEADER: &str = "x-name";
/// Largest length of a name in bytes.
pub(super) const MAX_NAME_LENGTH: usize = 200;
/// Milliseconds that a client's clock may be ahead.
pub(super) const MAX_CLOCK_SKEW: i64 = 5 * 60 * 1000;
/// Largest body in bytes that is hashed on the async thread, where it delays other requests.
const MAX_INLINE_HASH: usize = 1 << 20;

/// Recorded status of a request whose client disconnected before the response.
pub const CLIENT_CLOSED: u16 = 499;

/// Log of one request. Dropping it without [`RequestLog::finish`] records that the client disconnected.
pub(super) struct RequestLog {
    service: Arc<Service>,
    /// Version that answers the request.
    pub served: Arc<ServedModel>,
    start: Instant,
    pub facts: RequestFacts,
    recorded: bool,
}

/// Facts known about a request so far. Times are Unix milliseconds.
#[derive(Default)]
pub(super) struct RequestFacts {
    received: i64,
    pub id: String,
    name: String,
    captured: i64,
    /// Body, once it is read.
    pub body: Option<Bytes>,
    /// True if the body is an image, false if it holds tensors.
    pub is_image: bool,
    /// Inputs, one per image.
    pub inputs: Vec<InputRow>,
    pub predictions: Vec<Prediction>,
}

/// One image of a request: its digest, and its statistics if it could be decoded.
#[derive(Clone, Copy)]
pub(super) struct InputRow {
    pub digest: Digest,
    pub looks: Option<ImageStats>,
}

impl RequestLog {
    /// Starts the log of a request received now, with a new id.
    pub fn new(service: &Arc<Service>) -> Self {
        let now = time::now_millis();
        Self {
            service: Arc::clone(service),
            served: service.current(),
            start: Instant::now(),
            facts: RequestFacts { received: now, captured: now, id: new_id(), ..RequestFacts::default() },
            recorded: false,
        }
    }

    /// Records the request with the status of its response.
    pub fn finish(mut self, status: StatusCode) {
        self.record(status.as_u16());
    }

    /// Writes the records to the spool, if there is one.
    fn record(&mut self, status: u16) {
        self.recorded = true;
        let Some(spool) = self.service.spool() else { return };
        spool.report_queue_length(self.served.batcher.waiting());
        let (facts, latency) = (std::mem::take(&mut self.facts), self.start.elapsed().as_secs_f64() * 1000.0);
        let (service, served) = (Arc::clone(&self.service), Arc::clone(&self.served));
        let large = facts.body.as_ref().is_some_and(|it| it.len() > MAX_INLINE_HASH);
        let work = move || {
            let Some(spool) = service.spool() else { return };
            for (record, image) in facts.into_records(&served, status, latency as f32) {
                spool.record(record, image);
            }
        };
        match Handle::try_current() {
            Ok(runtime) if large => drop(runtime.spawn_blocking(work)),
            _ => work(),
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if !self.recorded {
            self.record(CLIENT_CLOSED);
        }
    }
}

impl RequestFacts {
    /// Reads the headers that describe the image.
    pub fn read_headers(&mut self, headers: &HeaderMap) -> Result<(), HttpError> {
        let invalid = |message: String| HttpError(StatusCode::BAD_REQUEST, message);
        if let Some(value) = headers.get(CAPTURED_HEADER) {
            let captured = value.to_str().ok().and_then(time::parse_millis);
            let captured =
                captured.ok_or_else(|| invalid(format!("`{CAPTURED_HEADER}` is not an RFC 3339 time")))?;
            if captured > self.received + MAX_CLOCK_SKEW {
                return Err(invalid(format!("`{CAPTURED_HEADER}` is in the future")));
            }
            if captured < 0 {
                return Err(invalid(format!("`{CAPTURED_HEADER}` is before 1970")));
            }
            self.captured = captured;
        }
        if let Some(value) = headers.get(NAME_HEADER) {
            let is_printable = |byte: &u8| (b' '..=b'~').contains(byte);
            let bytes = value.as_bytes();
            if bytes.len() > MAX_NAME_LENGTH || !bytes.iter().all(is_printable) {
                return Err(invalid(format!(
                    "`{NAME_HEADER}` is longer than {MAX_NAME_LENGTH} bytes or not printable ASCII"
                )));
            }
            self.name = String::from_utf8_lossy(bytes).into_owned();
        }
        Ok(())
    }

    /// Returns one record per image, with the image's bytes. A failed request whose input was not parsed
    /// counts as one image.
    fn into_records(self, served: &ServedModel, status: u16, latency: f32) -> Vec<(Record, Option<Bytes>)> {
        let Self { received, id, name, captured, body, is_image, mut inputs, predictions } = self;
        if inputs.is_empty() && predictions.is_empty() && !(200..300).contains(&status) {
            inputs.push(InputRow { digest: Digest::of(body.as_deref().unwrap_or_default()), looks: None });
        }
        let image = body.filter(|it| is_image && !it.is_empty());
        let mut predictions = predictions.into_iter();
        let record = |(at, input): (usize, InputRow)| {
            let prediction = predictions.next();
            let (class, scores, features) =
                prediction.map(|it| (it.class, it.scores, it.features)).unwrap_or_default();
            let record = Record {
                id: if at == 0 { id.clone() } else { format!("{id}#{at}") },
                captured,
                received,
                version: served.name(),
                package: served.package,
                input: input.digest,
                name: name.clone(),
                status,
                latency,
                class,
                scores,
                features,
                image_stats: input.looks,
                kept: false,
            };
            (record, image.clone())
        };
        inputs.into_iter().enumerate().map(record).collect()
    }
}

/// Returns digest and image statistics of each row of a tensor.
pub(super) fn input_rows(planes: &[f32], rows: usize, side: usize) -> Vec<InputRow> {
    if rows == 0 {
        return Vec::new();
    }
    let row = |row: &[f32]| {
        let bytes: Vec<u8> = row.iter().flat_map(|it| it.to_le_bytes()).collect();
        InputRow { digest: Digest::of(&bytes), looks: Some(measure_image(row, side)) }
    };
    planes.chunks(planes.len() / rows).map(row).collect()
}

/// Returns a unique request id.
fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;
    use crate::{
        deploy::test_service::{Gate, image, request, service},
        fs::Root,
        time::Day,
        traffic::{Spool, spool},
    };

    fn read(name: &'static str, value: &str) -> Result<RequestFacts, String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let mut facts = RequestFacts { received: time::now_millis(), ..RequestFacts::default() };
        facts.read_headers(&headers).map(|()| facts).map_err(|it| it.1)
    }

    #[test]
    fn valid_headers_are_read_and_others_rejected() {
        assert_eq!(read(CAPTURED_HEADER, "2023-11-14T22:13:20Z").ok().unwrap().captured, 1_700_000_000_000);
        assert_eq!(read(NAME_HEADER, "cam 1/a.jpg").ok().unwrap().name, "cam 1/a.jpg");
        for (header, value) in [
            (CAPTURED_HEADER, "yesterday"),
            (CAPTURED_HEADER, "1969-12-31T23:59:59Z"),
            (CAPTURED_HEADER, "9000-01-01T00:00:00Z"),
            (NAME_HEADER, "a\tb"),
            (NAME_HEADER, &"x".repeat(201)),
        ] {
            let error = read(header, value).err().unwrap();
            assert!(error.contains(header), "{error}");
        }
    }

    /// Waits until the condition is true.
    fn wait_until(condition: impl Fn() -> bool) {
        for _ in 0..3000 {
            if condition() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the condition never became true");
    }

    #[test]
    fn disconnected_clients_are_counted_recorded_and_dropped_from_the_queue() {
        let temp = tempfile::tempdir().unwrap();
        let options = spool::Options {
            keep_share: 1.0,
            max_undecodable_size: 9,
            max_undecodable_per_day: 9,
            disk: "/".into(),
        };
        let gate = Gate::closed();
        let service = service(&gate, Duration::from_mins(1));
        service.record_into(Spool::start(Root::open(temp.path()).unwrap(), "test", options).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let classify = |number| request(&service, "POST", "/classify", image(number).into());
        let sent: Vec<_> = (0..3).map(|it| runtime.spawn(classify(it))).collect();
        let unread = axum::body::Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>());
        let reading = runtime.spawn(request(&service, "POST", "/classify", unread));
        wait_until(|| service.counters.open.get() == 4 && service.current().batcher.waiting() == 2);
        sent.iter().for_each(tokio::task::JoinHandle::abort);
        reading.abort();
        wait_until(|| service.counters.responses() == [(CLIENT_CLOSED.into(), 4)].into());
        assert_eq!(service.counters.open.get(), 0);
        gate.open();
        wait_until(|| service.current().batcher.waiting() == 0);
        assert_eq!(runtime.block_on(classify(9)).0, 200);
        service.spool().unwrap().stop();
        let root = Root::open(temp.path()).unwrap();
        let days = spool::days(&root, "test").unwrap();
        let records: Vec<_> =
            days.iter().flat_map(|it: &Day| spool::read(&root, "test", *it).unwrap().records).collect();
        let found: Vec<_> =
            records.iter().map(|it| (it.status, it.image_stats.is_some(), it.kept, it.class.len())).collect();
        let count = |of| found.iter().filter(|it| **it == of).count();
        assert_eq!(count((CLIENT_CLOSED, true, true, 0)), 3, "{found:?}");
        assert_eq!(count((CLIENT_CLOSED, false, false, 0)), 1, "{found:?}");
        assert_eq!(count((200, true, true, 3)), 1, "{found:?}");
    }
}
