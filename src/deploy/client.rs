//! A small HTTP client for those who ask a served model: one request at a time and thread, with a token, a time
//! limit, and a bound on what it reads. It follows no redirects and never says the token.

use std::{
    io::Read as _,
    path::Path,
    time::{Duration, Instant},
};

use reqwest::{Method, Url, blocking::Response, header};
use serde_json::Value;

use crate::{
    deploy::protocol::JSON_LENGTH,
    error::{Doing, Error, Kind, Result},
    fs,
};

/// No answer of a model is longer.
const LARGEST: u64 = 64 << 20;
/// A connection that is not made by then is none.
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections are given up before the service does.
const IDLE: Duration = Duration::from_secs(2);

pub struct Client {
    http: reqwest::blocking::Client,
    /// Without a slash at its end.
    base: String,
    token: Option<String>,
}

/// An answer, whatever it says.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    pub status: u16,
    /// Seconds to wait, where the service names them.
    pub retry_after: Option<u64>,
    /// Null where the answer is no JSON.
    pub body: Value,
    /// What is no JSON: bytes behind it, or all of it.
    pub tail: Vec<u8>,
    pub milliseconds: f64,
}

impl Client {
    pub fn new(url: &str, token: Option<String>, timeout: Duration) -> Result<Self> {
        let wrong = |why: &str| {
            Error::usage(format!("this is no address of a service: {why}"))
                .hint("write it like http://127.0.0.1:8080")
        };
        let parsed = Url::parse(url).map_err(|it| wrong(&it.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(wrong("it starts with neither http:// nor https://"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(wrong("it holds a name or a password; a token comes from MLX_TOKEN"));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(wrong("it holds more than a host and a path"));
        }
        // Installed already is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = reqwest::blocking::Client::builder()
            .timeout(timeout)
            .connect_timeout(CONNECT)
            .no_proxy()
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|it| Error::new(Kind::Internal, "cannot start the network").because(it))?;
        Ok(Self { http, base: parsed.as_str().trim_end_matches('/').to_owned(), token })
    }

    /// `POST /classify`: one picture.
    pub fn classify(&self, bytes: Vec<u8>, headers: &[(&str, String)]) -> Result<Answered> {
        self.post("/classify", headers, bytes)
    }

    pub fn get(&self, path: &str) -> Result<Answered> {
        self.send(Method::GET, path, &[], Vec::new())
    }

    pub fn post(&self, path: &str, headers: &[(&str, String)], bytes: Vec<u8>) -> Result<Answered> {
        self.send(Method::POST, path, headers, bytes)
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        bytes: Vec<u8>,
    ) -> Result<Answered> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).body(bytes);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let doing = || format!("no answer from {}", self.base);
        let start = Instant::now();
        let response = request.send().map_err(|it| lost(&it)).doing(doing)?;
        let mut answered = read(response).doing(doing)?;
        answered.milliseconds = start.elapsed().as_secs_f64() * 1000.0;
        Ok(answered)
    }
}

impl Answered {
    /// The reason in the body of a refusal.
    pub fn reason(&self) -> String {
        let text = self.body["error"]
            .as_str()
            .map_or_else(|| String::from_utf8_lossy(&self.tail).into(), str::to_owned);
        text.chars().filter(|it| !it.is_control()).take(200).collect()
    }

    /// An answer that is none, as an error.
    pub fn refusal(&self) -> Error {
        let message = format!("the service answers {}: {}", self.status, self.reason());
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

fn lost(error: &reqwest::Error) -> Error {
    // The innermost reason is the one that says something: connection refused, unknown host.
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    let text = if error.is_timeout() { "it took too long".to_owned() } else { reason.to_string() };
    Error::new(Kind::Unavailable, text).hint("is it up? `mlx serve VERSION` starts one")
}

fn read(response: Response) -> Result<Answered> {
    let number = |name: &str| response.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
    let retry_after = number(header::RETRY_AFTER.as_str());
    let json_length = number(JSON_LENGTH).and_then(|it| usize::try_from(it).ok());
    let status = response.status().as_u16();
    let mut bytes = Vec::new();
    response
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|it| Error::new(Kind::Unavailable, "the answer ends too early").because(it))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::new(Kind::Unavailable, format!("the answer has more than {LARGEST} bytes")));
    }
    let (text, behind) = bytes.split_at(json_length.unwrap_or(bytes.len()).min(bytes.len()));
    let (body, tail) = match serde_json::from_slice(text) {
        Ok(body) => (body, behind.to_vec()),
        Err(_) => (Value::Null, bytes),
    };
    Ok(Answered { status, retry_after, body, tail, milliseconds: 0.0 })
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net::TcpListener, thread};

    use super::*;

    /// A server that reads one request and answers with this.
    fn answering(reply: &'static [u8]) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).unwrap();
            stream.write_all(reply).unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        (address, served)
    }

    fn client(url: &str) -> Result<Client> {
        Client::new(url, Some("secret".into()), Duration::from_secs(10))
    }

    #[test]
    fn an_answer_is_read_with_what_lies_behind_its_json() {
        let (address, served) = answering(
            b"HTTP/1.1 503 x\r\nRetry-After: 7\r\nInference-Header-Content-Length: 7\r\nContent-Length: 10\r\n\r\n{\"a\":1}xyz",
        );
        let found = client(&format!("{address}/")).unwrap().get("/v2").unwrap();
        assert_eq!((found.status, found.retry_after), (503, Some(7)));
        assert_eq!((found.body["a"].as_u64(), &found.tail[..]), (Some(1), &b"xyz"[..]));
        let asked = served.join().unwrap().to_lowercase();
        assert!(asked.starts_with("get /v2 http/1.1") && asked.contains("authorization: bearer secret"));
    }

    #[test]
    fn a_redirect_is_an_answer_and_half_an_answer_is_none() {
        let (address, served) =
            answering(b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client(&address).unwrap().get("/").unwrap().status, 302);
        drop(served.join());
        let (address, served) = answering(b"HTTP/1.1 200 x\r\nContent-Length: 100\r\n\r\nabc");
        let error = client(&address).unwrap().get("/").unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(!error.full_text().contains("secret"), "{}", error.full_text());
        drop(served.join());
    }

    #[test]
    fn what_is_no_address_is_refused_and_its_password_not_repeated() {
        for bad in ["", "pets", "ftp://x", "file:///x", "http://me:hunter2@x", "http://x?a=b"] {
            let error = client(bad).map(drop).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{bad}");
            assert!(!error.full_text().contains("hunter2"));
        }
    }
}
