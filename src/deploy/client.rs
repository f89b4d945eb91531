//! Blocking HTTP client for served models, with a bearer token, a timeout and a limit on the response size.
//!
//! It follows no redirects, uses no proxy, and never shows the token in errors. Several threads may share one
//! client.

use std::{
    io::Read as _,
    path::Path,
    time::{Duration, Instant},
};

use reqwest::{Method, Url, blocking::Response, header};
use serde_json::Value;

use crate::{
    deploy::protocol::JSON_LENGTH_HEADER,
    error::{Error, Kind, Result, WithContext},
    fs,
};

/// Largest response in bytes.
const MAX_RESPONSE: u64 = 64 << 20;
/// Timeout for establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which idle connections are closed; shorter than the service's own limit.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Client of one service.
pub struct Client {
    http: reqwest::blocking::Client,
    /// URL without a trailing slash.
    base: String,
    token: Option<String>,
}

/// Response with any status.
#[derive(Clone, Debug, Default)]
pub struct ServiceResponse {
    pub status: u16,
    /// Seconds to wait before a retry, if the service says so.
    pub retry_after: Option<u64>,
    /// JSON of the body; null if the body is not JSON.
    pub body: Value,
    /// Bytes that follow the JSON; the whole body if it is not JSON.
    pub tail: Vec<u8>,
    /// Time from sending the request until the whole response was read.
    pub milliseconds: f64,
}

impl Client {
    /// Creates a client. `url` is `http` or `https`, with a host and optionally a path.
    pub fn new(url: &str, token: Option<String>, timeout: Duration) -> Result<Self> {
        let invalid = |reason: &str| {
            Error::usage(format!("the URL of the service is not valid: {reason}"))
                .hint("write it like `http://127.0.0.1:8080`")
        };
        let parsed = Url::parse(url).map_err(|it| invalid(&it.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(invalid("it must start with `http://` or `https://`"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(invalid(
                "it must not contain a user name or a password; pass a token in `MLX_TOKEN`",
            ));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(invalid("it must have no query and no fragment"));
        }
        // An error means that a provider is installed already, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = reqwest::blocking::Client::builder()
            .timeout(timeout)
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|it| Error::new(Kind::Internal, "cannot create the HTTP client").with_source(it))?;
        Ok(Self { http, base: parsed.as_str().trim_end_matches('/').to_owned(), token })
    }

    /// Sends one image to `POST /classify`.
    pub fn classify(&self, bytes: Vec<u8>, headers: &[(&str, String)]) -> Result<ServiceResponse> {
        self.post("/classify", headers, bytes)
    }

    /// Sends a GET request. `path` starts with a slash.
    pub fn get(&self, path: &str) -> Result<ServiceResponse> {
        self.send(Method::GET, path, &[], Vec::new())
    }

    /// Sends a POST request. `path` starts with a slash.
    pub fn post(&self, path: &str, headers: &[(&str, String)], bytes: Vec<u8>) -> Result<ServiceResponse> {
        self.send(Method::POST, path, headers, bytes)
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        bytes: Vec<u8>,
    ) -> Result<ServiceResponse> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).body(bytes);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let context = || format!("no answer from `{}`", self.base);
        let start = Instant::now();
        let response = request.send().map_err(|it| connection_error(&it)).context(context)?;
        let mut response = read_response(response).context(context)?;
        response.milliseconds = start.elapsed().as_secs_f64() * 1000.0;
        Ok(response)
    }
}

impl ServiceResponse {
    /// Returns the error message in the body, cut to 200 characters on one line.
    pub fn reason(&self) -> String {
        let text = self.body["error"]
            .as_str()
            .map_or_else(|| String::from_utf8_lossy(&self.tail).into(), str::to_owned);
        text.chars().filter(|it| !it.is_control()).take(200).collect()
    }

    /// Converts a response with an error status into an error.
    pub fn to_error(&self) -> Error {
        let message = format!("the service answered {}: {}", self.status, self.reason());
        match self.status {
            401 | 403 => {
                Error::new(Kind::Denied, message).hint("pass its token in `MLX_TOKEN` or with --token-file")
            }
            404 => Error::not_found(message),
            _ => Error::new(Kind::Unavailable, message),
        }
    }
}

