//! Tests of `mlx serve` with malformed and hostile HTTP: each request gets its error status, and the next
//! valid one is answered.

use std::{
    io::{BufReader, Read as _, Write as _},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::{
    model::small_project,
    serve::{Server, classify_offline, infer_body, photo, read_response, read_status, registered},
};

/// Checks that a valid request is answered.
fn assert_serves(server: &Server) {
    assert_eq!(server.request("POST", "/classify", "", &photo(1)).0, 200);
}

/// Opens a connection and sends these bytes.
fn send(server: &Server, parts: &[&[u8]]) -> TcpStream {
    let mut stream = server.connect();
    stream.write_all(&parts.concat()).unwrap();
    stream
}

/// Encodes a body as chunks of this size, in bytes.
fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in body.chunks(size) {
        bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[test]
fn oversized_shapes_are_refused_and_parameters_are_ignored() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets");
    let (planes, _) = classify_offline(&sandbox, &photo(1));
    let good = infer_body(&planes, 1);
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body["inputs"][0][key] = value;
        body.to_string()
    };
    let mut twice = good.clone();
    let one = twice["inputs"][0].clone();
    twice["inputs"].as_array_mut().unwrap().push(one);
    let mut many_outputs = good.clone();
    many_outputs["outputs"] = json!(vec![json!({"name": "probabilities"}); 9]);
    for (case, body, code) in [
        ("10^4 dimensions", with("shape", json!(vec![1; 10_000])), 400),
        ("10^6 dimensions", with("shape", json!(vec![u64::MAX; 1_000_000])), 400),
        ("two inputs", twice.to_string(), 400),
        ("nine outputs", many_outputs.to_string(), 400),
        ("parameters", with("parameters", json!({"x": vec![json!({"y": []}); 100_000]})), 200),
    ] {
        let (found, text) = server.request("POST", "/v2/models/pets/infer", "", body.as_bytes());
        assert_eq!(found, code, "{case}");
        assert!(text.len() < 500, "{case}: {} bytes of answer", text.len());
        assert_serves(&server);
    }
}

#[test]
fn a_request_with_two_lengths_is_the_last_of_its_connection() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets");
    let photo = photo(2);
    let smuggled = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n";
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ] {
        let head = format!("POST /classify HTTP/1.1\r\nHost: x\r\n{lengths}\r\n");
        let mut stream = send(&server, &[head.as_bytes(), &chunked(&photo, 1000), smuggled]);
        let mut bytes = Vec::new();
        let _cut = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("HTTP/1.1 200 "), "{lengths}: {text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{lengths}: {text}");
    }
    for lengths in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 1e3\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
    ] {
        let head = format!("POST /classify HTTP/1.1\r\nHost: x\r\n{lengths}\r\nhello!");
        assert_eq!(read_response(&mut send(&server, &[head.as_bytes()])).0, 400, "{lengths}");
    }
    assert_serves(&server);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets");
    let photo = photo(3);
    let post = format!("POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", photo.len());
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
    let bytes = [post.as_bytes(), &photo, &get("/v2"), &get("/nothing"), post.as_bytes(), &photo].concat();
    let mut stream = BufReader::new(send(&server, &[&bytes.repeat(20)]));
    for _ in 0..20 {
        assert_eq!([(); 4].map(|()| read_status(&mut stream)), [200, 200, 404, 200]);
    }
    assert_serves(&server);
}

#[test]
fn a_body_in_chunks_of_one_byte_is_read() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets");
    let head =
        b"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (code, text) = read_response(&mut send(&server, &[head, &chunked(&photo(4), 1)]));
    assert_eq!(code, 200, "{text}");
    let whole = server.json("POST", "/classify", "", &photo(4));
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["scores"], whole["scores"]);
}

