//! Test fixture: a small S3 in memory, on loopback, that refuses, delays and loses what a test tells it to,
//! or what a seed says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};

use tokio::sync::oneshot;

use crate::s3_faults::{Fault, Faults};

/// Largest number of names in one answer to a listing.
const PAGE: usize = 1000;

/// Time of the service, in seconds since 1970: long ago, so that no other clock can be taken for it.
const NOW: i64 = 1_704_067_200;

/// State of the service: its objects, its requests, and the faults it is to show.
#[derive(Default)]
pub struct Bucket {
    /// Keys without the name of the bucket.
    pub objects: BTreeMap<String, Bytes>,
    /// Days since keys were written; all others were written just now, which is in the year 2024.
    pub ages: BTreeMap<String, u64>,
    /// Methods and keys of all requests; a listing has its prefix as key.
    pub log: Vec<(Method, String)>,
    /// Uploads that are still taken; none: all are. Later ones are refused or, if `hangs`, never answered.
    pub uploads_left: Option<usize>,
    pub hangs: bool,
    /// True once an upload hangs.
    pub waiting: bool,
    /// True if requests wait that change an object, except temporary ones.
    pub gates: bool,
    pub held: Vec<Held>,
    /// Faults that follow from a seed.
    faults: Option<Faults>,
    /// Numbers of requests so far, by method and key; those that store an object count as `STORE`.
    counts: BTreeMap<String, u64>,
    /// Objects that are damaged when they are read next.
    decaying: BTreeSet<String>,
    /// Changes whose clients gave up, each with the number of further requests after which it is made.
    late: Vec<(u64, Change)>,
}

/// Request that waits until a test answers it.
pub struct Held {
    /// Number of the client that sent it.
    pub client: usize,
    pub method: Method,
    pub key: String,
    pub body: Bytes,
    verdict: oneshot::Sender<bool>,
}

impl Held {
    /// Returns false if its client has given it up.
    pub fn is_open(&self) -> bool {
        !self.verdict.is_closed()
    }

    /// Answers the request as done, which is up to the test, or refuses it.
    pub fn answer(self, is_done: bool) {
        // Its client may have been killed.
        self.verdict.send(is_done).unwrap_or_default();
    }
}

/// Change of an object: its new bytes, or its end.
struct Change {
    key: String,
    bytes: Option<Bytes>,
}

impl Bucket {
    /// Returns true if no upload is taken any more.
    pub fn is_cut_off(&self) -> bool {
        self.uploads_left == Some(0)
    }

    /// Returns the time at which an object was written.
    fn written(&self, key: &str) -> jiff::Timestamp {
        let seconds = self.ages.get(key).map_or(0, |days| i64::try_from(days * 86_400).unwrap());
        jiff::Timestamp::from_second(NOW - seconds).unwrap()
    }

    /// Returns the number of requests so far of this method.
    pub fn count(&self, method: &Method) -> usize {
        self.log.iter().filter(|(other, _)| other == method).count()
    }

    /// Lets a request wait that a test is to answer.
    fn hold(
        &mut self,
        client: usize,
        method: &Method,
        key: &str,
        body: &Bytes,
    ) -> Option<oneshot::Receiver<bool>> {
        if !self.gates || !matches!(*method, Method::PUT | Method::DELETE) || key.contains("/tmp/") {
            return None;
        }
        let (verdict, receiver) = oneshot::channel();
        let (method, key, body) = (method.clone(), key.to_owned(), body.clone());
        self.held.push(Held { client, method, key, body, verdict });
        Some(receiver)
    }

    /// Stores an object, or removes it.
    pub fn change(&mut self, key: String, bytes: Option<Bytes>) {
        self.make(Change { key, bytes });
    }

    /// Shows these faults from now on.
    pub fn start_faults(&mut self, faults: Faults) {
        self.faults = Some(faults);
    }

    /// Shows no further faults, once all changes that are under way are made and all damage is done.
    pub fn stop_faults(&mut self) {
        let late = std::mem::take(&mut self.late);
        late.into_iter().for_each(|(_, change)| self.make(change));
        let decaying = std::mem::take(&mut self.decaying);
        decaying.iter().for_each(|key| self.damage(key));
        self.faults = None;
    }

    /// Counts a request and returns its fault.
    fn fault(&mut self, method: &Method, key: &str) -> Fault {
        let count = self.counts.entry(format!("{method} {key}")).or_default();
        *count += 1;
        self.faults.as_ref().map_or(Fault::None, |faults| faults.of_request(method.as_str(), key, *count))
    }

    /// Makes the late changes that are due at this request.
    fn make_late_changes(&mut self) {
        let due: Vec<_> = self.late.extract_if(.., |(left, _)| *left == 0).collect();
        self.late.iter_mut().for_each(|(left, _)| *left -= 1);
        due.into_iter().for_each(|(_, change)| self.make(change));
    }

