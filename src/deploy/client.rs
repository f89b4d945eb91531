//! Asks a served model over HTTP: one request at a time a thread, on connections that are kept open.
//!
//! It follows no redirection and asks no proxy, since either could carry the token to somebody else.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use reqwest::{blocking, header, redirect};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::{Error, Kind, Result},
    fs,
};

/// A connection that is not made by then is none.
const CONNECT: Duration = Duration::from_secs(5);

/// A place to ask; copies share their connections.
#[derive(Clone)]
pub struct Client {
    http: blocking::Client,
    base: String,
    token: Option<String>,
}

/// What came back, whatever its status.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    /// What the service asks to wait before the next try.
    pub retry_after: Option<Duration>,
    pub body: Vec<u8>,
    /// From sending to the last byte of the answer.
    pub took: Duration,
}

/// What a picture is sent with.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The request's id; the service makes one where there is none.
    pub id: Option<String>,
    /// When it was taken, RFC 3339.
    pub captured: Option<String>,
    /// The file's name.
    pub name: Option<String>,
}

/// What a service says of one picture.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Said {
    pub id: String,
    pub class: String,
    pub probability: f32,
    pub scores: BTreeMap<String, f32>,
    pub model: String,
    pub version: String,
}

/// What a service says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// `pets`
    pub model: String,
    /// `v0.1.0`
    pub number: String,
    /// `b3:…`, where it says so.
    pub package: Option<String>,
    pub input: String,
    pub output: String,
    /// Pixels of a picture's side.
    pub side: usize,
}

impl Client {
    /// `base` is `http://HOST:PORT`, with whatever a proxy before it wants behind that.
    pub fn new(base: &str, token: Option<String>, deadline: Duration) -> Result<Self> {
        let base = base.trim_end_matches('/');
        let plain = base.starts_with("http://");
        if !plain && !base.starts_with("https://") {
            let error = Error::usage(format!("`{base}` is no address of a service"));
            return Err(error.hint("write it like http://127.0.0.1:8080"));
        }
        // Without this the TLS library has no algorithms; a second call changes nothing.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut builder = blocking::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(deadline)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true);
        if plain {
            // A small machine may have no certificates, and none are needed.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|it| unreachable(base, it))?;
        Ok(Self { http, base: base.to_owned(), token })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// The bearer token that requests are sent with.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// One request, POST if there is a body. [`Kind::Unavailable`] when nothing came back.
    pub fn ask(&self, path: &str, headers: &[(&str, &str)], body: Option<Vec<u8>>) -> Result<Reply> {
        let url = format!("{}{path}", self.base);
        let mut request = match body {
            Some(body) => self.http.post(url).body(body),
            None => self.http.get(url),
        };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let start = Instant::now();
        let response = request.send().map_err(|it| unreachable(&self.base, it))?;
        let status = response.status().as_u16();
        let seconds =
            response.headers().get(header::RETRY_AFTER).and_then(|it| it.to_str().ok()?.parse().ok());
        let body = response.bytes().map_err(|it| unreachable(&self.base, it))?.to_vec();
        let retry_after = seconds.map(Duration::from_secs);
        Ok(Reply { status, retry_after, body, took: start.elapsed() })
    }

    /// Sends one picture.
    pub fn classify(&self, picture: Vec<u8>, about: &About) -> Result<Reply> {
        let headers =
            [("X-Request-Id", &about.id), ("X-Captured-At", &about.captured), ("X-Name", &about.name)];
        let headers: Vec<_> = headers.iter().filter_map(|it| Some((it.0, it.1.as_deref()?))).collect();
        self.ask("/classify", &headers, Some(picture))
    }

    /// Whether it takes requests now.
    pub fn is_ready(&self) -> bool {
        self.ask("/v2/health/ready", &[], None).is_ok_and(|it| it.status == 200)
    }

    /// What answers for `model`; none when the service has no such model.
    pub fn metadata(&self, model: &str) -> Result<Option<Metadata>> {
        let reply = self.ask(&format!("/v2/models/{model}"), &[], None)?;
        match reply.status {
            200 => metadata(&reply.body).map(Some).ok_or_else(|| {
                Error::corrupt(format!("`{}` does not say what it serves as mlx does", self.base))
            }),
            404 => Ok(None),
            _ => Err(reply.refusal(&self.base)),
        }
    }
}

impl Reply {
    /// The answer to a picture.
    pub fn said(&self) -> Result<Said> {
        let wrong = |it| Error::corrupt("the service's answer cannot be understood").because(it);
        serde_json::from_slice(&self.body).map_err(wrong)
    }

    /// The reason in the body of a refusal.
    pub fn reason(&self) -> String {
        let found: Option<Value> = serde_json::from_slice(&self.body).ok();
        let told = found.as_ref().and_then(|it| it["error"].as_str());
        let text = told.map_or_else(|| String::from_utf8_lossy(&self.body).into_owned(), str::to_owned);
        text.chars().filter(|it| !it.is_control()).take(200).collect()
    }

    /// An answer that is none, as an error.
    pub fn refusal(&self, base: &str) -> Error {
        let message = format!("`{base}` answers {}: {}", self.status, self.reason());
        match self.status {
            401 | 403 => {
                Error::new(Kind::Denied, message).hint("give its token in MLX_TOKEN or --token-file")
            }
            404 => Error::not_found(message),
            _ => Error::new(Kind::Unavailable, message),
        }
    }
}

/// The bearer token: the first line of `file`, else `MLX_TOKEN`.
pub fn token(file: Option<&Path>) -> Result<Option<String>> {
    let given = match file {
        Some(file) => Some(String::from_utf8_lossy(&fs::read_outside(file)?).into_owned()),
        None => std::env::var("MLX_TOKEN").ok(),
    };
    let token = given.and_then(|it| it.lines().next().map(|it| it.trim().to_owned()));
    let token = token.filter(|it| !it.is_empty());
    if token.is_none() && file.is_some() {
        return Err(Error::usage("the token's file is empty"));
    }
    Ok(token)
}

fn metadata(body: &[u8]) -> Option<Metadata> {
    let found: Value = serde_json::from_slice(body).ok()?;
    let text = |it: &Value| it.as_str().map(str::to_owned);
    Some(Metadata {
        model: text(&found["name"])?,
        number: text(&found["versions"][0])?,
        package: text(&found["parameters"]["package"]),
        input: text(&found["inputs"][0]["name"])?,
        output: text(&found["outputs"][0]["name"])?,
        side: usize::try_from(found["inputs"][0]["shape"][2].as_u64()?).ok()?,
    })
}

fn unreachable(base: &str, error: reqwest::Error) -> Error {
    let late = error.is_timeout();
    let what = if late { "gave no answer in time" } else { "cannot be asked" };
    // The reason would name the address a second time.
    Error::new(Kind::Unavailable, format!("`{base}` {what}"))
        .because(error.without_url())
        .hint("is `mlx serve` running there?")
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// Gives one answer to each connection; what each was asked.
    fn server(answers: &'static [&'static str]) -> (String, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = thread::spawn(move || {
            let serve = |answer: &&str| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = [0; 4096];
                let count = stream.read(&mut bytes).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8_lossy(&bytes[..count]).into_owned()
            };
            answers.iter().map(serve).collect()
        });
        (address, asked)
    }

