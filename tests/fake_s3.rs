//! Test fixture: a small S3 in memory, on loopback, that refuses, delays and loses what a test tells it to.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};

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
}

/// Running service, stopped when dropped.
pub struct FakeS3 {
    address: SocketAddr,
    bucket: Arc<Mutex<Bucket>>,
    _runtime: tokio::runtime::Runtime,
}

impl FakeS3 {
    /// Starts a service with an empty bucket `b`.
    pub fn start() -> Self {
        let bucket = Arc::new(Mutex::new(Bucket::default()));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let service = axum::Router::new().fallback(answer).with_state(Arc::clone(&bucket));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let service = TowerToHyperService::new(service.clone());
                tokio::spawn(async move {
                    let http = Builder::new(TokioExecutor::new());
                    let _closed = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, bucket, _runtime: runtime }
    }

    /// Arguments that add the bucket as a default remote.
    pub fn remote_args(&self) -> String {
        format!(
            "s3://b/p --default --set endpoint=http://{} --set region=us-east-1 --set skip_signature=true",
            self.address
        )
    }

    pub fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap()
    }
}

async fn answer(State(bucket): State<Arc<Mutex<Bucket>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let path = decode(head.uri.path());
    let key = path.trim_start_matches('/').split_once('/').map_or("", |it| it.1).to_owned();
    let hangs = {
        let mut bucket = bucket.lock().unwrap();
        let hangs = head.method == Method::PUT && bucket.hangs && bucket.is_cut_off();
        bucket.waiting |= hangs;
        hangs
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    let mut bucket = bucket.lock().unwrap();
    if query.contains("list-type=2") {
        let (prefix, after) = (field(&query, "prefix"), field(&query, "continuation-token"));
        bucket.log.push((head.method, prefix.clone()));
        return list(&bucket, &prefix, &field(&query, "delimiter"), &after);
    }
    bucket.log.push((head.method.clone(), key.clone()));
    match head.method {
        Method::PUT => put(&mut bucket, key, body, &head.headers),
        Method::DELETE => {
            bucket.objects.remove(&key);
            bucket.ages.remove(&key);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => match bucket.objects.get(&key) {
            Some(bytes) => {
                let range = head.headers.get(header::RANGE).and_then(|it| it.to_str().ok());
                get(bytes, bucket.written(&key), range)
            }
            None => failed(StatusCode::NOT_FOUND, "NoSuchKey"),
        },
    }
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
    bucket.ages.remove(&key);
    bucket.objects.insert(key, body);
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