    fn make(&mut self, Change { key, bytes }: Change) {
        self.decaying.remove(&key);
        self.ages.remove(&key);
        let Some(bytes) = bytes else {
            self.objects.remove(&key);
            return;
        };
        let count = self.counts.entry(format!("STORE {key}")).or_default();
        *count += 1;
        if self.faults.as_ref().is_some_and(|faults| faults.damages(&key, *count)) {
            self.decaying.insert(key.clone());
        }
        self.objects.insert(key, bytes);
    }

    fn damage(&mut self, key: &str) {
        if let (Some(faults), Some(bytes)) = (&self.faults, self.objects.get_mut(key)) {
            *bytes = faults.damage(key, bytes);
        }
    }
}

/// Running service, stopped when dropped.
pub struct FakeS3 {
    /// Of each client.
    addresses: Vec<SocketAddr>,
    bucket: Arc<Mutex<Bucket>>,
    _runtime: tokio::runtime::Runtime,
}

impl FakeS3 {
    /// Starts a service with an empty bucket `b`.
    pub fn start() -> Self {
        Self::start_for(1)
    }

    /// Starts a service that knows its clients by the addresses that they use.
    pub fn start_for(clients: usize) -> Self {
        let bucket = Arc::new(Mutex::new(Bucket::default()));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listen = |client| {
            let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
            let address = listener.local_addr().unwrap();
            runtime.spawn(serve(listener, Arc::clone(&bucket), client));
            address
        };
        let addresses = (0..clients).map(listen).collect();
        Self { addresses, bucket, _runtime: runtime }
    }

    /// Arguments that add the bucket as a default remote.
    pub fn remote_args(&self) -> String {
        self.remote_args_of(0)
    }

    /// Works like [`FakeS3::remote_args`], for one of several clients.
    pub fn remote_args_of(&self, client: usize) -> String {
        format!(
            "s3://b/p --default --set endpoint=http://{} --set region=us-east-1 --set skip_signature=true",
            self.addresses[client]
        )
    }

    pub fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap()
    }
}