#[test]
fn only_the_exact_token_is_accepted() {
    let sandbox = registered();
    std::fs::write(sandbox.root().join("token"), "secret\n").unwrap();
    let token = sandbox.root().join("token");
    let server = Server::start(&sandbox, &format!("serve pets --token-file {}", token.display()));
    let long = "secret".repeat(5000);
    for sent in ["", "s", "secre", "secrets", "secret secret", "Secret", "secret\0", &long] {
        let (code, text) =
            server.request("POST", "/classify", &format!("Authorization: Bearer {sent}\r\n"), &photo(1));
        // An invalid header is refused before the token is compared.
        let expected = if sent.contains('\0') { 400 } else { 401 };
        assert_eq!(code, expected, "{sent:.20}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
    for path in ["/?token=secret", "/?access_token=secret", "/classify?Authorization=Bearer%20secret"] {
        let method = if path.starts_with("/classify") { "POST" } else { "GET" };
        assert_eq!(server.request(method, path, "", &photo(1)).0, 401, "{path}");
    }
    let long = format!("Authorization: Bearer {}\r\n", "x".repeat(200_000));
    let (code, _) = server.request("POST", "/classify", &long, &photo(1));
    assert!(matches!(code, 0 | 431), "{code}");
    assert_eq!(server.request("POST", "/classify", "Authorization: Bearer secret\r\n", &photo(1)).0, 200);
}

#[test]
fn unusual_paths_are_not_found() {
    let sandbox = registered();
    let server = Server::start(&sandbox, "serve pets");
    for path in [
        "/..%2fv2",
        "/v2/..",
        "/..%2f..%2fetc%2fpasswd",
        "/../../etc/passwd",
        "//v2",
        "/v2/",
        "/v2//models/pets",
        "/v2/models/%ff",
        "/v2/models/pets/versions/%ff%fe",
        "/v2/models/%ff/ready",
        "/v2/models/..%2fpets",
        "/v2/models/pets%00",
        "/v2/models/%3Cscript%3E",
        "/V2",
    ] {
        let (code, text) = server.get(path);
        assert_eq!(code, 404, "{path}: {text}");
        let body: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
        assert!(body["error"].is_string() && !text.contains("script"), "{path}: {text}");
    }
    let (code, text) = server.request("POST", "/v2/models/%ff/infer", "", b"{}");
    assert_eq!(code, 404, "{text}");
    let (code, text) = read_response(&mut send(
        &server,
        &[b"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
            X-Name: \xff\xfe\r\nContent-Length: 1\r\n\r\nx"],
    ));
    assert_eq!((code, text.contains("x-name")), (400, true), "{text}");
    for head in [
        &b"GET /v2/models/\xff HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"GET /v2\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ] {
        let (code, text) = read_response(&mut send(&server, &[head]));
        assert!(matches!(code, 400 | 404), "{head:?}: {code} {text}");
    }
    assert_serves(&server);
}

#[test]
fn class_names_with_markup_are_escaped() {
    let sandbox = small_project(20);
    let names = ["<script>alert(1)<\u{2215}script>", "a'b\"c\\d\n} 1"];
    for (old, new) in [("cat", names[0]), ("dog", names[1])] {
        std::fs::rename(sandbox.repo.join("data").join(old), sandbox.repo.join("data").join(new)).unwrap();
    }
    sandbox.ok("add data");
    sandbox.ok("repro");
    sandbox.commit("first");
    sandbox.ok("model register pets");
    let server = Server::start(&sandbox, "serve pets");
    let found = server.json("POST", "/classify", "", &photo(1));
    let scores = found["scores"].as_object().unwrap();
    assert_eq!(scores.len(), 2, "{found}");
    let plain = scores.keys().find(|name| name.contains("script")).unwrap();
    assert_eq!(plain, names[0]);
    let page = server.get("/").1;
    assert!(!page.contains("<script"), "{page}");
    assert!(page.contains("&lt;script&gt;") && page.contains("b&quot;c\\d"), "{page}");
    let metrics = server.get("/metrics").1;
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            line.starts_with("mlx_") && line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(),
            "{line}"
        );
    }
}