    #[test]
    fn a_refusal_keeps_its_reason_and_when_to_come_back() {
        let (address, asked) = server(&[
            "HTTP/1.1 503 X\r\nRetry-After: 3\r\nConnection: close\r\nContent-Length: 17\r\n\r\n{\"error\": \"full\"}",
            "HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        ]);
        let client = Client::new(&address, Some("secret".into()), Duration::from_secs(5)).unwrap();
        let about = About { id: Some("me".into()), captured: None, name: Some("a.jpg".into()) };
        let reply = client.classify(b"x".to_vec(), &about).unwrap();
        assert_eq!((reply.status, reply.retry_after), (503, Some(Duration::from_secs(3))));
        assert_eq!(reply.reason(), "full");
        assert_eq!(client.ask("/", &[], None).unwrap().status, 302, "nobody else is asked");
        let asked = asked.join().unwrap()[0].to_lowercase();
        for line in ["post /classify", "authorization: bearer secret", "x-request-id: me", "x-name: a.jpg"] {
            assert!(asked.contains(line), "{line}\n{asked}");
        }
        assert!(!asked.contains("x-captured-at"));
    }

    #[test]
    fn what_is_no_service_is_said_in_words() {
        let none = Client::new("http://127.0.0.1:1", None, Duration::from_secs(5)).unwrap();
        let error = none.ask("/", &[], None).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("`http://127.0.0.1:1` cannot be asked"), "{error}");
        assert!(!none.is_ready());
        assert_eq!(Client::new("ftp://x", None, CONNECT).err().unwrap().kind(), Kind::Usage);
        let (address, _) = server(&["HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"]);
        let other = Client::new(&address, None, CONNECT).unwrap();
        assert_eq!(other.metadata("pets").unwrap_err().kind(), Kind::Corrupt);
    }
}