async fn serve(listener: tokio::net::TcpListener, bucket: Arc<Mutex<Bucket>>, client: usize) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let bucket = Arc::clone(&bucket);
        let service = hyper::service::service_fn(move |request| {
            answer(Arc::clone(&bucket), client, request.map(Body::new))
        });
        tokio::spawn(async move {
            let http = Builder::new(TokioExecutor::new());
            let _closed = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Answers a request; an error closes the connection.
async fn answer(bucket: Arc<Mutex<Bucket>>, client: usize, request: Request) -> io::Result<Response> {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let path = decode(head.uri.path());
    let key = path.trim_start_matches('/').split_once('/').map_or("", |it| it.1).to_owned();
    let verdict = bucket.lock().unwrap().hold(client, &head.method, &key, &body);
    if let Some(verdict) = verdict {
        let is_done = verdict.await.unwrap_or(false);
        return Ok(match head.method {
            _ if !is_done => failed(StatusCode::FORBIDDEN, "AccessDenied"),
            Method::PUT => stored(),
            _ => StatusCode::NO_CONTENT.into_response(),
        });
    }
    let (hangs, delay) = {
        let mut bucket = bucket.lock().unwrap();
        let hangs = head.method == Method::PUT && bucket.hangs && bucket.is_cut_off();
        bucket.waiting |= hangs;
        (hangs, bucket.faults.as_ref().map(|faults| faults.delay(body.len())))
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    let (response, fault) = act(&mut bucket.lock().unwrap(), head, body, &query, key);
    match fault {
        Fault::Dropped | Fault::LostAnswer | Fault::Late(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        Fault::CutOff => Ok(cut_off(response).await),
        Fault::Refused(status, code) => Ok(failed(status, code)),
        Fault::None => Ok(response),
    }
}

/// Does what a request asks for, unless its fault prevents it.
fn act(bucket: &mut Bucket, head: Parts, body: Bytes, query: &str, key: String) -> (Response, Fault) {
    bucket.make_late_changes();
    let is_list = query.contains("list-type=2");
    let key = if is_list { field(query, "prefix") } else { key };
    bucket.log.push((head.method.clone(), key.clone()));
    let fault = bucket.fault(&head.method, &key);
    match fault {
        Fault::Refused(..) | Fault::Dropped => return (Response::default(), fault),
        Fault::Late(after) => {
            let bytes = (head.method == Method::PUT).then_some(body);
            bucket.late.push((after, Change { key, bytes }));
            return (Response::default(), fault);
        }
        Fault::None | Fault::LostAnswer | Fault::CutOff => {}
    }
    let response = match head.method {
        _ if is_list => list(bucket, &key, &field(query, "delimiter"), &field(query, "continuation-token")),
        Method::PUT => put(bucket, key, body, &head.headers),
        Method::DELETE => {
            bucket.make(Change { key, bytes: None });
            StatusCode::NO_CONTENT.into_response()
        }
        method => {
            if method == Method::GET && bucket.decaying.remove(&key) {
                bucket.damage(&key);
            }
            match bucket.objects.get(&key) {
                Some(bytes) => {
                    let range = head.headers.get(header::RANGE).and_then(|it| it.to_str().ok());
                    get(bytes, bucket.written(&key), range)
                }
                None => failed(StatusCode::NOT_FOUND, "NoSuchKey"),
            }
        }
    };
    (response, fault)
}

/// Ends an answer after half of its body.
async fn cut_off(response: Response) -> Response {
    let (head, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let half = body.slice(..body.len() / 2);
    let parts = [Ok(half), Err(io::Error::from(io::ErrorKind::ConnectionAborted))];
    Response::from_parts(head, Body::from_stream(futures::stream::iter(parts)))
}

fn put(bucket: &mut Bucket, key: String, body: Bytes, headers: &HeaderMap) -> Response {
    match &mut bucket.uploads_left {
        Some(0) => return failed(StatusCode::FORBIDDEN, "AccessDenied"),
        Some(left) => *left -= 1,
        None => {}
    }
    if headers.get(header::IF_NONE_MATCH).is_some() && bucket.objects.contains_key(&key) {
        return failed(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
    }
    bucket.make(Change { key, bytes: Some(body) });
    stored()
}

fn stored() -> Response {
    [(header::ETAG, "\"x\"")].into_response()
}

/// Answers with an object, or with the range `bytes=START-END` of it. The server itself leaves the body out
/// of the answer to a HEAD.
fn get(bytes: &Bytes, written: jiff::Timestamp, range: Option<&str>) -> Response {
    let written = written.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let answer = Response::builder().header(header::ETAG, "\"x\"").header(header::LAST_MODIFIED, written);
    let Some((start, end)) = range.and_then(|it| it.strip_prefix("bytes=")?.split_once('-')) else {
        return answer.header(header::CONTENT_LENGTH, bytes.len()).body(Body::from(bytes.clone())).unwrap();
    };
    let start: usize = start.parse().unwrap_or(0);
    let end = end.parse::<usize>().map_or(bytes.len(), |it| it + 1).min(bytes.len());
    if start >= end {
        return failed(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
    }
    answer
        .status(StatusCode::PARTIAL_CONTENT)
        .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{}", end - 1, bytes.len()))
        .body(Body::from(bytes.slice(start..end)))
        .unwrap()
}

fn list(bucket: &Bucket, prefix: &str, delimiter: &str, after: &str) -> Response {
    let mut names: Vec<(String, Option<usize>)> = Vec::new();
    for (key, bytes) in bucket.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
        let below = key[prefix.len()..].split_once(delimiter).filter(|_| !delimiter.is_empty());
        let name = below.map(|(folder, _)| format!("{prefix}{folder}{delimiter}"));
        names.push(name.map_or_else(|| (key.clone(), Some(bytes.len())), |name| (name, None)));
    }
    names.dedup();
    names.retain(|name| name.0.as_str() > after);
    let more = names.len() > PAGE;
    names.truncate(PAGE);
    let mut xml = format!("<?xml version='1.0'?><ListBucketResult><IsTruncated>{more}</IsTruncated>");
    let next = names.last().filter(|_| more).map(|name| name.0.clone()).unwrap_or_default();
    let _ = write!(
        xml,
        "<NextContinuationToken>{next}</NextContinuationToken><KeyCount>{}</KeyCount>",
        names.len()
    );
    for (name, size) in names {
        let _ = match size {
            Some(size) => write!(
                xml,
                "<Contents><Key>{name}</Key><LastModified>{}</LastModified><ETag>x</ETag><Size>{size}</Size>\
                 </Contents>",
                bucket.written(&name)
            ),
            None => write!(xml, "<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
        };
    }
    xml.push_str("</ListBucketResult>");
    ([(header::CONTENT_TYPE, "application/xml")], xml).into_response()
}

fn failed(status: StatusCode, code: &str) -> Response {
    (status, format!("<?xml version='1.0'?><Error><Code>{code}</Code></Error>")).into_response()
}

/// Returns the decoded value of a field of a query; empty if it is not there.
fn field(query: &str, name: &str) -> String {
    let value = query.split('&').find_map(|it| it.strip_prefix(name)?.strip_prefix('='));
    decode(value.unwrap_or_default())
}

/// Decodes the only character that keys of remotes have encoded.
fn decode(text: &str) -> String {
    text.replace("%2F", "/")
}