/// Returns the bearer token: the first line of `file`, or of `MLX_TOKEN` if no file is given.
pub fn token(file: Option<&Path>) -> Result<Option<String>> {
    let given = match file {
        Some(file) => Some(String::from_utf8_lossy(&fs::read_user_file(file)?).into_owned()),
        None => std::env::var("MLX_TOKEN").ok(),
    };
    let token = given.and_then(|text| text.lines().next().map(|line| line.trim().to_owned()));
    let token = token.filter(|it| !it.is_empty());
    if token.is_none() && file.is_some() {
        return Err(Error::usage("the token file is empty"));
    }
    Ok(token)
}

fn connection_error(error: &reqwest::Error) -> Error {
    // The innermost source is the useful one: connection refused, unknown host.
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    let text = if error.is_timeout() { "the request timed out".to_owned() } else { reason.to_string() };
    Error::new(Kind::Unavailable, text).hint("is the service running? `mlx serve VERSION` starts one")
}

fn read_response(response: Response) -> Result<ServiceResponse> {
    let number = |name: &str| response.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
    let retry_after = number(header::RETRY_AFTER.as_str());
    let json_length = number(JSON_LENGTH_HEADER).and_then(|it| usize::try_from(it).ok());
    let status = response.status().as_u16();
    let mut bytes = Vec::new();
    response
        .take(MAX_RESPONSE + 1)
        .read_to_end(&mut bytes)
        .map_err(|it| Error::new(Kind::Unavailable, "the response is truncated").with_source(it))?;
    if bytes.len() as u64 > MAX_RESPONSE {
        let message = format!("the response is larger than {MAX_RESPONSE} bytes");
        return Err(Error::new(Kind::Unavailable, message));
    }
    let (text, rest) = bytes.split_at(json_length.unwrap_or(bytes.len()).min(bytes.len()));
    let (body, tail) = match serde_json::from_slice(text) {
        Ok(body) => (body, rest.to_vec()),
        Err(_) => (Value::Null, bytes),
    };
    Ok(ServiceResponse { status, retry_after, body, tail, milliseconds: 0.0 })
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net::TcpListener, thread};

    use super::*;

    /// Starts a server that reads one request and sends `reply`. The thread returns the request.
    fn server(reply: &'static [u8]) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(reply).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (address, served)
    }

    fn client(url: &str) -> Result<Client> {
        Client::new(url, Some("secret".into()), Duration::from_secs(10))
    }

    #[test]
    fn bytes_after_the_json_are_read() {
        let (address, served) = server(
            b"HTTP/1.1 503 x\r\nRetry-After: 7\r\nInference-Header-Content-Length: 7\r\nContent-Length: \
            10\r\n\r\n{\"a\":1}xyz",
        );
        let found = client(&format!("{address}/")).unwrap().get("/v2").unwrap();
        assert_eq!((found.status, found.retry_after), (503, Some(7)));
        assert_eq!((found.body["a"].as_u64(), &found.tail[..]), (Some(1), &b"xyz"[..]));
        let request = served.join().unwrap().to_lowercase();
        assert!(request.starts_with("get /v2 http/1.1") && request.contains("authorization: bearer secret"));
    }

    #[test]
    fn redirects_are_not_followed_and_a_truncated_response_is_an_error() {
        let (address, served) =
            server(b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client(&address).unwrap().get("/").unwrap().status, 302);
        drop(served.join());
        let (address, served) = server(b"HTTP/1.1 200 x\r\nContent-Length: 100\r\n\r\nabc");
        let error = client(&address).unwrap().get("/").unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(!error.chain_text().contains("secret"), "{}", error.chain_text());
        drop(served.join());
    }

    #[test]
    fn invalid_urls_are_rejected_without_showing_their_password() {
        for bad in ["", "pets", "ftp://x", "file:///x", "http://me:hunter2@x", "http://x?a=b"] {
            let error = client(bad).map(drop).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{bad}");
            assert!(!error.chain_text().contains("hunter2"));
        }
    }
}
